"""A splice asked of a collection in one process: its donor comes first, outlined, and nothing is loaded in vain."""

from __future__ import annotations

import io
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

import stemma
from stemma import finder
from stemma.collection import Collection
from stemma.config import load
from stemma.donors import NO_OBJECTS
from stemma.flow import OBJECTS_MAX

COUNT, DONOR, SIZE = 4, 2, (320, 240)
BOX, PASTED = (60, 80, 160, 170), (200, 20, 300, 110)
"""Of what is cut out of the donor, and of where it is pasted; every picture here has an object at either place."""


def texture(seed: int) -> NDArray[np.uint8]:
    width, height = SIZE
    coarse = np.random.default_rng(seed).integers(0, 256, (height // 8, width // 8, 3)).astype(np.uint8)
    return np.asarray(cv2.resize(coarse, SIZE, interpolation=cv2.INTER_CUBIC), np.uint8)


def png(rgb_HWC: NDArray[np.uint8]) -> bytes:
    out = io.BytesIO()
    Image.fromarray(rgb_HWC).save(out, "PNG")
    return out.getvalue()


def spliced() -> bytes:
    rgb_HWC = texture(100)
    x0, y0, x1, y1 = BOX
    left, top, right, bottom = PASTED
    rgb_HWC[top:bottom, left:right] = texture(DONOR)[y0:y1, x0:x1]
    return png(rgb_HWC)


@pytest.fixture(scope="module")
def collection(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Collection]:
    # what the detector sees in drawn pictures is no matter of these tests
    with pytest.MonkeyPatch.context() as patch, stemma.open(tmp_path_factory.mktemp("d") / "c.stemma") as target:
        boxes_O4, scores_O = np.array([BOX, PASTED], np.float32), np.ones(2, np.float32)
        patch.setattr(finder, "regions", lambda *_, closely=False: (boxes_O4, scores_O))
        target.ingest([png(texture(seed)) for seed in range(COUNT)], metadata=[{"n": n} for n in range(COUNT)])
        yield target


def test_a_splice_finds_its_donor_and_its_outline(collection: Collection) -> None:
    answer = collection.search(spliced())
    assert answer.verdict in ("spliced", "unknown")  # by the threshold on the card
    assert answer.original is None
    first = answer.donors[0]
    assert first.metadata["n"] == DONOR
    assert first.donor_box == pytest.approx(BOX, abs=1e-3)
    assert first.query_box == pytest.approx(PASTED, abs=16)
    assert first.probability > 2 * answer.donors[1].probability
    assert answer.verdict == ("spliced" if first.shown else "unknown")
    assert first.mask is not None


def test_asking_for_no_donors_changes_nothing_else(collection: Collection) -> None:
    with_, without = collection.search(spliced()), collection.search(spliced(), donors=0)
    assert without.donors == ()
    assert with_.candidates == without.candidates
    assert not {"objects", "donor_search", "donor_verify"} & without.timings_ms.keys()


def test_the_same_bytes_ask_for_no_donors(collection: Collection) -> None:
    assert collection.search(png(texture(0))).donors == ()


def test_without_objects_nothing_is_loaded_and_a_note_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("the finder was loaded")

    monkeypatch.setattr(finder.Finder, "load", refuse)
    with stemma.open(tmp_path / "c.stemma", settings=load(overrides=["objects.ingest=false"])) as target:
        target.ingest(png(texture(0)))
        answer = target.search(spliced())
    assert NO_OBJECTS in answer.notes
    assert answer.donors == ()


@pytest.mark.parametrize("size", [(320, 240), (300, 40), (33, 400)])
def test_what_is_stored_of_a_picture_is_what_the_catalog_takes(collection: Collection, size: tuple[int, int]) -> None:
    found = collection._objects()
    assert found is not None
    objects = found.networks().objects(cv2.resize(texture(1), size))
    assert 1 <= len(objects) <= OBJECTS_MAX + 1
    assert objects.box_O4[-1].tolist() == [0, 0, 1, 1]
    low_O2, high_O2 = objects.box_O4[:, :2], objects.box_O4[:, 2:]
    assert ((low_O2 >= 0) & (low_O2 < high_O2) & (high_O2 <= 1)).all()
