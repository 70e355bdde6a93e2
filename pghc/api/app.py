"""The routes of an API node, and their description in OpenAPI."""

from __future__ import annotations

import json
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Annotated, Any
from uuid import UUID, uuid5

from fastapi import FastAPI, Header, Query, Request, Response
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.routing import Route

from pghc.api import pages
from pghc.api.edge import OPEN_TO_ALL, Edge
from pghc.api.metrics import CONTENT_TYPE
from pghc.api.problems import Problem, described, problem, problem_of
from pghc.api.service import Service
from pghc.api.settings import Settings
from pghc.chain import Row
from pghc.errors import BadInput, PghcError
from pghc.topology import View
from pghc.writers import new_request_id

POSITION = "PGHC-Position"
MAX_RECENT, MAX_VERIFY = 1_000, 1_000_000
BIGGEST = 2**63 - 1

#: Keys that are no UUIDs become UUIDs in this namespace.
KEYS = UUID("6f5e1b0e-3d3c-4f0a-9f8e-5a1d6b9c7e21")


def request_id_of(key: str) -> str:
    """The request id of an ``Idempotency-Key``: itself if it is a UUID, else derived from it. Raises `BadInput`."""
    if len(key) > 1 and key[0] == key[-1] == '"':  # a structured field's string
        key = key[1:-1]
    if not re.fullmatch(r"[!-~]{1,255}", key):
        raise BadInput("Idempotency-Key must be 1 to 255 visible ASCII characters")
    if re.fullmatch(r"[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}", key):
        return key.lower()
    return str(uuid5(KEYS, key))


# Documents


class Entry(BaseModel):
    """One entry of the chain."""

    zk_id: int
    node_id: str
    hash: str


class Regions(BaseModel):
    """Nodes by role."""

    primary: list[str]
    replica: list[str]
    zookeeper: list[str]
    api: list[str]


class ClusterConfig(BaseModel):
    """The cluster's nodes by region and role."""

    num_bdr_groups: int
    num_total_pg_nodes: int
    region: str
    regions: dict[str, Regions]


class Verification(BaseModel):
    """The verdict: ``valid`` is null when there is nothing to judge."""

    valid: bool | None
    reason: str
    checked: dict[str, int]
    counts: dict[str, int]
    anomalies: list[dict[str, Any]]


class Readiness(BaseModel):
    """Whether reads and appends can be expected to work now."""

    reads: bool
    appends: bool


EXAMPLE = {"zk_id": 7, "node_id": "us-east-primary", "hash": "0b9b3c5b6d2f2f8a3a4c8f9f5e0d7a11"}
REFUSED = (400, 401, 403, 413, 414, 431)
WITH_POSITION = {
    "headers": {
        POSITION: {
            "description": "Number of the newest entry that this answer has seen; send it along with reads.",
            "schema": {"type": "integer", "minimum": 0},
        }
    }
}
KEY_PARAMETER = {
    "name": "Idempotency-Key",
    "in": "header",
    "required": False,
    "description": "Requests with the same key are one append, through any region's node, at any time.",
    "schema": {"type": "string", "minLength": 1, "maxLength": 255, "pattern": "^[!-~]{1,255}$"},
    "example": "8e03978e-40d5-43dd-bc93-6894a57f9324",
}
Seen = Annotated[
    int, Header(alias=POSITION, ge=0, le=BIGGEST, description="Serve nothing older than this entry.", examples=[7])
]


# Routes


def create(view: View, settings: Settings) -> FastAPI:
    """The application of one region's node. Its `Service` is ``app.state.service``."""
    service = Service(view, settings.writer, timeout=settings.append_seconds)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        await service.start()
        yield
        await service.close()

    app = FastAPI(
        title="PGHC",
        summary=f"The hash chain as region {view.region} sees it",
        version="1",
        lifespan=lifespan,
        docs_url=None,  # FastAPI's own load scripts from elsewhere; see `pages`
        redoc_url=None,
        redirect_slashes=False,
        # Nothing goes elsewhere, whatever the environment says
        telemetry={"tracing": False, "metrics": False, "logs": False, "auto_configure": False},
    )
    app.state.service = service
    _add_routes(app, service)
    pages.add_to(app, settings)
    paths = frozenset(getattr(route, "path", "") for route in app.routes)
    app.add_middleware(Edge, settings=settings, service=service, paths=paths)
    if settings.origins:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=settings.origins,
            allow_methods=["GET", "POST"],
            allow_headers=["Authorization", "Idempotency-Key", POSITION],
            expose_headers=[POSITION, "Retry-After"],
        )
    app.add_exception_handler(PghcError, _on_error)
    app.add_exception_handler(HTTPException, _on_http_exception)
    app.add_exception_handler(RequestValidationError, _on_invalid)
    app.add_exception_handler(Exception, _on_surprise)
    _complete_openapi(app, settings)
    return app


