"""The engine of a served collection: the protocols of ``stemma/query.py`` over Serve handles, actors and threads.

Usable from any asyncio process that Ray is connected to: the gateway's replica, the benchmark, the live tests.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, ParamSpec, Protocol, TypeVar, cast

from ray.exceptions import RayError, RayTaskError
from ray.serve.exceptions import BackPressureError, DeploymentUnavailableError

from serving.asker import Asker, Hosts
from stemma.api import CollectionStatus, DeleteResult, HostStatus, ImageRecord, IngestResult, Metadata
from stemma.catalog import Catalog, Draft
from stemma.clones import Clone
from stemma.config import DecodeSettings, Settings
from stemma.embedded import find_identical, named_metadata, named_record, stored, working_copies
from stemma.errors import StemmaError, Unavailable
from stemma.flow import AnyQuery, Described, Encoded, Float, Found, Judged, ObjectHit, Objects, Pairing, Pixels
from stemma.networks.weights import ObjectsCard
from stemma.query import Plan
from stemma.splice import Donor
from stemma.vision.decode import DecodePool
from stemma.vision.geometry import Map33

P = ParamSpec("P")
T = TypeVar("T")


class Writer(Protocol):
    """The one committer of a collection, and what the directory says of its hosts."""

    async def commit(self, drafts: Sequence[Draft], *, replace: bool) -> IngestResult:
        """Returns when the commit is synced and every host that may answer has read it."""
        ...

    async def delete(self, image_ids: Sequence[str]) -> DeleteResult:
        """As ``commit``."""
        ...

    async def hosts(self) -> Sequence[HostStatus]:
        """Every host that may be running. Raises ``Unavailable``."""
        ...


class ServedDecoder:
    """Decodes in children of this process, waited for by threads of its own: a hostile picture holds nobody else up."""

    def __init__(self, settings: DecodeSettings) -> None:
        children = settings.children_per_core * (os.cpu_count() or 1)
        self._pool = DecodePool(settings, children)
        self._threads = ThreadPoolExecutor(children, thread_name_prefix="decode")

    async def decode(self, body: bytes) -> Pixels:
        """See ``Decoder.decode``."""
        return await asyncio.get_running_loop().run_in_executor(self._threads, self._pool.decode, body)

    def close(self) -> None:
        self._pool.close()
        self._threads.shutdown(wait=False, cancel_futures=True)


class ServedEncoder:
    """The encoder's deployment, asked through its Serve handle."""

    def __init__(self, handle: Any) -> None:
        self._handle = handle

    async def encode(self, pixels: Pixels, *, mirrored: bool) -> Encoded:
        """See ``Encoder.encode``. Raises ``Unavailable`` while no replica is there."""
        return cast(Encoded, await replied(lambda: self._handle.encode.remote(pixels.rgb_HWC, mirrored), "encoder"))


class ServedComparator:
    """The comparator's deployment, asked through its Serve handle."""

    def __init__(self, handle: Any) -> None:
        self._handle = handle

    async def compare(self, query: Pixels, pairings: Sequence[Pairing]) -> list[Judged]:
        """See ``Comparator.compare``. Raises ``Unavailable`` while no replica is there."""
        asked = self._handle.compare
        return cast("list[Judged]", await replied(lambda: asked.remote(query.rgb_HWC, tuple(pairings)), "comparator"))


class ServedFinder:
    """The finder's deployment, asked through its Serve handle. ``weights`` is what its objects are known by."""

    def __init__(self, handle: Any, card: ObjectsCard, weights: str) -> None:
        self._handle, self.card, self.weights = handle, card, weights

    async def objects(self, pixels: Pixels) -> Objects:
        """See ``Finder.objects``. Raises ``Unavailable`` while no replica is there, as all of these."""
        return cast(Objects, await self._replied("objects", pixels.rgb_HWC))

    async def describe(self, pixels: Pixels, box_O4: Float | None) -> Described:
        """See ``Finder.describe``."""
        return cast(Described, await self._replied("describe", pixels.rgb_HWC, box_O4))

    async def verify(
        self, pixels: Pixels, described: Described, hits: Sequence[ObjectHit], copies: Sequence[bytes]
    ) -> list[Donor]:
        """See ``Finder.verify``."""
        asked = pixels.rgb_HWC, described, tuple(hits), tuple(copies)
        return cast("list[Donor]", await self._replied("verify", *asked))

    async def clones(self, pixels: Pixels, box_O4: Float, host: bytes, transform_33: Map33) -> list[Clone]:
        """See ``Finder.clones``."""
        return cast("list[Clone]", await self._replied("clones", pixels.rgb_HWC, box_O4, host, transform_33))

    async def _replied(self, what: str, *asked: Any) -> Any:
        return await replied(lambda: getattr(self._handle, what).remote(*asked), "finder of objects")


