"""Power cuts by replay: what was synced survives, what was not may be gone, empty, torn or zeros.

A run of the writer is recorded: at every call of the durable layer, what is on the disk and what of it had been synced
(bytes by fsync of the file, names by fsync of the folder). Each moment is then played as a cut, under several fates of
what was not synced, and the collection is opened from what is left.
"""

from __future__ import annotations

import os
import random
import runpy
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Literal

import pytest

from stemma.catalog.catalog import Catalog
from stemma.catalog.durable import Disk
from stemma.catalog.fsck import fsck
from stemma.errors import NotFound, StemmaError

writer = SimpleNamespace(**runpy.run_path(str(Path(__file__).with_name("catalog_writer.py"))))

Fate = Literal["absent", "empty", "half", "zeros"]
FATES: tuple[Fate, ...] = ("absent", "empty", "half", "zeros")


@dataclass(eq=False)
class File:
    """One file through its life: its bytes now, and those that an fsync has made safe."""

    now: bytes
    synced: bytes | None = None

    def after_cut(self, fate: Fate) -> bytes:
        safe = self.synced if self.synced is not None else b""
        behind = self.now[len(safe) :]
        return (
            safe + {"absent": b"", "empty": b"", "half": behind[: len(behind) // 2], "zeros": bytes(len(behind))}[fate]
        )


Names = dict[str, File | None]
"""Entries of a folder; None is a folder."""


@dataclass
class Moment:
    """A cut: every folder's names as they are and as they were synced, with copies of the files' two contents."""

    volatile: dict[str, Names]
    synced: dict[str, Names]
    acknowledged: int | None


@dataclass
class Recorder(Disk):
    """Syncs nothing for real: it notes what a sync would have made safe. ``files`` or ``folders`` False takes that
    kind of sync out, as if the call were not in the code."""

    root: Path
    files: bool = True
    folders: bool = True
    acknowledged: int | None = None
    moments: list[Moment] = field(default_factory=list)
    _by_inode: dict[int, File] = field(default_factory=dict)
    _synced: dict[str, Names] = field(default_factory=dict)

    def fsync_file(self, path: Path) -> None:
        tree = self._moment()
        if self.files:
            file = tree[str(path.parent)][path.name]
            assert file is not None
            file.synced = file.now

    def fsync_dir(self, path: Path) -> None:
        tree = self._moment()
        if self.folders and str(path) in tree:
            self._synced[str(path)] = dict(tree[str(path)])

    def append(self, path: Path, body: bytes) -> None:
        super().append(path, body)
        self._moment()

    def rename(self, source: Path, target: Path) -> None:
        super().rename(source, target)
        self._moment()

    def remove(self, path: Path) -> None:
        super().remove(path)
        self._moment()

    def step(self, name: str) -> None:
        self._moment()

    def acknowledge(self, done: int) -> None:
        self.acknowledged = done
        self._moment()

    def _moment(self) -> dict[str, Names]:
        tree = self._scan()
        copies: dict[int, File] = {}

        def copied(names: Names) -> Names:
            return {
                name: file and copies.setdefault(id(file), File(file.now, file.synced)) for name, file in names.items()
            }

        volatile = {folder: copied(names) for folder, names in tree.items()}
        synced = {folder: copied(names) for folder, names in self._synced.items()}
        self.moments.append(Moment(volatile, synced, self.acknowledged))
        return tree

    def _scan(self) -> dict[str, Names]:
        tree: dict[str, Names] = {str(self.root.parent): {self.root.name: None}}
        for folder, folders, files in os.walk(self.root):
            tree[folder] = dict.fromkeys(folders)
            for name in files:
                path = Path(folder, name)
                now, inode = path.read_bytes(), path.stat().st_ino
                file = self._by_inode.get(inode)
                if file is None or not now.startswith(file.now):  # a new file may get a removed one's inode
                    file = self._by_inode[inode] = File(now)
                file.now = now
                tree[folder][name] = file
        return tree


def after_cut(moment: Moment, root: Path, target: Path, rng: random.Random | Fate) -> None:
    """Write what a cut at ``moment`` leaves: one fate for all, or each file's and name's own by ``rng``."""

    def fate() -> Fate:
        return rng.choice(FATES) if isinstance(rng, random.Random) else rng

    def place(folder: str, to: Path) -> None:
        safe = moment.synced.get(folder, {})
        names = {**safe} if not isinstance(rng, random.Random) and rng == "absent" else {}
        if not names:
            for name, file in {**safe, **moment.volatile.get(folder, {})}.items():
                if (name in safe and safe[name] is file) or fate() != "absent":
                    names[name] = file
                elif name in safe:
                    names[name] = safe[name]
        to.mkdir(exist_ok=True)
        for name, file in names.items():
            if file is None:
                place(f"{folder}/{name}", to / name)
            else:
                (to / name).write_bytes(file.after_cut(fate()))

    if root.name in moment.synced.get(str(root.parent), {}) or rng != "absent":
        place(str(root), target)


def record(root: Path, **taken_out: bool) -> Recorder:
    recorder = Recorder(root, **taken_out)
    writer.work(str(root), recorder, recorder.acknowledge)
    return recorder


def losses(recorder: Recorder, into: Path, seeds: range = range(1)) -> Iterator[str]:
    """Every cut after which something acknowledged is missing or the collection does not open."""
    states = writer.states()
    fates: list[Any] = [*FATES, *(random.Random(seed) for seed in seeds)]
    for at, moment in enumerate(recorder.moments):
        # Moments are many and opening takes 15 ms: the harshest fate at each, the others in turn.
        for fate in ("absent", fates[1 + at % (len(fates) - 1)]):
            folder = into / f"{at}-{fate if isinstance(fate, str) else 'mixed'}"
            after_cut(moment, recorder.root, folder, fate)
            done = moment.acknowledged
            try:
                with Catalog.open(str(folder), write=True) as catalog:
                    if writer.live(catalog) not in states[done or 0 : (done or 0) + 2]:
                        yield f"{folder.name}: {done} acknowledged, found {writer.live(catalog)}"
            except NotFound:
                if done is not None:
                    yield f"{folder.name}: the collection is gone"
            except StemmaError as error:
                yield f"{folder.name}: {error}"


def test_a_power_cut_loses_nothing_acknowledged(tmp_path: Path) -> None:
    recorder = record(tmp_path / "photos.stemma")
    assert len(recorder.moments) > 100
    (tmp_path / "cuts").mkdir()
    assert list(losses(recorder, tmp_path / "cuts")) == []
    # And whatever the cut, doing the work again ends where it should.
    for at in range(0, len(recorder.moments), 23):
        folder = tmp_path / f"again{at}"
        after_cut(recorder.moments[at], recorder.root, folder, random.Random(at))
        writer.work(str(folder), Disk(), lambda done: None)
        with Catalog.open(str(folder)) as catalog:
            assert writer.live(catalog) == writer.states()[-1]
        report = fsck(folder)
        assert report.ok, report.summary()


@pytest.mark.parametrize("taken_out", [{"files": False}, {"folders": False}, {"files": False, "folders": False}])
def test_without_the_syncs_the_same_cuts_lose_data(tmp_path: Path, taken_out: dict[str, bool]) -> None:
    recorder = record(tmp_path / "photos.stemma", **taken_out)
    (tmp_path / "cuts").mkdir()
    assert next(losses(recorder, tmp_path / "cuts"), None) is not None
