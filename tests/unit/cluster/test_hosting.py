"""What a host accepts, refuses and reports."""

from __future__ import annotations

from typing import Any

import pytest

from cluster.hosting import Hosting
from cluster.limits import ROUTINGS_HELD_MAX, fresh_ms
from cluster.placement import Orders
from cluster.routing import Call, Routing, Weighted
from stemma.errors import DeadlineExceeded, StaleRouting
from stemma.flow import Unit


def routing_of(epoch: int, segments: tuple[Unit, ...] = ()) -> Routing:
    hosts = (Weighted("h0"), Weighted("h1"))
    return Routing(epoch=epoch, seq=1, hosts=hosts, copies=1, segments=segments, tail_block_rows=8)


@pytest.fixture
def host(settings: Any) -> Hosting:
    made = Hosting("h0", "a", settings())
    made.looked(0.0, 5)
    assert made.prepared(routing_of(3), 5)
    return made


def orders(*routings: Routing, seq: int = 5, incarnation: str | None = "a", floor: int = 0) -> Orders:
    return Orders(host="h0", incarnation=incarnation, seq=seq, prepare=routings, floor=floor)


def test_only_held_routings_are_served(host: Hosting) -> None:
    assert host.admit(Call(key=routing_of(3).key, path=("h0",)), 10.0) == routing_of(3)
    for call in (
        Call(key=routing_of(4).key, path=("h0",)),
        Call(key=routing_of(3, (Unit(0, 8, "segment"),)).key, path=("h0",)),
        Call(key=routing_of(3).key, path=("h1",)),
    ):
        with pytest.raises(StaleRouting):
            host.admit(call, 10.0)


def test_expired_work_is_dropped(host: Hosting) -> None:
    with pytest.raises(DeadlineExceeded):
        host.admit(Call(key=routing_of(3).key, path=("h0",)), 0.0)


def test_an_old_view_is_not_answered_from(host: Hosting, settings: Any) -> None:
    limit = fresh_ms(settings())
    assert not host.must_look(limit)
    assert host.must_look(limit + 1)
    assert host.must_look(1.0, at_least=6)
    assert Hosting("h0", "a", settings()).must_look(0.0)


def test_a_look_that_began_earlier_makes_nothing_fresher(host: Hosting) -> None:
    host.looked(100.0, 6)
    host.looked(50.0, 6)
    assert not host.must_look(400.0)
    with pytest.raises(AssertionError, match="unread"):
        host.looked(200.0, 5)


def test_orders_ask_for_what_is_lacking(host: Hosting) -> None:
    work = host.obey(orders(routing_of(3), routing_of(4), seq=6), 10.0)
    assert work.look and work.prepare == (routing_of(4),)
    assert not host.obey(orders(), 10.0).look
    assert host.obey(orders(), 60.0).look, "half a heartbeat later it looks again, so that searches need not"


def test_nothing_is_held_before_the_announced_commit_is_read(host: Hosting) -> None:
    assert not host.prepared(routing_of(4), 6)
    host.looked(10.0, 6)
    assert host.prepared(routing_of(4), 6)


def test_orders_for_another_life_change_nothing(host: Hosting) -> None:
    work = host.obey(orders(routing_of(9), incarnation="b", floor=9), 10.0)
    assert work.prepare == () and [each.epoch for each in host.held] == [3]


def test_old_routings_are_dropped(host: Hosting) -> None:
    for epoch in range(4, 30):
        host.prepared(routing_of(epoch), 5)
    assert len(host.held) == ROUTINGS_HELD_MAX
    host.obey(orders(floor=28), 10.0)
    assert [each.epoch for each in host.held] == [28, 29]


def test_what_any_held_routing_puts_here_stays_loaded(host: Hosting) -> None:
    segment = Unit(0, 8, "segment")
    host.prepared(routing_of(4, (segment,)), 5)
    block = Unit(0, 8, "tail")
    assert host.holds()(block) == ("h0" in routing_of(3).owners(block))
    assert host.holds()(segment) == ("h0" in routing_of(4, (segment,)).owners(segment))


def test_beats_count_up(host: Hosting) -> None:
    first, second = host.beat(3), host.beat()
    assert (first.number, second.number, first.seq, first.images) == (1, 2, 5, 3)
    assert first.holds == (routing_of(3).key,)
