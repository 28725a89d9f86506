"""Students: cheap heads on the frozen detector that learn the teacher's last feature map (OE-SIR 4.2, eq. 5-6).

Shape letters: B pictures; C channels; H, W rows and columns. F_2, F_3, F_4 are the detector's maps of stride 4, 8, 16.

``s1`` sees the picture alone: a stem and four bottlenecks. ``s2`` and ``s3`` go on from F_2 with three bottlenecks of
stride 2, and ``s3`` adds F_3 and F_4 on the way (eq. 5). So one pass of the detector serves boxes and features.
``paper`` is to the letter (docs/papers.md 1.5); ``starter`` is the same code over EfficientNet-Lite0's widths.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from stemma.networks.backbones import LITE0_FEATURES, LITE0_STAGES, Lite0
from stemma.networks.detector import Lite0Pyramid
from stemma.networks.encoder import EncoderNetwork

Kind = Literal["s1", "s2", "s3"]
Guidance = tuple[Tensor, Tensor, Tensor]
"""F_2, F_3, F_4."""

KINDS: tuple[Kind, ...] = ("s1", "s2", "s3")
SQUEEZE = 4
"""A bottleneck works on a quarter of the channels that it gives out, as ResNet's."""
STEM_KERNEL = 7
LITE0_GUIDES = (2, 3, 5)
"""Stages of Lite0 after which its maps have strides 4, 8 and 16."""
GUIDE_STRIDES_PX = (4, 8, 16)
COST_SIDE_PX = 224


@dataclass(frozen=True, slots=True, kw_only=True)
class Size:
    """What differs between the sizes: channels of the stem of ``s1``, of F_2 to F_4, and of y_1 to y_3."""

    name: Literal["starter", "paper"]
    stem: int
    guidance: tuple[int, int, int]
    widths: tuple[int, int, int]


STARTER = Size(
    name="starter",
    stem=32,
    guidance=(LITE0_STAGES[1].channels, LITE0_STAGES[2].channels, LITE0_STAGES[4].channels),
    # a third of the teacher's multiply-adds, as in the paper
    widths=(128, 256, LITE0_FEATURES),
)
PAPER = Size(name="paper", stem=64, guidance=(256, 512, 1024), widths=(512, 1024, 2048))
SIZES: dict[str, Size] = {size.name: size for size in (STARTER, PAPER)}


class Bottleneck(nn.Module):
    """ResNet's: 1 x 1 down, 3 x 3 with the stride, 1 x 1 up; added to the input through a 1 x 1 of the same stride."""

    def __init__(self, inputs: int, outputs: int, *, stride: int) -> None:
        super().__init__()
        narrow = outputs // SQUEEZE
        self.path = nn.Sequential(
            *_conv(inputs, narrow),
            nn.ReLU(inplace=True),
            *_conv(narrow, narrow, kernel=3, stride=stride),
            nn.ReLU(inplace=True),
            *_conv(narrow, outputs),
        )
        self.shortcut = nn.Sequential(*_conv(inputs, outputs, stride=stride))

    def forward(self, x_BCHW: Tensor) -> Tensor:
        return nn.functional.relu(self.path(x_BCHW) + self.shortcut(x_BCHW))


