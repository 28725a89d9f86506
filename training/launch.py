"""Where a run's steps are made: the bare loop in this process, or Ray Train's workers on one machine or many.

This is the only file of training that imports Ray. The run's folder is the truth in both: every worker starts from its
``last.pt``, the first one alone writes it. So a run may lose a worker (Ray Train starts the group again), or all of
them, or change their number, and goes on. Workers on many machines need ``folder`` and ``data`` on a file system that
all of them see.
"""

from __future__ import annotations

import os
import secrets
import signal
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import cv2
import torch
from rich.console import Console

from stemma.errors import BadRequest, Unavailable
from training import live, loop, recipe
from training.finish import finish
from training.live import Bar, Events
from training.loop import Entry, Run
from training.recipe import Parts, TrainingConfig
from training.workers import Alone, Group

FAILURES_MAX = 3
"""Restarts of a group of workers before a run is given up; it can be resumed."""
RAY_FOLDER = "ray"
"""Below the run's own folder: what Ray Train keeps for itself."""
BEGIN_SHARE_MIN = 0.5
"""Of a network's tensors must fit for a run to begin from other weights; the two networks share part of a trunk."""


def alone(
    config: TrainingConfig,
    data: Path,
    folder: Path,
    *,
    resume: bool,
    begin: str | None = None,
    gpus: bool = False,
    console: Console | None = None,
) -> int:
    """The bare loop, in this process; SIGTERM ends it behind a checkpoint. Returns the number of steps done in all.

    ``begin`` names weights that a new run starts from (``recipe.starting``).
    """
    _one_thread()
    if gpus and not torch.cuda.is_available():
        raise BadRequest("there is no GPU here; leave --gpus out", subject="--gpus")
    stopped: list[int] = []
    before = signal.signal(signal.SIGTERM, lambda number, _: stopped.append(number))
    parts, plain = recipe.parts(config, data, Alone(), device="cuda" if gpus else "cpu"), recipe.describe(config)
    run: Run[Any] = Run(folder, config.loop)
    try:
        first = _again(run, parts, plain) if resume else _start(run, parts, plain, begin)
        with bar(config, folder, first, console) as shown, closing(Events(folder, first=first)) as events:

            def told(entry: Entry) -> None:
                shown.show(entry)
                events.write(entry)

            done = run.go(
                parts.step,
                parts.batches(first),
                config=plain,
                first=first,
                steps=parts.steps,
                validate=parts.validate,
                told=told,
                stop=lambda: bool(stopped),
            )
        finish(config, parts, folder, whole=done == parts.steps)
        return done
    finally:
        signal.signal(signal.SIGTERM, before)
        parts.close()


def _again(run: Run[Any], parts: Parts, plain: dict[str, Any]) -> int:
    run.reopen(plain)
    return run.join(parts.step, plain)


def _start(run: Run[Any], parts: Parts, plain: dict[str, Any], begin: str | None) -> int:
    """A new run; with ``begin`` its first checkpoint is what it begins from."""
    fitted = None if begin is None else parts.begin(begin)
    tensors = len(parts.step.state_dict()["network"])
    if fitted is not None and fitted < BEGIN_SHARE_MIN * tensors:
        raise BadRequest(f"only {fitted} of {tensors} tensors fit; these are weights of something else", subject=begin)
    first = run.start(parts.step, plain, resume=False)
    if fitted is not None:
        run.begin(parts.step, plain)
    return first


def bar(config: TrainingConfig, folder: Path, first: int, console: Console | None = None) -> Bar:
    """The bar of a run: pairs a second, or views a second. ``console`` is standard error unless given."""
    items, unit = recipe.items(config)
    return Bar(folder.name, first=first, steps=recipe.steps(config), items=items, unit=unit, console=console)


