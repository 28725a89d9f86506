"""The asker's decisions for one batch of queries: whom to ask, when to ask a copy, when to stop, what to say.

Events come in (a reply, a failure, a tick), frozen actions go out (``Ask``, ``Refresh``, ``Done``); the shell
(``actors/handles.py``) obeys and comes back at ``wake_ms`` at the latest. A batch holds one ``Routing`` from start to
end; when a host refuses its epoch, the batch starts again under a newer one, at most ``stale_retries_max`` times.

An answer is a view of the collection at ONE commit. Hosts that have read different ones are asked again as of the
earliest of them: all have it, and it is no older than what was acknowledged when the query began.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum

import numpy as np

from cluster.health import Health
from cluster.invariants import audit_replies
from cluster.limits import HEDGES_PER_ROUND, ROUNDS_MAX
from cluster.round import Path, Round, Taken
from cluster.routing import Call, Routing
from stemma.config import ClusterSettings
from stemma.errors import StemmaError, Unavailable
from stemma.flow import AnyQuery, Found, HostReply
from stemma.index.merge import MergeResult, lists_needed, merge

SHALLOW = "the time was up before further lists were probed"
DEEP = "more lists were probed than needed, because a host did not answer at first"


class Failure(StrEnum):
    """Why a call brought no replies."""

    STALE = "stale"
    LOST = "lost"
    LATE = "late"


@dataclass(frozen=True, slots=True, kw_only=True)
class Ask:
    """Send this call; report what comes by ``ask_id``."""

    ask_id: int
    call: Call
    positions: tuple[int, ...]
    queries: tuple[AnyQuery, ...]
    deadline_ms: float
    """On the asker's clock; the host is told what is left of it."""


