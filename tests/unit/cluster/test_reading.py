"""Who is asked for whose pixels: every row once, no more calls than owners, and only what the host called may give."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster.reading import covered, reads, unit_of
from cluster.routing import Routing, Weighted, units_of
from stemma.flow import Unit

BLOCK = 16
ROWS = 300


@st.composite
def routings(draw: st.DrawFn) -> Routing:
    """Segments with gaps between them, as after erasing; hosts of unequal weight."""
    hosts = draw(st.integers(1, 5))
    edges = sorted(draw(st.sets(st.integers(0, 200), max_size=6)))
    segments = [Unit(low, high, "segment") for low, high in itertools.pairwise(edges)]
    kept = [unit for unit in segments if draw(st.booleans())]
    return Routing(
        epoch=1,
        seq=9,
        hosts=tuple(Weighted(f"h{at}", draw(st.sampled_from([0.5, 1.0, 3.0]))) for at in range(hosts)),
        copies=draw(st.integers(1, 3)),
        segments=tuple(kept),
        tail_block_rows=BLOCK,
    )


rows_asked = st.lists(st.integers(0, ROWS - 1), max_size=40)
avoided = st.sets(st.integers(0, 4)).map(lambda numbers: frozenset(f"h{number}" for number in numbers))


@given(routings(), st.integers(0, ROWS - 1))
def test_a_row_is_in_the_unit_that_holds_it(routing: Routing, row: int) -> None:
    holding = [unit for unit in units_of(routing, ROWS) if unit.row_lo <= row < unit.row_hi]
    assert unit_of(routing, row) == (holding[0] if holding else None)
    assert len(holding) <= 1


@given(routings(), rows_asked, avoided)
def test_every_row_is_asked_once_and_no_owner_twice(routing: Routing, rows: list[int], avoid: frozenset[str]) -> None:
    made = reads(routing, rows, avoid)
    hosts = [read.call.host for read in made]
    assert len(set(hosts)) == len(hosts)
    asked = [row for read in made for row in read.rows]
    assert len(set(asked)) == len(asked)
    assert set(asked) | {row for row in rows if _servers(routing, row, avoid) == ()} == set(rows)
    for read in made:
        assert read.rows
        for row in read.rows:
            assert read.call.host == _servers(routing, row, avoid)[0]


def _servers(routing: Routing, row: int, avoid: frozenset[str]) -> tuple[str, ...]:
    """The slow twin: hosts that hold the row and may be asked, first choice first."""
    for unit in units_of(routing, ROWS):
        if unit.row_lo <= row < unit.row_hi:
            return tuple(host for host in routing.owners(unit) if host not in avoid)
    return ()


@given(routings(), rows_asked, avoided)
def test_a_host_takes_a_call_for_what_it_owns(routing: Routing, rows: list[int], avoid: frozenset[str]) -> None:
    for read in reads(routing, rows, avoid):
        assert covered(routing, read.call, read.rows) == read.rows
        for row in covered(routing, read.call, range(ROWS)):
            unit = unit_of(routing, row)
            assert unit is not None and read.call.host in routing.owners(unit)


@given(routings(), rows_asked)
def test_with_all_hosts_well_only_rows_of_no_unit_are_left(routing: Routing, rows: list[int]) -> None:
    asked = {row for read in reads(routing, rows, frozenset()) for row in read.rows}
    assert set(rows) - asked == {row for row in rows if unit_of(routing, row) is None}


def test_a_call_read_under_another_routing_is_a_fault_of_ours() -> None:
    def routing(epoch: int) -> Routing:
        return Routing(epoch=epoch, seq=1, hosts=(Weighted("a"),), copies=1, segments=(), tail_block_rows=BLOCK)

    (read,) = reads(routing(1), [3, 3, 4], frozenset())
    assert read.rows == (3, 4)
    with pytest.raises(AssertionError, match="read under"):
        covered(routing(2), read.call, read.rows)
