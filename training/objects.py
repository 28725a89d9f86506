"""The fit of the objects' embedding: which directions of a crop's features survive when an object is pasted elsewhere.

    stemma train objects --data DIR        objects.safetensors and objects.json

Pairs are an object in its own photograph and the same object pasted into another scene, flipped, rescaled,
recompressed, in a box that misses it a little, as a detector does. Objects are those that people outlined on the 501
training photographs, and rounded windows where YOLOX-nano draws a box on the others. Seeded, one thread, a minute.

Shape letters: N objects; P pastes; C features of a crop; D embedding (256).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from stemma.flow import OBJECT_DIM
from stemma.networks import weights as weights_files
from stemma.networks.encoder import SIZES, EncoderNetwork, Projection, fill, quantise
from stemma.networks.objects import STARTER_FEATURES, ObjectEncoder, mirrored_boxes
from stemma.vision.geometry import Picture
from training import data as data_files
from training import fit, labelling, splices, split
from training.data import Photographs
from training.splices import CutOut, Splice

COMMAND = "stemma train objects --data DIR"
SEED = 20261124
PASTES = 2
WINDOWS_MAX = 500
WINDOWS_PER_PHOTOGRAPH = 2
WINDOW_POINTS = 40
JITTER_SHARE = 0.1
"""How far a side of a pasted object's box is moved, as a share of its size, at most."""
WHAT = (
    "Crops of an object at 128 px with a margin, through the encoder's EfficientNet-Lite0: GeM of its 1280 features "
    "and its stride-16 map in 4 x 4 parts, each of length 1, side by side; centred, PCA to 256 in the metric of what "
    "pasting does to them, L2; int8 with one scale. In closed form; nothing was trained."
)
DATA = (
    "photos/train of the development data: objects of the 501 photographs of training/split.json, outlined by people "
    "(COCO 2017 annotations) or boxed by YOLOX-nano, pasted into others of the 501. No photograph is part of this file."
)
LICENCES = (
    "network: EfficientNet-Lite0, Apache-2.0 (see card.json)",
    "fitted on photographs under CC BY 2.0, CC BY-SA 2.0, no known copyright restrictions (COCO 2017, Open Images) and "
    "CC BY-SA 4.0 (CID22); outlines: COCO Consortium, CC BY 4.0",
)
LIMITS = (
    "An object turned by more than about 10 degrees, or cut by a third, is mostly lost.",
    "Objects under 3% of the picture were not fitted on.",
)


def window(name: str, box: Sequence[float]) -> CutOut:
    """A rounded window in a box, as a cut-out: between an ellipse and a rectangle."""
    x0, y0, x1, y1 = (float(value) for value in box)
    angle = np.linspace(0, 2 * np.pi, WINDOW_POINTS, endpoint=False)
    unit_N2 = np.stack([np.cos(angle), np.sin(angle)], 1)
    points_N2 = np.sign(unit_N2) * np.abs(unit_N2) ** 0.6 * [(x1 - x0) / 2, (y1 - y0) / 2]
    points_N2 += [(x0 + x1) / 2, (y0 + y1) / 2]
    return CutOut(name=name, split="train", box=(x0, y0, x1, y1), polygons=(tuple(points_N2.ravel().tolist()),))


def windows(folder: Path, photographs: Photographs, names: Sequence[str], most: int = WINDOWS_MAX) -> list[CutOut]:
    """At most ``most`` windows, two a photograph, where YOLOX-nano draws boxes on what people did not annotate."""
    known, labeller = splices.annotated(folder), labelling.Yolox(folder)
    made: list[CutOut] = []
    for place in np.random.default_rng([SEED, 0]).permutation(len(names)).tolist():
        if len(made) >= most:
            break
        if names[place] not in known:
            boxes = labeller.boxes(photographs[place])[:WINDOWS_PER_PHOTOGRAPH]
            sides = boxes[:, 2:] - boxes[:, :2]
            large = sides.min(1, initial=np.inf) > splices.OBJECT_SIDE_PX_MIN
            made += [window(names[place], box) for box in boxes[large].tolist()]
    return made[:most]


def seen(made: Splice, rng: np.random.Generator) -> tuple[Picture, NDArray[np.float32]]:
    """(the splice, turned back where the object was mirrored; its box [1, 4], missed a little)."""
    x0, y0, x1, y1 = made.box
    sides = np.array([x1 - x0, y1 - y0] * 2)
    box_14 = (np.array(made.box) + rng.uniform(-JITTER_SHARE, JITTER_SHARE, 4) * sides).astype(np.float32)[None]
    if not made.mirrored:
        return made.rgb_HWC, box_14
    return np.ascontiguousarray(made.rgb_HWC[:, ::-1]), mirrored_boxes(box_14, made.rgb_HWC.shape[1])


