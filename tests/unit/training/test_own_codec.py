"""A collection that brings a codec of its own is searched with it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from stemma.catalog import Catalog, Draft
from stemma.cli import main
from stemma.config import load
from stemma.errors import BadRequest, Conflict
from stemma.flow import Objects
from stemma.index.choice import codec_of, codec_wanted
from stemma.index.seal import maintain
from training import own_codec

COUNT = 300


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> str:
    url = str(tmp_path_factory.mktemp("own") / "c.stemma")
    vectors_ND = np.random.default_rng(0).integers(-40, 40, (COUNT, 256)).astype(np.int8)
    blank: dict[str, Any] = {"width": 9, "height": 9, "cells_NF": np.zeros((196, 32), np.int8), "pixels": b"jpeg"}
    with Catalog.create(url) as catalog:
        catalog.commit(
            [
                Draft(image_id=None, name=f"{n}", sha256=f"{n:064x}", embedding_D=vector_D, weights="w", job="j",
                      source=f"{n}", metadata={}, objects=objects_of(vector_D) if n % 2 else None,
                      objects_weights="o" if n % 2 else None, **blank)
                for n, vector_D in enumerate(vectors_ND)
            ]
        )  # fmt: skip
    return url


def objects_of(vector_D: Any) -> Objects:
    """The whole picture and itself again."""
    box_O4 = np.array([[0, 0, 1, 1]] * 2, np.float32)
    return Objects(box_O4=box_O4, score_O=np.ones(2, np.float32), embedding_OD=np.stack([vector_D, -vector_D]))


def test_it_goes_before_the_shipped_one_and_is_trained_once(url: str) -> None:
    settings = load(overrides=["search.codec=paper", "search.tail_rows_max=10"])
    trained = own_codec.train_own_codec(url, "paper")
    assert trained.card["trained_on"] == COUNT
    assert codec_wanted(settings, Path(url), COUNT).id == trained.id
    with pytest.raises(Conflict):
        own_codec.train_own_codec(url, "paper")
    with Catalog.open(url) as reader:
        assert maintain(reader, Path(url), trained, settings).built


def test_a_collection_that_outgrew_exact_search_keeps_it_until_it_is_sealed_anew(url: str) -> None:
    settings = load(overrides=["search.exact_images_max=100", "search.tail_rows_max=10"])
    exact = codec_wanted(load(), Path(url), 100)
    with Catalog.open(url) as reader:
        assert codec_of(settings, Path(url), COUNT).id == codec_wanted(settings, Path(url), COUNT).id
        maintain(reader, Path(url), exact, settings)
        assert codec_of(settings, Path(url), COUNT).exact
        maintain(reader, Path(url), codec_wanted(settings, Path(url), COUNT), settings)
        assert not codec_of(settings, Path(url), COUNT).exact


def test_one_of_objects_goes_with_the_one_of_images_and_is_part_of_its_name(url: str) -> None:
    settings = load(overrides=["search.codec=opq"])
    shipped = codec_wanted(settings, Path(url), COUNT)
    with pytest.raises(BadRequest, match="scale"):
        own_codec.train_own_codec(url, "objects")
    trained = own_codec.train_own_codec(url, "objects", object_scale=321.0)
    assert (trained.card["trained_on"], trained.scale) == (COUNT, 321.0), "two objects of every other image"
    both = codec_wanted(settings, Path(url), COUNT)
    assert both.id == f"{shipped.id}.{trained.id.removeprefix('objects-')}"
    assert both.objects is not None and both.objects.id == trained.id
    assert codec_wanted(load(), Path(url), 10).objects is None, "exact search has no codes of either"


def test_too_few_originals_are_refused(tmp_path: Path) -> None:
    Catalog.create(str(tmp_path / "few.stemma")).close()
    with pytest.raises(BadRequest):
        own_codec.train_own_codec(str(tmp_path / "few.stemma"), "opq")
    assert main(["train", "codec", "--collection", str(tmp_path / "none.stemma")]) == 2
    assert main(["train", "nothing", "--data", str(tmp_path)]) == 2
