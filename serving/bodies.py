"""Request bodies, never held beyond their limit: one picture, or the parts of an upload.

Serve puts no bound on a body (measured: 100 MB pass), so every bound is here and acts while the bytes arrive.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, cast

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header
from starlette.requests import ClientDisconnect, Request

from serving.access import Budget
from stemma.catalog.schema import validate_image_id
from stemma.config import Settings
from stemma.errors import BadRequest, StemmaError, TooLarge, UnsupportedType

MULTIPART = "multipart/form-data"
FRAMING_BYTES = 64 * 1024  # what boundaries and part headers may add to a picture or two
FILE = "file"
QUERY, ORIGINAL, ORIGINAL_ID = "query", "original", "original_id"


@dataclass(slots=True)
class Upload:
    """One picture. ``error`` says why its bytes were dropped while they came in; ``body`` is empty then."""

    name: str
    """The file's, as the caller called it."""
    body: bytes
    part: str = FILE
    error: StemmaError | None = None


@dataclass(slots=True)
class Form:
    """The parts of a multipart body, in order."""

    files: list[Upload] = field(default_factory=list)
    fields: dict[str, list[bytes]] = field(default_factory=dict)

    def texts(self, name: str) -> list[str]:
        """Every value of a field. Raises ``BadRequest`` for what is not UTF-8."""
        try:
            return [value.decode("utf-8") for value in self.fields.get(name, [])]
        except UnicodeDecodeError as error:
            raise BadRequest(f"{name} is not UTF-8", subject=name) from error

    def one(self, name: str) -> str | None:
        values = self.texts(name)
        if len(values) > 1:
            raise BadRequest(f"{name} is given more than once", subject=name)
        return values[0] if values else None


@dataclass(frozen=True, slots=True, kw_only=True)
class Bounds:
    """What one multipart body may hold."""

    body_bytes: int
    files: int
    """Parts of one name."""
    file_bytes: int
    fields: tuple[str, ...] = ()
    pictures: tuple[str, ...] = (FILE,)
    """Names of the parts that are pictures."""


async def drain(request: Request, sink: Callable[[bytes], None], bytes_max: int, budget: Budget) -> None:
    """Feed the body to ``sink`` chunk by chunk.

    Raises ``TooLarge`` (at once when the length is announced, else at the first byte too many), ``UnsupportedType``
    for an encoded body, ``BadRequest`` for a length that lies, ``DeadlineExceeded`` for one that drips.
    """
    encoding = request.headers.get("content-encoding", "identity").strip().lower()
    if encoding not in ("", "identity"):
        raise UnsupportedType(
            f"bodies are taken as they are, not {encoding[:32]!r} encoded", subject="content-encoding"
        )
    announced = _announced(request)
    if announced is not None and announced > bytes_max:
        raise _too_large(bytes_max)
    received = 0
    try:
        async with budget.enforced("the body"):
            async for chunk in request.stream():
                received += len(chunk)
                if received > bytes_max:
                    raise _too_large(bytes_max)
                if chunk:
                    sink(chunk)
    except ClientDisconnect as error:
        raise BadRequest("the connection closed before the body ended") from error
    if announced is not None and received != announced:
        raise BadRequest(f"{announced} bytes were announced and {received} came", subject="content-length")


def _announced(request: Request) -> int | None:
    text = request.headers.get("content-length")
    if text is None:
        return None
    if not (text.isascii() and text.isdigit() and len(text) <= 18):
        raise BadRequest("content-length must be a number", subject="content-length")
    return int(text)


def _too_large(bytes_max: int) -> TooLarge:
    return TooLarge(f"the body may have {bytes_max} bytes; send less, or in several requests", subject="body")


async def read_picture(request: Request, settings: Settings, budget: Budget) -> bytes:
    """The picture of a search: the raw body, or the one ``file`` part of a multipart one."""
    image_bytes_max = settings.decode.image_bytes_max
    kind, _ = parse_options_header(request.headers.get("content-type"))
    if kind == b"application/json":
        raise UnsupportedType("send the picture itself, as the body or as the part `file`", subject="content-type")
    if not kind.startswith(b"multipart/"):
        body = bytearray()
        await drain(request, body.extend, image_bytes_max, budget)
        return bytes(body)
    bounds = Bounds(body_bytes=image_bytes_max + FRAMING_BYTES, files=1, file_bytes=image_bytes_max)
    form = await read_form(request, bounds, settings, budget)
    if not form.files:
        raise BadRequest("the body has no part called `file`", subject="file")
    if form.files[0].error is not None:
        raise form.files[0].error
    return form.files[0].body


async def read_pair(request: Request, settings: Settings, budget: Budget) -> tuple[bytes, bytes | str]:
    """The parts ``query`` and ``original`` of a comparison; a text instead of the latter is the ``original_id``.

    Raises ``BadRequest`` unless there is exactly one of ``original`` and ``original_id``, ``TooLarge`` naming the part.
    """
    image_bytes_max = settings.decode.image_bytes_max
    bounds = Bounds(
        body_bytes=2 * image_bytes_max + FRAMING_BYTES,
        files=1,
        file_bytes=image_bytes_max,
        fields=(ORIGINAL_ID,),
        pictures=(QUERY, ORIGINAL),
    )
    form = await read_form(request, bounds, settings, budget)
    pictures = {file.part: file for file in form.files}
    image_id = form.one(ORIGINAL_ID)
    if QUERY not in pictures:
        raise BadRequest(f"the body has no part called `{QUERY}`", subject=QUERY)
    if (ORIGINAL in pictures) == (image_id is not None):
        raise BadRequest(f"send either a part `{ORIGINAL}` or a part `{ORIGINAL_ID}`", subject=ORIGINAL)
    for file in form.files:
        if file.error is not None:
            raise file.error
    original = pictures[ORIGINAL].body if image_id is None else validate_image_id(image_id, settings.limits)
    return pictures[QUERY].body, original