def pairs(
    encoder: ObjectEncoder, photographs: Photographs, names: Sequence[str], cuts: Sequence[CutOut], pastes: int = PASTES
) -> tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.intp]]:
    """(features of the objects at home [N, C], pasted [P, C], which object each paste shows [P])."""
    places = {name: place for place, name in enumerate(names)}
    home, away, owner = [], [], []
    for number, cut in enumerate(cuts):
        donor_HWC = photographs[places[cut.name]]
        home.append(encoder.features(donor_HWC, np.array([cut.box], np.float32)))
        for paste in range(pastes):
            rng = np.random.default_rng([SEED, 1, number, paste])
            host = int(rng.integers(len(names) - 1))
            host += host >= places[cut.name]
            away.append(encoder.features(*seen(splices.splice(photographs[host], donor_HWC, cut, rng), rng)))
            owner.append(number)
    return np.concatenate(home), np.concatenate(away), np.array(owner, np.intp)


def whitened_components(
    x_NC: NDArray[np.float64], dims: int = OBJECT_DIM
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """(mean [C], components [dims, C]) of plain PCA whitening (OE-SIR 4.1): unit covariance on ``x_NC``."""
    mean_C, components_DC = fit.principal(x_NC, dims)
    deviation_D = ((x_NC - mean_C) @ components_DC.T).std(0)
    return mean_C, components_DC / np.maximum(deviation_D, 1e-12)[:, None]


def surviving_components(
    home_NC: NDArray[np.float32], away_PC: NDArray[np.float32], owner_P: NDArray[np.intp], dims: int = OBJECT_DIM
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """(mean [C], components [dims, C]) of PCA in the metric of what pasting moves.

    On other objects than it was fitted on (233 of 466 at home; first / among ten): plain whitening of GeM alone
    .45 / .70, of both parts .69 / .91, this of GeM alone .44 / .70, of both .84 / .95.
    """
    moved_PC = (away_PC - home_NC[owner_P]).astype(np.float64)
    every_NC = np.concatenate([home_NC, away_PC]).astype(np.float64)
    return fit.steady_components(every_NC, moved_PC.T @ moved_PC / len(moved_PC), dims)


def found_first(
    home_NC: NDArray[np.float32], away_PC: NDArray[np.float32], owner_P: NDArray[np.intp], projection: Projection
) -> dict[str, float]:
    """Share of pastes whose own object is the nearest, and among the ten nearest, of all objects at home."""
    with torch.inference_mode():
        home_ND, away_PD = (projection(torch.from_numpy(rows)).numpy() for rows in (home_NC, away_PC))
    near_PN = away_PD @ home_ND.T
    rank_P = (near_PN > near_PN[np.arange(len(near_PN)), owner_P][:, None]).sum(1)
    return {"first": float((rank_P < 1).mean()), "among_ten": float((rank_P < 10).mean()), "n": float(len(rank_P))}


def blank_encoder(out: Path | None = None) -> ObjectEncoder:
    """The trunk of the weights in ``out``, with a projection that is yet to be fitted."""
    card, tensors = weights_files.read_tensors(out)
    network = EncoderNetwork(SIZES[card.size])
    fill(network, tensors, subject=card.name)
    blank = weights_files.ObjectsCard(name=card.name, size=card.size, digest="", encoder=card.digest, scale=1.0)
    return ObjectEncoder(network, Projection(STARTER_FEATURES, OBJECT_DIM), blank, cells_scale=card.cells_scale)


def fit_objects(folder: Path, out: Path) -> weights_files.ObjectsCard:
    """Fit the projection; writes both files into ``out``, with the objects at home as the background against which hits
    are damped (``splice.hubness``). Raises ``ValueError`` where the data lacks what it needs."""
    encoder, names, photographs = blank_encoder(out), split.load().train, data_files.training_photographs(folder)
    cuts = [*splices.cut_outs(folder, set(names)), *windows(folder, photographs, names)]
    home_NC, away_PC, owner_P = pairs(encoder, photographs, names, cuts)
    mean_C, components_DC = surviving_components(home_NC, away_PC, owner_P)
    unit = fit.projected(np.concatenate([home_NC, away_PC]), mean_C, components_DC)
    tensors, scale = weights_files.narrow({"mean_C": mean_C, "components_DC": components_DC}), fit.int8_scale(unit)
    tensors["background_ND"] = quantise(unit[: len(home_NC)].astype(np.float32), scale)
    digest = weights_files.write_objects(out, tensors)
    card = dataclasses.replace(
        encoder.card,
        digest=digest,
        scale=scale,
        what=WHAT,
        data=DATA,
        command=COMMAND,
        seed=SEED,
        licences=LICENCES,
        limits=LIMITS,
    )
    weights_files.write_card(out, card)
    return card
