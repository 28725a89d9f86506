"""Golden descriptors, comparisons and objects: what the shipped weights said of drawn pictures when they were released.

``golden.json`` lies beside the cards. Before weights take traffic, and in a test, it is computed again: a difference
means another preprocessing, network or build of a library, and stored descriptors or fitted thresholds would no longer
mean what they did. The pictures are drawn here by whole-number arithmetic, so that no photograph ships.

    stemma weights golden       makes the file; run it when weights were replaced on purpose

Shape letters: H, W rows and columns; R, C those of a heatmap.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stemma.errors import Corrupt
from stemma.flow import Judged, Pairing, Pixels
from stemma.networks import weights
from stemma.networks.comparing import Comparator
from stemma.networks.detector import Detector
from stemma.networks.encoder import Encoder
from stemma.networks.objects import ObjectEncoder
from stemma.vision.decode import working_copy
from stemma.vision.geometry import Picture

FILE = "golden.json"
WIDTH_PX, HEIGHT_PX = 256, 192
PHASES = 2
EVERY_CELL = 28
"""Of 196 cells every 28th is kept."""
LEVELS_OFF_MAX, LEVELS_OFF_MEAN_MAX = 2, 0.1
"""Another processor's kernels may round a few components to the neighbouring level, and no more."""
LOGIT_OFF_MAX = 0.1
HEAT_OFF_MEAN_MAX = 0.02
HEAT_BLOCK = 7
LEFT_PX, TOP_PX = 24, 16
"""What the comparisons' queries lack of the original on each side."""

OBJECT_BOXES = np.array([[20, 10, 110, 100], [120, 60, 240, 180]], np.float32)
"""What is embedded of every picture, beside the whole of it: fixed, so that no detector decides on it."""
DETECTED = 2
"""Boxes kept of a picture, the surest: of the others two may change places."""
DETECTED_AMONG = 8
BOX_OFF_MAX_PX = 2.0
SCORE_OFF_MAX = 0.03

Places = NDArray[np.int64]


