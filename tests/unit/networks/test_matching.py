"""Verification: known maps are recovered, strangers score little, and each pair's result stands alone."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from stemma.flow import CELL_GRID
from stemma.networks import matching
from stemma.networks.encoder import Encoder
from stemma.networks.matching import Match, match, mutual_pairs

Picture = NDArray[np.uint8]
Cells = NDArray[np.int8]
Scene = Callable[..., Picture]


def random_cells(seed: int, count: int = 1) -> Cells:
    rng = np.random.default_rng(seed)
    cells = rng.normal(size=(count, 196, 32))
    return np.rint(cells / np.linalg.norm(cells, axis=2, keepdims=True) * 160).clip(-127, 127).astype(np.int8)


def moved(cells_NF: Cells, columns: int, rows: int, seed: int = 99) -> Cells:
    """The picture seen ``columns`` to the right and ``rows`` down of where it was; new cells where nothing was."""
    out = random_cells(seed)[0].reshape(CELL_GRID, CELL_GRID, -1).copy()
    grid = cells_NF.reshape(CELL_GRID, CELL_GRID, -1)
    for y in range(CELL_GRID):
        for x in range(CELL_GRID):
            if 0 <= y + rows < CELL_GRID and 0 <= x + columns < CELL_GRID:
                out[y, x] = grid[y + rows, x + columns]
    return out.reshape(196, -1)


def mirrored(cells_NF: Cells) -> Cells:
    return cells_NF.reshape(CELL_GRID, CELL_GRID, -1)[:, ::-1].reshape(196, -1)


@given(st.integers(-5, 5), st.integers(-5, 5), st.booleans())
@settings(max_examples=25, deadline=None)
def test_a_known_shift_is_recovered(columns: int, rows: int, flip: bool) -> None:
    original = random_cells(1)[0]
    upright = moved(original, columns, rows)
    query = np.stack([mirrored(upright), upright] if flip else [upright, mirrored(upright)])
    one = match(query, original[None])[0]
    assert one.mirrored is flip and one.affine is not None
    shift = (1, 0, columns / CELL_GRID, 0, 1, rows / CELL_GRID)
    assert np.allclose(one.affine, shift, atol=1e-6)
    kept = (CELL_GRID - abs(columns)) * (CELL_GRID - abs(rows))
    assert one.score == pytest.approx(kept, abs=3)


def test_a_rendered_picture_is_aligned(encoder: Encoder, scene: Scene) -> None:
    original = scene(21, 336, 448)
    stored = encoder.encode(original, mirrored=False).cells_VNF
    assert stored is not None
    turn = cv2.getRotationMatrix2D((224, 168), 8, 1.08)
    turned = cv2.warpAffine(original, turn, (448, 336))
    for flip in (False, True):
        query = np.ascontiguousarray(turned[:, ::-1]) if flip else turned
        cells = encoder.encode(query, mirrored=True).cells_VNF
        assert cells is not None
        one = match(cells, stored)[0]
        assert one.mirrored is flip and one.affine is not None and one.score > 2 * encoder.card.match_threshold
        a, b, c, d, e, f = one.affine
        back = cv2.invertAffineTransform(turn)
        for x, y in ((0.25, 0.25), (0.75, 0.25), (0.25, 0.75), (0.75, 0.75), (0.5, 0.5)):
            true = back @ (x * 448, y * 336, 1) / (448, 336)
            # half a cell of 1/14: the fit rests on many cells
            assert np.abs(np.array([a * x + b * y + c, d * x + e * y + f]) - true).max() < 0.5 / CELL_GRID


def test_strangers_stay_below_the_threshold(encoder: Encoder, scene: Scene) -> None:
    cells = [encoder.encode(scene(seed), mirrored=False).cells_VNF for seed in range(30, 36)]
    stack = np.concatenate([one for one in cells if one is not None])
    for i in range(len(stack)):
        scores = [one.score for one in match(stack[i : i + 1], np.delete(stack, i, 0))]
        assert max(scores) < encoder.card.match_threshold


@given(st.lists(st.integers(0, 19), min_size=1, max_size=24), st.integers(1, 2))
@settings(max_examples=20, deadline=None)
def test_company_changes_nothing(chosen: list[int], views: int) -> None:
    pool = random_cells(5, 20)
    for i in range(0, 20, 3):  # some true ones of different strength, with chance pairs beside them
        pool[i] = moved(random_cells(7)[0], i % 4, -(i % 3), seed=i)
    query = np.concatenate([random_cells(7), random_cells(8)])[:views]
    together = match(query, pool[chosen])
    assert together == [match(query, pool[i : i + 1])[0] for i in chosen]


def slow_pairs(query_NF: Cells, candidate_NF: Cells) -> list[tuple[int, int, float]]:
    """Mutual nearest neighbours by whole-number loops; ties go to the first."""
    ours, theirs = query_NF.astype(np.int64), candidate_NF.astype(np.int64)
    dots = [[int(q @ c) for c in theirs] for q in ours]
    pairs = []
    for i, row in enumerate(dots):
        j = row.index(max(row))
        length = float(np.linalg.norm(query_NF[i].astype(float)) * np.linalg.norm(candidate_NF[j].astype(float)))
        if row[j] >= max(other[j] for other in dots) and row[j] / length > matching.SIMILARITY_MIN:
            pairs.append((i, j, row[j] / length))
    return pairs


def test_pairs_equal_the_slow_twin() -> None:
    # a few whole-number levels in four features: chance neighbours, rivals and ties abound
    original, query = np.random.default_rng(11).integers(-3, 4, (2, 196, 4)).astype(np.int8)
    query[:40] = original[5:45]
    pairs = mutual_pairs(query[None], original[None])
    slow = slow_pairs(query, original)
    count = int(pairs.count_P[0])
    assert count == len(slow) > 20
    got = [
        (int(y - 0.5) * CELL_GRID + int(x - 0.5), int(v - 0.5) * CELL_GRID + int(u - 0.5), float(w))
        for x, y, u, v, w in zip(
            *(values[0, :count] for values in dataclasses.astuple(pairs)[:5]),
            strict=True,
        )
    ]
    for (i, j, cosine), (k, m, weight) in zip(slow, got, strict=True):
        assert (i, j) == (k, m) and abs(weight - 1000 * cosine) <= 0.5 + 1e-3
    assert not pairs.weight_PM[0, count:].any()


@pytest.mark.parametrize("seed", range(2))
def test_the_score_is_what_the_map_explains(seed: int) -> None:
    """Slow twin of the scoring: sum the weights of the pairs that the returned map takes to within the tolerance."""
    original = random_cells(seed)[0]
    query = moved(original, 3, 1, seed=seed + 50)[None]
    one = match(query, original[None])[0]
    assert one.affine is not None
    a, b, c, d, e, f = one.affine
    total = 0
    for i, j, cosine in slow_pairs(query[0], original):
        x, y, u, v = ((value + 0.5) / CELL_GRID for value in (i % 14, i // 14, j % 14, j // 14))
        off = np.hypot(a * x + b * y + c - u, d * x + e * y + f - v) * CELL_GRID
        total += round(1000 * cosine) if off <= matching.TOLERANCE_CELLS else 0
    assert one.score == pytest.approx(total / 1000, abs=0.01)


def test_a_refit_never_costs_score(monkeypatch: pytest.MonkeyPatch) -> None:
    original = random_cells(3)[0]
    pool = np.stack([moved(original, i % 4, i % 3, seed=i) for i in range(12)])
    pool = np.concatenate([pool, random_cells(40, 40)])
    refitted = match(original[None], pool)
    monkeypatch.setattr(matching, "REFITS", 0)
    plain = match(original[None], pool)
    assert all(after.score >= before.score for after, before in zip(refitted, plain, strict=True))


def test_another_process_draws_the_same_hypotheses() -> None:
    first = [matching._draws(count).copy() for count in range(197)]
    matching._draws.cache_clear()
    assert all(np.array_equal(matching._draws(count), drawn) for count, drawn in enumerate(first))


def test_nothing_matches_nothing() -> None:
    zero = np.zeros((2, 196, 32), np.int8)
    assert match(zero, np.zeros((3, 196, 32), np.int8)) == [Match(0.0, False, None)] * 3
    assert match(zero, random_cells(1)) == [Match(0.0, False, None)]
    assert match(random_cells(1), np.zeros((0, 196, 32), np.int8)) == []


def test_one_direction_everywhere_gives_a_number() -> None:
    flat = np.full((1, 196, 32), 29, np.int8)
    one = match(flat, flat)[0]
    assert np.isfinite(one.score) and one == match(flat, flat)[0]


@pytest.mark.parametrize(
    ("query", "cells"),
    [
        (np.zeros((1, 196, 32)), np.zeros((1, 196, 32), np.int8)),
        (np.zeros((196, 32), np.int8), np.zeros((1, 196, 32), np.int8)),
        (np.zeros((1, 195, 32), np.int8), np.zeros((1, 195, 32), np.int8)),
        (np.zeros((1, 196, 16), np.int8), np.zeros((1, 196, 32), np.int8)),
    ],
)
def test_other_shapes_are_refused(query: Cells, cells: Cells) -> None:
    with pytest.raises(ValueError, match=r"int8|features"):
        match(query, cells)
