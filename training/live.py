"""What a person sees of a run while it goes: a bar with loss, speed and what is left, and TensorBoard's event files.

Both are told the entries of the run's log (``training.loop``), by the loop itself or, where the steps are made by Ray's
workers, by a thread that follows the log.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, Task, TextColumn, TimeRemainingColumn
from rich.text import Text

from stemma import terminal
from training import loop
from training.loop import Entry

EVENTS = "tensorboard"
"""Below the run's own folder."""
SPEED_WINDOW_S = 60.0
FOLLOW_S = 0.5
LINE_EVERY = 50
"""Steps between two lines where standard error is no terminal, and a bar would not move."""


class _Speed(ProgressColumn):
    """Items a second."""

    def render(self, task: Task) -> Text:
        return Text(_speed(task), style="progress.data.speed")


def _speed(task: Task) -> str:
    if task.speed is None:
        return "- /s"
    return f"{task.speed * task.fields['items']:.1f} {task.fields['unit']}/s"


class Bar:
    """The bar of one run; where there is no terminal, a line now and then instead."""

    def __init__(self, label: str, *, first: int, steps: int, items: int, unit: str, console: Console | None = None):
        """``items`` of a ``unit`` make one step."""
        self._console = console or terminal.notes()
        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("loss {task.fields[loss]}"),
            _Speed(),
            TimeRemainingColumn(),
        )
        self._bar = Progress(
            *columns,
            console=self._console,
            speed_estimate_period=SPEED_WINDOW_S,
            disable=not self._console.is_terminal,
        )
        self._task = self._bar.add_task(label, total=steps, completed=first, loss="-", items=items, unit=unit)

    def __enter__(self) -> Self:
        self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.stop()

    def show(self, entry: Entry) -> None:
        """What the log says of a step or a validation."""
        if "validation" in entry:
            said = " · ".join(f"{name} {value:.3f}" for name, value in entry["validation"].items() if name != "pairs")
            self._console.print(f"[dim]{entry['t']:>6}[/dim]  {said}", highlight=False)
            return
        self._bar.update(self._task, completed=entry["t"], loss=f"{entry['loss']:.4f}")
        if not self._console.is_terminal and entry["t"] % LINE_EVERY == 0:
            task = self._bar.tasks[0]
            left = task.time_remaining
            rest = "" if left is None else f", {left / 60:.0f} min left"
            line = f"{entry['t']:>6} of {task.total}  loss {task.fields['loss']}  {_speed(task)}{rest}"
            self._console.print(line, highlight=False)


class Events:
    """TensorBoard's event files of a run: ``tensorboard --logdir RUNS``."""

    def __init__(self, folder: Path, *, first: int) -> None:
        """A resumed run's events from step ``first`` on are made anew."""
        # half a second, which a refused command must not wait
        from torch.utils.tensorboard import SummaryWriter

        self._writer = SummaryWriter(folder / EVENTS, purge_step=first)

    def write(self, entry: Entry) -> None:
        t, kind = entry["t"], "validation" if "validation" in entry else "train"
        for name, value in (entry["validation"] if kind == "validation" else entry).items():
            if name != "t":
                self._writer.add_scalar(f"{kind}/{name}", value, t)

    def close(self) -> None:
        self._writer.close()


class Follower:
    """Tells ``told`` every new entry of a log that another process writes."""

    def __init__(self, folder: Path, told: Callable[[Entry], None]) -> None:
        self._folder, self._told = folder, told
        self._over = threading.Event()
        # what a resumed run's log says already is known
        self._at = self._size()
        self._thread = threading.Thread(target=self._follow, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._over.set()
        self._thread.join()
        self.look()

    def _follow(self) -> None:
        while not self._over.wait(FOLLOW_S):
            self.look()

    def look(self) -> None:
        """Tell what is new since the last look."""
        # a worker that went back to its checkpoint has cut the log
        self._at = min(self._at, self._size())
        if self._at == self._size():
            return
        begin = max(0, self._at - 1)
        with (self._folder / loop.LOG).open("rb") as log:
            log.seek(begin)
            whole, newline, _ = log.read().rpartition(b"\n")
        self._at = begin + len(whole) + len(newline)
        first, *lines = whole.split(b"\n")
        # what precedes the place is the end of a line, unless the log was cut and has grown past it since
        for line in lines if begin else [first, *lines]:
            if line:
                self._told(json.loads(line))

    def _size(self) -> int:
        path = self._folder / loop.LOG
        return path.stat().st_size if path.exists() else 0
