"""The detector: what it is made of, that boxes are in the picture, and the grid where it finds nothing."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from stemma.config import ObjectSettings
from stemma.errors import BadRequest, Corrupt
from stemma.networks import detector, weights
from stemma.networks.backbones import Lite0, parameter_count
from stemma.networks.detector import REACH_IOU, Detector
from stemma.networks.objects import large
from stemma.splice import overlap

STARTER_BYTES_MAX = 8_000_000


def random_network(seed: int = 0) -> torch.nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return detector.build("starter")


def picture(height: int = 120, width: int = 200) -> np.ndarray:
    return np.random.default_rng(3).integers(0, 256, (height, width, 3)).astype(np.uint8)


def test_the_starter_fits_its_budget() -> None:
    network = random_network()
    numbers = sum(tensor.numel() for name, tensor in network.state_dict().items() if "num_batches" not in name)
    assert 2 * numbers < STARTER_BYTES_MAX
    assert isinstance(network.backbone, detector.Lite0Pyramid)


def test_the_paper_is_torchvisions_own() -> None:
    with torch.device("meta"):
        network = detector.build("paper")
    assert 41_000_000 < parameter_count(network) < 42_000_000
    assert network.roi_heads.box_predictor.cls_score.out_features == detector.CLASSES


def test_maps_have_the_strides_that_anchors_are_for() -> None:
    with torch.inference_mode():
        maps = detector.Lite0Pyramid().eval()(torch.zeros(1, 3, 64, 96))
    assert [tuple(one.shape) for one in maps.values()] == [(1, 96, 4, 6), (1, 96, 2, 3)]


def test_training_leaves_statistics_and_frozen_stages_alone() -> None:
    pyramid = detector.Lite0Pyramid(Lite0())
    pyramid.freeze(5)
    pyramid.train()
    assert not any(m.training for m in pyramid.modules() if isinstance(m, torch.nn.BatchNorm2d))
    learned = {name.split(".")[0] for name, p in pyramid.named_parameters() if p.requires_grad}
    assert learned == {"deep", "pyramid"}


def test_boxes_lie_in_the_picture() -> None:
    found = Detector(random_network(), size="starter")  # type: ignore[arg-type]
    box_O4, score_O = found.detect(picture(), 5)
    assert 0 < len(box_O4) == len(score_O) <= 5 and ((score_O > 0) & (score_O < 1)).all()
    assert large(box_O4).all()
    assert (box_O4 >= -1e-3).all() and (box_O4[:, [0, 2]] <= 200.01).all() and (box_O4[:, [1, 3]] <= 120.01).all()
    again, _ = found.detect(picture(), 5)
    assert np.array_equal(again, box_O4)
    for wrong in (picture().astype(np.float32), picture()[..., 0], picture()[:0]):
        with pytest.raises(ValueError, match="uint8"):
            found.detect(wrong, 5)


@given(st.integers(32, 512), st.integers(32, 512))
def test_the_grid_covers_the_picture(width: int, height: int) -> None:
    boxes = detector.grid(width, height)
    assert len(boxes) == 22 and (boxes[:, :2] >= 0).all()
    assert (boxes[:, 2:] <= np.array([width, height]) + 1e-3).all()
    hit = np.zeros((8, 8), bool)
    for x0, y0, x1, y1 in boxes[4:] / [width, height, width, height]:
        centres = (np.arange(8) + 0.5) / 8
        hit |= ((centres >= y0) & (centres <= y1))[:, None] & ((centres >= x0) & (centres <= x1))[None]
    assert hit.all()


def test_a_closer_look_adds_guesses_and_leaves_no_trace() -> None:
    """Both looks' guesses are chosen among, and the next picture is seen as it would have been."""
    found, rgb = Detector(random_network(), size="starter"), picture(240, 320)
    once, _ = found.detect(rgb, 10_000)
    twice, scores = found.detect(rgb, 10_000, closely=True)
    again, _ = found.detect(rgb, 10_000)
    every = [found._guesses(rgb, side) for side in (found._side_px, round(detector.CLOSER * found._side_px))]
    assert np.array_equal(once, again) and found._side_px == detector.SIDE_PX
    assert {tuple(box) for box in twice} <= {tuple(box) for boxes, _ in every for box in boxes}
    both_O4, both_O = (np.concatenate(each) for each in zip(*every, strict=True))
    kept_O = large(both_O4)
    telling = detector.covering(both_O4[kept_O], both_O[kept_O], 10_000, detector.GAIN_MIN)
    assert np.array_equal(twice, both_O4[kept_O][telling]), "a plain picture has few objects"
    assert not {tuple(box) for box in twice} <= {tuple(box) for box in every[0][0]}
    assert len(scores) == len(twice)


def test_the_grid_stands_in_where_nothing_is_found() -> None:
    class Blind(Detector):
        def __init__(self) -> None:
            pass

        def detect(self, rgb_HWC: np.ndarray, most: int, *, closely: bool = False) -> tuple[np.ndarray, np.ndarray]:
            return np.zeros((0, 4), np.float32), np.zeros(0, np.float32)

    boxes, scores = detector.regions(picture(), Blind(), 8)
    assert np.array_equal(boxes, detector.grid(200, 120)) and not scores.any()


