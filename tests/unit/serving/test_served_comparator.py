"""The comparator behind Serve: one bad query of a batch fails alone, errors keep their type, and who gives up takes the
request back."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from ray.exceptions import RayActorError, RayTaskError
from threadpoolctl import threadpool_info

from serving import comparator as room
from serving.comparator import QUERIES_PER_BATCH_MAX, ComparatorReplica, comparator_app
from serving.engine import ServedComparator, ServedEncoder
from stemma.config import ComparatorSettings
from stemma.errors import Corrupt, Unavailable
from stemma.flow import Pairing, Pixels

GPU = ComparatorSettings(device="cuda", gpus_per_replica=0.5, replicas=3)


class Names:
    """In place of the networks: says which query and which original it saw."""

    def __init__(self) -> None:
        self.batches: list[int] = []

    def compare_batch(self, asked: Sequence[tuple[Any, Sequence[Pairing]]]) -> list[list[tuple[int, bytes]]]:
        self.batches.append(len(asked))
        if any(pairing.original == b"torn" for _, pairings in asked for pairing in pairings):
            raise Corrupt("the working copy cannot be read")
        return [[(int(rgb_HWC[0, 0, 0]), each.original) for each in pairings] for rgb_HWC, pairings in asked]


class Batcher:
    """In place of ``serve.batch``, which works in a replica alone: what is asked in one turn of the loop is a batch."""

    size = 0
    replica: ComparatorReplica

    def __init__(self) -> None:
        self._waiting: list[tuple[Any, asyncio.Future[Any]]] = []

    def set_max_batch_size(self, size: int) -> None:
        self.size = size

    async def __call__(self, item: Any) -> Any:
        self._waiting.append((item, asyncio.get_running_loop().create_future()))
        mine = self._waiting[-1][1]
        await asyncio.sleep(0)
        while self._waiting:
            batch, self._waiting = self._waiting[: self.size], self._waiting[self.size :]
            for (_, future), said in zip(batch, self.replica._compare([each for each, _ in batch]), strict=True):
                future.set_result(said)
        return await mine


def ask(monkeypatch: pytest.MonkeyPatch, settings: ComparatorSettings, originals: Sequence[bytes]) -> tuple[Any, Names]:
    """All asked of one replica at once, each query with one original."""
    names, batcher = Names(), Batcher()
    monkeypatch.setattr(room.Comparator, "load", lambda _: names)
    monkeypatch.setattr(room.golden, "check_comparator", lambda *_: True)
    monkeypatch.setattr(ComparatorReplica, "_batched", batcher)
    batcher.replica = ComparatorReplica(settings)

    async def run() -> list[Any]:
        asked = [batcher.replica.compare(query(at), pair(original)) for at, original in enumerate(originals)]
        return list(await asyncio.gather(*asked, return_exceptions=True))

    return asyncio.run(run()), names


def query(number: int) -> np.ndarray:
    return np.full((40, 50, 3), number, np.uint8)


def pair(original: bytes) -> tuple[Pairing, ...]:
    return (Pairing(original=original),)


@pytest.mark.parametrize(("settings", "largest"), [(GPU, QUERIES_PER_BATCH_MAX), (ComparatorSettings(), 1)])
def test_everybody_gets_their_own_and_batches_are_for_gpus(
    monkeypatch: pytest.MonkeyPatch, settings: ComparatorSettings, largest: int
) -> None:
    originals = [f"o{at}".encode() for at in range(40)]
    said, names = ask(monkeypatch, settings, originals)
    assert said == [[(at, original)] for at, original in enumerate(originals)]
    assert sum(names.batches) == 40 and max(names.batches) == largest


def test_one_query_that_cannot_be_compared_fails_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    originals = [b"torn" if at == 7 else b"o" for at in range(12)]
    said, names = ask(monkeypatch, GPU, originals)
    assert [isinstance(each, Corrupt) for each in said] == [original == b"torn" for original in originals]
    assert names.batches == [12] + [1] * 12


def test_a_replica_on_the_cpu_uses_one_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    before = torch.get_num_threads(), cv2.getNumThreads()
    try:
        torch.set_num_threads(2)
        cv2.setNumThreads(2)
        ask(monkeypatch, ComparatorSettings(), [])
        assert (torch.get_num_threads(), cv2.getNumThreads()) == (1, 1)
        assert all(pool["num_threads"] == 1 for pool in threadpool_info())
    finally:
        torch.set_num_threads(before[0])
        cv2.setNumThreads(before[1])


def test_the_deployment_takes_its_gpus_and_replicas_from_the_settings() -> None:
    deployment = comparator_app(GPU)._bound_deployment
    assert deployment.num_replicas == 3
    assert deployment.ray_actor_options["num_gpus"] == 0.5
    assert deployment.max_ongoing_requests == 2 * QUERIES_PER_BATCH_MAX


# ---------------------------------------------------------------------- through the handle


class Response:
    def __init__(self, outcome: Any) -> None:
        self.outcome, self.cancelled = outcome, False

    def __await__(self) -> Any:
        if isinstance(self.outcome, BaseException):
            raise self.outcome
        return (yield from self._answer().__await__())

    async def _answer(self) -> Any:
        if self.outcome == "hangs":
            await asyncio.Event().wait()
        return self.outcome

    def cancel(self) -> None:
        self.cancelled = True


class Handle:
    """A Serve handle whose every method answers with ``outcome``."""

    def __init__(self, outcome: Any) -> None:
        self.response, self.asked = Response(outcome), ()

    def __getattr__(self, name: str) -> Any:
        return self

    def remote(self, *asked: Any) -> Response:
        self.asked = asked
        return self.response


PIXELS = Pixels(rgb_HWC=query(1), width=50, height=40, sha256="0" * 64, format="PNG")


def served(handle: Handle) -> list[Any]:
    """Both deployments, asked: their errors are translated by one rule."""
    return [
        lambda: ServedComparator(handle).compare(PIXELS, pair(b"o")),
        lambda: ServedEncoder(handle).encode(PIXELS, mirrored=True),
    ]


@pytest.mark.parametrize("at", [0, 1])
def test_what_a_replica_raises_comes_out_as_it_was_and_a_lost_one_is_unavailable(at: int) -> None:
    torn = RayTaskError("compare", "…", Corrupt("the working copy cannot be read"))
    with pytest.raises(Corrupt):
        asyncio.run(served(Handle(torn))[at]())
    with pytest.raises(Unavailable) as raised:
        asyncio.run(served(Handle(RayActorError()))[at]())
    assert raised.value.retry_after_s == 1.0
    with pytest.raises(RayTaskError):
        asyncio.run(served(Handle(RayTaskError("compare", "…", ZeroDivisionError())))[at]())


@pytest.mark.parametrize("at", [0, 1])
def test_who_gives_up_takes_the_request_back(at: int) -> None:
    handle = Handle("hangs")

    async def run() -> None:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.01):
                await served(handle)[at]()

    asyncio.run(run())
    assert handle.response.cancelled


def test_the_message_is_the_query_at_working_size_and_the_working_copies() -> None:
    handle = Handle(["judged"])
    assert asyncio.run(served(handle)[0]()) == ["judged"]
    rgb_HWC, pairings = handle.asked
    assert rgb_HWC.dtype == np.uint8 and rgb_HWC.shape == (40, 50, 3)
    assert pairings == pair(b"o")
