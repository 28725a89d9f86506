"""Rendered manipulations: exact masks, visible changes, areas within bounds, repeatable."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from numpy.typing import NDArray

from stemma.vision import edits

Rgb = NDArray[np.uint8]


@pytest.fixture(scope="module")
def donors(photo_like: Callable[..., Rgb]) -> list[Rgb]:
    return [255 - photo_like(300, 200, 7), photo_like(60, 90, 8)]


def _make(photo: Rgb, seed: int, donors: list[Rgb], *kinds: str) -> edits.Edited:
    return edits.manipulate(photo, np.random.default_rng(seed), donors, kinds=kinds or None)


@pytest.mark.parametrize("kind", edits.KINDS)
def test_outside_the_mask_every_pixel_is_the_source_and_inside_the_change_shows(
    kind: str, photo: Rgb, donors: list[Rgb]
) -> None:
    kept = 0
    for seed in range(15):
        before = photo.copy()
        made = _make(photo, seed, donors, kind)
        assert np.array_equal(photo, before)
        assert made.rgb_HWC.shape == photo.shape
        assert set(np.unique(made.mask_HW)) == {0, 255}
        outside = made.mask_HW == 0
        assert np.array_equal(made.rgb_HWC[outside], photo[outside])
        step = np.abs(made.rgb_HWC.astype(int) - photo).max(-1)[~outside]
        assert (step >= edits.VISIBLE_STEP).mean() >= edits.VISIBLE_SHARE
        assert 0.9 * edits.AREA_MIN <= (~outside).mean() <= 1.1 * edits.AREA_MAX
        assert made.kind in (kind, "caption")
        kept += made.kind == kind
    assert kept >= 12


def test_areas_are_spread_over_the_decades(photo: Rgb, donors: list[Rgb]) -> None:
    areas = np.array([(_make(photo, seed, donors, "splice").mask_HW > 0).mean() for seed in range(120)])
    # Log-uniform over 0.3% to 30%: half of them lie under 3%.
    assert 0.35 < (areas < 0.03).mean() < 0.65
    assert areas.max() > 0.15


def test_the_same_seed_gives_the_same_edit(photo: Rgb, donors: list[Rgb]) -> None:
    for seed in range(8):
        one, two = _make(photo, seed, donors), _make(photo, seed, donors)
        assert np.array_equal(one.rgb_HWC, two.rgb_HWC) and np.array_equal(one.mask_HW, two.mask_HW)
        assert (one.kind, one.donor) == (two.kind, two.donor)


def test_all_kinds_are_drawn_and_without_donors_all_but_splices(photo: Rgb, donors: list[Rgb]) -> None:
    assert {_make(photo, seed, donors).kind for seed in range(60)} == set(edits.KINDS)
    assert {_make(photo, seed, []).kind for seed in range(60)} == set(edits.KINDS) - {"splice"}


def test_a_splice_shows_its_donor(photo: Rgb) -> None:
    red = np.zeros((80, 80, 3), np.uint8)
    red[..., 0] = 255
    blue = red[..., ::-1].copy()
    for seed in range(10):
        made = _make(photo, seed, [red, blue], "splice")
        inside = made.mask_HW > 0
        channel = 0 if made.donor == 0 else 2
        pasted, was = made.rgb_HWC[inside].mean(0), photo[inside].mean(0)
        assert pasted[channel] - was[channel] > pasted[2 - channel] - was[2 - channel] + 25


def test_a_clone_in_a_clear_sky_becomes_a_caption() -> None:
    sky = np.full((120, 160, 3), (90, 140, 220), np.uint8)
    made = _make(sky, 1, [], "clone")
    assert made.kind == "caption"
    assert (made.mask_HW > 0).any()


@pytest.mark.parametrize("size", [(32, 32), (32, 400), (400, 32), (512, 300)])
@pytest.mark.parametrize("level", [0, 128, 255])
def test_any_size_and_flat_pictures_can_be_edited(size: tuple[int, int], level: int, donors: list[Rgb]) -> None:
    flat = np.full((size[1], size[0], 3), level, np.uint8)
    for seed in range(6):
        assert (_make(flat, seed, donors).mask_HW > 0).any()


def test_kinds_that_cannot_be_made_are_named(photo: Rgb) -> None:
    with pytest.raises(ValueError, match="splice"):
        _make(photo, 0, [], "splice")
    with pytest.raises(ValueError, match="deepfake"):
        _make(photo, 0, [], "deepfake")
