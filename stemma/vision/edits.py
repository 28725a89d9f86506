"""Rendered manipulations with exact masks: what a picture looks like after somebody changed what it says.

Kinds: ``splice`` (a region of another picture), ``clone`` (a region of the same one, elsewhere), ``removal`` (a region
painted over from around it), ``caption`` (text, with or without a bar), ``recolour`` and ``mosaic`` (pixelation of a
region). The changed area is log-uniform between 0.3% and 30% of the picture. A pixel outside the mask is untouched, to
the bit; a change that nobody could see is drawn again.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from stemma.vision.geometry import Picture

AREA_MIN, AREA_MAX = 0.003, 0.3
AREA_PX_MIN = 48
SIDE_SHARE_MAX = 0.95
"""A region fits into the picture with room to lie in more than one place."""

VISIBLE_STEP = 20
"""8-bit steps in the most changed channel from which a pixel counts as changed."""
VISIBLE_SHARE = 0.35
"""Share of the mask's pixels that must be changed so; a clone of sky onto sky stays far below."""
ATTEMPTS_MAX = 16
"""Draws of one kind."""

FEATHER_PX_MAX = 3
INPAINT_PX_MAX = 4_000
"""Larger regions are painted over at a smaller scale: the time of an inpainting grows with its pixels (0.1 s here)."""

_WORDS = (
    *("NOW", "LIVE", "BREAKING", "before", "after", "WOW", "real", "fake", "2019"),
    *("never", "again", "read", "this", "please", "share", "city", "sale"),
)

_FONTS = (cv2.FONT_HERSHEY_SIMPLEX, cv2.FONT_HERSHEY_DUPLEX, cv2.FONT_HERSHEY_TRIPLEX)

Rng = np.random.Generator
Mask = NDArray[np.uint8]


@dataclass(frozen=True, slots=True, kw_only=True)
class Edited:
    """A manipulated version in the frame and size of its source."""

    rgb_HWC: Picture
    mask_HW: Mask
    """255 where anything was changed, 0 where every pixel is the source's."""
    kind: str
    donor: int | None
    """Index of the donor of a splice."""


def manipulate(
    rgb_HWC: Picture, rng: Rng, donors: Sequence[Picture] = (), *, kinds: Sequence[str] | None = None
) -> Edited:
    """One visible manipulation of ``rgb_HWC`` uint8 [H, W, 3], both sides 32 pixels or more.

    ``donors`` are pictures [h, w, 3] that splices take from (they need not be of the same size); without any there are
    no splices. ``kinds`` narrows the draw. The same ``rng`` state gives the same bytes. Raises ``ValueError`` for an
    unknown kind, when none is left, or when the picture is too small for any.
    """
    chosen = tuple(KINDS if kinds is None else kinds)
    unknown = [kind for kind in chosen if kind not in _KINDS]
    usable = [kind for kind in chosen if donors or kind != "splice"]
    if unknown or not usable:
        raise ValueError(f"no kind of edit called {unknown or chosen} that can be made here; there are {KINDS}")
    kind = usable[int(rng.integers(len(usable)))]
    # What this kind cannot visibly change (a clone in a clear sky) gets a caption, which can be seen anywhere.
    for tried in (kind, "caption"):
        for _ in range(ATTEMPTS_MAX):
            share = math.exp(rng.uniform(math.log(AREA_MIN), math.log(AREA_MAX)))
            layer, alpha, donor = _KINDS[tried](rgb_HWC, share, rng, donors)
            out = _blend(rgb_HWC, layer, alpha)
            if _visible(rgb_HWC, out, alpha):
                mask_HW = np.where(alpha > 0, 255, 0).astype(np.uint8)
                return Edited(rgb_HWC=out, mask_HW=mask_HW, kind=tried, donor=donor)
    raise ValueError(f"no visible edit fits into a picture of {rgb_HWC.shape[1]} x {rgb_HWC.shape[0]} pixels")


Alpha = NDArray[np.float32]
_Layer = tuple[Picture, Alpha, int | None]


