"""Pictures that the tests of this room share."""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import Any

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

Rgb = NDArray[np.uint8]


def _photo_like(width: int, height: int, seed: int = 0) -> Rgb:
    """Noise of many scales in three tied channels: edges and areas everywhere, and no symmetry."""
    rng = np.random.default_rng(seed)
    total = np.zeros((height, width, 3), np.float32)
    for cells, weight in ((3, 1.0), (8, 0.6), (18, 0.4), (40, 0.2)):
        coarse = rng.normal(0, weight, (cells, cells, 3)).astype(np.float32)
        coarse += coarse.mean(-1, keepdims=True)
        total += cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC)
    return np.clip(total * 45 + 128, 0, 255).astype(np.uint8)


@pytest.fixture(scope="session")
def photo_like() -> Callable[..., Rgb]:
    """``photo_like(width, height, seed=0)`` -> uint8 [height, width, 3]."""
    return _photo_like


@pytest.fixture(scope="session")
def photo() -> Rgb:
    return _photo_like(160, 120)


@pytest.fixture(scope="session")
def encoded() -> Callable[..., bytes]:
    """``encoded(picture, format, **options)`` -> the file that Pillow writes."""

    def save(picture: Rgb | Image.Image, format: str, **options: Any) -> bytes:
        out = io.BytesIO()
        (picture if isinstance(picture, Image.Image) else Image.fromarray(picture)).save(out, format, **options)
        return out.getvalue()

    return save
