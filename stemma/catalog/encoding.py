"""Drafts to Arrow and back, each group of columns under its CRC (the groups are drawn in schema.py).

Letters: R rows, D embedding, N cells, F features of a cell, O objects (of all rows together).
"""

from __future__ import annotations

import itertools
import struct
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import msgpack
import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from stemma.catalog.schema import (
    CELLS_WIDTH,
    OBJECT,
    ColumnType,
    Draft,
    catalog_schema,
    column_name,
    image_key,
    join_metadata,
)
from stemma.errors import BadRequest
from stemma.flow import CELL_COUNT, CELL_DIM, EMBEDDING_DIM, OBJECT_DIM, Objects

IDENTITY = ("row", "seq", "key", "sha256", "crc")
ABOUT = ("width", "height", "weights", "job", "source", "extra", "crc_about")
READABLE = (
    "row", "seq", "sha256", "image_id", "width", "height", "weights", "job", "source", "metadata",
    "embedding", "cells", "objects", "pixels",
)  # fmt: skip
_ABOUT_ASKED = {"width", "height", "weights", "job", "source", "metadata"}


class RowMismatch(Exception):
    """A row's bytes do not have the CRC stored with them. Private to the room: the catalog makes it a Corrupt."""

    def __init__(self, position: int, group: str) -> None:
        super().__init__(f"position {position}: {group}")
        self.position = position
        self.group = group


@dataclass(frozen=True, slots=True)
class Numbered:
    """A draft with the row number and the split metadata it will be stored with."""

    row: int
    image_id: str
    draft: Draft
    typed: Mapping[str, Any]
    extra: str | None


def encode(numbered: Sequence[Numbered], seq: int, columns: Mapping[str, ColumnType]) -> pa.Table:
    """One Arrow table in the catalog's schema, CRCs filled in. All must be of the same weights, their objects too."""
    drafts = [item.draft for item in numbered]
    row_R = np.array([item.row for item in numbered], np.uint64)
    key_R = np.array([image_key(item.image_id) for item in numbered], np.uint64)
    seq_R = np.full(len(drafts), seq, np.uint64)
    sha_R = [bytes.fromhex(draft.sha256) for draft in drafts]
    start_R = _starts(row_R, drafts[0].weights)
    embedding_RD = np.stack([draft.embedding_D for draft in drafts])
    cells_RW = np.stack([draft.cells_NF.reshape(-1) for draft in drafts])
    objects_R = [draft.objects if draft.objects is not None else _NO_OBJECTS for draft in drafts]
    objects = _Listed.of(objects_R)
    objects_weights = next((draft.objects_weights for draft in drafts if draft.objects is not None), None)
    about = [
        _about_bytes((d.width, d.height, d.weights, d.job, d.source, item.extra), item.typed)
        for item, d in zip(numbered, drafts, strict=True)
    ]
    values: dict[str, Any] = {
        "row": row_R,
        "seq": seq_R,
        "key": key_R,
        "sha256": pa.array(sha_R, pa.binary(32)),
        "crc": _crc_identity(row_R, seq_R, key_R, b"".join(sha_R)),
        "image_id": [item.image_id for item in numbered],
        "width": [draft.width for draft in drafts],
        "height": [draft.height for draft in drafts],
        "weights": [draft.weights for draft in drafts],
        "job": [draft.job for draft in drafts],
        "source": [draft.source for draft in drafts],
        "extra": [item.extra for item in numbered],
        "crc_about": _crcs(about, start_R),
        "embedding": _fixed(embedding_RD),
        "crc_embedding": _crcs(embedding_RD, start_R),
        "cells": _fixed(cells_RW),
        "crc_cells": _crcs(cells_RW, start_R),
        "objects": objects.arrow(),
        "crc_objects": _crcs(objects.parts(), objects.starts(row_R, drafts[0].weights, objects_weights)),
        "pixels": [draft.pixels for draft in drafts],
        "crc_pixels": _crcs([draft.pixels for draft in drafts], start_R),
        **{column_name(key): [item.typed.get(key) for item in numbered] for key in columns},
    }
    schema = catalog_schema(columns)
    arrays = [v if isinstance(v := values[f.name], pa.Array) else pa.array(v, f.type) for f in schema]
    return pa.Table.from_arrays(arrays, schema=schema)


