"""The hardest validation cases of a run, on one page: what the network saw, what it said, and what is true.

    RUN/hardest.png

Comparator: the query laid over its original, the original, the truth, the heatmap. Encoder: the query, its original,
and the photograph that was found first. Detector: the true boxes beside those that it drew.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from torch.nn import functional

from stemma.networks import comparator as heads
from stemma.networks.comparator import CLASSES, MANIPULATED
from stemma.networks.detector import DetectorSize
from stemma.networks.encoder import EncoderNetwork
from stemma.vision.geometry import Picture
from training import comparator, detection, detector
from training.canvas import FAINT, INK, RULE, Canvas
from training.data import collate
from training.groups import GroupBatch
from training.pairs import Pair

FILE = "hardest.png"
ROWS = 12
OF_A_KIND_MAX = 4
"""Rows of one kind of pair at most: one hard kind must not hide the others."""
SIDE = 168
GAP, MARGIN, HEAD = 10, 22, 84
TEXT_WIDTH = 330
BATCH = 16
CHANCE_MIN = 1e-6
WRONG = "#b91c1c"
TRUTH_RGB, SAID_RGB = (37, 99, 235), (220, 38, 38)
SHOWN_MIN = comparator.SHOWN_MIN
HEADS = {
    2: ("true boxes", "boxes found"),
    3: ("query", "its original", "found first"),
    4: ("query on its original", "original", "truth", "heatmap"),
}
"""Of the columns, by how many pictures a row has."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One case: pictures of the same side and a few lines on them, the first of which is the verdict."""

    difficulty: float
    kind: str
    right: bool
    pictures: tuple[Picture, ...]
    lines: tuple[str, ...]


@torch.inference_mode()
def pairs(network: nn.Module, samples: Sequence[Pair]) -> list[Row]:
    """Every pair as a row, hardest first: cross-entropy of its class, and how far heatmap and truth lie apart.

    Pairs that were relabelled are left out, as validation does.
    """
    network.eval()
    device = next(network.parameters()).device
    kept = [pair for pair in samples if (pair.kind in ("manip", "both")) == (pair.label == MANIPULATED)]
    rows: list[Row] = []
    for start in range(0, len(kept), BATCH):
        part = kept[start : start + BATCH]
        inputs = comparator.moved(collate(part), device)
        said = comparator.compare(network, inputs)
        side = inputs.mask_B1HW.shape[2]
        if said.map_logits_B1hw is None:
            shown_BHW = heads.grid_heatmap(said.grid_B77, side)
        else:
            small_BHW = heads.heatmap(said, inputs.valid_B1HW)
            shown_BHW = functional.interpolate(small_BHW[:, None], size=(side, side), mode="bilinear").squeeze(1)
        chances_B3 = said.logits_B3.softmax(1)
        for pair, chance_3, shown_HW in zip(part, chances_B3.cpu().numpy(), shown_BHW.cpu().numpy(), strict=True):
            rows.append(_pair_row(pair, chance_3, shown_HW))
    return sorted(rows, key=lambda row: -row.difficulty)


def _pair_row(pair: Pair, chance_3: NDArray[np.float32], shown_HW: NDArray[np.float32]) -> Row:
    truth_HW, said_HW = pair.mask_HW > 127, (shown_HW > SHOWN_MIN) & (pair.counted_HW > 0)
    either = int((truth_HW | said_HW).sum())
    iou = 1.0 if either == 0 else int((truth_HW & said_HW).sum()) / either
    chosen = int(chance_3.argmax())
    difficulty = -math.log(max(CHANCE_MIN, float(chance_3[pair.label])))
    place = ""
    if pair.label == MANIPULATED:
        difficulty += 1.0 - iou
        place = f"overlap {iou:.2f}, edited {truth_HW.mean():.1%} of the picture"
    elif pair.kind == "benign":
        difficulty += float(said_HW.mean())
        place = f"called changed: {said_HW.mean():.1%} of the picture"
    chances = "   ".join(f"{name} {chance:.2f}" for name, chance in zip(CLASSES, chance_3, strict=True))
    return Row(
        difficulty=difficulty,
        kind=pair.kind,
        right=chosen == pair.label,
        pictures=(_laid(pair), pair.original_HWC, _truth(pair), _heat(pair, shown_HW)),
        lines=(f"{CLASSES[pair.label]}, called {CLASSES[chosen]}", chances, place, "", " · ".join(pair.log)),
    )


