"""Global descriptors against their formulas, position by position."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from evaluation.pooling import POOLINGS, Whitening, descriptor, gem, mac, regional, regions, spoc


def a_map(seed: int, height: int, width: int, channels: int = 3) -> np.ndarray:
    return np.random.default_rng(seed).random((channels, height, width)).astype(np.float32)


@given(st.integers(0, 1000), st.integers(1, 9), st.integers(1, 9))
def test_each_is_its_formula(seed: int, height: int, width: int) -> None:
    map_CHW = a_map(seed, height, width)
    positions = [map_CHW[:, y, x].astype(np.float64) for y in range(height) for x in range(width)]
    assert np.allclose(spoc(map_CHW)[0], sum(positions) / len(positions), atol=1e-5)
    assert np.allclose(mac(map_CHW)[0], np.max(positions, axis=0))
    assert np.allclose(gem(map_CHW)[0], (sum(each**3 for each in positions) / len(positions)) ** (1 / 3), atol=1e-5)
    by_hand = [
        [max(map_CHW[c, v, u] for v in range(y, y + s) for u in range(x, x + s)) for c in range(3)]
        for x, y, s in regions((height, width))
    ]
    assert np.allclose(regional(map_CHW), by_hand)


@given(st.integers(1, 40), st.integers(1, 40))
def test_regions_are_squares_inside_the_map_and_cover_it(height: int, width: int) -> None:
    found = regions((height, width))
    assert all(x >= 0 and x + side <= width and y >= 0 and y + side <= height and side >= 1 for x, y, side in found)
    if max(height, width) <= 3 * min(height, width):
        covered = np.zeros((height, width), bool)
        for x, y, side in found:
            covered[y : y + side, x : x + side] = True
        assert covered.all()


def test_the_regions_of_a_known_map() -> None:
    # a square: 1, 4 and 9 regions of the whole, two thirds and half the side
    sizes = [side for _, _, side in regions((12, 12))]
    assert sizes == [12] + [8] * 4 + [6] * 9
    # 12 x 16: two regions of 12 px overlap by two thirds, three by more; 40% is nearest to two
    assert [place for place in regions((12, 16)) if place[2] == 12] == [(0, 0, 12), (4, 0, 12)]


def test_descriptors_are_of_length_one_and_whitening_is_of_every_vector() -> None:
    many = np.random.default_rng(0).random((200, 6)).astype(np.float32) * [1, 5, 1, 1, 9, 1]
    whitening = Whitening.fitted(many.astype(np.float32), 4)
    white_ND = whitening(many.astype(np.float32))
    assert np.cov(white_ND.T) == pytest.approx(np.eye(4), abs=0.02)
    for pool in POOLINGS.values():
        vectors_RC = pool(a_map(1, 5, 7, channels=6))
        for one in (descriptor(vectors_RC), descriptor(vectors_RC, whitening)):
            assert np.linalg.norm(one) == pytest.approx(1.0, abs=1e-5)
    # two regions weigh alike whatever their length
    assert descriptor(np.array([[3, 0], [0, 1]], np.float32)) == pytest.approx([0.5**0.5, 0.5**0.5])


def test_an_empty_map_is_no_division_by_nothing() -> None:
    assert not descriptor(np.zeros((1, 4), np.float32)).any()
