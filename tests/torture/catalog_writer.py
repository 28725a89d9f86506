"""A writer to be killed: run as a script it forks one child per line of standard input, "URL MODE NUMBER".

MODE call: the child kills itself with SIGKILL before the NUMBER-th call of the durable layer. half: the same, after
half of the bytes if that call appends. time: after NUMBER microseconds, wherever it is. The child appends what was
acknowledged to URL.acks; the parent answers each line with the child's exit status and the calls it made.
"""

from __future__ import annotations

import hashlib
import os
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from stemma.catalog.catalog import Catalog
from stemma.catalog.durable import Disk
from stemma.catalog.schema import Draft
from stemma.errors import NotFound

State = dict[str, str]
"""image_id -> sha256 of what is live."""


def draft(image_id: str, body: str) -> Draft:
    sha256 = hashlib.sha256(body.encode()).hexdigest()
    rng = np.random.default_rng(int(sha256[:8], 16))
    return Draft(
        image_id=image_id,
        name=image_id,
        sha256=sha256,
        width=8,
        height=8,
        embedding_D=rng.integers(-127, 128, 256, dtype=np.int8),
        cells_NF=rng.integers(-127, 128, (196, 32), dtype=np.int8),
        pixels=rng.bytes(64),
        weights="w",
        job="job",
        source=body,
        metadata={"n": len(body)},
    )


def operations() -> Iterator[tuple[Callable[[Catalog], Any], Callable[[State], State]]]:
    """What the writer does, and what each does to the state. Doing all of it twice ends as doing it once."""

    def stores(replace: bool, **bodies: str) -> tuple[Callable[[Catalog], Any], Callable[[State], State]]:
        drafts = [draft(image_id, body) for image_id, body in bodies.items()]
        shas = {one.image_id: one.sha256 for one in drafts}
        return (
            lambda catalog: catalog.commit(drafts, replace=replace),
            lambda state: {**state, **{k: v for k, v in shas.items() if k is not None}},
        )

    yield stores(False, a="a", b="b")
    yield stores(False, c="c", d="d")
    yield lambda catalog: catalog.delete(["a"]), lambda state: {k: v for k, v in state.items() if k != "a"}
    yield stores(True, b="b, changed", e="e")
    yield lambda catalog: catalog.compact(retain_s=0, keep_versions_s=0), lambda state: state
    yield stores(False, f="f")
    yield lambda catalog: catalog.compact(retain_s=0, keep_versions_s=0), lambda state: state
    yield stores(False, g="g")


def states() -> list[State]:
    """The state after 0, 1, 2... operations."""
    out: list[State] = [{}]
    for _, change in operations():
        out.append(change(out[-1]))
    return out


def work(url: str, disk: Disk, acknowledge: Callable[[int], None]) -> None:
    """Create or open, do every operation, say after each that it was acknowledged."""
    try:
        catalog = Catalog.open(url, write=True, disk=disk)
    except NotFound:
        catalog = Catalog.create(url, disk=disk)
    acknowledge(0)
    with catalog:
        for number, (do, _) in enumerate(operations(), start=1):
            do(catalog)
            acknowledge(number)


def live(catalog: Catalog) -> State:
    """What is there, in row order."""
    ids = list(catalog.ids())
    assert len(set(ids)) == len(ids), "an id is live twice"
    return dict(zip(ids, catalog.read(catalog.rows_of(ids), ["sha256"])["sha256"], strict=True))


class DyingDisk(Disk):
    """Counts its calls and dies at one of them."""

    def __init__(self, at: int, half: bool) -> None:
        self.calls = 0
        self._at = at
        self._half = half

    def _count(self) -> bool:
        self.calls += 1
        if self.calls == self._at and not self._half:
            os.kill(os.getpid(), signal.SIGKILL)
        return self.calls == self._at

    def append(self, path: Path, body: bytes) -> None:
        if self._count():
            super().append(path, body[: len(body) // 2])
            os.kill(os.getpid(), signal.SIGKILL)
        super().append(path, body)


def _counted(name: str) -> Callable[..., None]:
    def call(self: DyingDisk, *arguments: Any) -> None:
        last = self._count()
        getattr(Disk, name)(self, *arguments)
        if last:
            os.kill(os.getpid(), signal.SIGKILL)

    return call


for _name in ("fsync_file", "fsync_dir", "rename", "remove", "remove_tree", "step"):
    setattr(DyingDisk, _name, _counted(_name))


def _child(url: str, mode: str, number: int) -> None:
    acks = os.open(url + ".acks", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    disk = DyingDisk(-1 if mode == "time" else number, half=mode == "half")
    if mode == "time":
        signal.setitimer(signal.ITIMER_REAL, number / 1e6)  # SIGALRM's default ends the process where it stands
    work(url, disk, lambda done: os.write(acks, b"%d\n" % done) and None)
    os.write(acks, b"calls %d\n" % disk.calls)


def main() -> None:
    # Lance's threads start with its first use, which is in the children: forking before it is safe, and saves the
    # import (0.5 s) for every kill.
    for line in sys.stdin:
        url, mode, number = line.split()
        child = os.fork()
        if child == 0:
            _child(url, mode, int(number))
            os._exit(0)
        print(os.waitpid(child, 0)[1], flush=True)


if __name__ == "__main__":
    main()
