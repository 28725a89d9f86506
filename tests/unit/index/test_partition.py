"""A host's partition: what it promises about commits, deletes, coverage, verification; on the real catalog too."""

from __future__ import annotations

import shutil
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from stemma.catalog import Catalog, Draft
from stemma.config import Settings
from stemma.errors import BadRequest, Conflict, Unavailable
from stemma.flow import Encoded, ShardQuery, Unit
from stemma.index.codec import Codec
from stemma.index.merge import LIVE_PER_SHORTLIST, merge
from stemma.index.partition import Partition
from stemma.index.seal import maintain
from stemma.index.segment import FOLDER, Segment
from stemma.networks.matching import match

Open = Callable[..., Partition]


@pytest.fixture
def open_partition(root: Path, codecs: dict[str, Codec], settings_with: Callable[..., Settings], scale: float) -> Open:
    def opened(catalog: Any, kind: str = "exact", **search: Any) -> Partition:
        return Partition(catalog, root, settings_with(**search), scale=scale, codec=codecs[kind])

    return opened


def test_a_delete_is_honoured_by_the_next_search_in_segments_and_in_the_tail(
    catalog: Any, vectors: Any, root: Path, codecs: Any, question: Any, open_partition: Open
) -> None:
    pool = vectors(30, 1)
    catalog.commit(list(pool))
    for kind in ("exact", "opq"):
        Segment.build(root, codecs[kind], np.arange(16, dtype=np.uint64), pool[:16], 0, 16)
    catalog.refresh()
    partitions = [open_partition(catalog, kind) for kind in ("exact", "opq")]
    for row in (3, 25):  # sealed, and unsealed
        before = catalog.seq
        catalog.delete([row])
        catalog.refresh()
        for partition in partitions:
            now, past = partition.search([question(pool[row], nprobe=0), question(pool[row], nprobe=0, as_of=before)])
            assert row not in {hit.row for hit in now.hits}
            assert past.hits[0].row == row and past.hits[0].refined_distance == 0
            assert past.images_total == now.images_total + 1


def test_a_commit_is_found_at_once_whatever_lists_are_probed(
    catalog: Any, vectors: Any, root: Path, codecs: Any, question: Any, open_partition: Open
) -> None:
    pool = vectors(40, 1)
    catalog.commit(list(pool[:32]))
    Segment.build(root, codecs["opq"], np.arange(32, dtype=np.uint64), pool[:32], 0, 32)
    partition = open_partition(catalog, "opq")
    catalog.commit(list(pool[32:]))
    replies = partition.search([question(vector, nprobe=1, min_version=2) for vector in pool[32:]])
    assert [reply.hits[0].row for reply in replies] == list(range(32, 40))
    assert all(not reply.hits[0].coded and reply.seq == 2 for reply in replies)


@pytest.mark.parametrize("field", ["min_version", "as_of"])
def test_a_commit_that_is_not_there_yet_is_said_to_be_unavailable(
    field: str, catalog: Any, vectors: Any, question: Any, open_partition: Open
) -> None:
    catalog.commit(list(vectors(3, 1)))
    partition = open_partition(catalog)
    with pytest.raises(Unavailable, match="commit 2") as refused:
        partition.search([question(vectors(1, 2), **{field: 2})])
    assert refused.value.retry_after_s == 1
    catalog.commit(list(vectors(3, 1)))
    (reply,) = partition.search([question(vectors(1, 2), **{field: 2})])
    assert (partition.seq, len(reply.hits)) == (2, 6)


def test_a_host_holds_what_it_adopts_and_a_call_is_answered_from_what_it_asks_for(
    catalog: Any, vectors: Any, root: Path, codecs: Any, question: Any, open_partition: Open
) -> None:
    pool = vectors(30, 1)
    catalog.commit(list(pool))
    Segment.build(root, codecs["exact"], np.arange(16, dtype=np.uint64), pool[:16], 0, 16)
    partition = open_partition(catalog)
    units = (Unit(0, 16, "segment"), Unit(16, 24, "tail"), Unit(24, 32, "tail"))
    assert partition.units == units
    query = question(pool[0], shortlist=50)
    for unit, count in zip(units, (16, 8, 6), strict=True):
        (reply,) = partition.search([query], lambda one, unit=unit: one == unit)
        assert {hit.row for hit in reply.hits} == {r for r in range(30) if unit.row_lo <= r < unit.row_hi}
        assert (reply.images_searched, reply.images_total) == (count, 30)
    partition.adopt(lambda unit: unit.row_lo >= 24)
    assert partition.units == units[2:]
    assert partition.search([query])[0].images_searched == 6
    assert partition.search([query], lambda unit: False)[0].hits == ()
    partition.adopt(None)
    assert partition.search([query])[0].images_searched == 30