def physical(columns: Sequence[str], metadata: Mapping[str, ColumnType]) -> list[str]:
    """The Lance columns that reading ``columns`` takes, checksums included. Raises BadRequest on an unknown name."""
    unknown = [name for name in columns if name not in READABLE]
    if unknown:
        raise BadRequest(f"unknown column {unknown[0]!r}; there are {', '.join(READABLE)}", subject=unknown[0])
    names = [*IDENTITY, *(["image_id"] if "image_id" in columns else [])]
    if _ABOUT_ASKED & set(columns):
        names += [*ABOUT, *(column_name(key) for key in metadata)]
    for name in ("embedding", "cells", "objects", "pixels"):
        if name in columns:
            names += [name, f"crc_{name}"]
    return names


def decode(
    table: pa.Table,
    columns: Sequence[str],
    metadata: Mapping[str, ColumnType],
    weights: str | None,
    objects_weights: str | None = None,
) -> dict[str, Any]:
    """Values of ``columns``, every group that was read checked against its CRC.

    ``weights`` seeds the CRCs, ``objects_weights`` those of objects, so vectors of other weights do not pass. Raises
    RowMismatch.
    """
    row_R, seq_R, key_R = (_numpy(table, name) for name in ("row", "seq", "key"))
    sha = _flat_bytes(table["sha256"])
    _check(_crc_identity(row_R, seq_R, key_R, sha), _numpy(table, "crc"), "identity")
    start_R = _starts(row_R, weights or "")
    out: dict[str, Any] = {}
    if _ABOUT_ASKED & set(columns):
        out.update(_decode_about(table, metadata, start_R))
    makers: dict[str, Callable[[], Any]] = {
        "row": lambda: row_R,
        "seq": lambda: seq_R,
        "sha256": lambda: [sha[at : at + 32].hex() for at in range(0, len(sha), 32)],
        "image_id": lambda: _decode_ids(table, key_R),
        "embedding": lambda: _decode_fixed(table, "embedding", EMBEDDING_DIM, start_R),
        "cells": lambda: _decode_fixed(table, "cells", CELLS_WIDTH, start_R).reshape(-1, CELL_COUNT, CELL_DIM),
        "objects": lambda: _decode_objects(table, row_R, weights or "", objects_weights),
        "pixels": lambda: _decode_pixels(table, start_R),
    }
    return {name: out[name] if name in out else makers[name]() for name in columns}


@dataclass(frozen=True, slots=True)
class Identities:
    """The identity group of some rows, checked: row, seq, key and the first eight bytes of the SHA-256, all uint64."""

    row_R: NDArray[np.uint64]
    seq_R: NDArray[np.uint64]
    key_R: NDArray[np.uint64]
    sha_R: NDArray[np.uint64]


def decode_identities(table: pa.Table) -> Identities:
    """What the ledger keeps of each row. Raises RowMismatch."""
    row_R, seq_R, key_R = (_numpy(table, name) for name in ("row", "seq", "key"))
    sha = _flat_bytes(table["sha256"])
    _check(_crc_identity(row_R, seq_R, key_R, sha), _numpy(table, "crc"), "identity")
    return Identities(row_R, seq_R, key_R, np.frombuffer(sha, "<u8").reshape(-1, 4)[:, 0].copy())


def sha_prefix(sha256: str) -> int:
    """The eight bytes of a hex SHA-256 that the ledger looks up by."""
    return int.from_bytes(bytes.fromhex(sha256[:16]), "little")


def encode_tombstones(row_R: NDArray[np.uint64], seq_R: NDArray[np.uint64]) -> dict[str, NDArray[Any]]:
    """Columns of the tombstone table."""
    return {"row": row_R, "seq": seq_R, "crc": _crc_pairs(row_R, seq_R)}


def decode_tombstones(table: pa.Table) -> tuple[NDArray[np.uint64], NDArray[np.uint64]]:
    """(row_R, seq_R), checked. Raises RowMismatch."""
    row_R, seq_R = _numpy(table, "row"), _numpy(table, "seq")
    _check(_crc_pairs(row_R, seq_R), _numpy(table, "crc"), "tombstone")
    return row_R, seq_R