def _conv(inputs: int, outputs: int, *, kernel: int = 1, stride: int = 1) -> tuple[nn.Module, nn.Module]:
    # padding (k - 1) / 2 gives ceil(n / stride) outputs, as Lite0's SAME does: the maps fit at every size
    conv = nn.Conv2d(inputs, outputs, kernel, stride, padding=kernel // 2, bias=False)
    return conv, nn.BatchNorm2d(outputs)


class Student(nn.Module):
    """The normalised picture (s1) or F_2 to F_4 (s2, s3) -> the teacher's map [B, C, H/32, W/32], not negative."""

    def __init__(self, size: Size, kind: Kind) -> None:
        super().__init__()
        self.size, self.kind = size, kind
        inputs = size.guidance[0]
        self.stem: nn.Module | None = None
        if kind == "s1":
            self.stem = nn.Sequential(
                *_conv(3, size.stem, kernel=STEM_KERNEL, stride=2),
                nn.ReLU(inplace=True),
                nn.MaxPool2d(3, stride=2, padding=1),
                Bottleneck(size.stem, inputs, stride=1),
            )
        outputs = size.widths
        self.blocks = nn.ModuleList(
            Bottleneck(a, b, stride=2) for a, b in zip((inputs, *outputs[:2]), outputs, strict=True)
        )
        pairs = zip(size.guidance[1:], outputs[:2], strict=True)
        self.guides = nn.ModuleList(_linear(a, b) for a, b in pairs) if kind == "s3" else None

    def forward(self, image_B3HW: Tensor, guidance: Guidance) -> Tensor:
        y_BCHW: Tensor = guidance[0] if self.stem is None else self.stem(image_B3HW)
        for place, block in enumerate(self.blocks):
            y_BCHW = block(y_BCHW)
            if self.guides is not None and place < len(self.guides):
                # eq. 5
                y_BCHW = y_BCHW + self.guides[place](guidance[place + 1])
        return y_BCHW


def _linear(inputs: int, outputs: int) -> nn.Module:
    """What brings F_i to the channels of y: nothing where they are the same."""
    return nn.Identity() if inputs == outputs else nn.Conv2d(inputs, outputs, 1, bias=False)


class Frozen(nn.Module):
    """The detector's trunk and the teacher, as they are: neither learns, nor do their BatchNorms' statistics."""

    def __init__(self, backbone: nn.Module, teacher: EncoderNetwork) -> None:
        """``backbone`` is that of a detector of ``stemma.networks.detector`` of the teacher's size."""
        super().__init__()
        self.size = SIZES[teacher.size.name]
        self.backbone, self.teacher = backbone, teacher
        self.requires_grad_(False)
        self.eval()

    def train(self, mode: bool = True) -> Frozen:
        """Stays in eval mode, whatever it is a part of."""
        del mode
        return super().train(False)

    def normalised(self, image_B3HW: Tensor) -> Tensor:
        """The picture, 0..255, as detector and teacher take it: in either size both have the same normaliser."""
        return (image_B3HW - self.teacher.mean_C11) / self.teacher.deviation_C11

    @torch.no_grad()
    def guidance(self, x_B3HW: Tensor) -> Guidance:
        """F_2, F_3, F_4 of a normalised picture."""
        if isinstance(self.backbone, Lite0Pyramid):
            low, middle, high = LITE0_GUIDES
            stages = self.backbone.cells
            f2_BCHW = stages[:low](self.backbone.stem(x_B3HW))
            f3_BCHW = stages[low:middle](f2_BCHW)
            return f2_BCHW, f3_BCHW, stages[middle:high](f3_BCHW)
        body: Any = self.backbone.body
        f2_BCHW = body.layer1(body.maxpool(body.relu(body.bn1(body.conv1(x_B3HW)))))
        f3_BCHW = body.layer2(f2_BCHW)
        return f2_BCHW, f3_BCHW, body.layer3(f3_BCHW)

    @torch.no_grad()
    def target(self, x_B3HW: Tensor) -> Tensor:
        """The teacher's last map of a normalised picture: 2048 channels of conv5_3, or 1280 of Lite0's head."""
        trunk = self.teacher.trunk
        target_BCHW: Tensor = (trunk if isinstance(trunk, Lite0) else trunk.maps)(x_B3HW)[0]
        return target_BCHW


@dataclass(frozen=True, slots=True, kw_only=True)
class Cost:
    """Multiply-adds of one picture at 224 x 224, and learnable numbers."""

    multiply_adds: int
    parameters: int


def multiply_adds(run: Callable[..., Any], *inputs: Any) -> int:
    """Of the convolutions and matrix products of one call; on the meta device nothing is computed."""
    from torch.utils.flop_counter import FlopCounterMode

    with FlopCounterMode(display=False) as counter, torch.no_grad():
        run(*inputs)
    # a multiply-add is two of its operations
    return int(counter.get_total_flops()) // 2


def costs(size: Size) -> dict[str, Cost]:
    """Cost of each student, of the ``teacher`` up to its map, and of the ``guide``: the detector's trunk up to F_4,
    which runs for the boxes anyway."""
    from stemma.networks import detector, encoder

    with torch.device("meta"):
        made: dict[str, nn.Module] = {kind: Student(size, kind).eval() for kind in KINDS}
        teacher = EncoderNetwork(encoder.SIZES[size.name])
        frozen = Frozen(detector.build(size.name).backbone, teacher)
        image_13HW = torch.empty(1, 3, COST_SIDE_PX, COST_SIDE_PX)
        guidance = tuple(
            torch.empty(1, channels, *(-(-COST_SIDE_PX // stride),) * 2)
            for channels, stride in zip(size.guidance, GUIDE_STRIDES_PX, strict=True)
        )
        count = {kind: multiply_adds(network, image_13HW, guidance) for kind, network in made.items()}
        for name, run in (("teacher", frozen.target), ("guide", frozen.guidance)):
            count[name] = multiply_adds(run, image_13HW)
    own = made | {"teacher": _headless(teacher), "guide": _guide(frozen)}
    return {name: Cost(multiply_adds=count[name], parameters=_parameters(own[name])) for name in count}


def _headless(teacher: EncoderNetwork) -> nn.Module:
    """The teacher up to its last map."""
    trunk: Any = teacher.trunk
    return trunk if isinstance(trunk, Lite0) else nn.ModuleList(trunk.net.children())[:-1]


def _guide(frozen: Frozen) -> nn.Module:
    backbone: Any = frozen.backbone
    if isinstance(backbone, Lite0Pyramid):
        return nn.ModuleList([backbone.stem, backbone.cells])
    body = backbone.body
    return nn.ModuleList([body.conv1, body.bn1, body.layer1, body.layer2, body.layer3])


def _parameters(network: nn.Module) -> int:
    return sum(parameter.numel() for parameter in network.parameters())