def _laid(pair: Pair) -> Picture:
    """The query where it covers the original; elsewhere the original, pale."""
    pale_HWC = (0.25 * pair.original_HWC + 0.75 * 255).astype(np.uint8)
    return np.where(pair.valid_HW[..., None] > 0, pair.query_HWC, pale_HWC)


def _truth(pair: Pair) -> Picture:
    """The edit in blue on the grey original; hatched where nothing counts."""
    base_HWC = _grey(pair.original_HWC)
    share_HW1 = pair.mask_HW[..., None].astype(np.float32) / 255 * 0.75
    out_HWC = base_HWC * (1 - share_HW1) + np.array(TRUTH_RGB, np.float32) * share_HW1
    rows, columns = np.indices(pair.mask_HW.shape)
    hatched_HW = (pair.counted_HW == 0) & ((rows + columns) % 6 < 2)
    out_HWC[hatched_HW] = 225
    return out_HWC.astype(np.uint8)


def _heat(pair: Pair, shown_HW: NDArray[np.float32]) -> Picture:
    """The heatmap in red on the grey query, with an outline where it says changed."""
    share_HW1 = np.clip(shown_HW, 0, 1)[..., None] * 0.75
    out_HWC = _grey(_laid(pair)) * (1 - share_HW1) + np.array(SAID_RGB, np.float32) * share_HW1
    out_HWC = np.ascontiguousarray(out_HWC.astype(np.uint8))
    contours, _ = cv2.findContours((shown_HW > SHOWN_MIN).astype(np.uint8), cv2.RETR_LIST, cv2.CHAIN_APPROX_NONE)
    cv2.drawContours(out_HWC, contours, -1, (127, 29, 29), 1)
    return out_HWC


def _grey(rgb_HWC: Picture) -> NDArray[np.float32]:
    grey_HW = cv2.cvtColor(rgb_HWC, cv2.COLOR_RGB2GRAY).astype(np.float32)
    return np.repeat((0.6 * grey_HW + 0.4 * 255)[..., None], 3, axis=2)


@torch.inference_mode()
def views(network: EncoderNetwork, batches: Sequence[GroupBatch]) -> list[Row]:
    """Every view as a row, hardest first: how much nearer the nearest other original is than its own."""
    network.eval()
    device = network.mean_C11.device
    clean_N3HW = torch.cat([batch.clean_G3HW for batch in batches])
    photograph_N = torch.cat([batch.photograph_G for batch in batches])
    clean_ND = torch.cat([network(batch.clean_G3HW.to(device))[0] for batch in batches]).cpu()
    rows: list[Row] = []
    for batch in batches:
        scores_BN = network(batch.view_B3HW.to(device))[0].cpu() @ clean_ND.T
        for number, score_N in enumerate(scores_BN):
            own_N = photograph_N == batch.photograph_B[number]
            own, other = float(score_N[own_N].max()), float(score_N.masked_fill(own_N, -2.0).max())
            rank = 1 + int((score_N[~own_N] > own).sum())
            kind = "benign" if number % 4 < 2 else "both"
            first = int(score_N.argmax())
            shown = (batch.view_B3HW[number], clean_N3HW[int(own_N.nonzero()[0])], clean_N3HW[first])
            rows.append(
                Row(
                    difficulty=other - own,
                    kind=kind,
                    right=rank == 1,
                    pictures=tuple(one.permute(1, 2, 0).numpy().astype(np.uint8) for one in shown),
                    lines=(
                        f"{'edited and changed' if kind == 'both' else 'changed'}, its original at rank {rank}",
                        f"cosine with its own {own:.3f}",
                        f"with the nearest other {other:.3f}",
                    ),
                )
            )
    return sorted(rows, key=lambda row: -row.difficulty)


