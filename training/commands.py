"""``stemma train`` and ``stemma weights``: fit what is fitted, and say what weights are there."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from stemma.errors import BadRequest
from stemma.networks import weights as files
from stemma.terminal import run
from training import fit
from training.own_codec import train_own_codec

FITS = ("pca", "codec", "threshold")


def train(argv: list[str]) -> int:
    """``stemma train pca | codec | threshold --data DIR``, ``stemma train codec --collection DIR``."""
    return run(_train, argv, name="train")


def weights(argv: list[str]) -> int:
    """``stemma weights list | show | verify``."""
    return run(_weights, argv, name="weights")


def _train(
    what: Annotated[str, typer.Argument(help="pca, codec or threshold, in this order")],
    data: Annotated[Path | None, typer.Option(envvar="STEMMA_DATA", help="development data")] = None,
    out: Annotated[Path | None, typer.Option(help="folder of weights; default: the shipped one")] = None,
    collection: Annotated[
        Path | None, typer.Option(help="codec: train the collection's own, from its originals")
    ] = None,
    kind: Annotated[str, typer.Option(help="codec of a collection: opq or paper")] = "opq",
) -> int:
    """Fit the starter's projections, its codec or its match threshold; or a collection's own codec. Seeded."""
    if what not in FITS:
        raise BadRequest(f"nothing is trained by the name {what!r}; there are {', '.join(FITS)}", subject=what)
    if what == "codec" and collection is not None:
        codec = train_own_codec(str(collection), kind)
        print(f"{codec.id}: {codec.nlist} lists, from {codec.card['trained_on']} originals")
        return 0
    if data is None:
        raise BadRequest("say where the development data is: --data DIR or STEMMA_DATA", subject="--data")
    return fit.main([what, "--data", str(data), *(["--out", str(out)] if out is not None else [])])


def _weights(
    what: Annotated[str, typer.Argument(help="list, show or verify")] = "list",
    folder: Annotated[
        Path | None, typer.Option("--weights", help="folder of weights; default: the shipped ones")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json")] = False,
) -> int:
    """What weights are there, what stands on their card, and whether their files are what the card says."""
    if what == "list":
        _list(as_json)
    elif what == "show":
        print(json.dumps(asdict(files.card(folder)), indent=1, ensure_ascii=False))
    elif what == "verify":
        card, _ = files.read_tensors(folder)
        print(f"{card.digest}  {card.name}: the file is what its card says")
    else:
        raise BadRequest(f"weights takes list, show or verify, not {what!r}", subject=what)
    return 0


def _list(as_json: bool) -> None:
    cards = files.available()
    if as_json:
        for card in cards:
            print(json.dumps({"name": card.name, "size": card.size, "digest": card.digest, "what": card.what}))
        return
    table = Table(box=None, pad_edge=False, header_style="dim")
    for name in ("name", "size", "digest", "what"):
        table.add_column(name)
    for card in cards:
        table.add_row(card.name, card.size, card.digest[:12], card.what)
    Console().print(table)
