"""What is decided before any route sees a request: limits, who may call, time-outs; and what is measured of each."""

from __future__ import annotations

import asyncio
import hmac
import logging
import time
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any
from urllib.parse import urlsplit

from fastapi import Response
from prometheus_client import Counter

from pghc.api.problems import problem
from pghc.api.service import Service
from pghc.api.settings import Settings, is_loopback

MAX_HEADERS, MAX_TARGET_BYTES = 64, 1_024
MAX_OPEN = 8_192  # requests in progress
BODY_SECONDS = 10.0  # for the end of an empty chunked body

log = logging.getLogger("pghc.api")

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]

#: What needs no token, for those who watch over the process.
OPEN_TO_ALL = ("/ping", "/health/live", "/health/ready")


class Edge:
    """Refuses what is too large, too much, or not allowed; measures and logs the rest.

    No request has a body. A page of another origin gets nothing unless it is allowed, also where the browser would send
    without asking; without a token, requests must be addressed to this machine by a name that only it has, so that no
    page can call it by a name of its own that resolves to loopback. ``paths``: those that exist, for the metrics.

    HEAD is GET whose body is left out. While the node ends, answers close their connections.
    """

    def __init__(
        self,
        app: Callable[[Scope, Receive, Send], Awaitable[None]],
        settings: Settings,
        service: Service,
        paths: frozenset[str] = frozenset(),
    ) -> None:
        self._app, self._service, self._paths = app, service, paths
        self._token = settings.token.encode()
        self._origins = {origin.encode() for origin in settings.origins}
        self._counters: dict[tuple[str, str, int], Counter] = {}
        service.metrics.open_requests.set_function(lambda: len(service.requests))

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        began, status, method = time.monotonic(), 0, scope["method"]
        if head := method == "HEAD":
            scope = {**scope, "method": "GET"}

        async def answer(message: MutableMapping[str, Any]) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] += (b"cache-control", b"no-store"), (b"x-content-type-options", b"nosniff")
                if self._service.ending:
                    kept = [each for each in message["headers"] if each[0] != b"connection"]
                    message["headers"] = [*kept, (b"connection", b"close")]
            elif head:
                message = {**message, "body": b""}
            await send(message)

        task = asyncio.current_task()
        assert task
        self._service.requests.add(task)
        try:
            refusal = self._refusal(scope) or await _body_refusal(scope, receive)
            await (refusal or self._app)(scope, receive, answer)
        except asyncio.CancelledError:
            if status or not self._service.ending:
                raise
            task.uncancel()
            await _cut_short(method)(scope, receive, answer)
        finally:
            self._service.requests.discard(task)
            status = status or 500
            self._count(scope, method, status)
            if status >= 400 or log.isEnabledFor(logging.DEBUG):
                fields = {
                    "method": method[:20],
                    "path": scope["path"][:200],
                    "status": status,
                    "ms": round(1000 * (time.monotonic() - began), 1),
                }
                log.log(logging.DEBUG if status < 400 else logging.INFO, "request", extra={"fields": fields})

    def _count(self, scope: Scope, method: str, status: int) -> None:
        route = getattr(scope.get("route"), "path", "")  # a template; refused requests and `POST /chain` have none
        route = route or (scope["path"] if scope["path"] in self._paths else "other")
        labels = (method if route != "other" else "other", route, status)
        counter = self._counters.get(labels)  # to find it in prometheus_client takes longer than to count
        if counter is None:
            counter = self._counters[labels] = self._service.metrics.requests.labels(*labels)
        counter.inc()

    def _refusal(self, scope: Scope) -> Response | None:
        headers = scope["headers"]
        if len(scope["raw_path"]) + len(scope["query_string"]) > MAX_TARGET_BYTES:
            return problem(414, "request", f"the path and query have more than {MAX_TARGET_BYTES} bytes")
        if len(headers) > MAX_HEADERS:
            return problem(431, "request", f"there are more than {MAX_HEADERS} headers")
        if self._service.appends.closing or len(self._service.requests) > MAX_OPEN:
            what = "is shutting down" if self._service.appends.closing else f"has {MAX_OPEN} requests in progress"
            return problem(503, "unavailable", f"the node {what}; nothing was done", headers={"Connection": "close"})
        host = token = b""
        origins = set()
        for name, value in headers:
            if name == b"host":
                host = value
            elif name == b"authorization":
                token = value
            elif name == b"origin":
                origins.add(value)
        own = {b"http://" + host, b"https://" + host}  # the pages of this node itself
        if origins - own - self._origins and b"*" not in self._origins:
            return problem(403, "request", "pages of this origin are not allowed to call this node")
        if not self._token:
            if host not in _LOCAL_HOSTS and not _is_local(host):
                return problem(403, "request", "without a token, call this node by localhost or a loopback address")
        elif scope["path"] not in OPEN_TO_ALL and not self._shown(token):
            return problem(401, "request", "a valid bearer token is needed", headers={"WWW-Authenticate": "Bearer"})
        return None

    def _shown(self, authorization: bytes) -> bool:
        scheme, _, token = authorization.partition(b" ")
        return hmac.compare_digest(token.strip(), self._token) and scheme.lower() == b"bearer"


async def _body_refusal(scope: Scope, receive: Receive) -> Response | None:
    empty = True
    for name, value in scope["headers"]:
        if name == b"content-length":
            empty = value.strip(b"0") == b""
        elif name == b"transfer-encoding":
            try:
                async with asyncio.timeout(BODY_SECONDS):
                    message = await receive()
                    while message.get("more_body") and not message.get("body"):
                        message = await receive()
                empty = not message.get("body")
            except TimeoutError:
                return problem(408, "request", "the body did not end in time", headers={"Connection": "close"})
        if not empty:
            return problem(413, "request", "requests have no body here", headers={"Connection": "close"})
    return None


#: Host headers that were found to be local; few, as nobody else's are remembered.
_LOCAL_HOSTS: set[bytes] = set()


def _is_local(host: bytes) -> bool:
    try:
        local = is_loopback(urlsplit(f"//{host.decode('ascii')}").hostname or "")
    except ValueError:
        return False
    if local and len(_LOCAL_HOSTS) < 100:
        _LOCAL_HOSTS.add(host)
    return local


def _cut_short(method: str) -> Response:
    """The answer to a request that was still in progress when the node had to end."""
    definite = method != "POST"
    what = "the API node shuts down and did not wait for the end of this request"
    return problem(503 if definite else 504, "unavailable", what, definite=definite)
