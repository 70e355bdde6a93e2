"""Reads what the running servers know: one thread a server, short questions, and on primaries only when there is news.

Times are the servers' own wherever they keep them: a client's in the request id (UUID version 7), Postgres' of commit
and arrival, ZooKeeper's of the log entry.
"""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from functools import partial
from typing import Any, NamedTuple, Self
from uuid import UUID

import psycopg

from pghc.chain import ROOT, Row, link
from pghc.cluster import Backend, CanPartition
from pghc.errors import PghcError
from pghc.live.evidence import Evidence, stride
from pghc.live.stream import Event, Stream
from pghc.sequencer import Sequencer
from pghc.store import CHANNEL, BoundedConnection
from pghc.topology import View
from pghc.verify.hashchain import verify_chain
from pghc.workload.latency import round_trips

#: Seconds: between two looks at a primary that has news, at a replica, at links, at ZooKeeper, at all distances.
NEWS, REPLICA, WAN, ZOOKEEPER, DISTANCES = 0.05, 0.15, 0.5, 1.0, 20.0
#: How many rows to read at once, how many log entries to ask ZooKeeper for, how many links to recompute.
ROWS, NUMBERS, LINKS = 300, 30, 200_000
#: Pages of pghc.request in which the newest arrivals are: sessions fill one each.
PAGES = 16

_MARK = """select position, zk_id, hash, chain, coalesce((select max(zk_id) from public.chain), 0),
                  1000 * extract(epoch from clock_timestamp())::float, pg_relation_size('pghc.request') / 8192
           from pghc.cursor"""
_ROWS = """
    select e.zk_id, e.node_id, e.hash, 1000 * extract(epoch from pg_xact_commit_timestamp(e.x))::float,
           coalesce((pg_xact_commit_timestamp_origin(e.x)).roident, 0)::int, r.request_id, r.position,
           1000 * extract(epoch from r.seen)::float
    from (select c.*, c.xmin as x from public.chain c where {} order by zk_id desc limit 300) e
    left join (select * from pghc.request where ctid >= %s::tid) r using (zk_id)
    order by e.zk_id"""
_ALL_NEW = _ROWS.format("c.zk_id > %s or c.zk_id = any(%s) or c.zk_id between %s and %s")
_SOME_NEW = _ROWS.format("c.zk_id = any(%s) or c.zk_id between %s and %s")


class Seen(NamedTuple):
    """How far a primary has been read."""

    chain: int = -1
    mark: int = 0
    top: int = 0
    pages: int = 0