async def replied(ask: Callable[[], Any], name: str) -> Any:
    """What a deployment answers to ``ask()``. Raises what it raised, ``Unavailable`` while no replica of it is there.

    A caller that gives up takes its request back: a replica must not work for those who have left.
    """
    try:
        response = ask()
        try:
            return await response
        except asyncio.CancelledError:
            response.cancel()
            raise
    except RayTaskError as error:
        if isinstance(error.cause, StemmaError):
            raise error.cause from error
        raise
    except (RayError, BackPressureError, DeploymentUnavailableError) as error:
        raise Unavailable(f"the {name} cannot be reached; try again", retry_after_s=1.0) from error


class ServedShards:
    """Searches over the hosts, look-ups over a catalog that this process reads.

    The catalog is caught up with before every look-up (one stat when there is nothing new), so whatever was
    acknowledged to anybody is seen by the next request.
    """

    def __init__(self, catalog: Catalog, hosts: Hosts, settings: Settings) -> None:
        self._catalog = catalog
        self._limits = settings.limits
        self.asker = Asker(hosts, settings)

    async def search(self, query: AnyQuery, deadline_ms: float) -> Found:
        """See ``Shards.search``."""
        return await self.asker.search(query, deadline_ms)

    async def identical(self, sha256: str, plan: Plan) -> Found | None:
        """See ``Shards.identical``."""
        return await fresh(self._catalog, find_identical, self._catalog, sha256, plan, self._limits)

    async def metadata(self, rows: Sequence[int]) -> list[Metadata]:
        """See ``Shards.metadata``."""
        return await fresh(self._catalog, named_metadata, self._catalog, rows)

    async def pixels(self, rows: Sequence[int]) -> list[bytes]:
        """See ``Shards.pixels``: one call to each owner, and what the hosts do not give is read here."""
        given = await self.asker.pixels(rows)
        lacking = [row for row in dict.fromkeys(rows) if row not in given]
        if lacking:
            copies = await fresh(self._catalog, working_copies, self._catalog, lacking)
            given.update(zip(lacking, copies, strict=True))
        return [given[row] for row in rows]

    async def stored(self, image_id: str) -> tuple[ImageRecord, bytes]:
        """See ``Shards.stored``."""
        return await fresh(self._catalog, stored, self._catalog, image_id)

    async def objects_weights(self) -> str | None:
        """See ``Shards.objects_weights``."""
        return await fresh(self._catalog, lambda: self._catalog.objects_weights)


class ServedOriginals:
    """``Originals`` of one collection: read here, written by its one committer."""

    def __init__(self, name: str, catalog: Catalog, shards: ServedShards, writer: Writer, weights: str) -> None:
        self._name = name
        self._catalog = catalog
        self._shards = shards
        self._writer = writer
        self._weights = weights

    async def ready(self) -> bool:
        """A routing is in force, so every host in it has loaded what it serves."""
        view = await self._shards.asker.view()
        return view is not None and view.routing is not None

    async def commit(self, drafts: Sequence[Draft], *, replace: bool) -> IngestResult:
        return await self._writer.commit(drafts, replace=replace)

    async def delete(self, image_ids: Sequence[str]) -> DeleteResult:
        return await self._writer.delete(image_ids)

    async def seq(self) -> int:
        return await asyncio.to_thread(self._catalog.refresh)

    async def find_sha256(self, sha256: str) -> ImageRecord | None:
        return await fresh(self._catalog, self._catalog.find_sha256, sha256)

    async def record(self, image_id: str) -> ImageRecord:
        return named_record(await fresh(self._catalog, self._catalog.record, image_id))

    async def pixels(self, image_id: str) -> bytes:
        return await fresh(self._catalog, self._catalog.pixels, image_id)

    async def status(self) -> CollectionStatus:
        """Counts from the catalog, hosts from the directory; a directory that is down is a note."""
        images = await fresh(self._catalog, self._catalog.__len__)
        hosts: tuple[HostStatus, ...] = ()
        notes: tuple[str, ...] = self._catalog.notes
        try:
            hosts = tuple(await self._writer.hosts())
        except Unavailable as error:
            notes = (*notes, error.detail)
        return CollectionStatus(
            name=self._name,
            images=images,
            seq=self._catalog.seq,
            weights=self._catalog.weights or self._weights,
            columns=dict(self._catalog.columns),
            hosts=hosts,
            notes=notes,
        )


async def fresh(catalog: Catalog, read: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> T:
    """``read(...)`` in a thread, after catching up with what was committed."""

    def caught_up() -> T:
        catalog.refresh()
        return read(*args, **kwargs)

    return await asyncio.to_thread(caught_up)
