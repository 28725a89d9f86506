"""The benign suite of the Deep Image Comparator (section 4.1): changes that leave what a picture says alone.

Primary (resize by 0.5 to 1.5 and JPEG at quality 40 to 90, always both), then one of {in-place, out-place, both}, one
random transform of each chosen group. In-place are the families of ImageNet-C at severities 1 to 5; out-place are
padding, rotation, crop, flip, affine and perspective within the paper's limits. What the paper leaves open (fill
colour, warp strength, flip axis) is black, scale 0.9 to 1.1 with shear 5 degrees, and left-right.

Every step is a known plane map, so an output carries the exact way back (frames as in ``geometry``). In-place families
count as the identity; elastic is left out, because its affine part moves pixels by up to a fifth of the side.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import cv2
import numpy as np

from stemma.vision import geometry
from stemma.vision.corruptions import FAMILIES, corrupt
from stemma.vision.geometry import Map33, Picture, Size

Group = Literal["in", "out", "both"]
GROUPS: tuple[Group, ...] = get_args(Group)

RESIZE_MIN, RESIZE_MAX = 0.5, 1.5
JPEG_QUALITY_MIN, JPEG_QUALITY_MAX = 40, 90
PAD_SHARE_MAX = 0.1
ROTATION_DEGREES_MAX = 15.0
CROP_AREA = 0.9
SCALE_MIN, SCALE_MAX = 0.9, 1.1
SHEAR_DEGREES_MAX = 5.0
PERSPECTIVE_SHARE_MAX = 0.05
SIDE_PX_MIN = 32
"""The primary resize never takes a side below this (or below what it was): smaller pictures are refused at the door."""

IN_PLACE: tuple[str, ...] = tuple(name for name in FAMILIES if name != "elastic")


@dataclass(frozen=True, slots=True, kw_only=True)
class Rendered:
    """A benign version and how it came about."""

    rgb_HWC: Picture
    source_from_query_33: Map33
    """Pixels of ``rgb_HWC`` to pixels of the source."""
    mirrored: bool
    log: list[str]
    """One "name value" for each step, in order."""

    def carry(self, mask_HW: Picture) -> Picture:
        """A mask of the source in the frame of ``rgb_HWC``."""
        height, width = self.rgb_HWC.shape[:2]
        return geometry.carry_mask(mask_HW, self.source_from_query_33, (width, height))


def render(
    rgb_HWC: Picture,
    rng: np.random.Generator,
    *,
    groups: Sequence[Group] = GROUPS,
    in_place: Sequence[str] = IN_PLACE,
    out_place: Sequence[str] | None = None,
    severities: Sequence[int] = (1, 2, 3, 4, 5),
) -> Rendered:
    """One benign version of ``rgb_HWC`` uint8 [H, W, 3]; the same ``rng`` state gives the same bytes.

    ``groups``, ``in_place``, ``out_place`` and ``severities`` narrow the draw, for figures of one transform alone.
    """
    group = groups[int(rng.integers(len(groups)))]
    out, back, log = _primary(rgb_HWC, rng)
    if group in ("out", "both"):
        names = OUT_PLACE if out_place is None else out_place
        name = names[int(rng.integers(len(names)))]
        before = out
        out, step, said = _OUT_PLACE[name](before, rng)
        back = back @ step
        log.append(said)
    if group in ("in", "both"):
        name = in_place[int(rng.integers(len(in_place)))]
        severity = int(severities[int(rng.integers(len(severities)))])
        out = corrupt(out, name, severity, rng)
        log.append(f"{name} {severity}")
    return Rendered(rgb_HWC=out, source_from_query_33=back, mirrored=geometry.is_mirrored(back), log=log)


def _primary(rgb_HWC: Picture, rng: np.random.Generator) -> tuple[Picture, Map33, list[str]]:
    height, width = rgb_HWC.shape[:2]
    factor = max(float(rng.uniform(RESIZE_MIN, RESIZE_MAX)), min(1.0, SIDE_PX_MIN / min(width, height)))
    quality = int(rng.integers(JPEG_QUALITY_MIN, JPEG_QUALITY_MAX + 1))
    size = (max(1, round(width * factor)), max(1, round(height * factor)))
    out = jpeg_round_trip(geometry.resize(rgb_HWC, size), quality)
    return out, geometry.scaling(width / size[0], height / size[1]), [f"resize {factor:.3f}", f"jpeg {quality}"]


def jpeg_round_trip(rgb_HWC: Picture, quality: int) -> Picture:
    """What a baseline JPEG with 4:2:0 chroma leaves of a picture."""
    done, body = cv2.imencode(".jpg", rgb_HWC[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, quality])
    assert done
    return np.ascontiguousarray(np.asarray(cv2.imdecode(body, cv2.IMREAD_COLOR), np.uint8)[..., ::-1])


_Step = tuple[Picture, Map33, str]


def _pad(rgb_HWC: Picture, rng: np.random.Generator) -> _Step:
    height, width = rgb_HWC.shape[:2]
    shares = rng.uniform(0.0, PAD_SHARE_MAX, 4)
    left, right = int(shares[0] * width), int(shares[1] * width)
    top, bottom = int(shares[2] * height), int(shares[3] * height)
    out = np.zeros((height + top + bottom, width + left + right, 3), np.uint8)
    out[top : top + height, left : left + width] = rgb_HWC
    return out, geometry.translation(-left, -top), f"pad {left},{top},{right},{bottom}"


def _crop(rgb_HWC: Picture, rng: np.random.Generator) -> _Step:
    height, width = rgb_HWC.shape[:2]
    side = math.sqrt(CROP_AREA)
    inner_w, inner_h = max(1, round(width * side)), max(1, round(height * side))
    left, top = int(rng.integers(width - inner_w + 1)), int(rng.integers(height - inner_h + 1))
    out = np.ascontiguousarray(rgb_HWC[top : top + inner_h, left : left + inner_w])
    return out, geometry.translation(left, top), f"crop {left},{top},{inner_w},{inner_h}"


def _flip(rgb_HWC: Picture, rng: np.random.Generator) -> _Step:  # noqa: ARG001 - one signature for all
    return np.ascontiguousarray(rgb_HWC[:, ::-1]), geometry.mirror(rgb_HWC.shape[1]), "flip horizontal"


def _rotate(rgb_HWC: Picture, rng: np.random.Generator) -> _Step:
    degrees = float(rng.uniform(-ROTATION_DEGREES_MAX, ROTATION_DEGREES_MAX))
    return _centred(rgb_HWC, geometry.rotation(degrees), f"rotate {degrees:.2f}")


def _affine(rgb_HWC: Picture, rng: np.random.Generator) -> _Step:
    sx, sy = rng.uniform(SCALE_MIN, SCALE_MAX, 2)
    kx, ky = rng.uniform(-SHEAR_DEGREES_MAX, SHEAR_DEGREES_MAX, 2)
    inner = geometry.shear(kx, ky) @ geometry.scaling(sx, sy)
    return _centred(rgb_HWC, inner, f"affine {sx:.3f},{sy:.3f},{kx:.2f},{ky:.2f}")


def _perspective(rgb_HWC: Picture, rng: np.random.Generator) -> _Step:
    size = _size(rgb_HWC)
    corners_42 = np.array([[0, 0], [size[0], 0], [size[0], size[1]], [0, size[1]]], np.float64)
    moves_42 = rng.uniform(-PERSPECTIVE_SHARE_MAX, PERSPECTIVE_SHARE_MAX, (4, 2)) * size
    back = geometry.from_corners(corners_42, corners_42 + moves_42)
    return geometry.warp(rgb_HWC, back, size), back, f"perspective {np.abs(moves_42).max():.1f}"


def _centred(rgb_HWC: Picture, query_from_source: Map33, said: str) -> _Step:
    size = _size(rgb_HWC)
    back = geometry.inverse(geometry.about_centre(query_from_source, size))
    return geometry.warp(rgb_HWC, back, size), back, said


def _size(rgb_HWC: Picture) -> Size:
    return rgb_HWC.shape[1], rgb_HWC.shape[0]


_OUT_PLACE: dict[str, Callable[[Picture, np.random.Generator], _Step]] = {
    "pad": _pad,
    "rotate": _rotate,
    "crop": _crop,
    "flip": _flip,
    "affine": _affine,
    "perspective": _perspective,
}
OUT_PLACE: tuple[str, ...] = tuple(_OUT_PLACE)
