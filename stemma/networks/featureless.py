"""Pictures with nothing in them to recognise: one colour, a gradient, a repeated pattern, noise.

Shape letters: H, W, C pixels; N cells (14 x 14, row-major); F features of a cell. Both rules and their bounds were set
on training photographs, clean and at the severest ImageNet-C level after halving (the lowest of them in brackets), and
on synthetic pictures.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from stemma.flow import CELL_GRID

CELLS_APART = 2
"""Cells further apart than this share little of what they see."""
ALIKE_COSINE = 0.9
DISTINCT_CELLS_MIN = 24
"""Flat pictures, gradients, stripes and checkerboards have 3 to 16 cells unlike all others (contrast 5: 36)."""
STRUCTURE_SHARE_MIN = 0.02
"""Share of the variance that is left when each cell is averaged: noise keeps 0.004 to 0.013 (shot noise 5: 0.033)."""
VARIANCE_MIN = 1e-6


def is_featureless(input_HWC: NDArray[np.uint8], cells_NF: NDArray[np.int8]) -> bool:
    """True when the picture at input size (224 x 224) is flat, repeats itself everywhere, or is noise alone."""
    return structure_share(input_HWC) < STRUCTURE_SHARE_MIN or distinct_cells(cells_NF) < DISTINCT_CELLS_MIN


def structure_share(input_HWC: NDArray[np.uint8]) -> float:
    """Variance between cells over all variance, in 0..1; 0.0 for a picture of one colour."""
    height, width, channels = input_HWC.shape
    grid = (CELL_GRID, height // CELL_GRID, CELL_GRID, width // CELL_GRID, channels)
    cells = input_HWC.reshape(grid).astype(np.float32)
    total = float(cells.var((0, 1, 2, 3)).sum())
    return float(cells.mean((1, 3)).var((0, 1)).sum()) / total if total > VARIANCE_MIN else 0.0


def distinct_cells(cells_NF: NDArray[np.int8]) -> int:
    """How many cells have no other like them (cosine 0.9) more than two cells away."""
    rows, columns = np.divmod(np.arange(len(cells_NF)), CELL_GRID)
    apart_NN = np.maximum(abs(rows[:, None] - rows), abs(columns[:, None] - columns)) > CELLS_APART
    cells = cells_NF.astype(np.float32)
    length_N = np.sqrt(np.maximum(np.square(cells).sum(1), 1))
    cosine_NN = (cells @ cells.T) / np.outer(length_N, length_N)
    return int((np.where(apart_NN, cosine_NN, -1).max(1) < ALIKE_COSINE).sum())
