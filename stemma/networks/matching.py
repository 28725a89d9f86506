"""Local verification: is it the same picture? Mutual nearest cells that agree on one affine map.

Shape letters: V views of the query; B candidates; N cells (14 x 14 = 196, row-major); F features of a cell (32);
M mutual pairs; H hypotheses. Cells are measured in units of one cell: column x, row y, centre of the first at (.5, .5).

Nothing here depends on which candidates stand beside each other: similarities are dot products of int8, exact in float32
in any order (32 x 127 x 127 < 2**24), and everything after them is computed pair by pair.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from stemma.flow import CELL_COUNT, CELL_GRID

Int8 = NDArray[np.int8]
Float = NDArray[np.float32]

SIMILARITY_MIN = 0.35
TOLERANCE_CELLS = 1.0
DETERMINANT_MIN, DETERMINANT_MAX = 0.4, 2.5
HYPOTHESES = 256
PAIRS_MIN = 4
SEED = 8


@dataclass(frozen=True, slots=True)
class Match:
    """How well one candidate agrees with the query, in the better of its views."""

    score: float
    """Summed similarity of the cells that agree on one map; 0.0 when none do."""
    mirrored: bool
    affine: tuple[float, ...] | None
    """a, b, c, d, e, f as in ``flow.Hit``: matching view -> original, both in 0..1; None with score 0."""


NO_MATCH = Match(0.0, False, None)


def match(query_VNF: Int8, cells_BNF: Int8) -> list[Match]:
    """The best view's match of each candidate, in order. Deterministic per pair and independent of B.

    Raises ``ValueError`` when the shapes do not fit each other.
    """
    if query_VNF.ndim != 3 or cells_BNF.ndim != 3 or query_VNF.shape[1:] != cells_BNF.shape[1:]:
        raise ValueError(f"cells [V, N, F] and [B, N, F] must agree, not {query_VNF.shape} and {cells_BNF.shape}")
    query, norms_VN = query_VNF.astype(np.float32), _norms(query_VNF)
    found = []
    for cells_NF in cells_BNF:
        candidate, norms_N = cells_NF.astype(np.float32), _norms(cells_NF)
        views = [
            _verify(*mutual_pairs(query[view] @ candidate.T, norms_VN[view], norms_N), mirrored=view == 1)
            for view in range(len(query))
        ]
        found.append(max(views, key=lambda one: one.score, default=NO_MATCH))
    return found


def _norms(cells: Int8) -> Float:
    squares: Float = np.square(cells.astype(np.float32)).sum(-1)
    return np.sqrt(np.maximum(squares, 1.0))


def mutual_pairs(
    dots_NN: Float, query_N: Float, candidate_N: Float
) -> tuple[NDArray[np.intp], NDArray[np.intp], Float]:
    """(query cells, candidate cells, cosines), each cell the other's nearest and over ``SIMILARITY_MIN``."""
    nearest_N = dots_NN.argmax(1)
    cells_N = np.arange(len(nearest_N))
    best_N = dots_NN[cells_N, nearest_N]
    cosine_N = best_N / (query_N * candidate_N[nearest_N])
    keep = np.flatnonzero((best_N >= dots_NN.max(0)[nearest_N]) & (cosine_N > SIMILARITY_MIN))
    return keep, nearest_N[keep], cosine_N[keep]


def _centres(cells_M: NDArray[np.intp]) -> Float:
    return np.stack([cells_M % CELL_GRID, cells_M // CELL_GRID, np.ones_like(cells_M)], -1).astype(np.float32) + (
        np.array([0.5, 0.5, 0.0], np.float32)
    )


def _verify(query_M: NDArray[np.intp], candidate_M: NDArray[np.intp], cosine_M: Float, *, mirrored: bool) -> Match:
    if len(query_M) < PAIRS_MIN:
        return NO_MATCH
    from_M3, to_M2 = _centres(query_M), _centres(candidate_M)[:, :2]
    triples_H3 = np.random.default_rng([SEED, len(query_M)]).integers(len(query_M), size=(HYPOTHESES, 3))
    corners_H33, targets_H32 = from_M3[triples_H3], to_M2[triples_H3]
    area_H = np.linalg.det(corners_H33.astype(np.float64))
    usable = np.abs(area_H) > 0.5
    if not usable.any():
        return NO_MATCH
    maps_H32 = np.linalg.solve(corners_H33[usable].astype(np.float64), targets_H32[usable].astype(np.float64))
    determinant_H = np.linalg.det(maps_H32[:, :2])
    maps_H32 = maps_H32[(determinant_H > DETERMINANT_MIN) & (determinant_H < DETERMINANT_MAX)]
    if not len(maps_H32):
        return NO_MATCH
    errors_HM = np.square(from_M3.astype(np.float64) @ maps_H32 - to_M2).sum(-1)
    scores_H = (errors_HM <= TOLERANCE_CELLS**2) @ cosine_M.astype(np.float64)
    best = int(scores_H.argmax())
    return Match(float(scores_H[best]), mirrored, _unit_affine(maps_H32[best]))


def _unit_affine(map_32: NDArray[np.float64]) -> tuple[float, ...]:
    """From cells to 0..1: the linear part stays, both grids being square; the shift shrinks by the side."""
    (a, d), (b, e), (c, f) = map_32.tolist()
    return (a, b, c / CELL_GRID, d, e, f / CELL_GRID)


assert CELL_COUNT == CELL_GRID**2
