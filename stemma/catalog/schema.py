"""What a row of the catalog is, and what may be put into one.

Letters: R rows, D embedding (256), N cells (196), F features of a cell (32).

Columns come in groups, each with a CRC of its own, so that reading a cheap column never reads pixels:

    identity   row, seq, key, sha256                      crc
    (key)      image_id                                   key is its BLAKE2b-64, and stands in the identity group
    about      width, height, weights, job, source,
               extra, m_<metadata column>...              crc_about
    vectors    embedding | cells | objects | pixels       crc_embedding | crc_cells | crc_objects | crc_pixels

Lance has no checksums (37 of 40 flipped bytes were read back silently wrong), so every read goes through these.
"""

from __future__ import annotations

import hashlib
import json
import math
import unicodedata
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from stemma.api import Metadata
from stemma.config import LimitSettings
from stemma.errors import BadRequest
from stemma.flow import CELL_COUNT, CELL_DIM, EMBEDDING_DIM, OBJECT_DIM, OBJECTS_MAX, Objects

ColumnType = Literal["text", "integer", "float", "boolean"]

CELLS_WIDTH = CELL_COUNT * CELL_DIM
COLUMNS_MAX = 64
"""Metadata columns of one collection; keys beyond them are kept in ``extra`` and cannot be filtered by."""
FOREVER = np.uint64(2**64 - 1)
"""The ``deleted`` of a row that lives."""
STORAGE_VERSION = "2.2"

ARROW_TYPES: dict[ColumnType, pa.DataType] = {
    "text": pa.string(),
    "integer": pa.int64(),
    "float": pa.float64(),
    "boolean": pa.bool_(),
}

OBJECT = pa.struct(
    [
        pa.field("box", pa.list_(pa.float32(), 4), nullable=False),
        pa.field("score", pa.float32(), nullable=False),
        pa.field("embedding", pa.list_(pa.int8(), OBJECT_DIM), nullable=False),
    ]
)

FIXED_FIELDS: tuple[pa.Field, ...] = (
    pa.field("row", pa.uint64(), nullable=False),
    pa.field("seq", pa.uint64(), nullable=False),
    pa.field("key", pa.uint64(), nullable=False),
    pa.field("sha256", pa.binary(32), nullable=False),
    pa.field("crc", pa.uint32(), nullable=False),
    pa.field("image_id", pa.string(), nullable=False),
    pa.field("width", pa.int32(), nullable=False),
    pa.field("height", pa.int32(), nullable=False),
    pa.field("weights", pa.string(), nullable=False),
    pa.field("job", pa.string(), nullable=False),
    pa.field("source", pa.string(), nullable=False),
    pa.field("extra", pa.string(), nullable=True),
    pa.field("crc_about", pa.uint32(), nullable=False),
    pa.field("embedding", pa.list_(pa.int8(), EMBEDDING_DIM), nullable=False),
    pa.field("crc_embedding", pa.uint32(), nullable=False),
    pa.field("cells", pa.list_(pa.int8(), CELLS_WIDTH), nullable=False),
    pa.field("crc_cells", pa.uint32(), nullable=False),
    pa.field("objects", pa.list_(OBJECT), nullable=False),
    pa.field("crc_objects", pa.uint32(), nullable=False),
    pa.field("pixels", pa.binary(), nullable=False),
    pa.field("crc_pixels", pa.uint32(), nullable=False),
)

