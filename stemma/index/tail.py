"""The tail: committed rows that no segment holds yet, read from the catalog and searched exactly at once.

Placed on hosts in blocks of ``tail_block_rows``; a host reads its own blocks alone, so its memory is bounded by what it
serves (264 bytes a row, and where it is asked by objects, 536 an object). Images and objects are read apart.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any, Generic, Protocol, Self, TypeVar

import numpy as np
from numpy.typing import NDArray

from stemma.flow import EMBEDDING_DIM, Unit
from stemma.index.search import ExactBlock


class Scanned(Protocol):
    """What the tail needs of a catalog."""

    def scan(self, columns: list[str], *, rows: tuple[int, int] | None = None) -> Iterator[Mapping[str, Any]]: ...


Block = TypeVar("Block", bound="Kept")


def tail_units(row_lo: int, row_hi: int, block_rows: int) -> tuple[Unit, ...]:
    """The blocks over rows [row_lo, row_hi): full blocks as they will be, except where a segment cuts the first short.

    A block's end does not move while it fills, so that a commit changes no unit and only a new block adds one.
    """
    if row_lo >= row_hi:
        return ()
    numbers = range(row_lo // block_rows, (row_hi - 1) // block_rows + 1)
    return tuple(Unit(max(row_lo, n * block_rows), (n + 1) * block_rows, "tail") for n in numbers)


def read_vectors(catalog: Scanned, row_lo: int, row_hi: int) -> tuple[NDArray[np.uint64], NDArray[np.int8]]:
    """Rows [N] and embeddings [N, 256] that the catalog holds in [row_lo, row_hi), dead ones included, by row."""
    rows, vectors = [np.empty(0, np.uint64)], [np.empty((0, EMBEDDING_DIM), np.int8)]
    for batch in catalog.scan(["row", "embedding"], rows=(row_lo, row_hi)):
        rows.append(np.asarray(batch["row"], np.uint64))
        vectors.append(np.asarray(batch["embedding"], np.int8).reshape(-1, EMBEDDING_DIM))
    return np.concatenate(rows), np.concatenate(vectors)


class Kept(Protocol):
    """What a tail keeps in memory of its rows."""

    @property
    def row_N(self) -> NDArray[np.uint64]: ...  # noqa: N802 - an array

    def __len__(self) -> int: ...
    def extend(self, catalog: Scanned, row_lo: int, row_hi: int) -> None:
        """Read these rows as well, of which none is here yet."""
        ...

    def only(self, keep_N: NDArray[np.bool_]) -> Self: ...


class ImageBlock(ExactBlock):
    """The embeddings of the tail."""

    def extend(self, catalog: Scanned, row_lo: int, row_hi: int) -> None:
        self.add(*read_vectors(catalog, row_lo, row_hi))

    def only(self, keep_N: NDArray[np.bool_]) -> ImageBlock:
        kept, at_N = ImageBlock(), np.flatnonzero(keep_N)
        kept.add(self.row_N[at_N], self.vectors_at(at_N))
        return kept


class Tail(Generic[Block]):
    """The blocks of the tail that one host serves."""

    def __init__(self, block_rows: int, block: Block) -> None:
        self._block_rows = block_rows
        self._read_hi: dict[int, int] = {}
        """By number of block: rows below this one are in ``block``."""
        self.block = block
        self.units: tuple[Unit, ...] = ()

    def __len__(self) -> int:
        return len(self.block)

    def update(self, catalog: Scanned, row_lo: int, row_hi: int, owns: Callable[[Unit], bool]) -> None:
        """Holds exactly the owned rows of [row_lo, row_hi); reads those alone that are new here."""
        units = tuple(unit for unit in tail_units(row_lo, row_hi, self._block_rows) if owns(unit))
        self._forget({unit.row_lo // self._block_rows for unit in units}, row_lo)
        for lo, hi in self._unread(units, row_hi):
            self.block.extend(catalog, lo, hi)
            for number in range(lo // self._block_rows, (hi - 1) // self._block_rows + 1):
                self._read_hi[number] = min((number + 1) * self._block_rows, hi)
        self.units = units

    def unit_mask(self, units: frozenset[Unit]) -> NDArray[np.bool_]:
        """Which rows of ``block`` are in these units."""
        kept = np.fromiter((unit.row_lo // self._block_rows for unit in units if unit.kind == "tail"), np.uint64)
        return np.isin(self.block.row_N // np.uint64(self._block_rows), kept)

    def _unread(self, units: tuple[Unit, ...], row_hi: int) -> list[tuple[int, int]]:
        """Ranges to read, neighbours joined."""
        ranges: list[tuple[int, int]] = []
        for unit in units:
            lo = max(unit.row_lo, self._read_hi.get(unit.row_lo // self._block_rows, 0))
            hi = min(unit.row_hi, row_hi)
            if lo >= hi:
                continue
            if ranges and ranges[-1][1] == lo:
                ranges[-1] = (ranges[-1][0], hi)
            else:
                ranges.append((lo, hi))
        return ranges

    def _forget(self, blocks: set[int], row_lo: int) -> None:
        row_N = self.block.row_N
        number_N = row_N // np.uint64(self._block_rows)
        keep_N = np.isin(number_N, np.fromiter(blocks, np.uint64)) & (row_N >= row_lo)
        if not keep_N.all():
            self.block = self.block.only(keep_N)
        self._read_hi = {number: hi for number, hi in self._read_hi.items() if number in blocks}
