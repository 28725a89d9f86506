"""Local verification: is it the same picture? Mutual nearest cells that agree on one affine map.

Shape letters: V views of the query; B candidates; P = B x V (candidate, view) comparisons, candidate first; N cells
(14 x 14 = 196, row-major); F features of a cell (32); M places for mutual pairs; H hypotheses. Maps are a, b, c, d, e,
f: (x, y) -> (ax + by + c, dx + ey + f), in units of one cell, x to the right, y down, the first cell's centre (.5, .5).

Nothing here depends on which candidates stand beside each other. Whatever is summed is a whole number (or a multiple of
a quarter) small enough to be exact in its type in any order: dot products of int8 (32 x 127 x 127 < 2**24),
similarities in thousandths, products of half-integer coordinates. Everything else is done element by element.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache, lru_cache

import numpy as np
from numpy.typing import NDArray
from threadpoolctl import ThreadpoolController

from stemma.flow import CELL_COUNT, CELL_GRID

Int8 = NDArray[np.int8]
Float = NDArray[np.float32]
Double = NDArray[np.float64]
Bool = NDArray[np.bool_]

SIMILARITY_MIN = 0.35
SIMILARITY_UNIT = 1000
TOLERANCE_CELLS = 0.71
"""A true partner is rounded by half a cell each way at most. At 1.0 another photograph of the same kind of room scored
33, and 7% of 1,301 benign queries of the training photographs did not; at 0.75 it scored 18, and 3% did not."""
DETERMINANT_MIN, DETERMINANT_MAX = 0.4, 2.5
HYPOTHESES = 128
"""Pairs of pairs tried, each a turn, scale and shift; 256 triples found no more of 501 queries at twice the time."""
SPAN_CELLS_MIN = 1.5
"""Distance between the two cells of a hypothesis: nearer ones turn half a cell of error into a wrong turn."""
REFITS = 2
PAIRS_MIN = 4
CHUNK = 8
"""Candidates compared at once: arrays stay in the processor's cache."""
SEED = 8


@dataclass(frozen=True, slots=True)
class Match:
    """How well one candidate agrees with the query, in the better of its views."""

    score: float
    """Summed similarity of the cells that agree on one map; 0.0 when none do."""
    mirrored: bool
    affine: tuple[float, ...] | None
    """a, b, c, d, e, f as in ``flow.Hit``: matching view -> original, both in 0..1; None with score 0."""


@dataclass(frozen=True, slots=True)
class Pairs:
    """Mutual nearest cells of P comparisons, in query order, padded with weight 0."""

    x_PM: Float
    y_PM: Float
    to_x_PM: Float
    to_y_PM: Float
    weight_PM: Float
    """Cosine in thousandths, a whole number."""
    count_P: NDArray[np.intp]


def match(query_VNF: Int8, cells_BNF: Int8) -> list[Match]:
    """The better view's match of each candidate, in order; of equal views the upright one.

    ``query_VNF`` int8 [V, 196, 32] (view 1 is the mirrored picture), ``cells_BNF`` int8 [B, 196, 32]. Deterministic for
    each pair, whatever else is compared. Raises ``ValueError`` for other shapes or types.
    """
    _check(query_VNF, cells_BNF)
    found: list[Match] = []
    # BLAS threads that wait for each other on products this small cost 4x the CPU of one, 20x on a busy machine
    with _blas().limit(limits=1, user_api="blas"):
        for start in range(0, len(cells_BNF), CHUNK):
            found += _match_chunk(query_VNF, cells_BNF[start : start + CHUNK])
    return found


@cache
def _blas() -> ThreadpoolController:
    return ThreadpoolController()


def _check(query_VNF: Int8, cells_BNF: Int8) -> None:
    for name, cells in (("query", query_VNF), ("candidates", cells_BNF)):
        if cells.dtype != np.int8 or cells.ndim != 3 or cells.shape[1] != CELL_COUNT:
            raise ValueError(f"{name} must be int8 [., {CELL_COUNT}, F], not {cells.dtype} {list(cells.shape)}")
    if query_VNF.shape[2] != cells_BNF.shape[2]:
        raise ValueError(f"features differ: {query_VNF.shape[2]} and {cells_BNF.shape[2]}")


