"""Training pairs: seeded, laid where they belong, with a truth cut to what the query still shows."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from stemma.networks.comparator import BENIGN, DISTINCT, MANIPULATED
from stemma.vision import benign, geometry
from training import pairs
from training.pairs import KINDS, Pair, PairSettings

SIDE = 96
SMALL = PairSettings(side_px=SIDE, aligned=0.0)


def scene(seed: int, width: int = 200, height: int = 150) -> np.ndarray:
    rng = np.random.default_rng(seed)
    total = np.zeros((height, width, 3), np.float32)
    for cells in (4, 9, 20, 45):
        total += cv2.resize(rng.standard_normal((cells, cells, 3)).astype(np.float32), (width, height)) / cells**0.5
    total = (total - total.min()) / (total.max() - total.min())
    return (total * 255).astype(np.uint8)


STRANGERS = [scene(900), scene(901, 150, 220)]


def render(seed: int, kind: pairs.Kind | None = None, how: PairSettings = SMALL) -> Pair:
    return pairs.render(scene(seed % 5), STRANGERS, np.random.default_rng(seed), how, kind=kind)


def fields(pair: Pair) -> list[np.ndarray]:
    return [pair.query_HWC, pair.original_HWC, pair.valid_HW, pair.mask_HW, pair.counted_HW]


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 10_000), kind=st.sampled_from([None, *KINDS]))
def test_every_pair_is_well_formed_and_seeded(seed: int, kind: pairs.Kind | None) -> None:
    pair = render(seed, kind)
    assert all(one.dtype == np.uint8 and one.shape[:2] == (SIDE, SIDE) for one in fields(pair))
    assert set(np.unique(pair.valid_HW)) | set(np.unique(pair.counted_HW)) <= {0, 255}
    assert not (pair.mask_HW[pair.valid_HW == 0]).any(), "an edit that the query does not show is no truth"
    assert not (pair.counted_HW[pair.valid_HW == 0]).any()
    assert (pair.label == MANIPULATED) == bool(pair.mask_HW.any())
    assert (pair.label == DISTINCT) == (pair.kind == "distinct")
    again = render(seed, kind)
    assert again.log == pair.log and again.label == pair.label
    assert all(np.array_equal(a, b) for a, b in zip(fields(pair), fields(again), strict=True))


def test_the_kinds_come_in_the_shares_asked_for() -> None:
    how = PairSettings(benign=1, manip=0, both=0, distinct=1, side_px=SIDE)
    rng = np.random.default_rng(0)
    drawn = [pairs._kind(rng, how) for _ in range(400)]
    assert set(drawn) == {"benign", "distinct"} and 160 < drawn.count("benign") < 240


def test_the_query_lies_on_the_original_and_the_mask_on_the_edit() -> None:
    how = SMALL.model_copy(update={"error_px": 0.01, "error_spread": 0.0})
    inside, outside = [], []
    for seed in range(6):
        pair = render(seed, "manip", how)
        difference = np.abs(pair.query_HWC.astype(int) - pair.original_HWC).mean(-1)
        inside.append(difference[pair.mask_HW > 250].mean())
        edge = cv2.dilate((pair.mask_HW > 0).astype(np.uint8), np.ones((5, 5), np.uint8)) > 0
        outside.append(difference[~edge & (pair.valid_HW > 0)].mean())
    assert max(outside) < 8
    assert all(edit > 2 * noise for edit, noise in zip(inside, outside, strict=True))


def test_an_error_of_the_map_is_of_the_size_asked_for() -> None:
    rng = np.random.default_rng(1)
    corners = np.array([[0.0, 0.0], [SIDE, 0.0], [SIDE, SIDE], [0.0, SIDE]])
    moves = [geometry.apply(pairs._shaken(rng, SIDE, 0.5), corners) - corners for _ in range(200)]
    assert 0.4 < np.std(moves) < 0.6


@pytest.mark.parametrize("mirrored", [False, True])
def test_what_is_handed_to_the_aligner_is_an_affine_of_the_matching_view(mirrored: bool) -> None:
    true_33 = geometry.translation(9.6, 4.8) @ (geometry.mirror(SIDE) if mirrored else geometry.identity())
    a, b, c, d, e, f = pairs._affine(true_33, SIDE, mirrored)
    assert np.allclose([a, b, c, d, e, f], [1, 0, 0.1, 0, 1, 0.05])


def test_a_query_that_a_flow_will_align_comes_as_it_is() -> None:
    laid, asked = (render(12, "both", SMALL.model_copy(update={"laid": laid})) for laid in (True, False))
    assert np.array_equal(laid.mask_HW, asked.mask_HW) and np.array_equal(laid.original_HWC, asked.original_HWC)
    assert not np.array_equal(laid.query_HWC, asked.query_HWC)


def test_the_real_aligner_lays_pairs_too() -> None:
    by_aligner = render(3, "benign", SMALL.model_copy(update={"aligned": 1.0, "side_px": 160}))
    difference = np.abs(by_aligner.query_HWC.astype(int) - by_aligner.original_HWC).mean(-1)
    assert (by_aligner.valid_HW > 0).mean() > 0.6 and np.median(difference[by_aligner.valid_HW > 0]) < 30


def truth(
    mask: np.ndarray, valid: np.ndarray, noise: float = 0.0, change: int = 60
) -> tuple[int, np.ndarray, np.ndarray]:
    """The truth of an edit that brightens ``mask`` in a picture of SIDE, seen under noise."""
    original = scene(7, SIDE, SIDE) // 2
    source = original.copy()
    source[mask > 0] += np.uint8(change)
    laid = source + np.random.default_rng(0).normal(0, noise, source.shape)
    return pairs._truth(np.clip(laid, 0, 255).astype(np.uint8), original, source, mask, valid, SMALL)


def square(left: int, right: int) -> np.ndarray:
    mask = np.zeros((SIDE, SIDE), np.uint8)
    mask[20:60, left:right] = 255
    return mask


def test_an_edit_is_cut_to_the_overlap_and_relabelled_when_little_is_left() -> None:
    valid = np.full((SIDE, SIDE), 255, np.uint8)
    label, mask, counted = truth(square(10, 50), valid)
    assert label == MANIPULATED and np.array_equal(mask, square(10, 50)) and np.array_equal(counted, valid)
    half = valid.copy()
    half[:, :30] = 0
    label, mask, _ = truth(square(10, 50), half)
    assert label == MANIPULATED and np.array_equal(mask, square(30, 50))
    most = valid.copy()
    most[:, :45] = 0
    label, mask, counted = truth(square(10, 50), most)
    assert label == BENIGN and not mask.any()
    # what is left of it counts neither way
    assert not counted[20:60, 45:50].any() and counted[:, 60:].all()


def test_an_edit_that_noise_hides_is_no_edit() -> None:
    valid = np.full((SIDE, SIDE), 255, np.uint8)
    assert truth(square(10, 50), valid, change=6)[0] == MANIPULATED
    assert truth(square(10, 50), valid, change=6, noise=60)[0] == BENIGN


def test_no_edit_is_benign_everywhere() -> None:
    valid = np.full((SIDE, SIDE), 255, np.uint8)
    label, mask, counted = truth(np.zeros((SIDE, SIDE), np.uint8), valid)
    assert label == BENIGN and not mask.any() and counted.all()


def test_gain_and_bias_are_matched_where_nothing_was_edited() -> None:
    original = scene(8, SIDE, SIDE)
    laid = np.clip(original * 0.5 + 60, 0, 255).astype(np.uint8)
    matched = pairs._matched(laid, original, np.ones((SIDE, SIDE), bool))
    assert np.abs(matched - original).mean() < 1.5
    nowhere = pairs._matched(laid, original, np.zeros((SIDE, SIDE), bool))
    assert np.array_equal(nowhere, laid.astype(np.float32))


def test_grading_changes_all_colours_and_no_place() -> None:
    original = scene(9)
    names = set()
    for seed in range(30):
        graded, name = pairs.grade(original, np.random.default_rng(seed))
        names.add(name)
        assert graded.shape == original.shape and graded.dtype == np.uint8
        # equal pixels stay equal: nothing depends on where a pixel is
        assert np.array_equal(pairs.grade(original[::-1], np.random.default_rng(seed))[0], graded[::-1])
    assert len(names) == 5


def test_queries_come_at_working_size_with_the_way_back() -> None:
    query, back = pairs._working(scene(1, 640, 320), geometry.identity())
    assert query.shape[:2] == (256, 512)
    assert np.allclose(geometry.apply(back, np.array([[512.0, 256.0]])), [[640.0, 320.0]])


def test_recompression_keeps_small_pictures_at_the_least_side() -> None:
    for seed in range(5):
        out = pairs._recompressed(scene(2, 60, 33), np.random.default_rng(seed))
        assert min(out.rgb_HWC.shape[:2]) >= 32
        assert isinstance(out, benign.Rendered) and not out.mirrored


def test_settings_refuse_what_cannot_be_drawn() -> None:
    for wrong in ({"side_px": 150}, {"aligned": 1.5}, {"error_px": 0}, {"bening": 1}):
        with pytest.raises(ValidationError):
            PairSettings(**wrong)
