"""The queries of a rendered set, as ``make_quick.py`` wrote them (its docstring says what they are), being asked."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from evaluation.metrics import rank_of
from stemma.api import Answer, Ask
from stemma.errors import BadRequest, StemmaError
from stemma.terminal import progress

K = 100
DONORS = 10
"""Donors that every query is asked for, shown or not: R@10 needs ten."""
RETRIEVED = ("benign", "manip", "both")
DEADLINE_MS = 60_000
"""A measurement waits for a busy machine; the time that was needed is a figure of its own."""

Search = Callable[[bytes, Ask], Answer]
Box4 = tuple[float, float, float, float]


@dataclass(frozen=True, slots=True, kw_only=True)
class Query:
    """One line of ``truth.json``: a picture, where it comes from, and what was done to it."""

    path: Path
    set: str
    original: str | None
    """Image id (hex SHA-256 of the file in ``originals/``); None where no original is in the collection."""
    photograph: str
    """What it was rendered from, of a splice the donor; renderings of one photograph are not independent."""
    mirrored: bool
    original_path: Path | None = None
    """Its file in ``originals/``."""
    mask: Path | None = None
    """PNG of the query's size, 255 where it was changed; None where nothing of an edit is left."""
    area: float = 0.0
    """Share of the query that the mask covers."""
    edit: str | None = None
    benign: tuple[str, ...] = ()
    """What was done to the whole picture, in order, with its severity: ``("resize 0.78", "jpeg 66", "mirror")``."""
    donor: str | None = None
    """Image id of the photograph that gave a splice its object; None where there is none."""
    donor_path: Path | None = None
    donor_box: Box4 | None = None
    """In pixels of the donor's file."""
    query_box: Box4 | None = None
    """In pixels of the query."""


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
    original, donor = record["original"], record.get("donor")
    return Query(
        path=folder / "queries" / record["file"],
        set=record["set"],
        original=None if original is None else ids[original],
        photograph=original or donor or record["file"],
        mirrored=bool(record["mirrored"]),
        original_path=None if original is None else folder / "originals" / original,
        mask=folder / "masks" / record["mask"] if record.get("mask") else None,
        area=float(record["area"]),
        edit=record.get("edit"),
        benign=tuple(record.get("benign", ())),
        donor=None if donor is None else ids[donor],
        donor_path=None if donor is None else folder / "originals" / donor,
        donor_box=_box(record.get("donor_box")),
        query_box=_box(record.get("query_box")),
    )


def _box(corners: Sequence[float] | None) -> Box4 | None:
    if corners is None:
        return None
    x0, y0, x1, y1 = (float(each) for each in corners)
    return x0, y0, x1, y1


def ask_all(queries: Sequence[Query], search: Search) -> list[Asked]:
    """Every query, one after another. An error names the query it happened on."""
    asked = []
    with progress("ask", len(queries)) as done:
        for query in queries:
            body, begun = query.path.read_bytes(), time.perf_counter()
            try:
                answer = search(body, Ask(k=K, donors=DONORS, deadline_ms=DEADLINE_MS))
            except StemmaError as error:
                raise type(error)(error.detail, subject=str(query.path)) from error
            asked.append(Asked(query=query, answer=answer, ms=1e3 * (time.perf_counter() - begun)))
            done(1)
    return asked
