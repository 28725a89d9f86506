"""The demo's run against a collection that answers as told: counts, comparison, files, and nothing left running."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from evaluation import commands
from evaluation import demo as room
from evaluation.demo import Outcome, Reply, fresh
from evaluation.questions import KINDS, Question
from stemma.api import Answer, Ask, Donor, ImageRecord
from stemma.config import Settings
from stemma.errors import BadRequest, Unavailable
from stemma.vision.decode import decode, working_copy

MakeAnswer = Callable[..., Answer]
ASKED = 60


class Fake:
    """A collection that knows every file's digest, answers by nearest hue; its last ``lies`` answers are wrong."""

    def __init__(self, make_answer: MakeAnswer, *, lies: int = 0) -> None:
        self.make_answer = make_answer
        self.lies = lies
        self.asked = 0
        self.bodies: dict[str, bytes] = {}
        self.records: list[ImageRecord] = []
        self.closed = False

    def __enter__(self) -> Fake:
        return self

    def __exit__(self, *_: object) -> None:
        self.closed = True

    def ingest(self, folder: Path, *, progress: Callable[[int], None]) -> None:
        for path in sorted(each for each in folder.iterdir() if each.suffix == ".jpg"):
            pixels = decode(path.read_bytes(), Settings().decode)
            self.bodies[pixels.sha256] = working_copy(pixels)
            self.records.append(
                ImageRecord(
                    image_id=pixels.sha256,
                    sha256=pixels.sha256,
                    width=pixels.width,
                    height=pixels.height,
                    seq=1,
                    source=path.name,
                    metadata={"name": path.name},
                )
            )
            progress(1)

    def __iter__(self) -> Iterator[ImageRecord]:
        return iter(self.records)

    def pixels(self, image_id: str) -> bytes:
        return self.bodies[image_id]

    def search(self, image: bytes, ask: Ask | None = None) -> Answer:
        hue = _hue(image)
        near = sorted(self.bodies, key=lambda image_id: abs(_hue(self.bodies[image_id]) - hue))
        self.asked += 1
        if self.asked > ASKED - self.lies:
            near = near[::-1]
        return self.make_answer(near, found=_hue(image) < 170, verdict="benign")


@cache
def _hue(body: bytes) -> float:
    rgb_HWC = decode(body, Settings().decode).rgb_HWC
    return float(np.median(cv2.cvtColor(rgb_HWC, cv2.COLOR_RGB2HSV)[..., 0]))


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    folder = tmp_path / "photos"
    folder.mkdir()
    for hue in (10, 60, 110):
        noise = np.random.default_rng(hue).integers(90, 256, (12, 16))
        hsv = np.stack([np.full_like(noise, hue), np.full_like(noise, 255), noise], -1).astype(np.uint8)
        big = cv2.resize(cv2.cvtColor(hsv, cv2.COLOR_HSV2BGR), (160, 120))
        cv2.imwrite(str(folder / f"hue-{hue}.jpg"), big)
    (folder / "notes.txt").write_text("no picture")
    return folder


