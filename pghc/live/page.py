"""The page: static files for anybody on this machine, what is seen and done for the owner of the token alone.

The token is in the address's fragment, which browsers send to nobody; the page shows it as a bearer token, which no
other page can. Requests must be addressed to loopback by a name that only this machine has, and come from no other
origin.
"""

from __future__ import annotations

import asyncio
import hmac
import secrets
import socket
import tempfile
import time
from collections.abc import AsyncIterator, Callable
from importlib.resources import files
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import uvicorn
from fastapi import FastAPI, Request, Response
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import JSONResponse, StreamingResponse
from msgspec import DecodeError
from msgspec.json import decode, encode

from pghc.api.settings import is_loopback
from pghc.errors import BadInput, PghcError
from pghc.live.show import PACE, Show

#: Bytes of an order; pages that may listen at once.
ORDER, PAGES = 2_000, 8

STATIC = {
    "/": ("index.html", "text/html"),
    "/live.js": ("live.js", "text/javascript"),
    "/live.css": ("live.css", "text/css"),
}
HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
    "img-src 'self' data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "Cache-Control": "no-store",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
}


def create(show: Show, token: str, ending: Callable[[], bool] = lambda: False) -> FastAPI:
    """The application. ``ending``: does the server end, so that streams must, too?"""
    app = FastAPI(openapi_url=None)
    listening = 0

    @app.middleware("http")
    async def guard(request: Request, go_on: Any) -> Response:
        answer = _refusal(request, token) or await go_on(request)
        answer.headers.update(HEADERS)
        return answer

    def static(name: str, kind: str) -> Callable[[], Response]:
        return lambda: Response(files("pghc.live").joinpath("static", name).read_bytes(), media_type=kind)

    for path, (name, kind) in STATIC.items():
        app.get(path)(static(name, kind))

    @app.get("/events")
    async def events() -> Response:
        if listening >= PAGES:
            return JSONResponse({"error": f"{PAGES} pages listen already: close one"}, 503)

        async def flow() -> AsyncIterator[bytes]:
            nonlocal listening
            listening += 1
            try:
                yield b"event: hello\ndata: " + encode(show.view) + b"\n\n"
                number, beat = 0, 0.0
                while not ending():
                    number, news = await run_in_threadpool(show.stream.since, number)
                    if news or time.monotonic() - beat > 1:
                        beat = time.monotonic()
                        yield b'data: {"now":%.1f,"events":[%b]}\n\n' % (1000 * time.time(), news)
                    await asyncio.sleep(PACE)
            finally:
                listening -= 1

        return StreamingResponse(flow(), media_type="text/event-stream")

    @app.post("/do")
    async def do(request: Request) -> Response:
        body = b""
        async for part in request.stream():
            body += part
            if len(body) > ORDER:
                return JSONResponse({"error": "the order is too long"}, 413)
        try:
            show.do(decode(body))
        except DecodeError as error:
            return JSONResponse({"error": f"the order is no JSON: {error}"}, 400)
        except BadInput as error:
            return JSONResponse({"error": str(error)}, 400)
        return Response(status_code=202)

    @app.get("/save")
    async def keep() -> Response:
        def write() -> bytes:
            with tempfile.TemporaryDirectory(prefix="pghc-live-") as place:
                path = Path(place) / "seen.jsonl.gz"
                show.save(path)
                return path.read_bytes()

        try:
            return Response(await run_in_threadpool(write), media_type="application/gzip")
        except PghcError as error:
            return JSONResponse({"error": str(error)}, 409)

    return app


def _refusal(request: Request, token: str) -> Response | None:
    host = request.headers.get("host", "")
    try:
        local = is_loopback(urlsplit(f"//{host}").hostname or "")
    except ValueError:
        local = False
    if not local:
        return JSONResponse({"error": "call this page by localhost or a loopback address"}, 403)
    if request.headers.get("origin", f"http://{host}") != f"http://{host}":
        return JSONResponse({"error": "pages of other origins may not call"}, 403)
    if request.url.path not in STATIC:
        scheme, _, shown = request.headers.get("authorization", "").partition(" ")
        if scheme.lower() != "bearer" or not hmac.compare_digest(shown.encode(), token.encode()):
            return JSONResponse({"error": "this needs the token in the address that `pghc watch` printed"}, 401)
    return None


class Server(uvicorn.Server):
    """Serves the page of ``show`` on loopback until a signal, or ``should_exit``, ends it; raises `BadInput`.

    ``tell`` hears its address, with the token in it, when it can be opened.
    """

    def __init__(self, show: Show, port: int = 0, tell: Callable[[str], None] = print) -> None:
        token = secrets.token_urlsafe(24)
        options: dict[str, Any] = {"log_level": "warning", "access_log": False, "server_header": False, "ws": "none"}
        app = create(show, token, lambda: self.should_exit)
        super().__init__(uvicorn.Config(app, timeout_graceful_shutdown=2, **options))
        try:
            self._listener = socket.create_server(("127.0.0.1", port))
        except OSError as error:
            raise BadInput(f"port {port} cannot be used: {error.strerror}", "Choose another; 0 is any.") from error
        self._address, self._tell = f"http://127.0.0.1:{self._listener.getsockname()[1]}/#{token}", tell

    async def startup(self, sockets: Any = None) -> None:
        await super().startup(sockets)
        self._tell(self._address)

    def run(self, sockets: Any = None) -> None:
        with self._listener:
            super().run(sockets or [self._listener])
