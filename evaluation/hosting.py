"""Serve a collection on a Ray of its own for as long as a block runs, and stop it whatever ends the block."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from serving.run import STOP_S_MAX, RunFolder
from stemma.calls import Options
from stemma.client import Client
from stemma.config import Settings
from stemma.errors import Unavailable, error_from_problem
from stemma.terminal import notes

START_S_MAX = 180.0
POLL_S = 0.1
PROBE_S = 2.0
LOG_LINES = 5
TIMEOUT_S = 120.0
"""For one question: its own deadline ends sooner, so this only bounds a server that does not answer at all."""

# The daemon is asked to stop even when this process is killed and cannot ask: the kernel does (PR_SET_PDEATHSIG is 1).
BOOT = """
import ctypes, os, runpy, signal, sys
parent = int(sys.argv.pop(1))
if sys.platform == "linux":
    ctypes.CDLL(None).prctl(1, signal.SIGTERM)
    if os.getppid() != parent:
        sys.exit("the process that wanted this server is gone")
runpy.run_module("serving.daemon", run_name="__main__", alter_sys=True)
"""


@contextmanager
def hosted(collection: str, settings: Settings) -> Iterator[Client]:
    """A client of ``collection``, served on a free port of the loopback by a Ray that nobody else uses.

    Raises what made the server fail, and ``Unavailable`` when it is not ready within ``START_S_MAX``.
    """
    served = settings.serve.model_copy(update={"host": "127.0.0.1", "port": _free_port()})
    with tempfile.TemporaryDirectory(prefix="stemma-run-") as scratch:
        folder = RunFolder(Path(scratch))
        folder.prepare({"evaluated": str(Path(collection).absolute())}, settings.model_copy(update={"serve": served}))
        with folder.log.open("wb") as log:
            daemon = subprocess.Popen(
                [sys.executable, "-c", BOOT, str(os.getpid()), str(folder.path)],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        try:
            url = _ready(daemon, folder, f"http://127.0.0.1:{served.port}")
            with Client(url, options=Options(timeout_s=TIMEOUT_S)) as client:
                yield client
        finally:
            with notes().status("stop the server"):
                stop(daemon)


def stop(daemon: subprocess.Popen[bytes]) -> None:
    """Ask the process to end; after ``STOP_S_MAX`` end its whole session. A second Ctrl-C does not cut this short."""
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        daemon.terminate()
        try:
            daemon.wait(STOP_S_MAX)
        except subprocess.TimeoutExpired:
            os.killpg(daemon.pid, signal.SIGKILL)
            daemon.wait()
    finally:
        signal.signal(signal.SIGINT, before)


def _ready(daemon: subprocess.Popen[bytes], folder: RunFolder, url: str) -> str:
    ends = time.monotonic() + START_S_MAX
    with notes().status("start Ray") as spinner, Client(url, options=Options(timeout_s=PROBE_S)) as client:
        while time.monotonic() < ends:
            state = folder.state()
            if state is not None and state.error is not None:
                raise error_from_problem(state.error)
            if daemon.poll() is not None:
                raise Unavailable(f"the server ended while it started: {_last_words(folder)}", subject=url)
            if state is not None and state.step == "ready" and client.ready():
                return url
            spinner.update(state.doing or "first requests" if state is not None else "start Ray")
            time.sleep(POLL_S)
    raise Unavailable(f"the server was not ready within {START_S_MAX:.0f} s: {_last_words(folder)}", subject=url)


def _last_words(folder: RunFolder) -> str:
    return " | ".join(folder.log.read_text(encoding="utf-8", errors="replace").strip().splitlines()[-LOG_LINES:])


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