def _match_chunk(query_VNF: Int8, cells_BNF: Int8) -> Iterator[Match]:
    views = len(query_VNF)
    pairs = mutual_pairs(query_VNF, cells_BNF)
    score_P, map_P6 = consensus(pairs)
    score_BV = score_P.reshape(-1, views)
    best_B = score_BV.argmax(1)
    for candidate, view in enumerate(best_B.tolist()):
        score = float(score_BV[candidate, view]) / SIMILARITY_UNIT
        affine = _unit_affine(map_P6[candidate * views + view]) if score > 0 else None
        yield Match(score, view == 1 and score > 0, affine)


def _unit_affine(map_6: Double) -> tuple[float, ...]:
    """From cells to 0..1: both grids are 14 wide and high, so only the shift shrinks."""
    a, b, c, d, e, f = map_6.tolist()
    return (a, b, c / CELL_GRID, d, e, f / CELL_GRID)


def mutual_pairs(query_VNF: Int8, cells_BNF: Int8) -> Pairs:
    """Cells that are each other's nearest by dot product and whose cosine is over ``SIMILARITY_MIN``."""
    query = query_VNF.astype(np.float32)
    cells_BFN = np.ascontiguousarray(cells_BNF.transpose(0, 2, 1)).astype(np.float32)
    dots_BVNN = np.matmul(query[None], cells_BFN[:, None])
    nearest_BVN = dots_BVNN.argmax(3)
    best_BVN = np.take_along_axis(dots_BVNN, nearest_BVN[..., None], 3)[..., 0]
    rival_BVN = np.take_along_axis(dots_BVNN.max(2), nearest_BVN, 2)
    # int8 rows are unit vectors only up to rounding; a zero row has no direction and matches nothing
    length_VN = np.sqrt(np.maximum(np.square(query).sum(2), 1))
    length_BN = np.sqrt(np.maximum(np.square(cells_BFN).sum(1), 1))
    shape = nearest_BVN.shape
    theirs_BVN = np.take_along_axis(np.broadcast_to(length_BN[:, None], shape), nearest_BVN, 2)
    cosine_BVN = best_BVN / (length_VN * theirs_BVN)
    mutual_BVN = (best_BVN >= rival_BVN) & (cosine_BVN > SIMILARITY_MIN)
    return _packed(mutual_BVN.reshape(-1, CELL_COUNT), nearest_BVN, cosine_BVN)


