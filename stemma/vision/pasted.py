"""Edits that lay pixels over a region: splices (another picture's), clones (the same picture's), removals (its own
surroundings'). Each kind has tools that leave different traces: soft, hard and gradient-domain seams, grain or none.

A tool takes (picture, share of it to change, rng, donors) and returns a ``regions.Layer``.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import cv2
import numpy as np
from numpy.typing import NDArray

from stemma.vision.geometry import Picture
from stemma.vision.regions import Box, Layer, Mask, Rng, box, feathered, polygon, ramp, region, solid

INPAINT_PX_MAX = 4_000
"""Larger regions are painted over at a smaller scale: the time of an inpainting grows with its pixels (0.1 s here)."""
POISSON_PX_MAX = 12_000
"""Larger boxes are blended at a smaller scale: what a Poisson blend adds to the patch is smooth (60 ms at 60,000)."""
RIM_PX = 3
"""What a Poisson blend and an inpainting need around their region."""


def splice_window(rgb: Picture, share: float, rng: Rng, donors: Sequence[Picture]) -> Layer:
    """A window of a donor behind a soft edge."""
    mask = region(rgb, share, rng)
    at = box(mask)
    index, patch = _donated(at, rng, donors)
    if rng.random() < 0.5:
        # Half of all forgers match the light of the place.
        shift = (rgb[at.slices].mean((0, 1)) - patch.mean((0, 1))) * rng.uniform(0.3, 0.8)
        patch = np.clip(patch + shift, 0, 255).astype(np.uint8)
    return Layer(_laid(rgb, at, patch), feathered(mask, rng), donor=index)


def splice_poisson(rgb: Picture, share: float, rng: Rng, donors: Sequence[Picture]) -> Layer:
    """A donor's gradients, with the colours of the place running into it."""
    mask = region(rgb, share, rng)
    at = box(mask)
    index, patch = _donated(at, rng, donors)
    blended = poisson(rgb, patch, mask, at)
    return Layer(_laid(rgb, at, blended), ramp(mask, 2), cut=True, donor=index)


def splice_polygon(rgb: Picture, share: float, rng: Rng, donors: Sequence[Picture]) -> Layer:
    """A straight-edged cut-out without any softening, its channels' mean and spread pulled to the place's."""
    mask = region(rgb, share, rng, polygon(rng))
    at = box(mask)
    index, patch = _donated(at, rng, donors)
    inside, pull = mask[at.slices] > 0, rng.uniform(0.0, 0.9)
    ours, theirs = rgb[at.slices][inside].astype(np.float32), patch[inside].astype(np.float32)
    gain = 1 + pull * (np.clip(ours.std(0) / np.maximum(theirs.std(0), 4), 0.5, 2) - 1)
    matched = (patch - theirs.mean(0)) * gain + theirs.mean(0) + pull * (ours.mean(0) - theirs.mean(0))
    return Layer(_laid(rgb, at, np.clip(matched, 0, 255).astype(np.uint8)), solid(mask), donor=index)


def clone_patch(rgb: Picture, share: float, rng: Rng, donors: Sequence[Picture]) -> Layer:  # noqa: ARG001
    """Another place of the picture, straight or mirrored."""
    mask = region(rgb, share, rng)
    at = box(mask)
    left = int(rng.integers(rgb.shape[1] - at.width + 1))
    top = int(rng.integers(rgb.shape[0] - at.height + 1))
    patch = rgb[Box(left, top, at.width, at.height).slices]
    patch = patch[:, ::-1] if rng.random() < 0.3 else patch
    return Layer(_laid(rgb, at, patch), feathered(mask, rng))


