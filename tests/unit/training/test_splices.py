"""Rendered splices: the truth that comes with them is the truth, and what may be cut out is what is annotated."""

from __future__ import annotations

import json
from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image

from stemma.errors import NotFound
from stemma.networks import weights
from training import objects, splices
from training.data import Photographs

DONOR_SIZE, HOST_SIZE = (200, 160), (240, 180)
CUT = splices.CutOut(
    name="donor.jpg", split="train", box=(60, 40, 140, 120), polygons=((60, 40, 140, 40, 140, 120, 60, 120),)
)


def flat(size: tuple[int, int], colour: tuple[int, int, int]) -> NDArray[np.uint8]:
    return np.full((size[1], size[0], 3), colour, np.uint8)


def donor() -> NDArray[np.uint8]:
    """Green, with a red left and a blue right half where the object is."""
    out = flat(DONOR_SIZE, (40, 160, 40))
    out[40:120, 60:100], out[40:120, 100:140] = (200, 30, 30), (30, 30, 200)
    return out


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10_000))
def test_the_mask_is_where_the_object_is(seed: int) -> None:
    made = splices.splice(flat(HOST_SIZE, (120, 120, 120)), donor(), CUT, np.random.default_rng(seed))
    assert made.rgb_HWC.shape[:2] == made.mask_HW.shape and set(np.unique(made.mask_HW)) <= {0, 255}
    x0, y0, x1, y1 = (round(v) for v in made.box)
    assert (x0, y0, x1 - x0, y1 - y0) == cv2.boundingRect(made.mask_HW)
    off = np.abs(made.rgb_HWC.astype(int) - 120).max(2)
    core = cv2.erode(made.mask_HW, np.ones((9, 9))) > 0
    outside = cv2.dilate(made.mask_HW, np.ones((25, 25))) == 0
    assert np.median(off[core]) > 15 and (not outside.any() or np.median(off[outside]) < 5)


@pytest.mark.parametrize("seed", range(8))
def test_mirrored_says_on_which_side_red_is(seed: int) -> None:
    made = splices.splice(flat(HOST_SIZE, (120, 120, 120)), donor(), CUT, np.random.default_rng(seed))
    columns = np.nonzero(made.mask_HW)[1]
    redness = made.rgb_HWC[..., 0].astype(float) - made.rgb_HWC[..., 2]
    middle = (columns.min() + columns.max()) / 2
    left = redness[:, : int(middle)][made.mask_HW[:, : int(middle)] > 0].mean()
    right = redness[:, int(middle) :][made.mask_HW[:, int(middle) :] > 0].mean()
    assert (left > right) != made.mirrored


def test_area_is_what_was_asked_for_and_seeds_repeat() -> None:
    for seed in range(6):
        made, again = (
            splices.splice(flat(HOST_SIZE, (9, 9, 9)), donor(), CUT, np.random.default_rng(seed), area=(0.1, 0.1))
            for _ in range(2)
        )
        assert (made.mask_HW > 0).mean() == pytest.approx(0.1, rel=0.2)
        assert np.array_equal(made.rgb_HWC, again.rgb_HWC) and made.box == again.box


def annotated(folder: Path) -> Path:
    (folder / "photos").mkdir()
    square = [10, 10, 90, 10, 90, 90, 10, 90]
    notes = [
        {"image_id": 1, "bbox": [10, 10, 80, 80], "segmentation": [square]},
        {"image_id": 1, "bbox": [10, 10, 20, 200], "segmentation": [square]},
        {"image_id": 1, "bbox": [0, 0, 300, 250], "segmentation": [square]},
        {"image_id": 2, "bbox": [10, 10, 80, 80], "segmentation": {"counts": "crowd", "size": [1, 1]}},
    ]
    images = [{"id": n, "file_name": f"{n}.jpg", "split": "train", "width": 320, "height": 240} for n in (1, 2)]
    body = {"images": images, "annotations": notes}
    (folder / "photos" / "instances.json").write_text(json.dumps(body))
    return folder


