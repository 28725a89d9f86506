"""The finder as a Serve deployment: the plain ``Finder``, its concurrent calls one after the other.

A query travels at working size; beside it go its objects' vectors, or its hits and their working copies as JPEG, half a
megabyte for eight. Nothing is decoded before it is here.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ray import serve

from serving.comparator import one_thread
from serving.turns import Turns
from stemma.clones import Clone
from stemma.config import Settings
from stemma.finder import Finder
from stemma.flow import Bytes3, Described, Float, ObjectHit, Objects
from stemma.splice import Donor
from stemma.vision.geometry import Map33

NAME = "objects"
WAITING_MAX = 32
"""Calls that a replica holds, one of them at work."""
VERIFIED, DESCRIBED, STORED = range(3)
"""What goes first: the last step of a query, its first one, a picture that is ingested."""


class FinderReplica:
    """One copy of the networks. Its calls are worked on one after the other, each in a thread, so that the health check
    answers meanwhile; on the CPU it uses one core, whatever it is given.

    Raises ``Corrupt`` where it does not give the golden objects that the weights bring."""

    def __init__(self, settings: Settings) -> None:
        if settings.objects.device == "cpu":
            one_thread()
        self._finder = Finder.checked(settings.objects, settings.encoder.weights)
        self._turns = Turns()

    async def objects(self, rgb_HWC: Bytes3) -> Objects:
        """What a stored picture, uint8 [H, W, 3] at working size, is found by."""
        return await self._turns.run(STORED, lambda: self._finder.objects(rgb_HWC))

    async def describe(self, rgb_HWC: Bytes3, box_O4: Float | None) -> Described:
        """See ``Finder.describe``."""
        return await self._turns.run(DESCRIBED, lambda: self._finder.describe(rgb_HWC, box_O4))

    async def verify(
        self, rgb_HWC: Bytes3, described: Described, hits: Sequence[ObjectHit], copies: Sequence[bytes]
    ) -> list[Donor]:
        """See ``Finder.verify``."""
        return await self._turns.run(VERIFIED, lambda: self._finder.verify(rgb_HWC, described, hits, copies))

    async def clones(self, rgb_HWC: Bytes3, box_O4: Float, host: bytes, transform_33: Map33) -> list[Clone]:
        """See ``Finder.clones``."""
        return await self._turns.run(DESCRIBED, lambda: self._finder.clones(rgb_HWC, box_O4, host, transform_33))


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
