"""What a student keeps of its teacher: multiply-adds, parameters, and how often donors are found (OE-SIR Table 2).

    stemma evaluate students --data DIR [--run out/runs/student-s1 ...] [--json]

Queries are objects that people outlined on calibration photographs, pasted into others of them, with their true boxes;
the database is the calibration photographs, each with its own true boxes and the detector's regions, the host left out.
Teacher and students are pooled alike, in two ways: ``crops``, the mean of cubes over a crop's map, as the starter sees
objects, and ``one_pass``, ROIAlign on the map of the whole picture and the maximum over its bins (eq. 4). Each network
has a PCA whitening of its own, fitted on objects of the 501 training photographs.

Shape letters: O boxes of a picture; N objects; C features; D embedding (256); Q queries; I photographs.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from evaluation.metrics import share_of
from stemma.config import ObjectSettings
from stemma.errors import BadRequest, Conflict
from stemma.flow import OBJECT_DIM
from stemma.networks import objects, students
from stemma.networks.backbones import gem
from stemma.networks.detector import Detector, grid, regions
from stemma.networks.students import KINDS, PAPER, Frozen, Student
from stemma.vision.geometry import Picture
from training import loop, splices, split, student
from training.data import Photographs
from training.objects import whitened_components
from training.splices import CutOut
from training.student import StudentTraining

Boxes = NDArray[np.float32]
Rows = NDArray[np.float32]
Pictures = Iterable[tuple[int, Picture, Boxes]]
"""Numbered pictures with boxes; decoded as they are asked for."""

POOLINGS = ("crops", "one_pass")
TEACHER = "teacher"
SEED = 20261128
PASTES = 2
"""Queries of one object."""
FITTED_PHOTOGRAPHS = 150
"""Training photographs whose objects the whitenings are fitted on: those with outlined objects first."""
FITTED_REGIONS = 3
"""Regions of each of them beside its outlined objects."""
REGIONS = 8
"""Regions of a database picture (OE-SIR 4.1)."""
STRIDE_PX = 32
DEPTHS = (1, 10)
NORM_MIN = 1e-12
PUBLISHED = {
    "s1": {"multiply_adds": 1.49e9, "parameters": 8.02e6, "ROxf": 32.1, "RPar": 55.2},
    "s2": {"multiply_adds": 1.13e9, "parameters": 7.93e6, "ROxf": 43.3, "RPar": 56.3},
    "s3": {"multiply_adds": 1.13e9, "parameters": 7.93e6, "ROxf": 50.2, "RPar": 65.2},
    TEACHER: {"multiply_adds": 3.33e9, "parameters": 8.54e6, "ROxf": 53.4, "RPar": 69.7},
}
"""OE-SIR Table 2, mAP in percent. Its teacher's cost is that of ResNet50 through conv4_x: our ``guide``."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Trained:
    """Students with what they learned from, and where each stopped."""

    fixed: Frozen
    networks: dict[str, Student]
    steps: dict[str, int]
    scores: dict[str, dict[str, float]]
    """The best validation of each run: ``mse`` and the explained share of the teacher's variance."""


def student_runs(folder: Path = Path("out/runs")) -> list[Path]:
    """The runs of this machine that are called after a student."""
    return [folder / f"student-{kind}" for kind in KINDS if (folder / f"student-{kind}" / loop.BEST).exists()]


def trained(runs: Sequence[Path]) -> Trained:
    """The best weights of each run. Raises ``NotFound`` for a run without any, ``BadRequest`` for none at all, and
    ``Conflict`` where two runs are of the same student, or their teacher or detector is another one by now."""
    if not runs:
        raise BadRequest("there is no trained student; stemma train student makes one", subject="--run")
    states = [loop.load(folder / loop.BEST) for folder in runs]
    asked = [StudentTraining.model_validate(state["config"]["student"]) for state in states]
    fixed, digests = student.frozen(asked[0])
    made = Trained(fixed=fixed, networks={}, steps={}, scores={})
    for folder, state, settings in zip(runs, states, asked, strict=True):
        if state["step"]["digests"] != digests:
            raise Conflict("this student learned from other weights; train it anew", subject=str(folder))
        if settings.kind in made.networks:
            raise Conflict(f"there are two runs of {settings.kind}; give one of each", subject=str(folder))
        network = student.build(settings)
        network.load_state_dict(state["step"]["network"])
        made.networks[settings.kind], made.steps[settings.kind] = network.eval(), int(state["t"])
        best = [one for one in loop.log(folder) if "validation" in one and one["t"] == state["t"]]
        made.scores[settings.kind] = best[-1]["validation"]
    return made


