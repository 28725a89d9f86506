"""Edits that draw over a picture (``caption``): two lettering engines, stickers, frames and marks.

A tool takes (picture, share of it to change, rng, donors) and returns a ``regions.Layer``.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from stemma.vision.geometry import Picture
from stemma.vision.regions import AREA_PX_MIN, SIDE_SHARE_MAX, Alpha, Box, Layer, Rng, solid

_WORDS = (
    *("NOW", "LIVE", "BREAKING", "before", "after", "WOW", "real", "fake", "2019"),
    *("never", "again", "read", "this", "please", "share", "city", "sale"),
)
_FONTS = (cv2.FONT_HERSHEY_SIMPLEX, cv2.FONT_HERSHEY_DUPLEX, cv2.FONT_HERSHEY_TRIPLEX)

FONT_PX_MIN, FONT_PX_MAX = 6, 400
FINE = 4
"""Stickers are drawn this much larger and averaged down, for smooth edges."""

Colour = tuple[int, int, int]


def caption_hershey(rgb: Picture, share: float, rng: Rng, donors: Sequence[Picture]) -> Layer:  # noqa: ARG001
    """OpenCV's lettering on an opaque bar, or outlined."""
    at = _bar(rgb, share, rng)
    ink, paper = _inks(rgb, at, rng)
    text, font = _text(rng, at.width / at.height), int(rng.choice(_FONTS))
    scale, stroke, (dx, baseline) = _fitted(text, font, at.width, at.height, rng.uniform(1.2, 3.0))
    start = (at.left + dx, at.top + baseline)
    layer, mask = rgb.copy(), np.zeros(rgb.shape[:2], np.uint8)
    if rng.random() < 0.5:
        # A light bar over a dark place, or the reverse: the bar is what stands out.
        mask[at.slices] = 255
        layer[at.slices] = ink
        cv2.putText(layer, text, start, font, scale, paper, stroke, cv2.LINE_AA)
    else:
        cv2.putText(mask, text, start, font, scale, 255, stroke + 2, cv2.LINE_8)
        layer[mask > 0] = paper
        cv2.putText(layer, text, start, font, scale, ink, stroke, cv2.LINE_AA)
    return Layer(layer, solid(mask))


def caption_truetype(rgb: Picture, share: float, rng: Rng, donors: Sequence[Picture]) -> Layer:  # noqa: ARG001
    """Pillow's lettering: on a translucent bar, with a rim around its letters, or bare."""
    at = _bar(rgb, share, rng)
    ink, paper = _inks(rgb, at, rng)
    text = _text(rng, at.width / at.height)
    style = str(rng.choice(["bar", "rim", "bare"]))
    font = _font(at, text)
    rim = max(1, round(font.size * rng.uniform(0.04, 0.1))) if style == "rim" else 0
    letters, edges = _lettering(at, text, font, 0), _lettering(at, text, font, rim)
    behind = paper if style == "rim" else (ink if rng.random() < 0.5 else paper)
    if style == "bar":
        letters_on = tuple(255 - part for part in behind)
        patch, cover = _mixed(behind, letters_on, letters), np.maximum(letters, np.float32(rng.uniform(0.55, 0.95)))
    else:
        patch, cover = _mixed(paper, ink, letters if style == "rim" else np.ones_like(letters)), edges
    layer, alpha = rgb.copy(), np.zeros(rgb.shape[:2], np.float32)
    layer[at.slices], alpha[at.slices] = patch, cover
    return Layer(layer, alpha)


def caption_sticker(rgb: Picture, share: float, rng: Rng, donors: Sequence[Picture]) -> Layer:  # noqa: ARG001
    """A flat coloured shape: a face, heart, star, arrow, cross or disc, turned a little."""
    height, width = rgb.shape[:2]
    side = math.sqrt(max(share * height * width, AREA_PX_MIN) / 0.6)
    side_px = max(8, min(round(side), int(SIDE_SHARE_MAX * min(width, height))))
    left, top = int(rng.integers(width - side_px + 1)), int(rng.integers(height - side_px + 1))
    at = Box(left, top, side_px, side_px)
    first, second = _vivid(rng), _vivid(rng)
    patch, cover = _sticker(str(rng.choice(_STICKERS)), side_px, rng.normal(0, 15), first, second)
    layer, alpha = rgb.copy(), np.zeros((height, width), np.float32)
    layer[at.slices], alpha[at.slices] = patch, cover
    return Layer(layer, alpha)


