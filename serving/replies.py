"""Responses: JSON or msgpack, problem documents (RFC 9457), and the headers that every one of them carries."""

from __future__ import annotations

import json
import math
from typing import Any, cast

from fastapi.encoders import jsonable_encoder
from pydantic import BaseModel
from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from stemma.errors import BadRequest, NotFound, StemmaError
from stemma.packing import MEDIA_TYPE, pack

SECURITY_HEADERS = {
    "x-content-type-options": "nosniff",
    "content-security-policy": "default-src 'none'; frame-ancestors 'none'",
    "cache-control": "no-store",
    "cross-origin-resource-policy": "same-origin",
    "referrer-policy": "no-referrer",
}


def reply(request: Request, value: BaseModel | Any, *, status: int = 200) -> Response:
    """``value`` as the caller wants it: msgpack when it asks for that, else JSON."""
    if wants_msgpack(request.headers):
        return Response(pack(value), status, media_type=MEDIA_TYPE)
    if isinstance(value, BaseModel):
        return Response(value.model_dump_json(), status, media_type="application/json")
    return Response(json.dumps(jsonable_encoder(value)), status, media_type="application/json")


def wants_msgpack(headers: Headers) -> bool:
    accepted = headers.get("accept", "")
    return any(part.split(";")[0].strip().lower() == MEDIA_TYPE for part in accepted.split(","))


def problem(error: StemmaError, request_id: str, *, status: int | None = None, **members: Any) -> Response:
    """The problem document of ``error``, with ``Retry-After`` where it knows one."""
    document = {**error.problem(), "instance": f"urn:stemma:request:{request_id}", "request_id": request_id, **members}
    document["status"] = status or error.status
    headers = {}
    if error.retry_after_s is not None:
        headers["retry-after"] = str(math.ceil(error.retry_after_s))
    return Response(json.dumps(document), document["status"], headers, media_type="application/problem+json")


def request_id(request: Request) -> str:
    """The id that the envelope gave this request."""
    return cast(str, request.scope["state"]["request_id"])


async def refused(request: Request, error: Exception) -> Response:
    """Handler of every ``StemmaError``."""
    assert isinstance(error, StemmaError)
    return problem(error, request_id(request))


async def not_routed(request: Request, error: Exception) -> Response:
    """Handler of what the router refuses: no such route, or not with this method."""
    assert isinstance(error, HTTPException)
    if error.status_code == 404:
        refusal: StemmaError = NotFound(
            "there is no such route; /openapi.json lists them", subject=request.url.path[:256]
        )
    else:
        refusal = BadRequest(f"{request.method} is not done here; /openapi.json says what is", subject="method")
    response = problem(refusal, request_id(request), status=error.status_code)
    response.headers.update(error.headers or {})
    return response


async def broken(request: Request, error: Exception) -> Response:  # noqa: ARG001 - the log has it, the caller must not
    """Handler of what nobody foresaw: the caller gets the request's id and nothing of the trace."""
    detail = "something broke that should not have; the server's log has the details under this request_id"
    return problem(StemmaError(detail), request_id(request))
