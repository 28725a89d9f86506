"""Pairs of an edited picture and its original: reading them, comparing them, and what is counted."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from evaluation.pairs import Compared, Pair, compare_all, pair_figures, read_pairs
from stemma.api import Comparison, Heatmap
from stemma.errors import BadRequest, Unavailable

RECORDS = [
    {"dir": "val/001", "split": "val", "kind": "copy-move", "made": "real", "source": "Some set, 029", "scene": 7},
    {"dir": "val/002", "split": "val", "kind": "copy-move", "made": "real", "source": "Some set, 030", "scene": 7},
    {"dir": "val/003", "split": "val", "kind": "mixed (by people)", "made": "synthetic", "source": "here"},
    {"dir": "train/001", "split": "train", "kind": "splice", "made": "real", "source": "here"},
]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "index.json").write_text(json.dumps({"pairs": RECORDS}))
    mask_HW = np.zeros((20, 40), np.uint8)
    mask_HW[:, :20] = 255
    for name in ("001", "002", "003"):
        place = tmp_path / "val" / name
        place.mkdir(parents=True)
        (place / "tampered.jpg").write_bytes(f"{name} tampered".encode())
        (place / "original.jpg").write_bytes(f"{name} original".encode())
        Image.fromarray(mask_HW).save(place / "mask.png")
    return tmp_path / "val"


def said(verdict: str, value: float) -> Comparison:
    values = (value, 0.0) * 2
    return Comparison(verdict=verdict, heatmap=Heatmap(rows=2, cols=2, values=values))  # type: ignore[arg-type]


def test_only_the_pairs_of_the_split_are_read_and_scenes_are_kept_together(folder: Path) -> None:
    first, second, third = read_pairs(folder)
    assert [first.folder.name, second.folder.name, third.folder.name] == ["001", "002", "003"]
    assert first.scene == second.scene != third.scene
    assert (third.kind, third.made) == ("mixed", "synthetic")


@pytest.mark.parametrize("name", ["val/001", "test"])
def test_a_folder_without_pairs_is_refused(folder: Path, name: str) -> None:
    with pytest.raises(BadRequest, match="pairs"):
        read_pairs(folder.parent / name)


def test_each_is_compared_with_its_own_original_and_counted(folder: Path) -> None:
    seen: list[tuple[bytes, bytes]] = []

    def compare(query: bytes, original: bytes) -> Comparison:
        seen.append((query, original))
        return said("manipulated" if len(seen) > 1 else "inconclusive", 0.9 if len(seen) > 1 else 0.4)

    compared = compare_all(read_pairs(folder), compare, 0.5)
    assert seen[0] == (b"001 tampered", b"001 original") and len(seen) == 3
    assert [each.manipulated for each in compared] == [False, True, True]
    assert compared[0].iou == 0.0 and compared[1].iou == pytest.approx(0.95, abs=0.06)
    figures = pair_figures(compared)
    assert set(figures) == {"manipulated", "heatmap_iou", "by_kind", "by_made"}
    assert figures["manipulated"]["share"] == 0.6667 and figures["manipulated"]["n"] == 3
    assert figures["by_kind"]["copy-move"]["manipulated"]["share"] == 0.5
    assert set(figures["by_kind"]) == {"copy-move", "mixed"} and set(figures["by_made"]) == {"real", "synthetic"}
    json.dumps(figures, allow_nan=False)


def test_one_scene_says_no_more_than_one_pair() -> None:
    def compared(scene: str, iou: float) -> Compared:
        pair = Pair(folder=Path("x"), kind="splice", made="real", scene=scene)
        return Compared(pair=pair, manipulated=True, iou=iou)

    together = pair_figures([compared("one", 0.2), compared("one", 0.8)])["heatmap_iou"]
    apart = pair_figures([compared("one", 0.2), compared("two", 0.8)])["heatmap_iou"]
    assert (together["low"], together["high"]) == (0.5, 0.5)
    assert (apart["low"], apart["high"]) == (0.2, 0.8)


def test_an_error_names_the_pair_it_happened_on(folder: Path) -> None:
    def compare(query: bytes, original: bytes) -> Comparison:
        raise Unavailable("gone")

    with pytest.raises(Unavailable) as caught:
        compare_all(read_pairs(folder), compare, 0.5)
    assert str(caught.value.subject).endswith("001")