def test_a_host_that_is_not_alone_leaves_the_cut_to_the_merger(
    catalog: Any, vectors: Any, root: Path, codecs: Any, question: Any, open_partition: Open
) -> None:
    pool = vectors(40, 1)
    catalog.commit(list(pool))
    Segment.build(root, codecs["opq"], np.arange(16, dtype=np.uint64), pool[:16], 0, 16)
    partition = open_partition(catalog, "opq")
    query = question(pool[0], shortlist=3, nprobe=0)
    (part,) = partition.search([query], lambda unit: unit.row_hi <= 32)
    assert [sum(hit.coded is kind for hit in part.hits) for kind in (True, False)] == [3, 3]
    (whole,) = partition.search([query])
    assert len(whole.hits) == 3, "alone it cuts before it verifies"

    few = question(pool[0], shortlist=3, nprobe=1)
    (part,) = partition.search([few], lambda unit: unit.row_hi <= 32)
    (whole,) = partition.search([few])
    assert (part.nprobe, whole.nprobe) == (1, codecs["opq"].nlist), "how many lists to probe is decided over all hosts"


@pytest.mark.parametrize("kind", ["exact", "opq"])
def test_what_was_opened_answers_after_maintenance_took_its_folder_away(
    kind: str, catalog: Any, vectors: Any, root: Path, codecs: Any, question: Any, open_partition: Open
) -> None:
    pool = vectors(40, 1)
    catalog.commit(list(pool))
    Segment.build(root, codecs[kind], np.arange(40, dtype=np.uint64), pool, 0, 40)
    partition = open_partition(catalog, kind)
    shutil.rmtree(root / FOLDER)
    (reply,) = partition.search([question(pool[4], nprobe=0)])
    assert (reply.hits[0].row, reply.images_searched) == (4, 40)


def test_hits_are_verified_against_the_cells_of_the_catalog(
    catalog: Any, vectors: Any, root: Path, codecs: Any, open_partition: Open
) -> None:
    pool = vectors(24, 1)
    catalog.commit(list(pool))
    Segment.build(root, codecs["opq"], np.arange(16, dtype=np.uint64), pool[:16], 0, 16)
    partition = open_partition(catalog, "opq")
    stored = catalog.read(np.arange(24, dtype=np.uint64), ["cells"])["cells"]
    upright, mirrored = stored[5], stored[20].reshape(14, 14, 32)[:, ::-1].reshape(196, 32)
    queries = [
        ShardQuery(
            encoded=Encoded(
                embedding_VD=np.stack([pool[row], pool[0]]), cells_VNF=cells, featureless=False, weights="w"
            ),
            shortlist=30,
            nprobe=0,
        )
        for row, cells in ((5, np.stack([upright, stored[9]])), (20, np.stack([mirrored, stored[20]])), (7, None))
    ]
    replies = partition.search(queries)
    for query, reply in zip(queries, replies, strict=True):
        for hit in reply.hits:
            if query.encoded.cells_VNF is None:
                assert hit.match is None and hit.affine is None
                continue
            (alone,) = match(query.encoded.cells_VNF, stored[hit.row : hit.row + 1])
            assert (hit.match, hit.affine) == (alone.score, alone.affine)
    best = [max(reply.hits, key=lambda hit: hit.match or 0) for reply in replies[:2]]
    assert [(hit.row, hit.mirrored) for hit in best] == [(5, False), (20, True)]
    assert set(partition.last_timings_ms) == {"count", "assign", "scan", "cut", "read", "refine", "verify"}


def test_a_codec_finds_what_an_exact_search_finds(
    catalog: Any, vectors: Any, root: Path, codecs: Any, question: Any, open_partition: Open
) -> None:
    pool = vectors(600, 4)
    catalog.commit(list(pool))
    for codec in codecs.values():
        Segment.build(root, codec, np.arange(600, dtype=np.uint64), pool, 0, 600)
    rng = np.random.default_rng(5)
    asked = np.clip(pool[:60] + rng.normal(0, 8, (60, 256)), -127, 127).astype(np.int8)
    queries = [question(vector, shortlist=20, nprobe=3) for vector in asked]
    exact = open_partition(catalog).search(queries)
    assert [reply.hits[0].row for reply in exact] == list(range(60))
    for kind in ("opq", "paper"):
        replies = open_partition(catalog, kind).search(queries)
        first = np.mean([reply.hits[0].row == row for row, reply in enumerate(replies)])
        both = [
            {hit.row for hit in coded.hits} & {hit.row for hit in found.hits[:10]}
            for coded, found in zip(replies, exact, strict=True)
        ]
        assert first >= 0.95
        assert np.mean([len(one) for one in both]) >= 7
        for reply in replies:
            assert reply.live_by_rank is not None and reply.live_by_rank.sum() == 600
            assert reply.live_by_rank[: reply.nprobe].sum() >= LIVE_PER_SHORTLIST * 20


