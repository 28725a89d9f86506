"""Re-ranking and verdict rules: properties over random shortlists, with full re-ranking as the oracle."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stemma import verdict
from stemma.flow import Encoded, Hit, Judged, Pixels
from stemma.networks.weights import ComparatorCard
from stemma.verdict import Rules
from stemma.vision import geometry

THRESHOLD = 10.0


@dataclass(frozen=True)
class FakeCard:
    match_threshold: float = THRESHOLD

    def match_probability(self, score: float) -> float:
        return float(1.0 / (1.0 + np.exp(THRESHOLD - score)))


CARD = ComparatorCard(
    name="c", size="starter", digest="", temperature=1.0, margin=0.2, distinct_min=0.5, heatmap_min=0.5
)
RULES = Rules(match=FakeCard(), comparator=CARD)  # type: ignore[arg-type]
ENCODED = Encoded(embedding_VD=np.zeros((1, 256), np.int8), cells_VNF=None, featureless=False, weights="")


def judged(benign: float, manipulated: float, distinct: float, **more: Any) -> Judged:
    total = benign + manipulated + distinct
    flat = np.zeros((42, 56), np.float32)
    return replace(
        Judged(
            benign=benign / total,
            manipulated=manipulated / total,
            distinct=distinct / total,
            logits=(0.0, 0.0, 0.0),
            heatmap_RC=flat,
            transform=geometry.as_rows(geometry.identity()),
            mirrored=False,
            correlation=0.5,
            grid_RC=flat,
        ),
        **more,
    )


chances = st.floats(0.001, 1.0)
pairs = st.builds(judged, chances, chances, chances)
matches = st.none() | st.floats(0, 60) | st.just(THRESHOLD)
shortlists = st.lists(st.tuples(matches, st.floats(0, 4), pairs), max_size=12)


def shortlist(rows: list[tuple[float | None, float, Judged]]) -> tuple[tuple[Hit, ...], dict[int, Judged]]:
    hits = [
        Hit(row=n, image_id=f"{n:02}", distance=far, refined_distance=far, match=match)
        for n, (match, far, _) in enumerate(rows)
    ]
    return verdict.rank(hits), {n: said for n, (_, _, said) in enumerate(rows)}


def compare_until_settled(
    ranked: tuple[Hit, ...], world: dict[int, Judged], most: int, batch: int
) -> dict[int, Judged]:
    compared: dict[int, Judged] = {}
    while chosen := verdict.next_pairs(ranked, compared, RULES, most=most, batch=batch):
        assert len(chosen) <= batch
        assert not {hit.row for hit in chosen} & compared.keys()
        compared |= {hit.row: world[hit.row] for hit in chosen}
    assert len(compared) <= most
    return compared


@given(shortlists, st.integers(0, 12), st.integers(1, 4))
def test_stopping_early_gives_the_first_result_of_comparing_them_all(
    rows: list[tuple[float | None, float, Judged]], most: int, batch: int
) -> None:
    ranked, world = shortlist(rows)
    early = compare_until_settled(ranked, world, most, batch)
    full = {hit.row: world[hit.row] for hit in ranked[:most] if RULES.could_be_original(hit)}
    assert early.keys() <= full.keys()
    assert verdict.best_original(ranked, early, RULES) == verdict.best_original(ranked, full, RULES)
    if full:
        decided = [verdict.decide(verdict.rerank(ranked, done, RULES), done, ENCODED, RULES) for done in (early, full)]
        assert decided[0].original == decided[1].original
        assert decided[0].verdict == decided[1].verdict


@given(shortlists, st.integers(0, 12))
def test_re_ranking_only_permutes_the_shortlist(rows: list[tuple[float | None, float, Judged]], most: int) -> None:
    ranked, world = shortlist(rows)
    compared = compare_until_settled(ranked, world, most, 4)
    again = verdict.rerank(ranked, compared, RULES)
    assert sorted(hit.row for hit in again) == sorted(hit.row for hit in ranked)
    if not compared:
        assert again == ranked


@given(shortlists)
def test_confidence_is_a_probability_and_an_original_passed_every_rule(
    rows: list[tuple[float | None, float, Judged]],
) -> None:
    ranked, world = shortlist(rows)
    compared = compare_until_settled(ranked, world, 8, 4)
    decision = verdict.decide(verdict.rerank(ranked, compared, RULES), compared, ENCODED, RULES)
    assert 0.0 <= decision.confidence <= 1.0
    assert (decision.original is None) == (decision.verdict == "unknown")
    if decision.original is not None:
        assert (decision.original.match or 0.0) >= THRESHOLD
        assert compared[decision.original.row].distinct < CARD.distinct_min


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        (judged(0.9, 0.1, 0.0), "benign"),
        (judged(0.1, 0.9, 0.0), "manipulated"),
        (judged(0.55, 0.45, 0.0), "inconclusive"),
        (judged(0.45, 0.55, 0.0), "inconclusive"),
        (judged(0.01, 0.09, 0.3), "unknown"),
        # the margin is of the two alone: being half sure that it is the same picture at all does not make it even
        (judged(0.05, 0.5, 0.45), "manipulated"),
    ],
)
def test_the_verdict_follows_the_larger_probability_beyond_the_margin(said: Judged, expected: str) -> None:
    assert RULES.pair_verdict(said, 30.0) == expected
    ranked, _ = shortlist([(30.0, 0.1, said)])
    assert verdict.decide(ranked, {0: said}, ENCODED, RULES).verdict == expected


@pytest.mark.parametrize(
    ("match", "correlation", "transform", "expected"),
    [
        (30.0, 0.3, True, "manipulated"),
        (5.0, 0.9, True, "manipulated"),
        (5.0, 0.5, True, "unknown"),
        (30.0, 0.9, False, "unknown"),
    ],
)
def test_two_pictures_are_the_same_when_they_match_or_lie_on_each_other(
    match: float, correlation: float, transform: bool, expected: str
) -> None:
    rows = geometry.as_rows(geometry.identity()) if transform else None
    said = judged(0.02, 0.98, 0.0, correlation=correlation, transform=rows)
    assert RULES.pair_verdict(said, match) == expected


def test_a_culled_candidate_gives_way_to_the_next_that_holds() -> None:
    rows = [(50.0, 0.1, judged(0.1, 0.1, 0.8)), (20.0, 0.3, judged(0.9, 0.05, 0.05)), (4.0, 0.2, judged(1, 1, 1))]
    ranked, world = shortlist(rows)
    compared = compare_until_settled(ranked, world, 8, 4)
    again = verdict.rerank(ranked, compared, RULES)
    decision = verdict.decide(again, compared, ENCODED, RULES)
    assert (decision.verdict, again[0].row, sorted(compared)) == ("benign", 1, [0, 1])


def test_what_was_not_compared_is_inconclusive_and_says_so() -> None:
    ranked, _ = shortlist([(30.0, 0.1, judged(1, 1, 1))])
    decision = verdict.decide(ranked, {}, ENCODED, RULES)
    assert (decision.verdict, decision.original) == ("inconclusive", ranked[0])
    assert decision.notes == (verdict.NOT_COMPARED,)


@given(st.integers(40, 4000), st.integers(40, 4000))
def test_a_comparison_speaks_of_the_full_size_picture(width: int, height: int) -> None:
    shrink = min(1.0, 512 / max(width, height))
    working = (max(1, round(width * shrink)), max(1, round(height * shrink)))
    hot = np.zeros((56, 56), np.float32)
    hot[10:20, 30:40] = 0.9
    half_33 = geometry.scaling(0.5, 0.5)
    said = judged(0.1, 0.9, 0.0, heatmap_RC=hot, transform=geometry.as_rows(half_33))
    pixels = Pixels(
        rgb_HWC=np.zeros((working[1], working[0], 3), np.uint8), width=width, height=height, sha256="", format="PNG"
    )
    shown = verdict.comparison(said, pixels, "manipulated", RULES)
    assert shown.transform is not None
    corner = geometry.apply(geometry.from_rows(shown.transform), np.array([[float(width), float(height)]]))
    assert np.allclose(corner, np.array([working]) / 2)
    (region,) = shown.regions
    assert np.allclose(region.box, (width * 30 / 56, height * 10 / 56, width * 40 / 56, height * 20 / 56))
    assert region.strength == pytest.approx(0.9, abs=1e-4)


@dataclass(frozen=True)
class Trace:
    probability: float
    shown: bool
    clone: bool
    row: int = 0


traces = st.lists(st.builds(Trace, st.floats(0, 1), st.booleans(), st.booleans()), max_size=6)


@given(traces, st.sampled_from(["identical", "benign", "manipulated", "inconclusive", "unknown"]))
def test_only_an_unknown_picture_with_a_donor_that_is_shown_is_spliced(found: list[Trace], before: Any) -> None:
    decision = verdict.Decision(verdict=before, confidence=0.5, notes=("a note",))
    after = verdict.traced(decision, found)
    sure = [one.probability for one in found if one.shown and not one.clone]
    if before == "unknown" and sure:
        assert after == replace(decision, verdict="spliced", confidence=max(sure))
    elif before == "unknown":
        # and whatever gave it, if anything did, is none of these
        assert after == replace(decision, confidence=after.confidence)
        assert after.confidence == pytest.approx(
            0.5 * min([1 - one.probability for one in found if not one.clone] + [1])
        )
    else:
        assert after is decision