class Pooled:
    """Features of objects, [O, C] by (pooling, network), of the teacher and every student at once."""

    def __init__(self, fixed: Frozen, networks: dict[str, Student]) -> None:
        self._fixed, self._networks = fixed, networks
        self.keys = [(pooling, name) for pooling in POOLINGS for name in (TEACHER, *networks)]

    def __call__(self, rgb_HWC: Picture, box_O4: Boxes) -> dict[tuple[str, str], Rows]:
        crops_OHWC = np.stack(
            [objects.crop(rgb_HWC, box, objects.CROP_SIDE_PX, objects.EMBEDDED_MARGIN) for box in box_O4]
        )
        made = {("crops", name): gem(map_OCHW) for name, map_OCHW in self._maps(crops_OHWC).items()}
        box_O4_t = torch.from_numpy(np.asarray(box_O4, np.float32))
        for name, map_1CHW in self._maps(rgb_HWC[None]).items():
            made["one_pass", name] = objects.roi_features(map_1CHW, box_O4_t, STRIDE_PX)
        return {key: features_OC.numpy() for key, features_OC in made.items()}

    @torch.inference_mode()
    def _maps(self, pictures_BHWC: Picture) -> dict[str, torch.Tensor]:
        image_B3HW = torch.from_numpy(np.ascontiguousarray(pictures_BHWC)).permute(0, 3, 1, 2).float()
        x_B3HW = self._fixed.normalised(image_B3HW)
        guidance = self._fixed.guidance(x_B3HW)
        said = {name: network(x_B3HW, guidance) for name, network in self._networks.items()}
        return {TEACHER: self._fixed.target(x_B3HW), **said}


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """Objects of many pictures: features by (pooling, network), and which picture each is of."""

    features: dict[tuple[str, str], Rows]
    owner_N: NDArray[np.intp]


def described(pooled: Pooled, pictures: Pictures) -> Asked:
    """Features of the boxes of numbered pictures."""
    parts = [(number, len(box_O4), pooled(picture, box_O4)) for number, picture, box_O4 in pictures if len(box_O4)]
    return Asked(
        features={key: np.concatenate([features[key] for _, _, features in parts]) for key in pooled.keys},
        owner_N=np.repeat([number for number, _, _ in parts], [count for _, count, _ in parts]).astype(np.intp),
    )


def to_fit(data: Path) -> Pictures:
    """Training photographs with outlined objects and drawn regions of each."""
    names, cuts = split.load().train, boxes_of(splices.cut_outs(data, split.load().train))
    ordered = sorted(names, key=lambda name: (name not in cuts, name))[:FITTED_PHOTOGRAPHS]
    photographs = Photographs(data / "photos" / "train", ordered)
    for number, name in enumerate(ordered):
        picture = photographs[number]
        drawn_O4 = grid(picture.shape[1], picture.shape[0])
        chosen = np.random.default_rng([SEED, 0, number]).choice(len(drawn_O4), FITTED_REGIONS, replace=False)
        yield number, picture, np.concatenate([cuts.get(name, drawn_O4[:0]), drawn_O4[chosen]])


def boxes_of(cuts: Sequence[CutOut]) -> dict[str, Boxes]:
    """Photograph's name -> boxes of its outlined objects."""
    found: dict[str, list[Any]] = {}
    for cut in cuts:
        found.setdefault(cut.name, []).append(cut.box)
    return {name: np.array(rows, np.float32) for name, rows in found.items()}


def database(photographs: Photographs, names: Sequence[str], cuts: Sequence[CutOut], finder: Detector) -> Pictures:
    """Each photograph with its true boxes and the detector's regions."""
    true = boxes_of(cuts)
    for number, name in enumerate(names):
        picture = photographs[number]
        found_O4, _ = regions(picture, finder, REGIONS)
        yield number, picture, np.concatenate([true.get(name, found_O4[:0]), found_O4])


def questions(
    photographs: Photographs, names: Sequence[str], cuts: Sequence[CutOut]
) -> tuple[Pictures, NDArray[np.intp]]:
    """(numbered splices with the true box of the pasted object, turned back where it was mirrored; [Q, 2] of host and
    donor)."""
    places = {name: place for place, name in enumerate(names)}
    made: list[tuple[int, Picture, Boxes]] = []
    truth: list[tuple[int, int]] = []
    for number, cut in enumerate(cuts):
        donor = places[cut.name]
        for paste in range(PASTES):
            rng = np.random.default_rng([SEED, 1, number, paste])
            host = int(rng.integers(len(names) - 1))
            host += host >= donor
            spliced = splices.splice(photographs[host], photographs[donor], cut, rng)
            picture, box_14 = spliced.rgb_HWC, np.array([spliced.box], np.float32)
            if spliced.mirrored:
                picture, box_14 = (
                    np.ascontiguousarray(picture[:, ::-1]),
                    objects.mirrored_boxes(box_14, picture.shape[1]),
                )
            made.append((len(made), picture, box_14))
            truth.append((host, donor))
    return made, np.array(truth, np.intp)


