"""One call to a host, in the order of its stages: count, assign, scan, cut, read, verify.

Everything a call reads is handed to it; it changes nothing.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from stemma.flow import Hit, HostReply, ShardQuery, Unit
from stemma.index.codec import Codec
from stemma.index.live import Live, Mask, Question
from stemma.index.merge import cut, in_order, lists_needed
from stemma.index.search import (
    Candidates,
    ExactBlock,
    Need,
    Probe,
    Source,
    Stack,
    lists_to_probe,
    nearest,
    nearest_ids,
    refine,
)
from stemma.index.segment import Segment
from stemma.networks.matching import match

Rows = NDArray[np.uint64]


class Reader(Protocol):
    def read(self, rows: Rows, columns: Sequence[str]) -> dict[str, Any]: ...


class Selection(NamedTuple):
    """The units that a call is answered from."""

    segments: tuple[Segment, ...]
    blocks: tuple[ExactBlock, ...]
    """Exact codec: the vectors of each segment."""
    stack: Stack | None
    """Any other codec: the codes of all segments."""
    tail: ExactBlock
    tail_units: frozenset[Unit]


class Counted(NamedTuple):
    """A selection under one question: which of its rows count."""

    live: Live
    segment_masks: tuple[Mask, ...]
    tail_mask: Mask
    live_L: NDArray[np.int64]
    """Live sealed rows of each inverted list."""
    searched: int

    @property
    def everything(self) -> bool:
        """Nothing that counts is elsewhere: this host's answer is the answer."""
        return self.searched == self.live.total


@dataclass(slots=True)
class _Work:
    """One query on its way."""

    query: ShardQuery
    views_VD: NDArray[np.int8]
    counted: Counted
    probe: Probe | None
    nprobe: int
    exact: list[Candidates]
    coded: list[Candidates]

    @property
    def rows(self) -> Rows:
        return np.concatenate([part.row_C for part in [*self.exact, *self.coded]])


class Timed:
    """Wall time by stage."""

    def __init__(self) -> None:
        self.timings_ms: dict[str, float] = {}

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        start = time.perf_counter()
        try:
            yield
        finally:
            self.timings_ms[name] = (time.perf_counter() - start) * 1e3


