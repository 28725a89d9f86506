"""Speed of one embedded search, taken apart. Every figure of a run is taken in turn with the others, so ratios hold
on a busy machine. Embeddings are random: an exact scan does not depend on what they say. Cells come from blurred noise
through the encoder, because verification works longer the more cells agree.

    stemma bench search --json

``exact_1k_ms``, ``exact_100k_ms``: the nearest 100 of so many int8 embeddings, both views of the query.
``verify_pair_ms``: one candidate verified in both orientations. ``encode_ms``: one forward pass of one view, cells
included. ``verify_in_passes``: 100 candidates verified, in forward passes.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from statistics import median
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from stemma.config import load
from stemma.flow import EMBEDDING_DIM
from stemma.index.search import ExactBlock, Need
from stemma.networks.encoder import Encoder
from stemma.networks.matching import match

ROUNDS = 15
CANDIDATES = 100
SHORTLIST = 100
SIZES = {"exact_1k_ms": 1_000, "exact_100k_ms": 100_000}
PICTURES = 10
"""Different pictures behind the candidates; each stands several times."""


def measure(*, rounds: int = ROUNDS, sizes: dict[str, int] | None = None) -> dict[str, Any]:
    """Medians over ``rounds``, milliseconds, and the ratio."""
    rng = np.random.default_rng(0)
    encoder = Encoder.load(load().encoder)
    picture = _picture(rng)
    coded = [encoder.encode(_picture(rng), mirrored=False).cells_VNF for _ in range(PICTURES)]
    cells_BNF = np.concatenate([cells_VNF for cells_VNF in coded if cells_VNF is not None] * (CANDIDATES // PICTURES))
    query_VNF = encoder.encode(picture, mirrored=True).cells_VNF
    assert query_VNF is not None
    query_VD = rng.integers(-90, 91, (2, EMBEDDING_DIM), np.int8)
    works: dict[str, Callable[[], object]] = {
        "encode_ms": lambda: encoder.encode(picture, mirrored=False),
        "verify_pair_ms": lambda: match(query_VNF, cells_BNF),
    }
    for name, count in (sizes or SIZES).items():
        works[name] = _exact(rng.integers(-90, 91, (count, EMBEDDING_DIM), np.int8), query_VD)
    times: dict[str, list[float]] = {name: [] for name in works}
    for turn in range(rounds + 1):
        for name, work in works.items():
            begun = time.perf_counter()
            work()
            if turn:  # the first turn warms caches and allocators
                times[name].append(1e3 * (time.perf_counter() - begun))
    found = {name: median(values) for name, values in times.items()}
    verify_ms, encode_ms = found["verify_pair_ms"], found["encode_ms"]
    found["verify_pair_ms"] = verify_ms / CANDIDATES
    return {
        **{name: round(value, 4) for name, value in found.items()},
        "verify_in_passes": round(verify_ms / encode_ms, 3),
        "rounds": rounds,
    }


def _picture(rng: np.random.Generator) -> NDArray[np.uint8]:
    """Blurred noise of two scales, [384, 512, 3]."""
    scales = [cv2.resize(rng.random((h, w, 3), np.float32), (512, 384)) for h, w in ((6, 8), (48, 64))]
    return np.asarray(127 * sum(scales), np.uint8)


def _exact(vectors_ND: NDArray[np.int8], query_VD: NDArray[np.int8]) -> Callable[[], object]:
    block, live_N = ExactBlock(), np.ones(len(vectors_ND), np.bool_)
    block.add(np.arange(len(vectors_ND), dtype=np.uint64), vectors_ND)
    need = Need(query_VD, SHORTLIST)
    return lambda: block.scan([need], SHORTLIST, live_N)