@pytest.mark.parametrize(("height", "width"), [(512, 1), (1, 512), (1, 1), (31, 300)])
def test_a_line_of_pixels_holds_no_objects(height: int, width: int) -> None:
    boxes_O4, scores_O = Detector(random_network(), size="starter").detect(picture(height, width), 8)
    assert boxes_O4.shape == (0, 4) and scores_O.shape == (0,)


boxes = st.lists(
    st.tuples(st.floats(0, 60), st.floats(0, 60), st.floats(4, 40), st.floats(4, 40), st.floats(0.01, 1)),
    min_size=1,
    max_size=9,
)


def useful(box_O4: np.ndarray, score_O: np.ndarray, chosen: Sequence[int]) -> float:
    """The slow twin's measure: guesses near a chosen box, weighed by their scores."""
    total = 0.0
    for guess, score in zip(box_O4, score_O, strict=True):
        nearest = max((overlap(guess.tolist(), box_O4[at].tolist()) for at in chosen), default=0.0)
        total += float(score) * min(max((nearest - REACH_IOU[0]) / (REACH_IOU[1] - REACH_IOU[0]), 0), 1)
    return total


def test_overlap_is_that_of_counted_pixels() -> None:
    rng = np.random.default_rng(5)
    corners = rng.integers(0, 20, (2, 6, 2))
    boxes = np.concatenate([corners[0], corners[0] + 1 + rng.integers(1, 20, (6, 2))], 1).astype(np.float32)
    found = detector.overlaps(boxes[:3], boxes[3:])
    for i, one in enumerate(boxes[:3].astype(int)):
        for j, other in enumerate(boxes[3:].astype(int)):
            grid = np.zeros((2, 50, 50), bool)
            grid[0, one[1] : one[3], one[0] : one[2]] = True
            grid[1, other[1] : other[3], other[0] : other[2]] = True
            assert found[i, j] == pytest.approx((grid[0] & grid[1]).sum() / (grid[0] | grid[1]).sum())


@given(boxes, st.integers(1, 6), st.sampled_from([0.0, 0.2, 0.7]))
def test_each_next_box_adds_most(guesses: list[tuple[float, ...]], most: int, gain_min: float) -> None:
    box_O4 = np.array([(x, y, x + w, y + h) for x, y, w, h, _ in guesses], np.float32)
    score_O = np.array([one[-1] for one in guesses], np.float32)
    chosen = detector.covering(box_O4, score_O, most, gain_min).tolist()
    assert len(set(chosen)) == len(chosen) <= most
    total = 0.0
    for place, at in enumerate(chosen):
        before = chosen[:place]
        gains = [useful(box_O4, score_O, [*before, each]) for each in range(len(box_O4))]
        assert gains[at] == pytest.approx(max(gains), rel=1e-5)
        assert gains[at] - total > gain_min - 1e-5
        total = gains[at]
    if len(chosen) < most:
        others = [useful(box_O4, score_O, [*chosen, each]) for each in range(len(box_O4))]
        assert max(others) - total <= gain_min + 1e-5, "one more would have been worth its place"


def test_of_no_guesses_none_is_chosen() -> None:
    assert detector.covering(np.zeros((0, 4), np.float32), np.zeros(0, np.float32), 8).tolist() == []


def test_a_box_that_others_agree_with_goes_before_a_slightly_better_one() -> None:
    box_O4 = np.array([[0, 0, 40, 40], [100, 0, 140, 40], [102, 0, 142, 40], [104, 0, 144, 40]], np.float32)
    chosen = detector.covering(box_O4, np.array([0.6, 0.5, 0.5, 0.5], np.float32), 2)
    assert chosen.tolist() == [1, 0]


def test_weights_come_back_as_they_were_written(tmp_path: Path) -> None:
    network = random_network(1)
    state = {name: t.numpy() for name, t in network.state_dict().items() if "num_batches" not in name}
    digest = weights.write_detector(tmp_path, state)
    weights.write_card(tmp_path, weights.DetectorCard(name="t", size="starter", digest=digest))
    loaded = Detector.load(ObjectSettings(weights=str(tmp_path)))
    direct = Detector(network, size="starter")  # type: ignore[arg-type]
    for one, other in zip(loaded.detect(picture(), 3), direct.detect(picture(), 3), strict=True):
        assert np.array_equal(one, other)
    with pytest.raises(BadRequest, match="paper"):
        Detector.load(ObjectSettings(size="paper", weights=str(tmp_path)))
    state.pop("rpn.head.cls_logits.bias")
    digest = weights.write_detector(tmp_path, state)
    weights.write_card(tmp_path, weights.DetectorCard(name="t", size="starter", digest=digest))
    with pytest.raises(Corrupt, match="cls_logits"):
        Detector.load(ObjectSettings(weights=str(tmp_path)))