def detections(network: nn.Module, source: detection.Labelled, size: DetectorSize) -> list[Row]:
    """Every photograph with objects as a row, hardest first: the share of its objects that no box covers."""
    finder = detector.finder(network, size)
    rows = []
    for place, people in enumerate(source.annotated):
        rgb_HWC, truth_T4 = source.photographs[place], detection.wanted(source.boxes[place])
        if not len(truth_T4):
            continue
        found_O4, score_O = finder.detect(rgb_HWC, detector.RECALL_BOXES)
        covered_T = detector.covered(truth_T4, found_O4)
        kind = "people's boxes" if people else "YOLOX's boxes"
        best = ", ".join(f"{score:.2f}" for score in score_O[:3])
        rows.append(
            Row(
                difficulty=1 - float(covered_T.mean()),
                kind=kind,
                right=bool(covered_T.all()),
                pictures=(_boxed(rgb_HWC, truth_T4, TRUTH_RGB), _boxed(rgb_HWC, found_O4, SAID_RGB)),
                lines=(f"{int(covered_T.sum())} of {len(truth_T4)} objects covered", kind, f"best scores {best}"),
            )
        )
    return sorted(rows, key=lambda row: -row.difficulty)


def _boxed(rgb_HWC: Picture, box_O4: NDArray[np.float32], colour: tuple[int, int, int]) -> Picture:
    """The picture in a square, with boxes on it."""
    out_HWC = np.asarray(cv2.resize(rgb_HWC, (SIDE, SIDE), interpolation=cv2.INTER_AREA), np.uint8)
    share = SIDE / np.array(rgb_HWC.shape[1::-1] * 2)
    for x0, y0, x1, y1 in np.rint(box_O4 * share).astype(int).tolist():
        cv2.rectangle(out_HWC, (x0, y0), (x1, y1), colour, 1)
    return out_HWC


def chosen(rows: Sequence[Row]) -> list[Row]:
    """The first ``ROWS`` with at most ``OF_A_KIND_MAX`` of a kind, or more of one where there are no others."""
    kinds = {row.kind for row in rows}
    most = max(OF_A_KIND_MAX, -(-ROWS // max(1, len(kinds))))
    taken: list[Row] = []
    for row in rows:
        if len(taken) < ROWS and sum(other.kind == row.kind for other in taken) < most:
            taken.append(row)
    return taken


def write(folder: Path, title: str, rows: Sequence[Row]) -> Path:
    """Draw the page; the heads of its columns follow from how many pictures a row has."""
    heads_of = HEADS[len(rows[0].pictures)]
    wrong = sum(not row.right for row in rows)
    taken = chosen(rows)
    width = 2 * MARGIN + len(heads_of) * (SIDE + GAP) + TEXT_WIDTH
    canvas = Canvas(width, HEAD + len(taken) * (SIDE + GAP) + MARGIN)
    canvas.text((MARGIN, 16), title, size=20)
    canvas.text((MARGIN, 42), f"the hardest {len(taken)} of {len(rows)}; {wrong} are wrong", size=13, colour=FAINT)
    for number, name in enumerate(heads_of):
        canvas.text((MARGIN + number * (SIDE + GAP), HEAD - 20), name, size=12, colour=FAINT)
    for number, row in enumerate(taken):
        _draw(canvas, row, HEAD + number * (SIDE + GAP))
    canvas.save(folder / FILE)
    return folder / FILE


def _draw(canvas: Canvas, row: Row, top: int) -> None:
    for place, picture_HWC in enumerate(row.pictures):
        left = MARGIN + place * (SIDE + GAP)
        canvas.picture((left, top), picture_HWC, side=SIDE)
        canvas.rectangle((left, top), (left + SIDE, top + SIDE), outline=RULE)
    left, height = MARGIN + len(row.pictures) * (SIDE + GAP) + 6, float(top + 4)
    for number, line in enumerate(row.lines):
        colour = (INK if row.right else WRONG) if number == 0 else FAINT
        for part in _wrapped(canvas, line, TEXT_WIDTH - 10):
            canvas.text((left, height), part, size=15 if number == 0 else 13, colour=colour)
            height += 24 if number == 0 else 18


def _wrapped(canvas: Canvas, line: str, width: float) -> Iterator[str]:
    kept = ""
    for word in line.split(" "):
        longer = f"{kept} {word}" if kept else word
        if kept and canvas.width_of(longer, size=13) > width:
            yield kept
            kept = word
        else:
            kept = longer
    yield kept
