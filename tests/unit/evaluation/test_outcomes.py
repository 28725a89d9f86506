"""What became of one query, against answers made by hand: right, forced, left out, and the heatmap against the mask."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from evaluation.outcomes import Outcome, changed, heatmap_iou, outcome, read, read_mask, save, with_paper
from evaluation.queries import Asked, Query
from stemma.api import Answer, Comparison, Heatmap, Probabilities
from stemma.errors import BadRequest

MakeAnswer = Callable[..., Answer]
HEIGHT, WIDTH = 60, 80
MIN = 0.5


def query(kind: str, original: str | None = "a", *, mask: Path | None = None, path: Path = Path("q.jpg")) -> Query:
    return Query(path=path, set=kind, original=original, photograph="a.jpg", mirrored=False, mask=mask, area=0.25)


def heatmap(values_RC: np.ndarray) -> Heatmap:
    rows, cols = values_RC.shape
    return Heatmap(rows=rows, cols=cols, values=tuple(values_RC.ravel().tolist()))


def shown(answer: Answer, values_RC: np.ndarray | None, manipulated: float = 0.9) -> Answer:
    """The answer with its original compared."""
    assert answer.original is not None
    said = Probabilities(benign=1 - manipulated, manipulated=manipulated, distinct=0.0)
    comparison = Comparison(verdict="manipulated", heatmap=None if values_RC is None else heatmap(values_RC))
    original = answer.original.model_copy(update={"comparison": comparison, "probabilities": said})
    return answer.model_copy(update={"original": original})


def made(answer: Answer, kind: str, **known: object) -> Outcome:
    return outcome(Asked(query=query(kind, **known), answer=answer, ms=3.0), MIN)  # type: ignore[arg-type]


@pytest.fixture
def quarter(tmp_path: Path) -> Path:
    """A mask over the left upper quarter of a query."""
    mask_HW = np.zeros((HEIGHT, WIDTH), np.uint8)
    mask_HW[: HEIGHT // 2, : WIDTH // 2] = 255
    Image.fromarray(mask_HW).save(tmp_path / "mask.png")
    return tmp_path / "mask.png"


def quarter_map(rows: int = 42, cols: int = 56) -> np.ndarray:
    values_RC = np.zeros((rows, cols))
    values_RC[: rows // 2, : cols // 2] = 1.0
    return values_RC


@pytest.mark.parametrize(
    ("kind", "original", "verdict", "named", "right"),
    [
        ("identical", "a", "identical", True, True),
        ("benign", "a", "benign", True, True),
        ("benign", "b", "benign", True, False),  # of another original
        ("benign", "a", "identical", True, False),
        ("benign", "a", "inconclusive", True, False),
        ("unknown", None, "unknown", False, True),
        ("unknown", None, "benign", True, False),
        ("splice", None, "spliced", False, True),
        ("splice", None, "unknown", False, False),
        ("splice", None, "manipulated", True, False),
        ("unknown", None, "spliced", False, False),
        ("manip", "a", "spliced", True, False),
    ],
)
def test_a_verdict_is_right_for_its_set_and_of_the_right_original(
    make_answer: MakeAnswer, kind: str, original: str | None, verdict: str, named: bool, right: bool
) -> None:
    found = made(make_answer(["a"], found=named, verdict=verdict), kind, original=original)
    assert (found.right, found.named) == (right, named)


def test_abstaining_is_wrong_and_forced_to_the_larger_probability(make_answer: MakeAnswer) -> None:
    answer = make_answer(["a"], found=True, verdict="inconclusive")
    for manipulated, forced in ((0.45, "benign"), (0.55, "manipulated")):
        found = made(shown(answer, None, manipulated), "benign")
        assert (found.right, found.forced, found.right_forced) == (False, forced, forced == "benign")
    # nothing in the picture: no original was named, and without abstaining that is "unknown"
    assert made(make_answer(["a"], verdict="inconclusive"), "unknown", original=None).right_forced
    # named but not compared: nothing can be forced
    assert made(answer, "benign").forced == "inconclusive"


def test_iou_of_a_perfect_map_and_of_none(make_answer: MakeAnswer, quarter: Path) -> None:
    answer = make_answer(["a"], found=True, verdict="benign")  # ungated: the verdict does not matter
    found = made(shown(answer, quarter_map()), "manip", mask=quarter)
    assert found.iou == pytest.approx(1.0, abs=0.03) and not found.left_out
    assert made(shown(answer, np.ones((42, 56))), "manip", mask=quarter).iou == 0.25
    assert made(shown(answer, 0.49 * np.ones((42, 56))), "manip", mask=quarter).iou == 0.0
    assert made(shown(answer, None), "manip", mask=quarter).iou == 0.0


def test_an_original_that_was_not_found_counts_as_no_overlap(make_answer: MakeAnswer, quarter: Path) -> None:
    other = make_answer(["b"], found=True, verdict="manipulated")
    assert made(shown(other, quarter_map()), "both", mask=quarter).iou == 0.0
    assert made(make_answer(["a"], verdict="unknown"), "both", mask=quarter).iou == 0.0


@pytest.mark.parametrize("empty", [True, False])
def test_an_edit_that_was_cropped_away_is_left_out(make_answer: MakeAnswer, tmp_path: Path, empty: bool) -> None:
    mask = None
    if empty:
        mask = tmp_path / "mask.png"
        Image.fromarray(np.zeros((HEIGHT, WIDTH), np.uint8)).save(mask)
    found = made(shown(make_answer(["a"], found=True), quarter_map()), "both", mask=mask)
    assert found.left_out and found.iou is None
    assert not made(make_answer(["a"], found=True, verdict="benign"), "benign").left_out


def test_false_area_is_what_a_benign_query_shows(make_answer: MakeAnswer, tmp_path: Path) -> None:
    path = tmp_path / "q.png"
    Image.fromarray(np.zeros((HEIGHT, WIDTH, 3), np.uint8)).save(path)
    answer = make_answer(["a"], found=True, verdict="benign")
    found = made(shown(answer, quarter_map()), "benign", path=path)
    assert found.false_area == pytest.approx(0.25, abs=0.02) and found.iou is None
    assert made(shown(answer, np.zeros((42, 56))), "benign", path=path).false_area == 0.0
    assert made(make_answer(["a"], verdict="unknown"), "benign").false_area is None


def test_maps_are_enlarged_bilinearly_before_the_threshold() -> None:
    # between a cell of 0 and one of 1 the half is reached at the seam, not at a cell's centre
    area_HW = changed(np.array([[0.0, 1.0]], np.float32), (1, 100), 0.5)
    assert int(np.argmax(area_HW[0])) == 50 and bool(area_HW[0, 50:].all())
    assert changed(np.array([[0.5]], np.float32), (3, 3), 0.5).all()


def test_a_mask_is_cut_above_127(tmp_path: Path) -> None:
    Image.fromarray(np.array([[0, 127, 128, 255]], np.uint8)).save(tmp_path / "m.png")
    assert read_mask(tmp_path / "m.png").tolist() == [[False, False, True, True]]
    with pytest.raises(BadRequest, match="mask"):
        read_mask(tmp_path / "none.png")


def test_no_comparison_is_no_overlap() -> None:
    assert heatmap_iou(None, np.ones((2, 2), np.bool_), MIN) == 0.0


def test_scores_of_the_three_classes_give_back_the_confidence(make_answer: MakeAnswer) -> None:
    answer = make_answer(["a"], found=True, verdict="manipulated", confidence=0.9 * 0.95)
    benign, manipulated, unknown = made(shown(answer, None, 0.9), "manip").scores
    assert (benign, manipulated, unknown) == pytest.approx((0.095, 0.855, 0.05))
    stranger = made(make_answer(["a"], verdict="unknown", confidence=0.8), "unknown", original=None).scores
    assert stranger == pytest.approx((0.1, 0.1, 0.8))
    assert made(make_answer([], verdict="inconclusive", confidence=0.0), "benign").scores == (0.0, 0.0, 0.0)


def test_the_papers_map_counts_zero_where_nothing_was_found(make_answer: MakeAnswer, quarter: Path) -> None:
    found = made(shown(make_answer(["a"], found=True), quarter_map()), "manip", mask=quarter)
    lost = replace(found, file="lost.jpg", found=False)
    benign = replace(found, file="benign.jpg", iou=None)
    told = with_paper([found, lost, benign], {"q.jpg": 0.4, "lost.jpg": 0.9})
    assert [each.iou_paper for each in told] == [0.4, 0.0, None]


def test_outcomes_come_back_from_their_file_as_they_were(
    make_answer: MakeAnswer, quarter: Path, tmp_path: Path
) -> None:
    full = made(shown(make_answer(["a"], found=True), quarter_map()), "manip", mask=quarter)
    outcomes = [replace(full, benign=("jpeg 50", "mirror")), made(make_answer([]), "unknown", original=None)]
    save(outcomes, tmp_path / "deep" / "outcomes.jsonl")
    assert read(tmp_path / "deep" / "outcomes.jsonl") == outcomes
    (tmp_path / "other.jsonl").write_text('{"file": "q.jpg"}\n')
    with pytest.raises(BadRequest, match="--save"):
        read(tmp_path / "other.jsonl")
