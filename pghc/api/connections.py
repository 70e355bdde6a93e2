"""HTTP/1.1 connections with limits that uvicorn's have not: of a head's size, and of the time that any step may take.

uvicorn offers no limit on either, drops a peer that half-closes without its answer, and answers a malformed head in
plain text. So `Connection` subclasses its protocol class, which `uvicorn.Config(http=...)` takes; this file is the only
one that knows the protocol's inside (``cycle``, ``transport``, the parser's callbacks).
"""

from __future__ import annotations

import asyncio
import math
from http import HTTPStatus
from typing import Any, ClassVar, cast
from weakref import WeakSet

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

from pghc.api.problems import problem

MAX_HEAD_BYTES = 16_384
HEAD_SECONDS = 10.0  # for a request's head


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


class Connection(HttpToolsProtocol):
    """One client's connection."""

    seconds = 60.0  # from a request's head to the end of its answer
    every: ClassVar[WeakSet[Connection]] = WeakSet()

    _head_bytes = 0
    _deadline = math.inf

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(cast(asyncio.Transport, _Joined(transport, self.loop)))
        self._deadline = self.loop.time() + HEAD_SECONDS
        self.every.add(self)

    @classmethod
    async def watch(cls) -> None:
        """Abort connections that take too long, for ever. One look a second is cheaper than a timer for each step."""
        while True:
            await asyncio.sleep(1)
            for each in list(cls.every):
                if each.loop.time() > each._deadline:
                    each.transport.abort()

    def data_received(self, data: bytes) -> None:
        cycle: RequestResponseCycle | None = self.cycle
        if cycle is None or cycle.response_complete:
            if not self._head_bytes:
                self._deadline = self.loop.time() + HEAD_SECONDS
            self._head_bytes += len(data)
            if self._head_bytes > MAX_HEAD_BYTES:
                self._refuse(431, f"the request's head has more than {MAX_HEAD_BYTES} bytes")
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
