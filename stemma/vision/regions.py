"""Where an edit lies: random regions of a picture, their soft edges, and the patch that a tool lays there.

Pictures are uint8 RGB [H, W, 3], masks uint8 [H, W] of 0 and 255, alphas float32 [H, W] in 0..1.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

from stemma.vision.geometry import Picture

Rng = np.random.Generator
Mask = NDArray[np.uint8]
Alpha = NDArray[np.float32]
Outline = NDArray[np.float64]

AREA_PX_MIN = 48
SIDE_SHARE_MAX = 0.95
"""A region fits into the picture with room to lie in more than one place."""
FEATHER_PX_MAX = 3


class Layer(NamedTuple):
    """What a tool lays over its source, in the source's frame and size."""

    rgb_HWC: Picture
    alpha_HW: Alpha
    """How much of it shows; 0 where nothing was touched."""
    cut: bool = False
    """True: parts of it may look as they did before, and the mask must be cut to what does not."""
    donor: int | None = None


class Box(NamedTuple):
    """left, top, width, height in whole pixels."""

    left: int
    top: int
    width: int
    height: int

    @property
    def slices(self) -> tuple[slice, slice]:
        """Rows and columns."""
        return np.s_[self.top : self.top + self.height, self.left : self.left + self.width]


def box(mask_HW: Mask) -> Box:
    """Around what is not 0."""
    return Box(*cv2.boundingRect(mask_HW))


def curve(rng: Rng) -> Outline:
    """A closed curve [96, 2] around the origin: a wobbling blob, an ellipse or a rounded box."""
    angle = np.linspace(0, 2 * math.pi, 96, endpoint=False)
    shape = rng.choice(["blob", "ellipse", "box"], p=[0.6, 0.2, 0.2])
    radius = np.ones_like(angle)
    if shape == "blob":
        for wave in range(2, 7):
            radius += rng.uniform(0, 0.45 / wave) * np.cos(wave * angle + rng.uniform(0, 2 * math.pi))
    elif shape == "box":
        radius = (np.abs(np.cos(angle)) ** 8 + np.abs(np.sin(angle)) ** 8) ** (-1 / 8)
    stretch = math.exp(rng.uniform(-0.6, 0.6))
    points = np.c_[np.cos(angle) * stretch, np.sin(angle)] * np.maximum(radius, 0.3)[:, None]
    turn = rng.uniform(0, math.pi) if shape != "box" else rng.normal(0, 0.15)
    return np.asarray(points @ _rotation(turn).T)


def polygon(rng: Rng) -> Outline:
    """A closed polygon [5 to 9, 2] around the origin, as one cuts with straight clicks."""
    corners = int(rng.integers(5, 10))
    angle = (np.arange(corners) + rng.uniform(-0.35, 0.35, corners)) * (2 * math.pi / corners)
    radius = rng.uniform(0.6, 1.25, corners)
    stretch = math.exp(rng.uniform(-0.5, 0.5))
    points = np.c_[np.cos(angle) * stretch, np.sin(angle)] * radius[:, None]
    return np.asarray(points @ _rotation(rng.uniform(0, math.pi)).T)


def _rotation(turn: float) -> Outline:
    return np.array([[math.cos(turn), -math.sin(turn)], [math.sin(turn), math.cos(turn)]])


def region(rgb_HWC: Picture, share: float, rng: Rng, outline: Outline | None = None) -> Mask:
    """A mask covering ``share`` of the picture, wholly inside it, of the shape of ``outline`` (a curve if None)."""
    height, width = rgb_HWC.shape[:2]
    points = (curve(rng) if outline is None else outline).astype(np.float32)
    area = max(share * height * width, AREA_PX_MIN)
    points *= math.sqrt(area / cv2.contourArea(points))
    extent = np.ptp(points, 0)
    points *= min(1.0, float(SIDE_SHARE_MAX * min(width / extent[0], height / extent[1])))
    low, high = points.min(0), points.max(0)
    shift = rng.uniform(-low, np.array([width - 1, height - 1]) - high)
    mask = np.zeros((height, width), np.uint8)
    cv2.fillPoly(mask, [np.rint(points + shift).astype(np.int32)], 255)
    return mask


def feathered(mask_HW: Mask, rng: Rng) -> Alpha:
    """0 outside the mask, rising to 1 inside it within a few pixels: edits are seldom cut with a knife."""
    return ramp(mask_HW, float(rng.integers(1, FEATHER_PX_MAX + 1)))


def ramp(mask_HW: Mask, width_px: float) -> Alpha:
    """0 outside the mask, rising to 1 within ``width_px`` inside it."""
    return np.asarray(np.minimum(cv2.distanceTransform(mask_HW, cv2.DIST_L2, 3) / width_px, 1), np.float32)


def solid(mask_HW: Mask) -> Alpha:
    """1 inside the mask, 0 outside."""
    return np.asarray(mask_HW > 0, np.float32)
