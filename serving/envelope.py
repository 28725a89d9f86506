"""The outermost layer of the gateway: every request gets an id and an arrival time, every response its headers."""

from __future__ import annotations

import re
import time
import uuid
from urllib.parse import quote

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from serving.metrics import Metrics
from serving.replies import SECURITY_HEADERS, problem
from stemma.errors import BadRequest

_SANE_ID = re.compile(r"[A-Za-z0-9._-]{1,128}")
DRAINED_BYTES_MAX = 1 << 20  # of a refused body that is read to its end, so that the connection can be used again
_METHODS = {"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"}


class Envelope:
    """Wraps the app. ``proxy_echoes``: the HTTP proxy in front (Serve's) already echoes the request's own id."""

    def __init__(self, app: ASGIApp, metrics: Metrics, header_bytes_max: int, *, proxy_echoes: bool = False) -> None:
        self.app = app
        self._metrics = metrics
        self._header_bytes_max = header_bytes_max
        self._proxy_echoes = proxy_echoes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        arrived = time.monotonic()
        given = Headers(scope=scope).get("x-request-id", "")
        sane = _SANE_ID.fullmatch(given) is not None
        request_id = given if sane else uuid.uuid4().hex
        path = _encoded_path(scope)
        # Ids may hold a slash, so routing must see the path as it was sent; the route decodes its own part of it.
        scope = {**scope, "path": path, "root_path": "", "state": {"request_id": request_id, "arrived": arrived}}
        status, body_open = 500, _long_body(scope)

        async def receive_noted() -> Message:
            nonlocal body_open
            message = await receive()
            body_open = body_open and bool(message.get("more_body", False))
            return message

        async def send_enveloped(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                headers = MutableHeaders(scope=message)
                headers.update(SECURITY_HEADERS)
                if not (sane and self._proxy_echoes):
                    headers["x-request-id"] = request_id
                if body_open:
                    # The caller is still sending what was refused. Left open, the connection would be read for as long
                    # as it sends (an endless body kept the proxy busy for 8 minutes until it was stopped).
                    headers["connection"] = "close"
            await send(message)

        try:
            if _header_bytes(scope) > self._header_bytes_max:
                refusal = BadRequest(
                    f"path, query and headers may have {self._header_bytes_max} bytes together", subject="headers"
                )
                await problem(refusal, request_id)(scope, receive_noted, send_enveloped)
            else:
                await self.app(scope, receive_noted, send_enveloped)
        finally:
            route = getattr(scope.get("route"), "path", "none")
            method = scope["method"] if scope["method"] in _METHODS else "other"
            self._metrics.request(route, method, status, time.monotonic() - arrived)


def _encoded_path(scope: Scope) -> str:
    raw: bytes | None = scope.get("raw_path")
    return raw.partition(b"?")[0].decode("latin-1") if raw else quote(scope["path"])


def _long_body(scope: Scope) -> bool:
    headers = Headers(scope=scope)
    announced = headers.get("content-length", "0")
    short = announced.isdigit() and len(announced) < 12 and int(announced) <= DRAINED_BYTES_MAX
    return "transfer-encoding" in headers or not short


def _header_bytes(scope: Scope) -> int:
    headers = sum(len(name) + len(value) for name, value in scope["headers"])
    return int(headers + len(scope["path"]) + len(scope["query_string"]))
