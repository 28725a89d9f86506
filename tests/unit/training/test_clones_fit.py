"""What a fit of clones calls right, and that its threshold lets next to nothing else through."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from stemma import clones
from stemma.vision import geometry
from training import clones as fitting
from training.clones import Asked, Edit

SIDE = 160


def evidence(strength: float) -> clones.Evidence:
    return clones.Evidence(
        matches=int(40 * strength), share=strength, correlation=0.6 + 0.35 * strength, windows=80 * strength
    )


def asked(kind: str, *strengths: float, right: bool) -> Asked:
    return Asked(
        kind=kind, evidence=tuple(map(evidence, strengths)), right=(right,) * len(strengths), regions=1, ms=40.0
    )


def edit(copied_from: tuple[float, ...] | None = None) -> Edit:
    """A square of a noisy picture, laid 80 px to the right of its place."""
    original = np.random.default_rng(5).integers(0, 256, (SIDE, SIDE, 3)).astype(np.uint8)
    query, mask = original.copy(), np.zeros((SIDE, SIDE), np.uint8)
    query[50:100, 90:140] = original[50:100, 10:60]
    mask[50:100, 90:140] = 255
    return Edit(kind="clone", query_HWC=query, original_HWC=original, mask_HW=mask, copied_from=copied_from)


def clone(shift: float, *, place: int = 90) -> clones.Clone:
    window = (place, 50, place + 50, 100)
    return clones.Clone(
        query_box=tuple(map(float, window)),
        donor_box=(place + shift, 50.0, place + 50 + shift, 100.0),
        probability=0.9,
        transform_33=geometry.translation(shift, 0),
        mirrored=False,
        mask=(window, np.full((50, 50), 255, np.uint8)),
        evidence=evidence(0.9),
    )


@pytest.mark.parametrize("known", [None, (10.0, 50.0, 60.0, 100.0)], ids=["by content", "by place"])
def test_a_clone_is_right_where_both_places_are(known: tuple[float, ...] | None) -> None:
    assert fitting.right(edit(known), clone(-80))
    assert not fitting.right(edit(known), clone(-50))
    assert not fitting.right(edit(known), clone(-80, place=20))


def test_a_mask_has_its_parts_and_its_whole() -> None:
    mask = np.zeros((50, 60), np.uint8)
    mask[5:10, 5:15] = mask[30:40, 40:50] = 255
    assert list(fitting.pieces(mask)) == [(5, 5, 15, 10), (40, 30, 50, 40), (5, 5, 50, 40)]


def test_the_threshold_lets_a_hundredth_of_other_edits_through() -> None:
    rng = np.random.default_rng(3)
    found = [asked("clone", value, right=True) for value in rng.uniform(0.4, 0.9, 200)]
    others = [asked("splice", value, right=False) for value in rng.uniform(0.0, 0.5, 200)]
    weights, shown_min = fitting.fitted([*found, *others])
    shown = [one.best(weights)[0] >= shown_min for one in others]
    assert sum(shown) <= 2
    assert np.mean([one.best(weights)[0] >= shown_min for one in found]) > 0.7
    said = fitting.figures([*found, *others], weights, shown_min)
    assert said["others shown"] == {"n": 200, "count": sum(shown)}
    assert said["clone"]["right"] == said["clone"]["shown"] > 0.7
    assert said["ms_a_region"] == 40.0


def test_a_neighbouring_texture_fits_nothing_and_counts_as_no_other_edit() -> None:
    plain = [asked("clone", 0.8, right=True), asked("splice", 0.1, right=False)] * 20
    removals = [asked("neighbour", value, right=True) for value in np.linspace(0.1, 0.9, 9)]
    assert fitting.fitted([*plain, *removals]) == fitting.fitted(plain)
    assert fitting.figures([*plain, *removals], clones.WEIGHTS, 0.5)["others shown"]["n"] == 20


def test_a_lucky_match_of_another_edit_is_never_right() -> None:
    """The content of a splice may well stand elsewhere in the picture, by chance: that makes no clone of it."""
    known = [asked("clone", 0.8, right=True), asked("splice", 0.3, right=True)] * 20
    weights, _ = fitting.fitted(known)
    assert clones.probability(evidence(0.3), weights) < 0.2 < 0.8 < clones.probability(evidence(0.8), weights)
    with pytest.raises(ValueError, match="more photographs"):
        fitting.fitted(known[1::2])


def test_photographs_are_edited_by_a_clone_every_other_time_and_the_same_again() -> None:
    picture = np.random.default_rng(7).integers(0, 256, (40, 60, 3)).astype(np.uint8)
    picture = np.repeat(np.repeat(picture, 3, 0), 3, 1)
    made = [fitting.rendered(picture, "a.jpg", number, [picture[::-1]]) for number in range(4)]
    again = fitting.rendered(picture, "a.jpg", 1, [picture[::-1]])
    assert [one.kind for one in made[::2]] == ["clone", "clone"]
    assert made[1].kind in (*fitting.OTHERS, "neighbour")
    assert np.array_equal(made[1].query_HWC, again.query_HWC)
    assert all(one.mask_HW.shape == one.query_HWC.shape[:2] for one in itertools.chain(made, [again]))
