"""The way of a query, top to bottom: look up, decode, encode, search, verify, decide, answer.

``answer`` is the whole of it for one picture, over the protocols below. Embedded ones (``stemma/embedded.py``) compute
in the calling thread; served ones (``serving/engine.py``) coalesce concurrent calls behind the ``await``. Both give
the same answer, so the one-process collection is the oracle of every distributed test.
"""

from __future__ import annotations

import hashlib
import time
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Protocol

from stemma.api import Answer, Ask, Candidate, Coverage, Metadata, Used, Verdict, Versions
from stemma.config import Settings
from stemma.errors import BadRequest, DeadlineExceeded, TooLarge
from stemma.flow import Encoded, Found, Hit, Pixels, ShardQuery
from stemma.networks.weights import Card

NOT_COMPARED = "the original was found, but this version does not yet compare: what was changed in it is not known"
FEATURELESS = "the picture has nothing in it to recognise, so no answer can be trusted"


class Decoder(Protocol):
    async def decode(self, body: bytes) -> Pixels:
        """The picture in ``body`` at working size. Raises ``BadImage``, ``UnsupportedType``, ``TooLarge``."""
        ...


class Encoder(Protocol):
    async def encode(self, pixels: Pixels, *, mirrored: bool) -> Encoded:
        """Embedding and cells; with ``mirrored`` also those of the mirrored picture (V = 2, for queries)."""
        ...


class Shards(Protocol):
    async def search(self, query: ShardQuery, deadline_ms: float) -> Found:
        """The merged shortlist of all hosts, with what was not searched. Raises ``Unavailable``, ``BadRequest``."""
        ...

    async def identical(self, sha256: str, query: Plan) -> Found | None:
        """The live original with exactly these bytes, under the query's filter and ``as_of``, as a ``Found`` of one."""
        ...

    async def metadata(self, rows: Sequence[int]) -> list[Metadata]:
        """Metadata of the winners, in order, by row, since an image that was deleted meanwhile still has its row.

        ``name`` is what the original was called when it was ingested.
        """
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Engine:
    """Everything that answers a query."""

    decoder: Decoder
    encoder: Encoder
    shards: Shards
    card: Card
    settings: Settings


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """An ``Ask`` with every default resolved and every bound checked."""

    k: int
    nprobe: int
    filter: str | None
    as_of: int | None
    min_version: int | None
    deadline_ms: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Decision:
    """The verdict on one picture."""

    verdict: Verdict
    confidence: float
    original: bool = False
    """The first candidate is the original."""
    notes: tuple[str, ...] = ()


@dataclass(slots=True)
class Stages:
    """Wall time by stage, and the time that is left of a deadline. Stages do not overlap."""

    deadline_ms: float
    started: float = field(default_factory=time.monotonic)
    timings_ms: dict[str, float] = field(default_factory=dict)

    def left_ms(self) -> float:
        return self.deadline_ms - 1e3 * (time.monotonic() - self.started)

    @contextmanager
    def stage(self, name: str, *, always: bool = False) -> Iterator[None]:
        """Time one stage. Raises ``DeadlineExceeded`` when no time is left to begin it, unless it runs ``always``."""
        if self.left_ms() <= 0 and not always:
            raise DeadlineExceeded(f"{self.deadline_ms:.0f} ms were over before {name}; give more deadline_ms")
        begun = time.monotonic()
        try:
            yield
        finally:
            self.timings_ms[name] = round(1e3 * (time.monotonic() - begun), 3)


async def answer(image: bytes, ask: Ask, engine: Engine, *, query_id: str | None = None) -> Answer:
    """Where the picture in ``image`` comes from.

    Raises ``BadRequest`` for an ``ask`` outside the limits, the decoder's errors for a picture that cannot be read,
    ``DeadlineExceeded`` and ``Unavailable``. A partial search is an answer with ``coverage.complete = False``.
    """
    plan = resolve(ask, engine.settings)
    if len(image) > engine.settings.decode.image_bytes_max:
        raise TooLarge(
            f"a picture may have {engine.settings.decode.image_bytes_max} bytes (decode.image_bytes_max), "
            f"this one has {len(image)}"
        )
    query_id = query_id or uuid.uuid4().hex
    stages = Stages(plan.deadline_ms)

    with stages.stage("identity"):
        identical = await engine.shards.identical(hashlib.sha256(image).hexdigest(), plan)
    if identical is not None:
        decision = Decision(verdict="identical", confidence=1.0, original=True)
        return await _conclude(query_id, decision, identical, (), plan, engine, stages)

    with stages.stage("decode"):
        pixels = await engine.decoder.decode(image)
    with stages.stage("encode"):
        encoded = await engine.encoder.encode(pixels, mirrored=True)
    with stages.stage("search"):
        found = await engine.shards.search(_shard_query(encoded, plan, engine.settings), stages.left_ms())

    found = rank(found)
    decision = decide(found, encoded, engine.card)
    return await _conclude(query_id, decision, found, pixels.notes, plan, engine, stages)


