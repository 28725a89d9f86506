"""Keeping the index in shape: sealing tails, merging segments, rewriting and rebuilding them. Safe to kill anywhere.

Every step writes a whole new folder (synced, renamed) before it takes an old one away, so a crash leaves leftovers or
two segments over the same rows, never a gap that was not there before; the next run, or any reader, prefers the larger
range. One process at a time may run it: the committer of the collection.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from stemma.config import SearchSettings, Settings
from stemma.errors import Corrupt
from stemma.index import folder as folders
from stemma.index.codec import Codec
from stemma.index.object_set import read_objects
from stemma.index.segment import FOLDER, Name, Segment, chosen, names
from stemma.index.tail import Scanned, read_vectors

Progress = Callable[[str, int], None]
"""Called after each step with what was done (built, merged, rewritten) and the rows of the new segment."""


class Dated(Protocol):
    """A snapshot as maintenance needs it (``stemma.catalog.Snapshot``)."""

    @property
    def row_R(self) -> NDArray[np.uint64]: ...  # noqa: N802 - the snapshot's array
    @property
    def deleted_R(self) -> NDArray[np.uint64]: ...  # noqa: N802
    @property
    def horizon(self) -> int: ...


class Maintained(Scanned, Protocol):
    def refresh(self) -> int: ...
    def snapshot(self) -> Dated: ...


@dataclass(frozen=True, slots=True)
class Maintenance:
    """What one run did, as names of segments (``removed``: leftovers and segments that others replace)."""

    built: tuple[str, ...] = ()
    merged: tuple[str, ...] = ()
    rewritten: tuple[str, ...] = ()
    removed: tuple[str, ...] = ()


def maintain(
    catalog: Maintained,
    root: Path,
    codec: Codec,
    settings: Settings,
    progress: Progress | None = None,
    *,
    verify: bool = True,
) -> Maintenance:
    """Brings the segments of ``codec`` under ``root`` up to date with the catalog; does nothing when they are.

    Rebuilds damaged and missing segments from the catalog, seals a tail of more than ``tail_rows_max`` rows, rewrites
    segments with more than ``dead_share_max`` dead rows, merges ``merge_fanin`` neighbours of one size. A row is dead
    to the index when no moment that can still be asked about sees it; deleted rows before that serve ``as_of``.
    Segments of other codecs are left alone. Without ``verify`` a damaged segment is noticed by its sizes alone; with it
    every segment is read once (about 1 s per gigabyte).
    """
    catalog.refresh()
    run = _Run(catalog, root, codec, settings.search, progress or _silent, _askable(catalog.snapshot()))
    run.removed += folders.remove_leftovers(root / FOLDER)
    run.repair(verify=verify)
    run.remove_covered()
    run.seal_tail()
    run.rewrite()
    run.merge()
    return Maintenance(tuple(run.built), tuple(run.merged), tuple(run.rewritten), tuple(run.removed))


def _askable(snapshot: Dated) -> NDArray[np.uint64]:
    """Rows that some moment at or after the horizon sees, ascending."""
    return snapshot.row_R[snapshot.deleted_R > np.uint64(snapshot.horizon)]


def _silent(what: str, rows: int) -> None:
    pass


@dataclass(slots=True)
class _Run:
    catalog: Scanned
    root: Path
    codec: Codec
    search: SearchSettings
    progress: Progress
    row_R: NDArray[np.uint64]
    built: list[str] = field(default_factory=list)
    merged: list[str] = field(default_factory=list)
    rewritten: list[str] = field(default_factory=list)
    removed: list[str] = field(default_factory=list)
    segments: list[Segment] = field(default_factory=list)
    """Those that answer, opened and verified, in order of rows."""

    def repair(self, *, verify: bool) -> None:
        """Opens the chosen segments; builds anew those that are damaged, and what is missing between them."""
        lo = 0
        for name in chosen(names(self.root, self.codec)):
            if lo < name.row_lo and self._rows_between(lo, name.row_lo):
                self._build(lo, name.row_lo)
            try:
                segment = Segment.open(self._folder(name), self.codec, verify=verify)
            except Corrupt:
                self._remove(name.text)
                self._build(name.row_lo, name.row_hi)
            else:
                self.segments.append(segment)
            lo = name.row_hi

    def remove_covered(self) -> None:
        """What a crash left beside the segment that replaces it."""
        kept = {segment.id for segment in self.segments}
        for name in names(self.root, self.codec):
            if name.text not in kept:
                self._remove(name.text)

    def seal_tail(self) -> None:
        """Whole blocks alone are sealed, so that the rest of the tail keeps its units."""
        lo = self.segments[-1].row_hi if self.segments else 0
        tail_R = self.row_R[np.searchsorted(self.row_R, lo) :]
        if len(tail_R) <= self.search.tail_rows_max:
            return
        hi = int(tail_R[-1]) + 1
        block_hi = hi - hi % self.search.tail_block_rows
        hi = block_hi if np.searchsorted(tail_R, block_hi) else hi
        while lo < hi and self._rows_between(lo, hi):
            first = np.searchsorted(self.row_R, lo)
            beyond = first + self.search.segment_rows_max
            to = min(hi, int(self.row_R[beyond]) if beyond < len(self.row_R) else hi)
            self._build(lo, to)
            lo = to

    def rewrite(self) -> None:
        for at, segment in enumerate(self.segments):
            dead = len(segment) - int(np.isin(segment.row_N, self.row_R).sum())
            if dead > self.search.dead_share_max * len(segment):
                self._replace(at, at + 1, self.rewritten, "rewritten")

    def merge(self) -> None:
        """Merges ``merge_fanin`` neighbours at a time, smallest first, until no more fit together."""
        while (start := self._mergeable()) is not None:
            self._replace(start, start + self.search.merge_fanin, self.merged, "merged")

    def _mergeable(self) -> int | None:
        fanin = self.search.merge_fanin
        levels = [_level(len(segment), self.search.tail_rows_max, fanin) for segment in self.segments]
        for ceiling in sorted(set(levels)):
            for start in range(len(levels) - fanin + 1):
                window = slice(start, start + fanin)
                rows = sum(len(segment) for segment in self.segments[window])
                if max(levels[window]) <= ceiling and rows <= self.search.segment_rows_max:
                    return start
        return None

    def _replace(self, start: int, stop: int, done: list[str], what: str) -> None:
        parts = self.segments[start:stop]
        segment = Segment.join(self.root, self.codec, parts, self.row_R)
        for part in parts:
            if part.id != segment.id:
                self._remove(part.id)
        self.segments[start:stop] = [segment]
        done.append(segment.id)
        self.progress(what, len(segment))

    def _build(self, lo: int, hi: int) -> None:
        row_N, vectors_ND = read_vectors(self.catalog, lo, hi)
        askable_N = np.isin(row_N, self.row_R)
        parts = (row_N[askable_N], vectors_ND[askable_N], lo, hi, read_objects(self.catalog, lo, hi))
        segment = Segment.build(self.root, self.codec, *parts)
        self.segments.append(segment)
        self.built.append(segment.id)
        self.progress("built", len(segment))

    def _rows_between(self, lo: int, hi: int) -> int:
        first, end = np.searchsorted(self.row_R, [lo, hi])
        return int(end - first)

    def _folder(self, name: Name) -> Path:
        return self.root / FOLDER / name.text

    def _remove(self, segment_id: str) -> None:
        folders.remove_folder(self.root / FOLDER / segment_id)
        self.removed.append(segment_id)


def _level(rows: int, base: int, fanin: int) -> int:
    """0 for a sealed tail, 1 for ``fanin`` of them, and so on; rounded, because tails are sealed a little early."""
    return max(0, round(math.log(max(rows, 1) / base, fanin)))
