"""What the lesson on lost servers needs: replicas that are behind for certain, a client that a promotion overtakes."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from typing import Any

import pandas as pd
import psycopg

from pghc.cluster import Backend, CanKill
from pghc.errors import BadInput, Behind, PghcError
from pghc.sequencer import Sequencer
from pghc.store import Reader, complete
from pghc.topology import View

#: Seconds: until replicas have what their primary has; until a server that goes on has answered.
FOLLOWING, ANSWERED = 30.0, 20.0


@contextmanager
def replicas_away(backend: Backend, region: str) -> Iterator[None]:
    """In the block nothing reaches the replicas of ``region``, which have all from before it; afterwards they run.

    They are killed. To pause them would not do: what a primary has sent waits in the buffers of the connection, and is
    read there when the replica goes on. Raises `BadInput`, `Behind`.
    """
    if not isinstance(backend, CanKill):
        raise BadInput(f"the backend {backend.name} cannot kill servers", "The embedded backend can.")
    view = backend.view(region)
    replicas = [name for name in view.topology.region(region).databases if name != view.primary()]
    _wait_for_replicas(view, replicas)
    with ExitStack() as stack:
        for replica in replicas:
            stack.callback(backend.start, replica)
            backend.kill(replica)
        yield


def _wait_for_replicas(view: View, replicas: list[str]) -> None:
    with Reader(view, view.primary(), admin=True) as primary:
        end = primary.rows("select pg_current_wal_flush_lsn()::text")[0][0]  # where a record ends, whatever follows it
    deadline = time.monotonic() + FOLLOWING
    for name in replicas:
        with Reader(view, name, admin=True) as replica:
            while not replica.rows("select pg_last_wal_replay_lsn() >= %s::pg_lsn", end)[0][0]:
                if time.monotonic() > deadline:
                    what = f"{name}: has not what its primary has after {FOLLOWING:g} s"
                    raise Behind(what, "See `pghc status`", node=name)
                time.sleep(0.02)


class OpenTransaction:
    """A client of one server by mere SQL, which has executed ``statement`` and not committed it yet."""

    def __init__(self, view: View, node: str, statement: str) -> None:
        self._connection: psycopg.Connection[Any] = psycopg.connect(**complete(view.conninfo(node)))
        self._thread = threading.Thread(target=self._end, name=f"commit at {node}", daemon=True)
        self._outcome = "no answer"
        self._connection.execute(statement.encode())

    def commit(self) -> None:
        """Send the order to commit, and do not wait: the server may be paused."""
        self._thread.start()

    def _end(self) -> None:
        try:
            self._connection.commit()
            self._outcome = "committed"
        except psycopg.Error as error:
            self._outcome = " ".join(str(error).split())
        finally:
            self._connection.close()

    def outcome(self) -> str:
        """What the server has answered to the order to commit."""
        self._thread.join(ANSWERED)
        return self._outcome


def positions(backend: Backend) -> pd.DataFrame:
    """For each region up to which log position its databases have settled the log, and what it has reported.

    ``reported``: up to there the region has said that it needs the log no more. A server that does not answer counts
    for nothing. ``log``: where the log ends.
    """
    views = {name: backend.view(name) for name in backend.topology.names}
    with Sequencer(views[backend.topology.central]) as log, ThreadPoolExecutor() as pool:
        reports, end = log.reports(), log.tip()
        asked = {
            name: {node: pool.submit(_position, view, node) for node in view.topology.region(name).databases}
            for name, view in views.items()
        }
        rows = []
        for name, view in views.items():
            primary = asked[name].pop(view.primary()).result()
            replicas = [position for each in asked[name].values() if (position := each.result()) is not None]
            rows.append((name, end, primary, max(replicas, default=None), reports[name]))
    columns = ["region", "log", "primary", "farthest replica", "reported"]
    return pd.DataFrame(rows, columns=columns).set_index("region").astype("Int64")


def _position(view: View, node: str) -> int | None:
    try:
        with Reader(view, node, timeout=2, connections=1) as reader:
            return reader.cursor().position
    except PghcError:
        return None
