"""Makes ``corruptions.npz``: what ImageNet-C's published parameters do, by plain loops that share no code with ours.

    python tests/golden/make_corruptions.py

Families without chance are stored as the middle of a picture drawn by whole-number arithmetic (uint8 [5, 24, 32, 3],
one for each severity; the middle, because borders are handled differently). Families with chance are stored as
statistics over many draws (float64 [5, ...]); what each one is stands at its function. Parameters are those of
Hendrycks and Dietterich 2019 (ImageNet-C); nothing is read from the package.

Run it only when a published parameter turns out to be misread; a difference is otherwise a fault of ours.
"""

from __future__ import annotations

import io
import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

Float = NDArray[np.float64]
WIDTH, HEIGHT, EDGE_X, EDGE_Y = 64, 48, 16, 12
LEVEL, SIDE, DRAWS = 110, 64, 12
"""Statistics are of a flat grey picture of this level and side, over so many draws."""


def picture() -> NDArray[np.uint8]:
    """Stripes, a slope and a lattice, in three channels that differ."""
    row, column = np.indices((HEIGHT, WIDTH))
    stripes = 60 * ((column // 5 + row // 7) % 3)
    red, green = 40 + 2 * column + stripes // 2, 200 - 3 * row + stripes // 4
    blue = 30 + (column * row) % 37 * 4 + stripes // 3
    return np.clip(np.dstack([red, green, blue]), 0, 255).astype(np.uint8)


def gaussian(picture_HW: Float, sigma: float) -> Float:
    """Four sigmas wide, the border's value going on."""
    reach = int(4 * sigma + 0.5)
    weight = [math.exp(-(step**2) / (2 * sigma**2)) for step in range(-reach, reach + 1)]
    out = picture_HW
    for axis in (0, 1):
        padded = np.pad(out, [(reach, reach) if a == axis else (0, 0) for a in range(out.ndim)], mode="edge")
        total = np.zeros_like(out)
        for step, part in enumerate(weight):
            total += part / sum(weight) * np.take(padded, range(step, step + out.shape[axis]), axis)
        out = total
    return out


def mirrored_mean(unit: Float, kernel: Float) -> Float:
    """Correlation with a kernel of odd sides, the picture mirrored at its edge pixels."""
    reach = kernel.shape[0] // 2
    padded = np.pad(unit, [(reach, reach), (reach, reach), (0, 0)], mode="reflect")
    total = np.zeros_like(unit)
    for row in range(kernel.shape[0]):
        for column in range(kernel.shape[1]):
            total += kernel[row, column] * padded[row : row + unit.shape[0], column : column + unit.shape[1]]
    return total


def gaussian_blur(unit: Float, severity: int) -> Float:
    return gaussian(unit, [1, 2, 3, 4, 6][severity])


def defocus_blur(unit: Float, severity: int) -> Float:
    radius, alias = [(3, 0.1), (4, 0.5), (6, 0.5), (8, 0.5), (10, 0.5)][severity]
    half = max(8, radius)
    disk = np.array(
        [[float(x * x + y * y <= radius * radius) for x in range(-half, half + 1)] for y in range(-half, half + 1)]
    )
    reach = 1 if radius <= 8 else 2
    taps = np.array([math.exp(-(i**2) / (2 * alias**2)) for i in range(-reach, reach + 1)])
    soft = np.outer(taps, taps) / taps.sum() ** 2
    wide = np.pad(disk / disk.sum(), reach, mode="reflect")
    smooth = np.zeros_like(disk)
    for row in range(2 * reach + 1):
        for column in range(2 * reach + 1):
            smooth += soft[row, column] * wide[row : row + len(disk), column : column + len(disk)]
    return mirrored_mean(unit, smooth)


def zoomed(unit: Float, factor: float) -> Float:
    """The middle enlarged, bilinear, edge values going on."""
    height, width = unit.shape[:2]
    row = np.clip((np.arange(height) - (height - 1) / 2) / factor + (height - 1) / 2, 0, height - 1)
    column = np.clip((np.arange(width) - (width - 1) / 2) / factor + (width - 1) / 2, 0, width - 1)
    top, left = np.floor(row).astype(int), np.floor(column).astype(int)
    below, right = np.minimum(top + 1, height - 1), np.minimum(left + 1, width - 1)
    down, across = (row - top)[:, None, None], (column - left)[None, :, None]
    upper = unit[top][:, left] * (1 - across) + unit[top][:, right] * across
    lower = unit[below][:, left] * (1 - across) + unit[below][:, right] * across
    return upper * (1 - down) + lower * down


def zoom_blur(unit: Float, severity: int) -> Float:
    end, step = [(1.11, 0.01), (1.16, 0.01), (1.21, 0.02), (1.26, 0.02), (1.31, 0.03)][severity]
    total, count = unit.copy(), 1
    for factor in np.arange(1, end, step):
        total, count = total + zoomed(unit, float(factor)), count + 1
    return total / count


def through_hsv(unit: Float, change: Callable[[float, float, float], tuple[float, float, float]]) -> Float:
    import colorsys

    out = np.empty_like(unit)
    for row in range(unit.shape[0]):
        for column in range(unit.shape[1]):
            out[row, column] = colorsys.hsv_to_rgb(*change(*colorsys.rgb_to_hsv(*unit[row, column])))
    return out


def brightness(unit: Float, severity: int) -> Float:
    return through_hsv(unit, lambda h, s, v: (h, s, min(1.0, v + [0.1, 0.2, 0.3, 0.4, 0.5][severity])))


def saturate(unit: Float, severity: int) -> Float:
    gain, lift = [(0.3, 0), (0.1, 0), (2, 0), (5, 0.1), (20, 0.2)][severity]
    return through_hsv(unit, lambda h, s, v: (h, min(1.0, s * gain + lift), v))


def contrast(unit: Float, severity: int) -> Float:
    mean = unit.mean((0, 1), keepdims=True)
    return (unit - mean) * [0.4, 0.3, 0.2, 0.1, 0.05][severity] + mean


def jpeg(unit: Float, severity: int) -> Float:
    body = io.BytesIO()
    Image.fromarray(np.rint(unit * 255).astype(np.uint8)).save(body, "JPEG", quality=[25, 18, 15, 10, 7][severity])
    return np.asarray(Image.open(body), np.float64) / 255


def pixelate(unit: Float, severity: int) -> Float:
    share = [0.6, 0.5, 0.4, 0.3, 0.25][severity]
    whole = Image.fromarray(np.rint(unit * 255).astype(np.uint8))
    few = whole.resize((int(WIDTH * share), int(HEIGHT * share)), Image.Resampling.BOX)
    return np.asarray(few.resize((WIDTH, HEIGHT), Image.Resampling.BOX), np.float64) / 255


FIXED: dict[str, Callable[[Float, int], Float]] = {
    "gaussian_blur": gaussian_blur,
    "defocus_blur": defocus_blur,
    "zoom_blur": zoom_blur,
    "brightness": brightness,
    "saturate": saturate,
    "contrast": contrast,
    "jpeg": jpeg,
    "pixelate": pixelate,
}


def clipped(values: Float) -> tuple[float, float]:
    """Mean and deviation in 8-bit steps of what is left in 0..1."""
    seen = np.clip(values, 0, 1) * 255
    return float(seen.mean()), float(seen.std())


def noise(rng: np.random.Generator, severity: int) -> dict[str, tuple[float, float]]:
    """[mean, deviation] of a grey picture under each noise."""
    flat = np.full((400, 400), LEVEL / 255)
    photons = [60, 25, 12, 5, 3][severity]
    amount = [0.03, 0.06, 0.09, 0.17, 0.27][severity]
    hit, white = rng.random(flat.shape) < amount, rng.random(flat.shape) < 0.5
    return {
        "gaussian_noise": clipped(flat + rng.normal(0, [0.08, 0.12, 0.18, 0.26, 0.38][severity], flat.shape)),
        "shot_noise": clipped(rng.poisson(flat * photons) / photons),
        "impulse_noise": clipped(np.where(hit, white.astype(float), flat)),
        "speckle_noise": clipped(flat + flat * rng.normal(0, [0.15, 0.2, 0.35, 0.45, 0.6][severity], flat.shape)),
    }


def motion_spread(severity: int) -> float:
    """Deviation in pixels along the line of the half Gaussian kernel."""
    radius, sigma = [(10, 3), (15, 5), (15, 8), (15, 12), (20, 15)][severity]
    weight = np.array([math.exp(-(i**2) / (2 * sigma**2)) for i in range(2 * radius + 1)])
    step = np.arange(2 * radius + 1)
    mean = (weight * step).sum() / weight.sum()
    return math.sqrt((weight * (step - mean) ** 2).sum() / weight.sum())


def along(layer_HW: Float, radius: int, sigma: float, degrees: float) -> Float:
    """Blurred along a line by the half Gaussian, each tap at the nearest pixel, wrapping."""
    total, weights = np.zeros_like(layer_HW), 0.0
    for step in range(2 * radius + 1):
        part = math.exp(-(step**2) / (2 * sigma**2))
        dx, dy = round(step * math.cos(math.radians(degrees))), round(step * math.sin(math.radians(degrees)))
        total, weights = total + part * np.roll(layer_HW, (dy, dx), (0, 1)), weights + part
    return total / weights


def snow(rng: np.random.Generator, severity: int) -> tuple[float, float]:
    mean, spread, zoom, threshold, radius, sigma, keep = [
        (0.1, 0.3, 3, 0.5, 10, 4, 0.8),
        (0.2, 0.3, 2, 0.5, 12, 4, 0.7),
        (0.55, 0.3, 4, 0.9, 12, 8, 0.7),
        (0.55, 0.3, 4.5, 0.85, 12, 8, 0.65),
        (0.55, 0.3, 2.5, 0.85, 12, 12, 0.55),
    ][severity]
    flat, side = LEVEL / 255, 4 * SIDE
    layer = zoomed(rng.normal(mean, spread, (side, side, 1)), zoom)[..., 0]
    layer = np.clip(np.where(layer < threshold, 0, layer), 0, 1)
    drift = np.clip(along(layer, radius, sigma, rng.uniform(-135, -45)), 0, 1)
    pale = max(flat, flat * 1.5 + 0.5)
    return clipped(keep * flat + (1 - keep) * pale + drift + np.rot90(drift, 2))


def plasma(rng: np.random.Generator, side: int, decay: float) -> Float:
    """Diamond-square, cell by cell, on a torus."""
    field = np.zeros((side, side))
    step, wobble = side, 100.0
    while step >= 2:
        half = step // 2
        for y in range(0, side, step):
            for x in range(0, side, step):
                corners = [field[(y + j) % side, (x + i) % side] for j in (0, step) for i in (0, step)]
                field[y + half, x + half] = sum(corners) / 4 + wobble * rng.uniform(-1, 1)
        for y in range(0, side, step):
            for x in range(0, side, step):
                for dy, dx in ((0, half), (half, 0)):
                    cy, cx = y + dy, x + dx
                    near = [
                        field[(cy + j) % side, (cx + i) % side]
                        for j, i in ((-half, 0), (half, 0), (0, -half), (0, half))
                    ]
                    field[cy, cx] = sum(near) / 4 + wobble * rng.uniform(-1, 1)
        step, wobble = half, wobble / decay
    field -= field.min()
    return field / field.max()


def fog(rng: np.random.Generator, severity: int) -> tuple[float, float]:
    amount, decay = [(1.5, 2), (2, 2), (2.5, 1.7), (2.5, 1.5), (3, 1.4)][severity]
    flat = LEVEL / 255
    return clipped((flat + amount * plasma(rng, SIDE, decay)) * flat / (flat + amount))


def spatter(rng: np.random.Generator, severity: int) -> float:
    """Share of the picture under water (a blurred field above its threshold), or where mud is thick enough to show."""
    mean, spread, sigma, threshold, soft, mud = [
        (0.65, 0.3, 4, 0.69, 0.6, False),
        (0.65, 0.3, 3, 0.68, 0.6, False),
        (0.65, 0.3, 2, 0.68, 0.5, False),
        (0.65, 0.3, 1, 0.65, 1.5, True),
        (0.67, 0.4, 1, 0.65, 1.5, True),
    ][severity]
    liquid = gaussian(rng.normal(mean, spread, (8 * SIDE, 8 * SIDE)), sigma) > threshold
    return float((gaussian(liquid.astype(np.float64), soft) >= 0.8).mean() if mud else liquid.mean())


def elastic(severity: int) -> float:
    """Deviation in pixels of each coordinate's shift at a side of 244, without the affine part."""
    alpha, sigma = [(2, 0.7), (2, 0.08), (0.05, 0.01), (0.07, 0.01), (0.12, 0.01)][severity]
    return alpha * 244 / math.sqrt(3) / (2 * sigma * 244 * math.sqrt(math.pi))


def glass(rng: np.random.Generator, severity: int) -> float:
    """Root of the mean squared change of a slope of 2 steps a pixel, by the published swaps, pixel after pixel."""
    sigma, delta, passes = [(0.7, 1, 2), (0.9, 2, 1), (1.0, 2, 3), (1.1, 3, 2), (1.5, 4, 2)][severity]
    slope = np.repeat(np.arange(0, 240, 2, dtype=np.float64)[None], 60, 0)
    out = gaussian(slope, sigma)
    for _ in range(passes):
        for row in range(59 - delta, delta, -1):
            for column in range(119 - delta, delta, -1):
                dx, dy = rng.integers(-delta, delta, 2)
                other = (row + dy, column + dx)
                out[row, column], out[other] = out[other], out[row, column]
    out = gaussian(out, sigma)
    return float(np.sqrt(((out - slope)[10:-10, 20:-20] ** 2).mean()))


def main() -> None:
    unit = picture().astype(np.float64) / 255
    middle = np.s_[EDGE_Y : HEIGHT - EDGE_Y, EDGE_X : WIDTH - EDGE_X]
    arrays: dict[str, NDArray[np.generic]] = {"picture": picture()}
    for name, change in FIXED.items():
        made = [np.rint(np.clip(change(unit, severity), 0, 1) * 255).astype(np.uint8)[middle] for severity in range(5)]
        arrays[name] = np.stack(made)
    rng = np.random.default_rng(20261124)
    noises = [noise(rng, severity) for severity in range(5)]
    for name in noises[0]:
        arrays[name] = np.array([one[name] for one in noises])
    for name, weather in (("snow", snow), ("fog", fog)):
        arrays[name] = np.array([np.mean([weather(rng, level) for _ in range(DRAWS)], 0) for level in range(5)])
    for name, known in (("motion_blur", motion_spread), ("elastic", elastic)):
        arrays[name] = np.array([known(severity) for severity in range(5)])
    for name, seen in (("glass_blur", glass), ("spatter", spatter)):
        arrays[name] = np.array([seen(rng, severity) for severity in range(5)])
    np.savez_compressed(Path(__file__).with_name("corruptions.npz"), **arrays)


if __name__ == "__main__":
    main()
