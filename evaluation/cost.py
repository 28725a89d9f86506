"""What looking for donors costs: the same embedded searches with and without, in turn, over a sample of each set."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from evaluation.queries import DEADLINE_MS, DONORS, K, Query, Search
from stemma.api import Ask
from stemma.terminal import progress

PER_SET = 8
"""Queries timed of each set, evenly spread over it."""

Clock = Callable[[], float]


def sample(queries: Sequence[Query], each: int = PER_SET) -> dict[str, list[Query]]:
    """At most ``each`` queries of every set, evenly spread."""
    sets: dict[str, list[Query]] = {}
    for query in queries:
        sets.setdefault(query.set, []).append(query)
    return {
        name: [part[i] for i in np.linspace(0, len(part) - 1, min(each, len(part))).astype(int)]
        for name, part in sorted(sets.items())
    }


def donor_cost(queries: Sequence[Query], search: Search, *, clock: Clock = time.perf_counter) -> dict[str, Any]:
    """``donor_search_ratio``: time of all queries with donors over that without, each set's sampled mean times its
    size; both means by set, and what each stage took on average. Which of the two goes first alternates, so that a busy
    machine slows both."""
    chosen, sizes = sample(queries), {query.set: 0 for query in queries}
    for query in queries:
        sizes[query.set] += 1
    asks = {with_: Ask(k=K, donors=DONORS if with_ else 0, deadline_ms=DEADLINE_MS) for with_ in (False, True)}
    by_set: dict[str, dict[bool, list[float]]] = {name: {False: [], True: []} for name in chosen}
    stages: dict[str, list[dict[str, float]]] = {name: [] for name in chosen}
    number = 0
    with progress("with donors, without", sum(map(len, chosen.values()))) as done:
        for name, part in chosen.items():
            for query in part:
                body = query.path.read_bytes()
                if number == 0:  # the first search loads and warms what all others find ready
                    search(body, asks[True])
                for with_ in (False, True) if number % 2 else (True, False):
                    begun = clock()
                    answer = search(body, asks[with_])
                    by_set[name][with_].append(1e3 * (clock() - begun))
                    if with_:
                        stages[name].append(answer.timings_ms)
                number += 1
                done(1)
    means = {name: {with_: float(np.mean(times)) for with_, times in both.items()} for name, both in by_set.items()}
    total = {with_: sum(sizes[name] * both[with_] for name, both in means.items()) for with_ in (False, True)}
    return {
        "donor_search_ratio": round(total[True] / total[False], 3) if total[False] else None,
        "donor_search": {
            name: {
                "ratio": round(both[True] / both[False], 3),
                "with_ms": round(both[True], 1),
                "without_ms": round(both[False], 1),
                "stages_ms": _mean_stages(stages[name]),
                "n": len(chosen[name]),
            }
            for name, both in means.items()
        },
    }


def _mean_stages(timings_ms: Sequence[dict[str, float]]) -> dict[str, float]:
    """Mean over all of some answers; a stage that one does not have took no time in it."""
    names = dict.fromkeys(name for each in timings_ms for name in each)
    return {name: round(sum(each.get(name, 0.0) for each in timings_ms) / len(timings_ms), 1) for name in names}
