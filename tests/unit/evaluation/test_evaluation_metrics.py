"""Shares and intervals against the figures of docs/facts.md, scipy's own, and exact arithmetic."""

from __future__ import annotations

from fractions import Fraction
from math import comb

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from evaluation.metrics import Share, bootstrap, rank_of, recall_at, share, share_of

COUNTS = st.integers(0, 400).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n)))


@pytest.mark.parametrize(("right", "low", "high"), [(190, 0.981, 1.0), (188, 0.963, 0.999), (186, 0.947, 0.994)])
def test_the_interval_is_the_one_our_facts_state(right: int, low: float, high: float) -> None:
    found = share(right, 190)
    assert (found.low, found.high) == pytest.approx((low, high), abs=1e-3)


@given(COUNTS)
@settings(max_examples=60, deadline=None)
def test_the_interval_is_exact(counts: tuple[int, int]) -> None:
    right, n = counts
    found = share(right, n)
    if n == 0:
        assert found == Share(0.0, 0, 0.0, 1.0)
        return
    oracle = stats.binomtest(right, n).proportion_ci(method="exact")
    assert (found.low, found.high) == pytest.approx((oracle.low, oracle.high), abs=1e-9)
    assert found.low <= found.share == right / n <= found.high


def test_the_interval_covers_the_truth_as_often_as_it_says() -> None:
    # Summed over every outcome in exact fractions, so no draw can be lucky: coverage is never below the level.
    n = 23
    for p in (Fraction(1, 50), Fraction(1, 3), Fraction(9, 10)):
        covered = Fraction(0)
        for right in range(n + 1):
            found = share(right, n)
            if found.low <= p <= found.high:
                covered += comb(n, right) * p**right * (1 - p) ** (n - right)
        assert covered >= Fraction(95, 100)


def test_more_answers_at_the_same_share_say_more() -> None:
    few, many = share(9, 10), share(900, 1000)
    assert few.low < many.low < 0.9 < many.high < few.high


@pytest.mark.parametrize(("right", "n"), [(-1, 4), (5, 4)])
def test_impossible_counts_are_refused(right: int, n: int) -> None:
    with pytest.raises(ValueError, match="cannot be"):
        share(right, n)


def test_json_rounds_all_but_the_count() -> None:
    assert share(2, 3).json() == {"share": 0.6667, "n": 3, "low": 0.0943, "high": 0.9916}


@given(st.lists(st.none() | st.integers(1, 120), max_size=60))
def test_recall_grows_with_depth_and_counts_what_is_not_listed(ranks: list[int | None]) -> None:
    shares = [recall_at(k, ranks) for k in (1, 10, 100)]
    assert [each.n for each in shares] == [len(ranks)] * 3
    assert shares[0].share <= shares[1].share <= shares[2].share
    assert shares[2] == share_of(rank in range(1, 101) for rank in ranks)


def test_the_last_place_of_a_depth_counts() -> None:
    assert recall_at(10, [10, 11, None, 1]).share == 0.5


def test_places_count_from_one() -> None:
    assert [rank_of(name, ["a", "b", "a"]) for name in ("a", "b", "c")] == [1, 2, None]
    for k, ranks in ((0, [1]), (1, [0])):
        with pytest.raises(ValueError, match="from 1"):
            recall_at(k, ranks)


def test_bootstrap_redraws_photographs_and_not_renderings() -> None:
    # 40 photographs, 25 renderings each, all alike: as informative as 40 answers, not as 1000.
    rng = np.random.default_rng(5)
    by_photograph = rng.random(40) < 0.8
    right = np.repeat(by_photograph, 25).tolist()
    photographs = [f"p{i}" for i in range(40) for _ in range(25)]
    grouped = bootstrap(right, photographs, seed=1)
    alone = bootstrap(right, [str(i) for i in range(1000)], seed=1)
    assert grouped.share == alone.share == float(by_photograph.mean())
    assert grouped.high - grouped.low > 4 * (alone.high - alone.low)
    of_40 = share(int(by_photograph.sum()), 40)
    assert abs((grouped.high - grouped.low) - (of_40.high - of_40.low)) < 0.05
    assert bootstrap(right, photographs, seed=1) == grouped


def test_bootstrap_of_nothing_and_of_unequal_lists() -> None:
    assert bootstrap([], [], seed=0) == share(0, 0)
    with pytest.raises(ValueError, match="photograph"):
        bootstrap([True], [], seed=0)
