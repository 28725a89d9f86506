"""Every route of the contract does what the contract says, over the gateway in this process."""

from __future__ import annotations

import hashlib
import io
from typing import Any

import numpy as np
import pytest
from PIL import Image

from stemma.api import Answer, CollectionStatus, DeleteResult, ImageRecord, IngestResult, Status
from stemma.packing import unpack


def test_what_is_ingested_is_found_by_its_bytes_and_by_its_looks(house: Any, picture: Any) -> None:
    stored = house.ingest(*(picture(seed) for seed in range(5)), ids=["a", "b", "c", "", "e"])
    assert stored.status_code == 201
    result = IngestResult.model_validate_json(stored.content)
    assert [item.status for item in result.items] == ["stored"] * 5
    assert result.items[3].image_id == hashlib.sha256(picture(3)).hexdigest()

    same = Answer.model_validate_json(house.ask("POST", "/v1/search", content=picture(1)).content)
    assert (same.verdict, same.confidence, same.original and same.original.image_id) == ("identical", 1.0, "b")
    assert same.versions.seq == result.seq

    near = Answer.model_validate_json(
        house.ask("POST", "/v1/search", content=picture(1, quality=60), params={"k": 3}).content
    )
    assert next(candidate.image_id for candidate in near.candidates) == "b"
    assert near.used.k == len(near.candidates) == 3
    assert near.coverage.complete and near.coverage.images_searched == near.coverage.images_total == 5
    assert {"decode", "encode", "search", "total"} <= near.timings_ms.keys()


def test_a_multipart_search_is_the_same_question_as_a_raw_one(house: Any, picture: Any) -> None:
    house.ingest(picture(1), picture(2))
    raw = house.ask("POST", "/v1/search", content=picture(1, quality=70)).json()
    parts = house.ask("POST", "/v1/search", files={"file": ("q.jpg", picture(1, quality=70))}).json()
    assert raw["candidates"] == parts["candidates"]


def test_a_delete_holds_for_the_very_next_search(house: Any, picture: Any) -> None:
    house.ingest(picture(1), picture(2), ids=["one", "two"])
    deleted = DeleteResult.model_validate_json(house.ask("DELETE", "/v1/images/one").content)
    assert deleted.deleted == ("one",)
    answer = house.ask("POST", "/v1/search", content=picture(1)).json()
    assert answer["verdict"] != "identical"
    assert [candidate["image_id"] for candidate in answer["candidates"]] == ["two"]
    assert house.ask("GET", "/v1/images/one").status_code == 404


def test_deleting_what_is_not_there_is_404_that_lists_it(house: Any, problem: Any) -> None:
    document = problem(house.ask("DELETE", "/v1/images/nobody"))
    assert (document["code"], document["missing"], document["deleted"]) == ("not_found", ["nobody"], [])


def test_identity_duplicate_conflict_replace(house: Any, picture: Any, problem: Any) -> None:
    assert house.ingest(picture(1), ids=["x"]).json()["items"][0]["status"] == "stored"
    assert house.ingest(picture(1), ids=["x"]).json()["items"][0]["status"] == "duplicate"
    again = house.ingest(picture(1), ids=["y"]).json()["items"][0]
    assert (again["status"], again["image_id"]) == ("duplicate", "x")
    refused = house.ingest(picture(2), ids=["x"])
    assert (refused.status_code, problem(refused)["code"]) == (409, "conflict")
    assert problem(refused)["items"][0]["status"] == "rejected"
    assert house.ingest(picture(2), ids=["x"], replace="true").json()["items"][0]["status"] == "replaced"
    record = ImageRecord.model_validate_json(house.ask("GET", "/v1/images/x").content)
    assert record.sha256 == hashlib.sha256(picture(2)).hexdigest()


def test_good_pictures_of_a_request_are_stored_and_bad_ones_listed(house: Any, picture: Any) -> None:
    response = house.ingest(picture(1), b"not a picture", picture(2)[:300], picture(3))
    assert response.status_code == 201
    items = response.json()["items"]
    assert [item["status"] for item in items] == ["stored", "rejected", "rejected", "stored"]
    assert [item["error"] and item["error"]["code"] for item in items] == [None, "unsupported_type", "bad_image", None]
    assert house.ask("GET", "/v1/status").json()["collections"][0]["images"] == 2


def test_metadata_comes_back_and_can_be_filtered_by(house: Any, picture: Any) -> None:
    files = [("file", ("1.jpg", picture(1))), ("file", ("2.jpg", picture(2)))]
    files.append(("metadata", (None, b'[{"year": 1999, "by": "ann"}, {"year": 2020, "by": "bob"}]')))
    assert house.ask("POST", "/v1/images", files=files).status_code == 201
    found = house.ask("POST", "/v1/search", content=picture(1, quality=60), params={"filter": "year > 2000"}).json()
    assert [candidate["metadata"]["by"] for candidate in found["candidates"]] == ["bob"]
    assert found["used"]["filter"] == "year > 2000"
    assert found["candidates"][0]["metadata"]["name"] == "2.jpg"


def test_as_of_and_min_version(house: Any, picture: Any, problem: Any) -> None:
    first = house.ingest(picture(1), ids=["one"]).json()["seq"]
    second = house.ingest(picture(2), ids=["two"]).json()["seq"]
    then = house.ask("POST", "/v1/search", content=picture(3), params={"as_of": first}).json()
    assert [candidate["image_id"] for candidate in then["candidates"]] == ["one"]
    assert house.ask("POST", "/v1/search", content=picture(3), params={"min_version": second}).status_code == 200
    ahead = house.ask("POST", "/v1/search", content=picture(3), params={"min_version": second + 1})
    assert (ahead.status_code, problem(ahead)["code"]) == (503, "unavailable")
    assert int(ahead.headers["retry-after"]) >= 1


