"""The fit of the objects' embedding: which directions of a crop's features survive when an object is pasted elsewhere.

    stemma train objects --data DIR --further FOLDER --processes 2       objects.safetensors and objects.json

Pairs are an object in its own photograph and the same object pasted into another scene, flipped, rescaled,
recompressed, in boxes that miss it as a detector does. Objects are those that people outlined on the 501
training photographs, and rounded windows where YOLOX-nano or our own detector draws a box, there and on the photographs
of a folder of one's own. Seeded; the same to the bit however many processes share it.

Shape letters: N objects; P pastes; C features of a crop; D embedding (256).
"""

from __future__ import annotations

import dataclasses
import multiprocessing
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import torch
from numpy.typing import NDArray

from stemma.config import ObjectSettings
from stemma.flow import OBJECT_DIM
from stemma.networks import weights as weights_files
from stemma.networks.detector import Detector, overlaps, regions
from stemma.networks.encoder import SIZES, EncoderNetwork, Projection, fill, quantise
from stemma.networks.objects import STARTER_FEATURES, ObjectEncoder, mirrored_boxes
from stemma.vision.geometry import Picture
from training import data as data_files
from training import fit, gather, labelling, splices, split
from training.data import Photographs
from training.splices import CutOut, Splice

BoxesOf = Callable[[Picture], NDArray[np.float32]]
"""Boxes [O, 4] of a picture, in its pixels."""

COMMAND = "stemma train objects --data DIR"
SEED = 20261124
PASTES = 2
YOLOX_WINDOWS, DETECTED_WINDOWS = 6, 12
"""Of one photograph, at most. The fit tells what pasting does from what it does to these few things alone by their
number: with 716 objects the donor of 79 splices came first in .59, among 20 in .73, with 2,585 in .62 and .79."""
YOLOX_SCORE_MIN = 0.2
FURTHER_WINDOWS = 1, 2
"""The same of each photograph of one's own: there are many, and an object takes a tenth of a second."""
CHUNK = 8
"""Objects that a process is given at a time."""
PART = 8_192
"""Rows of features that are held as doubles at a time."""
WINDOW_IOU_MAX = 0.5
"""Two windows of a photograph that overlap by more are one."""
WINDOW_POINTS = 40
MISSES = (0.1, 0.25, 0.4)
"""How far each side of a pasted object's box is moved, as a share of its size, at most: one crop of a paste for each.
Detectors miss by that much."""
HOME_MISS = 0.2
"""The same of the second crop of an object at home."""
BACKGROUND_PHOTOGRAPHS = 160
"""Whose boxes hits are damped by, besides the objects at home: boxes of one look, skies and parts of things too.
Of 79 splices .43 instead of .33 then had the donor first before anything was verified."""
BACKGROUND_BOXES = 8
BACKGROUND_OBJECTS = 5_000
"""Objects at home that the background holds, at most: a query is compared with all of it."""
WHAT = (
    "Crops of an object at 128 px, a little of its edges cut off, through the encoder's EfficientNet-Lite0: GeM of its "
    "1280 features and its stride-16 map in 4 x 4 parts, each of length 1, side by side; centred, PCA to 256 in the "
    "metric of what pasting and boxes that miss do to them, L2; int8 with one scale. In closed form, nothing trained."
)
DATA = (
    "photos/train of the development data, the 501 photographs of training/split.json{further}: objects outlined by "
    "people (COCO 2017 annotations) or boxed by YOLOX-nano or by this version's detector, pasted into others of them. "
    "No photograph is part of this file."
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


def windows(
    folder: Path, photographs: Photographs, names: Sequence[str], detected_of: BoxesOf, of_further: int = 0
) -> list[CutOut]:
    """Windows where YOLOX-nano or the detector draws a box, on each thing that people did not annotate once; of the
    last ``of_further`` photographs few of each."""
    known, labeller = splices.annotated(folder), labelling.Yolox(folder)
    made: list[CutOut] = []
    for place, name in enumerate(names):
        picture, further = photographs[place], place >= len(names) - of_further
        yolox, detected = FURTHER_WINDOWS if further else (YOLOX_WINDOWS, DETECTED_WINDOWS)
        drawn = [labeller.boxes(picture, YOLOX_SCORE_MIN)[:yolox], detected_of(picture)[:detected]]
        taken_O4 = np.array(known[name][1] if name in known else [], np.float32).reshape(-1, 4)
        for box_4 in np.concatenate(drawn):
            width, height = (box_4[2:] - box_4[:2]).tolist()
            usable = min(width, height) > splices.OBJECT_SIDE_PX_MIN
            usable &= width * height < splices.OBJECT_SHARE_MAX * picture.shape[0] * picture.shape[1]
            if usable and overlaps(box_4[None], taken_O4).max(initial=0.0) <= WINDOW_IOU_MAX:
                taken_O4 = np.concatenate([taken_O4, box_4[None]])
                made.append(window(name, box_4.tolist()))
        said(place, len(names), "photographs looked at")
    return made


def seen(made: Splice, rng: np.random.Generator) -> tuple[Picture, NDArray[np.float32]]:
    """(the splice, turned back where the object was mirrored; boxes of it [3, 4], missed a little and more)."""
    box_N4 = np.concatenate([missed(made.box, share, rng) for share in MISSES])
    if not made.mirrored:
        return made.rgb_HWC, box_N4
    return np.ascontiguousarray(made.rgb_HWC[:, ::-1]), mirrored_boxes(box_N4, made.rgb_HWC.shape[1])


def missed(box: Sequence[float], share: float, rng: np.random.Generator) -> NDArray[np.float32]:
    """The box [1, 4], each of its sides moved by at most ``share`` of its size."""
    x0, y0, x1, y1 = box
    moved_4 = np.array(box) + rng.uniform(-share, share, 4) * np.array([x1 - x0, y1 - y0] * 2)
    return np.asarray(moved_4[None], np.float32)


@dataclass(frozen=True, slots=True, kw_only=True)
class Pairs:
    """What is pasted where. A child process makes ``encoder`` and ``photographs`` anew, from their folders."""

    weights: Path
    photos: Path
    names: tuple[str, ...]
    cuts: tuple[CutOut, ...]

    def made(self, processes: int) -> tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.intp]]:
        """(features of the objects at home [N, C], of crops that miss them and of pasted ones [P, C], which object each
        of those shows [P]), however many processes make them."""
        home, away = [], []
        spawn = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(processes, spawn, initializer=_become, initargs=(self,)) as pool:
            for number, (home_1C, away_KC) in enumerate(pool.map(_pair, range(len(self.cuts)), chunksize=CHUNK)):
                home.append(home_1C)
                away.append(away_KC)
                said(number, len(self.cuts), "objects")
        owner_P = np.repeat(np.arange(len(home)), [len(rows) for rows in away])
        return np.concatenate(home), np.concatenate(away), owner_P


