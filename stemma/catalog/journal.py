"""The journal: one line per acknowledged commit, ``commits.log``. What it does not name was never acknowledged.

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
import zlib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from stemma.catalog.durable import Disk, file_digest, replace_file
from stemma.errors import Corrupt, NotFound

FORMAT = 1
NAME = "commits.log"
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
    files: tuple[FileDigest, ...]
    base: bool = False
    """True: the tables were rewritten (creation, compaction) and ``files`` lists all there are."""
    declared: bool = False
    """True: the metadata columns were declared at creation, none are inferred."""
    horizon: int = 0
    """Rows deleted at or before this seq may be gone for good."""
    history: tuple[tuple[int, float], ...] = ()
    """(seq, at_s) of earlier commits, kept by compaction so that retention can still tell their age."""
    format: int = FORMAT

    def line(self) -> bytes:
        """The journal's line."""
        body = json.dumps(dataclasses.asdict(self), separators=(",", ":")).encode()
        return b"%08x %s\n" % (zlib.crc32(body), body)


@dataclass(frozen=True, slots=True)
class Place:
    """How far a journal was read: which file (compaction puts a new one in its place), and how many good bytes."""

    inode: int = -1
    size_bytes: int = 0


def read(root: Path, after: Place | None = None) -> tuple[list[Entry], Place, bool]:
    """(entries, place, torn): entries behind ``after``, or all if the file is another one by now.

    Entries of a changed file start with its base entry. Raises NotFound without a journal, Corrupt on damage.
    """
    path = root / NAME
    after = after or Place()
    try:
        with path.open("rb") as file:
            inode = os.fstat(file.fileno()).st_ino
            start = after.size_bytes if inode == after.inode else 0
            file.seek(start)
            body = file.read()
    except FileNotFoundError as error:
        raise NotFound(f"there is no collection at {root}", subject=str(root)) from error
    entries: list[Entry] = []
    good = start
    for line in _lines(body):
        last = good + len(line) == start + len(body)
        # A last line that is whole but for its newline is damage to one byte, not a torn write: it counts.
        entry = _parse(line) or (_parse(line[:-1]) if last else None)
        if entry is None:
            if last and (not line.endswith(b"\n") or _TORN in line):
                return entries, Place(inode, good), True
            raise Corrupt(f"the journal is damaged at byte {good}; run `stemma fsck`", subject=NAME)
        entries.append(entry)
        good += len(line)
    if start == 0 and not entries:
        raise Corrupt("the journal is empty; restore the collection from a snapshot", subject=NAME)
    return entries, Place(inode, good), not body.endswith(b"\n") and bool(body)


def changed(root: Path, place: Place) -> bool:
    """Whether there is anything to read behind ``place``: one stat, no scan."""
    stat = (root / NAME).stat()
    return stat.st_ino != place.inode or stat.st_size != place.size_bytes


def append(root: Path, entry: Entry, disk: Disk) -> None:
    """Make a commit acknowledged: append its line, sync."""
    disk.append(root / NAME, entry.line())
    disk.fsync_file(root / NAME)


def replace(root: Path, entries: Iterable[Entry], disk: Disk) -> None:
    """Put a new journal in place of the old one (creation, repair, compaction), atomically and synced."""
    replace_file(disk, root / NAME, b"".join(entry.line() for entry in entries))


def _lines(body: bytes) -> list[bytes]:
    *whole, rest = body.split(b"\n")
    return [line + b"\n" for line in whole] + ([rest] if rest else [])


def _parse(line: bytes) -> Entry | None:
    crc, _, body = line.rstrip(b"\n").partition(b" ")
    if len(crc) != 8 or not body or b"%08x" % zlib.crc32(body) != crc:
        return None
    tree = json.loads(body)
    if tree["format"] > FORMAT:
        raise Corrupt(
            f"the collection was written by a newer stemma (format {tree['format']}, this one reads {FORMAT})",
            subject=NAME,
        )
    tree["files"] = tuple(FileDigest(**file) for file in tree["files"])
    tree["history"] = tuple((int(seq), float(at_s)) for seq, at_s in tree["history"])
    return Entry(**tree)
