"""Steps over 1, 2 and 4 workers: the same global batch gives the same loss and gradients within float error."""

from __future__ import annotations

import copy
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

import pytest
import torch
from torch import Tensor

from stemma.networks import detector
from stemma.networks.encoder import STARTER, EncoderNetwork
from stemma.networks.students import Frozen
from training import encoder, losses, student, workers
from training.comparator import ComparatorSettings, ComparatorStep, build
from training.data import Batch, numbers
from training.encoder import EncoderStep, EncoderTraining
from training.groups import VIEWS, GroupBatch
from training.student import StudentStep, StudentTraining
from training.workers import Alone, Group

T = TypeVar("T")
SIDE = 32


class Exchange:
    """Collectives of torch.distributed over threads of one process: what a unit test may use of a process group."""

    def __init__(self, world: int, monkeypatch: pytest.MonkeyPatch) -> None:
        self._world, self._slots = world, [torch.empty(0)] * world
        self._barrier, self._local = threading.Barrier(world, timeout=60), threading.local()
        for name in ("all_reduce", "all_gather"):
            monkeypatch.setattr(torch.distributed, name, getattr(self, name))
        monkeypatch.setattr(torch.distributed, "get_rank", lambda: self._local.rank)
        monkeypatch.setattr(torch.distributed, "get_world_size", lambda: world)

    def run(self, work: Callable[[Group], T]) -> list[T]:
        """``work`` on every rank, in threads of its own."""

        def ranked(rank: int) -> T:
            self._local.rank = rank
            return work(Group())

        with ThreadPoolExecutor(self._world) as pool:
            return [future.result() for future in [pool.submit(ranked, rank) for rank in range(self._world)]]

    def _swap(self, tensor: Tensor) -> list[Tensor]:
        self._slots[self._local.rank] = tensor.detach().clone()
        self._barrier.wait()
        every = list(self._slots)
        self._barrier.wait()
        return every

    def all_reduce(self, tensor: Tensor) -> None:
        tensor.copy_(torch.stack(self._swap(tensor)).sum(0))

    def all_gather(self, parts: list[Tensor], tensor: Tensor) -> None:
        for part, one in zip(parts, self._swap(tensor), strict=True):
            part.copy_(one)


def global_batch(count: int) -> Batch:
    generator = torch.Generator().manual_seed(1)
    pictures = torch.rand(2, count, 3, SIDE, SIDE, generator=generator) * 255
    mask = torch.zeros(count, 1, SIDE, SIDE)
    mask[:, :, 4:20, 8:24] = 1
    label = torch.tensor([0, 1, 1, 2, 0, 0, 1, 0][:count])
    mask *= (label == 1)[:, None, None, None]
    valid = torch.ones(count, 1, SIDE, SIDE)
    valid[1, :, :, :10] = 0
    return Batch(pictures[0], pictures[1], valid, mask, valid, label)


def share(batch: Batch, rank: int, world: int) -> Batch:
    mine = numbers(0, batch=len(batch.label_B), rank=rank, world=world)
    return Batch(*(part[mine] for part in batch))


SETTINGS = ComparatorSettings(batch=8, frozen_stages=2, seed=3)


def stepped(group: workers.Workers, network: torch.nn.Module) -> tuple[dict[str, float], list[Tensor]]:
    step = ComparatorStep(SETTINGS, network, group)
    said = step.step(share(global_batch(8), group.rank, group.world), 0)
    return said, [p.grad for p in network.parameters() if p.grad is not None]


