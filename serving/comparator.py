"""The comparator as a Serve deployment: the plain ``Comparator``, its concurrent calls batched without anybody waiting.

A query travels at working size beside its candidates' working copies as JPEG: under 2 MB for the most that is asked at
once, and nothing is decoded before it is here.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Any, cast

import cv2
import torch
from ray import serve
from threadpoolctl import threadpool_limits

from stemma.config import ComparatorSettings
from stemma.errors import StemmaError
from stemma.flow import Bytes3, Judged, Pairing
from stemma.networks import golden
from stemma.networks.comparing import Comparator

NAME = "comparator"
QUERIES_PER_BATCH_MAX = 16
"""Queries that one batch on a GPU takes, each with its ``comparator.batch_pairs_max`` candidates."""
Asked = tuple[Bytes3, Sequence[Pairing]]
Said = list[Judged] | StemmaError


class ComparatorReplica:
    """One copy of the networks; on the CPU it uses one core, whatever it is given.

    Raises ``Corrupt`` where it does not give the golden comparisons that the weights bring.
    """

    def __init__(self, settings: ComparatorSettings) -> None:
        on_cpu = settings.device == "cpu"
        if on_cpu:
            one_thread()
        self._comparator = Comparator.load(settings)
        golden.check_comparator(self._comparator, settings.weights)
        # On the CPU a batch is compared pair by pair: it would gain nothing and make the first wait for the last.
        cast(Any, self._batched).set_max_batch_size(1 if on_cpu else QUERIES_PER_BATCH_MAX)

    async def compare(self, rgb_HWC: Bytes3, pairings: Sequence[Pairing]) -> list[Judged]:
        """One query, uint8 [H, W, 3] at working size, with some originals; in the order given.

        Raises ``Corrupt`` for a working copy that cannot be read.
        """
        batched = cast(Callable[..., Any], self._batched)
        said = cast(Said, await batched((rgb_HWC, pairings)))
        if isinstance(said, StemmaError):
            raise said
        return said

    @serve.batch(max_batch_size=QUERIES_PER_BATCH_MAX, batch_wait_timeout_s=0)  # type: ignore[untyped-decorator]
    async def _batched(self, asked: list[Asked]) -> list[Said]:
        # In a thread, so that the next batch gathers and the health check answers meanwhile.
        return await asyncio.to_thread(self._compare, asked)

    def _compare(self, asked: list[Asked]) -> list[Said]:
        try:
            return list(self._comparator.compare_batch(asked))
        except StemmaError as error:
            if len(asked) == 1:
                return [error]
        # One query of the batch cannot be compared: the others are not to suffer for it.
        return [said for each in asked for said in self._compare([each])]


def one_thread() -> None:
    """Keep torch, OpenCV and BLAS of this process to one thread each: replicas share the cores with everything else."""
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    threadpool_limits(limits=1)


def comparator_app(settings: ComparatorSettings) -> Any:
    """The deployment, bound to its settings.

    ``max_ongoing_requests`` leaves room for a batch at work and one that gathers. What waits here no longer is dropped
    before it is compared (Serve leaves cancelled requests out of a batch).
    """
    deployment = serve.deployment(
        name=NAME,
        num_replicas=settings.replicas,
        max_ongoing_requests=2 * QUERIES_PER_BATCH_MAX,
        ray_actor_options={"num_cpus": 0, "num_gpus": settings.gpus_per_replica},
        graceful_shutdown_timeout_s=5,
    )
    return deployment(ComparatorReplica).bind(settings)
