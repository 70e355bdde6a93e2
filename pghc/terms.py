"""Who is the primary of a region, decided by consensus: a node of ZooKeeper for each, changed by compare-and-set.

::

    /pghc/regions/us-east/primary       {"node": "us-east-replica-1"}       its version is the epoch of the term

A term lasts until another begins; there is never a term without a primary, and never two terms of one epoch. Who was
deposed need not know it: the epoch is the fencing token (a sequencer in Burrows, 2006; Kleppmann, 2016) that ZooKeeper
checks where somebody who acts in a term's name would destroy something, see `Sequencer.report`.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any, NamedTuple

from kazoo import exceptions as zk
from kazoo.interfaces import IAsyncResult
from kazoo.protocol.states import KazooState

from pghc.errors import Conflict
from pghc.topology import View
from pghc.zookeeper import Client


class Term(NamedTuple):
    epoch: int
    node: str


def path(region: str) -> str:
    return f"/pghc/regions/{region}/primary"


def current(client: Client, view: View, region: str, timeout: float = 5.0) -> Term:
    """The region's term; the first begins with the primary that ``view`` knows. Raises kazoo's errors."""
    end = time.monotonic() + timeout
    with suppress(zk.NodeExistsError):
        with suppress(zk.NoNodeError):
            return _term(client.get_async(path(region)).get(timeout=timeout))
        data = _encode(view.primary(region))
        client.create_async(path(region), data, makepath=True).get(timeout=max(end - time.monotonic(), 0.001))
    return _term(client.get_async(path(region)).get(timeout=max(end - time.monotonic(), 0.001)))


def succeed(
    client: Client,
    region: str,
    term: Term,
    node: str,
    *,
    unchanged: tuple[str, int] | None = None,
    also: tuple[str, bytes] | None = None,
    timeout: float = 5.0,
) -> Term:
    """Begin the term after ``term``, with ``node``. Raises `Conflict` when another has begun, kazoo's errors.

    ``unchanged``: another node of ZooKeeper and the version that it must still have; ``also``: one that is given this
    content with it.
    """
    transaction = client.transaction()
    if unchanged:
        transaction.check(*unchanged)
    if also:
        transaction.set_data(*also)
    transaction.set_data(path(region), _encode(node), term.epoch)
    if any(isinstance(result, Exception) for result in transaction.commit_async().get(timeout=timeout)):
        raise Conflict(
            f"{region}: {node} did not become the primary, the former one or another has acted meanwhile",
            "Look at `pghc status`, and try again",
        )
    return Term(term.epoch + 1, node)


class Follower:
    """Tells ``changed`` each term of a region that begins, on kazoo's threads; woken by a watch."""

    def __init__(self, client: Client, region: str, changed: Callable[[Term], None]) -> None:
        self._client, self._path, self._changed = client, path(region), changed
        client.add_listener(self._on_state)
        self._look()

    def _on_state(self, state: str) -> None:
        if state == KazooState.CONNECTED:  # a watch may have been lost with the connection
            self._look()

    def _look(self, _event: object = None) -> None:
        if self._client.connected:
            self._client.get_async(self._path, watch=self._look).rawlink(self._answered)

    def _answered(self, answer: IAsyncResult) -> None:
        if answer.exception is None:
            self._changed(_term(answer.get_nowait()))


def _encode(node: str) -> bytes:
    return json.dumps({"node": node}).encode()


def _term(found: Any) -> Term:
    data, stat = found
    return Term(stat.version, json.loads(data)["node"])
