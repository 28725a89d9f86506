"""Maps and the pixels that follow them agree, half pixels included."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from stemma.vision import geometry

Rgb = NDArray[np.uint8]
POINTS = np.array([[0.5, 0.5], [17.5, 3.5], [40.0, 60.0]])
DEGREES = st.floats(-40, 40)
FACTOR = st.floats(0.5, 2)


def test_pixel_centres_are_at_one_half(photo: Rgb) -> None:
    # A shift by one pixel moves pixel (0, 0), whose centre is (.5, .5), onto pixel (1, 0): no half pixel creeps in.
    out = geometry.warp(photo, geometry.translation(1, 0), (photo.shape[1] - 1, photo.shape[0]))
    assert np.array_equal(out, photo[:, 1:])


def test_scaling_by_two_repeats_pixels(photo: Rgb) -> None:
    size = (photo.shape[1] * 2, photo.shape[0] * 2)
    out = geometry.warp(photo, geometry.scaling(0.5, 0.5), size, nearest=True)
    assert np.array_equal(out, photo.repeat(2, 0).repeat(2, 1))


def test_mirror_is_the_reversed_array(photo: Rgb) -> None:
    size = (photo.shape[1], photo.shape[0])
    assert np.array_equal(geometry.warp(photo, geometry.mirror(size[0]), size), photo[:, ::-1])
    assert geometry.is_mirrored(geometry.mirror(5))
    assert not geometry.is_mirrored(geometry.rotation(170))


def test_a_quarter_turn_is_rot90(photo_like: Callable[..., Rgb]) -> None:
    square = photo_like(64, 64)
    turn = geometry.about_centre(geometry.rotation(90), (64, 64))
    assert np.array_equal(geometry.warp(square, turn, (64, 64), nearest=True), np.rot90(square))


@given(DEGREES, FACTOR, FACTOR, DEGREES, st.floats(-20, 20))
@settings(deadline=None)
def test_the_inverse_takes_points_back(turn: float, sx: float, sy: float, lean: float, shift: float) -> None:
    there = (
        geometry.rotation(turn) @ geometry.scaling(sx, sy) @ geometry.shear(lean, 0) @ geometry.translation(shift, 3)
    )
    back = geometry.inverse(there)
    assert np.allclose(geometry.apply(back, geometry.apply(there, POINTS)), POINTS, atol=1e-6)
    assert back[2, 2] == pytest.approx(1)


@given(st.lists(st.floats(-8, 8), min_size=8, max_size=8))
@settings(deadline=None)
def test_corners_go_where_they_are_sent(moves: list[float]) -> None:
    corners_42 = np.array([[0.0, 0.0], [100.0, 0.0], [100.0, 80.0], [0.0, 80.0]])
    goals_42 = corners_42 + np.array(moves).reshape(4, 2)
    assert np.allclose(geometry.apply(geometry.from_corners(corners_42, goals_42), corners_42), goals_42, atol=1e-3)


def test_about_centre_leaves_the_centre(photo: Rgb) -> None:
    size = (photo.shape[1], photo.shape[0])
    centre = np.array([[size[0] / 2, size[1] / 2]])
    for inner in (geometry.rotation(33), geometry.scaling(2, 3), geometry.shear(10, 5)):
        assert np.allclose(geometry.apply(geometry.about_centre(inner, size), centre), centre)


def test_resize_keeps_the_mean_and_is_the_map_it_says(photo: Rgb) -> None:
    height, width = photo.shape[:2]
    for size in ((width // 2, height // 2), (width * 2, height * 2), (width, height)):
        out = geometry.resize(photo, size)
        assert out.shape[:2] == size[::-1]
        assert abs(out.mean() - photo.mean()) < 0.5
        back = geometry.scaling(width / size[0], height / size[1])
        assert np.corrcoef(geometry.warp(photo, back, size).ravel(), out.ravel())[0, 1] > 0.98


def test_shrinking_averages_and_does_not_sample() -> None:
    board = (np.indices((64, 64)).sum(0) % 2 * 255).astype(np.uint8)
    # Every third of the side: sampling points would show the board again, in black and white.
    assert geometry.resize(np.dstack([board] * 3), (21, 21)).std() < 20


def test_overlap_is_where_centres_fall_inside() -> None:
    back = geometry.translation(-3, -2)
    inside = geometry.overlap((10, 8), back, (16, 12))
    want = np.zeros((12, 16), np.uint8)
    want[2:10, 3:13] = 255
    assert np.array_equal(inside, want)


def test_outside_the_source_comes_the_fill(photo: Rgb) -> None:
    out = geometry.warp(photo, geometry.translation(-4, 0), (8, 4), fill=(1, 2, 3))
    assert (out[:, :4] == (1, 2, 3)).all()
    assert np.array_equal(out[:, 4:], photo[:4, :4])
