"""Scans: the nearest live rows of a block of exact vectors, or of all coded segments of a host stacked as one index.

Shape letters: Q query views of a whole batch, V views of one query, D 256, N rows, C candidates, K depth of a scan,
L inverted lists, S segments. Distances are squared L2 in int8 units: exact ones are integers below 2**24, which float32
holds in any order of summation, so every path, batch size and host gives the same bits.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from stemma.flow import EMBEDDING_DIM
from stemma.index.codec import Codec, faiss

SLACK_ROWS = 28
"""A first scan fetches this many more than wanted, so that a few dead or tied rows do not cost a second one."""
DEEPER = 4
"""Each further scan fetches this many times more."""
_SIGN = np.uint8(0x80)  # int8 x is the byte x + 128 to faiss's QT_8bit_direct_signed

Float32 = NDArray[np.float32]
Positions = NDArray[np.int64]
Mask = NDArray[np.bool_]


class Probe(NamedTuple):
    """Where one query stands among the inverted lists."""

    rotated_VD: Float32
    distance_VL: Float32
    """By list number."""
    rank_L: Positions
    """By list number: the smaller of the list's ranks (0 nearest) in the views' own orders."""

    def lists(self, nprobe: int) -> Positions:
        return np.flatnonzero(self.rank_L < nprobe)


def lists_to_probe(codec: Codec, views_VD: NDArray[np.int8]) -> Probe:
    """The order of lists for a query of one or two views.

    With two views, probing p means the union of the p nearest lists of each view, and both views are looked up in all
    of them; so each orientation gets at least the lists it would get alone. A list's rank is its smallest over views.
    """
    rotated_VD, order_VL, distance_VL = codec.rank_lists(views_VD)
    rank_VL = np.empty_like(order_VL)
    np.put_along_axis(rank_VL, order_VL, np.broadcast_to(np.arange(codec.nlist), order_VL.shape), axis=1)
    return Probe(rotated_VD, distance_VL, rank_VL.min(axis=0))


class Need(NamedTuple):
    """What one query wants of a scan."""

    views_VD: NDArray[np.int8]
    wanted: int
    probe: Probe | None = None
    nprobe: int = 0


class Candidates(NamedTuple):
    """Nearest live rows of one query; all rows tied with the last wanted one are here, in no order."""

    row_C: NDArray[np.uint64]
    distance_C: Float32
    vectors_CD: NDArray[np.int8]

    @classmethod
    def join(cls, parts: Sequence[Candidates]) -> Candidates:
        if not parts:
            return cls(np.empty(0, np.uint64), np.empty(0, np.float32), np.empty((0, EMBEDDING_DIM), np.int8))
        return cls(*(np.concatenate(arrays) for arrays in zip(*parts, strict=True)))

    def take(self, chosen_C: NDArray[Any]) -> Candidates:
        return Candidates(self.row_C[chosen_C], self.distance_C[chosen_C], self.vectors_CD[chosen_C])


class Source(Protocol):
    """Rows that can be scanned; a position counts them from 0."""

    def scan(self, needs: Sequence[Need], depth: int, live_N: Mask) -> tuple[Float32, Positions]:
        """[Q, K] distances ascending and positions, -1 where there are no more; dead rows may be among them."""
        ...

    def reach(self, need: Need, live_N: Mask) -> int:
        """Rows that a scan of any depth could return."""
        ...

    def rows_at(self, position_C: Positions) -> NDArray[np.uint64]: ...

    def vectors_at(self, position_C: Positions) -> NDArray[np.int8]: ...


class ExactBlock:
    """int8 vectors in memory, scanned whole with integer-exact arithmetic; grows at its end.

    faiss's 8-bit signed scan, one thread, 100,000 rows: 1.0 ms a query, alone or among 64, selection included; float32
    BLAS over int8 blocks took 5.8 ms alone and 1.8 ms among 64.
    """

    def __init__(self) -> None:
        self._index = faiss.IndexScalarQuantizer(
            EMBEDDING_DIM, faiss.ScalarQuantizer.QT_8bit_direct_signed, faiss.METRIC_L2
        )
        self.row_N: NDArray[np.uint64] = np.empty(0, np.uint64)

    def __len__(self) -> int:
        return len(self.row_N)

    def add(self, row_N: NDArray[np.uint64], vectors_ND: NDArray[np.int8]) -> None:
        if len(row_N):
            codes_ND = np.ascontiguousarray(vectors_ND).view(np.uint8) ^ _SIGN
            self._index.add_sa_codes(codes_ND)
            self.row_N = np.concatenate([self.row_N, row_N])

    def scan(self, needs: Sequence[Need], depth: int, live_N: Mask) -> tuple[Float32, Positions]:
        view_QD = np.concatenate([need.views_VD for need in needs]).astype(np.float32)
        if live_N.all():
            return self._found(view_QD, depth, None)
        bits = np.packbits(live_N, bitorder="little")
        selector = faiss.IDSelectorBitmap(bits)  # `bits` must outlive the call: faiss keeps a bare pointer
        return self._found(view_QD, depth, faiss.SearchParameters(sel=selector))

    def _found(self, view_QD: Float32, depth: int, params: Any) -> tuple[Float32, Positions]:
        distance_QK, position_QK = self._index.search(view_QD, depth, params=params)
        return distance_QK, position_QK

    def reach(self, need: Need, live_N: Mask) -> int:  # noqa: ARG002 - Source
        return int(live_N.sum())

    def rows_at(self, position_C: Positions) -> NDArray[np.uint64]:
        return self.row_N[position_C]

    def vectors_at(self, position_C: Positions) -> NDArray[np.int8]:
        if not len(self):
            return np.empty((0, EMBEDDING_DIM), np.int8)
        code_ND = faiss.rev_swig_ptr(self._index.codes.data(), len(self) * EMBEDDING_DIM).reshape(-1, EMBEDDING_DIM)
        return np.asarray((code_ND[position_C] ^ _SIGN).view(np.int8))


class Listed(Protocol):
    """Codes in inverted-list order, in a mapped file: a segment's images, or its objects."""

    lists: Any
    start_L: NDArray[np.int64]

    def __len__(self) -> int: ...
    def rows_at(self, position_C: Positions) -> NDArray[np.uint64]: ...
    def vectors_at(self, position_C: Positions) -> NDArray[np.int8]: ...


