"""Answers as one self-contained HTML page: verdict, query against its original, next candidates, small print.

Nothing comes from elsewhere: pictures are data URIs, and the page's own policy lets no script run but ``report.js``.
Light and dark follow the reader's system. Every string from outside is escaped by ``markup.text``. Letters: H, W
pixels, C channels.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import numpy as np

from stemma.api import Answer, Candidate, Comparison
from stemma.config import DecodeSettings
from stemma.errors import NotFound
from stemma.flow import Bytes3
from stemma.networks.weights import comparator_card
from stemma.report import donors
from stemma.report.comparison import CHANGED_MIN, CLASSES, Sight, compared, odds_bar, words
from stemma.report.markup import Html, called, join, percent, text, thumbnail
from stemma.vision.decode import DecodePool, read_working_copy
from stemma.vision.geometry import Size

PICTURE_PX = 480
CANDIDATE_PX = 132
CANDIDATES_SHOWN = 5

HEADLINES = {
    "identical": "Identical to an original",
    "benign": "An original, unchanged in what it shows",
    "manipulated": "Changed from its original",
    "inconclusive": "No answer can be trusted",
    "spliced": "Contains part of an original",
    "unknown": "No original here",
}
FOUND_ONLY = "Original found"
TOO_CLOSE = "Original found; whether it was changed is too close to call"
PAIR_HEADLINES = {
    "identical": "The same file",
    "benign": "The same picture, unchanged in what it shows",
    "manipulated": "The same picture, changed",
    "inconclusive": "The same picture; whether it was changed is too close to call",
    "spliced": "One contains part of the other",
    "unknown": "Two different pictures",
}
"""Of two pictures that were named, where nothing was searched for."""
STAGES = (
    *("identity", "decode", "encode", "search", "pixels", "compare"),
    *("objects", "donor_search", "donor_verify", "metadata"),
)
"""What the whole time is made of; other timings lie inside one of these."""
NEARNESS = "verification score (larger is surer) · squared distance of the embeddings (0 to 4)"


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """One answer with the pictures it speaks of."""

    name: str
    """What the query is called, e.g. its file name."""
    answer: Answer
    query_HWC: Bytes3 | None = None
    query_size: Size | None = None
    """(width, height) at full size, the pixels an answer speaks of; None where that is the working size."""
    originals: Mapping[str, Bytes3] = field(default_factory=dict)
    """Working copies by image id, of candidates and donors; what has none is shown by name alone."""
    changed_min: float = CHANGED_MIN
    """Probability from which the comparator's card calls a place changed."""
    label: str = ""
    """What the query is known to be, e.g. "benign: jpeg 62, crop"."""
    wrong: str = ""
    """Why the answer is known to be wrong; empty when it is right or nothing is known."""


class Source(Protocol):
    """Where originals' pixels come from: a ``Collection`` or a ``Client``."""

    def pixels(self, image_id: str) -> bytes: ...


def entry(name: str, body: bytes, answer: Answer, *, decoder: DecodePool, source: Source, **more: str) -> Entry:
    """An entry from the query's bytes, decoded in a child process as everywhere, and the originals' pixels."""
    query = decoder.decode(body)
    return Entry(
        name=name,
        answer=answer,
        query_HWC=query.rgb_HWC,
        query_size=(query.width, query.height),
        changed_min=shipped_changed_min(),
        originals=dict(_copies(source, pictured(answer))),
        **more,
    )


def _copies(source: Source, image_ids: Iterable[str]) -> Iterator[tuple[str, Bytes3]]:
    """Working copies by image id. One that was deleted since, as an answer ``as_of`` may name, is left out."""
    for image_id in image_ids:
        try:
            yield image_id, read_working_copy(source.pixels(image_id))
        except NotFound:
            continue


def pictured(answer: Answer) -> list[str]:
    """Image ids of the originals whose pictures an answer's page shows."""
    near = [candidate.image_id for candidate in answer.candidates[: CANDIDATES_SHOWN + 1]]
    return list(dict.fromkeys([*near, *(donor.image_id for donor in answer.donors if donor.shown)]))


def write_search_report(path: Path, answers: Sequence[tuple[Path, Answer]], source: Source) -> None:
    """The page of ``stemma search --report``. Raises ``OSError`` when it cannot be written."""
    with DecodePool(DecodeSettings(), children=1) as decoder:
        entries = [
            entry(query.name, query.read_bytes(), answer, decoder=decoder, source=source) for query, answer in answers
        ]
    found = sum(answer.original is not None for _, answer in answers)
    page = render(entries, title="Where these pictures come from", figures=summary(entries, found))
    path.write_text(page, encoding="utf-8")


