"""Collections of synthetic embeddings, served by real actors, asked through the real asker."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cluster.invariants import audit_acknowledged, audit_found
from stemma.catalog import Catalog, Draft
from stemma.config import ClusterSettings, SearchSettings, Settings
from stemma.errors import DeadlineExceeded, Unavailable
from stemma.flow import CELL_COUNT, CELL_DIM, EMBEDDING_DIM, Encoded, ObjectQuery, Objects, ShardQuery
from stemma.index.codec import Codec
from stemma.index.partition import Partition
from stemma.networks.weights import card

PIXELS = b"\xff\xd8 a working copy that nobody looks at \xff\xd9"
CELLS = np.zeros((CELL_COUNT, CELL_DIM), np.int8)
LEVELS = 3  # coarse values, so that distances tie


def settings_of(copies: int, tail_rows_max: int) -> Settings:
    """Small blocks, so that every host owns something; quick to notice, slow to give up."""
    return Settings(
        cluster=ClusterSettings(
            copies=copies,
            heartbeat_ms=200,
            suspect_after_ms=1_500,
            dead_after_ms=4_000,
            announce_ms=2_000,
            host_deadline_ms=10_000,
        ),
        search=SearchSettings(tail_block_rows=64, tail_rows_max=tail_rows_max, shortlist=20),
    )


def drafts(numbers: Sequence[int], seed: int) -> list[Draft]:
    """Pictures called by their number, with few distinct embeddings."""
    made = []
    for number in numbers:
        rng = np.random.default_rng((seed, number % 97))
        image_id = hashlib.sha256(f"{seed}:{number}".encode()).hexdigest()[:16]
        made.append(
            Draft(
                image_id=image_id,
                name=f"{number}.jpg",
                sha256=hashlib.sha256(image_id.encode()).hexdigest(),
                width=64,
                height=48,
                embedding_D=rng.integers(-LEVELS, LEVELS + 1, EMBEDDING_DIM).astype(np.int8),
                cells_NF=CELLS,
                pixels=PIXELS,
                weights="synthetic",
                job="live",
                source=f"{number}.jpg",
                metadata={},
                objects=objects(rng, number % 4) if number % 5 else None,
                objects_weights="synthetic objects" if number % 5 else None,
            )
        )
    return made


def objects(rng: np.random.Generator, count: int) -> Objects:
    """``count`` boxes and the whole picture."""
    box_O4 = np.tile(np.array([[0, 0, 1, 1]], np.float32), (count + 1, 1))
    embedding_OD = rng.integers(-LEVELS, LEVELS + 1, (count + 1, EMBEDDING_DIM)).astype(np.int8)
    return Objects(box_O4=box_O4, score_O=np.ones(count + 1, np.float32), embedding_OD=embedding_OD)


def object_query(seed: int, *, exclude: tuple[int, ...] = ()) -> ObjectQuery:
    rng = np.random.default_rng((8, seed))
    views_VOD = rng.integers(-LEVELS, LEVELS + 1, (2, 3, EMBEDDING_DIM)).astype(np.int8)
    return ObjectQuery(objects_VOD=views_VOD, images=5, scale=100.0, exclude=exclude)


def query(seed: int, *, shortlist: int = 20, as_of: int | None = None) -> ShardQuery:
    rng = np.random.default_rng((7, seed))
    views = rng.integers(-LEVELS, LEVELS + 1, (2, EMBEDDING_DIM)).astype(np.int8)
    encoded = Encoded(embedding_VD=views, cells_VNF=None, featureless=False, weights="synthetic")
    return ShardQuery(encoded=encoded, shortlist=shortlist, nprobe=10, as_of=as_of)


class Served:
    """One collection on the session's Ray: what a test needs to ask it and to hurt it."""

    def __init__(self, url: Path, settings: Settings, seed: int) -> None:
        self.url, self.settings, self.seed = str(url), settings, seed

    def make(self, images: int) -> None:
        with Catalog.create(self.url) as catalog:
            for lo in range(0, images, 100):
                catalog.commit(drafts(range(lo, min(images, lo + 100)), self.seed))

    def drafts(self, numbers: Sequence[int]) -> list[Draft]:
        return drafts(numbers, self.seed)

    def embedded(self) -> Partition:
        """The oracle: the same collection in one process."""
        return Partition(
            Catalog.open(self.url),
            Path(self.url),
            self.settings,
            scale=card().embedding_scale,
            codec=Codec.unquantized(),
        )

    def launch(self) -> Any:
        from actors.launch import launch

        return launch(self.url, self.settings)

    def land(self) -> None:
        from actors.launch import land

        land(self.url)

    @contextlib.asynccontextmanager
    async def asked(self) -> AsyncIterator[tuple[Any, Any]]:
        """An asker and a writer on this event loop."""
        from actors.handles import connect
        from serving.asker import Asker

        hosts, writer = connect(self.url, self.settings)
        yield Asker(hosts, self.settings), writer


