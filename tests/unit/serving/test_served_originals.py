"""Originals' pixels through the asker: right and in order whatever hosts do, in one call to each and one local read."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cluster.placement import View
from cluster.reading import Read
from cluster.routing import Routing, Weighted
from serving.asker import Asker
from serving.engine import ServedShards
from stemma.config import ClusterSettings, Settings
from stemma.errors import DeadlineExceeded, NotFound, StaleRouting, Unavailable
from stemma.flow import Unit

HOSTS = ("ant", "bee", "cat")
ROWS = 60
PROMPT = Settings(cluster=ClusterSettings(host_deadline_ms=40))
ERRORS = {"stale": StaleRouting("old"), "lost": Unavailable("died"), "late": DeadlineExceeded("expired")}


def body(row: int) -> bytes:
    return f"pixels of {row}".encode()


class Cluster:
    """Hosts that each do as they are told: give all, give half, fail, hang."""

    def __init__(
        self, manners: Mapping[str, str], *, suspects: frozenset[str] = frozenset(), routed: bool = True
    ) -> None:
        hosts = tuple(Weighted(host) for host in HOSTS)
        routing = Routing(epoch=1, seq=1, hosts=hosts, copies=1, segments=(Unit(0, 20, "segment"),), tail_block_rows=8)
        self.said = View(routing=routing if routed else None, suspects=suspects)
        self.manners, self.calls, self.left_ms = manners, list[Read](), 0.0

    async def pixels(self, read: Read, left_ms: float) -> Mapping[int, bytes]:
        self.calls.append(read)
        self.left_ms = left_ms
        manner = self.manners.get(read.call.host, "all")
        if manner == "hangs":
            await asyncio.Event().wait()
        if manner in ERRORS:
            raise ERRORS[manner]
        return {row: body(row) for row in read.rows if manner == "all" or row % 2}

    async def view(self) -> View:
        return self.said


class Table:
    """The gateway's own catalog."""

    def __init__(self) -> None:
        self.taken: list[list[int]] = []

    def refresh(self) -> int:
        return 1

    def read(self, rows: Sequence[int], columns: Sequence[str]) -> dict[str, Any]:
        if not all(row < ROWS for row in rows):
            raise NotFound("no such row")
        self.taken.append(list(rows))
        return {"pixels": [body(row) for row in rows]}


def read(cluster: Cluster, rows: Sequence[int]) -> tuple[list[bytes], Table]:
    table = Table()
    shards = ServedShards(table, cluster, PROMPT)  # type: ignore[arg-type]
    return asyncio.run(shards.pixels(rows)), table


@settings(deadline=None, max_examples=40)
@given(
    st.lists(st.integers(0, ROWS - 1), max_size=12),
    st.fixed_dictionaries({host: st.sampled_from(["all", "half", "hangs", *ERRORS]) for host in HOSTS}),
    st.sets(st.sampled_from(HOSTS)),
)
def test_whatever_hosts_do_the_pixels_are_right(rows: list[int], manners: dict[str, str], suspects: set[str]) -> None:
    cluster = Cluster(manners, suspects=frozenset(suspects))
    bodies, table = read(cluster, rows)
    assert bodies == [body(row) for row in rows]
    called = [each.call.host for each in cluster.calls]
    assert len(set(called)) == len(called) and not set(called) & suspects
    asked = [row for each in cluster.calls for row in each.rows]
    assert len(set(asked)) == len(asked) and set(asked) <= set(rows)
    given_up = set(rows) - {
        row
        for each in cluster.calls
        for row in each.rows
        if manners[each.call.host] == "all" or (manners[each.call.host] == "half" and row % 2)
    }
    assert [set(taken) for taken in table.taken] == ([given_up] if given_up else [])


def test_hosts_that_are_well_are_all_that_is_asked() -> None:
    cluster = Cluster({})
    bodies, table = read(cluster, list(range(ROWS)))
    assert bodies == [body(row) for row in range(ROWS)] and table.taken == []
    assert sorted(each.call.host for each in cluster.calls) == list(HOSTS)
    assert cluster.left_ms == 10, "a quarter of host_deadline_ms: whoever asks has the pixels as well"


def test_without_a_routing_everything_is_read_here() -> None:
    bodies, table = read(Cluster({}, routed=False), [5, 4, 5])
    assert (bodies, table.taken) == ([body(5), body(4), body(5)], [[5, 4]])


def test_a_row_that_is_nowhere_is_said_so() -> None:
    with pytest.raises(NotFound):
        read(Cluster(dict.fromkeys(HOSTS, "lost")), [3, ROWS])


def test_a_host_whose_breaker_is_open_is_not_asked() -> None:
    async def run() -> None:
        cluster = Cluster({})
        asker = Asker(cluster, PROMPT)  # type: ignore[arg-type]
        for _ in range(PROMPT.cluster.breaker_failures):
            asker._health.failed("bee", 1e12)
        given = await asker.pixels(range(ROWS))
        assert {each.call.host for each in cluster.calls} == {"ant", "cat"}
        assert set(given) == {row for each in cluster.calls for row in each.rows} < set(range(ROWS))

    asyncio.run(run())
