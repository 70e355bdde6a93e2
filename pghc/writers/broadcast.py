"""Writer 5: the log entry is the message. Total-order broadcast, batched and pipelined.

    append(request):  put it into the log               many appends share one entry, many entries are on their way
    apply, in each region, one session at a time:
        read the log in order
        (rows, cursor) = fold(cursor, entries)
        write rows and cursor in one transaction        if the cursor is where we left it
        answer those who wait here

Nobody waits for rows of other regions: each region makes all rows itself, from the log, the same ones everywhere. This
is state-machine replication (Lamport, 1978; Schneider, 1990): what is left is the time of one consensus.

Batching needs no timer: an append is sent at once while there are few entries on their way; else it joins the next.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from concurrent.futures import Future
from concurrent.futures import TimeoutError as FutureTimeout
from typing import Any, NamedTuple

from kazoo.interfaces import IAsyncResult

from pghc.chain import Row, link
from pghc.errors import Conflict, Indefinite, PghcError, Unavailable
from pghc.sequencer import Entry, Segment, Sequencer, position_of
from pghc.store import Applier, Cursor, Store, depose
from pghc.topology import View
from pghc.writers import Base, Step, no_step
from pghc.writers.truncation import Truncation

BATCH = 1000  # appends an entry: its node is about 40 kB
ENTRIES_SENT = 16  # entries on their way at once; more appends wait and share
IN_FLIGHT = 20_000  # appends without an answer; beyond it, append blocks
READ_AHEAD = 24  # entries applied in one transaction at most
SEGMENT = 250  # entries a segment: at most 10 MB each in the memory of ZooKeeper's servers
PATIENCE = 1.0  # seconds without progress after which another session takes over as applier


class Fold(NamedTuple):
    cursor: Cursor
    rows: list[Row]
    requests: list[tuple[str, int, int]]  # request_id, zk_id, log position


def fold(cursor: Cursor, entries: Iterable[Entry], known: Collection[str] = ()) -> Fold:
    """What the log's ``entries`` after ``cursor`` make of the chain. Requests in ``known``, or seen twice, are void."""
    seen = set(known)
    position, zk_id, digest = cursor
    rows, requests = [], []
    for position, (node_id, batch) in enumerate(entries, cursor.position + 1):
        for request in batch:
            if request not in seen:
                seen.add(request)
                zk_id += 1
                digest = link(zk_id, node_id, digest)
                rows.append(Row(zk_id, node_id, digest))
                requests.append((request, zk_id, position))
    return Fold(Cursor(position, zk_id, digest), rows, requests)


class Pending(Future[Any]):
    """Appends that wait for their answer together. Guarded by the writer's lock until it is resolved."""

    def __init__(self, requests: Sequence[str], one: bool) -> None:
        super().__init__()
        self.requests, self.one = requests, one
        self.sent = False  # some of it may be in the log
        self.rows: dict[str, Row] = {}

    def resolve(self) -> None:
        rows = [self.rows[request] for request in self.requests]
        self.set_result(rows[0] if self.one else rows)


