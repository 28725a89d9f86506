"""Copy-moves localized pixel by pixel: MCC and F1 at one threshold, chosen on the training pairs (OE-SIR 4.4, Table 5).

    stemma evaluate localization --data TAMPER --json

Each pair is an edited picture with its own original, so the figures compare with no blind detector's. Two scores of a
pixel: the heatmap of the comparison, as the product answers it, and OE-SIR's own (``object_localization``). A pair's
MCC and F1 are taken at the one threshold and averaged; ``pooled`` counts the pixels of all pairs together. The
threshold maximises mean MCC plus mean F1 over the pairs of ``train``; nothing is chosen on those of ``val``.

Letters: H, W pixels; T thresholds.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

from evaluation.metrics import mean_of
from evaluation.outcomes import Area, map_of, read_mask
from evaluation.pairs import Compare, Pair, read_pairs
from stemma.flow import Float
from stemma.terminal import progress

Method = Literal["comparator", "object"]
KIND = "copy-move"
CHOSEN_ON, MEASURED_ON = "train", "val"
STEPS = 200
"""Thresholds between 0 and 1."""

Counts = NDArray[np.int64]
Score = Callable[[Pair, Area], Float]
"""(pair, its mask) -> how surely each pixel [H, W] was changed, 0 to 1."""


class Pixels(NamedTuple):
    """Pixels of one pair or of many, by threshold [T]."""

    true_positive_T: Counts
    false_positive_T: Counts
    false_negative_T: Counts
    true_negative_T: Counts


@dataclass(frozen=True, slots=True)
class Scored:
    """One pair, counted at every threshold."""

    pair: Pair
    pixels: Pixels


def thresholds() -> NDArray[np.float64]:
    """[T]: a pixel is called changed where its score is at least this."""
    return np.arange(1, STEPS) / STEPS


def count(score_HW: Float, mask_HW: Area) -> Pixels:
    """One picture at every threshold. Raises ``ValueError`` for scores outside 0..1 or of another shape."""
    if score_HW.shape != mask_HW.shape or not ((score_HW >= 0) & (score_HW <= 1)).all():
        raise ValueError(f"scores are 0 to 1 for every pixel, not {score_HW.shape} for {mask_HW.shape}")
    # how many thresholds a score reaches
    reached_HW = np.searchsorted(thresholds(), score_HW, side="right")
    found = []
    for inside_HW in (mask_HW, ~mask_HW):
        histogram = np.bincount(reached_HW[inside_HW], minlength=STEPS)
        found.append(histogram[::-1].cumsum()[::-1][1:])
    positive, negative = int(np.count_nonzero(mask_HW)), int(np.count_nonzero(~mask_HW))
    return Pixels(found[0], found[1], positive - found[0], negative - found[1])


def mcc(pixels: Pixels) -> NDArray[np.float64]:
    """Matthews' correlation [T]; 0 where a row or column of the confusion is empty (docs/papers.md 5)."""
    tp, fp, fn, tn = (each.astype(np.float64) for each in pixels)
    root = np.sqrt((tp + fp) * (tp + fn) * (tn + fp) * (tn + fn))
    return np.divide(tp * tn - fp * fn, root, out=np.zeros_like(root), where=root > 0)


def f1(pixels: Pixels) -> NDArray[np.float64]:
    """2 TP / (2 TP + FP + FN) [T]; 0 where nothing is or is called changed."""
    tp, fp, fn, _ = (each.astype(np.float64) for each in pixels)
    most = 2 * tp + fp + fn
    return np.divide(2 * tp, most, out=np.zeros_like(most), where=most > 0)


def together(pixels: Sequence[Pixels]) -> Pixels:
    """All pixels of some pictures."""
    return Pixels(*(np.sum([each[part] for each in pixels], axis=0) for part in range(4)))


def chosen(scored: Sequence[Scored]) -> int:
    """Place of the one threshold: the first at which mean MCC plus mean F1 is largest."""
    total_T = np.sum([mcc(each.pixels) + f1(each.pixels) for each in scored], axis=0)
    return int(np.argmax(total_T))


def figures(train: Sequence[Scored], val: Sequence[Scored]) -> dict[str, Any]:
    """``{mcc, f1, n, ...}`` of ``val`` at the threshold of ``train``, and both of ``train`` itself."""
    place = chosen(train)
    scenes, pool = [each.pair.scene for each in val], together([each.pixels for each in val])
    result: dict[str, Any] = {"threshold": float(thresholds()[place]), "chosen_on": len(train), "n": len(val)}
    for name, of in (("mcc", mcc), ("f1", f1)):
        mean = mean_of([float(of(each.pixels)[place]) for each in val], scenes)
        result |= {name: round(mean.mean, 4), f"{name}_95": [round(mean.low, 4), round(mean.high, 4)]}
    result["pooled"] = {name: round(float(of(pool)[place]), 4) for name, of in (("mcc", mcc), ("f1", f1))}
    result["train"] = {
        name: round(float(np.mean([of(each.pixels)[place] for each in train])), 4)
        for name, of in (("mcc", mcc), ("f1", f1))
    }
    result["by_made"] = {made: _means([each for each in val if each.pair.made == made], place) for made in _made(val)}
    return result


def _made(scored: Sequence[Scored]) -> list[str]:
    return sorted({each.pair.made for each in scored})


def _means(scored: Sequence[Scored], place: int) -> dict[str, Any]:
    return {
        "mcc": round(float(np.mean([mcc(each.pixels)[place] for each in scored])), 4),
        "f1": round(float(np.mean([f1(each.pixels)[place] for each in scored])), 4),
        "n": len(scored),
    }


def localization(data: Path, scores: Mapping[Method, Score], *, method: Method = "comparator") -> dict[str, Any]:
    """The figures of ``method``, and of every method under ``by_method``. ``data`` holds ``train`` and ``val``.

    Raises ``BadRequest`` where there are no pairs, ``StemmaError`` naming the pair that cannot be compared.
    """
    begun = time.monotonic()
    parts = {part: [pair for pair in read_pairs(data / part) if pair.kind == KIND] for part in (CHOSEN_ON, MEASURED_ON)}
    scored: dict[Method, dict[str, list[Scored]]] = {name: {part: [] for part in parts} for name in scores}
    with progress("localize", sum(map(len, parts.values()))) as done:
        for part, pairs in parts.items():
            for pair in pairs:
                mask_HW = read_mask(pair.folder / "mask.png")
                for name, score in scores.items():
                    scored[name][part].append(Scored(pair, count(score(pair, mask_HW), mask_HW)))
                done(1)
    by_method = {name: figures(each[CHOSEN_ON], each[MEASURED_ON]) for name, each in scored.items()}
    seconds = round(time.monotonic() - begun, 1)
    return {**by_method[method], "method": method, "by_method": by_method, "localization_seconds": seconds}


def comparator_score(compare: Compare) -> Score:
    """Of the heatmap that a comparison answers, enlarged bilinearly; 0 everywhere where it shows none."""

    def score(pair: Pair, mask_HW: Area) -> Float:
        query, original = ((pair.folder / name).read_bytes() for name in ("tampered.jpg", "original.jpg"))
        said = compare(query, original)
        if said.heatmap is None:
            return np.zeros(mask_HW.shape, np.float32)
        size = (mask_HW.shape[1], mask_HW.shape[0])
        large_HW = cv2.resize(map_of(said.heatmap), size, interpolation=cv2.INTER_LINEAR)
        return np.asarray(np.clip(large_HW, 0, 1), np.float32)

    return score
