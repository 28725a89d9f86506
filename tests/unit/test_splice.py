"""Donors from object hits: what is dropped, how hits are ordered, and that a known paste is laid and outlined."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from stemma import splice
from stemma.flow import CELL_COUNT, CELL_DIM, OBJECT_DIM, ObjectHit
from stemma.networks.objects import crop_box
from stemma.vision import geometry

CHANCE = splice.Chance(bias=-6.0, match=0.35, distance=-1.0)
CHANCES = splice.Chances(crops=CHANCE, laid=splice.Chance(bias=-8.0, match=0.2, distance=-1.0))
SIZE = (320, 240)


def hit(row: int, distance: float = 1.0, *, mirrored: bool = False, query_object: int = 0) -> ObjectHit:
    return ObjectHit(
        row=row,
        image_id=f"{row:04d}",
        distance=distance,
        refined_distance=distance,
        mirrored=mirrored,
        query_object=query_object,
        donor_object=0,
        donor_box=(0.25, 0.25, 0.75, 0.75),
    )


def texture(seed: int, width: int, height: int) -> NDArray[np.uint8]:
    coarse = np.random.default_rng(seed).integers(0, 256, (height // 6, width // 6, 3)).astype(np.uint8)
    return cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC)


def pasted(shift: tuple[int, int] = (40, 30), scale: float = 1.0) -> tuple[NDArray, NDArray, geometry.Map33, NDArray]:
    """(query, donor, true map, true mask): an ellipse of the donor in another scene."""
    donor, host = texture(1, *SIZE), texture(2, *SIZE)
    back = geometry.translation(-120 - shift[0], -90 - shift[1])
    there = geometry.translation(120, 90) @ geometry.scaling(1 / scale, 1 / scale) @ back
    mask = np.zeros(SIZE[::-1], np.uint8)
    cv2.ellipse(mask, (120 + shift[0], 90 + shift[1]), (60, 45), 0, 0, 360, 255, -1)
    laid = geometry.warp(donor, there, SIZE)
    return np.where(mask[..., None] > 0, laid, host), donor, there, mask


def donor_of(there: geometry.Map33 | None, box: tuple[float, float, float, float]) -> splice.Donor:
    return splice.Donor(
        hit=hit(0),
        query_box=box,
        donor_box=(0, 0, 1, 1),
        damped=-0.5,
        match=30.0,
        probability=0.9,
        transform_33=there,
        mirrored=False,
    )


def test_the_host_and_its_duplicates_are_no_donors() -> None:
    kept = splice.shortlist([hit(4), hit(5), hit(2)], np.full((2, 1), 2.0, np.float32), (2, 4))
    assert [one.row for one in kept] == [5]


ROWS = st.tuples(st.integers(0, 2), st.floats(0, 4), st.booleans())


@given(st.lists(ROWS, max_size=40), st.integers(0, 25))
def test_the_shortlist_is_in_order_of_what_is_nearer_than_the_background(
    rows: list[tuple[int, float, bool]], most: int
) -> None:
    hubness = np.array([[0.5, 1.0, 0.2], [1.5, 0.1, 0.2]], np.float32)
    hits = [
        hit(row, distance, mirrored=mirrored, query_object=number)
        for row, (number, distance, mirrored) in enumerate(rows)
    ]

    def off(one: ObjectHit) -> float:
        return splice.damped(one, hubness) + splice.PLACE_STEP * one.query_object

    near = [one for one in hits if splice.damped(one, hubness) <= splice.NEARER_MAX]
    kept = splice.shortlist(hits[::-1], hubness, most=most)
    assert kept == sorted(kept, key=lambda one: (off(one), one.image_id)) and len(kept) == min(most, len(near))
    assert all(one in near for one in kept), "what is no nearer than the background is not looked at"
    assert all(off(one) <= min((off(other) for other in near if other not in kept), default=math.inf) for one in kept)


def test_hubness_is_the_mean_distance_of_the_nearest_ten() -> None:
    rng = np.random.default_rng(0)
    unit = rng.normal(size=(40, OBJECT_DIM))
    codes = np.rint(unit / np.linalg.norm(unit, axis=1, keepdims=True) * 120).astype(np.int8)
    found = splice.hubness(codes[None, :3], codes[3:], 120.0)
    for number in range(3):
        gaps = np.square((codes[3:].astype(float) - codes[number].astype(float)) / 120.0).sum(1)
        slow = np.sort(gaps)[: splice.BACKGROUND_NEIGHBOURS].mean()
        assert found[0, number] == pytest.approx(slow, abs=0.05)


def test_a_thing_like_everything_is_damped_below_a_rare_one() -> None:
    common, rare = hit(1, 0.5, query_object=0), hit(2, 0.8, query_object=1)
    kept = splice.shortlist([common, rare], np.array([[0.6, 1.4]], np.float32))
    assert [one.row for one in kept] == [2, 1]


@pytest.mark.parametrize(("most", "left"), [(-4.0, splice.VERIFIED_FIRST), (-0.55, 15), (9.0, 20)])
def test_hits_without_hope_are_left_behind_the_first(most: float, left: int) -> None:
    """The others' pictures are not even asked for."""
    hits = [hit(row, row / 10) for row in range(20)]
    kept = splice.shortlist(hits[::-1], np.full((2, 1), 2.0, np.float32), damped_max=most)
    assert [one.row for one in kept] == list(range(left))