class Broadcast(Base):
    steps = ("queued", "sent", "applied")
    ordered = exactly_once = True

    def __init__(self, view: View, step: Step = no_step) -> None:
        self.store = Store(view)
        self.sequencer = Sequencer(view, segment_size=SEGMENT)
        # ZooKeeper answers a session in order: a read would wait for all creations that are on their way before it
        self.log = Sequencer(view, segment_size=SEGMENT)
        self.node_id = self.store.node
        self.step = step
        self._lock = threading.Lock()
        self._room = threading.Condition(self._lock)
        self._waiting: dict[str, Pending] = {}  # by request id
        self._queue: deque[str] = deque()
        self._queued = threading.Event()
        self._slots = threading.BoundedSemaphore(ENTRIES_SENT)
        self._ended: Segment | None = None  # the log goes on in another segment than this one
        self._stop = threading.Event()
        self._trouble = ""
        self._truncation = Truncation(self.store, self.sequencer)
        self._threads = [
            threading.Thread(target=self._run, args=(loop,), name=f"{loop.__name__} {self.node_id}", daemon=True)
            for loop in (self._send, self._apply)
        ]
        for thread in self._threads:
            thread.start()

    def append(self, request_id: str, timeout: float = 10.0) -> Row:
        deadline = time.monotonic() + timeout
        pending = self._enqueue([request_id], True, timeout)
        try:
            row: Row = pending.result(max(deadline - time.monotonic(), 0.001))
        except FutureTimeout:
            raise self.give_up(pending, timeout) from None
        self.step("applied")
        return row

    def submit(self, request_id: str, timeout: float = 10.0) -> Future[Row]:
        """Begin to append; the future's result is the entry. Blocks while too many appends are in flight.

        Raises `Unavailable` when there is no room within ``timeout`` seconds; the future has no time-out of its own.
        """
        return self._enqueue([request_id], True, timeout)

    def submit_many(self, request_ids: Sequence[str], timeout: float = 10.0) -> Future[list[Row]]:
        """Begin to append several, in this order unless replies are lost; cheaper than one by one."""
        return self._enqueue(request_ids, False, timeout)

    def _enqueue(self, requests: Sequence[str], one: bool, timeout: float) -> Pending:
        pending = Pending(requests, one)
        with self._room:
            most = IN_FLIGHT - len(requests)
            if not self._room.wait_for(lambda: len(self._waiting) <= most, timeout):
                raise Unavailable(
                    f"{self.node_id}: {IN_FLIGHT} appends in flight, none ended in {timeout:g} s, nothing was written",
                    "Send more slowly, or see `pghc status`",
                    node=self.node_id,
                )
            if one and (same := self._waiting.get(requests[0])) and same.one:
                return same  # the same request once more: both callers get its one entry
            for request in requests:
                self._waiting[request] = pending
            self._queue.extend(requests)
        self._queued.set()
        self.step("queued")
        return pending

    def give_up(self, pending: Pending, timeout: float) -> PghcError:
        """Wait no longer for what was submitted. Returns the error that says whether it may have happened."""
        with self._room:
            for request in pending.requests:
                if self._waiting.get(request) is pending:
                    del self._waiting[request]
            self._room.notify_all()
            sent = pending.sent
        if sent:
            return Indefinite(
                f"{self.node_id}: sent to the log, but not applied here within {timeout:g} s{self._trouble}; "
                "it may have happened",
                "Retry with the same request id: it happens once, however often it is tried",
                node=self.node_id,
            )
        return Unavailable(
            f"{self.node_id}: not put into the log within {timeout:g} s{self._trouble}, nothing was written",
            "Is there a quorum of ZooKeeper servers? See `pghc status`",
            node=self.node_id,
        )

    # Into the log

    def _send(self) -> None:
        if not self._queued.wait(0.5) or not self._slots.acquire(timeout=0.5):
            return
        self._queued.clear()
        try:
            self.sequencer.await_quorum("append to the log", 0.5)  # before any append counts as sent
            if self._ended:
                self.sequencer.next_segment(self._ended)
                self._ended = None
            with self._lock:
                batch: list[str] = []
                while self._queue and len(batch) < BATCH:
                    request_id = self._queue.popleft()
                    if pending := self._waiting.get(request_id):  # else given up meanwhile, or answered
                        pending.sent = True
                        batch.append(request_id)
                more = bool(self._queue)
            if not batch:
                self._slots.release()
                return
            if more:
                self._queued.set()
            segment, result = self.sequencer.take_async(Entry(self.node_id, tuple(batch)))
        except PghcError:
            self._slots.release()
            self._queued.set()
            raise
        result.rawlink(lambda answer: self._sent(segment, batch, answer))
        self.step("sent")

    def _sent(self, segment: Segment, batch: list[str], answer: IAsyncResult) -> None:
        """The log's answer, on kazoo's thread. Without one the batch is sent again; what comes second is void."""
        self._slots.release()
        position = None if answer.exception else position_of(segment, answer.get_nowait())
        if position:
            if position - segment.base >= SEGMENT:
                self._ended = segment
            return
        if not answer.exception:
            self._ended = segment
        with self._lock:
            self._queue.extendleft(reversed(batch))
        self._queued.set()

    # Out of the log

    def _apply(self) -> None:
        """One session's time as applier of this region; without that right, one look at what the applier did."""
        try:
            applier = self.store.applier()
        except Conflict:
            self._follow()
            return
        try:
            cursor = self.store.cursor()
            self._answer_known()
            while not self._stop.is_set():
                end = self.log.wait_beyond(cursor.position, 0.5)
                if end > cursor.position:
                    entries = self.log.read(cursor.position + 1, min(end, cursor.position + READ_AHEAD))
                    cursor = self._apply_entries(applier, cursor, entries)
        finally:
            applier.close()

    def _apply_entries(self, applier: Applier, cursor: Cursor, entries: list[Entry]) -> Cursor:
        known: dict[str, Row] = {}
        while True:
            new, rows, requests = fold(cursor, entries, known)
            try:
                if not applier.apply(cursor, new, rows, requests):
                    raise Unavailable(
                        f"{self.node_id}: deposed: another session moved the cursor from {cursor.position}"
                    )
                break
            except Conflict:  # the unique index on request ids found what the log holds twice
                if known:
                    raise
                known = self.store.known([request for entry in entries for request in entry.requests])
        self._answer(known | {request: row for (request, _, _), row in zip(requests, rows, strict=True)})
        return new

    def _follow(self) -> None:
        before = self.store.cursor()
        end = self.log.wait_beyond(before.position, PATIENCE)
        if end > before.position and self.store.wait_for(before.position + 1, PATIENCE).position == before.position:
            depose(self.store)
        self._answer_known()

    def _answer_known(self) -> None:
        with self._lock:
            asked = [request_id for request_id, pending in self._waiting.items() if pending.sent]
        if asked:
            self._answer(self.store.known(asked))

    def _answer(self, rows: Mapping[str, Row]) -> None:
        """Give those who wait here their entries; most of ``rows`` are of other regions."""
        done = []
        with self._room:
            for request in rows.keys() & self._waiting.keys():
                pending = self._waiting.pop(request)
                pending.rows[request] = rows[request]
                if len(pending.rows) == len(pending.requests):
                    done.append(pending)
            self._room.notify_all()
        for pending in done:
            pending.resolve()

    # Threads

    def _run(self, loop: Callable[[], None]) -> None:
        while not self._stop.is_set():
            try:
                loop()
                self._trouble = ""
            except Exception as error:  # most often a server is away. Whatever it is, the appends that time out tell it
                self._trouble = f" ({error})"
                self._stop.wait(0.1)

    def close(self) -> None:
        self._stop.set()
        self._queued.set()
        for thread in self._threads:
            thread.join(timeout=5)
        with self._lock:
            left = set(self._waiting.values())
            self._waiting.clear()
        for pending in left:
            pending.set_exception(
                Indefinite(f"{self.node_id}: the writer was closed first; it may have happened", node=self.node_id)
                if pending.sent
                else Unavailable(f"{self.node_id}: the writer was closed, nothing was written", node=self.node_id)
            )
        self._truncation.close()
        self.store.close()
        self.log.close()
        self.sequencer.close()
