"""Each fast path of this room against the plainest loop that says what it should do."""

from __future__ import annotations

import colorsys
from collections.abc import Callable

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from stemma.vision import benign, edits, geometry, regions
from stemma.vision.corruptions import corrupt

Rgb = NDArray[np.uint8]


def _rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def _bilinear(picture: Rgb, x: float, y: float) -> NDArray[np.float64]:
    """The picture at a point, pixel centres at .5, black outside."""
    height, width = picture.shape[:2]
    column, row = int(np.floor(x - 0.5)), int(np.floor(y - 0.5))
    right, below = x - 0.5 - column, y - 0.5 - row
    total = np.zeros(3)
    for j, share_y in ((row, 1 - below), (row + 1, below)):
        for i, share_x in ((column, 1 - right), (column + 1, right)):
            if 0 <= i < width and 0 <= j < height:
                total += share_x * share_y * picture[j, i]
    return total


@given(st.floats(-20, 20), st.floats(0.7, 1.4), st.floats(-6, 6), st.floats(-1e-3, 1e-3))
@settings(max_examples=15, deadline=None)
def test_warping_samples_every_pixel_where_its_map_says(turn: float, scale: float, shift: float, tilt: float) -> None:
    source = _rng(1).integers(0, 256, (14, 17, 3), np.uint8)
    source = np.asarray(cv2.GaussianBlur(source, (0, 0), 2))
    back = geometry.rotation(turn) @ geometry.scaling(scale, 1) @ geometry.translation(shift, 1.25)
    back = np.array([[1, 0, 0], [0, 1, 0], [tilt, 0, 1]]) @ back
    fast = geometry.warp(source, back, (15, 12))
    for row in range(12):
        for column in range(15):
            (point,) = geometry.apply(back, np.array([[column + 0.5, row + 0.5]]))
            # OpenCV looks up positions in 1/32 of a pixel.
            assert np.abs(_bilinear(source, *point) - fast[row, column]).max() <= 14, (row, column)


def test_zoom_blur_is_the_mean_of_the_zooms(photo: Rgb) -> None:
    height, width = photo.shape[:2]
    fast = corrupt(photo, "zoom_blur", 1, _rng()).astype(int)
    total = photo.astype(float)
    factors = np.arange(1, 1.11, 0.01)
    for factor in factors:
        back = geometry.about_centre(geometry.scaling(1 / factor, 1 / factor), (width, height))
        total += geometry.warp(photo, back, (width, height))
    assert np.abs(total / (len(factors) + 1) - fast).mean() < 1.0


def test_defocus_is_the_mean_over_a_disk() -> None:
    dot = np.zeros((41, 41, 3), np.uint8)
    dot[20, 20] = 255
    out = corrupt(dot * 1, "defocus_blur", 5, _rng())[..., 0]
    y, x = np.indices(out.shape)
    away = np.hypot(x - 20, y - 20)
    assert (out[away < 8] >= 1).all(), "inside the radius of 10 light is spread evenly"
    assert not out[away > 11.5].any()


def test_motion_blur_spreads_along_one_line() -> None:
    dot = np.zeros((81, 81, 3), np.uint8)
    dot[38:43, 38:43] = 255
    out = corrupt(dot, "motion_blur", 5, _rng(4))[..., 0].astype(float)
    y, x = np.indices(out.shape)
    spread = np.cov(np.c_[x.ravel(), y.ravel()].T, aweights=out.ravel())
    small, large = np.linalg.eigvalsh(spread)
    # The half Gaussian of 41 steps and sigma 15 has a standard deviation of 8.6; the square of 5 pixels adds 2.
    assert small == pytest.approx(2, abs=1)
    assert large == pytest.approx(8.6**2 + 2, rel=0.15)


