"""A training run's detector as weights, with what it covers beside YOLOX-nano and the grid.

    python -m training.detector_weights --run FOLDER --data DIR [--out FOLDER]

Recall is the share of objects that some region covers at IoU .5, on photographs that were not trained on; they chose
among runs (docs/training.md). Regions are those that donors are searched by (``stemma.networks.detector``);
none finds more than the ceiling, which the first 24 of them and the grid cover together.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from torch import Tensor

from stemma.errors import BadRequest
from stemma.networks import detector as finders
from stemma.networks import weights as files
from stemma.networks.weights import DetectorCard
from stemma.vision.geometry import Picture
from training import detection, detector, export, gather, labelling, loop, splices, split
from training.recipe import TrainingConfig

WHAT = {
    "starter": "Faster R-CNN, one class, at 416 px: EfficientNet-Lite0 to its stage of 192 channels, a pyramid of two "
    "maps, averaged weights in float16 (stemma/networks/detector.py).",
    "paper": "Faster R-CNN ResNet50-FPN of torchvision, one class, averaged weights in float16.",
}
DATA = (
    "photos/train of the development data, the 501 of training/split.json, and 76 unedited pictures of tamper/train "
    "(COCO 2017) that are in no part of photos{further}: boxes of instances.json (COCO 2017) on 74 of them, of "
    "YOLOX-nano (Megvii, Apache-2.0) on the others, each as often as boxes of its score are right; mosaics of four, "
    "and objects of the 74 pasted into half of the pictures; run and checkpoint chosen by what they cover of "
    "photos/val and of the 200 calibration photographs."
)
LICENCES = (
    "network trunk: EfficientNet-Lite0, Apache-2.0",
    "trained on photographs under CC BY 2.0, CC BY-SA 2.0, no known copyright restrictions (COCO 2017, Open Images) "
    "and CC BY-SA 4.0 (CID22); boxes: COCO Consortium, CC BY 4.0",
)
LIMITS = ("Objects under about 5% of the picture's side are not looked for.",)
YOLOX_SCORE_MIN = 0.03
REGIONS = (8, 24)
SPLICES = 60
BoxesOf = Callable[[Picture], detection.Boxes]
Case = tuple[Picture, detection.Boxes]
"""A picture and the objects [T, 4] that are to be found in it."""


def write(run: Path, data: Path, out: Path) -> DetectorCard:
    """Write the detector of ``run`` (its best checkpoint, or one checkpoint) into ``out``.

    Raises ``NotFound`` where there is no checkpoint and ``BadRequest`` for a run of another network.
    """
    state = loop.load(export.checkpoint(run))
    config = TrainingConfig.model_validate(state["config"])
    if config.network != "detector":
        raise BadRequest(f"this is a run of the {config.network}, not of the detector", subject=str(run))
    size, tensors = config.detector.size, averaged(state)
    network = detector.build(config.detector)
    network.load_state_dict(tensors)
    card = DetectorCard(
        name=out.name,
        size=size,
        digest=files.write_detector(out, files.narrow({name: one.numpy() for name, one in tensors.items()})),
        what=WHAT[size],
        data=DATA.format(further=gather.told(config.detector.further)),
        command=(
            f"stemma train detector --data DIR{' --set detector.further=FOLDER' if config.detector.further else ''}, "
            f"{state['t']} steps of {config.detector.batch} pictures; "
            "python -m training.detector_weights --run RUN --data DIR"
        ),
        seed=config.detector.seed,
        licences=(*LICENCES, *gather.licences(config.detector.further)),
        limits=LIMITS,
        figures=recalls(detector.finder(network, size), data),
    )
    files.write_card(out, card)
    return card


def averaged(state: dict[str, Any]) -> dict[str, Tensor]:
    """The averaged tensors of a checkpoint, without torch's counters of batches."""
    tensors: dict[str, Tensor] = state["step"]["averaged"]
    return {name: one.cpu() for name, one in tensors.items()}


def recalls(finder: finders.Detector, data: Path) -> dict[str, Any]:
    """Share of objects covered, and how many there are: annotated ones of validation and calibration photographs, and
    those pasted from calibration photographs into others."""
    ways = drawn(finder, labelling.Yolox(data))
    known, calibrate = splices.annotated(data), split.load().calibrate
    theirs = sorted(name for name, (part, _) in known.items() if part == "val")
    ours = sorted(name for name in calibrate if name in known)
    pasted = detection.spliced(data, calibrate, "train", SPLICES)
    return {
        "validation": covered(ways, annotated(data, "val", theirs)),
        "calibration": covered(ways, annotated(data, "train", ours)),
        "pasted, calibration": covered(ways, [(one.rgb_HWC, np.array([one.box], np.float32)) for one in pasted]),
    }


def drawn(finder: finders.Detector, yolox: labelling.Yolox) -> dict[str, BoxesOf]:
    """The ways to draw boxes that are compared."""

    def regions(most: int) -> BoxesOf:
        return lambda picture: finders.regions(picture, finder, most)[0]

    def grid(picture: Picture) -> detection.Boxes:
        return finders.grid(picture.shape[1], picture.shape[0])

    few, many = REGIONS
    return {f"detector, {most} boxes": regions(most) for most in REGIONS} | {
        f"YOLOX-nano, {few} boxes": lambda picture: yolox.boxes(picture, YOLOX_SCORE_MIN)[:few],
        "grid": grid,
        f"ceiling: detector, {many} boxes, and grid": lambda picture: np.concatenate(
            [regions(many)(picture), grid(picture)]
        ),
    }


def annotated(data: Path, part: str, names: list[str]) -> Iterator[Case]:
    """The photographs ``names`` with the objects that people drew and donors are searched by."""
    source = detection.labelled(data, names, part)
    for place, boxes in enumerate(source.boxes):
        yield source.photographs[place], detection.wanted(boxes)


def covered(ways: dict[str, BoxesOf], cases: Iterable[Case]) -> dict[str, float]:
    """Recall of each way to draw boxes; ``objects`` is how many there were."""
    hits: dict[str, list[bool]] = {way: [] for way in ways}
    for rgb_HWC, truth_T4 in cases:
        for way, boxes_of in ways.items():
            hits[way] += detector.covered(truth_T4, boxes_of(rgb_HWC)).tolist()
    count = len(next(iter(hits.values()), []))
    return {way: round(float(np.mean(found)), 3) for way, found in hits.items() if found} | {"objects": float(count)}


def main() -> int:
    parser = argparse.ArgumentParser(description="Write a run's detector as weights, with its recall.")
    parser.add_argument("--run", type=Path, required=True)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, default=files.resolve(None))
    args = parser.parse_args()
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    card = write(args.run, args.data, args.out)
    print(f"{args.out}: detector {card.digest[:12]}, {card.figures}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