def write_comparison_report(
    path: Path,
    query: bytes | Path,
    original: bytes | Path,
    comparison: Comparison,
    *,
    query_name: str = "",
    original_name: str = "",
) -> None:
    """The page of ``stemma compare --report``: two pictures, as bytes or files, and what the comparator says of them.

    ``original`` may be any form of it whose working copy was compared. Names default to the files'. Raises ``OSError``
    when a file cannot be read or the page not be written, and the decoder's errors.
    """
    with DecodePool(DecodeSettings(), children=1) as decoder:
        asked, known = decoder.decode(_body(query)), decoder.decode(_body(original))
    sight = Sight(
        comparison=comparison,
        query_HWC=asked.rgb_HWC,
        query_size=(asked.width, asked.height),
        original_HWC=known.rgb_HWC,
        query_name=query_name or _file_name(query, "query"),
        original_name=original_name or _file_name(original, "original"),
        changed_min=shipped_changed_min(),
    )
    lead = f"{sight.query_name} (query) against {sight.original_name} (original)"
    path.write_text(_document("What was changed", lead, "", pair_article(sight), ""), encoding="utf-8")


def shipped_changed_min() -> float:
    """From which probability on the shipped comparator calls a place changed; .5 where it is not shipped."""
    try:
        return comparator_card().heatmap_min
    except NotFound:
        return CHANGED_MIN


def _body(picture: bytes | Path) -> bytes:
    return picture if isinstance(picture, bytes) else picture.read_bytes()


def _file_name(picture: bytes | Path, otherwise: str) -> str:
    return otherwise if isinstance(picture, bytes) else picture.name


def summary(entries: Sequence[Entry], found: int) -> list[tuple[str, str]]:
    """The figures at the head of a page of answers."""
    figures = [
        (str(len(entries)), "pictures asked" if len(entries) != 1 else "picture asked"),
        (str(found), "originals found"),
    ]
    totals = sorted(each.answer.timings_ms["total"] for each in entries if "total" in each.answer.timings_ms)
    if entries:
        figures.append((f"{max(each.answer.coverage.images_total for each in entries):,}", "images searched"))
    if totals:
        figures.append((f"{totals[len(totals) // 2]:.0f} ms", "median answer"))
    return figures


def render(
    entries: Sequence[Entry], *, title: str, lead: str = "", figures: Iterable[tuple[str, str]] = (), foot: str = ""
) -> str:
    """The whole page; ``figures`` are (value, what it is) pairs at its head, entries stand in the order given."""
    tiles = join(f"<div><dt>{text(what)}</dt><dd>{text(value)}</dd></div>" for value, what in figures)
    return _document(
        title,
        lead,
        f'<dl class="figures">{tiles}</dl>' if tiles else "",
        join(article(each, f"a{number}") for number, each in enumerate(entries, 1)),
        f'<footer class="foot">{text(foot)}</footer>' if foot else "",
    )


def _document(title: str, lead: str, figures: str, cards: str, foot: str) -> str:
    """The page around its cards; a script stands in it only where a comparison or a donor is shown."""
    script = _read("report.js")
    needed = '<section class="compare' in cards or '<section class="parts' in cards
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode("ascii")
    policy = f"default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'sha256-{digest}'"
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        '<meta name="color-scheme" content="light dark">'
        f"<title>{text(title)}</title><style>{_read('report.css')}{_read('donors.css')}</style>"
        + (f"<script>{script}</script>" if needed else "")
        + f'</head><body><main><header class="head"><h1>{text(title)}</h1>'
        + (f"<p>{text(lead)}</p>" if lead else "")
        + f"{figures}</header>{cards}{foot}</main></body></html>\n"
    )


def _read(name: str) -> str:
    return Path(__file__).with_name(name).read_text(encoding="utf-8")


def article(each: Entry, anchor: str = "a1") -> Html:
    """One answer as a card: a comparison or parts with their donors where there are any, else query and original."""
    sight, whence = _sight(each), _whence(each, anchor)
    found = each.answer.original is not None
    parts = (
        _top(each),
        _said(sight) if sight is not None else _given(each, whence),
        _label(each),
        _wrong(each),
        _main(each, sight, whence),
        donors.section(whence, heading=donors.strip_heading(whence.donors)) if found else Html(""),
        donors.unsure(whence.donors),
        _notes(each.answer),
        others(each),
        details(each.answer),
    )
    state = " is-wrong" if each.wrong else ""
    return Html(f'<article class="card v-{text(_tone(each.answer))}{state}">{join(parts)}</article>')


