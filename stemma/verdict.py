"""What the evidence says: the order of a shortlist, who is compared next, and the verdict. Pure functions.

Verification (local geometry) says whether a candidate is the same picture, the comparator what was done to it; the
comparator can also say that it is none, and then that candidate is culled (DIC 3). A candidate's *score* is its match,
times 1 - P(distinct) once it was compared. A score never exceeds its match, so re-ranking may stop at the first
original whose score is above every match that is left: the result is that of comparing them all.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

from stemma.api import Comparison, Heatmap, Probabilities, Region, Verdict
from stemma.flow import Encoded, Hit, Judged, Pixels
from stemma.networks import explain
from stemma.networks.alignment import AlignmentSettings
from stemma.networks.weights import Card, ComparatorCard
from stemma.vision import geometry

NOT_COMPARED = "the original was found but not compared, so what was changed in it is not known"
FEATURELESS = "the picture has nothing in it to recognise, so no answer can be trusted"
CLOSE = "the evidence for benign and for manipulated is too even to choose"
ALIGNED_MIN = AlignmentSettings().enough
PIECE_EXPLAINED_MAX, PIECE_MATCH_MAX = 0.5, 42.0
"""Share of a picture that its original explains, and their match, under both of which it may have given no more than a
piece (docs/decisions/0007)."""
DIGITS = 4
"""Digits of a probability that is sent: a heatmap of 56 x 42 then takes 15 kB."""

Compared = Mapping[int, Judged]
"""By row of the candidate."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Decision:
    """The verdict on one picture."""

    verdict: Verdict
    confidence: float
    original: Hit | None = None
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Rules:
    """Thresholds that were fitted on the calibration photographs, as they stand in the two cards."""

    match: Card
    comparator: ComparatorCard

    def could_be_original(self, hit: Hit) -> bool:
        return (hit.match or 0.0) >= self.match.match_threshold

    def is_original(self, hit: Hit, judged: Judged | None) -> bool:
        """Verified, and not culled by the comparator."""
        return self.could_be_original(hit) and (judged is None or judged.distinct < self.comparator.distinct_min)

    def verdict(self, judged: Judged) -> Verdict:
        """Of a pair that shows the same picture: by the larger probability, ``inconclusive`` under the margin."""
        both = judged.benign + judged.manipulated
        if abs(judged.manipulated - judged.benign) < self.comparator.margin * both:
            return "inconclusive"
        return "manipulated" if judged.manipulated > judged.benign else "benign"

    def pair_verdict(self, judged: Judged, match: float) -> Verdict:
        """Of two pictures that a caller put together: ``unknown`` where nothing shows that they are the same.

        They must match as an original must, or lie on each other as true pairs do, and not be told apart: the network
        alone accuses crops that were laid wrongly.
        """
        verified = match >= self.match.match_threshold or judged.correlation >= ALIGNED_MIN
        if not verified or judged.transform is None or judged.distinct >= self.comparator.distinct_min:
            return "unknown"
        return self.verdict(judged)


def rank(hits: Sequence[Hit]) -> tuple[Hit, ...]:
    """Verification orders a shortlist: the surer match first, then (refined_distance, image_id)."""
    return tuple(sorted(hits, key=lambda hit: (-(hit.match or 0.0), hit.refined_distance, hit.image_id)))


def score(hit: Hit, judged: Judged | None) -> float:
    return (hit.match or 0.0) * (1.0 if judged is None else 1.0 - judged.distinct)


def next_pairs(ranked: Sequence[Hit], compared: Compared, rules: Rules, *, most: int, batch: int) -> tuple[Hit, ...]:
    """The candidates to compare next, in order; none when the first place is settled or ``most`` were compared.

    Only candidates that could be the original are worth a comparison, and one that is ahead of all that are left ends
    it. ``ranked`` is as ``rank`` gives it.
    """
    left = [hit for hit in ranked[:most] if rules.could_be_original(hit) and hit.row not in compared]
    best = best_original(ranked, compared, rules)
    if not left or (best is not None and score(best, compared[best.row]) > (left[0].match or 0.0)):
        return ()
    # one alone first: it settles nearly every query that has an original
    return tuple(left[: batch if compared else 1])


def best_original(ranked: Sequence[Hit], compared: Compared, rules: Rules) -> Hit | None:
    """The original among those compared, the highest score first, ties in the order of ``ranked``."""
    originals = [hit for hit in ranked if hit.row in compared and rules.is_original(hit, compared[hit.row])]
    return max(originals, key=lambda hit: score(hit, compared[hit.row]), default=None)


def rerank(ranked: Sequence[Hit], compared: Compared, rules: Rules) -> tuple[Hit, ...]:
    """The shortlist after comparison: the original first, the rest by score. Only permutes."""
    best = best_original(ranked, compared, rules)
    return tuple(sorted(ranked, key=lambda hit: (hit is not best, -score(hit, compared.get(hit.row)))))


