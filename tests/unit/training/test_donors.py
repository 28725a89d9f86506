"""The fits behind donors: whitening, the metric of pasting, logistic weights, and the brute-force search."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest

from stemma import splice
from stemma.flow import ObjectHit
from training import donors, objects, splices
from training.data import Photographs


def test_whitened_features_have_unit_covariance() -> None:
    rng = np.random.default_rng(0)
    rows = rng.normal(size=(400, 12)) @ rng.normal(size=(12, 12)) + 5
    mean, components = objects.whitened_components(rows, 8)
    covariance = np.cov(((rows - mean) @ components.T).T, bias=True)
    assert np.allclose(covariance, np.eye(8), atol=1e-9)


def test_what_pasting_moves_weighs_less() -> None:
    """Objects differ along both axes alike; pasting moves them along the second alone."""
    rng = np.random.default_rng(1)
    home = rng.normal(size=(300, 2)).astype(np.float32)
    owner = np.repeat(np.arange(300), 2)
    away = home[owner] + np.c_[np.zeros(600), rng.normal(size=600) * 3].astype(np.float32)
    _, components = objects.surviving_components(home, away, owner, 2)
    weight = np.linalg.norm(components, axis=0)
    assert weight[0] > 2 * weight[1]


def test_logistic_weights_come_back() -> None:
    rng = np.random.default_rng(2)
    x = rng.normal(size=(20_000, 2))
    true = np.array([-1.0, 2.0, -0.5])
    right = rng.random(len(x)) < 1 / (1 + np.exp(-(true[0] + x @ true[1:])))
    assert np.allclose(donors.logistic(x, right), true, atol=0.1)


def found(row: int, match: float, damped: float = -0.3) -> splice.Donor:
    hit = ObjectHit(
        row=row,
        image_id=str(row),
        distance=1,
        refined_distance=1,
        query_object=0,
        donor_object=0,
        donor_box=(0, 0, 1, 1),
    )
    box = (0.0, 0.0, 9.0, 9.0)
    return splice.Donor(
        hit=hit,
        query_box=box,
        donor_box=box,
        damped=damped,
        match=match,
        probability=0,
        transform_33=None,
        mirrored=False,
    )


def test_no_question_without_a_donor_is_shown_one() -> None:
    rng = np.random.default_rng(3)
    spliced = [
        donors.Asked(donor=0, found=(found(1, rng.normal(6, 3)), found(0, rng.normal(30, 9))), mask_iou=0.5)
        for _ in range(60)
    ]
    strangers = [donors.Asked(donor=None, found=(found(1, rng.normal(6, 3)),)) for _ in range(60)]
    weights = donors.weights_of(spliced, strangers)
    chance = splice.Chances.fitted(weights, weights)
    shown_min = donors.shown_min_of(strangers, chance)
    assert weights[1] > 0 and 0.5 < shown_min < 1
    said = donors.figures(spliced, strangers, chance, shown_min)
    assert said["false_donors"] == 0 and said["R@1"] > 0.9 and said["R@10"] == 1 and said["mask_iou"] == 0.5
    assert said["shown_right"] > 0.8 and said["shown_wrong"] < 0.05


def test_what_was_looked_at_again_is_judged_by_what_was_seen_then() -> None:
    """Strangers match as well as donors at first, and no longer when they are laid over the query."""
    rng = np.random.default_rng(5)

    def laid(row: int, score: float) -> splice.Donor:
        return dataclasses.replace(found(row, rng.normal(18, 6)), laid=score)

    spliced = [donors.Asked(donor=0, found=(laid(1, rng.normal(12, 3)), laid(0, rng.normal(50, 9)))) for _ in range(60)]
    strangers = [donors.Asked(donor=None, found=(laid(1, rng.normal(12, 3)), found(2, 4.0))) for _ in range(60)]
    weights = donors.weights_of(spliced, strangers), donors.laid_weights_of(spliced, strangers)
    chances = splice.Chances.fitted(*weights)
    shown_min = donors.shown_min_of(strangers, chances)
    said = donors.figures(spliced, strangers, chances, shown_min)
    assert said["R@1"] == 1 and said["shown_right"] > 0.9 and said["false_donors"] == 0
    at_first = splice.Chances.fitted(weights[0], weights[0])
    plain = [
        dataclasses.replace(one, found=tuple(dataclasses.replace(each, laid=None) for each in one.found))
        for one in spliced
    ]
    assert donors.figures(plain, strangers, at_first, shown_min)["R@1"] < 0.8


def test_few_look_alikes_do_not_raise_the_threshold() -> None:
    rng = np.random.default_rng(4)
    spliced = [donors.Asked(donor=0, found=(found(0, rng.normal(30, 9)),)) for _ in range(60)]
    plain = [donors.Asked(donor=None, found=(found(1, rng.normal(6, 2)),)) for _ in range(400)]
    alike = [donors.Asked(donor=None, found=(found(1, 60.0),)) for _ in range(9)]

    weights = donors.weights_of(spliced, plain)
    chance = splice.Chances.fitted(weights, weights)
    few = [*plain, *alike[:4]]
    shown_min = donors.shown_min_of(few, chance)
    said = donors.figures(spliced, few, chance, shown_min)
    assert 0 < said["false_donors"] <= donors.FALSE_MAX and said["shown_right"] > 0.8
    assert donors.shown_min_of([*plain, *alike], chance) > shown_min


def test_no_donor_that_was_found_is_without_hope() -> None:
    """Those that come behind the first eight set the bound; those before it are verified in any case."""
    rng = np.random.default_rng(7)
    chance = splice.Chances.fitted((-6.0, 0.35, -1.0), (-6.0, 0.35, -1.0))
    others = tuple(found(row, 5, -0.9) for row in range(1, splice.VERIFIED_FIRST + 1))
    late = [donors.Asked(donor=0, found=(found(0, 40, rng.uniform(-0.6, 0.1)), *others)) for _ in range(40)]
    early = [donors.Asked(donor=0, found=(found(0, 40, 0.8), found(1, 5, 0.9))) for _ in range(9)]
    hopeless = donors.Asked(donor=0, found=(found(0, 0, 0.9), *others))
    most = donors.damped_max_of([*late, *early, hopeless], chance)
    assert max(asked.found[0].damped for asked in late) < most < 0.2
    assert donors.damped_max_of(early, chance) == -4
    # three of a hundred that are found may be lost, and no more than that
    far = donors.Asked(donor=0, found=(found(0, 40, 0.7), *others))
    assert donors.damped_max_of([*late[:30], far], chance) > 0.7
    assert donors.damped_max_of([*late, *early, *late, far], chance) < 0.2
    assert donors.damped_max_of([], chance) == 4


def test_search_is_the_smallest_distance_over_pairs(tmp_path: Path) -> None:
    rng = np.random.default_rng(4)
    codes = rng.integers(-40, 41, (9, 256)).astype(np.int8)
    owner = np.array([0, 0, 1, 1, 1, 2, 3, 3, 3])
    shelf = donors.Gallery(
        photographs=Photographs(tmp_path, []),
        names=("a", "b", "c", "d"),
        owner_M=owner,
        number_M=np.array([1, 0, 1, 2, 0, 0, 1, 2, 0]),
        box_M4=np.arange(36, dtype=np.float32).reshape(9, 4) / 36,
        vector_MD=codes,
    )
    asked = rng.integers(-40, 41, (2, 3, 256)).astype(np.int8)
    hits = shelf.search(asked, 100.0, 1, 10)
    slow = {
        row: min(
            2 - 2 * float(asked[v, o].astype(int) @ codes[m].astype(int)) / 1e4
            for v in range(2)
            for o in range(3)
            for m in np.flatnonzero(owner == row)
        )
        for row in (0, 2, 3)
    }
    assert [hit.row for hit in hits] == sorted(slow, key=slow.__getitem__)
    for hit in hits:
        assert hit.distance == pytest.approx(slow[hit.row])
        pair = asked[int(hit.mirrored), hit.query_object].astype(int) @ codes[hit.donor_object].astype(int)
        assert hit.distance == pytest.approx(2 - 2 * float(pair) / 1e4)


def test_fewer_objects_are_the_best_and_the_whole(tmp_path: Path) -> None:
    shelf = donors.Gallery(
        photographs=Photographs(tmp_path, []),
        names=("a", "b"),
        owner_M=np.array([0, 0, 0, 1]),
        number_M=np.array([1, 2, 0, 0]),
        box_M4=np.zeros((4, 4), np.float32),
        vector_MD=np.arange(4 * 256).reshape(4, 256).astype(np.int8),
    )
    one = shelf.first(1)
    assert one.owner_M.tolist() == [0, 0, 1] and one.number_M.tolist() == [1, 0, 0]
    assert np.array_equal(one.vector_MD, shelf.vector_MD[[0, 2, 3]])
    assert len(shelf.first(2).owner_M) == 4


@pytest.mark.parametrize("mirrored", [False, True])
def test_boxes_miss_a_pasted_object_by_their_shares(mirrored: bool) -> None:
    picture = np.zeros((200, 300, 3), np.uint8)
    made = splices.Splice(
        rgb_HWC=picture,
        mask_HW=picture[..., 0],
        box=(50, 40, 150, 120),
        donor_box=(0, 0, 9, 9),
        mirrored=mirrored,
    )
    seen_HWC, box_N4 = objects.seen(made, np.random.default_rng(0))
    home = [150, 40, 250, 120] if mirrored else [50, 40, 150, 120]
    off_N4 = np.abs(box_N4 - home) / [100, 80, 100, 80]
    assert seen_HWC.shape == picture.shape and len(box_N4) == len(objects.MISSES)
    assert (off_N4.max(1) <= np.array(objects.MISSES) + 1e-6).all() and off_N4.min() > 0


def test_components_are_steady_under_what_pasting_moves() -> None:
    """In their metric every direction moves alike: what is left of pasting has no direction of its own."""
    rng = np.random.default_rng(5)
    home = rng.normal(size=(500, 4)).astype(np.float32) * [1, 2, 3, 4]
    moves = rng.normal(size=(500, 4)) * [0.1, 1.0, 0.1, 2.0]
    mean, components = objects.surviving_components(
        home.astype(np.float32), (home + moves).astype(np.float32), np.arange(500), 4
    )
    assert mean.shape == (4,) and components.shape == (4, 4)
    strength = np.linalg.norm(components, axis=0)
    assert strength[0] > strength[3] and strength[2] > strength[3]
