"""What int8 embeddings cost against float32: the same search, before verification, with both.

Letters: N originals, Q queries, V views of a query (upright, mirrored), D embedding.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from evaluation.metrics import recall_at
from evaluation.queries import RETRIEVED, read_queries
from stemma.config import Settings
from stemma.networks import weights
from stemma.networks.backbones import Lite0
from stemma.networks.encoder import SIZES, EncoderNetwork, fill, quantise, squash
from stemma.terminal import progress
from stemma.vision.decode import DecodePool, read_working_copy, working_copy

DEPTHS = (1, 100)
Vectors = NDArray[np.float32]


def int8_cost(folder: Path, settings: Settings) -> dict[str, Any]:
    """IR@1 and IR@100 of a rendered set by distance alone: ``{float32 | int8: {set: {"IR@1", "IR@100", n}}}``."""
    queries = [query for query in read_queries(folder) if query.set in RETRIEVED]
    files = sorted((folder / "originals").iterdir())
    card, tensors = weights.read_tensors(settings.encoder.weights)
    network = _network(settings, tensors, subject=card.name)
    with DecodePool(settings.decode) as decoder, progress("encode", len(files) + len(queries)) as done:
        ids, views = [], []
        for path in files:
            pixels = decoder.decode(path.read_bytes())
            ids.append(pixels.sha256)
            views.append(embed(network, [read_working_copy(working_copy(pixels))]))
            done(1)
        original_ND, query_QVD = np.concatenate(views), []
        for query in queries:
            rgb_HWC = decoder.decode(query.path.read_bytes()).rgb_HWC
            query_QVD.append(embed(network, [rgb_HWC, np.ascontiguousarray(rgb_HWC[:, ::-1])]))
            done(1)
    rows = {image_id: row for row, image_id in enumerate(ids)}
    wanted_Q = np.array([rows[query.original] for query in queries if query.original])
    sets_Q = np.array([query.set for query in queries])
    asked_QVD = np.stack(query_QVD)

    def coded(unit: Vectors) -> Vectors:
        return quantise(unit, card.embedding_scale).astype(np.float32)

    return {
        "images": len(files),
        "queries": len(queries),
        "float32": _figures(places(asked_QVD, original_ND, wanted_Q), sets_Q),
        "int8": _figures(places(coded(asked_QVD), coded(original_ND), wanted_Q), sets_Q),
    }


def _network(settings: Settings, tensors: weights.Tensors, *, subject: str) -> EncoderNetwork:
    """As ``Encoder.load`` sets it up, on one thread, but with its float32 output at hand."""
    torch.set_num_threads(1)
    network = EncoderNetwork(SIZES[settings.encoder.size]).eval()
    fill(network, tensors, subject=subject)
    if isinstance(network.trunk, Lite0):
        network.trunk.fold()
    return network.to(memory_format=torch.channels_last)


def embed(network: EncoderNetwork, pictures: Iterable[NDArray[np.uint8]]) -> Vectors:
    """Unit embeddings [B, D] of pictures, before they are rounded; one forward pass each, as the encoder does."""
    with torch.inference_mode():
        passes = [network(torch.from_numpy(squash(each)).permute(2, 0, 1)[None].float())[0] for each in pictures]
        return np.concatenate([unit_BD.numpy() for unit_BD in passes])


def places(query_QVD: Vectors, original_ND: Vectors, wanted_Q: NDArray[np.int64]) -> NDArray[np.int64]:
    """The place, from 1, of each query's own original by squared distance, the nearer of its views."""
    norms_N = (original_ND**2).sum(1)
    out = np.empty(len(wanted_Q), np.int64)
    for i, (query_VD, wanted) in enumerate(zip(query_QVD, wanted_Q, strict=True)):
        far_VN = norms_N - 2 * (query_VD @ original_ND.T) + (query_VD**2).sum(1)[:, None]
        far_N = far_VN.min(0)
        out[i] = 1 + int((far_N < far_N[wanted]).sum())
    return out


def _figures(places_Q: NDArray[np.int64], sets_Q: NDArray[np.str_]) -> dict[str, Any]:
    return {name: _recalls(places_Q[sets_Q == name].tolist()) for name in RETRIEVED}


def _recalls(ranks: Sequence[int]) -> dict[str, Any]:
    return {**{f"IR@{k}": recall_at(k, ranks).json() for k in DEPTHS}, "n": len(ranks)}
