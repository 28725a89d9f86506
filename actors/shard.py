"""A shard host: one per node, searches the units that routings put on it. Keeps nothing that its files do not have.

A plain class without Ray: ``actors/directory.py`` makes it an actor with three concurrency groups, *search*
(``cluster.threads_per_host`` threads), *read* and *control*, so that a health check waits 2 ms under load instead of 14
(docs/facts.md, section 2), and pixels wait for no search. It knows no collection until a directory gives it orders for
one.
"""

from __future__ import annotations

import os
import threading
import time
import uuid
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from pathlib import Path

import numpy as np

from cluster.hosting import Hosting, Work
from cluster.membership import Beat
from cluster.placement import Orders
from cluster.reading import covered
from cluster.routing import Call, Owns, Routing
from stemma.catalog import Catalog
from stemma.config import Settings
from stemma.errors import BadRequest, StaleRouting, StemmaError, Unavailable
from stemma.flow import AnyQuery, HostReply, Unit
from stemma.index.choice import codec_wanted
from stemma.index.codec import Codec
from stemma.index.partition import Partition
from stemma.networks.weights import card

Reply = HostReply | StemmaError


def now_ms() -> float:
    return time.monotonic() * 1e3


class Shard:
    """The actor. ``host`` names it for good; each start of its process is another incarnation."""

    def __init__(self, host: str, settings: Settings, weight: float = 1.0) -> None:
        self._host, self._settings, self._weight = host, settings, weight
        self._incarnation = uuid.uuid4().hex
        self._shares: dict[str, Share] = {}
        self._opening = threading.Lock()

    def obey(self, url: str, orders: Orders) -> Beat:
        """Do what the directory of the collection at ``url`` says, within a heartbeat or going on behind; tell of it.

        Raises ``NotFound`` for a collection that this host cannot reach.
        """
        with self._opening:
            share = self._shares.get(url)
            if share is None:
                share = self._shares[url] = Share(self._host, self._incarnation, url, self._settings, self._weight)
        return share.obey(orders)

    def search(self, url: str, call: Call, queries: Sequence[AnyQuery], left_ms: float) -> list[Reply]:
        """One reply per query, for the units that ``call`` is for. A query that cannot be meant gets its error.

        Raises ``StaleRouting``, ``DeadlineExceeded``, ``Unavailable``, ``Corrupt``.
        """
        return self._share(url).search(call, queries, left_ms)

    def pixels(self, url: str, call: Call, rows: Sequence[int], left_ms: float) -> Mapping[int, bytes]:
        """Working copies by row, of those rows that ``call`` is for and that the catalog here has.

        Raises ``StaleRouting``, ``DeadlineExceeded``, ``Corrupt``.
        """
        return self._share(url).pixels(call, rows, left_ms)

    def release(self, url: str) -> int:
        """Close a collection; returns how many are left."""
        share = self._shares.pop(url, None)
        if share is not None:
            share.close()
        return len(self._shares)

    def settings(self) -> Settings:
        """What this host runs under, whatever collections it serves."""
        return self._settings

    def pid(self) -> int:
        """The process of this incarnation."""
        return os.getpid()

    def _share(self, url: str) -> Share:
        share = self._shares.get(url)
        if share is None:
            raise StaleRouting(f"{self._host} has just started and holds no routing yet", subject=self._host)
        return share