class Stack:
    """Coded segments searched as one index: one assignment per query, id-less mapped lists laid one after the other.

    Bit-equal to one index over all rows and as fast (docs/facts.md, B3); one search per segment cost 4x and more.
    """

    def __init__(self, codec: Codec, segments: Sequence[Listed]) -> None:
        self._codec = codec
        self._segments = [segment for segment in segments if len(segment)]
        self._pointers = faiss.InvertedListsPtrVector()
        for segment in self._segments:
            self._pointers.push_back(segment.lists)
        stacked = (self._pointers.size(), self._pointers.data())
        self._lists = faiss.HStackInvertedLists(*stacked) if self._segments else None
        start_SL = np.array([segment.start_L for segment in self._segments], np.int64).reshape(-1, codec.nlist + 1)
        counts_SL = np.diff(start_SL, axis=1)
        self._start_SL = start_SL[:, :-1]
        self._before_SL = np.concatenate([np.zeros((1, codec.nlist), np.int64), np.cumsum(counts_SL, axis=0)])
        self._base_S = np.concatenate([[0], np.cumsum([len(segment) for segment in self._segments])]).astype(np.int64)

    def __len__(self) -> int:
        return int(self._base_S[-1])

    def scan(self, needs: Sequence[Need], depth: int, live_N: Mask) -> tuple[Float32, Positions]:  # noqa: ARG002
        probes = [(need.probe, need.probe.lists(need.nprobe)) for need in needs if need.probe is not None]
        assert len(probes) == len(needs), "a coded scan needs the order of lists"
        view_QD = np.concatenate([probe.rotated_VD for probe, _ in probes])
        width = max(len(lists) for _, lists in probes)
        list_QP = np.full((len(view_QD), width), -1, np.int64)
        distance_QP = np.zeros((len(view_QD), width), np.float32)
        at = 0
        for probe, lists in probes:
            views = slice(at, at + len(probe.rotated_VD))
            list_QP[views, : len(lists)] = lists
            distance_QP[views, : len(lists)] = probe.distance_VL[:, lists]
            at = views.stop
        distance_QK, pair_QK = self._search(view_QD, list_QP, distance_QP, depth)
        return distance_QK, self._positions(pair_QK)

    def _search(self, view_QD: Float32, list_QP: Positions, distance_QP: Float32, depth: int) -> tuple[Float32, Any]:
        distance_QK = np.empty((len(view_QD), depth), np.float32)
        pair_QK = np.empty((len(view_QD), depth), np.int64)
        index, pointer = self._codec.inverted, faiss.swig_ptr
        assert index is not None
        with self._codec.searching:
            index.replace_invlists(self._lists, False)
            index.nprobe = list_QP.shape[1]
            arrays = (pointer(list_QP), pointer(distance_QP), pointer(distance_QK), pointer(pair_QK))
            index.search_preassigned_c(len(view_QD), pointer(view_QD), depth, *arrays, True, None, None)
            index.replace_invlists(self._codec.no_lists, False)  # never a pointer to lists that may be gone
            index.nprobe = 1  # as trained: it is written with the codec, under its digest
        return distance_QK, pair_QK

    def _positions(self, pair_QK: Positions) -> Positions:
        """list << 32 | offset in the stacked list -> position in the concatenated segments."""
        list_QK, offset_QK = np.maximum(pair_QK, 0) >> 32, np.maximum(pair_QK, 0) & 0xFFFFFFFF
        segment_QK = np.zeros_like(list_QK)
        for position in range(1, len(self._segments)):
            segment_QK += offset_QK >= self._before_SL[position, list_QK]
        inside_QK = self._start_SL[segment_QK, list_QK] + offset_QK - self._before_SL[segment_QK, list_QK]
        return np.where(pair_QK < 0, -1, self._base_S[segment_QK] + inside_QK)

    def reach(self, need: Need, live_N: Mask) -> int:  # noqa: ARG002 - Source
        assert need.probe is not None
        return int(self._before_SL[-1, need.probe.lists(need.nprobe)].sum())

    def rows_at(self, position_C: Positions) -> NDArray[np.uint64]:
        out_C = np.empty(len(position_C), np.uint64)
        self._gather(position_C, lambda segment, at_C: segment.rows_at(at_C), out_C)
        return out_C

    def vectors_at(self, position_C: Positions) -> NDArray[np.int8]:
        out_CD = np.empty((len(position_C), EMBEDDING_DIM), np.int8)
        self._gather(position_C, lambda segment, at_C: segment.vectors_at(at_C), out_CD)
        return out_CD

    def _gather(
        self, position_C: Positions, values: Callable[[Listed, Positions], NDArray[Any]], out_C: NDArray[Any]
    ) -> None:
        segment_C = np.searchsorted(self._base_S, position_C, side="right") - 1
        for position in np.unique(segment_C):
            here_C = segment_C == position
            out_C[here_C] = values(self._segments[position], position_C[here_C] - self._base_S[position])


