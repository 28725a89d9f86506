"""Shard hosts as plain objects, without Ray: any number of them answers as one process does, while things change."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from actors import shard as shard_room
from actors.shard import Shard
from cluster.fanout import Ask, Done, Failure, Fanout
from cluster.health import Health
from cluster.invariants import audit_found
from cluster.placement import Confirm, Directory, Instruction, Orders
from cluster.reading import reads
from cluster.routing import Call, Key, Routing
from stemma.catalog import Catalog
from stemma.config import Settings
from stemma.errors import BadRequest, DeadlineExceeded, NotFound, StaleRouting, StemmaError
from stemma.flow import AnyQuery, Found, ObjectQuery
from stemma.index.choice import codec_of
from stemma.index.codec import Codec
from stemma.index.merge import donors
from stemma.index.partition import Partition
from stemma.index.seal import maintain
from stemma.index.segment import segment_set
from stemma.networks.weights import card


class Local:
    """Directory, hosts and asker in one thread; every word arrives at once."""

    def __init__(self, url: str, settings: Settings, hosts: int) -> None:
        self.url, self.settings = url, settings
        self.shards = {f"h{at}": Shard(f"h{at}", settings) for at in range(hosts)}
        self.now = 0.0
        self.directory = Directory(
            settings.cluster,
            tail_block_rows=settings.search.tail_block_rows,
            generation=1,
            now_ms=0,
            roster=self.shards,
            segments=segment_set(Path(url), Codec.unquantized()),
            codec=Codec.unquantized().id,
        )
        self.confirmed = -1
        self.turn()

    def follow(self, instructions: Iterable[Instruction]) -> None:
        for each in instructions:
            if isinstance(each, Confirm):
                self.confirmed = each.seq
            else:
                assert isinstance(each, Orders)
                beat = self.shards[each.host].obey(self.url, each)
                self.follow(self.directory.heard(beat, self.now))

    def turn(self, times: int = 3) -> None:
        for _ in range(times):
            self.now += self.settings.cluster.heartbeat_ms
            self.follow(self.directory.tick(self.now))

    @property
    def routing(self) -> Routing:
        routing = self.directory.view(self.now).routing
        assert routing is not None
        return routing

    def reseal(self) -> None:
        with Catalog.open(self.url) as catalog:
            maintain(catalog, Path(self.url), Codec.unquantized(), self.settings)
        self.follow(
            self.directory.sealed(segment_set(Path(self.url), Codec.unquantized()), self.now, Codec.unquantized().id)
        )
        self.turn()

    def search(self, query: AnyQuery, routing: Routing | None = None, lost: str | None = None) -> Found:
        fan = Fanout(routing or self.routing, [query], [1e9], Health(self.settings.cluster), self.settings.cluster)
        actions = list(fan.start(0.0))
        while actions:
            action = actions.pop(0)
            if isinstance(action, Done):
                assert action.found is not None, action.error
                audit_found(action.found, query.shortlist)
                return action.found
            assert isinstance(action, Ask)
            if action.call.host == lost:
                actions += fan.failed(action.ask_id, Failure.LOST, 1.0)
                continue
            replies = self.shards[action.call.host].search(self.url, action.call, action.queries, 1e6)
            actions += fan.answered(action.ask_id, replies, action.positions, 1.0)
        raise AssertionError("the fan-out ended without an answer")

    def embedded(self) -> Partition:
        return Partition(
            Catalog.open(self.url),
            Path(self.url),
            self.settings,
            scale=card().embedding_scale,
            codec=Codec.unquantized(),
        )


def order(found: Any) -> list[tuple[float, float, str]]:
    return [(hit.refined_distance, hit.distance, hit.image_id) for hit in found.hits]


@pytest.mark.parametrize(("hosts", "copies"), [(1, 1), (2, 1), (3, 2), (5, 3)])
def test_any_number_of_hosts_answers_as_one_process_does(
    collection: str, tree: Any, a_question: Any, hosts: int, copies: int
) -> None:
    local = Local(collection, tree(copies=copies), hosts)
    oracle = local.embedded()
    for seed, more in enumerate([{}, {"as_of": 2}, {"filter": "number < 31"}, {"shortlist": 60}]):
        query = a_question(seed, **more)
        right = oracle.search([query])[0]
        for lost in (None, "h0") if copies > 1 else (None,):
            found = local.search(query, lost=lost)
            assert order(found) == order(right)
            assert (found.images_searched, found.missing_hosts) == (right.images_total, ())


@pytest.mark.parametrize(("hosts", "copies"), [(2, 1), (5, 3)])
def test_any_number_of_hosts_is_asked_by_objects_as_one_process_is(
    collection: str, tree: Any, a_draft: Any, some_objects: Any, hosts: int, copies: int
) -> None:
    settings = tree(copies=copies, tail_rows_max=20)
    with Catalog.open(collection, write=True) as catalog:
        catalog.commit([a_draft(number, objects=some_objects(number)) for number in range(60, 90)])
    local = Local(collection, settings, hosts)
    local.reseal()
    with Catalog.open(collection, write=True) as catalog:
        catalog.delete([a_draft(61).image_id])
        seq = catalog.commit([a_draft(number, objects=some_objects(number)) for number in range(90, 95)]).seq
    local.follow(local.directory.announce(seq, local.now))
    oracle = local.embedded()
    for number, more in ((62, {}), (91, {"exclude": (93,)}), (61, {"as_of": 4}), (70, {"filter": "number > 66"})):
        views_VOD = np.stack([some_objects(number + view).embedding_OD for view in (0, 3)])
        query = ObjectQuery(objects_VOD=views_VOD, images=4, scale=100.0, **more)
        right = oracle.search([query])[0]
        assert right.without_objects == (0 if "filter" in more else 60)
        for lost in (None, "h0") if copies > 1 else (None,):
            found = local.search(query, lost=lost)
            assert donors(found, 99) == right.hits and len(donors(found, 4)) == 4
            assert (found.without_objects, found.missing_hosts) == (right.without_objects, ())
            assert {hit.distance for hit in found.hits if hit.row == number} == {0.0}


def test_without_copies_a_lost_host_is_missed_and_said(collection: str, tree: Any, a_question: Any) -> None:
    local = Local(collection, tree(), 3)
    found = local.search(a_question(1), lost="h1")
    assert found.missing_hosts == ("h1",) and found.images_searched < found.images_total == 60


def test_sealing_interrupts_nobody(collection: str, tree: Any, a_question: Any, drafts: Any) -> None:
    """Queries under the old routing and the new one are whole, before and after, and with commits in between."""
    local = Local(collection, tree(tail_rows_max=20), 3)
    before, right = local.routing, order(local.embedded().search([a_question(1)])[0])
    local.reseal()
    after = local.routing
    assert after.epoch > before.epoch and len(after.segments) == 1
    for routing in (before, after):
        found = local.search(a_question(1), routing)
        assert order(found) == right and found.missing_hosts == ()
    with Catalog.open(collection, write=True) as catalog:
        seq = catalog.commit(drafts(range(100, 125))).seq
    local.follow(local.directory.announce(seq, local.now))
    assert local.confirmed == seq
    right = order(local.embedded().search([a_question(1)])[0])
    for routing in (before, after):
        assert order(local.search(a_question(1), routing)) == right
    local.reseal()
    with pytest.raises(StaleRouting):
        local.search(a_question(1), before)
    assert order(local.search(a_question(1))) == right


def test_a_restarted_host_serves_nothing_before_it_is_told_what(collection: str, tree: Any, a_question: Any) -> None:
    local = Local(collection, tree(), 2)
    right = order(local.search(a_question(1)))
    local.shards["h0"] = Shard("h0", local.settings)
    with pytest.raises(StaleRouting):
        local.search(a_question(1))
    local.turn()
    assert order(local.search(a_question(1))) == right


def test_a_host_that_heard_of_no_commit_looks_before_it_answers(
    collection: str, tree: Any, a_question: Any, drafts: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What makes a delete hold for the next search though its announcement was lost (cluster/limits.py, fresh_ms)."""
    settings = tree()
    clock = [0.0]
    monkeypatch.setattr(shard_room, "now_ms", lambda: clock[0])
    local = Local(collection, settings, 1)
    query = a_question(1)
    best = local.search(query).hits[0].image_id
    with Catalog.open(collection, write=True) as catalog:
        catalog.delete([best])
    clock[0] += settings.cluster.announce_ms
    assert best not in [hit.image_id for hit in local.search(query).hits]


