"""The comparator's step: it learns, resumes to the bit, freezes what it should, and validation counts as stated."""

from __future__ import annotations

import itertools
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from stemma.networks.comparator import Compared
from stemma.networks.paper_comparator import PaperComparator
from training import comparator
from training.comparator import ComparatorSettings, ComparatorStep, build, rate, terms
from training.data import Batch
from training.loop import LoopSettings, Run
from training.pairs import Pair

SIDE = 32
SETTINGS = ComparatorSettings(steps=40, batch=4, warmup_steps=2, rate=2e-3, average=0.5, seed=1)


def batch(seed: int, labels: tuple[int, ...] = (0, 1, 2, 1), side: int = SIDE) -> Batch:
    generator = torch.Generator().manual_seed(seed)
    count = len(labels)
    small = torch.rand(count, 3, 6, 6, generator=generator) * 200
    original = torch.nn.functional.interpolate(small, size=(side, side), mode="bicubic").clamp(0, 255)
    label = torch.tensor(labels)
    mask = torch.zeros(count, 1, side, side)
    mask[:, :, 8:20, 6:22] = 1
    mask *= (label == 1)[:, None, None, None]
    query = torch.where(mask > 0, 255 - original, original)
    query[label == 2] = query.flip(2)[label == 2].roll(1, 0)
    valid = torch.ones(count, 1, side, side)
    return Batch(query, original, valid, mask, valid, label)


def fresh() -> ComparatorStep:
    return ComparatorStep(SETTINGS, build(SETTINGS))


def test_every_loss_falls_on_what_is_learned_by_heart() -> None:
    step, same = fresh(), batch(0)
    said = [step.step(same, t) for t in range(14)]
    for name in ("loss", "classes", "map", "overlap"):
        assert said[-1][name] < 0.85 * said[0][name], name


def test_benign_batches_alone_are_finite() -> None:
    step = fresh()
    said = step.step(batch(1, (0, 0)), 0)
    assert all(math.isfinite(value) for value in said.values())
    assert said["grid"] == said["overlap"] == 0.0
    assert all(bool(torch.isfinite(p).all()) for p in step.network.parameters())


def test_the_start_is_the_seeds_alone() -> None:
    torch.manual_seed(5)
    first = build(SETTINGS).state_dict()
    torch.manual_seed(6)
    assert all(torch.equal(first[name], value) for name, value in build(SETTINGS).state_dict().items())
    other = build(SETTINGS.model_copy(update={"seed": 2})).state_dict()
    assert any(not torch.equal(first[name], value) for name, value in other.items())


def test_frozen_stages_keep_their_weights() -> None:
    step = fresh()
    before = {name: p.clone() for name, p in step.network.named_parameters()}
    step.step(batch(2), 5)
    moved = {name for name, p in step.network.named_parameters() if not torch.equal(p, before[name])}
    frozen = {name for name in before if name.startswith(("trunk.stem", "trunk.cells.0.", "trunk.cells.1."))}
    assert frozen and not moved & frozen
    assert moved >= {"map.weight", "classify.weight", "grid.weight", "trunk.cells.4.2.project.conv.weight"}


def test_a_resumed_comparator_is_the_one_that_never_stopped(tmp_path: Path) -> None:
    def go(folder: Path, steps: int, *, resume: bool) -> dict[str, Any]:
        step = fresh()
        run: Run[Batch] = Run(folder, LoopSettings(checkpoint_every=1))
        first = run.start(step, SETTINGS.model_dump(), resume=resume)
        coming = (batch(t) for t in range(first, 99))
        run.go(step, coming, config=SETTINGS.model_dump(), first=first, steps=steps)
        return step.state_dict()

    whole = go(tmp_path / "whole", 3, resume=False)
    go(tmp_path / "parts", 2, resume=False)
    parts = go(tmp_path / "parts", 3, resume=True)
    for part in ("network", "averaged"):
        assert all(torch.equal(whole[part][name], parts[part][name]) for name in whole[part])
    for key, moments in whole["optimizer"]["state"].items():
        assert all(torch.equal(moments[name], parts["optimizer"]["state"][key][name]) for name in moments)


def test_a_run_begins_from_another_runs_weights_where_they_fit() -> None:
    other = build(SETTINGS.model_copy(update={"seed": 9})).state_dict()
    other["grid.weight"] = torch.zeros(3, 3)
    step = fresh()
    own = step.network.state_dict()["grid.weight"].clone()
    assert step.begin(other) == len(other) - 1
    for network in (step.network, step.averaged):
        assert torch.equal(network.state_dict()["map.weight"], other["map.weight"])
        assert torch.equal(network.state_dict()["grid.weight"], own)


def test_the_averaged_weights_lie_between() -> None:
    step = fresh()
    before = step.averaged.state_dict()["map.weight"].clone()
    step.step(batch(3), 3)
    after, averaged = step.network.state_dict()["map.weight"], step.averaged.state_dict()["map.weight"]
    decay = 4 / 13
    assert torch.allclose(averaged, decay * before + (1 - decay) * after, atol=1e-6)


