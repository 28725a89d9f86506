"""Copies within a found original: what a changed region of the query shows stands at another place of the original.

    changed boxes -> SIFT of the region and of the original, without what is still in its place -> similarity by RANSAC,
    upright and mirrored -> refined by ECC -> compared pixel by pixel with what the original has *here* and *there*
    -> probability -> mask

The search for donors leaves the host out (``query._trace``), so that nothing else would find these. Features, not
cells: a copied person of 40 px is three cells. Which of the two is the copy is no question: the original shows it.

Shape letters: H, W pixels; C channels; K, M features of the region and of the original; N boxes. Frames as in
``vision.geometry``, boxes [x0, y0, x1, y1] in pixels of the picture they are in. A transform takes query pixels to
pixels of the host's working copy, a flip included.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache

import cv2
import numpy as np
from numpy.typing import NDArray
from threadpoolctl import ThreadpoolController

from stemma import outline, splice
from stemma.vision import geometry
from stemma.vision.geometry import Map33, Picture

Box4 = tuple[float, float, float, float]
Float = NDArray[np.float32]

REGIONS_MAX = 8
"""Changed regions that are looked at, in the order given, which is that of strength."""
SIDE_PX_MIN = 32.0
"""A region with a smaller side has too few features to name a place by."""
GROWN_SHARE = 0.1
"""A region grows by this share of its sides: heatmaps end a cell early or late."""
FEATURES_MAX = 1500
"""Of a picture, the strongest: 512 px of foliage have more, and matching costs their product."""
REGION_FEATURES_MAX = 500
CONTRAST_MIN = 0.015
"""SIFT's own threshold is .04: a copied jacket has nothing above it."""
RATIO_MAX = 0.8
"""Lowe's: distance of the nearest feature by that of the nearest one elsewhere."""
NEXT_MAX = 4
"""Next best features that are tried for one elsewhere."""
ELSEWHERE_PX = 8.0
"""Features of the original nearer than this to a place are that place."""
TOLERANCE_PX = 3.0
"""Of a match under a map."""
MATCHES_MIN = 4
"""Two determine a similarity, so that two must agree with them."""
RANSAC_ROUNDS_MAX = 1000
SCALE_MIN, SCALE_MAX = 0.4, 2.5
"""Of a believable map, as a change of length."""
ALIKE_MIN = 0.6
"""Local correlation from which a place of the query shows what the map says."""
GAIN_MIN = 0.15
"""By how much more a place must correlate there than here to speak for a copy."""
CONTRAST_STEPS_MIN = 3.0
"""8-bit steps, standard deviation in a window, under which a place is flat and says nothing."""
PLACED_SIDE_PX = 48
"""Long side to which a region is reduced before it is laid everywhere."""
PLACED_SHARE_MIN = 0.15
"""Share of a region that must be textured and changed before it is laid everywhere."""
SPECK_PX = 5
WEIGHTS = (-20.3388, 2.381, 9.0716, 20.613, 0.2764)
"""Bias, and of ``features``: fitted by ``python -m training.clones --data DIR --photographs 120``."""
SHOWN_MIN = 0.5
"""Probability from which a copy is shown; fitted with them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Evidence:
    """What speaks for a copy; ``training.clones`` fits the probability on it."""

    matches: int
    """Features that agree on the map."""
    share: float
    """Of the region's textured places that the original does not show here, those that it shows there."""
    correlation: float
    """Mean over those, there."""
    windows: float
    """Area of those, in windows of a local correlation: two of them are no evidence, whatever the share."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Clone:
    """A part of the query that the original shows at another place."""

    query_box: Box4
    """Around what was copied: whole pixels, those of ``mask``."""
    donor_box: Box4
    """Where it stands in the host."""
    probability: float
    transform_33: Map33
    mirrored: bool
    mask: tuple[outline.Window, Picture]
    """(``query_box``, mask of its size: 255 where the query shows the copy)."""
    evidence: Evidence


def find(query_HWC: Picture, box_N4: NDArray[np.floating], host_HWC: Picture, host_from_query_33: Map33) -> list[Clone]:
    """Copies among the changed regions of the query, the likeliest first; those under ``SHOWN_MIN`` are left out.

    ``host_from_query_33`` lays the whole query over the host, both at working size.
    """
    return [one for one in candidates(query_HWC, box_N4, host_HWC, host_from_query_33) if one.probability >= SHOWN_MIN]


def candidates(
    query_HWC: Picture, box_N4: NDArray[np.floating], host_HWC: Picture, host_from_query_33: Map33
) -> list[Clone]:
    """The best map of each region, however unlikely, by probability, highest first."""
    if not len(box_N4):
        return []
    # BLAS threads that wait for each other cost eight times the CPU of one on products this small
    with _blas().limit(limits=1, user_api="blas"):
        # 90 ms, and many a region is too small or too flat to be matched with it
        host = cache(lambda: _Features.of(host_HWC))
        found = [
            clone
            for box in np.asarray(box_N4, np.float64).reshape(-1, 4)[:REGIONS_MAX].tolist()
            if min(box[2] - box[0], box[3] - box[1]) >= SIDE_PX_MIN
            for clone in [_Region(query_HWC, box, host_HWC, host_from_query_33).best(host)]
            if clone is not None
        ]
    return sorted(found, key=lambda one: (-one.probability, one.query_box))


@cache
def _blas() -> ThreadpoolController:
    return ThreadpoolController()


def features(evidence: Evidence) -> tuple[float, ...]:
    """What the weights multiply, after their bias."""
    return (math.log1p(evidence.matches), evidence.share, evidence.correlation, math.log1p(evidence.windows))


def probability(evidence: Evidence, weights: tuple[float, ...] = WEIGHTS) -> float:
    """Logistic."""
    total = sum(weight * term for weight, term in zip(weights, (1.0, *features(evidence)), strict=True))
    return 1.0 / (1.0 + math.exp(-min(max(total, -50.0), 50.0)))


@dataclass(frozen=True, slots=True)
class _Features:
    """SIFT keypoints, centres at .5, and RootSIFT descriptors of length 1."""

    at_K2: NDArray[np.float64]
    descriptor_KF: Float

    @classmethod
    def of(cls, rgb_HWC: Picture, most: int = FEATURES_MAX) -> _Features:
        sift = cv2.SIFT.create(nfeatures=most, contrastThreshold=CONTRAST_MIN)
        points, descriptor_KF = sift.detectAndCompute(cv2.cvtColor(rgb_HWC, cv2.COLOR_RGB2GRAY), None)
        if not points:
            return cls(np.zeros((0, 2)), np.zeros((0, 128), np.float32))
        # Hellinger's kernel: large gradients no longer decide alone
        total_K1 = np.maximum(descriptor_KF.sum(1, keepdims=True), 1e-6)
        at_K2 = np.array([point.pt for point in points], np.float64) + 0.5
        return cls(at_K2, np.sqrt(descriptor_KF / total_K1).astype(np.float32))

    def mirrored(self) -> _Features:
        """The same places, described as the mirror image shows them: of the 4 x 4 x 8 numbers along the keypoint's
        direction, rows change sides and turns their sense. A second detection would cost as much as the first."""
        turned = -np.arange(8) % 8
        flipped_KF = self.descriptor_KF.reshape(-1, 4, 4, 8)[:, ::-1, :, turned].reshape(-1, 128)
        return _Features(self.at_K2, np.ascontiguousarray(flipped_KF))


class _Region:
    """One changed region of the query, and what the host shows at its place."""

    def __init__(self, query_HWC: Picture, box: list[float], host_HWC: Picture, host_from_query_33: Map33) -> None:
        self.query_HWC, self.host_HWC, self.host_from_query_33 = query_HWC, host_HWC, host_from_query_33
        self.box = box
        self.window = outline.grown(box, (query_HWC.shape[1], query_HWC.shape[0]), GROWN_SHARE)
        x0, y0, x1, y1 = self.window
        self.ours_HWC = np.ascontiguousarray(query_HWC[y0:y1, x0:x1])
        here_HWC, there_HW = outline.laid(host_HWC, host_from_query_33, self.window)
        self.here_HW = np.where(there_HW, outline.correlation(self.ours_HWC, here_HWC), 0)
        self.textured_HW = _contrast(self.ours_HWC) >= CONTRAST_STEPS_MIN

    def best(self, host: Callable[[], _Features]) -> Clone | None:
        """The likelier of upright and mirrored; where no features agree, of the places that look like it as a whole."""
        found: list[Clone] = []
        for starts in (self._maps(host), self._placed()):
            found += [clone for start in starts for clone in [self._judged(*start)] if clone is not None]
            if any(one.probability >= SHOWN_MIN for one in found):
                break
        return max(found, key=lambda one: one.probability, default=None)

    def _maps(self, host: Callable[[], _Features]) -> Iterator[tuple[Map33, int]]:
        """(map, matches that agree on it), of either view."""
        ours = _Features.of(self.ours_HWC, REGION_FEATURES_MAX)
        column_K, row_K = (ours.at_K2 - 0.5).round().astype(np.intp).T
        changed_K = self.here_HW[row_K, column_K] < ALIKE_MIN
        ours = _Features(ours.at_K2[changed_K], ours.descriptor_KF[changed_K])
        if len(ours.at_K2) < MATCHES_MIN:
            return
        query_from_window_33 = geometry.translation(self.window[0], self.window[1])
        ours = _Features(geometry.apply(query_from_window_33, ours.at_K2), ours.descriptor_KF)
        for mirrored in (False, True):
            view_33 = geometry.mirror(self.query_HWC.shape[1]) if mirrored else geometry.identity()
            from_K2, to_K2 = self._matches(ours.mirrored() if mirrored else ours, host())
            found = _similarity(geometry.apply(view_33, from_K2), to_K2)
            if found is not None:
                yield found[0] @ view_33, found[1]

    def _matches(self, ours: _Features, host: _Features) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Places in the query and in the host of features that match, but those that are still in their place."""
        if not len(ours.at_K2) or len(host.at_K2) < 2:
            return np.zeros((0, 2)), np.zeros((0, 2))
        alike_KM = ours.descriptor_KF @ host.descriptor_KF.T
        rows_K = np.arange(len(alike_KM))
        first_K = alike_KM.argmax(1)
        to_K2, best_K = host.at_K2[first_K], alike_KM[rows_K, first_K]
        moved_K = _apart(to_K2, geometry.apply(self.host_from_query_33, ours.at_K2)) > ELSEWHERE_PX
        # the next best that stands elsewhere: a corner is often found at two scales
        next_K = np.full(len(rows_K), -1.0, np.float32)
        for _ in range(NEXT_MAX):
            alike_KM[rows_K, first_K] = -1
            first_K = alike_KM.argmax(1)
            elsewhere_K = _apart(host.at_K2[first_K], to_K2) > ELSEWHERE_PX
            next_K = np.maximum(next_K, np.where(elsewhere_K, alike_KM[rows_K, first_K], -1))
        near_K, next_K = (np.sqrt(np.maximum(2 - 2 * one_K, 0)) for one_K in (best_K, next_K))
        kept_K = moved_K & (near_K < RATIO_MAX * next_K)
        return ours.at_K2[kept_K], to_K2[kept_K]

    def _placed(self) -> Iterator[tuple[Map33, int]]:
        """(shift, 0): where what changed correlates best with the host as a whole, upright and mirrored.

        Smooth things have no corners, and a forger's plain copy has the scale and the turn of its original.
        """
        changed_HW = (self.here_HW < ALIKE_MIN) & self.textured_HW
        if np.count_nonzero(changed_HW) < PLACED_SHARE_MIN * changed_HW.size:
            return
        zoom = math.sqrt(abs(float(np.linalg.det(self.host_from_query_33[:2, :2]))))
        x0, y0, x1, y1 = self.window
        # both at one scale, so small that a window's long side is PLACED_SIDE_PX
        shrink = min(1.0, PLACED_SIDE_PX / max(x1 - x0, y1 - y0))
        size = (max(3, round((x1 - x0) * shrink)), max(3, round((y1 - y0) * shrink)))
        height, width = self.host_HWC.shape[:2]
        host_size = (round(width * shrink / zoom), round(height * shrink / zoom))
        if host_size[0] <= size[0] or host_size[1] <= size[1]:
            return
        host_HWC = geometry.resize(self.host_HWC, host_size)
        patch_HWC = geometry.resize(self.ours_HWC, size)
        where_HW = geometry.resize(changed_HW.astype(np.uint8) * 255, size) > 127
        host_from_small_33 = geometry.scaling(width / host_size[0], height / host_size[1])
        small_from_window_33 = geometry.scaling(size[0] / (x1 - x0), size[1] / (y1 - y0))
        for mirrored in (False, True):
            patch, where = (one[:, ::-1] if mirrored else one for one in (patch_HWC, where_HW))
            score_HW = _correlations(host_HWC, np.ascontiguousarray(patch), np.ascontiguousarray(where))
            self._forget_here(score_HW, host_from_small_33, size)
            top, left = np.unravel_index(int(score_HW.argmax()), score_HW.shape)
            view_33 = geometry.mirror(size[0]) if mirrored else geometry.identity()
            small_33 = geometry.translation(float(left), float(top)) @ view_33 @ small_from_window_33
            yield host_from_small_33 @ small_33 @ geometry.translation(-x0, -y0), 0

    def _forget_here(self, score_HW: Float, host_from_small_33: Map33, size: geometry.Size) -> None:
        """Takes out the shifts that lay the region on its own place."""
        here = splice.landed(self.window, geometry.inverse(host_from_small_33) @ self.host_from_query_33)
        x, y = round((here[0] + here[2] - size[0]) / 2), round((here[1] + here[3] - size[1]) / 2)
        across, down = size[0] // 2, size[1] // 2
        score_HW[max(0, y - down) : max(0, y + down + 1), max(0, x - across) : max(0, x + across + 1)] = -1

    def _judged(self, start_33: Map33, matches: int) -> Clone | None:
        """What is left of a map after it was refined and laid over the region."""
        map_33 = outline.refined(self.query_HWC, self.host_HWC, self.box, start_33)
        theirs_HWC, inside_HW = outline.laid(self.host_HWC, map_33, self.window)
        there_HW = np.where(inside_HW, outline.correlation(self.ours_HWC, theirs_HWC), 0)
        speaks_HW = (there_HW > ALIKE_MIN) & (there_HW > self.here_HW + GAIN_MIN) & self.textured_HW
        asked_HW = self.textured_HW & (self.here_HW < ALIKE_MIN)
        share = float(speaks_HW.sum() / max(1, (asked_HW | speaks_HW).sum()))
        mask_HW = self._mask(theirs_HWC, inside_HW, there_HW)
        if not speaks_HW.any() or not mask_HW.any():
            return None
        left, top, width, height = cv2.boundingRect(mask_HW)
        x0, y0 = self.window[0] + left, self.window[1] + top
        window = (x0, y0, x0 + width, y0 + height)
        query_box = (float(x0), float(y0), float(x0 + width), float(y0 + height))
        there = splice.landed(query_box, map_33)
        if splice.overlap(splice.landed(query_box, self.host_from_query_33), there) > splice.CLONE_IOU_MAX:
            return None
        evidence = Evidence(
            matches=matches,
            share=share,
            correlation=float(there_HW[speaks_HW].mean()),
            windows=float(speaks_HW.sum() / outline.WINDOW_PX**2),
        )
        return Clone(
            query_box=query_box,
            donor_box=_within(_around(mask_HW, map_33 @ geometry.translation(*self.window[:2])), self.host_HWC),
            probability=probability(evidence),
            transform_33=map_33,
            mirrored=geometry.is_mirrored(map_33),
            mask=(window, np.ascontiguousarray(mask_HW[top : top + height, left : left + width])),
            evidence=evidence,
        )

    def _mask(self, theirs_HWC: Picture, inside_HW: NDArray[np.bool_], there_HW: Float) -> Picture:
        """Where the query shows what the host has there, but for what it shows here just as well."""
        mask_HW = outline.agreeing(self.ours_HWC, theirs_HWC, inside_HW)
        mask_HW[(self.here_HW > ALIKE_MIN) & (self.here_HW > there_HW)] = 0
        disc = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (SPECK_PX, SPECK_PX))
        return np.asarray(cv2.morphologyEx(mask_HW, cv2.MORPH_OPEN, disc), np.uint8)


