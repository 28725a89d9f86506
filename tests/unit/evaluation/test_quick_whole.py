"""The whole measurement in this process: a rendered set of a few pictures, and one pair, with the shipped weights."""

from __future__ import annotations

import json
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from evaluation import commands
from evaluation.outcomes import read
from evaluation.pictures import SEED, jpeg, render

ONE = {"n": 1, "low": 0.025, "high": 1.0}
FIGURES = {
    *("verdict", "forced", "abstained", "falsely_accused", "heatmap_iou", "heatmap_iou_paper", "false_area_benign"),
    *("ece", "per_transform", "left_out", "confusion", "average_precision", "heatmap_min", "comparator"),
    *("images", "queries", "retrieval", "found", "strangers_found", "mirrored", "p50_ms", "compare_p50_ms"),
    *("encoder_ms", "embedded_p50_ms", "search_in_passes", "pairs", "seconds"),
    *("donor", "donor_shown", "false_donors", "clones_shown", "regions_ceiling", "donor_mask_iou"),
    *("donor_search_ratio", "donor_search"),
}


def pasted(rgb_HWC: np.ndarray, patch_HWC: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """A picture with a square of another one in it, and the mask of that."""
    height, width = rgb_HWC.shape[:2]
    side = min(height, width) // 3
    out_HWC, mask_HW = rgb_HWC.copy(), np.zeros((height, width), np.uint8)
    rows, columns = slice(height // 3, height // 3 + side), slice(width // 3, width // 3 + side)
    out_HWC[rows, columns] = cv2.resize(patch_HWC, (side, side))
    mask_HW[rows, columns] = 255
    return out_HWC, mask_HW


def boxed(mask_HW: np.ndarray) -> list[int]:
    x, y, width, height = cv2.boundingRect(mask_HW)
    return [x, y, x + width, y + height]


@pytest.fixture
def measured_set(tmp_path: Path) -> Path:
    """Four originals; a query of each set, and one whose edit is gone. Beside it a pair, in ``pairs/val``."""
    folder = tmp_path / "set"
    for name in ("originals", "queries", "masks"):
        (folder / name).mkdir(parents=True)
    pictures = [render(SEED, number) for number in range(5)]
    for number in range(4):
        (folder / f"originals/{number}.jpg").write_bytes(jpeg(pictures[number]))
    edited, mask_HW = pasted(pictures[1], pictures[4])
    queries = [
        ("identical", "0.jpg", (folder / "originals/0.jpg").read_bytes(), None, ()),
        ("benign", "0.jpg", jpeg(cv2.resize(pictures[0], None, fx=0.8, fy=0.8)), None, ("resize 0.80", "jpeg 90")),
        ("manip", "1.jpg", jpeg(edited), "2.png", ()),
        ("both", "1.jpg", jpeg(np.ascontiguousarray(edited[:, ::-1])), "3.png", ("jpeg 90", "mirror")),
        ("both", "2.jpg", jpeg(pictures[2]), None, ("jpeg 90", "crop")),
        ("unknown", None, jpeg(pictures[4]), None, ("jpeg 90",)),
        ("splice", None, jpeg(pasted(pictures[4], pictures[3])[0]), "2.png", ()),
    ]
    Image.fromarray(mask_HW).save(folder / "masks/2.png")
    Image.fromarray(mask_HW[:, ::-1]).save(folder / "masks/3.png")
    records = []
    for number, (name, original, body, mask, benign) in enumerate(queries):
        (folder / f"queries/{number}.jpg").write_bytes(body)
        known = {"original": original, "mask": mask, "benign": list(benign), "mirrored": "mirror" in benign}
        area = 0.1 if mask else 0.0
        if name == "splice":
            height, width = pictures[3].shape[:2]
            known |= {"donor": "3.jpg", "donor_box": [0, 0, width, height], "query_box": boxed(mask_HW)}
        records.append(
            {"file": f"{number}.jpg", "set": name, "area": area, "edit": "splice" if mask else None, **known}
        )
    (folder / "truth.json").write_text(json.dumps({"queries": records}))

    place = tmp_path / "pairs/val/001"
    place.mkdir(parents=True)
    (place / "tampered.jpg").write_bytes(jpeg(edited))
    (place / "original.jpg").write_bytes(jpeg(pictures[1]))
    Image.fromarray(mask_HW).save(place / "mask.png")
    pair = {"dir": "val/001", "split": "val", "kind": "splice", "made": "synthetic", "source": "here"}
    (tmp_path / "pairs/index.json").write_text(json.dumps({"pairs": [pair]}))
    return folder


def test_a_set_and_a_pair_are_measured_saved_and_drawn(
    measured_set: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    argv = ["quick", "--set", str(measured_set), "--pairs", str(tmp_path / "pairs/val"), "--embedded", "--json"]
    saved, plots = tmp_path / "outcomes.jsonl", tmp_path / "plots"
    assert commands.evaluate([*argv, "--save", str(saved), "--plots", str(plots)]) == 0
    result = json.loads(capsys.readouterr().out)
    assert set(result) == FIGURES
    assert result["donor"]["n"] == 1 and result["regions_ceiling"]["donor"] == {**ONE, "share": 1.0}
    assert set(result["donor_search"]) == {"identical", "benign", "manip", "both", "unknown", "splice"}
    assert result["donor_search_ratio"] > 0 and result["verdict"]["splice"]["n"] == 1
    assert (result["images"], result["queries"], result["left_out"]) == (4, 7, 1)
    assert result["verdict"]["identical"]["share"] == result["verdict"]["unknown"]["share"] == 1.0
    assert {name: row["n"] for name, row in result["heatmap_iou"].items() if name != "by_area"} == {
        "manip": 1,
        "both": 1,
    }
    outcomes = {each.file: each for each in read(saved)}
    assert len(outcomes) == 7 and len(list(plots.iterdir())) == 5
    manip, both = outcomes["2.jpg"], outcomes["3.jpg"]
    assert manip.found and both.found and outcomes["4.jpg"].left_out
    # a square of another picture is seen where it is, in the query's own frame: mirrored there, not in the original's
    assert (manip.iou or 0) > 0.4 and (both.iou or 0) > 0.4
    assert 0 < (manip.iou_paper or 0) < 1
    assert result["pairs"]["manipulated"]["n"] == 1
    assert result["pairs"]["heatmap_iou"]["mean"] == pytest.approx(manip.iou, abs=0.2)
