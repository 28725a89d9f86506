"""Which rows count: alive at the asked moment and passing the filter, per segment, evaluated once per commit."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from stemma.config import LimitSettings
from stemma.errors import Unavailable
from stemma.index import filters

Mask = NDArray[np.bool_]
_TRIES = 3


class Snapshot(Protocol):
    """The catalog at a seq, as the index needs it (``stemma.catalog.Snapshot``)."""

    @property
    def seq(self) -> int: ...
    @property
    def row_R(self) -> NDArray[np.uint64]: ...  # noqa: N802 - the snapshot's array
    def live(self, as_of: int | None = None) -> Mask: ...


class Matching(Protocol):
    @property
    def columns(self) -> Mapping[str, Any]: ...
    def snapshot(self) -> Snapshot: ...
    def matching(self, condition: filters.Filter) -> Mask: ...


class Question(NamedTuple):
    """What decides which rows count; queries that share it share all masks."""

    filter: str | None
    as_of: int | None


class Places:
    """Where the rows of a segment or of the tail stand in a snapshot. Rows only append, so places rarely change."""

    def __init__(self) -> None:
        self._row_R: NDArray[np.uint64] = np.empty(0, np.uint64)
        self._places: dict[str, NDArray[np.int64]] = {}

    def move_to(self, row_R: NDArray[np.uint64]) -> None:
        known = len(self._row_R)
        if len(row_R) < known or not np.array_equal(row_R[:known], self._row_R):
            self._places.clear()
        if len(row_R) > known:
            # A segment may have been sealed from a commit that we read only now: look for its rows again.
            self._places = {key: places for key, places in self._places.items() if not (places < 0).any()}
        self._row_R = row_R

    def of(self, key: str, row_N: NDArray[np.uint64]) -> NDArray[np.int64]:
        """Place in the snapshot of each row, -1 where it is not there (any more, or yet)."""
        places = self._places.get(key)
        if places is None or len(places) != len(row_N):
            found_N = np.searchsorted(self._row_R, row_N)
            inside_N = np.minimum(found_N, max(len(self._row_R) - 1, 0))
            there_N = self._row_R[inside_N] == row_N if len(self._row_R) else np.zeros(len(row_N), bool)
            places = np.where(there_N, found_N, -1)
            self._places[key] = places
        return places

    def forget(self, key: str) -> None:
        self._places.pop(key, None)

    def forget_all_but(self, keys: set[str]) -> None:
        self._places = {key: places for key, places in self._places.items() if key in keys}


class Live:
    """The answer to one ``Question`` at one commit."""

    def __init__(self, live_R: Mask, places: Places) -> None:
        self.total = int(live_R.sum())
        self._live_R = np.append(live_R, False)  # place -1: a row that the catalog does not hold is dead
        self._places = places
        self._masks: dict[str, Mask] = {}

    def mask(self, key: str, row_N: NDArray[np.uint64]) -> Mask:
        """[N] which of the rows of segment (or tail) ``key`` count."""
        mask = self._masks.get(key)
        if mask is None:
            mask = self._masks[key] = self._live_R[self._places.of(key, row_N)]
        return mask

    def kept(self, key: str, make: Callable[[], Mask]) -> Mask:
        """What ``make`` derives from these masks, made once."""
        mask = self._masks.get(key)
        if mask is None:
            mask = self._masks[key] = make()
        return mask


class LiveCache:
    """The last ``kept_max`` questions of one commit."""

    def __init__(self, kept_max: int, limits: LimitSettings) -> None:
        self._kept_max = kept_max
        self._limits = limits
        self._kept: OrderedDict[Question, Live] = OrderedDict()

    def clear(self) -> None:
        self._kept.clear()

    def get(self, question: Question, snapshot: Snapshot, catalog: Matching, places: Places) -> Live:
        """Raises ``BadRequest`` for a filter that does not parse."""
        live = self._kept.get(question)
        if live is None:
            live_R = snapshot.live(question.as_of)
            if question.filter is not None:
                parsed = filters.parse(question.filter, catalog.columns, self._limits)
                live_R = live_R & _passing(catalog, parsed, snapshot.row_R)
            live = self._kept[question] = Live(live_R, places)
        self._kept.move_to_end(question)
        while len(self._kept) > self._kept_max:
            self._kept.popitem(last=False)
        return live


def _passing(catalog: Matching, parsed: filters.Filter, row_R: NDArray[np.uint64]) -> Mask:
    """[R] what passes, aligned with ``row_R`` even when the catalog commits meanwhile."""
    for _ in range(_TRIES):
        before = catalog.snapshot()
        passing_R, now_R = catalog.matching(parsed), before.row_R
        after = catalog.snapshot()
        if (after.seq, len(after.row_R)) != (before.seq, len(now_R)):
            continue
        if np.array_equal(now_R[: len(row_R)], row_R):
            return passing_R[: len(row_R)]
        place_R = np.minimum(np.searchsorted(now_R, row_R), max(len(now_R) - 1, 0))
        return passing_R[place_R] & (now_R[place_R] == row_R) if len(now_R) else np.zeros(len(row_R), bool)
    raise Unavailable("the collection changes faster than the filter is evaluated; ask again", retry_after_s=1)


def count_by_list(live_N: Mask, start_L: NDArray[np.int64]) -> NDArray[np.int64]:
    """Live rows [L] of each inverted list of a segment; ``start_L`` is [L + 1]."""
    before_N = np.concatenate([[0], np.cumsum(live_N)])
    return np.diff(before_N[start_L])
