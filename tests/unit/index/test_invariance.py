"""However a collection is split over hosts and segments, the ordered ids and distances are those of a slow twin."""

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
from stemma.flow import ShardQuery, Unit
from stemma.index import search
from stemma.index.codec import Codec
from stemma.index.merge import LIVE_PER_SHORTLIST, MergeResult, merge
from stemma.index.partition import Partition
from stemma.index.segment import Segment


class Case(NamedTuple):
    """One way to store and split a collection, and what is asked of it."""

    seed: int
    commits: tuple[int, ...]
    distinct: int  # different vectors: few make many ties
    sealed: tuple[int, ...]  # rows of each segment; the rest is tail
    gap: int  # row numbers that were never given
    hosts: int
    deleted: float
    as_of: bool
    filter: str | None
    views: int
    shortlist: int
    nprobe: int


cases = st.builds(
    Case,
    seed=st.integers(0, 2**32 - 1),
    commits=st.lists(st.integers(1, 25), min_size=1, max_size=4).map(tuple),
    distinct=st.integers(1, 60),
    sealed=st.lists(st.integers(1, 30), max_size=5).map(tuple),
    gap=st.integers(0, 5),
    hosts=st.sampled_from([1, 2, 5]),
    deleted=st.sampled_from([0.0, 0.1, 0.6]),
    as_of=st.booleans(),
    filter=st.sampled_from([None, "shelf < 3", "shelf = 5", "shelf IS NULL"]),
    views=st.sampled_from([1, 2]),
    shortlist=st.sampled_from([1, 2, 3, 10, 50]),
    nprobe=st.sampled_from([0, 1, 2, 5]),
)


def fill(case: Case, catalog: Any, vectors: Callable[..., Any]) -> int | None:
    """Commits and deletes; returns the moment that is asked about."""
    rng = np.random.default_rng(case.seed)
    pool = vectors(case.distinct, case.seed)
    for count in case.commits:
        catalog.commit(list(pool[rng.integers(0, len(pool), count)]), skip=case.gap)
    moment = int(rng.integers(0, catalog.stored + 1)) if case.as_of else None
    dead = [row for row in catalog.rows if rng.random() < case.deleted]
    if dead:
        catalog.delete(dead)
    catalog.refresh()
    return moment


def seal(case: Case, catalog: Any, root: Path, codec: Codec) -> int:
    """Segments of the first rows, of the sizes that the case says; returns the first row of the tail."""
    lo = 0
    for count in case.sealed:
        hi = min(lo + count, catalog.next_row)
        if lo < hi:
            inside = [record for row, record in catalog.rows.items() if lo <= row < hi]
            embeddings = np.array([record["embedding"] for record in inside], np.int8).reshape(-1, 256)
            Segment.build(root, codec, np.array([r["row"] for r in inside], np.uint64), embeddings, lo, hi)
        lo = hi
    return lo


def spread(case: Case, units: tuple[Unit, ...]) -> list[set[Unit]]:
    owner = np.random.default_rng(case.seed + 1).integers(0, case.hosts, len(units))
    return [{unit for unit, host in zip(units, owner, strict=True) if host == number} for number in range(case.hosts)]


def ask(partition: Partition, shares: list[set[Unit]], queries: list[ShardQuery], order: int) -> list[MergeResult]:
    """As a fan-out does: one call per host, merge, once more where too few live rows were scanned."""

    def once(asked: list[ShardQuery]) -> list[MergeResult]:
        replies = {f"host-{at}": partition.search(asked, share.__contains__) for at, share in enumerate(shares)}
        names = sorted(replies, reverse=bool(order))
        return [merge({name: replies[name][at] for name in names}, query.shortlist) for at, query in enumerate(asked)]

    results = once(queries)
    for at, result in enumerate(results):
        if result.nprobe_needed is not None:
            (results[at],) = once([replace(queries[at], nprobe=result.nprobe_needed)])
            assert results[at].nprobe_needed is None, "the second round always stands"
    return results


Answers = list[tuple[str, float, float]]


