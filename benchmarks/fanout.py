"""What it is worth to share calls: 64 concurrent searches, coalesced into one call per host or one call each.

    stemma bench fanout --json

Ready embeddings, no HTTP, no verification (cells are None), so that what is measured is the way there and back. Two
shard hosts on this machine; the two ways take turns in one run, so their ratio holds on a busy machine.

``coalesced_vs_single``: ratio of the medians of queries per second.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from serving.run import environment
from stemma.catalog import Catalog, Draft
from stemma.config import Settings, load
from stemma.flow import CELL_COUNT, CELL_DIM, EMBEDDING_DIM, Encoded, Found, ShardQuery

HOSTS = 2
IMAGES = 2_048
CONCURRENCY = 64
QUERIES_PER_ROUND = 256
ROUNDS = 7
WEIGHTS = "synthetic"


def measure(
    *, rounds: int = ROUNDS, images: int = IMAGES, queries_per_round: int = QUERIES_PER_ROUND
) -> dict[str, Any]:
    """Start a local Ray of two hosts, measure, stop it. Raises ``Unavailable`` when the hosts do not come up."""
    with tempfile.TemporaryDirectory(prefix="stemma-bench-") as folder:
        root = Path(folder)
        token = root / "auth_token"
        token.write_text(hashlib.sha256(os.urandom(32)).hexdigest())
        os.environ.update(environment(token))  # before Ray is imported
        from actors.launch import land, launch
        from serving.deploy import local_nodes

        url = str(root / "bench.stemma")
        settings = load(overrides=["search.tail_block_rows=64", "search.deadline_ms=60000"])
        fill(url, images)
        with local_nodes(HOSTS):
            launch(url, settings)
            try:
                return asyncio.run(_measured(url, settings, rounds, queries_per_round))
            finally:
                land(url)


def fill(url: str, images: int) -> None:
    """A collection of random embeddings."""
    rng = np.random.default_rng(1)
    cells_NF = np.zeros((CELL_COUNT, CELL_DIM), np.int8)
    drafts = [
        Draft(
            image_id=f"image-{number:06}",
            name=f"{number}",
            sha256=hashlib.sha256(str(number).encode()).hexdigest(),
            width=64,
            height=64,
            embedding_D=rng.integers(-20, 21, EMBEDDING_DIM).astype(np.int8),
            cells_NF=cells_NF,
            pixels=b"\xff\xd8 nobody looks at it \xff\xd9",
            weights=WEIGHTS,
            job="bench",
            source=f"{number}",
            metadata={},
        )
        for number in range(images)
    ]
    with Catalog.create(url) as catalog:
        for low in range(0, images, 1024):
            catalog.commit(drafts[low : low + 1024])


def questions(count: int) -> list[ShardQuery]:
    """Random queries without cells, so that nothing is verified."""
    rng = np.random.default_rng(2)
    return [
        ShardQuery(
            encoded=Encoded(
                embedding_VD=rng.integers(-20, 21, (2, EMBEDDING_DIM)).astype(np.int8),
                cells_VNF=None,
                featureless=False,
                weights=WEIGHTS,
            ),
            shortlist=100,
            nprobe=10,
        )
        for _ in range(count)
    ]


async def _measured(url: str, settings: Settings, rounds: int, queries_per_round: int) -> dict[str, Any]:
    from actors.handles import connect
    from serving.engine import ServedShards

    hosts, _ = connect(url, settings)
    single = settings.model_copy(
        update={
            "limits": settings.limits.model_copy(update={"queries_per_call_max": 1}),
            "cluster": settings.cluster.model_copy(update={"batches_in_flight_max": CONCURRENCY}),
        }
    )
    with Catalog.open(url) as catalog:
        ways = {
            "coalesced": ServedShards(catalog, hosts, settings),
            "single": ServedShards(catalog, hosts, single),
        }
        asked = questions(queries_per_round)
        rates: dict[str, list[float]] = {name: [] for name in ways}
        answers: dict[str, list[Found]] = {}
        for number in range(rounds + 1):  # the first round warms up
            for name, shards in ways.items():
                begun = time.monotonic()
                answers[name] = await _ask(shards, asked)
                if number:
                    rates[name].append(round(len(asked) / (time.monotonic() - begun), 1))
        calls = {name: shards.asker.calls for name, shards in ways.items()}
    found = [[hit.image_id for hit in each.hits] for each in answers["single"]]
    assert found == [[hit.image_id for hit in each.hits] for each in answers["coalesced"]], "both ways find the same"
    assert all(each.images_searched == each.images_total for each in answers["coalesced"])
    total = (rounds + 1) * len(asked)
    return {
        "coalesced_vs_single": round(median(rates["coalesced"]) / median(rates["single"]), 2),
        "coalesced_per_s": median(rates["coalesced"]),
        "single_per_s": median(rates["single"]),
        "rounds_per_s": rates,
        "calls_per_query": {name: round(count / total, 3) for name, count in calls.items()},
        "hosts": HOSTS,
        "images": len(found) and answers["single"][0].images_total,
        "concurrency": CONCURRENCY,
        "queries_per_round": queries_per_round,
        "cores": os.cpu_count(),
    }


async def _ask(shards: Any, asked: Sequence[ShardQuery]) -> list[Found]:
    """All questions by ``CONCURRENCY`` callers, each asking its next one when it has its answer."""
    answers: dict[int, Found] = {}
    turn = iter(range(len(asked)))

    async def caller() -> None:
        for number in turn:
            answers[number] = await shards.search(asked[number], 60_000.0)

    await asyncio.gather(*(caller() for _ in range(CONCURRENCY)))
    return [answers[number] for number in range(len(asked))]
