"""The detector: what it is made of, that boxes are in the picture, and the grid where it finds nothing."""

from __future__ import annotations

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
from stemma.networks.detector import Detector

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


def test_boxes_lie_in_the_picture_best_first() -> None:
    found = Detector(random_network(), size="starter")  # type: ignore[arg-type]
    box_O4, score_O = found.detect(picture(), 5)
    assert len(box_O4) <= 5 and (np.diff(score_O) <= 0).all()
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


def test_the_grid_stands_in_where_nothing_is_found() -> None:
    class Blind(Detector):
        def __init__(self) -> None:
            pass

        def detect(self, rgb_HWC: np.ndarray, most: int) -> tuple[np.ndarray, np.ndarray]:
            return np.zeros((0, 4), np.float32), np.zeros(0, np.float32)

    boxes, scores = detector.regions(picture(), Blind(), 8)
    assert np.array_equal(boxes, detector.grid(200, 120)) and not scores.any()


@pytest.mark.parametrize(("height", "width"), [(512, 1), (1, 512), (1, 1), (31, 300)])
def test_a_line_of_pixels_holds_no_objects(height: int, width: int) -> None:
    boxes_O4, scores_O = Detector(random_network(), size="starter").detect(picture(height, width), 8)
    assert boxes_O4.shape == (0, 4) and scores_O.shape == (0,)


def test_small_boxes_are_no_regions() -> None:
    class Sharp(Detector):
        def __init__(self) -> None:
            pass

        def detect(self, rgb_HWC: np.ndarray, most: int) -> tuple[np.ndarray, np.ndarray]:
            boxes = np.array([[0, 0, 20, 90], [0, 0, 50, 50], [10, 10, 90, 60], [5, 5, 95, 95]], np.float32)
            return boxes[:most], np.linspace(0.9, 0.1, 4, dtype=np.float32)[:most]

    boxes, scores = detector.regions(picture(), Sharp(), 2)
    assert boxes.tolist() == [[0, 0, 50, 50], [10, 10, 90, 60]] and (np.diff(scores) < 0).all()


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
