"""Every call of the contract as a value, and what follows each attempt; ``stemma/client.py`` sends and waits."""

from __future__ import annotations

import json
import random
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Generic, TypeVar
from urllib.parse import quote

import httpx
import numpy as np
from pydantic import TypeAdapter, ValidationError

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
from stemma.errors import BadRequest, DeadlineExceeded, NotFound, StemmaError, Unavailable, error_from_problem
from stemma.packing import MEDIA_TYPE, unpack

T = TypeVar("T")
Image = bytes | str | Path
BACKOFF_S = 0.05
BACKOFF_S_MAX = 5.0
RETRIED = frozenset({429, 502, 503})  # refused before anything was done, or by a proxy in front


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """How a client behaves."""

    timeout_s: float = 60.0
    """For one whole call, its retries and their waits included."""
    attempts_max: int = 5
    msgpack: bool = False
    """Ask for msgpack instead of JSON: smaller and faster to read for answers with heatmaps."""
    headers: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Call(Generic[T]):
    """One request and how its response is read. All calls of the contract are idempotent, so all may be sent again."""

    method: str
    path: str
    read: Callable[[Any], T]
    parameters: dict[str, str] = field(default_factory=dict)
    body: bytes | None = None
    files: Sequence[tuple[str, tuple[str | None, bytes]]] = ()
    timeout_s: float | None = None
    attempts_max: int | None = None
    listed: tuple[str, ...] = ()
    """Members of the answer that a problem document may hold too: then it is read as the answer."""

    def request(self, client: httpx.Client | httpx.AsyncClient, options: Options, left_s: float) -> httpx.Request:
        return client.build_request(
            self.method,
            self.path,
            params=self.parameters,
            content=self.body,
            files=self.files or None,
            headers={"accept": MEDIA_TYPE if options.msgpack else "application/json", **options.headers},
            timeout=max(left_s, 0.001),
        )


class Attempts:
    """What is known of one call's attempts so far; decides whether and when the next one is made."""

    def __init__(self, options: Options, call: Call[Any]) -> None:
        self.timeout_s = options.timeout_s if call.timeout_s is None else call.timeout_s
        self._ends = time.monotonic() + self.timeout_s
        self._attempts_left = call.attempts_max or options.attempts_max
        self._backoff_s = BACKOFF_S

    def left_s(self) -> float:
        """Raises ``DeadlineExceeded`` when nothing is left."""
        left_s = self._ends - time.monotonic()
        if left_s <= 0:
            raise DeadlineExceeded(f"the call took more than {self.timeout_s:g} s (timeout_s)")
        return left_s

    def wait_s(self, error: Exception) -> float:
        """Seconds to wait before the next attempt; raises ``error`` where there is none."""
        self._attempts_left -= 1
        failure = error if isinstance(error, StemmaError) else Unavailable(f"the server cannot be reached: {error}")
        retried = failure.status in RETRIED
        wait_s = failure.retry_after_s
        if isinstance(error, httpx.TimeoutException):
            self.left_s()
        self._backoff_s = min(2 * self._backoff_s, BACKOFF_S_MAX)
        wait_s = self._backoff_s * random.random() if wait_s is None else wait_s
        if not retried or self._attempts_left <= 0 or time.monotonic() + wait_s >= self._ends:
            raise failure from (None if failure is error else error)
        return wait_s


def value_of(response: httpx.Response, call: Call[T]) -> T:
    """The value of a response. Raises the typed error of a problem document."""
    problem = {} if response.is_success else _problem(response)
    listed = {name: problem[name] for name in call.listed if name in problem}
    if not response.is_success and not listed:
        raise _error(response)
    try:
        return call.read(listed or _value(response))
    except ValueError as error:  # pydantic's ValidationError is one
        raise StemmaError(f"the server's answer does not follow the contract: {error}", subject=call.path) from error


def _problem(response: httpx.Response) -> dict[str, Any]:
    try:
        problem = response.json()
    except ValueError:
        return {}
    return problem if isinstance(problem, dict) else {}


def _error(response: httpx.Response) -> StemmaError:
    problem = _problem(response)
    if "code" not in problem:
        detail = f"HTTP {response.status_code} from something that is not stemma"
        return Unavailable(detail) if response.status_code in RETRIED else StemmaError(detail)
    error = error_from_problem(problem)
    if (after := response.headers.get("retry-after", "")).isdigit():
        error.retry_after_s = float(after)
    return error


def _value(response: httpx.Response) -> Any:
    if _is(response, MEDIA_TYPE):
        return _lists(unpack(response.content))
    return response.json() if _is(response, "application/json") else response.content


def _is(response: httpx.Response, media_type: str) -> bool:
    return str(response.headers.get("content-type", "")).startswith(media_type)


def _lists(value: Any) -> Any:
    """Arrays as flat lists, which is how the contract's types hold them."""
    if isinstance(value, np.ndarray):
        # a float32 as the number that was meant, the shortest that rounds to it: as in JSON
        return (value.astype(str).astype(np.float64) if value.dtype == np.float32 else value).ravel().tolist()
    if isinstance(value, dict):
        return {name: _lists(item) for name, item in value.items()}
    if isinstance(value, list):
        return [_lists(item) for item in value]
    return value


def _as(model: type[T]) -> Callable[[Any], T]:
    return TypeAdapter(model).validate_python


