"""The encoder's step and its groups: uniqueness in a batch, what is compared with what, learning, resuming, workers."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
import torch

from stemma.errors import BadRequest
from stemma.networks.backbones import gem
from stemma.networks.encoder import STARTER, EncoderNetwork
from training import encoder, losses
from training.data import Photographs
from training.encoder import EMPTY, EncoderStep, EncoderTraining, build, rate
from training.groups import VIEWS, GroupBatch, GroupData

SIDE = 64
STARTING = EncoderTraining(batch=2, steps=10, rate=0.01, clean=True, queue=6, projected=256, temperature=0.2)


@pytest.fixture(scope="module")
def photographs(tmp_path_factory: pytest.TempPathFactory) -> Photographs:
    folder = tmp_path_factory.mktemp("groups")
    for seed in range(6):
        small = np.random.default_rng(seed).integers(0, 256, (12, 16, 3)).astype(np.uint8)
        cv2.imwrite(str(folder / f"{seed}.png"), cv2.resize(small, (96, 72), interpolation=cv2.INTER_CUBIC))
    return Photographs(folder, [f"{seed}.png" for seed in range(6)])


def network(seed: int = 0) -> EncoderNetwork:
    made = build(STARTING.model_copy(update={"seed": seed}))
    assert made.embedding is not None
    generator = torch.Generator().manual_seed(seed)
    for module in made.modules():
        if isinstance(module, torch.nn.Conv2d):
            # as large as BatchNorm's statistics claim, or features vanish on the way up
            torch.nn.init.kaiming_normal_(module.weight, generator=generator)
    made.embedding.components_DC.copy_(torch.randn(256, 1280, generator=generator) / 36)
    return made


def groups(photographs: list[int], seed: int = 0) -> GroupBatch:
    """Small views: noise around a picture of each photograph's own."""
    generator = torch.Generator().manual_seed(seed)
    clean = torch.stack([torch.rand(3, SIDE, SIDE, generator=torch.Generator().manual_seed(n)) for n in photographs])
    views = clean.repeat_interleave(VIEWS, 0) + 0.3 * torch.randn(
        len(photographs) * VIEWS, 3, SIDE, SIDE, generator=generator
    )
    number = torch.tensor(photographs)
    return GroupBatch(clean * 255, views.clamp(0, 1) * 255, number, number.repeat_interleave(VIEWS))


def test_a_batch_holds_different_originals_and_four_views_of_each(photographs: Photographs) -> None:
    data = GroupData(photographs, seed=1, batch=3)
    batch = next(data.batches(0))
    assert batch.view_B3HW.shape == (12, 3, 224, 224) and batch.clean_G3HW.shape == (3, 3, 224, 224)
    assert len(set(batch.photograph_G.tolist())) == 3
    assert batch.photograph_B.tolist() == [n for n in batch.photograph_G.tolist() for _ in range(VIEWS)]
    # an epoch of two batches visits all six
    both = [n for step in (0, 1) for place in range(3) for n in [data.group(step, place).photograph]]
    assert sorted(both) == list(range(6))


def test_groups_are_pure_and_shared_by_workers(photographs: Photographs) -> None:
    data = GroupData(photographs, seed=2, batch=4)
    whole = next(data.batches(1))
    parts = [next(data.batches(1, rank=rank, world=2)) for rank in range(2)]
    assert torch.equal(whole.view_B3HW, torch.cat([part.view_B3HW for part in parts]))
    assert whole.photograph_G.tolist() == [n for part in parts for n in part.photograph_G.tolist()]
    with pytest.raises(ValueError, match="cannot be shared"):
        next(data.batches(0, world=3))
    with pytest.raises(ValueError, match="different originals"):
        GroupData(photographs, seed=0, batch=7)


def test_the_papers_step_is_equation_1_over_views() -> None:
    settings = EncoderTraining(batch=2, projected=128, temperature=0.1)
    step = EncoderStep(settings, network())
    batch = groups([3, 5])
    with torch.no_grad():
        e_BD = step.projection(step.network(batch.view_B3HW)[0])
        expected = losses.contrastive(e_BD, batch.photograph_B, temperature=0.1)
    assert step.step(batch, 0)["loss"] == pytest.approx(float(expected), abs=1e-4)


def test_the_starters_step_compares_views_with_clean_originals_and_the_queue() -> None:
    step = EncoderStep(STARTING, network())
    first, second = groups([0, 1]), groups([1, 2], seed=1)
    step.step(first, 0)
    assert step._photograph_Q.tolist() == [0, 1, *[EMPTY] * 4]
    queue_QD = step._queue_QD[:1].clone()
    with torch.no_grad():
        e_BD = step.projection(step.network(second.view_B3HW)[0])
        clean_GD = step._twin_projection(step._twin(second.clean_G3HW)[0])
        scores = (
            torch.nn.functional.normalize(e_BD)
            @ torch.nn.functional.normalize(torch.cat([clean_GD, queue_QD])).T
            / STARTING.temperature
        )
    # photograph 1 is in this batch: its past embedding is masked, 0's is a negative
    expected = []
    for row, own in zip(scores, second.photograph_B.tolist(), strict=True):
        positive, negatives = row[[1, 2].index(own)], torch.stack([row[1 - [1, 2].index(own)], row[2]])
        expected.append(float(negatives.logsumexp(0) - positive))
    assert step.step(second, 1)["loss"] == pytest.approx(sum(expected) / len(expected), abs=1e-4)
    assert step._photograph_Q.tolist()[:4] == [1, 2, 0, 1]


