"""A small collection of synthetic embeddings, with values so coarse that distances tie."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from stemma.catalog import Catalog, Draft
from stemma.config import ClusterSettings, SearchSettings, Settings
from stemma.flow import CELL_COUNT, CELL_DIM, EMBEDDING_DIM, Encoded, Objects, ShardQuery

CELLS = np.zeros((CELL_COUNT, CELL_DIM), np.int8)


def make_draft(number: int, **changed: Any) -> Draft:
    rng = np.random.default_rng(number % 11)
    image_id = hashlib.sha256(str(number).encode()).hexdigest()[:12]
    parts: dict[str, Any] = {
        "image_id": image_id,
        "name": f"{number}.jpg",
        "sha256": hashlib.sha256(image_id.encode()).hexdigest(),
        "width": 64,
        "height": 48,
        "embedding_D": rng.integers(-2, 3, EMBEDDING_DIM).astype(np.int8),
        "cells_NF": CELLS,
        "pixels": f"working copy of {number}".encode(),
        "weights": "synthetic",
        "job": "unit",
        "source": f"{number}.jpg",
        "metadata": {"number": number},
        "objects_weights": None if changed.get("objects") is None else "synthetic objects",
    }
    return Draft(**{**parts, **changed})


@pytest.fixture
def drafts() -> Callable[[Sequence[int]], list[Draft]]:
    return lambda numbers: [make_draft(number) for number in numbers]


@pytest.fixture
def a_draft() -> Callable[..., Draft]:
    return make_draft


@pytest.fixture
def some_objects() -> Callable[[int], Objects]:
    """Three boxes and the whole picture; the boxes' embeddings are shared by many numbers."""

    def make(number: int) -> Objects:
        own_OD = np.random.default_rng(number).integers(-2, 3, (1, EMBEDDING_DIM))
        shared_OD = np.random.default_rng(number % 7).integers(-2, 3, (3, EMBEDDING_DIM))
        box_O4 = np.array([[0, 0, 0.5, 0.5], [0, 0, 1, 0.5], [0.5, 0, 1, 1], [0, 0, 1, 1]], np.float32)
        return Objects(
            box_O4=box_O4,
            score_O=np.ones(4, np.float32),
            embedding_OD=np.concatenate([shared_OD, own_OD]).astype(np.int8),
        )

    return make


@pytest.fixture
def collection(tmp_path: Path) -> str:
    url = str(tmp_path / "c.stemma")
    with Catalog.create(url) as catalog:
        for lo in range(0, 60, 20):
            catalog.commit([make_draft(number) for number in range(lo, lo + 20)])
    return url


@pytest.fixture
def tree() -> Callable[..., Settings]:
    def make(*, copies: int = 1, tail_rows_max: int = 1_000, **cluster: Any) -> Settings:
        return Settings(
            cluster=ClusterSettings(copies=copies, **cluster),
            search=SearchSettings(tail_block_rows=8, tail_rows_max=tail_rows_max, shortlist=10),
        )

    return make


@pytest.fixture
def a_question() -> Callable[..., ShardQuery]:
    def make(seed: int, **changed: Any) -> ShardQuery:
        views = np.random.default_rng((5, seed)).integers(-2, 3, (2, EMBEDDING_DIM)).astype(np.int8)
        encoded = Encoded(embedding_VD=views, cells_VNF=None, featureless=False, weights="synthetic")
        return ShardQuery(**{"encoded": encoded, "shortlist": 10, "nprobe": 4, **changed})

    return make
