"""Pictures that need no files, and one encoder for all tests of this room."""

from __future__ import annotations

from collections.abc import Callable

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from stemma.config import EncoderSettings
from stemma.networks.encoder import Encoder

Picture = NDArray[np.uint8]


@pytest.fixture(scope="session")
def encoder() -> Encoder:
    return Encoder.load(EncoderSettings())


@pytest.fixture(scope="session")
def scene() -> Callable[..., Picture]:
    """A picture full of things of different shape, colour and size, the same for the same seed."""

    def draw(seed: int, height: int = 320, width: int = 448) -> Picture:
        rng = np.random.default_rng(seed)
        coarse = rng.integers(40, 216, (5, 7, 3)).astype(np.uint8)
        out = cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC)
        for _ in range(60):
            x, y = int(rng.integers(width)), int(rng.integers(height))
            w, h = int(rng.integers(6, 60)), int(rng.integers(6, 60))
            colour = tuple(int(value) for value in rng.integers(0, 256, 3))
            if rng.random() < 0.5:
                cv2.ellipse(out, (x, y), (w, h), float(rng.uniform(0, 180)), 0, 360, colour, -1, cv2.LINE_AA)
            else:
                cv2.rectangle(out, (x, y), (x + w, y + h), colour, -1 if rng.random() < 0.6 else 3)
        return np.ascontiguousarray(out)

    return draw
