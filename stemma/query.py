"""The way of a query, top to bottom: look up, decode, encode, search, verify, compare, decide, trace, answer.

``answer`` is the whole of it for one picture, over the protocols below. Embedded ones (``stemma/embedded.py``) compute
in the calling thread; served ones (``serving/engine.py``) coalesce concurrent calls behind the ``await``. Both give
the same answer, so the one-process collection is the oracle of every distributed test.
"""

from __future__ import annotations

import asyncio
import hashlib
import time
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Protocol

import numpy as np

from stemma import donors, verdict
from stemma.api import Answer, Ask, Candidate, Comparison, Coverage, Donor, ImageRecord, Metadata, Used, Versions
from stemma.config import Settings
from stemma.donors import Finder, Sought, Traced
from stemma.errors import BadRequest, DeadlineExceeded, NotFound, StemmaError, TooLarge, Unavailable
from stemma.flow import AnyQuery, Encoded, Found, Hit, Judged, Pairing, Pixels, ShardQuery
from stemma.networks import explain
from stemma.networks.matching import match
from stemma.networks.weights import Card, ComparatorCard
from stemma.stages import Stages
from stemma.verdict import Decision, Rules
from stemma.vision import geometry
from stemma.vision.decode import read_working_copy, working_copy

UNREACHABLE = "no comparator answered"
COMPARE_SHARE = 0.9
"""Of the time that is left behind a search: the rest is for metadata and the reply."""


class Decoder(Protocol):
    async def decode(self, body: bytes) -> Pixels:
        """The picture in ``body`` at working size. Raises ``BadImage``, ``UnsupportedType``, ``TooLarge``."""
        ...


class Encoder(Protocol):
    async def encode(self, pixels: Pixels, *, mirrored: bool) -> Encoded:
        """Embedding and cells; with ``mirrored`` also those of the mirrored picture (V = 2, for queries)."""
        ...


class Shards(Protocol):
    async def search(self, query: AnyQuery, deadline_ms: float) -> Found:
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

    async def pixels(self, rows: Sequence[int]) -> list[bytes]:
        """Working copies (JPEG) by row, in order."""
        ...

    async def stored(self, image_id: str) -> tuple[ImageRecord, bytes]:
        """A live original and its working copy. Raises ``NotFound``."""
        ...

    async def objects_weights(self) -> str | None:
        """Digest of the weights that made the objects of the collection; None: nothing in it has any."""
        ...


class Comparator(Protocol):
    async def compare(self, query: Pixels, pairings: Sequence[Pairing]) -> list[Judged]:
        """The query with each of some originals, in order. Raises ``Unavailable`` where no comparator answers."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Networks:
    """Everything that compares two pictures."""

    decoder: Decoder
    encoder: Encoder
    comparator: Comparator
    card: Card
    comparator_card: ComparatorCard
    settings: Settings

    @property
    def rules(self) -> Rules:
        return Rules(match=self.card, comparator=self.comparator_card)


@dataclass(frozen=True, slots=True, kw_only=True)
class Engine(Networks):
    """Everything that answers a query."""

    shards: Shards
    finder: Finder | None = None
    """None: the weights bring no objects, and no answer has donors."""

    @classmethod
    def over(cls, networks: Networks, shards: Shards, finder: Finder | None) -> Engine:
        """These networks over a collection's shards."""
        known = {one.name: getattr(networks, one.name) for one in fields(Networks)}
        return cls(**known, shards=shards, finder=finder)


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """An ``Ask`` with every default resolved and every bound checked."""

    k: int
    nprobe: int
    rerank: int
    donors: int
    filter: str | None
    as_of: int | None
    min_version: int | None
    deadline_ms: float


async def answer(image: bytes, ask: Ask, engine: Engine, *, query_id: str | None = None) -> Answer:
    """Where the picture in ``image`` comes from.

    Raises ``BadRequest`` for an ``ask`` outside the limits, the decoder's errors for a picture that cannot be read,
    ``DeadlineExceeded`` and ``Unavailable``. A partial search is an answer with ``coverage.complete = False``.
    """
    plan = resolve(ask, engine.settings)
    _bounded(image, engine.settings)
    query_id = query_id or uuid.uuid4().hex
    stages = Stages(plan.deadline_ms)

    with stages.stage("identity"):
        identical = await engine.shards.identical(hashlib.sha256(image).hexdigest(), plan)
    if identical is not None:
        decision = Decision(verdict="identical", confidence=1.0, original=identical.hits[0])
        return await _conclude(query_id, decision, identical, {}, None, Traced(), plan, engine, stages)

    with stages.stage("decode"):
        pixels = await engine.decoder.decode(image)
    with stages.stage("encode"):
        encoded = await engine.encoder.encode(pixels, mirrored=True)
    with stages.stage("search"):
        found = await engine.shards.search(_shard_query(encoded, plan, engine.settings), stages.left_ms())

    found = replace(found, hits=verdict.rank(found.hits))
    compared: dict[int, Judged] = {}
    if not encoded.featureless:
        found = await _compare(pixels, found, compared, plan, engine, stages)
    decision = verdict.decide(found.hits, compared, encoded, engine.rules)
    decision, traced = await _traced(pixels, found, compared, decision, plan, engine, stages)
    return await _conclude(query_id, decision, found, compared, pixels, traced, plan, engine, stages)


