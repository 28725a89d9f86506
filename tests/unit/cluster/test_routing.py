"""Who serves what: owners, paths, and what a change of hosts moves."""

from __future__ import annotations

import pickle
import subprocess
import sys
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster.invariants import audit_routing, audit_servers
from cluster.routing import Call, Routing, Weighted, loads, may_serve, rendezvous, units_of
from stemma.flow import Unit

BLOCK = 16


def routing_of(hosts: int, copies: int, *, segments: int = 2, weights: list[float] | None = None) -> Routing:
    named = tuple(Weighted(f"h{at}", (weights or [1.0] * hosts)[at]) for at in range(hosts))
    units = tuple(Unit(at * 40, at * 40 + 40, "segment") for at in range(segments))
    return Routing(epoch=1, seq=9, hosts=named, copies=copies, segments=units, tail_block_rows=BLOCK)


@st.composite
def routings(draw: st.DrawFn) -> Routing:
    hosts = draw(st.integers(1, 5))
    weights = draw(st.lists(st.sampled_from([0.5, 1.0, 3.0]), min_size=hosts, max_size=hosts))
    return routing_of(hosts, draw(st.integers(1, 4)), segments=draw(st.integers(0, 4)), weights=weights)


@given(routings(), st.sets(st.integers(0, 4)))
def test_every_unit_has_one_server_however_hosts_fail(routing: Routing, demoted: set[int]) -> None:
    units = units_of(routing, rows=250)
    audit_routing(routing, units)
    audit_servers(routing, frozenset(f"h{at}" for at in demoted) & set(routing.host_ids), units)


@given(routings())
def test_units_hold_every_row_once(routing: Routing) -> None:
    rows = [row for unit in units_of(routing, rows=250) for row in range(unit.row_lo, min(250, unit.row_hi))]
    assert sorted(rows) == list(range(250))


@given(routings(), st.integers(0, 4))
def test_a_host_that_leaves_moves_only_its_own_units(routing: Routing, leaver: int) -> None:
    rest = tuple(each for each in routing.hosts if each.host != f"h{leaver}")
    for unit in units_of(routing, rows=1_000):
        before = rendezvous(unit, routing.hosts, len(routing.hosts))
        after = rendezvous(unit, rest, len(rest))
        assert after == tuple(host for host in before if host != f"h{leaver}")


def test_load_follows_weight() -> None:
    routing = routing_of(3, 1, segments=0, weights=[1.0, 1.0, 2.0])
    shares = {host: len(units) for host, units in loads(routing, units_of(routing, rows=BLOCK * 4_000)).items()}
    assert shares["h2"] == pytest.approx(2_000, rel=0.1)
    assert shares["h0"] == pytest.approx(1_000, rel=0.1)


def test_placement_is_the_same_in_every_process() -> None:
    """A host and an asker must agree; Python's own hash would differ between them."""
    hosts = tuple(Weighted(f"h{at}") for at in range(5))
    mine = [rendezvous(Unit(row, row + BLOCK, "tail"), hosts, 2) for row in range(0, 320, BLOCK)]
    script = (
        "from cluster.routing import *; from stemma.flow import Unit;"
        "hosts = tuple(Weighted(f'h{at}') for at in range(5));"
        f"print([rendezvous(Unit(row, row + {BLOCK}, 'tail'), hosts, 2) for row in range(0, 320, {BLOCK})])"
    )
    theirs = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout
    assert theirs.strip() == str(mine)


def test_a_block_that_a_segment_cuts_short_stays_where_it_was() -> None:
    routing = routing_of(4, 2)  # sealed up to row 80: the block of rows 80 to 96 begins there
    later = Routing(**{**vars_of(routing), "segments": (*routing.segments, Unit(80, 90, "segment"))})
    assert later.owners(Unit(90, 96, "tail")) == routing.owners(Unit(80, 96, "tail"))
    assert later.owners(Unit(80, 96, "tail")) == (), "rows that are in a segment are nobody's tail"


def vars_of(routing: Routing) -> dict[str, object]:
    return {name: getattr(routing, name) for name in routing.__dataclass_fields__}


def test_units_of_another_index_belong_to_nobody() -> None:
    routing = routing_of(3, 2)
    assert routing.owners(Unit(0, 80, "segment")) == ()
    assert routing.owners(Unit(81, 97, "tail")) == ()


def test_a_key_names_one_content() -> None:
    routing = routing_of(3, 2)
    again = pickle.loads(pickle.dumps(routing))
    assert again == routing and again.key == routing.key
    others = [
        Routing(**{**vars_of(routing), "copies": 1}),
        Routing(**{**vars_of(routing), "hosts": routing.hosts[:2]}),
        Routing(**{**vars_of(routing), "segments": ()}),
        Routing(**{**vars_of(routing), "tail_block_rows": 32}),
    ]
    assert len({routing.key, *(other.key for other in others)}) == 5


def test_a_call_is_read_under_its_own_routing_alone() -> None:
    routing = routing_of(3, 2)
    call = Call(key=routing_of(2, 2).key, path=("h0",))
    with pytest.raises(AssertionError, match="read under"):
        call.owns(routing)


@given(st.integers(1, 4), st.integers(1, 3), st.sets(st.integers(0, 3)))
def test_no_call_is_made_that_must_be_empty(hosts: int, copies: int, demoted: set[int]) -> None:
    """With enough units, each path that may serve something does."""
    plain = routing_of(hosts, copies, segments=0)
    asked_last = frozenset(f"h{at}" for at in demoted) & set(plain.host_ids)
    seen = Counter(plain.order(unit, asked_last)[:1] for unit in units_of(plain, rows=BLOCK * 400))
    possible = {(host,) for host in plain.host_ids if may_serve(plain, (host,), asked_last)}
    assert set(seen) == possible


@pytest.mark.parametrize(
    "wrong",
    [
        {"copies": 0},
        {"tail_block_rows": 0},
        {"hosts": (Weighted("h1"), Weighted("h0"))},
        {"hosts": (Weighted("h0", 0.0),)},
        {"segments": (Unit(0, 40, "segment"), Unit(30, 60, "segment"))},
    ],
)
def test_a_routing_that_cannot_be_is_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(ValueError, match="routing"):
        Routing(**{**vars_of(routing_of(2, 1)), **wrong})
