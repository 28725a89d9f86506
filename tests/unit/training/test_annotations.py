"""Annotators' boxes: the union of each, the mean of three, exact areas in 7 x 7 cells."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stemma.errors import Corrupt, NotFound
from training import annotations
from training.annotations import Box, Workers

SIZES = st.tuples(st.integers(3, 40), st.integers(3, 40))


@st.composite
def marked(draw: st.DrawFn) -> tuple[tuple[int, int], Workers]:
    width, height = draw(SIZES)

    def box() -> Box:
        x0, x1 = sorted(draw(st.tuples(st.floats(0, width), st.floats(0, width))))
        y0, y1 = sorted(draw(st.tuples(st.floats(0, height), st.floats(0, height))))
        return (x0, y0, x1, y1)

    return (width, height), tuple(tuple(box() for _ in range(draw(st.integers(0, 3)))) for _ in range(3))


def slow_truth(workers: Workers, size: tuple[int, int], cells: int) -> np.ndarray:
    """By the definition, pixel by pixel."""
    width, height = size
    out = np.zeros((cells, cells))
    for y in range(height):
        for x in range(width):
            said = 0
            for boxes in workers:
                said += any(x0 <= x + 0.5 < x1 and y0 <= y + 0.5 < y1 for x0, y0, x1, y1 in boxes)
            for row in range(cells):
                high = min(y + 1, (row + 1) * height / cells) - max(y, row * height / cells)
                for column in range(cells):
                    wide = min(x + 1, (column + 1) * width / cells) - max(x, column * width / cells)
                    if high > 0 and wide > 0:
                        out[row, column] += said / 3 * high * wide
    return out * cells * cells / (width * height)


@settings(max_examples=25, deadline=None)
@given(case=marked())
def test_the_truth_is_the_area_mean_of_the_workers_unions(case: tuple[tuple[int, int], Workers]) -> None:
    size, workers = case
    fast = annotations.truth(workers, size)
    assert fast.shape == (7, 7) and fast.dtype == np.float32
    assert fast.min() >= 0 and fast.max() <= 1 + 1e-6
    assert np.allclose(fast, slow_truth(workers, size, 7), atol=1e-5)


@settings(max_examples=25, deadline=None)
@given(case=marked())
def test_levels_are_thirds_and_two_make_a_truth(case: tuple[tuple[int, int], Workers]) -> None:
    size, workers = case
    mean = annotations.mean_of(workers, size)
    assert mean.shape == size[::-1] and set(np.unique(np.rint(mean * 3))) <= {0, 1, 2, 3}
    assert np.allclose(mean * 3, np.rint(mean * 3), atol=1e-6)
    said = sum(annotations.union(boxes, size) for boxes in workers)
    assert np.array_equal(annotations.agreed(workers, size), np.asarray(said) >= 2)


def test_boxes_of_one_worker_count_once_and_of_three_thrice() -> None:
    whole: Box = (0, 0, 70, 35)
    assert np.allclose(annotations.truth(((whole, whole), (), ()), (70, 35)), 1 / 3)
    assert np.allclose(annotations.truth(((whole,), (whole,), (whole,)), (70, 35)), 1)
    corner: Box = (0, 0, 10, 5)
    out = annotations.truth(((corner,), (corner, (60, 30, 70, 35)), ()), (70, 35))
    assert out[0, 0] == pytest.approx(2 / 3) and out[6, 6] == pytest.approx(1 / 3)
    assert out.sum() == pytest.approx(1), "nothing outside the boxes"


def test_the_mean_is_of_three_workers() -> None:
    with pytest.raises(ValueError, match="3 workers, not 2"):
        annotations.truth(((), ()), (10, 10))


HEAD = "\t".join(annotations.COLUMNS)


def test_the_list_of_boxes_is_read_and_those_without_three_workers_named(tmp_path: Path) -> None:
    path = tmp_path / "boxes.tsv"
    rows = ["c1\tw2\t1\t2\t3\t4", "c1\tw1\t\t\t\t", "c1\tw3\t0\t0\t9.5\t4", "c1\tw2\t5\t5\t8\t8", "c2\tw1\t0\t0\t1\t1"]
    path.write_text("\n".join([HEAD, *rows]) + "\n", encoding="utf-8")
    whole, left_out = annotations.read(path)
    assert whole == {"c1": ((), ((1, 2, 3, 4), (5, 5, 8, 8)), ((0, 0, 9.5, 4),))}
    assert left_out == {"c2": "1 workers, not 3"}


@pytest.mark.parametrize(
    "row", ["c\tw\t1\t2\t3", "c\tw\t1\t2\tx\t4", "c\tw\t3\t2\t1\t4", "c\tw\t0\t0\tnan\t4", "c\tw\t-1\t0\t1\t4"]
)
def test_a_row_that_is_no_box_is_named(tmp_path: Path, row: str) -> None:
    path = tmp_path / "boxes.tsv"
    path.write_text(f"{HEAD}\n{row}\n", encoding="utf-8")
    with pytest.raises(Corrupt, match="line 2"):
        annotations.read(path)


def test_other_columns_and_no_file_are_refused(tmp_path: Path) -> None:
    with pytest.raises(NotFound):
        annotations.read(tmp_path / "boxes.tsv")
    (tmp_path / "boxes.tsv").write_text("id\n", encoding="utf-8")
    with pytest.raises(Corrupt, match="columns"):
        annotations.read(tmp_path / "boxes.tsv")


def test_the_stand_in_marks_what_the_mask_marks_in_three_ways() -> None:
    mask = np.zeros((120, 160), np.uint8)
    mask[20:60, 30:90] = 255
    mask[90:110, 120:150] = 255
    mask[5, 5] = 255  # nobody sees a pixel
    workers = annotations.workers_of(mask, np.random.default_rng(1))
    assert len(workers) == 3 and len(set(workers)) == 3 and {len(boxes) for boxes in workers} == {2}
    inside = annotations.agreed(workers, (160, 120))
    assert (inside & (mask > 0)).sum() / (inside | (mask > 0)).sum() > 0.75
    assert workers == annotations.workers_of(mask, np.random.default_rng(1))
    assert annotations.workers_of(np.zeros((50, 50), np.uint8), np.random.default_rng(1)) == ((), (), ())
    assert all(0 <= x0 < x1 <= 160 and 0 <= y0 < y1 <= 120 for boxes in workers for x0, y0, x1, y1 in boxes)