class Observer:
    """Watches the cluster of ``backend``, which is up, and puts what it sees into ``stream``; `close` ends it."""

    def __init__(self, backend: Backend, stream: Stream) -> None:
        self.backend, self.stream = backend, stream
        topology = backend.topology
        self._views = {name: backend.view(name) for name in topology.names}
        self._evidence, self._lock = Evidence(topology.names), threading.Lock()
        self._states: dict[str, tuple[str, str]] = {}
        self._primaries: dict[str, str] = {}
        self._stop, self._amiss = threading.Event(), threading.Event()
        self._unnumbered: dict[int, None] = {}
        works: list[Callable[[], None]] = [self._zookeepers, self._numbers, self._cluster, self._distances]
        for region in topology.regions:
            works.append(_Primary(self, self._views[region.name]).run)
            works += [partial(self._replica, self._views[region.name], node) for node in region.databases]
        self._threads = [threading.Thread(target=work, name="live", daemon=True) for work in works]
        for thread in self._threads:
            thread.start()

    def close(self) -> None:
        self._stop.set()
        self._amiss.set()
        deadline = time.monotonic() + 5
        for thread in self._threads:
            thread.join(max(deadline - time.monotonic(), 0.01))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def look(self) -> None:
        """Something was done to the cluster: look at it now."""
        self._amiss.set()

    def wait(self, seconds: float) -> bool:
        return self._stop.wait(seconds)

    @property
    def stopped(self) -> bool:
        return self._stop.is_set()

    def connect(self, view: View, node: str) -> BoundedConnection:
        """A connection that cannot write, and whose every wait is short."""
        options = "-c default_transaction_read_only=on"
        arguments: dict[str, Any] = view.conninfo(node) | {"connect_timeout": 2, "application_name": "pghc live"}
        connection = BoundedConnection.connect(**arguments, autocommit=True, options=options)
        connection.seconds = 2.0
        return connection

    def state(self, node: str, state: str, detail: str = "") -> None:
        """Tell how a server is, if that is news."""
        with self._lock:
            if self._states.get(node) == (state, detail):
                return
            self._states[node] = state, detail
        self.stream.put({"k": "up", "t": _now(), "v": node, "s": state, "d": detail})

    def silent(self, node: str) -> None:
        """It did not answer: why, the cluster is asked."""
        with self._lock:
            known = self._states.get(node, ("", ""))[0]
        if known in ("", "running"):
            self.state(node, "unreachable")
        self._amiss.set()

    def tell(
        self, region: str, mark: Event, rows: Sequence[Event], verified: int, broken: tuple[int, str] | None, chain: int
    ) -> None:
        """What a primary was seen to have, and what follows from it."""
        seen = [Row(event["n"], event["d"], event["h"]) for event in rows]
        with self._lock:
            self.stream.put(*self._evidence.take(mark["t"], region, chain, seen, verified, broken))
            if chain == self._evidence.chain:
                self.stream.put(*rows, mark)
                for event in rows[-NUMBERS:]:
                    if event["o"] != "mesh" and event["p"] is not None:
                        self._unnumbered[event["p"]] = None
        while len(self._unnumbered) > 4 * NUMBERS:
            with suppress(StopIteration, KeyError):
                del self._unnumbered[next(iter(self._unnumbered))]

    @property
    def chain(self) -> int:
        """The log position at which the chain began that is seen."""
        return self._evidence.chain

    @property
    def wanted(self) -> tuple[int, int] | None:
        return self._evidence.wanted

    # The threads

    def primary(self, region: str) -> str:
        """Who is the region's primary now; tells it, where that is news."""
        node = self.backend.view(region).primary()
        with self._lock:
            if news := self._primaries.get(region) != node:
                self._primaries[region] = node
        if news:
            self.stream.put({"k": "role", "t": _now(), "v": region, "d": node})
        return node

    def _replica(self, view: View, node: str) -> None:
        """A database, while it is a replica."""
        before = None
        while not self.stopped:
            if self._primaries.get(view.region, node) == node:
                self.wait(REPLICA)
                continue
            try:
                with self.connect(view, node) as connection:
                    self.state(node, "running")
                    while not self.wait(REPLICA):
                        query = "select zk_id, chain from pghc.cursor where pg_is_in_recovery()"
                        if (found := connection.execute(query).fetchone()) is None:
                            break  # it is the primary now
                        if found != before:
                            mark = {"w": found[0], "m": found[0], "c": found[1]}
                            self.stream.put({"k": "at", "t": _now(), "v": node, **mark})
                            before = found
            except psycopg.Error:
                self.silent(node)
                self.wait(0.3)

    def _zookeepers(self) -> None:
        """Each server's part, by ZooKeeper's four-letter word for it."""
        while not self.wait(ZOOKEEPER if self._states else 0.1):
            for region in self.backend.topology.regions:
                address = self._views[region.name].addresses[region.zookeeper]
                try:
                    with socket.create_connection((address.host, address.port), 1) as asked:
                        asked.settimeout(1)
                        asked.sendall(b"srvr")
                        answer = b"".join(iter(lambda: asked.recv(4096), b"")).decode(errors="replace")
                except OSError:
                    self.silent(region.zookeeper)
                else:
                    mode = answer.partition("Mode: ")[2].split()
                    self.state(region.zookeeper, "running", mode[0] if mode else "no quorum")

    def _numbers(self) -> None:
        """When the positions of the newest rows were agreed on. Of writers that use no log there are none."""
        view = self._views[self.backend.topology.central]
        while not self.wait(0.2):
            try:
                with Sequencer(view) as sequencer:
                    while not self.wait(0.1):
                        asked = list(self._unnumbered)[-NUMBERS:]
                        times = sequencer.times(asked, 2.0) if asked else {}
                        for position in asked:
                            self._unnumbered.pop(position, None)
                        self.stream.put(*({"k": "num", "t": t, "p": p} for p, t in times.items()))
            except PghcError:
                self.wait(1.0)

    def _cluster(self) -> None:
        """Links; and servers that do not answer, by the cluster's own word for why."""
        links: dict[tuple[str, str], tuple[float, str]] = {}
        asked = 0.0
        while not self.stopped:
            amiss = self._amiss.wait(WAN)
            self._amiss.clear()
            with suppress(PghcError):
                if isinstance(self.backend, CanPartition):
                    for at in self.backend.links():
                        if links.get((at.source, at.target)) != (at.delay_ms, at.state):
                            links[at.source, at.target] = at.delay_ms, at.state
                            here = {"a": at.source, "b": at.target, "ms": at.delay_ms, "s": at.state}
                            self.stream.put({"k": "link", "t": _now(), **here})
                if amiss and time.monotonic() > asked + 0.5 and not self.stopped:
                    for node in self.backend.status().nodes:
                        with self._lock:
                            ours = self._states.get(node.name, ("", ""))
                        if node.role == "api" or ours[0] != "running" or node.state in ("paused", "stopped"):
                            self.state(node.name, node.state, node.detail if node.role != "zookeeper" else ours[1])
                    asked = time.monotonic()
            if amiss:
                self.wait(0.3)

    def _distances(self) -> None:
        """Measured round trips, while nothing is cut: a question over a link that is would only wait."""
        while not self.stopped:
            with suppress(PghcError):
                if not isinstance(self.backend, CanPartition) or all(x.state == "open" for x in self.backend.links()):
                    for (source, target), took in round_trips(self._views, 3).items():
                        self.stream.put({"k": "trip", "t": _now(), "a": source, "b": target, "ms": round(took, 1)})
            self.wait(DISTANCES)


