"""Pieces and wholes: what passes for an original, and how the two are told."""

from __future__ import annotations

import cv2
import numpy as np
import pytest

from training.pieces import Pairs, Seen, table


def scene(seed: int, width: int = 480, height: int = 360) -> np.ndarray:
    """Shapes and shades at many scales, as a photograph has."""
    rng = np.random.default_rng(seed)
    total = np.zeros((height, width, 3), np.float32)
    for cells in (4, 9, 20, 45):
        coarse_HWC = rng.standard_normal((cells, cells, 3)).astype(np.float32) / cells**0.5
        total += cv2.resize(coarse_HWC, (width, height), interpolation=cv2.INTER_CUBIC)
    total = (255 * (total - total.min()) / (total.max() - total.min())).astype(np.uint8)
    for _ in range(40):
        at, size = rng.integers(0, [width, height]), int(rng.integers(6, 40))
        cv2.circle(total, [int(edge) for edge in at], size, rng.integers(0, 255, 3).tolist(), -1)
    return total


@pytest.fixture(scope="module")
def pairs() -> Pairs:
    return Pairs()


def test_an_edited_original_explains_what_is_left_of_it(pairs: Pairs) -> None:
    original = scene(1)
    query = original.copy()
    query[100:260, 150:330] = scene(2)[100:260, 150:330]
    seen = pairs.seen(query, original, whole=True, area=1 / 6)
    assert seen is not None
    assert seen.explained == pytest.approx(5 / 6, abs=0.12)
    assert not seen.little


def test_a_stranger_passes_for_no_original(pairs: Pairs) -> None:
    assert pairs.seen(scene(1), scene(2), whole=False, area=0.0) is None


def test_the_table_counts_those_that_are_looked_for_as_donors() -> None:
    found = [
        Seen(whole=whole, area=0.3, match=match, explained=explained)
        for whole, match, explained in (
            (False, 25.0, 0.3),
            (False, 25.0, 0.7),
            (False, 80.0, 0.3),
            (True, 80.0, 0.4),
        )
    ]
    said = table(found).splitlines()
    assert said[4].startswith("3 of ")
    assert "; 1 are looked for" in said[4]
    assert "; 0 are looked for" in said[-1]
    assert sum(line.startswith("piece") for line in said) == 3
