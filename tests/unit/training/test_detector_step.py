"""The detector's step: it learns, resumes to the bit, and its samples' boxes follow their pictures."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from training import detection
from training.detector import DetectorStep, DetectorTraining, build, rate
from training.loop import LoopSettings, Run
from training.splices import Splice

SETTINGS = DetectorTraining(steps=20, batch=2, warmup_steps=2, rate=2e-3, average=0.5, seed=1, side_px=64)
BOX = np.array([[16, 12, 48, 40]], np.float32)


def batch(seed: int) -> detection.Batch:
    rng = np.random.default_rng(seed)
    made = []
    for _ in range(2):
        rgb = rng.integers(0, 60, (48, 64, 3)).astype(np.uint8)
        rgb[12:40, 16:48] = rng.integers(180, 255, 3)
        made.append((rgb, BOX))
    return made


def fresh() -> DetectorStep:
    return DetectorStep(SETTINGS, build(SETTINGS))


def test_the_loss_falls_on_what_is_learned_by_heart() -> None:
    step, same = fresh(), batch(0)
    said = [step.step(same, t) for t in range(16)]
    assert said[-1]["loss"] < 0.5 * said[0]["loss"]
    assert {"classifier", "box_reg", "objectness", "rpn_box_reg"} <= set(said[0])
    assert all(math.isfinite(value) for value in said[-1].values())


def test_a_folder_means_what_it_means_where_the_run_is_started() -> None:
    """Ray's workers have working directories of their own."""
    assert DetectorTraining(further=Path("mine")).further == Path.cwd() / "mine"


def test_pictures_without_objects_are_finite() -> None:
    step = fresh()
    empty = [(rgb, np.zeros((0, 4), np.float32)) for rgb, _ in batch(1)]
    assert all(math.isfinite(value) for value in step.step(empty, 0).values())


def test_the_frozen_trunk_keeps_its_weights() -> None:
    step = fresh()
    before = {name: p.clone() for name, p in step.network.named_parameters()}
    step.step(batch(2), 5)
    moved = {name for name, p in step.network.named_parameters() if not torch.equal(p, before[name])}
    frozen = {name for name in before if name.startswith(("backbone.stem", "backbone.cells", "backbone.deep"))}
    assert frozen and not moved & frozen and "rpn.head.cls_logits.weight" in moved


def test_a_resumed_detector_is_the_one_that_never_stopped(tmp_path: Path) -> None:
    def go(folder: Path, steps: int, *, resume: bool) -> dict[str, Any]:
        step = fresh()
        run: Run[detection.Batch] = Run(folder, LoopSettings(checkpoint_every=1))
        first = run.start(step, SETTINGS.model_dump(), resume=resume)
        coming = (batch(t) for t in range(first, 99))
        run.go(step, coming, config=SETTINGS.model_dump(), first=first, steps=steps)
        return step.state_dict()

    whole = go(tmp_path / "whole", 3, resume=False)
    go(tmp_path / "parts", 2, resume=False)
    parts = go(tmp_path / "parts", 3, resume=True)
    for part in ("network", "averaged"):
        assert all(torch.equal(whole[part][name], parts[part][name]) for name in whole[part])


def test_the_rate_rises_and_falls_in_steps() -> None:
    settings = DetectorTraining(steps=100, warmup_steps=10, rate=1.0, decay_at=(0.5, 0.9))
    assert [rate(settings, t) for t in (0, 9, 49, 50, 90)] == pytest.approx([0.1, 1.0, 1.0, 0.1, 0.01])


def test_the_rate_falls_along_a_cosine() -> None:
    settings = DetectorTraining(steps=110, warmup_steps=10, rate=1.0, decay="cosine")
    assert [rate(settings, t) for t in (0, 9, 10, 60, 110)] == pytest.approx([0.1, 1.0, 1.0, 0.5, 0.0])


def test_an_unfrozen_trunk_learns_at_its_own_rate() -> None:
    settings = SETTINGS.model_copy(update={"frozen_stages": 5, "trunk_rate": 0.25})
    step = DetectorStep(settings, build(settings))
    before = {name: p.clone() for name, p in step.network.named_parameters()}
    step.step(batch(2), 5)
    moved = {name.split(".")[1] for name, p in step.network.named_parameters() if not torch.equal(p, before[name])}
    assert {"deep"} == moved & {"stem", "cells", "deep"}
    trunk, others = step.state_dict()["optimizer"]["param_groups"]
    assert trunk["lr"] == pytest.approx(0.25 * others["lr"])


