"""One training pair of the comparator: an original, a query made from it or from a stranger, laid over it, the truth.

Everything is in the original's square, the frame of the comparator (``stemma.networks.alignment``). An edit is rendered
in the frame of its original, so its mask needs no warp: it is cut to what the query still shows, and a pair of which
too little is left to see is relabelled benign (docs/facts.md: crops remove edits, noise erases them).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import cv2
import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field

from stemma.networks.alignment import Aligner, lay, to_square
from stemma.networks.comparator import BENIGN, DISTINCT, MANIPULATED
from stemma.vision import benign, edits, geometry
from stemma.vision.geometry import Map33, Picture

Kind = Literal["benign", "manip", "both", "distinct"]
KINDS: tuple[Kind, ...] = get_args(Kind)
WORKING_SIDE_PX = 512
"""Queries reach the comparator at working size, and so must these (config: decode.working_side_px)."""
SMOOTH_PX = 1.5
"""Blur at 160 px under which an edit is compared with the noise around it."""


class PairSettings(BaseModel):
    """How pairs are drawn. Shares of the kinds are relative; errors are in pixels of a 256 px square."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    side_px: int = Field(160, ge=32, multiple_of=16, description="square of the pair")
    benign: float = Field(0.38, ge=0, description="share of benign versions")
    manip: float = Field(0.14, ge=0, description="share of edits that were only resized and recompressed")
    both: float = Field(0.36, ge=0, description="share of edits under the whole benign suite")
    distinct: float = Field(0.12, ge=0, description="share of strangers")
    laid: bool = Field(
        True, description="lay the query over the original; false: squashed as it came, for a flow to align"
    )
    aligned: float = Field(0.25, ge=0, le=1, description="share laid by the real aligner instead of the exact map")
    graded: float = Field(
        0.3, ge=0, le=1, description="share of benign versions that are colour-graded as a whole, too"
    )
    error_px: float = Field(0.12, gt=0, description="median error of an exact map's corners, log-normal")
    error_spread: float = Field(1.0, ge=0, description="standard deviation of the error's logarithm")
    coarse_share: float = Field(
        0.02, ge=0, description="error of what verification would hand to the aligner, of a side"
    )
    left_min: float = Field(0.3, ge=0, le=1, description="share of an edit that must be seen for it to count as one")


@dataclass(frozen=True, slots=True, kw_only=True)
class Pair:
    """One pair and its truth; pictures uint8 [side, side, 3], maps uint8 [side, side], 0 or 255."""

    query_HWC: Picture
    original_HWC: Picture
    valid_HW: Picture
    """Where the query covers the original."""
    mask_HW: Picture
    """The edit's share of each pixel, where the query shows it; nothing unless the label is manipulated."""
    counted_HW: Picture
    """Where the map has a truth: not outside the overlap, not on what is left of an edit that no longer counts."""
    label: int
    kind: Kind
    log: tuple[str, ...]
    """How the query came about."""


def render(
    original_HWC: Picture,
    strangers: Sequence[Picture],
    rng: np.random.Generator,
    settings: PairSettings,
    *,
    kind: Kind | None = None,
) -> Pair:
    """A pair of ``kind`` (drawn if None); ``strangers`` give donors and distinct queries, at least one.

    The same ``rng`` state gives the same bytes. Pictures are uint8 RGB of any size from 32 px.
    """
    drawn = _kind(rng, settings) if kind is None else kind
    source_HWC, mask_HW, log = _source(original_HWC, strangers, rng, drawn)
    rendered = (_recompressed if drawn == "manip" else benign.render)(source_HWC, rng)
    query_HWC, back_33 = _working(rendered.rgb_HWC, rendered.source_from_query_33)
    if drawn != "manip" and rng.random() < settings.graded:
        query_HWC, graded = grade(query_HWC, rng)
        log.append(graded)
    square_33 = _square_map(query_HWC, original_HWC, source_HWC, back_33, rng, settings, stranger=drawn == "distinct")
    side = settings.side_px
    laid_HWC, valid_HW = lay(query_HWC, square_33, side)
    small_HWC = geometry.resize(original_HWC, (side, side))
    truth = _truth(laid_HWC, small_HWC, source_HWC, mask_HW, valid_HW, settings)
    label, mask_HW, counted_HW = (DISTINCT, np.zeros_like(valid_HW), valid_HW) if drawn == "distinct" else truth
    return Pair(
        query_HWC=laid_HWC if settings.laid else geometry.resize(query_HWC, (side, side)),
        original_HWC=small_HWC,
        valid_HW=valid_HW,
        mask_HW=mask_HW,
        counted_HW=counted_HW,
        label=label,
        kind=drawn,
        log=(*log, *rendered.log),
    )


