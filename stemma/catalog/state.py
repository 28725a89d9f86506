"""What an open catalog knows: the two Lance tables at their acknowledged versions, and the ledger of their rows.

Letters: R rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from stemma.catalog import journal
from stemma.catalog.durable import Disk, Table, manifest_path, reading
from stemma.catalog.encoding import IDENTITY, Identities, RowMismatch, decode, decode_identities, decode_tombstones
from stemma.catalog.journal import Entry, FileDigest, Place
from stemma.catalog.ledger import Ledger, Rows, Snapshot
from stemma.catalog.schema import ColumnType, columns_of
from stemma.errors import Corrupt, NotFound, Unavailable

CATALOG = "catalog.lance"
TOMBSTONES = "tombstones.lance"
LOADS_MAX = 5
"""Times that opening starts again because a compaction came between."""


@dataclass(frozen=True, slots=True)
class Now:
    """One consistent moment of the collection; readers hold it while the catalog moves on."""

    catalog: Table
    tombstones: Table
    entry: Entry
    snapshot: Snapshot
    columns: dict[str, ColumnType]

    def take(self, row_N: Rows, columns: Sequence[str], physical: list[str]) -> dict[str, Any]:
        """Values of ``columns`` for the rows, in the order asked. Raises NotFound, Corrupt."""
        at = np.searchsorted(self.snapshot.row_R, row_N)
        known = at < len(self.snapshot.row_R)
        known[known] = self.snapshot.row_R[at[known]] == row_N[known]
        if not known.all():
            row = int(row_N[~known][0])
            raise NotFound(f"there is no row {row} (dropped by compaction?)", subject=f"row {row}")
        unique, back = np.unique(at, return_inverse=True)
        dataset = self.catalog.dataset
        with reading(f"{len(unique)} rows of {CATALOG}"):
            table = dataset.take(unique, columns=physical) if len(unique) else _empty(dataset, physical)
        out = self.checked(table, unique, columns)
        if np.array_equal(back, np.arange(len(unique))):
            return out
        return {k: v[back] if isinstance(v, np.ndarray) else [v[i] for i in back] for k, v in out.items()}

    def checked(self, table: pa.Table, at_R: np.ndarray[Any, Any], columns: Sequence[str]) -> dict[str, Any]:
        """A table read at offsets ``at_R``, decoded. Raises Corrupt naming the row and its image_id."""
        try:
            with reading(f"rows of {CATALOG}"):
                out = decode(table, [*columns, "row"], self.columns, self.entry.weights, self.entry.objects_weights)
        except RowMismatch as error:
            raise self.corrupt(int(at_R[error.position]), error.group) from error
        wrong = np.flatnonzero(out["row"] != self.snapshot.row_R[at_R])
        if wrong.size:
            raise self.corrupt(int(at_R[wrong[0]]), "row")
        return {name: out[name] for name in columns}

    def holding(self, sql: str, row_R: Rows) -> NDArray[np.bool_]:
        """[R] True where Lance finds that ``sql`` holds, aligned with ``row_R`` (ascending)."""
        with reading(f"a filter over {CATALOG}"):
            table = self.catalog.dataset.scanner(columns=["row"], filter=sql).to_table()
        found_N = table["row"].to_numpy()
        at_N = np.searchsorted(row_R, found_N)
        there_N = at_N < len(row_R)
        there_N[there_N] = row_R[at_N[there_N]] == found_N[there_N]
        out = np.zeros(len(row_R), bool)
        out[at_N[there_N]] = True
        return out

    def lacks_objects(self) -> bool:
        """Whether a live image was stored without objects; one that was looked at has at least the whole of itself."""
        row_R = self.snapshot.row_R
        return bool((self.snapshot.live() & ~self.holding("array_length(objects) > 0", row_R)).any())

    def corrupt(self, at: int, group: str) -> Corrupt:
        """The error for the row at offset ``at``; its image_id is read without trusting it."""
        row = int(self.snapshot.row_R[at])
        try:
            with reading("image_id"):
                name = ascii(self.catalog.dataset.take([at], columns=["image_id"])["image_id"][0].as_py())
        except Corrupt:
            name = "unreadable"
        return Corrupt(
            f"row {row} (image_id {name}): {group} does not match its checksum; restore it from a snapshot "
            f"or ingest it again",
            subject=f"row {row}, image_id {name}",
        )


class State:
    """Follows the journal. ``now`` is swapped whole, so that a reader never sees half a refresh."""

    def __init__(self, root: Path, disk: Disk) -> None:
        self._root = root
        self._disk = disk
        self.ledger = Ledger()
        self.place = Place()
        self.entries = 0
        self.now: Now
        self._load()

    def refresh(self) -> None:
        """Catch up with the journal: new rows and tombstones alone are read; one stat when nothing happened."""
        if not journal.changed(self._root, self.place):
            return
        entries, place, _ = journal.read(self._root, self.place)
        if not entries:
            return
        if place.header != self.place.header:
            self._load()
            return
        head = entries[-1]
        before = self.now
        catalog = before.catalog.at(head.catalog) if head.catalog != before.catalog.version else before.catalog
        tombstones = before.tombstones
        if head.tombstones != tombstones.version:
            tombstones = tombstones.at(head.tombstones)
        self._advance(catalog, tombstones, before.tombstones.dataset.count_rows(), head)
        self.place = place
        self.entries += len(entries)

    def _load(self) -> None:
        for _ in range(LOADS_MAX):
            entries, place, _ = journal.read(self._root)
            try:
                self._load_entries(entries, place)
                return
            except Corrupt:
                # A compaction may have taken these versions away since; otherwise it is damage.
                if not journal.changed(self._root, place):
                    raise
        raise Unavailable("the collection is being compacted over and over; try again", retry_after_s=1.0)

    def _load_entries(self, entries: Sequence[Entry], place: Place) -> None:
        head = entries[-1]
        check_manifests(self._root, entries)
        catalog = Table.open(self._root / CATALOG, head.catalog, self._disk)
        tombstones = Table.open(self._root / TOMBSTONES, head.tombstones, self._disk)
        self.ledger = Ledger()
        self._advance(catalog, tombstones, 0, head)
        self.place = place
        self.entries = len(entries)

    def _advance(self, catalog: Table, tombstones: Table, dead_before: int, head: Entry) -> None:
        before = len(self.ledger)
        new = read_identities(catalog, before)
        if len(new.row_R) and int(new.row_R[-1]) >= head.next_row:
            raise Corrupt(f"row {new.row_R[-1]} is beyond the journal's next row {head.next_row}", subject=CATALOG)
        groups = self.ledger.extend(new)
        for group in groups:
            self._supersede(catalog, group)
        row_T, seq_T = read_tombstones(tombstones, dead_before)
        at_T = self.ledger.positions(row_T)
        there = at_T >= 0  # a tombstone outlives its row until the next compaction
        self.ledger.kill(at_T[there], seq_T[there])
        snapshot = self.ledger.snapshot(head.seq, head.horizon)
        with reading(f"schema of {CATALOG}"):
            columns = columns_of(catalog.dataset.schema)
        self.now = Now(catalog, tombstones, head, snapshot, columns)

    def _supersede(self, catalog: Table, group: np.ndarray[Any, Any]) -> None:
        """A newer row with the same image_id ends the older one's life; the hash only nominated them."""
        with reading(f"image_ids of {CATALOG}"):
            ids = catalog.dataset.take(group, columns=["image_id"])["image_id"].to_pylist()
        newer: dict[str, int] = {}
        ended: list[tuple[int, int]] = []
        for at, image_id in zip(group[::-1].tolist(), ids[::-1], strict=True):
            if image_id in newer:
                ended.append((at, self.ledger.added(newer[image_id])))
            newer[image_id] = at
        if ended:
            at_N, seq_N = zip(*ended, strict=True)
            self.ledger.kill(np.array(at_N), np.array(seq_N, np.uint64))


