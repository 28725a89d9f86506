"""The tools behind the edits, one property each: what a tool is said to do, seen in its pixels."""

from __future__ import annotations

from collections.abc import Callable

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from stemma.vision import altered, drawn, pasted, regions
from stemma.vision.regions import Box

Rgb = NDArray[np.uint8]


def _rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def _coordinates(width: int = 250, height: int = 200) -> Rgb:
    """Red is the column, green the row: where a warped pixel came from can be read off it."""
    row, column = np.indices((height, width))
    return np.dstack([column, row, np.zeros_like(row)]).astype(np.uint8)


@pytest.mark.parametrize("outline", [regions.curve, regions.polygon])
def test_regions_lie_inside_with_the_share_asked_for(outline: Callable[..., NDArray[np.float64]], photo: Rgb) -> None:
    for seed in range(25):
        share = 0.004 * 2 ** (seed % 6)
        mask = regions.region(photo, share, _rng(seed), outline(_rng(seed)))
        assert 0.75 * share - 0.002 < (mask > 0).mean() < 1.3 * share + 0.005
        at = regions.box(mask)
        assert (mask[at.slices] > 0).sum() == (mask > 0).sum()


def test_a_poisson_blend_has_the_patchs_laplacian_and_the_pictures_edge(photo_like: Callable[..., Rgb]) -> None:
    # Of little contrast, so that nothing is clipped.
    picture, patch = photo_like(90, 80, 1) // 2 + 60, photo_like(40, 30, 2) // 8 + 20
    mask = np.zeros((80, 90), np.uint8)
    cv2.ellipse(mask, (39, 39), (18, 13), 0, 0, 360, 255, -1)
    at = regions.box(mask)
    patch = patch[: at.height, : at.width]
    out = pasted.poisson(picture, patch, mask, at).astype(float)
    inner = cv2.erode(mask[at.slices], np.ones((11, 11)), borderValue=0) > 0
    cross = np.array([[0, 1, 0], [1, -4, 1], [0, 1, 0]], np.float64)
    ours, theirs = (cv2.filter2D(one, cv2.CV_64F, cross) for one in (out, patch.astype(float)))
    assert np.abs(ours - theirs)[inner].max() <= 5  # five values rounded to whole steps
    edge = (mask[at.slices] > 0) & ~(cv2.erode(mask[at.slices], np.ones((3, 3)), borderValue=0) > 0)
    blended, pasted_in = (np.abs(one - picture[at.slices])[edge].mean() for one in (out, patch.astype(float)))
    assert blended < 2 < 40 < pasted_in


def test_a_large_poisson_blend_is_close_to_the_exact_one(
    photo_like: Callable[..., Rgb], monkeypatch: pytest.MonkeyPatch
) -> None:
    picture, donor = photo_like(300, 260, 3) // 3 + 60, photo_like(300, 260, 4) // 3 + 100
    mask = np.zeros((260, 300), np.uint8)
    cv2.ellipse(mask, (150, 130), (110, 90), 0, 0, 360, 255, -1)
    at = regions.box(mask)
    fast = pasted.poisson(picture, donor[at.slices], mask, at)
    monkeypatch.setattr(pasted, "POISSON_PX_MAX", 10**9)
    exact = pasted.poisson(picture, donor[at.slices], mask, at)
    inner = cv2.erode(mask[at.slices], np.ones((7, 7)), borderValue=0) > 0
    assert np.abs(fast.astype(int) - exact)[inner].mean() < 4


def test_what_covers_a_removal_lies_beside_it() -> None:
    for seed in range(20):
        at = Box(*_rng(seed).integers(0, 30, 2).tolist(), 25, 18)
        left, top = pasted._beside(at, 100, 80, _rng(seed))
        assert 0 <= left <= 100 - at.width and 0 <= top <= 80 - at.height
        assert abs(left - at.left) >= at.width or abs(top - at.top) >= at.height
    # With no room on any side, as far off as there is.
    assert pasted._beside(Box(10, 5, 80, 70), 100, 80, _rng()) in {(0, 5), (20, 5), (10, 0), (10, 10)}


def test_a_flat_surrounding_fills_a_hole_flat() -> None:
    flat = np.full((60, 80, 3), 120, np.uint8)
    for tool in (pasted.removal_telea, pasted.removal_navier, pasted.removal_neighbour, pasted.clone_turned):
        layer = tool(flat, 0.05, _rng(2), [])
        assert np.abs(layer.rgb_HWC.astype(int) - 120).max() <= 3  # Telea's weights are rounded


def test_a_turned_clone_shows_pixels_of_its_picture_alone() -> None:
    picture = np.zeros((90, 120, 3), np.uint8)
    picture[:, 60:] = (200, 40, 10)
    layer = pasted.clone_turned(picture, 0.1, _rng(3), [])
    # Whatever the turn, colours lie between the two there are (cubic sampling overshoots a little).
    ratio = layer.rgb_HWC[..., 0].astype(float), layer.rgb_HWC[..., 1].astype(float)
    assert np.abs(ratio[0] * 0.2 - ratio[1]).max() < 4


