"""However a collection is split, a search by objects gives the slow twin's images: eq. 7 over all pairs, in plain
integers."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import faiss
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from stemma.config import Settings
from stemma.flow import Found, ObjectHit, ObjectQuery, Objects, Unit
from stemma.index import merge as merge_room
from stemma.index import objects as objects_room
from stemma.index.codec import Codec
from stemma.index.merge import MergeResult, donors, merge
from stemma.index.object_set import read_objects
from stemma.index.partition import Partition
from stemma.index.segment import Segment

LIVE_EACH = 1  # live objects for each image of the shortlist; with ten all lists of so few objects are probed


class Case(NamedTuple):
    """One way to store and split a collection, and what is asked of it."""

    seed: int
    commits: tuple[int, ...]
    distinct: int  # different objects: few make many ties, and many near objects of one image
    sealed: tuple[int, ...]  # rows of each segment; the rest is tail
    gap: int
    hosts: int
    bare: float  # rows without objects
    deleted: float
    as_of: bool
    filter: str | None
    views: int
    asked: int
    images: int
    nprobe: int
    exclude: int


cases = st.builds(
    Case,
    seed=st.integers(0, 2**32 - 1),
    commits=st.lists(st.integers(1, 14), min_size=1, max_size=3).map(tuple),
    distinct=st.sampled_from([1, 2, 5, 60]),
    sealed=st.lists(st.integers(1, 14), max_size=4).map(tuple),
    gap=st.integers(0, 3),
    hosts=st.sampled_from([1, 2, 5]),
    bare=st.sampled_from([0.0, 0.3, 1.0]),
    deleted=st.sampled_from([0.0, 0.1, 0.6]),
    as_of=st.booleans(),
    filter=st.sampled_from([None, "shelf < 3", "shelf IS NULL"]),
    views=st.sampled_from([1, 2]),
    asked=st.integers(1, 3),
    images=st.sampled_from([1, 2, 5]),
    nprobe=st.sampled_from([0, 1, 4]),
    exclude=st.integers(0, 3),
)


def fill(case: Case, catalog: Any, vectors: Callable[..., Any]) -> int | None:
    """Commits and deletes; returns the moment that is asked about."""
    rng = np.random.default_rng(case.seed)
    pool = vectors(case.distinct, case.seed)
    for count in case.commits:
        drawn = [0 if rng.random() < case.bare else int(rng.integers(1, 10)) for _ in range(count)]
        stored = [
            Objects(
                box_O4=rng.random((each, 4), np.float32),
                score_O=np.ones(each, np.float32),
                embedding_OD=pool[rng.integers(0, len(pool), each)],
            )
            for each in drawn
        ]
        catalog.commit([np.zeros(256, np.int8)] * count, skip=case.gap, objects=stored)
    moment = int(rng.integers(0, catalog.stored + 1)) if case.as_of else None
    dead = [row for row in catalog.rows if rng.random() < case.deleted]
    if dead:
        catalog.delete(dead)
    catalog.refresh()
    return moment


def seal(case: Case, catalog: Any, root: Path, codec: Codec) -> int:
    """Segments of the first rows, of the sizes that the case says, the first two of them joined; the tail's first."""
    lo, built = 0, []
    for count in case.sealed:
        hi = min(lo + count, catalog.next_row)
        if lo < hi:
            rows = np.array([row for row in catalog.rows if lo <= row < hi], np.uint64)
            zeros = np.zeros((len(rows), 256), np.int8)
            built.append(Segment.build(root, codec, rows, zeros, lo, hi, read_objects(catalog, lo, hi)))
        lo = hi
    if len(built) > 1:
        Segment.join(root, codec, built[:2], np.array(sorted(catalog.rows), np.uint64))
    return lo


def spread(case: Case, units: tuple[Unit, ...]) -> list[set[Unit]]:
    owner = np.random.default_rng(case.seed + 1).integers(0, case.hosts, len(units))
    return [{unit for unit, host in zip(units, owner, strict=True) if host == number} for number in range(case.hosts)]


