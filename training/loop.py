"""The bare loop around a plain step: batches, checkpoints, resuming, validation and a JSONL log.

A run is a folder: ``log.jsonl`` (one line a step, one a validation), ``last.pt`` (everything the next step depends on:
weights, optimizer, random state, data position), ``best.pt`` (the same, at the best validation so far). Step ``t``
after a resume is the step that would have been, to the bit.
"""

from __future__ import annotations

import json
import os
import pickle
import time
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar

import torch
from pydantic import BaseModel, ConfigDict, Field

from stemma.errors import Conflict, Corrupt, NotFound

B = TypeVar("B")
B_contra = TypeVar("B_contra", contravariant=True)
LAST, BEST, LOG, CONFIG = "last.pt", "best.pt", "log.jsonl", "config.json"
Entry = dict[str, Any]
"""One line of the log: ``t`` with a step's loss, its parts and seconds, or ``t`` with ``validation``."""
CLOCKS = ("step_s", "data_s")
"""What an entry says of time: seconds of the step, and of waiting for its batch. All else is the same in every run."""


class Step(Protocol[B_contra]):
    """What is trained. A step depends on its state, the batch and ``t``, and on nothing else."""

    def step(self, batch: B_contra, t: int) -> dict[str, float]: ...

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state: dict[str, Any]) -> None: ...


