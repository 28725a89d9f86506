"""A run's detector as weights: averaged tensors, a card that is true, and recall as it is stated."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from stemma.errors import BadRequest, NotFound
from training import detector_weights, recipe
from training.recipe import TrainingConfig


def test_recall_counts_the_objects_that_boxes_cover(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "photos" / "val").mkdir(parents=True)
    cv2.imwrite(str(tmp_path / "photos" / "val" / "a.jpg"), np.full((200, 300, 3), 90, np.uint8))
    boxes = ((10.0, 10.0, 110.0, 110.0), (150.0, 20.0, 250.0, 120.0), (5.0, 5.0, 15.0, 15.0))
    monkeypatch.setattr("training.splices.annotated", lambda _: {"a.jpg": ("val", boxes)})
    monkeypatch.setattr("training.labelling.Yolox", lambda _: None)
    ways = {
        "one": lambda _: np.array([[15, 10, 110, 110]], np.float32),
        "none": lambda _: np.zeros((0, 4), np.float32),
        "both": lambda _: np.array(boxes[:2], np.float32),
    }
    found = detector_weights.covered(ways, detector_weights.annotated(tmp_path, "val", ["a.jpg"]))
    # the third object is too small to be wanted
    assert found == {"one": 0.5, "none": 0.0, "both": 1.0, "objects": 2.0}


def test_other_runs_are_refused(tmp_path: Path) -> None:
    with pytest.raises(NotFound):
        detector_weights.write(tmp_path, tmp_path, tmp_path / "out")
    config = TrainingConfig.model_validate({"network": "encoder"})
    torch.save({"t": 1, "step": {}, "config": recipe.describe(config)}, tmp_path / "best.pt")
    with pytest.raises(BadRequest, match="encoder"):
        detector_weights.write(tmp_path, tmp_path, tmp_path / "out")


def test_averaged_tensors_are_taken() -> None:
    state = {"step": {"averaged": {"a": torch.ones(2)}, "network": {"a": torch.zeros(2)}}}
    assert detector_weights.averaged(state)["a"].tolist() == [1, 1]
