"""Three nodes: any split answers alike, and a node that is lost takes nothing with it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from typing import Any

import pytest

from actors import handles
from cluster.placement import View
from stemma.catalog import Catalog

pytestmark = pytest.mark.live
NODES = 3
NODE = {"num_cpus": 4, "object_store_memory": 80 * 1024 * 1024}


@pytest.fixture
def extra_nodes(ray_cluster: Any) -> Iterator[list[Any]]:
    """Two more nodes beside the head; those that a test leaves are taken away."""
    added = [ray_cluster.add_node(**NODE) for _ in range(NODES - 1)]
    ray_cluster.wait_for_nodes()
    yield added
    for node in added:
        if node in ray_cluster.list_all_nodes():
            ray_cluster.remove_node(node)
    ends = time.monotonic() + 30
    while len(handles.nodes()) > 1:  # the next test must not place anything on a node that is gone
        assert time.monotonic() < ends, "Ray still believes in nodes that have ended"
        time.sleep(0.1)


def test_three_hosts_answer_alike_and_a_lost_one_is_replaced(
    ray_cluster: Any, extra_nodes: list[Any], serve: Any, watch: Any, wait_until: Any
) -> None:
    served = serve(images=600, copies=2, tail_rows_max=4_000)

    async def play() -> dict[str, int]:
        async with served.asked() as (asker, writer):
            seen = watch(served, asker)

            async def hosts(count: int) -> bool:
                view: View | None = await asker.view()
                return view is not None and view.routing is not None and len(view.routing.hosts) == count

            await wait_until(lambda: hosts(NODES), 30, "all three are routed")
            status = await writer.hosts()
            assert min(host.images for host in status) > 0, f"every host owns something: {status}"
            asking = asyncio.create_task(seen.run())
            await wait_until(lambda: seen.answered(5), 20, "answers from three hosts")
            stored: list[str] = []
            for step in range(6):
                if step == 2:
                    await asyncio.to_thread(ray_cluster.remove_node, extra_nodes[0], allow_graceful=False)
                wave = served.drafts(range(2_000 + 30 * step, 2_030 + 30 * step))
                await seen.commit(writer, wave)
                stored += [draft.image_id for draft in wave]
            await wait_until(seen.complete, 30, "complete after the failover")
            await wait_until(lambda: hosts(NODES - 1), 60, "its units have moved")
            await wait_until(seen.complete, 30, "complete under the new routing")
            extra_nodes.append(ray_cluster.add_node(**NODE))  # sets signal handlers: here, not in a thread
            await wait_until(lambda: hosts(NODES), 60, "a node that joins is used")
            answered = len(seen.answers)
            await wait_until(lambda: seen.answered(answered + 5), 20, "answers with the newcomer")
            seen.stop()
            await asking
            with Catalog.open(served.url) as catalog:
                assert set(stored) <= set(catalog.ids())
            assert seen.answers[-1][1].missing_hosts == ()
            return seen.judge()

    tally = asyncio.run(play())
    assert tally["complete"] > 10, tally
