"""From a comparator's answer to what a person is shown: probabilities, and the heatmap and regions on the query.

The comparator works in the original's square; the contract speaks of the query (docs/architecture.md, Frames).
Everything here is in pixels of the query, pixel centres at .5, boxes ``(x0, y0, x1, y1)``. Shape letters: h, w rows and
columns of the comparator's map; R, C rows and columns of the query's heatmap.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from stemma.vision import geometry
from stemma.vision.geometry import Map33, Size

Float = NDArray[np.float32]

HEATMAP_LONG_SIDE = 56
SHOWN_MIN = 0.5
"""Probability from which a place is shown as changed: absolute, so that a benign pair shows nothing."""
REGIONS_MAX = 16
REGION_CELLS_MIN = 2
"""A single cell of 56 is mostly a boundary that was not laid to the pixel."""


@dataclass(frozen=True, slots=True)
class Region:
    """One connected changed area of the query."""

    box: tuple[float, float, float, float]
    strength: float
    """Mean probability inside."""


def probabilities(logits_B3: Float, temperature: float) -> Float:
    """Calibrated probabilities of benign, manipulated and distinct [B, 3]. Raises ``ValueError`` for no temperature."""
    if temperature <= 0:
        raise ValueError(f"a temperature is above 0, not {temperature}")
    scaled_B3 = logits_B3.astype(np.float64) / temperature
    grown_B3 = np.exp(scaled_B3 - scaled_B3.max(1, keepdims=True))
    return np.asarray(grown_B3 / grown_B3.sum(1, keepdims=True), np.float32)


def grid(query_size: Size) -> Size:
    """(columns, rows) of the heatmap of a query of (width, height): 56 along its long side."""
    width, height = query_size
    scale = HEATMAP_LONG_SIDE / max(width, height)
    return max(1, round(width * scale)), max(1, round(height * scale))


def on_query(map_hw: Float, transform_33: Map33, query_size: Size, original_size: Size) -> Float:
    """The heatmap of the query [R, C], sampled from ``map_hw`` over the original's square; 0 outside the original.

    ``transform_33`` is an ``Alignment``'s, from pixels of the query to pixels of the original; sizes (width, height).
    """
    height, width = map_hw.shape
    columns, rows = grid(query_size)
    unit_33 = geometry.scaling(1 / original_size[0], 1 / original_size[1]) @ transform_33
    unit_33 = unit_33 @ geometry.scaling(query_size[0] / columns, query_size[1] / rows)
    map_from_cell_33 = geometry.scaling(width, height) @ unit_33
    # OpenCV puts pixel centres at whole numbers
    cv_33 = geometry.translation(-0.5, -0.5) @ map_from_cell_33 @ geometry.translation(0.5, 0.5)
    flags = cv2.WARP_INVERSE_MAP | cv2.INTER_LINEAR
    # the border is repeated so that the last half cell is not dimmed; what lies outside is cut by the cells' centres
    laid_RC = cv2.warpPerspective(
        map_hw.astype(np.float32), cv_33, (columns, rows), flags=flags, borderMode=cv2.BORDER_REPLICATE
    )
    inside_RC = _inside(map_from_cell_33, (columns, rows), (width, height))
    return np.asarray(np.where(inside_RC, np.clip(laid_RC, 0.0, 1.0), 0.0), np.float32)


def _inside(map_from_cell_33: Map33, cells: Size, size: Size) -> NDArray[np.bool_]:
    x, y = np.meshgrid(np.arange(cells[0]) + 0.5, np.arange(cells[1]) + 0.5)
    points_N2 = geometry.apply(map_from_cell_33, np.stack([x.ravel(), y.ravel()], -1))
    inside_N = ((points_N2 >= 0) & (points_N2 <= np.array(size, np.float64))).all(1)
    return np.asarray(inside_N.reshape(cells[1], cells[0]), np.bool_)


def regions(heatmap_RC: Float, query_size: Size, *, shown_min: float = SHOWN_MIN) -> tuple[Region, ...]:
    """Connected areas of at least ``shown_min``, the strongest (probability times area) first, at most 16."""
    shown_RC = (heatmap_RC >= shown_min).astype(np.uint8)
    count, label_RC, statistics, _ = cv2.connectedComponentsWithStats(shown_RC, connectivity=8)
    rows, columns = heatmap_RC.shape
    across, down = query_size[0] / columns, query_size[1] / rows
    found: list[tuple[float, Region]] = []
    for number in range(1, count):
        left, top, width, height, area = (int(value) for value in statistics[number])
        if area < min(REGION_CELLS_MIN, rows * columns):
            continue
        box = (left * across, top * down, (left + width) * across, (top + height) * down)
        strength = float(heatmap_RC[label_RC == number].mean())
        found.append((strength * area, Region(box, strength)))
    found.sort(key=lambda one: (-one[0], one[1].box))
    return tuple(region for _, region in found[:REGIONS_MAX])
