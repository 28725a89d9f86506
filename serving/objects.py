"""The finder as a Serve deployment: the plain ``Finder``, its concurrent calls batched without anybody waiting.

A query travels at working size; beside it go its objects' vectors, or its hits and their working copies as JPEG, 1 MB
for the twenty that are verified. Nothing is decoded before it is here.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Any, cast

from ray import serve

from serving.comparator import one_thread
from stemma.clones import Clone
from stemma.config import Settings
from stemma.errors import StemmaError
from stemma.finder import Finder
from stemma.flow import Bytes3, Described, Float, ObjectHit, Objects
from stemma.splice import Donor
from stemma.vision.geometry import Map33

NAME = "objects"
WAITING_MAX = 32
"""Calls that a replica holds, one of them at work."""


class FinderReplica:
    """One copy of the networks. Its calls are worked on one after the other, each in a thread, so that the health check
    answers meanwhile; on the CPU it uses one core, whatever it is given.

    Raises ``Corrupt`` where it does not give the golden objects that the weights bring."""

    def __init__(self, settings: Settings) -> None:
        if settings.objects.device == "cpu":
            one_thread()
        self._finder = Finder.checked(settings.objects, settings.encoder.weights)

    async def objects(self, rgb_HWC: Bytes3) -> Objects:
        """What a stored picture, uint8 [H, W, 3] at working size, is found by."""
        return cast(Objects, await self._done(lambda: self._finder.objects(rgb_HWC)))

    async def describe(self, rgb_HWC: Bytes3, box_O4: Float | None) -> Described:
        """See ``Finder.describe``."""
        return cast(Described, await self._done(lambda: self._finder.describe(rgb_HWC, box_O4)))

    async def verify(
        self, rgb_HWC: Bytes3, described: Described, hits: Sequence[ObjectHit], copies: Sequence[bytes]
    ) -> list[Donor]:
        """See ``Finder.verify``."""
        return cast("list[Donor]", await self._done(lambda: self._finder.verify(rgb_HWC, described, hits, copies)))

    async def clones(self, rgb_HWC: Bytes3, box_O4: Float, host: bytes, transform_33: Map33) -> list[Clone]:
        """See ``Finder.clones``."""
        return cast("list[Clone]", await self._done(lambda: self._finder.clones(rgb_HWC, box_O4, host, transform_33)))

    async def _done(self, work: Callable[[], Any]) -> Any:
        said = await cast(Callable[..., Any], self._batched)(work)
        if isinstance(said, StemmaError):
            raise said
        return said

    @serve.batch(max_batch_size=1, batch_wait_timeout_s=0)  # type: ignore[untyped-decorator]
    async def _batched(self, asked: list[Callable[[], Any]]) -> list[Any]:
        # A batch of one: what is asked differs from call to call, and on one core it would only make the first wait.
        # What nobody waits for any longer is left out of it before it begins.
        return [await asyncio.to_thread(_said, work) for work in asked]


def _said(work: Callable[[], Any]) -> Any:
    try:
        return work()
    except StemmaError as error:
        return error


def finder_app(settings: Settings) -> Any:
    """The deployment, bound to its settings."""
    deployment = serve.deployment(
        name=NAME,
        num_replicas=settings.objects.replicas,
        max_ongoing_requests=WAITING_MAX,
        ray_actor_options={"num_cpus": 0, "num_gpus": settings.objects.gpus_per_replica},
        graceful_shutdown_timeout_s=5,
    )
    return deployment(FinderReplica).bind(settings)
