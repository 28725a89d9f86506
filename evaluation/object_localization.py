"""OE-SIR's own localization (docs/papers.md 2.2, 18-21): boxes that match give a transform, features that differ a map.

The nearest pair of objects (eq. 8) may be the copy and its source: a copy-move makes objects of one picture resemble
each other. So among the pairs of nearest objects the one is taken whose transform most others agree with, and among
those the nearest. The original is then laid over the query, and eq. 9's difference of unit features is taken at stride
16 of a picture enlarged to 448 px: the paper's stride of 32 is coarser than most edits. Where nothing of the original
lies, nothing is said.

Shape letters: O objects; H, W pixels; R, C rows and columns of a map; P cells, F their features. Boxes are [x0, y0, x1,
y1] in pixels.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

from evaluation.localization import Score
from evaluation.outcomes import Area
from evaluation.pairs import Pair
from stemma import outline, splice
from stemma.flow import CELL_GRID, Bytes3, Float, Int8
from stemma.networks.objects import MARGIN
from stemma.vision.geometry import Map33

AGREE_IOU_MIN = 0.5
TILES = 2
"""Parts of the picture, each way, whose cells are computed one by one."""
DIFFERENCE_MAX = 4.0
"""Squared distance of opposite unit features."""


class Described(NamedTuple):
    """Objects of a picture, the whole of it among them."""

    box_O4: NDArray[np.float32]
    vector_OD: Int8


Describe = Callable[[Bytes3], Described]
CellsOf = Callable[[Bytes3, Sequence[float]], Int8]


def object_score(describe: Describe, cells_of: CellsOf, read: Callable[[bytes], Bytes3]) -> Score:
    """The method as ``localization`` takes it; ``read`` decodes a file to RGB."""

    def score(pair: Pair, mask_HW: Area) -> Float:
        query_HWC, original_HWC = (read((pair.folder / name).read_bytes()) for name in ("tampered.jpg", "original.jpg"))
        original_from_query_33 = transform(describe(query_HWC), describe(original_HWC))
        found_HW = difference(query_HWC, original_HWC, original_from_query_33, cells_of) / DIFFERENCE_MAX
        size = (mask_HW.shape[1], mask_HW.shape[0])
        return np.asarray(np.clip(cv2.resize(found_HW, size, interpolation=cv2.INTER_LINEAR), 0, 1), np.float32)

    return score


def transform(query: Described, original: Described) -> Map33:
    """Query pixels to the original's, of the winning pair of boxes."""
    dots_OO = query.vector_OD.astype(np.float32) @ original.vector_OD.astype(np.float32).T
    near_O = dots_OO.argmax(1)
    ours, theirs = query.box_O4, original.box_O4[near_O]
    maps = [splice.between_boxes(one, other) for one, other in zip(ours, theirs, strict=True)]
    votes = [
        sum(
            splice.overlap(splice.landed(one, map_33), other) >= AGREE_IOU_MIN
            for one, other in zip(ours.tolist(), theirs.tolist(), strict=True)
        )
        for map_33 in maps
    ]
    nearest = dots_OO.max(1)
    return maps[max(range(len(maps)), key=lambda i: (votes[i], nearest[i]))]


def difference(
    query_HWC: Bytes3, original_HWC: Bytes3, original_from_query_33: Map33, cells_of: CellsOf, tiles: int = TILES
) -> Float:
    """Q of eq. 9 [H, W] over the query, 0 to 4: bilinear between cells, 0 where the original does not reach."""
    height, width = query_HWC.shape[:2]
    laid_HWC, there_HW = outline.laid(original_HWC, original_from_query_33, (0, 0, width, height))
    map_RC = np.zeros((tiles * CELL_GRID, tiles * CELL_GRID), np.float32)
    for row in range(tiles):
        for column in range(tiles):
            box = tile((width, height), row, column, tiles)
            part_RC = outline.feature_difference(cells_of(query_HWC, box), cells_of(laid_HWC, box))
            rows = slice(row * CELL_GRID, (row + 1) * CELL_GRID)
            map_RC[rows, column * CELL_GRID : (column + 1) * CELL_GRID] = part_RC
    large_HW = cv2.resize(map_RC, (width, height), interpolation=cv2.INTER_LINEAR)
    return np.where(there_HW, large_HW, 0).astype(np.float32)


def tile(size: tuple[int, int], row: int, column: int, tiles: int) -> tuple[float, float, float, float]:
    """The box whose crop, with the margin that every crop takes, is one of ``tiles`` x ``tiles`` parts."""
    wide, high = size[0] / tiles, size[1] / tiles
    x, y = (column + 0.5) * wide, (row + 0.5) * high
    half = 0.5 / (1 + 2 * MARGIN)
    return x - wide * half, y - high * half, x + wide * half, y + high * half