def test_chance_rises_with_the_match_and_falls_with_distance() -> None:
    assert CHANCE.of(30, -0.5) > CHANCE.of(10, -0.5) > CHANCE.of(10, 0.5)
    assert CHANCE.of(10, -9.0) == CHANCE.of(10, splice.DAMPED_MIN)
    assert 0 <= CHANCE.of(-1e9, 1e9) < CHANCE.of(1e9, -1e9) <= 1
    assert splice.Chance.fitted((-6.0, 0.35, -1.0)) == CHANCE
    with pytest.raises(ValueError, match="unpack"):
        splice.Chance.fitted((1.0, 2.0))


def cell_codes(seed: int) -> NDArray[np.int8]:
    unit = np.random.default_rng(seed).normal(size=(CELL_COUNT, CELL_DIM))
    return np.rint(unit / np.linalg.norm(unit, axis=1, keepdims=True) * 127).astype(np.int8)


@pytest.mark.parametrize("mirrored", [False, True])
def test_equal_crops_map_box_onto_box(mirrored: bool) -> None:
    """Cells that agree place by place say: crop on crop; the map then takes the query's box to the donor's."""
    picture = np.zeros((240, 320, 3), np.uint8)
    query = splice.Query(picture, np.array([[30.0, 40.0, 130.0, 120.0]]), lambda *_: cell_codes(1))
    one = hit(7, mirrored=mirrored)
    found = splice.verify(
        query, one, np.zeros((200, 400, 3), np.uint8), cells_of=lambda *_: cell_codes(1), chance=CHANCE, damped=-0.5
    )
    assert found.match > 100 and found.probability > 0.99 and found.transform_33 is not None
    assert found.donor_box == (100.0, 50.0, 300.0, 150.0)
    theirs = crop_box(found.donor_box, (400, 200))
    ours = crop_box(query.box(0, mirrored=mirrored), SIZE)
    ours = (SIZE[0] - ours[2], ours[1], SIZE[0] - ours[0], ours[3]) if mirrored else ours
    assert splice.landed(ours, found.transform_33) == pytest.approx(theirs, abs=1e-6)
    assert geometry.is_mirrored(found.transform_33) == mirrored


def test_nothing_alike_leaves_no_map() -> None:
    boxes = np.array([[30.0, 40.0, 130.0, 120.0]])
    query, donor = (
        splice.Query(np.zeros((240, 320, 3), np.uint8), boxes, lambda *_: cell_codes(1)),
        texture(3, 396, 198),
    )
    blank = np.zeros_like(cell_codes(1))
    found = splice.verify(query, hit(7), donor, cells_of=lambda *_: blank, chance=CHANCE, damped=0.0)
    assert (found.match, found.transform_33) == (0.0, None) and found.probability < 0.01
    strange = splice.verify(query, hit(7), donor, cells_of=lambda *_: cell_codes(2), chance=CHANCE, damped=0.0)
    assert strange.match < 5 and strange.probability < 0.05


