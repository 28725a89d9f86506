"""Known plane maps between a picture and what was rendered from it, and how pixels and masks follow them.

Frame: x to the right, y down, origin at the top left corner of the top left pixel, so pixel (column i, row j) has its
centre at (i + .5, j + .5). A map is a 3 x 3 float64 matrix acting on homogeneous columns (x, y, 1).
``source_from_query`` takes a point of the rendered picture (query) to the picture it was made from (source).
Sizes are (width, height).
"""

from __future__ import annotations

import math

import cv2
import numpy as np
from numpy.typing import NDArray

Map33 = NDArray[np.float64]
Picture = NDArray[np.uint8]

Size = tuple[int, int]


def identity() -> Map33:
    return np.eye(3)


def translation(dx: float, dy: float) -> Map33:
    return np.array([[1.0, 0.0, dx], [0.0, 1.0, dy], [0.0, 0.0, 1.0]])


def scaling(sx: float, sy: float) -> Map33:
    """Scale about the origin, the corner of the picture: resizing a picture is exactly this map."""
    return np.diag([sx, sy, 1.0])


def rotation(degrees: float) -> Map33:
    """Rotate about the origin; positive turns x towards y, clockwise on the screen."""
    turn = math.radians(degrees)
    return np.array([[math.cos(turn), -math.sin(turn), 0.0], [math.sin(turn), math.cos(turn), 0.0], [0.0, 0.0, 1.0]])


def shear(degrees_x: float, degrees_y: float) -> Map33:
    """Lean x by y and y by x, as tangents of the two angles."""
    return np.array(
        [[1.0, math.tan(math.radians(degrees_x)), 0.0], [math.tan(math.radians(degrees_y)), 1.0, 0.0], [0.0, 0.0, 1.0]]
    )


def mirror(width: float) -> Map33:
    """Left and right exchanged in a picture of this width; its own inverse."""
    return np.array([[-1.0, 0.0, width], [0.0, 1.0, 0.0], [0.0, 0.0, 1.0]])


def about_centre(inner: Map33, size: Size) -> Map33:
    """``inner`` acting around the centre of a picture instead of around its corner."""
    cx, cy = size[0] / 2, size[1] / 2
    return translation(cx, cy) @ inner @ translation(-cx, -cy)


def inverse(map_33: Map33) -> Map33:
    """The way back, bottom right entry 1."""
    back = np.linalg.inv(map_33)
    return np.asarray(back / back[2, 2], np.float64)


Rows = tuple[tuple[float, float, float], ...]
"""A map as the contract states it, row-major."""


def as_rows(map_33: Map33) -> Rows:
    return tuple((float(a), float(b), float(c)) for a, b, c in map_33)


def from_rows(rows: Rows) -> Map33:
    return np.array(rows, np.float64)


def from_corners(points_from_42: NDArray[np.float64], points_to_42: NDArray[np.float64]) -> Map33:
    """The perspective map that takes four points to four points, bottom right entry 1."""
    found = cv2.getPerspectiveTransform(points_from_42.astype(np.float32), points_to_42.astype(np.float32))
    return np.asarray(found, np.float64)


def apply(map_33: Map33, points_N2: NDArray[np.float64]) -> NDArray[np.float64]:
    """Points [N, 2] through the map."""
    lifted_3N = map_33 @ np.c_[points_N2, np.ones(len(points_N2))].T
    return np.asarray((lifted_3N[:2] / lifted_3N[2]).T, np.float64)


def is_mirrored(map_33: Map33) -> bool:
    """True when the map exchanges left and right hand (negative determinant)."""
    return bool(np.linalg.det(map_33[:2, :2]) < 0)


def warp(
    picture: Picture,
    source_from_query: Map33,
    size: Size,
    *,
    nearest: bool = False,
    fill: tuple[int, int, int] = (0, 0, 0),
) -> Picture:
    """The query of ``size`` that the map describes, sampled from ``picture`` [H, W(, C)] without antialiasing.

    Bilinear; ``nearest`` for masks. What lies outside the source takes ``fill``. For maps that shrink much use
    ``resize`` first: this samples points.
    """
    # OpenCV puts pixel centres at whole numbers; this conjugation is the half pixel between the two conventions.
    cv_map = translation(-0.5, -0.5) @ source_from_query @ translation(0.5, 0.5)
    flags = cv2.WARP_INVERSE_MAP | (cv2.INTER_NEAREST if nearest else cv2.INTER_LINEAR)
    out = cv2.warpPerspective(picture, cv_map, size, flags=flags, borderMode=cv2.BORDER_CONSTANT, borderValue=fill)
    return np.asarray(out, np.uint8)


def resize(picture: Picture, size: Size) -> Picture:
    """Antialiased resize; its map is ``scaling(W / width, H / height)`` exactly, query to source."""
    height, width = picture.shape[:2]
    if (width, height) == size:
        return picture
    shrinks = size[0] < width and size[1] < height
    return np.asarray(cv2.resize(picture, size, interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR))


def carry_mask(mask_HW: Picture, source_from_query: Map33, size: Size) -> Picture:
    """A mask of the source seen in the query's frame; 0 where the query shows nothing of the source."""
    return warp(mask_HW, source_from_query, size, nearest=True)


def overlap(source_size: Size, source_from_query: Map33, size: Size) -> Picture:
    """[height, width] of the query, 255 where its pixel centre lies inside the source, else 0."""
    width, height = source_size
    return carry_mask(np.full((height, width), 255, np.uint8), source_from_query, size)
