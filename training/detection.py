"""What the detector is fed: photographs with boxes, varied, and what its validation is taken on.

Photographs come with the annotated objects of ``instances.json``, or with what YOLOX-nano draws on them
(``training.labelling``), which is not shipped, each time with the chance that a box is right. Mosaics of four, pasted
objects, crops, flips and tones vary them: a few hundred photographs are soon known by heart.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from stemma.vision import geometry
from stemma.vision.geometry import Picture
from training import data, labelling, splices, split
from training.data import Photographs

Boxes = NDArray[np.float32]
Sample = tuple[Picture, Boxes]
"""uint8 RGB [H, W, 3] and boxes [O, 4] in its pixels."""
Batch = list[Sample]

BOX_SIDE_PX_MIN = 18
"""Smaller ones, at the side that the network sees, are left out of the truth: no donor is searched by them."""
CROP_MIN = 0.55
CROP_KEPT_MIN = 0.5
"""An object that a crop leaves less of is no longer one."""
MOSAIC_SHARE, PASTE_SHARE, CROP_SHARE, MIRROR_SHARE, TONE_SHARE = 0.4, 0.5, 0.6, 0.5, 0.5
MOSAIC_CENTRE = (0.3, 0.7)
"""Where four pictures meet, as shares of the mosaic's sides."""
MOSAIC_SIDE_PX_MIN = 48
"""Of a window of a picture that is laid into a mosaic."""
PASTED_MAX = 3
"""Objects laid into one picture, at most."""
PASTED_AREA = (0.015, 0.3)
"""Share of the picture that each covers."""
GAIN_MAX, GAMMA_MAX = 0.12, 0.35
"""How far a channel's gain, and the logarithm of the gamma, are from none."""
SPLICE_SEED = 20261128


@dataclass(frozen=True, slots=True, kw_only=True)
class Labelled:
    """Photographs and the boxes of what is in them, in the same order."""

    photographs: Photographs
    boxes: tuple[Boxes, ...]
    annotated: tuple[bool, ...]
    """By people; the others by YOLOX-nano."""
    chances: tuple[NDArray[np.float64], ...]
    """Of each box, to be right: 1 for those of people."""
    pasted: tuple[splices.Splice, ...] = ()
    """Splices whose pasted object is to be found as well."""


def labelled(folder: Path, names: Sequence[str], part: str, *, score_min: float = labelling.SCORE_MIN) -> Labelled:
    """The photographs of a ``part`` (train, val) with boxes of people where there are any, else those that YOLOX-nano
    scores ``score_min`` or more."""
    return _labelled(folder, [f"photos/{part}/{name}" for name in names], score_min)


def _labelled(folder: Path, files: Sequence[str], score_min: float) -> Labelled:
    """As ``labelled``, of files anywhere in the development data."""
    known = splices.annotated(folder)
    photographs = Photographs(folder, files)
    labeller = labelling.Yolox(folder)
    boxes, chances, people = [], [], []
    for place, name in enumerate(Path(file).name for file in files):
        people.append(name in known)
        if people[-1]:
            boxes.append(np.array(known[name][1], np.float32).reshape(-1, 4))
            chances.append(np.ones(len(boxes[-1])))
        else:
            box_O4, score_O = labeller.scored(photographs[place], score_min)
            boxes.append(box_O4)
            chances.append(labelling.chance(score_O))
    return Labelled(photographs=photographs, boxes=tuple(boxes), annotated=tuple(people), chances=tuple(chances))


