"""Local verification: is it the same picture? Mutual nearest cells that agree on one affine map.

Shape letters: V views of the query; B candidates; N cells (14 x 14 = 196, row-major); F features of a cell (32);
M mutual pairs; H hypotheses. Cells are measured in units of one cell: column x, row y, centre of the first at (.5, .5).

Nothing here depends on which candidates stand beside each other: similarities are dot products of int8, exact in
float32 in any order (32 x 127 x 127 < 2**24), and everything after them is computed pair by pair.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache, lru_cache

import numpy as np
from numpy.typing import NDArray
from threadpoolctl import ThreadpoolController

from stemma.flow import CELL_COUNT, CELL_GRID

Int8 = NDArray[np.int8]
Index = NDArray[np.intp]
Float = NDArray[np.float32]
Double = NDArray[np.float64]

SIMILARITY_MIN = 0.35
SQUARED_ERROR_MAX = 1.0 + 1e-6
"""One cell, in cells squared; centres lie on a grid, so errors of exactly one are common and must not hang on a bit."""
DETERMINANT_MIN, DETERMINANT_MAX = 0.4, 2.5
HYPOTHESES = 256
PAIRS_MIN = 4
SEED = 8
CENTRE_X: Double = np.arange(CELL_COUNT) % CELL_GRID + np.float64(0.5)
CENTRE_Y: Double = np.arange(CELL_COUNT) // CELL_GRID + np.float64(0.5)


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
    candidates, norms_BN = cells_BNF.astype(np.float32), _norms(cells_BNF)
    # two BLAS threads that wait for each other cost 4x the CPU of one on products this small
    with _blas().limit(limits=1, user_api="blas"):
        return [
            max(
                (
                    _verify(*mutual_pairs(query[view] @ candidate_NF.T, norms_VN[view], norms_N), mirrored=view == 1)
                    for view in range(len(query))
                ),
                key=lambda one: one.score,
                default=NO_MATCH,
            )
            for candidate_NF, norms_N in zip(candidates, norms_BN, strict=True)
        ]


@cache
def _blas() -> ThreadpoolController:
    return ThreadpoolController()


def _norms(cells: Int8) -> Float:
    squares: Float = np.square(cells.astype(np.float32)).sum(-1)
    return np.sqrt(np.maximum(squares, 1.0))


def mutual_pairs(dots_NN: Float, query_N: Float, candidate_N: Float) -> tuple[Index, Index, Float]:
    """(query cells, candidate cells, cosines), each cell the other's nearest and over ``SIMILARITY_MIN``."""
    nearest_N = dots_NN.argmax(1)
    cells_N = np.arange(len(nearest_N))
    best_N = dots_NN[cells_N, nearest_N]
    cosine_N = best_N / (query_N * candidate_N[nearest_N])
    keep = np.flatnonzero((best_N >= dots_NN.max(0)[nearest_N]) & (cosine_N > SIMILARITY_MIN))
    return keep, nearest_N[keep], cosine_N[keep]


def _verify(query_M: Index, candidate_M: Index, cosine_M: Float, *, mirrored: bool) -> Match:
    """RANSAC over affine maps through three pairs each, in closed form: the map whose inliers sum to the most."""
    if len(query_M) < PAIRS_MIN:
        return NO_MATCH
    x_M, y_M, u_M, v_M = CENTRE_X[query_M], CENTRE_Y[query_M], CENTRE_X[candidate_M], CENTRE_Y[candidate_M]
    maps_6H = _maps(x_M, y_M, u_M, v_M, _triples(len(query_M)))
    if not maps_6H.shape[1]:
        return NO_MATCH
    a, b, c, d, e, f = maps_6H[:, :, None]
    squared_HM = np.square(a * x_M + b * y_M + (c - u_M)) + np.square(d * x_M + e * y_M + (f - v_M))
    scores_H = (squared_HM <= SQUARED_ERROR_MAX) @ cosine_M.astype(np.float64)
    best = int(scores_H.argmax())
    return Match(float(scores_H[best]), mirrored, _unit_affine(maps_6H[:, best]))


@lru_cache(maxsize=CELL_COUNT)
def _triples(count: int) -> Index:
    """The pairs that each hypothesis goes through, [H, 3]: a function of the number of pairs alone."""
    return np.random.default_rng([SEED, count]).integers(count, size=(HYPOTHESES, 3))


def _maps(x_M: Double, y_M: Double, u_M: Double, v_M: Double, triples_H3: Index) -> Double:
    """a to f of the maps (x, y) -> (u, v) through each triple, [6, H'], without degenerate and extreme ones."""
    first, second, third = triples_H3.T
    x1, y1, u1, v1 = (axis[second] - axis[first] for axis in (x_M, y_M, u_M, v_M))
    x2, y2, u2, v2 = (axis[third] - axis[first] for axis in (x_M, y_M, u_M, v_M))
    area = x1 * y2 - x2 * y1
    flat = np.abs(area) <= 0.5
    area = np.where(flat, np.inf, area)
    determinant = (u1 * v2 - u2 * v1) / area
    keep = ~flat & (determinant > DETERMINANT_MIN) & (determinant < DETERMINANT_MAX)
    a, b = (u1 * y2 - u2 * y1) / area, (u2 * x1 - u1 * x2) / area
    d, e = (v1 * y2 - v2 * y1) / area, (v2 * x1 - v1 * x2) / area
    c, f = u_M[first] - a * x_M[first] - b * y_M[first], v_M[first] - d * x_M[first] - e * y_M[first]
    return np.stack([a, b, c, d, e, f])[:, keep]


def _unit_affine(map_6: Double) -> tuple[float, ...]:
    """From cells to 0..1: the linear part stays, both grids being square; the shift shrinks by the side."""
    a, b, c, d, e, f = map_6.tolist()
    return (a, b, c / CELL_GRID, d, e, f / CELL_GRID)
