"""The OpenAPI document: what ``/openapi.json`` says of every route, from the same tables that read the requests."""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from pydantic import BaseModel
from starlette.responses import Response

from serving.bodies import ORIGINAL, ORIGINAL_ID, QUERY
from serving.parameters import COLLECTION, REPLACE, Parameter, compare_parameters, search_parameters
from stemma.config import Settings
from stemma.errors import StemmaError
from stemma.packing import MEDIA_TYPE

BINARY = {"type": "string", "format": "binary"}
PROBLEM_JSON = "application/problem+json"
# Path, query and header refusals may meet any route; 404 and 405 come from the router.
REFUSALS = {
    "search": (400, 404, 413, 415, 422, 429, 500, 503, 504),
    "compare": (400, 404, 413, 415, 422, 429, 500, 503, 504),
    "ingest": (400, 404, 409, 413, 415, 422, 429, 500, 503, 504),
    "get": (400, 404, 500, 503),
    "pixels": (400, 404, 500, 503),
    "delete": (400, 404, 409, 500, 503),
    "collections": (400, 503),
    "status": (400, 503),
    "healthy": (400,),
    "ready": (400, 503),
    "metrics": (400,),
}
TEXTS = {"healthy": "text/plain", "ready": "text/plain", "metrics": "text/plain", "pixels": "image/jpeg"}


class ProblemDocument(BaseModel):
    """RFC 9457: what went wrong, with a stable ``code`` and the way out."""

    type: str
    title: str
    status: int
    code: str
    detail: str
    instance: str
    request_id: str
    subject: str | None = None
    retry_after_s: float | None = None


def documented(operation: str, model: Any) -> dict[str, Any]:
    """Keyword arguments of a route: its name, its answer's type and the refusals it may give."""
    responses: dict[int | str, dict[str, Any]] = {
        status: {
            "description": ", ".join(_codes(status)),
            "content": {PROBLEM_JSON: {"schema": {"$ref": "#/components/schemas/ProblemDocument"}}},
        }
        for status in REFUSALS[operation]
    }
    done = 201 if operation == "ingest" else 200
    if model is not None:
        responses[done] = {"model": model, "description": "done", "content": {MEDIA_TYPE: {"schema": BINARY}}}
    else:
        responses[done] = {"description": "done", "content": {TEXTS[operation]: {"schema": {"type": "string"}}}}
    return {
        "operation_id": operation,
        "response_class": Response,
        "response_model": None,
        "responses": responses,
    }


def _codes(status: int) -> list[str]:
    codes = sorted({kind.code for kind in StemmaError.__subclasses__() if kind.status == status})
    return codes or ["internal"]


def describe(app: FastAPI, settings: Settings) -> dict[str, Any]:
    """The whole document, built once."""
    if app.openapi_schema is None:
        document = get_openapi(title=app.title, version=app.version, routes=app.routes, description=__doc__)
        schemas = document.setdefault("components", {}).setdefault("schemas", {})
        schemas["ProblemDocument"] = ProblemDocument.model_json_schema()
        for methods in document["paths"].values():
            for operation in methods.values():
                _complete(operation, settings)
        app.openapi_schema = document
    return app.openapi_schema


def _complete(operation: dict[str, Any], settings: Settings) -> None:
    name = operation["operationId"]
    tables: dict[str, tuple[Parameter, ...]] = {
        "search": search_parameters(settings),
        "compare": compare_parameters(settings),
        "ingest": (COLLECTION, REPLACE),
        "get": (COLLECTION,),
        "pixels": (COLLECTION,),
        "delete": (COLLECTION,),
    }
    operation["parameters"] = [parameter.openapi() for parameter in tables.get(name, ())]
    if name in ("get", "pixels", "delete"):
        operation["parameters"].append(
            {"name": "image_id", "in": "path", "required": True, "schema": {"type": "string", "minLength": 1}}
        )
    if name == "search":
        part = {"type": "object", "properties": {"file": BINARY}, "required": ["file"], "additionalProperties": False}
        kinds = ("image/jpeg", "image/png", "image/webp", "image/gif", "application/octet-stream")
        content = {**{kind: {"schema": BINARY} for kind in kinds}, "multipart/form-data": {"schema": part}}
        operation["requestBody"] = {"required": True, "content": content}
    if name == "compare":
        operation["requestBody"] = {"required": True, "content": {"multipart/form-data": {"schema": _pair()}}}
    if name == "ingest":
        operation["requestBody"] = {"required": True, "content": {"multipart/form-data": {"schema": _upload()}}}


def _pair() -> dict[str, Any]:
    return {
        "type": "object",
        "required": [QUERY],
        "additionalProperties": False,
        "properties": {
            QUERY: {**BINARY, "description": "the picture that may have been changed"},
            ORIGINAL: {**BINARY, "description": "what it is compared with; or else:"},
            ORIGINAL_ID: {"type": "string", "minLength": 1, "description": "the id of an original of the collection"},
        },
        "oneOf": [{"required": [ORIGINAL]}, {"required": [ORIGINAL_ID]}],
    }


def _upload() -> dict[str, Any]:
    return {
        "type": "object",
        "required": ["file"],
        "additionalProperties": False,
        "properties": {
            "file": {"type": "array", "items": BINARY, "minItems": 1, "description": "one part for every picture"},
            "metadata": {"type": "string", "description": "a JSON list with one object for every file, in order"},
            "image_id": {
                "type": "array",
                "items": {"type": "string"},
                "description": "one part for every file, in order; none at all: hex SHA-256",
            },
            "replace": {"type": "string", "enum": ["true", "false"]},
        },
    }
