"""What is decided before any route sees a request: limits, who may call, time-outs; and what is measured of each."""

from __future__ import annotations

import asyncio
import hmac
import logging
import math
import time
from collections.abc import Awaitable, Callable, MutableMapping
from http import HTTPStatus
from typing import Any, cast
from urllib.parse import urlsplit

from fastapi import Response
from prometheus_client import Counter
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

from pghc.api.problems import problem
from pghc.api.service import Service
from pghc.api.settings import Settings, is_loopback

MAX_HEADERS, MAX_HEADER_BYTES, MAX_TARGET_BYTES = 64, 16_384, 1_024
MAX_OPEN = 8_192  # requests in progress
HEADER_SECONDS = 10.0  # for a request's head, and for the end of an empty chunked body

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
    page can call it by a name of its own that resolves to loopback.
    """

    def __init__(self, app: Callable[[Scope, Receive, Send], Awaitable[None]], settings: Settings, service: Service):
        self._app, self._service = app, service
        self._token = settings.token.encode()
        self._origins = {origin.encode() for origin in settings.origins}
        self._open = 0
        self._counters: dict[tuple[str, str, int], Counter] = {}
        service.metrics.open_requests.set_function(lambda: self._open)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        began, status = time.monotonic(), 500

        async def answer(message: MutableMapping[str, Any]) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] += (b"cache-control", b"no-store"), (b"x-content-type-options", b"nosniff")
            await send(message)

        self._open += 1
        try:
            refusal = self._refusal(scope) or await _body_refusal(scope, receive)
            await (refusal or self._app)(scope, receive, answer)
        finally:
            self._open -= 1
            self._count(scope, status)
            if status >= 400 or log.isEnabledFor(logging.DEBUG):
                fields = {
                    "method": scope["method"][:20],
                    "path": scope["path"][:200],
                    "status": status,
                    "ms": round(1000 * (time.monotonic() - began), 1),
                }
                log.log(logging.DEBUG if status < 400 else logging.INFO, "request", extra={"fields": fields})

    def _count(self, scope: Scope, status: int) -> None:
        route = getattr(scope.get("route"), "path", "other")
        labels = (scope["method"] if route != "other" else "other", route, status)
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
        if self._service.appends.closing or self._open > MAX_OPEN:
            what = "is shutting down" if self._service.appends.closing else f"has {MAX_OPEN} requests in progress"
            return problem(503, "unavailable", f"the node {what}; nothing was done", headers={"Connection": "close"})
        host = token = b""
        for name, value in headers:
            if name == b"origin" and value not in self._origins and b"*" not in self._origins:
                return problem(403, "request", "pages of this origin are not allowed to call this node")
            if name == b"host":
                host = value
            elif name == b"authorization":
                token = value
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
                async with asyncio.timeout(HEADER_SECONDS):
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


class _Joined:
    """A transport that sends an answer's head and body, which come one after the other, in one packet."""

    def __init__(self, transport: asyncio.Transport, loop: asyncio.AbstractEventLoop) -> None:
        self._transport, self._loop = transport, loop
        self._written: list[bytes] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)

    def write(self, data: bytes) -> None:
        if not self._written:
            self._loop.call_soon(self._flush)
        self._written.append(data)

    def close(self) -> None:
        self._flush()
        self._transport.close()

    def _flush(self) -> None:
        if self._written:
            self._transport.write(b"".join(self._written))
            self._written.clear()


class Protocol(HttpToolsProtocol):
    """HTTP/1.1 with limits that the parser has not: of a head's size, and of the time that any step may take."""

    seconds = 60.0  # from a request's head to the end of its answer
    _head_bytes = 0
    _deadline = math.inf

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(cast(asyncio.Transport, _Joined(transport, self.loop)))
        self._deadline = self.loop.time() + HEADER_SECONDS

    def abort_if_overdue(self) -> None:
        """For the server to call about once a second, which is cheaper than a timer for each step."""
        if self.loop.time() > self._deadline:
            self.transport.abort()

    def data_received(self, data: bytes) -> None:
        cycle: RequestResponseCycle | None = self.cycle
        if cycle is None or cycle.response_complete:
            if not self._head_bytes:
                self._deadline = self.loop.time() + HEADER_SECONDS
            self._head_bytes += len(data)
            if self._head_bytes > MAX_HEADER_BYTES:
                self._refuse(431, f"the request's head has more than {MAX_HEADER_BYTES} bytes")
                return
        super().data_received(data)

    def eof_received(self) -> bool:  # type: ignore[override]
        """The peer sends no more; it may still read its answer."""
        cycle: RequestResponseCycle | None = self.cycle
        if cycle is None or cycle.response_complete:
            return False
        cycle.keep_alive = False
        return True

    def on_headers_complete(self) -> None:
        self._head_bytes = 0
        try:
            super().on_headers_complete()
        except Exception:  # a target that is no URL; the parser would report it without a word
            self._refuse(400, "the request's target is not valid")
            raise
        self._deadline = self.loop.time() + self.seconds

    def on_response_complete(self) -> None:
        self._deadline = math.inf
        super().on_response_complete()

    def send_400_response(self, msg: str) -> None:
        if not self.transport.is_closing():
            self._refuse(400, msg)

    def timeout_keep_alive_handler(self) -> None:
        self.transport.abort()  # also when the peer never reads its last answer

    def _refuse(self, status: int, why: str) -> None:
        answer = problem(status, "request", why, headers={"Connection": "close"})
        head = b"".join(b"%s: %s\r\n" % header for header in answer.raw_headers)
        phrase = HTTPStatus(status).phrase.encode()
        self.transport.write(b"HTTP/1.1 %d %s\r\n%s\r\n%s" % (status, phrase, head, answer.body))
        self.transport.close()