def _similarity(from_K2: NDArray[np.float64], to_K2: NDArray[np.float64]) -> tuple[Map33, int] | None:
    """(turn, scale and shift, places that agree on it) by RANSAC, or None where too few do."""
    if len(from_K2) < MATCHES_MIN:
        return None
    found_23, agrees_K1 = cv2.estimateAffinePartial2D(
        from_K2, to_K2, method=cv2.RANSAC, ransacReprojThreshold=TOLERANCE_PX, maxIters=RANSAC_ROUNDS_MAX
    )
    if found_23 is None:
        return None
    agrees_K = agrees_K1[:, 0] > 0
    # a corner found at two scales, or with two directions, is one witness
    count = len(np.unique(np.round(from_K2[agrees_K] / 2), axis=0))
    scale = math.sqrt(abs(float(np.linalg.det(found_23[:, :2]))))
    if count < MATCHES_MIN or not SCALE_MIN <= scale <= SCALE_MAX:
        return None
    return np.vstack([found_23, [0, 0, 1]]), count


def _correlations(host_HWC: Picture, patch_HWC: Picture, where_HW: NDArray[np.bool_]) -> Float:
    """[rows, columns] of shifts: correlation of the patch's marked pixels with the host there; -1 where it is flat."""
    host_HW, patch_HW = (cv2.cvtColor(one, cv2.COLOR_RGB2GRAY).astype(np.float32) for one in (host_HWC, patch_HWC))
    score_HW = cv2.matchTemplate(host_HW, patch_HW, cv2.TM_CCOEFF_NORMED, mask=where_HW.astype(np.float32))
    return np.asarray(np.where(np.isfinite(score_HW) & (np.abs(score_HW) <= 1.001), score_HW, -1), np.float32)


