"""Tiny drafts and fresh catalogs."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from stemma.catalog.catalog import Catalog
from stemma.catalog.fsck import fsck
from stemma.catalog.schema import Draft

MakeDraft = Callable[..., Draft]


def _draft(body: object, image_id: str | None = None, **changes: Any) -> Draft:
    sha256 = hashlib.sha256(repr(body).encode()).hexdigest()
    rng = np.random.default_rng(int(sha256[:8], 16))
    values: dict[str, Any] = {
        "image_id": image_id,
        "name": f"file {body}",
        "sha256": sha256,
        "width": 640,
        "height": 480,
        "embedding_D": rng.integers(-127, 128, 256, dtype=np.int8),
        "cells_NF": rng.integers(-127, 128, (196, 32), dtype=np.int8),
        "pixels": rng.bytes(90),
        "weights": "w1",
        "job": "job",
        "source": f"folder/{body}.jpg",
        "metadata": {},
        "objects_weights": None if changes.get("objects") is None else "o1",
        **changes,
    }
    return Draft(**values)


@pytest.fixture(scope="session")
def draft() -> MakeDraft:
    """``draft(body, image_id=None, **fields)``: everything in it follows from ``body``."""
    return _draft


@pytest.fixture
def url(tmp_path: Path) -> str:
    return str(tmp_path / "photos.stemma")


@pytest.fixture
def catalog(url: str) -> Iterator[Catalog]:
    """A fresh catalog; on the way out it must pass a whole fsck, whatever the test did with it."""
    with Catalog.create(url) as one:
        yield one
    report = fsck(url)
    assert report.ok, report.summary()
