"""The paper's gated IoU, and the alignment that is taken from an answer."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from evaluation.paper_maps import affine_of, gated_iou, paper_ious
from evaluation.queries import Asked, Query
from stemma.api import Answer, Comparison
from stemma.config import Settings
from stemma.flow import Bytes3, Judged, Pairing
from stemma.vision import geometry

MakeAnswer = Callable[..., Answer]
SMALL = st.floats(-0.2, 0.2)


def judged(benign: float, manipulated: float, grid_RC: np.ndarray | None = None) -> Judged:
    grid_RC = np.zeros((42, 56), np.float32) if grid_RC is None else grid_RC
    return Judged(
        benign=benign,
        manipulated=manipulated,
        distinct=1 - benign - manipulated,
        logits=(0.0, 0.0, 0.0),
        heatmap_RC=np.zeros_like(grid_RC),
        transform=None,
        mirrored=False,
        correlation=1.0,
        grid_RC=grid_RC,
    )


def test_the_predicted_class_gates_the_map() -> None:
    mask_HW = np.zeros((60, 80), np.bool_)
    mask_HW[:30, :40] = True
    grid_RC = np.zeros((42, 56), np.float32)
    grid_RC[:21, :28] = 0.7
    assert gated_iou(judged(0.1, 0.8, grid_RC), mask_HW) == pytest.approx(1.0, abs=0.05)
    assert gated_iou(judged(0.8, 0.1, grid_RC), mask_HW) == 0.0  # benign shows nothing, whatever its map
    assert gated_iou(judged(0.1, 0.1, grid_RC), mask_HW) == 0.25  # distinct shows everything
    assert gated_iou(judged(0.1, 0.8, grid_RC / 2.1), mask_HW) == 0.0  # under .35 of the maximum
    assert gated_iou(judged(0.8, 0.1), np.zeros_like(mask_HW)) is None


@given(st.tuples(SMALL, SMALL, SMALL, SMALL), st.booleans())
@settings(max_examples=40)
def test_an_affine_alignment_comes_back_exactly(drawn: tuple[float, ...], mirrored: bool) -> None:
    query_size, original_size = (640, 400), (512, 320)
    a, b, d, e = drawn
    unit_33 = np.array([[1 + a, b, d], [-b, 1 + e, a], [0, 0, 1]])
    seen_33 = unit_33 @ geometry.mirror(1.0) if mirrored else unit_33
    transform_33 = geometry.scaling(*original_size) @ seen_33 @ geometry.scaling(1 / query_size[0], 1 / query_size[1])
    said = Comparison(verdict="benign", transform=geometry.as_rows(transform_33), mirrored=mirrored)
    assert affine_of(said, query_size, original_size) == pytest.approx(unit_33[:2].ravel().tolist(), abs=1e-9)


def test_a_perspective_is_met_in_the_middle() -> None:
    transform_33 = np.array([[1.0, 0.02, 3.0], [0.01, 1.0, -2.0], [1e-4, 2e-4, 1.0]])
    said = Comparison(verdict="benign", transform=geometry.as_rows(transform_33))
    found = affine_of(said, (400, 300), (400, 300))
    assert found is not None
    affine_33 = np.array([found[:3], found[3:], (0.0, 0.0, 1.0)])
    middle_12 = np.array([[0.5, 0.5]])
    unit_33 = geometry.scaling(1 / 400, 1 / 300) @ transform_33 @ geometry.scaling(400, 300)
    assert geometry.apply(affine_33, middle_12) == pytest.approx(geometry.apply(unit_33, middle_12), abs=5e-3)
    assert affine_of(Comparison(verdict="benign"), (4, 4), (4, 4)) is None


def test_only_edited_queries_with_their_own_original_are_compared_again(
    make_answer: MakeAnswer, tmp_path: Path
) -> None:
    rng = np.random.default_rng(0)
    for name in ("query.png", "original.png"):
        Image.fromarray(rng.integers(0, 256, (60, 80, 3), dtype=np.uint8)).save(tmp_path / name)
    Image.fromarray(np.full((60, 80), 255, np.uint8)).save(tmp_path / "mask.png")
    seen: list[tuple[tuple[int, ...], Sequence[Pairing]]] = []

    def compare(query_HWC: Bytes3, pairings: Sequence[Pairing]) -> list[Judged]:
        seen.append((query_HWC.shape, pairings))
        return [judged(0.1, 0.8, np.ones((42, 56), np.float32))]

    def asked(kind: str, original: str, *, compared: bool = True, mask: bool = True) -> Asked:
        answer = make_answer(["a"], found=True)
        if compared:
            said = Comparison(verdict="benign", transform=geometry.as_rows(geometry.identity()), mirrored=True)
            first = answer.candidates[0].model_copy(update={"comparison": said})
            answer = answer.model_copy(update={"original": first})
        query = Query(
            path=tmp_path / "query.png",
            set=kind,
            original=original,
            photograph="p",
            mirrored=False,
            original_path=tmp_path / "original.png",
            mask=tmp_path / "mask.png" if mask else None,
        )
        return Asked(query=query, answer=answer, ms=1.0)

    others = [
        asked("benign", "a"),
        asked("manip", "b"),
        asked("manip", "a", compared=False),
        asked("both", "a", mask=False),
    ]
    assert paper_ious(others, Settings(), compare) == {}
    assert paper_ious([*others, asked("manip", "a")], Settings(), compare) == {"query.png": 1.0}
    ((shape, (pairing,)),) = seen
    assert shape == (60, 80, 3) and pairing.mirrored and pairing.affine is not None
