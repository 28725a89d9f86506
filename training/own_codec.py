"""A collection's own codec, trained on the embeddings that it holds."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from stemma.catalog import Catalog
from stemma.errors import Conflict
from stemma.index.codec import Codec
from stemma.networks.weights import CODEC_FOLDER, card

SAMPLE_MAX = 262_144
"""Embeddings learned from, at most: 39 for each of 6,700 lists."""
READ_ROWS = 8_192


def train_own_codec(url: str, kind: str, *, seed: int = 0, weights: str | None = None) -> Codec:
    """Train ``opq`` or ``paper`` (DIC eq. 3) on live originals spread evenly over the collection; kept in its folder.

    From the next maintenance on the collection is sealed and searched with it, where its settings want that kind.
    Raises ``NotFound``, ``BadRequest`` for fewer than 256 originals, ``Conflict`` when it has one of this kind already.
    """
    folder = Path(url) / CODEC_FOLDER / kind
    if folder.exists():
        raise Conflict(f"the collection has its own {kind} codec; remove {folder} to train another", subject=kind)
    with Catalog.open(url) as catalog:
        snapshot = catalog.snapshot()
        row_R = snapshot.row_R[snapshot.live()]
        sample_S = row_R[np.linspace(0, len(row_R) - 1, min(len(row_R), SAMPLE_MAX)).astype(np.int64)]
        parts = [
            catalog.read(sample_S[start : start + READ_ROWS], ["embedding"])["embedding"]
            for start in range(0, len(sample_S), READ_ROWS)
        ]
    vectors_SD = np.concatenate(parts) if parts else np.empty((0, 256), np.int8)
    codec = Codec.train(kind, vectors_SD, seed=seed, scale=card(weights).embedding_scale)
    codec.save(folder)
    return codec