class Share:
    """What this host has of one collection. ``Hosting`` decides, this class obeys.

    One partition per set of segments that a held routing names: while an index is sealed or merged, queries under the
    old routing and the new one are both answered whole. The partitions share what is opened.
    """

    def __init__(self, host: str, incarnation: str, url: str, settings: Settings, weight: float) -> None:
        self._settings, self._root = settings, Path(url)
        self._catalog = Catalog.open(url)
        self._scale = card(settings.encoder.weights).embedding_scale
        self._hosting = Hosting(host, incarnation, settings.cluster, weight=weight)
        self._deciding = threading.Lock()
        self._looking = threading.Lock()
        self._loader = ThreadPoolExecutor(1, thread_name_prefix="load")
        self._loading: Future[None] | None = None
        self._partitions: dict[Index, Partition] = {}
        self._counted: tuple[object, int] = (None, 0)

    # ------------------------------------------------------------------ towards the directory

    def obey(self, orders: Orders) -> Beat:
        with self._deciding:
            work = self._hosting.obey(orders, now_ms())
        if self._loading is None and (work.look or work.prepare):
            self._loading = self._loader.submit(self._work, work, orders.seq)
        if self._loading is not None:
            # A large segment takes longer than a heartbeat to load: the host must go on being heard meanwhile.
            wait([self._loading], timeout=self._settings.cluster.heartbeat_ms / 1e3)
            if self._loading.done():
                done, self._loading = self._loading, None
                done.result()  # what broke while loading is told to the directory, once
        images = self._images()
        with self._deciding:
            return self._hosting.beat(images)

    def _images(self) -> int:
        """Live images in what is loaded for the newest routing."""
        held = self._hosting.held
        partition = self._partitions.get(_index_of(held[-1])) if held else None
        if partition is None:
            return 0
        key = (partition.seq, partition.units)
        if key != self._counted[0]:
            snapshot = self._catalog.snapshot()
            live_R = snapshot.row_R[snapshot.live()]
            bounds = np.asarray([(unit.row_lo, unit.row_hi) for unit in key[1]], np.uint64).reshape(-1, 2)
            self._counted = key, int(np.diff(np.searchsorted(live_R, bounds), axis=1).sum())
        return self._counted[1]

    def _work(self, work: Work, announced: int) -> None:
        if work.look:
            self._look()
        for routing in work.prepare:
            if self._load(routing):
                with self._deciding:
                    self._hosting.prepared(routing, announced)
        self._forget()

    def _load(self, routing: Routing) -> bool:
        """Load what ``routing`` puts here; False when its segments are on disk no more, or under an unknown codec."""
        host, index = self._hosting.host, _index_of(routing)
        with self._deciding:
            tests = [each.holds(host) for each in (*self._hosting.held, routing) if _index_of(each) == index]

        def owns(unit: Unit) -> bool:
            return any(test(unit) for test in tests)

        partition = self._partitions.get(index)
        if partition is not None:
            partition.adopt(owns)
        else:
            known = (Codec.unquantized(), codec_wanted(self._settings, self._root, len(self._catalog)))
            codec = next((each for each in known if each.id == routing.codec), None)
            if codec is None:
                return False
            partition = Partition(
                self._catalog,
                self._root,
                self._settings,
                scale=self._scale,
                codec=codec,
                owns=owns,
                pinned=routing.segments,
                beside=next((each for each in self._partitions.values() if each.codec.id == codec.id), None),
            )
        lacking = {unit for unit in routing.segments if owns(unit)} - set(partition.units)
        if len(lacking) > len(partition.damaged):
            return False
        self._partitions[index] = partition  # one assignment: searches see the old mapping or the new one
        return True

    def _forget(self) -> None:
        with self._deciding:
            needed = {_index_of(routing) for routing in self._hosting.held}
        self._partitions = {index: each for index, each in self._partitions.items() if index in needed}

    def _look(self) -> None:
        """Read what was committed since."""
        with self._looking:
            began_ms = now_ms()
            seq = self._catalog.refresh()
            for partition in list(self._partitions.values()):
                seq = min(seq, partition.refresh())
            with self._deciding:
                self._hosting.looked(began_ms, max(seq, self._hosting.seq))

    # ------------------------------------------------------------------ towards askers

    def search(self, call: Call, queries: Sequence[AnyQuery], left_ms: float) -> list[Reply]:
        arrived_ms = now_ms()
        at_least = max((query.min_version or 0 for query in queries), default=0)
        with self._deciding:
            routing = self._hosting.admit(call, left_ms)
            stale = self._hosting.must_look(arrived_ms, at_least)
        if stale:
            self._look_within(left_ms)
            with self._deciding:
                self._hosting.admit(call, left_ms - (now_ms() - arrived_ms))
        partition = self._partitions.get(_index_of(routing))
        if partition is None:
            raise StaleRouting(f"epoch {call.key.epoch} is held no more; refresh", subject=call.host)
        return self._search(partition, queries, call.owns(routing))

    def _look_within(self, left_ms: float) -> None:
        if not self._looking.acquire(timeout=max(0.0, left_ms) / 1e3):
            raise Unavailable("the catalog could not be read in time", subject=self._hosting.host, retry_after_s=1.0)
        self._looking.release()
        self._look()

    def _search(self, partition: Partition, queries: Sequence[AnyQuery], owns: Owns) -> list[Reply]:
        try:
            return list(partition.search(queries, owns))
        except (BadRequest, Unavailable) as error:
            if len(queries) == 1:
                return [error]
        # One query of the batch cannot be meant: the others are not to suffer for it.
        return [reply for query in queries for reply in self._search(partition, [query], owns)]

    def pixels(self, call: Call, rows: Sequence[int], left_ms: float) -> Mapping[int, bytes]:
        with self._deciding:
            routing = self._hosting.admit(call, left_ms)
        wanted = covered(routing, call, rows)
        # A row that is there keeps its pixels for good: only one that is not there asks for a look at the catalog.
        if len(self._there(wanted)) < len(wanted):
            self._catalog.refresh()
        known = self._there(wanted)
        return dict(zip(known, self._catalog.read(known, ["pixels"])["pixels"], strict=True)) if known else {}

    def _there(self, rows: Sequence[int]) -> list[int]:
        there: list[int] = np.intersect1d(np.asarray(rows, np.uint64), self._catalog.snapshot().row_R).tolist()
        return there

    def close(self) -> None:
        self._loader.shutdown(wait=False, cancel_futures=True)
        self._catalog.close()


Index = tuple[tuple[Unit, ...], str]


def _index_of(routing: Routing) -> Index:
    return routing.segments, routing.codec
