"""The contract through Ray Serve: real encoder, real shard hosts, one HTTP server for the whole run."""

from __future__ import annotations

import asyncio
import io
import os
import shutil
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from PIL import Image

import stemma
from stemma.api import Comparison, Donor, Probabilities
from stemma.calls import Options
from stemma.client import AsyncClient, Client
from stemma.errors import NotFound, StemmaError, Unavailable

pytestmark = [pytest.mark.live, pytest.mark.timeout(300)]
PATIENT = Options(timeout_s=120, attempts_max=50)


@pytest.fixture
def client(server: Any) -> Iterator[Client]:
    with Client(server.url, options=PATIENT) as client:
        yield client


def test_the_whole_way_of_a_picture(client: Client, picture: Any) -> None:
    assert client.healthy() and client.ready()
    bodies = [picture(seed, side=200) for seed in range(100, 112)]
    stored = client.ingest(
        *bodies, image_ids=[f"way-{seed}" for seed in range(12)], metadata=[{"n": n} for n in range(12)]
    )
    assert stored.count("stored") == 12

    same = client.search(bodies[3])
    assert (same.verdict, same.original and same.original.image_id) == ("identical", "way-3")
    near = client.search(picture(105, side=200, quality=50), k=5)
    assert near.candidates[0].image_id == "way-5"
    assert near.coverage.complete and near.versions.seq >= stored.seq
    assert near.candidates[0].metadata["n"] == 5
    filtered = client.search(picture(105, side=200, quality=50), k=5, filter="n > 9")
    assert {candidate.metadata["n"] for candidate in filtered.candidates} == {10, 11}

    for number in range(12):
        assert client.delete(f"way-{number}").deleted == (f"way-{number}",)
        after = client.search(picture(100 + number, side=200, quality=50), k=100)
        assert f"way-{number}" not in {candidate.image_id for candidate in after.candidates}
    with pytest.raises(NotFound):
        client.get("way-3")


def test_embedded_equals_served(client: Client, server: Any, picture: Any, tmp_path: Path) -> None:
    originals = [picture(seed, side=160) for seed in range(300, 330)]
    client.ingest(*originals, image_ids=[f"same-{at}" for at in range(30)])
    shutil.copytree(server.folder, tmp_path / "copy.stemma")
    (tmp_path / "copy.stemma" / "writer.lock").unlink(missing_ok=True)
    questions = [
        *(picture(seed, side=160) for seed in (300, 311)),
        *(picture(seed, side=120, quality=40) for seed in (301, 302, 303, 304, 305)),
        *(picture(seed, side=90, format="PNG") for seed in (306, 307)),
        *(picture(seed) for seed in (900, 901, 902)),
        *(with_a_patch(picture(seed, side=160)) for seed in (308, 309)),
    ]
    shown = traced = 0
    asked: dict[str, Any] = {"k": 20, "donors": 5, "deadline_ms": 60_000}
    with stemma.open(tmp_path / "copy.stemma", settings=server.settings) as collection:
        for question in questions:
            here, there = collection.search(question, **asked), client.search(question, **asked)
            assert there.verdict == here.verdict
            assert [each.image_id for each in there.candidates] == [each.image_id for each in here.candidates]
            assert (there.original and there.original.image_id) == (here.original and here.original.image_id)
            assert there.confidence == pytest.approx(here.confidence, abs=1e-2)
            for left, right in zip(there.candidates, here.candidates, strict=True):
                same_probabilities(left.probabilities, right.probabilities)
                left, right = (each.model_copy(update={"probabilities": None}) for each in (left, right))
                assert left == right, "distances and matches are equal to the bit"
            same_donors(there.donors, here.donors)
            traced += len(there.donors)
            assert there.coverage == here.coverage
            assert (there.versions, there.used) == (here.versions, here.used)
            if there.original is not None and there.original.comparison is not None:
                shown += 1
                assert here.original is not None
                same_comparison(there.original.comparison, here.original.comparison)
        assert traced, "strangers and changed regions are searched for by their objects"
        assert shown >= 4, "most copies are found, so they are compared and shown"
        query, plain = with_a_patch(picture(308, side=160)), picture(308, side=160)
        alike, twin = collection.compare(query, plain), client.compare(query, plain)
        same_comparison(twin, alike)
        same_comparison(client.compare(query, original_id="same-8"), alike)
        assert client.compare(plain, original_id="same-8").verdict == "identical"


def with_a_patch(body: bytes) -> bytes:
    image = Image.open(io.BytesIO(body)).convert("RGB")
    image.paste((0, 0, 0), (50, 60, 90, 110))
    out = io.BytesIO()
    image.save(out, "PNG")
    return out.getvalue()


