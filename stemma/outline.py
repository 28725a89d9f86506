"""What a donor gave, to the pixel: its transform brought into place, and the mask of its object (OE-SIR eq. 9).

    box, transform -> ``refined`` by ECC -> ``mask``: where the query shows what the donor shows

Shape letters: H, W rows and columns; C channels; P cells (14 x 14), F their features; R, C a map's rows and columns.
Frames as in ``vision.geometry``: x to the right, y down, pixel centres at .5. Boxes are [x0, y0, x1, y1] in pixels of
the query. A transform takes query pixels to pixels of the donor's working copy, a flip included.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import cv2
import numpy as np
from numpy.typing import NDArray

from stemma.flow import CELL_GRID
from stemma.vision import geometry
from stemma.vision.geometry import Map33, Picture

Window = tuple[int, int, int, int]
"""x0, y0, x1, y1 in whole pixels."""
Int8 = NDArray[np.int8]
Float = NDArray[np.float32]

GROWN_SHARE = 0.15
"""A box grows by this share of its sides before its object is outlined: detectors cut limbs off."""
FIT_ROUNDS = 4
FIT_KEPT = 0.6
"""Share of the best agreeing pixels that the donor's colours are fitted on."""
DIFFERENCE_MAX = 24.0
"""8-bit steps, mean over channels, under which a place of the query shows the donor."""
CORRELATION_MIN = 0.4
CLOSED_SHARE = 0.1
"""Gaps up to this share of the window's side are closed: an object seldom agrees everywhere."""
OUTLINED_SHARE_MIN = 0.25
"""An outline that covers less of the object's box has missed it: then the box itself is shown."""
WINDOW_PX = 9
SMOOTH_PX = 2.0
REFINE_SIDE_PX = 128
REFINE_ITERATIONS = 40
REFINE_PASSES = 3
REFINE_TRUSTED_MIN = 0.5
"""Local correlation above which a place takes part in the second pass: the first lays background on background."""
REFINE_TRUSTED_SHARE_MIN = 0.04
REFINE_MOVE_MAX = 0.3
"""Share of the window's side by which refining may move anything; beyond, it has slipped."""
PART_SHARE_MIN = 0.08
"""A separate part of an outline smaller than this share of its largest is dropped."""


def grown(box: Sequence[float], size: geometry.Size, share: float = GROWN_SHARE) -> Window:
    """Whole pixels of a box, larger by ``share`` of its sides on every side, within the picture."""
    wide, high = (box[2] - box[0]) * share, (box[3] - box[1]) * share
    x0, y0 = max(0, math.floor(box[0] - wide)), max(0, math.floor(box[1] - high))
    x1, y1 = min(size[0], math.ceil(box[2] + wide)), min(size[1], math.ceil(box[3] + high))
    return x0, y0, max(x1, x0 + 1), max(y1, y0 + 1)


def mask(
    query_HWC: Picture,
    donor_HWC: Picture,
    query_box: Sequence[float],
    transform_33: Map33 | None,
    window: Window | None = None,
) -> tuple[Window, Picture]:
    """(box in whole pixels of the query, mask of its size: 255 where the query shows the donor's object).

    Eq. 9 with the polarity of a donor: what differs little is the splice. Where there is no transform, or hardly
    anything agrees under it, the box is meant. ``window`` holds the box; None: a little more than the box.
    """
    size = (query_HWC.shape[1], query_HWC.shape[0])
    window = window or grown(query_box, size)
    x0, y0, x1, y1 = window
    mask_HW = np.zeros((y1 - y0, x1 - x0), np.uint8)
    if transform_33 is not None:
        theirs_HWC, there_HW = laid(donor_HWC, transform_33, window)
        mask_HW = agreeing(query_HWC[y0:y1, x0:x1], theirs_HWC, there_HW)
    left, top, right, bottom = grown(query_box, size, 0.0)
    if np.count_nonzero(mask_HW) < OUTLINED_SHARE_MIN * (right - left) * (bottom - top):
        mask_HW[:] = 0
        mask_HW[top - y0 : bottom - y0, left - x0 : right - x0] = 255
    return window, mask_HW


def refined(query_HWC: Picture, donor_HWC: Picture, query_box: Sequence[float], transform_33: Map33) -> Map33:
    """The donor's transform, brought to within a pixel by ECC over the window of its object.

    Cells leave a pixel or three of a small object, and then nothing textured agrees. Up to three passes, the later ones
    over what correlates after the first; a pass that slips away, or makes less agree, is not taken.
    """
    window = grown(query_box, (query_HWC.shape[1], query_HWC.shape[0]))
    width, height = window[2] - window[0], window[3] - window[1]
    share = min(REFINE_SIDE_PX / max(width, height), 2.0)
    size = (max(WINDOW_PX, round(width * share)), max(WINDOW_PX, round(height * share)))
    ours_HWC = geometry.resize(query_HWC[window[1] : window[3], window[0] : window[2]], size)
    query_from_small_33 = geometry.translation(window[0], window[1]) @ geometry.scaling(
        width / size[0], height / size[1]
    )
    best_33 = transform_33 @ query_from_small_33
    alike, trusted_HW = _agreement(ours_HWC, donor_HWC, best_33)
    for _ in range(REFINE_PASSES):
        step_33 = _ecc(ours_HWC, donor_HWC, best_33, trusted_HW)
        if step_33 is None:
            break
        moved_33 = best_33 @ step_33
        now, now_HW = _agreement(ours_HWC, donor_HWC, moved_33)
        if now <= alike:
            break
        best_33, alike, trusted_HW = moved_33, now, now_HW
    return best_33 @ geometry.inverse(query_from_small_33)


