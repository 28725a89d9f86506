"""Many concurrent searches become few calls: one per host and batch, driven through ``cluster/fanout.py`` with asyncio.

An actor call costs 1.3 ms and a fan-out of four 3.9 ms whatever is in it (docs/facts.md), so a search that finds the
hosts idle starts at once, and those that arrive while others run share the next batch: nobody waits for company.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

from cluster.fanout import Action, Ask, Done, Failure, Fanout, Refresh
from cluster.health import Health
from cluster.limits import READ_SHARE
from cluster.placement import View
from cluster.reading import Read, reads
from cluster.routing import Call
from stemma.config import Settings
from stemma.errors import DeadlineExceeded, StaleRouting, StemmaError, Unavailable
from stemma.flow import AnyQuery, Found, HostReply

SEARCH_SHARE = 0.9  # of the time a search is given: the rest is for the merge and the winners' metadata
Event = Callable[[float], tuple[Action, ...]]


class Hosts(Protocol):
    """The cluster as an asker sees it."""

    async def ask(self, call: Call, queries: Sequence[AnyQuery], left_ms: float) -> Sequence[HostReply | StemmaError]:
        """One call to one host. Raises ``StaleRouting``, ``Unavailable`` (the host is lost), ``DeadlineExceeded``."""
        ...

    async def pixels(self, read: Read, left_ms: float) -> Mapping[int, bytes]:
        """Originals' working copies by row, as many as the host gives. Raises as ``ask`` does."""
        ...

    async def view(self) -> View:
        """What the directory says now. Raises ``Unavailable``."""
        ...


@dataclass(slots=True)
class _Waiting:
    query: AnyQuery
    arrived_ms: float
    ends_ms: float
    answer: asyncio.Future[Found]


def now_ms() -> float:
    return 1e3 * time.monotonic()


class Asker:
    """Searches one collection's hosts. Belongs to the event loop that it is first used on."""

    def __init__(self, hosts: Hosts, settings: Settings) -> None:
        self._hosts = hosts
        self._settings = settings
        self._health = Health(settings.cluster)
        self._waiting: deque[_Waiting] = deque()
        self._batches: set[asyncio.Task[None]] = set()
        self._starts_soon = False
        self._view: View | None = None
        self._viewed_ms = float("-inf")
        self._viewing: asyncio.Task[View | None] | None = None
        self.calls = 0
        """Calls made to hosts so far."""

    async def search(self, query: AnyQuery, deadline_ms: float) -> Found:
        """See ``Shards.search`` in ``stemma/query.py``."""
        begun_ms = now_ms()
        loop = asyncio.get_running_loop()
        ends_ms = begun_ms + SEARCH_SHARE * deadline_ms
        waiting = _Waiting(query, begun_ms, ends_ms, loop.create_future())
        self._waiting.append(waiting)
        self._start_soon()
        return await waiting.answer

    async def pixels(self, rows: Sequence[int]) -> dict[int, bytes]:
        """Originals' working copies by row, from one call to each host that owns some; any of them may lack."""
        view = await self._usable_view()
        if view is None or view.routing is None:
            return {}
        avoid = view.suspects | self._health.shut_hosts(view.routing.host_ids, now_ms())
        given = await asyncio.gather(*(self._read(read) for read in reads(view.routing, rows, avoid)))
        return {row: body for each in given for row, body in each.items()}

    async def _read(self, read: Read) -> Mapping[int, bytes]:
        """What one host gives in time. It is not held against the host: reading here instead costs milliseconds."""
        left_ms = READ_SHARE * self._settings.cluster.host_deadline_ms
        try:
            async with asyncio.timeout(left_ms / 1e3):
                return await self._hosts.pixels(read, left_ms)
        except Unavailable:  # a stale routing too
            self._begin_view()  # the directory may know better by now
        except (DeadlineExceeded, TimeoutError):
            pass
        return {}

    async def view(self) -> View | None:
        """The newest view of the cluster that can be had within a heartbeat."""
        return await self._refreshed()

    # ------------------------------------------------------------------ batches

    def _start_soon(self) -> None:
        # Everything that arrives in this turn of the loop goes into one batch: 64 callers woken by one reply come back
        # together.
        if not self._starts_soon:
            self._starts_soon = True
            asyncio.get_running_loop().call_soon(self._start)

    def _start(self) -> None:
        self._starts_soon = False
        while self._waiting and len(self._batches) < self._settings.cluster.batches_in_flight_max:
            batch = self._take()
            if batch:
                task = asyncio.create_task(self._run(batch))
                self._batches.add(task)
                task.add_done_callback(self._ended)

    def _take(self) -> list[_Waiting]:
        """The next batch, all of one kind: searches by image do not wait for the slower ones by objects."""
        batch: list[_Waiting] = []
        others: list[_Waiting] = []
        while self._waiting and len(batch) < self._settings.limits.queries_per_call_max:
            waiting = self._waiting.popleft()
            if waiting.answer.done():  # its caller may have gone
                continue
            same = not batch or type(waiting.query) is type(batch[0].query)
            (batch if same else others).append(waiting)
        self._waiting.extendleft(reversed(others))
        return batch

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._batches.discard(task)
        if not task.cancelled():
            task.result()  # a broken batch is a bug of ours: its callers have been told, let the loop report it
        self._start_soon()

    async def _run(self, batch: list[_Waiting]) -> None:
        try:
            view = await self._usable_view()
            if view is None or view.routing is None:
                raise Unavailable("no shard host has loaded yet, or none is left; try again", retry_after_s=1.0)
            await _Batch(self, batch, view).drive()
        except StemmaError as error:
            for waiting in batch:
                if not waiting.answer.done():
                    waiting.answer.set_exception(error)
        finally:
            for waiting in batch:
                if not waiting.answer.done():
                    waiting.answer.set_exception(StemmaError("the search of this batch broke"))

    # ------------------------------------------------------------------ what the directory says

    async def _usable_view(self) -> View | None:
        """The view at hand where it is young; one that may name dead hosts is renewed first, as long as that works."""
        age_ms = now_ms() - self._viewed_ms
        if self._view is None or age_ms > self._settings.cluster.suspect_after_ms:
            return await self._refreshed()
        if age_ms > self._settings.cluster.heartbeat_ms:
            self._begin_view()
        return self._view

    async def _refreshed(self) -> View | None:
        return await asyncio.shield(self._begin_view())

    def _begin_view(self) -> asyncio.Task[View | None]:
        if self._viewing is None or self._viewing.done():
            self._viewing = asyncio.create_task(self._look())
        return self._viewing

    async def _look(self) -> View | None:
        """Ask the directory; while it is down, the last view goes on serving."""
        try:
            async with asyncio.timeout(self._settings.cluster.suspect_after_ms / 1e3):
                view = await self._hosts.view()
        except (Unavailable, TimeoutError):
            self._viewed_ms = now_ms()  # do not make every batch wait for a directory that is down
            return self._view
        if self._view is None or view.routing is not None:
            self._view = view
        self._viewed_ms = now_ms()
        return self._view


