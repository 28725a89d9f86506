"""The process behind ``stemma up``: ``python -m serving.daemon RUN_FOLDER``. Ray, actors, Serve live as long as it."""

from __future__ import annotations

import os
import signal
import sys
import threading
from dataclasses import replace
from pathlib import Path

from serving.run import RunFolder, State, born, environment, listening_ports
from stemma.errors import StemmaError


def main(folder: str) -> int:
    """Serve what the run folder asks for until SIGTERM."""
    run = RunFolder(Path(folder))
    collections, settings = run.request()
    over = _told_to_stop()
    pid = os.getpid()
    state = State(
        pid=pid,
        born=born(pid) or "",
        step="starting",
        doing="joining Ray" if settings.cluster.address else "starting Ray",
        url=f"http://{settings.serve.host}:{settings.serve.port}",
        collections=collections,
    )
    run.write(state)
    address = settings.cluster.address
    os.environ.update(environment(run.token, joins=address is not None))
    from serving.deploy import serve_down, serve_up, start_ray, stop_ray  # after the environment: they import Ray

    try:
        start_ray(address)
        run.write(replace(state, doing="loading shards and networks"))
        serve_up(collections, settings)
    except Exception as error:
        known = error if isinstance(error, StemmaError) else StemmaError(f"{type(error).__name__}: {error}")
        run.write(replace(state, step="failed", doing="", error=known.problem()))
        if known is error:
            return 2
        raise  # not ours to explain: the log has the whole of it
    over = _told_to_stop(over)  # Ray has put a handler of its own in place of ours
    run.write(replace(state, step="ready", doing="", ports=listening_ports(os.getsid(0))))
    over.wait()
    serve_down(collections, settings)
    stop_ray()
    return 0


def _told_to_stop(over: threading.Event | None = None) -> threading.Event:
    """An event that SIGTERM and SIGINT set."""
    event = over or threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: event.set())
    return event


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
