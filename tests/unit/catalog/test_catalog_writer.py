"""One committer, its syncs, its refusals; and readers beside it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from stemma.catalog import state
from stemma.catalog.catalog import Catalog
from stemma.catalog.durable import Disk, manifest_path
from stemma.catalog.journal import Entry
from stemma.catalog.schema import Draft
from stemma.errors import BadRequest, Conflict, Corrupt, NotFound, Unavailable

MakeDraft = Callable[..., Draft]


class Noting(Disk):
    """Notes every call; ``fail_at`` makes that call fail as a full or dying disk does."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, str]] = []
        self.fail_at = -1

    def _note(self, name: str, what: str) -> None:
        self.calls.append((name, what))
        if len(self.calls) == self.fail_at:
            raise OSError(28, "No space left on device")

    def fsync_file(self, path: Path) -> None:
        self._note("fsync", path.suffix)
        super().fsync_file(path)

    def fsync_dir(self, path: Path) -> None:
        self._note("fsync", path.name + "/")
        Disk.fsync_file(self, path)

    def append(self, path: Path, body: bytes) -> None:
        self._note("append", path.name)
        super().append(path, body)

    def step(self, name: str) -> None:
        self._note("step", name)


def test_a_commit_is_acknowledged_after_its_syncs_in_their_order(url: str, draft: MakeDraft) -> None:
    disk = Noting()
    with Catalog.create(url, columns={}, disk=disk) as catalog:
        disk.calls.clear()
        catalog.commit([draft(n) for n in range(5)])
        order = [
            ("step", "written"),
            ("fsync", ".lance"),
            ("fsync", "data/"),
            ("step", "committed"),
            ("fsync", ".manifest"),
            ("fsync", ".txn"),
            ("fsync", "_versions/"),
            ("fsync", "_transactions/"),
            ("append", "commits.log"),
            ("fsync", ".log"),
            ("step", "acknowledged"),
        ]
        assert disk.calls == order
        disk.calls.clear()
        catalog.delete([draft(1).sha256])
        assert disk.calls == order


def test_a_failed_write_stops_writing_until_reopened_and_loses_nothing(url: str, draft: MakeDraft) -> None:
    with Catalog.create(url) as catalog:
        catalog.commit([draft("first", "first", metadata={"n": 1})])
    for fail_at in range(1, 12):
        disk = Noting()
        catalog = Catalog.open(url, write=True, disk=disk)
        disk.fail_at = len(disk.calls) + fail_at
        with pytest.raises(OSError, match="No space"):
            catalog.commit([draft(fail_at, f"id{fail_at}")])
        with pytest.raises(Unavailable, match="reopen"):
            catalog.commit([draft("more")])
        with pytest.raises(Unavailable, match="reopen"):
            catalog.delete(["first"])
        assert catalog.pixels("first") == draft("first").pixels
        catalog.close()
    with Catalog.open(url, write=True) as catalog:
        there = set(catalog.ids())
        assert {"first"} <= there <= {"first", *(f"id{n}" for n in range(1, 12))}
        assert catalog.commit([draft(n, f"id{n}") for n in range(1, 12)]).count("rejected") == 0
        assert len(catalog) == 12


def test_a_second_writer_is_refused_naming_the_first(catalog: Catalog, url: str) -> None:
    with pytest.raises(Conflict, match=rf"process {os.getpid()} on "):
        Catalog.open(url, write=True)
    with pytest.raises(Conflict):
        Catalog.create(url)
    code = f"from stemma.catalog import Catalog; Catalog.open({url!r}, write=True)"
    other = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert other.returncode == 1 and f"process {os.getpid()} on " in other.stderr
    catalog.close()
    Catalog.open(url, write=True).close()


def test_a_writer_whose_lock_was_removed_may_not_commit(catalog: Catalog, url: str, draft: MakeDraft) -> None:
    catalog.commit([draft(1)])
    Path(url, "writer.lock").unlink()
    with pytest.raises(Conflict, match="reopen"):
        catalog.commit([draft(2)])
    with Catalog.open(url, write=True) as other:
        other.commit([draft(3)])
        with pytest.raises(Conflict, match="reopen"):
            catalog.delete([draft(1).sha256])
        assert len(other) == 2


def test_reading_needs_no_lock_and_cannot_write(catalog: Catalog, url: str, draft: MakeDraft) -> None:
    reader = Catalog.open(url)
    with pytest.raises(Conflict, match="write=True"):
        reader.commit([draft(1)])
    with pytest.raises(Conflict, match="write=True"):
        reader.delete(["x"])


