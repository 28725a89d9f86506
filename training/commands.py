"""``stemma train``: train the networks, and fit what is fitted."""

from __future__ import annotations

import json
from datetime import datetime
from pathlib import Path
from typing import Annotated

import typer

from stemma.errors import BadRequest, NotFound
from stemma.networks import weights
from stemma.terminal import notes, run
from training import curves, fit, hardest, loop, recipe
from training.own_codec import train_own_codec

NETWORKS = ("encoder", "comparator", "detector", "student")
FITS = ("pca", "codec", "threshold", "calibrate", "objects")


def train(argv: list[str]) -> int:
    """``stemma train encoder | comparator | detector | student``, ``stemma train pca | codec | threshold``."""
    network = bool(argv) and argv[0] in NETWORKS
    return run(_network if network else _fit, argv, name="train")


def _network(
    what: Annotated[str, typer.Argument(help="encoder, comparator, detector or student")],
    config: Annotated[
        Path | None, typer.Option(help="training config; default: that of the starter, or of the run that is resumed")
    ] = None,
    data: Annotated[Path | None, typer.Option(envvar="STEMMA_DATA", help="development data")] = None,
    workers: Annotated[int, typer.Option(min=0, help="Ray Train workers; 0: the bare loop in this process")] = 0,
    gpus: Annotated[bool, typer.Option("--gpus", help="a GPU for each worker")] = False,
    name: Annotated[str | None, typer.Option("--run", help="name of a new run; default: network and time")] = None,
    resume: Annotated[str | None, typer.Option(help="name of a run to go on with")] = None,
    begin: Annotated[
        str | None, typer.Option(help="weights to start from: a checkpoint, a safetensors file, or 'shipped'")
    ] = None,
    overrides: Annotated[list[str] | None, typer.Option("--set", metavar="a.b=c", help="change the config")] = None,
    runs: Annotated[Path, typer.Option(help="folder of the runs")] = Path("out/runs"),
    address: Annotated[
        str | None, typer.Option(help="a running Ray cluster to join; default: one for this run")
    ] = None,
) -> int:
    """Train a network; everything a run leaves is in its folder. Ctrl-C and SIGTERM lose no more than a checkpoint."""
    if data is None:
        raise BadRequest("say where the development data is: --data DIR or STEMMA_DATA", subject="--data")
    if resume is not None and (name is not None or begin is not None):
        raise BadRequest("a resumed run has its name and its weights", subject="--run" if name else "--begin")
    folder = runs / (resume or name or f"{what}-{datetime.now():%Y%m%d-%H%M%S}")
    chosen = config or (recipe.default_path(what) if resume is None else _kept(folder))
    found = recipe.read(chosen, overrides or ())
    if found.network != what:
        raise BadRequest(f"this config is of the {found.network}", subject=str(chosen))
    # imported late: help and refusals need no torch.distributed
    from training import launch

    again = resume is not None
    if workers:
        done = launch.spread(
            found, data, folder, workers=workers, resume=again, begin=begin, gpus=gpus, address=address
        )
    else:
        done = launch.alone(found, data, folder, resume=again, begin=begin, gpus=gpus)
    for page in (curves.FILE, hardest.FILE):
        if (folder / page).exists():
            notes().print(str(folder / page), highlight=False, soft_wrap=True)
    print(f"{folder}: {done} of {recipe.steps(found)} steps")
    return 0


def _kept(folder: Path) -> Path:
    """The config that a run was started with."""
    path = folder / loop.CONFIG
    if not path.exists():
        raise NotFound("there is no run of this name to resume", subject=str(folder))
    return path


def _fit(
    what: Annotated[str, typer.Argument(help="pca, codec or threshold, in this order; calibrate; objects; a network")],
    data: Annotated[Path | None, typer.Option(envvar="STEMMA_DATA", help="development data")] = None,
    out: Annotated[Path | None, typer.Option(help="folder of weights; default: the shipped one")] = None,
    collection: Annotated[
        Path | None, typer.Option(help="codec: train the collection's own, from its originals")
    ] = None,
    kind: Annotated[str, typer.Option(help="codec of a collection: opq, paper or objects")] = "opq",
    features: Annotated[
        Path | None, typer.Option(help="codec: features of views (.npz) as the export of these weights kept them")
    ] = None,
    further: Annotated[Path | None, typer.Option(help="objects: folder of more photographs (.jpg) of your own")] = None,
    processes: Annotated[int, typer.Option(min=1, help="objects: that make the crops it is fitted on")] = 1,
) -> int:
    """Fit the starter's projections, codec or match threshold, the comparator's thresholds, the embedding of objects,
    or a collection's own codec.

    `stemma train encoder --help` and `stemma train comparator --help` tell how the networks are trained.
    """
    if what not in FITS:
        names = ", ".join((*NETWORKS, *FITS))
        raise BadRequest(f"nothing is trained by the name {what!r}; there are {names}", subject=what)
    if what == "codec" and collection is not None:
        object_scale = weights.objects_card().scale if kind == "objects" else None
        codec = train_own_codec(str(collection), kind, object_scale=object_scale)
        print(f"{codec.id}: {codec.nlist} lists, from {codec.card['trained_on']} originals")
        return 0
    if data is None:
        raise BadRequest("say where the development data is: --data DIR or STEMMA_DATA", subject="--data")
    if what == "calibrate":
        return _calibrate(data, weights.resolve(out))
    if what == "objects":
        return _objects(data, weights.resolve(out), further, processes)
    named = {"--data": data, "--out": out, "--features": features}
    return fit.main([what, *(part for name, path in named.items() if path is not None for part in (name, str(path)))])


def _objects(data: Path, out: Path, further: Path | None, processes: int) -> int:
    from training.objects import fit_objects

    card = fit_objects(data, out, further, processes=processes)
    print(f"{out}: objects {card.digest[:12]}, scale {card.scale}")
    return 0


def _calibrate(data: Path, out: Path) -> int:
    # imported late: torch and the networks
    from training.verdicts import fit_folder

    card = fit_folder(data, out)
    print(json.dumps(card.figures, indent=1, ensure_ascii=False))
    print(
        f"{out}: temperature {card.temperature}, margin {card.margin}, distinct from {card.distinct_min}, "
        f"changed from {card.heatmap_min}"
    )
    return 0
