"""Global descriptors of a feature map, the baselines of OE-SIR (docs/papers.md 2.2, 22): SPoC, MAC, R-MAC, GeM.

All are of length 1. They are compared by their dot product, after PCA whitening (OE-SIR 4.1) where one is given; R-MAC
whitens its regions, the others their one vector. Features must not be negative. Letters: C channels; H, W rows and
columns of the map; R regions; N vectors; D dimensions after whitening.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from training.objects import whitened_components

Float = NDArray[np.float32]

POWER = 3.0
LEVELS = 3
OVERLAP = 0.4
"""Two neighbouring regions of R-MAC share about this much of their area (Tolias et al. 2016)."""
STEPS_MAX = 6
DIM = 256
NORM_MIN = 1e-12


@dataclass(frozen=True, slots=True)
class Whitening:
    """PCA whitening that was fitted on other pictures."""

    mean_C: NDArray[np.float64]
    components_DC: NDArray[np.float64]

    @classmethod
    def fitted(cls, vectors_NC: Float, dims: int = DIM) -> Whitening:
        return cls(*whitened_components(vectors_NC.astype(np.float64), min(dims, len(vectors_NC) - 1)))

    def __call__(self, vectors_NC: Float) -> Float:
        return np.asarray((vectors_NC - self.mean_C) @ self.components_DC.T, np.float32)


def unit(vectors: Float) -> Float:
    return np.asarray(vectors / np.maximum(np.linalg.norm(vectors, axis=-1, keepdims=True), NORM_MIN), np.float32)


def spoc(map_CHW: Float) -> Float:
    """[1, C] mean over the positions, without the centre prior of its paper."""
    return np.asarray(map_CHW.mean((1, 2))[None], np.float32)


def mac(map_CHW: Float) -> Float:
    """[1, C] maximum over the positions."""
    return np.asarray(map_CHW.max((1, 2))[None], np.float32)


def gem(map_CHW: Float) -> Float:
    """[1, C] generalised mean, (mean x^3)^(1/3)."""
    return np.asarray((map_CHW.astype(np.float64) ** POWER).mean((1, 2))[None] ** (1 / POWER), np.float32)


def regional(map_CHW: Float) -> Float:
    """[R, C] maxima of R-MAC's regions."""
    return np.stack([map_CHW[:, y : y + side, x : x + side].max((1, 2)) for x, y, side in regions(map_CHW.shape[1:])])


def regions(size: tuple[int, ...], levels: int = LEVELS) -> list[tuple[int, int, int]]:
    """(x, y, side) of square regions on a map of ``size`` (rows, columns).

    At level l they have a side of 2 min(H, W) / (l + 1); l of them lie along the shorter side, and along the longer so
    many more that neighbours of the largest ones overlap by about 40%.
    """
    height, width = size
    short, long_ = min(size), max(size)
    steps = np.arange(2, STEPS_MAX + 2)
    gaps = (long_ - short) / (steps - 1)
    shared = (short * short - short * gaps) / (short * short)
    more = int(np.argmin(np.abs(shared - OVERLAP))) + 1 if long_ > short else 0
    found = []
    for level in range(1, levels + 1):
        side = max(1, int(2 * short / (level + 1)))
        across = level + (more if width > height else 0)
        down = level + (more if height > width else 0)
        found += [(x, y, side) for y in _starts(height, side, down) for x in _starts(width, side, across)]
    return found


def _starts(length: int, side: int, count: int) -> list[int]:
    """``count`` starts from edge to edge; one alone lies in the middle."""
    room = length - side
    places = [room / 2] if count == 1 else np.linspace(0, room, count).tolist()
    return sorted({int(np.floor(place)) for place in places})


POOLINGS: Mapping[str, Callable[[Float], Float]] = {"SPoC": spoc, "MAC": mac, "R-MAC": regional, "GeM": gem}
"""Name -> map [C, H, W] -> vectors [R, C] before whitening; one vector but for R-MAC."""


def descriptor(vectors_RC: Float, whitening: Whitening | None = None) -> Float:
    """[D] of length 1: each vector of length 1, whitened, of length 1 again, summed."""
    vectors_RC = unit(vectors_RC)
    if whitening is not None:
        vectors_RC = unit(whitening(vectors_RC))
    return unit(vectors_RC.sum(0))
