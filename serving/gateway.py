"""The contract over HTTP: one route, one short function; what a collection does is behind ``Served``.

``build_app`` needs no Ray: ``serving/deploy.py`` puts the same app into a Serve replica, tests drive it in process.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, cast
from urllib.parse import unquote_to_bytes

from fastapi import APIRouter, Depends, FastAPI, Request
from starlette.exceptions import HTTPException
from starlette.responses import Response

import stemma
from serving.access import Admission, Budget
from serving.bodies import Bounds, read_form, read_pair, read_picture
from serving.envelope import Envelope
from serving.ingest import ingest
from serving.metrics import Metrics
from serving.openapi import describe, documented
from serving.parameters import COLLECTION, REPLACE, Parameter, compare_parameters, parse_query, search_parameters
from serving.replies import broken, not_routed, problem, refused, reply, request_id
from serving.served import Served
from stemma.api import Answer, Ask, CollectionStatus, Comparison, DeleteResult, ImageRecord, IngestResult, Status
from stemma.catalog.schema import validate_image_id
from stemma.config import Settings
from stemma.errors import BadRequest, NotFound, StemmaError, Unavailable, error_from_problem
from stemma.query import answer, compare, resolve

INGEST_FIELDS = ("metadata", "image_id", "replace")


@dataclass(slots=True, kw_only=True)
class House:
    """What every route may use."""

    collections: Mapping[str, Served]
    settings: Settings
    admission: Admission
    metrics: Metrics
    search_table: tuple[Parameter, ...]
    compare_table: tuple[Parameter, ...]
    started: float = field(default_factory=time.monotonic)

    def served(self, parameters: dict[str, Any]) -> Served:
        """The collection a request means. Raises ``BadRequest`` when it must be named, ``NotFound`` for others."""
        name = parameters.pop("collection", None)
        if name is None and len(self.collections) == 1:
            return next(iter(self.collections.values()))
        names = ", ".join(self.collections)
        if name is None:
            raise BadRequest(f"say which collection: {names}", subject="collection")
        if name not in self.collections:
            raise NotFound(f"there is no collection {name[:64]!r} here; there is {names}", subject="collection")
        return self.collections[name]

    async def ready(self) -> bool:
        return all([await served.originals.ready() for served in self.collections.values()])


def _house(request: Request) -> House:
    return cast(House, request.app.state.house)


HouseHere = Annotated[House, Depends(_house)]
routes = APIRouter()


def build_app(collections: Mapping[str, Served], settings: Settings, *, proxy_echoes: bool = False) -> Envelope:
    """The gateway as an ASGI app. ``proxy_echoes``: see ``Envelope``."""
    metrics = Metrics()
    admission = Admission(settings.serve)
    metrics.gauge("stemma_requests_working", "Requests worked on", lambda: admission.working)
    metrics.gauge("stemma_requests_inside", "Requests with a place in the house", lambda: admission.inside)
    app = FastAPI(title="stemma", version=stemma.__version__, docs_url=None, redoc_url=None, redirect_slashes=False)
    app.state.house = House(
        collections=dict(collections),
        settings=settings,
        admission=admission,
        metrics=metrics,
        search_table=search_parameters(settings),
        compare_table=compare_parameters(settings),
    )
    app.include_router(routes)
    app.openapi = lambda: describe(app, settings)  # type: ignore[method-assign]
    app.add_exception_handler(StemmaError, refused)
    app.add_exception_handler(HTTPException, not_routed)
    app.add_exception_handler(Exception, broken)
    return Envelope(app, metrics, settings.serve.header_bytes_max, proxy_echoes=proxy_echoes)


@routes.post("/v1/search", **documented("search", Answer))
async def search(request: Request, house: HouseHere) -> Response:
    parameters = parse_query(request.scope["query_string"], house.search_table)
    served = house.served(parameters)
    ask = Ask(**parameters)
    budget = Budget(resolve(ask, house.settings).deadline_ms, request.scope["state"]["arrived"])
    with house.admission.place():
        image = await read_picture(request, house.settings, _reading(house, budget))
        async with budget.enforced("the search"), house.admission.work():
            ask = ask.model_copy(update={"deadline_ms": max(budget.left_ms(), 1.0)})
            found = await answer(image, ask, served.engine, query_id=request_id(request))
    house.metrics.answer(found)
    return reply(request, found)


@routes.post("/v1/compare", **documented("compare", Comparison))
async def compare_pair(request: Request, house: HouseHere) -> Response:
    parameters = parse_query(request.scope["query_string"], house.compare_table)
    served = house.served(parameters)
    budget = Budget(resolve(Ask(**parameters), house.settings).deadline_ms, request.scope["state"]["arrived"])
    with house.admission.place():
        query, original = await read_pair(request, house.settings, _reading(house, budget))
        async with budget.enforced("the comparison"), house.admission.work():
            compared = await compare(
                query, original, served.engine, served.engine.shards, deadline_ms=max(budget.left_ms(), 1.0)
            )
    house.metrics.comparison(compared)
    return reply(request, compared)


def _reading(house: House, budget: Budget) -> Budget:
    """The time a body has: the caller's own, but never more than ``limits.body_read_s_max``."""
    reading = Budget(1e3 * house.settings.limits.body_read_s_max, time.monotonic())
    return min(budget, reading, key=Budget.left_ms)