def ask(partition: Partition, shares: list[set[Unit]], queries: list[ObjectQuery]) -> list[MergeResult]:
    """As a fan-out does: one call per host, merge, once more where too few live objects were scanned."""

    def once(asked: list[ObjectQuery]) -> list[MergeResult]:
        replies = {f"host-{at}": partition.search(asked, share.__contains__) for at, share in enumerate(shares)}
        return [merge({name: replies[name][at] for name in replies}, query.shortlist) for at, query in enumerate(asked)]

    results = once(queries)
    for at, result in enumerate(results):
        if result.nprobe_needed is not None:
            (results[at],) = once([replace(queries[at], nprobe=result.nprobe_needed)])
            assert results[at].nprobe_needed is None, "the second round always stands"
    return results


def answer(result: MergeResult, images: int) -> list[ObjectHit]:
    found = Found(
        hits=result.hits,
        images_searched=result.images_searched,
        images_total=result.images_total,
        missing_hosts=(),
        seq=result.seq,
        nprobe=result.nprobe,
        codec=result.codec,
    )
    return list(donors(found, images))


Twin = dict[int, tuple[int, int, int, int]]
"""By row: eq. 7 and 8, (D, i, j, view)."""


def slow_twin(query: ObjectQuery, catalog: Any, codec: Codec, tail_lo: int) -> tuple[list[ObjectHit], int, int, int]:
    """The shortlist by four loops; lists probed; live images; those of them without objects."""
    time = catalog.seq if query.as_of is None else query.as_of
    live = {row: r for row, r in catalog.rows.items() if r["added"] <= time < r["deleted"]}
    if query.filter is not None:
        shelves = {row: r["metadata"]["shelf"] for row, r in live.items()}
        passing = {row for row, shelf in shelves.items() if (shelf is None) == ("NULL" in query.filter)}
        live = {row: r for row, r in live.items() if row in passing and (shelves[row] is None or shelves[row] < 3)}
    twin: Twin = {}
    for row, record in live.items():
        stored = record["objects"].embedding_OD.astype(int)
        pairs = [
            (int(((query.objects_VOD[v, i].astype(int) - stored[j]) ** 2).sum()), i, j, v)
            for i in range(query.objects_VOD.shape[1])
            for j in range(len(stored))
            for v in range(query.objects_VOD.shape[0])
        ]
        if pairs:
            twin[row] = min(pairs)
    bare = len(live) - len(twin)
    rows, probed, codes = [row for row in twin if row not in query.exclude], 0, dict[int, float]()
    if codec.objects is not None:
        sealed = [row for row in twin if row < tail_lo]
        codes, probed = code_distances(query, catalog, codec.objects, sealed)
        best = sorted((codes[row], catalog.rows[row]["image_id"], row) for row in codes if row not in query.exclude)
        rows = [row for row in rows if row >= tail_lo] + [row for _, _, row in best[: query.shortlist]]
    hits = [
        ObjectHit(
            row=row,
            image_id=catalog.rows[row]["image_id"],
            distance=float(codes.get(row, twin[row][0])) / query.scale**2,
            refined_distance=twin[row][0] / query.scale**2,
            coded=codec.objects is not None and row < tail_lo,
            mirrored=twin[row][3] > 0,
            query_object=twin[row][1],
            donor_object=twin[row][2],
            donor_box=tuple(catalog.rows[row]["objects"].box_O4[twin[row][2]].tolist()),
        )
        for row in rows
    ]
    hits.sort(key=lambda hit: (hit.refined_distance, hit.image_id))
    return hits[: query.shortlist], probed, len(live), bare


