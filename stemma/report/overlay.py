"""What is drawn over the query: the original laid on it, the heatmap as colour, outlines, and crops of what changed.

Everything is in the query's frame, given in shares of its width and height (0 to 1, origin at the top left corner), so
that the page can scale it. Pixel centres at .5, as everywhere. H, W pixels; C channels; R, C rows and columns of a
heatmap; N points.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from stemma.api import Comparison, Heatmap
from stemma.flow import Bytes3
from stemma.vision import geometry
from stemma.vision.geometry import Map33, Size

Floats = NDArray[np.float32]
Points = NDArray[np.float64]
Box = tuple[float, float, float, float]

FRAME_PX_MAX = 512
"""Long side of a picture on the page: that of a working copy."""
SHRINK_MAX = 1.5
"""Pixels of the original under one of the frame from which it is resized before it is sampled."""
DEPTH_MIN = 1e-3
OUTSIDE = (128, 128, 128)
FINER = 8
"""A heatmap is enlarged so before it is outlined: 56 cells would leave stairs."""
STRAIGHTEN_PX = 0.9
"""How far an outline may be from the enlarged level line, in its pixels."""

RAMP = ((0.0, (255, 196, 0)), (0.5, (255, 122, 0)), (1.0, (226, 0, 92)))
"""Colours by probability, amber to crimson: told apart by lightness too, so that no colour vision is needed."""

CROP_MARGIN = 0.35
CROP_SHARE_MIN = 0.16
"""A crop shows at least this share of the shorter side: what stands around a change is what explains it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Aligned:
    """The original as the query's frame shows it."""

    rgb_HWC: Bytes3
    """Grey where it shows nothing of the original."""
    outline_N2: Points | None
    """Corners of the original, in shares; None when its plane turns away within the frame."""
    share: float
    """Of the query's area that lies inside the original."""


def aligned(original_HWC: Bytes3, transform: Sequence[Sequence[float]], query_size: Size) -> Aligned:
    """The original laid on a query of (width, height), as large as it has detail for, at most 512 px.

    ``transform`` takes pixels of the query to pixels of ``original_HWC`` (a ``Comparison``'s, to the working copy).
    """
    original_from_query_33 = np.asarray(transform, np.float64)
    height, width = original_HWC.shape[:2]
    dense = _density(original_from_query_33, query_size)
    longer = max(query_size)
    size = scaled(query_size, min(FRAME_PX_MAX, max(1.0, longer * max(1.0, dense))) / longer)
    query_from_frame_33 = geometry.scaling(query_size[0] / size[0], query_size[1] / size[1])
    original_from_frame_33 = original_from_query_33 @ query_from_frame_33
    inside_HW = geometry.overlap((width, height), original_from_frame_33, size) > 0
    shrink = dense * longer / max(size)
    if shrink > SHRINK_MAX:
        fewer = scaled((width, height), 1 / shrink)
        original_HWC = geometry.resize(original_HWC, fewer)
        original_from_frame_33 = geometry.scaling(fewer[0] / width, fewer[1] / height) @ original_from_frame_33
    # One more pixel around it, so that its rim is not mixed with the ground of the page.
    wider_HWC = cv2.copyMakeBorder(original_HWC, 1, 1, 1, 1, cv2.BORDER_REPLICATE)
    laid_HWC = geometry.warp(wider_HWC, geometry.translation(1, 1) @ original_from_frame_33, size)
    laid_HWC[~inside_HW] = OUTSIDE
    return Aligned(
        rgb_HWC=laid_HWC,
        outline_N2=_corners(original_from_query_33, (width, height), query_size),
        share=float(inside_HW.mean()),
    )


def scaled(size: Size, scale: float) -> Size:
    return max(1, round(size[0] * scale)), max(1, round(size[1] * scale))


def _density(original_from_query_33: Map33, query_size: Size) -> float:
    """Pixels of the original along one of the query's, in its middle."""
    x, y = query_size[0] / 2, query_size[1] / 2
    if not original_from_query_33[2] @ (x + 0.5, y + 0.5, 1) > DEPTH_MIN:
        return 1.0  # seen edge on: no transform of a picture, and nothing to measure
    around = geometry.apply(original_from_query_33, np.array([[x, y], [x + 0.5, y], [x, y + 0.5]]))
    across, down = around[1] - around[0], around[2] - around[0]
    return float(2 * math.sqrt(abs(across[0] * down[1] - across[1] * down[0])))


