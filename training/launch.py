"""Start a training run: ``python -m training.launch --config FILE --data DIR --run NAME [--workers N] [--resume]``.

``--workers 0`` (the default) is the bare loop in this process; N >= 1 puts the same step on N Ray Train workers, on
one machine or on many that see the same ``--runs`` and ``--data`` folders. This is the only file of training that
imports Ray.

The run's folder is the truth in both: every worker starts from its ``last.pt``, the first one alone writes it. So a run
may lose a worker (Ray Train starts the group again), or all of them, or change their number, and goes on.
"""

from __future__ import annotations

import argparse
import signal
import sys
from pathlib import Path
from typing import Any

import cv2
import torch

from stemma import terminal
from stemma.errors import BadRequest, StemmaError, Unavailable
from training import loop, recipe
from training.loop import Run
from training.recipe import TrainingConfig
from training.workers import Alone, Group

FAILURES_MAX = 3
"""Restarts of a group of workers before a run is given up; it can be resumed."""
RAY_FOLDER = "ray"
"""Below the run's own folder: what Ray Train keeps for itself."""


def alone(config: TrainingConfig, data: Path, folder: Path, *, resume: bool, begin: Path | None = None) -> int:
    """The bare loop, in this process; SIGTERM ends it behind a checkpoint. Returns the number of steps done in all.

    ``begin`` is a checkpoint whose weights a new run starts from.
    """
    _one_thread()
    stopped: list[int] = []
    before = signal.signal(signal.SIGTERM, lambda number, _: stopped.append(number))
    parts, plain = recipe.parts(config, data, Alone()), recipe.describe(config)
    run: Run[Any] = Run(folder, config.loop)
    first = run.start(parts.step, plain, resume=resume)
    if begin is not None and not resume:
        terminal.notes().print(f"{parts.begin(begin)} tensors from {begin}")
    try:
        with terminal.progress(folder.name, parts.steps - first) as moved:
            return run.go(
                parts.step,
                parts.batches(first),
                config=plain,
                first=first,
                steps=parts.steps,
                validate=parts.validate,
                moved=moved,
                stop=lambda: bool(stopped),
            )
    finally:
        signal.signal(signal.SIGTERM, before)
        parts.close()


def spread(config: TrainingConfig, data: Path, folder: Path, *, workers: int, resume: bool) -> int:
    """The same steps on ``workers`` Ray Train workers. Returns the number of steps done in all.

    Raises ``BadRequest`` for a batch that cannot be shared, ``Conflict`` and ``NotFound`` as the bare loop does, and
    ``Unavailable`` when the workers failed more than ``FAILURES_MAX`` times; the run can then be resumed.
    """
    batch = config.comparator.batch if config.network == "comparator" else config.encoder.batch
    if batch % workers:
        raise BadRequest(f"a batch of {batch} cannot be shared by {workers} workers", subject=f"{config.network}.batch")
    run: Run[Any] = Run(folder, config.loop)
    if resume:
        run.reopen(recipe.describe(config))
    else:
        run.create(recipe.describe(config))
    from ray.train import FailureConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchConfig, TorchTrainer

    attempts = len(list((folder / RAY_FOLDER).glob("*"))) if (folder / RAY_FOLDER).exists() else 0
    trainer = TorchTrainer(
        _work,
        train_loop_config={"config": recipe.describe(config), "data": str(data), "folder": str(folder.resolve())},
        scaling_config=ScalingConfig(num_workers=workers, resources_per_worker={"CPU": 1}),
        torch_config=TorchConfig(backend="gloo"),
        # a name of its own each time: Ray Train would otherwise resume a finished run's state by its name alone
        run_config=RunConfig(
            name=f"attempt-{attempts}",
            storage_path=str((folder / RAY_FOLDER).resolve()),
            failure_config=FailureConfig(max_failures=FAILURES_MAX),
        ),
    )
    result = trainer.fit()
    if result.error is not None:
        raise Unavailable(f"the workers failed: {result.error}; resume the run", subject=folder.name)
    return int(loop.load(folder / loop.LAST)["t"])


def _work(task: dict[str, Any]) -> None:
    """What each Ray Train worker does: the bare loop's run, in step with the others."""
    _one_thread()
    config, folder = TrainingConfig.model_validate(task["config"]), Path(task["folder"])
    group = Group()
    parts, plain = recipe.parts(config, Path(task["data"]), group), recipe.describe(config)
    run: Run[Any] = Run(folder, config.loop, writes=group.rank == 0)
    first = run.join(parts.step, plain)
    try:
        run.go(
            parts.step,
            parts.batches(first),
            config=plain,
            first=first,
            steps=parts.steps,
            validate=parts.validate,
        )
    finally:
        parts.close()


def _one_thread() -> None:
    """One worker computes on one thread: two workers are faster than two threads (1.67 to 1.37 times one)."""
    torch.set_num_threads(1)
    cv2.setNumThreads(1)


def main(argv: list[str]) -> int:
    """The command; a refusal is one line and exit code 2, before Ray is started."""
    parser = argparse.ArgumentParser(prog="training.launch", description="Train a network.")
    parser.add_argument("--config", type=Path, required=True)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--run", required=True, help="name of the run")
    parser.add_argument("--runs", type=Path, default=Path("out/runs"))
    parser.add_argument("--workers", type=int, default=0, help="Ray Train workers; 0: the bare loop")
    parser.add_argument("--resume", action="store_true")
    parser.add_argument("--begin", type=Path, help="checkpoint whose weights a new run starts from")
    parser.add_argument("--set", action="append", default=[], dest="overrides", metavar="a.b=c")
    args = parser.parse_args(argv)
    folder = args.runs / args.run
    try:
        config = recipe.read(args.config, args.overrides)
        if args.workers == 0:
            alone(config, args.data, folder, resume=args.resume, begin=args.begin)
        elif args.begin is not None:
            raise BadRequest("--begin is for the bare loop; start there, then resume with workers", subject="--begin")
        else:
            spread(config, args.data, folder, workers=args.workers, resume=args.resume)
    except StemmaError as error:
        print(f"{error.detail} [{error.subject}]", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
