"""Bodies are bounded while they arrive: nothing is held beyond its limit, and no sender is waited for for ever."""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import AsyncIterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serving.bodies import Bounds, Form, _FormReader
from stemma.config import Settings

SMALL = ("decode.image_bytes_max=5000", "limits.batch_bytes_max=20000", "limits.batch_items_max=3")
MULTIPART = (b"content-type", b"multipart/form-data; boundary=edge")


def part(name: str = "file", body: bytes = b"x", headers: str = "") -> bytes:
    return (
        f'--edge\r\nContent-Disposition: form-data; name="{name}"; filename="f"\r\n{headers}\r\n'.encode()
        + body
        + b"\r\n"
    )


def chunk(body: bytes, more: bool = True) -> dict[str, Any]:
    return {"type": "http.request", "body": body, "more_body": more}


def test_an_announced_length_over_the_limit_is_refused_before_a_byte_is_read(make_house: Any, problem: Any) -> None:
    async def nothing() -> AsyncIterator[dict[str, Any]]:
        raise AssertionError("the body was read")
        yield {}

    response = make_house(overrides=SMALL).raw(nothing(), headers=[(b"content-length", b"5001")])
    assert problem(response)["code"] == "too_large"


def test_a_body_that_never_ends_stops_at_the_limit(make_house: Any, problem: Any) -> None:
    given_bytes = 0

    async def endless() -> AsyncIterator[dict[str, Any]]:
        nonlocal given_bytes
        while True:
            given_bytes += 1000
            yield chunk(b"\xff" * 1000)

    assert problem(make_house(overrides=SMALL).raw(endless()))["code"] == "too_large"
    assert given_bytes <= 6000


@pytest.mark.parametrize("query", [b"", b"deadline_ms=200"])
def test_a_body_that_drips_is_given_up(make_house: Any, problem: Any, query: bytes) -> None:
    async def drip() -> AsyncIterator[dict[str, Any]]:
        while True:
            yield chunk(b"x")
            await asyncio.sleep(0.02)

    overrides = (*SMALL, "limits.body_read_s_max=30" if query else "limits.body_read_s_max=0.2")
    begun = time.monotonic()
    assert problem(make_house(overrides=overrides).raw(drip(), query_string=query))["code"] == "deadline"
    assert time.monotonic() - begun < 2


@pytest.mark.parametrize("announced", [b"5", b"500"])
def test_a_length_that_lies_is_refused(old_house: Any, problem: Any, announced: bytes) -> None:
    response = old_house.raw([chunk(b"\xff\xd8" * 20, more=False)], headers=[(b"content-length", announced)])
    assert problem(response)["subject"] == "content-length"


@pytest.mark.parametrize("length", [b"-1", b"1e3", b"", b"0x10", b"9" * 40])
def test_a_length_that_is_no_number_is_refused(old_house: Any, problem: Any, length: bytes) -> None:
    response = old_house.raw([chunk(b"", more=False)], headers=[(b"content-length", length)])
    assert problem(response)["code"] == "bad_request"


def test_a_caller_that_leaves_is_no_crash(old_house: Any, problem: Any) -> None:
    assert problem(old_house.raw([chunk(b"\xff\xd8")]))["code"] == "bad_request"


@pytest.mark.parametrize("encoding", ["gzip", "br", "deflate", "gzip, identity", "zstd"])
def test_an_encoded_body_is_not_unpacked(old_house: Any, picture: Any, problem: Any, encoding: str) -> None:
    response = old_house.ask("POST", "/v1/search", content=picture(1), headers={"content-encoding": encoding})
    assert (response.status_code, problem(response)["subject"]) == (415, "content-encoding")


def test_an_empty_body_and_json_are_refused_with_the_way_out(old_house: Any, problem: Any) -> None:
    assert problem(old_house.ask("POST", "/v1/search"))["code"] == "bad_image"  # as it is embedded
    assert problem(old_house.ask("POST", "/v1/search", json={"image": "…"}))["code"] == "unsupported_type"
    assert problem(old_house.ask("POST", "/v1/images", content=b"raw"))["code"] == "unsupported_type"
    assert problem(old_house.ask("POST", "/v1/images", files={"replace": (None, b"true")}))["subject"] == "file"