def _corners(original_from_query_33: Map33, original_size: Size, query_size: Size) -> Points | None:
    width, height = original_size
    back_33 = geometry.inverse(original_from_query_33)
    corners_42 = np.array([[0, 0], [width, 0], [width, height], [0, height]], np.float64)
    depth_4 = np.c_[corners_42, np.ones(4)] @ back_33[2]
    if not (depth_4 > 0).all():
        return None
    return np.asarray(geometry.apply(back_33, corners_42) / np.array(query_size, np.float64))


def values(heatmap: Heatmap) -> Floats:
    """A heatmap as an array [R, C]."""
    return np.asarray(heatmap.values, np.float32).reshape(heatmap.rows, heatmap.cols)


def coloured(heatmap_RC: Floats) -> Bytes3:
    """Colour by probability with alpha the probability, uint8 [R, C, 4]: absolute, so that nothing shows as nothing."""
    stops = [stop for stop, _ in RAMP]
    rgb = [np.interp(heatmap_RC, stops, [colour[channel] for _, colour in RAMP]) for channel in range(3)]
    return np.asarray(np.rint(np.stack([*rgb, 255 * heatmap_RC], -1)), np.uint8)


def changed_share(heatmap_RC: Floats, changed_min: float) -> float:
    """Share of the query's area that is called changed."""
    return float((heatmap_RC >= changed_min).mean())


def boxes(comparison: Comparison, query_size: Size) -> list[Box]:
    """The regions' boxes in shares, within the query."""
    return [shares(region.box, query_size) for region in comparison.regions]


def shares(box: Sequence[float], size: Size) -> Box:
    """A box in pixels of a picture (width, height) as shares of it, within it."""
    x0, y0, x1, y1 = (min(1.0, max(0.0, value / side)) for value, side in zip(box, (*size, *size), strict=True))
    return x0, y0, x1, y1


def outlines(heatmap_RC: Floats, regions: Sequence[Box], changed_min: float) -> list[Points]:
    """Closed lines [N, 2] in shares along the level ``changed_min``, around what the boxes hold and nothing else."""
    rows, columns = heatmap_RC.shape
    kept_RC = np.zeros((rows, columns), np.float32)
    for x0, y0, x1, y1 in regions:
        # One cell more on each side: between two cells' centres the level line may leave the box.
        window = np.s_[
            max(0, math.floor(y0 * rows) - 1) : math.ceil(y1 * rows) + 1,
            max(0, math.floor(x0 * columns) - 1) : math.ceil(x1 * columns) + 1,
        ]
        kept_RC[window] = heatmap_RC[window]
    fine = cv2.resize(kept_RC, (columns * FINER, rows * FINER), interpolation=cv2.INTER_LINEAR)
    found, _ = cv2.findContours((fine >= changed_min).astype(np.uint8), cv2.RETR_LIST, cv2.CHAIN_APPROX_NONE)
    lines = [cv2.approxPolyDP(each, STRAIGHTEN_PX, True).reshape(-1, 2) for each in found]
    return [(line + 0.5) / (columns * FINER, rows * FINER) for line in lines if len(line) > 2]


def frame(box: Box) -> Points:
    """A box as a closed line."""
    x0, y0, x1, y1 = box
    return np.array([[x0, y0], [x1, y0], [x1, y1], [x0, y1]])


def top(lines: Sequence[Points], box: Box) -> tuple[float, float]:
    """Where a number stands: the highest point within the box of any line, or the box's corner."""
    x0, y0, x1, y1 = box
    points_N2 = np.concatenate([*lines, np.empty((0, 2))])
    inside_N = ((points_N2 >= (x0, y0)) & (points_N2 <= (x1, y1))).all(1)
    highest = min(points_N2[inside_N].tolist(), key=lambda point: point[1], default=[x0, y0])
    return highest[0], highest[1]


def crop(rgb_HWC: Bytes3, box: Box) -> Bytes3:
    """The picture around a box given in shares, with a margin; square where the picture is large enough."""
    height, width = rgb_HWC.shape[:2]
    x0, y0, x1, y1 = box[0] * width, box[1] * height, box[2] * width, box[3] * height
    side = max((1 + 2 * CROP_MARGIN) * max(x1 - x0, y1 - y0), CROP_SHARE_MIN * min(width, height), 1.0)
    left, right = _window((x0 + x1) / 2, side, width)
    top, bottom = _window((y0 + y1) / 2, side, height)
    return rgb_HWC[top:bottom, left:right]


def _window(centre: float, side: float, limit: int) -> tuple[int, int]:
    length = max(1, min(limit, round(side)))
    low = min(max(0, round(centre - length / 2)), limit - length)
    return low, low + length
