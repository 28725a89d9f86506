"""``stemma evaluate splice | localization | pir | students`` at a terminal: the second paper's protocols in small."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.markdown import Markdown

from evaluation.composites import COMPOSITES, Part
from evaluation.localization import Method, Score
from evaluation.queries import DEADLINE_MS, Search
from evaluation.tables import tables
from stemma.config import Settings, load
from stemma.errors import StemmaError

DataOption = Annotated[Path, typer.Option("--data", help="folder of the data; `--help` says what is in it")]
ConfigOption = Annotated[Path | None, typer.Option("--config", help="YAML file of settings")]
JsonOption = Annotated[bool, typer.Option("--json", help="one JSON object on standard output")]


def splice(
    data: DataOption,
    part: Annotated[Part, typer.Option(help="whose photographs: heldout is for the final figure alone")] = "calibrate",
    most: Annotated[int, typer.Option("--composites", min=1, help="composites at most")] = COMPOSITES,
    product: Annotated[bool, typer.Option(help="ask the product too, over a collection made for it")] = True,
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> int:
    """Donor, host, or either: objects of photographs laid into others, found by four global descriptors, by 1 to 16
    objects a picture, and by the product. DIR is the development data, with photos/."""
    from evaluation.composites import splice_protocol
    from evaluation.trunk import describer, trunk_map

    settings = load(config)
    objects = describer(settings)
    result = splice_protocol(
        data,
        part=part,
        map_of=trunk_map(settings),
        stored=objects.stored,
        asked=objects.asked,
        searching=_searching(settings) if product else None,
        most=most,
    )
    return _say(result, as_json)


def localization(
    data: DataOption,
    method: Annotated[Method, typer.Option(help="whose figures stand first; both are told")] = "comparator",
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> int:
    """MCC and F1 over the pixels of copy-moves, at one threshold that was chosen on other pairs. DIR holds index.json,
    train and val."""
    from evaluation.localization import comparator_score
    from evaluation.localization import localization as localize
    from evaluation.object_localization import object_score
    from evaluation.trunk import boxed, cells
    from stemma.collection import open as open_collection
    from stemma.vision.decode import DecodePool

    settings = load(config)
    with (
        tempfile.TemporaryDirectory(prefix="stemma-localization-") as scratch,
        open_collection(Path(scratch, "none.stemma"), settings=settings) as collection,
        DecodePool(settings.decode, children=1) as decoder,
    ):
        scores: dict[Method, Score] = {
            "comparator": comparator_score(lambda q, o: collection.compare(q, o, deadline_ms=DEADLINE_MS)),
            "object": object_score(boxed(settings), cells(settings), lambda body: decoder.decode(body).rgb_HWC),
        }
        result = localize(data, scores, method=method)
    return _say(result, as_json)


def pir(
    data: DataOption,
    most: Annotated[int | None, typer.Option("--queries", min=1, help="variants at most")] = None,
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> int:
    """R@1, R@10 and R@100 of PS-Battles' originals, for 1 to 16 objects a picture. DIR holds originals.tsv,
    photoshops.tsv and the two folders of pictures."""
    from evaluation.pir import pir as measure
    from evaluation.trunk import describer

    objects = describer(load(config))
    return _say(measure(data, objects.stored, objects.asked, queries_max=most), as_json)


def students(
    data: DataOption,
    runs: Annotated[
        list[Path] | None, typer.Option("--run", help="a trained student's run; default: out/runs/student-s1, -s2, -s3")
    ] = None,
    as_json: JsonOption = False,
) -> int:
    """Multiply-adds, parameters, and the share of the teacher's donors that each student keeps. DIR is the development
    data, with photos/."""
    # imported late: torch and the networks
    import torch

    from evaluation.students import student_figures, student_runs

    torch.set_num_threads(1)
    return _say(student_figures(data, runs or student_runs()), as_json)


def _say(result: dict[str, Any], as_json: bool) -> int:
    if as_json:
        print(json.dumps(result))
    else:
        Console().print(Markdown(tables(result)))
    return 0


def _searching(settings: Settings) -> Callable[[Sequence[Path]], Any]:
    """A collection of some files in a scratch folder, asked in this process."""
    from stemma.collection import open as open_collection
    from stemma.terminal import progress

    @contextmanager
    def searching(files: Sequence[Path]) -> Iterator[Search]:
        with (
            tempfile.TemporaryDirectory(prefix="stemma-splice-") as scratch,
            open_collection(Path(scratch, "splice.stemma"), settings=settings) as collection,
        ):
            with progress("ingest", len(files)) as done:
                summary = collection.ingest(list(files), progress=done)
            if summary.rejected:
                raise StemmaError(f"{summary.rejected} photographs were rejected: {summary.items}")
            yield collection.search

    return searching
