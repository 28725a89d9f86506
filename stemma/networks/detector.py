"""The detector: where the things in a picture are, whatever they are called (OE-SIR 3.1, eq. 1-3).

Shape letters: B pictures; H, W rows and columns; C channels; O objects. Boxes are [x0, y0, x1, y1] in pixels, x to the
right, y down, edges between pixels.

Both sizes are torchvision's ``FasterRCNN``. ``paper`` is ResNet50-FPN with its own defaults; ``starter`` sees a picture
at 416 px through EfficientNet-Lite0 and a feature pyramid of two maps. Both know one class: an object.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from stemma.config import ObjectSettings
from stemma.errors import BadRequest, Corrupt
from stemma.networks import weights as weights_files
from stemma.networks.backbones import LITE0_CELL_CHANNELS, Lite0, SameConv
from stemma.networks.objects import OBJECT_SIDE_PX_MIN, large

if TYPE_CHECKING:
    from torchvision.models.detection.faster_rcnn import FasterRCNN

Picture = NDArray[np.uint8]
Boxes = NDArray[np.float32]
DetectorSize = Literal["starter", "paper"]

CLASSES = 2
"""Background, and an object: class-agnostic."""
SIDE_PX = 416
STRIDE_PX = 32
CHANNELS = 96
DEEP_CHANNELS = 192
ANCHOR_SIDES_PX = ((52, 94), (166, 291))
"""On the maps of stride 16 and 32, at ratios 1:2, 1:1 and 2:1."""
ANCHOR_RATIOS = (0.5, 1.0, 2.0)
ROI_BINS = 5
REPRESENTATION = 256
PROPOSALS_TRAIN, PROPOSALS_TEST = 300, 150
SAMPLED_ANCHORS, SAMPLED_BOXES = 128, 64
REACH_IOU = (0.4, 0.7)
"""A box stands for another not at all below the first IoU, and wholly from the second on (``covering``)."""
CLOSER = 20 / 13
"""How much larger a picture is seen at a second look, when it is stored: 640 px for the starter. A second look finds
small things, of which there are many where there are any (docs/training.md)."""
GAIN_MIN = 0.2
"""Of a box that is stored, in guesses near it and near no box before, weighed by their scores. Of 780 photographs one
in twenty has five boxes or fewer, one in ten 26 or more; sixteen of each cover fewer objects (docs/decisions/0006)."""
PAPER_SIDE_PX = 1024
"""Longest side (OE-SIR 4.1)."""
GRID = ((0.72, 2), (0.5, 3), (0.34, 3))
"""Side of a region as a share of the picture's, and regions in a row: 22 in all, laid evenly from edge to edge."""


class Lite0Pyramid(nn.Module):
    """Lite0's maps of stride 16 and 32 (112 and 192 channels), brought together: {"0", "1"} -> [B, 96, ., .]."""

    def __init__(self, trunk: Lite0 | None = None) -> None:
        super().__init__()
        from torchvision.ops import FeaturePyramidNetwork

        trunk = trunk or Lite0()
        self.stem, self.cells, self.deep = trunk.stem, trunk.cells, trunk.deep[:1]
        self.pyramid = FeaturePyramidNetwork([LITE0_CELL_CHANNELS, DEEP_CHANNELS], CHANNELS)
        self.out_channels = CHANNELS

    def forward(self, image_B3HW: Tensor) -> dict[str, Tensor]:
        # channels last: with Lite0's depthwise convolutions a picture takes 61 instead of 86 ms
        cells_BCHW = self.cells(self.stem(image_B3HW.contiguous(memory_format=torch.channels_last)))
        maps: dict[str, Tensor] = self.pyramid({"0": cells_BCHW, "1": self.deep(cells_BCHW)})
        return maps

    def train(self, mode: bool = True) -> Lite0Pyramid:
        """BatchNorm keeps its statistics: batches are small, and the trunk's are those of a million pictures."""
        super().train(mode)
        for module in self.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.eval()
        return self

    def freeze(self, stages: int) -> None:
        """Keep the stem and the first ``stages`` of six as they are."""
        blocks = [*self.cells, *self.deep]
        if stages:
            self.stem.requires_grad_(False)
        for block in blocks[:stages]:
            block.requires_grad_(False)


