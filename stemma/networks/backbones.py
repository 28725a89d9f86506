"""The two trunks of the encoder: EfficientNet-Lite0 (``starter``) and ResNet50 (``paper``).

Shape letters: B pictures; C channels; H, W rows and columns. Both take image_B3HW float32 and are used in eval mode.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils.fusion import fuse_conv_bn_eval

BATCHNORM_EPS = 1e-3


class Stage(NamedTuple):
    """One run of inverted residual blocks; the first block carries the stride."""

    expand: int
    channels: int
    blocks: int
    stride: int
    kernel: int


LITE0_STEM_CHANNELS = 32
LITE0_STAGES = (
    Stage(expand=1, channels=16, blocks=1, stride=1, kernel=3),
    Stage(expand=6, channels=24, blocks=2, stride=2, kernel=3),
    Stage(expand=6, channels=40, blocks=2, stride=2, kernel=5),
    Stage(expand=6, channels=80, blocks=3, stride=2, kernel=3),
    Stage(expand=6, channels=112, blocks=3, stride=1, kernel=5),
    Stage(expand=6, channels=192, blocks=4, stride=2, kernel=5),
    Stage(expand=6, channels=320, blocks=1, stride=1, kernel=3),
)
LITE0_FEATURES = 1280
LITE0_CELL_CHANNELS = 112
RESNET_CELL_CHANNELS = 1024
LITE0_CELL_STAGES = 5
"""Stages whose output is the cells: stride 16, blocks 0-10, 14 x 14 x 112 at 224 (docs/facts.md, Verification)."""


class SameConv(nn.Module):
    """Convolution, BatchNorm and optionally ReLU6 under TensorFlow's SAME padding.

    SAME gives ceil(n / stride) outputs and puts the odd pixel of padding after the picture, not before it: at stride 2
    the kernel sits half a pixel away from where PyTorch's symmetric padding would put it, and the pretrained weights
    expect it there.
    """

    def __init__(
        self, inputs: int, outputs: int, *, kernel: int = 1, stride: int = 1, groups: int = 1, relu: bool = True
    ) -> None:
        super().__init__()
        self.conv = nn.Conv2d(inputs, outputs, kernel, stride, groups=groups, bias=False)
        self.norm: nn.Module = nn.BatchNorm2d(outputs, eps=BATCHNORM_EPS)
        self.relu = relu

    def forward(self, x_BCHW: Tensor) -> Tensor:
        before_W, after_W = self._padding(x_BCHW.shape[3])
        before_H, after_H = self._padding(x_BCHW.shape[2])
        if before_W == after_W and before_H == after_H:
            conv = self.conv
            padding = (before_H, before_W)
            y_BCHW = functional.conv2d(x_BCHW, conv.weight, conv.bias, conv.stride, padding, groups=conv.groups)
        else:
            y_BCHW = self.conv(functional.pad(x_BCHW, (before_W, after_W, before_H, after_H)))
        y_BCHW = self.norm(y_BCHW)
        # in place: 5 ms of 20 at 224 on one core went into writing a second copy
        return functional.relu6(y_BCHW, inplace=True) if self.relu else y_BCHW

    def _padding(self, size: int) -> tuple[int, int]:
        kernel, stride = self.conv.kernel_size[0], self.conv.stride[0]
        total = max((-(-size // stride) - 1) * stride + kernel - size, 0)
        return total // 2, total - total // 2

    def fold(self) -> None:
        """Fold BatchNorm into the convolution, for inference alone."""
        assert isinstance(self.norm, nn.BatchNorm2d), "folded already"
        self.conv = fuse_conv_bn_eval(self.conv, self.norm)
        self.norm = nn.Identity()


class InvertedResidual(nn.Module):
    """Widen by 1 x 1, filter each channel alone, narrow by 1 x 1 without activation; add the input where it fits."""

    def __init__(self, inputs: int, outputs: int, *, expand: int, stride: int, kernel: int) -> None:
        super().__init__()
        wide = inputs * expand
        self.expand = SameConv(inputs, wide) if expand > 1 else nn.Identity()
        self.depthwise = SameConv(wide, wide, kernel=kernel, stride=stride, groups=wide)
        self.project = SameConv(wide, outputs, relu=False)
        self.residual = stride == 1 and inputs == outputs

    def forward(self, x_BCHW: Tensor) -> Tensor:
        y_BCHW: Tensor = self.project(self.depthwise(self.expand(x_BCHW)))
        return x_BCHW + y_BCHW if self.residual else y_BCHW


class Lite0(nn.Module):
    """EfficientNet-Lite0 without its classifier: no squeeze-and-excitation, ReLU6, SAME padding."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = SameConv(3, LITE0_STEM_CHANNELS, kernel=3, stride=2)
        inputs, stages = LITE0_STEM_CHANNELS, []
        for stage in LITE0_STAGES:
            blocks: list[nn.Module] = []
            for number in range(stage.blocks):
                stride = stage.stride if number == 0 else 1
                blocks.append(
                    InvertedResidual(inputs, stage.channels, expand=stage.expand, stride=stride, kernel=stage.kernel)
                )
                inputs = stage.channels
            stages.append(nn.Sequential(*blocks))
        self.cells = nn.Sequential(*stages[:LITE0_CELL_STAGES])
        self.deep = nn.Sequential(*stages[LITE0_CELL_STAGES:])
        self.head = SameConv(inputs, LITE0_FEATURES)

    def forward(self, image_B3HW: Tensor) -> tuple[Tensor, Tensor]:
        """image_B3HW in -1..1 -> (features [B, 1280, H/32, W/32], not negative; cells [B, 112, H/16, W/16])."""
        cells_BCHW = self.cells(self.stem(image_B3HW))
        return self.head(self.deep(cells_BCHW)), cells_BCHW

    def fold(self) -> Lite0:
        """Fold every BatchNorm into its convolution, in place; inference alone from here on."""
        for module in list(self.modules()):
            if isinstance(module, SameConv):
                module.fold()
        return self


