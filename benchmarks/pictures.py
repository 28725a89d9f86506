"""Pictures for benchmarks that need some: training photographs where they are, else drawn ones."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np

from stemma.vision.geometry import Picture

HEIGHT, WIDTH = 336, 448
"""As most of the development data is stored."""
SHAPES = 24


def drawn(seed: int) -> Picture:
    """Soft ground, fine grain and many shapes with edges, uint8 RGB [336, 448, 3]."""
    rng = np.random.default_rng(seed)
    ground = cv2.resize(rng.random((5, 7, 3), np.float32), (WIDTH, HEIGHT), interpolation=cv2.INTER_CUBIC)
    grain = cv2.resize(rng.random((HEIGHT // 3, WIDTH // 3, 3), np.float32), (WIDTH, HEIGHT))
    picture = np.ascontiguousarray(np.clip(190 * ground + 50 * grain, 0, 255).astype(np.uint8))
    for _ in range(SHAPES):
        colour = rng.integers(0, 256, 3).tolist()
        x, y = int(rng.integers(WIDTH)), int(rng.integers(HEIGHT))
        size = int(rng.integers(8, 70))
        if rng.random() < 0.5:
            cv2.circle(picture, (x, y), size, colour, -1 if rng.random() < 0.6 else 3, cv2.LINE_AA)
        else:
            box = cv2.boxPoints(((x, y), (size, 2 * size), float(rng.uniform(0, 180)))).astype(np.int32)
            cv2.fillPoly(picture, [box], colour, cv2.LINE_AA)
    return picture


def write_drawn(folder: Path, names: tuple[str, ...]) -> None:
    """Drawn pictures under these names, as JPEG."""
    folder.mkdir(parents=True)
    for seed, name in enumerate(names):
        cv2.imwrite(str(folder / name), cv2.cvtColor(drawn(seed), cv2.COLOR_RGB2BGR))