def _blend(rgb: Picture, layer: Picture, alpha: Alpha) -> Picture:
    left, top, width, height = cv2.boundingRect((alpha > 0).astype(np.uint8))
    inside = np.s_[top : top + height, left : left + width]
    under, share = rgb[inside].astype(np.float32), alpha[inside][..., None]
    out = rgb.copy()
    # Where share is 0 the sum is `under` itself, which is a whole number: untouched to the bit.
    out[inside] = np.rint(under + share * (layer[inside].astype(np.float32) - under)).astype(np.uint8)
    return out


def _visible(before: Picture, after: Picture, alpha: Alpha) -> bool:
    inside = alpha > 0
    if not AREA_MIN * 0.9 <= inside.mean() <= AREA_MAX * 1.1:
        return False
    change = cv2.absdiff(before[inside], after[inside]).max(-1)
    return bool((change >= VISIBLE_STEP).mean() >= VISIBLE_SHARE)


# Regions


def _outline(rng: Rng) -> NDArray[np.float64]:
    """A closed curve [96, 2] around the origin: a wobbling blob, an ellipse or a rounded box."""
    angle = np.linspace(0, 2 * math.pi, 96, endpoint=False)
    shape = rng.choice(["blob", "ellipse", "box"], p=[0.6, 0.2, 0.2])
    radius = np.ones_like(angle)
    if shape == "blob":
        for wave in range(2, 7):
            radius += rng.uniform(0, 0.45 / wave) * np.cos(wave * angle + rng.uniform(0, 2 * math.pi))
    elif shape == "box":
        radius = (np.abs(np.cos(angle)) ** 8 + np.abs(np.sin(angle)) ** 8) ** (-1 / 8)
    stretch = math.exp(rng.uniform(-0.6, 0.6))
    points = np.c_[np.cos(angle) * stretch, np.sin(angle)] * np.maximum(radius, 0.3)[:, None]
    turn = rng.uniform(0, math.pi) if shape != "box" else rng.normal(0, 0.15)
    spin = np.array([[math.cos(turn), -math.sin(turn)], [math.sin(turn), math.cos(turn)]])
    return np.asarray(points @ spin.T)


def _region(rgb: Picture, share: float, rng: Rng) -> Mask:
    """A mask [H, W] of 0 and 255 covering ``share`` of the picture, wholly inside it."""
    height, width = rgb.shape[:2]
    points = _outline(rng).astype(np.float32)
    area = max(share * height * width, AREA_PX_MIN)
    points *= math.sqrt(area / cv2.contourArea(points))
    extent = np.ptp(points, 0)
    points *= min(1.0, float(SIDE_SHARE_MAX * min(width / extent[0], height / extent[1])))
    low, high = points.min(0), points.max(0)
    shift = rng.uniform(-low, np.array([width - 1, height - 1]) - high)
    mask = np.zeros((height, width), np.uint8)
    cv2.fillPoly(mask, [np.rint(points + shift).astype(np.int32)], 255)
    return mask


def _feathered(mask: Mask, rng: Rng) -> Alpha:
    """0 outside the mask, rising to 1 inside it within a few pixels: edits are seldom cut with a knife."""
    feather = float(rng.integers(1, FEATHER_PX_MAX + 1))
    return np.asarray(np.minimum(cv2.distanceTransform(mask, cv2.DIST_L2, 3) / feather, 1), np.float32)


def _box(mask: Mask) -> tuple[int, int, int, int]:
    """left, top, width, height of what is not 0."""
    left, top, width, height = cv2.boundingRect(mask)
    return left, top, width, height


# Kinds


def _splice(rgb: Picture, share: float, rng: Rng, donors: Sequence[Picture]) -> _Layer:
    mask = _region(rgb, share, rng)
    left, top, width, height = _box(mask)
    index = int(rng.integers(len(donors)))
    patch = _window(donors[index], width, height, rng)
    if rng.random() < 0.5:
        patch = np.ascontiguousarray(patch[:, ::-1])
    if rng.random() < 0.5:
        # Half of all forgers match the light of the place.
        around = rgb[top : top + height, left : left + width]
        shift = (around.mean((0, 1)) - patch.mean((0, 1))) * rng.uniform(0.3, 0.8)
        patch = np.clip(patch + shift, 0, 255).astype(np.uint8)
    layer = rgb.copy()
    layer[top : top + height, left : left + width] = patch
    return layer, _feathered(mask, rng), index


