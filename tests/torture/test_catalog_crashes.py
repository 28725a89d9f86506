"""SIGKILL and power cuts while the catalog writes: everything acknowledged is there afterwards, nothing twice."""

from __future__ import annotations

import os
import random
import runpy
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest

from stemma.catalog.catalog import Catalog
from stemma.catalog.durable import Disk
from stemma.catalog.fsck import fsck
from stemma.errors import NotFound

SCRIPT = Path(__file__).with_name("catalog_writer.py")
writer = SimpleNamespace(**runpy.run_path(str(SCRIPT)))

Kill = Callable[[Path, str, int], tuple[int, list[str]]]


@pytest.fixture(scope="module")
def kill() -> Iterator[Kill]:
    """``kill(folder, mode, number)``: run the writer in a child that dies; (exit status, its acknowledgements)."""
    with subprocess.Popen([sys.executable, str(SCRIPT)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as p:
        assert p.stdin is not None and p.stdout is not None
        stdin, stdout = p.stdin, p.stdout

        def run(folder: Path, mode: str, number: int) -> tuple[int, list[str]]:
            stdin.write(f"{folder} {mode} {number}\n")
            stdin.flush()
            status = int(stdout.readline())
            acks = Path(f"{folder}.acks")
            return status, acks.read_text().split("\n")[:-1] if acks.exists() else []

        yield run
        stdin.close()


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Path]:
    """A folder in memory where there is one: a killed process loses no page, and a hundred fsyncs a kill cost a lot."""
    memory = Path("/dev/shm")
    if not os.access(memory, os.W_OK):
        yield tmp_path
        return
    with tempfile.TemporaryDirectory(dir=memory) as folder:
        yield Path(folder)


def audit(folder: Path, acknowledged: int | None) -> None:
    """``acknowledged``: the last operation whose acknowledgement arrived, None if not even the creation's did."""
    states = writer.states()
    url = str(folder)
    try:
        catalog = Catalog.open(url, write=True)
    except NotFound:
        assert acknowledged is None, "an acknowledged collection is gone"
    else:
        with catalog:
            found = writer.live(catalog)
            done = acknowledged or 0
            # One operation more may be there: written, and the process died before it could say so.
            assert found in states[done : done + 2], f"{done} acknowledged, found {found}; {catalog.notes}"
            sha256s = list(found.values())
            assert len(set(sha256s)) == len(sha256s), "stored twice"
    # The next run of the same work completes it.
    writer.work(url, Disk(), lambda done: None)
    with Catalog.open(url) as catalog:
        assert writer.live(catalog) == states[-1]
    report = fsck(url)
    assert report.ok, report.summary()


def _last(acks: list[str]) -> int | None:
    return int(acks[-1]) if acks else None


@pytest.mark.parametrize("share", [pytest.param(4, id="some"), pytest.param(1, id="all", marks=pytest.mark.slow)])
def test_sigkill_at_any_call_loses_nothing_acknowledged(kill: Kill, place: Path, share: int) -> None:
    status, acks = kill(place / "whole", "call", 10**9)
    assert status == 0 and acks[-2] == str(len(writer.states()) - 1)
    calls = int(acks[-1].removeprefix("calls "))
    assert calls // share >= 30
    for number in range(1, calls + 1, share):
        folder = place / f"call{number}"
        status, acks = kill(folder, "call", number)
        assert status == 9
        audit(folder, _last(acks))


def test_sigkill_in_the_middle_of_an_append(kill: Kill, place: Path) -> None:
    torn = 0
    for number in range(2, 140, 13):
        folder = place / f"half{number}"
        status, acks = kill(folder, "half", number)
        torn += status == 9
        audit(folder, _last([one for one in acks if not one.startswith("calls")]))
    assert torn >= 5


def test_sigkill_at_random_times(kill: Kill, place: Path) -> None:
    rng = random.Random(5)
    for number in range(4):
        folder = place / f"time{number}"
        _, acks = kill(folder, "time", rng.randrange(5_000, 150_000))
        audit(folder, _last([one for one in acks if not one.startswith("calls")]))