def picture(phase: int) -> Picture:
    """uint8 [192, 256, 3]: waves, tiles and discs; other phases share nothing but the style."""
    y, x = np.mgrid[:HEIGHT_PX, :WIDTH_PX]
    down, right = (2, 3) if phase % 2 == 0 else (-7, 1)
    wave = [_triangle(x * (right + c) + y * down + 57 * c, 150 + 90 * phase) for c in range(3)]
    across = _triangle((2 - 5 * phase) * x - (3 - 4 * phase) * y, 210 + 50 * phase)
    tiles = ((x // (24 + 9 * phase)) * 7 + (y // (20 + 7 * phase)) * 13 + phase * 5) % 11 * 20
    channels = [(2 * wave[c] + 2 * across + tiles) // 5 for c in range(3)]
    for number in range(5):
        centre_x, centre_y = (37 + 71 * number + 90 * phase) % WIDTH_PX, (29 + 53 * number + 40 * phase) % HEIGHT_PX
        disc = (x - centre_x) ** 2 + (y - centre_y) ** 2 < (12 + 5 * number) ** 2
        channels = [np.where(disc, (40 + 60 * number + 70 * c) % 256, one) for c, one in enumerate(channels)]
    return np.stack(channels, -1).astype(np.uint8)


def _triangle(value: Places, period: int) -> Places:
    """0..255 and back, ``period`` long."""
    return np.asarray(np.abs(2 * (value % period) - period) * 255 // period, np.int64)


def comparisons() -> tuple[tuple[Picture, Pairing], ...]:
    """A benign query, an edited one, an edited mirrored one, and a stranger, each with the original it is asked of."""
    original_HWC = picture(0)
    body = working_copy(Pixels(rgb_HWC=original_HWC, width=WIDTH_PX, height=HEIGHT_PX, sha256="0" * 64, format="JPEG"))
    cut_HWC = original_HWC[TOP_PX:-TOP_PX, LEFT_PX:-LEFT_PX]
    # darker and flatter as a whole, which is benign
    graded_HWC = (cut_HWC.astype(np.int64) * 3 // 4 + 30).astype(np.uint8)
    edited_HWC = graded_HWC.copy()
    edited_HWC[50:82, 130:170] = picture(1)[10:42, 60:100]
    share_x, share_y = 1 - 2 * LEFT_PX / WIDTH_PX, 1 - 2 * TOP_PX / HEIGHT_PX
    affine = (share_x, 0.0, LEFT_PX / WIDTH_PX, 0.0, share_y, TOP_PX / HEIGHT_PX)
    found = Pairing(original=body, affine=affine)
    turned = Pairing(original=body, affine=affine, mirrored=True)
    mirrored_HWC = np.ascontiguousarray(edited_HWC[:, ::-1])
    return (
        (graded_HWC, found),
        (edited_HWC, found),
        (mirrored_HWC, turned),
        (picture(1), Pairing(original=body)),
    )


@dataclass(frozen=True, slots=True)
class Finders:
    """What finds and embeds objects, and what its objects are known by (``weights.objects_digest``)."""

    detector: Detector
    encoder: ObjectEncoder
    weights: str


def make(folder: Path, encoder: Encoder | None, comparator: Comparator | None, finders: Finders | None = None) -> Path:
    """Write ``golden.json`` for the networks that ``folder`` has, loaded from there."""
    said: dict[str, Any] = {}
    if encoder is not None:
        said |= {"encoder": encoder.card.digest, "descriptors": [_described(encoder, n) for n in range(PHASES)]}
    if comparator is not None:
        said |= {"comparator": comparator.card.digest, "comparisons": [_shown(one) for one in _judged(comparator)]}
    if finders is not None:
        said |= {"objects": finders.weights, "found": [_found(finders, n) for n in range(PHASES)]}
    path = folder / FILE
    path.write_text(json.dumps(said) + "\n", encoding="utf-8")
    return path


def check_encoder(encoder: Encoder, folder: str | Path | None = None) -> bool:
    """Recompute the golden descriptors; False where the folder brings none. Raises ``Corrupt`` where they differ."""
    golden = _golden(folder)
    if "encoder" not in golden:
        return False
    _same_weights(golden["encoder"], encoder.card.digest, folder)
    for number, kept in enumerate(golden["descriptors"]):
        for name, values in _described(encoder, number).items():
            _same_levels(values, kept[name], f"golden picture {number}: {name}", encoder.card.name)
    return True


def check_objects(finders: Finders, folder: str | Path | None = None) -> bool:
    """Recompute the golden objects; False where the folder brings none. Raises ``Corrupt`` where they differ."""
    golden = _golden(folder)
    if "objects" not in golden:
        return False
    _same_weights(golden["objects"], finders.weights, folder)
    for number, kept in enumerate(golden["found"]):
        made, subject = _found(finders, number, DETECTED_AMONG), finders.encoder.card.name
        _same_levels(made["embedding"], kept["embedding"], f"golden picture {number}: objects", subject)
        boxes_O4, score_O = np.array(made["boxes"]).reshape(-1, 4), np.array(made["scores"])
        for box, score in zip(kept["boxes"], kept["scores"], strict=True):
            box_off_O, score_off_O = np.abs(boxes_O4 - box).max(1, initial=0), np.abs(score_O - score)
            if not ((box_off_O <= BOX_OFF_MAX_PX) & (score_off_O <= SCORE_OFF_MAX)).any():
                raise Corrupt(
                    f"golden picture {number}: the released detector saw an object at {box}, score {score:.3f}, and "
                    "this one does not; stored objects would no longer be what a query looks for",
                    subject=subject,
                )
    return True


def _same_levels(made: list[int], kept: list[int], what: str, subject: str) -> None:
    off = np.abs(np.array(made) - np.array(kept))
    if off.max() > LEVELS_OFF_MAX or off.mean() > LEVELS_OFF_MEAN_MAX:
        raise Corrupt(
            f"{what} differ from the released ones by up to {off.max()} levels, {off.mean():.2f} on average; stored "
            "descriptors would no longer fit",
            subject=subject,
        )


def check_comparator(comparator: Comparator, folder: str | Path | None = None) -> bool:
    """Recompute the golden comparisons; False where the folder brings none. Raises ``Corrupt`` where they differ."""
    golden = _golden(folder)
    if "comparator" not in golden:
        return False
    _same_weights(golden["comparator"], comparator.card.digest, folder)
    for number, (kept, judged) in enumerate(zip(golden["comparisons"], _judged(comparator), strict=True)):
        made = _shown(judged)
        logit = np.abs(np.array(made["logits"]) - np.array(kept["logits"])).max()
        heat = np.abs(np.array(made["heat"]) - np.array(kept["heat"])).mean()
        if logit > LOGIT_OFF_MAX or heat > HEAT_OFF_MEAN_MAX:
            raise Corrupt(
                f"golden comparison {number}: logits differ from the released ones by {logit:.3f}, the heatmap by "
                f"{heat:.3f} on average; fitted thresholds would no longer hold",
                subject=comparator.card.name,
            )
    return True


def _golden(folder: str | Path | None) -> dict[str, Any]:
    path = weights.resolve(folder) / FILE
    try:
        golden = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise Corrupt(f"{FILE} cannot be read: {error}; take the folder anew", subject=str(path)) from error
    if not isinstance(golden, dict):
        raise Corrupt(f"{FILE} is no object; take the folder anew", subject=str(path))
    return golden


def _same_weights(kept: str, digest: str, folder: str | Path | None) -> None:
    if kept != digest:
        raise Corrupt(
            f"{FILE} is of weights {kept[:12]}, these are {digest[:12]}; if they were replaced on purpose, "
            "stemma weights golden makes it anew",
            subject=str(weights.resolve(folder)),
        )


def _described(encoder: Encoder, phase: int) -> dict[str, list[int]]:
    made = encoder.encode(picture(phase), mirrored=False)
    assert made.cells_VNF is not None
    return {"embedding": made.embedding_VD[0].tolist(), "cells": made.cells_VNF[0, ::EVERY_CELL].ravel().tolist()}


def _found(finders: Finders, phase: int, most: int = DETECTED) -> dict[str, Any]:
    drawn_HWC = picture(phase)
    box_O4, score_O = finders.detector.detect(drawn_HWC, most)
    return {
        "embedding": finders.encoder.embed(drawn_HWC, OBJECT_BOXES).embedding_OD.ravel().tolist(),
        "boxes": [[round(float(edge), 1) for edge in box] for box in box_O4],
        "scores": [round(float(score), 4) for score in score_O],
    }


def _judged(comparator: Comparator) -> list[Judged]:
    return [
        judged for one in comparator.compare_batch([(query, [pair]) for query, pair in comparisons()]) for judged in one
    ]


def _shown(judged: Judged) -> dict[str, list[float]]:
    """Raw logits, so that a new temperature changes nothing here, and the heatmap in blocks of 7 x 7."""
    rows, columns = (side // HEAT_BLOCK * HEAT_BLOCK for side in judged.heatmap_RC.shape)
    heat_RC = judged.heatmap_RC[:rows, :columns].reshape(
        rows // HEAT_BLOCK, HEAT_BLOCK, columns // HEAT_BLOCK, HEAT_BLOCK
    )
    return {
        "logits": [round(logit, 4) for logit in judged.logits],
        "heat": [round(float(mean), 4) for mean in heat_RC.mean((1, 3)).ravel()],
    }
