"""The OpenAPI document is kept: whatever a client makes of it is answered as it says (a short run of schemathesis)."""

from __future__ import annotations

from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from serving.gateway import build_app
from serving.openapi import describe
from stemma.config import Settings

CHECKS = [status_code_conformance, content_type_conformance, response_schema_conformance]
SCHEMA = schemathesis.openapi.from_dict(describe(build_app({}, Settings()).app, Settings()))
OPERATIONS = {result.ok().label: result.ok() for result in SCHEMA.get_all_operations()}


@pytest.mark.parametrize("label", OPERATIONS)
def test_every_route_answers_as_documented(label: str, old_house: Any, picture: Any) -> None:
    old_house.ingest(picture(1), picture(2))

    @settings(max_examples=10, deadline=None, suppress_health_check=list(HealthCheck), database=None)
    @given(case=OPERATIONS[label].as_strategy())
    def answers(case: Any) -> None:
        kwargs = case.as_transport_kwargs(base_url="http://stemma")
        kwargs.pop("cookies", None)
        if isinstance(kwargs.get("data"), bytes):
            kwargs["content"] = kwargs.pop("data")
        response = old_house.ask(kwargs.pop("method"), kwargs.pop("url"), **kwargs)
        assert response.status_code != 500  # a documented 503 or 504 is an answer
        case.validate_response(schemathesis.Response.from_any(response), checks=CHECKS)

    answers()


def test_every_operation_says_what_it_takes(old_house: Any) -> None:
    document = old_house.ask("GET", "/openapi.json").json()
    operations = {
        (method, path): operation
        for path, methods in document["paths"].items()
        for method, operation in methods.items()
    }
    assert len(operations) == 11
    search = operations["post", "/v1/search"]
    limits = {each["name"]: each["schema"].get("maximum") for each in search["parameters"]}
    assert limits["k"] == 100 and limits["deadline_ms"] == 60_000
    for (_, path), operation in operations.items():
        named = {each["name"] for each in operation["parameters"] if each["in"] == "path"}
        assert named == ({"image_id"} if "{image_id}" in path else set())
