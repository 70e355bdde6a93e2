"""An API node as a process: its HTTP server, its log, its end."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import signal
import socket
import sys
import time
from typing import NoReturn

import pydantic.v1  # noqa: F401  FastAPI imports it with the first route: here it is shared by all nodes of one machine
import uvicorn
import uvicorn.lifespan.on

from pghc.api.app import create
from pghc.api.connections import Connection
from pghc.api.service import VERIFY, Service
from pghc.api.settings import Settings
from pghc.errors import ClusterError
from pghc.topology import View

KEEP_ALIVE_SECONDS = 30
BACKLOG = 1024
GRACE_SECONDS = 1  # for answers that their readers have not taken yet, when the node shuts down

log = logging.getLogger("pghc.api")


def serve(view: View, settings: Settings) -> NoReturn:
    """Run the node of ``view``'s region until SIGTERM or SIGINT, then end this process.

    Raises `BadInput` or `ClusterError` before, when the writer or the port are not to be had.
    """
    _log_as_json(view.region, settings.log_level)
    listener = _listen(settings)
    app = create(view, settings)
    Connection.seconds = max(settings.append_seconds, VERIFY) + 20
    config = uvicorn.Config(
        app,
        http=Connection,
        ws="none",
        lifespan="on",
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,
        timeout_keep_alive=KEEP_ALIVE_SECONDS,
        timeout_graceful_shutdown=GRACE_SECONDS,
        backlog=BACKLOG,
    )
    code = 1
    try:
        code = asyncio.run(_serve(uvicorn.Server(config), listener, app.state.service))
    finally:
        logging.shutdown()
        # Threads of appends that were refused may still wait for servers that are gone; every request has its answer
        os._exit(code)


def _listen(settings: Settings) -> socket.socket:
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    try:
        return socket.create_server((settings.host, settings.port), family=family, backlog=BACKLOG)
    except OSError as error:
        raise ClusterError(
            f"nothing can listen on {settings.host}, port {settings.port}: {error.strerror or error}",
            "Choose another port; 0 takes one that is free.",
        ) from error


async def _serve(server: uvicorn.Server, listener: socket.socket, service: Service) -> int:
    """Until a signal; returns the exit code. What is in progress then is answered before the server is told to end."""
    serving = asyncio.create_task(server.serve(sockets=[listener]))
    while not (server.started or serving.done()):
        await asyncio.sleep(0.01)
    told, loop = asyncio.Event(), asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):  # after uvicorn's handlers, which end it at once
        loop.add_signal_handler(number, told.set)
    host, port = listener.getsockname()[:2]
    log.info("listening", extra={"fields": {"host": host, "port": port}})
    watch = asyncio.create_task(Connection.watch())
    asked = asyncio.create_task(told.wait())
    await asyncio.wait([serving, asked, watch], return_when=asyncio.FIRST_COMPLETED)
    if asked.done():
        await service.end()
    server.should_exit = True
    await serving
    return 0 if asked.done() else 1


class _JsonLines(logging.Formatter):
    """One JSON object a line. Nothing of a request but its method, path and outcome is ever logged."""

    def __init__(self, region: str) -> None:
        super().__init__()
        self._region = region

    def format(self, record: logging.LogRecord) -> str:
        line = {
            "time": time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created)) + f".{int(record.msecs):03d}Z",
            "level": record.levelname.lower(),
            "region": self._region,
            "event": record.getMessage(),
            **getattr(record, "fields", {}),
        }
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line)


def _log_as_json(region: str, level: str) -> None:
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_JsonLines(region))
    logging.basicConfig(level=logging.WARNING, handlers=[handler], force=True)
    log.setLevel(level.upper())
    logging.getLogger("psycopg.pool").setLevel(logging.ERROR)  # our errors name the server that is away
    logging.getLogger("uvicorn.error").setLevel(logging.ERROR)
