"""What opening for writing makes of every state a crash can leave between two effects."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from stemma.catalog import journal
from stemma.catalog.catalog import Catalog
from stemma.catalog.durable import Disk, manifest_path, versions_on_disk
from stemma.catalog.fsck import fsck
from stemma.catalog.schema import Draft
from stemma.errors import Conflict, Corrupt, NotFound

MakeDraft = Callable[..., Draft]


class Crash(BaseException):
    """The process is gone: nothing of ours may catch it."""


class Crashing(Disk):
    """Crashes at the n-th time a step of this name is reached."""

    def __init__(self, step: str, nth: int = 1) -> None:
        self._step = step
        self._left = nth

    def step(self, name: str) -> None:
        self._left -= name == self._step
        if name == self._step and self._left == 0:
            raise Crash


def crash(url: str, step: str, do: Callable[[Catalog], object], nth: int = 1) -> None:
    catalog = Catalog.open(url, write=True, disk=Crashing(step, nth))
    with pytest.raises(Crash):
        do(catalog)
    catalog.close()  # the kernel would let go of the lock


@pytest.fixture
def started(url: str, draft: MakeDraft) -> str:
    with Catalog.create(url) as catalog:
        catalog.commit([draft(n, f"id{n}") for n in range(4)])
        catalog.delete(["id3"])
    return url


def test_a_commit_that_lance_has_and_the_journal_has_not_is_adopted(started: str, draft: MakeDraft) -> None:
    crash(started, "committed", lambda c: c.commit([draft(9, "id9", metadata={"year": 1})]), nth=2)
    assert list(Catalog.open(started).ids()) == ["id0", "id1", "id2"]  # a reader follows the journal alone
    with Catalog.open(started, write=True) as catalog:
        assert len(catalog.notes) == 1 and "adopted" in catalog.notes[0]
        assert list(catalog.ids()) == ["id0", "id1", "id2", "id9"]
        assert (catalog.seq, catalog.columns) == (3, {"year": "integer"})
        assert catalog.commit([draft(9, "id9")]).items[0].status == "duplicate"
        catalog.commit([draft(10, "id10")])
        assert catalog.rows_of(["id9", "id10"]).tolist() == [4, 5]
    assert fsck(started).ok


def test_columns_that_were_added_for_a_commit_that_never_came_are_harmless(started: str, draft: MakeDraft) -> None:
    crash(started, "committed", lambda c: c.commit([draft(9, "id9", metadata={"year": 1})]), nth=1)
    with Catalog.open(started, write=True) as catalog:
        assert (catalog.seq, len(catalog), catalog.columns) == (2, 3, {"year": "integer"})
        assert catalog.commit([draft(9, "id9", metadata={"year": 2})]).seq == 3
    assert fsck(started).ok


def test_a_delete_that_was_not_acknowledged_is_adopted(started: str) -> None:
    crash(started, "committed", lambda c: c.delete(["id0"]))
    with Catalog.open(started, write=True) as catalog:
        assert list(catalog.ids()) == ["id1", "id2"]
        assert catalog.seq == 3
        assert catalog.rows_of(["id0"], as_of=2).tolist() == [0]
    assert fsck(started).ok


def test_fragments_without_a_commit_are_nothing(started: str, draft: MakeDraft) -> None:
    crash(started, "written", lambda c: c.commit([draft(9, "id9")]))
    with Catalog.open(started, write=True) as catalog:
        assert (catalog.notes, len(catalog)) == ((), 3)
    assert fsck(started).ok


@pytest.mark.parametrize("nth", [1, 2])
def test_a_compaction_that_was_not_acknowledged_is_undone(started: str, draft: MakeDraft, nth: int) -> None:
    with Catalog.open(started, write=True) as catalog:
        catalog.commit([draft(5, "id5")])
        catalog.delete(["id5"])
    crash(started, "committed", lambda c: c.compact(retain_s=0, keep_versions_s=0), nth=nth)
    with Catalog.open(started, write=True) as catalog:
        assert catalog.notes and all("compaction" in note for note in catalog.notes)
        assert list(catalog.ids()) == ["id0", "id1", "id2"]
        assert catalog.rows_of(["id5"], as_of=3).tolist() == [4]
        catalog.compact(retain_s=0, keep_versions_s=0)
        assert len(catalog.snapshot().row_R) == 3
    assert fsck(started).ok


def test_an_adopted_commit_is_read_whole_before_it_counts(started: str, draft: MakeDraft) -> None:
    """The version is there, its data file is not what was written: dropped, not adopted and not fatal."""
    before = {path.name for path in Path(started, "catalog.lance", "data").iterdir()}
    crash(started, "committed", lambda c: c.commit([draft(9, "id9")]))
    (new,) = [path for path in Path(started, "catalog.lance", "data").iterdir() if path.name not in before]
    body = new.read_bytes()
    at = body.index(draft(9).pixels)
    new.write_bytes(body[:at] + bytes([body[at] ^ 1]) + body[at + 1 :])
    with Catalog.open(started, write=True) as catalog:
        assert len(catalog.notes) == 1 and "dropped the head manifest" in catalog.notes[0]
        assert catalog.commit([draft(9, "id9")]).items[0].status == "stored"
    assert fsck(started).ok


def test_a_creation_that_never_finished_is_no_collection_and_can_be_done_again(url: str, draft: MakeDraft) -> None:
    for nth in (1, 2):
        with pytest.raises(Crash):
            Catalog.create(url, disk=Crashing("created", nth))
        with pytest.raises(NotFound):
            Catalog.open(url, write=True)
    with Catalog.create(url) as catalog:
        assert any("never finished" in note for note in catalog.notes)
        catalog.commit([draft(1)])
    with pytest.raises(Conflict, match="already"):
        Catalog.create(url)


def test_a_lost_journal_never_costs_the_rows(started: str) -> None:
    Path(started, journal.NAME).unlink()
    with pytest.raises(NotFound):
        Catalog.open(started)
    with pytest.raises(Corrupt, match="restore"):
        Catalog.create(started)
    assert len(versions_on_disk(Path(started, "catalog.lance"))) == 2


def test_an_acknowledged_manifest_that_is_gone_is_damage(started: str) -> None:
    version = Catalog.open(started)._state.now.catalog.version
    manifest_path(Path(started, "catalog.lance"), version).unlink()
    for write in (False, True):
        with pytest.raises(Corrupt, match="missing"):
            Catalog.open(started, write=write)


def test_old_hints_and_leftovers_are_ignored(started: str, draft: MakeDraft) -> None:
    """Lance's own version hint is never synced: whatever a cut makes of it, our journal says which version counts."""
    hint = Path(started, "catalog.lance", "_versions", "latest_version_hint.json")
    for text in ('{"version":1}', '{"version":99}', "", "\0" * 13, "{"):
        hint.write_text(text)
        Path(started, "catalog.lance", "data", ".tmp_left").write_bytes(b"half")
        with Catalog.open(started, write=True) as catalog:
            catalog.commit([draft(text, f"hint {len(text)} {text[:3]!r}")])
        assert fsck(started).ok
    assert len(Catalog.open(started)) == 3 + 5