def test_calls_that_cannot_be_answered(collection: str, tree: Any, a_question: Any) -> None:
    local = Local(collection, tree(), 1)
    call = Call(key=local.routing.key, path=("h0",))
    host = local.shards["h0"]
    with pytest.raises(DeadlineExceeded):
        host.search(collection, call, [a_question(1)], 0.0)
    with pytest.raises(StaleRouting):
        host.search("another collection", call, [a_question(1)], 100.0)
    good, wrong, future = host.search(
        collection, call, [a_question(1), a_question(2, filter="nowhere = 1"), a_question(3, min_version=99)], 1e6
    )
    assert not isinstance(good, StemmaError) and len(good.hits) == 10
    assert isinstance(wrong, BadRequest)
    assert isinstance(future, StemmaError) and future.subject == "min_version"


def test_hosts_give_the_pixels_of_what_they_own(collection: str, tree: Any, drafts: Any) -> None:
    local = Local(collection, tree(copies=2, tail_rows_max=20), 3)
    local.reseal()
    with Catalog.open(collection, write=True) as catalog:
        catalog.commit(drafts(range(100, 103)))  # no host was told
        rows = list(range(63))
        right = dict(zip(rows, catalog.read(rows, ["pixels"])["pixels"], strict=True))
    for avoid in (frozenset[str](), frozenset({"h1"})):
        given: dict[int, bytes] = {}
        for read in reads(local.routing, [*rows, 5_000], avoid):
            host = local.shards[read.call.host]
            given |= (share := host.pixels(collection, read.call, read.rows, 1e6))
            assert set(share) == set(read.rows) - {5_000}, "a row that is nowhere is left out"
            assert dict(host.pixels(collection, read.call, rows, 1e6)) == share, "and so is what others own"
        assert given == right