def caption_frame(rgb: Picture, share: float, rng: Rng, donors: Sequence[Picture]) -> Layer:  # noqa: ARG001
    """A line around a part of the picture, or around most of it: a rectangle, rounded or not, or an ellipse."""
    height, width = rgb.shape[:2]
    area = max(share * height * width, AREA_PX_MIN)
    longest = 2 * SIDE_SHARE_MAX * (width + height)
    thick = max(2.0, min(width, height) * rng.uniform(0.008, 0.03), area / longest)
    half = area / thick / 2
    aspect = rng.uniform(0.35, 0.65)
    wide = min(max(half * aspect, 3 * thick), SIDE_SHARE_MAX * width)
    high = min(max(half - wide, 3 * thick), SIDE_SHARE_MAX * height)
    at = Box(
        int(rng.integers(max(1, width - int(wide)))),
        int(rng.integers(max(1, height - int(high)))),
        int(wide),
        int(high),
    )
    cover = np.zeros((height * 2, width * 2), np.uint8)
    inner = thick / 2
    x0, y0, x1, y1 = (
        round(2 * part)
        for part in (at.left + inner, at.top + inner, at.left + at.width - inner, at.top + at.height - inner)
    )
    if rng.random() < 0.3:
        centre, axes = ((x0 + x1) // 2, (y0 + y1) // 2), (max(1, (x1 - x0) // 2), max(1, (y1 - y0) // 2))
        cv2.ellipse(cover, centre, axes, 0, 0, 360, 255, round(2 * thick), cv2.LINE_8)
    else:
        cv2.rectangle(cover, (x0, y0), (x1, y1), 255, round(2 * thick), cv2.LINE_8)
    alpha = cv2.resize(cover, (width, height), interpolation=cv2.INTER_AREA).astype(np.float32) / np.float32(255)
    layer = np.empty_like(rgb)
    layer[:] = _vivid(rng)
    return Layer(layer, alpha)


def _bar(rgb: Picture, share: float, rng: Rng) -> Box:
    height, width = rgb.shape[:2]
    bar_w = min(math.sqrt(share * height * width * rng.uniform(3.0, 8.0)), SIDE_SHARE_MAX * width)
    bar_h = min(share * height * width / bar_w, SIDE_SHARE_MAX * height)
    bar_w, bar_h = max(12, round(bar_w)), max(6, round(bar_h))
    left, top = int(rng.integers(max(1, width - bar_w + 1))), int(rng.integers(max(1, height - bar_h + 1)))
    return Box(left, top, bar_w, bar_h)


def _inks(rgb: Picture, at: Box, rng: Rng) -> tuple[Colour, Colour]:
    """Two opposite colours, the first at the far end of the scale from what is there, so that it can be read."""
    light = bool(rgb[at.slices].mean() < 128)
    red, green, blue = (int(part) for part in (rng.integers(200, 256, 3) if light else rng.integers(0, 56, 3)))
    return (red, green, blue), (255 - red, 255 - green, 255 - blue)


def _vivid(rng: Rng) -> Colour:
    """Any hue in full colour, or white or black."""
    if rng.random() < 0.25:
        level = int(rng.choice([0, 255]))
        return (level, level, level)
    hsv = np.array([[[rng.integers(180), rng.integers(190, 256), rng.integers(170, 256)]]], np.uint8)
    red, green, blue = (int(part) for part in cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB)[0, 0])
    return (red, green, blue)


def _text(rng: Rng, aspect: float) -> str:
    words = [str(word) for word in rng.choice(_WORDS, max(1, round(aspect / 2.5)))]
    return " ".join(words)


def _fitted(text: str, font: int, width: int, height: int, weight: float) -> tuple[float, int, tuple[int, int]]:
    """Scale, stroke and place (x, baseline) of a text centred in a box; strokes widen it, so it is measured twice."""
    scale, stroke = 1.0, 1
    for _ in range(2):
        (text_w, text_h), below = cv2.getTextSize(text, font, scale, stroke)
        scale *= min(width * 0.92 / max(text_w, 1), height * 0.88 / max(text_h + below, 1))
        stroke = max(1, round(scale * weight))
    (text_w, text_h), below = cv2.getTextSize(text, font, scale, stroke)
    return scale, stroke, (round((width - text_w) / 2), round((height + text_h - below) / 2))


