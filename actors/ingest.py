"""The committer of one collection: the one process that writes its catalog.

Single uploads that arrive within ``ingest.group_commit_ms`` share one synced commit. An acknowledgement goes out when
the directory says that no host answers without the commit, or ``announce_ms`` after it, when no host can
(``cluster/limits.py``): a directory that is down costs time, never truth. Sealing runs behind, on a reader of its own.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from actors import handles
from actors.shard import now_ms
from cluster import limits
from stemma.api import DeleteResult, IngestResult
from stemma.catalog import Catalog, Draft
from stemma.config import Settings
from stemma.errors import Overloaded, StemmaError, Unavailable
from stemma.index.choice import codec_wanted
from stemma.index.seal import maintain
from stemma.index.segment import segment_set


@dataclass(slots=True)
class Wanted:
    """One caller's write, and where its result goes."""

    drafts: Sequence[Draft]
    deletes: Sequence[str]
    replace: bool
    done: asyncio.Future[IngestResult | DeleteResult]

    @property
    def items(self) -> int:
        return len(self.drafts) + len(self.deletes)

    def joins(self, other: Wanted, items_max: int, items: int) -> bool:
        """Whether both can be one commit."""
        alike = bool(self.drafts) == bool(other.drafts) and self.replace == other.replace
        return alike and items + other.items <= items_max


