"""Codecs: content-addressed, deterministic, and to the bit whatever is encoded beside a vector."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stemma.errors import BadRequest, Corrupt
from stemma.index.codec import ENCODE_ROWS, SAMPLES_PER_LIST, Codec

KINDS = ["exact", "opq", "paper"]
TRAINED = ["opq", "paper"]


@pytest.mark.parametrize("kind", TRAINED)
@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), count=st.integers(1, 3 * ENCODE_ROWS))
def test_a_code_does_not_depend_on_its_neighbours(
    kind: str, seed: int, count: int, codecs: dict[str, Codec], vectors: Callable[..., Any]
) -> None:
    stored = vectors(200, 2)
    lists, codes = codecs[kind].encode(stored)
    some = np.random.default_rng(seed).choice(200, count)
    again_lists, again_codes = codecs[kind].encode(stored[some])
    assert (again_lists == lists[some]).all()
    assert (again_codes == codes[some]).all()


@pytest.mark.parametrize("kind", TRAINED)
def test_the_order_of_lists_does_not_depend_on_the_batch(
    kind: str, codecs: dict[str, Codec], vectors: Callable[..., Any]
) -> None:
    views = vectors(40, 4)
    together = codecs[kind].rank_lists(views)
    for at in range(len(views)):
        for many, alone in zip(together, codecs[kind].rank_lists(views[at : at + 1]), strict=True):
            assert many[at].tobytes() == alone[0].tobytes()
    _, order, distance = together
    assert (np.sort(order, axis=1) == np.arange(codecs[kind].nlist)).all()
    assert (np.diff(np.take_along_axis(distance, order, axis=1), axis=1) >= 0).all()


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_saved_is_loaded_under_the_same_id(
    kind: str, codecs: dict[str, Codec], vectors: Callable[..., Any], tmp_path: Path
) -> None:
    codec = codecs[kind]
    codec.save(tmp_path / "codec")
    codec.save(tmp_path / "codec")  # again: nothing is written twice
    loaded = Codec.load(tmp_path / "codec")
    assert (loaded.id, loaded.kind, loaded.nlist, loaded.card) == (codec.id, codec.kind, codec.nlist, codec.card)
    if not codec.exact:
        for before, after in zip(codec.encode(vectors(70, 1)), loaded.encode(vectors(70, 1)), strict=True):
            assert (before == after).all()


@pytest.mark.parametrize("damage", ["byte", "torn", "missing", "card", "no_card", "no_json"])
def test_a_damaged_codec_is_refused(damage: str, codecs: dict[str, Codec], tmp_path: Path) -> None:
    folder = tmp_path / "codec"
    codecs["opq"].save(folder)
    index, card = folder / "index.faiss", folder / "codec.json"
    body = bytearray(index.read_bytes())
    if damage == "byte":
        body[len(body) // 2] ^= 1
        index.write_bytes(body)
    elif damage == "torn":
        index.write_bytes(body[:-5])
    elif damage == "missing":
        index.unlink()
    elif damage == "card":
        card.write_text(json.dumps({**json.loads(card.read_text()), "scale": 1.0}))
    elif damage == "no_card":
        card.unlink()
    else:
        card.write_text("{")
    with pytest.raises(Corrupt):
        Codec.load(folder)


def test_training_is_decided_by_seed_and_vectors_and_scales_its_lists(vectors: Callable[..., Any]) -> None:
    def train(seed: int, sample: Any) -> Codec:
        return Codec.train("paper", sample, seed=seed, scale=360.0)

    sample = vectors(300, 1)
    first = train(1, sample)
    assert first.id == train(1, sample).id != train(2, sample).id
    assert first.nlist == 300 // SAMPLES_PER_LIST
    assert (first.card["nlist_wanted"], first.card["trained_on"]) == (1024, 300)
    as_floats = sample.astype(np.float32) / 360.0
    assert train(1, as_floats).id == first.id, "unit vectors are quantized as they will be stored"


def test_what_cannot_be_trained_is_refused(vectors: Callable[..., Any]) -> None:
    with pytest.raises(BadRequest, match="at least 256"):
        Codec.train("paper", vectors(255, 1), seed=0, scale=360.0)
    with pytest.raises(BadRequest, match="exact, paper, opq"):
        Codec.train("lsh", vectors(300, 1), seed=0, scale=360.0)
    with pytest.raises(BadRequest, match="256"):
        Codec.train("paper", vectors(300, 1)[:, :128], seed=0, scale=360.0)
    assert Codec.train("exact", vectors(1, 1), seed=0, scale=360.0).exact