@dataclass(frozen=True, slots=True)
class Refresh:
    """Fetch a newer routing and report it with ``rerouted``."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Done:
    """The end of one query: what was found, or why there is no answer at all."""

    position: int
    found: Found | None = None
    error: StemmaError | None = None


Action = Ask | Refresh | Done


@dataclass(slots=True)
class _Pending:
    """A query that is not done: as it is asked now, and the best answer so far."""

    query: AnyQuery
    original: AnyQuery
    deadline_ms: float
    rounds: int = 0
    best: Found | None = None


@dataclass(slots=True)
class _Flight:
    round: Round
    path: Path
    asked_ms: float
    deadline_ms: float
    hedged: bool = False


@dataclass(slots=True)
class _Stage:
    round: Round
    positions: tuple[int, ...]
    concluded: bool = False


@dataclass(slots=True)
class Fanout:
    """One batch. Queries are known by their position in it; ``deadlines_ms`` are on the asker's clock."""

    routing: Routing
    queries: Sequence[AnyQuery]
    deadlines_ms: Sequence[float]
    health: Health
    settings: ClusterSettings
    suspects: frozenset[str] = frozenset()
    _pending: dict[int, _Pending] = field(default_factory=dict)
    _stages: list[_Stage] = field(default_factory=list)
    _flights: dict[int, _Flight] = field(default_factory=dict)
    _next_ask: int = 0
    _restarts: int = 0
    _stale: list[int] = field(default_factory=list)

    # ------------------------------------------------------------------ events

    def start(self, now_ms: float) -> tuple[Action, ...]:
        """Ask everybody."""
        for position, (query, deadline_ms) in enumerate(zip(self.queries, self.deadlines_ms, strict=True)):
            self._pending[position] = _Pending(query, query, deadline_ms)
        return (*self._begin(tuple(self._pending), frozenset(), now_ms), *self._conclude(now_ms))

    def answered(
        self, ask_id: int, replies: Sequence[HostReply | StemmaError], positions: Sequence[int], now_ms: float
    ) -> tuple[Action, ...]:
        """A host has answered for ``positions``; a late or doubled reply changes nothing."""
        flight = self._flights.pop(ask_id, None)
        if flight is None:
            return ()
        self.health.answered(flight.path[-1], now_ms - flight.asked_ms)
        refused = {at: reply for at, reply in zip(positions, replies, strict=True) if isinstance(reply, StemmaError)}
        good = {at: reply for at, reply in zip(positions, replies, strict=True) if isinstance(reply, HostReply)}
        flight.round.answered(flight.path, good)
        done = tuple(self._finish(at, error=error) for at, error in refused.items() if at in self._pending)
        return (*done, *self._conclude(now_ms))

    def failed(self, ask_id: int, failure: Failure, now_ms: float) -> tuple[Action, ...]:
        """A call will bring nothing: ask the next owners, or a newer routing first when ours was refused."""
        flight = self._flights.get(ask_id)
        if flight is None:
            return ()
        if failure is Failure.STALE and self._restarts < self.settings.stale_retries_max:
            self._stale.append(ask_id)
            return (Refresh(),) if len(self._stale) == 1 else ()
        return (*self._give_up(ask_id, failure, now_ms), *self._conclude(now_ms))

    def rerouted(self, routing: Routing | None, suspects: frozenset[str], now_ms: float) -> tuple[Action, ...]:
        """The directory's answer to ``Refresh`` (None: it gave none)."""
        stale, self._stale = self._stale, []
        self.suspects = suspects
        if routing is not None and routing.key != self.routing.key and routing.key.epoch >= self.routing.key.epoch:
            self._restarts += 1
            self.routing = routing
            for flight in self._flights.values():
                self.health.dropped(flight.path[-1])
            self._flights.clear()
            self._stages.clear()
            for pending in self._pending.values():
                pending.query, pending.rounds = pending.original, 0
            return (*self._begin(tuple(self._pending), frozenset(), now_ms), *self._conclude(now_ms))
        self._restarts = self.settings.stale_retries_max  # there is nothing newer: do not ask the directory again
        actions: tuple[Action, ...] = ()
        for ask_id in stale:
            if ask_id in self._flights:
                actions += self._give_up(ask_id, Failure.STALE, now_ms)
        return (*actions, *self._conclude(now_ms))

    def tick(self, now_ms: float) -> tuple[Action, ...]:
        """Time has passed: late calls fail, slow ones are hedged, queries whose time is up end with what there is."""
        actions: list[Action] = []
        for ask_id, flight in list(self._flights.items()):
            if ask_id not in self._flights:
                continue
            if now_ms >= flight.deadline_ms:
                actions += self._give_up(ask_id, Failure.STALE if ask_id in self._stale else Failure.LATE, now_ms)
            elif self._may_hedge(flight) and now_ms >= flight.asked_ms + self.health.hedge_after_ms(flight.path[-1]):
                flight.hedged = True
                actions += self._ask(flight.round, flight.round.hedge(flight.path), now_ms)
        return (*actions, *self._conclude(now_ms))

    @property
    def finished(self) -> bool:
        return not self._pending

    @property
    def wake_ms(self) -> float | None:
        """When ``tick`` must be called at the latest; None when nothing is pending."""
        if not self._pending:
            return None
        times = [pending.deadline_ms for pending in self._pending.values()]
        for flight in self._flights.values():
            times.append(flight.deadline_ms)
            if self._may_hedge(flight):
                times.append(flight.asked_ms + self.health.hedge_after_ms(flight.path[-1]))
        return min(times)

    def abandon(self) -> None:
        """The batch is given up by its caller: its calls say nothing of the hosts."""
        for flight in self._flights.values():
            self.health.dropped(flight.path[-1])
        self._flights.clear()
        self._pending.clear()

    # ------------------------------------------------------------------ asking

    def _begin(self, positions: tuple[int, ...], failed: frozenset[str], now_ms: float) -> tuple[Action, ...]:
        """A round over all hosts for these queries."""
        if not positions:
            return ()
        shut = self.health.shut_hosts(self.routing.host_ids, now_ms)
        demoted = (self.suspects | shut | failed) & set(self.routing.host_ids)
        round_ = Round(self.routing, demoted, lambda host: self.health.shut(host, now_ms))
        round_.failed_hosts |= failed
        for position in positions:
            self._pending[position].rounds += 1
        self._stages.append(_Stage(round_, positions))
        return self._ask(round_, round_.start(), now_ms)

    def _ask(self, round_: Round, paths: Sequence[Path], now_ms: float) -> tuple[Action, ...]:
        stage = next(stage for stage in self._stages if stage.round is round_)
        live = tuple(
            position
            for position in stage.positions
            if position in self._pending and self._pending[position].deadline_ms > now_ms
        )
        if not live:
            return ()
        latest_ms = max(self._pending[position].deadline_ms for position in live)
        asks: list[Action] = []
        for path in paths:
            deadline_ms = min(latest_ms, now_ms + self.settings.host_deadline_ms)
            self._next_ask += 1
            self._flights[self._next_ask] = _Flight(round_, path, now_ms, deadline_ms)
            self.health.asked(path[-1], now_ms)
            asks.append(
                Ask(
                    ask_id=self._next_ask,
                    call=round_.call(path),
                    positions=live,
                    queries=tuple(self._pending[position].query for position in live),
                    deadline_ms=deadline_ms,
                )
            )
        return tuple(asks)

    def _give_up(self, ask_id: int, failure: Failure, now_ms: float) -> tuple[Action, ...]:
        flight = self._flights.pop(ask_id)
        host = flight.path[-1]
        if failure is Failure.STALE:
            self.health.dropped(host)  # it is alive and honest: no reason to shut it out
        else:
            self.health.failed(host, now_ms)
        return self._ask(flight.round, flight.round.failed(flight.path), now_ms)

    def _may_hedge(self, flight: _Flight) -> bool:
        if flight.hedged or len(flight.path) >= self.routing.copies_there:
            return False
        return flight.round.hedges < HEDGES_PER_ROUND

    # ------------------------------------------------------------------ concluding

    def _conclude(self, now_ms: float) -> tuple[Action, ...]:
        """End what can end; begin the further rounds that settled ones call for."""
        actions: list[Action] = []
        for stage in self._stages:  # grows meanwhile: a further round may be settled before it has begun
            if stage.concluded:
                continue
            expired = [at for at in stage.positions if at in self._pending and self._expired(at, now_ms)]
            if stage.round.settled:
                stage.concluded = True
                actions += self._settle(stage, now_ms)
            elif expired:
                taken = stage.round.taken()
                for at in expired:
                    self._note(at, taken)
                    actions.append(self._finish(at))
            if not any(at in self._pending for at in stage.positions):
                stage.concluded = True
                self._drop_flights(stage.round)
        return tuple(actions)

    def _expired(self, position: int, now_ms: float) -> bool:
        return now_ms >= self._pending[position].deadline_ms

    def _drop_flights(self, round_: Round) -> None:
        """Calls of a round that nobody waits for any more."""
        for ask_id, flight in list(self._flights.items()):
            if flight.round is round_:
                self.health.dropped(flight.path[-1])
                del self._flights[ask_id]

    def _settle(self, stage: _Stage, now_ms: float) -> tuple[Action, ...]:
        self._drop_flights(stage.round)
        taken = stage.round.taken()
        actions: list[Action] = []
        again: list[int] = []
        for at in stage.positions:
            if at not in self._pending:
                continue
            further = self._note(at, taken)
            pending = self._pending[at]
            if further is not None and pending.rounds < ROUNDS_MAX and not self._expired(at, now_ms):
                pending.query = further
                again.append(at)
            else:
                actions.append(self._finish(at))
        return (*actions, *self._begin(tuple(again), stage.round.mute_hosts, now_ms))

    def _note(self, position: int, taken: Taken) -> AnyQuery | None:
        """Keep the better answer; returns the question to ask once more, if the answer cannot stand yet."""
        pending = self._pending[position]
        replies = {path: by[position] for path, by in taken.replies.items() if position in by}
        if not replies:
            return None
        lacking = frozenset(path[-1] for path, by in taken.replies.items() if position not in by)
        view = one_view(replies, pending.query.as_of)
        audit_replies(view.replies)
        result = merge({">".join(path): reply for path, reply in view.replies.items()}, pending.query.shortlist)
        whole = result.images_searched == result.images_total
        deeper = result.nprobe_needed
        shallower = _shallower(view, pending) if whole else None
        found = _found(
            result,
            # Units are disjoint and the view is of one commit: when the counts agree, nothing was missed anywhere.
            missing=frozenset() if whole else taken.missing | view.missing | lacking,
            seq=view.seq if pending.original.as_of is None else result.seq,
            notes=(SHALLOW,) if deeper is not None else (DEEP,) if shallower is not None else (),
        )
        if pending.best is None or _worth(found) >= _worth(pending.best):
            pending.best = found
        if view.missing:
            return replace(pending.query, as_of=view.seq_min)
        nprobe = deeper if deeper is not None else shallower
        if nprobe is None:
            return None
        as_of = pending.query.as_of if pending.original.as_of is not None else view.seq
        return replace(pending.query, nprobe=nprobe, as_of=as_of)

    def _finish(self, position: int, error: StemmaError | None = None) -> Done:
        pending = self._pending.pop(position)
        if error is not None:
            return Done(position=position, error=error)
        if pending.best is None:
            none = Unavailable("no host answered in time; try again", subject="hosts", retry_after_s=1.0)
            return Done(position=position, error=none)
        return Done(position=position, found=pending.best)


