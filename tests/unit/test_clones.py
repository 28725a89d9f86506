"""A part of a picture laid elsewhere in it is found with both places; nothing else is."""

from __future__ import annotations

import functools

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from stemma import clones, splice
from stemma.vision import geometry

Picture = NDArray[np.uint8]
SIZE = (320, 240)
COPIED = (40.0, 50.0, 130.0, 140.0)
"""Where the original has it."""
CENTRE = (225.0, 130.0)
"""Where the query shows it."""


@functools.cache
def textured(seed: int) -> Picture:
    """A scene with detail at several scales, as photographs have it."""
    rng = np.random.default_rng(seed)
    scene = np.zeros((SIZE[1], SIZE[0], 3), np.float32)
    for cell, weight in ((40, 0.5), (12, 0.35), (5, 0.3)):
        coarse = rng.uniform(0, 255, (SIZE[1] // cell + 1, SIZE[0] // cell + 1, 3)).astype(np.float32)
        scene += weight * cv2.resize(coarse, SIZE, interpolation=cv2.INTER_CUBIC)
    return np.clip(scene - 20, 0, 255).astype(np.uint8)


def laid(host: Picture, *, degrees: float = 0, scale: float = 1, mirrored: bool = False) -> tuple[Picture, Picture]:
    """(query, its mask): the box ``COPIED`` of the host, laid over ``CENTRE``."""
    middle = ((COPIED[0] + COPIED[2]) / 2, (COPIED[1] + COPIED[3]) / 2)
    flip_33 = np.diag([-1.0, 1.0, 1.0]) if mirrored else np.eye(3)
    inner_33 = geometry.rotation(degrees) @ geometry.scaling(1 / scale, 1 / scale) @ flip_33
    there_33 = geometry.translation(*middle) @ inner_33 @ geometry.translation(-CENTRE[0], -CENTRE[1])
    stamp = np.zeros(host.shape[:2], np.uint8)
    cv2.rectangle(stamp, (40, 50), (129, 139), 255, -1)
    mask = geometry.carry_mask(stamp, there_33, SIZE)
    return np.where(mask[..., None] > 0, geometry.warp(host, there_33, SIZE), host), mask


def box_of(mask: Picture) -> NDArray[np.float64]:
    """As a heatmap would have it: a few pixels too large."""
    left, top, width, height = cv2.boundingRect(mask)
    return np.array([[left - 4, top - 3, left + width + 3, top + height + 4]], np.float64)


@pytest.mark.parametrize(
    "how",
    [{}, {"mirrored": True}, {"degrees": 10}, {"scale": 0.7}, {"scale": 1.4}, {"mirrored": True, "degrees": -15}],
    ids=str,
)
def test_a_copy_is_found_with_both_places(how: dict[str, float]) -> None:
    host = textured(1)
    query, mask = laid(host, **how)  # type: ignore[arg-type]
    (found,) = clones.find(query, box_of(mask), host, np.eye(3))
    left, top, width, height = cv2.boundingRect(mask)
    assert splice.overlap(found.query_box, (left, top, left + width, top + height)) > 0.75
    assert splice.overlap(found.donor_box, COPIED) > 0.75
    assert found.mirrored == bool(how.get("mirrored"))
    window, piece = found.mask
    assert window == found.query_box
    assert piece.shape == (window[3] - window[1], window[2] - window[0])
    whole = np.zeros(mask.shape, bool)
    whole[window[1] : window[3], window[0] : window[2]] = piece > 0
    assert (whole & (mask > 0)).sum() > 0.8 * (whole | (mask > 0)).sum()


def test_the_transform_takes_the_copy_to_its_source_within_a_pixel() -> None:
    host = textured(2)
    query, mask = laid(host, mirrored=True)
    (found,) = clones.find(query, box_of(mask), host, np.eye(3))
    corners = np.array([[180.0, 85.0], [270.0, 175.0]])
    assert np.abs(geometry.apply(found.transform_33, corners) - [[130.0, 50.0], [40.0, 140.0]]).max() < 1


def test_a_copy_is_found_in_a_query_that_was_resized_and_mirrored() -> None:
    host = textured(3)
    edited, mask = laid(host)
    host_from_query_33 = geometry.mirror(SIZE[0]) @ geometry.scaling(1.25, 1.25)
    size = (256, 192)
    query, small = (geometry.warp(one, host_from_query_33, size) for one in (edited, mask))
    (found,) = clones.find(query, box_of(np.where(small > 127, 255, 0).astype(np.uint8)), host, host_from_query_33)
    assert found.mirrored  # as the whole query is
    assert splice.overlap(found.donor_box, COPIED) > 0.8


def test_what_is_in_its_place_is_no_copy() -> None:
    host = textured(4)
    box = np.array([[60.0, 60.0, 160.0, 160.0], [0.0, 0.0, 320.0, 240.0]])
    assert clones.find(host, box, host, np.eye(3)) == []
    brighter = np.clip(host.astype(np.int16) + 30, 0, 255).astype(np.uint8)
    assert clones.find(brighter, box, host, np.eye(3)) == []


def test_what_comes_from_another_picture_is_no_copy() -> None:
    host, other = textured(5), textured(6)
    query = host.copy()
    query[60:180, 80:220] = other[60:180, 80:220]
    assert clones.find(query, np.array([[78.0, 57.0, 223.0, 184.0]]), host, np.eye(3)) == []


def test_a_flat_region_gives_nothing() -> None:
    host = textured(7)
    host = host.copy()
    host[20:100, 20:120] = (120, 140, 200)
    query = host.copy()
    query[130:210, 180:280] = host[20:100, 20:120]
    assert clones.find(query, np.array([[176.0, 126.0, 284.0, 214.0]]), host, np.eye(3)) == []
    flat = np.full_like(host, 90)
    assert clones.find(flat, np.array([[50.0, 50.0, 150.0, 150.0]]), flat, np.eye(3)) == []


def test_small_regions_and_none_give_nothing() -> None:
    host = textured(8)
    query = host.copy()
    query[100:131, 200:260] = host[20:51, 20:80]
    assert clones.find(query, np.array([[200.0, 100.0, 260.0, 131.0]]), host, np.eye(3)) == []
    assert clones.find(query, np.zeros((0, 4)), host, np.eye(3)) == []


def test_several_regions_are_told_apart_and_the_answer_repeats() -> None:
    host = textured(9)
    query = host.copy()
    query[20:100, 220:310] = host[130:210, 10:100]
    query[140:220, 180:270] = textured(10)[140:220, 180:270]
    box = np.array([[176.0, 137.0, 273.0, 224.0], [217.0, 17.0, 313.0, 103.0]])
    first, again = (clones.find(query, box, host, np.eye(3)) for _ in range(2))
    assert len(first) == 1
    assert splice.overlap(first[0].donor_box, (10, 130, 100, 210)) > 0.8
    assert (first[0].query_box, first[0].probability) == (again[0].query_box, again[0].probability)
    assert np.array_equal(first[0].transform_33, again[0].transform_33)
    assert np.array_equal(first[0].mask[1], again[0].mask[1])


def test_more_evidence_is_a_higher_probability() -> None:
    weak = clones.Evidence(matches=0, share=0.1, correlation=0.7, windows=3)
    strong = clones.Evidence(matches=40, share=0.9, correlation=0.9, windows=60)
    assert clones.probability(weak) < clones.SHOWN_MIN < clones.probability(strong) <= 1