def read_identities(catalog: Table, offset: int) -> Identities:
    """The identity group of every row from ``offset`` on. Raises Corrupt."""
    table = _scan(catalog, IDENTITY, offset)
    try:
        return decode_identities(table)
    except RowMismatch as error:
        at = offset + error.position
        row = int(table["row"][error.position].as_py())
        raise Corrupt(
            f"row {row} at offset {at}: {error.group} does not match its checksum", subject=CATALOG
        ) from error


def read_tombstones(tombstones: Table, offset: int) -> tuple[Rows, Rows]:
    """(row_R, seq_R) of every tombstone from ``offset`` on. Raises Corrupt."""
    try:
        return decode_tombstones(_scan(tombstones, ("row", "seq", "crc"), offset))
    except RowMismatch as error:
        raise Corrupt(f"tombstone {offset + error.position} does not match its checksum", subject=TOMBSTONES) from error


def _scan(table: Table, columns: Sequence[str], offset: int) -> pa.Table:
    with reading(table.folder.name):
        scanner = table.dataset.scanner(columns=list(columns), offset=offset or None, scan_in_order=True)
        return scanner.to_table().combine_chunks()


def check_manifests(root: Path, entries: Sequence[Entry]) -> None:
    """The head manifests are the ones that were acknowledged, to the byte. Raises Corrupt."""
    head = entries[-1]
    wanted = {
        manifest_path(root / folder, version).relative_to(root).as_posix()
        for folder, version in ((CATALOG, head.catalog), (TOMBSTONES, head.tombstones))
    }
    for entry in reversed(entries):
        for stored in entry.files:
            if stored.path in wanted:
                wanted.remove(stored.path)
                check_file(root, stored)
        if not wanted:
            return
    raise Corrupt(f"the journal does not know {min(wanted)}", subject=min(wanted))


def check_file(root: Path, stored: FileDigest) -> None:
    """Raises Corrupt when a file is missing or is not what was acknowledged."""
    try:
        found = FileDigest.of(root, root / stored.path)
    except FileNotFoundError as error:
        raise Corrupt(f"{stored.path} is missing; restore it from a snapshot", subject=stored.path) from error
    if found != stored:
        raise Corrupt(f"{stored.path} is not what was acknowledged; restore it from a snapshot", subject=stored.path)


def _empty(dataset: Any, physical: list[str]) -> pa.Table:
    return pa.schema([dataset.schema.field(name) for name in physical]).empty_table()
