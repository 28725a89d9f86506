"""What a training step asks of the workers beside it: means over all of them, and their embeddings with gradients.

The steps are written over ``Workers``; ``Alone`` is the bare loop, ``Group`` any torch process group (gloo on CPUs,
NCCL on GPUs), which Ray Train sets up (``training.launch``).
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Protocol

import torch
from torch import Tensor, nn


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


class SharedNorm(nn.BatchNorm2d):
    """BatchNorm over the whole global batch: with the statistics of its own share alone, each worker would learn
    something else. (torch's own synchronised one runs on GPUs only.)"""

    def __init__(self, like: nn.BatchNorm2d, workers: Workers) -> None:
        """The same weights, not copies: an optimizer that holds them goes on."""
        super().__init__(like.num_features, like.eps, like.momentum)
        self.weight, self.bias = like.weight, like.bias
        self.load_state_dict(like.state_dict())
        self._workers = workers

    def forward(self, x_BCHW: Tensor) -> Tensor:
        if not self.training or self._workers.world == 1:
            return super().forward(x_BCHW)
        # in two passes: mean of squares minus square of mean would lose digits
        mean_C = self._everyones(x_BCHW)
        centred_BCHW = x_BCHW - mean_C[:, None, None]
        variance_C = self._everyones(centred_BCHW * centred_BCHW)
        count = x_BCHW.numel() // self.num_features * self._workers.world
        self._follow(mean_C.detach(), variance_C.detach() * count / max(1, count - 1))
        scale_C = self.weight * torch.rsqrt(variance_C + self.eps)
        return centred_BCHW * scale_C[:, None, None] + self.bias[:, None, None]

    def _everyones(self, x_BCHW: Tensor) -> Tensor:
        """Mean over all workers' pictures and positions [C]; shares are equally large."""
        return self._workers.gather(x_BCHW.mean((0, 2, 3))[None]).mean(0)

    @torch.no_grad()
    def _follow(self, mean_C: Tensor, variance_C: Tensor) -> None:
        assert self.running_mean is not None and self.running_var is not None and self.momentum is not None
        assert self.num_batches_tracked is not None
        self.running_mean.lerp_(mean_C, self.momentum)
        self.running_var.lerp_(variance_C, self.momentum)
        self.num_batches_tracked += 1


def share_statistics(network: nn.Module, workers: Workers) -> None:
    """Let every BatchNorm of ``network`` see the global batch, in place."""
    for module in list(network.modules()):
        for name, child in list(module.named_children()):
            if type(child) is nn.BatchNorm2d:
                setattr(module, name, SharedNorm(child, workers))
