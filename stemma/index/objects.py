"""Search by objects: images of which some object is near some object of the query (OE-SIR, section 3.1, eq. 7).

D(query, image) = min over i, j of ||x_i - x_j||^2, so the nearest image is that of the nearest object; but many near
objects may be of one image, and k means k images: a scan goes deeper until so many *distinct* images are complete.

Shape letters: as in ``search.py``, and M objects, I rows that have objects, O objects of a query.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from stemma.flow import Unit
from stemma.index.codec import Codec
from stemma.index.live import Live, Mask
from stemma.index.object_files import CodedObjects
from stemma.index.object_set import NO_OBJECTS, ObjectSet, Rows, read_objects
from stemma.index.search import DEEPER, SLACK_ROWS, ExactBlock, Float32, Need, Positions, Source, Stack
from stemma.index.segment import Segment
from stemma.index.tail import Scanned, Tail

TAIL = "objects/tail"


class ObjectBlock:
    """Objects in memory, scanned whole with integer-exact arithmetic (``ExactBlock``), and as they are stored."""

    def __init__(self, objects: ObjectSet = NO_OBJECTS) -> None:
        self.objects = objects
        self.exact = ExactBlock()
        """One entry an object, under the row that it belongs to."""
        self._add(objects)

    @property
    def row_N(self) -> Rows:  # noqa: N802 - an array
        """Rows that have objects here, ascending."""
        return self.objects.row_I

    def __len__(self) -> int:
        return len(self.row_N)

    def extend(self, catalog: Scanned, row_lo: int, row_hi: int) -> None:
        new = read_objects(catalog, row_lo, row_hi)
        before_I = self.row_N < row_lo
        if before_I.all():
            self._add(new)
            self.objects = ObjectSet.join([self.objects, new])
        else:  # an earlier block of the tail has come to this host
            parts = [self.objects.only(before_I), new, self.objects.only(~before_I)]
            self.objects, self.exact = ObjectSet.join(parts), ExactBlock()
            self._add(self.objects)

    def only(self, keep_N: Mask) -> ObjectBlock:
        return ObjectBlock(self.objects.only(keep_N))

    def _add(self, objects: ObjectSet) -> None:
        self.exact.add(objects.of_objects(objects.row_I), objects.vector_MD)


class Part(NamedTuple):
    """The objects of one segment, or of the tail, and how they are found."""

    key: str
    objects: ObjectSet
    exact: ExactBlock | None
    coded: CodedObjects | None


class ObjectSelection(NamedTuple):
    """What a call is answered from."""

    parts: tuple[Part, ...]
    """Segments in order, the tail last."""
    stack: Stack | None
    """The codes of all segments that have any."""
    tail_I: Mask
    """Which rows of the tail's objects are in the units asked for."""

    def live(self, live: Live) -> list[Mask]:
        """[I] of each part: which rows count."""
        masks = [live.mask(part.key, part.objects.row_I) for part in self.parts]
        return [*masks[:-1], masks[-1] & self.tail_I]


class ObjectIndex:
    """The objects of one partition. Made ready when they are first asked for: who never asks never pays for them."""

    def __init__(self, codec: Codec, tail_block_rows: int, beside: ObjectIndex | None = None) -> None:
        self._codec = codec
        self._blocks: dict[str, ObjectBlock] = {} if beside is None else dict(beside._blocks)
        self._tail = Tail(tail_block_rows, ObjectBlock())
        self._stacks: dict[tuple[str, ...], Stack] = {}

    def keep(self, segments: Sequence[Segment]) -> set[str]:
        """Forget what belongs to other segments; returns the keys under which rows of these are known."""
        ids = {segment.id for segment in segments}
        self._blocks = {name: block for name, block in self._blocks.items() if name in ids}
        self._stacks = {names: stack for names, stack in self._stacks.items() if ids.issuperset(names)}
        return {TAIL, *map(_key, ids)}

    def update_tail(self, catalog: Scanned, row_lo: int, row_hi: int, owns: Callable[[Unit], bool]) -> bool:
        """Read what is new of rows [row_lo, row_hi); True when rows that were here have gone."""
        before = self._tail.block
        self._tail.update(catalog, row_lo, row_hi, owns)
        return self._tail.block is not before

    def select(self, segments: Sequence[Segment], tail_units: frozenset[Unit]) -> ObjectSelection:
        parts = [self._part(segment) for segment in segments]
        tail = self._tail.block
        tail_I = self._tail.unit_mask(tail_units)
        return ObjectSelection((*parts, Part(TAIL, tail.objects, tail.exact, None)), self._stack(segments), tail_I)

    def _part(self, segment: Segment) -> Part:
        if segment.coded_objects is not None:
            return Part(_key(segment.id), segment.objects, None, segment.coded_objects)
        block = self._blocks.get(segment.id)
        if block is None:
            block = self._blocks[segment.id] = ObjectBlock(segment.objects)
        return Part(_key(segment.id), segment.objects, block.exact, None)

    def _stack(self, segments: Sequence[Segment]) -> Stack | None:
        coded = {each.id: each.coded_objects for each in segments if each.coded_objects is not None}
        if self._codec.objects is None or not coded:
            return None
        names = tuple(coded)
        if names not in self._stacks:
            self._stacks = {names: Stack(self._codec.objects, list(coded.values()))}
        return self._stacks[names]