def test_a_refresh_with_nothing_new_reads_nothing(
    catalog: Catalog, url: str, draft: MakeDraft, monkeypatch: pytest.MonkeyPatch
) -> None:
    reader = Catalog.open(url)
    catalog.commit([draft(n, f"id{n}") for n in range(3)])
    assert reader.refresh() == 1
    offsets: list[int] = []
    real = state.read_identities
    monkeypatch.setattr(state, "read_identities", lambda table, at: (offsets.append(at), real(table, at))[1])
    before = reader.snapshot()
    for _ in range(3):
        assert reader.refresh() == 1
    assert offsets == [] and reader.snapshot() is before
    catalog.commit([draft(7, "id7")])
    offsets.clear()
    assert reader.refresh() == 2
    assert offsets == [3]  # the new row alone


def test_other_weights_are_a_conflict(catalog: Catalog, draft: MakeDraft) -> None:
    assert catalog.weights is None
    with pytest.raises(Conflict, match="w2"):
        catalog.commit([draft(1), draft(2, weights="w2")])
    catalog.commit([draft(1)])
    with pytest.raises(Conflict, match="w2"):
        catalog.commit([draft(2, weights="w2")])
    assert (catalog.weights, len(catalog)) == ("w1", 1)


def test_there_is_none_or_one(url: str) -> None:
    for write in (False, True):
        with pytest.raises(NotFound, match="no collection"):
            Catalog.open(url, write=write)
    Catalog.create(url).close()
    with pytest.raises(Conflict, match="already"):
        Catalog.create(url)
    with pytest.raises(BadRequest, match="s3"):
        Catalog.open("s3://bucket/x")


