"""Shares of right answers, each with its 95% interval.

The interval is the exact one of Clopper and Pearson: 190 right of 190 is [.981, 1], where an interval from a normal
approximation would claim certainty. It takes the n answers as independent; renderings of one photograph are not, so
``bootstrap`` redraws whole photographs. Letters: n answers, k depth of a ranked list, 1 the first place.
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
    if len(right) != len(photographs):
        raise ValueError("each answer needs the photograph it was rendered from")
    if not right:
        return share(0, 0)
    names, group_N = np.unique(np.asarray(photographs), return_inverse=True)
    right_G = np.bincount(group_N, weights=np.asarray(right, np.float64))
    total_G = np.bincount(group_N).astype(np.float64)
    rng = np.random.default_rng(seed)
    picks_RG = rng.integers(len(names), size=(rounds, len(names)))
    shares_R: NDArray[np.float64] = right_G[picks_RG].sum(1) / total_G[picks_RG].sum(1)
    low, high = np.quantile(shares_R, [(1 - level) / 2, (1 + level) / 2])
    return Share(float(right_G.sum() / total_G.sum()), len(right), float(low), float(high))


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