def _main(each: Entry, sight: Sight | None, whence: donors.Whence) -> Html:
    """What the answer is about: the change, or the parts of a picture without an original, or the pictures alone."""
    if sight is not None:
        return compared(sight)
    if each.answer.original is None and whence.shown:
        return donors.section(whence)
    return pictures(each)


def _whence(each: Entry, anchor: str) -> donors.Whence:
    answer = each.answer
    comparison = answer.original.comparison if answer.original is not None else None
    height, width = each.query_HWC.shape[:2] if each.query_HWC is not None else (1, 1)
    laid = comparison is not None and comparison.transform is not None
    return donors.Whence(
        donors=answer.donors,
        query_name=each.name,
        query_HWC=each.query_HWC,
        query_size=each.query_size or (width, height),
        pictures=each.originals,
        original_from_query_33=np.asarray(comparison.transform, np.float64) if laid and comparison else None,
        anchor=anchor,
    )


def _given(each: Entry, whence: donors.Whence) -> Html:
    """What the donors say in a sentence and whose picture it is, where no original was found."""
    if each.answer.original is not None or not whence.shown:
        return Html("")
    return Html(f'<p class="words">{text(donors.words(whence))}</p>{_whose(("query", each.name))}')


def pair_article(sight: Sight) -> Html:
    """A comparison alone as a card, where nothing was searched for."""
    verdict = sight.comparison.verdict
    top = _header(verdict, PAIR_HEADLINES[verdict])
    return Html(f'<article class="card v-{text(verdict)}">{top}{_said(sight)}{compared(sight)}</article>')


def _sight(each: Entry) -> Sight | None:
    original = each.answer.original
    if original is None or original.comparison is None or each.query_HWC is None:
        return None
    pixels = each.originals.get(original.image_id)
    height, width = each.query_HWC.shape[:2]
    return (
        pixels
        if pixels is None
        else Sight(
            comparison=original.comparison,
            query_HWC=each.query_HWC,
            query_size=each.query_size or (width, height),
            original_HWC=pixels,
            query_name=each.name,
            original_name=called(original),
            changed_min=each.changed_min,
        )
    )


def _said(sight: Sight) -> Html:
    """What was found in words, and whose pictures these are."""
    whose = _whose(("query", sight.query_name), ("original", sight.original_name))
    return Html(f'<p class="words">{text(words(sight))}</p>{whose}')


def _whose(*names: tuple[str, str]) -> Html:
    whose = join(f'<span><b>{role}</b> <span class="name">{text(name)}</span></span>' for role, name in names)
    return Html(f'<p class="whose">{whose}</p>')


def headline(answer: Answer) -> str:
    """The verdict as a person would say it."""
    if answer.verdict == "inconclusive" and answer.original is not None:
        return FOUND_ONLY if answer.original.comparison is None else TOO_CLOSE
    return HEADLINES[answer.verdict]


def pictures(each: Entry) -> Html:
    """Query and original side by side, or the query beside an empty frame."""
    query = _figure(each.query_HWC, "Query", each.name, PICTURE_PX)
    original = each.answer.original
    if original is None:
        return Html(f'<div class="pair">{query}<div class="none"><span>no original</span></div></div>')
    shown = _figure(each.originals.get(original.image_id), "Original", called(original), PICTURE_PX)
    return Html(f'<div class="pair">{query}{shown}</div>')


def others(each: Entry) -> Html:
    """The next candidates in a strip, nearest first."""
    original = each.answer.original
    rest = [c for c in each.answer.candidates if original is None or c.image_id != original.image_id][:CANDIDATES_SHOWN]
    if not rest:
        return Html("")
    items = join(
        f"<li>{_image(each.originals.get(c.image_id), called(c), CANDIDATE_PX)}"
        f'<span class="name" title="{text(called(c))}">{text(called(c))}</span>'
        f'<span class="num" title="{NEARNESS}">{text(_nearness(c))}</span>{_likely(c)}</li>'
        for c in rest
    )
    what = "Next candidates" if original is not None else "Nearest, none of them verified"
    return Html(f'<section class="strip"><h3>{what}</h3><ol>{items}</ol></section>')


