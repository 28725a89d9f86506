"""The demo's questions: enough of every kind, the same bytes for the same seed, and right answers that are right."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable

import cv2
import numpy as np
import pytest

from evaluation import questions as room
from evaluation.pictures import jpeg
from evaluation.questions import KINDS, LEFT_MIN, SEVERITIES, Picture, Question, questions
from stemma.api import Answer
from stemma.vision import edits

MakeAnswer = Callable[..., Answer]


def picture(seed: int) -> Picture:
    rng = np.random.default_rng(seed)
    rgb_HWC = cv2.resize(rng.integers(0, 256, (12, 16, 3), np.uint8), (160, 120), interpolation=cv2.INTER_CUBIC)
    body = jpeg(rgb_HWC)
    return Picture(name=f"{seed}.jpg", body=body, rgb_HWC=rgb_HWC, image_id=hashlib.sha256(body).hexdigest())


@pytest.fixture(scope="module")
def originals() -> list[Picture]:
    return [picture(seed) for seed in range(17)]


@pytest.fixture(scope="module")
def strangers() -> list[Picture]:
    return [picture(seed) for seed in range(100, 105)]


@pytest.fixture(scope="module")
def asked(originals: list[Picture], strangers: list[Picture]) -> list[Question]:
    return questions(originals, strangers)


def test_there_are_at_least_sixty_and_some_of_every_kind(asked: list[Question]) -> None:
    counts = Counter(question.kind for question in asked)
    assert len(asked) >= 60 and set(counts) == {*KINDS} - {"splice"} and min(counts.values()) >= 10


@pytest.mark.parametrize("count", [1, 3])
def test_a_small_folder_is_asked_about_more_often(count: int, originals: list[Picture]) -> None:
    asked = questions(originals[:count], [])
    assert len(asked) >= 60 and {question.original for question in asked} == {
        original.image_id for original in originals[:count]
    }


def test_every_original_is_asked_about_in_every_way(asked: list[Question], originals: list[Picture]) -> None:
    for kind in ("benign", "manipulated", "both"):
        about = {question.original for question in asked if question.kind == kind}
        assert about == {original.image_id for original in originals}


def test_the_same_seed_gives_the_same_bytes_and_another_one_others(
    asked: list[Question], originals: list[Picture], strangers: list[Picture]
) -> None:
    assert questions(originals, strangers) == asked
    other = questions(originals, strangers, seed=1)
    edited = [
        (a.body, b.body) for a, b in zip(asked, other, strict=True) if a.kind in ("benign", "manipulated", "both")
    ]
    assert all(a != b for a, b in edited)


def test_untouched_is_the_very_file_and_all_else_is_not(asked: list[Question], originals: list[Picture]) -> None:
    files = {original.body for original in originals}
    assert all((question.body in files) == (question.kind == "untouched") for question in asked)


def test_strangers_have_no_original_and_some_are_changed(asked: list[Question], strangers: list[Picture]) -> None:
    bodies = {stranger.body for stranger in strangers}
    outside = [question for question in asked if question.kind == "stranger"]
    assert all(question.original is None for question in outside)
    assert 0 < sum(question.body in bodies for question in outside) < len(outside)


def test_how_a_question_was_made_names_no_severity_beyond_the_demos(asked: list[Question]) -> None:
    steps = [step.split() for question in asked for step in question.made.split(", ") if question.kind == "benign"]
    levels = [int(step[1]) for step in steps if len(step) == 2 and step[1] in tuple("12345")]
    assert levels and set(levels) <= set(SEVERITIES)


def test_right_means_the_right_original_and_none_for_a_stranger(asked: list[Question], make_answer: MakeAnswer) -> None:
    known = next(question for question in asked if question.kind == "both")
    assert known.right(make_answer([str(known.original)], found=True))
    assert not known.right(make_answer([str(known.original)], found=False))
    assert not known.right(make_answer(["other"], found=True))
    stranger = next(question for question in asked if question.kind == "stranger")
    assert stranger.right(make_answer(["other"], found=False))
    assert not stranger.right(make_answer(["other"], found=True))


def test_the_right_verdict_is_that_of_how_it_was_made(asked: list[Question], make_answer: MakeAnswer) -> None:
    right = {question.kind: question.verdict for question in asked}
    assert right == {
        "untouched": "identical",
        "benign": "benign",
        "manipulated": "manipulated",
        "both": "manipulated",
        "stranger": "unknown",
    }
    for question in asked:
        ids, found = [question.original or "other"], question.original is not None
        assert question.judged(make_answer(ids, found=found, verdict=question.verdict))
        assert not question.judged(make_answer(ids, found=found, verdict="inconclusive"))
        if found:
            assert not question.judged(make_answer(["other"], found=True, verdict=question.verdict))


def test_what_was_changed_is_still_seen_after_the_benign_change(originals: list[Picture]) -> None:
    rgb_HWC = originals[0].rgb_HWC
    for seed in range(60):
        rng = np.random.default_rng(seed)
        mask_HW = np.zeros(rgb_HWC.shape[:2], np.uint8)
        mask_HW[-4:, -40:] = 255  # what a crop takes first
        edit = edits.Edited(rgb_HWC=rgb_HWC, mask_HW=mask_HW, kind="caption", tool="bar", donor=None)
        kept = (room._keeping(edit, rng).carry(mask_HW) > 0).mean()
        assert kept >= LEFT_MIN * (mask_HW > 0).mean()


def test_how_it_was_made_names_the_edit_and_its_size(asked: list[Question]) -> None:
    for question in asked:
        edited = question.kind in ("manipulated", "both")
        assert edited == any(question.made.startswith(f"{kind} (") for kind in edits.KINDS)
        assert edited == ("% of the picture)" in question.made)


def test_nothing_to_ask_about_is_refused(strangers: list[Picture]) -> None:
    with pytest.raises(ValueError, match="nothing"):
        questions([], strangers)
