"""MCC and F1 at one threshold against their formulas pixel by pixel, and OE-SIR's own localization on made pictures."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from evaluation import localization as local
from evaluation import object_localization as by_objects
from evaluation.pairs import Pair
from stemma.api import Comparison, Heatmap
from stemma.flow import CELL_COUNT, CELL_DIM
from stemma.networks.objects import crop_box
from stemma.vision import geometry


def by_hand(score_HW: np.ndarray, mask_HW: np.ndarray, threshold: float) -> tuple[float, float]:
    """(MCC, F1), a pixel at a time."""
    called = [bool(score >= threshold) for score in score_HW.ravel()]
    tp = sum(a and b for a, b in zip(called, mask_HW.ravel(), strict=True))
    fp, fn = sum(called) - tp, int(mask_HW.sum()) - tp
    tn = mask_HW.size - tp - fp - fn
    root = math.sqrt((tp + fp) * (tp + fn) * (tn + fp) * (tn + fn))
    return (tp * tn - fp * fn) / root if root else 0.0, 2 * tp / (2 * tp + fp + fn) if tp + fp + fn else 0.0


@given(st.integers(0, 2**32 - 1), st.sampled_from([0.0, 0.3, 1.0]))
def test_counts_at_every_threshold_give_the_formulas(seed: int, changed: float) -> None:
    rng = np.random.default_rng(seed)
    # scores on thresholds and between them
    score_HW = rng.integers(0, 2 * local.STEPS + 1, (5, 7)).astype(np.float64) / (2 * local.STEPS)
    mask_HW = rng.random((5, 7)) < changed
    pixels = local.count(score_HW, mask_HW)  # type: ignore[arg-type]
    for place in (0, 60, 99, local.STEPS - 2):
        mcc, f1 = by_hand(score_HW, mask_HW, float(local.thresholds()[place]))
        assert (local.mcc(pixels)[place], local.f1(pixels)[place]) == pytest.approx((mcc, f1))


def test_scores_that_are_no_probabilities_are_refused() -> None:
    for score_HW in (np.full((2, 2), 1.5), np.full((2, 2), np.nan), np.zeros((2, 3))):
        with pytest.raises(ValueError, match="0 to 1"):
            local.count(score_HW, np.ones((2, 2), bool))  # type: ignore[arg-type]


def scored(score: float, inside: int, scene: str = "s") -> local.Scored:
    """Ten pixels, ``inside`` of which are changed, all of those and no other at ``score``."""
    mask_HW = (np.arange(10) < inside)[None]
    pair = Pair(folder=Path("x"), kind="copy-move", made="real", scene=scene)
    return local.Scored(pair, local.count(np.where(mask_HW, score, 0.1).astype(np.float32), mask_HW))


def test_the_threshold_is_chosen_on_the_training_pairs_alone() -> None:
    result = local.figures([scored(0.6, 3), scored(0.5, 3)], [scored(0.9, 2), scored(0.05, 2)])
    # anything over .1 is right on the training pairs; the first of the best is taken
    assert 0.1 < result["threshold"] <= 0.105 and result["train"] == {"mcc": 1.0, "f1": 1.0}
    # at it, one of the two measured is right and one is missed altogether
    assert (result["mcc"], result["f1"], result["n"], result["chosen_on"]) == (0.5, 0.5, 2, 2)
    # all pixels together: 2 of 4 changed ones, nothing else
    assert result["pooled"]["f1"] == pytest.approx(2 * 2 / (2 * 2 + 2), abs=1e-4)
    assert result["by_made"]["real"]["n"] == 2
    json.dumps(result, allow_nan=False)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    mask_HW = np.zeros((40, 60), np.uint8)
    mask_HW[:, :30] = 255
    records = []
    for part, kind in (("train", "copy-move"), ("val", "copy-move"), ("val", "splice")):
        place = tmp_path / part / f"00{len(records)}"
        place.mkdir(parents=True)
        for name in ("tampered.jpg", "original.jpg"):
            (place / name).write_bytes(part.encode())
        Image.fromarray(mask_HW).save(place / "mask.png")
        records.append({"dir": f"{part}/{place.name}", "split": part, "kind": kind, "made": "real", "source": "here"})
    (tmp_path / "index.json").write_text(json.dumps({"pairs": records}))
    return tmp_path


def test_only_copy_moves_are_measured_with_every_method(folder: Path) -> None:
    def compare(query: bytes, original: bytes) -> Comparison:
        assert query == original
        return Comparison(verdict="manipulated", heatmap=Heatmap(rows=1, cols=2, values=(1.0, 0.0)))

    scores: dict[local.Method, local.Score] = {
        "comparator": local.comparator_score(compare),
        "object": local.comparator_score(lambda query, original: Comparison(verdict="unknown")),
    }
    result = local.localization(folder, scores)
    assert (result["n"], result["mcc"], result["f1"]) == (1, 1.0, 1.0)
    # nothing is shown of pictures that are not the same
    assert result["by_method"]["object"]["f1"] == 0.0
    assert local.localization(folder, scores, method="object")["f1"] == 0.0


def objects(*boxes: tuple[float, ...], kinds: tuple[int, ...]) -> by_objects.Described:
    """Boxes with one-hot embeddings."""
    return by_objects.Described(np.array(boxes, np.float32), (127 * np.eye(8, dtype=np.int8))[list(kinds)])


def test_a_known_map_of_boxes_is_recovered_and_a_copy_of_its_source_outvoted() -> None:
    # the query is the original at half its size; a copy of object 0 stands elsewhere in the query
    query = objects((10, 10, 20, 20), (30, 10, 40, 30), (0, 0, 50, 40), (30, 31, 40, 39), kinds=(0, 1, 2, 0))
    original = objects((20, 20, 40, 40), (60, 20, 80, 60), (0, 0, 100, 80), kinds=(0, 1, 2))
    found_33 = by_objects.transform(query, original)
    assert np.allclose(found_33, geometry.scaling(2, 2), atol=1e-6)


def means(rgb_HWC: np.ndarray, box: tuple[float, ...]) -> np.ndarray:
    """Cells that say whether their place is bright: one-hot, 14 x 14 over the crop."""
    x0, y0, x1, y1 = crop_box(box, (rgb_HWC.shape[1], rgb_HWC.shape[0]))
    grey = np.asarray(Image.fromarray(rgb_HWC[y0:y1, x0:x1]).convert("L").resize((14, 14)))
    cells_PF = np.zeros((CELL_COUNT, CELL_DIM), np.int8)
    cells_PF[np.arange(CELL_COUNT), (grey.ravel() > 127).astype(int)] = 100
    return cells_PF


def test_features_differ_where_the_picture_was_changed_and_nowhere_else() -> None:
    original = np.zeros((112, 168, 3), np.uint8)
    query = original.copy()
    query[16:48, 96:144] = 255
    found_HW = by_objects.difference(query, original, np.eye(3), means) / by_objects.DIFFERENCE_MAX
    assert found_HW[24:40, 104:136].min() > 0.4 and found_HW[70:, :].max() < 0.05 and found_HW[:, :70].max() < 0.05
    # nothing is said where the original does not reach
    shifted_33 = geometry.translation(-120, 0)
    assert not by_objects.difference(query, original, shifted_33, means)[:, :118].any()


@pytest.mark.parametrize("size", [(448, 336), (101, 77)])
def test_the_crops_of_all_tiles_make_up_the_picture(size: tuple[int, int]) -> None:
    covered = np.zeros(size[::-1], int)
    for row in range(2):
        for column in range(2):
            x0, y0, x1, y1 = crop_box(by_objects.tile(size, row, column, 2), size)
            assert abs((x1 - x0) - size[0] / 2) <= 1.5 and abs((y1 - y0) - size[1] / 2) <= 1.5
            covered[y0:y1, x0:x1] += 1
    assert covered.min() == 1


def test_the_score_of_a_pair_is_of_its_own_pictures(folder: Path) -> None:
    def read(body: bytes) -> np.ndarray:
        return np.full((40, 60, 3), 255 if body == b"val" else 0, np.uint8)

    score = by_objects.object_score(lambda rgb_HWC: objects((0, 0, 60, 40), kinds=(0,)), means, read)
    pair = Pair(folder=folder / "val/001", kind="copy-move", made="real", scene="s")
    found_HW = score(pair, np.zeros((40, 60), bool))
    assert found_HW.shape == (40, 60) and not found_HW.any()
