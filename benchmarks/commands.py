"""``stemma bench NAME``: one JSON object a benchmark. A ratio that misses its bar makes the exit code 1."""

from __future__ import annotations

import json
from dataclasses import dataclass
from importlib import import_module
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


BENCHMARKS = {
    "search": Benchmark(module="benchmarks.search", meaning="one embedded search, taken apart", bars={}),
    "fanout": Benchmark(
        module="benchmarks.fanout",
        meaning="64 concurrent searches on two hosts: shared calls against one each",
        bars={"coalesced_vs_single": 3.0},
    ),
}


def bench(argv: list[str]) -> int:
    """``stemma bench NAME… | all``."""
    return run(_bench, argv, name="bench")


def _bench(
    names: Annotated[list[str], typer.Argument(help=f"all, or of: {', '.join(BENCHMARKS)}", metavar="NAME…")],
    as_json: Annotated[bool, typer.Option("--json", help="one JSON object a benchmark")] = False,
) -> int:
    """Measure speed as ratios that hold on a busy machine; exit code 1 when a bar is missed."""
    chosen = list(BENCHMARKS) if names == ["all"] else names
    for name in chosen:
        if name not in BENCHMARKS:
            raise BadRequest(f"there is no benchmark {name!r}; there is all, {', '.join(BENCHMARKS)}", subject=name)
    missed: list[str] = []
    for name in chosen:
        with notes().status(f"{name}: {BENCHMARKS[name].meaning}"):
            figures = import_module(BENCHMARKS[name].module).measure()
        under = [key for key, bar in BENCHMARKS[name].bars.items() if figures[key] < bar]
        missed += [f"{name}: {key} is {figures[key]}, the bar is {BENCHMARKS[name].bars[key]}" for key in under]
        _show({"benchmark": name, **figures}, as_json=as_json)
    for line in missed:
        notes().print(f"[red]{line}[/red]")
    return 1 if missed else 0


def _show(figures: dict[str, Any], *, as_json: bool) -> None:
    if as_json:
        print(json.dumps(figures), flush=True)
        return
    table = Table(box=None, show_header=False, pad_edge=False)
    for key, value in figures.items():
        table.add_row(key, value if isinstance(value, str) else json.dumps(value))
    Console().print(table)
