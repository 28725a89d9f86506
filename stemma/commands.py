"""``stemma ingest | search | delete | fsck`` at a terminal: an embedded collection, or a served one with ``--url``."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, Protocol

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from stemma.api import Answer, Ask, DeleteResult, Metadata
from stemma.catalog.fsck import fsck as check_catalog
from stemma.client import Client
from stemma.collection import Collection
from stemma.collection import open as open_collection
from stemma.config import Settings, load
from stemma.errors import BadRequest, Conflict, NotFound, StemmaError
from stemma.index.segment import verify_segments
from stemma.ingest import is_collection, walk
from stemma.query import resolve
from stemma.report import write_search_report
from stemma.terminal import VERDICT_STYLES, notes, progress, run

CollectionOption = Annotated[str | None, typer.Option("--collection", help="folder of an embedded collection")]
UrlOption = Annotated[str | None, typer.Option("--url", help="address of a served collection")]
ConfigOption = Annotated[Path | None, typer.Option("--config", help="YAML file of settings")]
SetOption = Annotated[list[str] | None, typer.Option("--set", help="one setting, as section.key=value")]
JsonOption = Annotated[bool, typer.Option("--json", help="machine-readable, one JSON object a line")]


class Searchable(Protocol):
    def search(self, image: bytes | str | Path, ask: Ask | None = None) -> Answer: ...
    def delete(self, image_ids: Iterable[str]) -> DeleteResult: ...


def ingest(argv: list[str]) -> int:
    """``stemma ingest PATH… --collection DIR``."""
    return run(_ingest, argv, name="ingest")


def search(argv: list[str]) -> int:
    """``stemma search PICTURE… --collection DIR``."""
    return run(_search, argv, name="search")


def delete(argv: list[str]) -> int:
    """``stemma delete ID… --collection DIR``."""
    return run(_delete, argv, name="delete")


def fsck(argv: list[str]) -> int:
    """``stemma fsck --collection DIR``."""
    return run(_fsck, argv, name="fsck")


def _ingest(
    paths: Annotated[list[Path] | None, typer.Argument(help="folders and pictures", metavar="PATH…")] = None,
    collection: CollectionOption = None,
    metadata: Annotated[Path | None, typer.Option(help="JSON: an object from name to metadata")] = None,
    replace: Annotated[bool, typer.Option(help="let other bytes take the place of an id that is there")] = False,
    reencode: Annotated[
        bool, typer.Option("--reencode", help="move what is stored over to the present weights; takes no PATH")
    ] = False,
    config: ConfigOption = None,
    sets: SetOption = None,
    as_json: JsonOption = False,
) -> int:
    """Store pictures in a collection, and create it where there is none. Asking twice stores nothing twice."""
    if collection is None:
        raise BadRequest("say where: --collection DIR", subject="--collection")
    if reencode == bool(paths):
        raise BadRequest("say which: folders and pictures, or --reencode", subject="PATH")
    if reencode:
        return _reencode(collection, load(config, sets or ()), as_json)
    for path in paths or ():
        if not path.exists():
            raise NotFound("there is no such file or folder", subject=str(path))
    known = _read_metadata(metadata)
    with open_collection(collection, settings=load(config, sets or ())) as target:
        for number, path in enumerate(paths or ()):
            summary = ingest_with_bar(target, path, known, replace=replace, rejects_more=number > 0)
            if as_json:
                print(json.dumps({"path": str(path), **summary}), flush=True)
            else:
                print(
                    f"{path}: {summary['seen']} seen = {summary['stored']} stored + {summary['duplicates']} duplicates"
                    f" + {summary['replaced']} replaced + {summary['rejected']} rejected"
                    f"  ({summary['seconds']:.1f} s, version {summary['seq']})"
                )
                if summary["rejected"]:
                    notes().print(f"  why: {escape(str(summary['rejects_file']))}", highlight=False)
    return 0


def _reencode(collection: str, settings: Settings, as_json: bool) -> int:
    with open_collection(collection, settings=settings) as target:
        total = target.status()["images"]
        with progress("encode again", total) as done:
            moved = target.reencode(progress=done)
        seq = target.status()["seq"]
    if as_json:
        print(json.dumps({"collection": collection, "moved": moved, "seq": seq}))
    else:
        print(f"{collection}: {moved} originals moved to the present weights, version {seq}")
    return 0


def ingest_with_bar(
    target: Collection,
    path: Path,
    known: dict[str, Metadata] | None = None,
    *,
    replace: bool = False,
    rejects_more: bool = False,
) -> dict[str, Any]:
    """Ingest a folder or a file with a bar on standard error; the summary's counts as plain data."""
    total = sum(1 for _ in walk(path)) if path.is_dir() else 1
    metadata = known if path.is_dir() else (known or {}).get(path.name)
    with progress(f"ingest {path.name}", total) as done:
        summary = target.ingest(path, metadata=metadata, replace=replace, rejects_more=rejects_more, progress=done)
    return summary.model_dump(exclude={"items"})


