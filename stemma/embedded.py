"""The engine of one process: the protocols of ``stemma/query.py`` computed in the calling thread, without Ray."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import replace

from stemma.api import ImageRecord, Metadata
from stemma.catalog.catalog import Catalog
from stemma.clones import Clone
from stemma.config import LimitSettings
from stemma.errors import BadRequest, Unavailable
from stemma.finder import Finder
from stemma.flow import (
    AnyQuery,
    Described,
    Encoded,
    Float,
    Found,
    Hit,
    Judged,
    ObjectHit,
    Objects,
    Pairing,
    Pixels,
)
from stemma.index.filters import parse
from stemma.index.merge import merge
from stemma.index.partition import Partition
from stemma.networks.comparing import Comparator
from stemma.networks.encoder import Encoder
from stemma.networks.weights import ObjectsCard
from stemma.query import Plan
from stemma.splice import Donor
from stemma.vision.decode import DecodePool
from stemma.vision.geometry import Map33

HERE = "embedded"  # the one host there is


class EmbeddedDecoder:
    """Decodes in a child process of this one and waits for it."""

    def __init__(self, pool: DecodePool) -> None:
        self._pool = pool

    async def decode(self, body: bytes) -> Pixels:
        return self._pool.decode(body)


class EmbeddedEncoder:
    """Encodes in the calling thread."""

    def __init__(self, encoder: Encoder) -> None:
        self._encoder = encoder

    async def encode(self, pixels: Pixels, *, mirrored: bool) -> Encoded:
        return self._encoder.encode(pixels.rgb_HWC, mirrored=mirrored)


class EmbeddedComparator:
    """Compares in the calling thread."""

    def __init__(self, comparator: Comparator) -> None:
        self._comparator = comparator

    async def compare(self, query: Pixels, pairings: Sequence[Pairing]) -> list[Judged]:
        return self._comparator.compare(query.rgb_HWC, pairings)


class EmbeddedFinder:
    """Finds and verifies objects in the calling thread; loads the networks when they are first asked."""

    def __init__(self, card: ObjectsCard, weights: str, load: Callable[[], Finder]) -> None:
        self.card, self.weights = card, weights
        self._load, self._lock = load, threading.Lock()
        self._loaded: Finder | None = None

    def networks(self) -> Finder:
        """The plain ``Finder``."""
        with self._lock:
            self._loaded = self._loaded or self._load()
        return self._loaded

    async def objects(self, pixels: Pixels) -> Objects:
        return self.networks().objects(pixels.rgb_HWC)

    async def describe(self, pixels: Pixels, box_O4: Float | None) -> Described:
        return self.networks().describe(pixels.rgb_HWC, box_O4)

    async def verify(
        self, pixels: Pixels, described: Described, hits: Sequence[ObjectHit], copies: Sequence[bytes]
    ) -> list[Donor]:
        return self.networks().verify(pixels.rgb_HWC, described, hits, copies)

    async def clones(self, pixels: Pixels, box_O4: Float, host: bytes, transform_33: Map33) -> list[Clone]:
        return self.networks().clones(pixels.rgb_HWC, box_O4, host, transform_33)


class EmbeddedShards:
    """One partition over everything."""

    def __init__(self, catalog: Catalog, partition: Partition, limits: LimitSettings) -> None:
        self._catalog = catalog
        self._partition = partition
        self._limits = limits

    async def search(self, query: AnyQuery, deadline_ms: float) -> Found:  # noqa: ARG002 - the protocol's
        """See ``Shards.search``. One process cannot cut its own search short: the deadline is checked around it."""
        begun = time.monotonic()
        self._partition.refresh()
        merged = merge({HERE: self._partition.search([query])[0]}, query.shortlist)
        if merged.nprobe_needed is not None:
            query = replace(query, nprobe=merged.nprobe_needed)
            merged = merge({HERE: self._partition.search([query])[0]}, query.shortlist)
        return Found(
            hits=merged.hits,
            images_searched=merged.images_searched,
            images_total=merged.images_total,
            missing_hosts=(),
            seq=merged.seq,
            nprobe=merged.nprobe,
            codec=merged.codec,
            without_objects=merged.without_objects,
            timings_ms={"shards": round(1e3 * (time.monotonic() - begun), 3)},
        )

    async def identical(self, sha256: str, plan: Plan) -> Found | None:
        """See ``Shards.identical``."""
        self._catalog.refresh()
        return find_identical(self._catalog, sha256, plan, self._limits)

    async def metadata(self, rows: Sequence[int]) -> list[Metadata]:
        """See ``Shards.metadata``."""
        return named_metadata(self._catalog, rows)

    async def pixels(self, rows: Sequence[int]) -> list[bytes]:
        """See ``Shards.pixels``."""
        return working_copies(self._catalog, rows)

    async def stored(self, image_id: str) -> tuple[ImageRecord, bytes]:
        """See ``Shards.stored``."""
        self._catalog.refresh()
        return stored(self._catalog, image_id)

    async def objects_weights(self) -> str | None:
        """See ``Shards.objects_weights``."""
        return self._catalog.objects_weights


def find_identical(catalog: Catalog, sha256: str, plan: Plan, limits: LimitSettings) -> Found | None:
    """The live original with these bytes, if it passes the plan's filter; the catalog must be fresh."""
    if plan.min_version is not None and plan.min_version > catalog.seq:
        raise Unavailable(f"version {plan.min_version} is not there yet, {catalog.seq} is", retry_after_s=1.0)
    if plan.as_of is not None and plan.as_of > catalog.seq:
        raise BadRequest(f"as_of {plan.as_of} is still to come; the newest version is {catalog.seq}", subject="as_of")
    condition = parse(plan.filter, catalog.columns, limits) if plan.filter else None
    record = catalog.find_sha256(sha256, as_of=plan.as_of)
    if record is None or (condition is not None and condition.evaluate(record.metadata) is not True):
        return None
    total = catalog.snapshot().count(plan.as_of)
    row = int(catalog.rows_of([record.image_id], as_of=plan.as_of)[0])
    return Found(
        hits=(Hit(row=row, image_id=record.image_id, distance=0.0, refined_distance=0.0),),
        images_searched=total,
        images_total=total,
        missing_hosts=(),
        seq=catalog.seq,
        nprobe=0,
        codec="exact",
    )


def working_copies(catalog: Catalog, rows: Sequence[int]) -> list[bytes]:
    """Working copies in the order asked, also of rows that were deleted meanwhile."""
    copies: list[bytes] = catalog.read(rows, ["pixels"])["pixels"] if rows else []
    return copies


def stored(catalog: Catalog, image_id: str) -> tuple[ImageRecord, bytes]:
    """The record and working copy of a live original; the catalog must be fresh. Raises ``NotFound``."""
    return catalog.record(image_id), catalog.pixels(image_id)


def named_metadata(catalog: Catalog, rows: Sequence[int]) -> list[Metadata]:
    """Metadata in the order asked, with ``name`` added where the caller did not set one."""
    if not rows:
        return []
    columns = catalog.read(rows, ["metadata", "source"])
    pairs = zip(columns["metadata"], columns["source"], strict=True)
    return [{"name": source, **metadata} for metadata, source in pairs]


def named_record(record: ImageRecord) -> ImageRecord:
    """The record with ``name`` in its metadata, as search answers carry it."""
    return record.model_copy(update={"metadata": {"name": record.source, **record.metadata}})
