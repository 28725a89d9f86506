"""The threshold lets few strangers pass, the probability rises, shares carry honest intervals."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from training import calibrate
from training.calibrate import Outcome

scores = st.lists(st.floats(0, 60), min_size=1, max_size=300)


@given(scores, scores)
def test_the_threshold_keeps_strangers_out_and_leaves_margins(found: list[float], others: list[float]) -> None:
    threshold = calibrate.choose_threshold(found, others)

    def strangers(at: float) -> int:
        return sum(score >= at for score in others)

    def missed(at: float) -> int:
        return sum(score < at for score in found)

    allowed = calibrate.STRANGERS_SHARE_MAX * len(others)
    assert strangers(threshold) <= allowed
    step, margin = calibrate.THRESHOLD_STEP, 0.0
    while strangers(threshold - margin - step) <= allowed and margin <= threshold:
        margin += step
    # three times as far below the highest that misses few as above the lowest that keeps them out
    if margin:
        above = margin * (1 - calibrate.TOWARDS_MISSED) / calibrate.TOWARDS_MISSED
        assert missed(threshold + above) <= calibrate.MISSED_SHARE_MAX * len(found)


def test_the_logistic_recovers_its_maker() -> None:
    rng = np.random.default_rng(6)
    score = rng.uniform(0, 40, 20_000)
    right = rng.random(20_000) < 1 / (1 + np.exp(-(4 * np.log1p(score) - 11)))
    intercept, slope = calibrate.logistic(score.tolist(), right.tolist())
    assert intercept == pytest.approx(-11, rel=0.06) and slope == pytest.approx(4, rel=0.06)


def test_the_logistic_stays_finite_without_overlap() -> None:
    intercept, slope = calibrate.logistic([1.0] * 50 + [50.0] * 50, [False] * 50 + [True] * 50)
    assert np.isfinite([intercept, slope]).all() and slope > 0
    with pytest.raises(ValueError, match="both"):
        calibrate.logistic([1.0, 2.0], [True, True])


@given(st.floats(-30, 0), st.floats(0.1, 10))
def test_the_table_rises_and_stays_below_certainty(intercept: float, slope: float) -> None:
    points = calibrate.table(intercept, slope)
    assert all(a[0] < b[0] and a[1] <= b[1] for a, b in itertools.pairwise(points))
    assert points[0][0] == 0.0 and points[-1][1] <= calibrate.PROBABILITY_MAX


def test_shares_have_wilson_intervals() -> None:
    # docs/facts.md, Statistics (its intervals are exact ones, a little wider at the end)
    made = calibrate.share(186, 190)
    assert made["low"] == pytest.approx(0.947, abs=0.003) and made["high"] == pytest.approx(0.992, abs=0.003)
    assert calibrate.share(0, 40)["low"] == 0.0 and 0.08 < calibrate.share(0, 40)["high"] < 0.1


def outcome(kind: str, name: str, true: float, other: float, rank: int = 0) -> Outcome:
    return Outcome(kind=kind, name=name, rank=rank, rank_float32=rank, true_score=true, other_score=other)


def test_figures_count_what_they_say() -> None:
    asked = [
        outcome("benign", "a", 60, 5),
        outcome("benign", "b", 0, 5, rank=200),
        outcome("manip", "a", 12, 5, rank=3),
        outcome("both", "a", 30, 40),
    ]
    made = calibrate.figures(asked, 15.0)
    assert made["benign"]["found"]["share"] == 0.5 and made["benign"]["IR@100"]["share"] == 0.5
    assert made["manip"]["found"]["share"] == 0.0 and made["manip"]["IR@1"]["share"] == 1.0
    assert made["manip"]["IR@1 by embedding"]["share"] == 0.0
    assert made["both"]["found"]["share"] == 0.0 and made["both"]["IR@1"]["share"] == 0.0
    assert made["strangers found, queries"]["share"] == 0.25
    assert made["strangers found, photographs"] == calibrate.share(1, 2)


def test_calibrate_asks_half_with_and_half_without() -> None:
    rng = np.random.default_rng(7)
    asked = [outcome("benign", str(i), float(rng.normal(60, 15)), float(rng.normal(7, 2))) for i in range(400)]
    threshold, table = calibrate.calibrate(asked)
    assert 12 < threshold < 30
    at = dict(table)
    assert at[5.0] < 0.05 and max(at.values()) > 0.99


def test_nearest_is_by_the_better_view_with_ties_in_order() -> None:
    originals = np.array([[0, 10], [10, 0], [10, 0], [3, 3]], float)
    query = np.array([[9, 0], [0, 9]], float)
    assert calibrate.nearest(query, originals).tolist() == [0, 1, 2, 3]


def test_queries_are_the_same_whatever_is_rendered_beside_them() -> None:
    picture = np.random.default_rng(2).integers(0, 256, (96, 128, 3)).astype(np.uint8)
    donors = [picture[::-1].copy()]
    first = list(calibrate.rendered(picture, "a.jpg", donors))
    again = list(calibrate.rendered(picture, "a.jpg", donors))
    assert [kind for kind, _ in first] == ["benign"] * 3 + ["manip"] + ["both"] * 3
    assert all(np.array_equal(a, b) for (_, a), (_, b) in zip(first, again, strict=True))
    assert len({query.tobytes() for _, query in first}) == 7
