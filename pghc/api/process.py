"""An API node as a process: its HTTP server, its log, its end."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import sys
import time
from types import FrameType
from typing import Any, NoReturn

import pydantic.v1  # noqa: F401  FastAPI imports it with the first route: here it is shared by all nodes of one machine
import uvicorn
import uvicorn.lifespan.on

from pghc.api.app import create
from pghc.api.edge import Protocol
from pghc.api.service import VERIFY, Service
from pghc.api.settings import Settings
from pghc.topology import View

CLOSING_SECONDS = 2.0  # for appends in progress when the node shuts down
KEEP_ALIVE_SECONDS = 30

log = logging.getLogger("pghc.api")


class Server(uvicorn.Server):
    """On a signal, appends in progress get a moment to end, and are answered in any case."""

    def __init__(self, config: uvicorn.Config, service: Service) -> None:
        super().__init__(config)
        self._service = service

    async def startup(self, sockets: Any = None) -> None:
        await super().startup(sockets)
        address = self.servers[0].sockets[0].getsockname()
        log.info("listening", extra={"fields": {"host": address[0], "port": address[1]}})

    async def on_tick(self, counter: int) -> bool:
        if counter % 10 == 0:  # once a second
            for connection in list(self.server_state.connections):
                assert isinstance(connection, Protocol)
                connection.abort_if_overdue()
        return await super().on_tick(counter)

    async def shutdown(self, sockets: Any = None) -> None:
        self._service.appends.begin_closing()
        asyncio.get_running_loop().call_later(CLOSING_SECONDS, self._service.appends.refuse_open)
        await super().shutdown(sockets)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        self.should_exit = True  # and end with 0, not by the signal


def serve(view: View, settings: Settings) -> NoReturn:
    """Run the node of ``view``'s region until SIGTERM or SIGINT, then end this process. Raises `BadInput` before."""
    _log_as_json(view.region, settings.log_level)
    app = create(view, settings)
    Protocol.seconds = max(settings.append_seconds, VERIFY) + 20
    config = uvicorn.Config(
        app,
        host=settings.host,
        port=settings.port,
        http=Protocol,
        ws="none",
        lifespan="on",
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,
        timeout_keep_alive=KEEP_ALIVE_SECONDS,
        timeout_graceful_shutdown=round(CLOSING_SECONDS) + 1,
        backlog=1024,
    )
    code = 1
    try:
        server = Server(config, app.state.service)
        server.run()
        code = 0 if server.started else 1
    except SystemExit as error:  # uvicorn's, when the port is taken
        code = int(error.code or 0)
    finally:
        logging.shutdown()
        # Threads of appends that were refused may still wait for servers that are gone; every request has its answer
        os._exit(code)


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
