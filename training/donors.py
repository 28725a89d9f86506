"""What a donor is worth: the probability that a verified hit gave the object, fitted on rendered splices.

    python -m training.donors --data DIR [--out FOLDER] [--write]      eleven minutes
    python -m training.donors --data DIR --objects 1,2,4,8             R@1 and R@10 by objects kept of a photograph

Splices of objects of the 501 training photographs, into others of them, are asked of all training and validation
photographs by brute force, the host left out; so are benign versions of photographs, which have no donor. Pictures are
described, and hits verified, by the ``Finder`` that serves. Logistic weights are fitted on the verified hits, then
others on those that are looked at again because of the first; the threshold is the least that shows a donor to at most
one in a hundred questions without one. The same is then measured on the 200 calibration photographs. ``--write`` puts
all of it on the card.

Shape letters: I photographs; M objects of all of them; V views; O objects of a query; D embedding (256).
"""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from numpy.typing import NDArray

from stemma import splice
from stemma.config import ObjectSettings
from stemma.finder import Finder
from stemma.flow import OBJECTS_MAX, Described, ObjectHit
from stemma.networks import weights as weights_files
from stemma.networks.weights import DISTANCE_MAX
from stemma.vision import benign
from stemma.vision.geometry import Picture
from training import splices, split, views
from training.data import Photographs

SEED = 41
FITTED, MEASURED = 120, 79
"""Splices asked for the fit, and objects of the calibration photographs asked for the figures."""
STRANGERS_FITTED, STRANGERS = 120, 75
"""Questions without a donor, for the weights and for the figures; the threshold is fitted on one of every training
photograph that nobody annotated."""
FALSE_MAX = 0.01
"""Share of the fit's questions without a donor that may be shown one: some photographs share a thing."""
LOST_MAX = 0.03
"""Of the donors that verification finds, so many may be given up for hits that need no verification."""
SLACK = 0.02
"""Beyond the farthest of those: others are farther yet."""
ITERATIONS = 30
RIDGE = 1e-3


@dataclass(frozen=True, slots=True, kw_only=True)
class Gallery:
    """Objects of many photographs, searched by brute force: the slow twin of ``stemma.index.objects``."""

    photographs: Photographs
    names: tuple[str, ...]
    owner_M: NDArray[np.intp]
    number_M: NDArray[np.intp]
    """0 for the whole picture, 1 for the best object, and so on."""
    box_M4: NDArray[np.float32]
    """In 0..1."""
    vector_MD: NDArray[np.int8]

    def first(self, objects: int) -> Gallery:
        """With at most so many objects of each photograph, and the whole of it."""
        kept_M = self.number_M <= objects
        return replace(
            self,
            owner_M=self.owner_M[kept_M],
            number_M=self.number_M[kept_M],
            box_M4=self.box_M4[kept_M],
            vector_MD=self.vector_MD[kept_M],
        )

    def search(self, objects_VOD: NDArray[np.int8], scale: float, without: int, most: int) -> list[ObjectHit]:
        """The ``most`` nearest photographs but one, by the smallest distance over pairs (OE-SIR eq. 7)."""
        views_count, objects_count, _ = objects_VOD.shape
        dots_QM = objects_VOD.reshape(views_count * objects_count, -1).astype(np.float32) @ self.vector_MD.T.astype(
            np.float32
        )
        pair_M = dots_QM.argmax(0)
        distance_M = 2 - 2 * dots_QM.max(0) / scale**2
        hits: dict[int, ObjectHit] = {}
        for place in np.argsort(distance_M, kind="stable").tolist():
            row = int(self.owner_M[place])
            if row != without and row not in hits:
                view, number = divmod(int(pair_M[place]), objects_count)
                hits[row] = ObjectHit(
                    row=row,
                    image_id=self.names[row],
                    distance=float(distance_M[place]),
                    refined_distance=float(distance_M[place]),
                    mirrored=view == 1,
                    query_object=number,
                    donor_object=place,
                    donor_box=tuple(self.box_M4[place].tolist()),
                )
            if len(hits) == most:
                break
        return list(hits.values())


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """One question and its verified hits, in the order of the search."""

    donor: int | None
    """The row that gave the object; None: none did."""
    found: tuple[splice.Donor, ...]
    mask_iou: float | None = None
    """Of the right donor's outline, where it was verified."""


