"""Alignment: known maps are found, edits do not pull, strangers do not align, and the direction of a flow is right."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from stemma.networks import raft
from stemma.networks.alignment import (
    Aligner,
    AlignmentSettings,
    coarse,
    explained,
    fit_flow,
    lay,
    to_square,
)
from stemma.vision import geometry

WIDTH, HEIGHT = 320, 240


def scene(seed: int, width: int = WIDTH, height: int = HEIGHT) -> np.ndarray:
    """Texture at many scales, as a photograph has."""
    rng = np.random.default_rng(seed)
    total = np.zeros((height, width, 3), np.float32)
    for cells in (4, 9, 20, 45):
        coarse_HWC = rng.standard_normal((cells, cells, 3)).astype(np.float32) / cells**0.5
        total += cv2.resize(coarse_HWC, (width, height), interpolation=cv2.INTER_CUBIC)
    total = (total - total.min()) / (total.max() - total.min())
    return (total * 255).astype(np.uint8)


def error_px(found_33: np.ndarray, true_33: np.ndarray, width: int, height: int) -> float:
    """Largest error over a grid of the query, in pixels of the original."""
    x, y = np.meshgrid(np.linspace(0.1, 0.9, 5) * width, np.linspace(0.1, 0.9, 5) * height)
    points_N2 = np.stack([x.ravel(), y.ravel()], -1)
    return float(np.abs(geometry.apply(found_33, points_N2) - geometry.apply(true_33, points_N2)).max())


@settings(max_examples=8, deadline=None)
@given(
    seed=st.integers(0, 50),
    degrees=st.floats(-5, 5),
    scale=st.floats(0.93, 1.07),
    shift=st.floats(-8, 8),
    mirrored=st.booleans(),
    size=st.sampled_from([(320, 240), (200, 260), (450, 225)]),
)
def test_known_maps_are_found(
    seed: int, degrees: float, scale: float, shift: float, mirrored: bool, size: tuple[int, int]
) -> None:
    original = scene(seed)
    inner = geometry.translation(shift, -shift) @ geometry.rotation(degrees) @ geometry.scaling(scale, scale)
    true_33 = geometry.about_centre(inner, (WIDTH, HEIGHT)) @ geometry.scaling(WIDTH / size[0], HEIGHT / size[1])
    if mirrored:
        true_33 = true_33 @ geometry.mirror(size[0])
    query = geometry.warp(original, true_33, size)
    found = Aligner().align(query, original, mirrored=mirrored)
    assert found.transform_33 is not None
    assert error_px(found.transform_33, true_33, *size) < 1.0
    assert found.mirrored is mirrored
    assert found.transform_33[2, 2] == 1.0


def test_an_edit_does_not_pull_the_map() -> None:
    original = scene(3)
    true_33 = geometry.about_centre(geometry.rotation(3), (WIDTH, HEIGHT))
    edited = original.copy()
    edited[60:170, 90:200] = scene(99)[40:150, 10:120]
    query = geometry.warp(edited, true_33, (WIDTH, HEIGHT))
    found = Aligner().align(query, original)
    one_pass = Aligner(settings=AlignmentSettings(ecc_passes=1)).align(query, original)
    assert found.transform_33 is not None and one_pass.transform_33 is not None
    assert error_px(found.transform_33, true_33, WIDTH, HEIGHT) < 0.5
    assert error_px(one_pass.transform_33, true_33, WIDTH, HEIGHT) > error_px(
        found.transform_33, true_33, WIDTH, HEIGHT
    )


def test_padding_does_not_pull_the_map() -> None:
    original = scene(5)
    query = cv2.copyMakeBorder(original, 20, 3, 0, 30, cv2.BORDER_CONSTANT)
    found = Aligner().align(query, original)
    assert found.transform_33 is not None
    true_33 = geometry.translation(0, -20)
    inside_N2 = np.array([[20.0, 40.0], [280.0, 40.0], [20.0, 230.0], [280.0, 230.0]])
    moved_N2 = geometry.apply(found.transform_33, inside_N2) - geometry.apply(true_33, inside_N2)
    assert np.abs(moved_N2).max() < 0.5


def test_gain_bias_and_noise_change_little() -> None:
    original = scene(6)
    noise = np.random.default_rng(0).normal(0, 12, original.shape)
    query = np.clip(original * 0.6 + 50 + noise, 0, 255).astype(np.uint8)
    found = Aligner().align(query, original)
    assert found.transform_33 is not None
    assert error_px(found.transform_33, geometry.identity(), WIDTH, HEIGHT) < 0.4
    assert found.correlation > 0.85


@pytest.mark.parametrize("seed", range(3))
def test_strangers_do_not_align(seed: int) -> None:
    found = Aligner().align(scene(seed), scene(seed + 100))
    assert found.transform_33 is None
    assert found.correlation < AlignmentSettings().found_min


def test_nothing_to_correlate_is_not_aligned() -> None:
    flat = np.full((100, 100, 3), 128, np.uint8)
    assert Aligner().align(flat, flat).transform_33 is None
    assert Aligner().align(scene(1), flat).correlation == 0.0


def test_what_verification_found_is_a_start() -> None:
    original = scene(7)
    true_33 = geometry.about_centre(geometry.rotation(70), (WIDTH, HEIGHT))
    query = geometry.warp(original, true_33, (WIDTH, HEIGHT))
    unit = geometry.scaling(WIDTH, HEIGHT)
    (a, b, c), (d, e, f) = (geometry.inverse(unit) @ true_33 @ unit)[:2].tolist()
    affine = (a, b, c + 0.01, d, e, f - 0.01)
    assert Aligner().align(query, original).transform_33 is None
    found = Aligner().align(query, original, affine=affine)
    assert found.method == "verified" and found.transform_33 is not None
    assert error_px(found.transform_33, true_33, WIDTH, HEIGHT) < 0.5
    # seen in a mirror, the same affine belongs to the mirrored view
    again = Aligner().align(np.ascontiguousarray(query[:, ::-1]), original, affine=affine, mirrored=True)
    assert again.transform_33 is not None and again.mirrored
    assert error_px(again.transform_33, true_33 @ geometry.mirror(WIDTH), WIDTH, HEIGHT) < 0.5


def test_flow_finds_what_no_other_start_does() -> None:
    original = scene(8)
    true_33 = geometry.about_centre(geometry.rotation(70), (WIDTH, HEIGHT))
    query = geometry.warp(original, true_33, (WIDTH, HEIGHT))
    asked = []

    def exact(first: np.ndarray, second: np.ndarray) -> np.ndarray:
        """The true flow from the original (first) to the query (second), both squashed to one square."""
        asked.append((first, second))
        side = first.shape[0]
        squash = geometry.scaling(side / WIDTH, side / HEIGHT)
        map_33 = squash @ geometry.inverse(true_33) @ geometry.inverse(squash)
        x, y = np.meshgrid(np.arange(side) + 0.5, np.arange(side) + 0.5)
        points_N2 = np.stack([x.ravel(), y.ravel()], -1)
        return (geometry.apply(map_33, points_N2) - points_N2).reshape(side, side, 2).astype(np.float32)

    assert Aligner().align(query, original).transform_33 is None
    found = Aligner(exact).align(query, original)
    assert found.method == "flow" and found.transform_33 is not None
    assert error_px(found.transform_33, true_33, WIDTH, HEIGHT) < 0.6
    # the picture that is sampled is the second one: the flow goes from the original to the query
    assert np.array_equal(asked[0][0], geometry.resize(geometry.resize(original, (160, 160)), (128, 128)))


def test_the_same_pair_gives_the_same_map_whatever_came_before() -> None:
    aligner = Aligner()
    query, original = scene(9)[5:, 3:], scene(9)
    first = aligner.align(query, original)
    aligner.align(scene(1), scene(2))
    again = aligner.align(query, original)
    assert first.transform_33 is not None and again.transform_33 is not None
    assert np.array_equal(first.transform_33, again.transform_33)


def test_coarse_maps_start_from_the_matching_view() -> None:
    shift = (1.0, 0.0, 0.25, 0.0, 1.0, 0.0)
    upright = dict(coarse(shift, False, 100))
    assert np.allclose(geometry.apply(upright["verified"], np.array([[10.0, 20.0]])), [[35.0, 20.0]])
    flipped = dict(coarse(shift, True, 100))
    assert set(flipped) == {"mirror", "verified"}
    assert np.allclose(geometry.apply(flipped["verified"], np.array([[10.0, 20.0]])), [[115.0, 20.0]])


def test_fitting_a_flow_ignores_what_moves_by_itself() -> None:
    side = 128
    true_33 = geometry.about_centre(geometry.rotation(4) @ geometry.scaling(1.05, 0.97), (side, side))
    x, y = np.meshgrid(np.arange(side) + 0.5, np.arange(side) + 0.5)
    points_N2 = np.stack([x.ravel(), y.ravel()], -1)
    flow = (geometry.apply(true_33, points_N2) - points_N2).reshape(side, side, 2).astype(np.float32)
    flow[30:80, 20:90] += 9.0
    maps = list(fit_flow(flow, np.ones((side, side), bool), AlignmentSettings()))
    assert len(maps) == 2
    for found_33 in maps:
        assert error_px(found_33, true_33, side, side) < 0.2
    assert list(fit_flow(flow, np.zeros((side, side), bool), AlignmentSettings())) == []


def test_laying_brings_the_query_where_the_original_shows_it() -> None:
    original = scene(13)
    true_33 = geometry.about_centre(geometry.rotation(5), (WIDTH, HEIGHT)) @ geometry.mirror(WIDTH)
    query = geometry.warp(original, true_33, (WIDTH, HEIGHT))
    square_33 = to_square(true_33, (WIDTH, HEIGHT), (WIDTH, HEIGHT), 160)
    laid, valid = lay(query, square_33, 160)
    small = geometry.resize(original, (160, 160))
    assert laid.shape == (160, 160, 3) and set(np.unique(valid)) == {0, 255}
    assert 0.85 < (valid > 0).mean() < 0.97
    assert np.abs(laid[valid > 0].astype(int) - small[valid > 0]).mean() < 1.5
    assert np.abs(geometry.resize(query, (160, 160)).astype(int) - small).mean() > 15


def test_laying_does_not_alias() -> None:
    fine = np.zeros((640, 640, 3), np.uint8)
    fine[:, ::2] = 255
    laid, valid = lay(fine, geometry.identity(), 160)
    assert np.abs(laid.astype(int) - 127).max() <= 2 and (valid == 255).all()


def test_dewarping_takes_the_flow_from_original_to_query() -> None:
    original_BCHW = torch.from_numpy(scene(11, 64, 64)).permute(2, 0, 1)[None].float() / 255
    query_BCHW = torch.roll(original_BCHW, shifts=(0, 6), dims=(2, 3))
    to_query = torch.zeros(1, 2, 64, 64)
    to_query[:, 0] = 6.0
    inner = (..., slice(8, 56), slice(8, 56))

    def left(flow_B2HW: torch.Tensor) -> float:
        return float((raft.dewarp(query_BCHW, flow_B2HW) - original_BCHW)[inner].abs().mean())

    no_warp = float((query_BCHW - original_BCHW)[inner].abs().mean())
    assert left(to_query) < 1e-6
    # the direction that DIC prints is worse than doing nothing (docs/papers.md 2.1, 4)
    assert left(-to_query) > no_warp
    assert float(raft.dewarp(query_BCHW, to_query + 100).abs().max()) == 0.0


def test_dewarping_is_differentiable_in_the_flow() -> None:
    query_BCHW = torch.from_numpy(scene(12, 16, 16)).permute(2, 0, 1)[None].double() / 255
    flow_B2HW = (torch.rand(1, 2, 16, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) + 0.2) / 2
    flow_B2HW.requires_grad_(True)
    assert torch.autograd.gradcheck(lambda flow: raft.dewarp(query_BCHW, flow).sum(), flow_B2HW, fast_mode=True)


def test_flow_networks_refuse_what_raft_cannot_take() -> None:
    with torch.device("meta"):
        flow = raft.DenseFlow("small", updates=1)
        with pytest.raises(ValueError, match="multiples of 8"):
            flow(torch.zeros(1, 3, 100, 128), torch.zeros(1, 3, 100, 128))


def test_raft_comes_in_both_sizes_as_published() -> None:
    for size, parameters in (("small", 990_162), ("large", 5_257_536)):
        with torch.device("meta"):
            flow = raft.DenseFlow(size)  # type: ignore[arg-type]
        assert sum(p.numel() for p in flow.parameters()) == parameters
        assert flow.updates == 12


@settings(max_examples=12, deadline=None)
@given(
    seed=st.integers(0, 50),
    shown=st.floats(0, 1),
    scale=st.floats(0.6, 1.6),
    gain=st.floats(0.6, 1.4),
    mirrored=st.booleans(),
)
def test_an_original_explains_the_share_of_the_picture_that_it_gave(
    seed: int, shown: float, scale: float, gain: float, mirrored: bool
) -> None:
    """The left part shows the original, enlarged or not, under another light; the rest another scene."""
    original = scene(seed)
    true_33 = geometry.scaling(1 / scale, 1 / scale)
    if mirrored:
        true_33 = geometry.mirror(WIDTH) @ true_33
    query = np.clip(geometry.warp(original, true_33, (WIDTH, HEIGHT)) * gain, 0, 255).astype(np.uint8)
    # what lies beyond the original is another scene too, wherever it ends
    other, across, down = scene(seed + 100), min(shown, scale, 1.0), min(scale, 1.0)
    query[:, round(across * WIDTH) :] = other[:, round(across * WIDTH) :]
    query[round(down * HEIGHT) :] = other[round(down * HEIGHT) :]
    share = across * down
    # strangers correlate here and there
    assert share - 0.15 < explained(query, original, true_33) < share + 0.35


def test_a_flat_border_is_not_held_against_an_original() -> None:
    original = scene(3)
    query = cv2.copyMakeBorder(original, 80, 80, 80, 80, cv2.BORDER_CONSTANT, value=(9, 9, 9))
    there_33 = geometry.translation(-80, -80)
    busy = scene(4, WIDTH + 160, HEIGHT + 160)
    busy[80:-80, 80:-80] = original
    assert explained(query, original, there_33) > 0.85
    assert explained(busy, original, there_33) < 0.5
    assert explained(np.full_like(query, 90), original, there_33) == 1.0
