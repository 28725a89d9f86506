"""Embedded equals served: every field that must be equal is compared, and nothing else."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from evaluation.agreement import differences
from stemma.api import Answer, Comparison, Donor, Heatmap, Probabilities

MakeAnswer = Callable[..., Answer]


def donor(image_id: str, *, shown: bool = True, probability: float = 0.8) -> Donor:
    box = (0.0, 0.0, 1.0, 1.0)
    return Donor(image_id=image_id, query_box=box, donor_box=box, distance=0.5, probability=probability, shown=shown)


def probable(benign: float) -> Probabilities:
    return Probabilities(benign=benign, manipulated=1 - benign, distinct=0.0)


def test_an_answer_agrees_with_itself_whatever_its_times_and_id(make_answer: MakeAnswer) -> None:
    one = make_answer(["a", "b"], found=True, probabilities=probable(0.5), donors=[donor("d")])
    other = one.model_copy(update={"query_id": "other", "timings_ms": {"total": 99.0}, "notes": ("slow",)})
    assert differences(one, other) == []


@pytest.mark.parametrize(
    ("one", "other", "said"),
    [
        ({"verdict": "benign"}, {"verdict": "manipulated"}, "verdict benign and manipulated"),
        ({"ids": ["a"], "found": True}, {"ids": ["b"], "found": True}, "original a and b"),
        ({"ids": ["a"], "found": True}, {"ids": ["a"], "verdict": "inconclusive"}, "original a and None"),
        ({"ids": ["a", "b", "c"]}, {"ids": ["a", "c", "b"]}, "candidates from place 2 on"),
        ({"ids": ["a", "b"]}, {"ids": ["a"]}, "candidates from place 2 on"),
        ({"donors": [donor("a")]}, {"donors": [donor("b")]}, "donors"),
        ({"donors": [donor("a")]}, {"donors": [donor("a", shown=False)]}, "donors"),
        ({"donors": [donor("a")]}, {"donors": [donor("a").model_copy(update={"clone": True})]}, "donors"),
        ({"donors": [donor("a"), donor("b")]}, {"donors": [donor("b"), donor("a")]}, "donors"),
        ({"donors": [donor("a")]}, {"donors": [donor("a", probability=0.7)]}, "donor a 0.8000 and 0.7000"),
        ({"confidence": 0.5}, {"confidence": 0.52}, "confidence 0.5000 and 0.5200"),
        (
            {"ids": ["a"], "probabilities": probable(0.5)},
            {"ids": ["a"], "probabilities": probable(0.48)},
            "benign of a 0.5000 and 0.4800",
        ),
        ({"ids": ["a"], "probabilities": probable(0.5)}, {"ids": ["a"]}, "compared a 1.0000 and 0.0000"),
        ({}, {"complete": False}, "coverage: one of them did not search every image"),
    ],
)
def test_each_difference_is_named(make_answer: MakeAnswer, one: dict, other: dict, said: str) -> None:
    assert said in differences(make_answer(**one), make_answer(**other))
    assert differences(make_answer(**other), make_answer(**one)) != []


def compared(answer: Answer, *values: float, mirrored: bool = False, rows: int = 2) -> Answer:
    heatmap = Heatmap(rows=rows, cols=len(values) // rows, values=values)
    shown = Comparison(verdict="manipulated", heatmap=heatmap, mirrored=mirrored)
    assert answer.original is not None
    return answer.model_copy(update={"original": answer.original.model_copy(update={"comparison": shown})})


def test_heatmaps_are_compared_place_by_place(make_answer: MakeAnswer) -> None:
    found = make_answer(["a"], found=True)
    one = compared(found, 0.1, 0.2, 0.3, 0.4)
    assert differences(one, compared(found, 0.109, 0.191, 0.3, 0.4)) == []
    assert differences(one, compared(found, 0.1, 0.2, 0.35, 0.42)) == ["heatmap in row 1, column 0 0.3000 and 0.3500"]
    assert differences(one, compared(found, 0.1, 0.2, 0.3, 0.4, mirrored=True)) == ["mirrored 0.0000 and 1.0000"]
    assert differences(one, compared(found, 0.1, 0.2, 0.3, 0.4, rows=1)) == [
        "rows of the heatmap 2.0000 and 1.0000",
        "columns of the heatmap 2.0000 and 4.0000",
    ]
    assert differences(one, found) == ["comparison 1.0000 and 0.0000"]


def test_probabilities_may_differ_in_their_last_digits(make_answer: MakeAnswer) -> None:
    one = make_answer(["a"], confidence=0.500, probabilities=probable(0.500), donors=[donor("d", probability=0.500)])
    other = make_answer(["a"], confidence=0.509, probabilities=probable(0.509), donors=[donor("d", probability=0.509)])
    assert differences(one, other) == []
