"""Check a whole collection: every file's digest, every row's checksums, every rule that the catalog promises.

It only reads. Other rooms check what is theirs through ``checks`` (segments and codecs know their own digests).
"""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np

from stemma.catalog import journal
from stemma.catalog.catalog import Catalog
from stemma.catalog.durable import Disk, reading
from stemma.catalog.encoding import READABLE, physical
from stemma.catalog.schema import FOREVER
from stemma.catalog.state import CATALOG, TOMBSTONES, Now, State, check_file, read_tombstones
from stemma.errors import Corrupt, StemmaError

BLOCK_ROWS = 256
PROBLEMS_MAX = 1_000
"""Problems listed; more are counted."""

Check = Callable[[Path, Catalog], Iterable[str]]


@dataclasses.dataclass(slots=True)
class Report:
    """What a check found."""

    url: str
    seq: int = 0
    rows: int = 0
    live: int = 0
    tombstones: int = 0
    files: int = 0
    files_bytes: int = 0
    problem_count: int = 0
    problems: list[str] = dataclasses.field(default_factory=list)

    @property
    def ok(self) -> bool:
        return self.problem_count == 0

    def found(self, problem: str) -> None:
        """Note a problem."""
        self.problem_count += 1
        if len(self.problems) < PROBLEMS_MAX:
            self.problems.append(problem)

    def to_json(self) -> str:
        return json.dumps({"ok": self.ok, **dataclasses.asdict(self)}, ensure_ascii=False)

    def summary(self) -> str:
        """For a person."""
        head = (
            f"{self.url}: {self.live} images ({self.rows} rows, {self.tombstones} tombstones) at version {self.seq}; "
            f"{self.files} files, {self.files_bytes} bytes"
        )
        state = "all sound" if self.ok else f"{self.problem_count} problems"
        return "\n".join([head, state, *(f"  {problem}" for problem in self.problems)])


def fsck(url: str | Path, *, checks: Sequence[Check] = (), rows: bool = True) -> Report:
    """The report on the collection at ``url``; damage is in it, never raised. ``rows`` False stops after the digests
    of the files, which any flipped byte changes. Raises NotFound if there is none."""
    root = Path(url).absolute()
    report = Report(url=str(url))
    try:
        entries, _, torn = journal.read(root)
    except Corrupt as error:
        report.found(error.detail)
        return report
    if torn:
        report.found(f"{journal.NAME} ends in a commit that was never acknowledged; opening for writing drops it")
    _check_files(root, entries, report)
    if not rows:
        return report
    if not report.ok:
        _check_rows_apart(root, report)
        return report
    try:
        state = State(root, Disk())
    except StemmaError as error:
        report.found(error.detail)
        return report
    _check_state(state, report)
    with Catalog(root, state, None, Disk()) as catalog:
        for check in checks:
            for problem in check(root, catalog):
                report.found(problem)
    return report


def _check_state(state: State, report: Report) -> None:
    now = state.now
    report.seq, report.rows, report.live = now.entry.seq, len(now.snapshot.row_R), now.snapshot.count()
    for problem in (*_row_problems(now), *_order_problems(state), *_identity_problems(now)):
        report.found(problem)
    report.tombstones = _check_tombstones(now, report)


def _check_rows_apart(root: Path, report: Report) -> None:
    """Which rows a damaged file costs, found in a process of its own: one flipped byte of a Lance footer can abort the
    process that reads it (pylance 14.0.2, a NUL in an error message)."""
    child = subprocess.run(
        [sys.executable, "-m", "stemma.catalog.fsck", str(root)], capture_output=True, text=True, check=False
    )
    try:
        found = json.loads(child.stdout)
    except ValueError:
        report.found(f"reading the rows ends the process that tries (exit status {child.returncode})")
        return
    for name in ("seq", "rows", "live", "tombstones"):
        setattr(report, name, found[name])
    for problem in found["problems"]:
        report.found(problem)


def main(arguments: Sequence[str]) -> None:
    """The child's part: the state's problems as JSON on standard output."""
    report = Report(url=arguments[0])
    try:
        _check_state(State(Path(arguments[0]), Disk()), report)
    except StemmaError as error:
        report.found(error.detail)
    print(report.to_json())


def _check_files(root: Path, entries: Sequence[journal.Entry], report: Report) -> None:
    for entry in entries:
        for stored in entry.files:
            report.files += 1
            report.files_bytes += stored.size_bytes
            try:
                check_file(root, stored)
            except Corrupt as error:
                report.found(error.detail)


def _row_problems(now: Now) -> Iterator[str]:
    """Every column of every row through its checksum; a block that fails is read again row by row."""
    columns = physical(READABLE, now.columns)
    row_R = now.snapshot.row_R
    for at in range(0, len(row_R), BLOCK_ROWS):
        block = row_R[at : at + BLOCK_ROWS]
        try:
            now.take(block, READABLE, columns)
        except Corrupt:
            for row in range(len(block)):
                try:
                    now.take(block[row : row + 1], READABLE, columns)
                except Corrupt as error:
                    yield error.detail if "row " in error.detail else f"row {block[row]}: {error.detail}"


def _order_problems(state: State) -> Iterator[str]:
    snapshot, entry = state.now.snapshot, state.now.entry
    for name, values, top in (("row", snapshot.row_R, entry.next_row - 1), ("seq", snapshot.added_R, entry.seq)):
        signed = values.astype(np.int64)
        back = np.flatnonzero(np.diff(signed) < (1 if name == "row" else 0))
        if back.size:
            yield f"{name} goes back after row {snapshot.row_R[back[0]]}"
        if len(signed) and int(signed[-1]) > top:
            yield f"{name} {signed[-1]} is beyond the journal's {top}"
    dead = snapshot.deleted_R != FOREVER
    if np.any(snapshot.deleted_R[dead] < snapshot.added_R[dead]):
        yield "a row was deleted before it was added"


def _identity_problems(now: Now) -> Iterator[str]:
    """No image_id is live twice."""
    seen: dict[str, int] = {}
    row_R = now.snapshot.row_R[now.snapshot.live()]
    for at in range(0, len(row_R), BLOCK_ROWS * 32):
        block = row_R[at : at + BLOCK_ROWS * 32]
        try:
            ids = now.take(block, ["image_id"], physical(["image_id"], now.columns))["image_id"]
        except Corrupt:
            continue  # named by _row_problems already
        for image_id, row in zip(ids, block.tolist(), strict=True):
            if image_id in seen:
                yield f"image_id {image_id!r} is live twice, as rows {seen[image_id]} and {row}"
            seen[image_id] = row


def _check_tombstones(now: Now, report: Report) -> int:
    try:
        row_T, seq_T = read_tombstones(now.tombstones, 0)
        with reading(CATALOG):
            known_T = np.isin(row_T, now.snapshot.row_R)
    except Corrupt as error:
        report.found(error.detail)
        return 0
    lost = ~known_T & (seq_T > np.uint64(now.entry.horizon))
    beyond = (seq_T > np.uint64(now.entry.seq)) | (row_T >= np.uint64(now.entry.next_row))
    for row in row_T[lost | beyond]:
        report.found(f"{TOMBSTONES} names row {row}, which was never there")
    return len(row_T)


if __name__ == "__main__":
    main(sys.argv[1:])
