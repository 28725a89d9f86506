"""``stemma train encoder|comparator``: runs, resumes, refusals before anything is started, and what a run leaves."""

from __future__ import annotations

import json
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import cv2
import pytest
import torch

from training import commands, curves, hardest, live, loop, recipe
from training.data import Batch
from training.workers import Alone

TINY = """
network: comparator
comparator: {steps: 4, batch: 2, pairs: {side_px: 32, aligned: 0.0}}
loop: {checkpoint_every: 2, validate_every: 4}
render_processes: 0
validation_renders: 1
"""


def flat(capfd: pytest.CaptureFixture[str]) -> str:
    """What was said on standard error, however it was wrapped."""
    return " ".join(capfd.readouterr().err.split())


@pytest.fixture
def tiny(tmp_path: Path) -> Path:
    path = tmp_path / "tiny.yaml"
    path.write_text(TINY, encoding="utf-8")
    return path


@pytest.fixture
def run(tiny: Path, miniature: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Run]:
    monkeypatch.delenv("STEMMA_DATA", raising=False)
    threads = torch.get_num_threads()
    yield Run(tiny, miniature, tmp_path / "runs")
    torch.set_num_threads(threads)


class Run:
    """The command on a miniature of the development data."""

    def __init__(self, config: Path, data: Path, runs: Path) -> None:
        self._config, self.data, self.runs = config, data, runs

    def __call__(self, *more: str, config: bool = True) -> int:
        chosen = ["--config", str(self._config)] if config else []
        return commands.train(["comparator", *chosen, "--data", str(self.data), "--runs", str(self.runs), *more])

    def losses(self, name: str) -> list[float]:
        return [entry["loss"] for entry in loop.log(self.runs / name) if "loss" in entry]


def test_a_run_leaves_its_log_events_curves_and_hardest_cases(run: Run, capfd: pytest.CaptureFixture[str]) -> None:
    handler = signal.getsignal(signal.SIGTERM)
    assert run("--run", "whole") == 0
    folder = run.runs / "whole"
    assert signal.getsignal(signal.SIGTERM) is handler
    assert len(run.losses("whole")) == 4
    assert {path.name for path in folder.iterdir()} == {
        *(loop.LOG, loop.CONFIG, loop.LAST, loop.BEST),
        *(live.EVENTS, curves.FILE, hardest.FILE),
    }
    for page in (curves.FILE, hardest.FILE):
        picture = cv2.imread(str(folder / page))
        assert picture is not None and min(picture.shape[:2]) > 300 and picture.std() > 5
    said = capfd.readouterr()
    assert f"{folder}: 4 of 4 steps" in said.out
    assert "score" in said.err and curves.FILE in said.err
    assert run("--run", "whole") == 2
    assert "there is a run of this name" in capfd.readouterr().err


def test_a_killed_run_resumes_to_the_bit_under_the_config_it_began_with(run: Run, tiny: Path) -> None:
    assert run("--run", "whole", "--set", "comparator.rate=0.003") == 0
    # killed behind its second step
    config = recipe.read(tiny, ["comparator.rate=0.003"])
    parts, plain = recipe.parts(config, run.data, Alone()), recipe.describe(config)
    part: loop.Run[Batch] = loop.Run(run.runs / "parts", config.loop)
    first = part.start(parts.step, plain, resume=False)
    part.go(parts.step, parts.batches(first), config=plain, first=first, steps=2)
    parts.close()
    # without --config: the run knows its own
    assert run("--resume", "parts", config=False) == 0
    assert run.losses("parts") == run.losses("whole")
    # nothing is left to do: the pages are drawn again
    (run.runs / "parts" / curves.FILE).unlink()
    assert run("--resume", "parts", config=False) == 0
    assert (run.runs / "parts" / curves.FILE).exists() and len(run.losses("parts")) == 4


def test_a_run_has_a_name_of_network_and_time_and_begins_from_what_ships(run: Run) -> None:
    assert run("--begin", "shipped", "--set", "comparator.steps=1", "--set", "loop.validate_every=9") == 0
    (folder,) = run.runs.iterdir()
    assert folder.name.startswith("comparator-20")
    # the shipped weights see these pairs for what they are; a random start has a loss of 3
    assert run.losses(folder.name)[0] < 2.5


@pytest.mark.parametrize(
    ("more", "named"),
    [
        (["--run", "r", "--workers", "3"], "comparator.batch"),
        (["--run", "r", "--workers", "2", "--set", "comparator.stepz=1"], "comparator.stepz"),
        (["--run", "r", "--set", "network=encoder", "--set", "encoder.tau=1"], "encoder.tau"),
        (["--run", "r", "--set", "network=encoder"], "this config is of the encoder"),
        (["--resume", "none", "--workers", "2"], "no run of this name"),
        (["--resume", "none"], "no run of this name"),
        (["--resume", "a", "--run", "b"], "--run"),
        (["--resume", "a", "--begin", "shipped"], "--begin"),
        (["--run", "r", "--begin", "none.pt"], "none.pt"),
        (["--run", "r", "--begin", "none.safetensors", "--workers", "2"], "none.safetensors"),
        (["--run", "r", "--workers", "2", "--gpus"], "--gpus"),
        (["--run", "r", "--gpus"], "--gpus"),
        (["--run", "r", "--workers", "-1"], "workers"),
    ],
)
def test_refusals_name_what_is_wrong_before_anything_is_started(
    run: Run, capfd: pytest.CaptureFixture[str], more: list[str], named: str
) -> None:
    before = "ray" in sys.modules
    assert run(*more) == 2
    assert named in flat(capfd)
    assert ("ray" in sys.modules) == before
    assert not run.runs.exists()


def test_weights_of_another_network_are_no_beginning(run: Run, capfd: pytest.CaptureFixture[str]) -> None:
    encoder = recipe.weights_files.SHIPPED / "starter" / "encoder.safetensors"
    assert run("--run", "r", "--begin", str(encoder)) == 2
    assert "tensors fit" in flat(capfd)
    assert not run.runs.exists()


def test_without_data_the_way_out_is_named(
    tiny: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("STEMMA_DATA", raising=False)
    assert commands.train(["comparator", "--config", str(tiny)]) == 2
    assert "STEMMA_DATA" in flat(capfd)
    assert commands.train(["compactor"]) == 2
    said = flat(capfd)
    assert ", ".join((*commands.NETWORKS, *commands.FITS)) in said


def test_the_config_in_a_runs_folder_is_the_one_it_runs_under(run: Run) -> None:
    assert run("--run", "r", "--set", "comparator.steps=1", "--set", "comparator.rate=1e-05") == 0
    kept = json.loads((run.runs / "r" / loop.CONFIG).read_text())
    assert kept["comparator"]["rate"] == 1e-5
    assert recipe.describe(recipe.read(run.runs / "r" / loop.CONFIG)) == kept
