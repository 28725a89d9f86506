"""Figures as Markdown tables, each beside what was asked of it, so that docs/results.md holds no number typed by hand.

stemma evaluate quick --set out/quick --json > quick.json
stemma evaluate tables quick.json pairs.json bench.json --into docs/results.md
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from evaluation.verdicts import SETS, VERDICTS
from stemma.errors import BadRequest

BEGIN = "<!-- written by `stemma evaluate tables`, from here -->"
END = "<!-- to here -->"
NONE = ""


class Bar(NamedTuple):
    """What was asked of one figure."""

    name: str
    path: str
    """Where it is in the JSON, keys joined by dots."""
    value: float
    at_most: bool = False


BARS = (
    Bar("original first, benign", "retrieval.benign.IR@1", 0.99),
    Bar("original first, manip", "retrieval.manip.IR@1", 0.99),
    Bar("original first, both", "retrieval.both.IR@1", 0.985),
    Bar("verdict right, benign", "verdict.benign", 0.95),
    Bar("verdict right, manip", "verdict.manip", 0.96),
    Bar("verdict right, both", "verdict.both", 0.88),
    Bar("verdict right, unknown", "verdict.unknown", 0.97),
    Bar("falsely accused benign queries", "falsely_accused", 0.03, at_most=True),
    Bar("heatmap IoU, manip", "heatmap_iou.manip", 0.68),
    Bar("heatmap IoU, both", "heatmap_iou.both", 0.55),
    Bar("real and synthetic pairs: manipulated", "pairs.manipulated", 0.85),
    Bar("real and synthetic pairs: heatmap IoU", "pairs.heatmap_iou", 0.50),
    Bar("expected calibration error", "ece", 0.05, at_most=True),
    Bar("cost of a pair against dense flow at 224 px", "ratio", 0.4, at_most=True),
)


def merged(files: Sequence[Path]) -> dict[str, Any]:
    """One object of several JSON files, the later the stronger. Raises ``BadRequest`` for a file that holds none."""
    result: dict[str, Any] = {}
    for path in files:
        try:
            read = json.loads(path.read_text(encoding="utf-8"))
        except ValueError as error:
            raise BadRequest(f"not JSON: {error}", subject=str(path)) from error
        if not isinstance(read, dict):
            raise BadRequest("these figures are one JSON object", subject=str(path))
        result.update(read)
    return result


def tables(result: dict[str, Any]) -> str:
    """All tables for which there are figures."""
    parts = [_bars(result)]
    if "verdict" in result:
        parts += [_verdicts(result), _areas(result), _confusion(result), _precision(result)]
    if "pairs" in result:
        parts.append(_pairs(result["pairs"]))
    return "\n\n".join(part for part in parts if part)


def fill(path: Path, written: str) -> None:
    """Replace what stands between the two marks of a Markdown file. Raises ``BadRequest`` when they are not there."""
    text = path.read_text(encoding="utf-8")
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not (begin and end):
        raise BadRequest(f"no {BEGIN} ... {END} in it", subject=str(path))
    path.write_text(f"{before}{BEGIN}\n\n{written}\n\n{END}{after}", encoding="utf-8")


def _bars(result: dict[str, Any]) -> str:
    rows = []
    for bar in BARS:
        figure = _at(result, bar.path)
        if figure is not None:
            value = _value(figure)
            met = value <= bar.value if bar.at_most else value >= bar.value
            asked = f"at most {bar.value:g}" if bar.at_most else f"{bar.value:g}"
            rows.append([bar.name, asked, _told(figure), _n(figure), "yes" if met else "**no**"])
    return _table(["figure", "asked", "reached", "n", "met"], rows) if rows else NONE


def _verdicts(result: dict[str, Any]) -> str:
    rows = [
        [name, _told(result["verdict"][name]), _told(result["forced"][name]), _n(result["verdict"][name])]
        for name in SETS
    ]
    words = (
        f"Abstained on {_told(result['abstained'])} of {result['abstained']['n']} queries; "
        f"{result['left_out']} edited queries show nothing of their edit and are left out."
    )
    return _table(["queries", "verdict right", "without abstaining", "n"], rows) + "\n\n" + words


def _areas(result: dict[str, Any]) -> str:
    ours, paper = result["heatmap_iou"], result["heatmap_iou_paper"]
    rows = [[name, _told(ours[name]), _told(paper[name]), _n(ours[name])] for name in ("manip", "both")]
    rows += [[f"{each['area']} changed", _told(each), "", _n(each)] for each in ours["by_area"]]
    area = result["false_area_benign"]
    words = (
        f"Ungated, threshold {result['heatmap_min']:g}; the paper's is its 7 x 7 map, gated, at .35 of its maximum. On "
        f"benign queries {_told(area, 4)} of the picture is called changed (mean of {area['n']})."
    )
    return _table(["queries", "heatmap IoU", "the paper's", "n"], rows) + "\n\n" + words


def _confusion(result: dict[str, Any]) -> str:
    rows = [
        [name, *(f"{row[verdict]:.3f}" if row[verdict] else "" for verdict in VERDICTS), str(row["n"])]
        for name, row in result["confusion"].items()
    ]
    return _table(["queries", *VERDICTS, "n"], rows)


def _precision(result: dict[str, Any]) -> str:
    found = result["average_precision"]
    told = ", ".join(f"{name} {value:.3f}" for name, value in found.items() if name != "macro")
    return f"Average precision, one class against the rest: {told}; mean {found['macro']:.3f}."


def _pairs(pairs: dict[str, Any]) -> str:
    def rows() -> Iterator[list[str]]:
        for name, each in {"all pairs": pairs, **pairs["by_made"], **pairs["by_kind"]}.items():
            yield [name, _told(each["manipulated"]), _told(each["heatmap_iou"]), _n(each["manipulated"])]

    return _table(["pairs", "manipulated", "heatmap IoU", "n"], list(rows()))


def _at(result: dict[str, Any], path: str) -> Any:
    value: Any = result
    for key in path.split("."):
        value = value.get(key) if isinstance(value, dict) else None
    return value


def _value(figure: Any) -> float:
    return float(figure["share" if "share" in figure else "mean"] if isinstance(figure, dict) else figure)


def _told(figure: Any, digits: int = 3) -> str:
    """The figure with what is known of its error."""
    value = f"{_value(figure):.{digits}f}"
    if not isinstance(figure, dict):
        return value
    if "upper_95" in figure:
        return (
            f"{value} ({round(figure['share'] * figure['n'])} of {figure['n']}, upper bound {figure['upper_95']:.3f})"
        )
    return f"{value} [{figure['low']:.{digits}f}, {figure['high']:.{digits}f}]"


def _n(figure: Any) -> str:
    return str(figure["n"]) if isinstance(figure, dict) else ""


def _table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [heads, ["---"] * len(heads), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
