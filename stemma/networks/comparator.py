"""The comparator of the ``starter``: an aligned query against an original -> benign, manipulated, distinct, and where.

It differs from DIC's Image Comparator Network (``paper_comparator``) where docs/facts.md says what limits quality:
alignment is a plane map made beforehand, features are EfficientNet-Lite0's at strides 4, 8 and 16, the photometric
residual and the overlap are inputs, and the heatmap is convolutional. DIC's 7 x 7 head is kept beside it.

Shape letters: B pairs; H, W rows and columns of the original's square; C channels; h, w = H/2, W/2.
All pictures here are in the original's frame, RGB 0..255; valid_B1HW is 1 where the query covers the original.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from stemma.networks.backbones import Lite0, SameConv

CLASSES = ("benign", "manipulated", "distinct")
"""In the order of DIC's figure 7."""
BENIGN, MANIPULATED, DISTINCT = range(3)
GRID = 7
HEATMAP_SIDE = 56
VECTOR = 256
"""Width of z, the fused vector that both of DIC's heads read (eq. 7-9)."""
STRIDE = 16

LITE0_MEAN, LITE0_DEVIATION = 127.0, 128.0
LEVELS = ((2, 24), (3, 40), (5, 112))
"""(Lite0 stages behind it, channels) at strides 4, 8 and 16."""
WIDTHS = (32, 48, 64, 96)
"""Channels of the fused maps at strides 2, 4, 8 and 16."""
GROUPS = 8
PRIOR_LOGIT = -3.0
"""Where the heatmap starts: edits cover about 5% of what is trained on."""
FIT_ROUNDS = 2
BLOCK_PX = 8
GAIN_MIN, GAIN_MAX = 0.2, 5.0
STATISTICS = 6
PLACED = 16
"""Channels of the deep map that reach z with their place: a mean over places cannot say where, and E_t must."""


class Compared(NamedTuple):
    """What a comparator says of each pair, before any calibration."""

    logits_B3: Tensor
    """Over ``CLASSES``."""
    grid_B77: Tensor
    """E_t's raw linear output (eq. 10); clamp at 0 and divide by the maximum to look at it."""
    map_logits_B1hw: Tensor | None
    """Per pixel of the half-size original; None for the paper's network, which has no such head."""


class Pyramid(nn.Module):
    """Lite0 up to stride 16, BatchNorm folded into the convolutions: its statistics are frozen, so the two are equal.

    Batches of a few pairs would spoil the statistics, and folding also saves a fifth of a training step.
    """

    def __init__(self, trunk: Lite0 | None = None) -> None:
        super().__init__()
        lite0 = (trunk or Lite0()).eval()
        self.stem, self.cells = lite0.stem, lite0.cells
        for module in self.modules():
            if isinstance(module, SameConv):
                module.fold()
        # folding takes "needs no gradient" from the bias that was not there
        self.requires_grad_(True)

    def forward(self, image_B3HW: Tensor) -> list[Tensor]:
        """image_B3HW in 0..255 -> maps at strides 4, 8 and 16."""
        x_BCHW = self.stem((image_B3HW - LITE0_MEAN) / LITE0_DEVIATION)
        maps, done = [], 0
        for stages, _ in LEVELS:
            x_BCHW = self.cells[done:stages](x_BCHW)
            maps.append(x_BCHW)
            done = stages
        return maps

    def freeze(self, stages: int) -> None:
        """Keep the stem and the first stages as they are: the widest maps, where most of a backward pass goes.

        Of a pair's 77 ms at 160 px, forward and backward, freezing two stages leaves 50 and three 33.
        """
        if stages:
            self.stem.requires_grad_(False)
            self.cells[:stages].requires_grad_(False)


def photometric(query_B3HW: Tensor, original_B3HW: Tensor, valid_B1HW: Tensor) -> Tensor:
    """The query with the gain and bias per channel that bring it nearest the original over the overlap.

    Starts from medians over blocks and goes on by reweighted least squares. Least squares alone would let an edit of a
    tenth of the picture, white on grey, recolour all the rest: it stopped at a gain of .36 where 1.67 was right.
    """
    with torch.no_grad():
        gain, bias = _by_blocks(query_B3HW, original_B3HW, valid_B1HW)
        for _ in range(FIT_ROUNDS):
            error = (gain * query_B3HW + bias - original_B3HW).abs()
            scale = _median((error * valid_B1HW).flatten(2)) + 2.0
            weight_B3HW = valid_B1HW / (1.0 + (error / scale) ** 2) ** 2
            total = weight_B3HW.sum((2, 3), keepdim=True).clamp_min(1.0)
            mean_q = (weight_B3HW * query_B3HW).sum((2, 3), keepdim=True) / total
            mean_o = (weight_B3HW * original_B3HW).sum((2, 3), keepdim=True) / total
            centred = query_B3HW - mean_q
            variance = (weight_B3HW * centred * centred).sum((2, 3), keepdim=True) / total
            covariance = (weight_B3HW * centred * (original_B3HW - mean_o)).sum((2, 3), keepdim=True) / total
            gain = (covariance / (variance + 1.0)).clamp(GAIN_MIN, GAIN_MAX)
            bias = mean_o - gain * mean_q
        return (gain * query_B3HW + bias).clamp(0.0, 255.0)