def _kind(rng: np.random.Generator, settings: PairSettings) -> Kind:
    shares = np.array([settings.benign, settings.manip, settings.both, settings.distinct])
    return KINDS[int(rng.choice(len(KINDS), p=shares / shares.sum()))]


def _source(
    original_HWC: Picture, strangers: Sequence[Picture], rng: np.random.Generator, kind: Kind
) -> tuple[Picture, Picture, list[str]]:
    """(what the query is rendered from, what was edited in it, log)."""
    untouched = np.zeros(original_HWC.shape[:2], np.uint8)
    if kind == "benign":
        return original_HWC, untouched, []
    if kind == "distinct":
        stranger_HWC = strangers[int(rng.integers(len(strangers)))]
        return stranger_HWC, np.zeros(stranger_HWC.shape[:2], np.uint8), ["stranger"]
    edited = edits.manipulate(original_HWC, rng, strangers)
    return edited.rgb_HWC, edited.mask_HW, [f"{edited.kind} {edited.tool}"]


def _recompressed(source_HWC: Picture, rng: np.random.Generator) -> benign.Rendered:
    """The primary group alone: resized and saved again."""
    height, width = source_HWC.shape[:2]
    factor = float(rng.uniform(max(benign.RESIZE_MIN, min(1.0, 32 / min(width, height))), 1.0))
    size = (round(width * factor), round(height * factor))
    quality = int(rng.integers(benign.JPEG_QUALITY_MIN, 96))
    out_HWC = benign.jpeg_round_trip(geometry.resize(source_HWC, size), quality)
    back_33 = geometry.scaling(width / size[0], height / size[1])
    log = [f"resize {factor:.3f}", f"jpeg {quality}"]
    return benign.Rendered(rgb_HWC=out_HWC, source_from_query_33=back_33, mirrored=False, log=log)


def grade(rgb_HWC: Picture, rng: np.random.Generator) -> tuple[Picture, str]:
    """The picture under one change of all its colours, and which: grading is benign (docs/architecture.md, Verdict)."""
    unit_HWC = rgb_HWC.astype(np.float32) / np.float32(255)
    name = str(rng.choice(["gamma", "balance", "saturation", "hue", "curve"]))
    if name == "gamma":
        unit_HWC = unit_HWC ** np.float32(np.exp(rng.uniform(-0.5, 0.5)))
    elif name == "balance":
        unit_HWC = unit_HWC * rng.uniform(0.75, 1.2, 3).astype(np.float32)
    elif name == "curve":
        smooth_HWC = unit_HWC * unit_HWC * (3 - 2 * unit_HWC)
        unit_HWC = unit_HWC + np.float32(rng.uniform(-0.5, 1.0)) * (smooth_HWC - unit_HWC)
    else:
        hsv_HWC = cv2.cvtColor(unit_HWC, cv2.COLOR_RGB2HSV)
        if name == "saturation":
            hsv_HWC[..., 1] = np.clip(hsv_HWC[..., 1] * np.float32(max(0.0, rng.uniform(-0.3, 1.6))), 0, 1)
        else:
            hsv_HWC[..., 0] = (hsv_HWC[..., 0] + np.float32(rng.uniform(-20, 20))) % 360
        unit_HWC = cv2.cvtColor(hsv_HWC, cv2.COLOR_HSV2RGB)
    return np.asarray(np.clip(unit_HWC, 0, 1) * 255 + 0.5).astype(np.uint8), f"grade {name}"


def _working(query_HWC: Picture, back_33: Map33) -> tuple[Picture, Map33]:
    height, width = query_HWC.shape[:2]
    shrink = min(1.0, WORKING_SIDE_PX / max(width, height))
    size = (max(1, round(width * shrink)), max(1, round(height * shrink)))
    return geometry.resize(query_HWC, size), back_33 @ geometry.scaling(width / size[0], height / size[1])