def slow_twin(query: ShardQuery, catalog: Any, codec: Codec, tail_lo: int, scale: float) -> tuple[Answers, int]:
    """(image_id, refined, distance) by plain integers, and the lists probed.

    Code distances come from one index on the heap over all sealed rows, probed whole.
    """
    time = catalog.seq if query.as_of is None else query.as_of
    live = {row: r for row, r in catalog.rows.items() if r["added"] <= time < r["deleted"]}
    if query.filter is not None:
        live = {row: r for row, r in live.items() if passes(query.filter, r["metadata"]["shelf"])}
    exact = {row: min(square(view, r["embedding"]) for view in query.encoded.embedding_VD) for row, r in live.items()}
    found = [(exact[row] / scale**2, r["image_id"], exact[row] / scale**2) for row, r in live.items()]
    if codec.exact:
        return [(name, refined, distance) for refined, name, distance in sorted(found)][: query.shortlist], 0
    found = [one for one, row in zip(found, live, strict=True) if row >= tail_lo]
    codes, probed = code_distances(query, catalog, codec, [row for row in live if row < tail_lo])
    best = sorted(codes)[: query.shortlist]
    found += [(exact[row] / scale**2, name, float(distance) / scale**2) for distance, name, row in best]
    return [(name, refined, distance) for refined, name, distance in sorted(found)][: query.shortlist], probed


def code_distances(
    query: ShardQuery, catalog: Any, codec: Codec, rows: list[int]
) -> tuple[list[tuple[float, str, int]], int]:
    if not rows:
        return [], codec.nlist
    embeddings = np.array([catalog.rows[row]["embedding"] for row in rows], np.int8)
    lists, codes = codec.encode(embeddings)
    rotated, order, distance = codec.rank_lists(query.encoded.embedding_VD)
    ranks = [
        min(int(np.flatnonzero(order[v] == number)[0]) for v in range(len(order))) for number in range(codec.nlist)
    ]
    live_by_rank = [sum(ranks[number] == rank for number in lists) for rank in range(codec.nlist)]
    probed = query.nprobe or codec.nlist
    while probed < codec.nlist and sum(live_by_rank[:probed]) < LIVE_PER_SHORTLIST * query.shortlist:
        probed += 1
    index = faiss.clone_index(codec.inverted)
    heap = faiss.ArrayInvertedLists(codec.nlist, 16)
    index.replace_invlists(heap, False)
    for row, number, code in zip(rows, lists.tolist(), codes, strict=True):
        heap.add_entry(number, row, faiss.swig_ptr(np.ascontiguousarray(code)))
    index.ntotal, index.nprobe = len(rows), codec.nlist
    best: dict[int, float] = {}
    for view in range(len(rotated)):
        found, labels = index.search_preassigned(
            rotated[view : view + 1], len(rows), order[view : view + 1], distance[view][order[view]][None]
        )
        for row, value in zip(labels[0].tolist(), found[0].tolist(), strict=True):
            best[row] = min(best.get(row, np.inf), value)
    at_list = dict(zip(rows, lists.tolist(), strict=True))
    near = [row for row in rows if ranks[at_list[row]] < probed]
    return [(best[row], catalog.rows[row]["image_id"], row) for row in near], probed


def square(a: Any, b: Any) -> int:
    return int(((a.astype(np.int64) - b.astype(np.int64)) ** 2).sum())


def passes(text: str, shelf: int | None) -> bool:
    if text == "shelf IS NULL":
        return shelf is None
    return shelf is not None and (shelf < 3 if text == "shelf < 3" else shelf == 5)


@pytest.fixture(scope="module", autouse=True)
def shallow_scans() -> Iterator[None]:
    """Without slack a scan of so few rows must go deeper again and again, as it must among millions."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(search, "SLACK_ROWS", 0)
        yield


@pytest.mark.parametrize("kind", ["exact", "opq", "paper"])
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(case=cases)
def test_every_split_gives_the_slow_twins_answer(
    case: Case,
    kind: str,
    codecs: dict[str, Codec],
    vectors: Callable[..., Any],
    new_catalog: Callable[[], Any],
    settings_with: Callable[..., Settings],
    question: Callable[..., ShardQuery],
    scale: float,
) -> None:
    catalog, codec = new_catalog(), codecs[kind]
    moment = fill(case, catalog, vectors)
    views = vectors(case.views * 3, case.seed + 2).reshape(3, case.views, 256)
    views[0, 0] = next(iter(catalog.rows.values()))["embedding"]  # one that is there, with all its ties
    fields = {"shortlist": case.shortlist, "nprobe": case.nprobe, "as_of": moment, "filter": case.filter}
    queries = [question(view, **fields) for view in views]
    with tempfile.TemporaryDirectory() as folder:
        tail_lo = seal(case, catalog, Path(folder), codec)
        partition = Partition(catalog, Path(folder), settings_with(), scale=scale, codec=codec)
        for shares in (spread(case, partition.units), [set(partition.units)]):
            for query, result in zip(queries, ask(partition, shares, queries, case.seed % 2), strict=True):
                found = [(hit.image_id, hit.refined_distance, hit.distance) for hit in result.hits]
                assert (found, result.nprobe) == slow_twin(query, catalog, codec, tail_lo, scale)
                assert result.images_searched == result.images_total
