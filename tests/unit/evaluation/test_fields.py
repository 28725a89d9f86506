"""What rendered pictures are made of: ranges, spectra, and that every kind of scene is drawable at every shape."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from evaluation.fields import cloud, grid, lit, paint, palette, unit, warped
from evaluation.pictures import render
from evaluation.scenes import SCENES, SINGLE, STRANGE

SEEDS = st.integers(0, 2**32 - 1)


def rng(seed: int) -> np.random.Generator:
    return np.random.default_rng(seed)


@pytest.mark.parametrize("slope", [0.0, 1.0, 2.0])
def test_the_amplitude_of_a_cloud_falls_with_its_slope(slope: float) -> None:
    field = cloud(256, 256, rng(3), slope=slope)
    amplitude = np.abs(np.fft.fft2(field - field.mean()))
    frequency = np.hypot(*np.meshgrid(np.fft.fftfreq(256), np.fft.fftfreq(256)))
    # low frequencies are bent by the cut at the quantiles, the highest by the corners of the square
    inside = (frequency > 0.05) & (frequency < 0.45)
    measured = -np.polyfit(np.log(frequency[inside]), np.log(amplitude[inside] + 1e-6), 1)[0]
    assert measured == pytest.approx(slope, abs=0.25)


@given(SEEDS, st.sampled_from([(1, 64), (16, 16), (48, 80)]), st.floats(0, 2.5))
@settings(max_examples=30, deadline=None)
def test_clouds_fill_zero_to_one_and_no_more(seed: int, shape: tuple[int, int], slope: float) -> None:
    field = cloud(*shape, rng(seed), slope=slope)
    assert field.shape == shape and field.dtype == np.float32
    assert field.min() >= 0 and field.max() <= 1 and np.ptp(field) > 0.5


def test_one_extreme_pixel_does_not_flatten_the_rest() -> None:
    field = np.linspace(0, 1, 10_000, dtype=np.float32).reshape(100, 100)
    field[50, 50] = 1e6
    assert unit(field)[10, 10] == pytest.approx(0.1, abs=0.03)
    assert np.isfinite(unit(np.zeros((8, 8), np.float32))).all()


def test_the_grid_is_centred_and_its_longer_side_two_long() -> None:
    x, y = grid(50, 100)
    assert x.mean() == pytest.approx(0, abs=1e-6) and y.mean() == pytest.approx(0, abs=1e-6)
    assert x.max() == pytest.approx(0.99) and y.max() == pytest.approx(0.49)


@given(SEEDS, st.integers(2, 8))
@settings(max_examples=30, deadline=None)
def test_palettes_have_colours_for_all_of_zero_to_one_and_bound_the_rest(seed: int, colours: int) -> None:
    table = palette(rng(seed), colours)
    assert table.shape == (256, 3) and table.min() >= 0 and table.max() <= 1
    assert paint(np.array([0.0, 1.0, 2.0], np.float32), table).tolist() == table[[0, 255, 255]].tolist()


def test_flat_ground_is_lit_evenly_and_slopes_are_not() -> None:
    assert np.allclose(lit(np.zeros((9, 9), np.float32), rng(0)), 1.0)
    hill = lit(np.tile(np.linspace(0, 1, 40, dtype=np.float32), (40, 1)), rng(0), depth=20)
    assert not np.allclose(hill, 1.0) and hill.min() >= 0.2 and hill.max() <= 1.8


def test_uneven_glass_moves_pixels_but_no_colours() -> None:
    picture = cloud(60, 90, rng(1), slope=1.5)
    assert np.allclose(warped(picture, rng(2), strength_px=0.0), picture, atol=1e-5)
    bent = warped(picture, rng(2), strength_px=30.0)
    assert not np.allclose(bent, picture, atol=0.05) and bent.min() >= picture.min() - 1e-5


@pytest.mark.parametrize("name", [*SCENES, *STRANGE])
def test_every_scene_is_drawn_at_any_shape_and_depends_on_its_seed(name: str) -> None:
    scene = {**SCENES, **STRANGE}[name]
    for height, width in ((176, 320), (320, 176)):
        one, other = scene(height, width, rng(4)), scene(height, width, rng(5))
        assert one.shape == (height, width, 3) and np.isfinite(one).all()
        assert np.abs(one - other).mean() > 0.02
    assert np.array_equal(scene(176, 320, rng(4)), scene(176, 320, rng(4)))


def test_strangers_are_of_kinds_that_no_collection_holds() -> None:
    assert not set(STRANGE) & set(SCENES) and not set(STRANGE) & set(SINGLE)
    kinds = tuple(STRANGE)
    stranger, distractors = render(1, 0, kinds), [render(1, number) for number in range(len(SCENES))]
    assert all(stranger.shape != each.shape or np.abs(stranger.astype(int) - each).mean() > 10 for each in distractors)
