"""Objects of many rows, by row: what the tail reads, what a segment holds, and where pairs are scored exactly.

Shape letters: I rows that have objects, M objects, D 256, V views and O objects of a query, C candidate images.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from stemma.flow import OBJECT_DIM, Objects

Rows = NDArray[np.uint64]


class Scanned(Protocol):
    def scan(self, columns: list[str], *, rows: tuple[int, int] | None = None) -> Iterator[Mapping[str, Any]]: ...


@dataclass(frozen=True, slots=True)
class ObjectSet:
    """Objects in order of rows; those of ``row_I[i]`` stand at ``start_I[i]:start_I[i + 1]``, as the catalog has them.

    A row without objects is not in it. Arrays may be views of mapped files.
    """

    row_I: Rows
    start_I: NDArray[np.int64]
    """[I + 1]"""
    box_M4: NDArray[np.float32]
    vector_MD: NDArray[np.int8]

    @property
    def count(self) -> int:
        """Objects, of all rows together."""
        return len(self.vector_MD)

    @classmethod
    def of(cls, row_R: Rows, objects_R: Sequence[Objects]) -> ObjectSet:
        """Those of ``row_R``, which ascends."""
        count_R = np.fromiter((len(one) for one in objects_R), np.int64, len(objects_R))
        boxes = [np.empty((0, 4), np.float32), *(one.box_O4 for one in objects_R)]
        vectors = [np.empty((0, OBJECT_DIM), np.int8), *(one.embedding_OD for one in objects_R)]
        return cls(
            np.asarray(row_R, np.uint64)[count_R > 0],
            _starts(count_R[count_R > 0]),
            np.concatenate(boxes),
            np.concatenate(vectors),
        )

    @classmethod
    def join(cls, parts: Sequence[ObjectSet]) -> ObjectSet:
        """``parts`` one after the other; their rows must ascend. The only one that holds anything is not copied."""
        filled = [part for part in parts if part.count]
        if len(filled) == 1:
            return filled[0]
        if not filled:
            return cls.of(np.empty(0, np.uint64), [])
        row_I = np.concatenate([part.row_I for part in filled])
        assert (row_I[:-1] < row_I[1:]).all(), "objects stand in the order of their rows"
        return cls(
            row_I,
            _starts(np.concatenate([part.counts for part in filled])),
            np.concatenate([part.box_M4 for part in filled]),
            np.concatenate([part.vector_MD for part in filled]),
        )

    @property
    def counts(self) -> NDArray[np.int64]:
        return np.diff(self.start_I)

    def only(self, keep_I: NDArray[np.bool_]) -> ObjectSet:
        """The objects of these rows."""
        if keep_I.all():
            return self
        keep_M = self.of_objects(keep_I)
        return ObjectSet(self.row_I[keep_I], _starts(self.counts[keep_I]), self.box_M4[keep_M], self.vector_MD[keep_M])

    def of_objects(self, value_I: NDArray[Any]) -> NDArray[Any]:
        """[M] what is said of each row, for each of its objects."""
        return np.repeat(value_I, self.counts)

    def rows_at(self, position_C: NDArray[np.int64]) -> Rows:
        """The rows that objects belong to."""
        return self.row_I[np.searchsorted(self.start_I, position_C, side="right") - 1]

    def find(self, row_C: Rows) -> NDArray[np.int64]:
        """The place of each row in ``row_I``, -1 where it is not here."""
        if not len(self.row_I):
            return np.full(len(row_C), -1, np.int64)
        place_C = np.minimum(np.searchsorted(self.row_I, row_C), len(self.row_I) - 1)
        return np.where(self.row_I[place_C] == row_C, place_C, -1)


def _starts(count_I: NDArray[np.int64]) -> NDArray[np.int64]:
    return np.concatenate([[0], np.cumsum(count_I)]).astype(np.int64)


NO_OBJECTS = ObjectSet.of(np.empty(0, np.uint64), [])


def read_objects(catalog: Scanned, row_lo: int, row_hi: int) -> ObjectSet:
    """Objects of all rows that the catalog holds in [row_lo, row_hi), dead ones included."""
    parts = [
        ObjectSet.of(np.asarray(batch["row"], np.uint64), batch["objects"])
        for batch in catalog.scan(["row", "objects"], rows=(row_lo, row_hi))
    ]
    return ObjectSet.join(parts)


class Pair(NamedTuple):
    """The nearest pair of objects of a query and of one image (OE-SIR, eq. 7 and 8)."""

    distance: int
    """Squared, in int8 units: exact."""
    query_object: int
    donor_object: int
    mirrored: bool
    donor_box: tuple[float, float, float, float]


def nearest_pairs(query_VOD: NDArray[np.int8], objects: ObjectSet, place_C: NDArray[np.int64]) -> list[Pair]:
    """For each image at ``place_C`` in ``objects`` the first nearest pair in the order (query object, image's object,
    upright before mirrored), over all pairs: min over i, j of ||x_i - x_j||^2.

    Sums of products of int8 stay within 2**24, so float32 holds them whatever the order of summation.
    """
    views, count = query_VOD.shape[:2]
    query_QD = np.ascontiguousarray(query_VOD.transpose(1, 0, 2)).reshape(-1, OBJECT_DIM).astype(np.float32)
    square_Q = np.einsum("qd,qd->q", query_QD, query_QD)
    pairs = []
    for place in place_C.tolist():
        lo, hi = int(objects.start_I[place]), int(objects.start_I[place + 1])
        vector_JD = objects.vector_MD[lo:hi].astype(np.float32)
        square_J = np.einsum("jd,jd->j", vector_JD, vector_JD)
        distance_QJ = (square_Q[:, None] + square_J[None]) - 2 * (query_QD @ vector_JD.T)
        distance_OJV = distance_QJ.reshape(count, views, hi - lo).transpose(0, 2, 1)
        first = int(distance_OJV.argmin())
        i, j, view = (int(at) for at in np.unravel_index(first, distance_OJV.shape))
        x0, y0, x1, y1 = objects.box_M4[lo + j].tolist()
        pairs.append(Pair(int(distance_OJV[i, j, view]), i, j, view > 0, (x0, y0, x1, y1)))
    return pairs
