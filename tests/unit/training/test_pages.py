"""The pages that a run leaves: axes that hold their lines, curves as the log has them, the hardest cases first."""

from __future__ import annotations

import json
import math
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from stemma.networks.comparator import Compared
from stemma.networks.encoder import EncoderNetwork
from stemma.vision.geometry import Picture
from training import canvas, curves, hardest, loop
from training.canvas import Canvas, Panel, Series
from training.groups import VIEWS, GroupBatch
from training.hardest import Row
from training.pairs import Kind, Pair

SIDE = 32


@given(st.floats(-1e6, 1e6), st.floats(1e-6, 1e6))
def test_ticks_are_few_and_hold_the_range(low: float, span: float) -> None:
    high = low + max(span, abs(low) * 1e-6)
    ticks = canvas._ticks(low, high)
    assert ticks[0] <= low + 1e-9 * abs(low) + 1e-9 * span and ticks[-1] >= high - 1e-9 * abs(high) - 1e-9 * span
    assert 2 <= len(ticks) <= canvas.TICKS + 3


def test_labels_are_short() -> None:
    found = [canvas._label(value) for value in (0.0, 0.25, 1.0, 1500.0, 8e-4, 2e6, -0.5)]
    assert found == ["0", "0.25", "1", "1,500", "8.0e-4", "2.0e6", "-0.5"]


def drawn(path: Path, *wanted: str) -> bool:
    """Whether all of these colours are on a page; reducing a page moves a colour by a little."""
    bgr_HWC = cv2.imread(str(path))
    assert bgr_HWC is not None
    rgb_NC = np.unique(bgr_HWC.reshape(-1, 3), axis=0)[:, ::-1].astype(int)
    return all(
        np.abs(rgb_NC - [int(colour[place : place + 2], 16) for place in (1, 3, 5)]).max(1).min() < 10
        for colour in wanted
    )


def test_every_line_of_a_panel_is_drawn_inside_its_box(tmp_path: Path) -> None:
    x_N = np.arange(1.0, 30.0)
    panel = Panel(
        title="T",
        series=(
            Series(name="up", x_N=x_N, y_N=x_N * 100, raw_N=x_N * 120),
            Series(name="one point", x_N=x_N[:1], y_N=x_N[:1]),
        ),
        # lower than the line is high: it is cut off, not drawn over the title
        high=800.0,
        mark=12.0,
    )
    page = Canvas(400, 300)
    canvas.draw(page, panel, (20, 20), (360, 260))
    page.save(tmp_path / "p.png")
    assert drawn(tmp_path / "p.png", *canvas.COLOURS[:2]) and not drawn(tmp_path / "p.png", canvas.COLOURS[2])
    bgr_HWC = cv2.imread(str(tmp_path / "p.png"))
    assert bgr_HWC is not None
    inside = np.zeros(bgr_HWC.shape[:2], bool)
    inside[20:280, 20:380] = True
    assert (bgr_HWC[~inside] == 255).all()
    assert [path.name for path in tmp_path.iterdir()] == ["p.png"]


@given(st.lists(st.floats(-10, 10), min_size=1, max_size=200))
def test_smoothing_is_the_mean_of_what_came_before(values: list[float]) -> None:
    values_N = np.array(values)
    size = max(1, round(curves.SMOOTHED_SHARE * len(values)))
    slow = [float(np.mean(values[max(0, i + 1 - size) : i + 1])) for i in range(len(values))]
    assert np.allclose(curves._smoothed(values_N), slow, atol=1e-9)


def log(folder: Path, steps: int, *, parts: bool) -> None:
    lines = []
    for t in range(1, steps + 1):
        step = {"t": t, "loss": 3 / t, **({"classes": 1 / t, "map": 0.5} if parts else {}), "rate": 1e-3}
        lines.append({**step, "step_s": 0.5, "data_s": 0.0})
        if t % 5 == 0:
            lines.append({"t": t, "validation": {"right": t / 20, "score": 0.5 + t / 40, "pairs": 4}})
    (folder / loop.LOG).write_text("".join(json.dumps(line) + "\n" for line in lines))


def test_curves_name_the_best_and_need_no_validation(tmp_path: Path) -> None:
    assert curves.write(tmp_path, "t", 8, "pairs") is None
    log(tmp_path, 12, parts=True)
    path = curves.write(tmp_path, "t", 8, "pairs")
    assert path is not None and path.name == curves.FILE
    assert drawn(path, *canvas.COLOURS[:2])
    entries = loop.log(tmp_path)
    panels = curves._panels(
        [one for one in entries if "loss" in one], [one for one in entries if "loss" not in one], 8, "pairs"
    )
    titles = [panel.title for panel in panels if panel.series]
    assert "best score 0.750 at 10" in titles[1] and panels[1].mark == 10
    assert [one.name for one in panels[1].series] == ["score", "right"]
    assert [one.name for one in panels[2].series] == ["classes", "map"]
    assert panels[4].series[0].y_N[-1] == pytest.approx(16.0)
    log(tmp_path, 3, parts=False)
    assert curves.write(tmp_path, "t", 8, "pairs") == path