def clone_turned(rgb: Picture, share: float, rng: Rng, donors: Sequence[Picture]) -> Layer:  # noqa: ARG001
    """Another place of the picture, turned and rescaled, fading in over a wide edge."""
    mask = region(rgb, share, rng)
    at = box(mask)
    turn = math.radians(rng.uniform(15, 180) * rng.choice([-1, 1]))
    zoom = math.exp(rng.uniform(-0.5, 0.5))
    cos, sin = math.cos(turn) * zoom, math.sin(turn) * zoom
    matrix = np.array([[cos, -sin, 0], [sin, cos, 0]])
    # The centre of the box shows a point whose own box lies in the picture as far as there is room.
    reach = np.minimum(np.array([at.width, at.height]) / 2 * zoom, np.array(rgb.shape[1::-1]) / 2)
    centre = rng.uniform(reach, np.array(rgb.shape[1::-1]) - reach)
    matrix[:, 2] = centre - matrix[:, :2] @ (np.array([at.width, at.height]) / 2)
    flags = cv2.INTER_CUBIC | cv2.WARP_INVERSE_MAP
    patch = cv2.warpAffine(rgb, matrix, (at.width, at.height), flags=flags, borderMode=cv2.BORDER_REFLECT_101)
    soft = ramp(mask, max(3.0, math.sqrt(share * mask.size) * rng.uniform(0.08, 0.2)))
    return Layer(_laid(rgb, at, patch), soft * soft * (3 - 2 * soft), cut=True)


def removal_telea(rgb: Picture, share: float, rng: Rng, donors: Sequence[Picture]) -> Layer:  # noqa: ARG001
    """Painted over from around it, with grain as strong as the surroundings'."""
    mask = region(rgb, share, rng)
    around, crop, hole = _surroundings(rgb, mask, 12)
    smooth = _inpainted(crop, hole, cv2.INPAINT_TELEA)
    filled = np.clip(smooth + _grain(crop, hole, rng), 0, 255).astype(np.uint8)
    return Layer(_laid(rgb, around, filled), feathered(mask, rng))


def removal_navier(rgb: Picture, share: float, rng: Rng, donors: Sequence[Picture]) -> Layer:  # noqa: ARG001
    """Painted over along the lines of equal light, smooth and without grain."""
    mask = region(rgb, share, rng)
    around, crop, hole = _surroundings(rgb, mask, 6)
    return Layer(_laid(rgb, around, _inpainted(crop, hole, cv2.INPAINT_NS)), solid(mask), cut=True)


def removal_neighbour(rgb: Picture, share: float, rng: Rng, donors: Sequence[Picture]) -> Layer:  # noqa: ARG001
    """Covered with what lies beside it, its gradients blended in: how a healing brush removes things."""
    mask = region(rgb, share, rng)
    at = box(mask)
    left, top = _beside(at, rgb.shape[1], rgb.shape[0], rng)
    patch = rgb[Box(left, top, at.width, at.height).slices]
    return Layer(_laid(rgb, at, poisson(rgb, patch, mask, at)), ramp(mask, 2), cut=True)


def poisson(rgb: Picture, patch: Picture, mask: Mask, at: Box) -> Picture:
    """``patch`` [at.height, at.width, 3] with its gradients kept and its edge drawn to the picture's colours."""
    rim = RIM_PX
    under = cv2.copyMakeBorder(rgb, rim, rim, rim, rim, cv2.BORDER_REFLECT_101)
    under = under[at.top : at.top + at.height + 2 * rim, at.left : at.left + at.width + 2 * rim]
    over = cv2.copyMakeBorder(patch, rim, rim, rim, rim, cv2.BORDER_REFLECT_101)
    hole = cv2.copyMakeBorder(mask[at.slices], rim, rim, rim, rim, cv2.BORDER_CONSTANT, value=0)
    shrink = math.sqrt(POISSON_PX_MAX / (at.width * at.height))
    if shrink >= 1:
        return _cloned(over, np.ascontiguousarray(under), hole)[rim:-rim, rim:-rim]
    size = (max(2 * rim + 2, round(over.shape[1] * shrink)), max(2 * rim + 2, round(over.shape[0] * shrink)))
    small_over, small_under = (cv2.resize(one, size, interpolation=cv2.INTER_AREA) for one in (over, under))
    small_hole = cv2.resize(hole, size, interpolation=cv2.INTER_NEAREST)
    # Nothing may touch the rim, however the hole was rounded.
    small_hole[[0, -1]] = small_hole[:, [0, -1]] = 0
    added = _cloned(small_over, small_under, small_hole).astype(np.float32) - small_over
    out = over + cv2.resize(added, over.shape[1::-1], interpolation=cv2.INTER_LINEAR)
    return np.asarray(np.clip(out, 0, 255), np.uint8)[rim:-rim, rim:-rim]