def _key(segment_id: str) -> str:
    return f"objects/{segment_id}"


class ObjectNeed(NamedTuple):
    """What one query wants of a scan: one ``Need`` for each of its objects (all its views), and how many images."""

    needs: tuple[Need, ...]
    images: int
    exclude: Rows

    @property
    def view_count(self) -> int:
        return sum(len(need.views_VD) for need in self.needs)


class Images(NamedTuple):
    """Nearest images of one query, each once, in no order; all that tie with the last wanted one are here."""

    row_C: Rows
    distance_C: Float32

    @classmethod
    def join(cls, parts: Sequence[Images]) -> Images:
        rows, distances = [np.empty(0, np.uint64)], [np.empty(0, np.float32)]
        return cls(
            np.concatenate([*rows, *(part.row_C for part in parts)]),
            np.concatenate([*distances, *(part.distance_C for part in parts)]),
        )


def nearest_images(source: Source, asked: Sequence[ObjectNeed], live_M: Mask) -> list[Images]:
    """The ``images`` nearest live images of each query, and all that tie with the last.

    As ``search.nearest``, with images in the place of rows and every pair of (object, view) in that of a view.
    """
    found = [Images.join([]) for _ in asked]
    reaches = [[source.reach(need, live_M) for need in one.needs] for one in asked]
    live_count = int(live_M.sum())
    pending = [at for at, reach in enumerate(reaches) if any(reach) and live_count]
    depth = max((asked[at].images for at in pending), default=0) + SLACK_ROWS
    if isinstance(source, Stack) and pending:  # an id-less scan returns dead objects too: start deeper
        depth = -(-depth * len(live_M) // live_count)
    while pending:
        depth = min(depth, max(max(reaches[at]) for at in pending))
        needs = [need for at in pending for need in asked[at].needs]
        distance_QK, position_QK = source.scan(needs, depth, live_M)
        short, begin = [], 0
        for at in pending:
            queries = slice(begin, begin + asked[at].view_count)
            begin = queries.stop
            exhausted_Q = np.repeat(
                [depth >= reach for reach in reaches[at]], [len(need.views_VD) for need in asked[at].needs]
            )
            images = _complete(source, distance_QK[queries], position_QK[queries], live_M, asked[at], exhausted_Q)
            if images is None:
                short.append(at)
            else:
                found[at] = images
        pending, depth = short, depth * DEEPER
    return found


def _complete(
    source: Source,
    distance_QK: Float32,
    position_QK: Positions,
    live_M: Mask,
    asked: ObjectNeed,
    exhausted_Q: NDArray[np.bool_],
) -> Images | None:
    """None when the scan was too shallow for so many images.

    Every object nearer than the nearest of the views' last distances has been found; so have the images of all these,
    each with its D: whatever was not found is farther.
    """
    last_Q = np.where(exhausted_Q | (position_QK[:, -1] < 0), np.inf, distance_QK[:, -1])
    bound = last_Q.min()
    there = (position_QK >= 0) & (distance_QK < bound)
    position_C, distance_C = position_QK[there], distance_QK[there]
    alive_C = live_M[position_C]
    position_C, distance_C = position_C[alive_C], distance_C[alive_C]
    row_C = source.rows_at(position_C)
    if len(asked.exclude):
        wanted_C = ~np.isin(row_C, asked.exclude)
        row_C, distance_C = row_C[wanted_C], distance_C[wanted_C]
    order_C = np.argsort(distance_C, kind="stable")
    row_C, first_C = np.unique(row_C[order_C], return_index=True)
    distance_C = distance_C[order_C][first_C]
    if len(row_C) > asked.images:
        near_C = distance_C <= np.partition(distance_C, asked.images - 1)[asked.images - 1]
        return Images(row_C[near_C], distance_C[near_C])
    if len(row_C) == asked.images or np.isinf(bound):
        return Images(row_C, distance_C)
    return None
