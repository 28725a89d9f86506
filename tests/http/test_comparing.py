"""``POST /v1/compare``: one query, one original, what was changed; and every way to ask for it wrongly."""

from __future__ import annotations

import asyncio
import io
import json
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import httpx
import numpy as np
import pytest
from PIL import Image

from serving.gateway import build_app
from stemma.api import Comparison
from stemma.calls import Options
from stemma.client import AsyncClient
from stemma.errors import BadImage, BadRequest, NotFound, StemmaError, Unavailable
from stemma.flow import Judged, Pairing, Pixels

BOX = (24, 24, 60, 72)  # of a 96 px picture


def with_a_patch(body: bytes) -> bytes:
    """The picture with a black box in it."""
    image = Image.open(io.BytesIO(body)).convert("RGB")
    image.paste((0, 0, 0), BOX)
    out = io.BytesIO()
    image.save(out, "PNG")
    return out.getvalue()


def ask(
    house: Any, query: bytes, original: bytes | None = None, original_id: str | None = None, **parameters: Any
) -> Any:
    files: list[Any] = [("query", ("q.jpg", query))]
    files += [("original", ("o.jpg", original))] if original is not None else []
    files += [("original_id", (None, original_id.encode()))] if original_id is not None else []
    return house.ask("POST", "/v1/compare", files=files, params=parameters)


def compared(response: httpx.Response) -> Comparison:
    assert response.status_code == 200, response.text
    return Comparison.model_validate_json(response.content)


def test_a_pair_is_judged_and_shown(house: Any, picture: Any) -> None:
    original = picture(1)
    benign = compared(ask(house, picture(1, quality=80), original))
    changed = compared(ask(house, with_a_patch(original), original))
    other = compared(ask(house, picture(2), original))
    assert [each.verdict for each in (benign, changed, other)] == ["benign", "manipulated", "unknown"]
    assert changed.heatmap is not None and (changed.heatmap.rows, changed.heatmap.cols) == (56, 56)
    assert [region.strength > 0.5 for region in changed.regions] == [True]
    assert changed.regions[0].box == pytest.approx(BOX, abs=4)
    assert not benign.regions and benign.transform == changed.transform is not None
    assert changed.probabilities is not None and changed.probabilities.manipulated == 1


def test_equal_bytes_are_identical_before_anything_is_compared(house: Any, picture: Any) -> None:
    house.ingest(picture(1), ids=["one"])
    for how in ({"original": picture(1)}, {"original_id": "one"}):
        assert compared(ask(house, picture(1), **how)) == Comparison(verdict="identical")


def test_a_stored_original_is_named_by_its_id(house: Any, picture: Any, problem: Any) -> None:
    house.ingest(picture(1), picture(2), ids=["../one & only", "two"])
    query = with_a_patch(picture(1))
    stored = compared(ask(house, query, original_id="../one & only"))
    assert stored == compared(ask(house, query, picture(1))), "its working copy is made in the same way"
    house.ask("DELETE", "/v1/images/two")
    for nobody in ("two", "nobody"):
        response = ask(house, query, original_id=nobody)
        assert (response.status_code, problem(response)["code"]) == (404, "not_found")


def test_a_search_shows_what_comparing_with_its_original_shows(house: Any, picture: Any) -> None:
    house.ingest(*(picture(seed) for seed in range(4)), ids=list("abcd"))
    query = with_a_patch(picture(2))
    answer = house.ask("POST", "/v1/search", content=query).json()
    assert (answer["verdict"], answer["original"]["image_id"], answer["used"]["reranked"]) == ("manipulated", "c", 1)
    assert answer["original"]["comparison"] == ask(house, query, original_id="c").json()
    assert {"pixels", "compare"} <= answer["timings_ms"].keys()


