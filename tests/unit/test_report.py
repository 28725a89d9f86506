"""The page of answers: what is from outside is escaped, nothing is fetched, the right things are shown."""

from __future__ import annotations

import base64
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stemma.api import Answer, Candidate, Coverage, Donor, Used, Verdict, Versions
from stemma.errors import NotFound
from stemma.flow import Pixels
from stemma.report import Entry, called, headline, render, summary, text, write_search_report
from stemma.report.markup import thumbnail
from stemma.vision.decode import working_copy

VOID = {"meta", "img", "br", "link"}
HOSTILE = "\"><script>alert(1)</script><img src=x onerror='alert(2)'>\u202egpj.exe\x00\n"


def picture(seed: int, height: int = 60, width: int = 90) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)


def candidate(image_id: str, **metadata: Any) -> Candidate:
    return Candidate(image_id=image_id, distance=0.2, refined_distance=0.21, match=17.3, metadata=metadata)


def answer(verdict: Verdict = "unknown", *candidates: Candidate, found: bool = False, **more: Any) -> Answer:
    known: dict[str, Any] = {
        "query_id": "id-1",
        "confidence": 0.873,
        "coverage": Coverage(complete=True, images_searched=1234, images_total=1234),
        "used": Used(k=10, nprobe=0, reranked=0, exact=True),
        "versions": Versions(seq=7, codec="exact", weights="feed"),
        "timings_ms": {"decode": 3.0, "encode": 45.0, "search": 60.0, "total": 110.0},
    }
    known.update(more)
    return Answer(verdict=verdict, original=candidates[0] if found else None, candidates=candidates, **known)


