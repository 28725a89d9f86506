"""The Image Comparator Network of DIC 3.2, to the letter; what the paper leaves open is as docs/papers.md 1.3 chooses.

flow F_A (RAFT-large, de-warping unit) -> f_E, shared -> f_S -> z in R^256 -> E_c (3 classes) and E_t (7 x 7 map).
Trained end to end: the flow learns through both losses alone.

Shape letters: B pairs; H, W rows and columns (224); C channels; D = 256. Pictures are RGB in -1..1.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from stemma.networks.comparator import CLASSES, GRID, VECTOR, Compared
from stemma.networks.raft import DenseFlow, dewarp

FEATURES = 128
ENCODER_WIDTHS = (32, 64, FEATURES)
FUSION_WIDTHS = (128, 256, 512, 512)
FUSION_STRIDES = (1, 2, 2, 2)

Fusion = Literal["blocks", "stages"]


class SharedEncoder(nn.Module):
    """f_E (eq. 6): three 3 x 3 convolutions, [ReLU, BatchNorm, max pool] behind the first two: H/4 x W/4 x 128."""

    def __init__(self) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        inputs = 3
        for number, width in enumerate(ENCODER_WIDTHS):
            layers.append(nn.Conv2d(inputs, width, 3, padding=1))
            if number < 2:
                # in the order of the text: ReLU before BatchNorm
                layers += [nn.ReLU(inplace=True), nn.BatchNorm2d(width), nn.MaxPool2d(2)]
            inputs = width
        self.layers = nn.Sequential(*layers)

    def forward(self, image_B3HW: Tensor) -> Tensor:
        out: Tensor = self.layers(image_B3HW)
        return out


class FusionNetwork(nn.Module):
    """f_S (eq. 7): [z_q, z_I] -> four residual blocks -> average pool -> FC -> z [B, 256].

    "4 ResNet residual blocks" are taken as four basic blocks; ``stages`` reads it as ResNet's four stages of two.
    """

    def __init__(self, fusion: Fusion = "blocks") -> None:
        super().__init__()
        # torchvision takes a second to import, and the starter never needs it
        from torchvision.models.resnet import BasicBlock

        inputs, blocks = 2 * FEATURES, []
        for width, stride in zip(FUSION_WIDTHS, FUSION_STRIDES, strict=True):
            for number in range(1 if fusion == "blocks" else 2):
                step = stride if number == 0 else 1
                shortcut = None
                if step != 1 or inputs != width:
                    shortcut = nn.Sequential(nn.Conv2d(inputs, width, 1, step, bias=False), nn.BatchNorm2d(width))
                blocks.append(BasicBlock(inputs, width, step, shortcut))
                inputs = width
        self.blocks = nn.Sequential(*blocks)
        self.vector = nn.Linear(inputs, VECTOR)

    def forward(self, query_BCHW: Tensor, original_BCHW: Tensor) -> Tensor:
        """Not symmetric: the query stands first."""
        x_BCHW: Tensor = self.blocks(torch.cat([query_BCHW, original_BCHW], 1))
        z_BD: Tensor = self.vector(x_BCHW.mean((2, 3)))
        return z_BD


class PaperComparator(nn.Module):
    """(query_B3HW, original_B3HW), unaligned, in -1..1 -> ``Compared`` in the original's frame.

    ``aligned=False`` leaves F_A out, one of the paper's ablations (Table 3).
    """

    def __init__(self, *, aligned: bool = True, fusion: Fusion = "blocks") -> None:
        super().__init__()
        self.flow = DenseFlow("large") if aligned else None
        self.features = SharedEncoder()
        self.fusion = FusionNetwork(fusion)
        self.classify = nn.Linear(VECTOR, len(CLASSES))
        self.grid = nn.Linear(VECTOR, GRID * GRID)

    def align(self, query_B3HW: Tensor, original_B3HW: Tensor) -> Tensor:
        """q' (eq. 4-5): sampled by the flow from the original to the query, the only direction that aligns."""
        if self.flow is None:
            return query_B3HW
        return dewarp(query_B3HW, self.flow(original_B3HW, query_B3HW))

    def forward(self, query_B3HW: Tensor, original_B3HW: Tensor) -> Compared:
        aligned_B3HW = self.align(query_B3HW, original_B3HW)
        # one by one, as f_E is written; batch statistics over both at once would mix the two
        z_BD = self.fusion(self.features(aligned_B3HW), self.features(original_B3HW))
        return Compared(self.classify(z_BD), self.grid(z_BD).view(-1, GRID, GRID), None)