def gallery(finder: Finder, data: Path) -> Gallery:
    """Of all training and validation photographs."""
    listed = split.load()
    names = (*sorted((*listed.train, *listed.calibrate)), *sorted(p.name for p in (data / "photos/val").glob("*.jpg")))
    parts = ["val"] * len(names)
    parts[: len(listed.train) + len(listed.calibrate)] = ["train"] * (len(listed.train) + len(listed.calibrate))
    photographs = Photographs(data / "photos", [f"{part}/{name}" for part, name in zip(parts, names, strict=True)])
    objects = []
    for row in range(len(names)):
        objects.append(finder.objects(photographs[row]))
        said(row, len(names), "photographs described")
    return Gallery(
        photographs=photographs,
        names=names,
        owner_M=np.repeat(np.arange(len(names)), [len(one.box_O4) for one in objects]),
        number_M=np.concatenate([[*range(1, len(one.box_O4)), 0] for one in objects]),
        box_M4=np.concatenate([one.box_O4 for one in objects]),
        vector_MD=np.concatenate([one.embedding_OD for one in objects]),
    )


def said(number: int, count: int, what: str) -> None:
    """A line every fifty: nobody should wonder whether it still runs."""
    if number % 50 == 49 or number == count - 1:
        print(f"{number + 1} of {count} {what}", flush=True)


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """What is asked, and what the search for it found, before anything is put in order or verified."""

    host: int
    donor: int | None
    rgb_HWC: Picture
    described: Described
    hits: tuple[ObjectHit, ...]
    mask_HW: Picture | None = None


def question(
    finder: Finder, shelf: Gallery, rgb_HWC: Picture, *, host: int, donor: int | None, mask_HW: Picture | None = None
) -> Question:
    """Described and searched for, as a query is."""
    described, hits = finder.describe(rgb_HWC), []
    if len(described):
        hits = shelf.search(described.embedding_VOD, finder.card.scale, host, splice.SEARCHED_MAX)
    return Question(host=host, donor=donor, rgb_HWC=rgb_HWC, described=described, hits=tuple(hits), mask_HW=mask_HW)


def answers(finder: Finder, shelf: Gallery, questions: Sequence[Question], damped_max: float) -> list[Asked]:
    """Put in order, verified, ranked and outlined, as a query is answered."""
    asked = []
    for number, one in enumerate(questions):
        listed = splice.shortlist(one.hits, one.described.hubness_VO, [one.host], damped_max=damped_max)
        found = finder.verify_pictures(one.rgb_HWC, one.described, listed, _pictures(shelf, listed))
        right = [each for each in found if each.hit.row == one.donor and each.mask is not None]
        ious = [mask_iou(each.mask, one.mask_HW) for each in right if each.mask and one.mask_HW is not None]
        kept = tuple(replace(each, mask=None) for each in found)
        asked.append(Asked(donor=one.donor, found=kept, mask_iou=ious[0] if ious else None))
        said(number, len(questions), "questions answered")
    return asked


def _pictures(shelf: Gallery, hits: Sequence[ObjectHit]) -> splice.PictureOf:
    return lambda place: shelf.photographs[hits[place].row]


def mask_iou(mask: tuple[Sequence[int], Picture], truth_HW: Picture) -> float:
    """IoU of a mask in its window with that of the whole picture."""
    (x0, y0, x1, y1), piece_HW = mask
    whole_HW = np.zeros(truth_HW.shape, bool)
    whole_HW[y0:y1, x0:x1] = piece_HW > 0
    return float((whole_HW & (truth_HW > 0)).sum() / max(1, (whole_HW | (truth_HW > 0)).sum()))


