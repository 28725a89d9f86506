"""Hostile pictures, bodies, names, filters and parameters over HTTP: each has its code, the replica lives on."""

from __future__ import annotations

import gzip
import http.client
import json
import socket
import time
from collections.abc import Iterator
from typing import Any
from urllib.parse import quote

import httpx
import pytest

pytestmark = [pytest.mark.live, pytest.mark.timeout(300)]

GATEWAY = "ray::ServeReplica:stemma:gateway"
CODES = {
    "bad_request": 400,
    "not_found": 404,
    "too_large": 413,
    "unsupported_type": 415,
    "bad_image": 422,
    "deadline": 504,
}


@pytest.fixture(scope="module")
def api(server: Any) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=server.url, timeout=60) as client:
        yield client


@pytest.fixture(scope="module", autouse=True)
def _the_replica_lives(server: Any, api: httpx.Client, good_jpeg: bytes) -> Iterator[None]:
    before = server.pids(GATEWAY)
    assert len(before) == 1
    yield
    assert server.pids(GATEWAY) == before, "a hostile request has ended the replica"
    assert api.post("/v1/search", content=good_jpeg).status_code == 200


ASKED_MAX = 10


def code_of(response: httpx.Response) -> str:
    if response.is_success:
        return "decoded"
    assert response.headers["content-type"] == "application/problem+json", response.text
    document = response.json()
    assert CODES[document["code"]] == response.status_code == document["status"]
    assert document["detail"] and "Traceback" not in response.text
    return str(document["code"])


def posted(api: httpx.Client, body: bytes) -> httpx.Response:
    """The answer to a search; a busy machine may say 503 for a moment, as the contract allows, and is asked again."""
    for _ in range(ASKED_MAX):
        response = api.post("/v1/search", content=body)
        if response.status_code != 503:
            break
    return response


def test_every_hostile_picture_has_its_code(api: httpx.Client, hostile_corpus: Any) -> None:
    wrong = []
    for case in hostile_corpus:
        asked = code_of(posted(api, case.body))
        if asked != case.expect:
            wrong.append((case.number, case.name, case.expect, asked))
    assert not wrong


def test_a_batch_of_all_hostile_pictures_stores_the_good_ones(api: httpx.Client, hostile_corpus: Any) -> None:
    files = [("file", (case.name, case.body)) for case in hostile_corpus]
    while sum(len(body) for _, (_, body) in files) > 60 << 20:
        files.pop(max(range(len(files)), key=lambda at: len(files[at][1][1])))
    names = {name for _, (name, _) in files}
    items = api.post("/v1/images", files=files, timeout=120).json()["items"]
    verdicts = {item["name"]: item["error"]["code"] if item["error"] else "decoded" for item in items}
    assert verdicts == {case.name: case.expect for case in hostile_corpus if case.name in names}


MULTIPART = {
    "two files": b'--e\r\nContent-Disposition: form-data; name="file"; filename="a"\r\n\r\nx\r\n' * 2 + b"--e--\r\n",
    "no closing boundary": b'--e\r\nContent-Disposition: form-data; name="file"; filename="a"\r\n\r\nx\r\n',
    "another boundary": b"--f\r\n\r\nx\r\n--f--\r\n",
    "endless headers": b"--e\r\n" + b"X: y\r\n" * 5000,
    "a part without a name": b"--e\r\n\r\nx\r\n--e--\r\n",
    "garbage": bytes(range(256)) * 8,
}


@pytest.mark.parametrize("abuse", MULTIPART)
def test_23_multipart_abuse(api: httpx.Client, abuse: str) -> None:
    headers = {"content-type": "multipart/form-data; boundary=e"}
    for path in ("/v1/search", "/v1/images"):
        if (path, abuse) != ("/v1/images", "two files"):
            assert code_of(api.post(path, content=MULTIPART[abuse], headers=headers)) == "bad_request"


def test_23_a_missing_boundary(api: httpx.Client) -> None:
    headers = {"content-type": "multipart/form-data"}
    assert code_of(api.post("/v1/search", content=b"--e\r\n", headers=headers)) == "bad_request"


def raw(server: Any, head: bytes, *, drip: bytes = b"", for_s: float = 20) -> tuple[int, dict[str, Any], float]:
    """One request byte by byte on a socket of its own; what comes back, and after how long."""
    host, port = server.url.removeprefix("http://").split(":")
    begun = time.monotonic()
    with socket.create_connection((host, int(port)), timeout=for_s) as connection:
        connection.sendall(head)
        connection.settimeout(0.1)
        received = b""
        while time.monotonic() - begun < for_s:
            try:
                received += (got := connection.recv(65536))
            except TimeoutError:
                got = None
            if got == b"" or (b"\r\n\r\n" in received and received.endswith(b"}")):
                break
            if drip and got is None:
                connection.sendall(drip)
    response, _, body = received.partition(b"\r\n\r\n")
    return int(response.split()[1]), json.loads(body), time.monotonic() - begun


