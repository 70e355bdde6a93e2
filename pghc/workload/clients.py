"""What the clients of one region do: they append, they read, and record both. A client whose append is indefinite tries
again under the same request id where the writer promises that this is safe, as a careful client would.
"""

from __future__ import annotations

import math
import random
import threading
import time
from array import array
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import Future
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from itertools import cycle
from typing import Protocol, runtime_checkable

from pghc.chain import Row
from pghc.errors import BadInput, PghcError
from pghc.store import Reader
from pghc.topology import View
from pghc.verify.history import Read, Recorder
from pghc.writers import Writer, new_request_id

#: At most so many latencies are kept a region; beyond it every append replaces a random one.
LATENCIES = 100_000

#: Appends that a client with many in flight hands over at once.
GROUP = 100


@runtime_checkable
class SubmitsMany(Protocol):
    """A writer that one client can give many appends at once."""

    def submit_many(self, request_ids: Sequence[str], timeout: float = ...) -> Future[list[Row]]: ...


@dataclass(frozen=True)
class Job:
    """What one region's process is to do."""

    view: View
    writer: str
    clients: int
    seconds: float
    reads: float
    timeout: float
    path: str | None
    in_flight: int
    seed: int
    life: int = 1  # of the region's process: one that was killed is followed by another
    careful: bool = False  # write each line of the history at once, since the process may be killed
    name: str = ""  # of the clients of this job, where a region has several jobs
    segment_size: int | None = None  # entries of the log after which the writer begins another segment


class RegionClients:
    """The clients of one region, as threads of this process."""

    def __init__(self, job: Job, writer: Writer, recorder: Recorder | None) -> None:
        self.job, self.writer, self.recorder = job, writer, recorder
        self.region = job.view.region
        self.counts: Counter[str] = Counter()
        self.errors: Counter[str] = Counter()
        self.latencies = array("d")
        self.lock = threading.Lock()
        self.end = math.inf
        self.random = random.Random(f"{job.seed} {self.region} {job.life}")  # noqa: S311  # no secrets: ids, samples
        region = job.view.topology.region(self.region)
        servers = region.databases if job.reads else ()
        self.readers: dict[str, Reader] = {}
        with ExitStack() as stack:
            for name in servers:
                self.readers[name] = stack.enter_context(Reader(job.view, name, timeout=min(job.timeout, 5.0)))
            self._opened = stack.pop_all()

    @property
    def node(self) -> str:
        """The region's primary, as the writer knows it."""
        return getattr(self.writer, "node_id", None) or self.job.view.primary()

    def run(self) -> float:
        """Run them all; returns the seconds from the first invocation to the last answer."""
        began = time.monotonic()
        self.end = min(self.end, began + self.job.seconds)  # it may have been told to end already
        if self.job.in_flight:
            self._pipeline()
        else:
            life = f".{self.job.life}" if self.job.life > 1 else ""  # a new process is a new client
            names = [f"{self.region}/{self.job.name}{number}{life}" for number in range(1, self.job.clients + 1)]
            threads = [threading.Thread(target=self._client, args=(name,), name=name) for name in names]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
        return time.monotonic() - began

    def _client(self, process: str) -> None:
        chance = random.Random(f"{self.job.seed} {process}")  # noqa: S311  # no secrets: ids, turns
        turns = cycle(name for name in self.readers if name != self.node)
        seen = 0
        while time.monotonic() < self.end:
            seen = self._append(process, new_request_id(), seen)
            reads = self.job.reads
            while reads > 0 and (reads >= 1 or chance.random() < reads):
                seen = self._read(process, next(turns, self.node), seen)
                reads -= 1

    def _append(self, process: str, request_id: str, seen: int) -> int:
        tries = 3 if self.writer.exactly_once else 1
        asked = time.monotonic()
        for attempt in range(1, tries + 1):
            if self.recorder:
                self.recorder.invoke(process, self.region, "append", request_id, self.node)
                if self.job.careful:
                    self.recorder.flush()
            try:
                row = self.writer.append(request_id, self.job.timeout)
            except PghcError as error:
                kind = "fail" if error.definite and attempt == 1 else "info"
                self._count(kind, error)
                if self.recorder:
                    record = self.recorder.fail if kind == "fail" else self.recorder.info
                    record(process, self.region, "append", request_id, self.node, error.what)
                time.sleep(0.05)  # a server is away: do not hammer it
                if kind == "fail":
                    return seen
            else:
                if self.recorder:
                    self.recorder.ok(process, self.region, "append", request_id, self.node, row)
                    if self.job.careful:
                        self.recorder.flush()
                self._acknowledged(asked)
                return row.zk_id  # the newest it has seen, unless another chain was begun
        return seen

    def _read(self, process: str, node: str, seen: int) -> int:
        """Read the newest entries, none older than this client has seen, from a server that is up and not behind."""
        ordered = self.writer.ordered
        position = seen if ordered else 0
        for name in dict.fromkeys((node, self.node)):
            if self.recorder:
                self.recorder.invoke(process, self.region, "read", None, name)
            try:
                if ordered:
                    self.readers[name].reached(position, 1.0)
                mark, rows = self.readers[name].recent(10, prefix=ordered)
            except PghcError as error:
                if self.recorder:
                    self.recorder.fail(process, self.region, "read", None, name, error.what)
                continue
            if self.recorder:
                self.recorder.ok(process, self.region, "read", None, name, Read(position, mark, tuple(rows)))
            with self.lock:
                self.counts["reads"] += 1
            return max(seen, mark) if ordered else seen
        return seen

    def _pipeline(self) -> None:
        """One client that keeps many appends on their way, in groups, as a bulk load would."""
        writer = self.writer
        if not isinstance(writer, SubmitsMany):
            raise BadInput(f"the writer {self.job.writer} cannot have many appends of one client in flight")
        group = max(1, min(GROUP, self.job.in_flight // 10))
        room = threading.Semaphore(self.job.in_flight // group)
        process = f"{self.region}/{self.job.name}1"

        def answered(started: float, requests: Sequence[str], future: Future[list[Row]]) -> None:
            room.release()
            if error := future.exception():
                self._count("fail" if getattr(error, "definite", False) else "info", error, len(requests))
                return
            if self.recorder:
                for request, row in zip(requests, future.result(), strict=True):
                    self.recorder.ok(process, self.region, "append", request, self.node, row)
            self._acknowledged(started, len(requests))

        while time.monotonic() < self.end:
            if not room.acquire(timeout=0.1):
                continue
            started, requests = time.monotonic(), [new_request_id() for _ in range(group)]
            if self.recorder:
                for request in requests:
                    self.recorder.invoke(process, self.region, "append", request, self.node)
            writer.submit_many(requests, self.job.timeout).add_done_callback(partial(answered, started, requests))
        for _ in range(self.job.in_flight // group):
            if not room.acquire(timeout=self.job.timeout):
                break

    def _acknowledged(self, asked: float, times: int = 1) -> None:
        """They were asked for first at ``asked``: what a client waits for includes its retries."""
        took = 1000 * (time.monotonic() - asked)
        with self.lock:
            self.counts["ok"] += times
            if len(self.latencies) < LATENCIES:
                self.latencies.append(took)
            elif (place := self.random.randrange(self.counts["ok"])) < LATENCIES:
                self.latencies[place] = took

    def _count(self, kind: str, error: BaseException, times: int = 1) -> None:
        with self.lock:
            self.counts[kind] += times
            self.errors[getattr(error, "what", repr(error))] += times

    def close(self) -> None:
        self._opened.close()