def test_pixels_are_the_working_copy(house: Any, picture: Any) -> None:
    house.ingest(picture(4, side=900, quality=95), ids=["big"])
    response = house.ask("GET", "/v1/images/big/pixels")
    assert response.headers["content-type"] == "image/jpeg"
    working = Image.open(io.BytesIO(response.content))
    assert working.size == (512, 512)
    original = Image.open(io.BytesIO(picture(4, side=900, quality=95))).resize((512, 512), Image.Resampling.BOX)
    difference = np.abs(np.asarray(working, dtype=int) - np.asarray(original, dtype=int))
    assert difference.mean() < 4


@pytest.mark.parametrize("image_id", ["a/b", "../x", "..", "%2F", "a b?c#d", "🖼️", "x/pixels", "ä" * 200])
def test_an_id_is_a_name_and_never_a_path(house: Any, picture: Any, image_id: str) -> None:
    from urllib.parse import quote

    assert house.ingest(picture(1), ids=[image_id]).json()["items"][0]["image_id"] == image_id
    path = "/v1/images/" + quote(image_id, safe="").replace(".", "%2E")
    assert house.ask("GET", path).json()["image_id"] == image_id
    assert house.ask("GET", f"{path}/pixels").status_code == 200
    assert house.ask("DELETE", path).json()["deleted"] == [image_id]


def test_the_collection_is_chosen_by_name(make_house: Any, picture: Any, problem: Any) -> None:
    house = make_house("cats", "dogs")
    unnamed = house.ingest(picture(1))
    assert problem(unnamed)["code"] == "bad_request"
    assert "cats, dogs" in problem(unnamed)["detail"]
    assert house.ingest(picture(1), collection="dogs").status_code == 201
    assert house.ask("POST", "/v1/search", content=picture(1), params={"collection": "dogs"}).json()["original"]
    in_cats = house.ask("POST", "/v1/search", content=picture(1), params={"collection": "cats"}).json()
    assert (in_cats["original"], in_cats["coverage"]["images_total"]) == (None, 0)
    assert problem(house.ingest(picture(1), collection="cows"))["code"] == "not_found"
    names = [CollectionStatus.model_validate(each).name for each in house.ask("GET", "/v1/collections").json()]
    assert names == ["cats", "dogs"]


def test_msgpack_says_the_same_as_json(house: Any, picture: Any) -> None:
    house.ingest(picture(1), ids=["one"])
    packed = house.ask(
        "POST", "/v1/search", content=picture(1), headers={"accept": "application/msgpack", "x-request-id": "same"}
    )
    assert packed.headers["content-type"] == "application/msgpack"
    plain = house.ask("POST", "/v1/search", content=picture(1), headers={"x-request-id": "same"})
    left, right = (Answer.model_validate(each) for each in (unpack(packed.content), plain.json()))
    assert left.model_copy(update={"timings_ms": {}}) == right.model_copy(update={"timings_ms": {}})


@pytest.mark.parametrize(
    ("given", "kept"), [("trace-1.a_B", True), ("", False), ("x" * 129, False), ("a b", False), ("<script>", False)]
)
def test_a_sane_request_id_is_kept_and_becomes_the_query_id(house: Any, picture: Any, given: str, kept: bool) -> None:
    response = house.ask("POST", "/v1/search", content=picture(1), headers={"x-request-id": given})
    assert (response.headers["x-request-id"] == given) is kept
    assert response.json()["query_id"] == response.headers["x-request-id"]


@pytest.mark.parametrize("path", ["/healthz", "/readyz", "/metrics", "/openapi.json", "/v1/status", "/nowhere"])
def test_every_response_carries_the_security_headers(house: Any, path: str) -> None:
    headers = house.ask("GET", path).headers
    assert headers["x-content-type-options"] == "nosniff"
    assert "default-src 'none'" in headers["content-security-policy"]
    assert "frame-ancestors 'none'" in headers["content-security-policy"]
    assert headers["cache-control"] == "no-store"
    assert headers["cross-origin-resource-policy"] == "same-origin"
    assert "access-control-allow-origin" not in headers


def test_ready_only_when_loaded_alive_before(house: Any, problem: Any) -> None:
    originals = house.served["photos"].originals
    originals.loaded = False
    assert house.ask("GET", "/healthz").status_code == 200
    assert problem(house.ask("GET", "/readyz"))["code"] == "unavailable"
    assert Status.model_validate_json(house.ask("GET", "/v1/status").content).ready is False
    originals.loaded = True
    assert house.ask("GET", "/readyz").status_code == 200


def test_metrics_count_requests_stages_and_items(house: Any, picture: Any) -> None:
    house.ingest(picture(1), b"bad")
    house.ask("POST", "/v1/search", content=picture(2))
    house.ask("GET", "/v1/images/none")
    text = house.ask("GET", "/metrics").text
    assert 'stemma_requests_total{method="POST",route="/v1/search",status="200"} 1.0' in text
    assert 'stemma_requests_total{method="GET",route="/v1/images/{image_id}",status="404"} 1.0' in text
    assert 'stemma_stage_seconds_count{stage="encode"} 1.0' in text
    assert 'stemma_ingest_items_total{status="rejected"} 1.0' in text
    assert "stemma_answers_incomplete_total 0.0" in text
