"""Boxes that YOLOX-nano draws on training photographs: labels for our own detector, which alone is shipped."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from stemma.vision.geometry import Picture

FILE = "yolox_nano.onnx"
SIDE_PX = 416
FILL = 114
STRIDES_PX = (8, 16, 32)
SCORE_MIN = 0.3
"""At this score 64% of its boxes are right (the data's card)."""
TEACHER_SCORE_MIN = 0.05
"""Down to this score a box is a label now and then (``chance``)."""
CHANCE_AT_ZERO, CHANCE_OF_SCORE = 0.1, 1.15
"""Line through the share of boxes that are right, on 74 annotated training photographs: .20 at a score of .05 to .1,
.32 at .2 to .3, .48 at .3 to .4, .71 at .4 to .6, .88 above."""
NMS_IOU = 0.5
BOX_SIDE_PX_MIN = 16


class Yolox:
    """YOLOX-nano of the development data, by OpenCV's own inference."""

    def __init__(self, folder: Path) -> None:
        """Raises ``ValueError`` where the network is not in ``folder``."""
        path = folder / "weights" / FILE
        if not path.is_file():
            raise ValueError(f"{path} is not there; give the development data with --data")
        self._network = cv2.dnn.readNetFromONNX(str(path))
        cells = [(_cells(SIDE_PX // stride), stride) for stride in STRIDES_PX]
        self._cell_A2 = np.concatenate([cell for cell, _ in cells])
        self._stride_A1 = np.concatenate([np.full((len(cell), 1), stride) for cell, stride in cells])

    def boxes(self, rgb_HWC: Picture, score_min: float = SCORE_MIN) -> NDArray[np.float32]:
        """[O, 4] in pixels, best first, whatever their class; of those that overlap by half the better one."""
        return self.scored(rgb_HWC, score_min)[0]

    def scored(self, rgb_HWC: Picture, score_min: float = SCORE_MIN) -> tuple[NDArray[np.float32], NDArray[np.float64]]:
        """The ``boxes`` and the score of each."""
        height, width = rgb_HWC.shape[:2]
        share = SIDE_PX / max(height, width)
        size = (max(1, round(width * share)), max(1, round(height * share)))
        padded_HWC = np.full((SIDE_PX, SIDE_PX, 3), FILL, np.uint8)
        padded_HWC[: size[1], : size[0]] = cv2.resize(rgb_HWC, size)[..., ::-1]
        self._network.setInput(padded_HWC.transpose(2, 0, 1)[None].astype(np.float32))
        said_AC = np.asarray(self._network.forward()[0], np.float64)
        score_A = said_AC[:, 4] * said_AC[:, 5:].max(1)
        kept = score_A >= score_min
        centre_O2 = (said_AC[kept, :2] + self._cell_A2[kept]) * self._stride_A1[kept]
        side_O2 = np.exp(said_AC[kept, 2:4]) * self._stride_A1[kept]
        corners_O4 = np.concatenate([centre_O2 - side_O2 / 2, centre_O2 + side_O2 / 2], 1) / share
        corners_O4 = np.clip(corners_O4, 0, [width, height, width, height])
        large = (corners_O4[:, 2:] - corners_O4[:, :2]).min(1, initial=np.inf) >= BOX_SIDE_PX_MIN
        return _best(corners_O4[large], score_A[kept][large])


def _cells(count: int) -> NDArray[np.float64]:
    """[count x count, 2] columns and rows, row-major."""
    return np.stack(np.meshgrid(np.arange(count), np.arange(count)), -1).reshape(-1, 2).astype(np.float64)


def _best(box_O4: NDArray[np.float64], score_O: NDArray[np.float64]) -> tuple[NDArray[np.float32], NDArray[np.float64]]:
    sides = np.concatenate([box_O4[:, :2], box_O4[:, 2:] - box_O4[:, :2]], 1)
    order = cv2.dnn.NMSBoxes(sides.tolist(), score_O.tolist(), 0.0, NMS_IOU) if len(box_O4) else []
    kept = np.asarray(order, np.intp)
    return box_O4[kept].astype(np.float32), score_O[kept]


def chance(score_O: NDArray[np.float64]) -> NDArray[np.float64]:
    """That a box of this score is right."""
    return np.clip(CHANCE_AT_ZERO + CHANCE_OF_SCORE * score_O, 0, 1)