def _read_metadata(path: Path | None) -> dict[str, Metadata] | None:
    if path is None:
        return None
    try:
        known = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise BadRequest(f"the metadata cannot be read: {error}", subject=str(path)) from error
    if not isinstance(known, dict):
        raise BadRequest("metadata is a JSON object from picture name to its metadata", subject=str(path))
    return known


def _search(
    pictures: Annotated[list[Path], typer.Argument(help="the pictures asked about", metavar="PICTURE…")],
    collection: CollectionOption = None,
    url: UrlOption = None,
    k: Annotated[int | None, typer.Option(help="candidates to return")] = None,
    condition: Annotated[str | None, typer.Option("--filter", help="a condition over metadata columns")] = None,
    as_of: Annotated[int | None, typer.Option(help="search the collection as it was at this version")] = None,
    donors: Annotated[int | None, typer.Option(help="donors to return; 0: none are searched for")] = None,
    report: Annotated[Path | None, typer.Option(help="write the answers as one HTML page")] = None,
    config: ConfigOption = None,
    sets: SetOption = None,
    as_json: JsonOption = False,
) -> int:
    """Ask where pictures come from. A plain folder of pictures is first ingested into a collection beside it.

    Exit code 1 when no original was found for at least one picture.
    """
    ask = Ask(k=k, donors=donors, filter=condition, as_of=as_of)
    settings = load(config, sets or ())
    resolve(ask, settings)  # a fault of the call, not of each picture
    if report is not None and not report.parent.is_dir():
        raise NotFound("the report's folder is not there", subject=str(report.parent))
    answers: list[tuple[Path, Answer]] = []
    failed = 0
    with _target(collection, url, settings) as target:
        for path in pictures:
            try:
                answers.append((path, target.search(path, ask)))
            except StemmaError as error:
                if len(pictures) == 1:
                    raise
                failed += 1
                notes().print(f"[red]{escape(str(path))}:[/red] {escape(error.detail)}", highlight=False)
                continue
            if as_json:
                print(json.dumps({"query": str(path), **answers[-1][1].model_dump(mode="json")}), flush=True)
        if not as_json and answers:
            print_answers(answers)
        if report is not None:
            write_search_report(report, answers, target)
    if failed:
        return 2
    return 0 if all(answer.original is not None for _, answer in answers) else 1


