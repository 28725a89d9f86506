"""``stemma up | down | status`` at a terminal."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from serving.run import POLL_S, RunFolder, State, named
from stemma.api import Status
from stemma.calls import Options
from stemma.client import Client
from stemma.config import Settings, known_keys, load
from stemma.errors import BadRequest, Conflict, StemmaError, Unavailable, error_from_problem
from stemma.terminal import notes, run

RunOption = Annotated[Path | None, typer.Option("--run", help="folder of what is served (default ~/.stemma/run)")]
ConfigOption = Annotated[Path | None, typer.Option("--config", help="YAML file of settings")]
SetOption = Annotated[list[str] | None, typer.Option("--set", help="one setting, as section.key=value")]
JsonOption = Annotated[bool, typer.Option("--json", help="machine-readable")]
UP_S_MAX = 180.0


def up(argv: list[str]) -> int:
    """``stemma up --collection DIR``."""
    return run(_up, argv, name="up")


def down(argv: list[str]) -> int:
    """``stemma down``."""
    return run(_down, argv, name="down")


def status(argv: list[str]) -> int:
    """``stemma status``."""
    return run(_status, argv, name="status")


def _up(
    collection: Annotated[
        list[str] | None, typer.Option(help="folder of a collection, or NAME=DIR; repeatable")
    ] = None,
    port: Annotated[int | None, typer.Option(help="HTTP port (serve.port)")] = None,
    run_folder: RunOption = None,
    config: ConfigOption = None,
    sets: SetOption = None,
    as_json: JsonOption = False,
) -> int:
    """Serve collections on a local Ray, over HTTP; returns when they can be asked."""
    if not collection:
        raise BadRequest("say what to serve: --collection DIR", subject="--collection")
    overrides = [*(sets or ()), *([f"serve.port={port}"] if port is not None else [])]
    settings = load(config, overrides)
    folder = RunFolder(run_folder)
    folder.prepare(named(collection), settings)
    _check_port(settings)
    begun = time.monotonic()
    state = _started(folder)
    with Client(state.url) as client:
        status = client.status()
    if as_json:
        where = {"url": state.url, "pid": state.pid, "run": str(folder.path), "ports": state.ports}
        print(json.dumps({**status.model_dump(mode="json"), **where}))
        return 0
    _welcome(status, state, folder, time.monotonic() - begun)
    return 0


def _started(folder: RunFolder) -> State:
    """Start the daemon and wait for ``/readyz``. Raises what made it fail, ``Unavailable`` when it takes too long."""
    with folder.log.open("wb") as log:
        daemon = subprocess.Popen(
            [sys.executable, "-m", "serving.daemon", str(folder.path)],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
    try:
        return _await_ready(folder, daemon)
    except BaseException:  # a Ctrl-C as well: what did not come up must not stay behind
        daemon.terminate()
        raise


def _await_ready(folder: RunFolder, daemon: subprocess.Popen[bytes]) -> State:
    ends = time.monotonic() + UP_S_MAX
    with notes().status("starting") as spinner:
        while time.monotonic() < ends:
            state = folder.state()
            if daemon.poll() is not None or (state is not None and state.step == "failed"):
                raise _failure(folder, state)
            if state is not None and state.step == "ready" and _ready(state.url):
                return state
            spinner.update(state.doing or "first requests" if state is not None else "starting")
            time.sleep(POLL_S)
    raise Unavailable(f"not ready within {UP_S_MAX:.0f} s; {folder.log} has the details", subject="up")


def _check_port(settings: Settings) -> None:
    """Raise ``Conflict`` for a port that is taken: Serve would say so only after half a minute, and in its own log."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((settings.serve.host, settings.serve.port))
        except OSError as error:
            where = f"{settings.serve.host}:{settings.serve.port}"
            raise Conflict(f"{where} cannot be listened on ({error.strerror}); give another --port") from error


def _ready(url: str) -> bool:
    with Client(url, options=Options(timeout_s=2)) as client:
        return client.ready()


