"""The client against the gateway in this process and against servers that follow a script."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest

from stemma.api import Ask
from stemma.calls import Options
from stemma.client import AsyncClient, Client
from stemma.errors import (
    BadImage,
    BadRequest,
    Conflict,
    DeadlineExceeded,
    NotFound,
    Overloaded,
    StemmaError,
    Unavailable,
)

RECORD = {"image_id": "x", "sha256": "0" * 64, "width": 1, "height": 1, "seq": 1, "source": "x", "metadata": {}}


class Script:
    """A server that does one thing after the other, and counts."""

    def __init__(self, *steps: Any) -> None:
        self.steps = list(steps)
        self.requests: list[httpx.Request] = []

    def __call__(self, request: httpx.Request) -> httpx.Response:
        self.requests.append(request)
        step = self.steps.pop(0) if self.steps else httpx.ConnectError("the script is over")
        if isinstance(step, Exception):
            raise step
        if isinstance(step, httpx.Response):  # a response can be sent once
            return httpx.Response(step.status_code, headers=step.headers, content=step.content)
        return httpx.Response(200, json=step)


def refusal(error: StemmaError) -> httpx.Response:
    headers = {} if error.retry_after_s is None else {"retry-after": str(int(error.retry_after_s))}
    body = json.dumps(error.problem())
    return httpx.Response(error.status, content=body, headers={**headers, "content-type": "application/problem+json"})


def sync_ask(script: Script, options: Options, what: Callable[[Any], Any]) -> Any:
    with Client("http://s", options=options, transport=httpx.MockTransport(script)) as client:
        return what(client)


def async_ask(script: Script, options: Options, what: Callable[[Any], Any]) -> Any:
    async def run() -> Any:
        async with AsyncClient("http://s", options=options, transport=httpx.MockTransport(script)) as client:
            return await what(client)

    return asyncio.run(run())


both = pytest.mark.parametrize("ask", [sync_ask, async_ask])


def get(client: Any) -> Any:
    return client.get("x")


@both
@pytest.mark.parametrize(
    "failure",
    [
        httpx.ConnectError("refused"),
        httpx.ReadError("reset"),
        httpx.RemoteProtocolError("half an answer"),
        refusal(Unavailable("later")),
        refusal(Overloaded("later")),
        httpx.Response(502, text="bad gateway"),
    ],
    ids=["refused", "reset", "half", "503", "429", "502"],
)
def test_what_may_pass_is_tried_again(ask: Any, failure: Any) -> None:
    script = Script(failure, failure, RECORD)
    assert ask(script, Options(), get).image_id == "x"
    assert len(script.requests) == 3


@both
@pytest.mark.parametrize(
    "error", [BadRequest("no"), NotFound("no"), Conflict("no"), BadImage("no"), DeadlineExceeded("no")]
)
def test_what_will_not_pass_is_raised_at_once_as_its_type(ask: Any, error: StemmaError) -> None:
    script = Script(refusal(error))
    with pytest.raises(type(error), match="no"):
        ask(script, Options(), get)
    assert len(script.requests) == 1


@both
def test_attempts_are_bounded(ask: Any) -> None:
    script = Script(*[httpx.ConnectError("refused")] * 10)
    with pytest.raises(Unavailable, match="refused"):
        ask(script, Options(attempts_max=3), get)
    assert len(script.requests) == 3


@both
def test_retry_after_longer_than_the_caller_waits_is_raised_at_once(ask: Any) -> None:
    script = Script(refusal(Unavailable("busy", retry_after_s=20)), RECORD)
    with pytest.raises(Unavailable) as raised:
        ask(script, Options(timeout_s=5), get)
    assert (raised.value.retry_after_s, len(script.requests)) == (20, 1)


def test_retry_after_is_honoured(monkeypatch: pytest.MonkeyPatch) -> None:
    slept: list[float] = []
    monkeypatch.setattr("stemma.client.time.sleep", slept.append)
    sync_ask(Script(refusal(Unavailable("busy", retry_after_s=3)), RECORD), Options(), get)
    assert slept == [3]


def test_the_callers_time_is_over_for_all_attempts_together() -> None:
    async def hang(_: httpx.Request) -> httpx.Response:
        await asyncio.Event().wait()
        raise AssertionError

    async def run() -> None:
        async with AsyncClient(
            "http://s", options=Options(timeout_s=0.1), transport=httpx.MockTransport(hang)
        ) as client:
            await client.get("x")

    with pytest.raises(DeadlineExceeded):
        asyncio.run(run())


@both
def test_an_upload_that_was_lost_is_sent_again_with_its_whole_body(ask: Any) -> None:
    script = Script(httpx.ReadError("reset"), {"seq": 3, "items": []})
    assert ask(script, Options(), lambda client: client.ingest(b"picture", image_ids="x", metadata={"a": 1})).seq == 3
    first, second = (request.read() for request in script.requests)
    assert b"picture" in first and b'[{"a": 1}]' in first
    assert [part for part in first.split(b"\r\n") if not part.startswith(b"--")] == [
        part for part in second.split(b"\r\n") if not part.startswith(b"--")
    ]


@both
@pytest.mark.parametrize(
    ("how", "part"),
    [
        ({"original": b"the other"}, b'name="original"; filename="upload-1"'),
        ({"original_id": "a/b"}, b'name="original_id"\r\n\r\na/b'),
    ],
)
def test_a_pair_is_sent_as_its_parts(ask: Any, tmp_path: Path, how: dict[str, Any], part: bytes) -> None:
    (tmp_path / "q.jpg").write_bytes(b"the query")
    script = Script({"verdict": "identical"})
    said = ask(script, Options(), lambda client: client.compare(tmp_path / "q.jpg", **how, deadline_ms=250.0))
    assert said.verdict == "identical"
    (request,) = script.requests
    body = request.read()
    assert (request.url.path, request.url.query) == ("/v1/compare", b"deadline_ms=250")
    assert b'name="query"; filename="q.jpg"' in body and b"the query" in body and part in body


@both
def test_an_answer_that_breaks_the_contract_is_said_so(ask: Any) -> None:
    for answer in ({"image_id": "x"}, httpx.Response(200, text="hello"), httpx.Response(500, text="<html>")):
        with pytest.raises(StemmaError, match=r"contract|not stemma"):
            ask(Script(answer), Options(), get)


@both
def test_probes_ask_once_and_never_raise(ask: Any) -> None:
    for failure in (httpx.ConnectError("refused"), refusal(Unavailable("loading"))):
        script = Script(failure, httpx.Response(200, text="ready"))
        assert ask(script, Options(), lambda client: client.ready()) is False
        assert len(script.requests) == 1
    assert ask(Script(httpx.Response(200, text="alive\n")), Options(), lambda client: client.healthy()) is True


def test_questions_that_cannot_be_meant_are_refused_before_they_are_sent(tmp_path: Path) -> None:
    with Client("http://s", transport=httpx.MockTransport(Script())) as client:
        for refused in (
            lambda: client.search(b"x", topk=5),
            lambda: client.search(b"x", Ask(k=1), k=2),
            lambda: client.search(b"x", k="many"),
            lambda: client.ingest(),
            lambda: client.compare(b"x"),
            lambda: client.compare(b"x", b"y", original_id="z"),
            lambda: client.ingest(b"x", metadata={"a": float("nan")}),
            lambda: client.delete([]),
            lambda: client.get(""),
        ):
            with pytest.raises(BadRequest):
                refused()
        with pytest.raises(NotFound):
            client.search(tmp_path / "nothing.jpg")
    with pytest.raises(BadRequest):
        Client("localhost:8000")


@pytest.mark.parametrize("msgpack", [False, True])
def test_the_client_and_the_gateway_understand_each_other(
    house: Any, picture: Any, tmp_path: Path, msgpack: bool
) -> None:
    async def run() -> None:
        transport = httpx.ASGITransport(house.app, raise_app_exceptions=False)
        options = Options(msgpack=msgpack)
        async with AsyncClient("http://stemma", collection="photos", options=options, transport=transport) as client:
            assert await client.ready() and await client.healthy()
            path = tmp_path / "two.jpg"
            path.write_bytes(picture(2))
            ids = ["../one & only", None]
            stored = await client.ingest(picture(1), path, image_ids=ids, metadata=[{"n": 1}, {"n": 2}])
            assert stored.count("stored") == 2
            answer = await client.search(picture(1), k=2, deadline_ms=4000, filter="n < 2")
            assert (answer.verdict, answer.original and answer.original.image_id) == ("identical", "../one & only")
            assert (await client.get("../one & only")).metadata["n"] == 1
            assert (await client.pixels("../one & only"))[:2] == b"\xff\xd8"
            refused = await client.ingest(b"not a picture")
            assert refused.items[0].error is not None and refused.items[0].error.code == "unsupported_type"
            gone = await client.delete(["../one & only", "nobody"])
            assert (gone.deleted, gone.missing) == (("../one & only",), ("nobody",))
            assert (await client.delete("../one & only")).missing == ("../one & only",)
            with pytest.raises(NotFound):
                await client.get("../one & only")
            with pytest.raises(BadRequest, match="k must be 1 to 100"):
                await client.search(picture(1), k=1000)
            assert [each.images for each in await client.collections()] == [1]
            assert (await client.status()).ready

    house.runner.run(run())
