"""What it costs to compare one pair, against dense flow at the paper's size.

    stemma bench comparator --json [--data DIR]

Queries are rendered from the training photographs of ``--data`` (its calibration part), else from drawn pictures,
edited or not, under the benign suite; each is verified against its original as a search does, and what verification
would not show the comparator is left out. So hypotheses come in the product's own mix: most pairs align from
verification's map, some ask for flow. One thread; processor time, pair after pair in turn with the dense way, so the
ratio holds on a busy machine.

``pair_ms``: aligned, laid over the original, compared, brought back to the query (``stemma.networks.comparing``), at
the shipped size. ``dense_224_ms``: RAFT-small at 224 px with 12 updates, de-warping, and the same network at 224.
``ratio``: of the two. All are means over the pairs, of each pair's median over the rounds.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, median
from typing import Any

import cv2
import numpy as np
import torch
from torch import Tensor

from benchmarks.pictures import drawn
from stemma.config import load
from stemma.flow import Pairing, Pixels
from stemma.networks import raft, weights
from stemma.networks.comparator import Compared, StarterComparator
from stemma.networks.comparing import Comparator
from stemma.networks.encoder import Encoder
from stemma.networks.matching import match
from stemma.vision import benign, edits, geometry
from stemma.vision.decode import working_copy
from stemma.vision.geometry import Picture
from training import split
from training.data import Photographs
from training.views import at_working_size

ROUNDS = 3
PAIRS = 48
EDITED_SHARE = 0.5
SEED = 5
DENSE_SIDE_PX = 224


@dataclass(frozen=True, slots=True)
class Asked:
    """One pair as the comparator gets it, and its original's pixels."""

    query_HWC: Picture
    pairing: Pairing
    original_HWC: Picture


def measure(*, data: Path | None = None, rounds: int = ROUNDS, pairs: int = PAIRS) -> dict[str, Any]:
    """Means over the pairs, milliseconds of processor time, and their ratio."""
    settings = load()
    threads, cv_threads = torch.get_num_threads(), cv2.getNumThreads()
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    try:
        asked = list(_asked(_pictures(data), pairs, Encoder.load(settings.encoder)))
        comparator, dense = Comparator.load(settings.comparator), Dense()
        ways: dict[str, Callable[[Asked], object]] = {
            "pair_ms": lambda one: comparator.compare(one.query_HWC, [one.pairing]),
            "dense_224_ms": lambda one: dense(one.query_HWC, one.original_HWC),
        }
        found = _taken(ways, asked, rounds)
    finally:
        torch.set_num_threads(threads)
        cv2.setNumThreads(cv_threads)
    means = {name: fmean(values) for name, values in found.items()}
    return {
        **{name: round(mean, 2) for name, mean in means.items()},
        "ratio": round(means["pair_ms"] / means["dense_224_ms"], 3),
        "pair_ms_worst": round(max(found["pair_ms"]), 2),
        "pairs_timed": len(asked),
        "rendered": pairs,
        "rounds": rounds,
        "pictures": "drawn" if data is None else "training photographs",
        "cores": os.cpu_count(),
        "load": round(os.getloadavg()[0], 1),
    }


def _taken(ways: dict[str, Callable[[Asked], object]], asked: list[Asked], rounds: int) -> dict[str, list[float]]:
    """Each pair's median milliseconds under each way; a first round warms caches and allocators."""
    times: dict[str, list[list[float]]] = {name: [[] for _ in asked] for name in ways}
    for turn in range(rounds + 1):
        for place, one in enumerate(asked if turn else asked[:2]):
            for name, way in ways.items():
                begun = time.process_time()
                way(one)
                if turn:
                    times[name][place].append(1e3 * (time.process_time() - begun))
    return {name: [median(values) for values in each] for name, each in times.items()}


def _pictures(data: Path | None) -> Callable[[int], Picture]:
    if data is None:
        return drawn
    photographs = Photographs(data / "photos" / "train", split.load().calibrate)
    return lambda number: photographs[number % len(photographs)]


def _asked(pictures: Callable[[int], Picture], count: int, encoder: Encoder) -> Iterator[Asked]:
    """Of ``count`` rendered queries those that verification finds."""
    threshold = weights.card().match_threshold
    for number in range(count):
        rng = np.random.default_rng([SEED, number])
        original_HWC = pictures(number)
        source_HWC = original_HWC
        if rng.random() < EDITED_SHARE:
            source_HWC = edits.manipulate(original_HWC, rng, [pictures(number + 1)]).rgb_HWC
        query_HWC = at_working_size(benign.render(source_HWC, rng).rgb_HWC)
        query, original = encoder.encode(query_HWC, mirrored=True), encoder.encode(original_HWC, mirrored=False)
        if query.cells_VNF is None or original.cells_VNF is None:
            continue
        (verified,) = match(query.cells_VNF, original.cells_VNF)
        if verified.score >= threshold:
            height, width = original_HWC.shape[:2]
            body = working_copy(Pixels(rgb_HWC=original_HWC, width=width, height=height, sha256="", format="JPEG"))
            pairing = Pairing(original=body, affine=verified.affine, mirrored=verified.mirrored)
            yield Asked(query_HWC, pairing, original_HWC)


class Dense:
    """Dense flow from the original to the query, de-warping, and the shipped network, all at 224 px."""

    def __init__(self) -> None:
        _, tensors = weights.read_comparator()
        self._flow = raft.load_shipped()
        self._network = StarterComparator()
        self._network.load_state_dict({name: torch.from_numpy(tensor) for name, tensor in tensors.items()})
        self._network.eval().requires_grad_(False).to(memory_format=torch.channels_last)

    @torch.inference_mode()
    def __call__(self, query_HWC: Picture, original_HWC: Picture) -> Compared:
        query_B3HW, original_B3HW = (_square(one_HWC) for one_HWC in (query_HWC, original_HWC))
        flow_B2HW = self._flow(original_B3HW / 127.5 - 1, query_B3HW / 127.5 - 1)
        laid_B3HW = raft.dewarp(query_B3HW, flow_B2HW)
        valid_B1HW = (raft.dewarp(torch.ones_like(query_B3HW[:, :1]), flow_B2HW) > 0.99).float()
        said: Compared = self._network(laid_B3HW, original_B3HW, valid_B1HW)
        return said


def _square(rgb_HWC: Picture) -> Tensor:
    small_HWC = geometry.resize(rgb_HWC, (DENSE_SIDE_PX, DENSE_SIDE_PX))
    return torch.from_numpy(small_HWC).permute(2, 0, 1)[None].float()
