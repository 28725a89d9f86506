"""The way of a query, top to bottom: decode, encode, search the shards, verify, decide, answer."""

from __future__ import annotations

from typing import Protocol

from stemma.api import ImageRecord, Metadata
from stemma.flow import Encoded, Found, Pixels, ShardQuery


class Decoder(Protocol):
    async def decode(self, body: bytes) -> Pixels:
        """The picture in ``body`` at working size. Raises BadImage, UnsupportedType, TooLarge."""
        ...


class Encoder(Protocol):
    async def encode(self, pixels: Pixels) -> Encoded:
        """Embedding and cells of the upright and the mirrored picture (V = 2)."""
        ...


class Shards(Protocol):
    async def search(self, query: ShardQuery, deadline_ms: float) -> Found:
        """The merged shortlist of all hosts, with what was not searched. Raises Unavailable, DeadlineExceeded."""
        ...

    async def find_sha256(self, sha256: str, as_of: int | None) -> ImageRecord | None:
        """The live original with exactly these bytes."""
        ...

    async def metadata(self, image_ids: list[str]) -> list[Metadata]:
        """Metadata of the winners, in order."""
        ...