def test_23_a_slow_drip_is_given_up_and_others_go_on(server: Any) -> None:
    head = b"POST /v1/search HTTP/1.1\r\nHost: s\r\nContent-Length: 100000\r\n\r\n"
    status, document, took_s = raw(server, head, drip=b"x")
    assert (status, document["code"]) == (504, "deadline")
    assert took_s < server.settings.limits.body_read_s_max + 5


def test_23_a_length_that_promises_too_much_is_refused_at_once(server: Any) -> None:
    head = b"POST /v1/search HTTP/1.1\r\nHost: s\r\nContent-Length: 99999999999\r\n\r\n"
    status, document, took_s = raw(server, head)
    assert (status, document["code"]) == (413, "too_large")
    assert took_s < 5


def test_24_a_chunked_body_that_never_ends(server: Any) -> None:
    chunk = b"10000\r\n" + b"\xff" * 0x10000 + b"\r\n"
    connection = http.client.HTTPConnection(server.url.removeprefix("http://"), timeout=30)
    connection.putrequest("POST", "/v1/search")
    connection.putheader("Transfer-Encoding", "chunked")
    connection.endheaders()
    sent = [0]

    def send_for_ever() -> None:
        while sent[0] < 256 << 20:
            connection.send(chunk)
            sent[0] += len(chunk)

    with pytest.raises(OSError, match=r"reset|Broken pipe|closed"):
        send_for_ever()
    connection.close()
    assert sent[0] < 200 << 20, "the server goes on reading what it has refused"


def test_24_a_compressed_bomb_is_not_unpacked(api: httpx.Client) -> None:
    bomb = gzip.compress(bytes(100 << 20))
    for headers in ({"content-encoding": "gzip"}, {"content-encoding": "br"}):
        assert code_of(api.post("/v1/search", content=bomb, headers=headers)) == "unsupported_type"
    assert code_of(api.post("/v1/search", content=bomb)) == "unsupported_type"


NAMES = {
    "dots": ("../../x", "stored"),
    "a percent-encoded slash": ("a%2Fb/c", "stored"),
    "emoji": ("\U0001f5bc\ufe0f", "stored"),
    "quotes": ("' OR 1=1 --", "stored"),
    "NUL": ("a\x00b", "bad_request"),
    "a right-to-left override": ("a\u202egpj.b", "bad_request"),
    "a new line": ("a\nb", "bad_request"),
    "1 MB": ("x" * 1_000_000, "bad_request"),
}


@pytest.mark.parametrize("case", NAMES)
def test_26_names(api: httpx.Client, server: Any, good_jpeg: bytes, case: str) -> None:
    name, expect = NAMES[case]
    path = "/v1/images/" + quote(name[:600], safe="").replace(".", "%2E")
    upload = api.post("/v1/images", files=[("file", ("x", good_jpeg)), ("image_id", (None, name.encode()))])
    if expect == "bad_request":
        assert code_of(upload) == "bad_request"
        assert code_of(api.get(path)) == code_of(api.delete(path)) == "bad_request"
        return
    assert upload.status_code == 201
    stored = upload.json()["items"][0]["image_id"]
    record = api.get("/v1/images/" + quote(stored, safe="").replace(".", "%2E")).json()
    assert record["image_id"] == stored
    assert api.delete("/v1/images/" + quote(stored, safe="").replace(".", "%2E")).json()["deleted"] == [stored]
    assert code_of(api.get(path)) == "not_found"


@pytest.mark.parametrize(
    "text",
    [
        "(" * 10_000,
        "NOT " * 10_000 + "a = 1",
        "x = 'a' OR '1'='1'; --",
        "a = 1 UNION SELECT 1",
        "a" * 1025,
        "\x00",
        "'",
    ],
)
def test_27_filters(api: httpx.Client, good_jpeg: bytes, text: str) -> None:
    response = api.post("/v1/search", params={"filter": text}, content=good_jpeg)
    assert code_of(response) == "bad_request"


@pytest.mark.parametrize("name", ["k", "nprobe", "rerank", "donors", "as_of", "min_version", "deadline_ms"])
@pytest.mark.parametrize(
    "value", ["-1", "9223372036854775808", "1.5e3", "ten", '"10"', "NaN", "Infinity", "", "\u0663", "1 "]
)
def test_28_parameters(api: httpx.Client, good_jpeg: bytes, name: str, value: str) -> None:
    response = api.post("/v1/search", params={name: value}, content=good_jpeg)
    assert code_of(response) == "bad_request"
    assert response.json()["subject"] == name


@pytest.mark.parametrize("query", ["k=1&k=1", "collection=nowhere", "topk=3", "k=%ff", "k"])
def test_28_queries(api: httpx.Client, good_jpeg: bytes, query: str) -> None:
    assert code_of(api.post(f"/v1/search?{query}", content=good_jpeg)) in ("bad_request", "not_found")