def _add_routes(app: FastAPI, service: Service) -> None:
    ordered, repeatable = service.ordered, service.exactly_once

    @app.post(
        "/chain",
        summary="Append one entry",
        responses={
            200: {"model": Entry, "content": {"application/json": {"example": EXAMPLE}}} | WITH_POSITION,
            **described([*REFUSED, 409, 503, 504]),
        },
        openapi_extra={"parameters": [KEY_PARAMETER]},
    )
    async def append(request: Request) -> Response:
        """Append one entry to the chain and return it once it is in this region's primary.

        A request without a key is an append of its own. After an indefinite error, retry under the key that you sent,
        or under the ``request_id`` of the problem document.
        """
        keys = request.headers.getlist("idempotency-key")
        if keys and not repeatable:
            raise BadInput(f"the writer {service.writer} cannot honour an Idempotency-Key", "Send none")
        if len(keys) > 1:
            raise BadInput("Idempotency-Key is given twice")
        request_id = request_id_of(keys[0]) if keys else new_request_id()
        try:
            row = await service.appends.append(request_id, retried=bool(keys))
        except PghcError as error:
            return problem_of(error, request_id if repeatable else None)
        return Response(
            _json_row(row), headers={POSITION: str(row.zk_id)} if ordered else None, media_type="application/json"
        )

    # The route above is the description. This one serves: there is nothing to be parsed that would take FastAPI
    app.router.routes.insert(0, Route("/chain", append, methods=["POST"]))

    @app.get(
        "/chain/recent",
        summary="The newest entries, newest first",
        response_model=list[Entry],
        responses={
            200: {"content": {"application/json": {"example": [EXAMPLE]}}} | WITH_POSITION,
            **described([*REFUSED, 409, 422, 503]),
        },
    )
    async def recent(
        limit: Annotated[int, Query(ge=1, le=MAX_RECENT, description="How many at most.")] = 10,
        after: Annotated[int, Query(ge=0, le=BIGGEST, description="Only entries above this number.")] = 0,
        position: Seen = 0,
    ) -> Response:
        """The newest entries that a replica of this region has; no entry without all those before it."""
        mark, rows = await service.recent(limit, after, position)
        body = f"[{','.join(map(_json_row, rows))}]"
        return Response(body, headers={POSITION: str(mark)} if ordered else None, media_type="application/json")

    @app.get(
        "/chain/verify",
        summary="Recompute the last entries",
        response_model=Verification,
        responses=described([*REFUSED, 409, 422, 503]),
    )
    async def verify(
        last: Annotated[int, Query(ge=1, le=MAX_VERIFY, description="How many entries.")] = 1_000, position: Seen = 0
    ) -> Response:
        """The verdict on the last entries that a replica of this region has: every link, gap, fork and duplicate."""
        verdict = (await service.verify(last, position)).to_dict()
        body = {name: verdict[name] for name in Verification.model_fields}
        return Response(json.dumps(body), media_type="application/json")

    @app.get(
        "/cluster/config",
        summary="Regions and nodes",
        response_model=ClusterConfig,
        responses=described(REFUSED),
    )
    async def cluster_config() -> Response:
        """How many regions and Postgres servers there are, and all nodes by region and role."""
        nodes = service.view.topology.nodes
        regions: dict[str, dict[str, list[str]]] = {}
        for node in nodes:
            of_region = regions.setdefault(node.region, {role: [] for role in Regions.model_fields})
            of_region[node.role].append(node.name)
        body = {
            "num_bdr_groups": len(regions),
            "num_total_pg_nodes": sum(node.role in ("primary", "replica") for node in nodes),
            "region": service.view.region,
            "regions": regions,
        }
        return Response(json.dumps(body), media_type="application/json")

    plain = {"content": {"text/plain": {"schema": {"type": "string"}, "example": "pong"}}}

    @app.get("/ping", summary="Is anybody there?", response_class=Response, responses={200: plain})
    async def ping() -> Response:
        """The bare text ``pong``."""
        return Response("pong", media_type="text/plain")

    @app.get("/health/live", summary="Alive?", response_class=Response, responses={200: plain})
    async def live() -> Response:
        """The process answers. What else is down is no reason to start it again."""
        return Response("live", media_type="text/plain")

    @app.get(
        "/health/ready",
        summary="Ready?",
        response_model=Readiness,
        responses={503: {"model": Readiness, "description": "No server of the region can be read"}},
    )
    async def ready() -> Response:
        """200 while some server of the region can be read; whether appends work too is said in the answer."""
        readable = service.reads.readable and not service.ending
        body = {"reads": readable, "appends": readable and service.writable}
        return Response(json.dumps(body), 200 if readable else 503, media_type="application/json")

    @app.get(
        "/metrics",
        summary="Measurements for Prometheus",
        response_class=Response,
        responses={200: {"content": {"text/plain": {"schema": {"type": "string"}}}}, **described(REFUSED)},
    )
    async def metrics() -> Response:
        """Prometheus' text format."""
        return Response(service.metrics.exposition(), headers={"Content-Type": CONTENT_TYPE})


def _json_row(row: Row) -> str:
    # A node_id and a hash that a broken chain may hold are texts like any other
    return json.dumps(row._asdict())


def _complete_openapi(app: FastAPI, settings: Settings) -> None:
    generate = app.openapi

    def openapi() -> dict[str, Any]:
        if not app.openapi_schema:
            schema = generate()
            components = schema.setdefault("components", {})
            components.setdefault("schemas", {})["Problem"] = Problem.model_json_schema()
            if settings.token:
                components["securitySchemes"] = {"token": {"type": "http", "scheme": "bearer"}}
                for path, operations in schema["paths"].items():
                    if path not in OPEN_TO_ALL:
                        for operation in operations.values():
                            operation["security"] = [{"token": []}]
        return app.openapi_schema or schema

    app.openapi = openapi  # type: ignore[method-assign]


async def _on_error(_: Request, error: Exception) -> Response:
    assert isinstance(error, PghcError)
    return problem_of(error)


async def _on_http_exception(_: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    return problem(error.status_code, "request", str(error.detail), headers=error.headers)


async def _on_surprise(request: Request, _: Exception) -> Response:
    """A fault of ours; its traceback is in the log. An append may have happened before it."""
    return problem(500, "surprise", "an unexpected error; the node's log says more", definite=request.method != "POST")


async def _on_invalid(_: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    faults = "; ".join(f"{fault['loc'][-1]}: {fault['msg']}" for fault in error.errors())
    return problem(422, "bad-input", faults)