def build(size: DetectorSize, trunk: Lite0 | None = None) -> FasterRCNN:
    """A detector of random weights, but for the starter's ``trunk``; takes pictures [3, H, W] in 0..255 (starter) or
    0..1 (paper, as torchvision's)."""
    # torchvision's detectors take a second to import, and a process that only encodes never needs them
    from torchvision.models.detection import fasterrcnn_resnet50_fpn
    from torchvision.models.detection.faster_rcnn import FasterRCNN, FastRCNNPredictor, TwoMLPHead
    from torchvision.models.detection.rpn import AnchorGenerator
    from torchvision.ops import MultiScaleRoIAlign

    # every proposal comes out, however it overlaps: ``covering`` chooses among them
    every = {"box_score_thresh": 0.0, "box_nms_thresh": 1.0}
    if size == "paper":
        made: FasterRCNN = fasterrcnn_resnet50_fpn(
            weights=None,
            weights_backbone=None,
            num_classes=CLASSES,
            min_size=PAPER_SIDE_PX,
            max_size=PAPER_SIDE_PX,
            rpn_post_nms_top_n_test=PROPOSALS_TEST,
            box_detections_per_img=PROPOSALS_TEST,
            **every,
        )
        return made
    return FasterRCNN(
        Lite0Pyramid(trunk),
        # a longest side is wanted, and both bounds together say that
        min_size=SIDE_PX,
        max_size=SIDE_PX,
        image_mean=[127.0] * 3,
        image_std=[128.0] * 3,
        rpn_anchor_generator=AnchorGenerator(ANCHOR_SIDES_PX, (ANCHOR_RATIOS,) * len(ANCHOR_SIDES_PX)),
        rpn_pre_nms_top_n_train=2 * PROPOSALS_TRAIN,
        rpn_post_nms_top_n_train=PROPOSALS_TRAIN,
        rpn_pre_nms_top_n_test=4 * PROPOSALS_TEST,
        rpn_post_nms_top_n_test=PROPOSALS_TEST,
        rpn_batch_size_per_image=SAMPLED_ANCHORS,
        box_roi_pool=MultiScaleRoIAlign(["0", "1"], ROI_BINS, 2),
        box_head=TwoMLPHead(CHANNELS * ROI_BINS**2, REPRESENTATION),
        box_predictor=FastRCNNPredictor(REPRESENTATION, CLASSES),
        box_batch_size_per_image=SAMPLED_BOXES,
        box_detections_per_img=PROPOSALS_TEST,
        size_divisible=STRIDE_PX,
        **every,
    )


def filled(card: weights_files.DetectorCard, tensors: weights_files.Tensors) -> FasterRCNN:
    """The network of a card with its tensors. Raises ``Corrupt`` where names or shapes do not fit."""
    if card.size not in ("starter", "paper"):
        raise Corrupt(f"the card says size {card.size}; there are starter and paper", subject=card.name)
    network = build(card.size)  # type: ignore[arg-type]
    try:
        missing, unexpected = network.load_state_dict(
            {name: torch.from_numpy(tensor) for name, tensor in tensors.items()}, strict=False
        )
    except RuntimeError as error:
        raise Corrupt(f"the weights do not fit the network: {error}", subject=card.name) from error
    # torch counts the batches that BatchNorm has seen; no checkpoint of ours carries that
    lacking = sorted(name for name in missing if not name.endswith("num_batches_tracked"))
    if lacking or unexpected:
        raise Corrupt(f"the weights lack {lacking} or bring {unexpected}", subject=card.name)
    return network


def fold(network: nn.Module) -> None:
    """Fold BatchNorm into the starter's convolutions, in place; inference alone from here on."""
    for module in list(network.modules()):
        if isinstance(module, SameConv):
            module.fold()


