"""Answers as one self-contained HTML page: query and original side by side, verdict, next candidates, small print.

No script, no font and no picture comes from elsewhere; pictures are JPEG data URIs. Light and dark follow the reader's
system. Every string from outside (file names, metadata, notes) is escaped by ``text``, the only way into ``Html``.
Letters: H, W pixels, C channels.
"""

from __future__ import annotations

import base64
import html
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NewType, Protocol

import cv2
import numpy as np

from stemma.api import Answer, Candidate
from stemma.config import DecodeSettings
from stemma.flow import Bytes3
from stemma.vision.decode import DecodePool, read_working_copy

Html = NewType("Html", str)
"""Text that may stand in the page as it is."""

PICTURE_PX = 480
CANDIDATE_PX = 132
CANDIDATES_SHOWN = 5
THUMBNAIL_QUALITY = 82

HEADLINES = {
    "identical": "Identical to an original",
    "benign": "An original, unchanged in what it shows",
    "manipulated": "Changed from its original",
    "inconclusive": "No answer can be trusted",
    "spliced": "Contains part of an original",
    "unknown": "No original here",
}
FOUND_ONLY = "Original found"
NEARNESS = "verification score (larger is surer) · squared distance of the embeddings (0 to 4)"


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """One answer with the pictures it speaks of."""

    name: str
    """What the query is called, e.g. its file name."""
    answer: Answer
    query_HWC: Bytes3 | None = None
    originals: Mapping[str, Bytes3] = field(default_factory=dict)
    """Working copies by image id; a candidate without one is shown by name alone."""
    label: str = ""
    """What the query is known to be, e.g. "benign: jpeg 62, crop"."""
    wrong: str = ""
    """Why the answer is known to be wrong; empty when it is right or nothing is known."""


class Source(Protocol):
    """Where originals' pixels come from: a ``Collection`` or a ``Client``."""

    def pixels(self, image_id: str) -> bytes: ...


def entry(name: str, body: bytes, answer: Answer, *, decoder: DecodePool, source: Source, **more: str) -> Entry:
    """An entry from the query's bytes, decoded in a child process as everywhere, and the originals' pixels."""
    ids = [candidate.image_id for candidate in answer.candidates[: CANDIDATES_SHOWN + 1]]
    return Entry(
        name=name,
        answer=answer,
        query_HWC=decoder.decode(body).rgb_HWC,
        originals={image_id: read_working_copy(source.pixels(image_id)) for image_id in ids},
        **more,
    )


def write_search_report(path: Path, answers: Sequence[tuple[Path, Answer]], source: Source) -> None:
    """The page of ``stemma search --report``. Raises ``OSError`` when it cannot be written."""
    with DecodePool(DecodeSettings(), children=1) as decoder:
        entries = [
            entry(query.name, query.read_bytes(), answer, decoder=decoder, source=source) for query, answer in answers
        ]
    found = sum(answer.original is not None for _, answer in answers)
    page = render(entries, title="Where these pictures come from", figures=summary(entries, found))
    path.write_text(page, encoding="utf-8")


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
    style = Path(__file__).with_name("report.css").read_text(encoding="utf-8")
    tiles = join(f"<div><dt>{text(what)}</dt><dd>{text(value)}</dd></div>" for value, what in figures)
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        '<meta name="color-scheme" content="light dark">'
        f"<title>{text(title)}</title><style>{style}</style></head><body><main>"
        f'<header class="head"><h1>{text(title)}</h1>'
        + (f"<p>{text(lead)}</p>" if lead else "")
        + (f'<dl class="figures">{tiles}</dl>' if tiles else "")
        + f"</header>{join(article(each) for each in entries)}"
        + (f'<footer class="foot">{text(foot)}</footer>' if foot else "")
        + "</main></body></html>\n"
    )


def article(each: Entry) -> Html:
    """One answer as a card. Later sections (a slider, a heatmap) go between ``pictures`` and ``others``."""
    parts = (_top(each), _wrong(each), pictures(each), _notes(each.answer), others(each), details(each.answer))
    state = " is-wrong" if each.wrong else ""
    return Html(f'<article class="card v-{text(_tone(each.answer))}{state}">{join(parts)}</article>')


def headline(answer: Answer) -> str:
    """The verdict as a person would say it."""
    if answer.verdict == "inconclusive" and answer.original is not None:
        return FOUND_ONLY
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
        f'<span class="num" title="{NEARNESS}">{text(_nearness(c))}</span></li>'
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
    return Html(f"{warning}<details><summary>{text(brief)}how it was answered</summary><dl>{body}</dl></details>")


def called(candidate: Candidate) -> str:
    """The original's name if it has one, else its id."""
    return str(candidate.metadata.get("name") or candidate.image_id)


def text(value: object) -> Html:
    """Any value as escaped text, quotes and control characters included: file names are hostile."""
    plain = "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in str(value))
    return Html(html.escape(plain, quote=True))


def join(parts: Iterable[str]) -> Html:
    """Pieces of the page, one after another."""
    return Html("".join(parts))


def thumbnail(rgb_HWC: Bytes3, side_px: int) -> str:
    """A JPEG data URI whose longer side is at most ``side_px``; never enlarged."""
    height, width = rgb_HWC.shape[:2]
    scale = min(1.0, side_px / max(height, width))
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    small = cv2.resize(np.ascontiguousarray(rgb_HWC), size, interpolation=cv2.INTER_AREA)
    done, body = cv2.imencode(".jpg", small[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, THUMBNAIL_QUALITY])
    assert done
    return "data:image/jpeg;base64," + base64.b64encode(body.tobytes()).decode("ascii")


def _top(each: Entry) -> Html:
    answer = each.answer
    sure = "> 99%" if 0.99 < answer.confidence < 1 else f"{100 * answer.confidence:.0f}%"
    sure, what = ("exact", "same bytes") if answer.verdict == "identical" else (sure, "confidence")
    return Html(
        f'<header><div><span class="badge">{text(answer.verdict)}</span><h2>{text(headline(answer))}</h2></div>'
        f'<div class="sure" title="calibrated probability that the verdict is right">'
        f"<b>{text(sure)}</b><span>{what}</span></div>"
        f"</header>" + (f'<p class="label">{text(each.label)}</p>' if each.label else "")
    )


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
    return Html(
        f'<img src="{thumbnail(rgb_HWC, side_px)}" width="{width}" height="{height}" alt="{text(name)}" loading="lazy">'
    )


def _nearness(candidate: Candidate) -> str:
    match = "" if candidate.match is None else f"match {candidate.match:.1f} · "
    return f"{match}at {candidate.refined_distance:.2f}"


def _tone(answer: Answer) -> str:
    return "found" if answer.verdict == "inconclusive" and answer.original is not None else answer.verdict


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
    inner = [name for name in ("identity", "decode", "encode", "search", "metadata") if name in stages]
    bar = join(
        f'<i style="width:{min(100.0, 100 * stages[name] / total):.2f}%" title="{text(name)}"></i>' for name in inner
    )
    words = " · ".join([f"{name} {value:.1f}" for name, value in stages.items()] + [f"total {total:.1f} ms"])
    return Html(f'<span class="bar" aria-hidden="true">{bar}</span>{text(words)}')
