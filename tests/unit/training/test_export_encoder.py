"""A run's encoder as weights: frozen cells stay to the bit, the scale is fitted anew, the card is true."""

from __future__ import annotations

import json
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from stemma.config import EncoderSettings
from stemma.errors import BadRequest, Corrupt
from stemma.networks import golden, weights
from stemma.networks.encoder import Encoder, EncoderNetwork
from training import encoder, encoder_weights, export, fit, loop, recipe, split, views
from training.recipe import TrainingConfig
from training.weights_commands import weights as command

NAMES = ("a.png", "b.png")


@pytest.fixture(scope="module")
def network() -> EncoderNetwork:
    """What a run with frozen cells leaves: what lies behind them has moved, and nothing else."""
    made = views.unfolded()
    with torch.no_grad():
        made.trunk.get_parameter("head.conv.weight").mul_(1.01)
        assert made.embedding is not None
        made.embedding.components_DC.mul_(0.5)
    return made


@pytest.fixture
def run(tmp_path: Path, network: EncoderNetwork) -> Path:
    folder = tmp_path / "run"
    folder.mkdir()
    config = TrainingConfig.model_validate({"network": "encoder", "encoder": {"seed": 3, "frozen_cells": True}})
    state = {"t": 40, "step": {"network": network.state_dict()}, "config": recipe.describe(config)}
    torch.save(state, folder / loop.BEST)
    log = {"t": 40, "validation": {"score": 0.7}}
    (folder / loop.LOG).write_text(json.dumps(log) + "\n", encoding="utf-8")
    return folder


@pytest.fixture
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "data" / "photos" / "train"
    folder.mkdir(parents=True)
    for name, phase in zip(NAMES, range(2), strict=True):
        cv2.imwrite(str(folder / name), golden.picture(phase))
    known, rendered = split.load(), views.view_features

    def one_view(
        network: EncoderNetwork, folder: Path, names: tuple[str, ...], *, per_cells: int, processes: int
    ) -> views.Features:
        assert processes >= 1
        return rendered(network, folder, names, per=1, per_cells=per_cells)

    monkeypatch.setattr(views, "view_features", one_view)
    monkeypatch.setattr(split, "load", lambda: type(known)(train=NAMES, calibrate=known.calibrate))
    return tmp_path / "data"


def test_cells_and_threshold_stay_and_the_scale_is_fitted(run: Path, data: Path, tmp_path: Path) -> None:
    out, before = tmp_path / "out", weights.card()
    card = export.export(run, out, data, tmp_path / "views.npz")
    read, tensors = weights.read_tensors(out)
    assert isinstance(card, weights.Card) and read == card and card.digest != before.digest
    assert (card.match_threshold, card.calibration) == (before.match_threshold, before.calibration)
    assert card.cells_scale == before.cells_scale and card.seed == 3
    assert encoder_weights.same_cells(tensors, weights.read_tensors()[1])
    assert "40 steps of 16 photographs" in card.command and "codec" in card.command
    assert encoder_weights.REFIT not in card.limits and card.figures["validation score by step"] == [[40, 0.7]]
    # the file is of the size that ships: weights halved, statistics and projections as they came
    shipped = weights.resolve(None) / weights.ENCODER_FILE
    assert abs((out / weights.ENCODER_FILE).stat().st_size - shipped.stat().st_size) < 1000
    mine, theirs = (Encoder.load(EncoderSettings(weights=at)) for at in (str(out), None))
    made, was = (one.encode(golden.picture(0), mirrored=False) for one in (mine, theirs))
    assert made.cells_VNF is not None and was.cells_VNF is not None
    assert np.array_equal(made.cells_VNF, was.cells_VNF)
    # the scale is that of the views that were kept, and the codec may be trained on them
    kept = views.Features.load(tmp_path / "views.npz", len(NAMES))
    unit_ND = fit.project(views.network(out), kept.pooled_NPC).astype(np.float64)
    assert card.embedding_scale == fit.int8_scale(unit_ND) and np.abs(made.embedding_VD).max() > 60


def test_moved_cells_are_said(run: Path, data: Path, tmp_path: Path) -> None:
    state = torch.load(run / loop.BEST, weights_only=True)
    state["step"]["network"]["cells.mean_C"][0] += 1
    torch.save(state, run / loop.BEST)
    card = export.export(run, tmp_path / "out", data)
    assert encoder_weights.REFIT in card.limits
    # and once only, when the next one moves them too
    again = export.export(run, tmp_path / "out", data)
    assert again.limits.count(encoder_weights.REFIT) <= 1


def test_what_cannot_be_exported_is_said(run: Path, data: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    with pytest.raises(BadRequest, match="--data"):
        export.export(run, out)
    state = torch.load(run / loop.BEST, weights_only=True)
    del state["step"]["network"]["cells.mean_C"]
    torch.save(state, tmp_path / "torn.pt")
    with pytest.raises(Corrupt, match="mean_C"):
        export.export(tmp_path / "torn.pt", out, data)
    paper = {**state["config"], "encoder": {**state["config"]["encoder"], "size": "paper", "frozen_cells": False}}
    torch.save({**state, "config": paper}, tmp_path / "paper.pt")
    with pytest.raises(BadRequest, match="paper"):
        export.export(tmp_path / "paper.pt", out, data)
    assert not out.exists()


def test_the_command_says_what_must_follow(
    run: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command(["export", "--run", str(run), "--out", str(tmp_path / "out"), "--data", str(data)]) == 0
    said = capsys.readouterr().out.splitlines()
    assert said[-len(encoder_weights.NEXT) :] == list(encoder_weights.NEXT)
    assert said[-1].endswith("weights golden") and "codec" in said[-len(encoder_weights.NEXT)]


def test_a_step_with_frozen_cells_moves_none_of_them() -> None:
    """What the export trusts: the names it compares are all that training leaves alone, and no more."""
    settings = encoder.EncoderTraining(frozen_cells=True)
    step = encoder.EncoderStep(settings, views.unfolded())
    learned = {name for name, one in step.network.named_parameters() if one.requires_grad}
    frozen = {name for name, one in step.network.named_parameters() if not one.requires_grad}
    assert all(name.startswith(encoder_weights.FROZEN) for name in frozen)
    assert not any(name.startswith(encoder_weights.FROZEN) for name in learned)
