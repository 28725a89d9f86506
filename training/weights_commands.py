"""``stemma weights``: what weights are there, whether they are whole, and how they come in and out."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from stemma.config import ComparatorSettings, EncoderSettings, ObjectSettings
from stemma.errors import BadRequest, NotFound
from stemma.index.codec import Codec
from stemma.networks import golden, public
from stemma.networks import weights as files
from stemma.networks.comparing import Comparator
from stemma.networks.detector import Detector
from stemma.networks.encoder import Encoder
from stemma.networks.objects import ObjectEncoder
from stemma.terminal import run
from training import encoder_weights
from training.export import export

ACTIONS = ("list", "show", "verify", "golden", "import", "export")


def weights(argv: list[str]) -> int:
    """``stemma weights list | show | verify | golden | import | export``."""
    return run(_weights, argv, name="weights")


def _weights(
    what: Annotated[str, typer.Argument(help=", ".join(ACTIONS))] = "list",
    source: Annotated[
        list[str] | None, typer.Argument(help=f"import: {', '.join(public.SOURCES)}, then a file", metavar="SOURCE")
    ] = None,
    folder: Annotated[
        Path | None, typer.Option("--weights", help="folder of weights; default: the shipped ones")
    ] = None,
    run_: Annotated[
        Path | None, typer.Option("--run", help="export: folder of a training run, or a checkpoint")
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="import, export: folder to write; export's default: the shipped one")
    ] = None,
    data: Annotated[
        Path | None, typer.Option(envvar="STEMMA_DATA", help="export of an encoder: development data")
    ] = None,
    features: Annotated[
        Path | None, typer.Option(help="export of an encoder: keep its views' features (.npz) for stemma train codec")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json")] = False,
) -> int:
    """What weights there are, what their cards say, whether files and answers are the released ones; import, export."""
    if what != "import" and source:
        raise BadRequest(f"weights {what} takes no {source[0]!r}", subject=source[0])
    if what == "list":
        _list(as_json)
    elif what == "show":
        print(json.dumps({name: asdict(card) for name, card in _cards(folder).items()}, indent=1, ensure_ascii=False))
    elif what == "verify":
        _verify(folder, as_json)
    elif what == "golden":
        path = _Networks.load(folder).make(files.resolve(folder))
        print(f"{path}: made of {', '.join(_cards(folder))}")
    elif what == "import":
        _import(source or [], out)
    elif what == "export":
        _export(run_, files.resolve(out), data, features)
    else:
        raise BadRequest(f"weights takes {', '.join(ACTIONS)}, not {what!r}", subject=what)
    return 0


def _cards(folder: Path | None) -> dict[str, files.AnyCard]:
    """The folder's cards by network. Raises ``NotFound`` where it has none, ``Corrupt`` for a broken one."""
    found = {part.name: part.card(folder) for part in files.PARTS if part.there(folder)}
    if not found:
        raise NotFound("there are no weights: no card", subject=str(files.resolve(folder)))
    return found


@dataclass(frozen=True, slots=True)
class _Networks:
    """A folder's networks, those that it has."""

    encoder: Encoder | None
    comparator: Comparator | None
    finders: golden.Finders | None

    @classmethod
    def load(cls, folder: Path | None) -> _Networks:
        cards, where = _cards(folder), None if folder is None else str(folder)
        encoder = comparator = finders = None

        def known(name: str) -> dict[str, Any]:
            return {"weights": where, "size": cards[name].size}

        if "encoder" in cards:
            encoder = Encoder.load(EncoderSettings.model_validate(known("encoder")))
        if "comparator" in cards:
            settings = known("comparator") | {"flow": "flow" in cards}
            comparator = Comparator.load(ComparatorSettings.model_validate(settings))
        if {"encoder", "detector", "objects"} <= set(cards):
            objects = ObjectSettings.model_validate(known("objects"))
            made_by = files.objects_digest(files.objects_card(folder), files.detector_card(folder))
            finders = golden.Finders(Detector.load(objects), ObjectEncoder.load(objects, where), made_by)
        return cls(encoder, comparator, finders)

    def make(self, folder: Path) -> Path:
        """Golden answers anew."""
        return golden.make(folder, self.encoder, self.comparator, self.finders)


def _verify(folder: Path | None, as_json: bool) -> None:
    """Every file against its digest, every golden answer against the networks'. Raises ``Corrupt`` where one lies."""
    parts = [part for part in files.PARTS if part.name in _cards(folder)]
    lines = [(part.name, part.read(folder)[0].digest, "the file is what its card says") for part in parts]
    for path in sorted((files.resolve(folder) / files.CODEC_FOLDER).glob("*/codec.json")):
        codec = Codec.load(path.parent)
        lines.append((f"codec {path.parent.name}", codec.id.partition("-")[2], "the files are what their card says"))
    made = _Networks.load(folder)
    for name, same in (
        ("golden descriptors", made.encoder is not None and golden.check_encoder(made.encoder, folder)),
        ("golden comparisons", made.comparator is not None and golden.check_comparator(made.comparator, folder)),
        ("golden objects", made.finders is not None and golden.check_objects(made.finders, folder)),
    ):
        lines.append((name, "", "computed again, the same" if same else "none here to compare with"))
    for name, digest, said in lines:
        print(
            json.dumps({"name": name, "digest": digest, "said": said})
            if as_json
            else f"{name:<19} {digest[:16]:<16}  {said}"
        )


def _import(source: list[str], out: Path | None) -> None:
    if len(source) != 2 or out is None:
        raise BadRequest(f"say what, from where and to where: import {'|'.join(public.SOURCES)} FILE --out FOLDER")
    card = public.take_over(source[0], Path(source[1]), out)
    print(f"{card.digest}  {card.name}: {card.what}")


def _export(run_: Path | None, out: Path, data: Path | None, features: Path | None) -> None:
    if run_ is None:
        raise BadRequest("say which run: --run FOLDER or --run CHECKPOINT.pt", subject="--run")
    card = export(run_, out, data, features)
    print(f"{card.digest}  {card.name}: {card.command}")
    if isinstance(card, files.Card):
        print("\n".join((f"{out}: next, in this order", *encoder_weights.NEXT)))
        return
    _Networks.load(out).make(out)
    print(f"{out}: next, stemma train calibrate --data DIR")


def _list(as_json: bool) -> None:
    table = Table(box=None, pad_edge=False, header_style="dim", expand=True)
    for name in ("weights", "network", "size", "digest"):
        table.add_column(name, no_wrap=True)
    table.add_column("what", no_wrap=True, overflow="ellipsis", ratio=1)
    for folder in sorted({path.parent for path in files.SHIPPED.glob("*/*.json")}):
        for network, card in _cards(folder).items():
            if as_json:
                plain = {"weights": folder.name, "network": network}
                print(json.dumps(plain | {name: getattr(card, name) for name in ("name", "size", "digest", "what")}))
            table.add_row(folder.name, network, card.size, card.digest[:12], card.what)
        for path in sorted((folder / files.CODEC_FOLDER).glob("*/codec.json")):
            codec = json.loads(path.read_text(encoding="utf-8"))
            if as_json:
                print(
                    json.dumps(
                        {"weights": folder.name, "network": "codec", "name": path.parent.name, "digest": codec["id"]}
                    )
                )
            table.add_row(
                folder.name, "codec", path.parent.name, codec["id"].partition("-")[2][:12], "of the embeddings"
            )
    if not as_json:
        Console().print(table)
