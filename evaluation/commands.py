"""``stemma evaluate quick | int8`` and ``stemma demo`` at a terminal."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from evaluation.demo import CORRECT_SHARE_MIN, Outcome, Reply
from evaluation.demo import demo as run_demo
from evaluation.hosting import hosted
from evaluation.quick import RETRIEVED, Codec
from stemma.config import load
from stemma.errors import BadRequest
from stemma.terminal import VERDICT_STYLES, run

SetOption = Annotated[Path, typer.Option("--set", help="folder that make_quick.py wrote")]
ConfigOption = Annotated[Path | None, typer.Option("--config", help="YAML file of settings")]
JsonOption = Annotated[bool, typer.Option("--json", help="one JSON object on standard output")]
PIPE_COLUMNS = 120


def evaluate(argv: list[str]) -> int:
    """``stemma evaluate quick | int8 --set DIR``."""
    measures: dict[str, Callable[..., int]] = {"quick": _quick, "int8": _int8}
    name, rest = (argv[0], argv[1:]) if argv and argv[0] in measures else ("", argv)
    if name:
        return run(measures[name], rest, name=f"evaluate {name}")
    return run(_evaluate, rest, name="evaluate")


def demo(argv: list[str]) -> int:
    """``stemma demo [--photos DIR]``."""
    return run(_demo, argv, name="demo")


def _evaluate(measure: Annotated[str, typer.Argument(help="quick or int8", metavar="MEASURE")]) -> int:
    """Measure stemma on queries with known answers.

    quick: finding the original, over HTTP, with its speed. int8: what rounding the embeddings costs.
    Each takes --set DIR; `stemma evaluate quick --help` tells more.
    """
    raise BadRequest(f"evaluate has quick and int8, not {measure!r}", subject=measure)


def _quick(
    folder: SetOption,
    codec: Annotated[Codec, typer.Option(help="what makes the shortlist: exact vectors or 16-byte codes")] = "auto",
    url: Annotated[str | None, typer.Option(help="fill and ask a collection that is served already")] = None,
    embedded: Annotated[bool, typer.Option("--embedded", help="ask in this process, without Ray or HTTP")] = False,
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> int:
    """Ask the fixed queries of a rendered set of a fresh collection, and print the figures."""
    from evaluation.quick import quick

    if url is not None and embedded:
        raise BadRequest("--url asks over HTTP, --embedded does not: give one of them", subject="--embedded")
    result = quick(folder, load(config), codec=codec, hosting=hosted, url=url, embedded=embedded)
    if as_json:
        print(json.dumps(result))
    else:
        _print_quick(result)
    return 0


def _int8(folder: SetOption, config: ConfigOption = None, as_json: JsonOption = False) -> int:
    """What int8 embeddings cost against float32: the same search with both, before verification."""
    from evaluation.codes import int8_cost

    result = int8_cost(folder, load(config))
    if as_json:
        print(json.dumps(result))
        return 0
    table = _table("queries", "IR@1 float32", "IR@1 int8", "IR@100 float32", "IR@100 int8", "n")
    for name in RETRIEVED:
        both = [result["float32"][name], result["int8"][name]]
        cells = [f"{each[depth]['share']:.3f}" for depth in ("IR@1", "IR@100") for each in both]
        table.add_row(name, *cells, str(both[0]["n"]))
    _console().print(table)
    return 0


def _print_quick(result: dict[str, Any]) -> None:
    table = _table("queries", "n", "IR@1", "IR@10", "IR@100", "found")
    for name in RETRIEVED:
        row, found = result["retrieval"][name], result["found"][name]
        table.add_row(name, str(row["n"]), *(_share(row[f"IR@{k}"]) for k in (1, 10, 100)), _share(found))
    mirrored = result["mirrored"]
    table.add_row("mirrored", str(mirrored["n"]), _share(mirrored["IR@1"]))
    console = _console()
    console.print(table)
    console.print(
        f"\n{result['strangers_found']} strangers found. An answer takes {result['p50_ms']:.0f} ms (median of "
        f"{result['queries']} among {result['images']} images), embedded {result['embedded_p50_ms']:.0f} ms: "
        f"{result['search_in_passes']:.1f} forward passes of {result['encoder_ms']:.0f} ms. "
        f"{result['seconds']:.0f} s in all.",
        highlight=False,
    )


def _share(value: dict[str, Any]) -> str:
    return f"{value['share']:.3f} [dim]{value['low']:.3f} to {value['high']:.3f}[/dim]"


def _demo(
    photos: Annotated[Path | None, typer.Option(help="your own folder of pictures instead")] = None,
    out: Annotated[Path, typer.Option(help="where the reports and the collection go")] = Path("out/demo"),
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> int:
    """Ingest a small collection, ask it embedded and on Ray, and compare.

    Exit code 1 when too few answers are right or the two ways disagree.
    """
    outcome = run_demo(photos, out, load(config), hosted)
    if as_json:
        print(json.dumps(outcome.figures()))
    else:
        _print_demo(outcome, out)
    return 0 if outcome.passed else 1


def _print_demo(outcome: Outcome, out: Path) -> None:
    table = _table("query", "what it was", "verdict", "original", "ms", "ms HTTP")
    for reply in outcome.replies:
        table.add_row(*_row(reply, outcome))
    console, figures = _console(), outcome.figures()
    console.print(table)
    style = "green" if outcome.passed else "red"
    equal = "equal" if not outcome.disagreements else "NOT equal"
    console.print(
        f"\n[{style}]{outcome.correct} of {len(outcome.replies)} right[/{style}] (the bar is {CORRECT_SHARE_MIN:.0%}), "
        f"{outcome.images} images, {figures['p50_ms']:.0f} ms an answer, {outcome.seconds:.0f} s in all; "
        f"embedded and served answers are {equal}.",
        highlight=False,
    )
    for reply in outcome.disagreements:
        said = f"[red]differ on {escape(reply.question.name)}:[/red] {escape('; '.join(reply.apart))}"
        console.print(said, highlight=False)
    console.print(f"See {escape(str(out / 'report.html'))}", highlight=False)


def _row(reply: Reply, outcome: Outcome) -> list[str]:
    answer, question = reply.served, reply.question
    named = outcome.names.get(answer.original.image_id, answer.original.image_id) if answer.original else "none"
    style = VERDICT_STYLES[answer.verdict]
    return [
        escape(question.about),
        question.kind,
        f"[{style}]{answer.verdict}[/{style}]",
        escape(named) if reply.right else f"[red]{escape(named)} (wrong)[/red]",
        f"{reply.embedded_ms:.0f}",
        f"{reply.served_ms:.0f}",
    ]


def _console() -> Console:
    """Standard output; in a file or a pipe wide enough that no name is cut."""
    console = Console()
    return console if console.is_terminal else Console(width=PIPE_COLUMNS)


def _table(*names: str) -> Table:
    table = Table(box=None, pad_edge=False, header_style="dim")
    for name in names:
        table.add_column(name, justify="right" if name.startswith(("ms", "n")) and name != "name" else "left")
    return table