def resolve(ask: Ask, settings: Settings) -> Plan:
    """Every default and bound of a question. Raises ``BadRequest`` naming the parameter and its limit."""
    limits, search = settings.limits, settings.search
    _within("rerank", ask.rerank, 0, limits.rerank_max)
    _within("donors", ask.donors, 0, limits.donors_max)
    _within("as_of", ask.as_of, 0, 2**63 - 1)
    _within("min_version", ask.min_version, 0, 2**63 - 1)
    deadline_ms = search.deadline_ms if ask.deadline_ms is None else ask.deadline_ms
    if not 0 < deadline_ms <= limits.deadline_ms_max:  # NaN compares false, and is refused here too
        raise BadRequest(f"deadline_ms must be over 0 and at most {limits.deadline_ms_max:.0f}", subject="deadline_ms")
    return Plan(
        k=_within("k", ask.k, 1, limits.k_max) or search.k,
        nprobe=_within("nprobe", ask.nprobe, 1, limits.nprobe_max) or search.nprobe,
        filter=ask.filter or None,
        as_of=ask.as_of,
        min_version=ask.min_version,
        deadline_ms=deadline_ms,
    )


def _within(name: str, value: int | None, low: int, high: int) -> int | None:
    if value is not None and not low <= value <= high:
        raise BadRequest(f"{name} must be {low} to {high}, not {value}", subject=name)
    return value


def _shard_query(encoded: Encoded, plan: Plan, settings: Settings) -> ShardQuery:
    return ShardQuery(
        encoded=encoded,
        shortlist=max(settings.search.shortlist, plan.k),
        nprobe=plan.nprobe,
        filter=plan.filter,
        as_of=plan.as_of,
        min_version=plan.min_version,
    )


def rank(found: Found) -> Found:
    """Verification orders the shortlist: the surer match first, then (refined_distance, image_id)."""

    def order(hit: Hit) -> tuple[float, float, str]:
        return (-(hit.match or 0.0), hit.refined_distance, hit.image_id)

    return replace(found, hits=tuple(sorted(found.hits, key=order)))


def decide(found: Found, encoded: Encoded, card: Card) -> Decision:
    """What the evidence says, by the first rule of docs/architecture.md that fits.

    The threshold and the probability of a match are fitted on the calibration photographs and stand in the card.
    """
    if encoded.featureless:
        return Decision(verdict="inconclusive", confidence=0.0, notes=(FEATURELESS,))
    best = (found.hits[0].match if found.hits else None) or 0.0
    probability = card.match_probability(best)
    if best >= card.match_threshold:
        return Decision(verdict="inconclusive", confidence=probability, original=True, notes=(NOT_COMPARED,))
    return Decision(verdict="unknown", confidence=1.0 - probability)


async def _conclude(
    query_id: str,
    decision: Decision,
    found: Found,
    notes: tuple[str, ...],
    plan: Plan,
    engine: Engine,
    stages: Stages,
) -> Answer:
    winners = found.hits[: plan.k]
    with stages.stage("metadata", always=True):  # the answer is known: a late one is better than none
        metadata = await engine.shards.metadata([hit.row for hit in winners])
    candidates = tuple(
        Candidate(
            image_id=hit.image_id,
            distance=hit.distance,
            refined_distance=hit.refined_distance,
            match=hit.match,
            metadata=known,
        )
        for hit, known in zip(winners, metadata, strict=True)
    )
    return Answer(
        query_id=query_id,
        verdict=decision.verdict,
        confidence=decision.confidence,
        original=candidates[0] if decision.original else None,
        candidates=candidates,
        coverage=Coverage(
            complete=found.images_searched == found.images_total and not found.missing_hosts,
            images_searched=found.images_searched,
            images_total=found.images_total,
            missing_hosts=found.missing_hosts,
        ),
        used=Used(k=plan.k, nprobe=found.nprobe, reranked=0, exact=found.codec == "exact", filter=plan.filter),
        versions=Versions(seq=found.seq, codec=found.codec, weights=engine.card.digest),
        notes=(*found.notes, *notes, *decision.notes),
        timings_ms={
            **stages.timings_ms,
            **found.timings_ms,
            "total": round(1e3 * (time.monotonic() - stages.started), 3),
        },
    )
