"""``stemma evaluate`` and ``stemma demo`` at a terminal."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.markdown import Markdown
from rich.markup import escape
from rich.table import Table

from evaluation.demo import CORRECT_SHARE_MIN, DONOR_SHARE_MIN, VERDICT_SHARE_MIN, Outcome, Reply
from evaluation.demo import demo as run_demo
from evaluation.hosting import hosted
from evaluation.outcomes import read as read_outcomes
from evaluation.outcomes import save as write_outcomes
from evaluation.plots import draw
from evaluation.protocol_commands import localization, pir, splice, students
from evaluation.queries import RETRIEVED
from evaluation.quick import Codec
from evaluation.tables import fill, merged, tables
from stemma.config import load
from stemma.errors import BadRequest
from stemma.terminal import VERDICT_STYLES, run

SetOption = Annotated[Path, typer.Option("--set", help="folder that make_quick.py wrote")]
ConfigOption = Annotated[Path | None, typer.Option("--config", help="YAML file of settings")]
JsonOption = Annotated[bool, typer.Option("--json", help="one JSON object on standard output")]
PIPE_COLUMNS = 120


def evaluate(argv: list[str]) -> int:
    """``stemma evaluate quick | splice | localization | pir | students | int8 | plots | tables``."""
    measures: dict[str, Callable[..., int]] = {
        "quick": _quick,
        "splice": splice,
        "localization": localization,
        "pir": pir,
        "students": students,
        "int8": _int8,
        "plots": _plots,
        "tables": _tables,
    }
    name, rest = (argv[0], argv[1:]) if argv and argv[0] in measures else ("", argv)
    if name:
        return run(measures[name], rest, name=f"evaluate {name}")
    return run(_evaluate, rest, name="evaluate")


def demo(argv: list[str]) -> int:
    """``stemma demo [--photos DIR]``."""
    return run(_demo, argv, name="demo")


def _evaluate(measure: Annotated[str, typer.Argument(help="quick, splice, ...", metavar="MEASURE")]) -> int:
    """Measure stemma on queries with known answers.

    quick: finding the original, what was changed in it and who gave an object, over HTTP, with its speed. splice,
    localization, pir, students: the protocols of the second paper, in small. int8: what rounding the embeddings costs.
    plots, tables: what these have saved, for a person. `stemma evaluate quick --help` tells more.
    """
    raise BadRequest(
        f"evaluate has quick, splice, localization, pir, students, int8, plots and tables, not {measure!r}",
        subject=measure,
    )


def _quick(
    folder: Annotated[Path | None, typer.Option("--set", help="folder that make_quick.py wrote")] = None,
    pairs: Annotated[Path | None, typer.Option(help="folder of edited pictures with their originals")] = None,
    codec: Annotated[Codec, typer.Option(help="what makes the shortlist: exact vectors or 16-byte codes")] = "auto",
    url: Annotated[str | None, typer.Option(help="fill and ask a collection that is served already")] = None,
    embedded: Annotated[bool, typer.Option("--embedded", help="ask in this process, without Ray or HTTP")] = False,
    save: Annotated[Path | None, typer.Option(help="JSON lines: what became of each query of the set")] = None,
    plots: Annotated[Path | None, typer.Option(help="folder for the figures of the set, as SVG")] = None,
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> int:
    """Ask the queries of a rendered set of a fresh collection, or compare pairs, and print the figures."""
    from evaluation.pairs import pairs as compare_pairs
    from evaluation.quick import quick

    if url is not None and embedded:
        raise BadRequest("--url asks over HTTP, --embedded does not: give one of them", subject="--embedded")
    if folder is None and pairs is None:
        raise BadRequest("give --set, --pairs, or both", subject="--set")
    settings, result = load(config), {}
    if folder is not None:
        measured = quick(folder, settings, codec=codec, hosting=hosted, url=url, embedded=embedded)
        result = measured.figures
        if save is not None:
            write_outcomes(measured.outcomes, save)
        if plots is not None:
            draw(measured.outcomes, plots)
    if pairs is not None:
        compared = compare_pairs(pairs, settings, hosting=hosted, url=url, embedded=embedded)
        seconds = round(result.get("seconds", 0.0) + compared["seconds"], 1)
        result = {**result, **compared, "seconds": seconds}
    if as_json:
        print(json.dumps(result))
        return 0
    if folder is not None:
        _print_quick(result)
    _console().print(Markdown(tables(result)))
    return 0


def _plots(
    saved: Annotated[Path, typer.Argument(help="file of `evaluate quick --save`")],
    folder: Annotated[Path, typer.Argument(help="where the figures go, as SVG")],
) -> int:
    """Draw the figures of a run anew."""
    for path in draw(read_outcomes(saved), folder):
        print(path)
    return 0


def _tables(
    results: Annotated[list[Path], typer.Argument(help="JSON files of `evaluate quick`, `evaluate splice`, ...")],
    into: Annotated[Path | None, typer.Option(help="Markdown file whose marked part is replaced")] = None,
) -> int:
    """The figures of some runs as Markdown tables: each against what was asked."""
    written = tables(merged(results))
    if into is None:
        print(written)
    else:
        fill(into, written)
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
    table = _table("query", "what it was", "verdict", "original or donor", "ms", "ms HTTP")
    for reply in outcome.replies:
        table.add_row(*_row(reply, outcome))
    console, figures = _console(), outcome.figures()
    console.print(table)
    style = "green" if outcome.passed else "red"
    equal = "equal" if not outcome.disagreements else "NOT equal"
    asked, splices = len(outcome.asked), len(outcome.splices)
    donors = f"{outcome.traced} of {splices} donors of splices ranked first (the bar is {DONOR_SHARE_MIN:.0%}), "
    console.print(
        f"\n[{style}]{outcome.correct} of {asked} originals right[/{style}] (the bar is {CORRECT_SHARE_MIN:.0%}), "
        f"[{style}]{outcome.verdicts} of {asked} verdicts right[/{style}] (the bar is {VERDICT_SHARE_MIN:.0%}), "
        f"{f'[{style}]{donors}[/{style}]' if splices else ''}"
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
    style = VERDICT_STYLES[answer.verdict]
    named, right = _origin(reply, outcome)
    return [
        escape(question.about),
        question.kind,
        f"[{style}]{answer.verdict}[/{style}]" + ("" if answer.verdict == question.verdict else " [red](wrong)[/red]"),
        escape(named) if right else f"[red]{escape(named)} (wrong)[/red]",
        f"{reply.embedded_ms:.0f}",
        f"{reply.served_ms:.0f}",
    ]


def _origin(reply: Reply, outcome: Outcome) -> tuple[str, bool]:
    """The original, or of a splice without one the donor ranked first, by name; and whether it is the right one."""
    answer, wanted = reply.served, reply.question.donor
    if answer.original is None and wanted is not None and answer.donors:
        first = answer.donors[0]
        unsure = "" if first.shown else ", unsure"
        return f"from {outcome.names.get(first.image_id, first.image_id)}{unsure}", reply.traced
    named = outcome.names.get(answer.original.image_id, answer.original.image_id) if answer.original else "none"
    return named, reply.right and (wanted is None or reply.traced)


def _console() -> Console:
    """Standard output; in a file or a pipe wide enough that no name is cut."""
    console = Console()
    return console if console.is_terminal else Console(width=PIPE_COLUMNS)


def _table(*names: str) -> Table:
    table = Table(box=None, pad_edge=False, header_style="dim")
    for name in names:
        table.add_column(name, justify="right" if name.startswith(("ms", "n")) and name != "name" else "left")
    return table