class Page(HTMLParser):
    """Tags, attributes and visible text of a page; fails on tags that do not close in order."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self.feed(page)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if "style" not in self.open:
            self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join(self.words)


def test_hostile_names_metadata_and_notes_stay_text() -> None:
    found = answer(
        "inconclusive",
        candidate("a" + HOSTILE, name=HOSTILE),
        candidate("b" + HOSTILE),
        found=True,
        notes=(HOSTILE,),
        query_id=HOSTILE,
        coverage=Coverage(complete=False, images_searched=1, images_total=2, missing_hosts=(HOSTILE,)),
        used=Used(k=10, nprobe=4, reranked=0, exact=False, filter=HOSTILE),
        versions=Versions(seq=7, codec=HOSTILE, weights=HOSTILE),
        timings_ms={HOSTILE: 1.0, "total": 2.0},
    )
    entry = Entry(name=HOSTILE, answer=found, query_HWC=picture(0), label=HOSTILE, wrong=HOSTILE)
    page = render([entry], title=HOSTILE, lead=HOSTILE, figures=[(HOSTILE, HOSTILE)], foot=HOSTILE)
    parsed = Page(page)
    assert not {tag for tag, _ in parsed.tags} & {"script", "iframe", "object", "link", "svg", "base", "form"}
    assert not any(name.startswith("on") for _, attributes in parsed.tags for name in attributes)
    sources = [attributes["src"] or "" for tag, attributes in parsed.tags if tag == "img"]
    assert sources and all(source.startswith("data:image/jpeg;base64,") for source in sources)
    assert parsed.text.count("<script>alert(1)</script>") >= 10  # shown as what it is
    assert "\x00" not in page and "\u202e" not in page


@given(st.text(max_size=40))
@settings(max_examples=60, deadline=None)
def test_text_neither_opens_a_tag_nor_leaves_an_attribute(value: str) -> None:
    safe = text(value)
    assert not set(safe) & set("<>\"'\0\u202e")
    assert re.sub(r"&(amp|lt|gt|quot|#x27);", "", safe).count("&") == 0
    page = Page(f'<p title="{safe}">{safe}</p>')
    assert [tag for tag, _ in page.tags] == ["p"] and list(page.tags[0][1]) == ["title"]


def test_nothing_is_fetched_from_elsewhere() -> None:
    page = render([Entry(name="q.jpg", answer=answer(), query_HWC=picture(0))], title="t")
    assert not re.search(r"https?:|url\(|@import|src=\"(?!data:)|href=", page)
    assert "prefers-color-scheme:dark" in page.replace(" ", "")


@pytest.mark.parametrize("verdict", ["identical", "benign", "manipulated", "inconclusive", "spliced", "unknown"])
@pytest.mark.parametrize("found", [True, False])
def test_every_verdict_reads_as_a_sentence(verdict: Verdict, found: bool) -> None:
    said = answer(verdict, candidate("a", name="cat.png"), found=found)
    page = Page(render([Entry(name="q.jpg", answer=said)], title="t"))
    assert headline(said) in page.text and verdict in page.text
    assert ("no original" in page.words) is not found


def test_a_found_original_is_not_called_untrusted() -> None:
    assert headline(answer("inconclusive", candidate("a"), found=True)) == "Original found"
    assert headline(answer("inconclusive", candidate("a"))) == "No answer can be trusted"


@pytest.mark.parametrize(("confidence", "shown"), [(0.873, "87%"), (0.9951, "> 99%"), (0.004, "< 1%"), (1.0, "100%")])
def test_confidence_is_a_percentage_that_claims_no_certainty(confidence: float, shown: str) -> None:
    page = Page(render([Entry(name="q", answer=answer(confidence=confidence))], title="t"))
    assert shown in page.words and "confidence" in page.words


def test_the_same_bytes_are_no_matter_of_confidence() -> None:
    same = answer("identical", candidate("a"), found=True, confidence=1.0)
    assert "same bytes" in Page(render([Entry(name="q", answer=same)], title="t")).words


def test_the_original_stands_beside_the_query_and_not_again_below() -> None:
    found = answer("benign", *(candidate(name, name=f"{name}.jpg") for name in "abcdefgh"), found=True)
    shown = {name: picture(i) for i, name in enumerate("abcdefgh")}
    page = Page(render([Entry(name="q.jpg", answer=found, query_HWC=picture(99), originals=shown)], title="t"))
    assert [attributes["alt"] for tag, attributes in page.tags if tag == "img"] == [
        *("q.jpg", "a.jpg"),
        *("b.jpg", "c.jpg", "d.jpg", "e.jpg", "f.jpg"),
    ]


def test_a_candidate_without_a_name_or_a_picture_is_still_there() -> None:
    page = Page(render([Entry(name="q", answer=answer("unknown", candidate("0123abc")))], title="t"))
    assert "0123abc" in page.text and "no picture" in page.text
    assert called(candidate("x", name="")) == "x"


def test_a_partial_answer_says_so_outside_the_small_print() -> None:
    part = Coverage(complete=False, images_searched=900, images_total=1234, missing_hosts=("host-2",))
    page = render([Entry(name="q", answer=answer(coverage=part))], title="t")
    before_details = page[page.index("<article") : page.index("<details")]
    assert "only 900 of 1,234 images; did not answer: host-2" in before_details
    whole = render([Entry(name="q", answer=answer())], title="t")
    assert 'class="warn"' not in whole


def test_entries_keep_their_order_and_wrong_ones_say_why() -> None:
    entries = [Entry(name=name, answer=answer(), wrong=wrong) for name, wrong in (("zz.jpg", "Wrong."), ("aa.jpg", ""))]
    page = Page(render(entries, title="t"))
    assert page.text.index("Wrong.") < page.text.index("zz.jpg") < page.text.index("aa.jpg")
    assert [attributes["class"] for tag, attributes in page.tags if tag == "article"] == [
        "card v-unknown is-wrong",
        "card v-unknown",
    ]


@pytest.mark.parametrize(("height", "width", "shown"), [(100, 400, (50, 200)), (30, 20, (30, 20)), (1, 5000, (1, 200))])
def test_thumbnails_are_small_jpegs_of_the_picture_and_never_enlarged(
    height: int, width: int, shown: tuple[int, int]
) -> None:
    body = base64.b64decode(thumbnail(np.full((height, width, 3), (200, 30, 60), np.uint8), 200).partition(",")[2])
    back = cv2.imdecode(np.frombuffer(body, np.uint8), cv2.IMREAD_COLOR)[..., ::-1]
    assert back.shape[:2] == shown
    assert np.abs(back.reshape(-1, 3).mean(0) - (200, 30, 60)).max() < 4  # red stays red


def test_the_summary_counts_and_takes_the_median() -> None:
    entries = [Entry(name=str(ms), answer=answer(timings_ms={"total": ms})) for ms in (300.0, 10.0, 20.0)]
    assert summary(entries, 2) == [
        ("3", "pictures asked"),
        ("2", "originals found"),
        ("1,234", "images searched"),
        ("20 ms", "median answer"),
    ]
    assert summary([], 0) == [("0", "pictures asked"), ("0", "originals found")]


def test_the_command_writes_a_page_with_both_pictures(tmp_path: Path) -> None:
    query = tmp_path / "q & a.png"
    cv2.imwrite(str(query), picture(1))
    stored = Pixels(rgb_HWC=picture(2), width=90, height=60, sha256="0", format="PNG")

    class Source:
        asked: list[str] = []  # noqa: RUF012 - one test, one source

        def pixels(self, image_id: str) -> bytes:
            self.asked.append(image_id)
            return working_copy(stored)

    found = answer("benign", *(candidate(str(i), name=f"{i}.jpg") for i in range(20)), found=True)
    write_search_report(tmp_path / "out.html", [(query, found)], Source())
    page = Page((tmp_path / "out.html").read_text(encoding="utf-8"))
    assert sum(tag == "img" for tag, _ in page.tags) == 7
    assert Source.asked == [str(i) for i in range(6)]  # pixels are fetched for what is shown, no more
    assert "q & a.png" in page.text


def test_an_original_that_was_deleted_since_is_shown_by_name_alone(tmp_path: Path) -> None:
    query = tmp_path / "q.png"
    cv2.imwrite(str(query), picture(1))

    class Source:
        def pixels(self, image_id: str) -> bytes:
            raise NotFound("there is no image", subject=image_id)

    given_by = Donor(
        image_id="2", query_box=(1, 2, 30, 40), donor_box=(1, 2, 30, 40), distance=0.1, probability=0.9, shown=True
    )
    found = answer("spliced", candidate("1", name="gone.jpg"), donors=(given_by,))
    write_search_report(tmp_path / "out.html", [(query, found)], Source())
    page = Page((tmp_path / "out.html").read_text(encoding="utf-8"))
    assert "gone.jpg" in page.text and page.text.count("no picture") == 2
