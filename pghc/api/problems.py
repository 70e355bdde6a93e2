"""Errors as problem documents (RFC 9457) that say whether a write may have happened."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from http import HTTPStatus
from typing import Any

from fastapi import Response
from pydantic import BaseModel

from pghc.api.service import NeverGiven
from pghc.errors import BadInput, Behind, ClusterError, Conflict, Indefinite, PghcError, Unavailable


class Problem(BaseModel):
    """A problem document (RFC 9457)."""

    type: str
    title: str
    status: int
    detail: str
    outcome: str
    node: str | None = None
    remedy: str | None = None
    request_id: str | None = None


STATUS: tuple[tuple[type[PghcError], HTTPStatus], ...] = (
    (BadInput, HTTPStatus.BAD_REQUEST),
    (NeverGiven, HTTPStatus.CONFLICT),
    (Conflict, HTTPStatus.CONFLICT),
    (Indefinite, HTTPStatus.GATEWAY_TIMEOUT),
    (Unavailable, HTTPStatus.SERVICE_UNAVAILABLE),
    (Behind, HTTPStatus.SERVICE_UNAVAILABLE),
    (ClusterError, HTTPStatus.SERVICE_UNAVAILABLE),
)


def problem(
    status: int, kind: str, detail: str, *, definite: bool = True, headers: Mapping[str, str] | None = None, **more: Any
) -> Response:
    """A problem document as an answer."""
    document = {
        "type": f"urn:pghc:{kind}",
        "title": HTTPStatus(status).phrase,
        "status": status,
        "detail": detail,
        "outcome": "definite" if definite else "indefinite",
        **{name: value for name, value in more.items() if value},
    }
    retry = {"Retry-After": "1"} if status in (503, 504) else {}
    return Response(
        json.dumps(document), status, {**retry, **(headers or {})}, media_type="application/problem+json"
    )


def problem_of(error: PghcError, request: str | None = None) -> Response:
    """The problem document of one of our errors."""
    status = next((status for kind, status in STATUS if isinstance(error, kind)), HTTPStatus.INTERNAL_SERVER_ERROR)
    return problem(
        status,
        re.sub(r"(?<!^)([A-Z])", r"-\1", type(error).__name__).lower(),
        error.what,
        definite=error.definite,
        node=error.node,
        remedy=error.remedy,
        request_id=request,
    )


def described(statuses: Sequence[int]) -> dict[int | str, dict[str, Any]]:
    example = {
        "type": "urn:pghc:unavailable",
        "title": "Service Unavailable",
        "status": 503,
        "detail": "us-east: append to the log: no ZooKeeper server with a quorum answered in time",
        "outcome": "definite",
        "node": "us-east-zookeeper",
        "remedy": "A quorum is more than half of the servers: see `pghc status`",
    }
    content = {"schema": {"$ref": "#/components/schemas/Problem"}}
    return {
        status: {
            "description": HTTPStatus(status).phrase,
            "content": {"application/problem+json": content | ({"example": example} if status == 503 else {})},
        }
        for status in statuses
    }
