"""The directory's decisions: which routing is in force, what each host must do for the next one, when a commit counts.

Beats come in, orders and confirmations go out; nothing is remembered that cannot be heard again, so a lost directory is
started anew with nothing but the list of hosts that may be running. Orders are level-triggered (each says all that the
host still lacks), so lost, doubled and reordered ones do no harm.

A routing passes through two stages. As *candidate* it is loaded by its hosts, while queries go on under the current
one; when all of them hold it, it becomes *current* and askers see it. No host is ever asked for what it has not loaded.

A commit is confirmed when every host that may be answering somebody has read it, at the latest ``announce_ms`` after it
was announced: by then a host that did not hear of it refuses to answer before it has looked (``limits.fresh_ms``).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from cluster.limits import EPOCHS_PER_GENERATION, PATIENCE_DEATHS
from cluster.membership import Beat, Life, Member, Members
from cluster.routing import Routing, Weighted
from stemma.config import ClusterSettings
from stemma.flow import Unit


@dataclass(frozen=True, slots=True, kw_only=True)
class Orders:
    """All that a host should know and do now."""

    host: str
    incarnation: str | None
    """The life of the host that they are meant for; None asks it to report itself."""
    seq: int
    prepare: tuple[Routing, ...] = ()
    floor: int = 0
    """Routings of earlier epochs may be dropped."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Confirm:
    """Everything up to ``seq`` may be acknowledged to those who wrote it."""

    seq: int


Instruction = Orders | Confirm


@dataclass(frozen=True, slots=True, kw_only=True)
class View:
    """What askers are told."""

    routing: Routing | None
    suspects: frozenset[str] = frozenset()
    seq: int = -1


@dataclass(slots=True)
class _Candidate:
    routing: Routing
    since_ms: float


