"""Whatever cannot be meant is refused by name, as a problem document, whoever notices it."""

from __future__ import annotations

from typing import Any

import pytest

from stemma.errors import StemmaError

BAD_PARAMETERS = [
    ("k=-1", "k"),
    ("k=0", "k"),
    ("k=101", "k"),
    ("k=2147483648", "k"),
    ("k=99999999999999999999999", "k"),
    ("k=1.5", "k"),
    ("k=ten", "k"),
    ("k=NaN", "k"),
    ("k=%2210%22", "k"),
    ("k=", "k"),
    ("k=+5", "k"),
    ("k=0x10", "k"),
    ("k=%D9%A3", "k"),
    ("k=1&k=2", "k"),
    ("k=1;k=2", "k"),
    ("nprobe=0", "nprobe"),
    ("nprobe=4097", "nprobe"),
    ("rerank=-1", "rerank"),
    ("donors=21", "donors"),
    ("as_of=-1", "as_of"),
    ("as_of=9223372036854775808", "as_of"),
    ("min_version=1e3", "min_version"),
    ("deadline_ms=NaN", "deadline_ms"),
    ("deadline_ms=inf", "deadline_ms"),
    ("deadline_ms=0", "deadline_ms"),
    ("deadline_ms=-5", "deadline_ms"),
    ("deadline_ms=60001", "deadline_ms"),
    ("filter=", "filter"),
    ("filter=%00", "filter"),
    ("topk=5", "topk"),
    ("K=5", "K"),
    ("collection=a%00b", "collection"),
    ("k", "query"),
    ("k=%FF", "query"),
    ("&".join(f"a{at}=1" for at in range(100)), "query"),
]


@pytest.mark.parametrize(("query", "subject"), BAD_PARAMETERS)
def test_a_bad_parameter_is_named(old_house: Any, picture: Any, problem: Any, query: str, subject: str) -> None:
    document = problem(old_house.ask("POST", f"/v1/search?{query}", content=picture(1)))
    assert (document["status"], document["code"], document["subject"]) == (400, "bad_request", subject)


@pytest.mark.parametrize(
    "filter",
    ["nobody = 1", "year = (SELECT 1)", "1 = 1; DROP TABLE x", "(" * 200 + "year = 1" + ")" * 200, "year = 'x' " * 200],
)
def test_a_bad_filter_is_refused(old_house: Any, picture: Any, problem: Any, filter: str) -> None:
    metadata = ("metadata", (None, b'[{"year": 1999}]'))
    assert old_house.ask("POST", "/v1/images", files=[("file", ("1", picture(77))), metadata]).status_code == 201
    refused = problem(old_house.ask("POST", "/v1/search", content=picture(2), params={"filter": filter}))
    assert refused["code"] == "bad_request"


@pytest.mark.parametrize("path", ["/", "/v2/search", "/v1/search/", "/v1/images/a/b", "/docs"])
def test_an_unknown_route_is_a_404_problem(old_house: Any, problem: Any, path: str) -> None:
    assert problem(old_house.ask("GET", path))["code"] == "not_found"


@pytest.mark.parametrize(
    ("method", "path", "allow"),
    [
        ("GET", "/v1/search", "POST"),
        ("PUT", "/v1/images", "POST"),
        ("POST", "/v1/status", "GET"),
        ("PATCH", "/v1/images/x", "GET"),
    ],
)
def test_another_method_is_a_405_problem(old_house: Any, problem: Any, method: str, path: str, allow: str) -> None:
    response = old_house.ask(method, path)
    assert response.status_code == 405
    assert allow in response.headers["allow"]
    assert problem(response)["subject"] == "method"


def test_routes_without_parameters_take_none(old_house: Any, problem: Any) -> None:
    assert problem(old_house.ask("GET", "/v1/status?verbose=true"))["subject"] == "verbose"
    assert problem(old_house.ask("GET", "/v1/images/x?k=1"))["subject"] == "k"


@pytest.mark.parametrize(
    ("image_id", "character"),
    [("a%00b", "NUL"), ("a%0Ab", "newline"), ("%FF%FE", "not UTF-8"), ("x" * 513, "too long")],
)
def test_an_id_that_none_can_have_is_a_bad_request(old_house: Any, problem: Any, image_id: str, character: str) -> None:
    for method in ("GET", "DELETE"):
        assert problem(old_house.ask(method, f"/v1/images/{image_id}"))["code"] == "bad_request", character


def test_what_nobody_foresaw_is_a_500_without_a_trace(
    old_house: Any, problem: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def broken() -> bool:
        raise RuntimeError("the secret of line 42")

    monkeypatch.setattr(old_house.served["photos"].originals, "ready", broken)
    response = old_house.ask("GET", "/v1/status", headers={"x-request-id": "find-me"})
    document = problem(response)
    assert (response.status_code, document["code"], document["request_id"]) == (500, "internal", "find-me")
    assert "secret" not in response.text
    assert response.headers["x-content-type-options"] == "nosniff"


def every_error(kind: type[StemmaError] = StemmaError) -> list[type[StemmaError]]:
    return [kind, *(deeper for child in kind.__subclasses__() for deeper in every_error(child))]


@pytest.mark.parametrize("kind", every_error())
def test_every_error_arrives_with_its_status_and_code(
    old_house: Any, problem: Any, monkeypatch: pytest.MonkeyPatch, kind: type[StemmaError]
) -> None:
    async def refuse(_: str) -> None:
        raise kind("no", subject="it", retry_after_s=1.2)

    monkeypatch.setattr(old_house.served["photos"].originals, "record", refuse)
    response = old_house.ask("GET", "/v1/images/x")
    document = problem(response)
    assert (response.status_code, document["code"], document["subject"]) == (kind.status, kind.code, "it")
    assert response.headers["retry-after"] == "2"


def test_metadata_must_fit_the_files(old_house: Any, picture: Any, problem: Any) -> None:
    for text in (b"{}", b"[1]", b"[{}, {}]", b"[", b"[NaN]", b'[{"a": NaN}]', b"[" * 100_000, b"\xff"):
        parts = [("file", ("1", picture(1))), ("metadata", (None, text))]
        assert problem(old_house.ask("POST", "/v1/images", files=parts))["subject"] == "metadata"
    deep = b'[{"a": ' + b'{"a": ' * 9 + b"1" + b"}" * 9 + b"}]"
    large = b'[{"a": "' + b"x" * 20_000 + b'"}]'
    for text in (deep, large):
        parts = [("file", ("1", picture(1))), ("metadata", (None, text))]
        assert problem(old_house.ask("POST", "/v1/images", files=parts))["code"] == "bad_request"


def test_ids_must_fit_the_files(old_house: Any, picture: Any, problem: Any) -> None:
    assert problem(old_house.ingest(picture(1), picture(2), ids=["only one"]))["subject"] == "image_id"
    assert problem(old_house.ingest(picture(1), ids=["a\x00b"]))["code"] == "bad_request"
    assert problem(old_house.ingest(picture(1), ids=["x" * 1_000_000]))["code"] == "bad_request"


def test_replace_is_true_or_false_and_said_once(old_house: Any, picture: Any, problem: Any) -> None:
    assert problem(old_house.ingest(picture(1), replace="yes"))["subject"] == "replace"
    parts = [("file", ("1", picture(1))), ("replace", (None, b"true"))]
    assert problem(old_house.ask("POST", "/v1/images?replace=false", files=parts))["subject"] == "replace"
    assert old_house.ask("POST", "/v1/images?replace=true", files=parts).status_code == 201