class Calls:
    """Every call of the contract, described; nothing here sends anything."""

    def __init__(self, collection: str | None) -> None:
        self._collection = {} if collection is None else {"collection": collection}

    def search(self, image: Image, ask: Ask | None, fields: dict[str, Any], timeout_s: float | None) -> Call[Answer]:
        if ask is not None and fields:
            raise BadRequest("give an Ask or its fields, not both", subject="ask")
        unknown = fields.keys() - Ask.model_fields.keys()
        if unknown:
            name = sorted(unknown)[0]
            raise BadRequest(f"search takes {', '.join(Ask.model_fields)}; not {name!r}", subject=name)
        try:
            ask = ask or Ask(**fields)
        except ValidationError as error:
            raise BadRequest(f"{error.errors()[0]['loc'][0]}: {error.errors()[0]['msg']}", subject="ask") from error
        asked = {name: _text(value) for name, value in ask.model_dump(exclude_none=True).items()}
        return Call(
            method="POST",
            path="/v1/search",
            parameters={**self._collection, **asked},
            body=_bytes(image),
            read=_as(Answer),
            timeout_s=timeout_s,
        )

    def compare(
        self,
        query: Image,
        original: Image | None,
        original_id: str | None,
        deadline_ms: float | None,
        timeout_s: float | None,
    ) -> Call[Comparison]:
        if (original is None) == (original_id is None):
            raise BadRequest("give an original or the id of a stored one", subject="original")
        parts: list[tuple[str, tuple[str | None, bytes]]] = [("query", (_name(query, 0), _bytes(query)))]
        if original is not None:
            parts.append(("original", (_name(original, 1), _bytes(original))))
        else:
            parts.append(("original_id", (None, str(original_id).encode())))
        asked = {} if deadline_ms is None else {"deadline_ms": _text(deadline_ms)}
        return Call(
            method="POST",
            path="/v1/compare",
            parameters={**self._collection, **asked},
            files=parts,
            read=_as(Comparison),
            timeout_s=timeout_s,
        )

    def ingest(
        self,
        images: Sequence[Image],
        metadata: Sequence[Metadata] | Metadata | None,
        image_ids: Sequence[str | None] | str | None,
        replace: bool,
        timeout_s: float | None,
    ) -> Call[IngestResult]:
        if not images:
            raise BadRequest("give at least one picture", subject="images")
        parts: list[tuple[str, tuple[str | None, bytes]]] = [
            ("file", (_name(image, index), _bytes(image))) for index, image in enumerate(images)
        ]
        if metadata is not None:
            known = [metadata] if isinstance(metadata, dict) else list(metadata)
            parts.append(("metadata", (None, _json(known))))
        if image_ids is not None:
            ids = [image_ids] if isinstance(image_ids, str) else image_ids
            parts += [("image_id", (None, (image_id or "").encode())) for image_id in ids]
        return Call(
            method="POST",
            path="/v1/images",
            parameters={**self._collection, **({"replace": "true"} if replace else {})},
            files=parts,
            read=_as(IngestResult),
            listed=("seq", "items"),
            timeout_s=timeout_s,
        )

    def get(self, image_id: str) -> Call[ImageRecord]:
        return Call(method="GET", path=_image_path(image_id), parameters=self._collection, read=_as(ImageRecord))

    def pixels(self, image_id: str) -> Call[bytes]:
        path = f"{_image_path(image_id)}/pixels"
        return Call(method="GET", path=path, parameters=self._collection, read=bytes)

    def deletes(self, image_ids: str | Iterable[str]) -> list[Call[DeleteResult]]:
        ids = [image_ids] if isinstance(image_ids, str) else list(image_ids)
        if not ids:
            raise BadRequest("give at least one image_id", subject="image_id")
        return [self._delete(image_id) for image_id in ids]

    def _delete(self, image_id: str) -> Call[DeleteResult]:
        return Call(
            method="DELETE",
            path=_image_path(image_id),
            parameters=self._collection,
            read=_as(DeleteResult),
            listed=("seq", "deleted", "missing"),
        )

    def collections(self) -> Call[list[CollectionStatus]]:
        return Call(method="GET", path="/v1/collections", read=_as(list[CollectionStatus]))

    def status(self) -> Call[Status]:
        return Call(method="GET", path="/v1/status", read=_as(Status))

    def probe(self, path: str) -> Call[bool]:
        return Call(method="GET", path=path, read=lambda _: True, attempts_max=1)


def _image_path(image_id: str) -> str:
    if not image_id:
        raise BadRequest("an image_id has at least one character", subject="image_id")
    # `.` and `..` would be taken for path segments, so their dots are encoded as well.
    return f"/v1/images/{quote(image_id, safe='').replace('.', '%2E')}"


def _text(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.9f}".rstrip("0").rstrip(".")
    return str(value)


def _json(value: Any) -> bytes:
    try:
        return json.dumps(value, allow_nan=False).encode()
    except (TypeError, ValueError) as error:
        raise BadRequest(f"metadata must be JSON: {error}", subject="metadata") from error


def _bytes(image: Image) -> bytes:
    if isinstance(image, bytes):
        return image
    try:
        return Path(image).read_bytes()
    except OSError as error:
        raise NotFound(f"the file cannot be read: {error.strerror}", subject=str(image)) from error


def _name(image: Image, index: int) -> str:
    return f"upload-{index}" if isinstance(image, bytes) else Path(image).name