async def _compare(
    pixels: Pixels, found: Found, compared: dict[int, Judged], plan: Plan, engine: Engine, stages: Stages
) -> Found:
    """Fill ``compared`` round by round until the first place is settled; the shortlist in its new order.

    A comparator that is down or too slow costs the verdict and not the answer: where the picture comes from is known.
    """
    batch = engine.settings.comparator.batch_pairs_max
    try:
        async with asyncio.timeout(COMPARE_SHARE * stages.left_ms() / 1e3):
            while chosen := verdict.next_pairs(found.hits, compared, engine.rules, most=plan.rerank, batch=batch):
                with stages.stage("pixels"):
                    originals = await engine.shards.pixels([hit.row for hit in chosen])
                pairings = [_pairing(hit, original) for hit, original in zip(chosen, originals, strict=True)]
                with stages.stage("compare"):
                    judged = await engine.comparator.compare(pixels, pairings)
                compared.update({hit.row: one for hit, one in zip(chosen, judged, strict=True)})
    except (Unavailable, DeadlineExceeded) as error:
        found = replace(found, notes=(*found.notes, f"{UNREACHABLE}: {error.detail}"))
    except TimeoutError:
        found = replace(found, notes=(*found.notes, f"{UNREACHABLE} in time; give more deadline_ms"))
    return replace(found, hits=verdict.rerank(found.hits, compared, engine.rules))


async def _traced(
    pixels: Pixels,
    found: Found,
    compared: Mapping[int, Judged],
    decision: Decision,
    plan: Plan,
    engine: Engine,
    stages: Stages,
) -> tuple[Decision, Traced]:
    """The donors, and what they make of the decision. An original that may be but a donor is first looked for as one.

    A thing as large as half of the picture makes its donor look like the original, heavily edited.
    """
    if verdict.perhaps_a_piece(decision, compared):
        without = verdict.without_original(decision)
        traced = await _trace(pixels, replace(found, hits=()), {}, without, plan, engine, stages)
        if verdict.is_a_piece(decision, traced.traces):
            return verdict.traced(without, traced.traces), traced
    traced = await _trace(pixels, found, compared, decision, plan, engine, stages)
    return verdict.traced(decision, traced.traces), traced


async def _trace(
    pixels: Pixels,
    found: Found,
    compared: Mapping[int, Judged],
    decision: Decision,
    plan: Plan,
    engine: Engine,
    stages: Stages,
) -> Traced:
    """Where the pieces come from: of a changed original its changed regions, of an unknown picture all its objects."""
    if not plan.donors or engine.finder is None:
        return Traced()
    host, box_O4, transform_33 = decision.original, None, None
    if host is None:
        if decision.verdict != "unknown":
            return Traced()
    elif decision.verdict == "benign" or host.row not in compared:
        return Traced()
    else:
        judged, size = compared[host.row], (pixels.rgb_HWC.shape[1], pixels.rgb_HWC.shape[0])
        changed = explain.regions(judged.heatmap_RC, size, shown_min=engine.comparator_card.heatmap_min)
        if not changed:
            return Traced()
        box_O4 = np.array([one.box for one in changed], np.float32)
        transform_33 = None if judged.transform is None else geometry.from_rows(judged.transform)
    sought = Sought(
        pixels=pixels,
        host=host,
        box_O4=box_O4,
        host_from_query_33=transform_33,
        excluded=tuple(hit.row for hit in found.hits if engine.rules.is_original(hit, compared.get(hit.row))),
        nprobe=plan.nprobe,
        filter=plan.filter,
        as_of=plan.as_of,
        min_version=plan.min_version,
    )
    return await donors.trace(sought, engine.finder, engine.shards, stages)


def _pairing(hit: Hit, original: bytes) -> Pairing:
    return Pairing(original=original, affine=hit.affine, mirrored=hit.mirrored)


