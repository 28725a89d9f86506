"""The fixed queries of ``make_quick.py`` (its docstring says what they are), asked of a fresh collection over HTTP.

``originals/`` is ingested, every query asked with k = 100, and the figures of the README's table come out as one JSON.
Nothing is ever trained, tuned or chosen on these queries. A *share* has its exact 95% interval (``metrics.share``).
"""

from __future__ import annotations

import hashlib
import json
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any, Literal

from evaluation.metrics import rank_of, recall_at, share_of
from stemma.api import Answer, Ask
from stemma.client import Client
from stemma.collection import Collection
from stemma.collection import open as open_collection
from stemma.config import Settings
from stemma.errors import BadRequest, StemmaError
from stemma.networks.encoder import Encoder
from stemma.terminal import progress
from stemma.vision.decode import DecodePool

K = 100
DEPTHS = (1, 10, 100)
RETRIEVED = ("benign", "manip", "both")
TIMED_QUERIES = 50
DEADLINE_MS = 60_000
"""A measurement waits for a busy machine; the time that was needed is a figure of its own."""
UPLOAD_BATCH = 64

Codec = Literal["auto", "exact", "opq"]
Search = Callable[[bytes, Ask], Answer]
Hosting = Callable[[str, Settings], AbstractContextManager[Client]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Query:
    """One line of ``truth.json``, as far as it is about finding the original."""

    path: Path
    set: str
    original: str | None
    """Image id (hex SHA-256 of the file in ``originals/``); None where no original is in the collection."""
    photograph: str
    """What it was rendered from; renderings of one photograph are not independent."""
    mirrored: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """A query with its answer and the wall time of asking."""

    query: Query
    answer: Answer
    ms: float

    @property
    def found(self) -> bool:
        """An original was named, and it is the right one."""
        return self.answer.original is not None and self.answer.original.image_id == self.query.original

    @property
    def rank(self) -> int | None:
        """The place of the right original among the candidates, after verification."""
        assert self.query.original is not None
        return rank_of(self.query.original, [candidate.image_id for candidate in self.answer.candidates])


@dataclass(frozen=True, slots=True, kw_only=True)
class Speed:
    """Embedded, one thread, the two taken in turn so that a busy machine slows both; milliseconds, medians."""

    embedded_p50_ms: float
    encoder_ms: float


def read_queries(folder: Path) -> list[Query]:
    """The queries of a rendered set. Raises ``BadRequest`` when ``folder`` is none."""
    try:
        records = json.loads((folder / "truth.json").read_text(encoding="utf-8"))["queries"]
        ids = {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in (folder / "originals").iterdir()}
        return [_query(folder, record, ids) for record in records]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise BadRequest(
            f"no rendered set here: {type(error).__name__} {error}; make one with `make_quick.py DATA {folder}`",
            subject=str(folder),
        ) from error


def _query(folder: Path, record: dict[str, Any], ids: dict[str, str]) -> Query:
    original = record["original"]
    return Query(
        path=folder / "queries" / record["file"],
        set=record["set"],
        original=None if original is None else ids[original],
        photograph=original or record["file"],
        mirrored=bool(record["mirrored"]),
    )


def quick(
    folder: Path, settings: Settings, *, codec: Codec, hosting: Hosting, url: str | None = None, embedded: bool = False
) -> dict[str, Any]:
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
            if embedded:
                asked = ask_all(queries, collection.search)
        if not embedded:
            with _client(str(place), settings, hosting, url, folder) as client:
                asked = ask_all(queries, client.search)
    if codec == "opq" and any(each.answer.used.exact for each in asked if each.answer.verdict != "identical"):
        raise StemmaError("the search was exact where codes should have made the shortlist", subject="--codec opq")
    return {"images": images, **figures(asked, speed), "seconds": round(time.monotonic() - begun, 1)}


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
    """What a whole embedded search costs, beside one forward pass of one view on the same pictures."""
    encoder, ask, searches, passes = Encoder.load(settings.encoder), Ask(k=K, deadline_ms=DEADLINE_MS), [], []
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


def ask_all(queries: Sequence[Query], search: Search) -> list[Asked]:
    """Every query, one after another. An error names the query it happened on."""
    asked = []
    with progress("ask", len(queries)) as done:
        for query in queries:
            body, begun = query.path.read_bytes(), time.perf_counter()
            try:
                answer = search(body, Ask(k=K, deadline_ms=DEADLINE_MS))
            except StemmaError as error:
                raise type(error)(error.detail, subject=str(query.path)) from error
            asked.append(Asked(query=query, answer=answer, ms=1e3 * (time.perf_counter() - begun)))
            done(1)
    return asked


def figures(asked: Sequence[Asked], speed: Speed) -> dict[str, Any]:
    """The figures without ``images`` and ``seconds``, which only the run knows."""
    by_set = {name: [each for each in asked if each.query.set == name] for name in (*RETRIEVED, "unknown")}
    mirrored = [each for name in RETRIEVED for each in by_set[name] if each.query.mirrored]
    return {
        "queries": len(asked),
        "retrieval": {name: _recalls([each.rank for each in by_set[name]]) for name in RETRIEVED},
        "found": {name: share_of(each.found for each in by_set[name]).json() for name in RETRIEVED},
        "strangers_found": sum(each.answer.original is not None for each in by_set["unknown"]),
        "mirrored": {"IR@1": recall_at(1, [each.rank for each in mirrored]).json(), "n": len(mirrored)},
        "p50_ms": round(median(each.ms for each in asked), 2) if asked else None,
        "encoder_ms": round(speed.encoder_ms, 2),
        "embedded_p50_ms": round(speed.embedded_p50_ms, 2),
        "search_in_passes": round(speed.embedded_p50_ms / speed.encoder_ms, 2),
    }


def _recalls(ranks: Sequence[int | None]) -> dict[str, Any]:
    return {**{f"IR@{k}": recall_at(k, ranks).json() for k in DEPTHS}, "n": len(ranks)}