class DetectionData:
    """Numbered samples: each epoch visits every photograph once, in an order of its own."""

    def __init__(self, source: Labelled, cuts: Sequence[tuple[Picture, splices.CutOut]], *, seed: int, side_px: int):
        """``cuts`` are photographs with the objects that are cut out of them and pasted into others."""
        self._source, self._cuts, self._seed, self._side_px = source, tuple(cuts), seed, side_px

    def sample(self, n: int) -> Sample:
        count = len(self._source.photographs)
        epoch, place = divmod(n, count)
        index = int(np.random.default_rng([self._seed, 1, epoch]).permutation(count)[place])
        rng = np.random.default_rng([self._seed, 2, n])
        rgb_HWC, boxes_O4 = self._drawn(index, rng)
        if rng.random() < MOSAIC_SHARE:
            others = [self._drawn(int(other), rng) for other in rng.integers(count, size=3)]
            rgb_HWC, boxes_O4 = mosaic(((rgb_HWC, boxes_O4), *others), rng)
        if self._cuts and rng.random() < PASTE_SHARE:
            for _ in range(int(rng.integers(1, PASTED_MAX + 1))):
                rgb_HWC, boxes_O4 = self._pasted(rgb_HWC, boxes_O4, rng)
        if rng.random() < CROP_SHARE:
            rgb_HWC, boxes_O4 = cropped(rgb_HWC, boxes_O4, rng)
        if rng.random() < MIRROR_SHARE:
            rgb_HWC, boxes_O4 = mirrored(rgb_HWC, boxes_O4)
        if rng.random() < TONE_SHARE:
            rgb_HWC = toned(rgb_HWC, rng)
        return fitted(rgb_HWC, boxes_O4, self._side_px)

    def _drawn(self, index: int, rng: np.random.Generator) -> Sample:
        """A photograph and some of its boxes: on average over the epochs the network learns the chance of each, and
        ranks by it."""
        boxes_O4 = self._source.boxes[index]
        kept_O = rng.random(len(boxes_O4)) < self._source.chances[index]
        return self._source.photographs[index], boxes_O4[kept_O]

    def _pasted(self, rgb_HWC: Picture, boxes_O4: Boxes, rng: np.random.Generator) -> Sample:
        donor_HWC, cut = self._cuts[int(rng.integers(len(self._cuts)))]
        made = splices.splice(rgb_HWC, donor_HWC, cut, rng, area=PASTED_AREA)
        return made.rgb_HWC, with_pasted(made, rgb_HWC, boxes_O4)

    def collate(self, samples: Sequence[Sample]) -> Batch:
        return list(samples)

    def numbers(self, step: int, *, batch: int, rank: int, world: int) -> list[int]:
        return data.numbers(step, batch=batch, rank=rank, world=world)


def training_data(folder: Path, *, seed: int, side_px: int, further: Path | None = None) -> DetectionData:
    """The photographs that may be trained on, with their labels and what is pasted into them: the 501, the unedited
    pictures of ``tamper/train`` that are not among the photographs and whose licence is clear, and those of a folder
    of one's own, ``further``."""
    names = split.load().train
    files = [*(f"photos/train/{name}" for name in names), *data.further_photographs(folder)]
    if further is not None:
        files += data.gathered_photographs(further, folder)
    source = _labelled(folder, files, labelling.TEACHER_SCORE_MIN)
    places = {name: place for place, name in enumerate(names)}
    cuts = [(source.photographs[places[cut.name]], cut) for cut in splices.cut_outs(folder, places)]
    return DetectionData(source, cuts, seed=seed, side_px=side_px)


def with_pasted(made: splices.Splice, host_HWC: Picture, boxes_O4: Boxes) -> Boxes:
    """The host's boxes as they lie in the splice, and the pasted object's, which is last."""
    share = np.array(made.rgb_HWC.shape[1::-1]) / host_HWC.shape[1::-1]
    box_4 = np.array(made.box, np.float32)
    moved_O4 = boxes_O4 * np.tile(share, 2).astype(np.float32)
    # what the pasted object hides is not there any more
    kept_O4 = moved_O4[_inside_share(moved_O4, box_4) < CROP_KEPT_MIN]
    return np.concatenate([kept_O4, box_4[None]])


def validation_data(folder: Path) -> Labelled:
    """The 49 that choose checkpoints, and 49 splices of them, the same in every run."""
    names = sorted(path.name for path in (folder / "photos" / "val").glob("*.jpg"))
    return replace(labelled(folder, names, "val"), pasted=spliced(folder, names, "val", len(names)))


def spliced(
    folder: Path, names: Sequence[str], part: str, count: int, seed: int = SPLICE_SEED
) -> tuple[splices.Splice, ...]:
    """``count`` splices of the photographs ``names``: hosts in turn, cut-outs of other photographs than the host."""
    hosts, cuts = Photographs(folder / "photos" / part, names), splices.cut_outs(folder, names)
    places = {name: place for place, name in enumerate(names)}
    made = []
    for n in range(count):
        rng, host = np.random.default_rng([seed, n]), n % len(names)
        theirs = [cut for cut in cuts if cut.name != names[host]]
        cut = theirs[int(rng.integers(len(theirs)))]
        made.append(splices.splice(hosts[host], hosts[places[cut.name]], cut, rng))
    return tuple(made)


def cropped(rgb_HWC: Picture, boxes_O4: Boxes, rng: np.random.Generator) -> Sample:
    """A random window of the picture, and what it leaves of the boxes."""
    height, width = rgb_HWC.shape[:2]
    w, h = (max(64, int(size * rng.uniform(CROP_MIN, 1))) for size in (width, height))
    return _window(rgb_HWC, boxes_O4, (min(w, width), min(h, height)), rng)