@pytest.mark.parametrize("small", ["query", "donor"])
def test_things_too_small_match_nothing(small: str) -> None:
    """Blown up to a crop they are blobs, and agree with any other."""
    box = [30.0, 40.0, 130.0, 65.0] if small == "query" else [30.0, 40.0, 130.0, 120.0]
    query = splice.Query(np.zeros((240, 320, 3), np.uint8), np.array([box]), lambda *_: cell_codes(1))
    picture = np.zeros((60, 400, 3) if small == "donor" else (200, 400, 3), np.uint8)
    found = splice.verify(query, hit(7), picture, cells_of=lambda *_: cell_codes(1), chance=CHANCE, damped=-0.5)
    assert (found.match, found.transform_33) == (0.0, None)


def test_cells_of_a_query_object_are_made_once() -> None:
    asked: list[float] = []

    def cells_of(_: NDArray[np.uint8], box: tuple[float, ...]) -> NDArray[np.int8]:
        asked.append(box[0])
        return cell_codes(1)

    query = splice.Query(np.zeros((240, 320, 3), np.uint8), np.array([[30.0, 40.0, 130.0, 120.0]]), cells_of)
    for mirrored in (False, True, False, True):
        query.cells(0, mirrored=mirrored)
    assert asked == [30.0, 190.0]


def patch_cells(rgb_HWC: NDArray[np.uint8], box: Sequence[float]) -> NDArray[np.int8]:
    """Cells that say what is to be seen in them: the colours of a crop's patches about their mean."""
    x0, y0, x1, y1 = crop_box(box, (rgb_HWC.shape[1], rgb_HWC.shape[0]))
    small = cv2.resize(rgb_HWC[y0:y1, x0:x1], (56, 56), interpolation=cv2.INTER_AREA).astype(np.float32)
    patches = small.reshape(14, 4, 14, 4, 3).transpose(0, 2, 1, 3, 4).reshape(CELL_COUNT, 48)[:, :CELL_DIM]
    patches -= patches.mean(1, keepdims=True)
    return np.rint(patches / np.maximum(np.linalg.norm(patches, axis=1, keepdims=True), 1e-3) * 127).astype(np.int8)


@pytest.mark.parametrize("mirrored", [False, True])
def test_verified_donors_are_ranked_and_the_best_outlined(mirrored: bool) -> None:
    """A paste among strangers comes first, its transform to the pixel, its mask that of the paste."""
    query_HWC, donor_HWC, there, mask = pasted()
    left, right = 100.0, 220.0
    if mirrored:
        query_HWC, mask = np.ascontiguousarray(query_HWC[:, ::-1]), mask[:, ::-1]
        left, right, there = SIZE[0] - right, SIZE[0] - left, there @ geometry.mirror(SIZE[0])
    box = (60 / SIZE[0], 45 / SIZE[1], 180 / SIZE[0], 135 / SIZE[1])
    pictures = [texture(seed, *SIZE) for seed in (11, 12, 13, 14)] + [donor_HWC]
    hits = [dataclasses.replace(hit(row, mirrored=mirrored), donor_box=box) for row in range(len(pictures))]
    query = splice.Query(query_HWC, np.array([[left, 75.0, right, 165.0]]), patch_cells)
    found = splice.verified(
        query, hits, pictures.__getitem__, cells_of=patch_cells, chances=CHANCES, hubness_VO=np.ones((2, 1), np.float32)
    )
    assert found[0].hit.row == 4 and sorted(one.hit.row for one in found) == [0, 1, 2, 3, 4]
    assert [one.probability for one in found] == sorted((one.probability for one in found), reverse=True)
    likely = [one.probability >= splice.OUTLINED_MIN for one in found[: splice.OUTLINED_MAX]]
    assert [one.mask is not None for one in found] == [*likely, False, False]
    assert found[0].transform_33 is not None and found[0].mask is not None
    corners = np.array([[left, 75.0], [right, 165.0]])
    assert geometry.apply(found[0].transform_33, corners) == pytest.approx(geometry.apply(there, corners), abs=1.0)
    (x0, y0, x1, y1), piece = found[0].mask
    whole = np.zeros(mask.shape, bool)
    whole[y0:y1, x0:x1] = piece > 0
    assert (whole & (mask > 0)).sum() > 0.8 * (whole | (mask > 0)).sum()


