"""What annotators marked, as the comparator's truth (DIC 4.1, Fig. 6): three workers' boxes -> T, 7 x 7.

Boxes are (x0, y0, x1, y1) in pixels of the original, origin at its top left corner, ends not included: the box of the
whole picture is (0, 0, width, height). The paper's boxes were never published. ``workers_of`` makes a stand-in from an
exact mask, three people who see roughly the same.

    boxes.tsv    id worker x0 y0 x1 y1 : one row per box, id of the variant; a worker who saw nothing leaves four empty
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from stemma.errors import Corrupt, NotFound

Box = tuple[float, float, float, float]
Workers = tuple[tuple[Box, ...], ...]
"""Each worker's boxes."""

WORKERS = 3
CELLS = 7
AGREED_MIN = 2
"""Workers that must have marked a pixel for it to count as changed where the truth must be binary (IoU)."""
COLUMNS = ("id", "worker", "x0", "y0", "x1", "y1")
_SEEN_SHARE_MIN = 0.0005
"""Of the picture: smaller spots of a mask are what annotators overlook."""
_JITTER = 0.08
"""Standard deviation of a drawn box's sides, of its own size."""


def read(path: Path) -> tuple[dict[str, Workers], dict[str, str]]:
    """(variant's id -> workers' boxes, id -> why it is left out). Workers are in order of their names.

    Raises ``NotFound``, and ``Corrupt`` for other columns or a row that is no box.
    """
    if not path.is_file():
        raise NotFound("there is no list of boxes", subject=str(path))
    lines = path.read_text(encoding="utf-8").splitlines()
    if not lines or tuple(lines[0].split("\t")) != COLUMNS:
        raise Corrupt(f"the first line must name the columns {' '.join(COLUMNS)}", subject=str(path))
    marked: dict[str, dict[str, list[Box]]] = defaultdict(lambda: defaultdict(list))
    for number, line in enumerate(lines[1:], start=2):
        parts = line.split("\t")
        if len(parts) != len(COLUMNS):
            raise Corrupt(f"line {number} has {len(parts)} fields", subject=str(path))
        boxes = marked[parts[0]][parts[1]]
        if any(parts[2:]):
            boxes.append(_box(parts[2:], number, path))
    whole = {id: tuple(tuple(by[name]) for name in sorted(by)) for id, by in marked.items() if len(by) == WORKERS}
    left_out = {id: f"{len(by)} workers, not {WORKERS}" for id, by in marked.items() if len(by) != WORKERS}
    return whole, left_out


def _box(parts: Sequence[str], number: int, path: Path) -> Box:
    try:
        x0, y0, x1, y1 = (float(part) for part in parts)
    except ValueError as error:
        raise Corrupt(f"line {number} is no box", subject=str(path)) from error
    if not (0 <= x0 < x1 < np.inf and 0 <= y0 < y1 < np.inf):
        raise Corrupt(f"line {number} has a box without an inside", subject=str(path))
    return x0, y0, x1, y1


def union(boxes: Sequence[Box], size: tuple[int, int]) -> NDArray[np.float32]:
    """G: 1 in every pixel whose centre lies in a box, else 0, float32 [height, width]; ``size`` is (width, height)."""
    out = np.zeros((size[1], size[0]), np.float32)
    for x0, y0, x1, y1 in boxes:
        left, top, right, bottom = (max(0, math.ceil(end - 0.5)) for end in (x0, y0, x1, y1))
        out[top:bottom, left:right] = 1
    return out


def mean_of(workers: Workers, size: tuple[int, int]) -> NDArray[np.float32]:
    """(1/3) sum of the workers' unions at the picture's own size; 0, 1/3, 2/3 or 1 in each pixel.

    Raises ``ValueError`` for another number of workers.
    """
    if len(workers) != WORKERS:
        raise ValueError(f"the truth is the mean of {WORKERS} workers, not {len(workers)}")
    return np.asarray(np.mean([union(boxes, size) for boxes in workers], 0), np.float32)


def truth(workers: Workers, size: tuple[int, int], *, cells: int = CELLS) -> NDArray[np.float32]:
    """T [cells, cells] in 0..1: the workers' mean, averaged over each cell's area (a pixel may lie in two cells)."""
    mean_HW = mean_of(workers, size)
    return np.asarray(_shares(cells, size[1]) @ mean_HW @ _shares(cells, size[0]).T, np.float32)


def agreed(workers: Workers, size: tuple[int, int]) -> NDArray[np.bool_]:
    """Where at least two of the three marked: the binary truth of an IoU, [height, width]."""
    return np.asarray(mean_of(workers, size) * WORKERS > AGREED_MIN - 0.5)


def _shares(cells: int, pixels: int) -> NDArray[np.float64]:
    """[cells, pixels]: how much of each pixel makes up a cell; every row sums to 1."""
    edge = np.arange(cells + 1) * (pixels / cells)
    start = np.arange(pixels)
    inside = np.minimum(edge[1:, None], start + 1) - np.maximum(edge[:-1, None], start)
    return np.asarray(np.clip(inside, 0, 1) * (cells / pixels))


def workers_of(mask_HW: NDArray[np.uint8], rng: np.random.Generator) -> Workers:
    """Boxes that three people might draw around the spots of an exact mask (not 0: changed), each in their own way."""
    height, width = mask_HW.shape
    count, _, stats, _ = cv2.connectedComponentsWithStats((mask_HW > 0).astype(np.uint8), connectivity=8)
    spots = [stats[i] for i in range(1, count) if stats[i][4] >= _SEEN_SHARE_MIN * mask_HW.size]
    workers = []
    for _ in range(WORKERS):
        boxes = []
        for left, top, wide, high, _ in spots:
            dx0, dx1 = rng.normal(0, _JITTER, 2) * wide
            dy0, dy1 = rng.normal(0, _JITTER, 2) * high
            x0, x1 = max(0.0, float(left + dx0)), min(float(width), float(left + wide + dx1))
            y0, y1 = max(0.0, float(top + dy0)), min(float(height), float(top + high + dy1))
            boxes.append((x0, y0, max(x1, x0 + 1), max(y1, y0 + 1)))
        workers.append(tuple(boxes))
    return tuple(workers)
