"""What the servers themselves know about where and when things happened, as data for `pghc.plots`.

Evidence of a write is its commit time where it was written (Postgres keeps it: ``track_commit_timestamp``), the time at
which each other region's primary got it (``pghc.request.seen``), and the time at which its log entry was agreed on
(ZooKeeper keeps it). All are wall-clock times of the servers' machines; on one machine, of one clock.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Self

from pghc import terms
from pghc.chain import Row
from pghc.errors import PghcError
from pghc.lab.plots import Message
from pghc.sequencer import Sequencer
from pghc.store import Primary, Reader
from pghc.topology import View
from pghc.zookeeper import connect

# A row that came by replication carries the commit time of where it was written: often, not always, the node it names
_WRITES = """
    select r.request_id::text, r.position, c.zk_id, c.node_id, c.hash,
           1000 * extract(epoch from case when (pg_xact_commit_timestamp_origin(c.xmin)).roident = 0
                                          then pg_xact_commit_timestamp(c.xmin) else r.seen end)::float
    from pghc.request r join public.chain c using (zk_id) where c.zk_id between %s and %s"""


def writes(views: Sequence[View], first: int = 1, last: int = 1 << 62) -> list[Message]:
    """The entries numbered ``first`` to ``last``, in order, with the times at which they were logged, written, seen.

    ``views``: of each region. Labels are the zk_id, with the region where several entries claim one number. Raises
    `Unavailable` when a primary cannot be reached.
    """
    origin_of = {node.name: node.region for view in views for node in view.topology.nodes}
    rows: dict[str, Row] = {}
    seen: dict[str, dict[str, float]] = {}
    positions: dict[str, int] = {}
    for view in views:
        with Primary(view) as reader:
            for request, position, zk_id, node_id, digest, had in reader.rows(_WRITES, first, last):
                rows.setdefault(request, Row(zk_id, node_id, digest))
                positions[request] = position
                seen.setdefault(request, {})[view.region] = had
    with Sequencer(views[0]) as sequencer:
        logged = sequencer.times(set(positions.values()))
    numbers = [row.zk_id for row in rows.values()]
    messages = []
    for request, row in sorted(rows.items(), key=lambda pair: (pair[1], min(seen[pair[0]].values()))):
        origin = origin_of.get(row.node_id, "")
        label = str(row.zk_id) if numbers.count(row.zk_id) == 1 else f"{row.zk_id} {origin}"
        messages.append(Message(label, origin, seen[request], logged.get(positions[request])))
    return messages


def term_began(view: View) -> float:
    """When the region's present term began, in milliseconds since 1970 by the clock of ZooKeeper's leader."""
    client = connect(view)
    try:
        _, stat = client.get_async(terms.path(view.region)).get(timeout=5)
    finally:
        client.end()
    return float(stat.mtime)


class Lag:
    """How many entries each server lacks, sampled all the while: use it as a context manager.

    ``nodes``: the servers to ask, by the view from which to ask them. Behind is measured against the most that any of
    them has. A server that does not answer keeps its last value.
    """

    def __init__(self, nodes: Mapping[str, View], every: float = 0.05) -> None:
        self._readers = {node: Reader(view, node, timeout=2, connections=1) for node, view in nodes.items()}
        self._every, self._began = every, 0.0
        self.seconds: list[float] = []
        self.has: dict[str, list[int]] = {node: [] for node in nodes}
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="lag", daemon=True)

    @property
    def behind(self) -> dict[str, list[int]]:
        """For each server, how many entries it lacked at each of ``seconds``."""
        most = [max(values) for values in zip(*self.has.values(), strict=True)]
        return {node: [top - had for top, had in zip(most, values, strict=True)] for node, values in self.has.items()}

    @property
    def now(self) -> float:
        """Seconds since it began."""
        return time.monotonic() - self._began

    def __enter__(self) -> Self:
        self._began = time.monotonic()
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join(timeout=10)
        for reader in self._readers.values():
            reader.close()

    def _run(self) -> None:
        with ThreadPoolExecutor(len(self._readers)) as pool:
            while not self._stop.is_set():
                found = list(pool.map(self._ask, self._readers))
                self.seconds.append(self.now)
                for values, value in zip(self.has.values(), found, strict=True):
                    values.append(value)
                self._stop.wait(self._every)

    def _ask(self, node: str) -> int:
        try:
            last = self._readers[node].last()
        except PghcError:
            return self.has[node][-1] if self.has[node] else 0
        return last.zk_id if last else 0
