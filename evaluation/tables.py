"""Figures as Markdown tables, each beside what was asked of it, so that docs/results.md holds no number typed by hand.

stemma evaluate quick --set out/quick --json > quick.json
stemma evaluate tables quick.json pairs.json bench.json --into docs/results.md
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from evaluation.donor_tables import donor_tables
from evaluation.markdown import count_of, table, told, value_of
from evaluation.verdicts import SETS, VERDICTS
from stemma.errors import BadRequest

BEGIN = "<!-- written by `stemma evaluate tables`, from here -->"
END = "<!-- to here -->"


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
    Bar("donor first", "donor.R@1", 0.65),
    Bar("donor among ten", "donor.R@10", 0.80),
    Bar("shown a donor where there is none", "false_donors", 0.02, at_most=True),
    Bar("donor mask IoU, where the donor is right", "donor_mask_iou", 0.60),
    Bar("verdict right, splice", "verdict.splice", 0.60),
    Bar("search with donors against without", "donor_search_ratio", 3.0, at_most=True),
    Bar("copy-move localization, MCC", "mcc", 0.60),
    Bar("copy-move localization, F1", "f1", 0.62),
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
    parts += donor_tables(result)
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
            value = value_of(figure)
            met = value <= bar.value if bar.at_most else value >= bar.value
            asked = f"at most {bar.value:g}" if bar.at_most else f"{bar.value:g}"
            rows.append([bar.name, asked, told(figure), count_of(figure), "yes" if met else "**no**"])
    return table(["figure", "asked", "reached", "n", "met"], rows) if rows else ""


def _verdicts(result: dict[str, Any]) -> str:
    rows = [
        [name, told(result["verdict"][name]), told(result["forced"][name]), count_of(result["verdict"][name])]
        for name in SETS
        if name in result["verdict"]
    ]
    words = (
        f"Abstained on {told(result['abstained'])} of {result['abstained']['n']} queries; "
        f"{result['left_out']} edited queries show nothing of their edit and are left out."
    )
    return table(["queries", "verdict right", "without abstaining", "n"], rows) + "\n\n" + words


def _areas(result: dict[str, Any]) -> str:
    ours, paper = result["heatmap_iou"], result["heatmap_iou_paper"]
    rows = [[name, told(ours[name]), told(paper[name]), count_of(ours[name])] for name in ("manip", "both")]
    rows += [[f"{each['area']} changed", told(each), "", count_of(each)] for each in ours["by_area"]]
    area = result["false_area_benign"]
    words = (
        f"Ungated, threshold {result['heatmap_min']:g}; the paper's is its 7 x 7 map, gated, at .35 of its maximum. On "
        f"benign queries {told(area, 4)} of the picture is called changed (mean of {area['n']})."
    )
    return table(["queries", "heatmap IoU", "the paper's", "n"], rows) + "\n\n" + words


def _confusion(result: dict[str, Any]) -> str:
    rows = [
        [name, *(f"{row[verdict]:.3f}" if row[verdict] else "" for verdict in VERDICTS), str(row["n"])]
        for name, row in result["confusion"].items()
    ]
    return table(["queries", *VERDICTS, "n"], rows)


def _precision(result: dict[str, Any]) -> str:
    found = result["average_precision"]
    told = ", ".join(f"{name} {value:.3f}" for name, value in found.items() if name != "macro")
    return f"Average precision, one class against the rest: {told}; mean {found['macro']:.3f}."


def _pairs(pairs: dict[str, Any]) -> str:
    def rows() -> Iterator[list[str]]:
        for name, each in {"all pairs": pairs, **pairs["by_made"], **pairs["by_kind"]}.items():
            yield [name, told(each["manipulated"]), told(each["heatmap_iou"]), count_of(each["manipulated"])]

    return table(["pairs", "manipulated", "heatmap IoU", "n"], list(rows()))


def _at(result: dict[str, Any], path: str) -> Any:
    value: Any = result
    for key in path.split("."):
        value = value.get(key) if isinstance(value, dict) else None
    return value
