"""The mask of a donor: a known paste is laid back and outlined, to the pixel, whatever was done to its colours."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from stemma import outline
from stemma.flow import CELL_COUNT, CELL_DIM
from stemma.vision import geometry

SIZE = (320, 240)


def texture(seed: int, width: int, height: int) -> NDArray[np.uint8]:
    coarse = np.random.default_rng(seed).integers(0, 256, (height // 6, width // 6, 3)).astype(np.uint8)
    return cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC)


def pasted(shift: tuple[int, int] = (40, 30), scale: float = 1.0) -> tuple[NDArray, NDArray, geometry.Map33, NDArray]:
    """(query, donor, true map, true mask): an ellipse of the donor in another scene."""
    donor, host = texture(1, *SIZE), texture(2, *SIZE)
    back = geometry.translation(-120 - shift[0], -90 - shift[1])
    there = geometry.translation(120, 90) @ geometry.scaling(1 / scale, 1 / scale) @ back
    mask = np.zeros(SIZE[::-1], np.uint8)
    cv2.ellipse(mask, (120 + shift[0], 90 + shift[1]), (60, 45), 0, 0, 360, 255, -1)
    laid = geometry.warp(donor, there, SIZE)
    return np.where(mask[..., None] > 0, laid, host), donor, there, mask


def iou(window: tuple[int, int, int, int], piece: NDArray, truth: NDArray) -> float:
    whole = np.zeros(truth.shape, bool)
    whole[window[1] : window[3], window[0] : window[2]] = piece > 0
    return float((whole & (truth > 0)).sum() / (whole | (truth > 0)).sum())


def cell_codes(seed: int) -> NDArray[np.int8]:
    unit = np.random.default_rng(seed).normal(size=(CELL_COUNT, CELL_DIM))
    return np.rint(unit / np.linalg.norm(unit, axis=1, keepdims=True) * 127).astype(np.int8)


def test_a_known_paste_is_outlined() -> None:
    query, donor, there, mask = pasted()
    box = tuple(float(v) for v in (100, 75, 220, 165))
    window, piece = outline.mask(query, donor, box, there)
    assert iou(window, piece, mask) > 0.85
    assert piece.shape == (window[3] - window[1], window[2] - window[0])


@pytest.mark.parametrize("scale", [0.8, 1.0, 1.25])
def test_refining_brings_a_map_that_is_off_back(scale: float) -> None:
    query, donor, there, mask = pasted(scale=scale)
    off = geometry.translation(2.2, -1.8) @ there
    box = (100.0, 75.0, 220.0, 165.0)
    back = outline.refined(query, donor, box, off)
    points = np.argwhere(mask > 0)[::97, ::-1] + 0.5
    error = np.linalg.norm(geometry.apply(back, points) - geometry.apply(there, points), axis=1)
    assert error.max() < 0.6
    assert iou(*outline.mask(query, donor, box, back), mask) > iou(*outline.mask(query, donor, box, off), mask)


def test_without_agreement_the_box_is_shown() -> None:
    query, donor, there, _ = pasted()
    box = (100.0, 75.0, 220.0, 165.0)
    far = geometry.translation(60, 40) @ there
    for transform in (None, far):
        window, piece = outline.mask(query, donor, box, transform)
        assert (piece > 0).sum() >= 120 * 90
        assert window == outline.grown(box, SIZE)


def test_a_recoloured_paste_is_outlined_as_well() -> None:
    query, donor, there, mask = pasted()
    toned = np.where(mask[..., None] > 0, np.clip(query * 0.7 + 40, 0, 255), query).astype(np.uint8)
    assert iou(*outline.mask(toned, donor, (100.0, 75.0, 220.0, 165.0), there), mask) > 0.8


def test_polarity_of_the_papers_mask() -> None:
    ours = cell_codes(1)
    theirs = ours.copy()
    theirs[: CELL_COUNT // 2] = cell_codes(2)[: CELL_COUNT // 2]
    difference = outline.feature_difference(ours, theirs)
    assert difference.shape == (14, 14) and float(difference[7:].max()) < 1e-6 < 0.5 < float(difference[:7].min())
    host = outline.differing(difference, (28, 28), 0.5, host=True)
    donor = outline.differing(difference, (28, 28), 0.5, host=False)
    assert host[:12].all() and not host[16:].any()
    assert np.array_equal(donor, 255 - host)