def nearest(source: Source, needs: Sequence[Need], live_N: Mask) -> list[Candidates]:
    """The ``wanted`` nearest live rows of each query, and all that tie with the last; an image counts its nearer view.

    Scans deeper until the live rows found are complete or nothing is left: a list that is short because the rows
    fetched first were dead, filtered out or tied at the cut is never returned.
    """
    positions: list[tuple[Positions, Float32]] = [(np.empty(0, np.int64), np.empty(0, np.float32)) for _ in needs]
    reaches = [source.reach(need, live_N) for need in needs]
    pending = [at for at, reach in enumerate(reaches) if reach]
    live_count = int(live_N.sum())
    if not pending or not live_count:
        pending = []
    depth = max((needs[at].wanted for at in pending), default=0) + SLACK_ROWS
    if isinstance(source, Stack) and pending:  # an id-less scan returns dead rows too: start deeper
        depth = -(-depth * len(live_N) // live_count)
    while pending:
        depth = min(depth, max(reaches[at] for at in pending))
        distance_QK, position_QK = source.scan([needs[at] for at in pending], depth, live_N)
        short, begin = [], 0
        for at in pending:
            views = slice(begin, begin + len(needs[at].views_VD))
            begin = views.stop
            found = _complete(distance_QK[views], position_QK[views], live_N, needs[at].wanted, depth >= reaches[at])
            if found is None:
                short.append(at)
            else:
                positions[at] = found
        pending, depth = short, depth * DEEPER
    return [Candidates(source.rows_at(at_C), distance_C, source.vectors_at(at_C)) for at_C, distance_C in positions]


def _complete(
    distance_VK: Float32, position_VK: Positions, live_N: Mask, wanted: int, exhausted: bool
) -> tuple[Positions, Float32] | None:
    """Positions and distances of the nearest ``wanted`` live rows with all ties; None when the scan was too shallow.

    A view's scan is complete below its last distance only: at that distance it stopped anywhere among equals.
    """
    last_V = np.where(position_VK[:, -1] < 0, np.inf, distance_VK[:, -1])
    bound = np.inf if exhausted else last_V.min()
    there = (position_VK >= 0) & (distance_VK < bound)
    position_C, distance_C = position_VK[there], distance_VK[there]
    alive_C = live_N[position_C]
    position_C, distance_C = position_C[alive_C], distance_C[alive_C]
    order_C = np.argsort(distance_C, kind="stable")
    position_C, first_C = np.unique(position_C[order_C], return_index=True)
    distance_C = distance_C[order_C][first_C]
    if len(position_C) > wanted:
        near_C = distance_C <= np.partition(distance_C, wanted - 1)[wanted - 1]
        return position_C[near_C], distance_C[near_C]
    if len(position_C) == wanted or np.isinf(bound):
        return position_C, distance_C
    return None


def nearest_ids(
    candidates: Candidates, wanted: int, ids_of: Callable[[NDArray[np.uint64]], Sequence[str]]
) -> Candidates:
    """Cuts to ``wanted`` by (distance, image_id); only ids of rows tied at the cut are asked for."""
    if len(candidates.row_C) <= wanted:
        return candidates
    return candidates.take(first_by_id(candidates.row_C, candidates.distance_C, wanted, ids_of))


def first_by_id(
    row_C: NDArray[np.uint64],
    distance_C: Float32,
    wanted: int,
    ids_of: Callable[[NDArray[np.uint64]], Sequence[str]],
) -> Positions:
    """Positions of the first ``wanted`` by (distance, image_id), in no order."""
    if len(row_C) <= wanted:
        return np.arange(len(row_C))
    last = np.partition(distance_C, wanted - 1)[wanted - 1]
    sure_C, tied_C = np.flatnonzero(distance_C < last), np.flatnonzero(distance_C == last)
    ids = ids_of(row_C[tied_C])
    by_id = sorted(range(len(tied_C)), key=lambda at: ids[at])
    return np.concatenate([sure_C, tied_C[by_id[: wanted - len(sure_C)]]])


def refine(views_VD: NDArray[np.int8], vectors_CD: NDArray[np.int8]) -> tuple[NDArray[np.int64], Mask]:
    """Exact squared distance [C] of the nearer view, and whether that is not the upright one."""
    difference_VCD = vectors_CD.astype(np.float32)[None] - views_VD.astype(np.float32)[:, None]
    distance_VC = np.einsum("vcd,vcd->vc", difference_VCD, difference_VCD)
    assert not distance_VC.size or distance_VC.max() < 2**24, "a squared int8 distance is exact in float32"
    return distance_VC.min(axis=0).astype(np.int64), distance_VC.argmin(axis=0) > 0