@routes.post("/v1/images", status_code=201, **documented("ingest", IngestResult))
async def ingest_images(request: Request, house: HouseHere) -> Response:
    parameters = parse_query(request.scope["query_string"], (COLLECTION, REPLACE))
    served = house.served(parameters)
    limits = house.settings.limits
    bounds = Bounds(
        body_bytes=limits.batch_bytes_max,
        files=limits.batch_items_max,
        file_bytes=house.settings.decode.image_bytes_max,
        fields=INGEST_FIELDS,
    )
    with house.admission.place():
        budget = Budget(1e3 * limits.body_read_s_max, time.monotonic())
        form = await read_form(request, bounds, house.settings, budget)
        replace = _replace(parameters.get("replace"), form.one("replace"))
        async with house.admission.work():
            result = await ingest(served, form, replace=replace)
    house.metrics.ingest(result)
    if len(result.items) == 1 and result.items[0].error is not None:
        # One picture, refused: the response says so with its status, and still lists the item for who reads lists.
        listed = result.model_dump(mode="json")
        return problem(error_from_problem(result.items[0].error.model_dump()), request_id(request), **listed)
    return reply(request, result, status=201)


def _replace(parameter: bool | None, part: str | None) -> bool:
    if part is not None and part not in ("true", "false"):
        raise BadRequest("replace must be true or false", subject="replace")
    asked = {parameter, None if part is None else part == "true"} - {None}
    if len(asked) > 1:
        raise BadRequest("replace is given twice, and not the same", subject="replace")
    return asked == {True}


def _image(request: Request, house: House) -> tuple[Served, str]:
    """The collection and the image that a path means. Raises ``BadRequest`` for an id that none can have."""
    served = house.served(parse_query(request.scope["query_string"], (COLLECTION,)))
    try:
        image_id = unquote_to_bytes(request.path_params["image_id"]).decode("utf-8")
    except UnicodeDecodeError as error:
        raise BadRequest("image_id is not UTF-8", subject="image_id") from error
    return served, validate_image_id(image_id, house.settings.limits)


@routes.get("/v1/images/{image_id}", **documented("get", ImageRecord))
async def get_image(request: Request, house: HouseHere) -> Response:
    served, image_id = _image(request, house)
    with house.admission.place():
        return reply(request, await served.originals.record(image_id))


@routes.get("/v1/images/{image_id}/pixels", **documented("pixels", None))
async def get_pixels(request: Request, house: HouseHere) -> Response:
    served, image_id = _image(request, house)
    with house.admission.place():
        return Response(await served.originals.pixels(image_id), media_type="image/jpeg")


@routes.delete("/v1/images/{image_id}", **documented("delete", DeleteResult))
async def delete_image(request: Request, house: HouseHere) -> Response:
    served, image_id = _image(request, house)
    with house.admission.place():
        result = await served.originals.delete([image_id])
    if not result.deleted:
        missing = NotFound("there is no such image", subject=image_id)
        return problem(missing, request_id(request), **result.model_dump(mode="json"))
    return reply(request, result)


@routes.get("/v1/collections", **documented("collections", list[CollectionStatus]))
async def get_collections(request: Request, house: HouseHere) -> Response:
    parse_query(request.scope["query_string"], ())
    return reply(request, [await served.originals.status() for served in house.collections.values()])


@routes.get("/v1/status", **documented("status", Status))
async def get_status(request: Request, house: HouseHere) -> Response:
    parse_query(request.scope["query_string"], ())
    status = Status(
        version=stemma.__version__,
        ready=await house.ready(),
        uptime_s=round(time.monotonic() - house.started, 3),
        working=house.admission.working,
        waiting=house.admission.inside - house.admission.working,
        collections=tuple([await served.originals.status() for served in house.collections.values()]),
    )
    return reply(request, status)


@routes.get("/healthz", **documented("healthy", None))
async def healthy() -> Response:
    return Response("alive\n", media_type="text/plain")


@routes.get("/readyz", **documented("ready", None))
async def ready(house: HouseHere) -> Response:
    if not await house.ready():
        raise Unavailable("the index is still loading", retry_after_s=1.0)
    return Response("ready\n", media_type="text/plain")


@routes.get("/metrics", **documented("metrics", None))
async def metrics(house: HouseHere) -> Response:
    return Response(house.metrics.text(), media_type="text/plain; version=0.0.4; charset=utf-8")