def _window(donor: Picture, width: int, height: int, rng: Rng) -> Picture:
    """A random window of the donor at a random scale (never enlarged more than it must be), as width x height."""
    fit = min(donor.shape[1] / width, donor.shape[0] / height)
    zoom = fit * rng.uniform(0.3, 1.0) if fit > 1 else fit
    inner_w, inner_h = max(1, int(width * zoom)), max(1, int(height * zoom))
    left = int(rng.integers(donor.shape[1] - inner_w + 1))
    top = int(rng.integers(donor.shape[0] - inner_h + 1))
    window = donor[top : top + inner_h, left : left + inner_w]
    how = cv2.INTER_AREA if zoom > 1 else cv2.INTER_LINEAR
    return np.asarray(cv2.resize(window, (width, height), interpolation=how), np.uint8)


def _clone(rgb: Picture, share: float, rng: Rng, donors: Sequence[Picture]) -> _Layer:  # noqa: ARG001
    mask = _region(rgb, share, rng)
    left, top, width, height = _box(mask)
    from_left = int(rng.integers(rgb.shape[1] - width + 1))
    from_top = int(rng.integers(rgb.shape[0] - height + 1))
    patch = rgb[from_top : from_top + height, from_left : from_left + width]
    layer = rgb.copy()
    layer[top : top + height, left : left + width] = patch[:, ::-1] if rng.random() < 0.3 else patch
    return layer, _feathered(mask, rng), None


def _removal(rgb: Picture, share: float, rng: Rng, donors: Sequence[Picture]) -> _Layer:  # noqa: ARG001
    mask = _region(rgb, share, rng)
    left, top, width, height = _box(mask)
    edge = 12
    rows = slice(max(0, top - edge), top + height + edge)
    columns = slice(max(0, left - edge), left + width + edge)
    crop, hole = rgb[rows, columns], mask[rows, columns]
    shrink = min(1.0, math.sqrt(INPAINT_PX_MAX / max(1, int((hole > 0).sum()))))
    size = (max(8, round(crop.shape[1] * shrink)), max(8, round(crop.shape[0] * shrink)))
    small_hole = cv2.dilate(
        (cv2.resize(hole, size, interpolation=cv2.INTER_LINEAR) > 0).astype(np.uint8), np.ones((3, 3))
    )
    small = cv2.inpaint(cv2.resize(crop, size, interpolation=cv2.INTER_AREA), small_hole, 4, cv2.INPAINT_TELEA)
    smooth = cv2.resize(small, crop.shape[1::-1], interpolation=cv2.INTER_CUBIC)
    grain = _grain(crop, hole, rng)
    layer = rgb.copy()
    layer[rows, columns] = np.clip(smooth + grain, 0, 255).astype(np.uint8)
    return layer, _feathered(mask, rng), None


def _grain(crop: Picture, hole: Mask, rng: Rng) -> NDArray[np.float32]:
    """Noise as strong as the fine detail around the hole, so that the fill is no flat spot."""
    detail = np.abs(crop.astype(np.float32) - cv2.GaussianBlur(crop, (0, 0), 1.5))[hole == 0]
    strength = float(np.median(detail)) if detail.size else 0.0
    return np.asarray(rng.standard_normal((*crop.shape[:2], 1), dtype=np.float32) * np.float32(strength), np.float32)


