"""Figures about verdicts, confidence and heatmaps, from one ``Outcome`` a query.

Abstaining (``inconclusive``) is wrong in ``verdict`` and undone in ``forced``. Edited queries of which nothing is left
to be seen are left out everywhere and counted. Shares have exact intervals, means redraw whole photographs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from statistics import fmean
from typing import Any, NamedTuple, get_args

from evaluation.metrics import Mean, average_precision, ece, mean_of, share_of, upper
from evaluation.outcomes import EDITED, RIGHT, Outcome
from stemma.api import Verdict

SETS = tuple(RIGHT)
UNSURE = ("benign", "manip", "both", "unknown")
"""The sets on which an answer can be more or less sure; ``identical`` is decided by a digest."""
VERDICTS: tuple[Verdict, ...] = get_args(Verdict)
ACCUSING = ("manipulated", "spliced")
AREAS = (("under 1%", 0.0, 0.01), ("1-3%", 0.01, 0.03), ("3-10%", 0.03, 0.10), ("over 10%", 0.10, 1.01))
"""Share of the query that the mask covers: name, from, below."""
BANDS = {"resize": (0.6, 0.9, 1.2, 1.5), "jpeg": (40, 57, 74, 91)}
"""Limits of what has no severity but a number."""


class Step(NamedTuple):
    """One benign transform with its severity, as a row is named."""

    transform: str
    severity: str
    """1 to 5, a band of numbers, or empty for a transform that has none."""


def verdict_figures(outcomes: Sequence[Outcome], heatmap_min: float) -> dict[str, Any]:
    """All of them, as JSON. ``heatmap_min`` is the threshold that the outcomes were made with."""
    judged = [each for each in outcomes if not each.left_out]
    by_set = {name: [each for each in judged if each.set == name] for name in SETS}
    unsure = [each for name in UNSURE for each in by_set[name]]
    accused = [each.verdict in ACCUSING for each in by_set["benign"]]
    return {
        "verdict": {name: share_of(each.right for each in by_set[name]).json() for name in SETS},
        "forced": {name: share_of(each.right_forced for each in by_set[name]).json() for name in SETS},
        "abstained": share_of(each.verdict == "inconclusive" for each in unsure).json(),
        "falsely_accused": {
            "share": round(share_of(accused).share, 4),
            "n": len(accused),
            "upper_95": round(upper(sum(accused), len(accused)), 4),
        },
        "heatmap_min": heatmap_min,
        "heatmap_iou": {
            **{name: _mean(by_set[name], lambda each: each.iou).json() for name in EDITED},
            "by_area": by_area([each for name in EDITED for each in by_set[name]]),
        },
        "heatmap_iou_paper": {name: _mean(by_set[name], lambda each: each.iou_paper).json() for name in EDITED},
        "false_area_benign": _mean(by_set["benign"], lambda each: each.false_area).json(),
        "ece": round(ece([each.confidence for each in unsure], [each.right_forced for each in unsure]), 4),
        "per_transform": per_transform(judged),
        "left_out": len(outcomes) - len(judged),
        "confusion": {name: confusion_row(by_set[name]) for name in SETS},
        "average_precision": precision_by_class(unsure),
    }


def _mean(outcomes: Sequence[Outcome], value: Callable[[Outcome], float | None]) -> Mean:
    known = [(found, each.photograph) for each in outcomes if (found := value(each)) is not None]
    return mean_of([found for found, _ in known], [photograph for _, photograph in known])


def by_area(outcomes: Sequence[Outcome]) -> list[dict[str, Any]]:
    """Mean IoU of edited queries by the share of the picture that was changed."""
    return [
        {"area": name, **_mean([each for each in outcomes if low <= each.area < high], lambda each: each.iou).json()}
        for name, low, high in AREAS
    ]


def confusion_row(outcomes: Sequence[Outcome]) -> dict[str, Any]:
    """How a set's verdicts are spread: shares that sum to 1 (all 0 where nothing was asked), and ``n``."""
    n = len(outcomes)
    counts = {verdict: sum(each.verdict == verdict for each in outcomes) for verdict in VERDICTS}
    return {**{verdict: count / max(1, n) for verdict, count in counts.items()}, "n": n}


def precision_by_class(outcomes: Sequence[Outcome]) -> dict[str, float]:
    """One against the rest over all queries that can be unsure, and the plain mean of the three."""
    classes: tuple[Verdict, ...] = ("benign", "manipulated", "unknown")
    precision: dict[str, float] = {
        name: average_precision([each.scores[i] for each in outcomes], [RIGHT[each.set] == name for each in outcomes])
        for i, name in enumerate(classes)
    }
    precision["macro"] = fmean(precision.values())
    return {name: round(value, 4) for name, value in precision.items()}


def per_transform(outcomes: Sequence[Outcome]) -> list[dict[str, Any]]:
    """Share of right verdicts on ``benign`` and ``both`` queries by transform and severity, in order of name.

    A mirrored query is counted under ``mirror`` alone: a flip is no smooth flow, and would blur every other row.
    """
    rows: dict[Step, dict[str, list[bool]]] = {}
    for each in outcomes:
        if each.set in ("benign", "both"):
            for step in steps(each):
                rows.setdefault(step, {"benign": [], "both": []})[each.set].append(each.right)
    return [
        {**step._asdict(), **{name: share_of(right).json() for name, right in rows[step].items()}}
        for step in sorted(rows)
    ]


def steps(outcome: Outcome) -> Iterator[Step]:
    """The rows in which an outcome counts."""
    if outcome.mirrored:
        yield Step("mirror", "")
        return
    for done in outcome.benign:
        transform, _, number = done.partition(" ")
        yield Step(transform, _band(transform, float(number)) if transform in BANDS else number)


def _band(transform: str, number: float) -> str:
    limits = BANDS[transform]
    above = max(0, min(sum(number >= limit for limit in limits) - 1, len(limits) - 2))
    low, high = limits[above], limits[above + 1]
    return f"{low:g}-{high - 1:g}" if isinstance(high, int) else f"{low:g}-{high:g}"
