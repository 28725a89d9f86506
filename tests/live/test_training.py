"""Ray Train around the plain step: two workers learn what one does, and killed workers, one or all, cost no step."""

from __future__ import annotations

import json
import os
import signal
import threading
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch

from stemma.networks.backbones import Lite0, lite0_keys
from training import launch, loop, recipe, split

CONFIG = """
network: comparator
comparator: {steps: 60, batch: 2, rate: 1.0e-4, pairs: {side_px: 32, aligned: 0.0}}
loop: {checkpoint_every: 10, validate_every: 1000}
render_processes: 0
validation_renders: 1
"""
ONE_KILLED_AT, ALL_KILLED_AT = 25, 45


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Photographs and a random trunk in the layout of the development data."""
    from safetensors.torch import save_file

    for part, names in (("train", split.load().train[:6]), ("val", ("a.jpg",))):
        (tmp_path / "photos" / part).mkdir(parents=True)
        for seed, name in enumerate(names):
            small = np.random.default_rng(seed).integers(0, 256, (12, 16, 3)).astype(np.uint8)
            picture = cv2.resize(small, (96, 72), interpolation=cv2.INTER_CUBIC)
            cv2.imwrite(str(tmp_path / "photos" / part / name), picture)
    (tmp_path / "weights").mkdir()
    state = Lite0().state_dict()
    tensors = {theirs: state[ours].half() for ours, theirs in lite0_keys()}
    save_file(tensors, tmp_path / "weights" / recipe.LITE0_FILE)
    return tmp_path


def entries(folder: Path) -> dict[int, dict[str, Any]]:
    """The log by step, whole lines alone, without what a clock says."""
    path = folder / loop.LOG
    lines = path.read_text().splitlines() if path.exists() else []
    found = [json.loads(line) for line in lines if line.endswith("}")]
    return {one["t"]: {k: v for k, v in one.items() if k not in loop.CLOCKS} for one in found if "loss" in one}


def workers() -> set[int]:
    """Process ids of Ray Train's workers, by the titles that Ray gives its processes."""
    found = set()
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            title = path.read_bytes()
        except OSError:
            # it ended while we looked
            continue
        if title.startswith(b"ray::") and b"TrainWorker" in title:
            found.add(int(path.parent.name))
    return found


class Killer(threading.Thread):
    """Kills one worker, later all of them, when the log has come so far, and keeps what the log said until then."""

    def __init__(self, folder: Path, mine: set[int]) -> None:
        super().__init__(daemon=True)
        self._folder, self._others, self.said = folder, mine, list[dict[int, dict[str, Any]]]()
        self.over = threading.Event()

    def run(self) -> None:
        at = [ONE_KILLED_AT, ALL_KILLED_AT]
        while at and not self.over.wait(0.01):
            said = entries(self._folder)
            if len(said) < at[0]:
                continue
            self.said.append(said)
            living = sorted(workers() - self._others)
            for pid in living if at.pop(0) == ALL_KILLED_AT else living[-1:]:
                os.kill(pid, signal.SIGKILL)
            # until the log has gone back to the checkpoint it would look as far as before
            while len(entries(self._folder)) >= len(said) and not self.over.wait(0.01):
                pass


# Ray Train copies Ray Data's settings one by one and so deprecates its own
@pytest.mark.filterwarnings("ignore::DeprecationWarning:ray.*", "ignore::FutureWarning:ray.*")
def test_two_workers_that_are_killed_are_the_bare_loop(ray_cluster: Any, data: Path, tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    path.write_text(CONFIG, encoding="utf-8")
    config = recipe.read(path)
    killer = Killer(tmp_path / "spread", workers())
    killer.start()
    try:
        assert launch.spread(config, data, tmp_path / "spread", workers=2, resume=False) == 60
    finally:
        killer.over.set()
        killer.join()
    spread = entries(tmp_path / "spread")
    assert list(spread) == list(range(1, 61))
    # the steps behind the last checkpoint were made twice, and said the same to the last bit
    assert [len(said) >= at for said, at in zip(killer.said, (ONE_KILLED_AT, ALL_KILLED_AT), strict=True)] == [True] * 2
    for said in killer.said:
        assert {t: spread[t] for t in said} == said
    threads = torch.get_num_threads()
    launch.alone(config, data, tmp_path / "alone", resume=False)
    torch.set_num_threads(threads)
    alone = entries(tmp_path / "alone")
    for t in range(1, 11):
        assert spread[t]["loss"] == pytest.approx(alone[t]["loss"], rel=1e-3)