def composites(
    shelf: Gallery, cuts: Sequence[splices.CutOut], hosts: Sequence[str]
) -> Iterator[tuple[int, int, Picture, Picture]]:
    """(host, donor, picture at working size, mask) of a splice of each cut-out, into a host that nobody annotated."""
    rows = {name: row for row, name in enumerate(shelf.names)}
    for number, cut in enumerate(cuts):
        rng = np.random.default_rng([SEED, number])
        host, donor = rows[hosts[int(rng.integers(len(hosts)))]], rows[cut.name]
        made = splices.splice(shelf.photographs[host], shelf.photographs[donor], cut, rng)
        rgb_HWC = views.at_working_size(made.rgb_HWC)
        size = (rgb_HWC.shape[1], rgb_HWC.shape[0])
        yield host, donor, rgb_HWC, cv2.resize(made.mask_HW, size, interpolation=cv2.INTER_NEAREST)


def ask_splices(finder: Finder, shelf: Gallery, cuts: Sequence[splices.CutOut], hosts: Sequence[str]) -> list[Question]:
    """One splice of each cut-out."""
    asked = []
    for number, (host, donor, rgb_HWC, mask_HW) in enumerate(composites(shelf, cuts, hosts)):
        asked.append(question(finder, shelf, rgb_HWC, host=host, donor=donor, mask_HW=mask_HW))
        said(number, len(cuts), "splices asked")
    return asked


def ask_strangers(finder: Finder, shelf: Gallery, names: Sequence[str]) -> list[Question]:
    """A benign version of each photograph; its own row is left out, as that of a found original is."""
    rows = {name: row for row, name in enumerate(shelf.names)}
    asked = []
    for number, name in enumerate(names):
        picture = shelf.photographs[rows[name]]
        made = views.at_working_size(benign.render(picture, np.random.default_rng([SEED, 9, number])).rgb_HWC)
        asked.append(question(finder, shelf, made, host=rows[name], donor=None))
        said(number, len(names), "questions without a donor asked")
    return asked


def logistic(x_NF: NDArray[np.float64], right_N: NDArray[np.bool_]) -> tuple[float, ...]:
    """Bias and weights of a logistic regression, by Newton's steps with a slight ridge."""
    rows_NF = np.c_[np.ones(len(x_NF)), x_NF]
    weight_F = np.zeros(rows_NF.shape[1])
    for _ in range(ITERATIONS):
        chance_N = 1 / (1 + np.exp(-np.clip(rows_NF @ weight_F, -30, 30)))
        slope_F = rows_NF.T @ (right_N - chance_N) - RIDGE * weight_F
        bend_FF = (rows_NF * (chance_N * (1 - chance_N))[:, None]).T @ rows_NF + RIDGE * np.eye(len(weight_F))
        weight_F = weight_F + np.linalg.solve(bend_FF, slope_F)
    return tuple(round(float(value), 4) for value in weight_F)


def damped_max_of(spliced: Sequence[Asked], chances: splice.Chances) -> float:
    """Damped distance above which a hit behind the first ``VERIFIED_FIRST`` has no hope: of the donors that
    verification finds at most ``LOST_MAX`` lie there. Lowest of all where none lies behind the first."""
    behind, count = list[float](), 0
    for asked in spliced:
        for place, one in enumerate(sorted(asked.found, key=_listed)):
            if one.hit.row == asked.donor and chance_of(one, chances) >= splice.OUTLINED_MIN:
                count += 1
                if place >= splice.VERIFIED_FIRST:
                    behind.append(one.damped)
    if not count:
        return DISTANCE_MAX
    kept = sorted(behind, reverse=True)[int(LOST_MAX * count) :]
    return round(kept[0] + SLACK, 3) if kept else -DISTANCE_MAX


def _listed(one: splice.Donor) -> tuple[float, str]:
    return splice.listed(one.hit, one.damped)