class Detector:
    """Finds objects, plain and synchronous, one picture at a time on one intra-op thread."""

    def __init__(self, network: FasterRCNN, *, size: DetectorSize, device: str = "cpu") -> None:
        network.eval()
        if size == "starter":
            fold(network)
        self._device, self._divisor = torch.device(device), 1.0 if size == "starter" else 255.0
        self._side_px: int = network.transform.max_size
        self._network = network.to(self._device)

    @classmethod
    def load(cls, settings: ObjectSettings) -> Detector:
        """The detector of ``settings``. Raises ``NotFound`` and ``Corrupt`` for weights that are missing or not what
        their card says, ``BadRequest`` when they belong to another size."""
        card, tensors = weights_files.read_detector(settings.weights)
        if card.size != settings.size:
            raise BadRequest(f"objects.size is {settings.size}, but these weights are {card.size}", subject=card.name)
        return cls(filled(card, tensors), size=settings.size, device=settings.device)

    def detect(self, rgb_HWC: Picture, most: int, *, closely: bool = False) -> tuple[Boxes, NDArray[np.float32]]:
        """(boxes [O, 4] in pixels, scores [O] in 0..1) of at most ``most`` objects of 32 px or more, in the order of
        ``covering``; ``closely``: of two looks, the second one ``CLOSER``, and none that adds less than ``GAIN_MIN``.

        Raises ``ValueError`` for anything but a uint8 RGB picture.
        """
        if rgb_HWC.dtype != np.uint8 or rgb_HWC.ndim != 3 or rgb_HWC.shape[2] != 3 or not rgb_HWC.size:
            raise ValueError(f"a picture is uint8 [H, W, 3], not {rgb_HWC.dtype} {list(rgb_HWC.shape)}")
        if min(rgb_HWC.shape[:2]) < OBJECT_SIDE_PX_MIN:
            # nothing in it is large enough to be an object, and a line of pixels has no side left once it is resized
            return np.zeros((0, 4), np.float32), np.zeros(0, np.float32)
        if torch.get_num_threads() != 1:
            torch.set_num_threads(1)
        sides_px = (self._side_px, round(CLOSER * self._side_px))[: 1 + closely]
        guesses = [self._guesses(rgb_HWC, side_px) for side_px in sides_px]
        boxes_O4, scores_O = (np.concatenate(each) for each in zip(*guesses, strict=True))
        kept_O = large(boxes_O4)
        boxes_O4, scores_O = boxes_O4[kept_O], scores_O[kept_O]
        chosen = covering(boxes_O4, scores_O, most, GAIN_MIN if closely else 0.0)
        return boxes_O4[chosen], scores_O[chosen]

    def _guesses(self, rgb_HWC: Picture, side_px: int) -> tuple[Boxes, NDArray[np.float32]]:
        """Boxes and scores of every proposal, the picture seen at this longest side."""
        self._network.transform.min_size, self._network.transform.max_size = (side_px,), side_px
        with torch.inference_mode():
            image_3HW = torch.tensor(np.ascontiguousarray(rgb_HWC)).to(self._device).permute(2, 0, 1).float()
            found: dict[str, Any] = self._network([image_3HW / self._divisor])[0]
        return found["boxes"].cpu().numpy(), found["scores"].cpu().numpy()


def covering(boxes_O4: Boxes, scores_O: NDArray[np.float32], most: int, gain_min: float = 0.0) -> NDArray[np.intp]:
    """Which at most ``most`` boxes stand for the others best, the most useful first.

    Every box is a guess at where an object is, as likely as its score. Greedily, each next box is the one that adds
    most to the guesses that lie near a chosen one, weighed by their scores: a box in the midst of many that agree goes
    before a slightly better one at their edge, and none repeats another. What adds no more than ``gain_min`` is left
    out. The best by score, without those that overlap a better one by half, cover fewer objects (docs/training.md).
    """
    near_OO = np.clip((overlaps(boxes_O4, boxes_O4) - REACH_IOU[0]) / (REACH_IOU[1] - REACH_IOU[0]), 0, 1)
    reached_O, chosen = np.zeros(len(boxes_O4)), list[int]()
    for _ in range(min(most, len(boxes_O4))):
        gain_O = np.maximum(near_OO - reached_O, 0) @ scores_O.astype(np.float64)
        best = int(gain_O.argmax())
        if gain_O[best] <= gain_min:
            break
        chosen.append(best)
        reached_O = np.maximum(reached_O, near_OO[best])
    return np.array(chosen, np.intp)


def overlaps(one_A4: Boxes, other_B4: Boxes) -> NDArray[np.float64]:
    """IoU [A, B] of boxes."""
    a_A4, b_B4 = one_A4.astype(np.float64), other_B4.astype(np.float64)
    low = np.maximum(a_A4[:, None, :2], b_B4[None, :, :2])
    high = np.minimum(a_A4[:, None, 2:], b_B4[None, :, 2:])
    both_AB = np.clip(high - low, 0, None).prod(2)
    area_A, area_B = (a_A4[:, 2:] - a_A4[:, :2]).prod(1), (b_B4[:, 2:] - b_B4[:, :2]).prod(1)
    return np.asarray(both_AB / np.maximum(area_A[:, None] + area_B[None] - both_AB, 1e-9))


def grid(width: int, height: int) -> Boxes:
    """Regions [22, 4] of three sizes that cover the whole picture, large ones first: where no detector helps."""
    rows = []
    for side, count in GRID:
        for y in np.linspace(0, 1 - side, count):
            rows += [(x, y, x + side, y + side) for x in np.linspace(0, 1 - side, count)]
    return np.asarray(np.array(rows) * [width, height, width, height], np.float32)


def regions(
    rgb_HWC: Picture, detector: Detector, most: int, *, closely: bool = False
) -> tuple[Boxes, NDArray[np.float32]]:
    """(boxes [O, 4] in pixels, scores [O]) of the detector's objects; where it finds none, of the grid, all 0."""
    boxes_O4, scores_O = detector.detect(rgb_HWC, most, closely=closely)
    if len(boxes_O4):
        return boxes_O4, scores_O
    fallback_O4 = grid(rgb_HWC.shape[1], rgb_HWC.shape[0])
    return fallback_O4, np.zeros(len(fallback_O4), np.float32)
