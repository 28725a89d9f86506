"""Maintenance: the index follows the catalog, by itself, from any damage, and whenever it is killed."""

from __future__ import annotations

import itertools
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from stemma.config import Settings
from stemma.flow import ShardQuery, Unit
from stemma.index import folder as folders
from stemma.index.codec import Codec
from stemma.index.partition import Partition
from stemma.index.seal import Maintenance, maintain
from stemma.index.segment import FOLDER, Segment, segment_set, verify_segments

NOTHING = Maintenance()


class Index:
    """A catalog in memory with segments beside it, and the exact answer to hold against every search."""

    def __init__(self, catalog: Any, root: Path, codec: Codec, settings: Settings, make: dict[str, Any]) -> None:
        self.catalog, self.root, self.codec, self.settings = catalog, root, codec, settings
        self.make = make

    def grow(self, count: int) -> None:
        pool = self.make["vectors"](count, self.catalog.next_row)
        self.catalog.commit(list(pool))

    def maintain(self) -> Maintenance:
        return maintain(self.catalog, self.root, self.codec, self.settings)

    def units(self) -> list[tuple[int, int]]:
        return [(unit.row_lo, unit.row_hi) for unit in segment_set(self.root, self.codec)]

    def open(self) -> Partition:
        return Partition(self.catalog, self.root, self.settings, scale=self.make["scale"], codec=self.codec)

    def assert_whole(self, as_of: int | None = None) -> None:
        """Every live image is searched, and the nearest of every one of them is itself."""
        partition = self.open()
        time = self.catalog.seq if as_of is None else as_of
        live = {row: r for row, r in self.catalog.rows.items() if r["added"] <= time < r["deleted"]}
        for row, record in list(live.items())[:: max(1, len(live) // 12)]:
            query = self.make["question"](record["embedding"], as_of=as_of, nprobe=0, shortlist=1000)
            (reply,) = partition.search([query])
            assert reply.images_searched == reply.images_total == len(live)
            assert {hit.row for hit in reply.hits} == set(live)
            assert row in {hit.row for hit in reply.hits if hit.refined_distance == 0}


@pytest.fixture(params=["exact", "opq"])
def index(
    request: pytest.FixtureRequest,
    catalog: Any,
    root: Path,
    codecs: dict[str, Codec],
    settings_with: Callable[..., Settings],
    question: Callable[..., ShardQuery],
    vectors: Callable[..., Any],
    scale: float,
) -> Index:
    settings = settings_with(tail_rows_max=16, merge_fanin=3, segment_rows_max=150, dead_share_max=0.2)
    return Index(
        catalog, root, codecs[request.param], settings, {"question": question, "vectors": vectors, "scale": scale}
    )


def test_a_tail_is_sealed_when_it_is_long_in_whole_blocks(index: Index) -> None:
    index.grow(16)
    assert index.maintain() == NOTHING
    index.grow(5)
    done = index.maintain()
    assert len(done.built) == 1 and index.units() == [(0, 16)]
    assert index.open().units == (Unit(0, 16, "segment"), Unit(16, 24, "tail"))
    index.assert_whole()
    assert index.maintain() == NOTHING, "a second run finds nothing to do"


def test_equal_neighbours_merge_and_the_number_of_segments_stays_small(index: Index) -> None:
    sizes = []
    for _ in range(30):
        index.grow(17)
        index.maintain()
        assert verify_segments(index.root) == []
        sizes.append(len(index.units()))
    index.assert_whole()
    assert max(sizes) <= 10
    spans = index.units()
    assert spans[0][0] == 0 and all(a[1] == b[0] for a, b in itertools.pairwise(spans))
    assert max(hi - lo for lo, hi in spans) <= 150, "segment_rows_max holds"


def test_a_large_tail_is_sealed_into_segments_of_at_most_the_allowed_size(index: Index) -> None:
    index.grow(400)
    index.maintain()
    assert index.units() == [(0, 150), (150, 300), (300, 400)]
    index.assert_whole()


def test_deleted_rows_serve_the_past_until_the_catalog_lets_them_go(index: Index) -> None:
    index.grow(40)
    index.maintain()
    before = index.catalog.seq
    index.catalog.delete(list(range(0, 40, 2)))
    assert index.maintain().rewritten == ()
    index.assert_whole()
    index.assert_whole(as_of=before)

    index.catalog.drop(list(range(0, 8, 2)))
    assert index.maintain().rewritten == (), "under a fifth is gone"
    index.catalog.drop(list(range(8, 40, 2)))
    (name,) = index.maintain().rewritten
    assert len(Segment.open(index.root / FOLDER / name, index.codec, verify=True)) == 20
    index.assert_whole()


@pytest.mark.parametrize("damage", ["byte", "torn", "file", "folder"])
def test_a_damaged_segment_is_left_out_said_so_and_rebuilt(index: Index, damage: str) -> None:
    for _ in range(2):
        index.grow(17)
        index.maintain()
    first = sorted((index.root / FOLDER).iterdir())[0]
    partition = index.open()
    victim = first / "vectors.i8"
    body = victim.read_bytes()
    if damage == "folder":
        shutil.rmtree(first)
    elif damage == "file":
        victim.unlink()
    else:
        victim.write_bytes(body[:-1] if damage == "torn" else body[:100] + bytes([body[100] ^ 4]) + body[101:])
    hurt = index.open()
    query = index.make["question"](index.make["vectors"](1, 3), nprobe=0)
    (reply,) = hurt.search([query])
    assert (reply.images_searched, reply.images_total) == (18, 34)
    assert all(hit.row >= 16 for hit in reply.hits)
    assert (len(hurt.damaged) == 1) == (damage != "folder")

    done = index.maintain()
    assert done.built == (first.name,) and verify_segments(index.root) == []
    for opened in (hurt, partition):
        opened.refresh()
        assert opened.damaged == ()
        (reply,) = opened.search([query])
        assert reply.images_searched == reply.images_total == 34
    index.assert_whole()


def test_everything_comes_back_when_the_whole_index_is_deleted(index: Index) -> None:
    index.grow(60)
    index.maintain()
    before = index.units()
    shutil.rmtree(index.root / FOLDER)
    index.assert_whole()  # as tail
    index.maintain()
    assert index.units() == before
    index.assert_whole()


class Killed(BaseException):
    """The process died here; nothing after it runs, no `finally` of ours may matter."""


def killing(monkeypatch: pytest.MonkeyPatch, at: int) -> list[str]:
    """The ``at``-th write, sync, rename or removal does not happen any more."""
    calls: list[str] = []

    def counted(name: str, real: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            calls.append(name)
            if len(calls) == at:
                raise Killed(name)
            return real(*args, **kwargs)

        return call

    monkeypatch.setattr(os, "fsync", counted("fsync", os.fsync))
    monkeypatch.setattr(Path, "rename", counted("rename", Path.rename))
    monkeypatch.setattr(Path, "mkdir", counted("mkdir", Path.mkdir))
    monkeypatch.setattr(folders.shutil, "rmtree", counted("rmtree", shutil.rmtree))
    return calls


def test_killed_anywhere_it_answers_whole_and_the_next_run_completes(index: Index) -> None:
    for _ in range(2):
        index.grow(17)
        index.maintain()
    index.grow(17)  # the next run seals and then merges three
    shutil.copytree(index.root, index.root.parent / "before")
    index.maintain()
    expected, at = index.units(), 0
    names = sorted(path.name for path in (index.root / FOLDER).iterdir())
    seen: set[str] = set()
    while True:
        at += 1
        shutil.rmtree(index.root)
        shutil.copytree(index.root.parent / "before", index.root)
        with pytest.MonkeyPatch.context() as patch:
            calls = killing(patch, at)
            try:
                index.maintain()
            except Killed as point:
                seen.add(str(point))
            else:
                break
        index.assert_whole()
        index.maintain()
        assert index.units() == expected
        assert sorted(path.name for path in (index.root / FOLDER).iterdir()) == names
    assert at > 15 and seen == {"fsync", "rename", "mkdir", "rmtree"}, calls


def test_an_older_smaller_segment_beside_its_replacement_is_removed(index: Index) -> None:
    index.grow(34)
    rows, embeddings = zip(*((row, r["embedding"]) for row, r in index.catalog.rows.items()), strict=True)
    for lo, hi in ((0, 16), (16, 32), (0, 32)):
        part = np.array(rows[lo:hi], np.uint64), np.array(embeddings[lo:hi], np.int8)
        Segment.build(index.root, index.codec, *part, lo, hi)
    index.assert_whole()
    assert len(index.maintain().removed) == 2
    assert index.units() == [(0, 32)]


def test_progress_tells_what_was_done(index: Index) -> None:
    told: list[tuple[str, int]] = []
    for _ in range(3):
        index.grow(17)
        maintain(index.catalog, index.root, index.codec, index.settings, lambda what, rows: told.append((what, rows)))
    assert told == [("built", 16), ("built", 16), ("built", 16), ("merged", 48)]