def looked_at(there: geometry.Map33, box: tuple[float, ...], query_HWC: NDArray, donor_HWC: NDArray) -> splice.Donor:
    """The donor of ``pasted``, whose box misses the object by as much as a detector does, under a map."""
    donor = dataclasses.replace(donor_of(there, (90.0, 85.0, 205.0, 160.0)), donor_box=box)
    query = splice.Query(query_HWC, np.array([donor.query_box]), patch_cells)
    return splice.look_again(query, donor, donor_HWC, cells_of=patch_cells, chance=CHANCES.laid)


@pytest.mark.parametrize("scale", [0.8, 1.0, 1.4])
def test_laid_over_the_query_a_donor_matches_better_than_any_stranger(scale: float) -> None:
    """Two boxes of it, neither of them right, and a map that is a cell off: mended on the way."""
    query_HWC, donor_HWC, there, _ = pasted(scale=scale)
    nearly = there @ geometry.translation(7.0, -6.0) @ geometry.about_centre(geometry.scaling(1.02, 0.99), SIZE)
    box = (70.0, 40.0, 190.0, 130.0)
    found = looked_at(nearly, box, query_HWC, donor_HWC)
    assert found.laid is not None and found.transform_33 is not None
    assert found.probability == CHANCES.laid.of(found.laid, found.damped)
    assert (found.match, found.query_box, found.donor_box) == (30.0, (90.0, 85.0, 205.0, 160.0), box)
    corners = np.array([[130.0, 95.0], [190.0, 145.0]])
    before, after = (
        np.abs(geometry.apply(each, corners) - geometry.apply(there, corners)).max()
        for each in (nearly, found.transform_33)
    )
    assert after < before
    others = [looked_at(nearly, box, query_HWC, texture(seed, *SIZE)) for seed in range(20, 26)]
    assert found.laid > 3 * max(one.laid or 0 for one in others)


@pytest.mark.parametrize(("again", "sure", "looks"), [(0.0, 0.1, 1), (1e9, 1e9, 1), (0.0, 1e9, splice.LOOKS)])
def test_a_match_that_is_sure_or_hopeless_is_looked_at_once(
    monkeypatch: pytest.MonkeyPatch, again: float, sure: float, looks: int
) -> None:
    monkeypatch.setattr(splice, "LAID_AGAIN_MIN", again)
    monkeypatch.setattr(splice, "LAID_SURE", sure)
    query_HWC, donor_HWC, there, _ = pasted()
    crops = list[NDArray[np.uint8]]()

    def cells_of(rgb_HWC: NDArray[np.uint8], box: Sequence[float]) -> NDArray[np.int8]:
        crops.append(rgb_HWC)
        return patch_cells(rgb_HWC, box)

    donor = dataclasses.replace(donor_of(there, (90.0, 85.0, 205.0, 160.0)), donor_box=(70.0, 40.0, 190.0, 130.0))
    query = splice.Query(query_HWC, np.array([donor.query_box]), cells_of)
    splice.look_again(query, donor, donor_HWC, cells_of=cells_of, chance=CHANCES.laid)
    assert len(crops) == 2 * looks


def test_boxes_that_do_not_meet_match_nothing() -> None:
    query_HWC, donor_HWC, there, _ = pasted()
    found = looked_at(there, (250.0, 10.0, 310.0, 60.0), query_HWC, donor_HWC)
    assert found.laid == 0 and found.probability < 0.01


