"""Cards and files: found from anywhere, refused when changed, readable without pickle."""

from __future__ import annotations

import dataclasses
import json
import struct
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stemma.errors import Corrupt, NotFound
from stemma.networks import weights
from stemma.networks.weights import Card

MIB = 1024 * 1024


def a_card(**changes: object) -> Card:
    known = {
        "name": "test",
        "size": "starter",
        "digest": "0" * 64,
        "embedding_scale": 100.0,
        "cells_scale": 90.0,
        "match_threshold": 10.0,
        "calibration": ((0.0, 0.1), (10.0, 0.5), (20.0, 0.9)),
    }
    return Card(**{**known, **changes})  # type: ignore[arg-type]


def test_the_shipped_weights_are_what_their_card_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    card, tensors = weights.read_tensors()
    assert card.name == "starter" and card.size == "starter" and len(card.digest) == 64
    assert all(np.isfinite(tensor).all() for tensor in tensors.values())
    body = (weights.resolve(None) / weights.ENCODER_FILE).read_bytes()
    assert len(body) <= 10 * MIB
    # a safetensors file is a length, a JSON header and numbers: nothing in it is executed
    (length,) = struct.unpack("<Q", body[:8])
    header = json.loads(body[8 : 8 + length])["__metadata__"]
    assert float(header["embedding_scale"]) == card.embedding_scale
    assert float(header["cells_scale"]) == card.cells_scale


def test_the_shipped_card_says_where_it_comes_from() -> None:
    card = weights.card()
    assert card.what and card.data and card.limits and "stemma train encoder" in card.command
    assert any("Apache-2.0" in line for line in card.licences) and any("CC BY-SA" in line for line in card.licences)
    for kind in ("benign", "manip", "both"):
        found = card.figures[kind]["found"]
        assert found["low"] <= found["share"] <= found["high"] and found["n"] >= 200
    assert card.match_probability(card.match_threshold + 20) > 0.95 > 0.5 > card.match_probability(5.0)


def test_available_and_find() -> None:
    shipped = weights.card()
    assert shipped in weights.available()
    assert weights.find(shipped.digest) == weights.resolve(None)
    with pytest.raises(NotFound, match=r"encoder\.weights"):
        weights.find("f" * 64)


def test_codec_folder_names_the_way_out(tmp_path: Path) -> None:
    with pytest.raises(NotFound, match="stemma train codec"):
        weights.codec_folder("opq", tmp_path)


def test_every_shipped_file_is_small() -> None:
    for path in weights.resolve(None).rglob("*"):
        assert path.is_dir() or path.suffix == ".safetensors" or path.stat().st_size < MIB, path


def test_a_folder_without_weights_is_not_found(tmp_path: Path) -> None:
    with pytest.raises(NotFound, match=r"card\.json"):
        weights.card(tmp_path)
    weights.write_card(tmp_path, a_card())
    with pytest.raises(NotFound, match=r"encoder\.safetensors"):
        weights.read_tensors(tmp_path)


def test_write_and_read_again(tmp_path: Path) -> None:
    tensors = {"b": np.arange(6, dtype=np.float16).reshape(2, 3), "a": np.ones(2, np.float32)}
    tensors["c"] = np.arange(6, dtype=np.float32).reshape(2, 3).T  # not in row order
    digest = weights.write_tensors(tmp_path, tensors, embedding_scale=100.0, cells_scale=90.0)
    entry = a_card(digest=digest, licences=("x",), figures={"benign": {"n": 3}})
    weights.write_card(tmp_path, entry)
    card, again = weights.read_tensors(tmp_path)
    assert card == entry
    assert {name: tensor.dtype for name, tensor in again.items()} == dict.fromkeys("abc", np.float32)
    assert all(np.array_equal(again[name], tensors[name]) for name in tensors)
    # the scales decide what a stored row means, so they are under the digest
    assert weights.write_tensors(tmp_path, tensors, embedding_scale=101.0, cells_scale=90.0) != digest
    with pytest.raises(Corrupt, match="card says"):
        weights.read_tensors(tmp_path)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"surprise": 1}, "surprise"),
        ({"calibration": [[1, 0.5], [1, 0.6]]}, "rise"),
        ({"calibration": [[0, 0.5], [1, 0.4]]}, "rise"),
        ({"calibration": None}, "card"),
        ({"digest": ...}, "digest"),
    ],
)
def test_a_card_that_does_not_fit_is_corrupt(tmp_path: Path, change: dict[str, object], reason: str) -> None:
    body = {**dataclasses.asdict(a_card()), **change}
    kept = {name: value for name, value in body.items() if value is not ...}
    (tmp_path / weights.CARD_FILE).write_text(json.dumps(kept), encoding="utf-8")
    with pytest.raises(Corrupt, match=reason):
        weights.card(tmp_path)


def test_a_torn_card_is_corrupt(tmp_path: Path) -> None:
    (tmp_path / weights.CARD_FILE).write_text('{"name": "tes', encoding="utf-8")
    with pytest.raises(Corrupt):
        weights.card(tmp_path)


@given(st.floats(-10, 60))
def test_the_probability_is_linear_between_points(score: float) -> None:
    card = a_card()
    expected = np.interp(score, *zip(*card.calibration, strict=True))
    assert card.match_probability(score) == pytest.approx(float(expected))


def test_no_calibration_promises_nothing() -> None:
    assert a_card(calibration=()).match_probability(50.0) == 0.0
