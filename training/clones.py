"""What a copy within an original is worth: the probability of ``stemma.clones``, fitted on rendered edits.

    python -m training.clones --data DIR [--photographs N] [--measure]

Each of the 501 training photographs is edited once, every other time by a clone, saved or put through the benign
suite, and asked as a query is: cells, alignment, the comparator's heatmap, its regions. A clone is right when its map
takes what was edited to the same content. The threshold is the least that shows one in at most 1% of the other edits.
Removals by a neighbouring texture are copies, made to hide something: they are measured by themselves and fit nothing.
Then the same is measured on the 200 calibration photographs and on ``tamper/train``, which choose nothing. The printed
constants stand in ``stemma/clones.py``; ``--measure`` leaves the fit out and measures those.

Shape letters: H, W pixels; C channels; N queries; F features of the evidence.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch

from stemma import clones, outline, splice
from stemma.config import ComparatorSettings, EncoderSettings
from stemma.flow import Pairing
from stemma.networks import explain, matching
from stemma.networks.comparing import Comparator
from stemma.networks.encoder import Encoder
from stemma.vision import benign, edits, geometry
from stemma.vision.decode import working_copy
from stemma.vision.geometry import Picture
from training import evidence, split, views
from training.donors import logistic

SEED = 20_261_128
OTHERS = ("splice", "removal", "caption", "recolour", "mosaic", "warp")
DONORS = 8
FALSE_SHARE_MAX = 0.01
"""Half of what is allowed: the threshold is measured on other photographs."""
CONTENT_MIN = 0.8
"""Correlation of what was edited, lightly blurred, with what the map says it is a copy of."""
CONTENT_SIGMA_PX = 2.0
CORE_SHARE = 0.12
"""A mask is eroded by this share of the square root of its area: seams are mixtures."""
PLACE_IOU_MIN = 0.3
COPIES = ("clone", "copy-move")

Networks = tuple[Encoder, Comparator]


@dataclass(frozen=True, slots=True, kw_only=True)
class Edit:
    """A query, its original, and what is true of it."""

    kind: str
    query_HWC: Picture
    original_HWC: Picture
    mask_HW: Picture
    """Of the query: 255 where it was edited."""
    copied_from: tuple[float, ...] | None = None
    """Box in the original of what was copied, where the data says it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """What was found of one edit."""

    kind: str
    evidence: tuple[clones.Evidence, ...]
    right: tuple[bool, ...]
    regions: int
    """Large enough to be looked at."""
    ms: float
    """CPU time of all regions."""

    def best(self, weights: tuple[float, ...]) -> tuple[float, bool]:
        """(probability, whether it is right) of the likeliest copy; (0, False) without one."""
        chances = [clones.probability(one, weights) for one in self.evidence]
        return max(zip(chances, self.right, strict=True), default=(0.0, False))