def test_only_what_can_be_recognised_is_cut_out(tmp_path: Path) -> None:
    folder = annotated(tmp_path)
    (only,) = splices.cut_outs(folder)
    assert (only.name, only.box) == ("1.jpg", (10, 10, 90, 90))
    assert splices.cut_outs(folder, {"2.jpg"}) == []
    assert {name: len(boxes) for name, (_, boxes) in splices.annotated(folder).items()} == {"1.jpg": 3, "2.jpg": 1}
    mask = splices.outline(only, (320, 240))
    assert (mask > 0).sum() == 81 * 81
    with pytest.raises(NotFound, match="no annotations"):
        splices.cut_outs(tmp_path / "nowhere")


def test_a_window_fills_most_of_its_box() -> None:
    cut = objects.window("a.jpg", (20, 30, 120, 90))
    mask = splices.outline(cut, DONOR_SIZE)
    assert cv2.boundingRect(mask) == (20, 30, 101, 61)
    assert 0.8 < (mask > 0).sum() / (100 * 60) < 1.0


def test_a_seen_box_is_turned_back_with_its_object() -> None:
    made = splices.Splice(
        rgb_HWC=donor(),
        mask_HW=np.zeros((160, 200), np.uint8),
        box=(60, 40, 140, 120),
        donor_box=CUT.box,
        mirrored=True,
    )
    picture, box_N4 = objects.seen(made, np.random.default_rng(0))
    assert np.array_equal(picture, donor()[:, ::-1])
    for box, share in zip(box_N4, objects.MISSES, strict=True):
        assert np.abs(box - [60, 40, 140, 120]).max() <= share * 80 + 1e-3
    assert picture[80, 70, 2] > 150, "what was right is left now"


def test_windows_are_on_each_thing_once_and_on_none_that_people_drew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    images = [{"id": 1, "file_name": "a.png", "split": "train", "width": 200, "height": 160}]
    known = {"images": images, "annotations": [{"image_id": 1, "bbox": [0, 0, 60, 60]}]}
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "instances.json").write_text(json.dumps(known))
    names = ["a.png", "b.png"]
    for name in names:
        assert cv2.imwrite(str(tmp_path / name), donor())

    class Drawn:
        def __init__(self, _: Path) -> None: ...

        def boxes(self, _: NDArray[np.uint8], score_min: float) -> NDArray[np.float32]:
            # people's, one of its own, one too small, one of nearly everything
            return np.array([[2, 2, 60, 60], [80, 80, 140, 150], [0, 90, 20, 150], [0, 0, 199, 159]], np.float32)

    monkeypatch.setattr(objects.labelling, "Yolox", Drawn)
    detected = np.array([[82, 80, 140, 148], [120, 0, 190, 60]], np.float32)
    made = objects.windows(tmp_path, Photographs(tmp_path, names), names, lambda _: detected)
    boxes = {name: [cut.box for cut in made if cut.name == name] for name in names}
    assert boxes["a.png"] == [(80, 80, 140, 150), (120, 0, 190, 60)]
    assert boxes["b.png"] == [(2, 2, 60, 60), *boxes["a.png"]]


@pytest.mark.slow
def test_crops_are_the_same_however_many_processes_make_them(tmp_path: Path) -> None:
    rng = np.random.default_rng(8)
    names = ("a.png", "b.png", "c.png")
    for name in names:
        drawn = rng.integers(0, 256, (9, 12, 3)).astype(np.uint8)
        Image.fromarray(drawn).resize((192, 144), Image.Resampling.BICUBIC).save(tmp_path / name)
    cuts = tuple(objects.window(name, (30, 20, 120, 100)) for name in names)
    source = objects.Pairs(weights=weights.resolve(None), photos=tmp_path, names=names, cuts=cuts)
    one, two = source.made(1), source.made(2)
    assert all(np.array_equal(a, b) for a, b in zip(one, two, strict=True))
    crops = 1 + objects.PASTES * len(objects.MISSES)
    assert one[0].shape[0] == 3 and one[2].tolist() == [0] * crops + [1] * crops + [2] * crops