def test_the_rate_rises_and_falls() -> None:
    found = [rate(SETTINGS, t) for t in range(41)]
    assert found[0] == pytest.approx(1e-3) and found[1] == found[2] == pytest.approx(2e-3)
    assert all(a >= b for a, b in itertools.pairwise(found[2:]))
    assert found[40] == pytest.approx(2e-3 * SETTINGS.rate_end)


def test_strangers_and_uncounted_places_teach_the_map_nothing() -> None:
    data = batch(4, (2, 1))
    data.counted_B1HW[1, :, :, :16] = 0
    logits = torch.zeros(2, 1, SIDE // 2, SIDE // 2, requires_grad=True)
    said = Compared(torch.zeros(2, 3), torch.zeros(2, 7, 7), logits)
    parts = terms(said, data, SETTINGS)
    (parts["map"][1].mean + parts["overlap"][1].mean).backward()
    assert logits.grad is not None
    assert float(logits.grad[0].abs().max()) == 0.0 and float(logits.grad[1, :, :, :8].abs().max()) == 0.0
    assert float(logits.grad[1, :, :, 8:].abs().min()) > 0.0


def test_the_paper_network_takes_the_same_batches() -> None:
    settings = ComparatorSettings(size="paper", aligned=False, batch=2, class_weight=0.5, grid_weight=0.5)
    step = ComparatorStep(settings, build(settings))
    said = step.step(batch(5, (1, 0)), 0)
    assert set(said) == {"loss", "classes", "grid", "gradient_norm", "rate"}
    assert said["loss"] == pytest.approx(0.5 * said["classes"] + 0.5 * said["grid"], rel=1e-5)


def test_the_paper_network_trains_end_to_end_on_benign_pairs_alone_too() -> None:
    """DIC 3.2 and 4.2 at the least size that RAFT takes: finite, and both losses reach the flow's weights."""
    settings = ComparatorSettings(
        size="paper", batch=2, rate=1e-4, warmup_steps=0, average=0.0, class_weight=0.5, grid_weight=0.5, seed=2
    )
    network = build(settings)
    assert isinstance(network, PaperComparator) and network.flow is not None
    network.flow.updates = 1
    step = ComparatorStep(settings, network)
    said = []
    for t, labels in enumerate([(0, 0), (1, 2)]):
        before = {name: p.clone() for name, p in network.named_parameters()}
        said.append(step.step(batch(6 + t, labels, side=128), t))
        moved = {name for name, p in network.named_parameters() if not torch.equal(p, before[name])}
        for part in ("flow.net.feature_encoder", "flow.net.update_block", "features", "fusion", "classify"):
            assert any(name.startswith(part) for name in moved), f"{part} stands still at step {t}"
    assert all(math.isfinite(value) for one in said for value in one.values())
    assert said[0]["grid"] == 0.0 and said[1]["grid"] > 0.0
    assert all(bool(torch.isfinite(p).all()) for p in network.parameters())


def pair(kind: str, label: int, mask: np.ndarray) -> Pair:
    flat = np.zeros((SIDE, SIDE, 3), np.uint8)
    whole = np.full((SIDE, SIDE), 255, np.uint8)
    return Pair(
        query_HWC=flat,
        original_HWC=flat,
        valid_HW=whole,
        mask_HW=mask,
        counted_HW=whole,
        label=label,
        kind=kind,  # type: ignore[arg-type]
        log=(),
    )


class Oracle(torch.nn.Module):
    """Says manipulated, with the left half as the place."""

    def forward(self, query: torch.Tensor, original: torch.Tensor, valid: torch.Tensor) -> Compared:
        count = len(query)
        logits = torch.full((count, 1, SIDE // 2, SIDE // 2), -20.0)
        logits[..., : SIDE // 4] = 20.0
        grid = torch.zeros(count, 7, 7)
        grid[..., :3] = 1.0
        return Compared(torch.tensor([[0.0, 1.0, 0.0]]).repeat(count, 1), grid, logits)


def test_validation_counts_classes_and_overlap() -> None:
    nothing = np.zeros((SIDE, SIDE), np.uint8)
    left, quarter = nothing.copy(), nothing.copy()
    left[:, : SIDE // 2] = 255
    quarter[: SIDE // 2, : SIDE // 2] = 255
    samples = [
        pair("benign", 0, nothing),
        pair("manip", 1, left),
        pair("both", 1, left),
        pair("both", 1, quarter),
        # relabelled: little of the edit is left to see
        pair("both", 0, nothing),
        pair("distinct", 2, nothing),
    ]
    found = comparator.validate(Oracle(), samples, batch=4)
    assert (found["right_benign"], found["right_manip"], found["right_both"], found["right_distinct"]) == (0, 1, 1, 0)
    assert found["iou_manip"] == pytest.approx(1.0, abs=0.05)
    assert found["iou_both"] == pytest.approx(0.75, abs=0.05)
    assert found["grid_iou_manip"] == pytest.approx(0.9, abs=0.1)
    named = ("right_benign", "right_manip", "right_both", "right_distinct", "iou_manip", "iou_both")
    assert found["score"] == pytest.approx(sum(found[name] for name in named) / 6)
