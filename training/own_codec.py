"""A collection's own codec, trained on the embeddings that it holds, of its images or of their objects."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from stemma.catalog import Catalog
from stemma.errors import BadRequest, Conflict
from stemma.flow import EMBEDDING_DIM, OBJECT_DIM, OBJECTS_MEAN
from stemma.index.codec import Codec
from stemma.networks.weights import CODEC_FOLDER, card

SAMPLE_MAX = 262_144
"""Embeddings learned from, at most: 39 for each of 6,700 lists."""
READ_ROWS = 8_192


def train_own_codec(
    url: str, kind: str, *, seed: int = 0, weights: str | None = None, object_scale: float | None = None
) -> Codec:
    """Train ``opq`` or ``paper`` (DIC eq. 3) on live originals spread evenly over the collection, or ``objects``
    (OE-SIR 4.1) on their objects, which needs the scale of the objects' card; kept in the collection's folder.

    From the next maintenance on the collection is sealed and searched with it, where its settings want that kind; one
    of objects goes with either. Raises ``NotFound``, ``BadRequest`` for fewer than 256 embeddings, ``Conflict`` when it
    has one of this kind already.
    """
    scale = object_scale if kind == "objects" else card(weights).embedding_scale
    if scale is None:
        raise BadRequest("a codec of objects needs the scale that their embeddings have", subject=kind)
    folder = Path(url) / CODEC_FOLDER / kind
    if folder.exists():
        raise Conflict(f"the collection has its own {kind} codec; remove {folder} to train another", subject=kind)
    with Catalog.open(url) as catalog:
        snapshot = catalog.snapshot()
        row_R = snapshot.row_R[snapshot.live()]
        most = SAMPLE_MAX // (OBJECTS_MEAN + 1 if kind == "objects" else 1)
        sample_S = row_R[np.linspace(0, len(row_R) - 1, min(len(row_R), most)).astype(np.int64)]
        parts = [
            _embeddings(catalog, sample_S[start : start + READ_ROWS], kind)
            for start in range(0, len(sample_S), READ_ROWS)
        ]
    vectors_SD = np.concatenate([np.empty((0, EMBEDDING_DIM), np.int8), *parts])
    # crowded pictures have more objects than the mean
    vectors_SD = vectors_SD[np.linspace(0, len(vectors_SD) - 1, min(len(vectors_SD), SAMPLE_MAX)).astype(np.int64)]
    codec = Codec.train(kind, vectors_SD, seed=seed, scale=scale)
    codec.save(folder)
    return codec


def _embeddings(catalog: Catalog, row_R: NDArray[np.uint64], kind: str) -> NDArray[np.int8]:
    if kind != "objects":
        return np.asarray(catalog.read(row_R, ["embedding"])["embedding"], np.int8)
    found = catalog.read(row_R, ["objects"])["objects"]
    return np.concatenate([np.empty((0, OBJECT_DIM), np.int8), *(one.embedding_OD for one in found)])
