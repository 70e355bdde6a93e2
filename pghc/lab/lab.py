"""The lab as a notebook sees it::

    from pghc import Lab
    lab = Lab.attach()
    lab.sql("us-east", "select * from chain order by zk_id desc limit 5")
    run = lab.run("naive", clients=2, seconds=3)
    run.verdict

Everything is asked of the running servers; nothing is remembered between two calls.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from uuid import uuid4

import pandas as pd
from IPython.core.getipython import get_ipython
from IPython.display import Pretty, display
from kazoo.client import KazooClient

from pghc.chain import Row
from pghc.cluster import Backend, CanPartition, CanReplace, default_directory, open_backend, replacing
from pghc.cluster.local.embedded import Embedded
from pghc.cluster.mesh import wait_for_mesh
from pghc.errors import NotRunning, PghcError
from pghc.faults.injection import Faults
from pghc.lab import losses, timeline
from pghc.lab.figures import Figures
from pghc.lab.plots import Message
from pghc.live import show
from pghc.live.widget import Watch
from pghc.store import Primary, Reader
from pghc.topology import Topology, View
from pghc.verify.audit import audit, audit_regions
from pghc.verify.checker import Verdict
from pghc.verify.history import Read
from pghc.workload import chains, runs
from pghc.workload.latency import round_trips
from pghc.workload.lease import Lease
from pghc.workload.runs import Run
from pghc.writers import Writer, open_writer, writer_class
from pghc.zookeeper import connect


class Lab:
    """A running cluster, at a reader's fingertips. ``backend`` must be up; `Lab.attach` finds or starts one."""

    def __init__(self, backend: Backend, *, owner: bool = False) -> None:
        self.backend = backend
        self._owner = owner

    @classmethod
    def attach(cls, directory: str | Path | None = None, *, backend: str | None = None) -> Lab:
        """The cluster in ``directory`` (default: ``PGHC_DIR``, else this user's own), started if it does not run.

        One started here ends with this program; one that ran already is left running. ``backend``: default
        ``PGHC_BACKEND``, else "embedded". Raises `ClusterError` with what to do.
        """
        _show_our_errors_short()
        name = backend or os.environ.get("PGHC_BACKEND") or "embedded"
        cluster = open_backend(name, directory)
        status = cluster.status()
        owner = not status.running and name == "embedded"
        if owner:
            cluster = Embedded(directory or default_directory(), owner=True)
        if not status.healthy:
            with _line("starting the cluster") as tell:
                cluster.up(lambda step: tell(f"starting the cluster: {step}"))
                tell(f"the cluster runs: {', '.join(cluster.topology.names)}")
        return cls(cluster, owner=owner)

    def close(self) -> None:
        """Stop the cluster if `attach` started it."""
        if self._owner:
            self.backend.down()

    @property
    def faults(self) -> Faults:
        """What can be broken, as context managers: ``with lab.faults.cut("us-east", "ap-south"): ...``."""
        return Faults(self.backend)

    @property
    def plot(self) -> Figures:
        """Figures of the cluster and of runs on it."""
        return Figures(self.backend)

    def watch(self) -> Watch:
        """The regions as they run, with faults at one's fingertips: the page of ``pghc watch`` as a widget."""
        return Watch(show.watch(self.backend))

    # What there is

    @property
    def topology(self) -> Topology:
        return self.backend.topology

    @property
    def regions(self) -> tuple[str, ...]:
        return self.topology.names

    @property
    def status(self) -> pd.DataFrame:
        """A row a server: does it run, does it answer."""
        now = self.backend.status()
        rows = [
            {
                "server": node.name,
                "region": node.region,
                "role": node.role,
                "state": node.state,
                "answers": node.accessible,
                "MB": round(node.memory / 1e6),
                "detail": node.detail,
            }
            for node in now.nodes
        ]
        return pd.DataFrame(rows).set_index("server")

    def round_trips(self) -> pd.DataFrame:
        """Measured milliseconds from a client in one region (row) to the primary of another (column) and back."""
        found = round_trips({name: self.view(name) for name in self.regions})
        table = pd.DataFrame(0.0, index=list(self.regions), columns=list(self.regions))
        for (source, target), milliseconds in found.items():
            table.loc[source, target] = round(milliseconds, 1)
        return table

    def view(self, region: str) -> View:
        """What clients of that region see: addresses and passwords."""
        return self.backend.view(self.topology.region(region).name)

    # Asking servers

    def sql(self, where: str, query: str, *parameters: Any, admin: bool = False) -> pd.DataFrame:
        """The result of one statement at a region's primary (``where``: the region) or at a server (its name).

        It runs as a client of that region, and as the superuser with ``admin``. A statement without a result gives the
        number of rows that it touched. Raises `Unavailable`, or Postgres' own error.
        """
        node = self.view(where).primary() if where in self.regions else self.topology.node(where).name
        view = self.view(self.topology.node(node).region)
        with (
            Reader(view, node, timeout=30, connections=1, admin=admin) as reader,
            reader.connection("your statement", writes=True) as connection,
        ):
            cursor = connection.execute(query.encode(), parameters or None)
            if cursor.description is None:
                return pd.DataFrame({"rows touched": [cursor.rowcount]})
            return pd.DataFrame(cursor.fetchall(), columns=[column.name for column in cursor.description])

    def chain(self, where: str, last: int = 10) -> pd.DataFrame:
        """The newest entries at a region's primary or at a server, oldest of them first."""
        newest = "select * from public.chain order by zk_id desc limit %s"
        return self.sql(where, f"select * from ({newest}) newest order by zk_id", last)  # noqa: S608 (no input in it)

    @contextmanager
    def zookeeper(self, region: str) -> Iterator[KazooClient]:
        """A client of ZooKeeper in that region."""
        client = connect(self.view(region))
        try:
            yield client
        finally:
            client.end()

    # Losing servers

    @property
    def replacing(self) -> CanReplace:
        """What loses servers for good and replaces them. Raises `BadInput` where the backend cannot."""
        return replacing(self.backend)

    def restore(self) -> None:
        """Replace what is lost, and let each region have the primary again that it began with. Idempotent.

        Raises `ClusterError`, `Unavailable`.
        """
        for region in self.topology.regions:
            self.replacing.rebuild(region.name)
            if self.view(region.name).primary() != region.primary:
                self.replacing.promote(region.name, region.primary)
                self.replacing.rebuild(region.name)

    def positions(self) -> pd.DataFrame:
        """How far each region has settled the log, and up to where it has said that it needs it no more."""
        return losses.positions(self.backend)

    def writes(self, first: int = 1) -> list[Message]:
        """What the servers know of the entries from number ``first`` on: when they were logged, written and seen."""
        return timeline.writes([self.view(name) for name in self.regions], first)

    # Writing

    def begin_chain(self) -> None:
        """Begin an empty chain in all regions; replication that is stuck on the old one goes on, links are healed.

        Servers that are lost are replaced before, and each region's first primary takes its place again.
        Returns when rows travel again: what is broken or slowed down next does not hit connections that are being made.
        Raises `InUse` while a run uses the chain.
        """
        views = [self.view(name) for name in self.regions]
        with Lease(views[0], "a chain that is begun in a notebook", fresh=True):
            if isinstance(self.backend, CanPartition):  # a kernel that was killed amid a fault leaves it behind
                self.backend.heal_links()
            if isinstance(self.backend, CanReplace):  # or amid a loss
                self.restore()
            views = [self.view(name) for name in self.regions]
            chains.begin_chain(views)
            wait_for_mesh(views)

    def settle(self) -> bool:
        """Wait until all regions have the same chain; False when nothing moves any more and they do not."""
        return chains.settle([self.view(name) for name in self.regions]) is not None

    def append(self, region: str, writer: str = "causal", request_id: str | None = None) -> Row:
        """Append one entry as a client of ``region``. Raises `Unavailable`, `Conflict`, `Indefinite`.

        A run that uses the chain learns of it; one whose writer orders otherwise makes it raise `InUse`.
        """
        view, ordering = self.view(region), writer_class(writer).ordering
        with Lease(view, "an append in a notebook", ordering, fresh=False), open_writer(writer, view) as chosen:
            return chosen.append(request_id or str(uuid4()))

    def appends(self, region: str, *writers: str) -> list[Row]:
        """Append one entry by each of these writers in turn, as a client of ``region``; returns when all regions agree.

        They run in all regions meanwhile. Raises what `append` does.
        """
        views = [self.view(name) for name in self.regions]
        names, orderings = sorted({*writers}), sorted({writer_class(name).ordering for name in writers})
        lease = Lease(self.view(region), "appends in a notebook", "+".join(orderings), fresh=False)
        with lease, _opened(names, views) as opened:
            rows = [opened[name, region].append(str(uuid4())) for name in writers]
            self.settle()
        return rows

    def run(self, writer: str, *, clients: int = 2, seconds: float = 3.0, **options: Any) -> Run:
        """Let clients in every region append at once; see `pghc.workload.runs.run` for ``options``."""
        with _line(f"{writer}: starting {clients} clients a region") as tell:

            def report(elapsed: float, acknowledged: int, failed: int) -> None:
                tell(f"{writer}: {acknowledged} appends after {elapsed:.1f} of {seconds:g} s, {failed} failed")

            done = runs.run(self.backend, writer, clients=clients, seconds=seconds, progress=report, **options)
            tell(f"{writer}: {done.appends} appends in {done.seconds:.1f} s, {done.latency_ms():.1f} ms in the median")
        return done

    # Judging

    def verify(self, region: str | None = None, last: int | None = None) -> Verdict:
        """The verdict on the tables as they stand: on one region's primary, or on all of them compared."""
        if region:
            view = self.view(region)
            with Primary(view, timeout=60) as reader:
                return audit(reader, last)
        return audit_regions({name: self.view(name) for name in self.regions}, last)[0]

    def events(self, run: Run) -> pd.DataFrame:
        """The history of a run: a row an event, ``ms`` since its first."""
        events = [event for event in run.events() if event.type != "final"]
        start = events[0].time if events else 0
        rows = [
            {
                "ms": round((event.time - start) / 1e6, 3),
                "process": event.process,
                "region": event.region,
                "type": event.type,
                "op": event.op,
                "zk_id": event.value.zk_id if isinstance(event.value, Row) else None,
                "node_id": event.value.node_id if isinstance(event.value, Row) else None,
                "hash": event.value.hash if isinstance(event.value, Row) else None,
                "watermark": event.value.watermark if isinstance(event.value, Read) else None,
                "request_id": event.request_id,
                "error": event.error,
            }
            for event in events
        ]
        return pd.DataFrame(rows).convert_dtypes()

    def __repr__(self) -> str:
        return f"<Lab: {self.backend.name} cluster of {', '.join(self.regions)}>"


