"""Counts of the figures about verdicts, on outcomes made by hand, and the shape that the issue agreed on."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from evaluation.outcomes import RIGHT, STRANGE, Outcome
from evaluation.verdicts import SETS, VERDICTS, Step, steps, verdict_figures

SHARE, MEAN = {"share", "n", "low", "high"}, {"mean", "n", "low", "high"}
Change = Callable[..., Outcome]


def made(kind: str, verdict: str | None = None, **change: object) -> Outcome:
    """A right answer, unless it is changed."""
    right = RIGHT.get(kind, "unknown")
    edited = kind in ("manip", "both")
    return replace(
        Outcome(
            file="q.jpg",
            set=kind,
            photograph="a.jpg",
            mirrored=False,
            edit="clone" if edited else None,
            area=0.05 if edited else 0.0,
            benign=(),
            left_out=False,
            found=kind not in STRANGE,
            named=kind not in STRANGE,
            verdict=right if verdict is None else verdict,  # type: ignore[arg-type]
            confidence=1.0,
            probabilities=(0.1, 0.9, 0.0) if edited else (0.9, 0.1, 0.0),
            iou=0.8 if edited else None,
            iou_paper=0.4 if edited else None,
            false_area=0.01 if kind == "benign" else None,
        ),
        **change,  # type: ignore[arg-type]
    )


def test_the_figures_have_the_shape_that_was_agreed() -> None:
    result = verdict_figures([made(kind) for kind in SETS], 0.5)
    assert set(result["verdict"]) == set(result["forced"]) == set(SETS)
    assert all(set(each) == SHARE for each in (*result["verdict"].values(), *result["forced"].values()))
    assert set(result["abstained"]) == SHARE
    assert set(result["falsely_accused"]) == {"share", "n", "upper_95"}
    assert set(result["heatmap_iou"]) == {"manip", "both", "by_area"}
    assert set(result["heatmap_iou_paper"]) == {"manip", "both"}
    for each in (result["heatmap_iou"]["manip"], result["heatmap_iou_paper"]["both"], result["false_area_benign"]):
        assert set(each) == MEAN
    assert [each["area"] for each in result["heatmap_iou"]["by_area"]] == ["under 1%", "1-3%", "3-10%", "over 10%"]
    assert isinstance(result["ece"], float) and result["left_out"] == 0 and result["heatmap_min"] == 0.5
    assert set(result["confusion"]) == set(SETS)
    json.dumps(result, allow_nan=False)


def test_the_figures_of_nothing_are_told_as_nothing() -> None:
    result = verdict_figures([], 0.5)
    assert result["verdict"]["benign"]["n"] == 0 and result["falsely_accused"]["upper_95"] == 1.0
    json.dumps(result, allow_nan=False)


def test_abstaining_and_accusing_are_counted_apart() -> None:
    result = verdict_figures(
        [
            *[made("benign")] * 6,
            made("benign", "manipulated"),
            made("benign", "spliced"),  # accused too
            made("benign", "inconclusive"),  # not accused, forced to benign
            made("benign", "inconclusive", probabilities=(0.4, 0.6, 0.0)),
        ],
        0.5,
    )
    assert result["verdict"]["benign"]["share"] == 0.6 and result["forced"]["benign"]["share"] == 0.7
    assert result["abstained"]["share"] == 0.2
    assert result["falsely_accused"] == {"share": 0.2, "n": 10, "upper_95": 0.5069}


def test_what_cannot_be_seen_is_left_out_of_everything() -> None:
    seen, unseen = made("both"), made("both", "benign", left_out=True, iou=None, iou_paper=None)
    alone, beside = verdict_figures([seen], 0.5), verdict_figures([seen, unseen, unseen], 0.5)
    assert (alone["left_out"], beside["left_out"]) == (0, 2)
    assert {**alone, "left_out": 2} == beside


def test_splices_have_a_row_and_change_no_figure_of_the_others() -> None:
    without, spliced = [made(kind) for kind in SETS if kind != "splice"], made("splice", "unknown", confidence=0.2)
    alone, beside = verdict_figures(without, 0.5), verdict_figures([*without, spliced, made("splice")], 0.5)
    assert beside["verdict"]["splice"]["share"] == 0.5 and beside["confusion"]["splice"]["spliced"] == 0.5
    for name in ("verdict", "forced", "confusion"):
        alone[name].pop("splice"), beside[name].pop("splice")
    assert alone == beside


def test_iou_by_area_takes_each_edited_query_once() -> None:
    areas = (0.0, 0.0099, 0.01, 0.03, 0.0999, 0.1, 1.0)
    outcomes = [made("manip", area=area, iou=i / 10) for i, area in enumerate(areas)]
    found = verdict_figures(outcomes, 0.5)["heatmap_iou"]
    assert [each["n"] for each in found["by_area"]] == [2, 1, 2, 2]
    assert [each["mean"] for each in found["by_area"]] == pytest.approx([0.05, 0.2, 0.35, 0.55])
    assert found["manip"]["mean"] == pytest.approx(0.3) and found["both"]["n"] == 0


def test_calibration_is_of_forced_answers_on_all_that_can_be_unsure() -> None:
    # an identical query is no evidence of calibration, however it is answered
    assert verdict_figures([made("identical", "unknown", confidence=1.0)], 0.5)["ece"] == 0.0
    halves = [made("manip", "inconclusive", confidence=0.5), made("unknown", "benign", named=True, confidence=0.5)]
    assert verdict_figures(halves, 0.5)["ece"] == 0.0
    assert verdict_figures([made("both", confidence=0.75)], 0.5)["ece"] == 0.25


@given(st.lists(st.tuples(st.sampled_from(SETS), st.sampled_from(VERDICTS)), min_size=1, max_size=40))
@settings(deadline=None, max_examples=30)
def test_rows_of_the_confusion_sum_to_one_and_its_diagonal_is_the_verdict(drawn: list[tuple[str, str]]) -> None:
    outcomes = [made(kind, verdict, found=True, named=verdict != "unknown") for kind, verdict in drawn]
    result = verdict_figures(outcomes, 0.5)
    assert sum(row["n"] for row in result["confusion"].values()) == len(outcomes)
    for name, row in result["confusion"].items():
        assert sum(row[verdict] for verdict in VERDICTS) == pytest.approx(1.0 if row["n"] else 0.0)
        assert row[RIGHT[name]] == pytest.approx(result["verdict"][name]["share"], abs=1e-4)


def test_transforms_are_split_by_severity_and_the_mirror_stands_apart() -> None:
    done = ("resize 0.78", "jpeg 66", "crop", "shot_noise 3")
    outcomes = [
        made("benign", benign=done),
        made("benign", "manipulated", benign=done),
        made("both", benign=("resize 1.45", "jpeg 90", "shot_noise 3")),
        made("both", benign=("resize 0.60", "jpeg 40", "mirror", "shot_noise 3"), mirrored=True),
        made("unknown", benign=done),
    ]
    rows = {Step(row["transform"], row["severity"]): row for row in verdict_figures(outcomes, 0.5)["per_transform"]}
    noise = rows[Step("shot_noise", "3")]
    assert (noise["benign"]["share"], noise["benign"]["n"], noise["both"]["n"]) == (0.5, 2, 1)
    assert rows[Step("mirror", "")]["both"]["n"] == 1 and rows[Step("crop", "")]["both"]["n"] == 0
    assert {row.severity for row in rows if row.transform == "jpeg"} == {"57-73", "74-90"}
    assert {row.severity for row in rows if row.transform == "resize"} == {"0.6-0.9", "1.2-1.5"}


@pytest.mark.parametrize(
    ("done", "severity"),
    [("jpeg 40", "40-56"), ("jpeg 56", "40-56"), ("jpeg 57", "57-73"), ("jpeg 90", "74-90"), ("jpeg 20", "40-56"),
     ("resize 0.60", "0.6-0.9"), ("resize 0.90", "0.9-1.2"), ("resize 1.50", "1.2-1.5"), ("contrast 5", "5")],
)  # fmt: skip
def test_numbers_fall_into_bands(done: str, severity: str) -> None:
    assert [step.severity for step in steps(made("benign", benign=(done,)))] == [severity]


def test_average_precision_sees_an_answer_that_is_surer_of_the_wrong_class() -> None:
    outcomes = [made("benign", confidence=0.9), made("manip", confidence=0.9), made("unknown", named=False)]
    assert set(verdict_figures(outcomes, 0.5)["average_precision"].values()) == {1.0}
    wrong = [*outcomes, made("both", "benign", probabilities=(0.95, 0.05, 0.0), confidence=0.95)]
    found = verdict_figures(wrong, 0.5)["average_precision"]
    assert found["benign"] == 0.5 and found["manipulated"] < 1.0 and found["unknown"] == 1.0
