"""The comparator as a whole: what it says is in the query's frame, and of each pair alone."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from stemma.config import ComparatorSettings, load
from stemma.errors import BadRequest, NotFound
from stemma.flow import Judged, Pairing, Pixels
from stemma.networks import comparing
from stemma.networks.comparing import Comparator
from stemma.networks.weights import ComparatorCard
from stemma.vision import geometry
from stemma.vision.decode import working_copy

WIDTH, HEIGHT = 320, 240


def scene(seed: int) -> np.ndarray:
    """Texture at many scales, as a photograph has."""
    rng = np.random.default_rng(seed)
    total = np.zeros((HEIGHT, WIDTH, 3), np.float32)
    for cells in (4, 9, 20, 45):
        coarse_HWC = rng.standard_normal((cells, cells, 3)).astype(np.float32) / cells**0.5
        total += cv2.resize(coarse_HWC, (WIDTH, HEIGHT), interpolation=cv2.INTER_CUBIC)
    total = (total - total.min()) / (total.max() - total.min())
    return (total * 255).astype(np.uint8)


def pairing(rgb_HWC: np.ndarray, *, mirrored: bool = False) -> Pairing:
    pixels = Pixels(rgb_HWC=rgb_HWC, width=WIDTH, height=HEIGHT, sha256="", format="PNG")
    return Pairing(original=working_copy(pixels), mirrored=mirrored)


@pytest.fixture(scope="module")
def comparator() -> Comparator:
    return Comparator.load(load().comparator)


def same(one: Judged, other: Judged) -> bool:
    return one.logits == other.logits and np.array_equal(one.heatmap_RC, other.heatmap_RC)


@pytest.mark.parametrize("mirrored", [False, True])
def test_the_heatmap_and_the_transform_are_in_the_frame_of_the_query(comparator: Comparator, mirrored: bool) -> None:
    original = scene(1)
    edited = original.copy()
    edited[40:120, 200:300] = scene(7)[40:120, 200:300][::-1]
    # turned on its side's size: 400 wide, mirrored or not, so a map in any other frame lies elsewhere
    back_33 = geometry.scaling(WIDTH / 400, HEIGHT / 200) @ (geometry.mirror(400) if mirrored else geometry.identity())
    query = geometry.warp(edited, back_33, (400, 200))
    (said,) = comparator.compare(query, [pairing(original, mirrored=mirrored)])
    assert said.manipulated > max(said.benign, said.distinct)
    assert said.heatmap_RC.shape == (28, 56)
    mask = np.zeros((HEIGHT, WIDTH), np.uint8)
    mask[40:120, 200:300] = 255
    truth = cv2.resize(geometry.carry_mask(mask, back_33, (400, 200)), (56, 28), interpolation=cv2.INTER_AREA) > 127
    shown = said.heatmap_RC > 0.5
    assert (shown & truth).sum() / (shown | truth).sum() > 0.5
    assert said.transform is not None
    assert said.mirrored is mirrored
    corners = np.array([[0.0, 0.0], [400.0, 0.0], [200.0, 100.0], [400.0, 200.0]])
    error = geometry.apply(geometry.from_rows(said.transform), corners) - geometry.apply(back_33, corners)
    assert np.abs(error).max() < 1.0


def test_a_benign_version_shows_nothing(comparator: Comparator) -> None:
    original = scene(2)
    (said,) = comparator.compare(geometry.resize(original, (240, 180)), [pairing(original)])
    assert said.benign > max(said.manipulated, said.distinct)
    assert not (said.heatmap_RC > 0.5).any()
    assert said.benign + said.manipulated + said.distinct == pytest.approx(1.0, abs=1e-5)


def test_a_stranger_aligns_nowhere_and_has_no_map(comparator: Comparator) -> None:
    (said,) = comparator.compare(scene(3), [pairing(scene(4))])
    assert said.distinct > 0.5
    assert said.transform is None
    assert not said.heatmap_RC.any()


def test_a_pair_is_judged_alone_whatever_is_compared_beside_it(comparator: Comparator) -> None:
    queries, originals = [scene(5), scene(6)], [pairing(scene(5)), pairing(scene(8)), pairing(scene(6))]
    alone = [[comparator.compare(query, [one])[0] for one in originals] for query in queries]
    together = comparator.compare_batch([(queries[0], originals), (queries[1], originals)])
    for row, batch in zip(alone, together, strict=True):
        assert all(same(one, other) for one, other in zip(row, batch, strict=True))
    assert comparator.compare_batch([(queries[0], [])]) == [[]]


def test_the_papers_network_answers_through_the_same_door() -> None:
    torch.manual_seed(0)
    card = ComparatorCard(
        name="p",
        size="paper",
        digest="",
        temperature=1.0,
        margin=0.0,
        distinct_min=0.5,
        heatmap_min=0.35,
        side_px=224,
    )
    network = comparing._network("paper").eval()
    (said,) = Comparator(network, card).compare(scene(1), [pairing(scene(1))])  # type: ignore[arg-type]
    assert said.benign + said.manipulated + said.distinct == pytest.approx(1.0, abs=1e-5)
    assert np.array_equal(said.heatmap_RC, said.grid_RC)
    assert said.heatmap_RC.shape == (42, 56)


def test_other_weights_than_asked_for_are_refused(tmp_path: Path) -> None:
    with pytest.raises(BadRequest):
        Comparator.load(ComparatorSettings(size="paper"))
    with pytest.raises(NotFound):
        Comparator.load(ComparatorSettings(weights=str(tmp_path)))