class Halves(torch.nn.Module):
    """Says manipulated, with the left half as the place, whatever it sees."""

    def __init__(self, *, grid: bool) -> None:
        super().__init__()
        self.bias, self.grid = torch.nn.Parameter(torch.zeros(1)), grid

    def forward(self, query: torch.Tensor, original: torch.Tensor, valid: torch.Tensor) -> Compared:
        count = len(query)
        logits = torch.full((count, 1, SIDE // 2, SIDE // 2), -20.0)
        logits[..., : SIDE // 4] = 20.0
        grid = torch.zeros(count, 7, 7)
        grid[..., :3] = 1.0
        said = torch.tensor([[0.0, 2.0, 0.0]]).repeat(count, 1)
        return Compared(said, grid, None if self.grid else logits)


def pair(kind: Kind, label: int, mask: NDArray[np.uint8]) -> Pair:
    grey: Picture = np.full((SIDE, SIDE, 3), 90, np.uint8)
    valid = np.full((SIDE, SIDE), 255, np.uint8)
    valid[:, -4:] = 0
    return Pair(
        query_HWC=grey + np.uint8(60),
        original_HWC=grey,
        valid_HW=valid,
        mask_HW=mask,
        counted_HW=valid,
        label=label,
        kind=kind,
        log=("how", "it came about"),
    )


def masks() -> tuple[NDArray[np.uint8], NDArray[np.uint8], NDArray[np.uint8]]:
    nothing = np.zeros((SIDE, SIDE), np.uint8)
    left, right = nothing.copy(), nothing.copy()
    left[:, : SIDE // 2] = 255
    right[:, SIDE // 2 : -4] = 255
    return nothing, left, right


@pytest.mark.parametrize("grid", [False, True])
def test_the_hardest_pairs_come_first_and_relabelled_ones_not_at_all(grid: bool) -> None:
    nothing, left, right = masks()
    samples = [
        pair("both", 1, left),
        pair("distinct", 2, nothing),
        pair("manip", 1, right),
        pair("both", 0, nothing),
        pair("benign", 0, nothing),
    ]
    rows = hardest.pairs(Halves(grid=grid), samples)
    # a benign pair called manipulated also has half of it called changed; a missed place is easier than a wrong class
    assert [row.kind for row in rows] == ["benign", "distinct", "manip", "both"]
    assert [row.right for row in rows] == [False, False, True, True]
    assert rows[0].lines[0] == "benign, called manipulated"
    cross_entropy = math.log(1 + 2 * math.exp(-2.0))
    assert rows[3].difficulty == pytest.approx(cross_entropy, abs=0.15)
    assert rows[2].difficulty == pytest.approx(cross_entropy + 1.0, abs=0.05)
    assert "overlap 0.00, edited 37.5% of the picture" in rows[2].lines


def test_what_is_laid_true_and_said_can_be_told_apart() -> None:
    _, left, _ = masks()
    laid, original, truth, heat = hardest.pairs(Halves(grid=False), [pair("manip", 1, left)])[0].pictures
    assert (laid[:, :-4] == 150).all() and (laid[:, -4:] > 200).all() and (original == 90).all()
    blue, red = truth[16, 4].astype(int), heat[16, 4].astype(int)
    assert blue[2] > blue[0] + 80 and red[0] > red[2] + 80
    assert np.ptp(truth[16, 20].astype(int)) == 0 and np.ptp(heat[16, 28].astype(int)) < 5
    # hatched where nothing counts
    assert len(np.unique(truth[:, -4:])) > 1


def test_no_kind_fills_the_page() -> None:
    def row(kind: str, difficulty: float) -> Row:
        return Row(difficulty=difficulty, kind=kind, right=True, pictures=(), lines=())

    rows = [row("both", 20 - n) for n in range(20)] + [row("manip", 0.5), row("benign", 0.4)]
    kinds = [one.kind for one in hardest.chosen(rows)]
    assert kinds == ["both"] * 4 + ["manip", "benign"]
    alone = hardest.chosen(rows[:20])
    assert len(alone) == hardest.ROWS and alone == rows[:12]


class Colour(torch.nn.Module):
    """Embeds a picture as its mean colour."""

    mean_C11 = torch.zeros(3, 1, 1)

    def forward(self, image: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return torch.nn.functional.normalize(image.mean((2, 3)), dim=1), torch.empty(0)


def test_views_that_lie_nearer_another_original_are_hardest(tmp_path: Path) -> None:
    clean = torch.tensor([[200.0, 20, 20], [20, 200, 20]])[:, :, None, None].expand(2, 3, 8, 8)
    views = clean.repeat_interleave(VIEWS, 0).clone()
    views[5] = clean[0]
    number = torch.tensor([7, 9])
    batch = GroupBatch(clean, views, number, number.repeat_interleave(VIEWS))
    network: EncoderNetwork = Colour()  # type: ignore[assignment]
    rows = hardest.views(network, [batch])
    assert len(rows) == 8 and not rows[0].right and all(row.right for row in rows[1:])
    assert rows[0].lines[0] == "changed, its original at rank 2"
    _, own, first = rows[0].pictures
    assert own[0, 0].tolist() == [20, 200, 20] and first[0, 0].tolist() == [200, 20, 20]
    path = hardest.write(tmp_path, "a title", rows)
    assert drawn(path, hardest.WRONG)
