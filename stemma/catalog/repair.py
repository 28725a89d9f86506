"""Creation, and what opening for writing does about a crash.

A commit that Lance has and the journal has not was never acknowledged. Readable, it is adopted (ingest is idempotent by
id); an unreadable head manifest is dropped, and so is a compaction that did not get to the journal. Nothing else is
ever removed: a head that the journal names and that cannot be read is damage, and opening says so.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pyarrow as pa

from stemma.catalog import journal
from stemma.catalog.durable import Disk, Table, manifest_path, reading, versions_on_disk
from stemma.catalog.encoding import READABLE, RowMismatch, decode, physical
from stemma.catalog.journal import Entry, FileDigest
from stemma.catalog.schema import TOMBSTONE_SCHEMA, ColumnType, catalog_schema, columns_of
from stemma.catalog.state import CATALOG, TOMBSTONES, check_manifests, read_tombstones
from stemma.errors import Conflict, Corrupt, StemmaError


def create(root: Path, columns: Mapping[str, ColumnType] | None, disk: Disk) -> list[str]:
    """Both tables, empty, and a journal that names them, all synced. Raises Conflict when there is a journal."""
    if (root / journal.NAME).exists():
        raise Conflict(f"there is a collection at {root} already; open it", subject=str(root))
    notes: list[str] = []
    for folder in (root / CATALOG, root / TOMBSTONES):
        if folder.exists():
            if len(versions_on_disk(folder)) > 1:
                raise Corrupt(f"{folder.name} has commits but no journal; restore {journal.NAME}", subject=str(root))
            disk.remove_tree(folder)
            notes.append(f"removed {folder.name} of a creation that never finished")
    catalog, made = Table.create(root / CATALOG, catalog_schema(columns or {}), disk)
    tombstones, more = Table.create(root / TOMBSTONES, TOMBSTONE_SCHEMA, disk)
    disk.fsync_dir(root)
    disk.fsync_dir(root.parent)
    entry = Entry(
        seq=0,
        at_s=time.time(),
        catalog=catalog.version,
        tombstones=tombstones.version,
        next_row=0,
        weights=None,
        files=tuple(FileDigest.of(root, path) for path in made + more),
        base=True,
        declared=columns is not None,
    )
    journal.replace(root, [entry], disk)
    return notes


def recover(root: Path, disk: Disk) -> list[str]:
    """Bring a collection to a state where journal and tables agree; returns what was done, for a person.

    Raises Corrupt when something acknowledged cannot be read.
    """
    notes: list[str] = []
    entries, place, torn = journal.read(root)
    check_manifests(root, entries)
    if torn:
        # Not appended to: the next line would join the torn one.
        journal.replace(root, entries, disk)
        notes.append(f"dropped the torn end of {journal.NAME} (behind byte {place.size_bytes}), never acknowledged")
    for name in (CATALOG, TOMBSTONES):
        entry, found = _settle(root, name, entries[-1], disk)
        notes += found
        if entry is not None:
            journal.append(root, entry, disk)
            entries.append(entry)
    return notes


def _settle(root: Path, name: str, head: Entry, disk: Disk) -> tuple[Entry | None, list[str]]:
    """Adopt or drop the versions of one table that the journal does not name."""
    folder = root / name
    logged = head.catalog if name == CATALOG else head.tombstones
    table = Table.open(folder, logged, disk)
    notes: list[str] = []
    for version in reversed([v for v in versions_on_disk(folder) if v > logged]):
        try:
            entry = _adopted(root, name, table, version, head, disk)
        except _NotAnAppend:
            why = "a compaction that was never finished"
        except (StemmaError, RowMismatch) as error:
            why = f"a commit that was never acknowledged ({error})"
        else:
            return entry, [*notes, f"adopted version {version} of {name}, written but not acknowledged before a crash"]
        disk.remove(manifest_path(folder, version))
        (folder / "_versions" / "latest_version_hint.json").unlink(missing_ok=True)
        disk.fsync_dir(folder / "_versions")
        notes.append(f"dropped the head manifest {version} of {name}: {why}")
    return None, notes


class _NotAnAppend(Exception):
    """An unacknowledged version that does not hold everything of the acknowledged one."""


def _adopted(root: Path, name: str, table: Table, version: int, head: Entry, disk: Disk) -> Entry:
    """The journal entry of an unacknowledged but whole version, synced. Raises whatever makes it unreadable."""
    newer = table.at(version)
    with reading(f"version {version} of {name}"):
        before, after = _data_files(table), _data_files(newer)
        offset = int(table.dataset.count_rows())
        if after[: len(before)] != before:
            raise _NotAnAppend(name)
        count = int(newer.dataset.count_rows()) - offset
    next_row, weights = head.next_row, head.weights
    if name == TOMBSTONES:
        read_tombstones(newer, offset)
    elif count:
        next_row, weights = _verified(newer, offset, head)
    made = [newer.folder / "data" / path for path in after[len(before) :]]
    for one in range(table.version + 1, version + 1):
        made += [manifest_path(newer.folder, one), *sorted((newer.folder / "_transactions").glob(f"{one - 1}-*.txn"))]
    for path in made:
        disk.fsync_file(path)
    for part in ("data", "_versions", "_transactions"):
        disk.fsync_dir(newer.folder / part)
    return Entry(
        seq=head.seq + (1 if count else 0),
        at_s=time.time(),
        catalog=version if name == CATALOG else head.catalog,
        tombstones=version if name == TOMBSTONES else head.tombstones,
        next_row=next_row,
        weights=weights,
        objects_weights=head.objects_weights,
        files=tuple(FileDigest.of(root, path) for path in made),
        declared=head.declared,
        horizon=head.horizon,
    )


def _verified(table: Table, offset: int, head: Entry) -> tuple[int, str]:
    """(next row, weights) of the rows from ``offset`` on, every group of each checked."""
    with reading(f"new rows of {CATALOG}"):
        columns = columns_of(table.dataset.schema)
        rows: pa.Table = table.dataset.scanner(
            columns=[*physical(READABLE, columns)], offset=offset or None, scan_in_order=True
        ).to_table()
        weights = str(rows["weights"][0].as_py())
        # the first objects of a collection have nobody to vouch for their weights, and are dropped: never acknowledged
        values = decode(rows.combine_chunks(), READABLE, columns, weights, head.objects_weights)
    row_R = values["row"]
    if int(row_R[0]) < head.next_row or np.any(row_R[1:] <= row_R[:-1]) or np.any(values["seq"] != head.seq + 1):
        raise Corrupt(f"rows from {row_R[0]} do not follow {head.next_row}", subject=CATALOG)
    if head.weights is not None and weights != head.weights:
        raise Corrupt(f"rows of weights {weights}", subject=CATALOG)
    return int(row_R[-1]) + 1, weights


def _data_files(table: Table) -> list[str]:
    return [file.path for fragment in table.dataset.get_fragments() for file in fragment.metadata.files]
