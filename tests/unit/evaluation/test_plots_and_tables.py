"""Figures for a person: every file is sound SVG, every mark inside its card, and every number comes from the JSON."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from evaluation import commands
from evaluation.charts import Card, Scale
from evaluation.outcomes import RIGHT, Outcome, save
from evaluation.plots import draw
from evaluation.tables import BARS, BEGIN, END, fill, merged, tables
from evaluation.verdicts import SETS, VERDICTS, verdict_figures
from stemma.errors import BadRequest

BYTES_MAX = 150_000
DONE = ("resize 0.78", "jpeg 66", "crop", "shot_noise 3")


def donors(number: int) -> dict[str, Any]:
    """Found first, later, and not at all, in turn."""
    return [{"donor_rank": 1, "donor_iou": 0.1 * (number % 10)}, {"donor_rank": 4}, {}][number // len(SETS) % 3]


def outcomes(n: int, seed: int = 0) -> list[Outcome]:
    """Answers of every kind, right and wrong, sure and unsure."""
    rng = np.random.default_rng(seed)
    made = []
    for i in range(n):
        name = SETS[i % len(SETS)]
        edited, manipulated = name in ("manip", "both"), float(rng.random())
        verdict = RIGHT[name] if rng.random() < 0.7 else VERDICTS[int(rng.integers(len(VERDICTS)))]
        made.append(
            Outcome(
                file=f"{i:04d}.jpg",
                set=name,
                photograph=f"p{i // 7}",
                mirrored=i % 9 == 0,
                edit="<b>&clone" if edited else None,
                area=float(10 ** rng.uniform(-2.6, -0.3)) if edited or name == "splice" else 0.0,
                benign=DONE[: 2 + i % 3] if name in ("benign", "both", "unknown") else (),
                left_out=False,
                found=name != "unknown",
                named=verdict != "unknown",
                verdict=verdict,
                confidence=float(rng.random()),
                probabilities=(1 - manipulated, manipulated, 0.0),
                iou=float(rng.random()) if edited else None,
                iou_paper=float(rng.random()) if edited else None,
                false_area=0.01 if name == "benign" else None,
                **donors(i) if name == "splice" else {},
            )
        )
    return made


@pytest.mark.parametrize("n", [0, 1, 5, 750])
def test_the_figures_are_sound_svg_and_small(tmp_path: Path, n: int) -> None:
    paths = draw(outcomes(n), tmp_path / "plots")
    assert [path.stem for path in paths] == ["heatmap-iou", "calibration", "transforms", "confusion", "donors"]
    for path in paths:
        text = path.read_text(encoding="utf-8")
        root = ElementTree.fromstring(text)
        assert root.tag.endswith("svg") and len(text) < BYTES_MAX
        assert "nan" not in text.replace("covariance", "") and "<b>" not in text
        _, _, width, height = map(float, root.attrib["viewBox"].split())
        for mark in root:
            x = [float(mark.attrib[key]) for key in ("x", "x1", "x2", "cx") if key in mark.attrib]
            y = [float(mark.attrib[key]) for key in ("y", "y1", "y2", "cy") if key in mark.attrib]
            assert all(0 <= value <= width for value in x) and all(0 <= value <= height for value in y)


def test_figures_are_the_same_for_the_same_outcomes(tmp_path: Path) -> None:
    first, second = (draw(outcomes(200), tmp_path / name) for name in "ab")
    assert [path.read_bytes() for path in first] == [path.read_bytes() for path in second]


def test_every_edited_query_is_a_dot_and_says_what_it_is(tmp_path: Path) -> None:
    asked = outcomes(300)
    text = draw(asked, tmp_path)[0].read_text(encoding="utf-8")
    assert text.count("<title>") == sum(each.iou is not None for each in asked)
    assert "&lt;b&gt;&amp;clone" in text


@given(st.floats(0.001, 1), st.floats(0.001, 1), st.booleans())
def test_a_scale_keeps_order_and_its_ends(one: float, other: float, log: bool) -> None:
    scale = Scale(low=0.001, high=1, start=300, end=20, log=log)
    assert (scale(0.001), scale(1)) == (pytest.approx(300), pytest.approx(20))
    assert scale(-5) == scale(0.001) and scale(7) == scale(1)  # beyond the ends is drawn at the edge
    if one < other:
        assert scale(one) >= scale(other)


def test_words_from_outside_are_escaped() -> None:
    card = Card(100, 100)
    card.text(10, 10, "<script>&")
    card.dot(5, 5, 1, fill="#000", about='"<x>')
    assert "<script>" not in card.svg() and "&lt;script&gt;&amp;" in card.svg() and "<x>" not in card.svg()


def figures(**change: float) -> dict[str, object]:
    return {**verdict_figures(outcomes(400), 0.5), **change}


def test_each_bar_that_has_a_figure_is_a_row_and_says_whether_it_is_met() -> None:
    met, missed = tables(figures(ece=0.05)), tables(figures(ece=0.0501))
    assert "| expected calibration error | at most 0.05 | 0.050 |  | yes |" in met
    assert "| expected calibration error | at most 0.05 | 0.050 |  | **no** |" in missed
    assert "original first" not in met and "cost of a pair" not in met
    assert "| cost of a pair against dense flow at 224 px | at most 0.4 | 0.310 |  | yes |" in tables({"ratio": 0.31})
    assert tables({}) == ""


def test_a_share_shows_its_interval_and_an_accusation_its_bound() -> None:
    share = {"share": 0.96, "n": 300, "low": 0.931, "high": 0.979}
    accused = {"share": 0.01, "n": 300, "upper_95": 0.0257}
    result = figures()
    result["verdict"] = {**result["verdict"], "benign": share}  # type: ignore[dict-item]
    written = tables({**result, "falsely_accused": accused})
    assert "| verdict right, benign | 0.95 | 0.960 [0.931, 0.979] | 300 | yes |" in written
    assert "0.010 (3 of 300, upper bound 0.026)" in written


def test_every_row_of_a_table_has_as_many_cells_as_its_head() -> None:
    pair = {"manipulated": {"share": 1.0, "n": 2, "low": 0.2, "high": 1.0}}
    pair["heatmap_iou"] = {"mean": 0.5, "n": 2, "low": 0.2, "high": 1.0}
    written = tables({**figures(), "pairs": {**pair, "by_kind": {"splice": pair}, "by_made": {"real": pair}}})
    for block in written.split("\n\n"):
        rows = [line for line in block.splitlines() if line.startswith("|")]
        assert len({len(re.findall(r"\|", row)) for row in rows}) <= 1
    assert "| splice | 1.000 [0.200, 1.000] | 0.500 [0.200, 1.000] | 2 |" in written


def test_every_bar_names_a_figure_that_a_run_can_give() -> None:
    known = {"retrieval", "verdict", "falsely_accused", "heatmap_iou", "pairs", "ece", "ratio", "donor", "false_donors"}
    known |= {"donor_mask_iou", "donor_search_ratio", "mcc", "f1"}
    assert {bar.path.split(".")[0] for bar in BARS} == known


def test_the_marked_part_of_a_page_is_replaced_and_nothing_else(tmp_path: Path) -> None:
    page = tmp_path / "results.md"
    page.write_text(f"# Results\n\n{BEGIN}\nold\n{END}\n\nThe rest.\n")
    for written in ("| new |", "| newer |"):
        fill(page, written)
        assert page.read_text() == f"# Results\n\n{BEGIN}\n\n{written}\n\n{END}\n\nThe rest.\n"
    page.write_text("# Results\n")
    with pytest.raises(BadRequest, match="no <!--"):
        fill(page, "| new |")


def test_files_are_merged_and_refused_by_name(tmp_path: Path) -> None:
    for name, text in (("a", '{"ece": 1, "n": 1}'), ("b", '{"ece": 2}'), ("c", "[1]"), ("d", "no")):
        (tmp_path / name).write_text(text)
    assert merged([tmp_path / "a", tmp_path / "b"]) == {"ece": 2, "n": 1}
    for name in "cd":
        with pytest.raises(BadRequest):
            merged([tmp_path / name])


def run(argv: Sequence[str]) -> int:
    return commands.evaluate(list(argv))


def test_the_commands_draw_and_write_what_was_saved(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save(outcomes(40), tmp_path / "outcomes.jsonl")
    assert run(["plots", str(tmp_path / "outcomes.jsonl"), str(tmp_path / "plots")]) == 0
    assert len(list((tmp_path / "plots").glob("*.svg"))) == 5
    (tmp_path / "quick.json").write_text(json.dumps(figures()))
    page = tmp_path / "results.md"
    page.write_text(f"{BEGIN}{END}")
    assert run(["tables", str(tmp_path / "quick.json"), "--into", str(page)]) == 0
    capsys.readouterr()
    assert run(["tables", str(tmp_path / "quick.json")]) == 0
    assert capsys.readouterr().out.strip() in page.read_text()


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["quick"], "--pairs"),
        (["quick", "--set", "x", "--embedded", "--url", "http://x"], "--embedded"),
        (["quick", "--pairs", "nowhere"], "no pairs here"),
        (["slow"], "tables"),
    ],
)
def test_what_cannot_be_measured_is_refused(argv: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(argv) == 2
    assert said in " ".join(capsys.readouterr().err.split())