def mosaic(samples: Sequence[Sample], rng: np.random.Generator) -> Sample:
    """Windows of four pictures, laid together into one as large as the first."""
    height, width = samples[0][0].shape[:2]
    middle_x, middle_y = (round(size * rng.uniform(*MOSAIC_CENTRE)) for size in (width, height))
    out_HWC, boxes = np.empty((height, width, 3), np.uint8), []
    corners = [(x, y) for y in ((0, middle_y), (middle_y, height)) for x in ((0, middle_x), (middle_x, width))]
    for ((x0, x1), (y0, y1)), (rgb_HWC, boxes_O4) in zip(corners, samples, strict=True):
        # the largest window of this shape that the picture has room for, or a smaller one
        fit = min(rgb_HWC.shape[1] / (x1 - x0), rgb_HWC.shape[0] / (y1 - y0)) * rng.uniform(CROP_MIN, 1)
        sides = (max(MOSAIC_SIDE_PX_MIN, int((x1 - x0) * fit)), max(MOSAIC_SIDE_PX_MIN, int((y1 - y0) * fit)))
        size = (min(sides[0], rgb_HWC.shape[1]), min(sides[1], rgb_HWC.shape[0]))
        piece_HWC, theirs_O4 = _window(rgb_HWC, boxes_O4, size, rng)
        out_HWC[y0:y1, x0:x1] = geometry.resize(piece_HWC, (x1 - x0, y1 - y0))
        share = np.array([x1 - x0, y1 - y0] * 2, np.float32) / np.array([*size, *size], np.float32)
        boxes.append(theirs_O4 * share + np.array([x0, y0, x0, y0], np.float32))
    return out_HWC, np.concatenate(boxes)


def _window(rgb_HWC: Picture, boxes_O4: Boxes, size: tuple[int, int], rng: np.random.Generator) -> Sample:
    """A window of this size somewhere in the picture, and what it leaves of the boxes."""
    (w, h), (height, width) = size, rgb_HWC.shape[:2]
    x, y = int(rng.integers(width - w + 1)), int(rng.integers(height - h + 1))
    kept = _inside_share(boxes_O4, np.array([x, y, x + w, y + h], np.float32)) >= CROP_KEPT_MIN
    moved_O4 = np.clip(boxes_O4[kept] - [x, y, x, y], 0, [w, h, w, h]).astype(np.float32)
    return np.ascontiguousarray(rgb_HWC[y : y + h, x : x + w]), moved_O4


def mirrored(rgb_HWC: Picture, boxes_O4: Boxes) -> Sample:
    """The mirror image, and its boxes."""
    width = rgb_HWC.shape[1]
    x0, y0, x1, y1 = boxes_O4.T
    return np.ascontiguousarray(rgb_HWC[:, ::-1]), np.stack([width - x1, y0, width - x0, y1], 1).astype(np.float32)


def toned(rgb_HWC: Picture, rng: np.random.Generator) -> Picture:
    """Another exposure and white balance."""
    gain_3, gamma = 1 + rng.uniform(-GAIN_MAX, GAIN_MAX, 3), np.exp(rng.uniform(-GAMMA_MAX, GAMMA_MAX))
    table_VC = 255 * np.linspace(0, 1, 256)[:, None] ** gamma * gain_3
    return np.asarray(cv2.LUT(rgb_HWC, np.clip(table_VC, 0, 255).astype(np.uint8)[None]), np.uint8)


def fitted(rgb_HWC: Picture, boxes_O4: Boxes, side_px: int) -> Sample:
    """At the longest side that the network sees; boxes that are too small there are dropped."""
    height, width = rgb_HWC.shape[:2]
    share = side_px / max(height, width)
    size = (max(1, round(width * share)), max(1, round(height * share)))
    moved_O4 = boxes_O4 * np.float32(share)
    large = (moved_O4[:, 2:] - moved_O4[:, :2]).min(1, initial=np.inf) >= BOX_SIDE_PX_MIN
    return geometry.resize(rgb_HWC, size), moved_O4[large]


def _inside_share(boxes_O4: Boxes, window_4: Boxes) -> NDArray[np.float32]:
    """Share of each box that lies in the window."""
    low = np.maximum(boxes_O4[:, :2], window_4[:2])
    high = np.minimum(boxes_O4[:, 2:], window_4[2:])
    area_O = np.prod(boxes_O4[:, 2:] - boxes_O4[:, :2], axis=1)
    return np.asarray(np.prod(np.clip(high - low, 0, None), axis=1) / np.maximum(area_O, 1e-6), np.float32)


def wanted(truth_T4: Boxes) -> Boxes:
    """The boxes of objects that donors are searched by: those that ``splices.cut_outs`` takes."""
    side_T2 = truth_T4[:, 2:] - truth_T4[:, :2]
    large_T = (side_T2.prod(1) > splices.OBJECT_AREA_PX_MIN) & (side_T2.min(1) > splices.OBJECT_SIDE_PX_MIN)
    return np.asarray(truth_T4[large_T], np.float32)
