"""The demo: see the product work, and check that one process and a Ray cluster give the same answers.

A collection of photographs and rendered distractors is ingested embedded, asked embedded, then the same collection is
served on Ray and asked over HTTP. Sketch for two cores: 527 pictures at 100 ms on both of them, 92 questions twice at
.15 s of one core (benign), .45 (changed) or .75 (no original: all its objects are searched for), 30 s for Ray to start
and stop: under three minutes of the five allowed.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any, Protocol

import numpy as np

from evaluation.agreement import differences
from evaluation.pictures import PHOTOGRAPHS, SEED, STRANGERS, jpeg, render, write_collection
from evaluation.questions import KINDS, TARGETS, Kind, Picture, Question, questions
from evaluation.questions import STRANGERS as STRANGER_COUNT
from evaluation.scenes import STRANGE
from evaluation.splices import splices
from stemma import report
from stemma.api import Answer, Ask, ImageRecord
from stemma.collection import open as open_collection
from stemma.config import Settings
from stemma.errors import BadRequest, StemmaError
from stemma.terminal import progress
from stemma.vision.decode import DecodePool, read_working_copy

CORRECT_SHARE_MIN = 0.97
VERDICT_SHARE_MIN = 0.90
DONOR_SHARE_MIN = 0.5
"""Of the splices, how many have the right donor ranked first. They have a line of their own and no part in the others:
their verdict asks for a donor sure enough to be shown."""
SHOWN: tuple[Kind, ...] = ("splice", "both", "manipulated", "benign", "untouched", "stranger")
"""Order of the kinds on the page."""
K = 10
DEADLINE_MS = 60_000
"""A question of the demo never fails for a busy machine; the times are in the table."""
Hosting = Callable[[str, Settings], AbstractContextManager["Asked"]]
"""Serves the collection at a URL and yields what can be asked; stops what it started, whatever happens."""


class Asked(Protocol):
    """What answers a question: a ``Collection`` or a ``Client``."""

    def search(self, image: bytes, ask: Ask | None = None) -> Answer: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Reply:
    """A question with both its answers, and what each took, wall milliseconds."""

    question: Question
    embedded: Answer
    served: Answer
    embedded_ms: float
    served_ms: float

    @property
    def right(self) -> bool:
        """Both ways gave the right original."""
        return self.question.right(self.embedded) and self.question.right(self.served)

    @property
    def judged(self) -> bool:
        """Both ways gave the right verdict on the right original."""
        return self.question.judged(self.embedded) and self.question.judged(self.served)

    @property
    def traced(self) -> bool:
        """Both ways ranked the right donor first."""
        return self.question.traced(self.embedded) and self.question.traced(self.served)

    @property
    def apart(self) -> list[str]:
        """In what the two answers differ."""
        return differences(self.embedded, self.served)


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """All replies of a demo and what it was about."""

    replies: list[Reply]
    images: int
    seconds: float
    names: dict[str, str]
    """Names by image id."""

    @property
    def passed(self) -> bool:
        """Enough right originals, verdicts and donors, and both ways the same."""
        enough = self.correct >= CORRECT_SHARE_MIN * len(self.asked)
        enough = enough and self.verdicts >= VERDICT_SHARE_MIN * len(self.asked)
        enough = enough and self.traced >= DONOR_SHARE_MIN * len(self.splices)
        return enough and not self.disagreements

    @property
    def disagreements(self) -> list[Reply]:
        return [reply for reply in self.replies if reply.apart]

    @property
    def asked(self) -> list[Reply]:
        """All replies but those to splices."""
        return [reply for reply in self.replies if reply.question.kind != "splice"]

    @property
    def splices(self) -> list[Reply]:
        return [reply for reply in self.replies if reply.question.kind == "splice"]

    @property
    def correct(self) -> int:
        return sum(reply.right for reply in self.asked)

    @property
    def verdicts(self) -> int:
        return sum(reply.judged for reply in self.asked)

    @property
    def traced(self) -> int:
        """Splices whose right donor both ways ranked first."""
        return sum(reply.traced for reply in self.splices)

    def figures(self) -> dict[str, Any]:
        """``report.json``. ``p50_ms`` is over HTTP, as in ``stemma evaluate quick``; ``queries`` are without splices.

        ``donor_at_1`` is null where no splice could be made: from a user's own photographs.
        """
        return {
            "images": self.images,
            "queries": len(self.asked),
            "correct_original": self.correct,
            "correct_verdict": self.verdicts,
            "splices": len(self.splices),
            "donor_at_1": round(self.traced / len(self.splices), 4) if self.splices else None,
            "p50_ms": round(median(reply.served_ms for reply in self.replies), 1),
            "seconds": round(self.seconds, 1),
            "embedded_equals_served": not self.disagreements,
            "embedded_p50_ms": round(median(reply.embedded_ms for reply in self.replies), 1),
            "kinds": {kind: self._kind(kind) for kind in KINDS},
            "seed": SEED,
        }

    def _kind(self, kind: str) -> dict[str, int]:
        of_kind = [reply for reply in self.replies if reply.question.kind == kind]
        return {
            "right": sum(reply.right for reply in of_kind),
            "verdict": sum(reply.judged for reply in of_kind),
            "n": len(of_kind),
        }


def demo(photos: Path | None, out: Path, settings: Settings, hosting: Hosting) -> Outcome:
    """Run the whole demo and write ``report.json`` and ``report.html`` under ``out``.

    Raises ``BadRequest`` for a ``photos`` that is no folder with pictures in it.
    """
    begun = time.monotonic()
    out.mkdir(parents=True, exist_ok=True)
    folder = photos if photos is not None else write_collection(out / "originals")
    if not folder.is_dir():
        raise BadRequest("--photos takes a folder of pictures", subject=str(folder))
    url = fresh(out / "collection.stemma")
    with open_collection(url, settings=settings) as collection:
        with progress("ingest", sum(1 for path in folder.rglob("*") if path.is_file())) as done:
            collection.ingest(folder, progress=done)
        names = {record.image_id: str(record.metadata.get("name", record.image_id)) for record in collection}
        if not names:
            raise BadRequest("there is no picture here that can be read", subject=str(folder))
        asked = _questions(folder, photos is None, list(collection), settings)
        embedded = _ask_all(collection, asked, "ask embedded")
        shown = {image_id: read_working_copy(collection.pixels(image_id)) for image_id in _to_show(embedded)}
    with hosting(str(url), settings) as client:
        served = _ask_all(client, asked, "ask over HTTP")
    replies = [
        Reply(question=q, embedded=a, served=b, embedded_ms=a_ms, served_ms=b_ms)
        for q, (a, a_ms), (b, b_ms) in zip(asked, embedded, served, strict=True)
    ]
    outcome = Outcome(
        replies=replies,
        images=len(names),
        seconds=time.monotonic() - begun,
        names=names,
    )
    (out / "report.json").write_text(json.dumps(outcome.figures(), indent=1) + "\n", encoding="utf-8")
    (out / "report.html").write_text(page(outcome, shown, settings), encoding="utf-8")
    return outcome


def fresh(collection: Path) -> Path:
    """An empty place for a collection. Raises ``BadRequest`` rather than remove what is no collection of ours."""
    if collection.exists():
        if not (collection / "catalog.lance").is_dir():
            raise BadRequest("this is no collection, so it is not removed; give another --out", subject=str(collection))
        shutil.rmtree(collection)
    return collection


def _questions(folder: Path, own: bool, records: Sequence[ImageRecord], settings: Settings) -> list[Question]:
    """Questions about the photographs, or about a draw from the user's own folder."""
    known = {record.image_id for record in records}
    by_source = {record.source: record for record in records}
    if own:
        sources = [photograph.file for photograph in PHOTOGRAPHS]
    else:
        order = np.random.default_rng(SEED).permutation(len(by_source))
        sources = [sorted(by_source)[i] for i in order[:TARGETS]]
    with DecodePool(settings.decode, children=1) as decoder:
        originals = [_picture(decoder, source, (folder / source).read_bytes()) for source in sources]
        outside = STRANGERS if own else (*STRANGERS, *PHOTOGRAPHS)
        bodies = [(photograph.file, photograph.path().read_bytes()) for photograph in outside]
        drawn = [(f"stranger-{n}.jpg", jpeg(render(SEED, n, tuple(STRANGE)))) for n in range(STRANGER_COUNT)]
        strangers = [_picture(decoder, *each) for each in (*bodies, *drawn)[:STRANGER_COUNT]]
    asked = questions(originals, [picture for picture in strangers if picture.image_id not in known])
    return asked + splices(originals) if own else asked