def test_boxes_are_kept_as_often_as_they_are_right() -> None:
    rgb = np.full((96, 128, 3), 90, np.uint8)
    boxes = np.array([[0, 0, 60, 60], [64, 30, 128, 96]], np.float32)

    class One:
        def __len__(self) -> int:
            return 1

        def __getitem__(self, _: int) -> np.ndarray:
            return rgb

    source = detection.Labelled(
        photographs=One(),  # type: ignore[arg-type]
        boxes=(boxes,),
        annotated=(False,),
        chances=(np.array([1.0, 0.0]),),
    )
    samples = [detection.DetectionData(source, (), seed=1, side_px=128).sample(n) for n in range(12)]
    # a crop or a mosaic may leave the first; the second, which is never right, does not appear
    assert max(len(found) for _, found in samples) <= 4 and any(len(found) for _, found in samples)
    single = detection.DetectionData(dataclasses.replace(source, chances=(np.zeros(2),)), (), seed=1, side_px=128)
    assert not any(len(single.sample(n)[1]) for n in range(12))


def test_the_pasted_object_hides_what_is_under_it() -> None:
    host, pasted = np.zeros((100, 200, 3), np.uint8), np.zeros((50, 100, 3), np.uint8)
    box = (10.0, 10.0, 40.0, 40.0)
    made = Splice(rgb_HWC=pasted, mask_HW=pasted[..., 0], box=box, donor_box=box, mirrored=False)
    under, beside = [24, 24, 60, 60], [100, 0, 190, 90]
    found = detection.with_pasted(made, host, np.array([under, beside], np.float32))
    assert found.tolist() == [[50, 0, 95, 45], [10, 10, 40, 40]]


def test_another_tone_moves_nothing() -> None:
    rgb = np.repeat(np.arange(256, dtype=np.uint8)[None, :, None], 3, 2)
    out = detection.toned(rgb, np.random.default_rng(2))
    assert out.shape == rgb.shape and (np.diff(out.astype(int), axis=1) >= 0).all() and not np.array_equal(out, rgb)


@given(st.integers(0, 5_000))
def test_boxes_follow_crops_and_mirrors(seed: int) -> None:
    """A bright rectangle is the box, whatever is done to the picture; what is left of it is at least half."""
    rng = np.random.default_rng(seed)
    rgb = np.zeros((96, 128, 3), np.uint8)
    x0, y0 = int(rng.integers(0, 80)), int(rng.integers(0, 60))
    rgb[y0 : y0 + 30, x0 : x0 + 40] = 255
    box = np.array([[x0, y0, x0 + 40, y0 + 30]], np.float32)
    out, moved = detection.cropped(rgb, box, rng)
    out, moved = detection.mirrored(out, moved)
    bright = np.argwhere(out[..., 0] > 0)
    if len(moved):
        (top, left), (bottom, right) = bright.min(0), bright.max(0) + 1
        assert moved[0].tolist() == [left, top, right, bottom]
    else:
        assert len(bright) < 0.5 * 40 * 30


@given(st.integers(0, 5_000))
def test_boxes_follow_into_a_mosaic(seed: int) -> None:
    """Each of four bright rectangles keeps its colour, and its box, in a quarter of its own."""
    rng = np.random.default_rng(seed)
    samples = []
    for colour in ((255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 0)):
        rgb = np.zeros((int(rng.integers(96, 160)), int(rng.integers(96, 160)), 3), np.uint8)
        x0, y0 = (int(rng.integers(0, size - 48)) for size in (rgb.shape[1], rgb.shape[0]))
        rgb[y0 : y0 + 48, x0 : x0 + 48] = colour
        samples.append((rgb, np.array([[x0, y0, x0 + 48, y0 + 48]], np.float32)))
    out, moved = detection.mosaic(samples, rng)
    assert out.shape == samples[0][0].shape
    for x0, y0, x1, y1 in moved:
        middle_3 = out[int((y0 + y1) / 2), int((x0 + x1) / 2)] > 127
        bright = np.argwhere(((out > 127) == middle_3).all(2))
        assert middle_3.any()
        (top, left), (bottom, right) = bright.min(0), bright.max(0) + 1
        # edges are resampled
        assert [x0, y0, x1, y1] == pytest.approx([left, top, right, bottom], abs=2.5)


def test_fitted_drops_what_is_too_small_to_see() -> None:
    rgb = np.zeros((200, 400, 3), np.uint8)
    boxes = np.array([[0, 0, 100, 100], [10, 10, 30, 30]], np.float32)
    out, kept = detection.fitted(rgb, boxes, 200)
    assert out.shape == (100, 200, 3) and kept.tolist() == [[0, 0, 50, 50]]
    assert len(detection.fitted(rgb, np.zeros((0, 4), np.float32), 200)[1]) == 0