def _apart(one_K2: NDArray[np.float64], other_K2: NDArray[np.float64]) -> NDArray[np.float64]:
    off_K2 = one_K2 - other_K2
    return np.hypot(off_K2[:, 0], off_K2[:, 1])


def _contrast(rgb_HWC: Picture) -> Float:
    """[H, W] standard deviation of luminance in windows of 9 px."""
    grey_HW = cv2.cvtColor(rgb_HWC, cv2.COLOR_RGB2GRAY).astype(np.float32)
    side = (outline.WINDOW_PX, outline.WINDOW_PX)
    spread_HW = cv2.blur(grey_HW * grey_HW, side) - cv2.blur(grey_HW, side) ** 2
    return np.asarray(np.sqrt(np.maximum(spread_HW, 0)), np.float32)


def _around(mask_HW: Picture, map_33: Map33) -> Box4:
    """The box around where a mask's pixels go: that of its own box is much too large once it is turned."""
    row_N, column_N = np.nonzero(mask_HW)
    to_N2 = geometry.apply(map_33, np.stack([column_N, row_N], 1).astype(np.float64) + 0.5)
    half = math.sqrt(abs(float(np.linalg.det(map_33[:2, :2])))) / 2
    (left, top), (right, bottom) = to_N2.min(0) - half, to_N2.max(0) + half
    return float(left), float(top), float(right), float(bottom)


def _within(box: Box4, picture_HWC: Picture) -> Box4:
    """The part of a box that lies in a picture."""
    height, width = picture_HWC.shape[:2]
    x0, x1 = (min(max(value, 0.0), float(width)) for value in (box[0], box[2]))
    y0, y1 = (min(max(value, 0.0), float(height)) for value in (box[1], box[3]))
    return x0, y0, x1, y1