async def read_form(request: Request, bounds: Bounds, settings: Settings, budget: Budget) -> Form:
    """The parts of a multipart body, within ``bounds``. Raises as ``drain`` does, and ``BadRequest`` naming a part."""
    kind, options = parse_options_header(request.headers.get("content-type"))
    if kind.lower() != MULTIPART.encode():
        wanted = " or ".join(f"`{name}`" for name in bounds.pictures)
        raise UnsupportedType(f"this route takes {MULTIPART}, with a part {wanted} for every picture")
    boundary = options.get(b"boundary", b"")
    if not boundary:
        raise BadRequest(f"{MULTIPART} needs a boundary", subject="content-type")
    try:
        reader = _FormReader(boundary, bounds, settings)
        await drain(request, reader.feed, bounds.body_bytes, budget)
    except FormParserError as error:
        raise BadRequest(f"the multipart body cannot be read: {error}", subject="body") from error
    if not reader.ended:
        raise BadRequest("the multipart body stops before its closing boundary", subject="body")
    return reader.form


class _FormReader:
    """Callbacks of the streaming parser. The parser bounds headers, ``drain`` the whole; this bounds the parts."""

    def __init__(self, boundary: bytes, bounds: Bounds, settings: Settings) -> None:
        self.form = Form()
        self.ended = False
        self._bounds = bounds
        self._header_name = bytearray()
        self._header_value = bytearray()
        self._headers: dict[bytes, bytes] = {}
        self._counts: Counter[str] = Counter()
        self._data = bytearray()
        self._part = ("", "")
        self._file_over = False
        callbacks: dict[str, Callable[..., None]] = {
            "on_part_begin": self._headers.clear,
            "on_header_begin": self._header_begin,
            "on_header_field": lambda data, start, end: self._header_name.extend(data[start:end]),
            "on_header_value": lambda data, start, end: self._header_value.extend(data[start:end]),
            "on_header_end": self._header_end,
            "on_headers_finished": self._headers_finished,
            "on_part_data": self._part_data,
            "on_part_end": self._part_end,
            "on_end": self._end,
        }
        self._parser = MultipartParser(
            boundary,
            cast(Any, callbacks),
            max_header_count=settings.serve.part_headers_max,
            max_header_size=settings.serve.header_bytes_max,
        )

    def feed(self, chunk: bytes) -> None:
        self._parser.write(chunk)

    def _header_begin(self) -> None:
        self._header_name.clear()
        self._header_value.clear()

    def _header_end(self) -> None:
        self._headers[bytes(self._header_name).lower()] = bytes(self._header_value)

    def _headers_finished(self) -> None:
        if self._headers.get(b"content-transfer-encoding", b"binary").lower() not in (b"binary", b"8bit", b"7bit"):
            raise UnsupportedType("parts are taken as they are", subject="content-transfer-encoding")
        kind, options = parse_options_header(self._headers.get(b"content-disposition", b""))
        name = options.get(b"name", b"").decode("utf-8", "replace")
        pictures, fields = self._bounds.pictures, self._bounds.fields
        if kind != b"form-data" or name not in (*pictures, *fields):
            takes = ", ".join((*pictures, *fields))
            raise BadRequest(f"unknown part {name[:64]!r}; this route takes {takes}", subject=name[:64] or "part")
        self._counts[name] += 1
        if self._counts[name] > self._bounds.files:
            raise BadRequest(f"at most {self._bounds.files} part(s) `{name}` may be sent", subject=name)
        self._part = (name, options.get(b"filename", b"").decode("utf-8", "replace"))
        self._data = bytearray()
        self._file_over = False

    def _part_data(self, data: bytes, start: int, end: int) -> None:
        if self._part[0] in self._bounds.pictures and len(self._data) + end - start > self._bounds.file_bytes:
            self._file_over = True
            self._data.clear()
        if not self._file_over:
            self._data += data[start:end]

    def _part_end(self) -> None:
        name, filename = self._part
        if name not in self._bounds.pictures:
            self.form.fields.setdefault(name, []).append(bytes(self._data))
            return
        filename = filename or f"{name}-{len(self.form.files)}"
        subject = filename if name == FILE else name
        if self._file_over:
            over = TooLarge(
                f"a picture may have {self._bounds.file_bytes} bytes (decode.image_bytes_max)", subject=subject
            )
            self.form.files.append(Upload(filename, b"", name, over))
        else:
            self.form.files.append(Upload(filename, bytes(self._data), name))

    def _end(self) -> None:
        self.ended = True


def json_objects(text: str | None, count: int) -> Sequence[dict[str, Any]]:
    """The ``metadata`` part: a JSON list with one object for every file, in order; or nothing at all."""
    if text is None:
        return [{} for _ in range(count)]
    try:
        values = json.loads(text, parse_constant=_no_constant)
    except (ValueError, RecursionError) as error:
        raise BadRequest(f"metadata is not JSON: {error}", subject="metadata") from error
    if not isinstance(values, list) or not all(isinstance(value, dict) for value in values):
        raise BadRequest("metadata is a JSON list of objects, one for every file in order", subject="metadata")
    if len(values) != count:
        raise BadRequest(f"metadata has {len(values)} entries for {count} file(s)", subject="metadata")
    return values


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is not JSON")