def details(answer: Answer) -> Html:
    """Timings, settings, versions and coverage, folded away."""
    rows = [
        ("time", _timings(answer)),
        ("searched", text(_coverage(answer))),
        ("settings", text(_used(answer))),
        (
            "versions",
            text(
                f"collection {answer.versions.seq} · codec {answer.versions.codec} · weights {answer.versions.weights}"
            ),
        ),
        ("query id", text(answer.query_id)),
    ]
    body = join(f"<dt>{text(name)}</dt><dd>{value}</dd>" for name, value in rows)
    warning = "" if answer.coverage.complete else f'<p class="warn">{text(_coverage(answer))}</p>'
    total = answer.timings_ms.get("total")
    brief = f"{total:.0f} ms · " if total is not None else ""
    brief += f"{answer.coverage.images_searched:,} images searched · version {answer.versions.seq}"
    return Html(f"{warning}<details><summary>{text(brief)}</summary><dl>{body}</dl></details>")


def _top(each: Entry) -> Html:
    answer = each.answer
    sure, what = (
        ("exact", "same bytes") if answer.verdict == "identical" else (percent(answer.confidence), "confidence")
    )
    figure = (
        f'<div class="sure" title="calibrated probability that the verdict is right"><b>{text(sure)}</b>'
        f"<span>{what}</span></div>"
    )
    return _header(answer.verdict, headline(answer), figure)


def _label(each: Entry) -> Html:
    return Html(f'<p class="label">{text(each.label)}</p>' if each.label else "")


def _header(verdict: str, said: str, figure: str = "") -> Html:
    return Html(f'<header><div><span class="badge">{text(verdict)}</span><h2>{text(said)}</h2></div>{figure}</header>')


def _wrong(each: Entry) -> Html:
    return Html(f'<p class="warn">{text(each.wrong)}</p>') if each.wrong else Html("")


def _notes(answer: Answer) -> Html:
    return join(f'<p class="note">{text(note[:1].upper() + note[1:])}</p>' for note in answer.notes)


def _figure(rgb_HWC: Bytes3 | None, role: str, name: str, side_px: int) -> Html:
    caption = f'<figcaption><b>{text(role)}</b> <span class="name">{text(name)}</span></figcaption>'
    return Html(f'<figure><div class="frame">{_image(rgb_HWC, name, side_px)}</div>{caption}</figure>')


def _image(rgb_HWC: Bytes3 | None, name: str, side_px: int) -> Html:
    if rgb_HWC is None:
        return Html('<div class="blank">no picture</div>')
    height, width = rgb_HWC.shape[:2]
    return Html(f'<img src="{thumbnail(rgb_HWC, side_px)}" width="{width}" height="{height}" alt="{text(name)}">')


def _nearness(candidate: Candidate) -> str:
    match = "" if candidate.match is None else f"match {candidate.match:.1f} · "
    return f"{match}at {candidate.refined_distance:.2f}"


def _likely(candidate: Candidate) -> Html:
    """What the comparator says of a candidate that it saw, in small."""
    odds = candidate.probabilities
    if odds is None:
        return Html("")
    said = max(CLASSES, key=lambda each: float(getattr(odds, each[0])))
    return Html(f'{odds_bar(odds)}<span class="num">{said[1]} {text(percent(getattr(odds, said[0])))}</span>')


def _tone(answer: Answer) -> str:
    original = answer.original
    only_found = answer.verdict == "inconclusive" and original is not None and original.comparison is None
    return "found" if only_found else answer.verdict


def _coverage(answer: Answer) -> str:
    coverage = answer.coverage
    missing = f"; did not answer: {', '.join(coverage.missing_hosts)}" if coverage.missing_hosts else ""
    all_of = "all " if coverage.complete else f"only {coverage.images_searched:,} of "
    return f"{all_of}{coverage.images_total:,} images{missing}"


def _used(answer: Answer) -> str:
    used = answer.used
    parts = [
        f"k {used.k}",
        "exact search" if used.exact else f"{used.nprobe} lists probed",
        f"{used.reranked} compared",
    ]
    return " · ".join([*parts, *([f"filter {used.filter}"] if used.filter else [])])


def _timings(answer: Answer) -> Html:
    """Stages as a bar whose parts are as long as they took, then as numbers."""
    stages = {k: v for k, v in answer.timings_ms.items() if k != "total"}
    total = answer.timings_ms.get("total", sum(stages.values())) or 1.0
    inner = [name for name in STAGES if name in stages]
    bar = join(
        f'<i style="width:{min(100.0, 100 * stages[name] / total):.2f}%" title="{text(name)}"></i>' for name in inner
    )
    words = " · ".join([f"{name} {value:.1f}" for name, value in stages.items()] + [f"total {total:.1f} ms"])
    return Html(f'<span class="bar" aria-hidden="true">{bar}</span>{text(words)}')