def test_an_answer_with_the_fullest_heatmap_stays_small(house: Any, picture: Any) -> None:
    served = house.served["photos"]

    class Noise:
        async def compare(self, query: Pixels, pairings: Any) -> list[Judged]:
            (judged,) = await served.engine.comparator.compare(query, pairings)
            return [replace(judged, heatmap_RC=np.random.default_rng(1).random((56, 56), dtype=np.float32))]

    house.app = build_app(
        {"photos": replace(served, engine=replace(served.engine, comparator=Noise()))}, house.settings
    )
    house.ingest(*(picture(seed) for seed in range(20)))
    query = with_a_patch(picture(3))
    answer = house.ask("POST", "/v1/search", content=query, params={"k": 10})
    packed = house.ask("POST", "/v1/search", content=query, params={"k": 10}, headers={"accept": "application/msgpack"})
    values = answer.json()["original"]["comparison"]["heatmap"]["values"]
    assert len(set(values)) > 2_000 and all(value == round(value, 4) for value in values)
    assert len(answer.content) < 30_000
    assert len(packed.content) < 20_000


# ---------------------------------------------------------------------- refusals

WRONG: dict[str, tuple[list[tuple[str, bytes]], str, str]] = {
    "no original": ([("query", b"q")], "bad_request", "original"),
    "two originals": ([("query", b"q"), ("original", b"o"), ("original_id", b"x")], "bad_request", "original"),
    "no query": ([("original", b"o")], "bad_request", "query"),
    "nothing named so": ([("file", b"q"), ("original", b"o")], "bad_request", "file"),
    "two queries": ([("query", b"q"), ("query", b"q"), ("original", b"o")], "bad_request", "query"),
    "two ids": ([("query", b"q"), ("original_id", b"x"), ("original_id", b"y")], "bad_request", "original_id"),
    "an id that none can have": ([("query", b"q"), ("original_id", b"a\x00b")], "bad_request", repr("a\x00b")),
    "an empty id": ([("query", b"q"), ("original_id", b"")], "bad_request", ""),
    "an id that is no text": ([("query", b"q"), ("original_id", b"\xff")], "bad_request", "original_id"),
}


@pytest.mark.parametrize("wrong", WRONG)
def test_what_cannot_be_meant_is_refused_by_name(old_house: Any, problem: Any, wrong: str) -> None:
    parts, code, subject = WRONG[wrong]
    files: list[Any] = [(name, (None if name == "original_id" else "f.jpg", body)) for name, body in parts]
    document = problem(old_house.ask("POST", "/v1/compare", files=files))
    assert (document["code"], document.get("subject")) == (code, subject)


def test_bad_pictures_are_refused_naming_the_part(old_house: Any, picture: Any, problem: Any) -> None:
    for bad, code in ((b"not a picture", "unsupported_type"), (picture(1)[:300], "bad_image"), (b"", "bad_image")):
        for part, pair in (("query", (bad, picture(1))), ("original", (picture(1), bad))):
            document = problem(ask(old_house, *pair))
            assert (document["code"], document["subject"]) == (code, part)


def test_the_body_is_bounded_to_two_pictures(make_house: Callable[..., Any], picture: Any, problem: Any) -> None:
    house = make_house(overrides=("decode.image_bytes_max=5000",))
    for part, pair in (("query", (b"x" * 5_001, picture(1))), ("original", (picture(1), b"x" * 5_001))):
        document = problem(ask(house, *pair))
        assert (document["code"], document["subject"]) == ("too_large", part)
    document = problem(ask(house, b"x" * 5_000, b"x" * 80_000))
    assert (document["code"], document["subject"]) == ("too_large", "body")


def test_a_pair_takes_few_parameters_and_only_multipart(old_house: Any, picture: Any, problem: Any) -> None:
    assert problem(ask(old_house, picture(1), picture(2), k=3))["subject"] == "k"
    assert problem(ask(old_house, picture(1), picture(2), deadline_ms=10**9))["subject"] == "deadline_ms"
    assert problem(ask(old_house, picture(1), picture(2), collection="other"))["code"] == "not_found"
    document = problem(old_house.ask("POST", "/v1/compare", content=picture(1)))
    assert document["code"] == "unsupported_type" and "`original`" in document["detail"]


class Silent:
    """A comparator that does not answer."""

    def __init__(self) -> None:
        self.left = 0

    async def compare(self, query: Pixels, pairings: Any) -> list[Judged]:
        try:
            await asyncio.Event().wait()
        finally:
            self.left += 1
        raise AssertionError


