"""A run's comparator as weights: the averaged tensors, a card that is true, and the command around both."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from stemma.errors import BadRequest, Corrupt, NotFound
from stemma.networks import golden, weights
from training import comparator, export, loop, recipe
from training.recipe import TrainingConfig
from training.weights_commands import weights as command


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run's folder with a best checkpoint at step 40, a last one at 60, and a log."""
    folder = tmp_path / "run"
    folder.mkdir()
    config = TrainingConfig.model_validate({"network": "comparator", "comparator": {"seed": 3, "batch": 6}})
    network = comparator.build(config.comparator)
    for name, t, factor in (("best.pt", 40, 1.0), ("last.pt", 60, 2.0)):
        tensors = {key: tensor * factor for key, tensor in network.state_dict().items()}
        step = {"network": {key: tensor * 0 for key, tensor in tensors.items()}, "averaged": tensors, "optimizer": {}}
        torch.save({"t": t, "step": step, "config": recipe.describe(config)}, folder / name)
    lines: list[dict[str, Any]] = [{"t": 10, "loss": 1.0}]
    lines += [
        {"t": t, "validation": {"score": score, "iou_manip": 0.5}} for t, score in ((20, 0.6), (40, 0.7), (60, 0.65))
    ]
    (folder / loop.LOG).write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    return folder


def test_the_best_averaged_weights_come_out(run: Path, tmp_path: Path) -> None:
    card = export.export(run, tmp_path / "out")
    read, tensors = weights.read_comparator(tmp_path / "out")
    expected = torch.load(run / "best.pt", weights_only=True)["step"]["averaged"]
    assert read == card and card.seed == 3 and card.size == "starter" and card.side_px == 160
    assert all(np.allclose(tensors[key], tensor, rtol=1e-3, atol=1e-6) for key, tensor in expected.items())
    assert "40 steps of 6 pairs" in card.command and any("not fitted" in line for line in card.limits)
    # what was validated after the checkpoint is of other weights
    assert card.figures["validation score by step"] == [[20, 0.6], [40, 0.7]]


def test_a_checkpoint_by_itself_and_thresholds_that_were_there(run: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    first = export.export(run / "last.pt", out)
    weights.write_card(
        out, weights.ComparatorCard(**{**_fields(first), "margin": 0.34, "temperature": 1.7, "name": "mine"})
    )
    second = export.export(run, out)
    assert (second.margin, second.temperature, second.name) == (0.34, 1.7, "mine")
    assert second.digest != first.digest and "60 steps" in first.command


def _fields(card: weights.ComparatorCard) -> dict[str, Any]:
    return {name: getattr(card, name) for name in card.__dataclass_fields__}


def test_what_cannot_be_exported_is_said(run: Path, tmp_path: Path) -> None:
    with pytest.raises(NotFound):
        export.export(tmp_path / "nothing", tmp_path / "out")
    state = torch.load(run / "best.pt", weights_only=True)
    torch.save({**state, "config": {**state["config"], "network": "encoder"}}, tmp_path / "encoder.pt")
    with pytest.raises(BadRequest, match="encoder"):
        export.export(tmp_path / "encoder.pt", tmp_path / "out")
    averaged = {key: tensor for key, tensor in state["step"]["averaged"].items() if key != "map.bias"}
    torch.save({**state, "step": {**state["step"], "averaged": averaged}}, tmp_path / "torn.pt")
    with pytest.raises(Corrupt, match=r"map\.bias"):
        export.export(tmp_path / "torn.pt", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_the_command_exports_with_golden_answers_and_verifies(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    assert command(["export", "--run", str(run), "--out", str(out)]) == 0
    assert (out / golden.FILE).exists()
    assert command(["verify", "--weights", str(out), "--json"]) == 0
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines() if line.startswith("{")]
    assert {line["name"]: line["said"] for line in lines} == {
        "comparator": "the file is what its card says",
        "golden descriptors": "none here to compare with",
        "golden comparisons": "computed again, the same",
        "golden objects": "none here to compare with",
    }
    # other weights in the old one's place: the golden answers are of another digest
    export.export(run / "last.pt", out)
    assert command(["verify", "--weights", str(out)]) == 2
    assert "stemma weights golden" in " ".join(capsys.readouterr().err.split())
    assert command(["golden", "--weights", str(out)]) == 0 and command(["verify", "--weights", str(out)]) == 0


def test_the_shipped_weights_verify(capsys: pytest.CaptureFixture[str]) -> None:
    assert command(["verify"]) == 0
    said = capsys.readouterr().out
    for name in ("encoder", "comparator", "flow", "detector", "objects", "codec opq"):
        assert any(line.startswith(name) and "card says" in line for line in said.splitlines()), name
    assert said.count("computed again, the same") == 3


def test_list_and_show_name_everything(capsys: pytest.CaptureFixture[str]) -> None:
    assert command(["list", "--json"]) == 0
    listed = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    networks = [part.name for part in weights.PARTS]
    assert [one["network"] for one in listed] == [*networks, "codec"]
    assert command(["show"]) == 0
    assert list(json.loads(capsys.readouterr().out)) == networks


@pytest.mark.parametrize(
    "argv",
    [["polish"], ["import", "raft_small"], ["export"], ["list", "raft_small"], ["show", "--weights", "/nowhere"]],
)
def test_calls_that_cannot_be_meant(argv: list[str]) -> None:
    assert command(argv) == 2
