"""Dense optical flow: RAFT as torchvision builds it, small (``starter``) and large (``paper``), behind one direction.

Shape letters: B pairs; H, W rows and columns. The flow is in pixels of its input, channel 0 along x, 1 along y.

The direction is the trap of DIC eq. 4-5: what is sampled is the *second* picture, so ``flow(first, second)`` says for
every pixel of ``first`` how far to go to find it in ``second``, and ``dewarp(second, flow)`` lies on ``first``.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from stemma.errors import Corrupt
from stemma.networks import weights

SIDE_PX_MIN = 128
STRIDE = 8
UPDATES_PAPER = 12


class DenseFlow(nn.Module):
    """RAFT, of which the last update alone is used (docs/papers.md 1.3)."""

    def __init__(self, size: Literal["small", "large"], *, updates: int = UPDATES_PAPER) -> None:
        super().__init__()
        # torchvision takes a second to import, and most processes never align anything
        from torchvision.models import optical_flow

        build = optical_flow.raft_small if size == "small" else optical_flow.raft_large
        self.net: nn.Module = build(weights=None, progress=False)
        self.updates = updates

    def forward(self, first_B3HW: Tensor, second_B3HW: Tensor) -> Tensor:
        """Two pictures in -1..1 -> flow_B2HW from ``first`` to ``second``.

        Raises ``ValueError`` for sides under 128 px or that 8 does not divide.
        """
        height, width = first_B3HW.shape[-2:]
        if min(height, width) < SIDE_PX_MIN or height % STRIDE or width % STRIDE:
            raise ValueError(f"RAFT takes sides of at least 128 px, multiples of 8, not {height} x {width}")
        net: Any = self.net
        flow_B2HW: Tensor = net(first_B3HW, second_B3HW, num_flow_updates=self.updates)[-1]
        return flow_B2HW


def load_shipped(folder: str | Path | None = None, *, updates: int = UPDATES_PAPER) -> DenseFlow:
    """The flow of the weights in ``folder`` (``None``: the shipped RAFT-small), for inference.

    Raises ``NotFound`` where there is none, ``Corrupt`` when it is not the card's, or the card's is no RAFT.
    """
    card, tensors = weights.read_flow(folder)
    subject = str(weights.resolve(folder) / weights.FLOW_FILE)
    if card.size not in ("small", "large"):
        raise Corrupt(f"there is no RAFT of size {card.size!r}", subject=subject)
    flow = DenseFlow("small" if card.size == "small" else "large", updates=updates)
    try:
        flow.net.load_state_dict({name: torch.from_numpy(tensor) for name, tensor in tensors.items()})
    except RuntimeError as error:
        raise Corrupt(f"these are not the tensors of RAFT {card.size}: {error}", subject=subject) from error
    return flow.eval().requires_grad_(False)


def dewarp(second_BCHW: Tensor, flow_B2HW: Tensor) -> Tensor:
    """``second`` seen in the frame of ``first``: q'(x, y) = q(x + flow_x, y + flow_y), zeros outside (DIC eq. 5).

    Bilinear, and differentiable in both arguments.
    """
    height, width = flow_B2HW.shape[-2:]
    y_H = torch.arange(height, device=flow_B2HW.device, dtype=flow_B2HW.dtype)
    x_W = torch.arange(width, device=flow_B2HW.device, dtype=flow_B2HW.dtype)
    # pixel centres at .5 of 0..size, which grid_sample (align_corners=False) calls -1..1
    x_BHW = (x_W + 0.5 + flow_B2HW[:, 0]) * (2 / width) - 1
    y_BHW = (y_H[:, None] + 0.5 + flow_B2HW[:, 1]) * (2 / height) - 1
    grid_BHW2 = torch.stack([x_BHW, y_BHW], -1)
    return functional.grid_sample(second_BCHW, grid_BHW2, padding_mode="zeros", align_corners=False)