async def until(condition: Callable[[], Any], within_s: float, what: str) -> None:
    """Wait for an awaitable condition."""
    try:
        async with asyncio.timeout(within_s):
            while not await condition():
                await asyncio.sleep(0.05)
    except TimeoutError:
        pytest.fail(f"after {within_s} s still not: {what}")


@pytest.fixture
def serve(ray_cluster: Any, tmp_path: Path) -> Iterator[Callable[..., Served]]:
    """``serve(images=, copies=)``: a collection whose actors run; they end with the test. More than ``tail_rows_max``
    images are sealed into one segment, fewer are spread over the hosts in blocks."""
    running: list[Served] = []

    def start(*, images: int, copies: int = 1, tail_rows_max: int = 256) -> Served:
        served = Served(tmp_path / "c.stemma", settings_of(copies, tail_rows_max), seed=1)
        served.make(images)
        served.launch()
        running.append(served)
        return served

    yield start
    for served in running:
        served.land()


@pytest.fixture
def ask() -> Any:
    return query


@pytest.fixture
def ask_objects() -> Any:
    return object_query


@pytest.fixture
def wait_until() -> Any:
    return until


class Watch:
    """Asks without pause while others break things, and judges every answer afterwards."""

    def __init__(self, served: Served, asker: Any) -> None:
        self.served, self.asker = served, asker
        self.acknowledged = 0
        self.answers: list[tuple[ShardQuery, Any, int]] = []
        self.refused = 0
        self._over = False

    async def run(self) -> None:
        seed = 0
        while not self._over:
            seed += 1
            asked, known = query(seed), self.acknowledged
            try:
                self.answers.append((asked, await self.asker.search(asked, 4_000), known))
            except (Unavailable, DeadlineExceeded):
                self.refused += 1
                await asyncio.sleep(0.05)

    async def commit(self, writer: Any, wave: list[Draft]) -> int:
        """Store, again when the committer was lost on the way: a repeated upload is safe. Returns how often it took."""
        for attempt in range(1, 200):
            try:
                result = await writer.commit(wave, replace=False)
            except Unavailable:
                await asyncio.sleep(0.3)
                continue
            assert {item.status for item in result.items} <= {"stored", "duplicate"}, result
            self.acknowledged = result.seq
            return attempt
        pytest.fail("the committer never came back")

    def stop(self) -> None:
        self._over = True

    async def answered(self, count: int) -> bool:
        return len(self.answers) >= count

    async def complete(self) -> bool:
        """Whether an answer is complete now, at no older a commit than was acknowledged."""
        try:
            found = await self.asker.search(query(0), 4_000)
        except (Unavailable, DeadlineExceeded):
            return False
        return found.images_searched == found.images_total and found.seq >= self.acknowledged

    def judge(self) -> dict[str, int]:
        """Every answer is right, or says what it lacks; complete ones equal the one-process answer at their commit."""
        oracle = self.served.embedded()
        tally = {"complete": 0, "partial": 0, "refused": self.refused}
        for asked, found, known in self.answers:
            audit_found(found, asked.shortlist)
            audit_acknowledged(found, known, asked.as_of)
            right = oracle.search([replace(asked, shortlist=700, as_of=found.seq)])[0]
            order = [(hit.refined_distance, hit.image_id) for hit in right.hits]
            got = [(hit.refined_distance, hit.image_id) for hit in found.hits]
            assert found.images_total == right.images_total
            whole = not found.missing_hosts
            tally["complete" if whole else "partial"] += 1
            assert got == order[: asked.shortlist] if whole else set(got) <= set(order)
        return tally


@pytest.fixture
def watch() -> type[Watch]:
    return Watch
