"""Figures as cells of a Markdown table: a share or a mean with what is known of its error, or a bare number."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any


def value_of(figure: Any) -> float:
    return float(figure["share" if "share" in figure else "mean"] if isinstance(figure, dict) else figure)


def told(figure: Any, digits: int = 3) -> str:
    """The figure with what is known of its error."""
    value = f"{value_of(figure):.{digits}f}"
    if not isinstance(figure, dict):
        return value
    if "upper_95" in figure:
        return (
            f"{value} ({round(figure['share'] * figure['n'])} of {figure['n']}, upper bound {figure['upper_95']:.3f})"
        )
    return f"{value} [{figure['low']:.{digits}f}, {figure['high']:.{digits}f}]"


def count_of(figure: Any) -> str:
    return str(figure["n"]) if isinstance(figure, dict) else ""


def table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [heads, ["---"] * len(heads), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
