"""What training pays for Ray, and what a second worker brings: the bare loop, one Ray Train worker, two of them.

    stemma bench train --json [--data DIR]

The starter's comparator under its own config, on the training photographs of ``--data``, else on drawn pictures. Every
way makes the same steps over the same global batches, rendered by the worker itself; a worker has one torch thread. The
ways take turns, so ratios hold on a busy machine, as long as it has a core for each worker.

``ray_vs_loop``: steps a second of one Ray worker over those of the bare loop. ``two_workers_vs_one``: of two Ray
workers over one. Medians over the rounds; a rate is over the steps after the warm-up.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import torch
from rich.console import Console
from safetensors.torch import save_file

from benchmarks.pictures import write_drawn
from stemma.networks.backbones import Lite0, lite0_keys
from training import launch, loop, recipe, split
from training.recipe import TrainingConfig

ROUNDS = 3
STEPS, WARM_UP = 16, 4
DRAWN = 24


def measure(
    *, data: Path | None = None, rounds: int = ROUNDS, steps: int = STEPS, overrides: tuple[str, ...] = ()
) -> dict[str, Any]:
    """Start a local Ray, train ``rounds`` times each way, stop it. ``steps`` are made behind the warm-up's."""
    sizes = (f"comparator.steps={WARM_UP + steps}", f"loop.checkpoint_every={WARM_UP + steps}", "render_processes=0")
    config = recipe.read(recipe.default_path("comparator"), (*sizes, *overrides))
    threads = torch.get_num_threads()
    with tempfile.TemporaryDirectory(prefix="stemma-bench-") as folder:
        root = Path(folder)
        _place(root / "data", data)
        (root / "runs").mkdir()
        try:
            with launch.ray_for(root, 2):
                rates = _rates(config, root, rounds)
        finally:
            torch.set_num_threads(threads)
    batch = config.comparator.batch
    return {
        "ray_vs_loop": _ratio(rates["one_worker"], rates["loop"]),
        "two_workers_vs_one": _ratio(rates["two_workers"], rates["one_worker"]),
        "pairs_per_s": {
            name: [round(config.comparator.batch * rate, 2) for rate in found] for name, found in rates.items()
        },
        "batch": batch,
        "steps": steps,
        "rounds": rounds,
        "pictures": "drawn" if data is None else "training photographs",
        "cores": os.cpu_count(),
        "load": round(os.getloadavg()[0], 1),
    }


def _rates(config: TrainingConfig, root: Path, rounds: int) -> dict[str, list[float]]:
    quiet = Console(quiet=True)
    data = root / "data"
    ways: dict[str, Callable[[Path], int]] = {
        "loop": lambda run: launch.alone(config, data, run, resume=False, console=quiet),
        "one_worker": lambda run: launch.spread(config, data, run, workers=1, resume=False, console=quiet),
        "two_workers": lambda run: launch.spread(config, data, run, workers=2, resume=False, console=quiet),
    }
    rates: dict[str, list[float]] = {name: [] for name in ways}
    for number in range(rounds):
        for name, way in ways.items():
            run = root / "runs" / f"{name}-{number}"
            way(run)
            rates[name].append(_rate(run))
    return rates


def _rate(run: Path) -> float:
    """Steps a second, waiting for batches included, behind the warm-up."""
    counted = [entry for entry in loop.log(run) if "loss" in entry and entry["t"] > WARM_UP]
    seconds = sum(float(entry[clock]) for entry in counted for clock in loop.CLOCKS)
    return len(counted) / seconds


def _ratio(these: list[float], those: list[float]) -> float:
    """Median over rounds of what was measured one after the other."""
    return round(median(this / that for this, that in zip(these, those, strict=True)), 3)


def _place(to: Path, data: Path | None) -> None:
    """Development data without validation photographs, which would be validated on at the end of each run."""
    (to / "photos").mkdir(parents=True)
    if data is not None:
        (to / "photos" / "train").symlink_to((data / "photos" / "train").resolve())
        (to / "weights").symlink_to((data / "weights").resolve())
        return
    write_drawn(to / "photos" / "train", split.load().train[:DRAWN])
    (to / "weights").mkdir()
    # a step costs the same whatever the trunk's weights are
    state = Lite0().state_dict()
    save_file({theirs: state[ours].half() for ours, theirs in lite0_keys()}, to / "weights" / recipe.LITE0_FILE)