TOMBSTONE_SCHEMA = pa.schema(
    [
        pa.field("row", pa.uint64(), nullable=False),
        pa.field("seq", pa.uint64(), nullable=False),
        pa.field("crc", pa.uint32(), nullable=False),
    ]
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Draft:
    """One picture to be stored."""

    image_id: str | None
    """None: the hex SHA-256."""
    name: str
    """As the caller calls it, for the item's report."""
    sha256: str
    """Hex digest of the uploaded bytes."""
    width: int
    height: int
    embedding_D: NDArray[np.int8]
    """[256]"""
    cells_NF: NDArray[np.int8]
    """[196, 32]"""
    pixels: bytes
    """The working copy as JPEG; never empty, because Lance's compaction once corrupted empty values (#7955)."""
    weights: str
    """Digest of the weights that made embedding and cells."""
    job: str
    source: str
    metadata: Metadata
    objects: Objects | None = None
    """None: nobody looked for objects, and no search by objects finds this picture."""
    objects_weights: str | None = None
    """Digest of the weights that found and embedded the objects; None without objects."""

    def __post_init__(self) -> None:
        if (self.objects is None) != (self.objects_weights is None):
            raise ValueError("objects come with the digest of the weights that made them, and no digest without")
        if not self.pixels:
            raise ValueError("a draft needs the bytes of its working copy")
        if self.embedding_D.shape != (EMBEDDING_DIM,) or self.embedding_D.dtype != np.int8:
            raise ValueError(f"an embedding is int8 [{EMBEDDING_DIM}], not {self.embedding_D.shape}")
        if self.cells_NF.shape != (CELL_COUNT, CELL_DIM) or self.cells_NF.dtype != np.int8:
            raise ValueError(f"cells are int8 [{CELL_COUNT}, {CELL_DIM}], not {self.cells_NF.shape}")
        if len(self.sha256) != 64 or set(self.sha256) - set("0123456789abcdef"):
            raise ValueError("sha256 is 64 lower-case hex digits")
        if self.objects is not None:
            _check_objects(self.objects)


def _check_objects(objects: Objects) -> None:
    """Raises ValueError."""
    count = len(objects)
    if not 1 <= count <= OBJECTS_MAX + 1:
        raise ValueError(f"a picture has at most {OBJECTS_MAX} objects and itself, not {count}")
    wanted = ((objects.box_O4, (count, 4), np.float32), (objects.embedding_OD, (count, OBJECT_DIM), np.int8))
    for array, shape, kind in (*wanted, (objects.score_O, (count,), np.float32)):
        if array.shape != shape or array.dtype != kind:
            raise ValueError(f"objects have {np.dtype(kind).name} {shape} here, not {array.dtype} {array.shape}")
    x0_O, y0_O, x1_O, y1_O = objects.box_O4.T
    if not ((x0_O >= 0) & (x0_O < x1_O) & (x1_O <= 1) & (y0_O >= 0) & (y0_O < y1_O) & (y1_O <= 1)).all():
        raise ValueError("an object's box is x0 < x1, y0 < y1 in 0..1 of the picture")
    if objects.box_O4[-1].tolist() != [0, 0, 1, 1]:
        raise ValueError("the last object is the whole picture")


def catalog_schema(columns: Mapping[str, ColumnType]) -> pa.Schema:
    """The table's schema with the given metadata columns."""
    return pa.schema([*FIXED_FIELDS, *metadata_fields(columns)])


def metadata_fields(columns: Mapping[str, ColumnType]) -> list[pa.Field]:
    """One nullable field per metadata column; the key as the caller wrote it stands in the field's own metadata."""
    return [
        pa.field(column_name(key), ARROW_TYPES[kind], nullable=True, metadata={b"stemma.key": key.encode()})
        for key, kind in columns.items()
    ]


def column_name(key: str) -> str:
    """The Lance column of a metadata key: ``m_`` and the key, with all but ``a-z0-9`` escaped.

    ``_`` becomes ``__`` and any other byte ``_xx``: one to one, never one of our own columns, no quoting needed.
    """
    return "m_" + "".join(
        chr(byte) if chr(byte) in "abcdefghijklmnopqrstuvwxyz0123456789" else "__" if byte == 0x5F else f"_{byte:02x}"
        for byte in key.encode()
    )


def columns_of(schema: pa.Schema) -> dict[str, ColumnType]:
    """The metadata columns that a table's schema declares, by key."""
    kinds = {arrow: kind for kind, arrow in ARROW_TYPES.items()}
    return {_key_of(field.name): kinds[field.type] for field in schema if field.name.startswith("m_")}


def _key_of(column: str) -> str:
    out, at, body = bytearray(), 0, column[2:].encode()
    while at < len(body):
        if body[at] != 0x5F:
            out.append(body[at])
            at += 1
        elif body[at + 1] == 0x5F:
            out.append(0x5F)
            at += 2
        else:
            out.append(int(body[at + 1 : at + 3], 16))
            at += 3
    return out.decode()


def image_key(image_id: str) -> int:
    """BLAKE2b-64 of an image_id: what the identity group's CRC covers in its place, and what is looked up by."""
    return int.from_bytes(hashlib.blake2b(image_id.encode(), digest_size=8).digest(), "little")


_BIDI = set("\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")


def validate_image_id(image_id: str, limits: LimitSettings | None = None) -> str:
    """``image_id`` itself if it may be one: 1 to 512 bytes of UTF-8, no control characters, no bidi marks.

    It is only ever a string: ``../x``, emoji and percent signs are as good as any. Raises BadRequest.
    """
    most = (limits or LimitSettings()).image_id_bytes_max
    try:
        size_bytes = len(image_id.encode())
    except UnicodeEncodeError as error:
        raise BadRequest("an image_id is text that UTF-8 can hold", subject=ascii(image_id)) from error
    if not 1 <= size_bytes <= most:
        raise BadRequest(f"an image_id has 1 to {most} bytes, this one {size_bytes}", subject=image_id[:64])
    for char in image_id:
        if unicodedata.category(char) in {"Cc", "Zl", "Zp"} or char in _BIDI:
            raise BadRequest(f"an image_id may not hold the character U+{ord(char):04X}", subject=ascii(image_id[:64]))
    return image_id


def validate_metadata(metadata: Any, limits: LimitSettings | None = None) -> Metadata:
    """``metadata`` itself if it is a JSON object within the limits (16 KiB, depth 8, 64 keys of 128 bytes).

    Depth counts the containers around a value, the object itself included. Raises BadRequest naming the key.
    """
    limits = limits or LimitSettings()
    if not isinstance(metadata, dict):
        raise BadRequest("metadata is an object of names and values", subject="metadata")
    if len(metadata) > limits.metadata_keys_max:
        raise BadRequest(f"metadata has at most {limits.metadata_keys_max} keys", subject="metadata")
    for key, value in metadata.items():
        if not isinstance(key, str) or not 1 <= len(key.encode("utf-8", "replace")) <= limits.metadata_key_bytes_max:
            raise BadRequest(
                f"a metadata key is text of 1 to {limits.metadata_key_bytes_max} bytes", subject=str(key)[:64]
            )
        _check_value(value, limits.metadata_depth_max - 1, key)
    try:
        size_bytes = len(_json(metadata).encode())
    except UnicodeEncodeError as error:
        raise BadRequest("metadata is text that UTF-8 can hold", subject="metadata") from error
    if size_bytes > limits.metadata_bytes_max:
        raise BadRequest(
            f"metadata has at most {limits.metadata_bytes_max} bytes of JSON, this one {size_bytes}", subject="metadata"
        )
    return metadata


def _check_value(value: Any, depth_left: int, key: str) -> None:
    match value:
        case None | bool() | str() | int():
            return
        case float():
            if not math.isfinite(value):
                raise BadRequest("metadata numbers are finite", subject=key)
        case list() | dict():
            if depth_left == 0:
                raise BadRequest("metadata is nested too deep", subject=key)
            if isinstance(value, dict) and not all(isinstance(inner, str) for inner in value):
                raise BadRequest("metadata keys are text", subject=key)
            for inner in value.values() if isinstance(value, dict) else value:
                _check_value(inner, depth_left - 1, key)
        case _:
            raise BadRequest(f"metadata holds JSON values, not {type(value).__name__}", subject=key)


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"), allow_nan=False)


def infer_columns(many: Iterable[Metadata]) -> dict[str, ColumnType]:
    """Column types from the first metadata that a collection sees: the first scalar of a key decides, int + float
    becomes float. Lists, objects and integers beyond 64 bits make no column. At most COLUMNS_MAX, first seen first."""
    columns: dict[str, ColumnType] = {}
    for metadata in many:
        for key, value in metadata.items():
            kind = _kind(value)
            if kind is None:
                continue
            if columns.get(key) == "integer" and kind == "float":
                columns[key] = "float"
            elif len(columns) < COLUMNS_MAX:
                columns.setdefault(key, kind)
    return columns


def _kind(value: Any) -> ColumnType | None:
    match value:
        case bool():
            return "boolean"
        case int():
            return "integer" if -(2**63) <= value < 2**63 else None
        case float():
            return "float"
        case str():
            return "text"
        case _:
            return None


def split_metadata(metadata: Metadata, columns: Mapping[str, ColumnType]) -> tuple[dict[str, Any], str | None]:
    """Metadata as (values of declared columns, JSON of the rest or None). Raises BadRequest on another type.

    A key whose value is null goes with the rest, so that it comes back; -0.0 is stored as 0.0, which Lance's filters
    would otherwise tell apart.
    """
    typed: dict[str, Any] = {}
    rest: Metadata = {}
    for key, value in metadata.items():
        kind = columns.get(key)
        if kind is None or value is None:
            rest[key] = value
            continue
        found = _kind(value)
        if kind == "float" and found in ("integer", "float"):
            typed[key] = float(value) + 0.0
        elif found == kind:
            typed[key] = value
        else:
            raise BadRequest(
                f"metadata {key!r} is a column of type {kind}; {type(value).__name__} does not fit", subject=key
            )
    return typed, _json(rest) if rest else None


def join_metadata(typed: Mapping[str, Any], extra: str | None) -> Metadata:
    """The inverse of ``split_metadata``."""
    return {**{key: value for key, value in typed.items() if value is not None}, **(json.loads(extra) if extra else {})}