ABUSES = {
    "two files": (part() + part() + b"--edge--\r\n", "file"),
    "an unknown part": (part("picture") + b"--edge--\r\n", "picture"),
    "a part without a name": (b"--edge\r\n\r\nx\r\n--edge--\r\n", "part"),
    "no closing boundary": (part(), "body"),
    "another boundary": (b"--other\r\n\r\nx\r\n--other--\r\n", "body"),
    "not multipart at all": (b"\xff\xd8\xff\xe0", "body"),
    "nothing": (b"--edge--\r\n", "file"),
    "a header that goes on": (part(headers="X: " + "y" * 20_000 + "\r\n") + b"--edge--\r\n", "body"),
    "a hundred headers": (part(headers="".join(f"X{at}: y\r\n" for at in range(100))) + b"--edge--\r\n", "body"),
}


@pytest.mark.parametrize("abuse", ABUSES)
def test_multipart_abuse_is_a_bad_request(old_house: Any, problem: Any, abuse: str) -> None:
    body, subject = ABUSES[abuse]
    document = problem(old_house.raw([chunk(body, more=False)], headers=[MULTIPART]))
    assert (document["code"], document["subject"]) == ("bad_request", subject)


def test_an_encoded_part_is_not_unpacked(old_house: Any, problem: Any) -> None:
    body = part(headers="Content-Transfer-Encoding: base64\r\n") + b"--edge--\r\n"
    assert problem(old_house.raw([chunk(body, more=False)], headers=[MULTIPART]))["code"] == "unsupported_type"


@pytest.mark.parametrize(
    "kind", [b"multipart/form-data", b"multipart/form-data; boundary=", b"multipart/form-data; boundary=" + b"x" * 300]
)
def test_a_boundary_is_needed(old_house: Any, problem: Any, kind: bytes) -> None:
    response = old_house.raw([chunk(part(), more=False)], headers=[(b"content-type", kind)])
    assert problem(response)["code"] == "bad_request"


def test_a_batch_is_bounded_in_files_bytes_and_each_picture(make_house: Any, picture: Any, problem: Any) -> None:
    house = make_house(overrides=SMALL)
    assert problem(house.ingest(*[b"x"] * 4))["subject"] == "file"
    assert problem(house.ingest(*[b"x" * 9_000] * 3))["code"] == "too_large"
    items = house.ingest(picture(1), b"x" * 6000, picture(2)).json()["items"]
    assert [item["error"] and item["error"]["code"] for item in items] == [None, "too_large", None]


def test_headers_are_bounded(old_house: Any, problem: Any) -> None:
    assert problem(old_house.ask("GET", "/v1/status", headers={"x-long": "y" * 20_000}))["subject"] == "headers"
    assert problem(old_house.ask("GET", "/v1/images/" + "y" * 20_000))["subject"] == "headers"


@given(
    parts=st.lists(st.tuples(st.sampled_from(["file", "image_id"]), st.binary(max_size=60)), max_size=5),
    cuts=st.lists(st.integers(1, 400), max_size=8),
)
def test_a_form_reads_the_same_however_it_is_cut(parts: list[tuple[str, bytes]], cuts: list[int]) -> None:
    body = b"".join(part(name, body) for name, body in parts) + b"--edge--\r\n"
    bounds = Bounds(body_bytes=10_000, files=5, file_bytes=50, fields=("image_id",))

    def read(pieces: list[bytes]) -> Form:
        reader = _FormReader(b"edge", bounds, Settings())
        for piece in pieces:
            reader.feed(piece)
        assert reader.ended
        return reader.form

    edges = [0, *sorted({cut for cut in cuts if cut < len(body)}), len(body)]
    form = read([body[low:high] for low, high in itertools.pairwise(edges)])
    files = [content for name, content in parts if name == "file"]
    assert [file.body for file in form.files] == [content if len(content) <= 50 else b"" for content in files]
    assert [file.error is not None for file in form.files] == [len(content) > 50 for content in files]
    assert form.fields.get("image_id", []) == [content for name, content in parts if name == "image_id"]


def test_a_connection_is_closed_on_who_goes_on_sending_and_kept_otherwise(make_house: Any, picture: Any) -> None:
    async def endless() -> AsyncIterator[dict[str, Any]]:
        while True:
            yield chunk(b"\xff" * 1000)

    house = make_house(overrides=SMALL)
    chunked = (b"transfer-encoding", b"chunked")
    assert house.raw(endless(), headers=[chunked]).headers["connection"] == "close"
    assert house.raw(endless(), headers=[(b"content-length", b"5000000")]).headers["connection"] == "close"
    assert "connection" not in house.raw([chunk(picture(1), more=False)], headers=[chunked]).headers
    assert "connection" not in house.ask("POST", "/v1/search?k=-1", content=picture(1)).headers
