"""The journal: one line per acknowledged commit, ``commits.log``. What it does not name was never acknowledged.

The first line is a header with an identity of its own: compaction puts a new journal in the place of the old one, and
readers must notice, though the file system likes to give the new file the old one's inode (it did, in our model test).

It is what tells an unreadable head manifest that may be dropped from one that was acknowledged and has rotted, it pairs
the versions of the two Lance tables, and it holds size and CRC of every file a commit made, since Lance has no
checksums. A line is ``<crc32 of the rest, 8 hex digits> <JSON>`` and a newline, appended and synced before a commit is
acknowledged. A torn last line (no newline, or a run of zeros where the disk had room but no bytes) was never
acknowledged; any other line that fails its CRC is damage.
"""

from __future__ import annotations

import dataclasses
import json
import os
import uuid
import zlib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stemma.catalog.durable import Disk, file_digest, replace_file
from stemma.errors import Corrupt, NotFound

FORMAT = 1
NAME = "commits.log"
_HEADER_BYTES = 67
_TORN = b"\0" * 64


@dataclass(frozen=True, slots=True, kw_only=True)
class FileDigest:
    """A file of the collection, as it was when its commit was acknowledged."""

    path: str
    """Relative to the collection's folder."""
    size_bytes: int
    crc: int

    @classmethod
    def of(cls, root: Path, path: Path) -> FileDigest:
        size_bytes, crc = file_digest(path)
        return cls(path=path.relative_to(root).as_posix(), size_bytes=size_bytes, crc=crc)


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """One acknowledged commit, and what the collection is after it."""

    seq: int
    at_s: float
    """Unix time, for retention only."""
    catalog: int
    """Lance version of the catalog table."""
    tombstones: int
    next_row: int
    weights: str | None
    """Digest of the weights that made every stored vector; None before the first commit."""
    files: tuple[FileDigest, ...]
    base: bool = False
    """True: the tables were rewritten (creation, compaction) and ``files`` lists all there are."""
    declared: bool = False
    """True: the metadata columns were declared at creation, none are inferred."""
    horizon: int = 0
    """Rows deleted at or before this seq may be gone for good."""
    history: tuple[tuple[int, float], ...] = ()
    """(seq, at_s) of earlier commits, kept by compaction so that retention can still tell their age."""
    objects_weights: str | None = None
    """Digest of the weights that made every stored object; None before the first, and in journals of before objects."""

    def line(self) -> bytes:
        """The journal's line."""
        return _line(dataclasses.asdict(self))


@dataclass(frozen=True, slots=True)
class Place:
    """How far a journal was read: which one (compaction puts a new one in its place), and how many good bytes."""

    header: bytes = b""
    size_bytes: int = 0


def read(root: Path, after: Place | None = None) -> tuple[list[Entry], Place, bool]:
    """(entries, place, torn): entries behind ``after``, or all of them if the journal is another one by now.

    Entries of another journal start with its base entry. Raises NotFound without a journal, Corrupt on damage.
    """
    after = after or Place()
    try:
        with (root / NAME).open("rb") as file:
            header = _checked_header(file.read(_HEADER_BYTES))
            start = after.size_bytes if header == after.header else len(header)
            file.seek(start)
            body = file.read()
    except FileNotFoundError as error:
        raise NotFound(f"there is no collection at {root}", subject=str(root)) from error
    entries: list[Entry] = []
    good = start
    for line in _lines(body):
        last = good + len(line) == start + len(body)
        # A last line that is whole but for its newline is damage to one byte, not a torn write: it counts.
        tree = _parse(line) or (_parse(line[:-1]) if last else None)
        if tree is None:
            if last and (not line.endswith(b"\n") or _TORN in line):
                return entries, Place(header, good), True
            raise Corrupt(f"the journal is damaged at byte {good}; restore it from a snapshot", subject=NAME)
        entries.append(_entry(tree))
        good += len(line)
    if start == len(header) and not entries:
        raise Corrupt("the journal is empty; restore the collection from a snapshot", subject=NAME)
    return entries, Place(header, good), not body.endswith(b"\n") and bool(body)


def changed(root: Path, place: Place) -> bool:
    """Whether there is anything to read behind ``place``: one header and a stat, no scan."""
    with (root / NAME).open("rb") as file:
        return file.read(_HEADER_BYTES) != place.header or os.fstat(file.fileno()).st_size != place.size_bytes


def append(root: Path, entry: Entry, disk: Disk) -> None:
    """Make a commit acknowledged: append its line, sync."""
    disk.append(root / NAME, entry.line())
    disk.fsync_file(root / NAME)


def replace(root: Path, entries: Iterable[Entry], disk: Disk) -> None:
    """Put a new journal in place of the old one (creation, repair, compaction), atomically and synced."""
    header = _line({"format": FORMAT, "journal": uuid.uuid4().hex})
    assert len(header) == _HEADER_BYTES, len(header)
    replace_file(disk, root / NAME, header + b"".join(entry.line() for entry in entries))


def _line(tree: dict[str, Any]) -> bytes:
    body = json.dumps(tree, separators=(",", ":")).encode()
    return b"%08x %s\n" % (zlib.crc32(body), body)


def _lines(body: bytes) -> list[bytes]:
    *whole, rest = body.split(b"\n")
    return [line + b"\n" for line in whole] + ([rest] if rest else [])


def _parse(line: bytes) -> dict[str, Any] | None:
    crc, _, body = line.rstrip(b"\n").partition(b" ")
    if len(crc) != 8 or not body or b"%08x" % zlib.crc32(body) != crc:
        return None
    tree = json.loads(body)
    assert isinstance(tree, dict)
    return tree


def _checked_header(header: bytes) -> bytes:
    tree = _parse(header) if header.endswith(b"\n") else None
    if tree is None:
        raise Corrupt("the journal's header is damaged; restore it from a snapshot", subject=NAME)
    if tree["format"] > FORMAT:
        raise Corrupt(
            f"the collection was written by a newer stemma (format {tree['format']}, this one reads {FORMAT})",
            subject=NAME,
        )
    return header


def _entry(tree: dict[str, Any]) -> Entry:
    tree["files"] = tuple(FileDigest(**file) for file in tree["files"])
    tree["history"] = tuple((int(seq), float(at_s)) for seq, at_s in tree["history"])
    return Entry(**tree)
