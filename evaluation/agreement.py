"""Embedded equals served (docs/architecture.md): same verdict, original, ordered candidates and donors, the same
probabilities within 1e-2, those of the heatmap as well. Whoever answers more than that differently is a bug of the
system, never of the picture.
"""

from __future__ import annotations

from collections.abc import Iterator

from stemma.api import Answer, Comparison, Heatmap, Probabilities

PROBABILITY_TOLERANCE = 1e-2


def differences(one: Answer, other: Answer) -> list[str]:
    """In what two answers to one question disagree, a sentence each; empty when they are equal."""
    return list(_differences(one, other))


def _differences(one: Answer, other: Answer) -> Iterator[str]:
    if one.verdict != other.verdict:
        yield f"verdict {one.verdict} and {other.verdict}"
    if _original(one) != _original(other):
        yield f"original {_original(one)} and {_original(other)}"
    first, second = [c.image_id for c in one.candidates], [c.image_id for c in other.candidates]
    if first != second:
        place = next(
            (i for i, (a, b) in enumerate(zip(first, second, strict=False)) if a != b), min(len(first), len(second))
        )
        yield f"candidates from place {place + 1} on"
    if [(d.image_id, d.shown, d.clone) for d in one.donors] != [(d.image_id, d.shown, d.clone) for d in other.donors]:
        yield "donors"
    for what, a, b in _probabilities(one, other):
        if abs(a - b) > PROBABILITY_TOLERANCE:
            yield f"{what} {a:.4f} and {b:.4f}"
    if one.coverage.complete != other.coverage.complete:
        yield "coverage: one of them did not search every image"


def _original(answer: Answer) -> str | None:
    return answer.original.image_id if answer.original else None


def _probabilities(one: Answer, other: Answer) -> Iterator[tuple[str, float, float]]:
    yield "confidence", one.confidence, other.confidence
    for a, b in zip(one.candidates, other.candidates, strict=False):
        if a.image_id == b.image_id and (a.probabilities is None) != (b.probabilities is None):
            yield f"compared {a.image_id}", float(a.probabilities is not None), float(b.probabilities is not None)
        elif a.image_id == b.image_id and a.probabilities and b.probabilities:
            for kind in Probabilities.model_fields:
                yield f"{kind} of {a.image_id}", getattr(a.probabilities, kind), getattr(b.probabilities, kind)
    first, second = _comparison(one), _comparison(other)
    if first is not None and second is not None:
        yield "mirrored", float(first.mirrored), float(second.mirrored)
        yield from _heatmaps(first.heatmap, second.heatmap)
    elif (first is None) != (second is None):
        yield "comparison", float(first is not None), float(second is not None)
    for donor, twin in zip(one.donors, other.donors, strict=False):
        yield f"donor {donor.image_id}", donor.probability, twin.probability


def _comparison(answer: Answer) -> Comparison | None:
    return answer.original.comparison if answer.original else None


def _heatmaps(one: Heatmap | None, other: Heatmap | None) -> Iterator[tuple[str, float, float]]:
    """The place where two heatmaps differ most; their sizes where those differ."""
    yield "rows of the heatmap", float(one.rows if one else 0), float(other.rows if other else 0)
    yield "columns of the heatmap", float(one.cols if one else 0), float(other.cols if other else 0)
    if one is None or other is None or (one.rows, one.cols) != (other.rows, other.cols):
        return
    place, (a, b) = max(enumerate(zip(one.values, other.values, strict=True)), key=lambda at: abs(at[1][0] - at[1][1]))
    yield f"heatmap in row {place // one.cols}, column {place % one.cols}", a, b
