"""Rendered manipulations: exact masks, visible changes, areas within bounds, repeatable."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from numpy.typing import NDArray

from stemma.vision import edits

Rgb = NDArray[np.uint8]
ALL = [(kind, tool) for kind, tools in edits.TOOLS.items() for tool in tools]


@pytest.fixture(scope="module")
def donors(photo_like: Callable[..., Rgb]) -> list[Rgb]:
    return [255 - photo_like(300, 200, 7), photo_like(60, 90, 8)]


def _make(photo: Rgb, seed: int, donors: list[Rgb], *kinds: str) -> edits.Edited:
    return edits.manipulate(photo, np.random.default_rng(seed), donors, kinds=kinds or None)


@pytest.mark.parametrize(("kind", "tool"), ALL)
def test_outside_the_mask_every_pixel_is_the_source_and_inside_the_change_shows(
    kind: str, tool: str, photo: Rgb, donors: list[Rgb], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(edits.TOOLS, kind, (tool,))
    kept = 0
    for seed in range(12):
        before = photo.copy()
        made = _make(photo, seed, donors, kind)
        assert np.array_equal(photo, before)
        assert made.rgb_HWC.shape == photo.shape
        assert set(np.unique(made.mask_HW)) == {0, 255}
        outside = made.mask_HW == 0
        assert np.array_equal(made.rgb_HWC[outside], photo[outside])
        step = np.abs(made.rgb_HWC.astype(int) - photo).max(-1)[~outside]
        assert (step >= edits.VISIBLE_STEP).mean() >= edits.VISIBLE_SHARE
        assert 0.9 * edits.AREA_MIN <= (~outside).mean() <= 1.1 * edits.AREA_MAX
        assert made.kind in (kind, "caption")
        kept += (made.kind, made.tool) == (kind, tool)
    assert kept >= 10


def test_areas_are_spread_over_the_decades(photo: Rgb, donors: list[Rgb]) -> None:
    areas = np.array([(_make(photo, seed, donors, "splice").mask_HW > 0).mean() for seed in range(120)])
    # Log-uniform over 0.3% to 30%: half of them lie under 3%.
    assert 0.35 < (areas < 0.03).mean() < 0.65
    assert areas.max() > 0.15


def test_the_same_seed_gives_the_same_edit(photo: Rgb, donors: list[Rgb]) -> None:
    for seed in range(8):
        one, two = _make(photo, seed, donors), _make(photo, seed, donors)
        assert np.array_equal(one.rgb_HWC, two.rgb_HWC) and np.array_equal(one.mask_HW, two.mask_HW)
        assert (one.kind, one.tool, one.donor) == (two.kind, two.tool, two.donor)


def test_all_kinds_are_drawn_and_without_donors_all_but_splices(photo: Rgb, donors: list[Rgb]) -> None:
    assert {_make(photo, seed, donors).kind for seed in range(80)} == set(edits.KINDS)
    assert {_make(photo, seed, []).kind for seed in range(80)} == set(edits.KINDS) - {"splice"}


def test_every_kind_has_tools_of_its_own_equally_likely(photo: Rgb, donors: list[Rgb]) -> None:
    assert len(edits.KINDS) == 7 and min(len(tools) for tools in edits.TOOLS.values()) >= 2
    assert len({tool for _, tool in ALL}) == len(ALL), "a tool's name says which it is"
    for kind in ("splice", "caption", "recolour"):
        drawn = [_make(photo, seed, donors, kind).tool for seed in range(150)]
        fair = len(drawn) / len(edits.TOOLS[kind])
        assert all(0.6 * fair < drawn.count(tool) < 1.4 * fair for tool in edits.TOOLS[kind])


@pytest.mark.parametrize("kind", edits.KINDS)
def test_tools_of_one_kind_leave_different_traces(
    kind: str, photo: Rgb, donors: list[Rgb], monkeypatch: pytest.MonkeyPatch
) -> None:
    made = []
    for tool in edits.TOOLS[kind]:
        monkeypatch.setitem(edits.TOOLS, kind, (tool,))
        made.append(_make(photo, 3, donors, kind).rgb_HWC)
    for place, one in enumerate(made):
        assert all(not np.array_equal(one, other) for other in made[place + 1 :])


def test_the_mask_is_cut_to_what_changed() -> None:
    before = np.full((80, 100, 3), 90, np.uint8)
    after, alpha = before.copy(), np.zeros((80, 100), np.float32)
    alpha[10:70, 10:90] = 1
    after[20:60, 50:80] += np.uint8(40)
    after[35:38, 60:70] = before[35:38, 60:70]  # what fell on its like inside a change is part of it
    after[12, 12] += np.uint8(90)  # a speck is not
    kept = edits._cut(before, after, alpha) > 0
    change = np.zeros_like(kept)
    change[20:60, 50:80] = True
    assert kept[35:38, 60:70].all() and not kept[:, :45].any()
    assert (kept & change).sum() / (kept | change).sum() > 0.8


def test_a_splice_shows_its_donor(photo: Rgb, monkeypatch: pytest.MonkeyPatch) -> None:
    # Of a flat donor a Poisson blend shows nothing, and a matched cut-out little.
    monkeypatch.setitem(edits.TOOLS, "splice", ("window",))
    red = np.zeros((80, 80, 3), np.uint8)
    red[..., 0] = 255
    blue = red[..., ::-1].copy()
    for seed in range(10):
        made = _make(photo, seed, [red, blue], "splice")
        inside = made.mask_HW > 0
        channel = 0 if made.donor == 0 else 2
        pasted, was = made.rgb_HWC[inside].mean(0), photo[inside].mean(0)
        assert pasted[channel] - was[channel] > pasted[2 - channel] - was[2 - channel] + 25


def test_a_clone_in_a_clear_sky_becomes_a_caption() -> None:
    sky = np.full((120, 160, 3), (90, 140, 220), np.uint8)
    made = _make(sky, 1, [], "clone")
    assert made.kind == "caption"
    assert (made.mask_HW > 0).any()


@pytest.mark.parametrize("size", [(32, 32), (32, 400), (400, 32), (512, 300)])
@pytest.mark.parametrize("level", [0, 128, 255])
def test_any_size_and_flat_pictures_can_be_edited(size: tuple[int, int], level: int, donors: list[Rgb]) -> None:
    flat = np.full((size[1], size[0], 3), level, np.uint8)
    for seed in range(6):
        assert (_make(flat, seed, donors).mask_HW > 0).any()


def test_kinds_that_cannot_be_made_are_named(photo: Rgb) -> None:
    with pytest.raises(ValueError, match="splice"):
        _make(photo, 0, [], "splice")
    with pytest.raises(ValueError, match="deepfake"):
        _make(photo, 0, [], "deepfake")
