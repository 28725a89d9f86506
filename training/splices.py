"""Rendered splices with known donors: an annotated object of one photograph, cut out and laid into another.

What finds donors is fitted and measured on these. Polygons come from ``photos/instances.json`` of the development data;
boxes are [x0, y0, x1, y1] in pixels, x to the right, y down, edges between pixels.
"""

from __future__ import annotations

import json
import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from stemma.errors import NotFound
from stemma.vision import geometry
from stemma.vision.geometry import Picture
from stemma.vision.regions import Rng

Box4 = tuple[float, float, float, float]

INSTANCES_FILE = "instances.json"
OBJECT_AREA_PX_MIN = 2_500
OBJECT_SIDE_PX_MIN = 32
OBJECT_SHARE_MAX = 0.5
"""Larger objects are the picture itself."""
AREA_MIN, AREA_MAX = 0.03, 0.25
"""Share of the host that a pasted object covers, log-uniform (docs/facts.md: objects over 3% of the picture)."""
MIRROR_SHARE = 0.2
TURN_SHARE = 0.25
TURN_DEGREES_MAX = 8.0
SIDE_SHARE_MAX = 0.92
MATCH_MAX = 0.6
"""How far the colours of a pasted object are drawn to those of the place, at most."""
RESIZE_MIN, RESIZE_MAX = 0.75, 1.3
QUALITY_MIN, QUALITY_MAX = 50, 92


@dataclass(frozen=True, slots=True, kw_only=True)
class CutOut:
    """One annotated object of a photograph."""

    name: str
    """File of the photograph."""
    split: str
    box: Box4
    polygons: tuple[tuple[float, ...], ...]
    """x0, y0, x1, y1, ... of each part, in pixels."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Splice:
    """A host with an object in it, and where it came from."""

    rgb_HWC: Picture
    mask_HW: Picture
    """255 where the object lies."""
    box: Box4
    """Around the object, in this picture."""
    donor_box: Box4
    """Around the object, in its own photograph."""
    mirrored: bool


def annotated(data: Path) -> dict[str, tuple[str, tuple[Box4, ...]]]:
    """Photograph's file name -> (split, boxes of all its annotated objects)."""
    found: dict[str, tuple[str, tuple[Box4, ...]]] = {}
    for name, split, note in _notes(data):
        boxes = found.get(name, (split, ()))[1]
        found[name] = (split, (*boxes, _box(note)))
    return found


def cut_outs(data: Path, names: Collection[str] | None = None) -> list[CutOut]:
    """The objects that can be cut out and recognised again: polygons, 32 px or more each way, at most half a picture.

    ``names`` keeps those of some photographs alone. Raises ``NotFound`` where there are no annotations.
    """
    sizes = {Path(image["file_name"]).name: image["width"] * image["height"] for image in _instances(data)["images"]}
    made = []
    for name, split, note in _notes(data):
        polygons, (x0, y0, x1, y1) = note.get("segmentation"), _box(note)
        area_px, side_px = (x1 - x0) * (y1 - y0), min(x1 - x0, y1 - y0)
        usable = area_px > OBJECT_AREA_PX_MIN and side_px > OBJECT_SIDE_PX_MIN
        if isinstance(polygons, list) and polygons and usable and area_px < OBJECT_SHARE_MAX * sizes[name]:
            parts = tuple(tuple(float(value) for value in part) for part in polygons)
            made.append(CutOut(name=name, split=split, box=(x0, y0, x1, y1), polygons=parts))
    return [one for one in made if names is None or one.name in names]


def _instances(data: Path) -> dict[str, Any]:
    path = data / "photos" / INSTANCES_FILE
    if not path.is_file():
        raise NotFound("there are no annotations here; give the development data with --data", subject=str(path))
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return found


def _notes(data: Path) -> list[tuple[str, str, dict[str, Any]]]:
    coco = _instances(data)
    images = {image["id"]: image for image in coco["images"]}
    owned = [(images[note["image_id"]], note) for note in coco["annotations"]]
    return [(Path(image["file_name"]).name, image["split"], note) for image, note in owned]


def _box(note: dict[str, Any]) -> Box4:
    x, y, width, height = note["bbox"]
    return (x, y, x + width, y + height)


def outline(cut: CutOut, size: tuple[int, int]) -> Picture:
    """[H, W] mask of a cut-out in its photograph of ``size`` (width, height): 255 inside."""
    mask_HW = np.zeros(size[::-1], np.uint8)
    for part in cut.polygons:
        cv2.fillPoly(mask_HW, [np.rint(np.array(part, np.float32).reshape(-1, 2)).astype(np.int32)], 255)
    return mask_HW