def _caption(rgb: Picture, share: float, rng: Rng, donors: Sequence[Picture]) -> _Layer:  # noqa: ARG001
    height, width = rgb.shape[:2]
    bar_w = min(math.sqrt(share * height * width * rng.uniform(3.0, 8.0)), SIDE_SHARE_MAX * width)
    bar_h = min(share * height * width / bar_w, SIDE_SHARE_MAX * height)
    bar_w, bar_h = max(12, round(bar_w)), max(6, round(bar_h))
    left, top = int(rng.integers(max(1, width - bar_w + 1))), int(rng.integers(max(1, height - bar_h + 1)))
    bar = np.s_[top : top + bar_h, left : left + bar_w]
    # The far end of the scale from what is there, so that it can be read.
    light = bool(rgb[bar].mean() < 128)
    ink = tuple(int(part) for part in (rng.integers(200, 256, 3) if light else rng.integers(0, 56, 3)))
    paper = tuple(255 - part for part in ink)
    text, font = _text(rng, bar_w / bar_h), int(rng.choice(_FONTS))
    scale, stroke, (dx, baseline) = _fitted(text, font, bar_w, bar_h, rng.uniform(1.2, 3.0))
    at = (left + dx, top + baseline)
    layer, mask = rgb.copy(), np.zeros((height, width), np.uint8)
    if rng.random() < 0.5:
        # A light bar over a dark place, or the reverse: the bar is what stands out.
        mask[bar] = 255
        layer[bar] = ink
        cv2.putText(layer, text, at, font, scale, paper, stroke, cv2.LINE_AA)
    else:
        cv2.putText(mask, text, at, font, scale, 255, stroke + 2, cv2.LINE_8)
        layer[mask > 0] = paper
        cv2.putText(layer, text, at, font, scale, ink, stroke, cv2.LINE_AA)
    return layer, np.asarray(mask > 0, np.float32), None


def _fitted(text: str, font: int, width: int, height: int, weight: float) -> tuple[float, int, tuple[int, int]]:
    """Scale, stroke and place (x, baseline) of a text centred in a box; strokes widen it, so it is measured twice."""
    scale, stroke = 1.0, 1
    for _ in range(2):
        (text_w, text_h), below = cv2.getTextSize(text, font, scale, stroke)
        scale *= min(width * 0.92 / max(text_w, 1), height * 0.88 / max(text_h + below, 1))
        stroke = max(1, round(scale * weight))
    (text_w, text_h), below = cv2.getTextSize(text, font, scale, stroke)
    return scale, stroke, (round((width - text_w) / 2), round((height + text_h - below) / 2))


def _text(rng: Rng, aspect: float) -> str:
    words = [str(word) for word in rng.choice(_WORDS, max(1, round(aspect / 2.5)))]
    return " ".join(words)


def _recolour(rgb: Picture, share: float, rng: Rng, donors: Sequence[Picture]) -> _Layer:  # noqa: ARG001
    mask = _region(rgb, share, rng)
    left, top, width, height = _box(mask)
    box = np.s_[top : top + height, left : left + width]
    lab = np.asarray(cv2.cvtColor(rgb[box].astype(np.float32) / np.float32(255), cv2.COLOR_RGB2LAB), np.float32)
    turn, push = rng.uniform(0.5 * math.pi, 1.5 * math.pi), rng.uniform(25, 60)
    a, b = lab[..., 1].copy(), lab[..., 2].copy()
    lab[..., 1] = a * math.cos(turn) - b * math.sin(turn) + push * math.cos(turn)
    lab[..., 2] = a * math.sin(turn) + b * math.cos(turn) + push * math.sin(turn)
    layer = rgb.copy()
    layer[box] = np.rint(np.clip(cv2.cvtColor(lab, cv2.COLOR_LAB2RGB), 0, 1) * 255).astype(np.uint8)
    return layer, _feathered(mask, rng), None


def _mosaic(rgb: Picture, share: float, rng: Rng, donors: Sequence[Picture]) -> _Layer:  # noqa: ARG001
    mask = _region(rgb, share, rng)
    left, top, inner_w, inner_h = _box(mask)
    block = max(4, round(min(inner_w, inner_h) * rng.uniform(0.12, 0.3)))
    crop = rgb[top : top + inner_h, left : left + inner_w]
    few = cv2.resize(crop, (max(1, inner_w // block), max(1, inner_h // block)), interpolation=cv2.INTER_AREA)
    layer = rgb.copy()
    layer[top : top + inner_h, left : left + inner_w] = cv2.resize(
        few, (inner_w, inner_h), interpolation=cv2.INTER_NEAREST
    )
    return layer, np.asarray(mask > 0, np.float32), None


_KINDS: dict[str, Callable[[Picture, float, Rng, Sequence[Picture]], _Layer]] = {
    "splice": _splice,
    "clone": _clone,
    "removal": _removal,
    "caption": _caption,
    "recolour": _recolour,
    "mosaic": _mosaic,
}
KINDS: tuple[str, ...] = tuple(_KINDS)
