"""``stemma compare QUERY ORIGINAL``: what was changed in one picture against another."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from stemma.api import Comparison
from stemma.client import Client
from stemma.collection import Collection
from stemma.config import load
from stemma.errors import BadRequest, NotFound
from stemma.report import write_comparison_report
from stemma.terminal import VERDICT_STYLES, run

SHADES = " ░▒▓█"
"""The heatmap in five steps, for a terminal."""
OPEN = "compare.stemma"
"""Where a collection would be; comparing two files makes none."""


def compare(argv: list[str]) -> int:
    """``stemma compare QUERY ORIGINAL``."""
    return run(_compare, argv, name="compare")


def _compare(
    query: Annotated[Path, typer.Argument(help="the picture asked about")],
    original: Annotated[Path | None, typer.Argument(help="what it is compared with")] = None,
    original_id: Annotated[str | None, typer.Option("--id", help="an original of the collection, instead")] = None,
    collection: Annotated[str | None, typer.Option("--collection", help="folder of an embedded collection")] = None,
    url: Annotated[str | None, typer.Option("--url", help="address of a server")] = None,
    report: Annotated[Path | None, typer.Option(help="write the comparison as an HTML page")] = None,
    config: Annotated[Path | None, typer.Option("--config", help="YAML file of settings")] = None,
    sets: Annotated[list[str] | None, typer.Option("--set", help="one setting, as section.key=value")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="machine-readable, one JSON object")] = False,
) -> int:
    """Show what was changed in a picture against another. Exit code 1 when the two are different pictures."""
    settings = load(config, sets or ())
    if original is not None and original_id is not None:
        raise BadRequest("give a second picture or --id, not both", subject="--id")
    if original is None and original_id is None:
        raise BadRequest("give a second picture, or --id of an original of the collection", subject="ORIGINAL")
    if collection is not None and url is not None:
        raise BadRequest("give --collection or --url, not both", subject="--url")
    if original_id is not None and (collection is None) == (url is None):
        raise BadRequest("say whose original it is: --collection DIR or --url http://…", subject="--id")
    if report is not None and not report.parent.is_dir():
        raise NotFound("the report's folder is not there", subject=str(report.parent))
    if report is not None and report.is_dir():
        raise BadRequest("the report is a file, this is a folder", subject=str(report))
    opened = Client(url) if url is not None else Collection(collection or OPEN, settings)
    with opened as target:
        found = target.compare(query, original, original_id=original_id)
        known = original.read_bytes() if original is not None else target.pixels(original_id or "")
    if as_json:
        print(found.model_dump_json())
    else:
        print_comparison(found)
    if report is not None:
        named = original.name if original is not None else original_id or ""
        write_comparison_report(report, query, known, found, original_name=named)
    return 1 if found.verdict == "unknown" else 0


def print_comparison(found: Comparison) -> None:
    """The verdict, its probabilities, the changed areas and a coarse map, on standard output."""
    console = Console()
    style = VERDICT_STYLES[found.verdict]
    console.print(f"[{style}]{found.verdict}[/{style}]")
    if found.probabilities is not None:
        chances = found.probabilities
        console.print(
            f"benign {chances.benign:.2f}   manipulated {chances.manipulated:.2f}   distinct {chances.distinct:.2f}",
            highlight=False,
        )
    if found.verdict == "unknown":
        console.print("[dim]nothing shows that the two are the same picture[/dim]")
    if found.mirrored:
        console.print("[dim]the picture is mirrored[/dim]")
    if found.verdict not in ("manipulated", "inconclusive") or not found.regions:
        return
    table = Table(box=None, pad_edge=False, header_style="dim")
    for name in ("changed area (pixels of the picture)", "strength"):
        table.add_column(name, justify="left" if name != "strength" else "right")
    for region in found.regions:
        x0, y0, x1, y1 = (round(value) for value in region.box)
        table.add_row(f"{x0}, {y0} to {x1}, {y1}", f"{region.strength:.2f}")
    console.print(table)
    console.print(drawn(found), highlight=False, style="red", markup=False)


def drawn(found: Comparison) -> str:
    """The heatmap as text, framed, two rows of cells to a line since characters are twice as high as wide."""
    heatmap = found.heatmap
    if heatmap is None:
        return ""
    lines = []
    for top in range(0, heatmap.rows, 2):
        rows = [heatmap.values[row * heatmap.cols : (row + 1) * heatmap.cols] for row in (top, top + 1)]
        strongest = [max(column) for column in zip(*(row for row in rows if row), strict=True)]
        lines.append("│" + "".join(_shade(value) for value in strongest) + "│")
    edge = "─" * heatmap.cols
    return "\n".join([f"┌{edge}┐", *lines, f"└{edge}┘"])


def _shade(value: float) -> str:
    return SHADES[min(len(SHADES) - 1, int(value * len(SHADES)))]