def splice(
    host_HWC: Picture, donor_HWC: Picture, cut: CutOut, rng: Rng, *, area: tuple[float, float] = (AREA_MIN, AREA_MAX)
) -> Splice:
    """The object laid into the host at a random place and size, softened, recoloured, and the whole recompressed.

    ``area`` are the limits of the share of the host that it covers. The same ``rng`` state gives the same bytes.
    """
    height, width = host_HWC.shape[:2]
    mask_HW = outline(cut, (donor_HWC.shape[1], donor_HWC.shape[0]))
    x, y, w, h = cv2.boundingRect(mask_HW)
    share = math.exp(rng.uniform(math.log(area[0]), math.log(area[1])))
    scale = math.sqrt(share * width * height / max(1, int(np.count_nonzero(mask_HW))))
    scale = min(scale, SIDE_SHARE_MAX * width / w, SIDE_SHARE_MAX * height / h)
    mirrored = bool(rng.random() < MIRROR_SHARE)
    turn = math.radians(rng.uniform(-TURN_DEGREES_MAX, TURN_DEGREES_MAX)) if rng.random() < TURN_SHARE else 0.0
    at = (rng.uniform(0, width - w * scale), rng.uniform(0, height - h * scale))
    # one map for pixels and mask: donor from host
    forward_33 = (
        geometry.translation(at[0] + w * scale / 2, at[1] + h * scale / 2)
        @ _turn(turn)
        @ geometry.scaling(-scale if mirrored else scale, scale)
        @ geometry.translation(-(x + w / 2), -(y + h / 2))
    )
    back_33 = geometry.inverse(forward_33)
    laid_HWC = _sampled(donor_HWC, back_33, (width, height), scale)
    there_HW = _sampled(mask_HW, back_33, (width, height), scale)
    alpha_HW1 = (cv2.GaussianBlur(there_HW, (0, 0), rng.uniform(0.5, 1.6)).astype(np.float32) / 255)[..., None]
    toned_HWC = _recoloured(laid_HWC, host_HWC, there_HW > 127, rng)
    out_HWC = np.clip(host_HWC * (1 - alpha_HW1) + toned_HWC * alpha_HW1, 0, 255).astype(np.uint8)
    return _posted(out_HWC, there_HW, (x, y, x + w, y + h), mirrored, rng)


def _turn(radians: float) -> geometry.Map33:
    cos, sin = math.cos(radians), math.sin(radians)
    return np.array([[cos, -sin, 0], [sin, cos, 0], [0, 0, 1]])


def _sampled(source: Picture, back_33: geometry.Map33, size: tuple[int, int], scale: float) -> Picture:
    """``source`` through the map; shrunk beforehand where the map shrinks, which samples points alone."""
    if scale >= 1:
        return geometry.warp(source, back_33, size)
    small = geometry.resize(source, (max(1, round(source.shape[1] * scale)), max(1, round(source.shape[0] * scale))))
    shrink = geometry.scaling(small.shape[1] / source.shape[1], small.shape[0] / source.shape[0])
    return geometry.warp(small, shrink @ back_33, size)


def _recoloured(laid_HWC: Picture, host_HWC: Picture, inside_HW: NDArray[np.bool_], rng: Rng) -> NDArray[np.float32]:
    laid = laid_HWC.astype(np.float32)
    if not inside_HW.any():
        return laid
    pull = rng.uniform(0, MATCH_MAX)
    ours_N3, theirs_N3 = host_HWC[inside_HW].astype(np.float32), laid[inside_HW]
    spread_3 = np.clip(ours_N3.std(0) / np.maximum(theirs_N3.std(0), 4), 0.6, 1.6)
    mean_3 = theirs_N3.mean(0)
    return np.asarray((laid - mean_3) * (1 + pull * (spread_3 - 1)) + mean_3 + pull * (ours_N3.mean(0) - mean_3))


def _posted(out_HWC: Picture, mask_HW: Picture, donor_box: Sequence[float], mirrored: bool, rng: Rng) -> Splice:
    """As it is passed on: resized and recompressed."""
    scale = rng.uniform(RESIZE_MIN, RESIZE_MAX)
    size = (max(64, round(out_HWC.shape[1] * scale)), max(64, round(out_HWC.shape[0] * scale)))
    out_HWC, mask_HW = geometry.resize(out_HWC, size), geometry.resize(mask_HW, size)
    quality = int(rng.integers(QUALITY_MIN, QUALITY_MAX + 1))
    _, body = cv2.imencode(".jpg", out_HWC[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, quality])
    decoded = np.asarray(cv2.imdecode(body, cv2.IMREAD_COLOR), np.uint8)[..., ::-1]
    mask_HW = np.where(mask_HW > 127, 255, 0).astype(np.uint8)
    x, y, w, h = cv2.boundingRect(mask_HW)
    box, theirs = (float(x), float(y), float(x + w), float(y + h)), tuple(float(value) for value in donor_box)
    assert len(theirs) == 4
    return Splice(rgb_HWC=np.ascontiguousarray(decoded), mask_HW=mask_HW, box=box, donor_box=theirs, mirrored=mirrored)
