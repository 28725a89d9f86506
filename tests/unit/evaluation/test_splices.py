"""The demo's splices: objects that lie in their photographs, in scenes nobody has, the same bytes every time."""

from __future__ import annotations

import hashlib
from collections.abc import Callable

import cv2
import numpy as np
import pytest
from PIL import Image

from evaluation.pictures import PHOTOGRAPHS, SEED
from evaluation.questions import Picture
from evaluation.scenes import SCENES
from evaluation.splices import CUTTINGS, SCENE_PX, SCENE_SEED, SHARES, Cutting, ellipse, paste, splices
from stemma.api import Answer, Donor

MakeAnswer = Callable[..., Answer]


@pytest.fixture(scope="module")
def originals() -> list[Picture]:
    pictures = []
    for each in PHOTOGRAPHS:
        body = each.path().read_bytes()
        with Image.open(each.path()) as opened:
            rgb_HWC = np.asarray(opened.convert("RGB"))
        digest = hashlib.sha256(body).hexdigest()
        pictures.append(Picture(name=each.file, body=body, rgb_HWC=rgb_HWC, image_id=digest))
    return pictures


def test_every_object_lies_in_a_photograph_of_the_collection_and_covers_some_of_it(originals: list[Picture]) -> None:
    sizes = {picture.name: picture.rgb_HWC.shape[:2] for picture in originals}
    assert 8 <= len(CUTTINGS) <= 12 and len({cutting.name for cutting in CUTTINGS}) == len(CUTTINGS)
    for cutting in CUTTINGS:
        height, width = sizes[cutting.file]
        mask_HW = np.zeros((height, width), np.uint8)
        for outline in cutting.outlines:
            assert (np.array(outline) >= -1).all() and (np.array(outline) <= (width + 1, height + 40)).all(), (
                cutting.name
            )
            cv2.fillPoly(mask_HW, [np.array(outline).round().astype(np.int32)], 1)
        assert 0.03 < mask_HW.mean() < 0.75, cutting.name
        assert cutting.scene in SCENES


def test_scenes_are_none_of_the_collections() -> None:
    assert SCENE_SEED != SEED


def test_the_same_originals_give_the_same_bytes_and_the_donor_is_known(originals: list[Picture]) -> None:
    few = CUTTINGS[:2]
    one, other = splices(originals, few), splices(originals, few)
    assert [each.body for each in one] == [each.body for each in other]
    for question, cutting in zip(one, few, strict=True):
        (donor,) = [picture for picture in originals if picture.name == cutting.file]
        assert (question.donor, question.original, question.about) == (donor.image_id, None, cutting.file)
        assert (question.kind, question.verdict) == ("splice", "spliced")
        shown = cv2.imdecode(np.frombuffer(question.body, np.uint8), cv2.IMREAD_COLOR)
        assert max(shown.shape[:2]) == SCENE_PX


def test_without_its_photograph_there_is_no_splice(originals: list[Picture]) -> None:
    others = [picture for picture in originals if picture.name != CUTTINGS[0].file]
    assert all(question.about != CUTTINGS[0].file for question in splices(others, CUTTINGS[:1]))


@pytest.mark.parametrize("seed", range(8))
def test_what_is_pasted_is_as_large_as_said_and_the_rest_of_the_scene_is_untouched(seed: int) -> None:
    scene_HWC, donor_HWC = np.full((300, 400, 3), 40, np.uint8), np.full((200, 250, 3), 200, np.uint8)
    spliced_HWC, share = paste(scene_HWC, donor_HWC, [ellipse(125, 100, 60, 50)], np.random.default_rng(seed))
    changed = (spliced_HWC != scene_HWC).any(-1)
    assert share == pytest.approx(changed.mean(), rel=0.2)
    assert SHARES[0] * 0.9 < share < SHARES[1] * 1.1
    ys, xs = np.nonzero(changed)
    assert ((xs.max() - xs.min()) / (ys.max() - ys.min())) == pytest.approx(1.2, rel=0.1)


def test_a_long_object_fits_into_the_scene() -> None:
    scene_HWC, donor_HWC = np.full((300, 400, 3), 40, np.uint8), np.full((400, 100, 3), 200, np.uint8)
    cutting = Cutting(name="pole", file="x", outlines=(((40, 5), (60, 5), (60, 395), (40, 395)),), scene="city")
    spliced_HWC, share = paste(scene_HWC, donor_HWC, cutting.outlines, np.random.default_rng(0))
    assert share < SHARES[0] and not (spliced_HWC[:, [0, -1]] != 40).any()


def test_traced_means_the_right_donor_first_shown_or_not(originals: list[Picture], make_answer: MakeAnswer) -> None:
    (question,) = splices(originals, CUTTINGS[:1])

    def answered(*ids: str, shown: bool = True) -> Answer:
        box = (0.0, 0.0, 9.0, 9.0)
        given = [
            Donor(image_id=each, query_box=box, donor_box=box, distance=0.1, probability=0.5, shown=shown)
            for each in ids
        ]
        return make_answer(["x"], donors=given)

    right = str(question.donor)
    assert question.traced(answered(right, "other")) and question.traced(answered(right, shown=False))
    assert not question.traced(answered("other", right)) and not question.traced(answered())
