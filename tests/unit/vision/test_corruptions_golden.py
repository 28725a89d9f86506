"""ImageNet-C's families against golden arrays of plain loops that share no code with them (make_corruptions.py)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from stemma.vision.corruptions import FAMILIES, SEVERITIES, corrupt

Rgb = NDArray[np.uint8]
FILE = Path(__file__).parents[2] / "golden" / "corruptions.npz"
EDGE_X, EDGE_Y, LEVEL = 16, 12, 110
# Mean and largest difference of the middle, in steps of 255. Gaussians end at three sigmas here and at four there, and
# two JPEG writers need not agree on every coefficient.
FIXED = {
    "gaussian_blur": (0.2, 2),
    "defocus_blur": (0.05, 1),
    "zoom_blur": (0.15, 1),
    "brightness": (0.25, 1),
    "saturate": (0.1, 1),
    "contrast": (0.05, 1),
    "jpeg": (0.3, 6),
    "pixelate": (0.05, 1),
}


@pytest.fixture(scope="module")
def golden() -> Iterator[Mapping[str, NDArray[np.generic]]]:
    with np.load(FILE, allow_pickle=False) as arrays:
        yield {name: arrays[name] for name in arrays}


def _rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def _grey(side: int) -> Rgb:
    return np.full((side, side, 3), LEVEL, np.uint8)


def test_every_family_has_its_golden_array(golden: Mapping[str, NDArray[np.generic]]) -> None:
    assert set(golden) == {"picture", *FAMILIES}
    assert all(len(golden[name]) == len(SEVERITIES) for name in FAMILIES)


@pytest.mark.parametrize("severity", SEVERITIES)
@pytest.mark.parametrize("family", FIXED)
def test_families_without_chance_give_the_published_pixels(
    family: str, severity: int, golden: Mapping[str, NDArray[np.generic]]
) -> None:
    out = corrupt(np.asarray(golden["picture"], np.uint8), family, severity, _rng())
    away = np.abs(out[EDGE_Y:-EDGE_Y, EDGE_X:-EDGE_X].astype(int) - golden[family][severity - 1].astype(int))
    mean, largest = FIXED[family]
    assert away.mean() <= mean and away.max() <= largest, (away.mean(), away.max())


@pytest.mark.parametrize("severity", SEVERITIES)
@pytest.mark.parametrize("family", ["gaussian_noise", "shot_noise", "impulse_noise", "speckle_noise"])
def test_noises_have_the_published_mean_and_spread(
    family: str, severity: int, golden: Mapping[str, NDArray[np.generic]]
) -> None:
    out = corrupt(_grey(230), family, severity, _rng(severity)).astype(float)
    mean, spread = golden[family][severity - 1]
    assert out.mean() == pytest.approx(mean, abs=1.0)
    assert out.std() == pytest.approx(spread, rel=0.02)


@pytest.mark.parametrize("severity", SEVERITIES)
@pytest.mark.parametrize(("family", "side"), [("snow", 256), ("fog", 60)])
def test_weather_has_the_published_mean_and_spread(
    family: str, side: int, severity: int, golden: Mapping[str, NDArray[np.generic]]
) -> None:
    made = [corrupt(_grey(side), family, severity, _rng(seed)).astype(float) for seed in range(12)]
    mean, spread = golden[family][severity - 1]
    assert np.mean(made) == pytest.approx(mean, abs=5.0)
    assert np.mean([one.std() for one in made]) == pytest.approx(spread, rel=0.2)


def test_motion_is_as_wide_as_the_published_half_gaussian(golden: Mapping[str, NDArray[np.generic]]) -> None:
    dot = np.zeros((121, 121, 3), np.uint8)
    dot[58:63, 58:63] = 255
    y, x = np.indices(dot.shape[:2])
    for severity in SEVERITIES:
        out = corrupt(dot, "motion_blur", severity, _rng(severity))[..., 0].astype(float)
        widest = np.linalg.eigvalsh(np.cov(np.c_[x.ravel(), y.ravel()].T, aweights=out.ravel()))[-1]
        # The square of 5 pixels adds 2; what is rounded to nothing at the ends takes some off.
        assert np.sqrt(widest - 2) == pytest.approx(golden["motion_blur"][severity - 1], rel=0.12)


def test_elastic_shifts_are_of_the_published_size(golden: Mapping[str, NDArray[np.generic]]) -> None:
    row, column = np.indices((244, 244))
    places = np.dstack([column, row, np.zeros_like(row)]).astype(np.uint8)
    inner = np.s_[60:-60, 60:-60]
    known = np.c_[column[inner].ravel(), row[inner].ravel(), np.ones(124 * 124)]
    for severity in (2, 3, 4, 5):  # a field as wide as the picture (1) is a shift, which nothing tells from the affine
        left = []
        for seed in range(4):
            came_from = corrupt(places, "elastic", severity, _rng(seed))[inner][..., :2].reshape(-1, 2).astype(float)
            fit, *_ = np.linalg.lstsq(known, came_from, rcond=None)
            left.append((came_from - known @ fit).var())
        rounding = 1 / 12
        spread = np.sqrt(np.mean(left) - rounding)
        assert spread == pytest.approx(golden["elastic"][severity - 1], rel=0.25), severity


def test_glass_moves_pixels_as_far_as_the_published_swaps(golden: Mapping[str, NDArray[np.generic]]) -> None:
    slope = np.repeat(np.arange(0, 240, 2, dtype=np.uint8)[None, :, None], 60, 0).repeat(3, -1)
    for severity in SEVERITIES:
        changed = [
            (corrupt(slope, "glass_blur", severity, _rng(seed)).astype(float) - slope)[10:-10, 20:-20]
            for seed in range(4)
        ]
        assert np.sqrt(np.mean(np.square(changed))) == pytest.approx(golden["glass_blur"][severity - 1], rel=0.35)


def test_spatter_covers_the_published_share(golden: Mapping[str, NDArray[np.generic]]) -> None:
    for severity in SEVERITIES:
        share = golden["spatter"][severity - 1]
        hit = np.mean([(corrupt(_grey(256), "spatter", severity, _rng(seed)) != LEVEL).any(-1) for seed in range(4)])
        if severity <= 3:  # water shows at the rims of its drops
            assert 0.3 * share < hit < 1.3 * share, severity
        else:
            assert hit == pytest.approx(share, rel=0.15), severity
