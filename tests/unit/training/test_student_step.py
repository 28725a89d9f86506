"""The student's step: eq. 6, what moves and what must not, workers, resuming, and its windows."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from stemma.errors import BadRequest, Conflict, NotFound
from stemma.networks import detector, encoder
from stemma.networks import weights as weights_files
from stemma.networks.detector import Detector
from stemma.networks.encoder import EncoderNetwork
from stemma.networks.students import KINDS, Frozen, Kind
from training import recipe, student
from training.data import training_photographs
from training.loop import LoopSettings, Run
from training.student import StudentData, StudentStep, StudentTraining, build, rate
from training.workers import Alone, SharedNorm, share_statistics

SIDE = 64
SETTINGS = StudentTraining(steps=20, batch=4, rate=1e-3, seed=1, side_px=SIDE)


@pytest.fixture(scope="module")
def fixed() -> Frozen:
    """A detector and a teacher of random weights whose features keep their size on the way up."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        backbone, teacher = detector.build("starter").backbone, EncoderNetwork(encoder.STARTER)
        for module in [*backbone.modules(), *teacher.modules()]:
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight)
    return Frozen(backbone, teacher)


def fresh(fixed: Frozen, kind: Kind = "s3") -> StudentStep:
    settings = SETTINGS.model_copy(update={"kind": kind})
    return StudentStep(settings, build(settings), fixed, digests={"teacher": "t", "detector": "d"})


def batch(seed: int) -> Tensor:
    return torch.rand(4, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(seed)) * 255