def _packed(mutual_PN: Bool, nearest: NDArray[np.intp], cosine: Float) -> Pairs:
    count_P = mutual_PN.sum(1)
    rows, cells = np.nonzero(mutual_PN)
    places = np.arange(len(rows)) - np.repeat(np.cumsum(count_P) - count_P, count_P)
    others = nearest.reshape(mutual_PN.shape)[rows, cells]
    weights = np.rint(cosine.reshape(mutual_PN.shape)[rows, cells] * SIMILARITY_UNIT)
    packed = np.zeros((5, len(mutual_PN), max(1, int(count_P.max(initial=0)))), np.float32)
    columns = (cells % CELL_GRID + 0.5, cells // CELL_GRID + 0.5, others % CELL_GRID + 0.5, others // CELL_GRID + 0.5)
    for number, values in enumerate((*columns, weights)):
        packed[number, rows, places] = values
    x, y, to_x, to_y, weight = packed
    return Pairs(x_PM=x, y_PM=y, to_x_PM=to_x, to_y_PM=to_y, weight_PM=weight, count_P=count_P)


def consensus(pairs: Pairs) -> tuple[Float, Double]:
    """(score [P] in thousandths, map [P, 6]) of the map that the most similarity agrees on; score 0 where none is."""
    map_PH6, usable_PH = hypotheses(pairs)
    score_PH = np.where(usable_PH, _score(pairs, map_PH6), 0)
    best_P = score_PH.argmax(1)
    rows = np.arange(len(best_P))
    score_P, map_P6 = score_PH[rows, best_P], map_PH6[rows, best_P].astype(np.float64)
    tried_P6 = map_P6
    for _ in range(REFITS):
        tried_P6, solvable_P = refit(pairs, tried_P6)
        again_P = np.where(solvable_P, _score(pairs, tried_P6[:, None].astype(np.float32))[:, 0], 0)
        # of equal scores the fitted map: it rests on all its cells, not on two
        better_P = (again_P >= score_P) & (score_P > 0)
        score_P = np.where(better_P, again_P, score_P)
        map_P6 = np.where(better_P[:, None], tried_P6, map_P6)
    return score_P, map_P6


@lru_cache(maxsize=CELL_COUNT + 1)
def _draws(count: int) -> NDArray[np.intp]:
    """[H, 2] places of the pairs that make each hypothesis; a function of how many there are, and of nothing else."""
    return np.random.default_rng([SEED, count]).integers(max(count, 1), size=(HYPOTHESES, 2))


def hypotheses(pairs: Pairs) -> tuple[Float, Bool]:
    """(maps [P, H, 6], usable [P, H]): the turn, scale and shift that take two query cells to their partners."""
    drawn_PH2 = np.stack([_draws(count) for count in pairs.count_P.tolist()])
    rows = np.arange(len(drawn_PH2))[:, None, None]
    (x0, x1), (y0, y1), (u0, u1), (v0, v1) = (
        np.moveaxis(values[rows, drawn_PH2], 2, 0) for values in (pairs.x_PM, pairs.y_PM, pairs.to_x_PM, pairs.to_y_PM)
    )
    dx, dy, du, dv = x1 - x0, y1 - y0, u1 - u0, v1 - v0
    span = dx * dx + dy * dy
    usable_PH = (span >= SPAN_CELLS_MIN**2) & (pairs.count_P >= PAIRS_MIN)[:, None]
    span = np.where(usable_PH, span, 1)
    a, d = (du * dx + dv * dy) / span, (dv * dx - du * dy) / span
    determinant = a * a + d * d
    usable_PH &= (determinant > DETERMINANT_MIN) & (determinant < DETERMINANT_MAX)
    c, f = u0 - a * x0 + d * y0, v0 - d * x0 - a * y0
    return np.stack([a, -d, c, d, a, f], -1), usable_PH


def _inliers(pairs: Pairs, map_PH6: Float) -> Bool:
    a, b, c, d, e, f = np.moveaxis(map_PH6[..., None], 2, 0)
    x, y = pairs.x_PM[:, None], pairs.y_PM[:, None]
    off_x = a * x + b * y + (c - pairs.to_x_PM[:, None])
    off_y = d * x + e * y + (f - pairs.to_y_PM[:, None])
    off_x *= off_x
    off_y *= off_y
    off_x += off_y
    inside: Bool = off_x <= TOLERANCE_CELLS**2
    return inside


def _score(pairs: Pairs, map_PH6: Float) -> Float:
    """Summed weight of the pairs that each map takes to within the tolerance: [P, H]."""
    inside_PHM = _inliers(pairs, map_PH6).astype(np.float32)
    score: Float = np.matmul(inside_PHM, pairs.weight_PM[:, :, None])[..., 0]
    return score


def refit(pairs: Pairs, map_P6: Double) -> tuple[Double, Bool]:
    """(affine maps [P, 6], usable [P]) by least squares over the pairs that ``map_P6`` holds."""
    held_PM = _inliers(pairs, map_P6[:, None].astype(np.float32))[:, 0] & (pairs.weight_PM > 0)
    terms = [values.astype(np.float64) for values in (pairs.x_PM, pairs.y_PM, pairs.to_x_PM, pairs.to_y_PM)]
    ones = np.ones_like(terms[0])
    sums_P45 = np.einsum(
        "pm,ipm,jpm->pij", held_PM.astype(np.float64), np.stack([*terms[:2], ones]), np.stack([*terms, ones])
    )
    return _least_squares(sums_P45)


def _least_squares(sums_P35: Double) -> tuple[Double, Bool]:
    """Solve from the sums of products of (x, y, 1) with (x, y, u, v, 1), about the means."""
    count = np.maximum(sums_P35[:, 2, 4], 1)
    mean_P4 = sums_P35[:, 2, :4] / count[:, None]
    about_P24 = sums_P35[:, :2, :4] - sums_P35[:, :2, 4:] * mean_P4[:, None]
    xx, xy, yy = about_P24[:, 0, 0], about_P24[:, 0, 1], about_P24[:, 1, 1]
    spread = xx * yy - xy * xy
    usable = (sums_P35[:, 2, 4] >= 3) & (spread > 1e-3)
    spread = np.where(usable, spread, 1)
    rows = []
    for target in (2, 3):
        xt, yt = about_P24[:, 0, target], about_P24[:, 1, target]
        along_x, along_y = (yy * xt - xy * yt) / spread, (xx * yt - xy * xt) / spread
        rows += [along_x, along_y, mean_P4[:, target] - along_x * mean_P4[:, 0] - along_y * mean_P4[:, 1]]
    determinant = rows[0] * rows[4] - rows[1] * rows[3]
    usable &= (determinant > DETERMINANT_MIN) & (determinant < DETERMINANT_MAX)
    return np.stack(rows, -1), usable
