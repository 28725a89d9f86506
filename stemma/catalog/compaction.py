"""Compaction: fewer fragments, rows that nobody can ask for any more dropped, old Lance versions cleaned.

5,000 appends without it cost 1.6 GB of manifests and 23 ms a commit. One new journal takes the place of the old, so a
crash at any point leaves either the old collection or the new one (repair.py undoes what the journal never named).

Letters: R rows.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from stemma.catalog import journal
from stemma.catalog.durable import Disk, Table, manifest_path, reading
from stemma.catalog.encoding import READABLE, encode_tombstones
from stemma.catalog.journal import Entry, FileDigest
from stemma.catalog.schema import TOMBSTONE_SCHEMA
from stemma.catalog.state import Now, read_tombstones
from stemma.errors import Corrupt

BATCH_ROWS = 256
HISTORY_MAX = 1_000
"""(seq, time) pairs that a base entry keeps to tell the age of a delete; older ones are thinned by halves."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Compacted:
    """What a compaction did."""

    rows_dropped: int
    fragments_before: int
    fragments_after: int
    versions_removed: int
    horizon: int


@dataclass(frozen=True, slots=True)
class Group:
    """Neighbouring fragments; rewritten into one, or kept as they are."""

    fragments: tuple[Any, ...]
    first: int
    end: int
    rewrite: bool


def horizon_of(entries: Sequence[Entry], before_s: float) -> int:
    """The last seq that was committed at or before ``before_s``; rows deleted by then may go."""
    ages = [pair for entry in entries for pair in (*entry.history, (entry.seq, entry.at_s))]
    return max((seq for seq, at_s in ages if at_s <= before_s), default=0)


def grouped(fragments: Sequence[Any], dropped_R: NDArray[np.bool_], fragment_rows: int) -> list[Group]:
    """Which fragments to rewrite together: small ones (under half of ``fragment_rows``) and those with dropped rows."""
    groups: list[Group] = []
    open_: list[Any] = []
    first = at = 0

    def close() -> None:
        if open_:
            worth = len(open_) > 1 or bool(dropped_R[first:at].any())
            groups.append(Group(tuple(open_), first, at, worth))
            open_.clear()

    for fragment in fragments:
        end = at + int(fragment.physical_rows)
        settled = 2 * (end - at) >= fragment_rows and not dropped_R[at:end].any()
        if settled or (open_ and end - first > fragment_rows):
            close()
        if not open_:
            first = at
        open_.append(fragment)
        at = end
        if settled:
            close()
    close()
    return groups


def compact(now: Now, *, horizon: int, fragment_rows: int) -> tuple[Entry, list[Group], list[Path]]:
    """Rewrite both tables without what is dropped; returns the base entry (files still without digests), the groups of
    the catalog's fragments and every live file. Nothing is acknowledged and nothing is deleted here. Raises Corrupt."""
    dropped_R = now.snapshot.deleted_R <= np.uint64(horizon)
    with reading("fragments"):
        groups = grouped(now.catalog.dataset.get_fragments(), dropped_R, fragment_rows)
    catalog = _rewritten_catalog(now, groups, dropped_R, fragment_rows)
    tombstones = _rewritten_tombstones(now, dropped_R)
    before = now.entry
    entry = Entry(
        seq=before.seq,
        at_s=before.at_s,
        catalog=catalog.version,
        tombstones=tombstones.version,
        next_row=before.next_row,
        weights=before.weights,
        objects_weights=before.objects_weights,
        files=(),
        base=True,
        declared=before.declared,
        horizon=max(horizon, before.horizon) if dropped_R.any() else before.horizon,
    )
    return entry, groups, live_files(catalog) + live_files(tombstones)


def live_files(table: Table) -> list[Path]:
    """Every file that the table's version needs, and the transaction that made it."""
    data = [table.folder / "data" / f.path for one in table.dataset.get_fragments() for f in one.metadata.files]
    made_by = sorted((table.folder / "_transactions").glob(f"{table.version - 1}-*.txn"))
    return [*data, manifest_path(table.folder, table.version), *made_by]


