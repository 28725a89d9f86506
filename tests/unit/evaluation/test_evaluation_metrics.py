"""Shares and intervals against the figures of docs/facts.md, scipy's own, and exact arithmetic."""

from __future__ import annotations

from fractions import Fraction
from math import comb

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from evaluation.metrics import (
    Mean,
    Share,
    average_precision,
    bootstrap,
    calibration,
    ece,
    mean_of,
    overlap,
    rank_of,
    recall_at,
    share,
    share_of,
    upper,
)

ANSWERS = st.lists(st.tuples(st.floats(0, 1), st.booleans()), max_size=80)
AREAS = st.tuples(st.integers(0, 2**32 - 1), st.floats(0, 1), st.floats(0, 1))
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


@pytest.mark.parametrize(("events", "n"), [(0, 299), (1, 473), (2, 628)])
def test_the_upper_bound_is_the_one_our_facts_state(events: int, n: int) -> None:
    # "At most 1%" needs 0 of 299, 1 of 473 or 2 of 628: one answer fewer does not show it.
    assert upper(events, n) <= 0.01 < upper(events, n - 1)


@given(COUNTS)
@settings(max_examples=60, deadline=None)
def test_the_upper_bound_is_one_sided_and_exact(counts: tuple[int, int]) -> None:
    events, n = counts
    oracle = stats.binomtest(events, n, alternative="less").proportion_ci(0.95, method="exact").high if n else 1.0
    assert upper(events, n) == pytest.approx(oracle, abs=1e-9)
    assert upper(events, n) <= share(events, n).high


def test_a_mean_of_ones_and_zeros_is_a_share_and_redraws_photographs() -> None:
    rng = np.random.default_rng(3)
    right = (rng.random(200) < 0.7).tolist()
    photographs = [f"p{i // 4}" for i in range(200)]
    found, mean = bootstrap(right, photographs, seed=7), mean_of([float(each) for each in right], photographs, seed=7)
    assert (found.share, found.n, found.low, found.high) == (mean.mean, mean.n, mean.low, mean.high)
    assert mean_of([], []) == Mean(0.0, 0, 0.0, 1.0)
    with pytest.raises(ValueError, match="photograph"):
        mean_of([0.5], [])


@given(st.lists(st.tuples(st.floats(0, 1), st.integers(0, 5)), min_size=1, max_size=40))
@settings(max_examples=40, deadline=None)
def test_a_mean_lies_in_its_interval_and_between_its_values(drawn: list[tuple[float, int]]) -> None:
    values = [value for value, _ in drawn]
    found = mean_of(values, [str(photograph) for _, photograph in drawn], rounds=200)
    assert min(values) - 1e-9 <= found.low <= found.high <= max(values) + 1e-9
    assert found.mean == pytest.approx(float(np.mean(values)), abs=1e-9)
    assert found.json()["n"] == len(values)


def slow_ece(confidences: list[float], right: list[bool], bins: int) -> float:
    """Word by word: sort the answers into boxes, compare each box's two means."""
    boxes: dict[int, list[tuple[float, bool]]] = {}
    for confidence, good in zip(confidences, right, strict=True):
        boxes.setdefault(min(int(confidence * bins), bins - 1), []).append((confidence, good))
    error = 0.0
    for box in boxes.values():
        said = sum(confidence for confidence, _ in box) / len(box)
        was = sum(good for _, good in box) / len(box)
        error += len(box) / len(confidences) * abs(said - was)
    return error


@given(ANSWERS, st.integers(1, 20))
def test_calibration_error_against_its_slow_twin(answers: list[tuple[float, bool]], bins: int) -> None:
    confidences, right = [each[0] for each in answers], [each[1] for each in answers]
    found = ece(confidences, right, bins=bins)
    assert found == pytest.approx(slow_ece(confidences, right, bins), abs=1e-12)
    assert 0 <= found <= 1
    filled = calibration(confidences, right, bins=bins)
    assert sum(each.right.n for each in filled) == len(answers) and len(filled) == bins
    for each in filled:
        assert each.right.n == 0 or each.low - 1e-12 <= each.confidence <= each.high + 1e-12


def test_calibration_error_of_the_sure_and_of_the_honest() -> None:
    assert ece([1.0] * 4, [True] * 4) == 0.0
    assert ece([1.0] * 4, [False] * 4) == 1.0
    assert ece([0.75] * 4, [True, True, True, False]) == 0.0
    # two bins that err in opposite directions do not cancel
    assert ece([0.9, 0.9, 0.1, 0.1], [False, True, False, True]) == pytest.approx(0.4)
    assert ece([], []) == 0.0
    for confidences, right in (([1.01], [True]), ([float("nan")], [True]), ([0.5], [])):
        with pytest.raises(ValueError, match="confidence"):
            ece(confidences, right)


def slow_average_precision(scores: list[float], positive: list[bool]) -> float:
    """Every threshold in turn, all scores looked at each time."""
    total, area, recall = sum(positive), 0.0, 0.0
    for threshold in sorted(set(scores), reverse=True):
        above = [good for score, good in zip(scores, positive, strict=True) if score >= threshold]
        area += (sum(above) / total - recall) * sum(above) / len(above)
        recall = sum(above) / total
    return area


@given(st.lists(st.tuples(st.integers(0, 12), st.booleans()), max_size=60))
def test_average_precision_against_its_slow_twin(drawn: list[tuple[int, bool]]) -> None:
    scores, positive = [each[0] / 12 for each in drawn], [each[1] for each in drawn]
    found = average_precision(scores, positive)
    assert found == pytest.approx(slow_average_precision(scores, positive) if any(positive) else 0.0, abs=1e-12)


def test_average_precision_of_the_best_and_the_blind() -> None:
    assert average_precision([0.9, 0.8, 0.1], [True, True, False]) == 1.0
    assert average_precision([0.5] * 4, [True, False, False, False]) == 0.25
    with pytest.raises(ValueError, match="score"):
        average_precision([0.5], [])


@given(AREAS)
def test_overlap_is_symmetric_bounded_and_one_only_for_equal_areas(drawn: tuple[int, float, float]) -> None:
    seed, one_share, other_share = drawn
    rng = np.random.default_rng(seed)
    one_HW, other_HW = rng.random((7, 9)) < one_share, rng.random((7, 9)) < other_share
    found = overlap(one_HW, other_HW)
    assert found == overlap(other_HW, one_HW)
    if not one_HW.any() and not other_HW.any():
        assert found is None
        return
    pixels = [{(y, x) for y in range(7) for x in range(9) if area_HW[y, x]} for area_HW in (one_HW, other_HW)]
    assert found == len(pixels[0] & pixels[1]) / len(pixels[0] | pixels[1])
    assert (found == 1.0) == bool((one_HW == other_HW).all())


def test_overlap_with_nothing_is_nothing_and_of_nothing_is_unknown() -> None:
    nothing_HW, all_HW = np.zeros((4, 4), np.bool_), np.ones((4, 4), np.bool_)
    assert overlap(nothing_HW, nothing_HW) is None
    assert overlap(nothing_HW, all_HW) == 0.0
    with pytest.raises(ValueError, match="pixels"):
        overlap(nothing_HW, np.ones((4, 5), np.bool_))