def test_pixels_that_cannot_be_given(collection: str, tree: Any) -> None:
    local = Local(collection, tree(), 1)
    (read,) = reads(local.routing, [1], frozenset())
    host = local.shards["h0"]
    with pytest.raises(DeadlineExceeded):
        host.pixels(collection, read.call, read.rows, 0.0)
    with pytest.raises(StaleRouting):
        host.pixels("another collection", read.call, read.rows, 100.0)
    old = replace(read.call, key=Key(read.call.key.epoch, "of a directory that was lost"))
    with pytest.raises(StaleRouting):
        host.pixels(collection, old, read.rows, 100.0)


def test_a_collection_that_is_not_there(tmp_path: Path, tree: Any) -> None:
    with pytest.raises(NotFound):
        Shard("h0", tree()).obey(str(tmp_path / "none"), Orders(host="h0", incarnation=None, seq=-1))


def test_release_closes_a_collection(collection: str, tree: Any, a_question: Any) -> None:
    local = Local(collection, tree(), 1)
    assert local.shards["h0"].release(collection) == 0
    with pytest.raises(StaleRouting):
        local.search(a_question(1))


def test_a_collection_keeps_exact_search_until_its_codec_has_a_segment(collection: str, tree: Any) -> None:
    settings = tree(tail_rows_max=20)
    assert codec_of(settings, Path(collection), 60).exact
    with Catalog.open(collection) as catalog:
        maintain(catalog, Path(collection), Codec.unquantized(), settings)
    assert codec_of(settings, Path(collection), 60).exact