def test_the_likeliest_are_looked_at_again_and_no_others() -> None:
    """A picture is asked for once, whatever is done with it."""
    query_HWC, donor_HWC, _, _ = pasted()
    box = (60 / SIZE[0], 45 / SIZE[1], 180 / SIZE[0], 135 / SIZE[1])
    pictures, asked = [donor_HWC] * 5 + [np.zeros_like(donor_HWC)], list[int]()
    hits = [dataclasses.replace(hit(row), donor_box=box) for row in range(len(pictures))]
    query = splice.Query(query_HWC, np.array([[100.0, 75.0, 220.0, 165.0]]), patch_cells)

    def picture_of(place: int) -> NDArray[np.uint8]:
        asked.append(place)
        return pictures[place]

    hubness_VO = np.ones((2, 1), np.float32)
    found = splice.verified(query, hits, picture_of, cells_of=patch_cells, chances=CHANCES, hubness_VO=hubness_VO)
    assert asked == [0, 1, 2, 3, 4, 5]
    assert {one.hit.row for one in found if one.laid is not None} == {0, 1, 2}
    for one in found:
        assert one.probability == CHANCES.of(one.match, one.laid, one.damped)
    assert found[-1].hit.row == 5 and found[-1].transform_33 is None


def test_a_mask_reaches_where_either_box_does() -> None:
    shift = geometry.translation(10, 20)
    assert splice.joined((50, 50, 100, 90), (80, 60, 130, 110), shift, SIZE) == (50, 40, 120, 90)
    assert splice.joined((50, 50, 100, 90), (0, 0, 320, 240), shift, SIZE) is None
    turned = geometry.mirror(SIZE[0])
    assert splice.joined((50, 50, 100, 90), (220, 50, 280, 90), turned, SIZE) == (40, 50, 100, 90)


@pytest.mark.parametrize("repeats", ["ours", "theirs", "neither"])
def test_what_repeats_itself_matches_nothing(repeats: str) -> None:
    """A wall matches a wall at any place, and perfectly: the upper half of these cells is seen again in the lower."""
    plain = cell_codes(5)
    wall = plain.copy()
    wall[CELL_COUNT // 2 :] = wall[: CELL_COUNT // 2]
    ours, theirs = (wall if repeats == who else plain for who in ("ours", "theirs"))
    picture = np.zeros((240, 320, 3), np.uint8)
    query = splice.Query(picture, np.array([[30.0, 40.0, 130.0, 120.0]]), lambda *_: ours)
    found = splice.verify(query, hit(1), picture, cells_of=lambda *_: theirs, chance=CHANCE, damped=-0.3)
    assert (found.match > 0) == (found.transform_33 is not None) == (repeats == "neither")


def test_nothing_is_verified_of_no_hits() -> None:
    query = splice.Query(np.zeros((240, 320, 3), np.uint8), np.zeros((0, 4)), patch_cells)
    hubness_VO = np.zeros((2, 0), np.float32)
    found = splice.verified(query, [], {}.__getitem__, cells_of=patch_cells, chances=CHANCES, hubness_VO=hubness_VO)
    assert found == []


PLACES = st.tuples(*[st.floats(0, 200)] * 2, *[st.floats(8, 300)] * 2)


@given(PLACES, PLACES)
def test_the_papers_map_takes_box_to_box(one: tuple[float, ...], other: tuple[float, ...]) -> None:
    ours, theirs = ((x, y, x + w, y + h) for x, y, w, h in (one, other))
    there = splice.between_boxes(ours, theirs)
    assert splice.landed(ours, there) == pytest.approx(theirs, abs=1e-6)
    x, y = geometry.apply(there, np.array([[ours[0] + 2, ours[1] + 3]]))[0]
    assert x == pytest.approx((theirs[2] - theirs[0]) / (ours[2] - ours[0]) * 2 + theirs[0], abs=1e-6)
    assert y == pytest.approx((theirs[3] - theirs[1]) / (ours[3] - ours[1]) * 3 + theirs[1], abs=1e-6)


def test_ranked_by_probability_then_id() -> None:
    one, two = donor_of(None, (0, 0, 9, 9)), donor_of(None, (0, 0, 9, 9))
    later = dataclasses.replace(two, hit=hit(3), probability=0.9)
    best = dataclasses.replace(two, hit=hit(8), probability=0.95)
    assert [d.hit.row for d in splice.ranked([later, best, one])] == [8, 0, 3]
    assert math.isclose(splice.overlap((0, 0, 10, 10), (5, 0, 15, 10)), 1 / 3)
