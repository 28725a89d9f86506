"""Alive, suspect, dead: what the directory believes of each host, from what it heard and when.

alive ──silent or behind for suspect_after_ms──▶ suspect (asked last) ──for dead_after_ms──▶ dead (its units move)
  ▲                                                │
  └────────── heard, and caught up ────────────────┘      dead ──unbroken life, longer after each death──▶ alive

A host that answers but has not read what was announced counts as silent: one clock for both.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from enum import StrEnum

from cluster.limits import FLAP_DOUBLINGS_MAX, INCARNATIONS_REMEMBERED
from cluster.routing import Key
from stemma.config import ClusterSettings


class Life(StrEnum):
    ALIVE = "alive"
    SUSPECT = "suspect"
    DEAD = "dead"


@dataclass(frozen=True, slots=True, kw_only=True)
class Beat:
    """What a host says of itself."""

    host: str
    incarnation: str
    """Changes with every start of the host's process: what it held before is gone."""
    number: int
    """Counts up within an incarnation, so that a late duplicate is known for what it is."""
    seq: int
    """The commit up to which it has read."""
    holds: tuple[Key, ...] = ()
    """Routings for which everything is loaded."""
    weight: float = 1.0
    images: int = 0
    """Live images in what it has loaded (for people)."""


@dataclass(slots=True)
class Member:
    """One host, as the directory knows it."""

    host: str
    weight: float = 1.0
    incarnation: str | None = None
    """None until it was heard, and again once it is known to be gone for certain."""
    number: int = -1
    seq: int = -1
    holds: frozenset[Key] = frozenset()
    images: int = 0
    gone: bool = False
    """Its process is known to have ended: it cannot answer anybody until it has joined again."""
    well_ms: float | None = None
    """When it was last heard and caught up."""
    well_since_ms: float | None = None
    """Start of its present unbroken life."""
    deaths: int = 0
    admitted: bool = False
    past: deque[str] = field(default_factory=lambda: deque(maxlen=INCARNATIONS_REMEMBERED))
    """Incarnations that were superseded; what arrives from them late is ignored."""


class Members:
    """All hosts and the transitions between their lives. ``now_ms`` never runs backwards."""

    def __init__(self, settings: ClusterSettings) -> None:
        self._settings = settings
        self._members: dict[str, Member] = {}

    def __getitem__(self, host: str) -> Member:
        return self._members[host]

    def __contains__(self, host: str) -> bool:
        return host in self._members

    def __iter__(self) -> Iterator[Member]:
        return iter([self._members[host] for host in sorted(self._members)])

    def enlist(self, host: str, weight: float = 1.0) -> Member:
        """A host that may be running: until it is heard or known to be gone, nothing is assumed of it."""
        return self._members.setdefault(host, Member(host, weight))

    def strike(self, host: str) -> None:
        """Forget a host that will not come back (its node left for good)."""
        self._members.pop(host, None)

    def gone(self, host: str, incarnation: str | None) -> None:
        """The process of this incarnation (None: whichever) has certainly ended."""
        member = self._members.get(host)
        if member is None or (incarnation is not None and member.incarnation not in (None, incarnation)):
            return
        if member.incarnation is not None:
            member.past.append(member.incarnation)
        member.incarnation, member.gone, member.holds, member.number = None, True, frozenset(), -1

    def heard(self, beat: Beat, announced_seq: int, now_ms: float) -> bool:
        """Take in what a host says; False for a duplicate or a word from an earlier life."""
        member = self.enlist(beat.host, beat.weight)
        if beat.incarnation in member.past:
            return False
        if beat.incarnation == member.incarnation and beat.number <= member.number:
            return False
        if beat.incarnation != member.incarnation:
            if member.incarnation is not None:
                member.past.append(member.incarnation)
            member.incarnation, member.seq = beat.incarnation, -1
        member.gone = False
        member.number, member.weight, member.images = beat.number, beat.weight, beat.images
        member.seq = max(member.seq, beat.seq)  # beats may overtake each other; commits are never unread
        member.holds = frozenset(beat.holds)
        if member.seq >= announced_seq:
            self._well(member, now_ms)
        return True

    def _well(self, member: Member, now_ms: float) -> None:
        if member.well_ms is None or now_ms - member.well_ms > self._settings.suspect_after_ms:
            member.well_since_ms = now_ms
        member.well_ms = now_ms
        assert member.well_since_ms is not None
        if not member.admitted and now_ms - member.well_since_ms >= self._probation_ms(member):
            member.admitted = True
        if member.admitted and now_ms - member.well_since_ms >= self._forgiven_after_ms():
            member.deaths = 0

    def _probation_ms(self, member: Member) -> float:
        doublings = min(member.deaths, FLAP_DOUBLINGS_MAX)
        return self._settings.suspect_after_ms * float(1 << doublings) if member.deaths else 0.0

    def _forgiven_after_ms(self) -> float:
        return 2 * self._settings.suspect_after_ms * float(1 << FLAP_DOUBLINGS_MAX)

    def tick(self, now_ms: float) -> None:
        """Let time pass: who was dead long enough is no longer admitted."""
        for member in self._members.values():
            if member.admitted and self._silent_ms(member, now_ms) >= self._settings.dead_after_ms:
                member.admitted, member.well_since_ms = False, None
                member.deaths += 1

    def life(self, host: str, now_ms: float) -> Life:
        member = self._members[host]
        silent_ms = self._silent_ms(member, now_ms)
        if not member.admitted or silent_ms >= self._settings.dead_after_ms:
            return Life.DEAD
        suspect = member.gone or silent_ms >= self._settings.suspect_after_ms
        return Life.SUSPECT if suspect else Life.ALIVE

    def _silent_ms(self, member: Member, now_ms: float) -> float:
        return float("inf") if member.well_ms is None else now_ms - member.well_ms

    def with_life(self, now_ms: float, *lives: Life) -> tuple[Member, ...]:
        return tuple(member for member in self if self.life(member.host, now_ms) in lives)

    def unread(self, seq: int) -> tuple[str, ...]:
        """Hosts that may be answering somebody and are not known to have read ``seq``."""
        return tuple(member.host for member in self if not member.gone and member.seq < seq)
