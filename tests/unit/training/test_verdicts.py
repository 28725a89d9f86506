"""The fits of margin, thresholds and temperature, on evidence made up so that the right answer is known."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stemma.flow import Encoded, Hit, Judged
from stemma.networks.weights import Card, ComparatorCard
from stemma.verdict import Rules
from stemma.vision import geometry
from training import evidence, verdicts
from training.evidence import THRESHOLDS, Evidence, Kind, Side

CARD = Card(
    name="test",
    size="starter",
    digest="0" * 64,
    embedding_scale=1.0,
    cells_scale=1.0,
    match_threshold=20.0,
    calibration=((0.0, 0.0), (20.0, 0.5), (40.0, 1.0)),
)
COMPARATOR = ComparatorCard(
    name="test", size="starter", digest="0" * 64, temperature=1.0, margin=0.0, distinct_min=0.5, heatmap_min=0.5
)
RULES = Rules(match=CARD, comparator=COMPARATOR)


def judged(benign: float, manipulated: float, distinct: float, heat: float = 0.0) -> Judged:
    heatmap_RC = np.zeros((42, 56), np.float32)
    heatmap_RC[:21] = heat
    return Judged(
        benign=0.0,
        manipulated=0.0,
        distinct=0.0,
        logits=(math.log(benign), math.log(manipulated), math.log(distinct)),
        heatmap_RC=heatmap_RC,
        transform=geometry.as_rows(geometry.identity()),
        mirrored=False,
        correlation=1.0,
        grid_RC=heatmap_RC,
    )


def hit(row: int, match: float) -> Hit:
    return Hit(row=row, image_id=f"i{row}", distance=0.0, refined_distance=float(row), match=match)


def one(
    kind: Kind, name: str, said: Judged, *, match: float = 30.0, stranger: Judged | None = None, hidden: bool = False
) -> Evidence:
    far = {7: stranger} if stranger is not None else {}
    return Evidence(
        kind=kind,
        name=name,
        number=0,
        hidden=hidden,
        row=1,
        encoded=Encoded(embedding_VD=np.zeros((2, 256), np.int8), cells_VNF=None, featureless=False, weights=""),
        with_original=Side(hits=(hit(1, match), hit(2, 5.0)), judged={1: said}),
        without=Side(hits=(hit(7, 6.0), hit(2, 5.0)), judged=far),
        shown_T=evidence.shown(said, (42, 56), None if kind == "benign" else _upper()),
    )


def _upper() -> np.ndarray:
    mask = np.zeros((42, 56), np.uint8)
    mask[:21] = 255
    return mask


@settings(max_examples=12, deadline=None)
@given(st.floats(0.4, 5.0), st.integers(0, 10))
def test_the_temperature_of_logits_that_were_scaled_is_found(scale: float, seed: int) -> None:
    rng = np.random.default_rng(seed)
    true_N3 = rng.normal(0, 2, (4000, 3))
    chance_N3 = np.exp(true_N3) / np.exp(true_N3).sum(1, keepdims=True)
    label_N = (rng.random((4000, 1)) > chance_N3.cumsum(1)).sum(1).clip(0, 2)
    found = verdicts.fit_temperature(true_N3 * scale, label_N)
    assert found == pytest.approx(scale, rel=0.12)
    best = verdicts.cross_entropy(true_N3 * scale, label_N, found)
    assert all(best <= verdicts.cross_entropy(true_N3 * scale, label_N, found * other) + 1e-4 for other in (0.9, 1.1))


def test_distinct_is_the_middle_of_what_separates() -> None:
    assert verdicts.fit_distinct(np.array([0.0, 0.12, 0.21]), np.array([0.79, 0.9])) == pytest.approx(0.5)
    assert verdicts.fit_distinct(np.array([0.01, 0.32]), np.zeros(0)) == pytest.approx(0.65)
    # one true pair lies among the strangers: it is given up, not all of them let through
    assert verdicts.fit_distinct(np.array([0.0] * 9 + [0.95]), np.array([0.6, 0.7])) < 0.61


def margin_by_hand(leaning: Sequence[float], found: Sequence[bool]) -> float:
    """The slow twin: the rule in words, margin by margin."""

    def called(margin: float, sign: float) -> float:
        return sum(f and sign * x >= margin and sign * x > 0 for x, f in zip(leaning, found, strict=True)) / len(found)

    floor = min(0.96, called(0.0, -1) - 0.01)
    allowed = [m for m in verdicts.MARGINS.tolist() if called(m, -1) >= floor - 1e-9]
    good = [m for m in allowed if called(m, 1) <= 0.02 + 1e-9]
    return good[0] if good else allowed[-1]


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 1000), st.floats(0.5, 0.99), st.floats(0.0, 0.2))
def test_the_margin_is_the_rule(seed: int, confident: float, missed: float) -> None:
    rng = np.random.default_rng(seed)
    leaning_N = np.round(np.tanh(rng.normal(-2 * confident, 1.0, 300)), 3)
    found_N = rng.random(300) >= missed
    expected = margin_by_hand(leaning_N.tolist(), found_N.tolist())
    assert verdicts.fit_margin(leaning_N, found_N) == pytest.approx(expected)


def test_a_margin_is_asked_for_only_where_it_is_needed() -> None:
    sure = np.full(100, -0.99)
    assert verdicts.fit_margin(sure, np.ones(100, bool)) == 0.0
    # four of a hundred lean to manipulated; two may, so the margin is the first that takes the other two
    leaning = np.concatenate([np.full(96, -0.99), [0.1, 0.2, 0.3, 0.3]])
    assert verdicts.fit_margin(leaning, np.ones(100, bool)) == pytest.approx(0.22)


def test_the_heatmaps_threshold_keeps_benign_queries_quiet() -> None:
    iou_T = np.linspace(0.9, 0.1, len(THRESHOLDS))[None]
    loud_T = np.where(THRESHOLDS < 0.4, 0.02, 0.001)[None]
    assert verdicts.fit_heatmap(iou_T, loud_T) == pytest.approx(0.4)
    assert verdicts.fit_heatmap(iou_T, np.zeros_like(loud_T)) == pytest.approx(THRESHOLDS[0])
    assert verdicts.fit_heatmap(iou_T, np.ones_like(loud_T)) == pytest.approx(THRESHOLDS[-1])


@settings(max_examples=10, deadline=None)
@given(st.integers(0, 10_000))
def test_shown_is_iou_at_each_threshold(seed: int) -> None:
    rng = np.random.default_rng(seed)
    said = judged(0.5, 0.4, 0.1)
    said.heatmap_RC[:] = rng.random((42, 56), np.float32)
    mask_HW = (rng.random((42, 56)) > 0.6).astype(np.uint8) * 255
    got_T = evidence.shown(said, (42, 56), mask_HW)
    for t, value in zip(THRESHOLDS.tolist(), got_T, strict=True):
        area = said.heatmap_RC >= np.float32(t)
        assert value == pytest.approx((area & (mask_HW > 0)).sum() / (area | (mask_HW > 0)).sum())
        assert evidence.shown(said, (42, 56), None)[THRESHOLDS.tolist().index(t)] == pytest.approx(area.mean())


def test_a_whole_fit_says_what_is_true_of_its_evidence() -> None:
    seen = []
    for n in range(20):
        stranger = judged(0.05, 0.05, 0.9)
        seen.append(one("benign", f"p{n}", judged(0.9, 0.08, 0.02), stranger=stranger))
        seen.append(one("manip", f"p{n}", judged(0.1, 0.85, 0.05, heat=0.9)))
        seen.append(one("both", f"p{n}", judged(0.9, 0.05, 0.05), hidden=n % 2 == 0))
    card = verdicts.fit(seen, CARD, COMPARATOR)
    figures = card.figures[verdicts.FIGURES]
    assert figures["verdict benign"]["share"] == figures["verdict manip"]["share"] == 1.0
    # what cannot be seen is left out; of what can, all were called benign
    assert figures["verdict both"] == {**figures["verdict both"], "share": 0.0, "n": 10}
    assert figures["left out, the edit is not to be seen"] == 10
    assert figures["heatmap_iou manip"]["mean"] == 1.0 and figures["heatmap_iou both"]["mean"] == 0.0
    assert figures["false area benign"]["mean"] == 0.0 and figures["falsely accused"]["share"] == 0.0
    assert (
        figures["verdict unknown"]["share"] == 1.0
        and figures["luckiest strangers culled, whatever their match"]["share"] == 1.0
    )
    assert card.margin == 0.0 and 0.05 <= card.distinct_min <= 0.9


def test_early_stop_changes_no_first_place() -> None:
    rng = np.random.default_rng(0)
    for _ in range(60):
        matches = np.sort(rng.uniform(15, 40, 6))[::-1]
        hits = tuple(hit(n, float(match)) for n, match in enumerate(matches))
        said = {n: judged(*(rng.dirichlet([1, 1, 1]) + 1e-6).tolist()) for n in range(6) if matches[n] >= 20}
        side = Side(hits=hits, judged=said)
        full, stopped = (verdicts.first(side, RULES, stop=stop) for stop in (False, True))
        best = verdicts.replay(side, RULES, stop=False)[0]
        if RULES.is_original(best, verdicts.with_temperature(said[best.row], 1.0) if best.row in said else None):
            assert stopped == full


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 100), st.integers(1, 400))
def test_calibration_error_is_that_of_the_bins(seed: int, count: int) -> None:
    rng = np.random.default_rng(seed)
    confidence_N, right_N = rng.random(count), rng.random(count) < 0.5
    by_hand = 0.0
    for low in range(15):
        inside = (confidence_N >= low / 15) & ((confidence_N < (low + 1) / 15) | (low == 14))
        if inside.any():
            by_hand += inside.mean() * abs(confidence_N[inside].mean() - right_N[inside].mean())
    assert verdicts.expected_calibration_error(confidence_N, right_N) == pytest.approx(by_hand, abs=1e-6)


def test_a_mean_is_resampled_by_photograph() -> None:
    alone = verdicts.mean([(f"p{n}", float(n % 2)) for n in range(100)])
    # ten renderings of each of ten photographs, all alike: ten photographs' worth of knowledge
    alike = verdicts.mean([(f"p{n % 10}", float(n % 2)) for n in range(100)])
    assert alone["mean"] == alike["mean"] == 0.5 and alone["n"] == alike["n"] == 100
    assert alike["high"] - alike["low"] > 2 * (alone["high"] - alone["low"])


@pytest.mark.parametrize("kind", ["benign", "manip", "both"])
def test_questions_are_the_same_whatever_else_is_rendered(kind: Kind) -> None:
    rng = np.random.default_rng(3)
    picture = np.clip(rng.normal(128, 50, (120, 160, 3)), 0, 255).astype(np.uint8)
    donors = [picture[::-1].copy()]
    again = [evidence.question(picture, "a.jpg", donors, kind, 0) for _ in range(2)]
    listed = [q for q in evidence.questions(picture, "a.jpg", donors) if (q.kind, q.number) == (kind, 0)]
    assert np.array_equal(again[0].rgb_HWC, again[1].rgb_HWC) and np.array_equal(again[0].rgb_HWC, listed[0].rgb_HWC)
    assert (again[0].mask_HW is None) == (kind == "benign")
    if again[0].mask_HW is not None:
        assert again[0].mask_HW.shape == again[0].rgb_HWC.shape[:2]
        assert again[0].hidden or (again[0].mask_HW > 127).any()
