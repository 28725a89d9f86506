"""The journal: torn ends are told from damage, and one journal from its successor."""

from __future__ import annotations

from pathlib import Path

import pytest

from stemma.catalog import journal
from stemma.catalog.durable import Disk
from stemma.catalog.journal import Entry, FileDigest
from stemma.errors import Corrupt, NotFound


def _entry(seq: int) -> Entry:
    return Entry(
        seq=seq, at_s=seq / 3, catalog=seq + 1, tombstones=1, next_row=7 * seq, weights="w",
        files=(FileDigest(path=f"catalog.lance/data/{seq}.lance", size_bytes=seq, crc=seq),), history=((1, 2.5),),
    )  # fmt: skip


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A journal of three entries."""
    journal.replace(tmp_path, [_entry(0)], Disk())
    journal.append(tmp_path, _entry(1), Disk())
    journal.append(tmp_path, _entry(2), Disk())
    return tmp_path / journal.NAME


def test_entries_come_back_and_are_followed(path: Path) -> None:
    entries, place, torn = journal.read(path.parent)
    assert (entries, torn) == ([_entry(0), _entry(1), _entry(2)], False)
    assert not journal.changed(path.parent, place)
    journal.append(path.parent, _entry(3), Disk())
    assert journal.changed(path.parent, place)
    more, place, _ = journal.read(path.parent, place)
    assert more == [_entry(3)]
    journal.replace(path.parent, entries, Disk())
    assert journal.changed(path.parent, place)
    assert journal.read(path.parent, place)[0] == entries
    with pytest.raises(NotFound):
        journal.read(path.parent / "elsewhere")


def test_another_journal_is_noticed_even_with_the_same_inode_and_size(path: Path) -> None:
    entries, place, _ = journal.read(path.parent)
    before = path.read_bytes()
    journal.replace(path.parent, entries, Disk())
    after = path.read_bytes()
    path.write_bytes(before)
    assert not journal.changed(path.parent, place)
    with path.open("r+b") as file:
        file.write(after)
    assert len(after) == len(before)
    assert journal.changed(path.parent, place)


@pytest.mark.parametrize("zeros", [False, True])
def test_a_torn_last_line_was_never_acknowledged(path: Path, zeros: bool) -> None:
    body = path.read_bytes()
    last = len(_entry(2).line())
    for cut in range(1, last + 1):
        path.write_bytes(body[:-cut] + (bytes(cut) if zeros and cut >= 64 else b""))
        entries, place, torn = journal.read(path.parent)
        if cut == 1:  # all but the newline: whole, and rewritten at the next opening for writing
            assert (len(entries), torn) == (3, True)
        else:
            assert len(entries) == 2
            assert torn == (cut < last or zeros)
            assert place.size_bytes == len(body) - last


def test_any_flipped_byte_is_damage_or_changes_nothing(path: Path) -> None:
    body = path.read_bytes()
    whole = journal.read(path.parent)[0]
    for at in range(len(body)):
        for flip in (0x01, 0xFF):
            broken = bytearray(body)
            broken[at] ^= flip
            path.write_bytes(broken)
            try:
                entries, _, _ = journal.read(path.parent)
            except Corrupt:
                continue
            assert entries == whole, f"byte {at} ^ {flip:#x}"


def test_a_newer_format_is_refused_by_name(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(journal, "FORMAT", 2)
    journal.replace(path.parent, [_entry(0)], Disk())
    monkeypatch.setattr(journal, "FORMAT", 1)
    with pytest.raises(Corrupt, match="newer stemma"):
        journal.read(path.parent)