def code_distances(query: ObjectQuery, catalog: Any, codec: Codec, rows: list[int]) -> tuple[dict[int, float], int]:
    """Smallest distance to a code of each row, from one index on the heap over all objects, list by list."""
    owner = [row for row in rows for _ in range(len(catalog.rows[row]["objects"]))]
    if not owner:
        return {}, codec.nlist
    lists, codes = codec.encode(np.concatenate([catalog.rows[row]["objects"].embedding_OD for row in rows]))
    views, count = query.objects_VOD.shape[:2]
    rank_OL = np.full((count, codec.nlist), codec.nlist)
    ordered = {}
    for i in range(count):
        ordered[i] = codec.rank_lists(query.objects_VOD[:, i])
        for v in range(views):
            for rank, number in enumerate(ordered[i][1][v].tolist()):
                rank_OL[i, number] = min(rank_OL[i, number], rank)
    live_by_rank = np.bincount(rank_OL.min(axis=0)[lists], minlength=codec.nlist)
    probed = query.nprobe or codec.nlist
    while probed < codec.nlist and live_by_rank[:probed].sum() < LIVE_EACH * query.shortlist:
        probed += 1
    index = faiss.clone_index(codec.inverted)
    heap = faiss.ArrayInvertedLists(codec.nlist, 32)
    index.replace_invlists(heap, False)
    for at, (number, code) in enumerate(zip(lists.tolist(), codes, strict=True)):
        heap.add_entry(number, at, faiss.swig_ptr(np.ascontiguousarray(code)))
    index.ntotal, index.nprobe = len(owner), codec.nlist
    best: dict[int, float] = {}
    for i in range(count):
        rotated, order, distance = ordered[i]
        for v in range(views):
            found, labels = index.search_preassigned(
                rotated[v : v + 1], len(owner), order[v : v + 1], distance[v][order[v]][None]
            )
            for at, value in zip(labels[0].tolist(), found[0].tolist(), strict=True):
                if rank_OL[i, lists[at]] < probed:
                    best[owner[at]] = min(best.get(owner[at], np.inf), value)
    return best, probed


@pytest.fixture(scope="module", autouse=True)
def shallow_scans() -> Iterator[None]:
    """Without slack a scan of so few objects must go deeper again and again, as it must among millions."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(objects_room, "SLACK_ROWS", 0)
        patch.setattr(merge_room, "LIVE_PER_SHORTLIST", LIVE_EACH)
        yield


@pytest.mark.parametrize("kind", ["exact", "opq", "paired"])
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(case=cases)
def test_every_split_gives_the_slow_twins_images(
    case: Case,
    kind: str,
    codecs: dict[str, Codec],
    paired: Codec,
    vectors: Callable[..., Any],
    new_catalog: Callable[[], Any],
    settings_with: Callable[..., Settings],
    object_question: Callable[..., ObjectQuery],
    scale: float,
) -> None:
    catalog, codec = new_catalog(), paired if kind == "paired" else codecs[kind]
    moment = fill(case, catalog, vectors)
    rng = np.random.default_rng(case.seed + 3)
    asked = vectors(case.views * case.asked * 2, case.seed + 2).reshape(2, case.views, case.asked, 256)
    pool = np.concatenate([asked[1, 0, :1], *(r["objects"].embedding_OD for r in catalog.rows.values())])
    asked[0, -1, -1] = pool[-1]  # one that is there, with all its ties
    exclude = tuple(rng.choice(list(catalog.rows), case.exclude).tolist())
    fields = {"images": case.images, "nprobe": case.nprobe, "as_of": moment, "filter": case.filter, "exclude": exclude}
    queries = [object_question(one, **fields) for one in asked]
    with tempfile.TemporaryDirectory() as folder:
        tail_lo = seal(case, catalog, Path(folder), codec)
        partition = Partition(catalog, Path(folder), settings_with(), scale=scale, codec=codec)
        for shares in (spread(case, partition.units), [set(partition.units)]):
            for query, result in zip(queries, ask(partition, shares, queries), strict=True):
                hits, probed, live, bare = slow_twin(query, catalog, codec, tail_lo)
                assert list(result.hits) == hits
                nearest = [replace(hit, distance=hit.refined_distance) for hit in hits[: case.images]]
                assert answer(result, case.images) == nearest
                assert (result.nprobe, result.without_objects) == (probed, bare)
                assert result.images_searched == result.images_total == live