class Committer:
    """The actor; async, with one thread that writes."""

    def __init__(self, url: str, settings: Settings) -> None:
        self._url, self._settings = url, settings
        self._opened: Catalog | None = None
        self._writing = ThreadPoolExecutor(1, thread_name_prefix="commit")
        self._queue: list[Wanted] = []
        self._queued = 0
        self._arrived = asyncio.Event()
        self._tasks: set[asyncio.Task[None]] = set()
        self._worker: asyncio.Task[None] | None = None
        self._maintaining: asyncio.Task[None] | None = None
        self._dead_then = 1 << 62  # no run yet: the first one checks everything

    @property
    def _catalog(self) -> Catalog:
        """Opened at the first call, not at the start: what forbids it (``Conflict``, ``NotFound``) reaches a caller."""
        if self._opened is None:
            self._opened = Catalog.open(self._url, write=True)
        return self._opened

    async def commit(self, drafts: Sequence[Draft], replace: bool) -> IngestResult:
        """Store; returns when it is synced and no host answers without it. Raises ``Overloaded``, ``Conflict``."""
        result = await self._submit(Wanted(drafts, (), replace, asyncio.get_running_loop().create_future()))
        assert isinstance(result, IngestResult)
        return result

    async def delete(self, image_ids: Sequence[str]) -> DeleteResult:
        """Forget; as ``commit``."""
        result = await self._submit(Wanted((), image_ids, False, asyncio.get_running_loop().create_future()))
        assert isinstance(result, DeleteResult)
        return result

    async def seq(self) -> int:
        """The last commit; takes the writer's lock and begins maintenance. Raises ``Conflict``, ``NotFound``."""
        seq = self._catalog.seq
        self._maintain()
        return seq

    async def close(self) -> None:
        """Finish what is queued, give the lock back."""
        while self._queue or self._tasks:
            await asyncio.sleep(self._settings.ingest.group_commit_ms / 1e3 + 0.01)
        try:
            if self._maintaining is not None:
                await self._maintaining
        finally:
            if self._opened is not None:
                self._opened.close()

    async def _submit(self, wanted: Wanted) -> IngestResult | DeleteResult:
        if self._queued and self._queued + wanted.items > limits.WRITES_QUEUED_MAX:
            raise Overloaded(f"{self._queued} writes wait already; try again", subject=self._url, retry_after_s=1.0)
        self._queue.append(wanted)
        self._queued += wanted.items
        self._arrived.set()
        if self._worker is None or self._worker.done():
            self._worker = asyncio.create_task(self._work())
        return await wanted.done

    # ------------------------------------------------------------------ committing

    async def _work(self) -> None:
        """Commit for ever, one group at a time; announcements overlap with the next commit."""
        while True:
            await self._arrived.wait()
            if len(self._queue) == 1:
                await asyncio.sleep(self._settings.ingest.group_commit_ms / 1e3)
            group = self._next_group()
            if not self._queue:
                self._arrived.clear()
            await self._write(group)
            self._maintain()

    def _next_group(self) -> list[Wanted]:
        group = [self._queue.pop(0)]
        items = group[0].items
        while self._queue and group[0].joins(self._queue[0], self._settings.limits.batch_items_max, items):
            group.append(self._queue.pop(0))
            items += group[-1].items
        self._queued -= items
        return group

    async def _write(self, group: list[Wanted]) -> None:
        loop = asyncio.get_running_loop()
        try:
            results = await loop.run_in_executor(self._writing, self._write_now, group)
        except Exception as error:  # whatever it is (a full disk, say), it costs this write and never the worker
            self._reopen_if_stopped()
            if len(group) > 1:
                for wanted in group:  # one of them cannot be stored: the others are not to suffer for it
                    await self._write([wanted])
            elif not group[0].done.done():
                group[0].done.set_exception(_refusal(error, self._url))
            return
        task = asyncio.create_task(self._acknowledge(group, results, now_ms()))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def _reopen_if_stopped(self) -> None:
        """A catalog whose write failed halfway takes no other until it is opened, and so repaired, anew."""
        if self._opened is not None and not self._opened.writable:
            self._opened.close()
            self._opened = None

    def _write_now(self, group: list[Wanted]) -> list[IngestResult | DeleteResult]:
        """One synced commit for all, and each caller's part of its result."""
        if group[0].deletes:
            deleted = self._catalog.delete([each for wanted in group for each in wanted.deletes])
            gone = set(deleted.deleted)
            return [
                DeleteResult(
                    seq=deleted.seq,
                    deleted=tuple(each for each in wanted.deletes if each in gone),
                    missing=tuple(each for each in wanted.deletes if each not in gone),
                )
                for wanted in group
            ]
        drafts = [draft for wanted in group for draft in wanted.drafts]
        stored = self._catalog.commit(drafts, replace=group[0].replace)
        items, results = list(stored.items), []
        for wanted in group:
            mine, items = items[: len(wanted.drafts)], items[len(wanted.drafts) :]
            results.append(IngestResult(seq=stored.seq, items=tuple(mine)))
        return list(results)

    async def _acknowledge(
        self, group: list[Wanted], results: list[IngestResult | DeleteResult], since_ms: float
    ) -> None:
        seq = max(result.seq for result in results)
        try:
            await self._announce(seq, since_ms)
        finally:
            for wanted, result in zip(group, results, strict=True):
                if not wanted.done.done():
                    wanted.done.set_result(result)

    async def _announce(self, seq: int, since_ms: float) -> None:
        """Until the directory confirms ``seq``, or ``announce_ms`` are over."""
        left_s = self._settings.cluster.announce_ms / 1e3
        while left_s > 0:
            try:
                async with asyncio.timeout(left_s):
                    if await handles.announce(self._url, seq):
                        return
            except (Unavailable, TimeoutError):
                await asyncio.sleep(min(left_s, 0.05))
            left_s = self._settings.cluster.announce_ms / 1e3 - (now_ms() - since_ms) / 1e3

    # ------------------------------------------------------------------ maintenance

    def _maintain_now(self) -> bool:
        """Whether segments changed. Opening every segment to check it is not for every commit: only the first time,
        when the tail is full, and when enough rows have died."""
        with Catalog.open(self._url) as reader:
            codec = codec_wanted(self._settings, Path(self._url), len(reader))
            root, snapshot = Path(self._url), reader.snapshot()
            sealed_hi = max((unit.row_hi for unit in segment_set(root, codec)), default=0)
            tail = len(snapshot.row_R) - int(np.searchsorted(snapshot.row_R, sealed_hi))
            dead = len(snapshot.row_R) - snapshot.count()
            died = dead - self._dead_then
            search = self._settings.search
            if tail <= search.tail_rows_max and 0 <= died <= search.dead_share_max * len(snapshot.row_R) / 2:
                return False
            self._dead_then = dead
            done = maintain(reader, root, codec, self._settings)
        return bool(done.built or done.merged or done.rewritten or done.removed)

    def _compact_now(self) -> None:
        """On the writing thread, between two commits: each of them leaves a data file, and thousands slow all reads."""
        if self._catalog.fragments > self._settings.ingest.fragments_max:
            self._catalog.compact()

    def _maintain(self) -> None:
        if self._maintaining is None or self._maintaining.done():
            self._maintaining = asyncio.create_task(self._maintained())

    async def _maintained(self) -> None:
        """Compact, seal, merge and repair where something is to be done, then have the hosts told."""
        await asyncio.get_running_loop().run_in_executor(self._writing, self._compact_now)
        if await asyncio.to_thread(self._maintain_now):
            try:
                await handles.resealed(self._url)
            except Unavailable:
                return  # it looks at the disk by itself


def _refusal(error: Exception, url: str) -> StemmaError:
    """What the caller of a failed write is told: asking again is safe, since writes are idempotent by id."""
    if isinstance(error, StemmaError):
        return error
    return Unavailable(f"the write failed: {type(error).__name__}: {error}; ask again", subject=url, retry_after_s=1.0)
