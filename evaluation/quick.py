"""The fixed queries of ``make_quick.py`` (its docstring says what they are), asked of a fresh collection over HTTP.

``originals/`` is ingested, every query asked with k = 100 and ten donors, and the figures of docs/results.md come out
as one JSON: those about finding the original are computed here, those about verdicts and heatmaps in ``verdicts``,
those about donors in ``donors``, ``ceilings`` and ``cost``. Nothing is ever trained, tuned or chosen on these queries.
A *share* has its exact 95% interval (``metrics.share``).
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any, Literal

from evaluation.ceilings import Covered, ceilings, with_regions
from evaluation.cost import donor_cost
from evaluation.donors import donor_figures
from evaluation.metrics import recall_at, share_of
from evaluation.outcomes import Outcome, outcome, with_paper
from evaluation.paper_maps import paper_ious
from evaluation.queries import DEADLINE_MS, RETRIEVED, Asked, K, Query, ask_all, read_queries
from evaluation.verdicts import verdict_figures
from stemma.api import Ask
from stemma.catalog import Catalog
from stemma.client import Client
from stemma.collection import Collection
from stemma.collection import open as open_collection
from stemma.config import Settings
from stemma.errors import StemmaError
from stemma.finder import Finder, card_for
from stemma.networks.comparing import Comparator
from stemma.networks.encoder import Encoder
from stemma.terminal import progress
from stemma.vision.decode import DecodePool

DEPTHS = (1, 10, 100)
TIMED_QUERIES = 50
UPLOAD_BATCH = 64

Codec = Literal["auto", "exact", "opq"]
Hosting = Callable[[str, Settings], AbstractContextManager[Client]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Speed:
    """Embedded, one thread, the two taken in turn so that a busy machine slows both; milliseconds, medians."""

    embedded_p50_ms: float
    """Finding the original, without comparing and without donors."""
    encoder_ms: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """A run: its figures as JSON, and what they were counted from."""

    figures: dict[str, Any]
    outcomes: list[Outcome]


def quick(
    folder: Path, settings: Settings, *, codec: Codec, hosting: Hosting, url: str | None = None, embedded: bool = False
) -> Measured:
    """All figures of the set in ``folder``. With ``url`` a collection that is served already is filled and asked, with
    ``embedded`` nothing is served; else ``hosting`` serves a fresh collection and stops it.

    Raises ``BadRequest`` for a folder that is no rendered set, ``StemmaError`` when a query cannot be answered.
    """
    begun = time.monotonic()
    queries, settings = read_queries(folder), with_codec(settings, codec)
    with tempfile.TemporaryDirectory(prefix="stemma-quick-") as scratch:
        place = Path(scratch, "quick.stemma")
        with open_collection(place, settings=settings) as collection:
            images = _ingest(collection, folder / "originals")
            speed = measure(collection, queries[:: max(1, len(queries) // TIMED_QUERIES)][:TIMED_QUERIES], settings)
            cost = donor_cost(queries, collection.search)
            if embedded:
                asked = ask_all(queries, collection.search)
        if not embedded:
            with _client(str(place), settings, hosting, url, folder) as client:
                asked = ask_all(queries, client.search)
        covered = _covered(asked, place, settings)
    if codec == "opq" and any(each.answer.used.exact for each in asked if each.answer.verdict != "identical"):
        raise StemmaError("the search was exact where codes should have made the shortlist", subject="--codec opq")
    comparator = Comparator.load(settings.comparator)
    outcomes = [outcome(each, comparator.card.heatmap_min) for each in asked]
    outcomes = with_paper(outcomes, paper_ious(asked, settings, comparator.compare))
    outcomes = with_regions(outcomes, covered)
    return Measured(
        figures={
            "images": images,
            **figures(asked, speed),
            **verdict_figures(outcomes, comparator.card.heatmap_min),
            **donor_figures(outcomes),
            **cost,
            "comparator": comparator.card.digest,
            "seconds": round(time.monotonic() - begun, 1),
        },
        outcomes=outcomes,
    )


def _covered(asked: Sequence[Asked], place: Path, settings: Settings) -> dict[str, Covered]:
    """Nothing without splices, and where these weights find no objects."""
    spliced = any(each.query.donor is not None for each in asked)
    if not spliced or card_for(settings.objects, settings.encoder.weights) is None:
        return {}
    finder = Finder.load(settings.objects, settings.encoder.weights)
    with Catalog.open(str(place)) as catalog:
        return ceilings(asked, catalog, settings, lambda rgb_HWC: finder.describe(rgb_HWC).box_O4)


def with_codec(settings: Settings, codec: Codec) -> Settings:
    """The settings under which ``codec`` makes the shortlist of every row: none may wait in the exact tail."""
    change: dict[str, Any] = {"codec": codec}
    if codec == "opq":
        change["tail_rows_max"] = 1
    return settings.model_copy(update={"search": settings.search.model_copy(update=change)})


def _ingest(collection: Collection, originals: Path) -> int:
    files = sorted(path for path in originals.iterdir() if path.is_file())
    with progress("ingest", len(files)) as done:
        summary = collection.ingest(originals, progress=done)
    if summary.rejected:
        raise StemmaError(f"{summary.rejected} originals were rejected: {summary.items}", subject=str(originals))
    return len(collection)


@contextmanager
def _client(place: str, settings: Settings, hosting: Hosting, url: str | None, folder: Path) -> Iterator[Client]:
    if url is None:
        with hosting(place, settings) as client:
            yield client
        return
    files = sorted((folder / "originals").iterdir())
    with Client(url) as client:
        with progress("upload", len(files)) as done:
            for start in range(0, len(files), UPLOAD_BATCH):
                batch = files[start : start + UPLOAD_BATCH]
                client.ingest(*batch)
                done(len(batch))
        yield client


def measure(collection: Collection, queries: Sequence[Query], settings: Settings) -> Speed:
    """What finding the original costs, embedded, beside one forward pass of one view on the same pictures."""
    encoder, searches, passes = Encoder.load(settings.encoder), [], []
    ask = Ask(k=K, deadline_ms=DEADLINE_MS, rerank=0, donors=0)
    with DecodePool(settings.decode, children=1) as decoder, progress("time", len(queries)) as done:
        for number, query in enumerate(queries):
            body = query.path.read_bytes()
            pixels = decoder.decode(body)
            if number == 0:  # the first pass and the first search load and warm what all others find ready
                encoder.encode(pixels.rgb_HWC, mirrored=False)
                collection.search(body, ask)
            passes.append(_ms(partial(encoder.encode, pixels.rgb_HWC, mirrored=False)))
            searches.append(_ms(partial(collection.search, body, ask)))
            done(1)
    return Speed(embedded_p50_ms=median(searches), encoder_ms=median(passes))


def _ms(work: Callable[[], object]) -> float:
    begun = time.perf_counter()
    work()
    return 1e3 * (time.perf_counter() - begun)


def figures(asked: Sequence[Asked], speed: Speed) -> dict[str, Any]:
    """The figures about finding the original, and its speed."""
    by_set = {name: [each for each in asked if each.query.set == name] for name in (*RETRIEVED, "unknown")}
    mirrored = [each for name in RETRIEVED for each in by_set[name] if each.query.mirrored]
    compared = [each.answer.timings_ms["compare"] for each in asked if "compare" in each.answer.timings_ms]
    return {
        "queries": len(asked),
        "retrieval": {name: _recalls([each.rank for each in by_set[name]]) for name in RETRIEVED},
        "found": {name: share_of(each.found for each in by_set[name]).json() for name in RETRIEVED},
        "strangers_found": sum(each.answer.original is not None for each in by_set["unknown"]),
        "mirrored": {"IR@1": recall_at(1, [each.rank for each in mirrored]).json(), "n": len(mirrored)},
        "p50_ms": round(median(each.ms for each in asked), 2) if asked else None,
        "compare_p50_ms": round(median(compared), 2) if compared else None,
        "encoder_ms": round(speed.encoder_ms, 2),
        "embedded_p50_ms": round(speed.embedded_p50_ms, 2),
        "search_in_passes": round(speed.embedded_p50_ms / speed.encoder_ms, 2),
    }


def _recalls(ranks: Sequence[int | None]) -> dict[str, Any]:
    return {**{f"IR@{k}": recall_at(k, ranks).json() for k in DEPTHS}, "n": len(ranks)}
