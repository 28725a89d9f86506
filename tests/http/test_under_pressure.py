"""Slow networks, full houses and lost parts: every request ends in time, with the truth."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from typing import Any

import pytest

from serving.gateway import build_app
from stemma.errors import Unavailable
from stemma.flow import Encoded, Pixels


class Slow:
    """An encoder that does not answer before it is let."""

    def __init__(self) -> None:
        self.asked = 0
        self.gate = asyncio.Event()

    async def encode(self, pixels: Pixels, *, mirrored: bool) -> Encoded:
        self.asked += 1
        await self.gate.wait()
        raise Unavailable("the encoder is gone", retry_after_s=1.5)


@pytest.fixture
def slow_house(make_house: Callable[..., Any]) -> Any:
    house = make_house(overrides=("serve.concurrency=2", "serve.queue_per_concurrency=1", "search.deadline_ms=5000"))
    served = house.served["photos"]
    house.encoder = Slow()
    slowed = replace(served, engine=replace(served.engine, encoder=house.encoder))
    house.served["photos"] = slowed
    house.app = build_app({"photos": slowed}, house.settings)
    return house


def test_a_deadline_ends_the_search_and_frees_its_place(slow_house: Any, picture: Any, problem: Any) -> None:
    for _ in range(5):  # more than there are places
        begun = time.monotonic()
        document = problem(slow_house.ask("POST", "/v1/search?deadline_ms=150", content=picture(1)))
        assert (document["code"], document["status"]) == ("deadline", 504)
        assert time.monotonic() - begun < 2
    assert slow_house.ask("GET", "/v1/status").json()["working"] == 0


def test_the_time_spent_in_the_queue_is_part_of_the_deadline(slow_house: Any, picture: Any) -> None:
    async def run() -> list[int]:
        long = [slow_house.asked("POST", "/v1/search?deadline_ms=1000", content=picture(1)) for _ in range(2)]
        tasks = [asyncio.create_task(each) for each in long]
        while slow_house.encoder.asked < 2:
            await asyncio.sleep(0.005)
        short = await slow_house.asked("POST", "/v1/search?deadline_ms=100", content=picture(2))
        assert short.json()["code"] == "deadline"
        assert slow_house.encoder.asked == 2, "it never got to work"
        return [response.status_code for response in await asyncio.gather(*tasks)]

    assert slow_house.runner.run(run()) == [504, 504]


def test_a_full_house_refuses_at_once_and_still_answers_probes(slow_house: Any, picture: Any, problem: Any) -> None:
    async def run() -> None:
        inside = [asyncio.create_task(slow_house.asked("POST", "/v1/search", content=picture(1))) for _ in range(4)]
        while (await slow_house.asked("GET", "/v1/status")).json()["waiting"] < 2:
            await asyncio.sleep(0.005)
        begun = time.monotonic()
        refused = await slow_house.asked("POST", "/v1/search", content=picture(2))
        assert time.monotonic() - begun < 1
        assert (refused.status_code, problem(refused)["code"]) == (503, "unavailable")
        assert 1 <= int(refused.headers["retry-after"]) <= 30
        assert (await slow_house.asked("GET", "/healthz")).status_code == 200
        text = (await slow_house.asked("GET", "/metrics")).text
        assert "stemma_requests_working 2.0" in text and "stemma_requests_inside 4.0" in text
        slow_house.encoder.gate.set()
        assert {response.status_code for response in await asyncio.gather(*inside)} == {503}

    slow_house.runner.run(run())


def test_an_upload_during_an_outage_may_come_again_as_a_whole(slow_house: Any, picture: Any, problem: Any) -> None:
    slow_house.encoder.gate.set()
    response = slow_house.ingest(picture(1), b"not a picture", picture(2))
    assert problem(response)["code"] == "unavailable", "no picture is blamed for it"
    assert response.headers["retry-after"] == "2"
    assert slow_house.ask("GET", "/v1/status").json()["collections"][0]["images"] == 0


def test_an_uploader_that_leaves_leaves_no_place_taken(slow_house: Any, picture: Any) -> None:
    async def run() -> None:
        leaves = asyncio.create_task(slow_house.asked("POST", "/v1/search", content=picture(1)))
        while slow_house.encoder.asked < 1:
            await asyncio.sleep(0.005)
        leaves.cancel()
        await asyncio.wait([leaves])
        status = (await slow_house.asked("GET", "/v1/status")).json()
        assert (status["working"], status["waiting"]) == (0, 0)

    slow_house.runner.run(run())


def test_the_hosts_are_given_what_is_left_of_the_callers_time(house: Any, picture: Any) -> None:
    served, given = house.served["photos"], []

    class Spy:
        identical, metadata = served.engine.shards.identical, served.engine.shards.metadata

        async def search(self, query: Any, deadline_ms: float) -> Any:
            given.append(deadline_ms)
            return await served.engine.shards.search(query, deadline_ms)

    async def sent_slowly() -> AsyncIterator[dict[str, Any]]:
        yield {"type": "http.request", "body": picture(1)[:100], "more_body": True}
        await asyncio.sleep(0.2)
        yield {"type": "http.request", "body": picture(1)[100:], "more_body": False}

    house.app = build_app({"photos": replace(served, engine=replace(served.engine, shards=Spy()))}, house.settings)
    assert house.raw(sent_slowly(), query_string=b"deadline_ms=5000").status_code == 200
    assert 0 < given[0] <= 4800
