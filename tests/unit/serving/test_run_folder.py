"""The run folder tells what lives from what does not, and the commands around it say so cleanly."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from serving import commands
from serving.run import RunFolder, State, born, named
from stemma.config import Settings, load
from stemma.errors import BadRequest, Conflict, NotFound


@pytest.fixture
def process() -> Iterator[subprocess.Popen[bytes]]:
    """A process that ends when it is told to."""
    process = subprocess.Popen([sys.executable, "-c", "import signal; signal.pause()"])
    yield process
    process.kill()
    process.wait()


def state_of(pid: int) -> State:
    return State(pid=pid, born=born(pid) or "", step="ready", doing="", url="http://127.0.0.1:1", collections={})


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    folder = RunFolder(tmp_path / "run")
    folder.prepare({"photos": "/photos"}, Settings())
    return folder


def test_what_is_asked_for_comes_back_with_its_settings(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "run")
    settings = load(overrides=["serve.port=9", 'decode.formats=["PNG"]', "encoder.weights=null"])
    folder.prepare({"a": "/x", "b": "/y"}, settings)
    assert folder.request() == ({"a": "/x", "b": "/y"}, settings)
    assert folder.token.stat().st_mode & 0o777 == 0o600 and len(folder.token.read_text()) == 64
    assert folder.path.stat().st_mode & 0o777 == 0o700


def test_a_living_process_is_known_and_not_started_twice(folder: RunFolder, process: subprocess.Popen[bytes]) -> None:
    folder.write(state_of(process.pid))
    assert folder.state() == state_of(process.pid)
    with pytest.raises(Conflict, match="already serving at"):
        folder.prepare({"a": "/x"}, Settings())


def test_a_process_that_is_gone_or_another_one_is_not_taken_for_it(
    folder: RunFolder, process: subprocess.Popen[bytes]
) -> None:
    folder.write(replace(state_of(process.pid), born="1"))  # the pid was given to somebody else
    assert folder.state() is None
    with pytest.raises(NotFound):
        folder.stop()
    assert process.poll() is None, "what up did not start is left alone"
    folder.write(state_of(process.pid))
    process.kill()
    process.wait()
    assert folder.state() is None
    folder.prepare({"a": "/x"}, Settings())


def test_stop_ends_the_process_and_forgets_it(folder: RunFolder, process: subprocess.Popen[bytes]) -> None:
    folder.write(state_of(process.pid))
    assert folder.stop().pid == process.pid
    assert born(process.pid) is None
    assert folder.state() is None
    with pytest.raises(NotFound):
        folder.stop()


def test_a_torn_state_is_no_state(folder: RunFolder) -> None:
    (folder.path / "state.json").write_text('{"pid": 1')
    assert folder.state() is None


def test_collections_are_called_by_their_folders_or_as_asked(tmp_path: Path) -> None:
    assert named([f"{tmp_path}/My Photos.stemma"]) == {"my-photos": f"{tmp_path}/My Photos.stemma"}
    assert named([f"cats={tmp_path}/x", f"{tmp_path}/dogs"]) == {"cats": f"{tmp_path}/x", "dogs": f"{tmp_path}/dogs"}
    for bad in ("9lives=/x", "A=/x", "=/x", "a/b=/x", "/123", "x" * 64 + "=/x"):
        with pytest.raises(BadRequest, match="NAME=DIR"):
            named([bad])
    with pytest.raises(Conflict):
        named(["/a/photos", "/b/photos.stemma"])


def test_commands_that_cannot_be_carried_out_say_why_and_return_2(
    folder: RunFolder, process: subprocess.Popen[bytes], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = ["--run", str(folder.path)]
    assert commands.up(run) == 2
    assert commands.up([*run, "--collection", "/x", "--set", "serve.prot=1"]) == 2
    assert commands.down(run) == 2
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        assert commands.up([*run, "--collection", "/x", "--port", str(taken.getsockname()[1])]) == 2
    folder.write(state_of(process.pid))
    assert commands.up([*run, "--collection", "/x"]) == 2
    said = capsys.readouterr()
    assert said.out == ""
    for way_out in ("--collection DIR", "serve.port", "nothing is served", "another --port", "already serving"):
        assert way_out in said.err


def test_status_of_nothing_is_a_no(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert commands.status(["--run", str(tmp_path)]) == 1
    assert "nothing is served" in capsys.readouterr().err


def test_status_prints_the_whole_configuration_as_yaml_and_json(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert commands.status(["--config", "--set", "search.k=7"]) == 0
    (tmp_path / "printed.yaml").write_text(capsys.readouterr().out)
    printed = load(tmp_path / "printed.yaml")
    assert printed == load(overrides=["search.k=7"])
    assert commands.status(["--config", "--set", "search.k=7", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == printed.model_dump(mode="json")


def test_this_very_process_was_born() -> None:
    assert born(os.getpid()) is not None
    assert born(2**22 + 1) is None