def _square_map(
    query_HWC: Picture,
    original_HWC: Picture,
    source_HWC: Picture,
    back_33: Map33,
    rng: np.random.Generator,
    settings: PairSettings,
    *,
    stranger: bool,
) -> Map33:
    """Where alignment would lay the query: by the true map with an error drawn, or as the aligner itself finds it.

    A stranger lies as if it had been rendered from the original, for want of anything truer.
    """
    query_size, source_size = _size(query_HWC), _size(source_HWC)
    exact_33 = to_square(back_33, query_size, source_size, settings.side_px)
    by_aligner = rng.random() < settings.aligned
    spread = float(rng.normal()) * settings.error_spread
    error_px = settings.error_px * settings.side_px / 256 * float(np.exp(spread))
    if by_aligner and not stranger:
        coarse_33 = _shaken(rng, settings.side_px, settings.coarse_share * settings.side_px) @ exact_33
        mirrored = geometry.is_mirrored(exact_33)
        found = Aligner().align(
            query_HWC, original_HWC, affine=_affine(coarse_33, settings.side_px, mirrored), mirrored=mirrored
        )
        if found.transform_33 is not None:
            return to_square(found.transform_33, query_size, _size(original_HWC), settings.side_px)
    return _shaken(rng, settings.side_px, error_px) @ exact_33


def _shaken(rng: np.random.Generator, side: int, error_px: float) -> Map33:
    """A perspective map of the square near the identity: each corner moves by about ``error_px``."""
    corners_42 = np.array([[0, 0], [side, 0], [side, side], [0, side]], np.float64)
    return geometry.from_corners(corners_42, corners_42 + rng.normal(0.0, error_px, (4, 2)))


def _affine(square_33: Map33, side: int, mirrored: bool) -> tuple[float, ...]:
    """As ``flow.Hit`` states it: from the matching view, in 0..1."""
    view_33 = square_33 @ geometry.mirror(float(side)) if mirrored else square_33
    (a, b, c), (d, e, f) = view_33[:2].tolist()
    return (a, b, c / side, d, e, f / side)


def _truth(
    laid_HWC: Picture,
    small_HWC: Picture,
    source_HWC: Picture,
    mask_HW: Picture,
    valid_HW: Picture,
    settings: PairSettings,
) -> tuple[int, Picture, Picture]:
    """(label, mask, where the map counts), all cut to what the query shows."""
    side = settings.side_px
    mask_HW = np.asarray(cv2.resize(mask_HW, (side, side), interpolation=cv2.INTER_AREA), np.uint8)
    nothing_HW = np.zeros_like(mask_HW)
    if not mask_HW.any():
        return BENIGN, nothing_HW, valid_HW
    seen_HW = cv2.bitwise_and(mask_HW, valid_HW)
    inside_HW = mask_HW > 127
    change_HW = _difference(geometry.resize(source_HWC, (side, side)).astype(np.float32), small_HWC, side)
    outside_HW = (mask_HW == 0) & (valid_HW > 0)
    noise_HW = _difference(_matched(laid_HWC, small_HWC, outside_HW), small_HWC, side)
    noise = float(np.median(noise_HW[outside_HW])) if outside_HW.any() else 0.0
    left = float(((seen_HW > 127) & (change_HW > noise)).sum()) / max(1, int(inside_HW.sum()))
    if left < settings.left_min:
        unclear_HW = cv2.dilate((mask_HW > 0).astype(np.uint8), np.ones((3, 3), np.uint8)) > 0
        return BENIGN, nothing_HW, np.where(unclear_HW, 0, valid_HW).astype(np.uint8)
    return MANIPULATED, np.asarray(seen_HW, np.uint8), valid_HW


def _matched(laid_HWC: Picture, small_HWC: Picture, where_HW: NDArray[np.bool_]) -> NDArray[np.float32]:
    """The laid query with the gain and bias of each channel taken out, fitted where nothing was edited."""
    laid = laid_HWC.astype(np.float32)
    if np.count_nonzero(where_HW) < 16:
        return laid
    for channel in range(3):
        query_N, original_N = laid[..., channel][where_HW], small_HWC[..., channel][where_HW].astype(np.float32)
        gain = float(np.clip(original_N.std() / max(float(query_N.std()), 1.0), 0.2, 5.0))
        laid[..., channel] = (laid[..., channel] - query_N.mean()) * gain + original_N.mean()
    return laid


def _difference(a_HWC: NDArray[np.float32], b_HWC: Picture, side: int) -> NDArray[np.float32]:
    sigma = SMOOTH_PX * side / 160
    blurred_HWC = cv2.GaussianBlur(a_HWC - b_HWC.astype(np.float32), (0, 0), sigma)
    return np.asarray(np.abs(blurred_HWC).max(-1), np.float32)


def _size(rgb_HWC: Picture) -> geometry.Size:
    return rgb_HWC.shape[1], rgb_HWC.shape[0]
