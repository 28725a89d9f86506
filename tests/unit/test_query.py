"""The way of a query over plain stand-ins: order of stages, bounds, verdict rules, honest coverage."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest

from stemma.api import Answer, Ask, Comparison, ImageRecord, Metadata
from stemma.config import Settings, load
from stemma.errors import BadImage, BadRequest, DeadlineExceeded, NotFound, TooLarge, Unavailable
from stemma.flow import Encoded, Found, Hit, Judged, Pairing, Pixels, ShardQuery
from stemma.networks.weights import ComparatorCard
from stemma.query import UNREACHABLE, Engine, Plan, answer, compare, resolve
from stemma.verdict import NOT_COMPARED, Rules, decide, rank
from stemma.vision.decode import working_copy

KNOWN = b"an original's bytes"
THRESHOLD = 10.0
CARD = ComparatorCard(
    name="c", size="starter", digest="", temperature=1.0, margin=0.2, distinct_min=0.5, heatmap_min=0.5
)


@dataclass
class FakeCard:
    digest: str = "weights"
    match_threshold: float = THRESHOLD

    def match_probability(self, score: float) -> float:
        return 1.0 / (1.0 + np.exp(THRESHOLD - score))


@dataclass
class FakeParts:
    """Decoder, encoder and shards in one, writing down in which order they are called."""

    hits: tuple[Hit, ...] = ()
    searched: int = 5
    total: int = 5
    missing: tuple[str, ...] = ()
    featureless: bool = False
    calls: list[str] = field(default_factory=list)
    asked: ShardQuery | None = None
    said: dict[str, tuple[float, float, float]] = field(default_factory=dict)
    """(benign, manipulated, distinct) by the row whose pixels are compared; benign for all others."""
    down: bool = False

    async def pixels(self, rows: Sequence[int]) -> list[bytes]:
        self.calls.append("pixels")
        return [b"%d" % row for row in rows]

    async def stored(self, image_id: str) -> tuple[ImageRecord, bytes]:
        if image_id != "known":
            raise NotFound("no such image", subject=image_id)
        digest = hashlib.sha256(KNOWN).hexdigest()
        record = ImageRecord(image_id="known", sha256=digest, width=60, height=40, seq=1, source="known.jpg")
        return record, working_copy(await self.decode(KNOWN))

    async def compare(self, query: Pixels, pairings: Sequence[Pairing]) -> list[Judged]:
        self.calls.append("compare")
        if self.down:
            raise Unavailable("no replica")
        return [judged(*self.said.get(one.original.decode("latin1"), (0.9, 0.05, 0.05))) for one in pairings]

    async def decode(self, body: bytes) -> Pixels:
        self.calls.append("decode")
        if body == b"bad":
            raise BadImage("not a picture")
        rgb = np.zeros((40, 60, 3), np.uint8)
        digest = hashlib.sha256(body).hexdigest()
        return Pixels(rgb_HWC=rgb, width=60, height=40, sha256=digest, format="PNG", notes=("first frame",))

    async def encode(self, pixels: Pixels, *, mirrored: bool) -> Encoded:
        self.calls.append("encode")
        views = 2 if mirrored else 1
        cells = np.zeros((views, 196, 32), np.int8)
        embedding = np.zeros((views, 256), np.int8)
        return Encoded(embedding_VD=embedding, cells_VNF=cells, featureless=self.featureless, weights="weights")

    async def search(self, query: ShardQuery, deadline_ms: float) -> Found:
        self.calls.append("search")
        self.asked = query
        return self._found(self.hits)

    async def identical(self, sha256: str, plan: Plan) -> Found | None:
        self.calls.append("identical")
        same = sha256 == hashlib.sha256(KNOWN).hexdigest()
        return self._found((hit("known", distance=0.0, match=None),)) if same else None

    async def metadata(self, rows: Sequence[int]) -> list[Metadata]:
        self.calls.append("metadata")
        return [{"name": f"{row}.jpg"} for row in rows]

    def _found(self, hits: tuple[Hit, ...]) -> Found:
        return Found(
            hits=hits,
            images_searched=self.searched,
            images_total=self.total,
            missing_hosts=self.missing,
            seq=7,
            nprobe=0,
            codec="exact",
        )


def judged(benign: float, manipulated: float, distinct: float) -> Judged:
    heatmap = np.full((37, 56), manipulated, np.float32)
    return Judged(
        benign=benign,
        manipulated=manipulated,
        distinct=distinct,
        logits=(0.0, 0.0, 0.0),
        heatmap_RC=heatmap,
        transform=((1.0, 0.0, 0.0), (0.0, 1.0, 0.0), (0.0, 0.0, 1.0)),
        mirrored=False,
        correlation=0.9,
        grid_RC=heatmap,
    )


def hit(image_id: str, *, distance: float, match: float | None, row: int = 0) -> Hit:
    return Hit(row=row, image_id=image_id, distance=distance, refined_distance=distance, match=match)


def ask(
    parts: FakeParts, body: bytes = b"unknown bytes", settings: Settings | None = None, **parameters: Any
) -> Answer:
    return asyncio.run(answer(body, Ask(**parameters), engine_of(parts, settings)))


def engine_of(parts: FakeParts, settings: Settings | None = None) -> Engine:
    return Engine(
        decoder=parts,
        encoder=parts,
        shards=parts,
        comparator=parts,
        card=FakeCard(),  # type: ignore[arg-type]
        comparator_card=CARD,
        settings=settings or load(),
    )


def test_the_stages_run_in_the_order_of_the_pipeline() -> None:
    parts = FakeParts(hits=(hit("a", distance=0.1, match=30.0),))
    ask(parts)
    assert parts.calls == ["identical", "decode", "encode", "search", "pixels", "compare", "metadata"]


def test_the_same_bytes_are_identical_before_any_network_runs() -> None:
    parts = FakeParts()
    result = ask(parts, KNOWN)
    assert (result.verdict, result.confidence) == ("identical", 1.0)
    assert result.original is not None
    assert result.original.image_id == "known"
    assert "encode" not in parts.calls


@pytest.mark.parametrize(
    ("match", "verdict", "named"),
    [(THRESHOLD, "benign", True), (THRESHOLD - 1e-6, "unknown", False), (None, "unknown", False)],
)
def test_an_original_is_named_from_the_threshold_on(match: float | None, verdict: str, named: bool) -> None:
    result = ask(FakeParts(hits=(hit("a", distance=0.2, match=match), hit("b", distance=0.1, match=1.0, row=1))))
    assert result.verdict == verdict
    assert (result.original is not None) is named
    assert 0.0 <= result.confidence <= 1.0
    if named:
        assert result.original is not None
        assert result.original.image_id == "a"
        assert result.original.comparison is not None
        assert result.original.probabilities == result.original.comparison.probabilities
        assert (result.candidates[1].probabilities, result.used.reranked) == (None, 1)


def test_the_original_is_the_first_candidate_that_the_comparator_does_not_cull() -> None:
    parts = FakeParts(
        hits=(hit("a", distance=0.1, match=30.0, row=1), hit("b", distance=0.2, match=20.0, row=2)),
        said={"1": (0.1, 0.1, 0.8), "2": (0.1, 0.8, 0.1)},
    )
    result = ask(parts)
    assert result.original is not None
    assert [one.image_id for one in result.candidates] == ["b", "a"]
    assert (result.verdict, result.original.image_id) == ("manipulated", "b")
    assert all(one.probabilities is not None for one in result.candidates)
    assert parts.calls.count("compare") == 2


def test_without_re_ranking_the_original_is_named_and_the_verdict_is_left_open() -> None:
    parts = FakeParts(hits=(hit("a", distance=0.1, match=30.0),))
    result = ask(parts, rerank=0)
    assert (result.verdict, result.used.reranked) == ("inconclusive", 0)
    assert result.original is not None
    assert NOT_COMPARED in result.notes
    assert "compare" not in parts.calls


def test_a_comparator_that_is_down_costs_the_verdict_and_not_the_answer() -> None:
    result = ask(FakeParts(hits=(hit("a", distance=0.1, match=30.0),), down=True))
    assert result.verdict == "inconclusive"
    assert result.original is not None
    assert any(note.startswith(UNREACHABLE) for note in result.notes)


def test_a_comparator_that_is_too_slow_costs_the_verdict_and_not_the_answer() -> None:
    class Slow(FakeParts):
        async def compare(self, query: Pixels, pairings: Sequence[Pairing]) -> list[Judged]:
            await asyncio.Event().wait()
            raise AssertionError("nobody sets it")

    result = ask(Slow(hits=(hit("a", distance=0.1, match=30.0),)), deadline_ms=300.0)
    assert result.verdict == "inconclusive"
    assert result.original is not None
    assert any(note.startswith(UNREACHABLE) for note in result.notes)


def compared(parts: FakeParts, query: bytes, original: bytes | str) -> Comparison:
    return asyncio.run(compare(query, original, engine_of(parts), parts))


def test_comparing_a_picture_with_itself_is_identical_before_any_network_runs() -> None:
    parts = FakeParts()
    for original in (KNOWN, "known"):
        assert compared(parts, KNOWN, original).verdict == "identical"
    assert "encode" not in parts.calls


def test_comparing_refuses_by_naming_which_picture() -> None:
    with pytest.raises(NotFound):
        compared(FakeParts(), b"query", "nobody")
    for query, original, named in ((b"bad", b"good", "query"), (b"good", b"bad", "original")):
        with pytest.raises(BadImage) as refusal:
            compared(FakeParts(), query, original)
        assert refusal.value.subject == named


def test_an_empty_collection_answers_unknown() -> None:
    result = ask(FakeParts(searched=0, total=0))
    assert (result.verdict, result.candidates, result.coverage.complete) == ("unknown", (), True)


def test_a_featureless_picture_is_inconclusive_and_names_nobody() -> None:
    result = ask(FakeParts(hits=(hit("a", distance=0.0, match=50.0),), featureless=True))
    assert (result.verdict, result.original, result.confidence) == ("inconclusive", None, 0.0)
    assert any("nothing in it" in note for note in result.notes)


@pytest.mark.parametrize(("searched", "missing"), [(3, ()), (5, ("host-2",))])
def test_a_partial_search_says_so(searched: int, missing: tuple[str, ...]) -> None:
    coverage = ask(FakeParts(searched=searched, missing=missing)).coverage
    assert not coverage.complete
    assert (coverage.images_searched, coverage.missing_hosts) == (searched, missing)


def test_k_cuts_the_answer_and_never_the_shortlist() -> None:
    hits = tuple(hit(f"{n}", distance=n / 10, match=20.0 - n) for n in range(20))
    parts = FakeParts(hits=hits)
    result = ask(parts, k=3)
    assert [candidate.image_id for candidate in result.candidates] == ["0", "1", "2"]
    assert parts.asked is not None
    assert parts.asked.shortlist == load().search.shortlist


@pytest.mark.parametrize(
    "parameters",
    [
        {"k": 0},
        {"k": -1},
        {"k": 101},
        {"k": 2**31},
        {"nprobe": 0},
        {"nprobe": 4097},
        {"donors": 21},
        {"rerank": 101},
        {"as_of": -1},
        {"deadline_ms": 0.0},
        {"deadline_ms": float("nan")},
        {"deadline_ms": 60_001.0},
    ],
)
def test_parameters_outside_their_limits_are_named(parameters: dict[str, Any]) -> None:
    with pytest.raises(BadRequest) as refusal:
        resolve(Ask(**parameters), load())
    assert refusal.value.subject == next(iter(parameters))


def test_a_body_over_its_limit_is_refused_before_it_is_looked_at() -> None:
    parts = FakeParts()
    with pytest.raises(TooLarge):
        ask(parts, b"x" * 2048, load(overrides=["decode.image_bytes_max=1024"]))
    assert parts.calls == []


def test_no_stage_begins_after_the_deadline() -> None:
    parts = FakeParts()
    with pytest.raises(DeadlineExceeded):
        ask(parts, deadline_ms=1e-6)
    assert "search" not in parts.calls


def test_confidence_rises_with_the_match_on_both_sides_of_the_threshold() -> None:
    encoded = asyncio.run(FakeParts().encode(None, mirrored=True))  # type: ignore[arg-type]
    rules = Rules(match=FakeCard(), comparator=CARD)  # type: ignore[arg-type]
    confidences = [
        decide(rank((hit("a", distance=0.1, match=match),)), {}, encoded, rules).confidence
        for match in (0.0, 5.0, 12.0, 30.0)
    ]
    assert confidences[0] > confidences[1]
    assert confidences[2] < confidences[3]
