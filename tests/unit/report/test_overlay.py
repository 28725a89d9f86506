"""What is drawn over a query: the aligned original against a plain warp, outlines against the area they enclose."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
from hypothesis import Phase, assume, given, settings
from hypothesis import strategies as st

from stemma.api import Comparison, Heatmap, Region
from stemma.report import overlay
from stemma.vision import geometry

SIZES = st.tuples(st.integers(40, 400), st.integers(40, 400))


@st.composite
def maps(draw: st.DrawFn, size: tuple[int, int], original: tuple[int, int]) -> np.ndarray:
    """Query to original: fitted to each other, then turned, scaled, moved and perhaps mirrored by what is benign."""
    fit = geometry.scaling(original[0] / size[0], original[1] / size[1])
    turn = geometry.about_centre(geometry.rotation(draw(st.floats(-15, 15))), size)
    grow = geometry.about_centre(geometry.scaling(*[draw(st.floats(0.8, 1.25)) for _ in range(2)]), size)
    move = geometry.translation(*[draw(st.floats(-0.2, 0.2)) * side for side in size])
    flip = geometry.mirror(size[0]) if draw(st.booleans()) else geometry.identity()
    lean = geometry.identity()
    lean[2, :2] = [draw(st.floats(-1e-4, 1e-4)) for _ in range(2)]
    return np.asarray(fit @ flip @ turn @ grow @ move @ lean)


def smooth(seed: int, size: tuple[int, int]) -> np.ndarray:
    coarse = np.random.default_rng(seed).integers(0, 256, (5, 6, 3), np.uint8)
    return np.asarray(cv2.resize(coarse, size, interpolation=cv2.INTER_CUBIC))


@given(st.data(), SIZES, SIZES)
@settings(max_examples=25, deadline=None, phases=[Phase.explicit, Phase.reuse, Phase.generate])
def test_the_original_lies_where_the_transform_says(
    data: st.DataObject, size: tuple[int, int], original: tuple[int, int]
) -> None:
    transform = data.draw(maps(size, original))
    source = smooth(1, original)
    laid = overlay.aligned(source, transform.tolist(), size)
    height, width = laid.rgb_HWC.shape[:2]
    assert max(width, height) <= overlay.FRAME_PX_MAX
    assert width / height == pytest.approx(size[0] / size[1], rel=0.05)
    slow = geometry.warp(source, transform @ geometry.scaling(size[0] / width, size[1] / height), (width, height))
    inside = geometry.overlap(
        original, transform @ geometry.scaling(size[0] / width, size[1] / height), (width, height)
    )
    core = cv2.erode(inside, np.ones((5, 5), np.uint8)) > 0
    assume(core.any())
    # only a resize against aliasing may stand between the two
    assert np.abs(laid.rgb_HWC[core].astype(float) - slow[core]).mean() < 6
    assert laid.share == pytest.approx((inside > 0).mean(), abs=1e-6)
    assert (laid.rgb_HWC[inside == 0] == overlay.OUTSIDE).all()


@given(st.data(), SIZES, SIZES)
@settings(max_examples=40, deadline=None)
def test_the_outline_of_the_original_goes_through_its_corners(
    data: st.DataObject, size: tuple[int, int], original: tuple[int, int]
) -> None:
    transform = data.draw(maps(size, original))
    outline_N2 = overlay.aligned(smooth(1, original), transform.tolist(), size).outline_N2
    assert outline_N2 is not None
    back = geometry.apply(transform, outline_N2 * np.array(size))
    width, height = original
    assert back == pytest.approx(np.array([[0, 0], [width, 0], [width, height], [0, height]]), abs=1e-3)


@pytest.mark.parametrize(("lean", "has_outline"), [(0.03, False), (-0.02, True), (-1 / 50.5, True), (-0.03, True)])
def test_a_plane_that_turns_away_breaks_nothing(lean: float, has_outline: bool) -> None:
    away = ((1.0, 0.0, 0.0), (0.0, 1.0, 0.0), (lean, 0.0, 1.0))
    laid = overlay.aligned(smooth(1, (100, 80)), away, (100, 80))
    assert (laid.outline_N2 is not None) is has_outline and max(laid.rgb_HWC.shape) <= overlay.FRAME_PX_MAX


def test_a_query_at_full_size_is_shown_at_working_size() -> None:
    original = np.zeros((384, 512, 3), np.uint8)
    original[100:104, 200:204] = 255
    laid = overlay.aligned(original, geometry.scaling(512 / 4000, 384 / 3000).tolist(), (4000, 3000))
    assert laid.rgb_HWC.shape == (384, 512, 3) and np.array_equal(laid.rgb_HWC, original)


def test_the_rim_of_the_original_keeps_its_colour() -> None:
    white = np.full((30, 40, 3), 255, np.uint8)
    laid = overlay.aligned(white, geometry.scaling(0.1, 0.1).tolist(), (400, 300))
    assert (laid.rgb_HWC == 255).all()


def test_a_small_query_does_not_cost_the_original_its_detail() -> None:
    original = smooth(3, (512, 384))
    laid = overlay.aligned(original, geometry.scaling(8, 8).tolist(), (64, 48))
    assert laid.rgb_HWC.shape == (384, 512, 3)


def test_an_original_that_shrinks_is_resized_and_not_sampled() -> None:
    stripes = np.zeros((512, 512, 3), np.uint8)
    stripes[:, ::2] = 255  # sampled at every second pixel these are black or white, resized they are grey
    laid = overlay.aligned(stripes, geometry.scaling(2, 2).tolist(), (512, 512))
    assert laid.rgb_HWC[10:240, 10:240].std() < 20 and abs(laid.rgb_HWC[10:240, 10:240].mean() - 127) < 10


def test_colour_tells_the_probability_and_nothing_is_transparent() -> None:
    rgba = overlay.coloured(np.linspace(0, 1, 101, dtype=np.float32)[None])[0]
    assert rgba[0, 3] == 0 and rgba[-1, 3] == 255 and (np.diff(rgba[:, 3].astype(int)) >= 0).all()
    light = rgba[:, :3] @ (0.2126, 0.7152, 0.0722)
    assert (np.diff(light) <= 0.5).all() and light[0] - light[-1] > 100  # a grey print still tells them apart


@given(st.integers(0, 10_000))
@settings(max_examples=30, deadline=None)
def test_outlines_enclose_what_is_called_changed(seed: int) -> None:
    rng = np.random.default_rng(seed)
    coarse = rng.random((5, 7)).astype(np.float32)
    heatmap_RC = np.asarray(cv2.resize(coarse, (56, 40), interpolation=cv2.INTER_CUBIC)).clip(0, 1)
    lines = overlay.outlines(heatmap_RC, [(0.0, 0.0, 1.0, 1.0)], 0.6)
    fine = cv2.resize(heatmap_RC, (560, 400), interpolation=cv2.INTER_LINEAR) >= 0.6
    drawn = np.zeros((400, 560), np.uint8)
    cv2.fillPoly(drawn, [(line * (560, 400)).round().astype(np.int32) for line in lines], 1)
    either = (fine | (drawn > 0)).sum()
    assert (fine & (drawn > 0)).sum() >= 0.9 * either - 60


def test_outlines_leave_out_what_no_region_holds() -> None:
    heatmap_RC = np.zeros((40, 56), np.float32)
    heatmap_RC[5:10, 5:10] = heatmap_RC[25:30, 40:50] = 0.9
    box = (40 / 56, 25 / 40, 50 / 56, 30 / 40)
    (line,) = overlay.outlines(heatmap_RC, [box], 0.5)
    assert line.min(0) == pytest.approx(box[:2], abs=0.02) and line.max(0) == pytest.approx(box[2:], abs=0.02)
    assert len(overlay.outlines(heatmap_RC, [(0.0, 0.0, 1.0, 1.0)], 0.5)) == 2
    assert overlay.outlines(heatmap_RC, [box], 0.95) == []


def test_a_number_stands_on_top_of_its_own_region() -> None:
    box = (0.2, 0.3, 0.6, 0.7)
    line = np.array([[0.4, 0.31], [0.59, 0.5], [0.25, 0.6]])
    other = np.array([[0.8, 0.1], [0.9, 0.1], [0.85, 0.2]])
    assert overlay.top([other, line], box) == (0.4, 0.31)
    assert overlay.top([other], box) == (0.2, 0.3)
    assert overlay.top([overlay.frame(box)], box) == (0.2, 0.3)


def test_regions_become_shares_of_the_query_and_stay_inside() -> None:
    comparison = Comparison(verdict="manipulated", regions=(Region(box=(-5, 50, 300, 250), strength=0.8),))
    assert overlay.boxes(comparison, (400, 200)) == [(0.0, 0.25, 0.75, 1.0)]


def test_the_changed_share_is_absolute() -> None:
    heatmap = Heatmap(rows=2, cols=5, values=(0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0))
    assert overlay.values(heatmap)[1, 0] == np.float32(0.6)
    assert overlay.changed_share(overlay.values(heatmap), 0.65) == pytest.approx(0.4)
    assert overlay.changed_share(overlay.values(heatmap) / 10, 0.65) == 0


@given(SIZES, *[st.floats(0, 1) for _ in range(4)])
@settings(max_examples=80, deadline=None)
def test_a_crop_shows_its_box_and_more(size: tuple[int, int], a: float, b: float, c: float, d: float) -> None:
    (x0, x1), (y0, y1) = sorted((a, b)), sorted((c, d))
    width, height = size
    x, y = np.meshgrid(np.arange(width), np.arange(height))
    picture = np.stack([x % 256, y % 256, 4 * (x // 256) + y // 256], -1).astype(np.uint8)
    cut = overlay.crop(picture, (x0, y0, x1, y1)).astype(int)
    xs, ys = cut[..., 0] + 256 * (cut[..., 2] // 4), cut[..., 1] + 256 * (cut[..., 2] % 4)
    assert xs.min() <= x0 * width + 1 and xs.max() >= x1 * width - 2
    assert ys.min() <= y0 * height + 1 and ys.max() >= y1 * height - 2
    assert min(cut.shape[:2]) >= overlay.CROP_SHARE_MIN * min(size) - 1
    if max(cut.shape[:2]) < min(size):
        assert cut.shape[0] == cut.shape[1]