def rendered(picture_HWC: Picture, name: str, number: int, donors: Sequence[Picture]) -> Edit:
    """Edit of photograph ``number``: even ones are clones, and of four one after the other two are only saved."""
    rng = views.generator(f"clones {name}", number, SEED)
    kind = "clone" if number % 2 == 0 else OTHERS[number // 2 % len(OTHERS)]
    made = edits.manipulate(picture_HWC, rng, donors, kinds=(kind,))
    if number // 2 % 2 == 0:
        saved_HWC = benign.jpeg_round_trip(made.rgb_HWC, int(rng.integers(evidence.SAVED_MIN, evidence.SAVED_MAX)))
        shown = benign.Rendered(rgb_HWC=saved_HWC, source_from_query_33=np.eye(3), mirrored=False, log=[])
    else:
        shown = benign.render(made.rgb_HWC, rng)
    query_HWC = views.at_working_size(shown.rgb_HWC)
    mask_HW = geometry.resize(shown.carry(made.mask_HW), (query_HWC.shape[1], query_HWC.shape[0]))
    label = "neighbour" if made.tool == "neighbour" else made.kind
    return Edit(kind=label, query_HWC=query_HWC, original_HWC=picture_HWC, mask_HW=mask_HW)


def tampered(data: Path) -> Iterator[Edit]:
    """The pairs of ``tamper/train``; removals there are covered with background of the same photograph."""
    for record in json.loads((data / "tamper/index.json").read_text(encoding="utf-8"))["pairs"]:
        if record["split"] != "train":
            continue
        folder, source = data / "tamper" / record["dir"], record.get("copied_from") or record.get("cloned_from")
        x, y, width, height = source or (0, 0, 0, 0)
        query_HWC, original_HWC = (evidence.read(folder / f"{name}.jpg") for name in ("tampered", "original"))
        kind = record["kind"].partition(" (")[0]
        yield Edit(
            kind="neighbour" if kind == "removal" else kind,
            query_HWC=query_HWC,
            original_HWC=original_HWC,
            mask_HW=np.ascontiguousarray(evidence.read(folder / "mask.png")[..., 0]),
            copied_from=(x, y, x + width, y + height) if source else None,
        )


def ask(edit: Edit, networks: Networks) -> Asked:
    """Compare the query with its original, and look where its changed regions come from."""
    encoder, comparator = networks
    asked, known = encoder.encode(edit.query_HWC, mirrored=True), encoder.encode(edit.original_HWC, mirrored=False)
    assert asked.cells_VNF is not None and known.cells_VNF is not None
    match = matching.match(asked.cells_VNF, known.cells_VNF)[0]
    host = working_copy(evidence.pixels(edit.original_HWC))
    judged = comparator.compare(edit.query_HWC, [Pairing(original=host, affine=match.affine, mirrored=match.mirrored)])
    if judged[0].transform is None:
        return Asked(kind=edit.kind, evidence=(), right=(), regions=0, ms=0.0)
    size = (edit.query_HWC.shape[1], edit.query_HWC.shape[0])
    found = explain.regions(judged[0].heatmap_RC, size, shown_min=comparator.card.heatmap_min)
    box_N4 = np.array([one.box for one in found], np.float64).reshape(-1, 4)
    begun = time.process_time()
    copies = clones.candidates(edit.query_HWC, box_N4, edit.original_HWC, geometry.from_rows(judged[0].transform))
    return Asked(
        kind=edit.kind,
        evidence=tuple(one.evidence for one in copies),
        right=tuple(right(edit, one) for one in copies),
        regions=int(np.count_nonzero((box_N4[:, 2:] - box_N4[:, :2]).min(1) >= clones.SIDE_PX_MIN)),
        ms=(time.process_time() - begun) * 1000,
    )


def right(edit: Edit, clone: clones.Clone) -> bool:
    """Whether the clone is of an edited place, and of the place that it was copied from."""
    if not any(splice.overlap(clone.query_box, piece) > PLACE_IOU_MIN for piece in pieces(edit.mask_HW)):
        return False
    if edit.copied_from is not None:
        return splice.overlap(clone.donor_box, edit.copied_from) > PLACE_IOU_MIN
    return shows(edit, clone)


def pieces(mask_HW: Picture) -> Iterator[tuple[float, ...]]:
    """Boxes of the separate parts of a mask, and of the whole."""
    count, _, statistics, _ = cv2.connectedComponentsWithStats((mask_HW > 127).astype(np.uint8), connectivity=8)
    for left, top, width, height, _ in statistics[1:count].tolist():
        yield left, top, left + width, top + height
    left, top, width, height = cv2.boundingRect((mask_HW > 127).astype(np.uint8))
    yield left, top, left + width, top + height


def shows(edit: Edit, clone: clones.Clone) -> bool:
    """Whether the original shows under the map what was edited. The renderer does not say where it copied from."""
    whole = (0, 0, edit.query_HWC.shape[1], edit.query_HWC.shape[0])
    theirs_HWC, inside_HW = outline.laid(edit.original_HWC, clone.transform_33, whole)
    (x0, y0, x1, y1), _ = clone.mask
    mask_HW = np.zeros(edit.mask_HW.shape, np.uint8)
    mask_HW[y0:y1, x0:x1] = edit.mask_HW[y0:y1, x0:x1] > 127
    reach_px = max(1, round(CORE_SHARE * np.sqrt(np.count_nonzero(mask_HW))))
    core_HW = cv2.erode(mask_HW, np.ones((2 * reach_px + 1,) * 2, np.uint8)) > 0
    core_HW &= inside_HW
    if np.count_nonzero(core_HW) < outline.WINDOW_PX**2:
        return False
    ours, theirs = (
        cv2.GaussianBlur(cv2.cvtColor(one, cv2.COLOR_RGB2GRAY).astype(np.float32), (0, 0), CONTENT_SIGMA_PX)[core_HW]
        for one in (edit.query_HWC, theirs_HWC)
    )
    spread = float(ours.std() * theirs.std())
    return spread > 0 and float(((ours - ours.mean()) * (theirs - theirs.mean())).mean()) / spread >= CONTENT_MIN


def fitted(every: Sequence[Asked]) -> tuple[tuple[float, ...], float]:
    """(weights, threshold). Raises ``ValueError`` where there is nothing to tell apart."""
    rows = [
        (one, fine and asked.kind in COPIES)
        for asked in every
        if asked.kind != "neighbour"
        for one, fine in zip(asked.evidence, asked.right, strict=True)
    ]
    if len({fine for _, fine in rows}) < 2:
        raise ValueError("no clone was found, or nothing else was; more photographs are wanted")
    features_NF = np.array([clones.features(one) for one, _ in rows])
    weights = logistic(features_NF, np.array([fine for _, fine in rows]))
    false = sorted((asked.best(weights)[0] for asked in every if asked.kind in OTHERS), reverse=True)
    allowed = int(FALSE_SHARE_MAX * len(false))
    luckiest = false[allowed] if allowed < len(false) else 0.0
    return weights, round(min(max(luckiest + 0.01, 0.5), 0.99), 3)


def figures(every: Sequence[Asked], weights: tuple[float, ...], shown_min: float) -> dict[str, Any]:
    """By kind of edit: n, the share that is shown a copy, the share whose likeliest one is right; CPU ms a region."""
    out: dict[str, Any] = {}
    for kind in sorted({one.kind for one in every}):
        best = [one.best(weights) for one in every if one.kind == kind]
        shown = [chance >= shown_min for chance, _ in best]
        rightly = [chance >= shown_min and fine for chance, fine in best]
        out[kind] = {
            "n": len(best),
            "with_regions": sum(one.regions > 0 for one in every if one.kind == kind),
            "shown": round(float(np.mean(shown)), 3),
            "right": round(float(np.mean(rightly)), 3),
        }
    others = [one.best(weights)[0] >= shown_min for one in every if one.kind in OTHERS]
    regions = sum(one.regions for one in every)
    out["others shown"] = {"n": len(others), "count": int(np.sum(others))}
    out["ms_a_region"] = round(sum(one.ms for one in every) / max(1, regions), 1)
    return out


def asked_of(data: Path, names: Sequence[str], networks: Networks) -> list[Asked]:
    """One rendered edit of each photograph."""
    donors = list(views.photographs(data, split.load().train[:DONORS]))
    pictures = views.photographs(data, names)
    return [
        ask(rendered(views.at_working_size(picture), name, number, donors), networks)
        for number, (name, picture) in enumerate(zip(names, pictures, strict=True))
    ]


def measure(
    data: Path, networks: Networks, weights: tuple[float, ...], shown_min: float, say: Callable[[str, Any], None]
) -> None:
    """What chose nothing: calibration photographs, then pairs made by others."""
    say("calibrate", figures(asked_of(data, split.load().calibrate, networks), weights, shown_min))
    pairs: Iterable[Edit] = tampered(data)
    say("tamper/train", figures([ask(edit, networks) for edit in pairs], weights, shown_min))


def main() -> int:
    parser = argparse.ArgumentParser(description="Fit the probability of a copy within an original and measure it.")
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--photographs", type=int, default=None, help="of the 501, the first so many (default: all)")
    parser.add_argument("--measure", action="store_true", help="measure the constants that ship, fit nothing")
    args = parser.parse_args()
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    networks = Encoder.load(EncoderSettings()), Comparator.load(ComparatorSettings())

    def say(part: str, found: Any) -> None:
        print(part, json.dumps(found), flush=True)

    weights: tuple[float, ...] = clones.WEIGHTS
    shown_min = clones.SHOWN_MIN
    if not args.measure:
        every = asked_of(args.data, split.load().train[: args.photographs], networks)
        weights, shown_min = fitted(every)
        say("weights", {"WEIGHTS": weights, "SHOWN_MIN": shown_min})
        say("fit", figures(every, weights, shown_min))
    measure(args.data, networks, weights, shown_min, say)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