class Call(Timed):
    """Answers ``queries`` from a ``selection``; ``count`` says which rows count under a question."""

    def __init__(
        self,
        catalog: Reader,
        codec: Codec,
        selection: Selection,
        count: Callable[[Question], Counted],
        *,
        scale: float,
        seq: int,
    ) -> None:
        super().__init__()
        self._catalog, self._codec, self._selection, self._count = catalog, codec, selection, count
        self._square_scale = scale**2
        self._seq = seq

    def replies(self, queries: Sequence[ShardQuery]) -> list[HostReply]:
        with self.stage("count"):
            counted = {question: self._count(question) for question in dict.fromkeys(map(_question, queries))}
        with self.stage("assign"):
            works = [self._assign(query, counted[_question(query)]) for query in queries]
        with self.stage("scan"):
            for question in counted:
                self._scan([work for work in works if _question(work.query) == question], counted[question])
        with self.stage("cut"):
            for work in works:
                work.exact = [nearest_ids(Candidates.join(work.exact), work.query.shortlist, self._ids)]
                work.coded = [nearest_ids(Candidates.join(work.coded), work.query.shortlist, self._ids)]
        with self.stage("read"):
            stored = self._read(works)
        with self.stage("refine"):
            refined = [self._hits(work, stored) for work in works]
        with self.stage("verify"):
            hits = [self._verified(work, found, stored) for work, found in zip(works, refined, strict=True)]
        return [self._reply(work, found) for work, found in zip(works, hits, strict=True)]

    def _assign(self, query: ShardQuery, counted: Counted) -> _Work:
        views_VD = query.encoded.embedding_VD
        if self._codec.exact:
            return _Work(query, views_VD, counted, None, 0, [], [])
        probe = lists_to_probe(self._codec, views_VD)
        nprobe = query.nprobe if 0 < query.nprobe < self._codec.nlist else self._codec.nlist
        if counted.everything:  # then the merger's rule can be applied at once: nobody else has rows to count
            nprobe = lists_needed(_by_rank(probe, counted), nprobe, query.shortlist)
        return _Work(query, views_VD, counted, probe, nprobe, [], [])

    def _scan(self, works: Sequence[_Work], counted: Counted) -> None:
        needs = [Need(work.views_VD, work.query.shortlist, work.probe, work.nprobe) for work in works]
        exact: list[tuple[Source, Mask]] = [(self._selection.tail, counted.tail_mask)]
        exact += zip(self._selection.blocks, counted.segment_masks, strict=False)
        for source, live_N in exact:
            for work, found in zip(works, nearest(source, needs, live_N), strict=True):
                work.exact.append(found)
        if self._selection.stack is not None and counted.segment_masks:
            live_N = np.concatenate(counted.segment_masks)
            for work, found in zip(works, nearest(self._selection.stack, needs, live_N), strict=True):
                work.coded.append(found)

    def _ids(self, rows: Rows) -> Sequence[str]:
        return self._catalog.read(rows, ["image_id"])["image_id"]  # type: ignore[no-any-return]

    def _read(self, works: Sequence[_Work]) -> dict[int, tuple[str, NDArray[np.int8] | None]]:
        """Image ids, and cells where a query asks for verification, each row once."""
        verified = _unique([work for work in works if work.query.encoded.cells_VNF is not None])
        others = np.setdiff1d(_unique(works), verified)
        stored: dict[int, tuple[str, NDArray[np.int8] | None]] = {}
        if len(verified):
            columns = self._catalog.read(verified, ["image_id", "cells"])
            ids_cells = zip(columns["image_id"], columns["cells"], strict=True)
            stored |= dict(zip(verified.tolist(), ids_cells, strict=True))
        if len(others):
            stored |= {row: (name, None) for row, name in zip(others.tolist(), self._ids(others), strict=True)}
        return stored

    def _hits(self, work: _Work, stored: dict[int, tuple[str, Any]]) -> list[Hit]:
        hits = []
        for coded, parts in ((False, work.exact), (True, work.coded)):
            found = Candidates.join(parts)
            refined_C, mirrored_C = refine(work.views_VD, found.vectors_CD)
            assert coded or (refined_C == found.distance_C).all(), "an exact scan and its slow twin agree to the bit"
            distance_C = found.distance_C.astype(np.float64) / self._square_scale
            columns = (found.row_C.tolist(), distance_C.tolist(), refined_C.tolist(), mirrored_C.tolist())
            for row, distance, refined, mirrored in zip(*columns, strict=True):
                hit = Hit(
                    row=row,
                    image_id=stored[row][0],
                    distance=distance,
                    refined_distance=refined / self._square_scale,
                    coded=coded,
                    mirrored=mirrored,
                )
                hits.append(hit)
        return list(cut(hits, work.query.shortlist)) if work.counted.everything else in_order(hits)

    def _verified(self, work: _Work, hits: list[Hit], stored: dict[int, tuple[str, Any]]) -> tuple[Hit, ...]:
        cells_VNF = work.query.encoded.cells_VNF
        if cells_VNF is None or not hits:
            return tuple(hits)
        found = match(cells_VNF, np.stack([stored[hit.row][1] for hit in hits]))
        return tuple(
            replace(hit, match=one.score, mirrored=one.mirrored if one.affine else hit.mirrored, affine=one.affine)
            for hit, one in zip(hits, found, strict=True)
        )

    def _reply(self, work: _Work, hits: tuple[Hit, ...]) -> HostReply:
        return HostReply(
            hits=hits,
            images_searched=work.counted.searched,
            images_total=work.counted.live.total,
            seq=self._seq,
            live_by_rank=None if work.probe is None else _by_rank(work.probe, work.counted),
            nprobe=work.nprobe,
            codec=self._codec.id,
        )


def _question(query: ShardQuery) -> Question:
    return Question(query.filter, query.as_of)


def _unique(works: Sequence[_Work]) -> Rows:
    return np.unique(np.concatenate([np.empty(0, np.uint64), *(work.rows for work in works)]))


def _by_rank(probe: Probe, counted: Counted) -> NDArray[np.int64]:
    return np.bincount(probe.rank_L, weights=counted.live_L, minlength=len(counted.live_L)).astype(np.int64)
