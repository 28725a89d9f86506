"""Golden answers: the shipped networks still give them, and what gives others is noticed."""

from __future__ import annotations

import copy
import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from stemma.config import ComparatorSettings, ObjectSettings
from stemma.errors import Corrupt
from stemma.networks import golden, weights
from stemma.networks.comparing import Comparator
from stemma.networks.detector import Detector
from stemma.networks.encoder import Encoder
from stemma.networks.objects import ObjectEncoder


@pytest.fixture(scope="module")
def comparator() -> Comparator:
    return Comparator.load(ComparatorSettings())


def changed(comparator: Comparator, factor: float) -> Comparator:
    """The same comparator with one layer of its network scaled."""
    other = copy.copy(comparator)
    network = copy.deepcopy(comparator._network)
    assert isinstance(network, torch.nn.Module)
    with torch.no_grad():
        for name, tensor in network.named_parameters():
            if name == "classify.weight":
                tensor.mul_(factor)
    other._network = network  # type: ignore[assignment]
    return other


def test_the_shipped_networks_give_their_golden_answers(encoder: Encoder, comparator: Comparator) -> None:
    assert golden.check_encoder(encoder) and golden.check_comparator(comparator)


def test_golden_comparisons_cover_every_class(comparator: Comparator) -> None:
    benign, edited, mirrored, stranger = golden._judged(comparator)
    assert benign.benign > 0.9 and edited.manipulated > 0.9 and mirrored.manipulated > 0.9 and stranger.distinct > 0.9
    assert mirrored.mirrored and not edited.mirrored
    assert edited.heatmap_RC.max() > 0.9 > 0.1 > benign.heatmap_RC.max()


def test_pictures_are_the_same_anywhere() -> None:
    # whole-number arithmetic: any machine draws these bytes
    digests = [weights.digest_of(golden.picture(phase).tobytes())[:12] for phase in range(golden.PHASES)]
    assert digests == ["04dc19248c8c", "d04a734575c6"]


def test_what_was_made_is_what_is_checked(tmp_path: Path, encoder: Encoder, comparator: Comparator) -> None:
    assert not golden.check_encoder(encoder, tmp_path) and not golden.check_comparator(comparator, tmp_path)
    golden.make(tmp_path, None, comparator)
    assert not golden.check_encoder(encoder, tmp_path) and golden.check_comparator(comparator, tmp_path)
    golden.make(tmp_path, encoder, comparator)
    assert golden.check_encoder(encoder, tmp_path)


def test_another_network_under_the_same_digest_is_noticed(comparator: Comparator) -> None:
    with pytest.raises(Corrupt, match="logits differ"):
        golden.check_comparator(changed(comparator, 1.05))
    assert golden.check_comparator(changed(comparator, 1.001))


def test_another_scale_of_stored_descriptors_is_noticed(encoder: Encoder) -> None:
    other = copy.copy(encoder)
    other.card = dataclasses.replace(encoder.card, embedding_scale=encoder.card.embedding_scale * 1.05)
    with pytest.raises(Corrupt, match="embedding differ"):
        golden.check_encoder(other)


def test_other_weights_ask_for_the_file_to_be_made_anew(
    tmp_path: Path, encoder: Encoder, comparator: Comparator
) -> None:
    path = golden.make(tmp_path, encoder, comparator)
    body = json.loads(path.read_text(encoding="utf-8"))
    path.write_text(json.dumps({**body, "encoder": "0" * 64, "comparator": "1" * 64}), encoding="utf-8")
    with pytest.raises(Corrupt, match="stemma weights golden"):
        golden.check_encoder(encoder, tmp_path)
    with pytest.raises(Corrupt, match="stemma weights golden"):
        golden.check_comparator(comparator, tmp_path)


@pytest.mark.parametrize("text", ['{"encoder": ', "[]"])
def test_a_torn_file_is_corrupt(tmp_path: Path, encoder: Encoder, text: str) -> None:
    (tmp_path / golden.FILE).write_text(text, encoding="utf-8")
    with pytest.raises(Corrupt, match=golden.FILE):
        golden.check_encoder(encoder, tmp_path)


def test_a_moved_heatmap_is_noticed(tmp_path: Path, comparator: Comparator) -> None:
    path = golden.make(tmp_path, None, comparator)
    body = json.loads(path.read_text(encoding="utf-8"))
    for one in body["comparisons"]:
        one["heat"] = np.roll(one["heat"], 2).tolist()
    path.write_text(json.dumps(body), encoding="utf-8")
    with pytest.raises(Corrupt, match="heatmap"):
        golden.check_comparator(comparator, tmp_path)


@pytest.fixture(scope="module")
def finders() -> golden.Finders:
    settings = ObjectSettings()
    made_by = weights.objects_digest(weights.objects_card(), weights.detector_card())
    return golden.Finders(Detector.load(settings), ObjectEncoder.load(settings), made_by)


def test_the_shipped_finders_give_their_golden_objects(finders: golden.Finders, tmp_path: Path) -> None:
    assert golden.check_objects(finders)
    assert not golden.check_objects(finders, tmp_path)
    # a file of before there were objects goes on to work
    golden.make(tmp_path, None, None)
    assert not golden.check_objects(finders, tmp_path)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda one: one.update(embedding=[value + 3 for value in one["embedding"]]), "objects differ"),
        (lambda one: one["boxes"].__setitem__(0, [5, 5, 9, 9]), r"saw an object at \[5"),
        (lambda one: one.update(scores=[0.501, *one["scores"][1:]]), r"score 0\.501"),
    ],
)
def test_other_objects_are_noticed(finders: golden.Finders, tmp_path: Path, change: Any, told: str) -> None:
    body = json.loads((weights.resolve(None) / golden.FILE).read_text(encoding="utf-8"))
    change(body["found"][1])
    (tmp_path / golden.FILE).write_text(json.dumps(body), encoding="utf-8")
    with pytest.raises(Corrupt, match=told):
        golden.check_objects(finders, tmp_path)


def test_golden_objects_are_of_one_detector_and_one_embedding(finders: golden.Finders) -> None:
    with pytest.raises(Corrupt, match="stemma weights golden"):
        golden.check_objects(dataclasses.replace(finders, weights="0" * 64))
