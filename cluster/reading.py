"""Which host is asked for which original: every row of the few best once, in one call to each owner.

A row's pixels never change and every catalog has them, so this spreads the reading over the hosts' page caches and need
not be right to be safe: what a host does not give, for whatever reason, the asker reads from its own catalog.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable
from dataclasses import dataclass
from operator import attrgetter

from cluster.routing import Call, Routing
from stemma.flow import Unit


@dataclass(frozen=True, slots=True, kw_only=True)
class Read:
    """One call to one host, for these rows."""

    call: Call
    rows: tuple[int, ...]


def unit_of(routing: Routing, row: int) -> Unit | None:
    """The unit that holds ``row``; None for a row between segments, which is nobody's."""
    if row >= routing.sealed_hi:
        return routing.tail_blocks(row + 1)[-1]
    at = bisect_right(routing.segments, row, key=attrgetter("row_lo")) - 1
    return routing.segments[at] if at >= 0 and row < routing.segments[at].row_hi else None


def reads(routing: Routing, rows: Iterable[int], avoid: frozenset[str]) -> tuple[Read, ...]:
    """Each row to the first of its owners that is not to be avoided, if there is one; a row given twice is asked once.

    ``avoid``: hosts that are suspect or failing; waiting for one would cost more than to read without it.
    """
    shares: dict[str, list[int]] = {}
    for row in dict.fromkeys(rows):
        owner = _owner(routing, row, avoid)
        if owner is not None:
            shares.setdefault(owner, []).append(row)
    return tuple(
        Read(call=Call(key=routing.key, path=(host,), demoted=avoid), rows=tuple(share))
        for host, share in sorted(shares.items())
    )


def covered(routing: Routing, call: Call, rows: Iterable[int]) -> tuple[int, ...]:
    """The rows that ``call`` may ask its host for."""
    owns = call.owns(routing)
    return tuple(row for row in rows if (unit := unit_of(routing, row)) is not None and owns(unit))


def _owner(routing: Routing, row: int, avoid: frozenset[str]) -> str | None:
    unit = unit_of(routing, row)
    owners = routing.order(unit, avoid) if unit is not None else ()
    return owners[0] if owners and owners[0] not in avoid else None
