"""The objects of a segment's rows, in files beside its images.

In order of rows: ``object_rows.u64`` [I] (rows that have any), ``object_starts.u64`` [I + 1], ``object_boxes.f32``
[M, 4], ``object_vectors.i8`` [M, 256]. Under a codec for objects also, in inverted-list order, ``object_codes.u8``
[M, 32], ``object_places.u32`` [M] (which of the objects in order of rows a code is of) and ``object_lists.u64``
[L + 1]: 32 + 4 bytes an object are read by a scan, 256 + 16 where a pair is scored or shown.

Shape letters: I rows that have objects, M objects, L inverted lists, C candidates.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stemma.flow import OBJECT_DIM
from stemma.index import folder as folders
from stemma.index.codec import Codec, mapped_lists
from stemma.index.object_set import NO_OBJECTS, ObjectSet

DTYPES: dict[str, type] = {
    "object_rows.u64": np.uint64,
    "object_starts.u64": np.uint64,
    "object_boxes.f32": np.float32,
    "object_vectors.i8": np.int8,
    "object_codes.u8": np.uint8,
    "object_places.u32": np.uint32,
    "object_lists.u64": np.uint64,
}
_CODES = "object_codes.u8"

Arrays = dict[str, NDArray[Any]]
Files = dict[str, folders.Content]


class CodedObjects:
    """A segment's objects as codes, in inverted-list order; what ``Stack`` scans."""

    def __init__(self, objects: ObjectSet, files: Mapping[str, NDArray[Any]], code_bytes: int, lists: Any) -> None:
        self.objects = objects
        self.codes_MB: NDArray[np.uint8] = files[_CODES].reshape(-1, code_bytes)
        self.place_M: NDArray[np.uint32] = files["object_places.u32"]
        self.start_L: NDArray[np.int64] = files["object_lists.u64"].astype(np.int64)
        self.lists = lists
        """See ``Segment.lists``."""

    @classmethod
    def open(
        cls, folder: Path, codec: Codec, objects: ObjectSet, files: Mapping[str, NDArray[Any]]
    ) -> CodedObjects | None:
        """None where there are no objects."""
        if _CODES not in files:
            return None
        start_L = files["object_lists.u64"].astype(np.int64)
        return cls(objects, files, codec.code_bytes, mapped_lists(folder / _CODES, start_L, codec.code_bytes))

    def __len__(self) -> int:
        return len(self.place_M)

    def rows_at(self, position_C: NDArray[np.int64]) -> NDArray[np.uint64]:
        return self.objects.rows_at(self.place_M[position_C].astype(np.int64))

    def vectors_at(self, position_C: NDArray[np.int64]) -> NDArray[np.int8]:
        return self.objects.vector_MD[self.place_M[position_C]]

    def in_list_order(self, value_I: NDArray[Any]) -> NDArray[Any]:
        """[M] what is said of each row, for each code."""
        return self.objects.of_objects(value_I)[self.place_M]


def object_set(files: Mapping[str, NDArray[Any]]) -> ObjectSet:
    """The objects in a segment's mapped files."""
    if "object_rows.u64" not in files:
        return NO_OBJECTS
    return ObjectSet(
        files["object_rows.u64"],
        files["object_starts.u64"].view(np.int64),
        files["object_boxes.f32"].reshape(-1, 4),
        files["object_vectors.i8"].reshape(-1, OBJECT_DIM),
    )


def object_arrays(objects: ObjectSet, codec: Codec | None) -> Arrays:
    """The files of these objects; none where there are none, so that such a segment is what it always was."""
    if not objects.count:
        return {}
    if codec is None:
        return _by_row(objects)
    lists_M, codes_MB = codec.encode(objects.vector_MD)
    return _by_row(objects) | _by_list(lists_M, codes_MB, codec.nlist)


def joined_files(parts: Sequence[tuple[ObjectSet, CodedObjects | None]], keep_R: NDArray[np.uint64]) -> Files:
    """The files of ``parts`` together, in order of rows, without rows that are not in ``keep_R``; codes are carried.

    Vectors and boxes go from file to file: of the largest segment (8 million rows) they are 20 GB.
    """
    kept = [(objects, coded, np.isin(objects.row_I, keep_R)) for objects, coded in parts]
    kept = [(objects, coded, keep_I) for objects, coded, keep_I in kept if keep_I.any()]
    if not kept:
        return {}
    row_I = np.concatenate([objects.row_I[keep_I] for objects, _, keep_I in kept])
    counts_I = np.concatenate([objects.counts[keep_I] for objects, _, keep_I in kept])
    files: Files = {**_of_rows(row_I, counts_I)}
    keep = [objects.of_objects(keep_I) for objects, _, keep_I in kept]
    for name, arrays in (
        ("object_boxes.f32", [objects.box_M4 for objects, _, _ in kept]),
        ("object_vectors.i8", [objects.vector_MD for objects, _, _ in kept]),
    ):
        files[name] = folders.Pieces(list(zip(arrays, keep, strict=True)))
    codes = [_kept_codes(coded, keep_M) for (_, coded, _), keep_M in zip(kept, keep, strict=True) if coded is not None]
    if codes:
        lists_M, codes_MB = (np.concatenate(arrays) for arrays in zip(*codes, strict=True))
        nlist = next(len(coded.start_L) - 1 for _, coded, _ in kept if coded is not None)
        files |= _by_list(lists_M, codes_MB, nlist)
    return files


def _kept_codes(coded: CodedObjects, keep_M: NDArray[np.bool_]) -> tuple[NDArray[np.int64], NDArray[np.uint8]]:
    """List and code of each object, back in order of rows."""
    lists_M, codes_MB = np.empty(len(coded), np.int64), np.empty_like(coded.codes_MB)
    lists_M[coded.place_M] = np.repeat(np.arange(len(coded.start_L) - 1), np.diff(coded.start_L))
    codes_MB[coded.place_M] = coded.codes_MB
    return lists_M[keep_M], codes_MB[keep_M]


def _by_row(objects: ObjectSet) -> Arrays:
    files = _of_rows(objects.row_I, objects.counts)
    return files | {"object_boxes.f32": objects.box_M4, "object_vectors.i8": objects.vector_MD}


def _of_rows(row_I: NDArray[np.uint64], counts_I: NDArray[np.int64]) -> Arrays:
    starts_I = np.concatenate([[0], np.cumsum(counts_I)]).astype(np.uint64)
    return {"object_rows.u64": row_I, "object_starts.u64": starts_I}


def _by_list(lists_M: NDArray[np.int64], codes_MB: NDArray[np.uint8], nlist: int) -> Arrays:
    order_M = np.argsort(lists_M, kind="stable")
    assert len(order_M) < 2**32, "a segment's objects are counted in 32 bits"
    starts_L = np.concatenate([[0], np.cumsum(np.bincount(lists_M, minlength=nlist))])
    return {
        _CODES: codes_MB[order_M],
        "object_places.u32": order_M.astype(np.uint32),
        "object_lists.u64": starts_L.astype(np.uint64),
    }
