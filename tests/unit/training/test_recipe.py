"""Training configs and the command around them: what ships parses, what is wrong is named, a miniature run runs."""

from __future__ import annotations

import json
import signal
import sys
from pathlib import Path

import pytest
import torch

from stemma.errors import BadRequest, NotFound
from training import launch, loop, recipe
from training.data import Batch
from training.workers import Alone

CONFIGS = Path(__file__).parents[3] / "configs" / "training"
TINY = """
network: comparator
comparator: {steps: 4, batch: 2, pairs: {side_px: 32, aligned: 0.0}}
loop: {checkpoint_every: 2, validate_every: 4}
render_processes: 0
validation_renders: 1
"""


@pytest.fixture
def tiny(tmp_path: Path) -> Path:
    path = tmp_path / "tiny.yaml"
    path.write_text(TINY, encoding="utf-8")
    return path


def test_the_configs_that_ship_parse_and_say_how_they_are_run() -> None:
    paths = sorted(CONFIGS.rglob("*.yaml"))
    assert {path.relative_to(CONFIGS).as_posix() for path in paths} == {
        f"{size}/{network}.yaml" for size in ("starter", "paper") for network in ("comparator", "encoder")
    }
    for path in paths:
        config = recipe.read(path)
        settings = getattr(config, config.network)
        assert settings.size == path.parent.name and config.network == path.stem
        head = path.read_text().splitlines()[:3]
        assert "# command" in head[1] and path.relative_to(CONFIGS.parents[1]).as_posix() in head[1]
        assert head[2].startswith("# hardware")


def test_the_papers_configs_are_to_the_letter() -> None:
    icn = recipe.read(CONFIGS / "paper" / "comparator.yaml").comparator
    assert (icn.batch, icn.rate, icn.class_weight, icn.grid_weight, icn.pairs.side_px) == (8, 1e-4, 0.5, 0.5, 224)
    assert icn.pairs.both == icn.pairs.distinct == icn.pairs.benign and icn.pairs.manip == 0 and not icn.pairs.laid
    f = recipe.read(CONFIGS / "paper" / "encoder.yaml").encoder
    assert (f.batch, f.rate, f.decay_at, f.form, f.projected) == (16, 1e-3, (0.6, 0.9), "printed", 128)


@pytest.mark.parametrize(
    ("overrides", "named"),
    [
        (["comparator.stepz=3"], "comparator.stepz"),
        (["comparator.pairs.side_px=33"], "comparator.pairs.side_px"),
        (["network=detector"], "network"),
        (["comparator.steps=many"], "comparator.steps"),
        (["comparator.steps.of=3"], "comparator.steps.of"),
        (["steps"], "steps"),
    ],
)
def test_a_bad_config_is_refused_naming_the_key(tiny: Path, overrides: list[str], named: str) -> None:
    with pytest.raises(BadRequest) as refused:
        recipe.read(tiny, overrides)
    assert refused.value.subject == named


def test_a_config_that_cannot_be_read_is_refused(tmp_path: Path) -> None:
    for body in (None, "- a list", "a: [torn"):
        path = tmp_path / "config.yaml"
        if body is not None:
            path.write_text(body, encoding="utf-8")
        with pytest.raises(BadRequest):
            recipe.read(path)


def test_overrides_win_and_the_description_is_plain(tiny: Path) -> None:
    config = recipe.read(tiny, ["comparator.steps=9", "loop.log_every=3"])
    assert config.comparator.steps == 9 and config.loop.log_every == 3
    assert recipe.TrainingConfig.model_validate(json.loads(json.dumps(recipe.describe(config)))) == config


def test_validation_is_the_same_in_every_run(tiny: Path, miniature: Path) -> None:
    config = recipe.read(tiny)
    first, again = (recipe.validation_pairs(config, miniature) for _ in range(2))
    assert [pair.kind for pair in first] == ["benign", "manip", "both", "distinct"] * 2
    assert [pair.query_HWC.tobytes() for pair in first] == [pair.query_HWC.tobytes() for pair in again]


def run(tiny: Path, miniature: Path, tmp_path: Path, *more: str) -> int:
    arguments = ["--config", str(tiny), "--data", str(miniature), "--runs", str(tmp_path / "runs"), *more]
    return launch.main(arguments)


def losses(folder: Path) -> list[float]:
    entries = [json.loads(line) for line in (folder / loop.LOG).read_text().splitlines()]
    return [entry["loss"] for entry in entries if "loss" in entry]


def test_a_miniature_run_resumes_to_the_bit(
    tiny: Path, miniature: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    handler = signal.getsignal(signal.SIGTERM)
    assert run(tiny, miniature, tmp_path, "--run", "whole") == 0
    runs = tmp_path / "runs"
    whole = losses(runs / "whole")
    assert len(whole) == 4 and (runs / "whole" / loop.BEST).exists()
    assert signal.getsignal(signal.SIGTERM) is handler
    # a run that was killed behind its second step
    config = recipe.read(tiny)
    parts, plain = recipe.parts(config, miniature, Alone()), recipe.describe(config)
    part: loop.Run[Batch] = loop.Run(runs / "parts", config.loop)
    first = part.start(parts.step, plain, resume=False)
    part.go(parts.step, parts.batches(first), config=plain, first=first, steps=2)
    parts.close()
    assert run(tiny, miniature, tmp_path, "--run", "parts", "--resume") == 0
    assert losses(runs / "parts") == whole
    assert run(tiny, miniature, tmp_path, "--run", "whole") == 2
    assert "there is a run of this name" in capfd.readouterr().err
    assert run(tiny, miniature, tmp_path, "--run", "next", "--begin", str(runs / "whole" / loop.BEST)) == 0


def test_the_encoder_runs_from_the_shipped_weights(miniature: Path, tmp_path: Path) -> None:
    path = tmp_path / "encoder.yaml"
    path.write_text("network: encoder\nencoder: {batch: 2, steps: 1, clean: true, queue: 4, projected: 256}\n")
    parts = recipe.parts(recipe.read(path), miniature, Alone())
    said = parts.step.step(next(parts.batches(0)), 0)
    assert said["loss"] < 1.0 and parts.steps == 1
    found = parts.validate()
    assert found["first_benign"] >= 0.5
    torch.save({"step": parts.step.state_dict()}, tmp_path / "c.pt")
    assert parts.begin(tmp_path / "c.pt") > 100
    parts.close()


def test_refusals_come_before_ray(tiny: Path, miniature: Path, tmp_path: Path) -> None:
    before = "ray" in sys.modules
    for more in (
        ["--run", "r", "--workers", "3"],
        ["--run", "none", "--workers", "2", "--resume"],
        ["--run", "r", "--workers", "2", "--set", "comparator.stepz=1"],
        ["--run", "r", "--workers", "2", "--begin", "x.pt"],
    ):
        assert run(tiny, miniature, tmp_path, *more) == 2
    assert ("ray" in sys.modules) == before
    assert not (tmp_path / "runs").exists()


def test_without_the_development_data_the_way_out_is_named(tmp_path: Path) -> None:
    with pytest.raises(NotFound, match="--data"):
        recipe.public_lite0(tmp_path)