def test_the_loss_is_the_mean_square_over_all_elements(fixed: Frozen) -> None:
    step = fresh(fixed)
    with torch.no_grad():
        said, true = student.said_and_true(step.network.train(), fixed, batch(0))
    again = fresh(fixed)
    assert again.step(batch(0), 0)["loss"] == pytest.approx(float((said - true).square().mean()), rel=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_every_student_learns_through_every_layer(fixed: Frozen, kind: Kind) -> None:
    step = fresh(fixed, kind)
    before = {name: one.clone() for name, one in step.network.named_parameters()}
    said = [step.step(batch(0), t)["loss"] for t in range(6)]
    assert said[-1] < 0.8 * said[0]
    assert not [name for name, one in step.network.named_parameters() if torch.equal(one, before[name])]


def test_detector_and_teacher_are_bit_identical_before_and_after() -> None:
    """Rows 53-55: weights, BatchNorm's statistics, and what both say of a picture."""
    fixed, _ = student.frozen(SETTINGS)
    picture = np.random.default_rng(3).integers(0, 256, (96, 128, 3)).astype(np.uint8)
    image_B3HW = torch.from_numpy(picture).permute(2, 0, 1).float()[None]
    found = detector.filled(*weights_files.read_detector())
    found.backbone = fixed.backbone

    def said() -> list[Tensor]:
        with torch.no_grad():
            boxes = found.eval()([image_B3HW[0]])[0]
        return [boxes["boxes"], boxes["scores"], fixed.target(fixed.normalised(image_B3HW))]

    state, spoken = {name: one.clone() for name, one in fixed.state_dict().items()}, said()
    assert any(name.endswith("running_mean") for name in state)
    step = StudentStep(SETTINGS, build(SETTINGS), fixed)
    for t in range(2):
        step.step(batch(t), t)
    after = fixed.state_dict()
    assert state.keys() == after.keys() and all(torch.equal(after[name], one) for name, one in state.items())
    assert all(torch.equal(a, b) for a, b in zip(spoken, said(), strict=True))


def test_a_folded_detector_finds_what_it_found() -> None:
    """What serves is loaded anew; filling it through a function of its own changed nothing."""
    card, tensors = weights_files.read_detector()
    picture = np.random.default_rng(4).integers(0, 256, (60, 80, 3)).astype(np.uint8)
    one = Detector(detector.filled(card, tensors), size="starter").detect(picture, 4)
    assert all(
        np.array_equal(a, b) for a, b in zip(one, Detector.load(recipe_settings()).detect(picture, 4), strict=True)
    )


def recipe_settings() -> Any:
    from stemma.config import ObjectSettings

    return ObjectSettings()


def test_a_resumed_student_is_the_one_that_never_stopped(fixed: Frozen, tmp_path: Path) -> None:
    def go(folder: Path, steps: int, *, resume: bool) -> dict[str, Any]:
        step, run = fresh(fixed), Run[Tensor](folder, LoopSettings(checkpoint_every=1))
        first = run.start(step, SETTINGS.model_dump(mode="json"), resume=resume)
        coming = (batch(t) for t in range(first, 99))
        run.go(step, coming, config=SETTINGS.model_dump(mode="json"), first=first, steps=steps)
        return step.state_dict()

    whole = go(tmp_path / "whole", 3, resume=False)
    go(tmp_path / "parts", 2, resume=False)
    parts = go(tmp_path / "parts", 3, resume=True)
    assert whole["network"].keys() == parts["network"].keys()
    assert all(torch.equal(whole["network"][name], parts["network"][name]) for name in whole["network"])


def test_a_student_of_another_teacher_is_not_resumed(fixed: Frozen) -> None:
    state = fresh(fixed).state_dict() | {"digests": {"teacher": "another", "detector": "d"}}
    with pytest.raises(Conflict, match="another teacher"):
        fresh(fixed).load_state_dict(state)


def test_windows_are_pure_and_of_one_size(miniature: Path) -> None:
    source = StudentData(training_photographs(miniature), seed=2, side_px=SIDE)
    assert [source.sample(n).tobytes() for n in range(3)] == [source.sample(n).tobytes() for n in range(3)]
    assert len({source.sample(n).tobytes() for n in range(8)}) == 8
    made = source.collate([source.sample(0), source.sample(1)])
    assert made.shape == (2, 3, SIDE, SIDE) and made.dtype == torch.float32 and made.max() > 1
    both = [source.numbers(3, batch=4, rank=rank, world=2) for rank in (0, 1)]
    assert sorted(n for part in both for n in part) == source.numbers(3, batch=4, rank=0, world=1)


def test_validation_says_how_much_of_the_teacher_is_explained(fixed: Frozen, monkeypatch: pytest.MonkeyPatch) -> None:
    network, true = build(SETTINGS), fixed.target(fixed.normalised(batch(0)))
    cases = {
        "the teacher itself": (true, 1.0, 0.0),
        "each channel's mean": (true.mean((0, 2, 3), keepdim=True).expand_as(true), 0.0, None),
        "nothing": (torch.zeros_like(true), None, float(true.square().mean())),
    }
    for said, score, mse in cases.values():
        monkeypatch.setattr(student, "said_and_true", lambda *_, said=said: (said, true))
        found = student.validate(network, fixed, [batch(0)])
        assert found["score"] == pytest.approx(score, abs=1e-3) if score is not None else found["score"] < 0
        assert mse is None or found["mse"] == pytest.approx(mse, abs=1e-6)


def test_the_rate_is_constant_or_falls_where_asked() -> None:
    assert {rate(StudentTraining(steps=10), t) for t in range(10)} == {1e-3}
    falling = StudentTraining(steps=10, decay_at=(0.5, 0.8))
    assert [rate(falling, t) for t in (4, 5, 8)] == pytest.approx([1e-3, 1e-4, 1e-5])


def test_weights_of_another_size_are_refused_naming_the_key() -> None:
    with pytest.raises(BadRequest, match=r"student\.teacher") as refused:
        student.frozen(StudentTraining(size="paper"))
    assert refused.value.subject == "student.teacher"
    with pytest.raises(ValueError, match="settings are for paper"):
        StudentStep(StudentTraining(size="paper"), build(SETTINGS), frozen_starter())


def frozen_starter() -> Frozen:
    with torch.device("meta"):
        return Frozen(detector.build("starter").backbone, EncoderNetwork(encoder.STARTER))


def test_a_run_goes_through_the_recipe(miniature: Path, tmp_path: Path) -> None:
    path = tmp_path / "student.yaml"
    path.write_text("network: student\nstudent: {kind: s2, batch: 2, steps: 1, side_px: 64}\nrender_processes: 0\n")
    config = recipe.read(path)
    parts = recipe.parts(config, miniature, Alone())
    assert parts.step.step(next(parts.batches(0)), 0)["loss"] > 0
    assert {"mse", "score"} == parts.validate().keys() and parts.hardest() == [] and parts.steps == 1
    torch.save({"step": parts.step.state_dict(), "config": {"network": "student"}}, tmp_path / "c.pt")
    assert parts.begin(str(tmp_path / "c.pt")) == len(parts.step.state_dict()["network"])
    with pytest.raises(NotFound, match="no student ships"):
        parts.begin("shipped")
    assert recipe.items(config) == (2, "images")
    parts.close()


def test_the_papers_config_is_to_the_letter() -> None:
    settings = recipe.read(recipe.default_path("student", "paper")).student
    assert (settings.kind, settings.rate, settings.batch, settings.steps) == ("s3", 1e-3, 64, 20_000)
    assert (settings.decay_at, settings.side_px) == ((), 224)


def test_alone_shared_statistics_are_batchnorms_own() -> None:
    network = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4))
    x_B3HW = torch.rand(2, 3, 8, 8)
    plain = network.train()(x_B3HW)
    weight, state = network[1].weight, {name: one.clone() for name, one in network.state_dict().items()}
    share_statistics(network, Alone())
    assert isinstance(network[1], SharedNorm) and network[1].weight is weight
    assert torch.equal(network(x_B3HW), plain) and network.state_dict().keys() == state.keys()
