"""Drawing for ``plots``: a card of SVG, with marks, axes and text in one calm style.

The card has its own pale ground, so it reads alike on a light and on a dark page, and needs no font but the reader's.
Coordinates are pixels of the card, x to the right, y down. Text from outside is escaped.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from html import escape
from typing import Literal

INK, SOFT, LINE, GROUND = "#1f2937", "#64748b", "#e2e8f0", "#ffffff"
BLUE, AMBER = "#3b6ea8", "#c9772b"
"""Two hues that stay apart for colour-blind readers, and in grey."""
FONT = "system-ui, -apple-system, 'Segoe UI', Helvetica, Arial, sans-serif"
MARGIN_PX = 28

Anchor = Literal["start", "middle", "end"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Scale:
    """Values from ``low`` to ``high`` along pixels from ``start`` to ``end``, evenly or by their logarithm."""

    low: float
    high: float
    start: float
    end: float
    log: bool = False

    def __call__(self, value: float) -> float:
        """The pixel of a value; what lies outside is drawn at the edge."""
        low, high = self.low, self.high
        value = min(max(value, low), high)
        if self.log:
            low, high, value = math.log(low), math.log(high), math.log(value)
        return self.start + (self.end - self.start) * (value - low) / (high - low)


@dataclass(slots=True)
class Card:
    """One figure. Everything is drawn over what was drawn before."""

    width: float
    height: float
    marks: list[str] = field(default_factory=list)

    def text(
        self,
        x: float,
        y: float,
        words: str,
        *,
        size: float = 12,
        fill: str = INK,
        anchor: Anchor = "start",
        bold: bool = False,
    ) -> None:
        weight = ' font-weight="600"' if bold else ""
        self.marks.append(
            f'<text x="{x:.1f}" y="{y:.1f}" font-size="{size:g}" fill="{fill}" text-anchor="{anchor}"{weight}>'
            f"{escape(words)}</text>"
        )

    def title(self, words: str, under: str) -> None:
        self.text(MARGIN_PX, 36, words, size=16, bold=True)
        self.text(MARGIN_PX, 56, under, fill=SOFT)

    def line(self, x0: float, y0: float, x1: float, y1: float, *, stroke: str = LINE, width: float = 1) -> None:
        self.marks.append(
            f'<line x1="{x0:.1f}" y1="{y0:.1f}" x2="{x1:.1f}" y2="{y1:.1f}" stroke="{stroke}" '
            f'stroke-width="{width:g}" stroke-linecap="round"/>'
        )

    def rect(
        self,
        x: float,
        y: float,
        width: float,
        height: float,
        *,
        fill: str,
        opacity: float = 1.0,
        radius: float = 0,
        about: str = "",
    ) -> None:
        """``about`` is shown by a browser when the mark is pointed at."""
        self.marks.append(
            f'<rect x="{x:.1f}" y="{y:.1f}" width="{max(0.0, width):.1f}" height="{max(0.0, height):.1f}" '
            f'rx="{radius:g}" fill="{fill}" fill-opacity="{opacity:.3g}"' + _closed("rect", about)
        )

    def dot(self, x: float, y: float, radius: float, *, fill: str, opacity: float = 1.0, about: str = "") -> None:
        self.marks.append(
            f'<circle cx="{x:.1f}" cy="{y:.1f}" r="{radius:.1f}" fill="{fill}" fill-opacity="{opacity:.3g}"'
            + _closed("circle", about)
        )

    def legend(self, x: float, y: float, entries: Sequence[tuple[str, str]]) -> None:
        """(colour, name), ending at ``x``."""
        for colour, name in reversed(entries):
            x -= 6.3 * len(name)
            self.text(x, y, name, fill=SOFT)
            self.dot(x - 9, y - 4, 4, fill=colour)
            x -= 30

    def rows(self, scale: Scale, ticks: Sequence[float], left: float, right: float) -> None:
        """Horizontal rules at the ticks of a vertical scale, named on the left."""
        for tick in ticks:
            self.line(left, scale(tick), right, scale(tick))
            self.text(left - 8, scale(tick) + 4, f"{tick:g}", fill=SOFT, anchor="end")

    def svg(self) -> str:
        """The figure as a file."""
        width, height = f"{self.width:g}", f"{self.height:g}"
        return "\n".join(
            [
                f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" '
                f'height="{height}" font-family="{FONT}" font-size="12">',
                f'<rect x="0.5" y="0.5" width="{self.width - 1:g}" height="{self.height - 1:g}" rx="12" '
                f'fill="{GROUND}" stroke="{LINE}"/>',
                *self.marks,
                "</svg>\n",
            ]
        )


def _closed(mark: str, about: str) -> str:
    return f"><title>{escape(about)}</title></{mark}>" if about else "/>"
