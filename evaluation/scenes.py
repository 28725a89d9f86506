"""Kinds of rendered scene, as different as they can be drawn cheaply: the distractors and strangers of the demo.

A scene takes (height, width, rng) and gives a picture [H, W, 3] float32 in 0..1. Nothing in them is a photograph.
"""

from __future__ import annotations

from collections.abc import Callable

import cv2
import numpy as np

from evaluation.fields import Field, Rng, cloud, grid, lit, paint, palette, unit, warped

Scene = Callable[[int, int, Rng], Field]
Window = tuple[slice, slice]


def _canvas(height: int, width: int, rng: Rng) -> Field:
    """A soft ground to draw on."""
    return paint(unit(cloud(height, width, rng, slope=2.0)), palette(rng, 3))


def _colour(rng: Rng) -> tuple[float, float, float]:
    r, g, b = rng.beta(0.8, 0.8, 3)
    return float(r), float(g), float(b)


def _point(height: int, width: int, rng: Rng) -> tuple[int, int]:
    return int(rng.integers(width)), int(rng.integers(height))


def _around(u: float, v: float, radius: float, height: int, width: int) -> tuple[Window, Field, Field]:
    """The part of a picture around a point, as a window and the x and y of its pixels."""
    x0, x1 = max(0, int(u - radius)), min(width, int(u + radius) + 1)
    y0, y1 = max(0, int(v - radius)), min(height, int(v + radius) + 1)
    y, x = np.mgrid[y0:y1, x0:x1].astype(np.float32)
    return (slice(y0, y1), slice(x0, x1)), x, y