def _agreement(ours_HWC: Picture, donor_HWC: Picture, map_33: Map33) -> tuple[float, NDArray[np.bool_]]:
    """(summed local correlation where it is positive, where it is trusted) of the donor laid over a small window."""
    theirs_HWC, there_HW = laid(donor_HWC, map_33, (0, 0, ours_HWC.shape[1], ours_HWC.shape[0]))
    alike_HW = np.where(there_HW, correlation(ours_HWC, theirs_HWC), 0)
    return float(np.maximum(alike_HW, 0).sum()), alike_HW > REFINE_TRUSTED_MIN


def _ecc(ours_HWC: Picture, donor_HWC: Picture, map_33: Map33, trusted_HW: NDArray[np.bool_]) -> Map33 | None:
    """A small affine map of the window onto itself, after which ``map_33`` fits better; None where ECC finds none."""
    theirs_HWC, there_HW = laid(donor_HWC, map_33, (0, 0, ours_HWC.shape[1], ours_HWC.shape[0]))
    if np.count_nonzero(trusted_HW) >= REFINE_TRUSTED_SHARE_MIN * trusted_HW.size:
        there_HW = there_HW & trusted_HW
    ours, theirs = (
        cv2.GaussianBlur(cv2.cvtColor(each, cv2.COLOR_RGB2GRAY).astype(np.float32), (0, 0), 1.2)
        for each in (ours_HWC, theirs_HWC)
    )
    mask = there_HW.astype(np.uint8) * 255
    criteria = (cv2.TERM_CRITERIA_COUNT | cv2.TERM_CRITERIA_EPS, REFINE_ITERATIONS, 1e-5)
    try:
        _, found_23 = cv2.findTransformECC(
            ours, theirs, np.eye(2, 3, dtype=np.float32), cv2.MOTION_AFFINE, criteria, mask, 1
        )
    except cv2.error:
        # too little in the window to go by
        return None
    found_33 = geometry.translation(0.5, 0.5) @ np.vstack([found_23, [0, 0, 1]]) @ geometry.translation(-0.5, -0.5)
    height, width = ours_HWC.shape[:2]
    corners_42 = np.array([[0, 0], [width, 0], [width, height], [0, height]], np.float64)
    moved = np.abs(geometry.apply(found_33, corners_42) - corners_42).max()
    return found_33 if moved <= REFINE_MOVE_MAX * max(width, height) else None


def laid(source_HWC: Picture, transform_33: Map33, window: Sequence[int]) -> tuple[Picture, NDArray[np.bool_]]:
    """(``source`` as the query's ``window`` shows it under the map, where it has pixels for it)."""
    x0, y0, x1, y1 = window
    size, back_33 = (x1 - x0, y1 - y0), transform_33 @ geometry.translation(x0, y0)
    shrink = math.sqrt(abs(float(np.linalg.det(back_33[:2, :2]))))
    if shrink > 1.3:
        # the warp samples points: without this a large donor would come out jagged
        height, width = source_HWC.shape[:2]
        small = (max(1, round(width / shrink)), max(1, round(height / shrink)))
        source_HWC = geometry.resize(source_HWC, small)
        back_33 = geometry.scaling(small[0] / width, small[1] / height) @ back_33
    out_HWC = geometry.warp(source_HWC, back_33, size)
    inside_HW = geometry.overlap((source_HWC.shape[1], source_HWC.shape[0]), back_33, size) > 0
    return out_HWC, inside_HW


def agreeing(ours_HWC: Picture, theirs_HWC: Picture, there_HW: NDArray[np.bool_]) -> Picture:
    """Mask [H, W] of 0 and 255: where two pictures of the same window show the same thing, in one or few pieces.

    Colours are fitted first, channel by channel, on the pixels that agree best: a splice is recoloured as a whole. Then
    a place agrees when little is left of the difference, or when it correlates though its light does not fit.
    """
    if np.count_nonzero(there_HW) < WINDOW_PX**2:
        return np.zeros(there_HW.shape, np.uint8)
    fitted_HWC = recoloured(theirs_HWC.astype(np.float32), ours_HWC.astype(np.float32), there_HW)
    difference_HW = np.abs(fitted_HWC - ours_HWC).mean(2)
    smooth_HW = cv2.GaussianBlur(difference_HW.astype(np.float32), (0, 0), SMOOTH_PX)
    alike_HW = correlation(ours_HWC, theirs_HWC)
    same_HW = (smooth_HW < DIFFERENCE_MAX) & ((alike_HW > 0) | (smooth_HW < DIFFERENCE_MAX / 3))
    same_HW |= (alike_HW > CORRELATION_MIN) & (smooth_HW < 2 * DIFFERENCE_MAX)
    return _pieces(same_HW & there_HW)