def test_glass_takes_pixels_from_near_by() -> None:
    ramp = np.repeat(np.arange(0, 240, 2, dtype=np.uint8)[None, :, None], 60, 0).repeat(3, -1)
    for severity, reach in ((1, 1 * 2), (2, 2 * 1), (3, 2 * 3), (4, 3 * 2), (5, 4 * 2)):
        moved = np.abs(corrupt(ramp, "glass_blur", severity, _rng(severity)).astype(int) - ramp)[:, 10:-10]
        assert 0 < moved.max() <= 2 * (reach + 1), severity


@pytest.mark.parametrize(("severity", "gain", "lift"), [(1, 0.3, 0.0), (4, 5.0, 0.1)])
def test_saturation_is_that_of_the_standard_library(severity: int, gain: float, lift: float) -> None:
    rgb = _rng(2).integers(0, 256, (8, 8, 3), np.uint8)
    fast = corrupt(rgb, "saturate", severity, _rng())
    for row in range(8):
        for column in range(8):
            hue, saturation, value = colorsys.rgb_to_hsv(*(rgb[row, column] / 255))
            want = colorsys.hsv_to_rgb(hue, min(1, saturation * gain + lift), value)
            assert np.abs(np.array(want) * 255 - fast[row, column]).max() <= 1.5


def test_contrast_pulls_every_channel_to_its_mean(photo: Rgb) -> None:
    fast = corrupt(photo, "contrast", 3, _rng())
    for channel in range(3):
        mean = photo[..., channel].mean()
        want = mean + 0.2 * (photo[..., channel] - mean)
        assert np.abs(want - fast[..., channel]).max() <= 0.51


def test_fog_is_light_added_and_scaled_back(photo: Rgb) -> None:
    black = np.zeros_like(photo)
    black[0, 0] = 255
    out = corrupt(black, "fog", 1, _rng(3)).astype(float) / 255
    # max * haze / (max + 1.5) with haze in 0..1.5: never above 0.6, and somewhere near it in a fractal of this size.
    assert out[1:].max() <= 0.6 + 1 / 255
    assert out.std() > 0.02
    steps = np.abs(np.diff(out[..., 0], axis=1))[2:]
    assert steps.max() < 0.25, "fog has no seams"


def test_elastic_at_low_severity_is_smooth(photo: Rgb) -> None:
    level = np.full_like(photo, 99)
    assert (corrupt(level, "elastic", 5, _rng()) == 99).all()


def test_the_feather_is_the_distance_to_the_outside() -> None:
    mask = np.zeros((20, 20), np.uint8)
    mask[5:15, 4:16] = 255
    alpha = regions.feathered(mask, _rng(0))
    outside = np.argwhere(mask == 0)
    feather = 1 / alpha[5, 10]
    for row, column in np.argwhere(mask > 0):
        distance = np.sqrt(((outside - (row, column)) ** 2).sum(1).min())
        assert alpha[row, column] == pytest.approx(min(1, distance / feather), abs=0.05)
    assert not alpha[mask == 0].any()


def test_an_edit_under_a_benign_change_keeps_its_mask(photo_like: Callable[..., Rgb]) -> None:
    """Manipulated and benign at once, as training data and queries are: the carried mask covers what differs."""
    source, donor = photo_like(200, 150, 21), 255 - photo_like(200, 150, 22)
    for seed in range(12):
        made = edits.manipulate(source, _rng(seed), [donor], kinds=["splice", "recolour"])
        after = benign.render(made.rgb_HWC, _rng(seed), groups=["out"])
        plain = benign.render(source, _rng(seed), groups=["out"])
        assert after.log == plain.log
        mask = after.carry(made.mask_HW) > 0
        changed = np.abs(after.rgb_HWC.astype(int) - plain.rgb_HWC).max(-1) > 40
        near = cv2.dilate(mask.astype(np.uint8), np.ones((19, 19))) > 0  # a JPEG block of the resized picture
        assert not (changed & ~near).any(), after.log
        if mask.any() and changed.any():
            assert (changed & mask).sum() > 0.7 * changed.sum()