_MAKER: list[tuple[Pairs, ObjectEncoder, Photographs, dict[str, int]]] = []


def _become(source: Pairs) -> None:
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    places = {name: place for place, name in enumerate(source.names)}
    _MAKER[:] = [(source, blank_encoder(source.weights), Photographs(source.photos, source.names), places)]


def _pair(number: int) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Features of one object at home [1, C], and of the crops that miss it or show it pasted [K, C]."""
    source, encoder, photographs, places = _MAKER[0]
    cut = source.cuts[number]
    donor_HWC = photographs[places[cut.name]]
    rng = np.random.default_rng([SEED, 2, number])
    both_NC = encoder.features(
        donor_HWC, np.concatenate([np.array([cut.box], np.float32), missed(cut.box, HOME_MISS, rng)])
    )
    away = [both_NC[1:]]
    for paste in range(PASTES):
        rng = np.random.default_rng([SEED, 1, number, paste])
        host = int(rng.integers(len(source.names) - 1))
        host += host >= places[cut.name]
        away.append(encoder.features(*seen(splices.splice(photographs[host], donor_HWC, cut, rng), rng)))
    return both_NC[:1], np.concatenate(away)


def said(number: int, count: int, what: str) -> None:
    """A line every hundred: the fit takes minutes."""
    if number % 100 == 99 or number == count - 1:
        print(f"{number + 1} of {count} {what}", flush=True)


def boxed(
    encoder: ObjectEncoder, photographs: Photographs, rows: Sequence[int], boxes_of: BoxesOf
) -> NDArray[np.float32]:
    """Features [N, C] of what is stored of some photographs: their boxes and the whole of each."""
    made = []
    for number, row in enumerate(rows):
        picture = photographs[row]
        whole_14 = np.array([[0, 0, picture.shape[1], picture.shape[0]]], np.float32)
        made.append(encoder.features(picture, np.concatenate([boxes_of(picture), whole_14])))
        said(number, len(rows), "photographs of the background")
    return np.concatenate(made)


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
    .45 / .70, of both parts .69 / .91, this of GeM alone .44 / .70, of both .84 / .95. By covariances: the rows are
    thousands, and their singular vectors take minutes.
    """
    rows = len(home_NC) + len(away_PC)
    mean_C = (home_NC.sum(0, dtype=np.float64) + away_PC.sum(0, dtype=np.float64)) / rows
    noise_CC, spread_CC = (np.zeros((len(mean_C), len(mean_C))) for _ in range(2))
    # in parts: a hundred thousand rows of doubles are gigabytes
    for first in range(0, rows, PART):
        part = slice(first, first + PART)
        moved_PC = away_PC[part].astype(np.float64) - home_NC[owner_P[part]]
        noise_CC += moved_PC.T @ moved_PC
        for every_NC in (home_NC[part], away_PC[part]):
            about_NC = every_NC - mean_C
            spread_CC += about_NC.T @ about_NC
    noise_CC /= len(away_PC)
    noise_CC += fit.NOISE_FLOOR * np.trace(noise_CC) / len(noise_CC) * np.eye(len(noise_CC))
    root_CC = np.linalg.cholesky(noise_CC)
    spread_CC = np.linalg.solve(root_CC, np.linalg.solve(root_CC, spread_CC).T)
    _, directions_CD = np.linalg.eigh((spread_CC + spread_CC.T) / 2)
    components_DC = np.linalg.solve(root_CC.T, directions_CD[:, ::-1][:, :dims]).T
    largest_D = np.abs(components_DC).argmax(1)
    return mean_C, components_DC * np.sign(components_DC[np.arange(len(components_DC)), largest_D])[:, None]


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