def recoloured(theirs_HWC: Float, ours_HWC: Float, there_HW: NDArray[np.bool_]) -> Float:
    """``theirs`` with a gain and a bias for each channel, by least squares over the pixels that agree best."""
    kept_HW, fitted_HWC = there_HW, theirs_HWC
    for _ in range(FIT_ROUNDS):
        gain_C, bias_C = [], []
        for channel in range(theirs_HWC.shape[2]):
            x, y = theirs_HWC[..., channel][kept_HW], ours_HWC[..., channel][kept_HW]
            spread = float(x.var())
            gain = float(np.clip(((x - x.mean()) * (y - y.mean())).mean() / max(spread, 1.0), 0.4, 2.5))
            gain_C.append(gain)
            bias_C.append(float(y.mean() - gain * x.mean()))
        fitted_HWC = theirs_HWC * np.array(gain_C, np.float32) + np.array(bias_C, np.float32)
        off_HW = cv2.GaussianBlur(np.abs(fitted_HWC - ours_HWC).mean(2), (0, 0), SMOOTH_PX)
        kept_HW = there_HW & (off_HW <= np.quantile(off_HW[there_HW], FIT_KEPT))
    return np.asarray(fitted_HWC, np.float32)


def correlation(one_HWC: Picture, other_HWC: Picture) -> Float:
    """[H, W] local correlation of luminance in windows of 9 px, -1 to 1; near 0 where nothing is textured."""
    a_HW, b_HW = (cv2.cvtColor(each, cv2.COLOR_RGB2GRAY).astype(np.float32) for each in (one_HWC, other_HWC))

    def mean(values_HW: Float) -> Float:
        return np.asarray(cv2.blur(values_HW, (WINDOW_PX, WINDOW_PX)), np.float32)

    mean_a, mean_b = mean(a_HW), mean(b_HW)
    var_a, var_b = mean(a_HW * a_HW) - mean_a**2, mean(b_HW * b_HW) - mean_b**2
    floor = 9.0
    return np.asarray((mean(a_HW * b_HW) - mean_a * mean_b) / np.sqrt((var_a + floor) * (var_b + floor)), np.float32)


def feature_difference(ours_PF: Int8, theirs_PF: Int8) -> Float:
    """Q of eq. 9 [14, 14]: squared distance of unit cells, 0 to 4, of two crops of the same window.

    The second is the donor laid over the first's window; at the stride of the cells, not the paper's 32.
    """
    ours, theirs = (cells.astype(np.float32) for cells in (ours_PF, theirs_PF))
    lengths = (np.maximum(np.linalg.norm(cells, axis=1, keepdims=True), 1) for cells in (ours, theirs))
    apart_PF = ours / next(lengths) - theirs / next(lengths)
    return np.asarray(np.square(apart_PF).sum(1).reshape(CELL_GRID, CELL_GRID), np.float32)


def differing(difference_RC: Float, size: geometry.Size, threshold: float, *, host: bool) -> Picture:
    """The paper's mask: Q brought to ``size`` (width, height), bilinear, at one threshold.

    Polarity: against the host large Q is the splice, against the donor of the matched object small Q is.
    """
    large_HW = cv2.resize(difference_RC, size, interpolation=cv2.INTER_LINEAR) > threshold
    return np.where(large_HW == host, 255, 0).astype(np.uint8)


def _pieces(same_HW: NDArray[np.bool_]) -> Picture:
    """Closed, without specks and holes: the largest piece and what is not small beside it."""
    disc = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (5, 5))
    mask_HW = cv2.morphologyEx(same_HW.astype(np.uint8), cv2.MORPH_OPEN, disc)
    reach_px = max(5, int(CLOSED_SHARE * math.sqrt(mask_HW.size))) | 1
    wide = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (reach_px, reach_px))
    # OpenCV takes what lies beyond the border for background, and would open what touches it
    framed_HW = cv2.copyMakeBorder(mask_HW, reach_px, reach_px, reach_px, reach_px, cv2.BORDER_CONSTANT, value=0)
    mask_HW = cv2.morphologyEx(framed_HW, cv2.MORPH_CLOSE, wide)[reach_px:-reach_px, reach_px:-reach_px].copy()
    contours, _ = cv2.findContours(mask_HW, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
    areas = [cv2.contourArea(contour) for contour in contours]
    large = [c for c, area in zip(contours, areas, strict=True) if area >= PART_SHARE_MIN * max(areas)]
    out_HW = np.zeros(same_HW.shape, np.uint8)
    cv2.drawContours(out_HW, large, -1, 255, cv2.FILLED)
    return out_HW