async def compare(
    query: bytes,
    original: bytes | str,
    engine: Networks,
    shards: Shards | None = None,
    *,
    deadline_ms: float | None = None,
) -> Comparison:
    """What was changed in the picture ``query``, against one original: its bytes, or the image id of one in the shards.

    The verdict is ``unknown`` where the query does not come from this original. Raises ``NotFound`` for an id that is
    not there, the decoder's errors (``subject`` says which picture), ``DeadlineExceeded`` and ``Unavailable``.
    """
    plan = resolve(Ask(deadline_ms=deadline_ms), engine.settings)
    stages = Stages(plan.deadline_ms)
    _bounded(query, engine.settings, "query")
    with stages.stage("original"):
        sha256, copy = await _original(original, engine, shards)
    if hashlib.sha256(query).hexdigest() == sha256:
        return Comparison(verdict="identical")
    with stages.stage("decode"):
        pixels = await _decoded(query, "query", engine)
    with stages.stage("encode"):
        encoded = await engine.encoder.encode(pixels, mirrored=True)
        working = replace(pixels, rgb_HWC=read_working_copy(copy))
        known = await engine.encoder.encode(working, mirrored=False)
    assert encoded.cells_VNF is not None and known.cells_VNF is not None
    found = match(encoded.cells_VNF, known.cells_VNF)[0]
    with stages.stage("compare"):
        pairing = Pairing(original=copy, affine=found.affine, mirrored=found.mirrored)
        (judged,) = await engine.comparator.compare(pixels, [pairing])
    featureless = encoded.featureless or known.featureless
    said = "inconclusive" if featureless else engine.rules.pair_verdict(judged, found.score)
    return verdict.comparison(judged, pixels, said, engine.rules)


async def _original(original: bytes | str, engine: Networks, shards: Shards | None) -> tuple[str, bytes]:
    """(SHA-256, working copy) of what a query is compared with."""
    if isinstance(original, str):
        if shards is None:
            raise NotFound("an id was given, and no collection that it is of", subject=original)
        record, copy = await shards.stored(original)
        return record.sha256, copy
    _bounded(original, engine.settings, "original")
    pixels = await _decoded(original, "original", engine)
    return pixels.sha256, working_copy(pixels)


async def _decoded(image: bytes, name: str, engine: Networks) -> Pixels:
    try:
        return await engine.decoder.decode(image)
    except StemmaError as error:
        raise type(error)(error.detail, subject=name, retry_after_s=error.retry_after_s) from error


def _bounded(image: bytes, settings: Settings, name: str | None = None) -> None:
    if len(image) > settings.decode.image_bytes_max:
        raise TooLarge(
            f"a picture may have {settings.decode.image_bytes_max} bytes (decode.image_bytes_max), "
            f"this one has {len(image)}",
            subject=name,
        )


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
        rerank=settings.comparator.rerank if ask.rerank is None else ask.rerank,
        donors=min(settings.objects.donors, limits.donors_max) if ask.donors is None else ask.donors,
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


async def _conclude(
    query_id: str,
    decision: Decision,
    found: Found,
    compared: Mapping[int, Judged],
    pixels: Pixels | None,
    traced: Traced,
    plan: Plan,
    engine: Engine,
    stages: Stages,
) -> Answer:
    winners, traces = found.hits[: plan.k], traced.best(plan.donors)
    with stages.stage("metadata", always=True):  # the answer is known: a late one is better than none
        metadata = await engine.shards.metadata([*(hit.row for hit in winners), *(one.row for one in traces)])
    candidates = [_candidate(hit, known, compared) for hit, known in zip(winners, metadata, strict=False)]
    given: tuple[Donor, ...] = ()
    if pixels is not None and traces:
        given = await donors.presented(traces, pixels, metadata[len(winners) :])
    original = None
    if decision.original is not None:
        original = candidates[0]
        judged = compared.get(decision.original.row)
        if judged is not None and pixels is not None:
            shown = verdict.comparison(judged, pixels, decision.verdict, engine.rules)
            original = original.model_copy(update={"comparison": shown})
    return Answer(
        query_id=query_id,
        verdict=decision.verdict,
        confidence=decision.confidence,
        original=original,
        candidates=tuple(candidates),
        donors=given,
        coverage=Coverage(
            complete=found.images_searched == found.images_total and not found.missing_hosts,
            images_searched=found.images_searched,
            images_total=found.images_total,
            missing_hosts=found.missing_hosts,
        ),
        used=Used(
            k=plan.k, nprobe=found.nprobe, reranked=len(compared), exact=found.codec == "exact", filter=plan.filter
        ),
        versions=Versions(seq=found.seq, codec=found.codec, weights=engine.card.digest),
        notes=(*found.notes, *(pixels.notes if pixels else ()), *decision.notes, *traced.notes),
        timings_ms={
            **stages.timings_ms,
            **found.timings_ms,
            "total": round(1e3 * (time.monotonic() - stages.started), 3),
        },
    )


def _candidate(hit: Hit, metadata: Metadata, compared: Mapping[int, Judged]) -> Candidate:
    judged = compared.get(hit.row)
    return Candidate(
        image_id=hit.image_id,
        distance=hit.distance,
        refined_distance=hit.refined_distance,
        match=hit.match,
        probabilities=None if judged is None else verdict.probabilities(judged),
        metadata=metadata,
    )
