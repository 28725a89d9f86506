"""What makes a Lance commit survive a power cut. Lance itself never calls fsync (strace: 0 of a whole process life).

The ``pre`` protocol of docs/facts.md A5 (0 of 47 cuts lost anything; without it 42 of 46 left the table unopenable):

    write fragments -> sync data files and data/ -> commit -> sync manifest, transaction and their folders
    -> append the commit to the journal, synced -> acknowledge

Every sync of the room goes through ``Disk``, so that tests can count, record, replay, kill at and break each of them.
"""

from __future__ import annotations

import os
import shutil
import zlib
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import lance
import pyarrow as pa
from lance.fragment import write_fragments

from stemma.catalog.schema import STORAGE_VERSION
from stemma.errors import Conflict, Corrupt

_READ_BYTES = 1 << 20


class Disk:
    """The only hand that syncs, appends, replaces or removes files of a catalog."""

    def fsync_file(self, path: Path) -> None:
        """Make the bytes of a file durable."""
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)

    def fsync_dir(self, path: Path) -> None:
        """Make the names in a folder durable; without it a synced file can still be gone."""
        self.fsync_file(path)

    def append(self, path: Path, body: bytes) -> None:
        """Append to a file; the caller syncs."""
        with path.open("ab") as file:
            file.write(body)

    def rename(self, source: Path, target: Path) -> None:
        """Put ``source`` in the place of ``target``; the caller syncs the folder."""
        source.replace(target)

    def remove(self, path: Path) -> None:
        path.unlink()

    def remove_tree(self, path: Path) -> None:
        shutil.rmtree(path)

    def step(self, name: str) -> None:
        """A moment between two effects: nothing happens here but what a test wants to."""


def replace_file(disk: Disk, path: Path, body: bytes) -> None:
    """Put ``body`` at ``path`` atomically and durably: beside it, synced, renamed, folder synced."""
    beside = path.with_name(path.name + ".tmp")
    beside.unlink(missing_ok=True)
    disk.append(beside, body)
    disk.fsync_file(beside)
    disk.rename(beside, path)
    disk.fsync_dir(path.parent)


def file_digest(path: Path) -> tuple[int, int]:
    """(bytes, CRC-32) of a file."""
    size_bytes, crc = 0, 0
    with path.open("rb") as file:
        while part := file.read(_READ_BYTES):
            size_bytes += len(part)
            crc = zlib.crc32(part, crc)
    return size_bytes, crc


@contextmanager
def reading(what: str) -> Iterator[None]:
    """Lance's ways of failing on bytes it cannot read, its Rust panics included, as Corrupt naming ``what``."""
    try:
        yield
    except (OSError, ValueError, RuntimeError, pa.ArrowException, OverflowError, MemoryError) as error:
        raise Corrupt(f"{what} cannot be read: {_first_line(error)}", subject=what) from error
    except BaseException as error:
        # pyo3's PanicException derives from BaseException alone and cannot be imported.
        if type(error).__name__ != "PanicException":
            raise
        raise Corrupt(f"{what} cannot be read: {_first_line(error)}", subject=what) from error


def _first_line(error: BaseException) -> str:
    return str(error).partition("\n")[0][:200]