@pytest.mark.parametrize("tool", [altered.warp_bulge, altered.warp_push])
def test_warps_bend_without_tearing_and_far_enough_to_see(tool: Callable[..., regions.Layer]) -> None:
    before = _coordinates()
    for seed in range(12):
        layer = tool(before, 0.02 * (1 + seed % 5), _rng(seed), [])
        came_from = layer.rgb_HWC[..., :2].astype(float)
        shift = came_from - before[..., :2]
        length = np.hypot(shift[..., 0], shift[..., 1])
        assert length.max() >= altered.WARP_SHIFT_PX_MIN - 1
        assert not shift[layer.alpha_HW == 0].any(), "outside, nothing moves by a step that could be seen"
        # No fold: what lies further right or down comes from further right or down, up to rounding.
        assert np.diff(came_from[..., 0], axis=1).min() >= -1 and np.diff(came_from[..., 1], axis=0).min() >= -1
        assert np.abs(np.diff(length, axis=0)).max() < 6, "no tear"


def test_bulges_enlarge_what_pinches_shrink() -> None:
    spread = set()
    for seed in range(12):
        layer = altered.warp_bulge(_coordinates(), 0.1, _rng(seed), [])
        row, column = np.argwhere(layer.alpha_HW > 0).mean(0).astype(int)
        window = layer.rgb_HWC[row - 3 : row + 4, column - 3 : column + 4, 0].astype(int)
        spread.add("bulge" if window[:, -1].mean() - window[:, 0].mean() < 6 else "pinch")
    assert spread == {"bulge", "pinch"}


def test_a_shuffle_keeps_every_pixel_and_a_mosaic_few_colours(photo: Rgb) -> None:
    for seed in range(6):
        mixed = altered.mosaic_shuffle(photo, 0.1, _rng(seed), []).rgb_HWC
        assert np.array_equal(np.sort(mixed.reshape(-1, 3), 0), np.sort(photo.reshape(-1, 3), 0))
        layer = altered.mosaic_pixels(photo, 0.1, _rng(seed), [])
        inside = layer.alpha_HW > 0
        assert len(np.unique(layer.rgb_HWC[inside], axis=0)) <= 100 < inside.sum()


def test_a_blurred_region_keeps_its_light_and_loses_its_detail(photo: Rgb) -> None:
    layer = altered.mosaic_blur(photo, 0.2, _rng(1), [])
    inside = cv2.erode((layer.alpha_HW > 0).astype(np.uint8), np.ones((5, 5))) > 0
    blurred, sharp = (cv2.Laplacian(one, cv2.CV_64F)[inside] for one in (layer.rgb_HWC, photo))
    assert np.abs(blurred).mean() < 0.3 * np.abs(sharp).mean()
    assert abs(layer.rgb_HWC[inside].mean() - photo[inside].mean()) < 12


@pytest.mark.parametrize("tool", [altered.recolour_curve, altered.recolour_hue, altered.recolour_lab])
def test_recolouring_depends_on_the_colour_alone(tool: Callable[..., regions.Layer]) -> None:
    flat = np.tile(np.array([[90, 140, 60], [200, 120, 30]], np.uint8)[:, None], (1, 1, 1)).repeat(50, 0).repeat(120, 1)
    for seed in range(6):
        out = tool(flat, 0.2, _rng(seed), []).rgb_HWC
        assert all(len(np.unique(out[rows].reshape(-1, 3), axis=0)) <= 2 for rows in (np.s_[:50], np.s_[50:]))


def test_letters_fit_their_bar_in_every_style() -> None:
    grey = np.full((200, 300, 3), 60, np.uint8)
    for seed in range(12):
        alpha = drawn.caption_truetype(grey, 0.05, _rng(seed), []).alpha_HW
        at = regions.box((alpha > 0).astype(np.uint8))
        assert at.width * at.height <= 1.3 * 0.05 * alpha.size + 60
        assert 0 < alpha.max() <= 1


@pytest.mark.parametrize("name", drawn._STICKERS)
def test_stickers_fill_their_square_with_two_colours(name: str) -> None:
    patch, cover = drawn._sticker(name, 60, 10.0, (250, 10, 10), (10, 10, 250))
    assert patch.shape == (60, 60, 3) and 0.2 < cover.mean() < 0.85
    assert cover[30, 30] == 1 or name == "disc"
    assert not cover[0, 0] and not cover[-1, -1]
    # Marks lie on the body: where nothing is covered, no second colour.
    assert (patch[cover == 0] == (250, 10, 10)).all()


def test_a_frame_is_a_line_around_what_stays() -> None:
    grey = np.full((200, 300, 3), 60, np.uint8)
    for seed in range(12):
        layer = drawn.caption_frame(grey, 0.03, _rng(seed), [])
        at = regions.box((layer.alpha_HW > 0).astype(np.uint8))
        middle = layer.alpha_HW[at.top + at.height // 2, at.left + at.width // 2]
        assert middle == 0 and 0.01 < layer.alpha_HW.mean() < 0.05