def test_filters_are_counted_cached_and_refused(
    catalog: Any, vectors: Any, question: Any, open_partition: Open
) -> None:
    catalog.commit(list(vectors(40, 1)))
    partition = open_partition(catalog, filter_cache_max=2)
    counted: list[str] = []
    matching = catalog.matching
    catalog.matching = lambda condition: (counted.append(condition.text), matching(condition))[1]
    texts = ["shelf = 1", "shelf = 2", "shelf = 1", "shelf = 3", "shelf = 2"]
    for text in texts:
        (reply,) = partition.search([question(vectors(1, 2), filter=text, shortlist=40)])
        wanted = {r for r, record in catalog.rows.items() if record["metadata"]["shelf"] == int(text[-1])}
        assert {hit.row for hit in reply.hits} == wanted
        assert reply.images_searched == reply.images_total == len(wanted)
    assert len(counted) == 4, "a question that was asked among the last two is not evaluated again"
    with pytest.raises(BadRequest):
        partition.search([question(vectors(1, 2), filter="no_such_column = 1")])


def test_an_empty_collection_answers_with_nothing(
    catalog: Any, vectors: Any, question: Any, open_partition: Open
) -> None:
    for kind in ("exact", "opq"):
        (reply,) = open_partition(catalog, kind).search([question(vectors(1, 2))])
        assert (reply.hits, reply.images_searched, reply.images_total, reply.seq) == ((), 0, 0, 0)
        assert merge({"one": reply}, 5).nprobe_needed is None
    assert open_partition(catalog).search([]) == []


def test_a_codec_of_other_weights_is_refused(catalog: Any, root: Path, codecs: Any) -> None:
    with pytest.raises(Conflict, match="scale"):
        Partition(catalog, root, Settings(), scale=1.0, codec=codecs["opq"])


def test_searches_go_on_while_the_collection_grows_and_is_sealed(
    catalog: Any, vectors: Any, root: Path, codecs: Any, question: Any, open_partition: Open, settings_with: Any
) -> None:
    pool = vectors(200, 1)
    catalog.commit(list(pool[:20]))
    partition = open_partition(catalog, "opq", tail_rows_max=16, merge_fanin=2)
    wrong: list[Any] = []
    done = threading.Event()

    def search() -> None:
        while not done.is_set():
            (reply,) = partition.search([question(pool[0], nprobe=0)])
            if reply.images_searched != reply.images_total or reply.hits[0].row != 0:
                wrong.append(reply)

    searcher = threading.Thread(target=search)
    searcher.start()
    for start in range(20, 200, 20):
        catalog.commit(list(pool[start : start + 20]))
        maintain(catalog, root, codecs["opq"], settings_with(tail_rows_max=16, merge_fanin=2))
        partition.refresh()
    done.set()
    searcher.join()
    assert wrong == []


@pytest.fixture
def real(root: Path) -> Any:
    with Catalog.create(str(root), columns={"shelf": "integer"}) as catalog:
        yield catalog


@pytest.mark.parametrize("kind", ["exact", "opq"])
def test_on_the_real_catalog(
    kind: str, real: Any, vectors: Any, root: Path, codecs: Any, question: Any, scale: float, settings_with: Any
) -> None:
    pool = vectors(60, 8)

    def draft(row: int, replaces: int | None = None) -> Draft:
        return Draft(
            image_id=f"id-{row if replaces is None else replaces:03d}",
            name=f"{row}.jpg",
            sha256=f"{row:064x}",
            width=400,
            height=300,
            embedding_D=pool[row],
            cells_NF=np.full((196, 32), row, np.int8),
            pixels=b"jpeg",
            weights="w",
            job="job",
            source=f"{row}.jpg",
            metadata={"shelf": row % 3},
        )

    settings = settings_with(tail_rows_max=16)
    codec = codecs[kind]
    real.commit([draft(row) for row in range(50)])
    maintain(real, root, codec, settings)
    real.commit([draft(row) for row in range(50, 59)])
    before = real.seq
    partition = Partition(real, root, settings, scale=scale, codec=codec)
    assert {unit.kind for unit in partition.units} == {"segment", "tail"}
    real.delete(["id-003", "id-055"])
    real.commit([draft(59, replaces=7)], replace=True)
    reader = Partition(Catalog.open(str(root)), root, settings, scale=scale, codec=codec)
    for host in (partition, reader):
        now, past, shelf = host.search(
            [
                question(pool[7], nprobe=0, shortlist=100),
                question(pool[7], nprobe=0, shortlist=100, as_of=before),
                question(pool[7], nprobe=0, shortlist=100, filter="shelf = 1"),
            ]
        )
        assert {hit.image_id for hit in now.hits} == {f"id-{row:03d}" for row in range(59)} - {"id-003", "id-055"}
        assert next(hit.row for hit in now.hits if hit.image_id == "id-007") == 59
        assert {hit.row for hit in past.hits} == set(range(59)) and past.hits[0].image_id == "id-007"
        assert {hit.row for hit in shelf.hits} == {r for r in range(60) if (r % 3 == 1)} - {55, 7}
        assert all(reply.images_searched == reply.images_total for reply in (now, past, shelf))