def _picture(decoder: DecodePool, name: str, body: bytes) -> Picture:
    return Picture(
        name=name, body=body, rgb_HWC=decoder.decode(body).rgb_HWC, image_id=hashlib.sha256(body).hexdigest()
    )


def _ask_all(target: Asked, asked: Sequence[Question], label: str) -> list[tuple[Answer, float]]:
    answers = []
    with progress(label, len(asked)) as done:
        for question in asked:
            begun = time.monotonic()
            try:
                answer = target.search(question.body, Ask(k=K, deadline_ms=DEADLINE_MS))
            except StemmaError as error:
                raise type(error)(f"{question.name}: {error.detail}", subject=error.subject) from error
            answers.append((answer, 1e3 * (time.monotonic() - begun)))
            done(1)
    return answers


def _to_show(answers: Sequence[tuple[Answer, float]]) -> set[str]:
    return {image_id for answer, _ in answers for image_id in report.pictured(answer)}


def page(outcome: Outcome, originals: dict[str, Any], settings: Settings) -> str:
    """``report.html``: wrong answers first, then what was spliced, changed, benign, untouched and strange."""
    changed_min = report.shipped_changed_min()
    with DecodePool(settings.decode, children=1) as decoder:
        entries = [
            report.Entry(
                name=reply.question.name,
                answer=reply.served,
                query_HWC=query.rgb_HWC,
                query_size=(query.width, query.height),
                originals=originals,
                changed_min=changed_min,
                label=f"{reply.question.kind}: {reply.question.made}",
                wrong=" ".join(_wrong(reply, outcome)),
            )
            for reply in sorted(outcome.replies, key=_interest)
            for query in [decoder.decode(reply.question.body)]
        ]
    figures = outcome.figures()
    return report.render(
        entries,
        title="Where do these pictures come from, and what was changed?",
        lead=(
            f"{len(outcome.replies)} pictures were asked about, each twice: in one process, and of the same collection "
            "served on a Ray cluster over HTTP. Every answer below is the served one; wrong ones come first."
        ),
        figures=[
            (f"{figures['correct_original']} of {figures['queries']}", "originals right"),
            (f"{figures['correct_verdict']} of {figures['queries']}", "verdicts right"),
            *([(f"{outcome.traced} of {len(outcome.splices)}", "donors ranked first")] if outcome.splices else []),
            (f"{figures['images']:,}", "images in the collection"),
            (f"{figures['p50_ms']:.0f} ms", "median answer, HTTP"),
            ("equal" if figures["embedded_equals_served"] else "different", "embedded and served"),
        ],
        foot="Photographs: " + "; ".join(f"{each.file} ({each.credit})" for each in (*PHOTOGRAPHS, *STRANGERS)) + ".",
    )


def _interest(reply: Reply) -> tuple[bool, int]:
    """What a reader wants to see comes first."""
    return not any(_wrong_in(reply)) and not reply.apart, SHOWN.index(reply.question.kind)


def _wrong_in(reply: Reply) -> tuple[bool, bool, bool]:
    """Original, donor and verdict."""
    return not reply.right, reply.question.donor is not None and not reply.traced, not reply.judged


def _wrong(reply: Reply, outcome: Outcome) -> Iterator[str]:
    question = reply.question
    original, donor, verdict = _wrong_in(reply)
    if original:
        wanted = question.original
        yield (
            f"Wrong: the original is {outcome.names.get(wanted, wanted)}."
            if wanted
            else "Wrong: it has no original here."
        )
    elif donor:
        yield f"Wrong: the donor is {question.about}."
    elif verdict:
        yield f"Wrong: the right verdict is {question.verdict}."
    if reply.apart:
        yield f"Embedded and served differ: {'; '.join(reply.apart)}."
