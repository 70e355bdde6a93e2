"""A client of ZooKeeper, by kazoo, that comes back by itself from whatever ends its connection.

kazoo has no public way to see what is unanswered or to end a connection, so `Client` is a subclass that looks at its
``_pending``, ``_stopped`` and ``_connection``. It mends three things:

* kazoo pings, and so notices that its server is cut off, only while it has nothing to send. A client that keeps
  asking would wait for ever. A watchdog ends the connection when the oldest question stays unanswered for a session.
* An answer that is not the oldest question's ("xids do not match") ends kazoo's loop, and the client, for good. A
  server skips an answer where the session has moved: it refuses the write by an empty "close" in the connection's queue
  (`FinalRequestProcessor`), and sends what stands behind that, such as a later read's answer, in the same write before
  it closes (`NIOServerCnxn.handleWrite`). To us it is a broken connection: what was asked may have happened.
* Whatever else ends the loop is followed by another loop, in a new session.
"""

from __future__ import annotations

import logging
import socket
import threading
import time
from contextlib import suppress
from typing import Any

from kazoo import exceptions as zk
from kazoo.client import KazooClient
from kazoo.handlers.threading import KazooTimeoutError
from kazoo.protocol.connection import ConnectionDropped, ConnectionHandler
from kazoo.retry import KazooRetry
from kazoo.security import make_digest_acl

from pghc.errors import Unavailable
from pghc.topology import View

SESSION_SECONDS = 4.0

#: A broken connection: what was asked may have happened.
LOST = (
    zk.ConnectionLoss,
    zk.ConnectionClosedError,
    zk.OperationTimeoutError,
    zk.SessionExpiredError,
    zk.SessionMovedError,
    KazooTimeoutError,
)

logging.getLogger("kazoo").setLevel(logging.CRITICAL)  # its warnings on every reconnection are our errors' job


class _Connection(ConnectionHandler):  # type: ignore[misc]  # kazoo has no types
    def zk_loop(self) -> None:
        while True:
            with suppress(Exception):  # what was open has been answered with a loss, and listeners have been told
                super().zk_loop()
                return
            if self.client._stopped.wait(0.1):
                return

    def _read_response(self, header: Any, buffer: Any, offset: int) -> Any:
        pending = self.client._pending
        if not pending or pending[0][2] != header.xid:
            raise ConnectionDropped(f"answer {header.xid} is not to the oldest question")
        return super()._read_response(header, buffer, offset)


class Client(KazooClient):  # type: ignore[misc]  # kazoo has no types
    """See the module. ``hang_up`` may be called from any thread."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self._connection = _Connection(self, self._conn_retry.copy(), logger=self.logger)

    def start(self, timeout: float = 15) -> None:
        super().start(timeout)
        threading.Thread(target=self._watch_over, name="zookeeper watchdog", daemon=True).start()

    def end(self) -> None:
        """Stop and give back everything; never raises."""
        with suppress(Exception):  # it is going away: the server ends the session by itself
            self.stop()
        with suppress(Exception):
            self.close()

    def hang_up(self) -> None:
        """Shut the TCP connection: what was asked may be done, and is not answered. The client connects anew."""
        if connection := self._connection._socket:
            with suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)

    def server(self) -> tuple[str, int] | None:
        """Host and port of the server that it is connected to."""
        try:
            host, port = self._connection._socket.getpeername()[:2]
        except (AttributeError, OSError):
            return None
        return host, port

    def _watch_over(self) -> None:
        oldest, since = None, time.monotonic()
        while not self._stopped.wait(SESSION_SECONDS / 4):
            pending = next(iter(self._pending.copy()), None)
            if pending is None or pending is not oldest:
                oldest, since = pending, time.monotonic()
            elif time.monotonic() - since > SESSION_SECONDS:
                self.hang_up()
                oldest = None


def connect(view: View, *, timeout: float = 10.0) -> Client:
    """A started client that prefers the region's own server; nodes that it creates are readable by our user alone.

    Raises `Unavailable` when no server with a quorum answers within ``timeout`` seconds.
    """
    who = view.credentials
    client = Client(
        hosts=view.zookeeper_hosts,
        timeout=SESSION_SECONDS,
        randomize_hosts=False,
        auth_data=[("digest", f"{who.zookeeper_user}:{who.zookeeper_password}")],
        default_acl=[make_digest_acl(who.zookeeper_user, who.zookeeper_password, all=True)],
        connection_retry=KazooRetry(max_tries=-1, delay=0.05, backoff=2, max_delay=0.5),
        command_retry=KazooRetry(max_tries=0),
    )
    try:
        client.start(timeout)
    except KazooTimeoutError as error:
        client.end()
        raise Unavailable(
            f"{view.region}: no ZooKeeper server with a quorum answered within {timeout:g} s, nothing was written",
            "A quorum is more than half of the servers: see `pghc status`",
            node=view.topology.region(view.region).zookeeper,
        ) from error
    return client