def spread(
    config: TrainingConfig,
    data: Path,
    folder: Path,
    *,
    workers: int,
    resume: bool,
    begin: str | None = None,
    gpus: bool = False,
    address: str | None = None,
    console: Console | None = None,
) -> int:
    """The same steps on ``workers`` Ray Train workers. Returns the number of steps done in all.

    Ray is started for this run unless it runs already or ``address`` names a cluster to join. Raises ``BadRequest`` for
    a batch that cannot be shared, ``Conflict`` and ``NotFound`` as the bare loop does, and ``Unavailable`` when the
    workers failed more than ``FAILURES_MAX`` times; the run can then be resumed.
    """
    items = getattr(config, config.network).batch
    if items % workers:
        raise BadRequest(f"a batch of {items} cannot be shared by {workers} workers", subject=f"{config.network}.batch")
    if gpus and address is None and torch.cuda.device_count() < workers:
        raise BadRequest(f"{torch.cuda.device_count()} GPUs are here for {workers} workers", subject="--gpus")
    run, plain = Run[Any](folder, config.loop), recipe.describe(config)
    if resume:
        run.reopen(plain)
    elif begin is not None:
        parts = recipe.parts(config, data, Alone())
        _start(run, parts, plain, begin)
    else:
        run.create(plain)
    first = int(loop.load(folder / loop.LAST)["t"]) if (folder / loop.LAST).exists() else 0
    with (
        ray_for(folder, workers, address),
        bar(config, folder, first, console) as shown,
        live.Follower(folder, shown.show),
    ):
        _fit(config, data, folder, workers=workers, gpus=gpus)
    return int(loop.load(folder / loop.LAST)["t"])


def _fit(config: TrainingConfig, data: Path, folder: Path, *, workers: int, gpus: bool) -> None:
    from ray.train import FailureConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchConfig, TorchTrainer

    attempts = len(list((folder / RAY_FOLDER).glob("attempt-*")))
    trainer = TorchTrainer(
        _work,
        train_loop_config={
            "config": recipe.describe(config),
            "data": str(data.resolve()),
            "folder": str(folder.resolve()),
            "gpus": gpus,
        },
        scaling_config=ScalingConfig(
            num_workers=workers, use_gpu=gpus, resources_per_worker={"CPU": 1} | ({"GPU": 1} if gpus else {})
        ),
        torch_config=TorchConfig(backend="nccl" if gpus else "gloo"),
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


@contextmanager
def ray_for(folder: Path, workers: int, address: str | None = None) -> Iterator[None]:
    """A Ray that ``workers`` fit into: the one that runs in this process, the one at ``address``, or one of our own,
    which ends with the block. Raises ``Unavailable`` when none answers at ``address``."""
    if address is None:
        os.environ.update(_environment(folder))
    import ray

    if ray.is_initialized():
        yield
        return
    # without "local" Ray joins whatever cluster it finds on the machine
    own = {"address": "local", "num_cpus": max(workers + 1, os.cpu_count() or 1), "include_dashboard": False}
    try:
        ray.init(**(own if address is None else {"address": address}), log_to_driver=False, configure_logging=False)
    except ConnectionError as error:
        raise Unavailable(f"no Ray cluster answers at {address}: {error}", subject="--address") from error
    try:
        yield
    finally:
        ray.shutdown()


def _environment(folder: Path) -> dict[str, str]:
    """What a process that starts Ray must have in its environment before it imports it; a caller's own mode stays."""
    found = {
        "RAY_USAGE_STATS_ENABLED": "0",
        "OMP_NUM_THREADS": "1",
        "RAY_worker_niceness": "0",  # at nice 15 whatever else is on the machine starves the workers
    }
    if "RAY_AUTH_MODE" not in os.environ:
        # Ray would write a token into the user's home on its own
        token = folder / RAY_FOLDER / "auth_token"
        token.parent.mkdir(parents=True, exist_ok=True)
        if not token.exists():
            token.touch(mode=0o600)
            token.write_text(secrets.token_hex(32))
        found |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(token.resolve())}
    return found


def _work(task: dict[str, Any]) -> None:
    """What each Ray Train worker does: the bare loop's run, in step with the others."""
    _one_thread()
    config, folder = TrainingConfig.model_validate(task["config"]), Path(task["folder"])
    group, device = Group(), torch.device("cpu")
    if task["gpus"]:
        from ray.train.torch import get_device

        device = get_device()
    parts, plain = recipe.parts(config, Path(task["data"]), group, device=device), recipe.describe(config)
    writes = group.rank == 0
    run: Run[Any] = Run(folder, config.loop, writes=writes)
    first = run.join(parts.step, plain)
    events = Events(folder, first=first) if writes else None
    try:
        run.go(
            parts.step,
            parts.batches(first),
            config=plain,
            first=first,
            steps=parts.steps,
            validate=parts.validate,
            told=events.write if events else lambda _: None,
        )
        if writes:
            finish(config, parts, folder, whole=True)
    finally:
        parts.close()
        if events:
            events.close()


def _one_thread() -> None:
    """One worker computes on one thread: two workers are faster than two threads (1.67 to 1.37 times one)."""
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