def _cloned(over: Picture, under: Picture, hole: Mask) -> Picture:
    if not hole.any():
        return under
    at = box(hole)
    # The blend puts the centre of the hole's box, halved downwards, where it is told.
    centre = (at.left + at.width // 2, at.top + at.height // 2)
    return np.asarray(cv2.seamlessClone(over, under, hole, centre, cv2.NORMAL_CLONE), np.uint8)


def _laid(rgb: Picture, at: Box, patch: Picture) -> Picture:
    layer = rgb.copy()
    layer[at.slices] = patch
    return layer


def _donated(at: Box, rng: Rng, donors: Sequence[Picture]) -> tuple[int, Picture]:
    """Index of a donor, and a window of it, at.width x at.height, at a random scale (never enlarged needlessly)."""
    index = int(rng.integers(len(donors)))
    donor, (width, height) = donors[index], at[2:]
    fit = min(donor.shape[1] / width, donor.shape[0] / height)
    zoom = fit * rng.uniform(0.3, 1.0) if fit > 1 else fit
    inner_w, inner_h = max(1, int(width * zoom)), max(1, int(height * zoom))
    left = int(rng.integers(donor.shape[1] - inner_w + 1))
    top = int(rng.integers(donor.shape[0] - inner_h + 1))
    window = donor[top : top + inner_h, left : left + inner_w]
    how = cv2.INTER_AREA if zoom > 1 else cv2.INTER_LINEAR
    patch = np.asarray(cv2.resize(window, (width, height), interpolation=how), np.uint8)
    return index, np.ascontiguousarray(patch[:, ::-1]) if rng.random() < 0.5 else patch


def _beside(at: Box, width: int, height: int, rng: Rng) -> tuple[int, int]:
    """Left and top of a window of the size of ``at`` next to it, overlapping it only where there is no room."""
    gap = float(rng.uniform(1.0, 1.3))
    across, down = round(at.width * gap), round(at.height * gap)
    places = [
        (at.left - across, at.top),
        (at.left + across, at.top),
        (at.left, at.top - down),
        (at.left, at.top + down),
    ]
    order = rng.permutation(4)
    kept = [(min(max(x, 0), width - at.width), min(max(y, 0), height - at.height)) for x, y in places]
    moved = [abs(x - at.left) / at.width + abs(y - at.top) / at.height for x, y in kept]
    fits = [int(i) for i in order if kept[i] == places[i]]
    return kept[fits[0] if fits else max(range(4), key=moved.__getitem__)]


def _surroundings(rgb: Picture, mask: Mask, edge_px: int) -> tuple[Box, Picture, Mask]:
    at = box(mask)
    left, top = max(0, at.left - edge_px), max(0, at.top - edge_px)
    right = min(rgb.shape[1], at.left + at.width + edge_px)
    around = Box(left, top, right - left, min(rgb.shape[0], at.top + at.height + edge_px) - top)
    return around, rgb[around.slices], mask[around.slices]


def _inpainted(crop: Picture, hole: Mask, how: int) -> Picture:
    shrink = min(1.0, math.sqrt(INPAINT_PX_MAX / max(1, int((hole > 0).sum()))))
    size = (max(8, round(crop.shape[1] * shrink)), max(8, round(crop.shape[0] * shrink)))
    small_hole = cv2.dilate(
        (cv2.resize(hole, size, interpolation=cv2.INTER_LINEAR) > 0).astype(np.uint8), np.ones((3, 3))
    )
    small = cv2.inpaint(cv2.resize(crop, size, interpolation=cv2.INTER_AREA), small_hole, 4, how)
    return np.asarray(cv2.resize(small, crop.shape[1::-1], interpolation=cv2.INTER_CUBIC), np.uint8)


def _grain(crop: Picture, hole: Mask, rng: Rng) -> NDArray[np.float32]:
    """Noise as strong as the fine detail around the hole, so that the fill is no flat spot."""
    detail = np.abs(crop.astype(np.float32) - cv2.GaussianBlur(crop, (0, 0), 1.5))[hole == 0]
    strength = float(np.median(detail)) if detail.size else 0.0
    return np.asarray(rng.standard_normal((*crop.shape[:2], 1), dtype=np.float32) * np.float32(strength), np.float32)