class Directory:
    """One collection's single writer of routings. ``now_ms`` is its own monotonic clock."""

    def __init__(
        self,
        settings: ClusterSettings,
        *,
        tail_block_rows: int,
        generation: int,
        now_ms: float,
        roster: Iterable[str] = (),
        seq: int = -1,
        segments: Iterable[Unit] = (),
        codec: str = "",
    ) -> None:
        """``roster``: every host that may be running. ``generation``: larger than that of any earlier directory (an
        equal one is made good as soon as a host tells of its higher epoch)."""
        self.members = Members(settings)
        self._settings = settings
        self._tail_block_rows = tail_block_rows
        self._epoch = generation * EPOCHS_PER_GENERATION
        self._started_ms = now_ms
        self._current: Routing | None = None
        self._previous: Routing | None = None
        self._candidate: _Candidate | None = None
        self._trials: dict[str, Routing] = {}
        self._segments, self._codec = tuple(sorted(segments)), codec
        self._seq = seq
        self._confirmed = -1  # whatever an earlier directory confirmed: this one has not seen anybody read it
        self._announced: list[tuple[int, float]] = []
        self._ordered_ms = float("-inf")
        for host in roster:
            self.members.enlist(host)

    # ------------------------------------------------------------------ events

    def enlist(self, host: str, weight: float = 1.0) -> None:
        """A host may be running from now on."""
        self.members.enlist(host, weight)

    def gone(self, host: str, incarnation: str | None, now_ms: float) -> tuple[Instruction, ...]:
        """This life of the host has certainly ended (Ray saw its process die)."""
        self.members.gone(host, incarnation)
        return self._decide(now_ms)

    def strike(self, host: str, now_ms: float) -> tuple[Instruction, ...]:
        """The host will not come back."""
        self.members.strike(host)
        self._trials.pop(host, None)
        return self._decide(now_ms)

    def heard(self, beat: Beat, now_ms: float) -> tuple[Instruction, ...]:
        """A host has told of itself."""
        if not self.members.heard(beat, self._due_seq(now_ms), now_ms):
            return ()
        surpassed = self.seen(max((key.epoch for key in beat.holds), default=0), now_ms)
        trial = self._trials.get(beat.host)
        if trial is not None and trial.key in self.members[beat.host].holds:
            del self._trials[beat.host]
        lacks = self._orders(self.members[beat.host])
        behind = lacks.seq > beat.seq or bool(lacks.prepare)
        return (*surpassed, *self._decide(now_ms), *((lacks,) if behind and beat.number == 1 else ()))

    def seen(self, epoch: int, now_ms: float) -> tuple[Instruction, ...]:
        """Somebody holds a routing of this epoch. One of a directory before this one is numbered above, because askers
        only ever move forward."""
        if epoch <= self._epoch:
            return ()
        self._epoch, self._candidate = epoch, None
        return self._propose(self._current.hosts, now_ms) if self._current is not None else ()

    def sealed(self, segments: Iterable[Unit], now_ms: float, codec: str = "") -> tuple[Instruction, ...]:
        """These are the segments there are now, under this codec."""
        self._segments, self._codec = tuple(sorted(segments)), codec
        return self._decide(now_ms)

    def announce(self, seq: int, now_ms: float) -> tuple[Instruction, ...]:
        """A commit is durable: tell the hosts, confirm when it may count. To be said again until it is confirmed."""
        if seq > self._seq:
            self._seq = seq
        if seq > self._confirmed:
            self._announced.append((seq, now_ms))
        instructions = self._decide(now_ms)
        unread = [self._orders(self.members[host]) for host in self.members.unread(seq)]
        if seq <= self._confirmed and not any(isinstance(each, Confirm) for each in instructions):
            instructions = (*instructions, Confirm(seq=self._confirmed))
        return (*unread, *instructions)

    def tick(self, now_ms: float) -> tuple[Instruction, ...]:
        """Time has passed; call it several times per ``heartbeat_ms``."""
        instructions = self._decide(now_ms)
        if now_ms - self._ordered_ms < self._settings.heartbeat_ms:
            return instructions
        self._ordered_ms = now_ms
        return (*instructions, *(self._orders(member) for member in self.members))

    def view(self, now_ms: float) -> View:
        """What an asker that asks now is told."""
        suspects = self.members.with_life(now_ms, Life.SUSPECT, Life.DEAD)
        return View(routing=self._current, suspects=frozenset(each.host for each in suspects), seq=self._confirmed)

    # ------------------------------------------------------------------ decisions

    def _due_seq(self, now_ms: float) -> int:
        """The newest commit that a host has had ``announce_ms`` to read."""
        due = [seq for seq, since_ms in self._announced if now_ms - since_ms >= self._settings.announce_ms]
        return max([self._confirmed, *due])

    def _decide(self, now_ms: float) -> tuple[Instruction, ...]:
        self.members.tick(now_ms)
        confirmed = self._confirm(now_ms)
        fresh = self._place(now_ms)
        return (*confirmed, *fresh)

    def _confirm(self, now_ms: float) -> tuple[Instruction, ...]:
        """Confirm what all have read, or what is ``announce_ms`` old."""
        counted = self._confirmed
        for seq, since_ms in self._announced:
            overdue = now_ms - since_ms >= self._settings.announce_ms
            if overdue or not self.members.unread(seq):
                counted = max(counted, seq)
        self._announced = [(seq, since_ms) for seq, since_ms in self._announced if seq > counted]
        if counted == self._confirmed:
            return ()
        self._confirmed = counted
        return (Confirm(seq=counted),)

    def _place(self, now_ms: float) -> tuple[Instruction, ...]:
        """Move from candidate to current, or make a candidate of what should be."""
        self._give_up_on_the_slow(now_ms)
        candidate = self._candidate
        if candidate is not None:
            held = all(candidate.routing.key in self.members[host].holds for host in self._there(candidate.routing))
            if held and len(self._there(candidate.routing)) == len(candidate.routing.hosts):
                self._previous, self._current, self._candidate = self._current, candidate.routing, None
        hosts = self._wanted_hosts(now_ms)
        if not hosts or not self._settled(now_ms):
            return ()
        basis = self._candidate.routing if self._candidate is not None else self._current
        if basis is not None and (basis.hosts, basis.segments, basis.codec) == (hosts, self._segments, self._codec):
            return ()
        if self._candidate is not None and not self._must_replace(self._candidate, hosts, now_ms):
            return ()
        return self._propose(hosts, now_ms)

    def _there(self, routing: Routing) -> tuple[str, ...]:
        return tuple(host for host in routing.host_ids if host in self.members)

    def _propose(self, hosts: tuple[Weighted, ...], now_ms: float) -> tuple[Instruction, ...]:
        self._epoch += 1
        routing = Routing(
            epoch=self._epoch,
            seq=self._seq,
            hosts=hosts,
            copies=self._settings.copies,
            segments=self._segments,
            tail_block_rows=self._tail_block_rows,
            codec=self._codec,
        )
        self._candidate = _Candidate(routing, now_ms)
        return tuple(self._orders(self.members[host]) for host in self._there(routing))

    def _must_replace(self, candidate: _Candidate, hosts: tuple[Weighted, ...], now_ms: float) -> bool:
        """A candidate that lost a host can never be complete; one that only grew old is overtaken after a while."""
        lost = not set(candidate.routing.hosts) <= set(hosts)
        return lost or now_ms - candidate.since_ms >= self._settings.announce_ms

    def _give_up_on_the_slow(self, now_ms: float) -> None:
        """A newcomer that takes long to load must not hold up the others: it goes on loading on trial."""
        candidate = self._candidate
        if candidate is None:
            return
        serving = set(self._current.host_ids) if self._current is not None else set()
        for host in self._there(candidate.routing):
            patience = self._settings.announce_ms
            if host in serving:
                patience = PATIENCE_DEATHS * self._settings.dead_after_ms
            late = now_ms - candidate.since_ms >= patience
            if late and candidate.routing.key not in self.members[host].holds:
                self._trials[host] = candidate.routing

    def _wanted_hosts(self, now_ms: float) -> tuple[Weighted, ...]:
        there = self.members.with_life(now_ms, Life.ALIVE, Life.SUSPECT)
        return tuple(Weighted(each.host, each.weight) for each in there if each.host not in self._trials)

    def _settled(self, now_ms: float) -> bool:
        """A directory that has just started waits for the hosts it was told of before it moves their units."""
        if self._current is not None or now_ms - self._started_ms >= self._settings.dead_after_ms:
            return True
        return all(each.admitted for each in self.members)

    def _orders(self, member: Member) -> Orders:
        candidate = self._candidate.routing if self._candidate is not None else None
        wanted = [self._current, candidate, self._trials.get(member.host)]
        floor = self._previous or self._current
        return Orders(
            host=member.host,
            incarnation=member.incarnation,
            seq=self._seq,
            prepare=tuple(
                routing
                for routing in wanted
                if routing is not None and member.host in routing.host_ids and routing.key not in member.holds
            ),
            floor=floor.epoch if floor is not None else 0,
        )