@pytest.mark.parametrize("damage", ["empty", "half", "zeros"])
@pytest.mark.parametrize("acknowledged", [False, True])
def test_a_torn_head_manifest_is_dropped_only_if_never_acknowledged(
    url: str, draft: MakeDraft, damage: str, acknowledged: bool
) -> None:
    with Catalog.create(url) as catalog:
        catalog.commit([draft(1, "kept")])
        version = catalog._state.now.catalog.version
    root = Path(url)
    head = manifest_path(root / "catalog.lance", version)
    body = head.read_bytes()
    if not acknowledged:
        head = manifest_path(root / "catalog.lance", version + 1)
    head.write_bytes({"empty": b"", "half": body[: len(body) // 2], "zeros": bytes(len(body))}[damage])
    if acknowledged:
        for write in (False, True):
            with pytest.raises(Corrupt, match="not what was acknowledged"):
                Catalog.open(url, write=write)
        assert head.exists()
        return
    assert list(Catalog.open(url).ids()) == ["kept"]
    assert head.exists()
    with Catalog.open(url, write=True) as catalog:
        assert len(catalog.notes) == 1 and "never acknowledged" in catalog.notes[0]
        assert not head.exists()
        assert list(catalog.ids()) == ["kept"]
        catalog.commit([draft(2, "next")])
    assert Catalog.open(url, write=True).notes == ()


def test_a_row_number_is_never_used_again(url: str, draft: MakeDraft) -> None:
    rows = []
    for _ in range(4):
        with Catalog.create(url) if not rows else Catalog.open(url, write=True) as catalog:
            catalog.commit([draft(1, "same")])
            rows.append(int(catalog.rows_of(["same"])[0]))
            catalog.delete(["same"])
            catalog.compact(retain_s=0, keep_versions_s=0)
            assert len(catalog.snapshot().row_R) == 0
            with pytest.raises(NotFound, match="row"):
                catalog.read(np.array(rows, np.uint64), ["image_id"])
    assert rows == [0, 1, 2, 3]
    assert json.loads(Path(url, "writer.json").read_text())["pid"] == os.getpid()


def test_compaction_drops_what_is_older_than_retained_and_keeps_the_rest(catalog: Catalog, draft: MakeDraft) -> None:
    for n in range(6):
        catalog.commit([draft(n, f"id{n}")])
    catalog.delete(["id0"])
    catalog.commit([draft("new", "id1")], replace=True)
    reader = Catalog.open(catalog.url)
    done = catalog.compact(retain_s=3600)
    assert (done.rows_dropped, done.fragments_before, done.fragments_after) == (0, 7, 1)
    assert reader.snapshot().count(6) == 6
    assert len(reader.read(reader.snapshot().row_R, ["pixels"])["pixels"]) == 7  # its files are still there
    done = catalog.compact(retain_s=0, keep_versions_s=0)
    assert (done.rows_dropped, done.horizon) == (2, 8)
    assert len(reader.read(reader.rows_of(["id5"]), ["pixels"])["pixels"]) == 1  # refreshes when its files are gone
    with pytest.raises(BadRequest, match="dropped"):
        catalog.rows_of(["id0"], as_of=6)
    assert catalog.sources("job") == {draft(n).source for n in (2, 3, 4, 5, "new")}


def test_a_filter_is_aligned_with_the_snapshot_that_asks(catalog: Catalog, draft: MakeDraft) -> None:
    catalog.commit([draft(n, f"id{n}", metadata={"year": n % 2}) for n in range(4)])
    held = catalog.snapshot()
    catalog.delete(["id1"])
    catalog.commit([draft(9, "id9", metadata={"year": 1})])
    assert catalog.matching("m_year = 1").tolist() == [False, True, False, True, True]
    assert catalog.matching("m_year = 1", held).tolist() == [False, True, False, True]
    catalog.compact(retain_s=0, keep_versions_s=0)
    assert catalog.matching("m_year = 1", held).tolist() == [False, False, False, True]


def test_sources_of_a_job(catalog: Catalog, draft: MakeDraft) -> None:
    catalog.commit([draft(1, job="it's"), draft(2, job="it's"), draft(3, job="other")])
    catalog.delete([draft(1).sha256])
    assert catalog.sources("it's") == {draft(1).source, draft(2).source}
    assert catalog.sources("none") == set()


def test_scan_goes_in_row_order_over_any_range(catalog: Catalog, draft: MakeDraft) -> None:
    for first in range(0, 12, 4):
        catalog.commit([draft(n, f"id{n}") for n in range(first, first + 4)])
    catalog.delete(["id2"])
    for rows in (None, (0, 12), (3, 9), (5, 5), (11, 99), (50, 60)):
        parts = list(catalog.scan(["row", "image_id", "embedding"], rows=rows))
        found = [int(row) for part in parts for row in part["row"]]
        assert found == [row for row in range(12) if rows is None or rows[0] <= row < rows[1]]
        for part in parts:
            for row, embedding_D in zip(part["row"], part["embedding"], strict=True):
                assert np.array_equal(embedding_D, draft(int(row)).embedding_D)
    with pytest.raises(BadRequest, match="unknown column"):
        catalog.read([0], ["vector"])


def test_readers_in_threads_see_whole_commits_while_the_writer_goes_on(
    catalog: Catalog, url: str, draft: MakeDraft
) -> None:
    """Each commit stores a pair and each delete ends a pair: nobody may ever see half of one."""
    reader = Catalog.open(url)
    done = threading.Event()
    wrong: list[str] = []

    def watch() -> None:
        last = 0
        while not done.is_set():
            seq = reader.refresh()
            snapshot = reader.snapshot()
            live = snapshot.row_R[snapshot.live()]
            ids = reader.read(live, ["image_id"])["image_id"]
            pairs = {image_id[1:] for image_id in ids}
            if seq < last or len(ids) != 2 * len(pairs):
                wrong.append(f"{seq} after {last}: {ids}")
            last = seq

    with ThreadPoolExecutor(2) as pool:
        watching = [pool.submit(watch) for _ in range(2)]
        for n in range(12):
            catalog.commit([draft((n, side), f"{side}{n}") for side in "ab"])
            if n % 3 == 2:
                catalog.delete([f"a{n - 1}", f"b{n - 1}"])
            if n % 5 == 4:
                catalog.compact(retain_s=0)
        done.set()
        for one in watching:
            one.result()
    assert wrong == []


def test_opening_starts_again_when_a_compaction_comes_between(
    catalog: Catalog, url: str, draft: MakeDraft, monkeypatch: pytest.MonkeyPatch
) -> None:
    for n in range(3):
        catalog.commit([draft(n)])
    real = state.check_manifests
    calls: list[int] = []

    def meanwhile(root: Path, entries: list[Entry]) -> None:
        calls.append(len(entries))
        if len(calls) == 1:
            catalog.compact(retain_s=0, keep_versions_s=0)
        real(root, entries)

    monkeypatch.setattr(state, "check_manifests", meanwhile)
    assert len(Catalog.open(url)) == 3
    assert calls[0] == 4 and calls[-1] == 1
