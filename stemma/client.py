"""Asking a served collection over HTTP.

    with stemma.Client("http://127.0.0.1:8000") as client:
        answer = client.search("query.jpg", k=5)

``Client`` waits, ``AsyncClient`` awaits; every call, its retries and its errors are the same (``stemma/calls.py``).
What is retried: lost connections, 429 and 503 (after their ``Retry-After``), within ``attempts_max`` and ``timeout_s``.
Nothing is done twice by it: the contract makes every call idempotent, uploads included.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterable, Sequence
from types import TracebackType
from typing import Any, Self, TypeVar

import httpx

from stemma.api import (
    Answer,
    Ask,
    CollectionStatus,
    Comparison,
    DeleteResult,
    ImageRecord,
    IngestResult,
    Metadata,
    Status,
)
from stemma.calls import Attempts, Call, Calls, Image, Options, value_of
from stemma.errors import BadRequest, DeadlineExceeded, StemmaError

T = TypeVar("T")


class Client:
    """One server, and one of its collections (``None``: the only one it serves). Safe to use from several threads.

    Every method raises the typed errors of ``stemma.errors``: those that the server sent, ``Unavailable`` when it
    cannot be reached, ``DeadlineExceeded`` after ``options.timeout_s``.
    """

    def __init__(
        self,
        url: str = "http://127.0.0.1:8000",
        *,
        collection: str | None = None,
        options: Options | None = None,
        transport: httpx.BaseTransport | None = None,
    ) -> None:
        self._options = options or Options()
        self._calls = Calls(collection)
        self._http = httpx.Client(base_url=_base(url), transport=transport)

    def search(self, image: Image, ask: Ask | None = None, *, timeout_s: float | None = None, **fields: Any) -> Answer:
        """Where a picture comes from; ``image`` is its bytes or a path, ``fields`` are those of ``Ask``."""
        return self._do(self._calls.search(image, ask, fields, timeout_s))

    def compare(
        self,
        query: Image,
        original: Image | None = None,
        *,
        original_id: str | None = None,
        deadline_ms: float | None = None,
        timeout_s: float | None = None,
    ) -> Comparison:
        """What was changed in ``query`` against one original: a picture (bytes or a path), or the id of a stored one.

        Raises ``BadRequest`` for both or neither, ``NotFound`` for an id that is not there; errors of a picture have
        ``query`` or ``original`` as their ``subject``.
        """
        return self._do(self._calls.compare(query, original, original_id, deadline_ms, timeout_s))

    def ingest(
        self,
        *images: Image,
        metadata: Sequence[Metadata] | Metadata | None = None,
        image_ids: Sequence[str | None] | str | None = None,
        replace: bool = False,
        timeout_s: float | None = None,
    ) -> IngestResult:
        """Store pictures in one synced commit; refused ones are items with a reason, never an exception.

        ``metadata`` and ``image_ids`` have one entry for each picture, in order; for one picture they may stand alone.
        """
        return self._do(self._calls.ingest(images, metadata, image_ids, replace, timeout_s))

    def delete(self, image_ids: str | Iterable[str]) -> DeleteResult:
        """Forget originals; honoured by the next search. Ids that are not there are listed as missing."""
        return _together([self._do(call) for call in self._calls.deletes(image_ids)])

    def get(self, image_id: str) -> ImageRecord:
        """What is known of one original. Raises ``NotFound``."""
        return self._do(self._calls.get(image_id))

    def pixels(self, image_id: str) -> bytes:
        """Its working copy: JPEG, long side at most 512. Raises ``NotFound``."""
        return self._do(self._calls.pixels(image_id))

    def collections(self) -> list[CollectionStatus]:
        return self._do(self._calls.collections())

    def status(self) -> Status:
        return self._do(self._calls.status())

    def healthy(self) -> bool:
        """True when the server answers at all."""
        return self._probe("/healthz")

    def ready(self) -> bool:
        """True when it has loaded everything it serves."""
        return self._probe("/readyz")

    def close(self) -> None:
        self._http.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _probe(self, path: str) -> bool:
        try:
            return self._do(self._calls.probe(path))
        except StemmaError:
            return False

    def _do(self, call: Call[T]) -> T:
        attempts = Attempts(self._options, call)
        while True:
            try:
                request = call.request(self._http, self._options, attempts.left_s())
                return value_of(self._http.send(request), call)
            except (httpx.TransportError, StemmaError) as error:
                wait_s = attempts.wait_s(error)
            time.sleep(wait_s)


class AsyncClient:
    """``Client`` for asyncio: the same methods, awaited. Use it as an async context manager, or ``await close()``."""

    def __init__(
        self,
        url: str = "http://127.0.0.1:8000",
        *,
        collection: str | None = None,
        options: Options | None = None,
        transport: httpx.AsyncBaseTransport | None = None,
    ) -> None:
        self._options = options or Options()
        self._calls = Calls(collection)
        self._http = httpx.AsyncClient(base_url=_base(url), transport=transport)

    async def search(
        self, image: Image, ask: Ask | None = None, *, timeout_s: float | None = None, **fields: Any
    ) -> Answer:
        """See ``Client.search``."""
        return await self._do(self._calls.search(image, ask, fields, timeout_s))

    async def compare(
        self,
        query: Image,
        original: Image | None = None,
        *,
        original_id: str | None = None,
        deadline_ms: float | None = None,
        timeout_s: float | None = None,
    ) -> Comparison:
        """See ``Client.compare``."""
        return await self._do(self._calls.compare(query, original, original_id, deadline_ms, timeout_s))

    async def ingest(
        self,
        *images: Image,
        metadata: Sequence[Metadata] | Metadata | None = None,
        image_ids: Sequence[str | None] | str | None = None,
        replace: bool = False,
        timeout_s: float | None = None,
    ) -> IngestResult:
        """See ``Client.ingest``."""
        return await self._do(self._calls.ingest(images, metadata, image_ids, replace, timeout_s))

    async def delete(self, image_ids: str | Iterable[str]) -> DeleteResult:
        """See ``Client.delete``."""
        return _together([await self._do(call) for call in self._calls.deletes(image_ids)])

    async def get(self, image_id: str) -> ImageRecord:
        """See ``Client.get``."""
        return await self._do(self._calls.get(image_id))

    async def pixels(self, image_id: str) -> bytes:
        """See ``Client.pixels``."""
        return await self._do(self._calls.pixels(image_id))

    async def collections(self) -> list[CollectionStatus]:
        return await self._do(self._calls.collections())

    async def status(self) -> Status:
        return await self._do(self._calls.status())

    async def healthy(self) -> bool:
        """See ``Client.healthy``."""
        return await self._probe("/healthz")

    async def ready(self) -> bool:
        """See ``Client.ready``."""
        return await self._probe("/readyz")

    async def close(self) -> None:
        await self._http.aclose()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def _probe(self, path: str) -> bool:
        try:
            return await self._do(self._calls.probe(path))
        except StemmaError:
            return False

    async def _do(self, call: Call[T]) -> T:
        attempts = Attempts(self._options, call)
        while True:
            try:
                left_s = attempts.left_s()
                request = call.request(self._http, self._options, left_s)
                async with asyncio.timeout(left_s):
                    return value_of(await self._http.send(request), call)
            except TimeoutError as error:
                raise DeadlineExceeded(f"the call took more than {attempts.timeout_s:g} s (timeout_s)") from error
            except (httpx.TransportError, StemmaError) as error:
                wait_s = attempts.wait_s(error)
            await asyncio.sleep(wait_s)


def _base(url: str) -> str:
    if not url.startswith(("http://", "https://")):
        raise BadRequest("the address of a server starts with http:// or https://", subject=url)
    return url.rstrip("/")


def _together(results: list[DeleteResult]) -> DeleteResult:
    return DeleteResult(
        seq=max(result.seq for result in results),
        deleted=tuple(image_id for result in results for image_id in result.deleted),
        missing=tuple(image_id for result in results for image_id in result.missing),
    )
