"""The benign suite: its limits, its seed, and the exact way back from every output to its source."""

from __future__ import annotations

import re

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from stemma.vision import benign, geometry

Rgb = NDArray[np.uint8]


def _rng(seed: int) -> np.random.Generator:
    return np.random.default_rng(seed)


def _agreement(source: Rgb, made: benign.Rendered) -> float:
    """Correlation of the output with the source warped by the map it claims, over what the source covers."""
    height, width = made.rgb_HWC.shape[:2]
    expected = geometry.warp(source, made.source_from_query_33, (width, height))
    # Two pixels off the rim: there the output mixes in the fill.
    inside = geometry.overlap((source.shape[1], source.shape[0]), made.source_from_query_33, (width, height))
    inside = cv2.erode(inside, np.ones((5, 5)), borderType=cv2.BORDER_CONSTANT, borderValue=0) > 0
    smooth = [cv2.blur(picture, (3, 3))[inside].ravel() for picture in (expected, made.rgb_HWC)]
    return float(np.corrcoef(smooth[0], smooth[1])[0, 1])


@pytest.mark.parametrize("name", benign.OUT_PLACE)
def test_the_logged_map_is_the_one_that_was_applied(name: str, photo: Rgb) -> None:
    for seed in range(12):
        made = benign.render(photo, _rng(seed), groups=["out"], out_place=[name])
        assert made.log[2].startswith(name)
        assert _agreement(photo, made) > 0.99, made.log
        # A wrong map is told apart, or the bound above would say nothing.
        off = geometry.translation(5, 3) @ made.source_from_query_33
        wrong = benign.Rendered(rgb_HWC=made.rgb_HWC, source_from_query_33=off, mirrored=made.mirrored, log=made.log)
        assert _agreement(photo, wrong) < 0.985


@pytest.mark.parametrize("name", benign.IN_PLACE)
def test_in_place_changes_do_not_shift(name: str, photo: Rgb) -> None:
    for seed in range(3):
        made = benign.render(photo, _rng(seed), groups=["in"], in_place=[name], severities=[1, 2, 3])
        height, width = made.rgb_HWC.shape[:2]
        plain = geometry.warp(photo, made.source_from_query_33, (width, height))
        before, after = (cv2.blur(cv2.cvtColor(rgb, cv2.COLOR_RGB2GRAY), (3, 3)) for rgb in (plain, made.rgb_HWC))
        fits = {
            (dx, dy): np.corrcoef(before[4:-4, 4:-4].ravel(), np.roll(after, (dy, dx), (0, 1))[4:-4, 4:-4].ravel())[
                0, 1
            ]
            for dx in range(-3, 4)
            for dy in range(-3, 4)
        }
        assert max(np.abs(max(fits, key=fits.__getitem__))) <= 1, (name, seed)


def test_the_same_seed_gives_the_same_bytes_and_log(photo: Rgb) -> None:
    for seed in range(10):
        one, two = (benign.render(photo, _rng(seed)) for _ in range(2))
        assert np.array_equal(one.rgb_HWC, two.rgb_HWC)
        assert one.log == two.log
        assert np.array_equal(one.source_from_query_33, two.source_from_query_33)
    assert benign.render(photo, _rng(1)).log != benign.render(photo, _rng(2)).log


def test_primary_always_and_each_group_as_asked(photo: Rgb) -> None:
    seen: dict[tuple[bool, bool], int] = {}
    for seed in range(150):
        log = benign.render(photo, _rng(seed)).log
        assert [step.split()[0] for step in log[:2]] == ["resize", "jpeg"]
        names = [step.split()[0] for step in log[2:]]
        kind = (any(name in benign.IN_PLACE for name in names), any(name in benign.OUT_PLACE for name in names))
        seen[kind] = seen.get(kind, 0) + 1
        assert len(names) == sum(kind)
    assert set(seen) == {(True, False), (False, True), (True, True)}
    assert min(seen.values()) > 30


def test_the_limits_of_the_paper_hold(photo: Rgb) -> None:
    height, width = photo.shape[:2]
    values: dict[str, list[list[float]]] = {}
    for seed in range(250):
        made = benign.render(photo, _rng(seed), groups=["out"])
        for step in made.log:
            values.setdefault(step.split()[0], []).append([float(n) for n in re.findall(r"-?\d+\.?\d*", step)])
    assert set(values) == {"resize", "jpeg", *benign.OUT_PLACE}
    assert all(0.5 <= factor <= 1.5 for (factor,) in values["resize"])
    assert {min(v)[0] for v in [values["jpeg"]]} >= {40.0} and max(values["jpeg"])[0] <= 90
    assert all(abs(degrees) <= 15 for (degrees,) in values["rotate"])
    assert all(max(sides) <= 0.1 * 1.5 * max(width, height) for sides in values["pad"])
    assert all(0.9 <= sx <= 1.1 and 0.9 <= sy <= 1.1 and abs(kx) <= 5 >= abs(ky) for sx, sy, kx, ky in values["affine"])


def test_a_crop_keeps_nine_tenths_and_the_shape(photo: Rgb) -> None:
    made = benign.render(photo, _rng(4), groups=["out"], out_place=["crop"])
    height, width = made.rgb_HWC.shape[:2]
    scale = abs(np.linalg.det(made.source_from_query_33[:2, :2]))
    assert width * height * scale / (photo.shape[0] * photo.shape[1]) == pytest.approx(0.9, abs=0.02)
    assert width / height == pytest.approx(photo.shape[1] / photo.shape[0], rel=0.02)


def test_only_a_flip_is_mirrored(photo: Rgb) -> None:
    for name in benign.OUT_PLACE:
        assert benign.render(photo, _rng(2), groups=["both"], out_place=[name]).mirrored == (name == "flip")


def test_a_mask_is_carried_with_its_pixels() -> None:
    rgb = np.full((160, 200, 3), 40, np.uint8)
    mask = np.zeros((160, 200), np.uint8)
    mask[50:90, 60:120] = 255
    rgb[mask > 0] = 240
    for seed in range(20):
        made = benign.render(rgb, _rng(seed), groups=["out"])
        carried = made.carry(mask) > 0
        bright = made.rgb_HWC.mean(-1) > 140
        assert carried.shape == made.rgb_HWC.shape[:2]
        assert (carried & bright).sum() / (carried | bright).sum() > 0.93, made.log


def test_small_pictures_are_not_made_smaller_than_the_door_lets_in() -> None:
    rgb = np.full((32, 40, 3), 90, np.uint8)
    assert min(min(benign.render(rgb, _rng(seed), groups=["in"]).rgb_HWC.shape[:2]) for seed in range(20)) >= 32


def test_jpeg_round_trip_loses_less_at_higher_quality(photo: Rgb) -> None:
    lost = [np.abs(benign.jpeg_round_trip(photo, quality).astype(int) - photo).mean() for quality in (40, 70, 95)]
    assert lost[0] > lost[1] > lost[2] > 0
