"""Every splice of a run as a dot: how large its object is, whether its donor came first, how well it is outlined."""

from __future__ import annotations

from collections.abc import Sequence

from evaluation.charts import AMBER, BLUE, SOFT, Card, Scale
from evaluation.donors import AREAS, SPLICE, recalls
from evaluation.outcomes import Outcome

AREA_LOW, AREA_HIGH = 0.02, 0.4
"""Ends of the axis of areas; the renderer lays in objects of 3 to 25%."""
TICKS = (0.03, 0.05, 0.1, 0.25)
LATER, NEVER = "among ten", "not among ten"


def by_donor(outcomes: Sequence[Outcome]) -> Card:
    """IoU of the masks of right donors; under them, on two lines, what came later and what did not come."""
    spliced = [each for each in outcomes if each.set == SPLICE]
    card = Card(760, 470)
    card.title("Who gave the object?", f"Mask of the right donor against the truth, {len(spliced)} splices")
    left, right, top, bottom = 110.0, 732.0, 110.0, 332.0
    lines = {LATER: bottom + 30, NEVER: bottom + 58}
    across = Scale(low=AREA_LOW, high=AREA_HIGH, start=left, end=right, log=True)
    up = Scale(low=0, high=1, start=bottom, end=top)
    card.legend(right, 56, [(BLUE, "first"), (AMBER, LATER), (SOFT, NEVER)])
    card.rows(up, (0, 0.25, 0.5, 0.75, 1), left, right)
    for name, y in lines.items():
        card.line(left, y, right, y)
        card.text(left - 8, y + 4, name, size=11, fill=SOFT, anchor="end")
    for share in TICKS:
        card.text(across(share), bottom + 86, f"{100 * share:g}%", fill=SOFT, anchor="middle")
    card.text(
        (left + right) / 2, bottom + 110, "share of the picture that the object covers", fill=SOFT, anchor="middle"
    )
    for each in spliced:
        about = f"{each.file}: donor {'not listed' if each.donor_rank is None else f'at place {each.donor_rank}'}"
        if each.donor_iou is not None:
            card.dot(across(each.area), up(each.donor_iou), 3, fill=BLUE, opacity=0.5, about=about)
        elif each.donor_rank is not None and each.donor_rank <= 10:
            card.dot(across(each.area), lines[LATER], 3, fill=AMBER, opacity=0.5, about=about)
        else:
            card.dot(across(each.area), lines[NEVER], 3, fill=SOFT, opacity=0.5, about=about)
    for name, low, high in AREAS:
        found = recalls([each for each in spliced if low <= each.area < high])
        middle = (across(max(low, AREA_LOW)) + across(min(high, AREA_HIGH))) / 2
        if found["n"]:
            words = f"{found['R@1']['share']:.2f} / {found['R@10']['share']:.2f}"
            card.text(middle, top - 24, words, size=15, anchor="middle", bold=True)
            card.text(middle, top - 10, f"R@1 / R@10, {name}, n {found['n']}", size=11, fill=SOFT, anchor="middle")
    return card