def same_donors(some: Sequence[Donor], others: Sequence[Donor]) -> None:
    assert [one.image_id for one in some] == [other.image_id for other in others]
    for one, other in zip(some, others, strict=True):
        assert (one.query_box, one.donor_box, one.distance) == (other.query_box, other.donor_box, other.distance)
        assert (one.shown, one.clone, one.metadata) == (other.shown, other.clone, other.metadata)
        assert one.probability == pytest.approx(other.probability, abs=1e-2)
        assert (one.mask is None) == (other.mask is None)


def same_probabilities(one: Probabilities | None, other: Probabilities | None) -> None:
    assert (one is None) == (other is None)
    if one is not None and other is not None:
        assert one.model_dump() == pytest.approx(other.model_dump(), abs=1e-2)


def same_comparison(one: Comparison, other: Comparison | None) -> None:
    assert other is not None and one.heatmap is not None and other.heatmap is not None
    assert (one.verdict, one.mirrored) == (other.verdict, other.mirrored)
    same_probabilities(one.probabilities, other.probabilities)
    assert (one.heatmap.rows, one.heatmap.cols) == (other.heatmap.rows, other.heatmap.cols)
    assert one.heatmap.values == pytest.approx(other.heatmap.values, abs=1e-2)
    assert (one.transform is None) == (other.transform is None)
    if one.transform is not None:
        assert np.asarray(one.transform) == pytest.approx(np.asarray(other.transform), abs=1e-2)
    assert len(one.regions) == len(other.regions)


def test_a_killed_shard_gives_labelled_answers_and_comes_back(client: Client, server: Any, picture: Any) -> None:
    body, question = picture(500, side=160), picture(500, side=160, quality=50)
    client.ingest(body, image_ids="survivor")
    with Client(server.url, options=Options(timeout_s=60, attempts_max=1)) as once:
        assert once.search(question).candidates[0].image_id == "survivor"
        victims = server.pids("ray::Shard")
        assert victims
        for pid in victims:
            os.kill(pid, signal.SIGKILL)
        ends, refused = time.monotonic() + 90, []
        while True:
            assert time.monotonic() < ends, "the shard did not come back"
            try:
                answer = once.search(question)
            except Unavailable as error:
                refused.append(error.retry_after_s)
                continue
            if answer.coverage.complete:
                break
            assert answer.coverage.missing_hosts
        assert None not in refused
        assert answer.candidates[0].image_id == "survivor"
        assert once.search(body).verdict == "identical"


def test_an_overload_is_refused_with_retry_after_and_passes(server: Any, picture: Any, problem: Any) -> None:
    async def hammer() -> list[httpx.Response]:
        async with httpx.AsyncClient(base_url=server.url, timeout=60) as http:
            posts = (http.post("/v1/search", content=picture(seed)) for seed in range(600, 640))
            return await asyncio.gather(*posts)

    responses = asyncio.run(hammer())
    refused = [response for response in responses if response.status_code != 200]
    assert len(refused) < 40, "some are answered"
    assert refused, "4 places cannot hold 40 requests"
    for response in refused:
        assert (response.status_code, problem(response)["code"]) == (503, "unavailable")
        assert 1 <= int(response.headers["retry-after"]) <= server.settings.serve.retry_after_s_max

    async def patient() -> list[Any]:
        async with AsyncClient(server.url, options=PATIENT) as client:
            return await asyncio.gather(*(client.search(picture(seed)) for seed in range(600, 612)))

    assert len(asyncio.run(patient())) == 12


def test_concurrent_uploads_are_all_there_once(server: Any, picture: Any) -> None:
    async def upload() -> list[Any]:
        async with AsyncClient(server.url, options=PATIENT) as client:
            return await asyncio.gather(*(client.ingest(picture(seed % 10 + 700)) for seed in range(20)))

    items = [result.items[0] for result in asyncio.run(upload())]
    assert len({item.image_id for item in items}) == 10
    assert sorted(item.status for item in items).count("stored") == 10


def test_the_server_counts_what_it_did(client: Client, server: Any, picture: Callable[..., bytes]) -> None:
    client.search(picture(800))
    with pytest.raises(StemmaError):
        client.get("nobody at all")
    text = httpx.get(f"{server.url}/metrics").text
    assert 'stemma_stage_seconds_count{stage="search"}' in text
    assert 'stemma_stage_seconds_count{stage="compare"}' in text
    assert 'route="/v1/images/{image_id}",status="404"' in text
    status = client.status()
    assert status.ready and status.collections[0].hosts[0].state == "live"
