"""What became of one query: verdict, heatmap and donors against the truth; one JSON line each.

Every figure about verdicts and donors is computed from these lines (``evaluation/verdicts.py``, ``donors.py``), so
plots and recounts need no second run. Letters: R, C rows and columns of a heatmap; H, W pixels of the query.
"""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from evaluation.metrics import overlap, rank_of
from evaluation.queries import Asked, Query
from stemma.api import Answer, Comparison, Donor, Heatmap, Verdict
from stemma.errors import BadRequest, Corrupt

RIGHT: Mapping[str, Verdict] = {
    "identical": "identical",
    "benign": "benign",
    "manip": "manipulated",
    "both": "manipulated",
    "unknown": "unknown",
    "splice": "spliced",
}
"""The verdict that each set of queries should get."""
STRANGE = ("unknown", "splice")
"""Sets whose original is not in the collection: a verdict about one of them names none."""
EDITED = ("manip", "both")
MASK_MIN = 128
"""A mask's pixel is changed from here on: over 127."""

Area = NDArray[np.bool_]
Float = NDArray[np.float32]


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """A query's truth, and what was answered."""

    file: str
    set: str
    photograph: str
    mirrored: bool
    edit: str | None
    area: float
    benign: tuple[str, ...]
    left_out: bool
    """Edited, but nothing of the edit is left to be seen: no verdict on it is right or wrong."""
    found: bool
    """The right original was named."""
    named: bool
    """Some original was named."""
    verdict: Verdict
    confidence: float
    probabilities: tuple[float, float, float] | None
    """Benign, manipulated, distinct: of the original, else of the first candidate; None where it was not compared."""
    iou: float | None = None
    """Of an edited query: 0 where its original was not found. None for all others."""
    iou_paper: float | None = None
    false_area: float | None = None
    """Share of a benign query that its heatmap calls changed; None where its original was not found."""
    ms: float = 0.0
    donor_rank: int | None = None
    """Of a splice: the place of its donor among all donors, shown or not, 1 for the first; a clone is no donor."""
    donor_iou: float | None = None
    """Of a splice whose donor is ranked first: its mask's overlap with the truth. None for all others."""
    donors_shown: int = 0
    """Donors shown, clones left out."""
    clones_shown: int = 0
    query_region: bool | None = None
    """Of a splice: whether some region that was searched covers its object by half (IoU). None: not looked at."""
    donor_region: bool | None = None
    """Of a splice: the same of the objects stored of its donor."""

    @property
    def forced(self) -> Verdict:
        """The verdict without abstaining: the larger probability; ``unknown`` where no original was named."""
        if self.verdict != "inconclusive":
            return self.verdict
        if not self.named:
            return "unknown"
        if self.probabilities is None:
            return "inconclusive"
        benign, manipulated, _ = self.probabilities
        return "manipulated" if manipulated > benign else "benign"

    @property
    def right(self) -> bool:
        return self._right(self.verdict)

    @property
    def right_forced(self) -> bool:
        return self._right(self.forced)

    def _right(self, verdict: Verdict) -> bool:
        return verdict == RIGHT.get(self.set) and (self.found or self.set in STRANGE)

    @property
    def scores(self) -> tuple[float, float, float]:
        """How sure the answer is of benign, manipulated and unknown; they sum to 1 unless it trusts in nothing at all.

        ``confidence`` is P(right original) times the larger class where one was named, else 1 - P(right original); of a
        spliced picture it is that of the donor, and what is left is unknown.
        """
        if self.verdict == "spliced":
            return 0.0, 0.0, 1 - self.confidence
        if self.verdict == "inconclusive" and not self.named:
            return 0.0, 0.0, 0.0
        benign, manipulated, _ = self.probabilities or (0.5, 0.5, 0.0)
        both = benign + manipulated
        share = benign / both if both > 0 else 0.5
        original = self.confidence / max(share, 1 - share) if self.named else 1 - self.confidence
        original = min(original, 1.0)
        return original * share, original * (1 - share), 1 - original


def outcome(asked: Asked, heatmap_min: float) -> Outcome:
    """``heatmap_min``: absolute probability from which on a place of the heatmap is called changed."""
    query, answer = asked.query, asked.answer
    best = answer.original or (answer.candidates[0] if answer.candidates else None)
    comparison = answer.original.comparison if asked.found and answer.original else None
    said = best.probabilities if best else None
    mask_HW = read_mask(query.mask) if query.set in EDITED and query.mask else None
    edited = mask_HW is not None and bool(mask_HW.any())
    return Outcome(
        file=query.path.name,
        set=query.set,
        photograph=query.photograph,
        mirrored=query.mirrored,
        edit=query.edit,
        area=query.area,
        benign=query.benign,
        left_out=query.set in EDITED and not edited,
        found=asked.found,
        named=answer.original is not None,
        verdict=answer.verdict,
        confidence=answer.confidence,
        probabilities=(said.benign, said.manipulated, said.distinct) if said else None,
        iou=heatmap_iou(comparison, mask_HW, heatmap_min) if mask_HW is not None and edited else None,
        false_area=_false_area(query, comparison, heatmap_min) if query.set == "benign" else None,
        ms=round(asked.ms, 2),
        **_donors(query, answer),
    )


