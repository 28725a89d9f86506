"""What a training step asks of the workers beside it: means over all of them, and their embeddings with gradients.

The steps are written over ``Workers``; ``Alone`` is the bare loop, ``Group`` any torch process group (gloo on CPUs,
NCCL on GPUs), which Ray Train sets up (``training.launch``).
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Protocol

import torch
from torch import Tensor


class Workers(Protocol):
    rank: int
    world: int

    def mean(self, value: Tensor) -> Tensor:
        """Mean over workers of a detached tensor."""

    def gather(self, items_BD: Tensor) -> Tensor:
        """Every worker's rows in order of rank [world x B, D]; gradients flow back to the worker they came from."""


class Alone:
    """One worker."""

    rank, world = 0, 1

    def mean(self, value: Tensor) -> Tensor:
        return value.detach()

    def gather(self, items_BD: Tensor) -> Tensor:
        return items_BD


class Group:
    """The workers of the default torch process group, which must have been set up."""

    def __init__(self) -> None:
        self.rank, self.world = torch.distributed.get_rank(), torch.distributed.get_world_size()

    def mean(self, value: Tensor) -> Tensor:
        total = value.detach().clone()
        torch.distributed.all_reduce(total)
        return total / self.world

    def gather(self, items_BD: Tensor) -> Tensor:
        gathered: Tensor = _Gather.apply(items_BD, self)
        return gathered


class _Gather(torch.autograd.Function):
    """All-gather whose backward sums what every worker's loss says of this worker's rows.

    The plain collective has no gradient: an embedding would then learn as an anchor and never as another's negative.
    """

    @staticmethod
    def forward(ctx: Any, items_BD: Tensor, workers: Group) -> Tensor:
        ctx.workers, ctx.rows = workers, len(items_BD)
        parts = [torch.empty_like(items_BD) for _ in range(workers.world)]
        torch.distributed.all_gather(parts, items_BD.contiguous())
        return torch.cat(parts)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        total_PD = gradients[0].contiguous().clone()
        torch.distributed.all_reduce(total_PD)
        first = ctx.workers.rank * ctx.rows
        return total_PD[first : first + ctx.rows], None


def average_gradients(parameters: Iterable[Tensor], workers: Workers) -> None:
    """Replace every gradient by its mean over workers, in one message; one that is missing counts as 0."""
    if workers.world == 1:
        return
    learned = [parameter for parameter in parameters if parameter.requires_grad]
    grads = [torch.zeros_like(p) if p.grad is None else p.grad for p in learned]
    flat = workers.mean(torch.cat([grad.flatten() for grad in grads]))
    for parameter, part in zip(learned, torch.split(flat, [p.numel() for p in learned]), strict=True):
        parameter.grad = part.view_as(parameter).clone()