class _Batch:
    """One batch under way: obeys the fan-out's actions and brings it the events."""

    def __init__(self, asker: Asker, batch: list[_Waiting], view: View) -> None:
        assert view.routing is not None
        self._asker = asker
        self._batch = batch
        self._begun_ms = now_ms()
        self._events: asyncio.Queue[Event] = asyncio.Queue()
        self._flights: set[asyncio.Task[None]] = set()
        self._fanout = Fanout(
            routing=view.routing,
            queries=[waiting.query for waiting in batch],
            deadlines_ms=[waiting.ends_ms for waiting in batch],
            health=asker._health,
            settings=asker._settings.cluster,
            suspects=view.suspects,
        )

    async def drive(self) -> None:
        """Until every query of the batch is done."""
        try:
            self._obey(self._fanout.start(now_ms()))
            while not self._fanout.finished:
                wake_ms = self._fanout.wake_ms
                assert wake_ms is not None
                event = await self._next_event(max(wake_ms - now_ms(), 0.0))
                self._obey(event(now_ms()))
        finally:
            self._fanout.abandon()
            for flight in self._flights:
                flight.cancel()

    async def _next_event(self, wait_ms: float) -> Event:
        try:
            async with asyncio.timeout(wait_ms / 1e3):
                return await self._events.get()
        except TimeoutError:
            return self._fanout.tick

    def _obey(self, actions: Sequence[Action]) -> None:
        for action in actions:
            match action:
                case Ask():
                    self._asker.calls += 1
                    self._fly(self._ask(action))
                case Refresh():
                    self._fly(self._refresh())
                case Done():
                    self._tell(action)

    def _fly(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._flights.add(task)
        task.add_done_callback(self._flights.discard)

    async def _ask(self, ask: Ask) -> None:
        try:
            replies = await self._asker._hosts.ask(ask.call, ask.queries, ask.deadline_ms - now_ms())
        except StaleRouting:
            self._events.put_nowait(lambda now: self._fanout.failed(ask.ask_id, Failure.STALE, now))
        except DeadlineExceeded:
            self._events.put_nowait(lambda now: self._fanout.failed(ask.ask_id, Failure.LATE, now))
        except Unavailable:
            self._asker._begin_view()  # the directory may know better by now
            self._events.put_nowait(lambda now: self._fanout.failed(ask.ask_id, Failure.LOST, now))
        else:
            self._events.put_nowait(lambda now: self._fanout.answered(ask.ask_id, replies, ask.positions, now))

    async def _refresh(self) -> None:
        view = await self._asker._refreshed()
        routing, suspects = (None, frozenset[str]()) if view is None else (view.routing, view.suspects)
        self._events.put_nowait(lambda now: self._fanout.rerouted(routing, suspects, now))

    def _tell(self, done: Done) -> None:
        waiting = self._batch[done.position]
        if waiting.answer.done():
            return
        if done.found is None:
            waiting.answer.set_exception(done.error or StemmaError("a search ended with nothing"))
            return
        spent = {
            "batch_wait": round(self._begun_ms - waiting.arrived_ms, 3),
            "shards": round(now_ms() - self._begun_ms, 3),
        }
        waiting.answer.set_result(replace(done.found, timings_ms={**done.found.timings_ms, **spent}))
