"""Five figures for a person, from the outcomes of a run: `evaluate quick --plots DIR` or `evaluate plots FILE DIR`.

heatmap-iou.svg (IoU by the area that was changed), calibration.svg (what confidence is worth), transforms.svg (right
verdicts by benign transform and severity), confusion.svg (verdicts by what the queries were), donors.svg
(which donors of splices were found, ``donor_plot``).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from evaluation.charts import AMBER, BLUE, GROUND, INK, LINE, MARGIN_PX, SOFT, Card, Scale
from evaluation.donor_plot import by_donor
from evaluation.metrics import Share, calibration, ece, mean_of, share_of
from evaluation.outcomes import EDITED, RIGHT, Outcome
from evaluation.verdicts import AREAS, BANDS, SETS, UNSURE, VERDICTS, Step, steps

COLOURS: Mapping[str, str] = {"manip": BLUE, "both": AMBER, "benign": BLUE}
NAMES = {"manip": "edited", "both": "edited, then reposted", "benign": "reposted"}
AREA_LOW, AREA_HIGH = 0.003, 0.4
"""Ends of the axis of areas; the renderer draws edits of half a per cent to a quarter."""
DOT_PX = (3.0, 9.0)
ROW_PX = 25.0
SEVERITIES = ("1", "2", "3", "4", "5")
MOVES = ("crop", "pad", "rotate", "affine")


def draw(outcomes: Sequence[Outcome], folder: Path) -> list[Path]:
    """All of them, as files in ``folder``."""
    judged = [each for each in outcomes if not each.left_out]
    folder.mkdir(parents=True, exist_ok=True)
    figures = {
        "heatmap-iou": by_area(judged),
        "calibration": reliability(judged),
        "transforms": transforms(judged),
        "confusion": confusion(judged),
        "donors": by_donor(judged),
    }
    paths = [folder / f"{name}.svg" for name in figures]
    for path, card in zip(paths, figures.values(), strict=True):
        path.write_text(card.svg(), encoding="utf-8")
    return paths


def by_area(outcomes: Sequence[Outcome]) -> Card:
    """Every edited query as a dot, and the mean of each step of area with its interval."""
    edited = [each for each in outcomes if each.iou is not None]
    card = Card(760, 440)
    card.title(
        "How well the heatmap covers the edit", f"Intersection over union with the true mask, {len(edited)} queries"
    )
    left, right, top, bottom = 70.0, 732.0, 110.0, 372.0
    across = Scale(low=AREA_LOW, high=AREA_HIGH, start=left, end=right, log=True)
    up = Scale(low=0, high=1, start=bottom, end=top)
    card.legend(right, 56, [(COLOURS[name], NAMES[name]) for name in EDITED])
    card.rows(up, (0, 0.25, 0.5, 0.75, 1), left, right)
    for share in (0.005, 0.01, 0.03, 0.1, 0.3):
        card.text(across(share), bottom + 22, f"{100 * share:g}%", fill=SOFT, anchor="middle")
    card.text((left + right) / 2, bottom + 46, "share of the picture that was changed", fill=SOFT, anchor="middle")
    for each in edited:
        about = f"{each.file}: {each.edit}, IoU {each.iou:.2f}"
        card.dot(across(each.area), up(each.iou or 0), 2.6, fill=COLOURS[each.set], opacity=0.4, about=about)
    for name, low, high in AREAS:
        inside = [each for each in edited if low <= each.area < high]
        if inside:
            mean = mean_of([each.iou or 0.0 for each in inside], [each.photograph for each in inside])
            x0, x1 = across(max(low, AREA_LOW)), across(min(high, AREA_HIGH))
            band = up(mean.low) - up(mean.high)
            card.rect(x0 + 2, up(mean.high), x1 - x0 - 4, band, fill=INK, opacity=0.12, radius=2)
            card.line(x0 + 3, up(mean.mean), x1 - 3, up(mean.mean), stroke=INK, width=2)
            card.text((x0 + x1) / 2, top - 24, f"{mean.mean:.2f}", size=15, anchor="middle", bold=True)
            card.text((x0 + x1) / 2, top - 10, f"{name}, n {mean.n}", size=11, fill=SOFT, anchor="middle")
    return card


def reliability(outcomes: Sequence[Outcome]) -> Card:
    """Share of right answers against confidence, in 15 steps, no abstaining; below it how often each step was used."""
    unsure = [each for each in outcomes if each.set in UNSURE]
    confidences, right = [each.confidence for each in unsure], [each.right_forced for each in unsure]
    error = ece(confidences, right)
    card = Card(560, 540)
    card.title("Is the confidence to be believed?", f"Calibration error {error:.3f} over {len(unsure)} forced answers")
    left, end, top, bottom, base = 70.0, 532.0, 84.0, 384.0, 478.0
    across, up = Scale(low=0, high=1, start=left, end=end), Scale(low=0, high=1, start=bottom, end=top)
    card.rows(up, (0, 0.25, 0.5, 0.75, 1), left, end)
    card.line(across(0), up(0), across(1), up(1), stroke=SOFT)
    card.text(left, top - 8, "share of right answers", size=11, fill=SOFT)
    card.line(left, base, end, base)
    card.text(left, bottom + 26, "answers in each step", size=11, fill=SOFT)
    for tick in (0, 0.25, 0.5, 0.75, 1):
        card.text(across(tick), base + 20, f"{tick:g}", fill=SOFT, anchor="middle")
    card.text((left + end) / 2, base + 42, "confidence", fill=SOFT, anchor="middle")
    filled = calibration(confidences, right)
    most = max(one.right.n for one in filled)
    for one in filled:
        if not one.right.n:
            continue
        share, x = one.right.n / most, across(one.confidence)
        about = f"{one.right.n} answers of mean confidence {one.confidence:.2f}: {one.right.share:.2f} right"
        card.line(x, up(one.right.low), x, up(one.right.high), stroke=BLUE)
        radius = DOT_PX[0] + (DOT_PX[1] - DOT_PX[0]) * share**0.5
        card.dot(x, up(one.right.share), radius, fill=BLUE, about=about)
        tall = max(1.5, 48 * share)
        card.rect(
            across(one.low) + 2, base - tall, across(one.high) - across(one.low) - 4, tall, fill=BLUE, opacity=0.45
        )
        middle = across((one.low + one.high) / 2)
        card.text(middle, base - tall - 5, str(one.right.n), size=10, fill=SOFT, anchor="middle")
    return card


def transforms(outcomes: Sequence[Outcome]) -> Card:
    """A bar for each benign transform and set, and the severities, both sets together, as cells beside it."""
    rows = _transform_rows(outcomes)
    card = Card(760, 128 + ROW_PX * (len(rows) + 2) + 34)
    card.title(
        "Right verdicts by benign transform",
        "Every query was also resized and recompressed; mirrored ones are counted apart; abstaining is wrong",
    )
    across = Scale(low=0, high=1, start=150, end=440)
    top = 104.0
    card.legend(732, 36, [(BLUE, NAMES["benign"]), (AMBER, NAMES["both"])])
    for tick in (0, 0.25, 0.5, 0.75, 1):
        card.line(across(tick), top, across(tick), top + ROW_PX * (len(rows) + 2))
        card.text(across(tick), top + ROW_PX * (len(rows) + 2) + 16, f"{tick:g}", fill=SOFT, anchor="middle")
    card.text(480, top - 2, "both sets, by severity from mild to strong", size=11, fill=SOFT)
    y, before = top + 10, ""
    for transform, found in rows.items():
        group = _group(transform)
        y += ROW_PX / 2 * (before not in ("", group))
        before = group
        card.text(138, y + 15, transform.replace("_", " "), anchor="end")
        for i, name in enumerate(("benign", "both")):
            right = [each.right for each in found if each.set == name]
            if right:
                share = share_of(right)
                _bar(card, across, y + 3 + 9 * i, share, COLOURS[name], f"{transform}, {NAMES[name]}")
        _severities(card, y, transform, found)
        y += ROW_PX
    return card


def _group(transform: str) -> str:
    if transform in BANDS:
        return "always"
    return "moved" if transform in MOVES else "mirror" if transform == "mirror" else "drawn"


def _bar(card: Card, across: Scale, y: float, share: Share, colour: str, about: str) -> None:
    card.rect(
        across(0), y, across(share.share) - across(0), 7, fill=colour, opacity=0.85, radius=1.5,
        about=f"{about}: {share.share:.2f} of {share.n}, {share.low:.2f} to {share.high:.2f}",
    )  # fmt: skip
    card.line(across(share.low), y + 3.5, across(share.high), y + 3.5, stroke=INK, width=0.7)


def _severities(card: Card, y: float, transform: str, found: Sequence[Outcome]) -> None:
    by_severity: dict[str, list[bool]] = {}
    for each in found:
        for step in steps(each):
            if step.transform == transform and step.severity:
                by_severity.setdefault(step.severity, []).append(each.right)
    if not by_severity:
        share = share_of(each.right for each in found)
        card.text(480, y + 15, f"{share.share:.2f} of {share.n}", size=11, fill=SOFT)
        return
    slots = sorted(by_severity) if transform in BANDS else SEVERITIES
    wide = 252 / len(slots)
    for i, severity in enumerate(slots):
        if severity not in by_severity:
            continue
        share = share_of(by_severity[severity])
        x = 480 + wide * i
        card.rect(x, y + 2, wide - 3, ROW_PX - 6, fill=BLUE, opacity=0.08 + 0.4 * share.share**3, radius=3,
                  about=f"{transform} {severity}: {share.share:.2f} of {share.n}")  # fmt: skip
        words = f"{severity} · {share.share:.2f}" if transform in BANDS else f"{share.share:.2f}"
        card.text(x + (wide - 3) / 2, y + 15, words, size=11, anchor="middle")


def _transform_rows(outcomes: Sequence[Outcome]) -> dict[str, list[Outcome]]:
    """Outcomes by transform: what is drawn into the pixels, what moves them, the mirror, what is always done."""
    found: dict[str, list[Outcome]] = {}
    for each, step in _benign_steps(outcomes):
        found.setdefault(step.transform, []).append(each)
    drawn = sorted(set(found) - {*MOVES, *BANDS, "mirror"})
    return {name: found[name] for name in (*drawn, *MOVES, "mirror", *BANDS) if name in found}


def _benign_steps(outcomes: Sequence[Outcome]) -> Iterator[tuple[Outcome, Step]]:
    for each in outcomes:
        if each.set in ("benign", "both"):
            for step in steps(each):
                yield each, step


def confusion(outcomes: Sequence[Outcome]) -> Card:
    """Verdicts by what the queries were; each row sums to 1."""
    card = Card(760, 430)
    card.title("Verdicts by what the queries were", "Shares of each row; the right verdict is outlined")
    wide, tall, left, top = 101.0, 42.0, 128.0, 112.0
    for j, verdict in enumerate(VERDICTS):
        card.text(left + wide * (j + 0.5), top - 12, verdict, fill=SOFT, anchor="middle")
    for i, name in enumerate(SETS):
        asked = [each.verdict for each in outcomes if each.set == name]
        y = top + tall * i
        card.text(MARGIN_PX, y + 20, name, bold=True)
        card.text(MARGIN_PX, y + 34, f"n {len(asked)}", size=11, fill=SOFT)
        for j, verdict in enumerate(VERDICTS):
            share = asked.count(verdict) / max(1, len(asked))
            right = RIGHT[name] == verdict
            colour = BLUE if right else AMBER
            x = left + wide * j
            if right:
                card.rect(x + 1, y + 1, wide - 4, tall - 4, fill=BLUE, radius=5)
                card.rect(x + 2.5, y + 2.5, wide - 7, tall - 7, fill=GROUND, radius=4)
            else:
                card.rect(x + 1, y + 1, wide - 4, tall - 4, fill=LINE, opacity=0.35, radius=5)
            card.rect(x + 1, y + 1, wide - 4, tall - 4, fill=colour, opacity=0.45 * share**0.5, radius=5)
            words = "" if share == 0 else f"{share:.3f}"
            card.text(x + wide / 2 - 1, y + 25, words, size=13, anchor="middle", bold=right)
    under = (
        "benign: reposted · manip: edited · both: edited, then reposted · unknown: no original in the collection",
        "splice: no original either, but an object of a photograph that is in the collection",
    )
    for number, words in enumerate(under):
        card.text(MARGIN_PX, top + tall * len(SETS) + 26 + 16 * number, words, size=11, fill=SOFT)
    return card
