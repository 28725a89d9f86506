"""The curves of a run, from its log: loss and its parts, what validation said, learning rate and speed.

RUN/curves.png
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from training import loop
from training.canvas import FAINT, Canvas, Panel, Series, draw
from training.loop import Entry

FILE = "curves.png"
SIZE = (640, 400)
"""Of one panel."""
MARGIN, HEAD = 20, 64
PANELS_MAX = 4
POINTS_MAX = 1_500
"""Drawn of a line; more would lie on the same pixels."""
SMOOTHED_SHARE = 0.02
"""Of a run's steps, over which its lines are averaged."""
PARTS = ("classes", "grid", "map", "overlap")
SPIKE = 0.99
"""Quantile above which a loss is cut off by the top of its panel."""


def write(folder: Path, title: str, items: int, unit: str) -> Path | None:
    """Draw a run's curves from its log; None where it has made no step yet."""
    entries = loop.log(folder)
    steps = [entry for entry in entries if "loss" in entry]
    if not steps:
        return None
    found = [entry for entry in entries if "validation" in entry]
    panels = [panel for panel in _panels(steps, found, items, unit) if panel.series][:PANELS_MAX]
    rows = -(-len(panels) // 2)
    canvas = Canvas(2 * SIZE[0] + 3 * MARGIN, HEAD + rows * (SIZE[1] + MARGIN))
    canvas.text((MARGIN + 8, 18), title, size=20)
    seconds = sum(entry["step_s"] + entry["data_s"] for entry in steps)
    told = f"{steps[-1]['t']:,} steps, {items * len(steps):,} {unit}, {seconds / 60:,.0f} minutes of steps"
    canvas.text((MARGIN + 8, 44), told, size=13, colour=FAINT)
    for number, panel in enumerate(panels):
        row, column = divmod(number, 2)
        at = (MARGIN + column * (SIZE[0] + MARGIN), HEAD + row * (SIZE[1] + MARGIN))
        draw(canvas, panel, at, SIZE)
    canvas.save(folder / FILE)
    return folder / FILE


def _panels(steps: Sequence[Entry], found: Sequence[Entry], items: int, unit: str) -> list[Panel]:
    def series(name: str, value: Callable[[Entry], float]) -> Series:
        x_N = np.array([entry["t"] for entry in steps], np.float64)
        raw_N = np.array([value(entry) for entry in steps], np.float64)
        keep_N = np.unique(np.linspace(0, len(x_N) - 1, min(POINTS_MAX, len(x_N))).astype(int))
        smooth_N = _smoothed(raw_N)[keep_N]
        return Series(name=name, x_N=x_N[keep_N], y_N=smooth_N, raw_N=raw_N[keep_N])

    loss = series("loss", lambda entry: float(entry["loss"]))
    parts = tuple(
        _bare(series(name, lambda entry, name=name: float(entry[name])))  # type: ignore[misc]
        for name in PARTS
        if name in steps[0]
    )
    rate = series("learning rate", lambda entry: float(entry["rate"]))
    assert rate.raw_N is not None
    # known, not measured: nothing to average
    rate = Series(name=rate.name, x_N=rate.x_N, y_N=rate.raw_N)
    speed = series(f"{unit} a second", lambda entry: items / max(1e-4, entry["step_s"] + entry["data_s"]))
    scores = _validations(found)
    best = max(found, key=lambda entry: float(entry["validation"]["score"]), default=None)
    return [
        Panel(title="Loss, and its mean over 2% of the run", series=(loss,), high=_top(loss)),
        Panel(
            title="" if best is None else f"Validation, best score {best['validation']['score']:.3f} at {best['t']:,}",
            series=scores,
            high=1.0,
            mark=None if best is None else float(best["t"]),
        ),
        Panel(title="Parts of the loss", series=parts, low=0.0),
        Panel(title="Learning rate", series=(rate,), low=0.0),
        Panel(title=f"Speed, {unit} a second", series=(_bare(speed),), low=0.0),
    ]


def _validations(found: Sequence[Entry]) -> tuple[Series, ...]:
    x_N = np.array([entry["t"] for entry in found], np.float64)
    names = [name for name in (found[0]["validation"] if found else ()) if name != "pairs"]
    # the score first: it is what chooses
    names.sort(key=lambda name: name != "score")
    return tuple(
        Series(name=name, x_N=x_N, y_N=np.array([entry["validation"].get(name, 0.0) for entry in found]))
        for name in names
    )


def _bare(series: Series) -> Series:
    return Series(name=series.name, x_N=series.x_N, y_N=series.y_N)


def _top(series: Series) -> float | None:
    """The height of all but a few spikes."""
    assert series.raw_N is not None
    return max(float(np.quantile(series.raw_N, SPIKE)), float(series.y_N.max()))


def _smoothed(values_N: NDArray[np.float64]) -> NDArray[np.float64]:
    """The mean of each value and the ones before it, over ``SMOOTHED_SHARE`` of all."""
    size = max(1, round(SMOOTHED_SHARE * len(values_N)))
    sums_N = np.concatenate([[0.0], np.cumsum(values_N)])
    ends_N = np.arange(1, len(values_N) + 1)
    starts_N = np.maximum(0, ends_N - size)
    return np.asarray((sums_N[ends_N] - sums_N[starts_N]) / (ends_N - starts_N))
