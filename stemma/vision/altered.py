"""Edits that change a region's own pixels: recolouring, making unreadable (``mosaic``), reshaping (``warp``).

A tool takes (picture, share of it to change, rng, donors) and returns a ``regions.Layer``.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import cv2
import numpy as np
from numpy.typing import NDArray

from stemma.vision.geometry import Picture
from stemma.vision.regions import Box, Layer, Rng, box, feathered, ramp, region, solid

BULGE_SHARE = 0.286
"""The largest shift of a bulge of strength 1, of its radius: the maximum of u (1 - u^2)^2 over u in 0..1."""
WARP_SHIFT_SHARE_MIN, WARP_SHIFT_PX_MIN = 0.012, 3.0
"""Least largest shift of a warp, of the picture's long side: less is what a lens or a rescaling does anyway."""
WARP_AREA_GAIN = 1.6
"""A warp changes the inner part of its region; the mask is cut to it."""
DABS = 4
"""Pushes that follow one another along a stroke."""


def recolour_lab(rgb: Picture, share: float, rng: Rng, donors: Sequence[Picture]) -> Layer:  # noqa: ARG001
    """The plane of colours turned and pushed, lightness kept."""
    mask = region(rgb, share, rng)
    at = box(mask).slices
    lab = np.asarray(cv2.cvtColor(_unit(rgb[at]), cv2.COLOR_RGB2LAB), np.float32)
    turn, push = rng.uniform(0.5 * math.pi, 1.5 * math.pi), rng.uniform(25, 60)
    a, b = lab[..., 1].copy(), lab[..., 2].copy()
    lab[..., 1] = a * math.cos(turn) - b * math.sin(turn) + push * math.cos(turn)
    lab[..., 2] = a * math.sin(turn) + b * math.cos(turn) + push * math.sin(turn)
    layer = rgb.copy()
    layer[at] = _bytes(cv2.cvtColor(lab, cv2.COLOR_LAB2RGB))
    return Layer(layer, feathered(mask, rng))


def recolour_hue(rgb: Picture, share: float, rng: Rng, donors: Sequence[Picture]) -> Layer:  # noqa: ARG001
    """Hue turned in HSV, and the channels given gains of their own, which also colours greys."""
    mask = region(rgb, share, rng)
    at = box(mask).slices
    hsv = np.asarray(cv2.cvtColor(_unit(rgb[at]), cv2.COLOR_RGB2HSV), np.float32)
    hsv[..., 0] = (hsv[..., 0] + np.float32(rng.uniform(50, 310))) % 360
    hsv[..., 1] = np.clip(hsv[..., 1] * np.float32(rng.uniform(1.0, 1.8)), 0, 1)
    gains = np.exp(rng.normal(0, 0.35, 3)).astype(np.float32)
    layer = rgb.copy()
    layer[at] = _bytes(np.asarray(cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB)) * gains)
    return Layer(layer, solid(mask))


def recolour_curve(rgb: Picture, share: float, rng: Rng, donors: Sequence[Picture]) -> Layer:  # noqa: ARG001
    """Darkened, lightened, inverted or drained of its colour: one table for all pixels of the region."""
    mask = region(rgb, share, rng)
    at = box(mask).slices
    level = np.arange(256, dtype=np.float64) / 255
    how = str(rng.choice(["darker", "lighter", "inverted", "grey"], p=[0.35, 0.35, 0.15, 0.15]))
    crop = rgb[at]
    if how == "grey":
        crop = np.asarray(cv2.cvtColor(cv2.cvtColor(crop, cv2.COLOR_RGB2GRAY), cv2.COLOR_GRAY2RGB), np.uint8)
    gamma = {"darker": rng.uniform(1.8, 3.2), "lighter": rng.uniform(0.3, 0.55)}.get(how, 1.0)
    table = 1 - level if how == "inverted" else level**gamma
    layer = rgb.copy()
    layer[at] = cv2.LUT(crop, np.rint(table * 255).astype(np.uint8))
    return Layer(layer, ramp(mask, rng.uniform(1, 12)), cut=True)


