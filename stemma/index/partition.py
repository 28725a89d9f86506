"""What one host does: it holds segments and tail blocks of a collection and answers queries over them.

Embedded, one Partition holds everything; on a cluster each host holds those units that the routing gives it. Ids and
distances are the same to the bit for every split (docs/decisions/0002).
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from stemma.config import Settings
from stemma.errors import Conflict, Corrupt, NotFound, Unavailable
from stemma.flow import AnyQuery, HostReply, ObjectQuery, ShardQuery, Unit
from stemma.index.call import Call, Counted, Selection
from stemma.index.codec import Codec, faiss
from stemma.index.live import LiveCache, Places, Question, Snapshot, count_by_list
from stemma.index.object_call import ObjectCall
from stemma.index.objects import TAIL as OBJECT_TAIL
from stemma.index.objects import ObjectIndex, ObjectSelection
from stemma.index.search import ExactBlock, Stack
from stemma.index.segment import FOLDER, Name, Segment, chosen, names
from stemma.index.tail import ImageBlock, Tail

SELECTIONS_KEPT = 4
"""Stacks of segments that are kept ready: one routing uses one, a change of routing two."""
_TAIL = "tail"

Owns = Callable[[Unit], bool]


class Readable(Protocol):
    """What the index needs of a catalog (``stemma.catalog.Catalog``)."""

    @property
    def seq(self) -> int: ...
    @property
    def columns(self) -> Mapping[str, Any]: ...
    def refresh(self) -> int: ...
    def snapshot(self) -> Snapshot: ...
    def read(self, rows: NDArray[np.uint64], columns: Sequence[str]) -> dict[str, Any]: ...
    def scan(self, columns: Sequence[str], *, rows: tuple[int, int] | None = None) -> Iterator[Mapping[str, Any]]: ...
    def matching(self, condition: Any) -> NDArray[np.bool_]: ...


class Partition:
    """The units of a collection that one host serves. Thread-safe; searches run one at a time.

    ``root`` is the collection's folder (segments are in ``root/segments``), ``scale`` the encoder card's. Raises
    ``Conflict`` when the codec was trained for another scale. Sets faiss to one thread in this process.

    With ``pinned`` it stays with these segments whatever is sealed or merged meanwhile (one that it has opened goes on
    answering when its folder is gone), and new rows go on arriving in its tail. A host that must answer under the old
    and the new segments for a while opens one partition ``beside`` the other: they share what is opened.
    """

    def __init__(
        self,
        catalog: Readable,
        root: Path,
        settings: Settings,
        *,
        scale: float,
        codec: Codec,
        owns: Owns | None = None,
        pinned: Sequence[Unit] | None = None,
        beside: Partition | None = None,
    ) -> None:
        if codec.scale is not None and codec.scale != scale:
            detail = f"the codec was trained for scale {codec.scale}, the weights have {scale}; train it again"
            raise Conflict(detail, subject=codec.id)
        faiss.omp_set_num_threads(1)  # docs/facts.md B4: oversubscribed OpenMP made p99 114 ms
        self._catalog, self._root, self._settings = catalog, root, settings
        self._scale, self.codec = scale, codec
        self._owns: Owns = owns or _everything
        self._refreshing, self._searching = threading.Lock(), threading.RLock()
        self._pinned = None if pinned is None else frozenset(pinned)
        self._opened: dict[Name, Segment] = {} if beside is None else dict(beside._opened)
        self._damaged: dict[Name, tuple[int, int] | None] = {}
        """Segments left out, with the folder that was looked at: maintenance puts a new one in its place."""
        self._blocks: dict[str, ExactBlock] = {} if beside is None else dict(beside._blocks)
        self._segments: tuple[Segment, ...] = ()
        self._tail = Tail(settings.search.tail_block_rows, ImageBlock())
        self._snapshot = catalog.snapshot()
        self._seq = -1
        self._places = Places()
        self._live = LiveCache(settings.search.filter_cache_max, settings.limits)
        self._selections: OrderedDict[tuple[Unit, ...], Selection] = OrderedDict()
        sharing = None if beside is None else beside._objects
        self._objects: ObjectIndex = ObjectIndex(codec, settings.search.tail_block_rows, sharing)
        self._tail_rows = (0, 0)
        self.damaged: tuple[str, ...] = ()
        """Segments left out at the last refresh because they are torn or corrupt."""
        self.last_timings_ms: dict[str, float] = {}
        self.refresh()

    @property
    def seq(self) -> int:
        """The commit up to which this partition answers."""
        return self._seq

    @property
    def units(self) -> tuple[Unit, ...]:
        """What it could serve now: opened segments and its blocks of the tail."""
        with self._searching:
            return (*(segment.unit for segment in self._segments), *self._tail.units)

    def adopt(self, owns: Owns | None) -> None:
        """Changes which units are held (None: all), and loads them."""
        with self._searching:
            self._owns = owns or _everything
            self._seq = -1
        self.refresh()

    def refresh(self) -> int:
        """Reads what was committed and sealed since; returns the seq. Searches go on while segments are opened."""
        with self._refreshing:
            self._catalog.refresh()
            found = self._open_new()
            with self._searching:
                self._move_to(found)
            return self._seq

    def _open_new(self) -> list[Name]:
        """Opens what is owned and new; returns all segments there are. A damaged one is tried again when replaced."""
        listed = names(self._root, self.codec)
        if self._pinned is not None:
            listed = [name for name in {*listed, *self._opened} if name.unit in self._pinned]
        found = chosen(listed)
        for name in found:
            if not self._owns(name.unit) or self._opened.get(name) is not None:
                continue
            identity = self._identity(name)
            if self._damaged.get(name) == identity:
                continue
            try:
                self._opened[name] = Segment.open(self._folder(name), self.codec, verify=True)
                self._damaged.pop(name, None)
            except Corrupt:
                if self._identity(name) is None:  # merged away since it was listed: look again
                    return self._open_new()
                self._damaged[name] = identity
        return found

    def _folder(self, name: Name) -> Path:
        return self._root / FOLDER / name.text

    def _identity(self, name: Name) -> tuple[int, int] | None:
        try:
            status = self._folder(name).stat()
        except FileNotFoundError:
            return None
        return status.st_ino, status.st_mtime_ns

    def _move_to(self, found: Sequence[Name]) -> None:
        self._opened = {name: segment for name, segment in self._opened.items() if name in found}
        self._damaged = {name: identity for name, identity in self._damaged.items() if name in found}
        self.damaged = tuple(name.text for name in self._damaged if self._owns(name.unit))
        segments = tuple(self._opened[name] for name in found if name in self._opened and self._owns(name.unit))
        snapshot = self._catalog.snapshot()
        row_R = snapshot.row_R
        if snapshot.seq == self._seq and segments == self._segments and len(row_R) == len(self._snapshot.row_R):
            return
        self._segments = segments
        self._snapshot = snapshot
        self._places.move_to(row_R)
        self._places.forget_all_but({_TAIL, *(segment.id for segment in segments), *self._objects.keep(segments)})
        self._live.clear()
        self._selections.clear()
        self._blocks = {segment.id: self._blocks[segment.id] for segment in segments if segment.id in self._blocks}
        sealed_hi = max((name.row_hi for name in found), default=0)
        self._tail_rows = sealed_hi, int(row_R[-1]) + 1 if len(row_R) else 0
        before = self._tail.block
        self._tail.update(self._catalog, *self._tail_rows, self._owns)
        if self._tail.block is not before:
            self._places.forget(_TAIL)
        self._seq = snapshot.seq

    def search(self, queries: Sequence[AnyQuery], owns: Owns | None = None) -> list[HostReply]:
        """One reply per query, over the held units that ``owns`` admits (None: all of them).

        To an ``ObjectQuery`` the hits are ``ObjectHit``: images by their nearest object (OE-SIR, eq. 7).

        Raises ``Unavailable`` when a query asks for a commit that cannot be read yet, ``BadRequest`` for a filter that
        does not parse, ``Corrupt`` when the catalog's row of a hit is damaged.
        """
        if self._catalog.seq != self._seq or any(_needed_seq(query) > self._seq for query in queries):
            self.refresh()
        for query in queries:
            if _needed_seq(query) > self._seq:
                detail = f"commit {_needed_seq(query)} is not here yet (read up to {self._seq}); ask again"
                raise Unavailable(detail, subject="min_version", retry_after_s=1)
        try:
            return self._search(queries, owns or _everything)
        except NotFound:  # a row died and was compacted away since we read: once more, without it
            self.refresh()
            return self._search(queries, owns or _everything)

    def _search(self, queries: Sequence[AnyQuery], owns: Owns) -> list[HostReply]:
        with self._searching:
            selection = self._select(owns)
            count = partial(self._count, selection)
            by_image = {at: query for at, query in enumerate(queries) if isinstance(query, ShardQuery)}
            by_object = {at: query for at, query in enumerate(queries) if isinstance(query, ObjectQuery)}
            replies: dict[int, HostReply] = {}
            if by_image:
                call = Call(self._catalog, self.codec, selection, count, scale=self._scale, seq=self._seq)
                replies |= zip(by_image, call.replies(list(by_image.values())), strict=True)
                self.last_timings_ms = call.timings_ms
            if by_object:
                objects = self._select_objects(selection)
                object_call = ObjectCall(self._catalog, self.codec, objects, count, seq=self._seq)
                replies |= zip(by_object, object_call.replies(list(by_object.values())), strict=True)
                self.last_timings_ms = object_call.timings_ms
            return [replies[at] for at in range(len(queries))]

    def _select_objects(self, selection: Selection) -> ObjectSelection:
        if self._objects.update_tail(self._catalog, *self._tail_rows, self._owns):
            self._places.forget(OBJECT_TAIL)
        return self._objects.select(selection.segments, selection.tail_units)

    def _select(self, owns: Owns) -> Selection:
        units = tuple(unit for unit in self.units if owns(unit))
        selection = self._selections.get(units)
        if selection is None:
            segments = tuple(segment for segment in self._segments if segment.unit in units)
            blocks = tuple(self._block(segment) for segment in segments) if self.codec.exact else ()
            stack = None if self.codec.exact else Stack(self.codec, segments)
            tail_units = frozenset(unit for unit in units if unit.kind == "tail")
            selection = Selection(segments, blocks, stack, self._tail.block, tail_units)
            self._selections[units] = selection
        self._selections.move_to_end(units)
        while len(self._selections) > SELECTIONS_KEPT:
            self._selections.popitem(last=False)
        return selection

    def _block(self, segment: Segment) -> ExactBlock:
        block = self._blocks.get(segment.id)
        if block is None:
            block = self._blocks[segment.id] = ExactBlock()
            block.add(segment.row_N, segment.vectors_ND)
        return block

    def _count(self, selection: Selection, question: Question) -> Counted:
        """Which rows of the selection count under ``question``, and how many there are in all."""
        live = self._live.get(question, self._snapshot, self._catalog, self._places)
        masks = tuple(live.mask(segment.id, segment.row_N) for segment in selection.segments)
        tail_N = live.mask(_TAIL, selection.tail.row_N)
        if len(selection.tail_units) != len(self._tail.units):
            tail_N = tail_N & self._tail.unit_mask(selection.tail_units)
        live_L = np.zeros(self.codec.nlist, np.int64)
        for segment, mask in zip(selection.segments, masks, strict=True):
            live_L += count_by_list(mask, segment.start_L)
        return Counted(live, masks, tail_N, live_L, int(live_L.sum() + tail_N.sum()))


def _everything(unit: Unit) -> bool:  # noqa: ARG001 - the default of `owns`
    return True


def _needed_seq(query: AnyQuery) -> int:
    return max(query.min_version or 0, query.as_of or 0)
