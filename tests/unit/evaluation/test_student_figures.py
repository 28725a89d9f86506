"""What a student keeps: pooling alike, the donor's rank among pictures, the order, and the table."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from evaluation import students as figures
from evaluation.students import Pooled, Trained, order, ranks, student_runs, trained
from evaluation.tables import tables
from stemma.errors import BadRequest, Conflict
from stemma.networks import detector, encoder
from stemma.networks.encoder import EncoderNetwork
from stemma.networks.students import STARTER, Frozen, Student
from training import loop, student
from training.loop import LoopSettings, Run
from training.splices import CutOut
from training.student import StudentStep, StudentTraining


@pytest.fixture(scope="module")
def fixed() -> Frozen:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return Frozen(detector.build("starter").backbone, EncoderNetwork(encoder.STARTER))


def test_every_network_is_pooled_in_both_ways(fixed: Frozen) -> None:
    pooled = Pooled(fixed, {"s3": Student(STARTER, "s3").eval()})
    picture = np.random.default_rng(1).integers(0, 256, (70, 96, 3)).astype(np.uint8)
    found = pooled(picture, np.array([[4, 4, 40, 50], [30, 10, 90, 60]], np.float32))
    assert {*found} == {*pooled.keys} == {(a, b) for a in ("crops", "one_pass") for b in ("teacher", "s3")}
    assert all(rows.shape == (2, 1280) and np.isfinite(rows).all() for rows in found.values())


def test_a_donors_rank_is_among_pictures_and_passes_over_the_host() -> None:
    rng = np.random.default_rng(2)
    stored, owner = rng.normal(size=(8, 6)).astype(np.float32), np.array([0, 0, 1, 1, 2, 2, 3, 3])
    fit = rng.normal(size=(60, 6)).astype(np.float32)
    # the query is an object of picture 2; its host, picture 0, holds the very same vector
    stored[0] = stored[4]
    near = ranks(stored[4:5], (stored, owner), np.array([[0, 2]]), fit)
    assert near.tolist() == [0]
    # asked for picture 3 it is behind at least the true one, and no picture counts twice
    behind = ranks(stored[4:5], (stored, owner), np.array([[0, 3]]), fit)
    assert 1 <= behind[0] <= 2


def test_networks_are_told_from_the_worst_to_the_best() -> None:
    def said(first: float, ten: float) -> dict[str, Any]:
        return {"crops": {"R@1": {"share": first}, "R@10": {"share": ten}}}

    found = {"teacher": said(0.5, 0.7), "s1": said(0.3, 0.6), "s2": said(0.3, 0.5), "s3": said(0.6, 0.6)}
    assert order(found, "crops") == ["s2", "s1", "teacher", "s3"]


def test_true_boxes_are_kept_by_photograph() -> None:
    cuts = [
        CutOut(name=name, split="train", box=(x, 0.0, x + 9, 9.0), polygons=()) for name, x in (("a", 1.0), ("b", 2.0))
    ]
    found = figures.boxes_of([*cuts, *cuts[:1]])
    assert {name: len(rows) for name, rows in found.items()} == {"a": 2, "b": 1}
    assert found["b"].tolist() == [[2, 0, 11, 9]]


def run_of(folder: Path, fixed: Frozen, digests: dict[str, str], kind: Any = "s3") -> Path:
    """A run of one step that was validated."""
    settings = StudentTraining(kind=kind, batch=2, steps=1, side_px=32)
    step = StudentStep(settings, student.build(settings), fixed, digests=digests)
    config = {"network": "student", "student": settings.model_dump(mode="json")}
    run: Run[torch.Tensor] = Run(folder, LoopSettings(validate_every=1))
    run.start(step, config, resume=False)
    batches = iter([torch.rand(2, 3, 32, 32) * 255])
    run.go(step, batches, config=config, first=0, steps=1, validate=lambda: {"mse": 0.5, "score": 0.25})
    return folder


def test_runs_are_read_with_what_they_learned_from(
    fixed: Frozen, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    digests = {"teacher": "t", "detector": "d"}
    monkeypatch.setattr(student, "frozen", lambda _: (fixed, digests))
    run = run_of(tmp_path / "student-s3", fixed, digests)
    assert student_runs(tmp_path) == [run]
    made = trained([run])
    assert isinstance(made, Trained) and made.steps == {"s3": 1} and made.scores["s3"]["mse"] == 0.5
    state = loop.load(run / loop.BEST)["step"]["network"]
    assert all(torch.equal(one, state[name]) for name, one in made.networks["s3"].state_dict().items())
    with pytest.raises(Conflict, match="two runs of s3"):
        trained([run, run])
    with pytest.raises(Conflict, match="other weights"):
        trained([run_of(tmp_path / "other", fixed, {"teacher": "u", "detector": "d"})])
    with pytest.raises(BadRequest, match="no trained student"):
        trained([])


def test_the_table_says_what_is_kept_and_leaves_out_what_was_not_trained() -> None:
    share = {"share": 0.4, "n": 10, "low": 0.1, "high": 0.7}
    pooling = {"R@1": share, "R@10": share}
    cost = {"multiply_adds": 145_510_400, "parameters": 1_894_272}
    result = {
        "students": {
            "s1": cost,
            "s3": cost | {"mse": 0.1, "explained": 0.5, "crops": pooling | {"kept": {"R@1": 0.8, "R@10": 0.9}}},
            "teacher": cost | {"crops": pooling, "one_pass": pooling},
        }
    }
    lines = tables(result).splitlines()
    assert lines[2] == "| s1 | 146 M | 1.89 M |  |  |  |  |  |"
    assert "0.1000, 50% explained" in lines[3] and "keeps 80%" in lines[3] and "keeps 90%" in lines[3]
    assert lines[4].count("0.400 [0.100, 0.700]") == 4 and "keeps" not in lines[4]
