"""What has nothing to recognise is flagged; what has something is not; nothing ever becomes NaN."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from numpy.typing import NDArray

from stemma.networks.encoder import Encoder
from stemma.networks.featureless import distinct_cells, structure_share

Picture = NDArray[np.uint8]
Scene = Callable[..., Picture]


def flat(*colour: int) -> Picture:
    return np.full((200, 300, 3), colour, np.uint8)


def noise(seed: int, low: int, high: int) -> Picture:
    return np.random.default_rng(seed).integers(low, high, (448, 448, 3)).astype(np.uint8)


def pattern(period: int) -> Picture:
    y, x = np.mgrid[:448, :448]
    return np.repeat(((x // period + y // period) % 2 * 255)[..., None], 3, 2).astype(np.uint8)


def ramp() -> Picture:
    return np.repeat(np.tile(np.arange(256), (200, 1))[..., None], 3, 2).astype(np.uint8)


NOTHING = {
    "white": flat(255, 255, 255),
    "black": flat(0, 0, 0),
    "red": flat(200, 20, 20),
    "noise": noise(1, 0, 256),
    "faint noise": noise(2, 120, 130),
    "checkerboard 8": pattern(8),
    "checkerboard 32": pattern(32),
    "gradient": ramp(),
}


@pytest.mark.parametrize("name", NOTHING)
def test_nothing_to_recognise(encoder: Encoder, name: str) -> None:
    made = encoder.encode(NOTHING[name], mirrored=True)
    assert made.featureless
    assert made.cells_VNF is not None and np.abs(made.cells_VNF.astype(int)).sum() > 0


def test_something_to_recognise(encoder: Encoder, scene: Scene) -> None:
    picture = scene(3)
    faded = (picture * 0.08 + 110).astype(np.uint8)
    noisy = np.clip(picture + np.random.default_rng(0).normal(0, 70, picture.shape), 0, 255).astype(np.uint8)
    for shown in (picture, faded, noisy, picture[:64, :64]):
        assert not encoder.encode(np.ascontiguousarray(shown), mirrored=False).featureless


def test_structure_share_is_a_share() -> None:
    assert structure_share(np.zeros((224, 224, 3), np.uint8)) == 0.0
    blocks = np.random.default_rng(1).integers(0, 256, (14, 14, 3)).astype(np.uint8).repeat(16, 0).repeat(16, 1)
    assert structure_share(blocks) == pytest.approx(1.0, abs=1e-4)
    assert structure_share(noise(3, 0, 256)[:224, :224]) == pytest.approx(1 / 256, rel=0.3)


def test_distinct_cells_counts() -> None:
    rng = np.random.default_rng(2)
    assert distinct_cells(rng.integers(-100, 101, (196, 32)).astype(np.int8)) == 196
    assert distinct_cells(np.ones((196, 32), np.int8)) == 0
    assert distinct_cells(np.zeros((196, 32), np.int8)) == 196  # no direction is like no other
