"""A hosted collection answers, and nothing of it outlives the process that wanted it, even one killed outright."""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import stemma
from evaluation.pictures import jpeg, render

GONE_S_MAX = 60.0
HOST = """
import sys
from evaluation.hosting import hosted
from stemma.config import load
with hosted(sys.argv[1], load()) as client:
    print(client._http.base_url, flush=True)
    sys.stdin.read()
"""


def below(pid: int) -> set[int]:
    """All living processes under one, children of children included."""
    parents = {}
    for entry in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = entry.read_text().rpartition(")")[2].split()
        except (FileNotFoundError, ProcessLookupError):
            continue
        parents[int(entry.parent.name)] = int(fields[1])
    found, edge = set(), {pid}
    while edge:
        edge = {child for child, parent in parents.items() if parent in edge} - found
        found |= edge
    return found


@pytest.fixture
def collection(tmp_path: Path) -> Path:
    url = tmp_path / "three.stemma"
    with stemma.open(url) as opened:
        opened.ingest([jpeg(render(1, number)) for number in range(3)])
    return url


@pytest.fixture
def host(collection: Path) -> Iterator[subprocess.Popen[str]]:
    command = [sys.executable, "-c", HOST, str(collection)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        yield process
        process.kill()


@pytest.mark.live
@pytest.mark.parametrize("end", ["killed", "closed"])
def test_it_answers_and_leaves_nothing_behind(host: subprocess.Popen[str], end: str) -> None:
    assert host.stdout is not None and host.stdin is not None
    url = host.stdout.readline().strip()
    body = jpeg(render(1, 2))
    with stemma.Client(url) as client:
        answer = client.search(body)
    assert answer.verdict == "identical" and answer.coverage.images_total == 3
    started = {pid: os.pidfd_open(pid) for pid in below(host.pid)}
    assert len(started) >= 5  # the daemon, and Ray's own processes under it
    if end == "killed":
        host.send_signal(signal.SIGKILL)
    else:
        host.stdin.close()
    try:
        for pid, handle in started.items():
            assert select.select([handle], [], [], GONE_S_MAX)[0], f"process {pid} goes on"
    finally:
        for handle in started.values():
            os.close(handle)