def ranks(
    query_QC: Rows, stored: tuple[Rows, NDArray[np.intp]], truth_Q2: NDArray[np.intp], fit_NC: Rows
) -> NDArray[np.intp]:
    """Rank [Q] of each donor, 0 the first, by the smallest distance over a picture's objects (eq. 7)."""
    stored_NC, owner_N = stored
    mean_C, components_DC = whitened_components(fit_NC.astype(np.float64), min(OBJECT_DIM, len(fit_NC) - 1))

    def unit(rows_NC: Rows) -> NDArray[np.float64]:
        rows_ND = (rows_NC - mean_C) @ components_DC.T
        return np.asarray(rows_ND / np.maximum(np.linalg.norm(rows_ND, axis=1, keepdims=True), NORM_MIN))

    near_QN = unit(query_QC) @ unit(stored_NC).T
    near_QI = np.full((len(query_QC), int(owner_N.max()) + 1), -np.inf)
    for place in np.unique(owner_N):
        near_QI[:, place] = near_QN[:, owner_N == place].max(1)
    rows = np.arange(len(query_QC))
    near_QI[rows, truth_Q2[:, 0]] = -np.inf
    return np.asarray((near_QI > near_QI[rows, truth_Q2[:, 1]][:, None]).sum(1), np.intp)


def measured(data: Path, made: Trained) -> dict[str, dict[str, Any]]:
    """R@1 and R@10 of every network, and the share of the teacher's that each student keeps."""
    names = split.load().calibrate
    photographs, cuts = Photographs(data / "photos" / "train", names), splices.cut_outs(data, set(names))
    pooled = Pooled(made.fixed, made.networks)
    fit = described(pooled, to_fit(data))
    stored = described(pooled, database(photographs, names, cuts, Detector.load(ObjectSettings())))
    pictures, truth_Q2 = questions(photographs, names, cuts)
    asked = described(pooled, pictures)
    found: dict[str, dict[str, Any]] = {}
    for pooling, name in pooled.keys:
        key = (pooling, name)
        rank_Q = ranks(asked.features[key], (stored.features[key], stored.owner_N), truth_Q2, fit.features[key])
        said = {f"R@{k}": share_of(bool(rank < k) for rank in rank_Q).json() for k in DEPTHS}
        found.setdefault(name, {})[pooling] = said
    for name in made.networks:
        for pooling in POOLINGS:
            mine, theirs = found[name][pooling], found[TEACHER][pooling]
            kept = {f"R@{k}": _kept(mine[f"R@{k}"]["share"], theirs[f"R@{k}"]["share"]) for k in DEPTHS}
            mine["kept"] = kept
    return found


def _kept(mine: float, theirs: float) -> float | None:
    return round(mine / theirs, 4) if theirs else None


def student_figures(data: Path, runs: Sequence[Path]) -> dict[str, Any]:
    """The table as JSON. Students without a run have their cost alone."""
    made = trained(runs)
    size = made.fixed.size
    cost, found = students.costs(size), measured(data, made)
    rows: dict[str, dict[str, Any]] = {name: _cost(cost[name]) for name in (*KINDS, TEACHER)}
    for name, score in made.scores.items():
        rows[name] |= {"steps": made.steps[name], "mse": round(score["mse"], 5), "explained": round(score["score"], 4)}
    return {
        "students": {name: row | found.get(name, {}) for name, row in rows.items()},
        "guide": _cost(cost["guide"]),
        "order": {pooling: order(found, pooling) for pooling in POOLINGS},
        "paper": {name: _cost(one) for name, one in students.costs(PAPER).items()},
        "published": PUBLISHED,
    }


def _cost(cost: students.Cost) -> dict[str, Any]:
    return {"multiply_adds": cost.multiply_adds, "parameters": cost.parameters}


def order(found: dict[str, dict[str, Any]], pooling: str) -> list[str]:
    """Networks from the least to the most donors found, first places before the first ten."""
    return sorted(found, key=lambda name: tuple(found[name][pooling][f"R@{k}"]["share"] for k in DEPTHS))
