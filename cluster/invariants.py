"""What must always hold, as audits: the simulation runs all of them, the running system the cheap ones.

A broken invariant is our own fault, so it is an ``AssertionError`` that tells the story of what broke.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from itertools import permutations

from cluster.routing import Call, Routing, may_serve
from stemma.flow import Found, HostReply, Unit


def audit_routing(routing: Routing, units: Iterable[Unit]) -> None:
    """Every unit has exactly R owners (fewer only when there are fewer hosts), each a distinct host of the routing."""
    for unit in units:
        owners = routing.owners(unit)
        assert len(owners) == routing.copies_there, f"{unit} has owners {owners} of {routing.copies_there}"
        assert len(set(owners)) == len(owners) and set(owners) <= set(routing.host_ids), f"{unit}: {owners}"


def audit_servers(routing: Routing, demoted: frozenset[str], units: Iterable[Unit]) -> None:
    """Every unit is served by exactly one call of each length of path, and no call that is left out was needed."""
    for depth in range(1, routing.copies_there + 1):
        paths = list(permutations(routing.host_ids, depth))
        calls = [Call(key=routing.key, path=path, demoted=demoted).owns(routing) for path in paths]
        for unit in units:
            serving = [path for path, owns in zip(paths, calls, strict=True) if owns(unit)]
            assert len(serving) == 1, f"{unit} is served by {serving} when {sorted(demoted)} are demoted"
            assert may_serve(routing, serving[0], demoted), f"{unit} needs {serving[0]}, which is never asked"


def audit_replies(replies: Mapping[tuple[str, ...], HostReply]) -> None:
    """Disjoint replies of one commit agree on what there is, and together searched no more than that."""
    totals = {reply.images_total for reply in replies.values()}
    assert len(totals) <= 1, f"hosts disagree on the images of one commit: {_counts(replies)}"
    searched = sum(reply.images_searched for reply in replies.values())
    assert searched <= sum(totals), f"{searched} images were searched of {totals}: {_counts(replies)}"


def _counts(replies: Mapping[tuple[str, ...], HostReply]) -> dict[str, tuple[int, int, int]]:
    return {
        ">".join(path): (each.seq, each.images_searched, each.images_total) for path, each in sorted(replies.items())
    }


def audit_found(found: Found, shortlist: int) -> None:
    """In order, no image twice, never more than asked for; what was not searched is said."""
    order = [(hit.refined_distance, hit.image_id) for hit in found.hits]
    assert order == sorted(order), f"out of order: {order}"
    assert len({hit.image_id for hit in found.hits}) == len(found.hits), f"an image twice: {order}"
    assert len({hit.row for hit in found.hits}) == len(found.hits) <= shortlist, f"a row twice or too many: {order}"
    assert 0 <= found.images_searched <= found.images_total, f"coverage {found.images_searched}/{found.images_total}"
    partial = found.images_searched < found.images_total
    assert partial == bool(found.missing_hosts), (
        f"searched {found.images_searched} of {found.images_total}, missing {found.missing_hosts}"
    )
    assert len(found.hits) <= found.images_searched, f"{len(found.hits)} hits of {found.images_searched} images"


def audit_acknowledged(found: Found, acknowledged_seq: int, as_of: int | None) -> None:
    """An answer has seen every commit that was acknowledged before its query began: its images and its deletes."""
    if as_of is None:
        assert found.seq >= acknowledged_seq, f"an answer at {found.seq}, though {acknowledged_seq} was acknowledged"


@dataclass(slots=True)
class Monotone:
    """Numbers that never run backwards: epochs of an asker, commits of a host's life."""

    _last: dict[tuple[str, str], int] = field(default_factory=dict)

    def observe(self, who: str, what: str, value: int) -> None:
        before = self._last.get((who, what))
        assert before is None or value >= before, f"{what} of {who} went from {before} back to {value}"
        self._last[who, what] = value