class LoopSettings(BaseModel):
    """When a run saves and validates, in steps."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    checkpoint_every: int = Field(100, ge=1)
    validate_every: int = Field(200, ge=1)
    log_every: int = Field(1, ge=1)


class Run(Generic[B]):
    """One named run of a step over batches ``0 .. steps - 1``."""

    def __init__(self, folder: Path, settings: LoopSettings | None = None, *, writes: bool = True) -> None:
        """``writes=False`` is a worker beside the one that validates, logs and saves for all of them."""
        self.folder, self.settings, self._writes = folder, settings or LoopSettings(), writes
        self._best = float("-inf")

    def start(self, step: Step[B], config: dict[str, Any], *, resume: bool) -> int:
        """The step to go on with: 0 for a new run, else what ``last.pt`` says, with its state loaded.

        Raises ``Conflict`` for a name that is taken or a resume under another config, ``NotFound`` where there is
        nothing to resume: a run is never continued, nor overwritten, by accident.
        """
        if not resume:
            self.create(config)
            return 0
        return self._restore(step, config)

    def create(self, config: dict[str, Any]) -> None:
        """The folder of a new run. Raises ``Conflict`` for a name that is taken."""
        if self.folder.exists():
            raise Conflict("there is a run of this name; resume it or choose another name", subject=str(self.folder))
        self.folder.mkdir(parents=True)
        (self.folder / CONFIG).write_text(json.dumps(config, indent=1) + "\n", encoding="utf-8")

    def reopen(self, config: dict[str, Any]) -> None:
        """Check that there is a run to go on with, under this config. Raises ``NotFound`` and ``Conflict``."""
        path = self.folder / CONFIG
        if not path.exists():
            raise NotFound("there is no run of this name to resume", subject=str(self.folder))
        self._same(json.loads(path.read_text(encoding="utf-8")), config)

    def _same(self, started: dict[str, Any], config: dict[str, Any]) -> None:
        # an older run may hold more: what is not asked for is not used
        changed = sorted(key for key in config if config[key] != started.get(key))
        if changed:
            raise Conflict(
                f"the run was started with another {', '.join(changed)}; start a new run", subject=str(self.folder)
            )

    def begin(self, step: Step[B], config: dict[str, Any]) -> None:
        """Save the state before step 0, for what starts from it: workers, or a resume before the first checkpoint."""
        self._save(LAST, step, 0, config)

    def join(self, step: Step[B], config: dict[str, Any]) -> int:
        """As ``start``, for a run that was created: from ``last.pt``, or from 0 before there is one."""
        if (self.folder / LAST).exists():
            return self._restore(step, config)
        if self._writes:
            self._truncate(0)
        return 0

    def _restore(self, step: Step[B], config: dict[str, Any]) -> int:
        state = load(self.folder / LAST)
        self._same(state["config"], config)
        step.load_state_dict(state["step"])
        torch.set_rng_state(state["rng"])
        self._best = state["best"]
        if self._writes:
            self._truncate(state["t"])
        return int(state["t"])

    def go(
        self,
        step: Step[B],
        batches: Iterator[B],
        *,
        config: dict[str, Any],
        first: int,
        steps: int,
        validate: Callable[[], dict[str, float]] | None = None,
        told: Callable[[Entry], None] = lambda _: None,
        stop: Callable[[], bool] = lambda: False,
    ) -> int:
        """Run to ``steps`` or until ``stop``; batches start at ``first``. Returns the number of steps done in all.

        ``told`` hears of every step and validation, from the worker that writes.
        """
        t = first
        while t < steps and not stop():
            asked = time.perf_counter()
            batch = next(batches)
            began = time.perf_counter()
            said = step.step(batch, t)
            t += 1
            if self._writes:
                clocks = (time.perf_counter() - began, began - asked)
                entry = {"t": t, **said} | {name: round(s, 4) for name, s in zip(CLOCKS, clocks, strict=True)}
                self._keep(step, entry, config, steps, validate, told)
        if self._writes and first < t < steps and t % self.settings.checkpoint_every:
            self._save(LAST, step, t, config)
        return t

    def _keep(
        self,
        step: Step[B],
        entry: Entry,
        config: dict[str, Any],
        steps: int,
        validate: Callable[[], dict[str, float]] | None,
        told: Callable[[Entry], None],
    ) -> None:
        """Log a step, validate and save where it is time to."""
        t = entry["t"]
        if t % self.settings.log_every == 0:
            self._log(entry)
        told(entry)
        if validate is not None and (t == steps or t % self.settings.validate_every == 0):
            found = validate()
            self._log({"t": t, "validation": found})
            told({"t": t, "validation": found})
            if found["score"] > self._best:
                self._best = found["score"]
                self._save(BEST, step, t, config)
        if t == steps or t % self.settings.checkpoint_every == 0:
            self._save(LAST, step, t, config)

    def _save(self, name: str, step: Step[B], t: int, config: dict[str, Any]) -> None:
        state = {
            "t": t,
            "step": step.state_dict(),
            "rng": torch.get_rng_state(),
            "best": self._best,
            "config": config,
        }
        # written beside and renamed: a kill leaves the checkpoint before, never half of one
        beside = self.folder / (name + ".new")
        with beside.open("wb") as out:
            torch.save(state, out)
            out.flush()
            os.fsync(out.fileno())
        beside.replace(self.folder / name)

    def _log(self, entry: Entry) -> None:
        with (self.folder / LOG).open("a", encoding="utf-8") as log:
            log.write(json.dumps(entry) + "\n")

    def _truncate(self, t: int) -> None:
        """Drop what the log says of steps that will be made again."""
        path = self.folder / LOG
        if path.exists():
            kept = [line for line in path.read_text(encoding="utf-8").splitlines() if _step_of(line) <= t]
            path.write_text("".join(line + "\n" for line in kept), encoding="utf-8")


def _step_of(line: str) -> float:
    try:
        return float(json.loads(line)["t"])
    except (ValueError, KeyError):
        # the line that a kill cut off
        return float("inf")


def log(folder: Path) -> list[Entry]:
    """What a run's log says, whole lines alone: the last one may be being written."""
    path = folder / LOG
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    return [json.loads(line) for line in lines if _step_of(line) < float("inf")]


def load(path: Path) -> dict[str, Any]:
    """A checkpoint, on the CPU. Raises ``NotFound`` where there is none and ``Corrupt`` for one that cannot be read."""
    if not path.exists():
        raise NotFound("there is no checkpoint to resume from", subject=str(path))
    # a torn file is no archive; torch would take it for its oldest format and fail in any of ten ways
    if not zipfile.is_zipfile(path):
        raise Corrupt("the checkpoint is torn; start from another one", subject=str(path))
    try:
        state: dict[str, Any] = torch.load(path, weights_only=True, map_location="cpu")
    except (RuntimeError, pickle.UnpicklingError) as error:
        raise Corrupt(f"the checkpoint cannot be read: {error}", subject=str(path)) from error
    return state
