"""Figures about donors, from one ``Outcome`` a query: are they found, are they shown where there are none, and where.

R@k ranks all donors of an answer, shown or not, without clones: those are of the original itself. A query that was
edited by a splice has a donor that the truth does not name, and is no evidence of false ones. Shares have exact
intervals, means redraw whole photographs.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from evaluation.metrics import mean_of, recall_at, share_of, upper
from evaluation.outcomes import Outcome

SPLICE = "splice"
WITHOUT = ("identical", "benign", "manip", "both", "unknown")
"""Sets whose queries have no donor, unless their edit is a splice."""
DEPTHS = (1, 10)
AREAS = (("under 5%", 0.0, 0.05), ("5-10%", 0.05, 0.10), ("over 10%", 0.10, 1.01))
"""Share of the query that its spliced object covers: name, from, below."""


def donor_figures(outcomes: Sequence[Outcome]) -> dict[str, Any]:
    """All of them, as JSON."""
    spliced = [each for each in outcomes if each.set == SPLICE]
    without = [each for each in outcomes if each.set in WITHOUT and each.edit != SPLICE]
    right = [each for each in spliced if each.donor_iou is not None]
    ious = [each.donor_iou for each in right if each.donor_iou is not None]
    return {
        "donor": {**recalls(spliced), "by_area": by_area(spliced)},
        "donor_shown": {
            "right": share_of(_shown_right(each) for each in spliced).json(),
            "wrong": share_of(each.donors_shown > 0 and each.donor_rank != 1 for each in spliced).json(),
        },
        "false_donors": {
            **_false(without),
            "by_set": {name: _false([each for each in without if each.set == name]) for name in WITHOUT},
        },
        "clones_shown": share_of(each.clones_shown > 0 for each in outcomes if each.edit == "clone").json(),
        "regions_ceiling": {
            "query": share_of(each.query_region for each in spliced if each.query_region is not None).json(),
            "donor": share_of(each.donor_region for each in spliced if each.donor_region is not None).json(),
        },
        "donor_mask_iou": mean_of(ious, [each.photograph for each in right]).json(),
    }


def recalls(spliced: Sequence[Outcome]) -> dict[str, Any]:
    """R@1 and R@10 of some splices."""
    ranks = [each.donor_rank for each in spliced]
    return {**{f"R@{k}": recall_at(k, ranks).json() for k in DEPTHS}, "n": len(ranks)}


def by_area(spliced: Sequence[Outcome]) -> list[dict[str, Any]]:
    """``recalls`` by how much of the picture the object covers."""
    return [
        {"area": name, **recalls([each for each in spliced if low <= each.area < high])} for name, low, high in AREAS
    ]


def _shown_right(outcome: Outcome) -> bool:
    """Donors are ranked by their probability, so whatever is shown begins with the first."""
    return outcome.donors_shown > 0 and outcome.donor_rank == 1


def _false(without: Sequence[Outcome]) -> dict[str, Any]:
    shown = [each.donors_shown > 0 for each in without]
    return {**share_of(shown).json(), "upper_95": round(upper(sum(shown), len(shown)), 4)}