def _decode_about(
    table: pa.Table, metadata: Mapping[str, ColumnType], start_R: NDArray[np.uint32]
) -> dict[str, list[Any]]:
    plain = {name: table[name].to_pylist() for name in ABOUT[:-1]}
    typed = {key: table[column_name(key)].to_pylist() for key in metadata}
    typed_R = [dict(zip(typed, row, strict=True)) for row in zip(*typed.values(), strict=True)] or [{}] * len(table)
    about = [_about_bytes(row, one) for row, one in zip(zip(*plain.values(), strict=True), typed_R, strict=True)]
    _check(_crcs(about, start_R), _numpy(table, "crc_about"), "about")
    plain["metadata"] = [join_metadata(one, extra) for one, extra in zip(typed_R, plain["extra"], strict=True)]
    return plain


def _decode_ids(table: pa.Table, key_R: NDArray[np.uint64]) -> list[str]:
    ids: list[str] = table["image_id"].to_pylist()
    _check(np.array([image_key(one) for one in ids], np.uint64), key_R, "image_id")
    return ids


def _decode_fixed(table: pa.Table, name: str, width: int, start_R: NDArray[np.uint32]) -> NDArray[np.int8]:
    value_RW = _one_chunk(table[name]).flatten().to_numpy(zero_copy_only=False).reshape(-1, width)
    _check(_crcs(value_RW, start_R), _numpy(table, f"crc_{name}"), name)
    assert value_RW.dtype == np.int8
    return np.asarray(value_RW, np.int8)


def _decode_objects(
    table: pa.Table, row_R: NDArray[np.uint64], weights: str, objects_weights: str | None
) -> list[Objects]:
    listed = _Listed.read(_one_chunk(table["objects"]))
    start_R = listed.starts(row_R, weights, objects_weights)
    _check(_crcs(listed.parts(), start_R), _numpy(table, "crc_objects"), "objects")
    return listed.rows()


def _decode_pixels(table: pa.Table, start_R: NDArray[np.uint32]) -> list[bytes]:
    values: list[bytes] = table["pixels"].to_pylist()
    _check(_crcs(values, start_R), _numpy(table, "crc_pixels"), "pixels")
    return values


def _starts(row_R: NDArray[np.uint64], weights: str) -> NDArray[np.uint32]:
    """A CRC starts from its row and its weights: bytes of another row or of other weights do not pass as this one's."""
    seed = np.uint64(zlib.crc32(weights.encode()))
    return ((row_R ^ (row_R >> np.uint64(32)) ^ seed) & np.uint64(0xFFFFFFFF)).astype(np.uint32)


def _crcs(parts: Sequence[bytes] | NDArray[Any], start_R: NDArray[np.uint32]) -> NDArray[np.uint32]:
    if isinstance(parts, np.ndarray):
        parts = np.ascontiguousarray(parts).view(np.uint8)
    pairs = zip(parts, start_R.tolist(), strict=True)
    return np.fromiter((zlib.crc32(part, start) for part, start in pairs), np.uint32, len(start_R))


def _crc_identity(
    row_R: NDArray[np.uint64], seq_R: NDArray[np.uint64], key_R: NDArray[np.uint64], sha: bytes
) -> NDArray[np.uint32]:
    parts = [np.ascontiguousarray(one, "<u8").view(np.uint8).reshape(-1, 8) for one in (row_R, seq_R, key_R)]
    payload = np.concatenate([*parts, np.frombuffer(sha, np.uint8).reshape(-1, 32)], axis=1)
    return _crcs(payload, np.zeros(len(row_R), np.uint32))


def _crc_pairs(row_R: NDArray[np.uint64], seq_R: NDArray[np.uint64]) -> NDArray[np.uint32]:
    packed = [struct.pack("<QQ", row, seq) for row, seq in zip(row_R.tolist(), seq_R.tolist(), strict=True)]
    return _crcs(packed, np.zeros(len(packed), np.uint32))


def _check(found_R: NDArray[Any], stored_R: NDArray[Any], group: str) -> None:
    wrong = np.flatnonzero(found_R != stored_R)
    if wrong.size:
        raise RowMismatch(int(wrong[0]), group)