def _donors(query: Query, answer: Answer) -> dict[str, Any]:
    """The fields about donors."""
    donors = [donor for donor in answer.donors if not donor.clone]
    rank = rank_of(query.donor, [donor.image_id for donor in donors]) if query.donor else None
    iou = None
    if rank == 1 and query.mask:
        truth_HW = read_mask(query.mask)
        iou = overlap(painted(donors[0], truth_HW.shape), truth_HW)
    return {
        "donor_rank": rank,
        "donor_iou": iou,
        "donors_shown": sum(donor.shown for donor in donors),
        "clones_shown": sum(donor.shown and donor.clone for donor in answer.donors),
    }


def painted(donor: Donor, shape: tuple[int, ...]) -> Area:
    """Where the query shows the donor, in a picture of ``shape`` (height, width): its box where it brings no mask.

    Raises ``Corrupt`` for a mask of another size than its box.
    """
    area_HW = np.zeros(shape, np.bool_)
    x0, y0, x1, y1 = (round(edge) for edge in donor.query_box)
    if donor.mask is None:
        area_HW[y0:y1, x0:x1] = True
        return area_HW
    with Image.open(io.BytesIO(base64.b64decode(donor.mask))) as picture:
        mask_HW = np.asarray(picture.convert("L")) >= MASK_MIN
    if mask_HW.shape != area_HW[y0:y1, x0:x1].shape:
        raise Corrupt(f"a mask of {mask_HW.shape} for a box of {donor.query_box} in {shape}", subject=donor.image_id)
    area_HW[y0:y1, x0:x1] = mask_HW
    return area_HW


def heatmap_iou(comparison: Comparison | None, mask_HW: Area, heatmap_min: float) -> float:
    """Of a heatmap, ungated, with a mask that is not empty; 0 where there is no heatmap."""
    if comparison is None or comparison.heatmap is None:
        return 0.0
    return overlap(changed(map_of(comparison.heatmap), mask_HW.shape, heatmap_min), mask_HW) or 0.0


def _false_area(query: Query, comparison: Comparison | None, heatmap_min: float) -> float | None:
    if comparison is None or comparison.heatmap is None:
        return None
    with Image.open(query.path) as picture:
        width, height = picture.size
    return float(changed(map_of(comparison.heatmap), (height, width), heatmap_min).mean())


def map_of(heatmap: Heatmap) -> Float:
    """The heatmap as an array [R, C]."""
    return np.asarray(heatmap.values, np.float32).reshape(heatmap.rows, heatmap.cols)


def changed(map_RC: Float, shape: tuple[int, ...], shown_min: float) -> Area:
    """Where a map, enlarged bilinearly to ``shape`` (height, width), is at least ``shown_min``."""
    height, width = shape
    return np.asarray(cv2.resize(map_RC, (width, height), interpolation=cv2.INTER_LINEAR) >= shown_min, np.bool_)


def read_mask(path: Path) -> Area:
    """True where the picture was changed [H, W]. Raises ``BadRequest`` for a mask that cannot be read."""
    try:
        with Image.open(path) as picture:
            return np.asarray(np.asarray(picture.convert("L")) >= MASK_MIN, np.bool_)
    except OSError as error:
        raise BadRequest(f"no mask here: {error}", subject=str(path)) from error


def with_paper(outcomes: Iterable[Outcome], ious: Mapping[str, float]) -> list[Outcome]:
    """With the IoU of the paper's map, by file name; of an edited query whose original was not found it is 0."""
    return [
        each if each.iou is None else replace(each, iou_paper=ious.get(each.file, 0.0) if each.found else 0.0)
        for each in outcomes
    ]


def save(outcomes: Iterable[Outcome], path: Path) -> None:
    """One JSON line each."""
    lines = [json.dumps(asdict(each), allow_nan=False) + "\n" for each in outcomes]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(lines), encoding="utf-8")


def read(path: Path) -> list[Outcome]:
    """What ``save`` wrote. Raises ``BadRequest`` for any other file."""
    try:
        return [_outcome(line) for line in path.read_text(encoding="utf-8").splitlines()]
    except (ValueError, TypeError, KeyError) as error:
        raise BadRequest(f"not a file of `evaluate quick --save`: {error}", subject=str(path)) from error


def _outcome(line: str) -> Outcome:
    record = json.loads(line)
    said = record["probabilities"]
    return Outcome(
        **{**record, "benign": tuple(record["benign"]), "probabilities": tuple(said) if said is not None else None}
    )