def lite0_keys() -> Iterator[tuple[str, str]]:
    """(our key, key of the public checkpoint) of every tensor, so that a checkpoint can be converted and checked."""
    yield from _same_conv_keys("stem", "stem")
    block = 0
    for number, stage in enumerate(LITE0_STAGES):
        room, place = ("cells", number) if number < LITE0_CELL_STAGES else ("deep", number - LITE0_CELL_STAGES)
        for inner in range(stage.blocks):
            parts = {"depthwise": "dw", "project": "project"} | ({"expand": "expand"} if stage.expand > 1 else {})
            for ours, theirs in parts.items():
                yield from _same_conv_keys(f"{room}.{place}.{inner}.{ours}", f"blocks.{block}.{theirs}")
            block += 1
    yield from _same_conv_keys("head", "head")


def _same_conv_keys(ours: str, theirs: str) -> Iterator[tuple[str, str]]:
    yield f"{ours}.conv.weight", f"{theirs}.0.weight"
    for name in ("weight", "bias", "running_mean", "running_var"):
        yield f"{ours}.norm.{name}", f"{theirs}.1.{name}"


class ResNet50(nn.Module):
    """ResNet50 with its classifier replaced by one FC (DIC 3.1)."""

    def __init__(self, embedding: int) -> None:
        super().__init__()
        # torchvision takes a second to import, and the starter never needs it
        from torchvision.models import resnet50

        self.net: nn.Module = resnet50(weights=None, num_classes=embedding)

    def forward(self, image_B3HW: Tensor) -> tuple[Tensor, Tensor]:
        """image_B3HW normalised -> (z [B, embedding], conv4 [B, 1024, H/16, W/16])."""
        net: Any = self.net
        top_BCHW, cells_BCHW = self.maps(image_B3HW)
        z_BD: Tensor = net.fc(net.avgpool(top_BCHW).flatten(1))
        return z_BD, cells_BCHW

    def maps(self, image_B3HW: Tensor) -> tuple[Tensor, Tensor]:
        """(conv5 [B, 2048, H/32, W/32], conv4 [B, 1024, H/16, W/16]), both not negative."""
        net: Any = self.net
        x_BCHW = net.maxpool(net.relu(net.bn1(net.conv1(image_B3HW))))
        cells_BCHW: Tensor = net.layer3(net.layer2(net.layer1(x_BCHW)))
        return net.layer4(cells_BCHW), cells_BCHW


def gem(features_BCHW: Tensor, *, power: float = 3.0) -> Tensor:
    """Generalised mean over positions, (mean x^p)^(1/p) -> [B, C] (docs/papers.md 2.2, 22).

    Features must not be negative. Written as sums of products because ``pow`` of a tensor costs 10x as much.
    """
    assert power == 3.0, "only the cube is written out"
    return (features_BCHW * features_BCHW * features_BCHW).mean((2, 3)).pow(1.0 / power)


def parameter_count(module: nn.Module) -> int:
    """Learnable numbers; BatchNorm statistics are not counted."""
    return sum(parameter.numel() for parameter in module.parameters())
