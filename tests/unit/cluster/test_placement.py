"""The directory's decisions, event by event."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import pytest

from cluster.limits import PATIENCE_DEATHS
from cluster.membership import Beat
from cluster.placement import Confirm, Directory, Instruction, Orders
from cluster.routing import Key
from stemma.flow import Unit


class Cluster:
    """Hosts that do at once what they are told, unless they are told not to."""

    def __init__(self, settings: Any, hosts: int = 3, **more: Any) -> None:
        self.now = 0.0
        self.names = [f"h{at}" for at in range(hosts)]
        self.directory = Directory(
            settings, tail_block_rows=8, generation=1, now_ms=0, roster=self.names, seq=1, **more
        )
        self.seq = dict.fromkeys(self.names, 1)
        self.holds: dict[str, set[Key]] = {name: set() for name in self.names}
        self.numbers = dict.fromkeys(self.names, 0)
        self.life = dict.fromkeys(self.names, "a")
        self.confirmed: list[int] = []
        self.silent: set[str] = set()
        self.slow: set[str] = set()

    def follow(self, instructions: Iterable[Instruction]) -> None:
        for each in instructions:
            if isinstance(each, Confirm):
                self.confirmed.append(each.seq)
            elif each.host not in self.silent:
                self.obey(each)

    def obey(self, orders: Orders) -> None:
        host = orders.host
        if host not in self.slow:
            self.seq[host] = max(self.seq[host], orders.seq)
            if orders.incarnation == self.life[host]:
                self.holds[host] |= {routing.key for routing in orders.prepare}
        self.numbers[host] += 1
        word = Beat(
            host=host,
            incarnation=self.life[host],
            number=self.numbers[host],
            seq=self.seq[host],
            holds=tuple(sorted(self.holds[host])),
        )
        self.follow(self.directory.heard(word, self.now))

    def run(self, ms: float) -> None:
        ends = self.now + ms
        while self.now < ends:
            self.now += 50
            self.follow(self.directory.tick(self.now))

    @property
    def routed(self) -> tuple[str, ...]:
        routing = self.directory.view(self.now).routing
        return routing.host_ids if routing is not None else ()

    @property
    def epoch(self) -> int:
        routing = self.directory.view(self.now).routing
        return routing.epoch if routing is not None else 0


@pytest.fixture
def cluster(settings: Any) -> Cluster:
    made = Cluster(settings())
    made.run(200)
    assert made.routed == ("h0", "h1", "h2")
    return made


def test_nothing_is_shown_before_all_have_loaded_it(settings: Any) -> None:
    cluster = Cluster(settings())
    cluster.slow = {"h1"}
    cluster.run(200)
    assert cluster.routed == ()
    cluster.slow = set()
    cluster.run(200)
    assert cluster.routed == ("h0", "h1", "h2")


def test_a_directory_that_just_started_waits_for_its_hosts(settings: Any) -> None:
    cluster = Cluster(settings())
    cluster.silent = {"h2"}
    cluster.run(850)
    assert cluster.routed == (), "moving h2's units now would move them back in a moment"
    cluster.run(200)
    assert cluster.routed == ("h0", "h1")


def test_a_dead_host_leaves_and_comes_back(cluster: Cluster) -> None:
    before = cluster.epoch
    cluster.silent = {"h1"}
    cluster.run(400)
    assert cluster.directory.view(cluster.now).suspects == {"h1"}
    assert cluster.routed == ("h0", "h1", "h2"), "its units do not move yet"
    cluster.run(700)
    assert cluster.routed == ("h0", "h2") and cluster.epoch > before
    cluster.silent = set()
    cluster.run(1_500)
    assert cluster.routed == ("h0", "h1", "h2")


def test_a_restarted_host_is_told_again(cluster: Cluster) -> None:
    cluster.life["h0"], cluster.holds["h0"], cluster.numbers["h0"] = "b", set(), 0
    cluster.run(300)
    assert cluster.directory.view(cluster.now).routing.key in cluster.holds["h0"]  # type: ignore[union-attr]
    assert cluster.routed == ("h0", "h1", "h2")


def test_a_commit_counts_when_all_have_read_it(cluster: Cluster) -> None:
    before = cluster.epoch
    cluster.follow(cluster.directory.announce(2, cluster.now))
    assert cluster.confirmed == [2]
    assert cluster.epoch == before, "new rows need no new routing"


def test_a_commit_waits_for_a_silent_host_but_not_for_ever(cluster: Cluster) -> None:
    cluster.silent = {"h1"}
    cluster.follow(cluster.directory.announce(2, cluster.now))
    cluster.run(350)
    assert cluster.confirmed == []
    cluster.run(100)
    assert cluster.confirmed == [2]
    assert "h1" in cluster.directory.view(cluster.now).suspects


def test_a_commit_does_not_wait_for_a_process_that_has_ended(cluster: Cluster) -> None:
    cluster.silent = {"h1"}
    cluster.follow(cluster.directory.announce(2, cluster.now))
    cluster.follow(cluster.directory.gone("h1", "a", cluster.now))
    assert cluster.confirmed == [2]


def test_a_new_directory_believes_no_commit_before_its_hosts_tell(settings: Any) -> None:
    cluster = Cluster(settings())
    cluster.silent = {"h0", "h1", "h2"}
    cluster.follow(cluster.directory.announce(1, 0))
    assert cluster.confirmed == []


def test_saying_it_again_is_answered_again(cluster: Cluster) -> None:
    for _ in range(3):
        cluster.follow(cluster.directory.announce(2, cluster.now))
    assert cluster.confirmed == [2, 2, 2]


def test_sealed_segments_are_loaded_before_they_are_routed(cluster: Cluster) -> None:
    cluster.slow = {"h2"}
    sealed = (Unit(0, 16, "segment"),)
    cluster.follow(cluster.directory.sealed(sealed, cluster.now))
    cluster.run(200)
    routing = cluster.directory.view(cluster.now).routing
    assert routing is not None and routing.segments == ()
    cluster.slow = set()
    cluster.run(200)
    routing = cluster.directory.view(cluster.now).routing
    assert routing is not None and routing.segments == sealed


def test_a_newcomer_that_loads_for_long_holds_nobody_up(cluster: Cluster) -> None:
    cluster.names.append("h3")
    cluster.seq["h3"], cluster.holds["h3"], cluster.numbers["h3"], cluster.life["h3"] = 1, set(), 0, "a"
    cluster.slow = {"h3"}
    cluster.directory.enlist("h3")
    cluster.silent = {"h1"}
    cluster.run(1_600)
    assert cluster.routed == ("h0", "h2"), "h1 was replaced although h3 is still loading"
    cluster.slow = set()
    cluster.run(600)
    assert cluster.routed == ("h0", "h2", "h3")


def test_a_routed_host_that_cannot_load_is_given_up_at_last(cluster: Cluster, settings: Any) -> None:
    cluster.slow = {"h2"}
    cluster.follow(cluster.directory.sealed((Unit(0, 16, "segment"),), cluster.now))
    cluster.run(PATIENCE_DEATHS * settings().dead_after_ms - 500)
    assert cluster.routed == ("h0", "h1", "h2")
    cluster.run(1_500)
    assert cluster.routed == ("h0", "h1")


def test_epochs_go_on_above_those_of_an_earlier_directory(cluster: Cluster, settings: Any) -> None:
    late = Cluster(settings())
    late.holds = {name: set(keys) for name, keys in cluster.holds.items()}
    late.holds["h0"].add(Key(cluster.epoch + 50, "of another directory"))
    late.run(300)
    assert late.epoch > cluster.epoch + 50
    held_by_an_asker = late.epoch + 7
    late.follow(late.directory.seen(held_by_an_asker, late.now))
    late.run(300)
    assert late.epoch > held_by_an_asker


def test_a_host_that_is_struck_is_forgotten(cluster: Cluster) -> None:
    cluster.silent = {"h1"}
    cluster.follow(cluster.directory.strike("h1", cluster.now))
    cluster.run(100)
    assert cluster.routed == ("h0", "h2")
    cluster.follow(cluster.directory.announce(3, cluster.now))
    assert cluster.confirmed[-1:] == [3]