@contextmanager
def _opened(names: list[str], views: list[View]) -> Iterator[dict[tuple[str, str], Writer]]:
    """Writers of these names in each region; opened and closed at once, for each waits for what is far away."""
    pairs = [(name, view) for name in names for view in views]
    opened: dict[tuple[str, str], Writer] = {}

    def open_one(name: str, view: View) -> None:
        opened[name, view.region] = open_writer(name, view)

    with ThreadPoolExecutor(max(len(pairs), 1)) as pool:
        opening = [pool.submit(open_one, *pair) for pair in pairs]
        try:
            for each in opening:
                each.result()
            yield opened
        finally:
            wait(opening)  # when one has failed, others may be on their way
            list(pool.map(lambda writer: writer.close(), opened.values()))


@contextmanager
def _line(text: str) -> Iterator[Any]:
    """A line that changes while something takes its time; nothing outside a notebook."""
    handle = display(Pretty(text), display_id=True) if get_ipython() else None
    shown = text

    def tell(now: str) -> None:
        nonlocal shown
        if handle and now != shown:
            shown = now
            handle.update(Pretty(now))

    yield tell


def _show_our_errors_short() -> None:
    """In a notebook, an error of the lab is a message, not a page of our own code. The cell fails all the same."""
    for library in ("kazoo", "psycopg"):
        logging.getLogger(library).addHandler(logging.NullHandler())  # what matters of it is in our errors
    shell = get_ipython()
    if shell is None:
        return

    def show(shell: Any, kind: type[BaseException], error: BaseException, trace: Any, **_: Any) -> None:
        here = " In a lesson: run the first cell again." if isinstance(error, NotRunning) else ""
        shell._showtraceback(kind, error, [f"{kind.__name__}: {error}{here}"])

    shell.set_custom_exc((PghcError,), show)