@pytest.fixture
def run(tmp_path: Path, photos: Path, make_answer: MakeAnswer, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    """Run the demo on three pictures; the last ``lies`` served answers are wrong."""
    # Only colours that the fake can tell apart are asked about; the real questions have their own tests.
    monkeypatch.setattr(room, "questions", lambda originals, _: [_ask_for(each) for each in originals] * 20)

    def go(*, lies: int = 0, broken: bool = False) -> tuple[Outcome, Fake, list[str]]:
        fake, said = Fake(make_answer), []
        monkeypatch.setattr(room, "open_collection", lambda url, settings: fake)

        @contextmanager
        def hosting(url: str, settings: Settings) -> Iterator[Fake]:
            assert fake.closed, "the embedded collection must have let go before it is served"
            said.append("up")
            try:
                served = Fake(make_answer, lies=lies)
                served.bodies = fake.bodies
                yield served
                if broken:
                    raise Unavailable("gone")
            finally:
                said.append("down")

        return room.demo(photos, tmp_path / "out", Settings(), hosting), fake, said

    return go


def _ask_for(picture: Any) -> Question:
    return Question(
        name=f"{picture.name} <b>",
        kind="benign",
        made="as it is",
        body=picture.body,
        original=picture.image_id,
        about="x",
    )


def test_right_answers_pass_and_are_written_down(run: Callable[..., Any], tmp_path: Path) -> None:
    outcome, _, said = run()
    assert said == ["up", "down"] and outcome.passed
    report = json.loads((tmp_path / "out/report.json").read_text())
    assert {
        "images": 3,
        "queries": 60,
        "correct_original": 60,
        "correct_verdict": 60,
        "embedded_equals_served": True,
    }.items() <= report.items()
    assert report["p50_ms"] >= 0 and report["seconds"] > 0
    assert report["kinds"]["benign"] == {"right": 60, "verdict": 60, "n": 60}
    page = (tmp_path / "out/report.html").read_text()
    assert page.count("<article") == 60 and "is-wrong" not in page.partition("</style>")[2] and "<b>" in page


def test_one_wrong_served_answer_is_a_disagreement_shown_first(run: Callable[..., Any], tmp_path: Path) -> None:
    outcome, _, _ = run(lies=1)
    assert not outcome.passed and len(outcome.disagreements) == 1
    assert outcome.correct == 59  # 98%: enough, were it not for the disagreement
    page = (tmp_path / "out/report.html").read_text()
    first = page[page.index("<article") : page.index("</article")]
    assert "is-wrong" in first and "Wrong: the original is hue-" in first and "Embedded and served differ" in first


def test_under_the_bar_fails_even_when_both_agree(make_answer: MakeAnswer) -> None:
    def outcome(wrong: int, verdict: str = "manipulated", unsure: int = 0) -> Outcome:
        replies = []
        for i in range(100):
            said = "inconclusive" if i >= 100 - unsure else verdict
            answer = make_answer(["a" if i >= wrong else "b"], found=True, verdict=said)
            question = Question(name=str(i), kind="both", made="", body=b"", original="a", about="a.jpg")
            replies.append(Reply(question=question, embedded=answer, served=answer, embedded_ms=1.0, served_ms=2.0))
        return Outcome(replies=replies, images=1, seconds=1.0, names={"a": "a.jpg"})

    assert outcome(3).passed and not outcome(4).passed
    assert outcome(0, unsure=10).passed and not outcome(0, unsure=11).passed  # abstaining is not right
    assert outcome(3, unsure=7).passed and not outcome(3, unsure=8).passed  # nor a verdict on the wrong original
    assert outcome(0, verdict="benign").verdicts == 0


def test_a_wrong_verdict_on_the_right_original_is_shown_first_with_the_right_one(
    make_answer: MakeAnswer, photos: Path
) -> None:
    body = next(photos.glob("*.jpg")).read_bytes()
    replies = []
    for verdict in ("manipulated", "inconclusive"):
        answer = make_answer(["a"], found=True, verdict=verdict)
        question = Question(name=verdict, kind="both", made="", body=body, original="a", about="a.jpg")
        replies.append(Reply(question=question, embedded=answer, served=answer, embedded_ms=1.0, served_ms=2.0))
    page = room.page(Outcome(replies=replies, images=1, seconds=1.0, names={"a": "a.jpg"}), {}, Settings())
    first = page[page.index("<article") : page.index("</article")]
    assert "is-wrong" in first and "Wrong: the right verdict is manipulated." in first
    assert page.count('is-wrong"') == 1


def test_the_page_begins_with_what_was_changed(make_answer: MakeAnswer, photos: Path) -> None:
    assert set(room.SHOWN) == set(KINDS)
    body = next(photos.glob("*.jpg")).read_bytes()
    replies = []
    for kind in KINDS:
        question = Question(name=kind, kind=kind, made="", body=body, original="a", about="a.jpg")
        answer = make_answer(["a"], found=True, verdict=question.verdict)
        replies.append(Reply(question=question, embedded=answer, served=answer, embedded_ms=1.0, served_ms=2.0))
    page = room.page(Outcome(replies=replies, images=1, seconds=1.0, names={"a": "a.jpg"}), {}, Settings())
    assert re.findall(r'class="label">(\w+):', page) == [
        *("splice", "both", "manipulated", "benign", "untouched", "stranger"),
    ]


def splice_reply(make_answer: MakeAnswer, first: str, body: bytes = b"", *, shown: bool = True) -> Reply:
    """A splice of donor "d"; the answer ranks ``first`` before it."""
    question = Question(name="s", kind="splice", made="", body=body, original=None, donor="d", about="d.jpg")
    given = [
        Donor(image_id=each, query_box=(2, 2, 9, 9), donor_box=(2, 2, 9, 9), distance=0.1, probability=0.9, shown=shown)
        for each in dict.fromkeys((first, "d"))
    ]
    answer = make_answer(["b"], donors=given, verdict="spliced" if shown else "unknown")
    return Reply(question=question, embedded=answer, served=answer, embedded_ms=1.0, served_ms=2.0)


def test_splices_have_a_bar_of_their_own_and_no_part_in_the_others(make_answer: MakeAnswer) -> None:
    known = make_answer(["a"], found=True, verdict="benign")
    plain = Question(name="p", kind="benign", made="", body=b"", original="a", about="a.jpg")
    asked = [Reply(question=plain, embedded=known, served=known, embedded_ms=1.0, served_ms=2.0)] * 10

    def outcome(right: int, **more: bool) -> Outcome:
        splices = [splice_reply(make_answer, "d" if i < right else "x", **more) for i in range(10)]
        return Outcome(replies=[*asked, *splices], images=1, seconds=1.0, names={})

    assert outcome(5).passed and not outcome(4).passed
    figures = outcome(7, shown=False).figures()
    assert outcome(7, shown=False).passed  # ranked first counts, whether it is sure enough to be shown or not
    assert {"queries": 10, "splices": 10, "donor_at_1": 0.7, "correct_verdict": 10}.items() <= figures.items()
    assert figures["kinds"]["splice"] == {"right": 10, "verdict": 0, "n": 10}
    without = Outcome(replies=asked, images=1, seconds=1.0, names={})
    assert without.passed and without.figures()["donor_at_1"] is None


def test_a_wrong_donor_is_named_on_the_page_and_in_the_table(make_answer: MakeAnswer, photos: Path) -> None:
    body = next(photos.glob("*.jpg")).read_bytes()
    replies = [splice_reply(make_answer, first, body) for first in ("d", "x")]
    outcome = Outcome(replies=replies, images=1, seconds=1.0, names={"d": "d.jpg", "x": "x.jpg"})
    page = room.page(outcome, {}, Settings())
    first = page[page.index("<article") : page.index("</article")]
    assert "Wrong: the donor is d.jpg." in first and page.count('is-wrong"') == 1 and "1 of 2" in page
    right, wrong = (commands._row(reply, outcome)[3] for reply in replies)
    assert right == "from d.jpg" and "x.jpg (wrong)" in wrong
    assert commands._row(splice_reply(make_answer, "d", shown=False), outcome)[3] == "from d.jpg, unsure"


def test_the_server_is_stopped_when_asking_fails(run: Callable[..., Any]) -> None:
    with pytest.raises(Unavailable):
        run(broken=True)


def test_the_users_pictures_are_never_touched(run: Callable[..., Any], photos: Path, tmp_path: Path) -> None:
    before = {path.name: path.read_bytes() for path in photos.iterdir()}
    run()
    assert {path.name: path.read_bytes() for path in photos.iterdir()} == before


def test_a_folder_without_pictures_is_refused(run: Callable[..., Any], photos: Path) -> None:
    for path in photos.glob("*.jpg"):
        path.unlink()
    with pytest.raises(BadRequest, match="no picture"):
        run()
    shutil.rmtree(photos)
    with pytest.raises(BadRequest, match="folder"):
        run()


def test_only_a_collection_is_ever_removed(tmp_path: Path) -> None:
    mine = tmp_path / "photos"
    mine.mkdir()
    (mine / "dear.jpg").write_bytes(b"x")
    with pytest.raises(BadRequest, match="not removed"):
        fresh(mine)
    assert (mine / "dear.jpg").exists()
    (mine / "catalog.lance").mkdir()
    assert not fresh(mine).exists()


@pytest.mark.parametrize(("lies", "code", "word"), [(0, 0, "are equal"), (3, 1, "NOT equal")])
def test_the_command_prints_a_table_and_tells_by_its_exit_code(
    run: Callable[..., Any],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    lies: int,
    code: int,
    word: str,
) -> None:
    monkeypatch.setattr(commands, "run_demo", lambda *_: run(lies=lies)[0])
    monkeypatch.setenv("COLUMNS", "160")
    assert commands.demo([]) == code
    printed = capsys.readouterr().out
    assert word in " ".join(printed.split()) and "hue-110.jpg" in printed and printed.count("(wrong)") == lies
    assert commands.demo(["--json"]) == code
    assert json.loads(capsys.readouterr().out)["queries"] == 60


def test_evaluate_says_what_it_can_measure(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert commands.evaluate(["slow"]) == 2
    assert "quick, splice" in capsys.readouterr().err
    assert commands.evaluate(["quick", "--set", str(tmp_path), "--json"]) == 2
    assert "make_quick.py" in " ".join(capsys.readouterr().err.split())
    assert commands.evaluate(["quick", "--set", str(tmp_path), "--embedded", "--url", "http://x"]) == 2
