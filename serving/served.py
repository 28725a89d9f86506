"""What the gateway needs of a collection, whoever provides it: Ray (``serving/engine.py``) or one process (tests)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from stemma.api import CollectionStatus, DeleteResult, ImageRecord, IngestResult
from stemma.catalog import Draft
from stemma.query import Engine


class Originals(Protocol):
    """The originals of one collection, to read and to change."""

    async def ready(self) -> bool:
        """True once a search would see every original: the index is loaded and its hosts have reported."""
        ...

    async def commit(self, drafts: Sequence[Draft], *, replace: bool) -> IngestResult:
        """One synced commit, honoured by the next search. Raises ``Conflict``, ``Unavailable``."""
        ...

    async def delete(self, image_ids: Sequence[str]) -> DeleteResult:
        """A synced delete, honoured by the next search."""
        ...

    async def seq(self) -> int:
        """The number of the last commit."""
        ...

    async def find_sha256(self, sha256: str) -> ImageRecord | None:
        """The live original with exactly these bytes."""
        ...

    async def record(self, image_id: str) -> ImageRecord:
        """Raises ``NotFound``."""
        ...

    async def pixels(self, image_id: str) -> bytes:
        """The working copy, a JPEG. Raises ``NotFound``, ``Corrupt``."""
        ...

    async def status(self) -> CollectionStatus:
        """Counts, versions and hosts."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Served:
    """One collection behind the gateway."""

    name: str
    engine: Engine
    originals: Originals
