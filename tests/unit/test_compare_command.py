"""``stemma compare``: verdict, exit code and map at a terminal, on the real comparator and drawn pictures."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from stemma import cli
from stemma.api import Comparison, Heatmap
from stemma.collection import Collection
from stemma.compare_command import SHADES, drawn
from stemma.config import load
from stemma.errors import BadRequest, NotFound


def scene(seed: int) -> np.ndarray:
    """Texture at several scales, as a photograph has."""
    rng = np.random.default_rng(seed)
    picture = np.zeros((240, 320, 3))
    for size in (4, 10, 24, 60):
        noise = rng.uniform(0, 255, (size * 3 // 4, size, 3)).astype(np.uint8)
        picture += np.asarray(Image.fromarray(noise).resize((320, 240), Image.Resampling.BICUBIC), float)
    return np.clip(picture / 4, 0, 255).astype(np.uint8)


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    original = scene(1)
    edited = original.copy()
    edited[60:140, 180:280] = scene(9)[60:140, 180:280]
    for name, picture in (("original", original), ("edited", edited), ("other", scene(2))):
        Image.fromarray(picture).save(tmp_path / f"{name}.png")
    Image.fromarray(original[:, ::-1]).save(tmp_path / "benign.jpg", quality=70)
    return tmp_path


def test_a_changed_picture_is_shown_where_it_was_changed(pictures: Path, capsys: pytest.CaptureFixture[str]) -> None:
    report = pictures / "pair.html"
    call = ["compare", str(pictures / "edited.png"), str(pictures / "original.png")]
    assert cli.main([*call, "--json", "--report", str(report)]) == 0
    said = Comparison.model_validate(json.loads(capsys.readouterr().out))
    assert said.verdict == "manipulated"
    x0, y0, x1, y1 = said.regions[0].box
    assert abs(x0 - 180) < 16
    assert abs(y0 - 60) < 16
    assert abs(x1 - 280) < 16
    assert abs(y1 - 140) < 16
    assert report.stat().st_size > 10_000
    assert cli.main(call) == 0
    shown = capsys.readouterr().out
    assert shown.startswith("manipulated")
    assert SHADES[-1] in shown


@pytest.mark.parametrize(
    ("query", "verdict", "code"),
    [("benign.jpg", "benign", 0), ("original.png", "identical", 0), ("other.png", "unknown", 1)],
)
def test_the_exit_code_says_whether_it_is_the_same_picture(
    pictures: Path, capsys: pytest.CaptureFixture[str], query: str, verdict: str, code: int
) -> None:
    assert cli.main(["compare", str(pictures / query), str(pictures / "original.png")]) == code
    assert capsys.readouterr().out.startswith(verdict)


def test_a_stored_original_is_compared_by_its_id(pictures: Path) -> None:
    with Collection(pictures / "photos.stemma", load()) as collection:
        collection.ingest(pictures / "original.png")
        (record,) = collection
        stored = collection.compare(pictures / "edited.png", original_id=record.image_id)
        given = collection.compare(pictures / "edited.png", pictures / "original.png")
        assert stored == given
        with pytest.raises(NotFound):
            collection.compare(pictures / "edited.png", original_id="nobody")
        with pytest.raises(BadRequest):
            collection.compare(pictures / "edited.png")


@pytest.mark.parametrize("arguments", [[], ["--id", "x"], ["missing.png"]])
def test_a_call_that_cannot_be_meant_is_refused(pictures: Path, arguments: list[str]) -> None:
    assert cli.main(["compare", str(pictures / "edited.png"), *arguments]) == 2


def test_the_map_shows_the_stronger_of_two_rows_and_keeps_an_odd_last_one() -> None:
    values = np.zeros((3, 4))
    values[1, 2], values[2, 0] = 1.0, 0.5
    heatmap = Heatmap(rows=3, cols=4, values=tuple(values.ravel().tolist()))
    lines = drawn(Comparison(verdict="manipulated", heatmap=heatmap)).splitlines()
    assert lines == ["┌────┐", f"│  {SHADES[-1]} │", f"│{SHADES[2]}   │", "└────┘"]
    assert drawn(Comparison(verdict="identical")) == ""