def detected(out: Path) -> BoxesOf:
    """What the detector of the weights in ``out`` sees, the most telling first."""
    detector = Detector.load(ObjectSettings(weights=str(out)))
    return lambda picture: regions(picture, detector, DETECTED_WINDOWS)[0][:DETECTED_WINDOWS]


def fit_objects(
    folder: Path, out: Path, further: Path | None = None, *, processes: int = 1
) -> weights_files.ObjectsCard:
    """Fit the projection, on the 501 and the photographs of a folder of one's own; writes both files into ``out``, with
    the background against which hits are damped (``splice.hubness``).

    Raises ``ValueError`` where the data lacks what it needs, ``NotFound`` for a folder without photographs.
    """
    own = split.load().train
    more = data_files.gathered_photographs(further, folder) if further is not None else ()
    names, boxes_of = (*own, *more), detected(out)
    photos, encoder = folder / "photos" / "train", blank_encoder(out)
    photographs = Photographs(photos, names)
    cuts = (*splices.cut_outs(folder, set(own)), *windows(folder, photographs, names, boxes_of, len(more)))
    home_NC, away_PC, owner_P = Pairs(weights=out, photos=photos, names=names, cuts=cuts).made(processes)
    mean_C, components_DC = surviving_components(home_NC, away_PC, owner_P)
    # a share of the pastes tells the scale as well
    some_NC = np.concatenate([home_NC, away_PC[:: max(1, len(away_PC) // PART)]])
    unit = fit.projected(some_NC, mean_C, components_DC)
    tensors, scale = weights_files.narrow({"mean_C": mean_C, "components_DC": components_DC}), fit.int8_scale(unit)
    rows = np.random.default_rng([SEED, 3]).permutation(len(own))[:BACKGROUND_PHOTOGRAPHS].tolist()
    boxed_NC = boxed(encoder, photographs, rows, lambda picture: boxes_of(picture)[:BACKGROUND_BOXES])
    at_home_ND = unit[: len(home_NC) : -(-len(home_NC) // BACKGROUND_OBJECTS)]
    background_ND = np.concatenate([at_home_ND, fit.projected(boxed_NC, mean_C, components_DC)])
    tensors["background_ND"] = quantise(background_ND.astype(np.float32), scale)
    digest = weights_files.write_objects(out, tensors)
    card = dataclasses.replace(
        encoder.card,
        digest=digest,
        scale=scale,
        what=WHAT,
        data=DATA.format(further=gather.told(further)),
        command=COMMAND if further is None else f"{COMMAND} --further FOLDER",
        seed=SEED,
        licences=(*LICENCES, *gather.licences(further)),
        limits=LIMITS,
    )
    weights_files.write_card(out, card)
    return card