def test_the_step_learns_and_the_twin_follows() -> None:
    step = EncoderStep(STARTING.model_copy(update={"follow": 0.9, "queue": 0, "steps": 100}), network())
    batch = groups([0, 1])
    twin = step._twin.state_dict()["embedding.components_DC"].clone()
    said = [step.step(batch, t)["loss"] for t in range(8)]
    assert said[-1] < said[0] - 0.1
    now, followed = (one.state_dict()["embedding.components_DC"] for one in (step.network, step._twin))
    assert not torch.equal(now, twin)
    assert 0 < float((followed - twin).norm()) < float((now - twin).norm())


def test_pooling_learns_from_channels_that_are_dead() -> None:
    features_BCHW = torch.rand(2, 3, 4, 4, generator=torch.Generator().manual_seed(1))
    features_BCHW[:, 1] = 0
    features_BCHW.requires_grad_(True)
    pooled_BC = encoder.learnable_gem(features_BCHW)
    assert torch.allclose(pooled_BC, gem(features_BCHW), atol=1e-3)
    pooled_BC.sum().backward()
    assert features_BCHW.grad is not None and torch.isfinite(features_BCHW.grad).all()


def test_statistics_of_batchnorm_stay() -> None:
    step = EncoderStep(STARTING, network())
    before = {name: one.clone() for name, one in step.network.state_dict().items() if "running" in name}
    step.step(groups([0, 1]), 0)
    assert before and all(torch.equal(step.network.state_dict()[name], one) for name, one in before.items())


def test_a_resumed_encoder_is_the_one_that_never_stopped() -> None:
    coming = [groups([0, 1]), groups([2, 3]), groups([4, 0])]
    whole = EncoderStep(STARTING, network())
    for t, batch in enumerate(coming):
        whole.step(batch, t)
    first = EncoderStep(STARTING, network())
    for t, batch in enumerate(coming[:2]):
        first.step(batch, t)
    resumed = EncoderStep(STARTING, network(7))
    resumed.load_state_dict(first.state_dict())
    resumed.step(coming[2], 2)
    for part in ("network", "projection", "twin", "twin_projection"):
        a, b = whole.state_dict()[part], resumed.state_dict()[part]
        assert all(torch.equal(a[name], b[name]) for name in a)
    assert torch.equal(whole._queue_QD, resumed._queue_QD)


def test_a_run_begins_from_other_weights_where_they_fit() -> None:
    other = network(3).state_dict() | {"nothing.of.ours": torch.zeros(1)}
    step = EncoderStep(STARTING, network())
    assert step.begin(other) == len(other) - 1
    for one in (step.network, step._twin):
        assert torch.equal(one.state_dict()["embedding.components_DC"], other["embedding.components_DC"])


def test_e_b_starts_as_the_identity_where_it_is_square() -> None:
    square = EncoderStep(STARTING, network()).projection
    assert torch.equal(square.weight, torch.eye(256)) and not square.bias.any()
    assert EncoderStep(EncoderTraining(batch=2), network()).projection.weight.shape == (128, 256)


def test_the_rate_falls_twice() -> None:
    settings = EncoderTraining(steps=20)
    assert [rate(settings, t) for t in (0, 11, 12, 17, 18, 19)] == pytest.approx([1e-3, 1e-3, 1e-4, 1e-4, 1e-5, 1e-5])


def test_another_size_is_refused() -> None:
    with pytest.raises(ValueError, match="settings are for paper"):
        EncoderStep(EncoderTraining(size="paper", batch=2), EncoderNetwork(STARTER))


def test_validation_asks_for_the_nearest_clean_original() -> None:
    found = encoder.validate(network().eval(), [groups([0, 1]), groups([2, 3])])
    assert set(found) == {"first_benign", "first_both", "score"}
    assert all(0.0 <= found[name] <= 1.0 for name in ("first_benign", "first_both"))
    swapped = groups([0, 1])._replace(photograph_B=torch.tensor([9] * 8))
    unknown = encoder.validate(network().eval(), [swapped])
    assert unknown["first_benign"] == unknown["first_both"] == 0.0 and unknown["score"] < 0 < found["score"]


def test_frozen_cells_stay_and_all_behind_them_learns() -> None:
    step = EncoderStep(STARTING.model_copy(update={"frozen_cells": True, "weight_decay": 0.1}), network())
    before = {name: one.clone() for name, one in step.network.state_dict().items()}
    for t in range(2):
        step.step(groups([0, 1]), t)
    moved = {name for name, one in step.network.state_dict().items() if not torch.equal(one, before[name])}
    assert not any(name.startswith(("trunk.stem", "trunk.cells", "cells.")) for name in moved)
    assert moved >= {"trunk.head.conv.weight", "trunk.deep.0.0.expand.conv.weight", "embedding.components_DC"}
    paper = EncoderTraining(size="paper", batch=2, frozen_cells=True)
    with pytest.raises(BadRequest, match="starter"):
        EncoderStep(paper, build(paper))


def test_the_paper_encoder_learns_through_every_layer() -> None:
    """DIC 3.1, eq. 1-2: ResNet50, one FC to 256, E_b; what is printed is no cross-entropy and may go below 0."""
    settings = EncoderTraining(size="paper", batch=2, steps=10, rate=1e-3, form="printed", projected=128)
    step = EncoderStep(settings, build(settings))
    before = {name: one.clone() for name, one in step.network.named_parameters()}
    said = [step.step(groups([0, 1]), t) for t in range(3)]
    assert all(np.isfinite(one["loss"]) for one in said) and said[-1]["loss"] < said[0]["loss"]
    still = {name for name, one in step.network.named_parameters() if torch.equal(one, before[name])}
    assert still == set()
    assert step.projection.weight.shape == (128, 256)