def chance_of(one: splice.Donor, chances: splice.Chances) -> float:
    return chances.of(one.match, one.laid, one.damped)


def weights_of(spliced: Sequence[Asked], strangers: Sequence[Asked]) -> tuple[float, ...]:
    """Bias and weights of the probability of a hit by the match of its crops."""
    return _fitted([(one.match, one, asked.donor) for asked in (*spliced, *strangers) for one in asked.found])


def laid_weights_of(spliced: Sequence[Asked], strangers: Sequence[Asked]) -> tuple[float, ...]:
    """The same of those that were laid over the query, by their match there."""
    every = [(one, asked.donor) for asked in (*spliced, *strangers) for one in asked.found]
    return _fitted([(one.laid, one, donor) for one, donor in every if one.laid is not None])


def _fitted(every: Sequence[tuple[float, splice.Donor, int | None]]) -> tuple[float, ...]:
    features_NF = np.array([[match, max(one.damped, splice.DAMPED_MIN)] for match, one, _ in every])
    return logistic(features_NF, np.array([one.hit.row == donor for _, one, donor in every]))


def shown_min_of(strangers: Sequence[Asked], chances: splice.Chances) -> float:
    """The least probability that at most ``FALSE_MAX`` of the questions without a donor reach, and at least half."""
    best = [max((chance_of(one, chances) for one in asked.found), default=0.0) for asked in strangers]
    over = sorted(best, reverse=True)[int(FALSE_MAX * len(best)) :]
    return round(min(max([*over, 0.5]) + 0.01, 0.99), 3)


def figures(spliced: Sequence[Asked], strangers: Sequence[Asked], chances: splice.Chances, shown_min: float) -> Any:
    """R@1, R@10 of all splices, those shown rightly, wrongly, and on questions that have no donor; hits verified of
    one that has none."""

    def order(asked: Asked) -> list[tuple[float, splice.Donor]]:
        every = [(chance_of(one, chances), one) for one in asked.found]
        return sorted(every, key=lambda pair: (-pair[0], pair[1].hit.image_id))

    ranked = [(asked, order(asked)) for asked in spliced]
    first = [bool(found) and found[0][1].hit.row == asked.donor for asked, found in ranked]
    ten = [any(one.hit.row == asked.donor for _, one in found[:10]) for asked, found in ranked]
    shown = [bool(found) and found[0][0] >= shown_min for _, found in ranked]
    false = [bool(found) and found[0][0] >= shown_min for found in map(order, strangers)]
    ious = [asked.mask_iou for (asked, _), right in zip(ranked, first, strict=True) if right]
    known = [iou for iou in ious if iou is not None]
    return {
        "R@1": round(float(np.mean(first)), 3),
        "R@10": round(float(np.mean(ten)), 3),
        "shown_right": round(float(np.mean([a and b for a, b in zip(shown, first, strict=True)])), 3),
        "shown_wrong": round(float(np.mean([a and not b for a, b in zip(shown, first, strict=True)])), 3),
        "n": len(spliced),
        "false_donors": round(float(np.mean(false)), 3) if false else None,
        "strangers": len(false),
        "verified": round(float(np.mean([len(asked.found) for asked in strangers])), 1) if false else None,
        "mask_iou": round(float(np.mean(known)), 3) if known else None,
    }


