"""The shape and the sums of the figures, with a fake engine that answers as told."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path

import pytest

from evaluation.queries import Asked, Query, ask_all, read_queries
from evaluation.quick import Speed, figures, with_codec
from stemma.api import Answer, Ask
from stemma.config import Settings
from stemma.errors import BadRequest, DeadlineExceeded

MakeAnswer = Callable[..., Answer]
SHARE = {"share", "n", "low", "high"}


def query(kind: str, original: str | None = "a", *, mirrored: bool = False) -> Query:
    return Query(path=Path("q.jpg"), set=kind, original=original, photograph="a.jpg", mirrored=mirrored)


def asked(make: MakeAnswer, kind: str, ids: list[str], *, found: bool, **known: object) -> Asked:
    return Asked(query=query(kind, **known), answer=make(ids, found=found), ms=10.0)  # type: ignore[arg-type]


@pytest.fixture
def rendered_set(tmp_path: Path) -> Path:
    for folder in ("originals", "queries"):
        (tmp_path / folder).mkdir()
    (tmp_path / "originals/a.jpg").write_bytes(b"original")
    records = [
        {"file": "0000.jpg", "set": "benign", "original": "a.jpg", "mirrored": True, "area": 0.0},
        {"file": "0001.jpg", "set": "unknown", "original": None, "mirrored": False, "area": 0.0},
    ]
    for record in records:
        (tmp_path / "queries" / str(record["file"])).write_bytes(str(record["file"]).encode())
    (tmp_path / "truth.json").write_text(json.dumps({"queries": records}))
    return tmp_path


def test_originals_are_known_by_the_digest_of_their_file(rendered_set: Path) -> None:
    first, second = read_queries(rendered_set)
    assert first.original == hashlib.sha256(b"original").hexdigest()
    assert (first.set, first.mirrored, first.photograph) == ("benign", True, "a.jpg")
    assert (second.set, second.original, second.original_path, second.mask) == ("unknown", None, None, None)
    assert first.original_path == rendered_set / "originals/a.jpg"


def test_what_was_done_to_a_query_is_read_with_it(rendered_set: Path) -> None:
    known = {"edit": "clone", "mask": "0000.png", "area": 0.05, "benign": ["resize 0.78", "jpeg 66", "crop"]}
    record = {"file": "0000.jpg", "set": "both", "original": "a.jpg", "mirrored": False, **known}
    (rendered_set / "truth.json").write_text(json.dumps({"queries": [record]}))
    (found,) = read_queries(rendered_set)
    assert (found.edit, found.area, found.benign) == ("clone", 0.05, ("resize 0.78", "jpeg 66", "crop"))
    assert found.mask == rendered_set / "masks/0000.png"


def test_a_splice_knows_its_donor_by_the_digest_of_its_file(rendered_set: Path) -> None:
    known = {"donor": "a.jpg", "donor_box": [1, 2, 30, 40], "query_box": [5.5, 6, 7, 8], "mask": "0000.png"}
    record = {"file": "0000.jpg", "set": "splice", "original": None, "mirrored": False, "area": 0.05, **known}
    (rendered_set / "truth.json").write_text(json.dumps({"queries": [record]}))
    (found,) = read_queries(rendered_set)
    assert (found.donor, found.original) == (hashlib.sha256(b"original").hexdigest(), None)
    assert found.donor_path == rendered_set / "originals/a.jpg"
    assert (found.donor_box, found.query_box) == ((1.0, 2.0, 30.0, 40.0), (5.5, 6.0, 7.0, 8.0))
    # renderings of one donor are not independent
    assert found.photograph == "a.jpg"


@pytest.mark.parametrize("text", ["", "{}", '{"queries": [{"file": "x"}]}', '{"queries": 3}'])
def test_a_folder_that_is_no_rendered_set_says_how_to_make_one(rendered_set: Path, text: str) -> None:
    (rendered_set / "truth.json").write_text(text)
    with pytest.raises(BadRequest, match=r"make_quick\.py"):
        read_queries(rendered_set)


def test_figures_have_the_shape_that_was_agreed(make_answer: MakeAnswer) -> None:
    result = figures([asked(make_answer, "benign", ["a"], found=True)], Speed(embedded_p50_ms=120.0, encoder_ms=40.0))
    assert set(result) == {
        *("queries", "retrieval", "found", "strangers_found", "mirrored"),
        *("p50_ms", "compare_p50_ms", "encoder_ms", "embedded_p50_ms", "search_in_passes"),
    }
    assert set(result["retrieval"]) == set(result["found"]) == {"benign", "manip", "both"}
    for row in result["retrieval"].values():
        assert set(row) == {"IR@1", "IR@10", "IR@100", "n"}
        assert all(set(row[name]) == SHARE for name in ("IR@1", "IR@10", "IR@100"))
    assert all(set(each) == SHARE for each in result["found"].values())
    assert set(result["mirrored"]) == {"IR@1", "n"} and set(result["mirrored"]["IR@1"]) == SHARE
    assert isinstance(result["strangers_found"], int)
    assert result["search_in_passes"] == 3.0
    json.dumps(result, allow_nan=False)


def test_ranked_first_found_and_strangers_are_three_different_things(make_answer: MakeAnswer) -> None:
    everything = [
        asked(make_answer, "benign", ["a", "b"], found=True),  # right and found
        asked(make_answer, "benign", ["a", "b"], found=False),  # first, but below the threshold
        asked(make_answer, "benign", ["b", "a"], found=True),  # found, but the wrong one
        asked(make_answer, "benign", ["b"] * 10 + ["a"], found=False, mirrored=True),  # place 11
        asked(make_answer, "manip", ["b"], found=False),  # not in the list
        asked(make_answer, "unknown", ["b"], found=True, original=None),
        asked(make_answer, "unknown", ["b"], found=False, original=None),
        asked(make_answer, "splice", ["b"], found=True, original=None),  # no stranger: its donor is there
        asked(make_answer, "identical", ["a"], found=True),
    ]
    result = figures(everything, Speed(embedded_p50_ms=1.0, encoder_ms=1.0))
    benign = result["retrieval"]["benign"]
    assert [benign[f"IR@{k}"]["share"] for k in (1, 10, 100)] == [0.5, 0.75, 1.0]
    assert result["found"]["benign"]["share"] == 0.25
    assert result["retrieval"]["manip"]["IR@100"]["share"] == 0.0
    assert result["strangers_found"] == 1
    assert result["mirrored"] == {"IR@1": {"share": 0.0, "n": 1, "low": 0.0, "high": 0.975}, "n": 1}
    assert result["queries"] == len(everything)
    assert result["retrieval"]["both"]["n"] == 0 and result["found"]["both"]["n"] == 0


def test_every_query_is_asked_in_order_with_a_hundred_candidates(rendered_set: Path, make_answer: MakeAnswer) -> None:
    seen: list[tuple[bytes, Ask]] = []

    def search(body: bytes, ask: Ask) -> Answer:
        seen.append((body, ask))
        return make_answer(["a"], found=True)

    queries = read_queries(rendered_set)
    result = ask_all(queries, search)
    assert [each.query for each in result] == queries
    assert [body for body, _ in seen] == [b"0000.jpg", b"0001.jpg"]
    assert {(ask.k, ask.donors) for _, ask in seen} == {(100, 10)}


def test_an_error_names_the_query_it_happened_on(rendered_set: Path) -> None:
    def search(body: bytes, ask: Ask) -> Answer:
        raise DeadlineExceeded("too late")

    with pytest.raises(DeadlineExceeded) as caught:
        ask_all(read_queries(rendered_set), search)
    assert str(caught.value.subject).endswith("0000.jpg")


def test_under_codes_no_row_waits_in_the_exact_tail() -> None:
    coded = with_codec(Settings(), "opq").search
    assert (coded.codec, coded.tail_rows_max) == ("opq", 1)
    assert with_codec(Settings(), "exact").search == Settings().search.model_copy(update={"codec": "exact"})
