"""Scalar fields that rendered pictures are made of. H, W pixels; every field is float32; all randomness is ``rng``."""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

Field = NDArray[np.float32]
Rng = np.random.Generator


def cloud(height: int, width: int, rng: Rng, *, slope: float = 1.0) -> Field:
    """Noise with amplitude 1 / f**slope in 0..1 [H, W]. Photographs have a slope near 1; larger is smoother."""
    spectrum = np.fft.rfft2(rng.standard_normal((height, width)).astype(np.float32))
    f_y, f_x = np.fft.fftfreq(height)[:, None], np.fft.rfftfreq(width)[None, :]
    frequency = np.hypot(f_y * height / width, f_x)
    frequency[0, 0] = 1.0
    field = np.fft.irfft2(spectrum / frequency**slope, s=(height, width))
    return unit(field.astype(np.float32))


def unit(field: Field) -> Field:
    """Stretched to 0..1 between its 0.5% and 99.5% quantiles, so that one extreme pixel does not flatten the rest."""
    low, high = np.quantile(field[::4, ::4], [0.005, 0.995])
    stretched: Field = np.clip((field - low) / max(float(high - low), 1e-6), 0, 1).astype(np.float32)
    return stretched


def grid(height: int, width: int) -> tuple[Field, Field]:
    """x and y of the pixel centres, [H, W] each: 0 in the middle, the longer side 2 long."""
    side = max(height, width)
    y, x = np.mgrid[:height, :width].astype(np.float32)
    return (2 * x + 1 - width) / side, (2 * y + 1 - height) / side


def palette(rng: Rng, colours: int = 5) -> Field:
    """Colours [256, 3] in 0..1 that run smoothly through a few random ones, mostly from dark to light."""
    stops = np.sort(rng.random(colours))
    stops[0], stops[-1] = 0.0, 1.0
    hue, spread = rng.random(), rng.uniform(0.05, 0.5)
    hsv = np.stack(
        [
            360 * ((hue + spread * rng.standard_normal(colours)) % 1),
            rng.beta(1.6, 1.8, colours),
            np.clip(np.linspace(rng.uniform(0, 0.3), rng.uniform(0.7, 1), colours) + rng.normal(0, 0.1, colours), 0, 1),
        ],
        1,
    ).astype(np.float32)
    if rng.random() < 0.3:
        hsv[:, 2] = hsv[::-1, 2]
    rgb = cv2.cvtColor(hsv[None], cv2.COLOR_HSV2RGB)[0]
    at = np.linspace(0, 1, 256)
    return np.stack([np.interp(at, stops, rgb[:, c]) for c in range(3)], 1).astype(np.float32)


def paint(field: Field, colours: Field) -> Field:
    """The field as a picture [H, W, 3] in 0..1."""
    index = np.clip(field * 255, 0, 255).astype(np.int32)
    return colours[index]


def lit(height_HW: Field, rng: Rng, *, depth: float = 6.0) -> Field:
    """Brightness [H, W] of a relief under a light from one side, about 1 on flat ground."""
    slope_x, slope_y = np.gradient(height_HW)[::-1]
    angle = rng.uniform(0, 2 * np.pi)
    shade = 1.0 + depth * (np.cos(angle) * slope_x + np.sin(angle) * slope_y)
    bounded: Field = np.clip(shade, 0.2, 1.8).astype(np.float32)
    return bounded


def warped(picture: Field, rng: Rng, *, strength_px: float) -> Field:
    """The picture seen through uneven glass."""
    height, width = picture.shape[:2]
    y, x = np.mgrid[:height, :width].astype(np.float32)
    moves = [strength_px * (cloud(height, width, rng, slope=2.2) - 0.5) for _ in range(2)]
    return np.asarray(cv2.remap(picture, x + moves[0], y + moves[1], cv2.INTER_LINEAR, borderMode=cv2.BORDER_REFLECT))