def mountains(height: int, width: int, rng: Rng) -> Field:
    """Ridges behind ridges in haze, under a sky."""
    x, y = grid(height, width)
    sky = paint(
        np.clip((y - y.min()) / np.ptp(y) + 0.15 * (cloud(height, width, rng, slope=1.6) - 0.5), 0, 1), palette(rng)
    )
    sun = np.exp(-((x - rng.uniform(-1, 1)) ** 2 + (y - rng.uniform(-0.6, 0)) ** 2) / rng.uniform(0.004, 0.08))
    out, haze = np.clip(sky + rng.uniform(0, 0.7) * sun[..., None], 0, 1), sky[height // 3].mean(0)
    layers, colours, rock = int(rng.integers(3, 8)), palette(rng, 4), cloud(height, width, rng, slope=1.0)
    for layer in range(layers):
        near = (layer + 1) / layers
        profile = cloud(1, width, rng, slope=rng.uniform(0.9, 1.5))[0]
        edge = height * (0.25 + 0.65 * near - rng.uniform(0.1, 0.35) * profile)
        body = np.arange(height)[:, None] > edge[None]
        ground = paint(np.roll(rock, int(rng.integers(width)), 1) * near, colours)
        out[body] = (haze * (1 - near) + ground * near)[body]
    return out.astype(np.float32)


def marble(height: int, width: int, rng: Rng) -> Field:
    """Clouds of two kinds, folded."""
    field = cloud(height, width, rng, slope=rng.uniform(0.8, 1.8))
    veins = 0.5 + 0.5 * np.sin(rng.uniform(6, 40) * field + 4 * cloud(height, width, rng, slope=2))
    mix = rng.uniform(0.2, 0.8)
    return warped(paint(unit(mix * field + (1 - mix) * veins), palette(rng)), rng, strength_px=60)


def cells(height: int, width: int, rng: Rng) -> Field:
    """Stones or glass: the nearest of scattered points gives the colour, the edge between two is dark or light."""
    count = int(np.exp(rng.uniform(np.log(12), np.log(300))))
    seeds = np.stack([rng.uniform(0, width, count), rng.uniform(0, height, count)], 1).astype(np.float32)
    y, x = np.mgrid[:height:4, :width:4].astype(np.float32)
    stretch = rng.uniform(0.5, 2)
    far = np.hypot(x[..., None] - seeds[:, 0], (y[..., None] - seeds[:, 1]) * stretch)
    two = np.partition(far, 1, axis=-1)[..., :2]
    colours = paint(rng.random(count).astype(np.float32), palette(rng))
    gap = np.clip((two[..., 1] - two[..., 0]) / rng.uniform(3, 25), 0, 1)[..., None]
    picture = colours[far.argmin(-1)] * (0.7 + 0.3 * unit(two[..., 0]))[..., None]
    out = cv2.resize((picture * gap + np.array(_colour(rng)) * (1 - gap)).astype(np.float32), (width, height))
    return np.asarray(out * lit(cloud(height, width, rng, slope=1.1), rng)[..., None])


def leaves(height: int, width: int, rng: Rng) -> Field:
    """Dead leaves: shapes of power-law size cover one another, which gives edges the statistics of photographs."""
    out, colours = _canvas(height, width, rng), palette(rng, 8)
    kind = rng.integers(3)
    for _ in range(int(rng.integers(80, 400))):
        size = float(np.clip(6 * rng.random() ** -0.7, 6, 0.45 * height))
        tint = np.clip(colours[rng.integers(256)] + rng.normal(0, 0.08, 3), 0, 1).tolist()
        centre = _point(height, width, rng)
        if kind == 0 or (kind == 2 and rng.random() < 0.5):
            axes = (int(size), max(2, int(size * rng.uniform(0.25, 1))))
            cv2.ellipse(out, centre, axes, float(rng.uniform(0, 180)), 0, 360, tint, -1, cv2.LINE_AA)
        else:
            turn = rng.uniform(0, 2 * np.pi) + np.sort(rng.uniform(0, 2 * np.pi, int(rng.integers(3, 8))))
            corners = np.stack([np.cos(turn), np.sin(turn)], 1) * size + centre
            cv2.fillPoly(out, [corners.round().astype(np.int32)], tint, cv2.LINE_AA)
    return np.asarray(out * lit(cloud(height, width, rng, slope=1.0), rng, depth=4)[..., None])


def city(height: int, width: int, rng: Rng) -> Field:
    """Blocks with windows, the nearer the larger."""
    out = paint(np.broadcast_to(np.linspace(0, 1, height)[:, None], (height, width)), palette(rng, 3)).copy()
    walls, rows = palette(rng, 6), int(rng.integers(2, 5))
    for row in range(rows):
        near = (row + 1) / rows
        x = int(-rng.integers(30))
        while x < width:
            w = int(rng.integers(18, 90) * (0.5 + near))
            top = int(height * (1 - near * 0.5) - rng.integers(20, max(21, int(height * 0.55))))
            wall = walls[rng.integers(256)] * rng.uniform(0.5, 1)
            cv2.rectangle(out, (x, top), (x + w, height), wall.tolist(), -1)
            step_x, step_y = int(rng.integers(7, 20)), int(rng.integers(8, 24))
            glass = np.array(_colour(rng))
            for wx in range(x + 4, x + w - step_x // 2, step_x):
                for wy in range(max(0, top + 5), height, step_y):
                    light = (glass * rng.choice([0.35, 0.7, 1.0])).tolist()
                    cv2.rectangle(out, (wx, wy), (wx + step_x // 2, wy + step_y // 2), light, -1)
            x += w + int(rng.integers(0, 14))
    return out


def weave(height: int, width: int, rng: Rng) -> Field:
    """Two gratings crossing, bent like cloth."""
    x, y = grid(height, width)
    out = np.zeros((height, width, 3), np.float32)
    for _ in range(2):
        angle, rate = rng.uniform(0, np.pi), rng.uniform(12, 70)
        wave = np.sin(
            rate * (np.cos(angle) * x + np.sin(angle) * y) + rng.uniform(1, 5) * cloud(height, width, rng, slope=1.8)
        )
        out += paint(0.5 + 0.5 * np.clip(rng.uniform(1, 4) * wave, -1, 1), palette(rng, 4)) / 2
    folds = lit(cloud(height, width, rng, slope=1.9), rng, depth=30)
    return warped(out * folds[..., None], rng, strength_px=50)


def forest(height: int, width: int, rng: Rng) -> Field:
    """Bare or leafy trees on a slope."""
    out = _canvas(height, width, rng)
    bark, leaf = np.array(_colour(rng)) * 0.5, palette(rng, 3)
    dense = rng.random() < 0.6

    def branch(x: float, y: float, angle: float, length: float, left: int) -> None:
        to = (x + length * np.cos(angle), y - length * np.sin(angle))
        ends = [(round(a), round(b)) for a, b in ((x, y), to)]
        cv2.line(out, ends[0], ends[1], bark.tolist(), max(1, left), cv2.LINE_AA)
        if left <= 2 and dense:
            cv2.circle(out, ends[1], int(rng.integers(2, 7)), leaf[rng.integers(256)].tolist(), -1, cv2.LINE_AA)
        if left > 1:
            for turn in (rng.uniform(0.15, 0.7), -rng.uniform(0.15, 0.7)):
                branch(to[0], to[1], angle + turn, length * rng.uniform(0.62, 0.86), left - 1)

    for _ in range(int(rng.integers(2, 7))):
        branch(
            rng.uniform(0, width),
            height * rng.uniform(0.7, 1.05),
            np.pi / 2 + rng.normal(0, 0.1),
            height * rng.uniform(0.1, 0.24),
            7,
        )
    return out


def water(height: int, width: int, rng: Rng) -> Field:
    """A far shore above its broken reflection."""
    shore = mountains(height, width, rng)
    line = int(height * rng.uniform(0.35, 0.6))
    below = height - line
    source = shore[:line][::-1]
    mirror = np.asarray(cv2.resize(source, (width, below)))
    depth = np.linspace(0.2, 1, below)[:, None]
    y, x = np.mgrid[:below, :width].astype(np.float32)
    ripple = np.sin(y / depth**1.5 / rng.uniform(1.5, 5) + 5 * cloud(below, width, rng, slope=1.6))
    moved = cv2.remap(
        mirror,
        x + (6 * depth * ripple).astype(np.float32),
        y + (4 * depth * ripple).astype(np.float32),
        cv2.INTER_LINEAR,
        borderMode=cv2.BORDER_REFLECT,
    )
    shore[line:] = np.clip(moved * rng.uniform(0.6, 0.9) + 0.06 * ripple[..., None], 0, 1)
    return shore


def hide(height: int, width: int, rng: Rng) -> Field:
    """Spots and stripes of animals: band-passed noise, cut at a level."""
    noise = cloud(height, width, rng, slope=0.0)
    near, far, along = rng.uniform(2, 8), rng.uniform(1.4, 2.5), rng.uniform(1, 4)
    band = cv2.GaussianBlur(noise, (0, 0), near, sigmaY=near * along) - cv2.GaussianBlur(
        noise, (0, 0), near * far, sigmaY=near * far * along
    )
    level = unit(np.tanh(rng.uniform(1, 5) * (unit(band) - rng.uniform(0.35, 0.65))).astype(np.float32))
    coat = paint(level, palette(rng, 3)) * lit(cloud(height, width, rng, slope=1.9), rng, depth=25)[..., None]
    return warped(coat, rng, strength_px=90)


def balls(height: int, width: int, rng: Rng) -> Field:
    """Shaded spheres that lie on something."""
    out, light = _canvas(height, width, rng), rng.normal(0, 1, 2)
    sizes = np.sort(rng.uniform(12, 0.3 * height, int(rng.integers(4, 22))))
    for radius in sizes if rng.random() < 0.5 else sizes[::-1]:
        u, v = rng.uniform(0, width), rng.uniform(0, height)
        here, x, y = _around(u, v, 2.5 * radius, height, width)
        shadow = np.exp(-(((x - u - 0.4 * radius) / radius) ** 2 + ((y - v - 0.5 * radius) / radius) ** 2) * 1.5)
        out[here] *= (1 - 0.4 * shadow)[..., None]
        dx, dy = (x - u) / radius, (y - v) / radius
        inside = dx**2 + dy**2 < 1
        z = np.sqrt(np.clip(1 - dx**2 - dy**2, 0, 1))
        bright = np.clip((dx * light[0] + dy * light[1] + z) / np.sqrt(1 + light @ light), 0.08, 1)
        skin = (
            np.array(_colour(rng))
            * (0.75 + 0.25 * np.sign(np.sin(rng.uniform(0, 14) * (dx + rng.uniform(-1, 1) * dy))))[..., None]
        )
        ball = skin * bright[..., None] + 0.8 * (bright[..., None] ** rng.uniform(15, 60))
        out[here][inside] = np.clip(ball, 0, 1)[inside]
    return out


def strokes(height: int, width: int, rng: Rng) -> Field:
    """A painting: brush strokes that follow an invisible flow."""
    out = _canvas(height, width, rng)
    under, angle = (
        paint(cloud(height, width, rng, slope=1.4), palette(rng, 7)),
        4 * np.pi * cloud(height, width, rng, slope=rng.uniform(1.6, 2.4)),
    )
    length, thick = rng.uniform(8, 40), int(rng.integers(2, 9))
    for _ in range(int(rng.integers(600, 1600))):
        x, y = _point(height, width, rng)
        turn = angle[y, x]
        to = (round(x + length * np.cos(turn)), round(y + length * np.sin(turn)))
        tint = np.clip(under[y, x] + rng.normal(0, 0.08, 3), 0, 1).tolist()
        cv2.line(out, (x, y), to, tint, thick, cv2.LINE_AA)
    return out


def flowers(height: int, width: int, rng: Rng) -> Field:
    """Blossoms of many petals over leaves."""
    out, colours = leaves(height, width, rng) * np.float32(rng.uniform(0.3, 0.7)), palette(rng, 4)
    for _ in range(int(rng.integers(2, 12))):
        u, v = _point(height, width, rng)
        radius = rng.uniform(0.08, 0.33) * height
        here, x, y = _around(u, v, radius, height, width)
        petals, sharp = int(rng.integers(4, 14)), rng.uniform(0.15, 0.6)
        turn, far = np.arctan2(y - v, x - u), np.hypot(x - u, y - v) / radius
        edge = 1 - sharp + sharp * np.abs(np.cos(petals * turn / 2 + rng.uniform(0, 6)))
        inside = far < edge
        tone = np.clip(far / edge * rng.uniform(0.6, 1) + 0.1 * np.cos(petals * 3 * turn), 0, 1)
        bloom = paint(tone.astype(np.float32), colours)
        bloom[far < rng.uniform(0.12, 0.3)] = _colour(rng)
        out[here][inside] = bloom[inside]
    return np.asarray(out, np.float32)


def fractal(height: int, width: int, rng: Rng) -> Field:
    """A Julia set of a random constant, at a random place and scale."""
    x, y = grid(height, width)
    turn, zoom = rng.uniform(0, 2 * np.pi), rng.uniform(0.5, 1.4)
    z = ((x + 1j * y) * zoom * np.exp(1j * turn)).astype(np.complex64)
    angle = rng.uniform(0, 2 * np.pi)
    c = np.complex64((0.5 * np.exp(1j * angle) - 0.25 * np.exp(2j * angle)) * rng.uniform(1.0, 1.12))
    steps = np.zeros((height, width), np.float32)
    for _ in range(40):
        inside = np.abs(z) < 4
        z = np.where(inside, z * z + c, z)
        steps += inside
    smooth = steps - np.log2(np.maximum(np.log(np.maximum(np.abs(z), 1.01)), 1e-3))
    return paint(unit(np.sqrt(np.maximum(smooth, 0)).astype(np.float32)), palette(rng, 7))


def fields_from_above(height: int, width: int, rng: Rng) -> Field:
    """Farmland: quarters cut again and again, each ploughed its own way, and a road."""
    out = np.zeros((height, width, 3), np.float32)
    x, y = grid(height, width)
    colours, plots = palette(rng, 6), [(0, 0, width, height)]
    while plots:
        x0, y0, x1, y1 = plots.pop()
        if min(x1 - x0, y1 - y0) > 70 and (x1 - x0 > 0.4 * width or rng.random() < 0.8):
            across, cut = x1 - x0 > y1 - y0, rng.uniform(0.3, 0.7)
            middle = int(x0 + cut * (x1 - x0)) if across else int(y0 + cut * (y1 - y0))
            plots += (
                [(x0, y0, middle, y1), (middle, y0, x1, y1)] if across else [(x0, y0, x1, middle), (x0, middle, x1, y1)]
            )
            continue
        angle, here = rng.uniform(0, np.pi), np.s_[y0:y1, x0:x1]
        rows = np.sin(rng.uniform(30, 200) * (np.cos(angle) * x[here] + np.sin(angle) * y[here]))
        out[here] = colours[rng.integers(256)] * (1 + rng.uniform(0.02, 0.2) * rows)[..., None]
    road = np.stack([np.linspace(-20, width + 20, 8), rng.uniform(0.1, 0.9) * height + rng.normal(0, 30, 8)], 1)
    cv2.polylines(out, [road.round().astype(np.int32)], False, _colour(rng), int(rng.integers(3, 12)), cv2.LINE_AA)
    out *= lit(cloud(height, width, rng, slope=1.0), rng, depth=5)[..., None]
    return warped(out, rng, strength_px=float(rng.uniform(0, 60)))


SINGLE: dict[str, Scene] = {
    "mountains": mountains,
    "marble": marble,
    "cells": cells,
    "leaves": leaves,
    "city": city,
    "weave": weave,
    "forest": forest,
    "water": water,
    "hide": hide,
    "strokes": strokes,
    "fields": fields_from_above,
}


def collage(height: int, width: int, rng: Rng) -> Field:
    """Two to five scenes side by side, each with its own share of the sheet."""
    out, names = np.full((height, width, 3), _colour(rng), np.float32), list(SINGLE)
    gap, across = int(rng.integers(0, 12)), rng.random() < 0.5
    parts = int(rng.integers(2, 4))
    cuts = np.cumsum(np.r_[0, rng.dirichlet(np.full(parts, 6.0))]) * (width if across else height)
    for low, high in zip(cuts[:-1].astype(int), cuts[1:].astype(int), strict=True):
        part = SINGLE[names[rng.integers(len(names))]](height, width, rng)
        here = np.s_[:, low + gap : high] if across else np.s_[low + gap : high, :]
        out[here] = part[here]
    return out


SCENES: dict[str, Scene] = {**SINGLE, "collage": collage}
STRANGE: dict[str, Scene] = {"balls": balls, "flowers": flowers, "fractal": fractal}
"""Kinds that no collection of the demo holds: its strangers. Two Julia sets verify as one picture, and rightly so."""
