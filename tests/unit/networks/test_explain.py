"""What is shown of a comparison lies on the query, where the edit is, whatever the map between the two pictures."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stemma.networks import explain
from stemma.vision import geometry

ORIGINAL = (300, 200)
MAP_SIDE = 80


def square_map(box: tuple[float, float, float, float]) -> np.ndarray:
    """1 inside a box of the original, in pixels, as the comparator's map over its square."""
    width, height = ORIGINAL
    fine = np.zeros((height * 2, width * 2), np.float32)
    x0, y0, x1, y1 = (round(2 * edge) for edge in box)
    fine[y0:y1, x0:x1] = 1
    return cv2.resize(fine, (MAP_SIDE, MAP_SIDE), interpolation=cv2.INTER_AREA)


@settings(max_examples=25, deadline=None)
@given(
    degrees=st.floats(-15, 15),
    scale=st.floats(0.6, 1.4),
    mirrored=st.booleans(),
    size=st.sampled_from([(300, 200), (200, 300), (500, 420)]),
)
def test_the_heatmap_lies_where_the_query_shows_the_edit(
    degrees: float, scale: float, mirrored: bool, size: tuple[int, int]
) -> None:
    inner = geometry.rotation(degrees) @ geometry.scaling(scale, scale)
    transform = geometry.about_centre(inner, ORIGINAL) @ geometry.scaling(ORIGINAL[0] / size[0], ORIGINAL[1] / size[1])
    if mirrored:
        transform = transform @ geometry.mirror(size[0])
    box = (100.0, 60.0, 190.0, 130.0)
    truth = geometry.carry_mask((square_full(box) > 0).astype(np.uint8) * 255, transform, size)
    shown = explain.on_query(square_map(box), transform, size, ORIGINAL)
    assert max(shown.shape) == 56
    whole = cv2.resize(shown, size, interpolation=cv2.INTER_LINEAR) > 0.5
    either = whole | (truth > 127)
    assert (whole & (truth > 127)).sum() / either.sum() > 0.85


def square_full(box: tuple[float, float, float, float]) -> np.ndarray:
    mask = np.zeros((ORIGINAL[1], ORIGINAL[0]), np.uint8)
    x0, y0, x1, y1 = (int(edge) for edge in box)
    mask[y0:y1, x0:x1] = 255
    return mask


def test_what_lies_outside_the_original_is_zero_and_its_rim_is_not_dimmed() -> None:
    # a query with 100 px of padding on the left and the whole original behind it
    shown = explain.on_query(
        np.ones((MAP_SIDE, MAP_SIDE), np.float32), geometry.translation(-100, 0), (400, 200), ORIGINAL
    )
    assert shown.shape == (28, 56)
    assert not shown[:, :14].any() and (shown[:, 14:] == 1.0).all()


def test_the_identity_is_a_resize() -> None:
    ramp = np.linspace(0, 1, MAP_SIDE, dtype=np.float32)[None].repeat(MAP_SIDE, 0)
    shown = explain.on_query(ramp, geometry.scaling(3.0, 2.0), (100, 100), ORIGINAL)
    assert shown.shape == (56, 56)
    expected = ((np.arange(56) + 0.5) * MAP_SIDE / 56 - 0.5) / (MAP_SIDE - 1)
    assert np.allclose(shown[20], np.clip(expected, 0, 1), atol=2e-3)


def test_regions_are_boxes_of_the_query_strongest_first() -> None:
    heatmap = np.zeros((28, 56), np.float32)
    heatmap[4:8, 10:20] = 0.9
    heatmap[8, 20] = 0.7  # touches at a corner: one region
    heatmap[20:22, 40:42] = 0.6
    heatmap[15, 50] = 1.0  # one cell alone
    heatmap[25, 0:9] = 0.49
    found = explain.regions(heatmap, (560, 280))
    assert [region.box for region in found] == [(100.0, 40.0, 210.0, 90.0), (400.0, 200.0, 420.0, 220.0)]
    assert found[0].strength == pytest.approx((40 * 0.9 + 0.7) / 41) and found[1].strength == pytest.approx(0.6)
    assert explain.regions(np.zeros((28, 56), np.float32), (560, 280)) == ()
    assert len(explain.regions(heatmap, (560, 280), shown_min=0.4)) == 3


def test_no_more_regions_than_a_person_looks_at() -> None:
    heatmap = np.zeros((56, 56), np.float32)
    for row in range(0, 56, 4):
        for column in range(0, 56, 4):
            heatmap[row, column : column + 2] = 0.8
    assert len(explain.regions(heatmap, (100, 100))) == explain.REGIONS_MAX


def test_temperature_softens_and_keeps_the_order() -> None:
    logits = np.array([[2.0, 0.5, -1.0], [700.0, 0.0, -700.0]], np.float32)
    once, soft = explain.probabilities(logits, 1.0), explain.probabilities(logits, 3.0)
    assert np.allclose(once.sum(1), 1) and np.isfinite(once).all()
    assert np.allclose(once[0], np.exp(logits[0]) / np.exp(logits[0]).sum(), atol=1e-6)
    assert soft[0].max() < once[0].max() and (soft.argsort(1) == once.argsort(1)).all()
    with pytest.raises(ValueError, match="above 0"):
        explain.probabilities(logits, 0.0)