def fit_donors(data: Path, out: Path) -> weights_files.ObjectsCard:
    """The card with what was fitted on the 501 photographs and measured on the other 200."""
    finder = finder_of(out)
    shelf, known, listed = gallery(finder, data), splices.annotated(data), split.load()
    asked: dict[str, tuple[list[Question], list[Question]]] = {}
    for part, names, count, others in (
        ("fit", listed.train, FITTED, STRANGERS_FITTED),
        ("measure", listed.calibrate, MEASURED, STRANGERS),
    ):
        plain = [name for name in names if name not in known]
        cuts = splices.cut_outs(data, set(names))
        shuffled = np.random.default_rng([SEED, 3]).permutation(len(cuts))[:count]
        asked[part] = (
            ask_splices(finder, shelf, [cuts[i] for i in shuffled], plain),
            ask_strangers(finder, shelf, plain[:: max(1, len(plain) // others)][:others]),
        )
    fit = [answers(finder, shelf, each, DISTANCE_MAX) for each in asked["fit"]]
    card = dataclasses.replace(finder.card, donor=weights_of(*fit))
    # which hits are looked at again depends on the weights just fitted
    finder.judged_by(card)
    fit = [answers(finder, shelf, each, DISTANCE_MAX) for each in asked["fit"]]
    card = dataclasses.replace(card, donor_laid=laid_weights_of(*fit))
    chances = splice.Chances.fitted(card.donor, card.donor_laid)
    card = dataclasses.replace(card, damped_max=damped_max_of(fit[0], chances))
    finder.judged_by(card)
    # as they are answered when they are served, since that is when one is shown
    plain = [name for name in listed.train if name not in known]
    shown_min = shown_min_of(answers(finder, shelf, ask_strangers(finder, shelf, plain), card.damped_max), chances)
    card = dataclasses.replace(card, donor_min=shown_min)
    measured = [answers(finder, shelf, each, card.damped_max) for each in asked["measure"]]
    found = {
        part: figures(spliced, strangers, chances, shown_min)
        for part, (spliced, strangers) in (("fit", fit), ("measure", measured))
    }
    return dataclasses.replace(card, figures=found)


def finder_of(out: Path) -> Finder:
    """The finder of the weights in ``out``, as it serves."""
    return Finder.load(ObjectSettings(weights=str(out)), str(out))


def by_objects(data: Path, out: Path, counts: Sequence[int]) -> dict[int, dict[str, float]]:
    """R@1 and R@10, before anything is verified, of the calibration splices where so many objects are kept of each
    photograph (and the whole of it); with the KiB that they take."""
    finder = finder_of(out)
    shelf, known, listed = gallery(finder, data), splices.annotated(data), split.load()
    plain = [name for name in listed.calibrate if name not in known]
    ranks: dict[int, list[int]] = {count: [] for count in counts}
    kept = {count: shelf.first(count) for count in counts}
    for host, donor, rgb_HWC, _ in composites(shelf, splices.cut_outs(data, set(listed.calibrate))[:MEASURED], plain):
        described = finder.describe(rgb_HWC)
        for count in counts:
            rows: list[int] = []
            if len(described):
                hits = kept[count].search(described.embedding_VOD, finder.card.scale, host, splice.SEARCHED_MAX)
                rows = [hit.row for hit in splice.shortlist(hits, described.hubness_VO, [host], len(hits))]
            ranks[count].append(rows.index(donor) if donor in rows else len(shelf.names))
    return {
        count: {
            "R@1": round(float(np.mean(np.array(ranks[count]) < 1)), 3),
            "R@10": round(float(np.mean(np.array(ranks[count]) < 10)), 3),
            "KiB": round(kept[count].vector_MD.nbytes / 1024 / len(shelf.names), 2),
        }
        for count in counts
    }


def main() -> int:
    parser = argparse.ArgumentParser(description="Fit the probability of a donor and measure it.")
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, default=weights_files.resolve(None))
    parser.add_argument("--write", action="store_true", help="put it on the card")
    parser.add_argument("--objects", help="measure these numbers of objects a photograph instead, such as 1,2,4,8")
    args = parser.parse_args()
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    if args.objects:
        counts = [int(count) for count in args.objects.split(",")]
        if not all(1 <= count <= OBJECTS_MAX for count in counts):
            parser.error(f"a photograph keeps 1 to {OBJECTS_MAX} objects")
        for count, row in by_objects(args.data, args.out, counts).items():
            print(count, row)
        return 0
    card = fit_donors(args.data, args.out)
    print(card.donor, card.donor_min, card.figures)
    if args.write:
        weights_files.write_card(args.out, card)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