def print_answers(answers: list[tuple[Path, Answer]]) -> None:
    """The answers as a table on standard output, then what a person should know of them."""
    table = Table(box=None, pad_edge=False, header_style="dim")
    for name in ("picture", "verdict", "confidence", "original", "match", "ms"):
        table.add_column(name, justify="right" if name in ("confidence", "match", "ms") else "left")
    for path, answer in answers:
        best = answer.original
        style = VERDICT_STYLES[answer.verdict]
        table.add_row(
            escape(str(path)),
            f"[{style}]{answer.verdict}[/{style}]",
            f"{answer.confidence:.2f}",
            escape(str(best.metadata.get("name", best.image_id))) if best else "[dim]none[/dim]",
            f"{best.match:.1f}" if best and best.match is not None else "",
            f"{answer.timings_ms.get('total', 0):.0f}",
        )
    console = Console()
    console.print(table)
    if any(answer.donors for _, answer in answers):
        console.print(_donor_table(answers))
    for note in dict.fromkeys(note for _, answer in answers for note in answer.notes):
        console.print(f"[dim]note: {escape(note)}[/dim]", highlight=False)
    for path, answer in answers:
        if not answer.coverage.complete:
            searched, total = answer.coverage.images_searched, answer.coverage.images_total
            console.print(f"[yellow]{escape(str(path))}: only {searched} of {total} images were searched[/yellow]")


def _donor_table(answers: list[tuple[Path, Answer]]) -> Table:
    """A line for every donor, those too unsure to be shown elsewhere dimmed."""
    table = Table(box=None, pad_edge=False, header_style="dim")
    for name in ("picture", "donor", "where in the picture", "probability", ""):
        table.add_column(name, justify="right" if name == "probability" else "left")
    for path, answer in answers:
        for donor in answer.donors:
            left, top, right, bottom = (round(edge) for edge in donor.query_box)
            table.add_row(
                escape(str(path)),
                escape(str(donor.metadata.get("name", donor.image_id))),
                f"{left},{top} to {right},{bottom}",
                f"{donor.probability:.2f}",
                "copied within the original" if donor.clone else "" if donor.shown else "too unsure",
                style=None if donor.shown else "dim",
            )
    return table


@contextmanager
def _target(collection: str | None, url: str | None, settings: Settings) -> Iterator[Any]:
    if (collection is None) == (url is None):
        raise BadRequest("say which: --collection DIR or --url http://…", subject="--collection")
    if url is not None:
        with Client(url) as client:
            yield client
        return
    assert collection is not None
    with open_collection(_ingested(Path(collection), settings), settings=settings) as embedded:
        yield embedded


def _ingested(folder: Path, settings: Settings) -> Path:
    """The collection at ``folder``; for a plain folder of pictures the one beside it, completed first."""
    if is_collection(folder) or not folder.is_dir():
        return folder
    beside = folder.resolve().with_name(folder.resolve().name + ".stemma")
    if not is_collection(beside) and next(walk(folder), None) is None:
        raise NotFound("this folder has no pictures and is no collection", subject=str(folder))
    with open_collection(beside, settings=settings) as target:
        try:
            ingest_with_bar(target, folder)
        except Conflict as error:
            if not is_collection(beside):
                raise
            notes().print(f"{escape(str(beside))} is searched as it is: {escape(error.detail)}", highlight=False)
    return beside


def _delete(
    image_ids: Annotated[list[str], typer.Argument(help="ids of originals", metavar="ID…")],
    collection: CollectionOption = None,
    url: UrlOption = None,
    as_json: JsonOption = False,
) -> int:
    """Forget originals. Exit code 1 when one of them was not there."""
    with _target(collection, url, load()) as target:
        result = target.delete(image_ids)
    if as_json:
        print(result.model_dump_json())
    else:
        print(f"{len(result.deleted)} deleted, {len(result.missing)} not there (version {result.seq})")
        for image_id in result.missing:
            notes().print(f"not there: {escape(image_id)}", highlight=False)
    return 1 if result.missing else 0


def _fsck(collection: CollectionOption = None, as_json: JsonOption = False) -> int:
    """Check every row's checksums, every identity rule and every segment. Exit code 1 when something is wrong."""
    if collection is None:
        raise BadRequest("say which: --collection DIR", subject="--collection")
    report = check_catalog(collection, checks=(lambda root, _: verify_segments(root),))
    print(report.to_json() if as_json else report.summary(), file=sys.stdout)
    return 0 if report.ok else 1
