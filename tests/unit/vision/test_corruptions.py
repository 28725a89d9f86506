"""ImageNet-C families: published strengths, same size, same bytes for the same seed, worse with severity."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from stemma.vision.corruptions import FAMILIES, SEVERITIES, corrupt

Rgb = NDArray[np.uint8]
PUBLISHED = 19 - 1  # fifteen and four more, without frost
# Others change their look with severity (saturate: less, then more; spatter: water, then mud), not just their amount.
GROWING = (
    *("gaussian_noise", "shot_noise", "impulse_noise", "speckle_noise", "defocus_blur", "gaussian_blur", "motion_blur"),
    *("zoom_blur", "glass_blur", "brightness", "contrast", "jpeg"),
)


def _rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def _grey(level: int, side: int = 256) -> Rgb:
    return np.full((side, side, 3), level, np.uint8)


def _apart(a: Rgb, b: Rgb) -> float:
    return float(np.sqrt(np.mean((a.astype(float) - b) ** 2)))


def test_there_are_all_but_frost() -> None:
    assert len(FAMILIES) == PUBLISHED
    assert "frost" not in FAMILIES


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("severity", SEVERITIES)
def test_size_type_and_source_stay_and_seeds_repeat(family: str, severity: int, photo: Rgb) -> None:
    before = photo.copy()
    out = corrupt(photo, family, severity, _rng(3))
    assert out.shape == photo.shape
    assert out.dtype == np.uint8
    assert np.array_equal(photo, before)
    assert not np.array_equal(out, photo)
    assert np.array_equal(out, corrupt(photo, family, severity, _rng(3)))


@pytest.mark.parametrize("family", GROWING)
def test_more_severe_is_further_away(family: str, photo: Rgb) -> None:
    steps = [_apart(corrupt(photo, family, severity, _rng(1)), photo) for severity in SEVERITIES]
    assert steps == sorted(steps)


@given(st.sampled_from(FAMILIES), st.integers(1, 5), st.integers(32, 90), st.integers(32, 90), st.integers(0, 255))
@settings(max_examples=60, deadline=None)
def test_any_size_and_flat_pictures_pass(family: str, severity: int, width: int, height: int, level: int) -> None:
    rgb = np.full((height, width, 3), level, np.uint8)
    assert corrupt(rgb, family, severity, _rng(width)).shape == rgb.shape


@pytest.mark.parametrize(("severity", "sigma"), [(1, 0.08), (3, 0.18)])
def test_gaussian_noise_has_the_published_spread(severity: int, sigma: float) -> None:
    out = corrupt(_grey(128), "gaussian_noise", severity, _rng())
    assert out.std() == pytest.approx(sigma * 255, rel=0.02)
    assert out.mean() == pytest.approx(128, abs=0.3)


def test_shot_noise_is_poisson() -> None:
    out = corrupt(_grey(128), "shot_noise", 1, _rng())
    assert out.std() / 255 == pytest.approx(np.sqrt(128 / 255 / 60), rel=0.02)


def test_speckle_noise_grows_with_the_light() -> None:
    dark, light = (corrupt(_grey(level), "speckle_noise", 1, _rng()).std() for level in (40, 120))
    assert light / dark == pytest.approx(3, rel=0.03)
    assert light / 120 == pytest.approx(0.15, rel=0.03)


def test_impulse_noise_hits_the_published_share_half_of_it_black() -> None:
    out = corrupt(_grey(128), "impulse_noise", 4, _rng())
    assert (out != 128).mean() == pytest.approx(0.17, rel=0.03)
    assert (out == 0).mean() == pytest.approx(0.085, rel=0.05)


def test_brightness_and_contrast_do_what_they_say() -> None:
    assert np.abs(corrupt(_grey(60), "brightness", 2, _rng()).astype(int) - (60 + 51)).max() <= 1
    halves = np.concatenate([_grey(100), _grey(200)])
    out = corrupt(halves, "contrast", 1, _rng()).astype(int)
    assert int(out.max()) - int(out.min()) == pytest.approx(40, abs=1)
    assert out.mean() == pytest.approx(150, abs=1)


def test_saturation_falls_then_rises(photo: Rgb) -> None:
    def colour(rgb: Rgb) -> float:
        return float(cv2.cvtColor(rgb, cv2.COLOR_RGB2HSV)[..., 1].mean())

    seen = [colour(corrupt(photo, "saturate", severity, _rng())) for severity in SEVERITIES]
    assert seen[1] < seen[0] < colour(photo) < seen[2] < seen[3] <= seen[4]


def test_pixelate_leaves_a_quarter_of_the_columns(photo: Rgb) -> None:
    out = corrupt(photo, "pixelate", 5, _rng())
    changes = (out[:, 1:] != out[:, :-1]).any((0, 2)).sum()
    assert changes == photo.shape[1] // 4 - 1


@pytest.mark.parametrize("family", ["gaussian_blur", "defocus_blur", "motion_blur", "glass_blur"])
def test_blur_keeps_light_and_place(family: str) -> None:
    dot = _grey(0, 101)
    dot[48:53, 48:53] = 255
    out = corrupt(dot, family, 5, _rng(5)).astype(float)[..., 0]
    y, x = np.indices(out.shape)
    centre = (float((x * out).sum() / out.sum()), float((y * out).sum() / out.sum()))
    # Glass is random; the others keep the centre of mass, though each pixel is rounded to whole steps.
    assert centre == pytest.approx((50, 50), abs=1.0)


@pytest.mark.parametrize("family", ["snow", "fog", "brightness"])
def test_weather_makes_dark_pictures_lighter(family: str) -> None:
    dark = _grey(60)
    dark[:8, :8] = 255  # fog is scaled by the lightest pixel, so it needs one
    assert corrupt(dark, family, 3, _rng()).mean() > 75


def test_what_does_not_exist_is_named(photo: Rgb) -> None:
    with pytest.raises(ValueError, match="frost"):
        corrupt(photo, "frost", 1, _rng())
    with pytest.raises(ValueError, match="1 to 5, not 6"):
        corrupt(photo, "fog", 6, _rng())