def replace_journal(root: Path, entries: Sequence[Entry], entry: Entry, files: Sequence[Path], disk: Disk) -> None:
    """Acknowledge a compaction: one synced rename puts its base entry in the place of all earlier ones."""
    known = {file.path: file for one in entries for file in one.files}
    digests = tuple(known.get(path.relative_to(root).as_posix()) or FileDigest.of(root, path) for path in files)
    history = [pair for one in entries for pair in (*one.history, (one.seq, one.at_s))]
    while len(history) > HISTORY_MAX:
        history = [*history[: HISTORY_MAX // 2 : 2], *history[HISTORY_MAX // 2 :]]
    fields = {name: getattr(entry, name) for name in Entry.__slots__}
    journal.replace(root, [Entry(**{**fields, "files": digests, "history": tuple(history)})], disk)


def clean(table: Table, disk: Disk, keep_s: float) -> int:
    """Remove Lance versions that stopped being the newest more than ``keep_s`` ago, so never under a reader that
    follows the journal; returns how many. Their files go with them, transactions too."""
    with reading(table.folder.name):
        versions = sorted(table.dataset.versions(), key=lambda one: int(one["version"]))
        before = time.time() - keep_s
        old = [
            int(one["version"])
            for one, newer in itertools.pairwise(versions)
            if _seconds(newer["timestamp"]) <= before and int(one["version"]) < table.version
        ]
        if not old:
            return 0
        table.dataset.cleanup_old_versions(versions=old)
    for part in ("data", "_versions", "_transactions"):
        disk.fsync_dir(table.folder / part)
    return len(old)


def _seconds(stamp: datetime) -> float:
    # Lance gives local time without a zone.
    return stamp.timestamp() if stamp.tzinfo is None else stamp.astimezone(UTC).timestamp()


def _rewritten_catalog(now: Now, groups: Sequence[Group], dropped_R: NDArray[np.bool_], fragment_rows: int) -> Table:
    if not any(group.rewrite for group in groups):
        return now.catalog
    schema = now.catalog.dataset.schema
    kept: list[Any] = []
    made: list[Any] = []
    for group in groups:
        if not group.rewrite:
            kept += [fragment.metadata for fragment in group.fragments]
        elif not dropped_R[group.first : group.end].all():
            new = _rewritten_group(now, group, dropped_R, fragment_rows)
            kept += new
            made += new
    return now.catalog.overwrite(schema, kept, made)[0]


def _rewritten_group(now: Now, group: Group, dropped_R: NDArray[np.bool_], fragment_rows: int) -> list[Any]:
    found: list[Corrupt] = []

    def batches() -> Iterator[pa.RecordBatch]:
        try:
            yield from _surviving(now, group, dropped_R)
        except Corrupt as error:
            found.append(error)  # Lance would hand it back as an OSError
            raise

    reader = pa.RecordBatchReader.from_batches(now.catalog.dataset.schema, batches())
    try:
        return now.catalog.write(reader, rows_per_file_max=max(fragment_rows, group.end - group.first))
    except OSError as error:
        if found:
            raise found[0] from error
        raise


def _surviving(now: Now, group: Group, dropped_R: NDArray[np.bool_]) -> Iterator[pa.RecordBatch]:
    """The rows of a group that stay, every checksum checked on the way."""
    dataset = now.catalog.dataset
    at = group.first
    with reading("fragments to compact"):
        scanner = dataset.scanner(
            columns=dataset.schema.names,
            fragments=list(group.fragments),
            batch_size=BATCH_ROWS,
            scan_in_order=True,
        )
        for batch in scanner.to_batches():
            at_R = np.arange(at, at + len(batch))
            now.checked(pa.Table.from_batches([batch]), at_R, READABLE)
            at += len(batch)
            stays = batch.filter(pa.array(~dropped_R[at_R]))
            if len(stays):
                yield stays


def _rewritten_tombstones(now: Now, dropped_R: NDArray[np.bool_]) -> Table:
    row_T, seq_T = read_tombstones(now.tombstones, 0)
    with reading("fragments"):
        fragments = len(now.tombstones.dataset.get_fragments())
    stays_T = np.isin(row_T, now.snapshot.row_R[~dropped_R])
    if fragments <= 1 and stays_T.all():
        return now.tombstones
    made: list[Any] = []
    if stays_T.any():
        values = encode_tombstones(row_T[stays_T], seq_T[stays_T])
        made = now.tombstones.write(pa.table([pa.array(v) for v in values.values()], schema=TOMBSTONE_SCHEMA))
    return now.tombstones.overwrite(TOMBSTONE_SCHEMA, made, made)[0]
