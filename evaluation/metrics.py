"""Shares of right answers and means, each with its 95% interval; how far confidence can be believed; overlap of areas.

The interval of a share is the exact one of Clopper and Pearson: 190 right of 190 is [.981, 1], where an interval from a
normal approximation would claim certainty. It takes the n answers as independent; renderings of one photograph are not,
so ``bootstrap`` and ``mean_of`` redraw whole photographs. Letters: n answers, k depth of a ranked list, 1 the first
place; N answers, G photographs, R rounds of redrawing; H, W pixels.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass

import numpy as np
from numpy.typing import NDArray

LEVEL = 0.95
BISECTIONS = 60
"""Halvings of [0, 1]: 2**-60 is below the last bit of a float near 1."""
BOOTSTRAP_ROUNDS = 2_000
CALIBRATION_BINS = 15


@dataclass(frozen=True, slots=True)
class Share:
    """``share`` of ``n`` answers were right; ``low`` to ``high`` is where the true share lies 95 times of 100."""

    share: float
    n: int
    low: float
    high: float

    def json(self, digits: int = 4) -> dict[str, float | int]:
        """As the figures print it: rounded, ``n`` as a whole number."""
        return {key: value if key == "n" else round(value, digits) for key, value in asdict(self).items()}


@dataclass(frozen=True, slots=True)
class Mean:
    """``mean`` over ``n`` answers; ``low`` to ``high`` from redrawing whole photographs."""

    mean: float
    n: int
    low: float
    high: float

    def json(self, digits: int = 4) -> dict[str, float | int]:
        """As ``Share.json``."""
        return {key: value if key == "n" else round(value, digits) for key, value in asdict(self).items()}


@dataclass(frozen=True, slots=True)
class Bin:
    """Answers whose confidence lies in [low, high); the last bin holds 1 too. An empty bin has mean confidence 0."""

    low: float
    high: float
    confidence: float
    """Mean of the answers in it."""
    right: Share


def share(right: int, n: int, *, level: float = LEVEL) -> Share:
    """``right`` of ``n`` with the exact interval; of nothing asked nothing is known: share 0, [0, 1].

    Raises ``ValueError`` unless 0 <= right <= n.
    """
    if not 0 <= right <= n:
        raise ValueError(f"{right} right of {n} cannot be")
    if n == 0:
        return Share(0.0, 0, 0.0, 1.0)
    tail = (1.0 - level) / 2
    low = 0.0 if right == 0 else _root(lambda p: _at_least(right, n, p) < tail)
    high = 1.0 if right == n else _root(lambda p: 1.0 - _at_least(right + 1, n, p) >= tail)
    return Share(right / n, n, low, high)


def share_of(right: Iterable[bool]) -> Share:
    """The share of true values."""
    values = list(right)
    return share(sum(values), len(values))


def recall_at(k: int, ranks: Sequence[int | None]) -> Share:
    """IR@k: how often the right original is among the first ``k``.

    ``ranks`` holds its place in each answer, 1 for the first, None where it is not listed. Raises ``ValueError`` for a
    k or a rank below 1.
    """
    if k < 1 or any(rank is not None and rank < 1 for rank in ranks):
        raise ValueError("places count from 1")
    return share_of(rank is not None and rank <= k for rank in ranks)


def rank_of(wanted: str, listed: Sequence[str]) -> int | None:
    """The place of ``wanted`` in a ranked list, 1 for the first; None when it is not there."""
    return listed.index(wanted) + 1 if wanted in listed else None


def upper(events: int, n: int, *, level: float = LEVEL) -> float:
    """The one-sided exact upper bound on a share of which ``events`` of ``n`` were seen: 0 of 299 is .01.

    Of nothing asked it is 1. Raises ``ValueError`` unless 0 <= events <= n.
    """
    return share(events, n, level=2 * level - 1).high


def bootstrap(
    right: Sequence[bool],
    photographs: Sequence[str],
    *,
    seed: int,
    rounds: int = BOOTSTRAP_ROUNDS,
    level: float = LEVEL,
) -> Share:
    """The share of true values; its percentile interval redraws whole photographs, with all that was rendered of each.

    Where every answer is right (or none), redrawing shows no spread at all: then ``share`` over the photographs is the
    honest figure. Raises ``ValueError`` for lists of different lengths.
    """
    found = mean_of([float(each) for each in right], photographs, seed=seed, rounds=rounds, level=level)
    return Share(found.mean, found.n, found.low, found.high)


def mean_of(
    values: Sequence[float],
    photographs: Sequence[str],
    *,
    seed: int = 0,
    rounds: int = BOOTSTRAP_ROUNDS,
    level: float = LEVEL,
) -> Mean:
    """The mean of values in 0..1; its percentile interval redraws whole photographs, as ``bootstrap`` does.

    Of nothing nothing is known: mean 0, [0, 1]. Raises ``ValueError`` for lists of different lengths.
    """
    if len(values) != len(photographs):
        raise ValueError("each answer needs the photograph it was rendered from")
    if not values:
        return Mean(0.0, 0, 0.0, 1.0)
    names, group_N = np.unique(np.asarray(photographs), return_inverse=True)
    sum_G = np.bincount(group_N, weights=np.asarray(values, np.float64))
    total_G = np.bincount(group_N).astype(np.float64)
    rng = np.random.default_rng(seed)
    picks_RG = rng.integers(len(names), size=(rounds, len(names)))
    means_R: NDArray[np.float64] = sum_G[picks_RG].sum(1) / total_G[picks_RG].sum(1)
    low, high = np.quantile(means_R, [(1 - level) / 2, (1 + level) / 2])
    return Mean(float(sum_G.sum() / total_G.sum()), len(values), float(low), float(high))


def calibration(confidences: Sequence[float], right: Sequence[bool], *, bins: int = CALIBRATION_BINS) -> list[Bin]:
    """Answers in ``bins`` equal steps of their confidence, which should say how often they are right.

    Raises ``ValueError`` for lists of different lengths and for a confidence outside 0..1.
    """
    if len(confidences) != len(right):
        raise ValueError("each confidence needs to know whether its answer was right")
    confidence_N, right_N = np.asarray(confidences, np.float64), np.asarray(right, np.bool_)
    if not ((confidence_N >= 0) & (confidence_N <= 1)).all():  # NaN compares false, and is refused here too
        raise ValueError("a confidence lies in 0..1")
    place_N = np.minimum((confidence_N * bins).astype(np.int64), bins - 1)
    filled = []
    for i in range(bins):
        inside_N = place_N == i
        confidence = float(confidence_N[inside_N].mean()) if inside_N.any() else 0.0
        filled.append(Bin(i / bins, (i + 1) / bins, confidence, share_of(right_N[inside_N].tolist())))
    return filled


def ece(confidences: Sequence[float], right: Sequence[bool], *, bins: int = CALIBRATION_BINS) -> float:
    """Expected calibration error: |mean confidence - share right| of each bin, weighted by its answers. 0 for none.

    Raises as ``calibration``.
    """
    filled = calibration(confidences, right, bins=bins)
    return math.fsum(each.right.n * abs(each.confidence - each.right.share) for each in filled) / max(1, len(right))


def average_precision(scores: Sequence[float], positive: Sequence[bool]) -> float:
    """sum over n of (R_n - R_{n-1}) P_n, recall and precision of the n highest scores; equal scores count together.

    0 where nothing is positive. Raises ``ValueError`` for lists of different lengths.
    """
    if len(scores) != len(positive):
        raise ValueError("each score needs to know whether it is of a positive")
    score_N, positive_N = np.asarray(scores, np.float64), np.asarray(positive, np.bool_)
    if not positive_N.any():
        return 0.0
    order_N = np.argsort(-score_N, kind="stable")
    ends_N = np.append(np.diff(score_N[order_N]) != 0, True)  # the last of each run of equal scores
    hits_N = np.cumsum(positive_N[order_N])[ends_N]
    asked_N = np.flatnonzero(ends_N) + 1
    return float((np.diff(hits_N, prepend=0) * hits_N / asked_N).sum() / positive_N.sum())


def overlap(shown_HW: NDArray[np.bool_], true_HW: NDArray[np.bool_]) -> float | None:
    """Intersection over union of two areas; None when both are empty: nothing was there to be shown.

    Raises ``ValueError`` for areas of different shapes.
    """
    if shown_HW.shape != true_HW.shape:
        raise ValueError(f"areas of {shown_HW.shape} and {true_HW.shape} pixels have no overlap")
    union = int(np.count_nonzero(shown_HW | true_HW))
    return int(np.count_nonzero(shown_HW & true_HW)) / union if union else None


def _at_least(right: int, n: int, p: float) -> float:
    """P(X >= right) for X binomial (n, p), 0 < p < 1, summed over the shorter tail."""
    if right > n * p:
        return math.fsum(_mass(i, n, p) for i in range(right, n + 1))
    return 1.0 - math.fsum(_mass(i, n, p) for i in range(right))


def _mass(i: int, n: int, p: float) -> float:
    choose = math.lgamma(n + 1) - math.lgamma(i + 1) - math.lgamma(n - i + 1)
    return math.exp(choose + i * math.log(p) + (n - i) * math.log1p(-p))


def _root(below: Callable[[float], bool]) -> float:
    """Where ``below`` turns from true to false on (0, 1)."""
    low, high = 0.0, 1.0
    for _ in range(BISECTIONS):
        middle = (low + high) / 2
        if not low < middle < high:
            break
        low, high = (middle, high) if below(middle) else (low, middle)
    return (low + high) / 2
