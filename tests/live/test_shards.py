"""The same collection embedded and on shard actors: the same answers, to the bit."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

pytestmark = pytest.mark.live


def answer(hits: Any) -> list[tuple[float, float, str]]:
    return [(hit.refined_distance, hit.distance, hit.image_id) for hit in hits]


def test_one_host_answers_as_one_process_does(serve: Any, ask: Any) -> None:
    served = serve(images=700)
    oracle = served.embedded()
    queries = [ask(seed) for seed in range(16)] + [ask(3, as_of=4), ask(5, shortlist=1)]

    async def both() -> None:
        async with served.asked() as (asker, _):
            found = await asyncio.gather(*(asker.search(query, 5_000) for query in queries))
            for query, each in zip(queries, found, strict=True):
                right = oracle.search([query])[0]
                assert answer(each.hits) == answer(right.hits)
                assert (each.images_searched, each.images_total) == (right.images_total, right.images_total)
                assert not each.missing_hosts

    asyncio.run(both())