@functools.lru_cache(maxsize=64)
def _font_of(size_px: int) -> ImageFont.FreeTypeFont:
    font = ImageFont.load_default(size_px)
    assert isinstance(font, ImageFont.FreeTypeFont)  # the pinned Pillow is built with FreeType
    return font


def _font(at: Box, text: str) -> ImageFont.FreeTypeFont:
    """Pillow's own font, as large as the box takes."""
    per_px = _font_of(100).getlength(text) / 100
    size = min(at.width * 0.92 / per_px, at.height * 0.8)
    return _font_of(min(max(round(size), FONT_PX_MIN), FONT_PX_MAX))


def _lettering(at: Box, text: str, font: ImageFont.FreeTypeFont, rim_px: int) -> Alpha:
    """How much of each pixel of the box the letters cover, thickened by ``rim_px``."""
    canvas = Image.new("L", (at.width, at.height))
    middle = (at.width / 2, at.height / 2)
    ImageDraw.Draw(canvas).text(middle, text, fill=255, font=font, anchor="mm", stroke_width=rim_px)
    return np.asarray(canvas, np.float32) / np.float32(255)


def _mixed(behind: Sequence[int], front: Sequence[int], cover: Alpha) -> Picture:
    low, high = np.array(behind, np.float32), np.array(front, np.float32)
    return np.rint(low + cover[..., None] * (high - low)).astype(np.uint8)


_STICKERS = ("face", "heart", "star", "arrow", "cross", "disc")


def _sticker(name: str, side: int, degrees: float, first: Colour, second: Colour) -> tuple[Picture, Alpha]:
    """(picture, cover) of a shape that fills a square of ``side`` pixels."""
    fine = side * FINE
    turn = cv2.getRotationMatrix2D((0.5, 0.5), degrees, 0.8)
    body, marks = np.zeros((fine, fine), np.uint8), np.zeros((fine, fine), np.uint8)

    def fill(on: NDArray[np.uint8], points: Sequence[tuple[float, float]]) -> None:
        turned = np.array(points) @ turn[:, :2].T + turn[:, 2]
        cv2.fillPoly(on, [np.rint(turned * fine).astype(np.int32)], 255)

    if name in ("face", "disc"):
        fill(body, _arc(0.5, 0.5, 0.5, 0, 360))
    if name == "face":
        for x in (0.33, 0.67):
            fill(marks, _arc(x, 0.38, 0.07, 0, 360))
        fill(marks, _arc(0.5, 0.55, 0.28, 0, 180))
    elif name == "disc":
        fill(marks, _arc(0.5, 0.5, 0.3, 0, 360))
    elif name == "heart":
        angle = np.linspace(0, 2 * math.pi, 64)
        wave = 13 * np.cos(angle) - 5 * np.cos(2 * angle) - 2 * np.cos(3 * angle) - np.cos(4 * angle)
        fill(body, np.c_[0.5 + np.sin(angle) ** 3 * 0.5, 0.45 - wave / 32].tolist())
    elif name == "star":
        spokes = np.arange(10) * math.pi / 5 - math.pi / 2
        radius = np.where(np.arange(10) % 2, 0.28, 0.56)
        fill(body, np.c_[0.5 + radius * np.cos(spokes), 0.5 + radius * np.sin(spokes)].tolist())
    elif name == "arrow":
        fill(body, [(0, 0.3), (0.5, 0.3), (0.5, 0.0), (1, 0.5), (0.5, 1), (0.5, 0.7), (0, 0.7)])
    elif name == "cross":
        fill(body, [(0, 0.15), (0.15, 0), (1, 0.85), (0.85, 1)])
        fill(body, [(0.85, 0), (1, 0.15), (0.15, 1), (0, 0.85)])
    cover, inner = (
        cv2.resize(one, (side, side), interpolation=cv2.INTER_AREA).astype(np.float32) / np.float32(255)
        for one in (body, marks)
    )
    return _mixed(first, second, inner), cover


def _arc(x: float, y: float, radius: float, start: float, end: float) -> list[tuple[float, float]]:
    angles = np.radians(np.linspace(start, end, 48))
    points: list[tuple[float, float]] = np.c_[x + radius * np.cos(angles), y + radius * np.sin(angles)].tolist()
    return points