def mosaic_pixels(rgb: Picture, share: float, rng: Rng, donors: Sequence[Picture]) -> Layer:  # noqa: ARG001
    """Large square pixels, each the mean of what it covers."""
    mask = region(rgb, share, rng)
    at = box(mask)
    block = max(4, round(min(at.width, at.height) * rng.uniform(0.12, 0.3)))
    few = (max(1, at.width // block), max(1, at.height // block))
    small = cv2.resize(rgb[at.slices], few, interpolation=cv2.INTER_AREA)
    layer = rgb.copy()
    layer[at.slices] = cv2.resize(small, (at.width, at.height), interpolation=cv2.INTER_NEAREST)
    return Layer(layer, solid(mask))


def mosaic_blur(rgb: Picture, share: float, rng: Rng, donors: Sequence[Picture]) -> Layer:  # noqa: ARG001
    """Blurred beyond reading, as faces and number plates are."""
    mask = region(rgb, share, rng)
    at = box(mask)
    sigma = max(3.0, min(at.width, at.height) * rng.uniform(0.1, 0.25))
    # A wide Gaussian is taken on a coarser grid, which it cannot tell apart.
    shrink = max(1.0, sigma / 4)
    size = (max(1, round(at.width / shrink)), max(1, round(at.height / shrink)))
    small = cv2.GaussianBlur(cv2.resize(rgb[at.slices], size, interpolation=cv2.INTER_AREA), (0, 0), sigma / shrink)
    layer = rgb.copy()
    layer[at.slices] = cv2.resize(small, (at.width, at.height), interpolation=cv2.INTER_LINEAR)
    return Layer(layer, ramp(mask, rng.uniform(1, 6)), cut=True)


def mosaic_shuffle(rgb: Picture, share: float, rng: Rng, donors: Sequence[Picture]) -> Layer:  # noqa: ARG001
    """Blocks of the region in another order."""
    mask = region(rgb, share, rng)
    at = box(mask)
    block = max(4, round(min(at.width, at.height) * rng.uniform(0.08, 0.25)))
    across, down = max(1, at.width // block), max(1, at.height // block)
    whole = Box(at.left, at.top, across * block, down * block)
    tiles = rgb[whole.slices].reshape(down, block, across, block, 3).swapaxes(1, 2).reshape(-1, block, block, 3)
    mixed = tiles[rng.permutation(len(tiles))].reshape(down, across, block, block, 3).swapaxes(1, 2)
    layer, inside = rgb.copy(), np.zeros_like(mask)
    layer[whole.slices] = mixed.reshape(down * block, across * block, 3)
    inside[whole.slices] = mask[whole.slices]
    return Layer(layer, solid(inside))


def warp_bulge(rgb: Picture, share: float, rng: Rng, donors: Sequence[Picture]) -> Layer:  # noqa: ARG001
    """An ellipse swollen or pinched about its centre: a larger eye, a thinner waist."""
    height, width = rgb.shape[:2]
    strength = rng.uniform(0.45, 0.8) * rng.choice([-1, 1])
    stretch = math.exp(rng.uniform(-0.4, 0.4))
    area = min(share * WARP_AREA_GAIN, 0.3) * height * width
    radius = max(math.sqrt(area / math.pi), _least_shift(width, height) / (BULGE_SHARE * abs(strength)))
    half_w, half_h = (min(radius * part, side / 2 - 1) for part, side in ((stretch, width), (1 / stretch, height)))
    x, y = rng.uniform(half_w, width - 1 - half_w), rng.uniform(half_h, height - 1 - half_h)
    at = _around(x - half_w, y - half_h, x + half_w, y + half_h, width, height)
    column, row = _grid(at)
    dx, dy = column - np.float32(x), row - np.float32(y)
    inner = np.maximum(1 - (dx / np.float32(half_w)) ** 2 - (dy / np.float32(half_h)) ** 2, 0)
    pull = np.float32(strength) * inner * inner
    return _reshaped(rgb, at, dx * pull, dy * pull)


def warp_push(rgb: Picture, share: float, rng: Rng, donors: Sequence[Picture]) -> Layer:  # noqa: ARG001
    """Pushed aside along a bent stroke, a few dabs one after another, as a liquifying brush does."""
    height, width = rgb.shape[:2]
    least = _least_shift(width, height)
    radius = max(math.sqrt(min(share * WARP_AREA_GAIN, 0.3) * height * width / math.pi) * 0.8, 2.5 * least)
    radius = min(radius, min(width, height) / 2.5)
    step = max(radius * rng.uniform(0.4, 0.8), least) / DABS
    heading, bend = rng.uniform(0, 2 * math.pi), rng.uniform(-0.35, 0.35)
    angles = heading + bend * np.arange(DABS)
    moves = np.c_[np.cos(angles), np.sin(angles)] * step
    places = np.cumsum(np.vstack([np.zeros((1, 2)), moves[:-1]]), 0)
    low, high = places.min(0) - radius, places.max(0) + radius
    room = np.array([width - 1, height - 1]) - (high - low)
    places += rng.uniform(np.minimum(0, room / 2), np.maximum(room, room / 2)) - low
    low, high = places.min(0) - radius, places.max(0) + radius
    at = _around(low[0], low[1], high[0], high[1], width, height)
    column, row = _grid(at)
    from_x, from_y = column.copy(), row.copy()
    # The last dab saw the result of those before it, so looking back starts with the last.
    for (x, y), (move_x, move_y) in zip(places[::-1].tolist(), moves[::-1].tolist(), strict=True):
        near = np.maximum(1 - ((from_x - x) ** 2 + (from_y - y) ** 2) / np.float32(radius**2), 0)
        from_x, from_y = from_x - np.float32(move_x) * near * near, from_y - np.float32(move_y) * near * near
    return _reshaped(rgb, at, column - from_x, row - from_y)


def _least_shift(width: int, height: int) -> float:
    return max(WARP_SHIFT_PX_MIN, WARP_SHIFT_SHARE_MIN * max(width, height))


def _around(left: float, top: float, right: float, bottom: float, width: int, height: int) -> Box:
    x, y = max(0, math.floor(left)), max(0, math.floor(top))
    return Box(x, y, min(width, math.ceil(right) + 1) - x, min(height, math.ceil(bottom) + 1) - y)


def _grid(at: Box) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Column and row of every pixel of the box, by whole numbers, as ``cv2.remap`` counts."""
    row, column = np.mgrid[at.top : at.top + at.height, at.left : at.left + at.width].astype(np.float32)
    return column, row


def _reshaped(rgb: Picture, at: Box, dx: NDArray[np.float32], dy: NDArray[np.float32]) -> Layer:
    """Every pixel of the box shows what lay (dx, dy) before it."""
    column, row = _grid(at)
    layer, alpha = rgb.copy(), np.zeros(rgb.shape[:2], np.float32)
    layer[at.slices] = cv2.remap(rgb, column - dx, row - dy, cv2.INTER_CUBIC, borderMode=cv2.BORDER_REPLICATE)
    # Shifts too small to see stay out of the mask; between two pixels they would only soften.
    alpha[at.slices] = dx * dx + dy * dy > 0.2**2
    return Layer(layer, alpha, cut=True)


def _unit(rgb: Picture) -> NDArray[np.float32]:
    return rgb.astype(np.float32) / np.float32(255)


def _bytes(unit: NDArray[np.generic]) -> Picture:
    return np.asarray(np.rint(np.clip(unit, 0, 1) * 255), np.uint8)