def _about_bytes(fixed: Sequence[Any], typed: Mapping[str, Any]) -> bytes:
    # Columns that a row lacks are left out, so that a column added later does not change the CRC of older rows.
    present = sorted((key, value) for key, value in typed.items() if value is not None)
    packed = msgpack.packb([*fixed, present])
    assert isinstance(packed, bytes)
    return packed


_NO_OBJECTS = Objects(
    box_O4=np.empty((0, 4), np.float32),
    score_O=np.empty(0, np.float32),
    embedding_OD=np.empty((0, OBJECT_DIM), np.int8),
)


@dataclass(frozen=True, slots=True)
class _Listed:
    """The objects of many rows in one set of arrays, so that reading a segment's worth makes no Python object each."""

    at_R1: NDArray[np.int64]
    """[R + 1] where each row's objects begin."""
    objects: Objects

    @classmethod
    def of(cls, objects_R: Sequence[Objects]) -> _Listed:
        at_R1 = np.concatenate([[0], np.cumsum([len(one) for one in objects_R])]).astype(np.int64)
        box_O4 = np.concatenate([one.box_O4 for one in objects_R])
        score_O = np.concatenate([one.score_O for one in objects_R])
        embedding_OD = np.concatenate([one.embedding_OD for one in objects_R])
        return cls(at_R1, Objects(box_O4=box_O4, score_O=score_O, embedding_OD=embedding_OD))

    @classmethod
    def read(cls, column: pa.ListArray) -> _Listed:
        at_R1 = column.offsets.to_numpy().astype(np.int64)
        box_O, score_O, embedding_O = column.flatten().flatten()
        objects = Objects(
            box_O4=box_O.flatten().to_numpy(zero_copy_only=False).reshape(-1, 4),
            score_O=score_O.to_numpy(zero_copy_only=False),
            embedding_OD=embedding_O.flatten().to_numpy(zero_copy_only=False).reshape(-1, OBJECT_DIM),
        )
        return cls(at_R1 - at_R1[0], objects)

    def arrow(self) -> pa.Array:
        columns = [_fixed(self.objects.box_O4), pa.array(self.objects.score_O), _fixed(self.objects.embedding_OD)]
        return pa.ListArray.from_arrays(
            pa.array(self.at_R1, pa.int32()), pa.StructArray.from_arrays(columns, fields=list(OBJECT))
        )

    def starts(self, row_R: NDArray[np.uint64], weights: str, objects_weights: str | None) -> NDArray[np.uint32]:
        """As ``_starts``: of the objects' weights where there are objects, else of the row's own."""
        found_R = np.diff(self.at_R1) > 0
        return np.where(found_R, _starts(row_R, objects_weights or weights), _starts(row_R, weights))

    def parts(self) -> list[bytes]:
        """What the CRC of each row covers: box, score and embedding of one object after the other."""
        number_OB = np.column_stack([self.objects.box_O4, self.objects.score_O]).astype("<f4").view(np.uint8)
        body = np.concatenate([number_OB, self.objects.embedding_OD.view(np.uint8)], axis=1).tobytes()
        width = number_OB.shape[1] + OBJECT_DIM
        return [body[lo * width : hi * width] for lo, hi in itertools.pairwise(self.at_R1.tolist())]

    def rows(self) -> list[Objects]:
        whole = self.objects
        return [
            Objects(box_O4=whole.box_O4[lo:hi], score_O=whole.score_O[lo:hi], embedding_OD=whole.embedding_OD[lo:hi])
            for lo, hi in itertools.pairwise(self.at_R1.tolist())
        ]


def _fixed(value_RW: NDArray[Any]) -> pa.Array:
    return pa.FixedSizeListArray.from_arrays(pa.array(np.ascontiguousarray(value_RW).reshape(-1)), value_RW.shape[1])


def _one_chunk(column: pa.ChunkedArray) -> pa.Array:
    return column.combine_chunks() if column.num_chunks != 1 else column.chunk(0)


def _numpy(table: pa.Table, name: str) -> NDArray[Any]:
    return np.asarray(table[name].to_numpy())


def _flat_bytes(column: pa.ChunkedArray) -> bytes:
    return b"".join(
        chunk.buffers()[1].to_pybytes()[chunk.offset * 32 : (chunk.offset + len(chunk)) * 32]
        for chunk in column.chunks
        if len(chunk)
    )
