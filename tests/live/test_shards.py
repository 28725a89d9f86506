"""The same collection embedded and on shard actors: the same answers, to the bit."""

from __future__ import annotations

import asyncio
import os
import signal
from typing import Any

import pytest

from actors import handles
from actors.launch import launch
from stemma.catalog import Catalog
from stemma.errors import Conflict, Unavailable
from stemma.flow import ObjectQuery

pytestmark = pytest.mark.live


def answer(hits: Any) -> list[tuple[float, float, str]]:
    return [(hit.refined_distance, hit.distance, hit.image_id) for hit in hits]


def test_one_host_answers_as_one_process_does(serve: Any, ask: Any, ask_objects: Any) -> None:
    served = serve(images=700)
    oracle = served.embedded()
    queries = [ask(seed) for seed in range(16)] + [ask(3, as_of=4), ask(5, shortlist=1)]
    queries += [ask_objects(1), ask_objects(2, exclude=(1, 2, 3))]

    async def both() -> None:
        async with served.asked() as (asker, _):
            found = await asyncio.gather(*(asker.search(query, 5_000) for query in queries))
            for query, each in zip(queries, found, strict=True):
                right = oracle.search([query])[0]
                assert answer(each.hits) == answer(right.hits)
                assert (each.images_searched, each.images_total) == (right.images_total, right.images_total)
                assert not each.missing_hosts and each.without_objects == right.without_objects
                if isinstance(query, ObjectQuery):
                    assert each.hits == right.hits and right.without_objects == 140
            with Catalog.open(served.url) as catalog:
                rows = [0, 699, 300, 5]
                copies = dict(zip(rows, catalog.read(rows, ["pixels"])["pixels"], strict=True))
            assert await asker.pixels(rows) == copies, "given by the host, not read here"

    asyncio.run(both())


def test_a_killed_shard_comes_back_and_nothing_acknowledged_is_lost(serve: Any, watch: Any, wait_until: Any) -> None:
    served = serve(images=300)

    async def play() -> dict[str, int]:
        async with served.asked() as (asker, writer):
            seen = watch(served, asker)
            asking = asyncio.create_task(seen.run())
            await wait_until(seen.complete, 20, "a first complete answer")
            stored = []
            for step in range(6):
                if step in (1, 3):
                    await kill_shards(wait_until)
                wave = served.drafts(range(1_000 + 5 * step, 1_005 + 5 * step))
                await seen.commit(writer, wave)
                stored += [draft.image_id for draft in wave]
            gone = await writer.delete(stored[:4])
            seen.acknowledged = gone.seq
            await wait_until(seen.complete, 40, "complete again after the kills")
            answered = len(seen.answers)
            await wait_until(lambda: seen.answered(answered + 10), 20, "answers after the kills")
            seen.stop()
            await asking
            with Catalog.open(served.url) as catalog:
                assert set(stored[4:]) <= set(catalog.ids())
                assert not set(stored[:4]) & set(catalog.ids())
            return seen.judge()

    tally = asyncio.run(play())
    assert tally["complete"] > 10


def test_a_second_collection_under_other_settings_is_refused_and_the_first_goes_on(serve: Any) -> None:
    served = serve(images=70)
    other = served.settings.model_copy(
        update={"search": served.settings.search.model_copy(update={"tail_block_rows": 128})}
    )
    with pytest.raises(Conflict, match=r"search\.tail_block_rows=64"):
        launch(served.url, other)
    assert handles.call(handles.directory_name(served.url), "view", timeout_s=20).routing is not None


async def kill_shards(wait_until: Any) -> None:
    """SIGKILL, as the kernel's memory killer would; a shard that is just coming back is killed when it is back."""

    async def killed() -> bool:
        try:
            pid = await asyncio.to_thread(handles.call, name, "pid", timeout_s=20)
        except Unavailable:
            return False
        os.kill(pid, signal.SIGKILL)
        return True

    for name in [handles.shard_name(node) for node in handles.nodes()]:
        await wait_until(killed, 60, f"{name} runs")


def test_searches_go_on_while_the_directory_is_away(serve: Any, watch: Any, wait_until: Any) -> None:
    served = serve(images=200)

    async def play() -> None:
        async with served.asked() as (asker, writer):
            seen = watch(served, asker)
            await wait_until(seen.complete, 20, "a first complete answer")
            handles.end(handles.directory_name(served.url))
            assert await seen.complete(), "the last routing goes on serving"
            result = await writer.commit(served.drafts([5_000]), replace=False)
            seen.acknowledged = result.seq
            assert await seen.complete(), "acknowledged without a directory, and seen all the same"
            served.launch()
            await wait_until(seen.complete, 20, "served by a new directory")
            status = await writer.hosts()
            assert [host.state for host in status] == ["live"] and status[0].images == 201

    asyncio.run(play())
