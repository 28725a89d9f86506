"""``stemma bench NAME``: one JSON object a benchmark. A ratio that misses its bar makes the exit code 1."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from stemma.errors import BadRequest
from stemma.terminal import notes, run


@dataclass(frozen=True, slots=True, kw_only=True)
class Benchmark:
    module: str
    meaning: str
    bars: dict[str, float]
    """Figures that must reach at least so much."""
    caps: dict[str, float] = field(default_factory=dict)
    """Figures that may reach at most so much."""
    takes_data: bool = False
    """Whether it measures on the development data's photographs, where ``--data`` gives them."""


BENCHMARKS = {
    "search": Benchmark(module="benchmarks.search", meaning="one embedded search, taken apart", bars={}),
    "fanout": Benchmark(
        module="benchmarks.fanout",
        meaning="64 concurrent searches on two hosts: shared calls against one each",
        bars={"coalesced_vs_single": 3.0},
    ),
    "objects": Benchmark(
        module="benchmarks.objects",
        meaning="searching by objects: memory of 100 million images, time against whole images",
        bars={},
    ),
    "train": Benchmark(
        module="benchmarks.train",
        meaning="training steps: the bare loop, one Ray Train worker, two",
        bars={"ray_vs_loop": 0.95, "two_workers_vs_one": 1.4},
        takes_data=True,
    ),
    "comparator": Benchmark(
        module="benchmarks.comparator",
        meaning="one pair compared, against dense flow at 224 px",
        bars={},
        caps={"ratio": 0.4},
        takes_data=True,
    ),
}


def bench(argv: list[str]) -> int:
    """``stemma bench NAME… | all``."""
    return run(_bench, argv, name="bench")


def _bench(
    names: Annotated[list[str], typer.Argument(help=f"all, or of: {', '.join(BENCHMARKS)}", metavar="NAME…")],
    as_json: Annotated[bool, typer.Option("--json", help="one JSON object a benchmark")] = False,
    data: Annotated[
        Path | None, typer.Option(help="development data: its training photographs instead of drawn pictures")
    ] = None,
) -> int:
    """Measure speed as ratios that hold on a busy machine; exit code 1 when a bar is missed."""
    chosen = list(BENCHMARKS) if names == ["all"] else names
    for name in chosen:
        if name not in BENCHMARKS:
            raise BadRequest(f"there is no benchmark {name!r}; there is all, {', '.join(BENCHMARKS)}", subject=name)
    missed: list[str] = []
    for name in chosen:
        with notes().status(f"{name}: {BENCHMARKS[name].meaning}"):
            given = {"data": data} if BENCHMARKS[name].takes_data else {}
            figures = import_module(BENCHMARKS[name].module).measure(**given)
        missed += _missed(name, figures)
        _show({"benchmark": name, **figures}, as_json=as_json)
    for line in missed:
        notes().print(f"[red]{line}[/red]")
    return 1 if missed else 0


def _missed(name: str, figures: dict[str, Any]) -> list[str]:
    """A line for every bar that was missed."""
    bars, caps = BENCHMARKS[name].bars, BENCHMARKS[name].caps
    under = [f"{name}: {key} is {figures[key]}, the bar is {bar}" for key, bar in bars.items() if figures[key] < bar]
    over = [f"{name}: {key} is {figures[key]}, at most {cap}" for key, cap in caps.items() if figures[key] > cap]
    return under + over


def _show(figures: dict[str, Any], *, as_json: bool) -> None:
    if as_json:
        print(json.dumps(figures), flush=True)
        return
    table = Table(box=None, show_header=False, pad_edge=False)
    for key, value in figures.items():
        table.add_row(key, value if isinstance(value, str) else json.dumps(value))
    Console().print(table)
