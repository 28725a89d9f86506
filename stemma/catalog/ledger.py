"""What of each row is kept in memory: five numbers in numpy arrays (at most 64 bytes a row), no object per row.

Letters: R rows.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from stemma.catalog.encoding import Identities
from stemma.catalog.schema import FOREVER
from stemma.errors import BadRequest

Rows = NDArray[np.uint64]

_GROWTH = 8
"""An array grows by an eighth: 12.5 % of slack at most."""
_TAIL_MIN = 4_096
_TAIL_SHARE = 64
"""Hashes wait unsorted up to max(4096, rows / 64): a lookup compares those, sorting them in takes one pass."""


@dataclass(frozen=True, slots=True)
class Snapshot:
    """The collection at one seq; the arrays are aligned, ascending by row and never change."""

    seq: int
    row_R: Rows
    added_R: Rows
    """The seq that stored the row."""
    deleted_R: Rows
    """The seq that ended it; 2**64 - 1 while it lives."""
    horizon: int = 0
    """Rows deleted at or before this seq may have been dropped: nothing older can be asked for."""

    def live(self, as_of: int | None = None) -> NDArray[np.bool_]:
        """[R] True where the row was there at ``as_of`` (added <= t < deleted); None is this snapshot's seq.

        Raises BadRequest for a time whose rows compaction has dropped.
        """
        time = self.seq if as_of is None else as_of
        if time < self.horizon:
            raise BadRequest(f"the history before version {self.horizon} was dropped", subject=f"as_of={time}")
        live: NDArray[np.bool_] = (self.added_R <= time) & (time < self.deleted_R)
        return live

    def count(self, as_of: int | None = None) -> int:
        """Images that were there at ``as_of``."""
        return int(np.count_nonzero(self.live(as_of)))


class Ledger:
    """Rows in order, when each was added and deleted, and lookup by two 64-bit hashes (id, SHA-256).

    A hash only nominates: whoever looks up reads the row and compares.
    """

    def __init__(self) -> None:
        self._size = 0
        self._row = self._added = self._deleted = np.empty(0, np.uint64)
        self._deleted_shared = False
        self.keys = HashIndex()
        self.shas = HashIndex()

    def __len__(self) -> int:
        return self._size

    def snapshot(self, seq: int, horizon: int) -> Snapshot:
        """Views, not copies: rows are only ever appended behind them, and ``kill`` copies before it writes."""
        self._deleted_shared = True
        row_R, added_R, deleted_R = (_view(array, self._size) for array in (self._row, self._added, self._deleted))
        return Snapshot(seq, row_R, added_R, deleted_R, horizon)

    def extend(self, new: Identities) -> list[NDArray[np.int64]]:
        """Append rows; returns groups of positions (ascending) whose ids may be the same, each holding a new one."""
        before, count = self._size, len(new.row_R)
        assert count == 0 or before == 0 or new.row_R[0] > self._row[before - 1], "rows go up"
        assert np.all(new.row_R[1:] > new.row_R[:-1]), "rows go up"
        self._reserve(before + count)
        self._row[before : before + count] = new.row_R
        self._added[before : before + count] = new.seq_R
        self._deleted[before : before + count] = FOREVER
        self._size += count
        self.keys.extend(new.key_R)
        self.shas.extend(new.sha_R)
        return list(self.keys.groups(before))

    def kill(self, at_N: NDArray[np.int64], seq_N: Rows) -> None:
        """End rows' lives, unless they ended earlier: the order in which ends are learnt does not matter."""
        if not len(at_N):
            return
        if self._deleted_shared:
            self._deleted = self._deleted.copy()
            self._deleted_shared = False
        np.minimum.at(self._deleted, at_N, seq_N)

    def added(self, position: int) -> int:
        return int(self._added[position])

    def positions(self, row_N: Rows) -> NDArray[np.int64]:
        """Where the rows stand; -1 for one that is not there."""
        at = np.searchsorted(self._row[: self._size], row_N)
        found = at < self._size
        found[found] = self._row[at[found]] == row_N[found]
        return np.where(found, at, -1)

    def bytes_per_row(self) -> float:
        """Memory of the arrays, slack included."""
        arrays = (self._row, self._added, self._deleted)
        total = sum(array.nbytes for array in arrays) + self.keys.nbytes + self.shas.nbytes
        return total / max(1, self._size)

    def _reserve(self, size: int) -> None:
        if size <= len(self._row):
            return
        capacity = size if self._size == 0 else max(size, self._size + self._size // _GROWTH + 64)
        for name in ("_row", "_added", "_deleted"):
            grown = np.empty(capacity, np.uint64)
            grown[: self._size] = getattr(self, name)[: self._size]
            setattr(self, name, grown)
        self._deleted_shared = False


def _view(array: Rows, size: int) -> Rows:
    view = array[:size]
    view.flags.writeable = False
    return view


class HashIndex:
    """Positions by a 64-bit hash: a sorted body, and a short unsorted tail that is sorted in now and then."""

    def __init__(self) -> None:
        self._sorted = np.empty(0, np.uint64)
        self._order = np.empty(0, np.uint32)
        self._tail = np.empty(0, np.uint64)

    @property
    def nbytes(self) -> int:
        return self._sorted.nbytes + self._order.nbytes + self._tail.nbytes

    def __len__(self) -> int:
        return len(self._sorted) + len(self._tail)

    def extend(self, hash_N: Rows) -> None:
        self._tail = np.concatenate([self._tail, hash_N])
        if len(self._tail) > max(_TAIL_MIN, len(self._sorted) // _TAIL_SHARE):
            self._sort_in()

    def find(self, hashed: int) -> NDArray[np.int64]:
        """Positions with this hash, ascending."""
        value = np.uint64(hashed)
        lo, hi = np.searchsorted(self._sorted, value, "left"), np.searchsorted(self._sorted, value, "right")
        late = np.flatnonzero(self._tail == value) + len(self._sorted)
        return np.concatenate([np.sort(self._order[lo:hi]).astype(np.int64), late])

    def groups(self, since: int) -> Iterator[NDArray[np.int64]]:
        """Positions that share a hash, for every hash that a position >= ``since`` has and another one too."""
        if since >= len(self._sorted):
            # Few and recent: the repeated ones among the tail, and those that the body has already.
            new = self._tail[since - len(self._sorted) :]
            seen = np.isin(new, self._tail[: since - len(self._sorted)])
            values, counts = np.unique(new, return_counts=True)
            repeated = values[self._in_body(values) | (counts > 1) | np.isin(values, new[seen])]
        else:
            assert len(self._tail) == 0, "what is new was just sorted in"
            repeated = np.unique(self._sorted[1:][self._sorted[1:] == self._sorted[:-1]])
        for value in repeated:
            group = self.find(int(value))
            if len(group) > 1 and group[-1] >= since:
                yield group

    def _in_body(self, values: Rows) -> NDArray[np.bool_]:
        at = np.searchsorted(self._sorted, values)
        inside = at < len(self._sorted)
        inside[inside] = self._sorted[at[inside]] == values[inside]
        return inside

    def _sort_in(self) -> None:
        hash_N = np.concatenate([self._sorted, self._tail])
        assert len(hash_N) < 2**32, "positions are kept in 32 bits"
        order = np.concatenate([self._order, np.arange(len(self._sorted), len(hash_N), dtype=np.uint32)])
        by_hash = np.argsort(hash_N, kind="stable")
        self._sorted, self._order, self._tail = hash_N[by_hash], order[by_hash], np.empty(0, np.uint64)
