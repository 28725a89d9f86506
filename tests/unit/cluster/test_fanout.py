"""The asker's decisions, event by event: failover, hedging, deadlines, one view, further lists."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from cluster.fanout import DEEP, SHALLOW, Action, Ask, Done, Failure, Fanout, Refresh, one_view
from cluster.health import Health
from cluster.routing import Routing, Weighted
from stemma.errors import BadRequest, Unavailable


def routing_of(hosts: int, copies: int, epoch: int = 1) -> Routing:
    named = tuple(Weighted(f"h{at}") for at in range(hosts))
    return Routing(epoch=epoch, seq=5, hosts=named, copies=copies, segments=(), tail_block_rows=8)


class Batch:
    """A fan-out under test, and the actions that it has given."""

    def __init__(self, settings: Any, queries: Sequence[Any], *, hosts: int = 2, **more: Any) -> None:
        self.health = more.pop("health", None) or Health(settings)
        self.suspects = more.pop("suspects", frozenset())
        deadlines = more.pop("deadlines", [1_000.0] * len(queries))
        self.fan = Fanout(routing_of(hosts, settings.copies), queries, deadlines, self.health, settings, self.suspects)
        self.asks: dict[str, Ask] = {}
        self.done: dict[int, Done] = {}
        self.refreshes = 0
        self.asked = 0
        self.take(self.fan.start(0.0))

    def take(self, actions: Sequence[Action]) -> None:
        for each in actions:
            if isinstance(each, Ask):
                self.asks[">".join(each.call.path)] = each
                self.asked += 1
            elif isinstance(each, Done):
                assert each.position not in self.done, "ended twice"
                self.done[each.position] = each
            else:
                self.refreshes += isinstance(each, Refresh)

    def answer(self, path: str, *replies: Any, now: float = 10.0) -> None:
        ask = self.asks[path]
        self.take(self.fan.answered(ask.ask_id, replies, ask.positions, now))

    def fail(self, path: str, failure: Failure = Failure.LOST, now: float = 10.0) -> None:
        self.take(self.fan.failed(self.asks[path].ask_id, failure, now))

    def tick(self, now: float) -> None:
        self.take(self.fan.tick(now))

    def found(self, position: int = 0) -> Any:
        return self.done[position].found

    def rows(self, position: int = 0) -> list[int]:
        return [hit.row for hit in self.found(position).hits]


@pytest.fixture
def batch(settings: Any, a_query: Any) -> Any:
    def make(*, copies: int = 2, queries: int = 1, nprobe: int = 1, as_of: int | None = None, **more: Any) -> Batch:
        asked = [a_query(nprobe=nprobe, as_of=as_of) for _ in range(queries)]
        return Batch(settings(copies=copies, **more.pop("changed", {})), asked, **more)

    return make


def test_one_call_per_host_and_batch(batch: Any, a_reply: Any) -> None:
    asked = batch(queries=3)
    assert sorted(asked.asks) == ["h0", "h1"]
    assert all(ask.positions == (0, 1, 2) and len(ask.queries) == 3 for ask in asked.asks.values())
    asked.answer("h1", *[a_reply({2: 2.0}, searched=1, total=3)] * 3)
    assert not asked.done
    asked.answer("h0", *[a_reply({1: 1.0, 7: 7.0}, searched=2, total=3)] * 3)
    assert [asked.rows(at) for at in range(3)] == [[1, 2, 7]] * 3
    assert asked.fan.finished and asked.fan.wake_ms is None


def test_the_order_in_which_hosts_answer_changes_nothing(batch: Any, a_reply: Any) -> None:
    replies = {
        "h0": a_reply({1: 1.0, 3: 1.0}, searched=2, total=4),
        "h1": a_reply({2: 1.0, 4: 1.0}, searched=2, total=4),
    }
    results = []
    for order in (["h0", "h1"], ["h1", "h0"]):
        asked = batch()
        for host in order:
            asked.answer(host, replies[host])
        results.append(asked.found().hits)
    assert results[0] == results[1]
    assert [hit.row for hit in results[0]] == [4, 3, 2], "ties go by image_id, which runs against the rows here"


def test_a_lost_host_is_replaced_by_the_next_owners(batch: Any, a_reply: Any) -> None:
    asked = batch(hosts=3)
    asked.fail("h0")
    assert {"h0>h1", "h0>h2"} <= set(asked.asks)
    asked.answer("h1", a_reply({1: 1.0}, searched=1, total=4))
    asked.answer("h2", a_reply({2: 2.0}, searched=1, total=4))
    asked.answer("h0>h1", a_reply({}, searched=0, total=4))
    assert not asked.done
    asked.answer("h0>h2", a_reply({3: 0.0, 4: 9.0}, searched=2, total=4))
    assert asked.rows() == [3, 1, 2]
    assert asked.found().missing_hosts == () and asked.found().images_searched == 4


def test_without_copies_a_lost_host_is_named(batch: Any, a_reply: Any) -> None:
    asked = batch(copies=1)
    asked.fail("h0")
    asked.answer("h1", a_reply({2: 2.0}, searched=1, total=3))
    found = asked.found()
    assert (found.images_searched, found.images_total, found.missing_hosts) == (1, 3, ("h0",))


def test_a_host_that_had_nothing_is_not_missed(batch: Any, a_reply: Any) -> None:
    asked = batch(copies=1)
    asked.fail("h0")
    asked.answer("h1", a_reply({2: 2.0}, searched=3, total=3))
    assert asked.found().missing_hosts == ()


def test_all_owners_lost(batch: Any) -> None:
    asked = batch(hosts=2)
    asked.fail("h0")
    asked.fail("h1")
    asked.fail("h0>h1")
    assert asked.done[0].found is None and isinstance(asked.done[0].error, Unavailable)


def test_a_slow_host_is_hedged_and_counted_once(batch: Any, a_reply: Any) -> None:
    for first in ("the host", "its copy"):
        asked = batch()
        asked.answer("h1", a_reply({1: 1.0}, searched=1, total=3), now=5.0)
        assert asked.fan.wake_ms == 50.0, "a quarter of host_deadline_ms while nothing is known of the host"
        asked.tick(50.0)
        assert "h0>h1" in asked.asks
        both = ["h0", "h0>h1"] if first == "the host" else ["h0>h1", "h0"]
        for path in both:
            asked.answer(path, a_reply({2: 0.5, 3: 3.0}, searched=2, total=3), now=60.0)
        assert asked.rows() == [2, 1, 3]
        assert asked.found().images_searched == 3


def test_no_hedge_without_copies_and_one_per_round(batch: Any) -> None:
    alone = batch(copies=1)
    alone.tick(100.0)
    assert alone.asked == 2
    asked = batch(hosts=3, copies=2)
    asked.tick(100.0)
    assert asked.asked == 3 + 2


def test_hedging_learns_what_is_slow(settings: Any) -> None:
    health = Health(settings())
    for latency in range(1, 101):
        health.asked("h0", 0.0)
        health.answered("h0", float(latency))
    assert health.hedge_after_ms("h0") == 96.0
    assert health.hedge_after_ms("never asked") == 50.0


def test_the_deadline_ends_with_what_there_is(batch: Any, a_reply: Any) -> None:
    asked = batch(copies=1, deadlines=[100.0])
    asked.answer("h1", a_reply({2: 2.0}, searched=1, total=3))
    assert asked.fan.wake_ms == 100.0
    asked.tick(100.0)
    assert asked.rows() == [2] and asked.found().missing_hosts == ("h0",)


def test_each_query_ends_at_its_own_deadline(batch: Any, a_reply: Any) -> None:
    asked = batch(copies=1, queries=2, deadlines=[50.0, 150.0])
    asked.answer("h1", *[a_reply({2: 2.0}, searched=1, total=3)] * 2)
    asked.tick(60.0)
    assert set(asked.done) == {0}
    asked.answer("h0", *[a_reply({1: 1.0}, searched=2, total=3)] * 2, now=70.0)
    assert asked.found(0).missing_hosts == ("h0",) and asked.found(1).missing_hosts == ()


def test_a_late_call_fails_and_what_comes_then_is_ignored(batch: Any, a_reply: Any) -> None:
    asked = batch(changed={"host_deadline_ms": 40})
    asked.answer("h1", a_reply({1: 1.0}, searched=1, total=3))
    asked.tick(40.0)
    assert "h0>h1" in asked.asks
    asked.answer("h0", a_reply({9: 0.0}, searched=2, total=3), now=45.0)
    asked.answer("h0>h1", a_reply({2: 2.0}, searched=2, total=3), now=46.0)
    assert asked.rows() == [1, 2]


def test_expired_queries_are_not_sent_on(batch: Any) -> None:
    asked = batch(queries=2, deadlines=[20.0, 500.0])
    asked.tick(30.0)
    asked.fail("h0", now=31.0)
    assert asked.asks["h0>h1"].positions == (1,)


def test_a_suspect_host_is_asked_last(batch: Any, a_reply: Any) -> None:
    asked = batch(hosts=3, suspects=frozenset({"h1"}))
    assert sorted(asked.asks) == ["h0", "h2"], "no unit has only suspect owners"
    assert all(ask.call.demoted == {"h1"} for ask in asked.asks.values())
    alone = batch(copies=1, suspects=frozenset({"h1"}))
    assert sorted(alone.asks) == ["h0", "h1"], "without copies there is nobody else"


def test_a_breaker_stops_asking_a_dead_host(batch: Any, settings: Any) -> None:
    health = Health(settings())
    for now in range(3):
        health.failed("h0", now)
    asked = batch(health=health)
    assert sorted(asked.asks) == ["h1"]
    assert health.shut("h0", 250.0) and not health.shut("h0", 302.0)
    health.asked("h0", 302.0)
    assert health.shut("h0", 303.0), "one trial at a time"
    health.answered("h0", 1.0)
    assert not health.shut("h0", 304.0)


def test_calls_in_flight_are_counted_down(batch: Any, a_reply: Any, settings: Any) -> None:
    asked = batch(changed={"batches_in_flight_max": 1})
    assert not asked.health.free(["h0", "h1"])
    asked.answer("h0", a_reply({}, searched=0, total=0))
    asked.answer("h1", a_reply({}, searched=0, total=0))
    assert asked.health.free(["h0", "h1"])
    given_up = batch(changed={"batches_in_flight_max": 1})
    given_up.fan.abandon()
    assert given_up.health.free(["h0", "h1"]) and given_up.fan.finished


def test_a_refused_epoch_is_refreshed_and_asked_again(batch: Any, a_reply: Any) -> None:
    asked = batch()
    asked.fail("h0", Failure.STALE)
    assert asked.refreshes == 1 and not asked.done
    asked.answer("h1", a_reply({1: 1.0}, searched=1, total=2), now=12.0)
    newer = routing_of(2, 2, epoch=2)
    asked.take(asked.fan.rerouted(newer, frozenset(), 20.0))
    assert {ask.call.key for ask in asked.asks.values()} == {newer.key}
    asked.answer("h0", a_reply({2: 2.0}, searched=1, total=2), now=25.0)
    asked.answer("h1", a_reply({1: 1.0}, searched=1, total=2), now=26.0)
    assert asked.rows() == [1, 2] and asked.found().missing_hosts == ()


def test_refreshing_is_bounded(batch: Any, a_reply: Any) -> None:
    asked = batch()
    asked.fail("h0", Failure.STALE)
    asked.take(asked.fan.rerouted(routing_of(2, 2, epoch=2), frozenset(), 20.0))
    asked.fail("h0", Failure.STALE, now=21.0)
    assert asked.refreshes == 1, "stale_retries_max is 1: now the next owner is asked"
    assert "h0>h1" in asked.asks
    nothing_newer = batch()
    nothing_newer.fail("h0", Failure.STALE)
    nothing_newer.take(nothing_newer.fan.rerouted(None, frozenset(), 20.0))
    assert "h0>h1" in nothing_newer.asks


def test_hosts_of_different_commits_are_brought_to_one(batch: Any, a_reply: Any) -> None:
    asked = batch()
    asked.answer("h0", a_reply({1: 1.0}, searched=1, total=2, seq=7))
    asked.answer("h1", a_reply({2: 2.0}, searched=2, total=3, seq=6))
    assert not asked.done
    assert {ask.queries[0].as_of for ask in asked.asks.values()} == {6}
    asked.answer("h0", a_reply({1: 1.0}, searched=1, total=3, seq=8), now=20.0)
    asked.answer("h1", a_reply({2: 2.0}, searched=2, total=3, seq=6), now=20.0)
    assert (asked.found().seq, asked.found().images_searched, asked.found().missing_hosts) == (6, 3, ())


def test_an_answer_is_never_of_two_commits(batch: Any, a_reply: Any) -> None:
    asked = batch(deadlines=[100.0])
    asked.answer("h0", a_reply({1: 1.0}, searched=1, total=2, seq=7))
    asked.answer("h1", a_reply({2: 2.0}, searched=2, total=3, seq=6))
    asked.tick(100.0)
    assert asked.rows() == [2] and asked.found().missing_hosts == ("h0",)


def test_the_past_is_one_commit_already(batch: Any, a_reply: Any) -> None:
    asked = batch(as_of=4)
    asked.answer("h0", a_reply({1: 1.0}, searched=1, total=3, seq=7))
    asked.answer("h1", a_reply({2: 2.0}, searched=2, total=3, seq=6))
    assert asked.rows() == [1, 2] and asked.found().seq == 6


def coded(a_reply: Any, row: int, by_rank: list[int], nprobe: int, total: int = 40) -> Any:
    return a_reply(
        {row: float(row)},
        searched=20,
        total=total,
        live_by_rank=np.asarray(by_rank),
        nprobe=nprobe,
        codec="c",
    )


def test_further_lists_are_probed_by_all_together(batch: Any, a_reply: Any) -> None:
    asked = batch(nprobe=1)
    asked.answer("h0", coded(a_reply, 1, [5, 10, 5, 0], 1))
    asked.answer("h1", coded(a_reply, 2, [0, 10, 10, 0], 1))
    assert {ask.queries[0].nprobe for ask in asked.asks.values()} == {3}, (
        "10 x 3 live rows are in the first three lists"
    )
    assert {ask.queries[0].as_of for ask in asked.asks.values()} == {5}
    asked.answer("h0", coded(a_reply, 1, [5, 10, 5, 0], 3), now=20.0)
    asked.answer("h1", coded(a_reply, 2, [0, 10, 10, 0], 3), now=20.0)
    assert asked.found().nprobe == 3 and asked.found().notes == ()


def test_the_time_may_be_up_before_further_lists(batch: Any, a_reply: Any) -> None:
    asked = batch(nprobe=1, deadlines=[50.0])
    asked.answer("h0", coded(a_reply, 1, [5, 10, 5, 0], 1))
    asked.answer("h1", coded(a_reply, 2, [0, 10, 10, 0], 1))
    asked.tick(50.0)
    assert asked.found().notes == (SHALLOW,) and asked.rows() == [1, 2]


def test_how_deep_an_answer_probes_does_not_depend_on_who_failed(batch: Any, a_reply: Any) -> None:
    asked = batch(nprobe=1, copies=1)
    asked.fail("h0")
    asked.answer("h1", coded(a_reply, 2, [5, 5, 5, 5], 1))
    assert asked.asks["h1"].queries[0].nprobe == 4, "alone, h1 has too few live rows in any fewer"
    asked.answer("h1", coded(a_reply, 2, [5, 5, 5, 5], 4), now=20.0)
    assert asked.found().missing_hosts == ("h0",)
    healed = batch(nprobe=1, hosts=3)
    healed.fail("h0")
    healed.answer("h1", coded(a_reply, 2, [5, 5, 5, 5], 1))
    healed.answer("h2", coded(a_reply, 3, [0, 0, 0, 0], 1, total=40))
    healed.fail("h0>h1")
    healed.fail("h0>h2")
    for path in ("h1", "h2"):
        healed.answer(path, coded(a_reply, 2, [30, 0, 0, 0], 4), now=20.0)
    assert {healed.asks[path].queries[0].nprobe for path in ("h1", "h2")} == {1}
    healed.tick(1_000.0)
    assert healed.found().notes == (DEEP,)


def test_one_query_that_cannot_be_meant_harms_no_other(batch: Any, a_reply: Any) -> None:
    asked = batch(queries=2)
    wrong = BadRequest("no such column", subject="filter")
    asked.answer("h0", wrong, a_reply({1: 1.0}, searched=1, total=2))
    asked.answer("h1", wrong, a_reply({2: 2.0}, searched=1, total=2))
    assert asked.done[0].error is wrong and asked.rows(1) == [1, 2]


def test_no_hosts_at_all(settings: Any, a_query: Any) -> None:
    asked = Batch(settings(), [a_query()], hosts=0)
    assert isinstance(asked.done[0].error, Unavailable)


def test_the_view_with_most_images_is_kept(a_reply: Any) -> None:
    replies = {
        ("h0",): a_reply({1: 1.0}, searched=5, total=20, seq=8),
        ("h1",): a_reply({2: 1.0}, searched=9, total=19, seq=7),
        ("h2",): a_reply({3: 1.0}, searched=6, total=20, seq=8),
    }
    view = one_view(replies, None)
    assert (view.seq, view.seq_min, sorted(view.replies), view.missing) == (8, 7, [("h0",), ("h2",)], {"h1"})
    assert one_view(replies, 7).missing == frozenset()
