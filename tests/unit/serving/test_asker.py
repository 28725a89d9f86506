"""Concurrent searches share calls, one per host and batch, and each gets what it would have got alone."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pytest

from cluster.placement import View
from cluster.routing import Call, Routing, Weighted
from serving.asker import Asker
from stemma.config import Settings, load
from stemma.errors import BadRequest, DeadlineExceeded, StaleRouting, StemmaError, Unavailable
from stemma.flow import AnyQuery, Encoded, Found, Hit, HostReply, ObjectHit, ObjectQuery, ShardQuery

HOSTS = ("ant", "bee")


def settings(**cluster: Any) -> Settings:
    base = load(overrides=["limits.queries_per_call_max=64", "cluster.batches_in_flight_max=4"])
    return base.model_copy(update={"cluster": base.cluster.model_copy(update=cluster)})


def query(number: int) -> ShardQuery:
    embedding_VD = np.full((1, 256), number % 128, dtype=np.int8)
    encoded = Encoded(embedding_VD=embedding_VD, cells_VNF=None, featureless=False, weights="w")
    return ShardQuery(encoded=encoded, shortlist=10, nprobe=1)


def routing(epoch: int = 1, hosts: Sequence[str] = HOSTS) -> Routing:
    weighted = tuple(Weighted(host) for host in hosts)
    return Routing(epoch=epoch, seq=1, hosts=weighted, copies=1, segments=(), tail_block_rows=1024)


def by_objects(number: int) -> ObjectQuery:
    return ObjectQuery(objects_VOD=np.full((2, 3, 256), number, np.int8), images=2, scale=1.0)


def objects_reply(host: str, asked: ObjectQuery) -> HostReply:
    at = HOSTS.index(host)
    hit = ObjectHit(
        row=at,
        image_id=f"{host}-{asked.objects_VOD[0, 0, 0]}",
        distance=0,
        refined_distance=at,
        query_object=0,
        donor_object=1,
        donor_box=(0, 0, 1, 1),
    )
    return HostReply(hits=(hit,), images_searched=10, images_total=20, seq=5, without_objects=4)


@dataclass
class Cluster:
    """Two hosts with ten images each, whose names tell the query that they were found for."""

    route: Routing | None = field(default_factory=routing)
    directory_down: bool = False
    calls: list[tuple[str, int]] = field(default_factory=list)
    views: int = 0
    trouble: Callable[[Call], StemmaError | None] = lambda call: None
    hang: frozenset[str] = frozenset()
    gate: asyncio.Event | None = None

    async def ask(self, call: Call, queries: Sequence[AnyQuery], left_ms: float) -> list[HostReply | StemmaError]:
        self.calls.append((call.host, len(queries)))
        if self.gate is not None:
            await self.gate.wait()
        if call.host in self.hang:
            await asyncio.Event().wait()
        if (error := self.trouble(call)) is not None:
            raise error
        return [self._reply(call.host, asked) for asked in queries]

    def _reply(self, host: str, asked: AnyQuery) -> HostReply | StemmaError:
        if isinstance(asked, ObjectQuery):
            return objects_reply(host, asked)
        if asked.filter == "bad":
            return BadRequest("no such column", subject="bad")
        name = f"{host}-{asked.encoded.embedding_VD[0, 0]}"
        at = HOSTS.index(host)
        hit = Hit(row=at, image_id=name, distance=at, refined_distance=at)
        return HostReply(hits=(hit,), images_searched=10, images_total=20, seq=5)

    async def view(self) -> View:
        self.views += 1
        if self.directory_down:
            raise Unavailable("the directory is down")
        return View(routing=self.route)


def names(found: Found) -> list[str]:
    return [hit.image_id for hit in found.hits]


def test_everything_that_arrives_together_is_one_call_to_each_host() -> None:
    async def run() -> None:
        cluster = Cluster()
        asker = Asker(cluster, settings())
        found = await asyncio.gather(*(asker.search(query(number), 1000) for number in range(64)))
        assert sorted(cluster.calls) == [("ant", 64), ("bee", 64)]
        assert [names(each) for each in found] == [[f"ant-{number}", f"bee-{number}"] for number in range(64)]
        assert all(each.images_searched == each.images_total == 20 and not each.missing_hosts for each in found)

    asyncio.run(run())


def test_searches_by_objects_share_calls_of_their_own() -> None:
    async def run() -> None:
        cluster = Cluster()
        asker = Asker(cluster, settings())
        asked = [each for number in range(20) for each in (query(number), by_objects(number))]
        found = await asyncio.gather(*(asker.search(each, 1000) for each in asked))
        assert sorted(cluster.calls) == [("ant", 20), ("ant", 20), ("bee", 20), ("bee", 20)]
        assert [names(each) for each in found] == [
            [f"ant-{number}", f"bee-{number}"] for number in range(20) for _ in "io"
        ]
        assert [each.without_objects for each in found] == [0, 8] * 20

    asyncio.run(run())


def test_what_arrives_while_batches_run_waits_for_one_of_them_and_goes_together() -> None:
    async def run() -> None:
        cluster = Cluster(gate=asyncio.Event())
        asker = Asker(cluster, settings(batches_in_flight_max=1))
        first = asyncio.create_task(asker.search(query(0), 1000))
        while len(cluster.calls) < 2:
            await asyncio.sleep(0)
        later = [asyncio.create_task(asker.search(query(number), 1000)) for number in range(1, 8)]
        for _ in range(20):
            await asyncio.sleep(0)
        assert [size for _, size in cluster.calls] == [1, 1]
        cluster.gate.set()
        found = await asyncio.gather(first, *later)
        assert [size for _, size in cluster.calls] == [1, 1, 7, 7]
        assert [names(each)[0] for each in found] == [f"ant-{number}" for number in range(8)]

    asyncio.run(run())


def test_a_batch_is_bounded() -> None:
    async def run() -> None:
        cluster = Cluster()
        base = settings()
        limits = base.limits.model_copy(update={"queries_per_call_max": 10})
        asker = Asker(cluster, base.model_copy(update={"limits": limits}))
        await asyncio.gather(*(asker.search(query(number), 1000) for number in range(35)))
        assert max(size for _, size in cluster.calls) == 10

    asyncio.run(run())


def test_one_bad_query_of_a_batch_fails_alone() -> None:
    async def run() -> None:
        asker = Asker(Cluster(), settings())
        asked = [query(0), replace(query(1), filter="bad"), query(2)]
        good, bad, also = await asyncio.gather(*(asker.search(each, 1000) for each in asked), return_exceptions=True)
        assert isinstance(bad, BadRequest) and bad.subject == "bad"
        assert isinstance(good, Found) and isinstance(also, Found)

    asyncio.run(run())


@pytest.mark.parametrize("how", ["lost", "late", "hangs"])
def test_a_host_that_does_not_answer_is_named_in_a_partial_answer(how: str) -> None:
    async def run() -> None:
        errors = {"lost": Unavailable("died"), "late": DeadlineExceeded("expired")}
        cluster = Cluster(
            trouble=lambda call: errors.get(how) if call.host == "bee" else None,
            hang=frozenset({"bee"}) if how == "hangs" else frozenset(),
        )
        found = await Asker(cluster, settings()).search(query(3), 200)
        assert (names(found), found.missing_hosts) == (["ant-3"], ("bee",))
        assert (found.images_searched, found.images_total) == (10, 20)

    asyncio.run(run())


def test_no_host_at_all_is_unavailable() -> None:
    async def run() -> None:
        with pytest.raises(Unavailable):
            await Asker(Cluster(trouble=lambda call: Unavailable("died")), settings()).search(query(0), 300)
        with pytest.raises(Unavailable, match="no shard host"):
            await Asker(Cluster(route=None), settings()).search(query(0), 300)

    asyncio.run(run())


def test_a_stale_routing_is_renewed_and_the_query_asked_again() -> None:
    async def run() -> None:
        cluster = Cluster()
        asker = Asker(cluster, settings())
        await asker.search(query(0), 1000)
        cluster.route = routing(epoch=2)
        cluster.trouble = lambda call: StaleRouting("old") if call.key.epoch < 2 else None
        found = await asker.search(query(1), 1000)
        assert names(found) == ["ant-1", "bee-1"] and not found.missing_hosts
        assert cluster.views == 2

    asyncio.run(run())


def test_searches_go_on_with_the_last_routing_while_the_directory_is_down() -> None:
    async def run() -> None:
        cluster = Cluster()
        asker = Asker(cluster, settings(heartbeat_ms=0.001, suspect_after_ms=0.002))
        await asker.search(query(0), 1000)
        cluster.directory_down = True
        for number in range(5):
            assert names(await asker.search(query(number), 1000)) == [f"ant-{number}", f"bee-{number}"]

    asyncio.run(run())


def test_a_caller_that_leaves_takes_nobody_with_it() -> None:
    async def run() -> None:
        cluster = Cluster(gate=asyncio.Event())
        asker = Asker(cluster, settings())
        leaves = asyncio.create_task(asker.search(query(0), 1000))
        stays = asyncio.create_task(asker.search(query(1), 1000))
        while len(cluster.calls) < 2:
            await asyncio.sleep(0)
        leaves.cancel()
        cluster.gate.set()
        assert names(await stays) == ["ant-1", "bee-1"]

    asyncio.run(run())
