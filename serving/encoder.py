"""The encoder as a Serve deployment: the plain ``Encoder``, its concurrent calls batched without anybody waiting."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, cast

from ray import serve

from stemma.config import EncoderSettings
from stemma.flow import Bytes3, Encoded
from stemma.networks import golden
from stemma.networks.encoder import Encoder

NAME = "encoder"


class EncoderReplica:
    """One copy of the networks. Bit-identical per picture whatever is encoded beside it (``Encoder`` sees to that).

    Raises ``Corrupt`` where it does not give the golden descriptors that the weights bring.
    """

    def __init__(self, settings: EncoderSettings) -> None:
        self._encoder = Encoder.load(settings)
        # before the first query, on the very processor that will answer
        golden.check_encoder(self._encoder, settings.weights)
        # A batch gains nothing on the CPU (23.6 ms a picture at 8, 20.0 alone) and makes the first wait for the last.
        size = 1 if settings.device == "cpu" else settings.batch_images_max
        cast(Any, self._batched).set_max_batch_size(size)

    async def encode(self, rgb_HWC: Bytes3, mirrored: bool) -> Encoded:
        """One picture, uint8 [H, W, 3]; with ``mirrored`` both views."""
        batched = cast(Callable[..., Any], self._batched)
        return cast(Encoded, await batched((rgb_HWC, mirrored)))

    @serve.batch(max_batch_size=64, batch_wait_timeout_s=0)  # type: ignore[untyped-decorator]
    async def _batched(self, asked: list[tuple[Bytes3, bool]]) -> list[Encoded]:
        # In a thread, so that the next batch gathers and the health check answers meanwhile.
        return await asyncio.to_thread(self._encode, asked)

    def _encode(self, asked: list[tuple[Bytes3, bool]]) -> list[Encoded]:
        done: dict[int, Encoded] = {}
        for mirrored in (True, False):
            places = [at for at, (_, wanted) in enumerate(asked) if wanted is mirrored]
            pictures = [asked[at][0] for at in places]
            done.update(zip(places, self._encoder.encode_batch(pictures, mirrored=mirrored), strict=True))
        return [done[at] for at in range(len(asked))]


def encoder_app(settings: EncoderSettings) -> Any:
    """The deployment, bound to its settings.

    ``max_ongoing_requests`` leaves room for a batch at work and one that gathers: with Serve's default of 5 a batch of
    16 would never be full (ray #43288).
    """
    deployment = serve.deployment(
        name=NAME,
        num_replicas=settings.replicas,
        max_ongoing_requests=2 * settings.batch_images_max,
        ray_actor_options={"num_cpus": 0, "num_gpus": settings.gpus_per_replica},
        graceful_shutdown_timeout_s=5,
    )
    return deployment(EncoderReplica).bind(settings)
