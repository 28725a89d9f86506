"""Edited pictures compared with their own originals: the ``tamper`` pairs of the development data.

``DIR`` holds ``NNN/{original.jpg,tampered.jpg,mask.png}``, the folder above it ``index.json`` with what each pair is.
Every pair was edited, so the right verdict is always ``manipulated``; nothing is searched for. Never trained on.
"""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from evaluation.metrics import mean_of, share_of
from evaluation.outcomes import heatmap_iou, read_mask
from evaluation.queries import DEADLINE_MS
from evaluation.quick import Hosting
from stemma.api import Comparison
from stemma.client import Client
from stemma.collection import Collection
from stemma.collection import open as open_collection
from stemma.config import Settings
from stemma.errors import BadRequest, StemmaError
from stemma.networks.weights import comparator_card
from stemma.terminal import progress

Compare = Callable[[bytes, bytes], Comparison]


@dataclass(frozen=True, slots=True, kw_only=True)
class Pair:
    """One edited picture with its original."""

    folder: Path
    kind: str
    made: str
    """``real`` or ``synthetic``."""
    scene: str
    """Pairs of one scene are not independent."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Compared:
    """What was said of a pair."""

    pair: Pair
    manipulated: bool
    iou: float


def read_pairs(folder: Path) -> list[Pair]:
    """The pairs in ``folder``. Raises ``BadRequest`` when it is no folder of pairs."""
    try:
        records = json.loads((folder.parent / "index.json").read_text(encoding="utf-8"))["pairs"]
        pairs = [_pair(folder.parent, record) for record in records if record["split"] == folder.name]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise BadRequest(f"no pairs here: {type(error).__name__} {error}", subject=str(folder)) from error
    if not pairs:
        raise BadRequest(f"{folder.parent / 'index.json'} lists no pairs of {folder.name!r}", subject=str(folder))
    return pairs


def _pair(root: Path, record: dict[str, Any]) -> Pair:
    scene = record.get("scene")
    return Pair(
        folder=root / record["dir"],
        kind=record["kind"].partition(" (")[0],
        made=record["made"],
        scene=record["dir"] if scene is None else f"{record['source'].partition(',')[0]} {scene}",
    )


def pairs(
    folder: Path, settings: Settings, *, hosting: Hosting, url: str | None = None, embedded: bool = False
) -> dict[str, Any]:
    """``{"pairs": {manipulated, heatmap_iou, by_kind, by_made}}``, asked of ``/v1/compare`` of ``url`` or of a server
    that ``hosting`` starts; with ``embedded`` nothing is served. Raises ``StemmaError`` naming the pair it happened on.
    """
    begun, asked = time.monotonic(), read_pairs(folder)
    heatmap_min = comparator_card(settings.comparator.weights).heatmap_min
    with tempfile.TemporaryDirectory(prefix="stemma-pairs-") as scratch:
        place = Path(scratch, "pairs.stemma")
        with open_collection(place, settings=settings) as collection:
            if embedded:
                compared = compare_all(asked, _told_by(collection), heatmap_min)
            elif url is None:  # a server wants something to serve
                collection.ingest(*(pair.folder / "original.jpg" for pair in asked[:1]))
        if not embedded:
            with hosting(str(place), settings) if url is None else Client(url) as client:
                compared = compare_all(asked, _told_by(client), heatmap_min)
    return {"pairs": pair_figures(compared), "seconds": round(time.monotonic() - begun, 1)}


def _told_by(asked: Client | Collection) -> Compare:
    return lambda query, original: asked.compare(query, original, deadline_ms=DEADLINE_MS)


def compare_all(asked: Sequence[Pair], compare: Compare, heatmap_min: float) -> list[Compared]:
    """Every pair, one after another."""
    compared = []
    with progress("compare", len(asked)) as done:
        for pair in asked:
            query, original = ((pair.folder / name).read_bytes() for name in ("tampered.jpg", "original.jpg"))
            try:
                said = compare(query, original)
            except StemmaError as error:
                raise type(error)(error.detail, subject=str(pair.folder)) from error
            iou = heatmap_iou(said, read_mask(pair.folder / "mask.png"), heatmap_min)
            compared.append(Compared(pair=pair, manipulated=said.verdict == "manipulated", iou=iou))
            done(1)
    return compared


def pair_figures(compared: Sequence[Compared]) -> dict[str, Any]:
    """Of all, by kind of edit and by how it was made."""
    return {
        **_figures(compared),
        "by_kind": _split(compared, lambda pair: pair.kind),
        "by_made": _split(compared, lambda pair: pair.made),
    }


def _split(compared: Sequence[Compared], name: Callable[[Pair], str]) -> dict[str, Any]:
    names = sorted({name(each.pair) for each in compared})
    return {one: _figures([each for each in compared if name(each.pair) == one]) for one in names}


def _figures(compared: Sequence[Compared]) -> dict[str, Any]:
    return {
        "manipulated": share_of(each.manipulated for each in compared).json(),
        "heatmap_iou": mean_of([each.iou for each in compared], [each.pair.scene for each in compared]).json(),
    }