@pytest.mark.parametrize("world", [2, 4])
def test_the_comparator_learns_the_same_on_any_number_of_workers(world: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Kinds are shared out unevenly: a mean of the workers' own means would be another loss."""
    # made here: torch's seed belongs to the process, and threads would draw from it in turn
    networks = [build(SETTINGS) for _ in range(world)]
    alone, expected = stepped(Alone(), build(SETTINGS))
    for said, found in Exchange(world, monkeypatch).run(lambda group: stepped(group, networks[group.rank])):
        assert said == pytest.approx(alone, rel=1e-4, abs=1e-5)
        assert len(found) == len(expected)
        largest = max(float(other.abs().max()) for other in expected)
        for one, other in zip(found, expected, strict=True):
            assert torch.allclose(one, other, rtol=1e-3, atol=1e-5 * largest)


def view_batch(count: int) -> GroupBatch:
    """``count`` photographs and four noisy views of each, small enough for a unit test."""
    generator = torch.Generator().manual_seed(2)
    clean = torch.rand(count, 3, SIDE, SIDE, generator=generator) * 255
    noise = 40 * torch.randn(count * VIEWS, 3, SIDE, SIDE, generator=generator)
    number = torch.arange(count) + 10
    views = (clean.repeat_interleave(VIEWS, 0) + noise).clamp(0, 255)
    return GroupBatch(clean, views, number, number.repeat_interleave(VIEWS))


def view_share(batch: GroupBatch, rank: int, world: int) -> GroupBatch:
    groups = len(batch.photograph_G) // world
    mine, views = slice(rank * groups, (rank + 1) * groups), slice(rank * groups * VIEWS, (rank + 1) * groups * VIEWS)
    return GroupBatch(
        batch.clean_G3HW[mine], batch.view_B3HW[views], batch.photograph_G[mine], batch.photograph_B[views]
    )


ENCODERS = {
    "paper's loss": EncoderTraining(batch=4, rate=0.01),
    "starter": EncoderTraining(
        batch=4, rate=0.01, clean=True, queue=8, projected=256, form="positives_below", frozen_cells=True
    ),
}


def trained(group: workers.Workers, settings: EncoderTraining, network: EncoderNetwork) -> tuple[list[float], Any]:
    """Losses of two steps, of which the second has the first one's queue, and the weights then."""
    step = EncoderStep(settings, network, group)
    said = [step.step(view_share(view_batch(4), group.rank, group.world), t)["loss"] for t in range(2)]
    return said, step.state_dict()


@pytest.mark.parametrize(("form", "world"), [("paper's loss", 2), ("starter", 2), ("starter", 4)])
def test_the_encoder_learns_the_same_on_any_number_of_workers(
    form: str, world: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Statistics are frozen, so only the order of sums differs."""
    settings = ENCODERS[form]

    def network() -> EncoderNetwork:
        made, generator = encoder.build(settings), torch.Generator().manual_seed(6)
        for module in made.modules():
            if isinstance(module, torch.nn.Conv2d):
                torch.nn.init.kaiming_normal_(module.weight, generator=generator)
        assert made.embedding is not None
        made.embedding.components_DC.copy_(torch.randn(256, 1280, generator=generator) / 36)
        return made

    networks = [network() for _ in range(world)]
    losses_alone, alone = trained(Alone(), settings, network())
    for said, state in Exchange(world, monkeypatch).run(lambda group: trained(group, settings, networks[group.rank])):
        assert said == pytest.approx(losses_alone, rel=1e-3, abs=1e-4)
        # every worker keeps the same queue, in the same order
        assert torch.equal(state["photographs"], alone["photographs"])
        assert torch.allclose(state["queue"], alone["queue"], atol=1e-4)
        for part in ("network", "projection", "twin"):
            for name, tensor in state[part].items():
                largest = float(alone[part][name].abs().max())
                assert torch.allclose(tensor, alone[part][name], rtol=1e-3, atol=1e-4 * max(largest, 1e-3)), name


@pytest.mark.parametrize("world", [2, 4])
def test_negatives_are_gathered_with_their_gradients(world: int, monkeypatch: pytest.MonkeyPatch) -> None:
    generator = torch.Generator().manual_seed(5)
    input_ND = torch.randn(16, 6, generator=generator)
    start = torch.randn(6, 6, generator=generator)
    group_N = torch.arange(16) // 4

    def learned(group: workers.Workers) -> tuple[float, Tensor]:
        weight = torch.nn.Parameter(start.clone())
        size = 16 // group.world
        mine = slice(group.rank * size, (group.rank + 1) * size)
        e_BD = input_ND[mine] @ weight
        loss = losses.contrastive(
            e_BD,
            group_N[mine],
            temperature=0.1,
            pool_PD=group.gather(e_BD),
            pool_group_P=group_N,
            first=group.rank * size,
        )
        loss.backward()
        workers.average_gradients([weight], group)
        assert weight.grad is not None
        return float(group.mean(loss)), weight.grad

    loss, gradient = learned(Alone())
    for found_loss, found in Exchange(world, monkeypatch).run(learned):
        assert found_loss == pytest.approx(loss, abs=1e-5)
        assert torch.allclose(found, gradient, rtol=1e-4, atol=1e-5)


def test_a_gradient_that_one_worker_lacks_counts_as_zero(monkeypatch: pytest.MonkeyPatch) -> None:
    def averaged(group: workers.Workers) -> Any:
        used, unused = torch.nn.Parameter(torch.ones(2)), torch.nn.Parameter(torch.ones(3))
        ((used.sum() if group.rank else used.sum() * 0 + unused.sum()) * 2).backward()
        workers.average_gradients([used, unused], group)
        return used.grad, unused.grad

    for used, unused in Exchange(2, monkeypatch).run(averaged):
        assert torch.equal(used, torch.ones(2)) and torch.equal(unused, torch.ones(3))


@pytest.mark.parametrize("kind", ["s1", "s3"])
@pytest.mark.parametrize("world", [1, 2])
def test_a_student_learns_the_same_on_any_number_of_workers(
    world: int, kind: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """BatchNorm's too: its statistics are those of the global batch, and so are their gradients."""
    settings = StudentTraining(kind=kind, batch=4, side_px=2 * SIDE, seed=3)
    images_B3HW = torch.rand(4, 3, 2 * SIDE, 2 * SIDE, generator=torch.Generator().manual_seed(2)) * 255
    # made here: threads of one process share torch's generator
    start = student.build(settings)
    with torch.random.fork_rng():
        torch.manual_seed(5)
        fixed = Frozen(detector.build("starter").backbone, EncoderNetwork(STARTER))
        for module in fixed.modules():
            if isinstance(module, torch.nn.Conv2d):
                torch.nn.init.kaiming_normal_(module.weight)

    def learned(group: workers.Workers) -> tuple[float, dict[str, Tensor], dict[str, Tensor]]:
        network = copy.deepcopy(start)
        step = StudentStep(settings, network, fixed, group)
        mine = images_B3HW[numbers(0, batch=4, rank=group.rank, world=group.world)]
        loss = step.step(mine, 0)["loss"]
        gradients = {name: p.grad for name, p in network.named_parameters() if p.grad is not None}
        return loss, gradients, {name: one for name, one in network.named_buffers() if "running" in name}

    loss, gradients, statistics = learned(Alone())
    largest = max(float(one.abs().max()) for one in gradients.values())
    for found_loss, found, followed in Exchange(world, monkeypatch).run(learned):
        assert found_loss == pytest.approx(loss, rel=1e-5)
        assert found.keys() == gradients.keys()
        assert all(torch.allclose(found[name], one, rtol=1e-3, atol=1e-4 * largest) for name, one in gradients.items())
        assert all(torch.allclose(followed[name], one, rtol=1e-4, atol=1e-5) for name, one in statistics.items())