def decide(ranked: Sequence[Hit], compared: Compared, encoded: Encoded, rules: Rules) -> Decision:
    """What the evidence says, by the first rule of docs/architecture.md that fits; ``ranked`` as ``rerank`` gives it.

    ``confidence`` is the calibrated probability that the verdict is right; of an inconclusive one, that the likelier of
    the two would be.
    """
    if encoded.featureless:
        return Decision(verdict="inconclusive", confidence=0.0, notes=(FEATURELESS,))
    first = ranked[0] if ranked else None
    if first is None:
        return Decision(verdict="unknown", confidence=1.0 - rules.match.match_probability(0.0))
    probability, judged = rules.match.match_probability(first.match or 0.0), compared.get(first.row)
    if not rules.is_original(first, judged):
        same = probability if judged is None else probability * (1.0 - judged.distinct)
        return Decision(verdict="unknown", confidence=1.0 - same)
    if judged is None:
        return Decision(verdict="inconclusive", confidence=probability, original=first, notes=(NOT_COMPARED,))
    verdict = rules.verdict(judged)
    likelier = max(judged.benign, judged.manipulated) / (judged.benign + judged.manipulated)
    notes = (CLOSE,) if verdict == "inconclusive" else ()
    return Decision(verdict=verdict, confidence=probability * likelier, original=first, notes=notes)


class Trace(Protocol):
    """What a verdict asks of a donor."""

    @property
    def row(self) -> int: ...
    @property
    def probability(self) -> float: ...
    @property
    def shown(self) -> bool: ...
    @property
    def clone(self) -> bool: ...


def traced(decision: Decision, traces: Sequence[Trace]) -> Decision:
    """What donors make of a decision: an unknown picture with a donor sure enough to be shown is ``spliced``; with one
    that is not, it is as much less surely unknown."""
    if decision.verdict != "unknown":
        return decision
    sure = [one.probability for one in traces if one.shown and not one.clone]
    if sure:
        return Decision(verdict="spliced", confidence=max(sure), notes=decision.notes)
    likeliest = max((one.probability for one in traces if not one.clone), default=0.0)
    return replace(decision, confidence=decision.confidence * (1.0 - likeliest))


def perhaps_a_piece(decision: Decision, compared: Compared) -> bool:
    """Whether the original that was found may be a donor: it explains less than half of the picture, and few cells
    match. A true original that was edited agrees with whatever is left of it, one under heavy noise in many cells."""
    hit = decision.original
    if hit is None or decision.verdict not in ("manipulated", "inconclusive") or hit.row not in compared:
        return False
    return explains_little(hit.match or 0.0, compared[hit.row].explained)


def explains_little(match: float, explained: float) -> bool:
    return match < PIECE_MATCH_MAX and explained < PIECE_EXPLAINED_MAX


def without_original(decision: Decision) -> Decision:
    """As if no original had been found: what the search for donors then finds may show that one gave but a piece."""
    return Decision(verdict="unknown", confidence=1.0 - decision.confidence, notes=decision.notes)


def is_a_piece(decision: Decision, traces: Sequence[Trace]) -> bool:
    """Whether the original is among the donors that are shown."""
    hit = decision.original
    return hit is not None and any(one.shown and one.row == hit.row for one in traces)


def probabilities(judged: Judged) -> Probabilities:
    return Probabilities(
        benign=round(judged.benign, DIGITS),
        manipulated=round(judged.manipulated, DIGITS),
        distinct=round(judged.distinct, DIGITS),
    )


def comparison(judged: Judged, query: Pixels, verdict: Verdict, rules: Rules) -> Comparison:
    """The contract's form of one pair: everything in pixels of the query at its full size.

    Of two pictures that are not the same there is nothing to show, and what the network says of a pair that nothing
    else holds together is not worth a number.
    """
    if verdict == "unknown":
        told_apart = judged.distinct >= rules.comparator.distinct_min
        return Comparison(verdict=verdict, probabilities=probabilities(judged) if told_apart else None)
    height, width = query.rgb_HWC.shape[:2]
    rows, columns = judged.heatmap_RC.shape
    transform = None
    if judged.transform is not None:
        working_33 = geometry.scaling(width / query.width, height / query.height)
        transform = geometry.as_rows(geometry.from_rows(judged.transform) @ working_33)
    found = explain.regions(judged.heatmap_RC, (query.width, query.height), shown_min=rules.comparator.heatmap_min)
    return Comparison(
        verdict=verdict,
        probabilities=probabilities(judged),
        heatmap=Heatmap(
            rows=rows, cols=columns, values=tuple(round(value, DIGITS) for value in judged.heatmap_RC.ravel().tolist())
        ),
        regions=tuple(Region(box=one.box, strength=round(one.strength, DIGITS)) for one in found),
        transform=transform,
        mirrored=judged.mirrored,
    )
