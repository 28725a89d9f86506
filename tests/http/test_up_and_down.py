"""``stemma up``, ``status``, ``down`` as a person runs them, in a Ray of their own."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import httpx
import pytest

from serving.run import RunFolder, born

pytestmark = [pytest.mark.live, pytest.mark.slow, pytest.mark.timeout(500)]


def stemma(*arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    command = [sys.executable, "-m", "stemma.cli", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=240, env=environment)


def test_up_serves_status_tells_down_ends(tmp_path: Path, picture: Any) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    run = ["--run", str(tmp_path / "run")]
    up = stemma(
        "up", "--collection", f"{tmp_path}/cats", "--collection", f"d={tmp_path}/dogs", "--port", port, *run, "--json"
    )
    assert up.returncode == 0, up.stderr
    told = json.loads(up.stdout)
    try:
        assert (told["ready"], [each["name"] for each in told["collections"]]) == (True, ["cats", "d"])
        assert httpx.get(f"{told['url']}/readyz").status_code == 200
        assert told["ports"], "Ray's open ports are told"
        assert int(port) not in told["ports"], "HTTP itself is on the loopback"
        stored = httpx.post(f"{told['url']}/v1/images?collection=d", files={"file": picture(1)}, timeout=60)
        assert stored.status_code == 201
        again = stemma("up", "--collection", f"{tmp_path}/cats", *run)
        assert again.returncode == 2 and "already serving" in again.stderr
        status = stemma("status", *run, "--json")
        assert status.returncode == 0
        assert [each["images"] for each in json.loads(status.stdout)["collections"]] == [0, 1]
        embedded = stemma("status", "--collection", f"{tmp_path}/dogs", "--json")
        assert json.loads(embedded.stdout)["images"] == 1
    finally:
        down = stemma("down", *run)
    assert down.returncode == 0, down.stderr
    assert born(told["pid"]) is None and RunFolder(tmp_path / "run").state() is None
    with pytest.raises(httpx.ConnectError):
        httpx.get(f"{told['url']}/healthz")
    assert stemma("status", *run).returncode == 1
    home = Path("~/.ray/auth_token").expanduser()
    assert not home.exists() or home.read_text() != (tmp_path / "run" / "auth_token").read_text()