class Gone:
    async def compare(self, query: Pixels, pairings: list[Pairing]) -> list[Judged]:
        raise Unavailable("the comparator cannot be reached; try again", retry_after_s=1.0)


@pytest.fixture
def with_comparator(house: Any) -> Callable[[Any], Any]:
    def put(comparator: Any) -> Any:
        served = house.served["photos"]
        changed = replace(served, engine=replace(served.engine, comparator=comparator))
        house.app = build_app({"photos": changed}, house.settings)
        return house

    return put


def test_a_comparison_ends_with_its_deadline_and_frees_its_place(
    with_comparator: Any, picture: Any, problem: Any
) -> None:
    silent = Silent()
    house = with_comparator(silent)
    for count in range(1, 4):
        document = problem(ask(house, picture(1, quality=80), picture(1), deadline_ms=150))
        assert (document["code"], document["status"], silent.left) == ("deadline", 504, count)
    assert house.ask("GET", "/v1/status").json()["working"] == 0


def test_without_a_comparator_a_pair_is_refused_and_a_search_answered(
    with_comparator: Any, picture: Any, problem: Any
) -> None:
    house = with_comparator(Gone())
    house.ingest(picture(1), ids=["one"])
    refused = ask(house, picture(1, quality=80), original_id="one")
    assert (problem(refused)["code"], refused.headers["retry-after"]) == ("unavailable", "1")
    answer = house.ask("POST", "/v1/search", content=picture(1, quality=80)).json()
    assert (answer["verdict"], answer["original"]["image_id"]) == ("inconclusive", "one")
    assert "cannot be reached" in " ".join(answer["notes"])


# ---------------------------------------------------------------------- the client, and what is counted


def test_the_client_reads_the_same_from_json_and_msgpack(house: Any, picture: Any, tmp_path: Any) -> None:
    house.ingest(picture(1), ids=["one"])
    path = tmp_path / "query.png"
    path.write_bytes(with_a_patch(picture(1)))

    async def run() -> None:
        said = []
        for msgpack in (False, True):
            transport = httpx.ASGITransport(house.app, raise_app_exceptions=False)
            options = Options(msgpack=msgpack)
            async with AsyncClient("http://s", collection="photos", options=options, transport=transport) as client:
                said.append(await client.compare(path, picture(1)))
                said.append(await client.compare(path, original_id="one", deadline_ms=4000))
                answer = await client.search(path)
                assert answer.original is not None
                said.append(answer.original.comparison)
                with pytest.raises(NotFound):
                    await client.compare(path, original_id="nobody")
                with pytest.raises(BadImage) as raised:
                    await client.compare(picture(1), picture(1)[:200])
                assert raised.value.subject == "original"
                for both_or_neither in ({}, {"original": b"o", "original_id": "one"}):
                    with pytest.raises(BadRequest):
                        await client.compare(path, **both_or_neither)
        assert said[0].verdict == "manipulated"
        assert all(each == said[0] for each in said), "to the last digit"

    house.runner.run(run())


def test_comparisons_are_counted_by_verdict(house: Any, picture: Any) -> None:
    for query in (picture(1, quality=80), with_a_patch(picture(1)), picture(1)):
        ask(house, query, picture(1))
    text = house.ask("GET", "/metrics").text
    for verdict in ("benign", "manipulated", "identical"):
        assert f'stemma_comparisons_total{{verdict="{verdict}"}} 1.0' in text
    assert 'route="/v1/compare",status="200"' in text


def test_openapi_says_what_a_pair_is(old_house: Any) -> None:
    operation = old_house.ask("GET", "/openapi.json").json()["paths"]["/v1/compare"]["post"]
    assert {each["name"] for each in operation["parameters"]} == {"collection", "deadline_ms"}
    schema = operation["requestBody"]["content"]["multipart/form-data"]["schema"]
    assert schema["required"] == ["query"] and schema["properties"].keys() == {"query", "original", "original_id"}
    assert json.dumps(operation["responses"]["200"]).count("#/components/schemas/Comparison") == 1
    assert set(operation["responses"]) >= {str(kind.status) for kind in (BadImage, NotFound, Unavailable, StemmaError)}