def _by_blocks(query_B3HW: Tensor, original_B3HW: Tensor, valid_B1HW: Tensor) -> tuple[Tensor, Tensor]:
    """Gain and bias [B, 3, 1, 1]: medians over blocks of the ratio of contrasts, then of the difference of means."""
    whole_B1hw = functional.avg_pool2d(valid_B1HW, BLOCK_PX) == 1.0
    (mean_q, deviation_q), (mean_o, deviation_o) = (_blocks(one) for one in (query_B3HW, original_B3HW))
    gain = _median(torch.where(whole_B1hw, deviation_o / deviation_q, torch.nan).flatten(2))
    gain = torch.nan_to_num(gain, nan=1.0).clamp(GAIN_MIN, GAIN_MAX)
    bias = _median(torch.where(whole_B1hw, mean_o - gain * mean_q, torch.nan).flatten(2))
    return gain, torch.nan_to_num(bias, nan=0.0)


def _blocks(image_B3HW: Tensor) -> tuple[Tensor, Tensor]:
    mean = functional.avg_pool2d(image_B3HW, BLOCK_PX)
    variance = functional.avg_pool2d(image_B3HW * image_B3HW, BLOCK_PX) - mean * mean
    return mean, (variance.clamp_min(0.0) + 1.0).sqrt()


def _median(values_B3N: Tensor) -> Tensor:
    return values_B3N.nanmedian(2).values[:, :, None, None]


class Block(nn.Module):
    """Convolution, GroupNorm, ReLU: like BatchNorm, but the same for a batch of one."""

    def __init__(self, inputs: int, outputs: int, *, kernel: int = 3, stride: int = 1) -> None:
        super().__init__()
        self.conv = nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, bias=False)
        self.norm = nn.GroupNorm(GROUPS, outputs)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        return functional.relu(self.norm(self.conv(x_BCHW)), inplace=True)


class StarterComparator(nn.Module):
    """(query_B3HW, original_B3HW, valid_B1HW) -> ``Compared``; sides are multiples of 16."""

    def __init__(self, trunk: Lite0 | None = None) -> None:
        super().__init__()
        w2, w4, w8, w16 = WIDTHS
        self.trunk = Pyramid(trunk)
        self.fine = Block(4, w2, stride=2)
        self.finer = Block(w2, w4, stride=2)
        self.lateral = nn.ModuleList(
            Block(2 * channels + extra, width, kernel=1)
            for (_, channels), extra, width in zip(LEVELS, (w4, 0, 0), (w4, w8, w16), strict=True)
        )
        self.deep = Block(w16, w16)
        self.down = nn.ModuleList([nn.Conv2d(w16, w8, 1), nn.Conv2d(w8, w4, 1), nn.Conv2d(w4, w2, 1)])
        self.merge = nn.ModuleList([Block(w8, w8), Block(w4, w4), Block(w2, w2)])
        self.map = nn.Conv2d(w2, 1, 3, padding=1)
        self.placed = nn.Conv2d(w16, PLACED, 1)
        self.vector = nn.Linear(2 * w16 + PLACED * GRID * GRID, VECTOR)
        self.classify = nn.Linear(VECTOR + STATISTICS, len(CLASSES))
        self.grid = nn.Linear(VECTOR, GRID * GRID)
        nn.init.constant_(_bias(self.map), PRIOR_LOGIT)

    def forward(self, query_B3HW: Tensor, original_B3HW: Tensor, valid_B1HW: Tensor) -> Compared:
        assert not (query_B3HW.shape[2] % STRIDE or query_B3HW.shape[3] % STRIDE), "sides are multiples of 16"
        query_B3HW = photometric(query_B3HW, original_B3HW, valid_B1HW)
        # outside the overlap nothing is known: what stands there must look like no change
        query_B3HW = torch.where(valid_B1HW > 0, query_B3HW, original_B3HW)
        residual_B3HW = (query_B3HW - original_B3HW) / 64.0
        fine_BChw = self.fine(torch.cat([residual_B3HW, valid_B1HW], 1))
        levels = self._levels(query_B3HW, original_B3HW, self.finer(fine_BChw))
        deep_BCHW = self.deep(levels[-1])
        x_BCHW, skips = deep_BCHW, [levels[1], levels[0], fine_BChw]
        for down, merge, skip_BCHW in zip(self.down, self.merge, skips, strict=True):
            up_BCHW = functional.interpolate(down(x_BCHW), size=skip_BCHW.shape[2:], mode="bilinear")
            x_BCHW = merge(up_BCHW + skip_BCHW)
        map_logits_B1hw = self.map(x_BCHW)
        placed_BC77 = functional.adaptive_avg_pool2d(self.placed(deep_BCHW), GRID)
        pooled_BC = torch.cat([deep_BCHW.mean((2, 3)), deep_BCHW.amax((2, 3)), placed_BC77.flatten(1)], 1)
        vector_BD = functional.relu(self.vector(pooled_BC))
        said_B = _statistics(map_logits_B1hw, residual_B3HW, valid_B1HW)
        logits_B3 = self.classify(torch.cat([vector_BD, said_B], 1))
        grid_B77 = self.grid(vector_BD).view(-1, GRID, GRID)
        return Compared(logits_B3, grid_B77, map_logits_B1hw)

    def _levels(self, query_B3HW: Tensor, original_B3HW: Tensor, finer_BCHW: Tensor) -> list[Tensor]:
        """|difference| and product of the shared features, fused, at strides 4, 8 and 16."""
        both = self.trunk(torch.cat([query_B3HW, original_B3HW]))
        out = []
        for number, (features_2BCHW, lateral) in enumerate(zip(both, self.lateral, strict=True)):
            query_BCHW, original_BCHW = features_2BCHW.chunk(2)
            parts = [(query_BCHW - original_BCHW).abs(), query_BCHW * original_BCHW * 0.1]
            out.append(lateral(torch.cat(parts + [finer_BCHW] * (number == 0), 1)))
        return out