class Table:
    """One Lance table under the sync protocol. Immutable: every change returns the next one and the files it made."""

    def __init__(self, dataset: Any, folder: Path, disk: Disk) -> None:
        self.dataset = dataset
        self.folder = folder
        self._disk = disk

    @property
    def version(self) -> int:
        """Lance's own version, not our seq."""
        return int(self.dataset.version)

    @classmethod
    def create(cls, folder: Path, schema: pa.Schema, disk: Disk) -> tuple[Table, list[Path]]:
        """An empty synced table; the name in the parent folder is the caller's to sync."""
        dataset = lance.write_dataset(
            schema.empty_table(), folder, schema=schema, mode="create", data_storage_version=STORAGE_VERSION
        )
        disk.step("created")
        (folder / "data").mkdir(exist_ok=True)
        table = cls(dataset, folder, disk)
        made = table._sync_commit(0)
        disk.fsync_dir(folder)
        return table, made

    @classmethod
    def open(cls, folder: Path, version: int, disk: Disk) -> Table:
        """The table at a version. Raises Corrupt."""
        with reading(f"version {version} of {folder.name}"):
            return cls(_at_version(lance.dataset(folder, version=version), version), folder, disk)

    def at(self, version: int) -> Table:
        """The same table at another version, sharing its caches."""
        with reading(f"version {version} of {self.folder.name}"):
            return Table(_at_version(self.dataset.checkout_version(version), version), self.folder, self._disk)

    def append(self, rows: pa.Table) -> tuple[Table, list[Path]]:
        """Rows added by one commit, all of it synced when this returns."""
        fragments = self.write(rows)
        return self._commit(lance.LanceOperation.Append(fragments), self._data_files(fragments))

    def write(self, rows: pa.Table | pa.RecordBatchReader, rows_per_file_max: int = 1 << 20) -> list[Any]:
        """Fragments with synced data files, not part of the table until they are committed."""
        fragments = list(
            write_fragments(
                rows,
                self.dataset,
                schema=rows.schema,
                mode="append",
                max_rows_per_file=rows_per_file_max,
                data_storage_version=STORAGE_VERSION,
            )
        )
        self._disk.step("written")
        for path in self._data_files(fragments):
            self._disk.fsync_file(path)
        self._disk.fsync_dir(self.folder / "data")
        return fragments

    def overwrite(self, schema: pa.Schema, fragments: Sequence[Any], made: Sequence[Any]) -> tuple[Table, list[Path]]:
        """The table as exactly ``fragments``, of which ``made`` are new, in one commit."""
        return self._commit(lance.LanceOperation.Overwrite(schema, list(fragments)), self._data_files(made))

    def add_columns(self, fields: Sequence[pa.Field]) -> tuple[Table, list[Path]]:
        """New nullable columns, null in every row: a manifest alone, no data is rewritten."""
        before = self.version
        dataset = lance.dataset(self.folder, version=before)
        dataset.add_columns(pa.schema(list(fields)))
        return self._after(dataset, before, [])

    def _commit(self, operation: Any, data_files: list[Path]) -> tuple[Table, list[Path]]:
        before = self.version
        dataset = lance.LanceDataset.commit(self.dataset, operation, read_version=before)
        return self._after(dataset, before, data_files)

    def _after(self, dataset: Any, before: int, data_files: list[Path]) -> tuple[Table, list[Path]]:
        self._disk.step("committed")
        table = Table(dataset, self.folder, self._disk)
        if table.version != before + 1:
            # Lance rebases an append over another writer's: then somebody else commits here in spite of the lock.
            raise Conflict(
                f"another writer committed version {table.version - 1} of {self.folder.name}; reopen the collection",
                subject=str(self.folder.parent),
            )
        return table, data_files + table._sync_commit(before)

    def _sync_commit(self, read_version: int) -> list[Path]:
        manifest = manifest_path(self.folder, self.version)
        transactions = self.folder / "_transactions"
        made = [manifest, *sorted(transactions.glob(f"{read_version}-*.txn"))]
        for path in made:
            self._disk.fsync_file(path)
        self._disk.fsync_dir(manifest.parent)
        self._disk.fsync_dir(transactions)
        return made

    def _data_files(self, fragments: Iterable[Any]) -> list[Path]:
        return [self.folder / "data" / file.path for fragment in fragments for file in fragment.files]


def _at_version(dataset: Any, version: int) -> Any:
    # A manifest of zeros, which a power cut can leave, opens as an empty table of version 0 (pylance 14.0.2).
    if int(dataset.version) != version:
        raise ValueError(f"its manifest says version {dataset.version}")
    return dataset


def manifest_path(folder: Path, version: int) -> Path:
    """Lance names manifests by 2^64 - 1 - version, so that the newest sorts first."""
    return folder / "_versions" / f"{2**64 - 1 - version:020d}.manifest"


def versions_on_disk(folder: Path) -> list[int]:
    """Versions that have a manifest file, ascending, readable or not."""
    names = (path.stem for path in (folder / "_versions").glob("*.manifest"))
    return sorted(2**64 - 1 - int(name) for name in names if name.isdigit())
