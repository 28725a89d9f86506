"""One call to a host by objects, in the order of its stages: count, assign, scan, cut, read, pair.

As ``call.py`` is for whole images, with the same rules for ties, codes and counting, so that the answer does not depend
on how a collection is split over hosts. Everything a call reads is handed to it; it changes nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from stemma.errors import BadRequest
from stemma.flow import HostReply, ObjectHit, ObjectQuery
from stemma.index.call import Counted, Reader, Timed
from stemma.index.codec import Codec
from stemma.index.live import Mask, Question, count_by_list
from stemma.index.merge import cut, in_order, lists_needed
from stemma.index.object_set import Pair, Rows, nearest_pairs
from stemma.index.objects import Images, ObjectNeed, ObjectSelection, Part, nearest_images
from stemma.index.search import Need, Positions, Probe, first_by_id, lists_to_probe


class Masks(NamedTuple):
    """A selection of objects under one question."""

    counted: Counted
    parts_I: list[Mask]
    """Which rows of each part count."""
    with_objects: int
    live_L: Positions
    """Live coded objects in each inverted list."""


@dataclass(slots=True)
class _Work:
    """One query on its way."""

    query: ObjectQuery
    masks: Masks
    probes: list[Probe] | None
    """Under a codec: of each object of the query."""
    nprobe: int
    exact: Images
    coded: Images

    @property
    def rank_L(self) -> Positions:  # noqa: N802 - an array
        """By list number: the smallest of the list's ranks over the query's objects and views."""
        assert self.probes is not None
        rank_OL = np.stack([probe.rank_L for probe in self.probes])
        return np.asarray(rank_OL.min(axis=0), np.int64)

    @property
    def need(self) -> ObjectNeed:
        objects = range(self.query.objects_VOD.shape[1])
        probes = self.probes if self.probes is not None else [None for _ in objects]
        needs = [Need(self.query.objects_VOD[:, at], self.query.shortlist, probes[at], self.nprobe) for at in objects]
        return ObjectNeed(tuple(needs), self.query.shortlist, np.asarray(self.query.exclude, np.uint64))


class ObjectCall(Timed):
    """Answers ``queries`` from a ``selection``; ``count`` says which rows count under a question."""

    def __init__(
        self,
        catalog: Reader,
        codec: Codec,
        selection: ObjectSelection,
        count: Callable[[Question], Counted],
        *,
        seq: int,
    ) -> None:
        super().__init__()
        self._catalog, self._codec, self._selection, self._count = catalog, codec.objects, selection, count
        self._seq = seq

    def replies(self, queries: Sequence[ObjectQuery]) -> list[HostReply]:
        with self.stage("count"):
            masks = {question: self._masks(question) for question in dict.fromkeys(map(_question, queries))}
        with self.stage("assign"):
            works = [self._assign(query, masks[_question(query)]) for query in queries]
        with self.stage("scan"):
            for question in masks:
                self._scan([work for work in works if _question(work.query) == question], masks[question])
        with self.stage("cut"):
            for work in works:
                work.exact, work.coded = self._cut(work.exact, work.query), self._cut(work.coded, work.query)
        with self.stage("read"):
            rows = np.unique(np.concatenate([part.row_C for work in works for part in (work.exact, work.coded)]))
            names = dict(zip(rows.tolist(), self._ids(rows), strict=True)) if len(rows) else {}
        with self.stage("pair"):
            return [self._reply(work, self._hits(work, names)) for work in works]

    def _masks(self, question: Question) -> Masks:
        counted = self._count(question)
        parts_I = self._selection.live(counted.live)
        live_L = np.zeros(self._codec.nlist if self._codec is not None else 0, np.int64)
        for part, mask_I in zip(self._selection.parts, parts_I, strict=True):
            if part.coded is not None:
                live_L += count_by_list(self._coded_mask(counted, part, mask_I), part.coded.start_L)
        return Masks(counted, parts_I, sum(int(mask_I.sum()) for mask_I in parts_I), live_L)

    def _coded_mask(self, counted: Counted, part: Part, mask_I: Mask) -> Mask:
        """[M] in inverted-list order."""
        coded = part.coded
        assert coded is not None
        return counted.live.kept(f"{part.key}/codes", lambda: coded.in_list_order(mask_I))

    def _assign(self, query: ObjectQuery, masks: Masks) -> _Work:
        nothing = Images.join([])
        if self._codec is None:
            return _Work(query, masks, None, 0, nothing, nothing)
        if self._codec.scale != query.scale:
            detail = f"the objects' codec was trained for scale {self._codec.scale}, the query has {query.scale}"
            raise BadRequest(f"{detail}; train it again", subject="objects")
        views_OVD = query.objects_VOD.transpose(1, 0, 2)
        probes = [lists_to_probe(self._codec, views_VD) for views_VD in views_OVD]
        work = _Work(query, masks, probes, 0, nothing, nothing)
        work.nprobe = query.nprobe if 0 < query.nprobe < self._codec.nlist else self._codec.nlist
        if masks.counted.everything:  # then the merger's rule can be applied at once: nobody else has rows to count
            work.nprobe = lists_needed(_by_rank(work), work.nprobe, query.shortlist)
        return work

    def _scan(self, works: Sequence[_Work], masks: Masks) -> None:
        asked = [work.need for work in works]
        exact: list[list[Images]] = [[] for _ in works]
        for part, mask_I in zip(self._selection.parts, masks.parts_I, strict=True):
            if part.exact is not None:
                live_M = part.objects.of_objects(mask_I)
                for at, found in enumerate(nearest_images(part.exact, asked, live_M)):
                    exact[at].append(found)
        for work, parts in zip(works, exact, strict=True):
            work.exact = Images.join(parts)
        if self._selection.stack is None:
            return
        live_M = np.concatenate(
            [
                self._coded_mask(masks.counted, part, mask_I)
                for part, mask_I in zip(self._selection.parts, masks.parts_I, strict=True)
                if part.coded is not None
            ]
        )
        for work, found in zip(works, nearest_images(self._selection.stack, asked, live_M), strict=True):
            work.coded = found

    def _cut(self, images: Images, query: ObjectQuery) -> Images:
        first_C = first_by_id(images.row_C, images.distance_C, query.shortlist, self._ids)
        return Images(images.row_C[first_C], images.distance_C[first_C])

    def _ids(self, rows: Rows) -> Sequence[str]:
        image_ids: list[str] = self._catalog.read(rows, ["image_id"])["image_id"]
        return image_ids

    def _hits(self, work: _Work, names: dict[int, str]) -> Sequence[ObjectHit]:
        square_scale = work.query.scale**2
        hits = []
        for coded, images in ((False, work.exact), (True, work.coded)):
            pairs = self._pairs(work.query, images.row_C)
            for row, distance in zip(images.row_C.tolist(), images.distance_C.astype(np.float64).tolist(), strict=True):
                pair = pairs[row]
                assert coded or pair.distance == distance, "an exact scan and its slow twin agree to the bit"
                hit = ObjectHit(
                    row=row,
                    image_id=names[row],
                    distance=distance / square_scale,
                    refined_distance=pair.distance / square_scale,
                    coded=coded,
                    mirrored=pair.mirrored,
                    query_object=pair.query_object,
                    donor_object=pair.donor_object,
                    donor_box=pair.donor_box,
                )
                hits.append(hit)
        return cut(hits, work.query.shortlist) if work.masks.counted.everything else in_order(hits)

    def _pairs(self, query: ObjectQuery, row_C: Rows) -> dict[int, Pair]:
        """The nearest pair of each image, over all its objects as they are stored."""
        pairs: dict[int, Pair] = {}
        for part in self._selection.parts:
            place_C = part.objects.find(row_C)
            here_C = place_C >= 0
            found = nearest_pairs(query.objects_VOD, part.objects, place_C[here_C])
            pairs.update(zip(row_C[here_C].tolist(), found, strict=True))
        return pairs

    def _reply(self, work: _Work, hits: Sequence[ObjectHit]) -> HostReply:
        counted = work.masks.counted
        return HostReply(
            hits=tuple(hits),
            images_searched=counted.searched,
            images_total=counted.live.total,
            seq=self._seq,
            live_by_rank=None if work.probes is None else _by_rank(work),
            nprobe=work.nprobe,
            codec="exact" if self._codec is None else self._codec.id,
            without_objects=counted.searched - work.masks.with_objects,
        )


def _question(query: ObjectQuery) -> Question:
    return Question(query.filter, query.as_of)


def _by_rank(work: _Work) -> Positions:
    live_L = work.masks.live_L
    return np.bincount(work.rank_L, weights=live_L, minlength=len(live_L)).astype(np.int64)