@dataclass(frozen=True, slots=True)
class OneView:
    """Replies that are of one commit, ``seq``, and the hosts whose replies are of another."""

    replies: Mapping[Path, HostReply]
    seq: int
    seq_min: int
    missing: frozenset[str]


def one_view(replies: Mapping[Path, HostReply], as_of: int | None) -> OneView:
    """The replies of the commit under which most images were searched (the later one of equals)."""
    if not replies:
        return OneView({}, -1, -1, frozenset())
    seqs = {path: reply.seq if as_of is None else min(reply.seq, as_of) for path, reply in replies.items()}
    searched: dict[int, int] = {}
    for path, seq in seqs.items():
        searched[seq] = searched.get(seq, 0) + replies[path].images_searched
    seq = max(searched, key=lambda each: (searched[each], each))
    kept = {path: reply for path, reply in replies.items() if seqs[path] == seq}
    return OneView(kept, seq, min(searched), frozenset(path[-1] for path in replies if path not in kept))


def _shallower(view: OneView, pending: _Pending) -> int | None:
    """Fewer lists that would do, when a partial round had asked for more than all hosts together call for: how deep a
    complete answer probes must not depend on who failed on the way."""
    live = [reply.live_by_rank for reply in view.replies.values() if reply.live_by_rank is not None]
    if not live or pending.query.nprobe <= pending.original.nprobe:
        return None
    needed = lists_needed(np.sum(live, axis=0), pending.original.nprobe, pending.query.shortlist)
    return needed if needed < pending.query.nprobe else None


def _worth(found: Found) -> tuple[bool, bool, float]:
    return not found.missing_hosts, not found.notes, found.images_searched / max(1, found.images_total)


def _found(result: MergeResult, *, missing: frozenset[str], seq: int, notes: tuple[str, ...]) -> Found:
    return Found(
        hits=result.hits,
        images_searched=result.images_searched,
        images_total=result.images_total,
        missing_hosts=tuple(sorted(missing)),
        seq=seq,
        nprobe=result.nprobe,
        codec=result.codec,
        notes=notes,
        without_objects=result.without_objects,
    )
