"""Drawing for reports: a light page, text in one face, lines without jags. Pillow alone; lengths are in pixels."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from stemma.vision.geometry import Picture

SCALE = 2
"""Drawn so many times larger and reduced: Pillow draws jagged lines."""
PAPER, INK, FAINT, RULE = "#ffffff", "#1f2933", "#7b8794", "#e4e7eb"
COLOURS = ("#2563eb", "#ea580c", "#16a34a", "#9333ea", "#dc2626", "#0891b2", "#a16207", "#db2777", "#4b5563", "#65a30d")
TICKS = 5
Point = tuple[float, float]


class Canvas:
    """A page of ``width`` x ``height``; origin top left."""

    def __init__(self, width: int, height: int) -> None:
        self.size = (width, height)
        self._image = Image.new("RGB", (width * SCALE, height * SCALE), PAPER)
        self._draw = ImageDraw.Draw(self._image)

    def text(self, at: Point, words: str, *, size: int = 13, colour: str = INK, anchor: str = "la") -> None:
        """One line of text; ``anchor`` as Pillow names it: la is left, ascender; mm the middle."""
        self._draw.text(_up(at), words, fill=colour, font=_font(size), anchor=anchor)

    def width_of(self, words: str, *, size: int = 13) -> float:
        return float(_font(size).getlength(words)) / SCALE

    def line(self, points: Sequence[Point], *, colour: str, width: float = 1.5) -> None:
        self._draw.line([_up(point) for point in points], fill=colour, width=round(width * SCALE), joint="curve")

    def rectangle(self, low: Point, high: Point, *, fill: str | None = None, outline: str | None = None) -> None:
        self._draw.rectangle([_up(low), _up(high)], fill=fill, outline=outline, width=SCALE)

    def picture(self, at: Point, rgb_HWC: Picture, *, side: int) -> None:
        """A picture, enlarged to a square of ``side``."""
        shown = Image.fromarray(rgb_HWC).resize((side * SCALE, side * SCALE), Image.Resampling.BICUBIC)
        self._image.paste(shown, (round(at[0] * SCALE), round(at[1] * SCALE)))

    def save(self, path: Path) -> None:
        """A PNG, written beside and renamed."""
        beside = path.with_name(path.name + ".new")
        self._image.resize(self.size, Image.Resampling.LANCZOS).save(beside, "PNG")
        beside.replace(path)


def _up(point: Point) -> Point:
    return point[0] * SCALE, point[1] * SCALE


def _font(size: int) -> ImageFont.FreeTypeFont:
    font = ImageFont.load_default(size * SCALE)
    assert isinstance(font, ImageFont.FreeTypeFont), "Pillow's wheels bring FreeType"
    return font


@dataclass(frozen=True, slots=True, kw_only=True)
class Series:
    """One line of a panel."""

    name: str
    x_N: NDArray[np.float64]
    y_N: NDArray[np.float64]
    raw_N: NDArray[np.float64] | None = None
    """Drawn faintly behind it, where ``y_N`` is smoothed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Panel:
    """A chart: a title, lines over ``x``, a legend."""

    title: str
    series: tuple[Series, ...]
    x: str = "step"
    low: float | None = None
    high: float | None = None
    """Ends of the y axis; None: from the lines."""
    mark: float | None = None
    """A place on the x axis that is pointed out."""


def draw(canvas: Canvas, panel: Panel, at: Point, size: tuple[float, float]) -> None:
    """A panel with its axes, in the box at ``at``."""
    canvas.text((at[0] + 8, at[1] + 6), panel.title, size=16)
    legend = _legend(canvas, panel, (at[0] + 8, at[1] + 32), size[0] - 16)
    left, top, right, bottom = at[0] + 58, legend + 14, at[0] + size[0] - 18, at[1] + size[1] - 44
    x_ticks, y_ticks = _ticks(*_range(panel, "x")), _ticks(*_y_range(panel))
    (x0, x1), (y0, y1) = _range(panel, "x"), (min(y_ticks[0], _y_range(panel)[0]), max(y_ticks[-1], _y_range(panel)[1]))

    def place(x: float, y: float) -> Point:
        return left + (x - x0) / (x1 - x0) * (right - left), bottom - (y - y0) / (y1 - y0) * (bottom - top)

    for tick in y_ticks:
        height = place(x0, tick)[1]
        canvas.line([(left, height), (right, height)], colour=RULE, width=1)
        canvas.text((left - 8, height), _label(tick), size=12, colour=FAINT, anchor="rm")
    for tick in x_ticks:
        if x0 <= tick <= x1:
            canvas.text((place(tick, y0)[0], bottom + 6), _label(tick), size=12, colour=FAINT, anchor="ma")
    canvas.line([(left, bottom), (right, bottom)], colour=FAINT, width=1)
    canvas.text(((left + right) / 2, bottom + 24), panel.x, size=12, colour=FAINT, anchor="ma")
    if panel.mark is not None:
        across = place(panel.mark, y0)[0]
        canvas.line([(across, top), (across, bottom)], colour=FAINT, width=1)
    for number, series in enumerate(panel.series):
        colour = COLOURS[number % len(COLOURS)]
        for values, shade, width in ((series.raw_N, _pale(colour), 1.0), (series.y_N, colour, 2.0)):
            if values is not None:
                # above the top of the axis a line would run into the title
                points = [place(x, min(max(y, y0), y1)) for x, y in zip(series.x_N, values, strict=True)]
                _curve(canvas, points, shade, width)


def _curve(canvas: Canvas, points: list[Point], colour: str, width: float) -> None:
    if len(points) == 1:
        ((x, y),) = points
        points = [(x - 3, y), (x + 3, y)]
    canvas.line(points, colour=colour, width=width)


def _legend(canvas: Canvas, panel: Panel, at: Point, width: float) -> float:
    """Names and colours, in as many rows as they take; the height that they end at."""
    x, y = at
    for number, series in enumerate(panel.series):
        needed = canvas.width_of(series.name, size=12) + 34
        if x + needed > at[0] + width:
            x, y = at[0], y + 16
        canvas.line([(x, y + 7), (x + 14, y + 7)], colour=COLOURS[number % len(COLOURS)], width=3)
        canvas.text((x + 19, y), series.name, size=12)
        x += needed
    return y + 16


def _range(panel: Panel, axis: str) -> tuple[float, float]:
    values = np.concatenate([getattr(series, f"{axis}_N") for series in panel.series])
    low, high = float(values.min()), float(values.max())
    return (low, high) if high > low else (low - 0.5, high + 0.5)


def _y_range(panel: Panel) -> tuple[float, float]:
    low, high = _range(panel, "y")
    return (low if panel.low is None else panel.low), (high if panel.high is None else panel.high)


def _ticks(low: float, high: float) -> list[float]:
    """Round numbers from at or below ``low`` to at or above ``high``."""
    rough = (high - low) / TICKS
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(factor * power for factor in (1, 2, 2.5, 5, 10) if factor * power >= rough * 0.999)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [number * step for number in range(first, last + 1)]


def _label(value: float) -> str:
    if value and not 1e-3 <= abs(value) < 1e5:
        return f"{value:.1e}".replace("e-0", "e-").replace("e+0", "e")
    return f"{value:,.4f}".rstrip("0").rstrip(".")


def _pale(colour: str) -> str:
    parts = (int(colour[place : place + 2], 16) for place in (1, 3, 5))
    return "#" + "".join(f"{round(255 - 0.35 * (255 - part)):02x}" for part in parts)
