"""Query parameters, read strictly: what is unknown, given twice or not of its kind is refused by name.

One table says what a route takes; it parses requests and writes the OpenAPI document.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal
from urllib.parse import parse_qsl

from stemma.api import Ask
from stemma.config import Settings
from stemma.errors import BadRequest

Kind = Literal["integer", "number", "boolean", "text"]
FIELDS_MAX = 64
_INTEGER = re.compile(r"-?[0-9]{1,19}")
_NUMBER = re.compile(r"[0-9]{1,12}(\.[0-9]{1,9})?")


@dataclass(frozen=True, slots=True, kw_only=True)
class Parameter:
    name: str
    kind: Kind
    description: str
    low: int | None = None
    high: float | None = None

    def parse(self, text: str) -> int | float | bool | str:
        """Raises ``BadRequest`` naming this parameter; limits are checked where the value is used."""
        if self.kind == "text":
            if not text or not text.isprintable():
                raise BadRequest(f"{self.name} must be printable text", subject=self.name)
            return text
        if self.kind == "integer" and _INTEGER.fullmatch(text):
            return self._bounded(int(text))
        if self.kind == "number" and _NUMBER.fullmatch(text):
            return self._bounded(float(text))
        if self.kind == "boolean" and text in ("true", "false"):
            return text == "true"
        article = "an" if self.kind == "integer" else "a"
        raise BadRequest(f"{self.name} must be {article} {self.kind}, not {text[:64]!r}", subject=self.name)

    def _bounded(self, value: float) -> float:
        above = self.high is not None and value > self.high
        if above or (self.low is not None and value < self.low):
            raise BadRequest(f"{self.name} must be {self.low} to {self.high}, not {value}", subject=self.name)
        return value

    def openapi(self) -> dict[str, Any]:
        schema: dict[str, Any] = {"type": "string" if self.kind == "text" else self.kind}
        if self.kind == "text":
            schema["minLength"] = 1
        if self.low is not None:
            schema["minimum"] = self.low
        if self.high is not None:
            schema["maximum"] = self.high
        return {"name": self.name, "in": "query", "required": False, "description": self.description, "schema": schema}


COLLECTION = Parameter(name="collection", kind="text", description="which collection; may be left out if there is one")
REPLACE = Parameter(name="replace", kind="boolean", description="let an image with a known id take its place")


def search_parameters(settings: Settings) -> tuple[Parameter, ...]:
    """What ``POST /v1/search`` takes; the fields of ``Ask`` with their limits."""
    limits = settings.limits
    bounds: dict[str, tuple[int, float]] = {
        "k": (1, limits.k_max),
        "nprobe": (1, limits.nprobe_max),
        "rerank": (0, limits.rerank_max),
        "donors": (0, limits.donors_max),
        "min_version": (0, 2**63 - 1),
        "as_of": (0, 2**63 - 1),
        "deadline_ms": (1, limits.deadline_ms_max),
    }
    kinds: dict[str, Kind] = {"filter": "text", "deadline_ms": "number"}
    fields = [
        Parameter(
            name=name,
            kind=kinds.get(name, "integer"),
            description=field.description or "",
            low=bounds[name][0] if name in bounds else None,
            high=bounds[name][1] if name in bounds else None,
        )
        for name, field in Ask.model_fields.items()
    ]
    return (COLLECTION, *fields)


def compare_parameters(settings: Settings) -> tuple[Parameter, ...]:
    """What ``POST /v1/compare`` takes: of what a search takes, what a pair has a use for."""
    return tuple(each for each in search_parameters(settings) if each.name in ("collection", "deadline_ms"))


def parse_query(query: bytes, table: Sequence[Parameter]) -> dict[str, Any]:
    """The parameters of a query string. Raises ``BadRequest`` naming the first that cannot be meant."""
    try:
        pairs = parse_qsl(
            query.decode("ascii"),
            keep_blank_values=True,
            strict_parsing=bool(query),
            errors="strict",
            max_num_fields=FIELDS_MAX,
        )
    except ValueError as error:
        raise BadRequest(f"the query string cannot be read: {error}", subject="query") from error
    known: Mapping[str, Parameter] = {parameter.name: parameter for parameter in table}
    values: dict[str, Any] = {}
    for name, text in pairs:
        if name not in known:
            takes = ", ".join(known) or "none"
            raise BadRequest(f"unknown parameter {name[:64]!r}; this route takes {takes}", subject=name[:64])
        if name in values:
            raise BadRequest(f"{name} is given more than once", subject=name)
        values[name] = known[name].parse(text)
    return values
