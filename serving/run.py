"""The run folder: what ``stemma up`` started, so that ``down`` stops exactly that and ``status`` finds it.

``request.json``  what is to be served       ``state.json``  how far it is, and as which process
``auth_token``    Ray's token                ``log.txt``     what the process said
"""

from __future__ import annotations

import json
import os
import secrets
import signal
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from stemma.config import Settings, load
from stemma.errors import BadRequest, Conflict, NotFound

DEFAULT = Path("~/.stemma/run")
POLL_S = 0.1
STOP_S_MAX = 40.0
Step = Literal["starting", "ready", "failed"]


@dataclass(frozen=True, slots=True, kw_only=True)
class State:
    """What the daemon says of itself."""

    pid: int
    born: str
    """Start time of the process, so that another process with the same pid is not taken for it."""
    step: Step
    doing: str
    url: str
    collections: dict[str, str]
    error: dict[str, Any] | None = None
    ports: tuple[int, ...] = ()
    """Ports that Ray's own processes listen on, on every interface."""


class RunFolder:
    def __init__(self, path: Path | None = None) -> None:
        self.path = (path or DEFAULT).expanduser().absolute()

    @property
    def log(self) -> Path:
        return self.path / "log.txt"

    @property
    def token(self) -> Path:
        return self.path / "auth_token"

    def state(self) -> State | None:
        """The state that was last written, if its process lives."""
        try:
            known = json.loads((self.path / "state.json").read_text())
        except (FileNotFoundError, json.JSONDecodeError):
            return None
        state = State(**{**known, "ports": tuple(known["ports"])})
        return state if born(state.pid) == state.born or state.step == "failed" else None

    def write(self, state: State) -> None:
        _replace(self.path / "state.json", json.dumps(asdict(state)))

    def request(self) -> tuple[dict[str, str], Settings]:
        """What is to be served, and under which settings."""
        known = json.loads((self.path / "request.json").read_text())
        sections = [
            f"{name}.{key}={json.dumps(value)}"
            for name, part in known["settings"].items()
            for key, value in part.items()
        ]
        return known["collections"], load(overrides=sections)

    def prepare(self, collections: Mapping[str, str], settings: Settings) -> None:
        """Write what is to be served, and Ray's token. Raises ``Conflict`` while something is served from here."""
        state = self.state()
        if state is not None and state.step != "failed":
            raise Conflict(f"already serving at {state.url}; `stemma down` stops it", subject=str(self.path))
        self.path.mkdir(parents=True, exist_ok=True, mode=0o700)
        (self.path / "state.json").unlink(missing_ok=True)
        if not self.token.exists():
            self.token.touch(mode=0o600)
            self.token.write_text(secrets.token_hex(32))
        tree = settings.model_dump(mode="json")
        _replace(self.path / "request.json", json.dumps({"collections": dict(collections), "settings": tree}))

    def stop(self) -> State:
        """End the process and wait until it is gone. Raises ``NotFound`` when there is none."""
        state = self.state()
        if state is None or state.step == "failed":
            raise NotFound("nothing is served from this run folder", subject=str(self.path))
        os.kill(state.pid, signal.SIGTERM)
        ends = time.monotonic() + STOP_S_MAX
        while born(state.pid) == state.born:
            if time.monotonic() > ends:
                # Ray's processes are bound to the daemon's life by the kernel, so they go with it.
                os.kill(state.pid, signal.SIGKILL)
            time.sleep(POLL_S)
        (self.path / "state.json").unlink(missing_ok=True)
        return state


def environment(token: Path, *, joins: bool = False) -> dict[str, str]:
    """What a process that starts Ray must have in its environment before it imports it.

    Ray would write a token into the user's home on its own; ours stays in the run folder. A process that ``joins`` a
    running cluster keeps that cluster's token, which the caller's environment names.
    """
    own = {} if joins else {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(token)}
    return {
        **own,
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_SERVE_DIRECT_INGRESS_MIN_DRAINING_PERIOD_S": "1",  # else a shutdown behind HAProxy takes 30 s
        "OMP_NUM_THREADS": "1",
    }


def _replace(path: Path, text: str) -> None:
    partial = path.with_suffix(".partial")
    partial.write_text(text)
    partial.replace(path)


def born(pid: int) -> str | None:
    """When a process was started, in clock ticks since boot; None for one that is gone or has ended."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return None
    return None if fields[0] == "Z" else fields[19]


def listening_ports(session: int) -> tuple[int, ...]:
    """TCP ports that processes of a session listen on, on every interface."""
    inodes = {}
    for table in ("/proc/net/tcp", "/proc/net/tcp6"):
        for line in Path(table).read_text().splitlines()[1:]:
            fields = line.split()
            address, _, port = fields[1].partition(":")
            if fields[3] == "0A" and not address.strip("0"):
                inodes[f"socket:[{fields[9]}]"] = int(port, 16)
    ports = set()
    for folder in Path("/proc").glob("[0-9]*/fd"):
        try:
            if os.getsid(int(folder.parent.name)) != session:
                continue
            ports |= {inodes[link] for each in folder.iterdir() if (link := os.readlink(each)) in inodes}
        except (FileNotFoundError, ProcessLookupError, PermissionError):
            continue  # it has ended, or is not ours
    return tuple(sorted(ports))


def named(folders: list[str]) -> dict[str, str]:
    """Collections by name: ``NAME=DIR``, or a folder called by its own name. Raises ``BadRequest``, ``Conflict``."""
    collections: dict[str, str] = {}
    for text in folders:
        name, equals, folder = text.partition("=")
        if not equals:
            name, folder = _name(Path(text)), text
        if (
            not name
            or not name[0].isalpha()
            or len(name) > 63
            or set(name) - set("abcdefghijklmnopqrstuvwxyz0123456789-_")
        ):
            raise BadRequest(
                "a collection is called 1 to 63 of a-z 0-9 - _, a letter first: use NAME=DIR", subject=text
            )
        if name in collections:
            raise Conflict(f"two collections are called {name}: use NAME=DIR", subject=text)
        collections[name] = str(Path(folder).expanduser().absolute())
    return collections


def _name(folder: Path) -> str:
    stem = folder.absolute().name.removesuffix(".stemma").lower()
    return "".join(character if character.isascii() and character.isalnum() else "-" for character in stem).strip("-")