def _failure(folder: RunFolder, state: State | None) -> StemmaError:
    if state is not None and state.error is not None:
        return error_from_problem(state.error)
    last = folder.log.read_text(errors="replace").strip().splitlines()[-1:]
    return Unavailable(f"it ended while starting: {' '.join(last)} ({folder.log} has the rest)", subject="up")


def _welcome(status: Status, state: State, folder: RunFolder, seconds: float) -> None:
    console = notes()
    console.print(f"[green]ready[/green] at [bold]{state.url}[/bold] [dim]after {seconds:.0f} s[/dim]")
    console.print(_collections(status))
    if state.ports:
        ports = ", ".join(map(str, state.ports))
        console.print(
            f"[dim]Ray itself listens on every interface, on ports {ports}; its token is in {folder.token}[/dim]"
        )
    console.print(
        f"[dim]stop it with[/dim] stemma down{'' if folder.path == RunFolder().path else f' --run {folder.path}'}"
    )


def _collections(status: Status) -> Table:
    table = Table(box=None, header_style="dim", pad_edge=False)
    for column in ("collection", "images", "version", "hosts"):
        table.add_column(column, justify="left" if column in ("collection", "hosts") else "right")
    for each in status.collections:
        live = sum(host.state == "live" for host in each.hosts)
        table.add_row(each.name, f"{each.images:,}", str(each.seq), f"{live} of {len(each.hosts)} live")
    return table


def _down(run_folder: RunOption = None, as_json: JsonOption = False) -> int:
    """Stop what ``stemma up`` started from the same run folder, and nothing else."""
    folder = RunFolder(run_folder)
    with notes().status("stopping"):
        state = folder.stop()
    if as_json:
        print(json.dumps({"stopped": state.url, "pid": state.pid}))
    else:
        notes().print(f"stopped {state.url}")
    return 0


def _status(
    url: Annotated[str | None, typer.Option(help="address of a server")] = None,
    collection: Annotated[str | None, typer.Option(help="folder of an embedded collection")] = None,
    config: Annotated[bool, typer.Option("--config", help="print every setting instead")] = False,
    file: Annotated[Path | None, typer.Option(help="YAML file of settings, for --config")] = None,
    sets: SetOption = None,
    run_folder: RunOption = None,
    as_json: JsonOption = False,
) -> int:
    """What is there and how it is: of a server, of an embedded collection, or of what `stemma up` started."""
    if config:
        return _print_settings(load(file, sets or ()), as_json=as_json)
    if collection is not None:
        return _embedded(collection, as_json=as_json)
    if url is None:
        state = RunFolder(run_folder).state()
        if state is None or state.step != "ready":
            notes().print("nothing is served from here" if state is None else f"{state.step} {state.doing}".strip())
            return 1
        url = state.url
    with Client(url) as client:
        status = client.status()
    if as_json:
        print(status.model_dump_json())
    else:
        table = _collections(status)
        Console().print(f"{url}  version {status.version}  {'ready' if status.ready else 'not ready'}", highlight=False)
        Console().print(table)
    return 0 if status.ready else 1


def _embedded(folder: str, *, as_json: bool) -> int:
    from stemma.collection import open as open_collection  # here, so that asking a server does not import the networks

    with open_collection(folder) as opened:
        return _print_mapping(opened.status(), as_json=as_json)


def _print_settings(settings: Settings, *, as_json: bool) -> int:
    tree = settings.model_dump(mode="json")
    if as_json:
        print(json.dumps(tree))
        return 0
    meanings = known_keys()
    for section, values in tree.items():
        print(f"{section}:")
        for key, value in values.items():
            print(f"  {key}: {json.dumps(value)}  # {meanings[f'{section}.{key}']}")
    return 0


def _print_mapping(values: dict[str, Any], *, as_json: bool) -> int:
    if as_json:
        print(json.dumps(values))
        return 0
    for key, value in values.items():
        print(f"{key}: {value if isinstance(value, str | int) else json.dumps(value)}")
    return 0