class _Primary:
    """The thread of one region's primary, whichever it is."""

    def __init__(self, observer: Observer, view: View) -> None:
        self._observer, self._view, self._node = observer, view, view.primary()
        self._seen, self._verified, self._answered = Seen(), 0, (0, 0)
        self._missing: list[int] = []
        self._hashes: dict[int, str] = {0: ROOT}  # of the newest rows that were seen, and the nodes in them
        self._nodes: dict[int, str] = {}
        self._broken = False

    def run(self) -> None:
        observer = self._observer
        while not observer.stopped:
            try:
                self._node = observer.primary(self._view.region)
                with observer.connect(self._view, self._node) as connection:
                    connection.execute(f"listen {CHANNEL}")
                    known = connection.execute("select roident::int, roname from pg_replication_origin").fetchall()
                    log = next((number for number, name in known if name == "log"), -1)
                    observer.state(self._node, "running")
                    while not observer.stopped:
                        self._look(connection, log)
                        if not observer.wait(NEWS):
                            list(connection.notifies(timeout=0.45, stop_after=1))
            except psycopg.Error:
                observer.silent(self._node)
                observer.wait(0.3)
            except PghcError:  # the cluster is down
                observer.wait(1.0)

    def _look(self, connection: BoundedConnection, log: int) -> None:
        found = connection.execute(_MARK).fetchone()
        assert found
        _, mark, digest, chain, top, now, pages = found
        if chain != self._seen.chain:  # of a chain that was there before we came, the newest rows are enough
            start = max(top - 30, 0) if self._seen.chain < 0 else 0
            self._seen, self._verified, self._broken = Seen(chain, start, start, 0), 0, False
            self._missing, self._hashes, self._nodes = [], {0: ROOT}, {}
        seen, wanted = self._seen, self._observer.wanted or (0, 0)
        if (mark, top) == (seen.mark, seen.top) and wanted == self._answered and self._verified == mark:
            return
        fresh = self._fresh(connection, mark, top, wanted)
        rows = [self._event(row, now, log) for row in fresh]
        self._answered = wanted if top >= wanted[1] else (0, 0)
        have = {row["n"] for row in rows}
        if top - seen.top <= ROWS:
            holes = [*self._missing, *range(max(seen.top, mark) + 1, top)]
            self._missing = [n for n in holes if n > mark and n not in have][-ROWS:]
        self._seen = Seen(chain, mark, max(top, seen.top), pages)
        broken = self._recompute(connection, mark)
        event = {"k": "at", "t": now, "v": self._node, "w": mark, "m": top, "c": chain, "h": digest[:8]}
        self._observer.tell(self._view.region, event, rows, self._verified, broken, chain)
        self._observer.stream.put(*self._breaks(rows, now))

    def _fresh(self, connection: BoundedConnection, mark: int, top: int, wanted: tuple[int, int]) -> list[Any]:
        """The new rows, or of many the multiples of a `stride` and the newest."""
        seen = self._seen
        page = f"({max(seen.pages - PAGES, 0)},1)"
        wanted = wanted if wanted != self._answered else (0, -1)
        every = stride(top - seen.top) if seen.pages else 1
        if every == 1:
            return connection.execute(_ALL_NEW, (seen.top, self._missing, *wanted, page)).fetchall()
        some = [*range(seen.top + every - seen.top % every, top + 1, every)[-ROWS:], mark, *self._missing]
        return connection.execute(_SOME_NEW.encode(), (some, *wanted, page)).fetchall()

    def _event(self, row: Sequence[Any], now: float, log: int) -> Event:
        zk_id, node_id, digest, committed, origin, request, position, seen = row
        came = "here" if origin == 0 else "log" if origin == log else "mesh"
        at = seen if came == "mesh" else committed
        return {
            "k": "row",
            "r": self._view.region,
            "t": at or now,
            "s": int(at is not None),
            "n": zk_id,
            "d": node_id,
            "h": digest,
            "p": position,
            "a": taken_at(request),
            "c": committed,
            "o": came,
        }

    def _breaks(self, rows: Sequence[Event], now: float) -> Iterator[Event]:
        """Which of these rows, or of those after them, do not follow from the one before, where that has been seen."""
        hashes, fresh = self._hashes, {row["n"]: row for row in rows}
        hashes.update((n, row["h"]) for n, row in fresh.items())
        self._nodes.update((n, row["d"]) for n, row in fresh.items())
        for n in sorted({*fresh, *(n + 1 for n in fresh)} & self._nodes.keys()):
            if n - 1 in hashes and link(n, self._nodes[n], hashes[n - 1]) != hashes[n]:
                why = f"entry {n} of {self._nodes[n]} in {self._view.region} does not follow from the entry before it"
                yield {"k": "bad", "t": now, "r": self._view.region, "n": n, "x": why}
        while len(hashes) > 2 * ROWS:
            n = next(iter(hashes))
            del hashes[n]
            self._nodes.pop(n, None)

    def _recompute(self, connection: BoundedConnection, mark: int) -> tuple[int, str] | None:
        """Recompute the links up to ``mark`` in the database; the first that does not hold, explained."""
        if self._broken or self._verified >= mark:
            self._verified = mark if not self._broken else self._verified
            return None
        until = min(mark, self._verified + LINKS)
        query = "select zk_id from pghc.anomalies(%s, %s) limit 1"
        offending = connection.execute(query, (self._verified, until)).fetchone()
        if offending is None:
            self._verified = until
            return None
        self._broken, self._verified = True, offending[0] - 1
        query = "select * from public.chain where zk_id between %s and %s order by zk_id"
        near = [Row(*row) for row in connection.execute(query, (offending[0] - 32, offending[0])).fetchall()]
        anomalies = verify_chain(near).anomalies
        return offending[0], f"{self._view.region}: {anomalies[0] if anomalies else 'the link does not hold'}"


def taken_at(request: UUID | None) -> int | None:
    """When a client made this request id, in milliseconds since 1970; None when it does not say."""
    return request.int >> 80 if request and request.version == 7 else None


def _now() -> float:
    return 1000 * time.time()
