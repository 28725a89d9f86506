"""Who serves what: an immutable, numbered ``Routing``, and the one rule by which a unit finds its server.

A unit (segment, or block of the tail) belongs to the first R hosts in weighted rendezvous order, a pure function of
the unit, the hosts, their weights and R. New rows fall into blocks of the tail, whose owners every host computes alike:
they need no new routing.

A query asks hosts by *paths*. A unit's ``order`` is its owners with the ``demoted`` ones (suspect, or failing in the
asker's eyes) moved to the end. The call with path ``(a, b, h)`` goes to ``h`` and is for exactly the units whose order
begins with a, b, h: what ``a`` and then ``b`` should have served and did not. Paths of one length are disjoint, and
``(a, b)`` is the disjoint union of ``(a, b, h)`` over all h: however hosts fail, and however often a second copy is
asked, every unit is answered for once or is known to be missing.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import NamedTuple

from stemma.flow import Unit

Owns = Callable[[Unit], bool]


class Weighted(NamedTuple):
    """A host and its share: a host of weight 2 serves twice as much as one of weight 1."""

    host: str
    weight: float = 1.0


class Key(NamedTuple):
    """Names one routing for good: an epoch alone could be used twice by a directory that lost its memory."""

    epoch: int
    digest: str


@lru_cache(maxsize=1 << 16)
def rendezvous(unit: Unit, hosts: tuple[Weighted, ...], copies: int) -> tuple[str, ...]:
    """The first ``copies`` hosts for ``unit``, by weighted rendezvous hashing (-ln(u) / weight, smallest first).

    The same in every process (BLAKE2b, not ``hash``); a host that leaves moves only its own units.
    """
    scored = []
    for host, weight in hosts:
        text = f"{unit.kind}:{unit.row_lo}:{unit.row_hi}|{host}".encode()
        number = int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "big")
        scored.append((-math.log((number + 0.5) / 2**64) / weight, host))
    return tuple(host for _, host in sorted(scored)[:copies])


@dataclass(frozen=True, kw_only=True)
class Routing:
    """Which host serves which unit. Nobody edits it; a query holds one from start to end."""

    epoch: int
    seq: int
    """The last commit that the directory knew when it made this; rows of later commits are routed all the same."""
    hosts: tuple[Weighted, ...]
    """Sorted by host."""
    copies: int
    segments: tuple[Unit, ...]
    """Sealed segments, by row_lo; rows behind the last one are in tail blocks."""
    tail_block_rows: int
    codec: str = ""
    """Id of the codec of the segments: hosts of one answer must not search under two."""

    def __post_init__(self) -> None:
        if self.copies < 1 or self.tail_block_rows < 1 or self.epoch < 0:
            raise ValueError(f"copies, tail_block_rows and epoch of a routing cannot be {self}")
        if list(self.hosts) != sorted(set(self.hosts)) or any(weight <= 0 for _, weight in self.hosts):
            raise ValueError(f"hosts of a routing are sorted, distinct and of positive weight, not {self.hosts}")
        for before, after in zip(self.segments, self.segments[1:], strict=False):
            if after.row_lo < before.row_hi:
                raise ValueError(f"segments of a routing do not overlap: {before}, {after}")

    @cached_property
    def key(self) -> Key:
        content = repr((self.epoch, self.hosts, self.copies, self.segments, self.tail_block_rows, self.codec))
        return Key(self.epoch, hashlib.blake2b(content.encode(), digest_size=8).hexdigest())

    @cached_property
    def host_ids(self) -> tuple[str, ...]:
        return tuple(host for host, _ in self.hosts)

    @property
    def copies_there(self) -> int:
        """Copies that there are hosts for."""
        return min(self.copies, len(self.hosts))

    def owners(self, unit: Unit) -> tuple[str, ...]:
        """Hosts that hold ``unit``, first choice first; empty for a unit that this routing does not know."""
        if unit.kind == "segment":
            return rendezvous(unit, self.hosts, self.copies) if unit in self._segments else ()
        # A block whose beginning is sealed already stays with the owners of the whole block. Rows that are in a segment
        # of this routing are nobody's as tail: a host that still has them there must not count them a second time.
        block = self.tail_block_rows
        if unit.row_hi % block or unit.row_hi - unit.row_lo > block or unit.row_lo < self.sealed_hi:
            return ()
        return rendezvous(Unit(unit.row_hi - block, unit.row_hi, "tail"), self.hosts, self.copies)

    @cached_property
    def sealed_hi(self) -> int:
        """The first row that no segment can hold: the tail begins here."""
        return self.segments[-1].row_hi if self.segments else 0

    @cached_property
    def _segments(self) -> frozenset[Unit]:
        return frozenset(self.segments)

    def order(self, unit: Unit, demoted: frozenset[str]) -> tuple[str, ...]:
        """Owners of ``unit`` in the order in which they are asked: demoted ones last."""
        owners = self.owners(unit)
        return tuple(sorted(owners, key=demoted.__contains__)) if demoted else owners

    def holds(self, host: str) -> Owns:
        """What ``host`` must have loaded."""
        return lambda unit: host in self.owners(unit)

    def tail_blocks(self, rows: int) -> tuple[Unit, ...]:
        """Tail blocks of a catalog whose next row number is ``rows``; a segment may cut the first one short."""
        block, lo = self.tail_block_rows, self.sealed_hi
        if lo >= rows:
            return ()
        numbers = range(lo // block, (rows - 1) // block + 1)
        return tuple(Unit(max(lo, number * block), (number + 1) * block, "tail") for number in numbers)


@dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    """What a host is asked to answer for (module docstring); ``path[-1]`` is the host itself."""

    key: Key
    path: tuple[str, ...]
    demoted: frozenset[str] = frozenset()

    @property
    def host(self) -> str:
        return self.path[-1]

    def owns(self, routing: Routing) -> Owns:
        """Whether this call is for a unit. ``routing`` must be the one that the call names."""
        assert routing.key == self.key, f"a call under {self.key} was read under {routing.key}"
        path, demoted, depth = self.path, self.demoted, len(self.path)
        return lambda unit: routing.order(unit, demoted)[:depth] == path


def may_serve(routing: Routing, path: tuple[str, ...], demoted: frozenset[str]) -> bool:
    """False when no unit's order can begin with ``path``, so that the call need not be made."""
    if len(set(path)) != len(path) or len(path) > routing.copies_there:
        return False
    firm = [host not in demoted for host in path]
    if all(firm):
        return True
    # A demoted host comes up only after all firm owners of the unit: the other R - |firm| owners are demoted ones.
    if firm != sorted(firm, reverse=True):
        return False
    return routing.copies_there - sum(firm) <= len(demoted & set(routing.host_ids))


def units_of(routing: Routing, rows: int) -> tuple[Unit, ...]:
    """All units of a catalog whose next row number is ``rows``."""
    return (*routing.segments, *routing.tail_blocks(rows))


def loads(routing: Routing, units: Iterable[Unit]) -> dict[str, list[Unit]]:
    """Units by first owner: what each host serves while all are well."""
    shares: dict[str, list[Unit]] = {host: [] for host in routing.host_ids}
    for unit in units:
        for host in routing.owners(unit)[:1]:
            shares[host].append(unit)
    return shares