def _statistics(map_logits_B1hw: Tensor, residual_B3HW: Tensor, valid_B1HW: Tensor) -> Tensor:
    """What the classifier is told of the map [B, 6]: its mean, peaks at two sizes, and how much fits and overlaps."""
    valid_B1hw = functional.avg_pool2d(valid_B1HW, 2)
    # far below any logit, where the query does not reach
    logits_B1hw = map_logits_B1hw.clamp(-10.0, 10.0) - 20.0 * (valid_B1hw < 1.0)
    covered_B = valid_B1hw.mean((1, 2, 3)).clamp_min(1e-3)
    mean_B = (torch.sigmoid(logits_B1hw).mean((1, 2, 3))) / covered_B
    peaks = [functional.avg_pool2d(logits_B1hw, size).amax((1, 2, 3)).clamp_min(-10.0) / 5.0 for size in (2, 4, 8)]
    residual_B = (residual_B3HW.abs().mean(1, keepdim=True) * valid_B1HW).mean((1, 2, 3)) / covered_B
    return torch.stack([4.0 * mean_B, *peaks, residual_B, covered_B], 1)


def probability_map(compared: Compared, valid_B1HW: Tensor) -> Tensor:
    """Probability of manipulation in the original's frame [B, h, w], 0 outside the overlap.

    Absolute: never divided by its maximum, which would draw a region on every benign pair (docs/facts.md).
    """
    assert compared.map_logits_B1hw is not None, "the paper's network has no convolutional head"
    probability_B1hw = torch.sigmoid(compared.map_logits_B1hw) * functional.avg_pool2d(valid_B1HW, 2)
    return probability_B1hw.squeeze(1)


def heatmap(compared: Compared, valid_B1HW: Tensor, side: int = HEATMAP_SIDE) -> Tensor:
    """The same at [B, side, side], as training's figures count it."""
    probability_Bhw = probability_map(compared, valid_B1HW)
    sized_B1hw = functional.interpolate(probability_Bhw[:, None], size=(side, side), mode="bilinear", antialias=True)
    return sized_B1hw.clamp(0.0, 1.0).squeeze(1)


def grid_heatmap(grid_B77: Tensor, side: int) -> Tensor:
    """DIC's map as shown [B, side, side]: clamped at 0, divided by its maximum, bicubic, clipped (docs/papers.md 1.3).

    A map with nothing above 0 stays 0.
    """
    positive_B77 = grid_B77.clamp_min(0.0)
    positive_B77 = positive_B77 / positive_B77.amax((1, 2), keepdim=True).clamp_min(1e-6)
    sized_B1hw = functional.interpolate(positive_B77[:, None], size=(side, side), mode="bicubic")
    return sized_B1hw.clamp(0.0, 1.0).squeeze(1)


def _bias(layer: nn.Conv2d) -> Tensor:
    assert layer.bias is not None
    return layer.bias
