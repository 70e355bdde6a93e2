"""Appends of one process that go into the log together: who waits for what, and since when it may be there."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import Future
from concurrent.futures import TimeoutError as FutureTimeout
from typing import Any

from pghc.chain import Row
from pghc.errors import ClusterError, Indefinite, PghcError, Unavailable, WrongKind
from pghc.sequencer import Sequencer, bounded, canonical
from pghc.store import Store
from pghc.topology import View
from pghc.writers import Base, Step, no_step

IN_FLIGHT = 20_000  # appends without an answer; beyond it, append blocks
BATCH = 1000  # appends an entry: its node is about 40 kB

#: Seconds for which a region's cursor is as good as asked for.
RECENTLY = 1.0

#: What no later attempt will change.
FINAL = (WrongKind, ClusterError)


class Call(Future[Any]):
    """Appends that were asked for together. Guarded by the writer's lock until it is resolved."""

    def __init__(self, requests: Sequence[str], one: bool, deadline: float) -> None:
        super().__init__()
        self.requests, self.one, self.deadline = requests, one, deadline
        self.rows: dict[str, Row] = {}

    def resolve(self) -> None:
        rows = [self.rows[request] for request in self.requests]
        self.set_result(rows[0] if self.one else rows)


class Sharing(Base):
    """A writer whose appends wait in a queue, from which its own threads take many at a time.

    Two calls with one request id share one append, and each has a time-out of its own.
    """

    ordered = exactly_once = True
    ordering = "log"

    view: View
    store: Store
    sequencer: Sequencer

    def __init__(self, view: View, step: Step = no_step) -> None:
        self.view, self.step = view, step
        self._lock = threading.Lock()
        self._room, self._arrived = threading.Condition(self._lock), threading.Condition(self._lock)
        self._calls: dict[str, list[Call]] = {}  # by request id
        self._sent: set[str] = set()  # those that may be in the log
        self._queue: deque[str] = deque()
        self._stop = threading.Event()
        self._troubles: dict[str, PghcError] = {}  # by the name of the thread that has it

    # The callers' side

    def append(self, request_id: str, timeout: float = 10.0) -> Row:
        call = self._call([request_id], True, timeout)
        try:
            row: Row = call.result(max(call.deadline - time.monotonic(), 0.001))
        except FutureTimeout:
            if call.done():
                raise
            raise self.give_up(call, timeout) from None
        return row

    def submit(self, request_id: str, timeout: float = 10.0) -> Future[Row]:
        """Begin to append; the future's result is the entry. Blocks while too many appends are in flight.

        Raises `Unavailable` when there is no room within ``timeout`` seconds; the future has no time-out of its own.
        """
        return self._call([request_id], True, timeout)

    def submit_many(self, request_ids: Sequence[str], timeout: float = 10.0) -> Future[list[Row]]:
        """Begin to append several, in this order unless replies are lost; cheaper than one by one."""
        return self._call(request_ids, False, timeout)

    def _call(self, request_ids: Sequence[str], one: bool, timeout: float) -> Call:
        requests = [canonical(each) for each in request_ids]
        call = Call(requests, one, time.monotonic() + bounded(timeout))
        with self._room:
            most = IN_FLIGHT - len(requests)
            if not self._room.wait_for(lambda: len(self._calls) <= most, timeout):
                raise Unavailable(
                    f"{self.node_id}: {IN_FLIGHT} appends in flight, none ended in {timeout:g} s, nothing was written",
                    "Send more slowly, or see `pghc status`",
                    node=self.node_id,
                )
            if self._stop.is_set():
                raise Unavailable(f"{self.node_id}: the writer is closed, nothing was written", node=self.node_id)
            for request in dict.fromkeys(requests):
                if request not in self._calls:
                    self._queue.append(request)
                self._calls.setdefault(request, []).append(call)
            self._arrived.notify()
        return call

    def give_up(self, call: Call, timeout: float) -> PghcError:
        """Wait no longer for what was submitted. Returns the error that says whether it may have happened."""
        with self._room:
            sent = not self._sent.isdisjoint(call.requests)
            for request in call.requests:
                self._forget(request, call)
            self._room.notify_all()
        why = self.trouble
        trouble = f" ({why.what})" if why else ""
        if sent:
            return Indefinite(
                f"{self.node_id}: in the log or on the way there, but not settled here within {timeout:g} s{trouble}; "
                "it may have happened",
                "Retry with the same request id: it happens once, however often it is tried",
                node=self.node_id,
            )
        return Unavailable(
            f"{self.node_id}: not put into the log within {timeout:g} s{trouble}, nothing was written",
            (why and why.remedy) or "Is there a quorum of ZooKeeper servers? See `pghc status`",
            node=self.node_id,
        )

    def _forget(self, request: str, call: Call) -> None:
        calls = self._calls.get(request, [])
        if call in calls:
            calls.remove(call)
        if not calls and request in self._calls:
            del self._calls[request]
            self._sent.discard(request)

    # The threads' side

    def next_batch(self, timeout: float, most: int = BATCH, parts: int = IN_FLIGHT) -> list[str]:
        """Requests that somebody waits for, up to ``most``; empty after ``timeout`` seconds without any.

        At least one of ``parts`` of all that have no answer here: those that are on their way will have one soon.
        """
        batch: list[str] = []
        with self._lock:
            self._arrived.wait_for(lambda: self._stop.is_set() or self._is_batch(most, parts), timeout)
            while self._queue and len(batch) < most:
                request = self._queue.popleft()
                if request in self._calls:  # else given up meanwhile, or answered
                    batch.append(request)
            if self._queue:
                self._arrived.notify()
        return batch

    def _is_batch(self, most: int, parts: int) -> bool:
        return len(self._queue) >= max(1, min(most, len(self._calls) // parts))

    def mark_sent(self, requests: Iterable[str]) -> list[str]:
        """From now on these may be in the log: those that are still wanted. Whoever gave up was told that it is not."""
        with self._lock:
            wanted = [request for request in requests if request in self._calls]
            self._sent.update(wanted)
        return wanted

    def put_back(self, requests: Sequence[str]) -> None:
        """To be sent, or sent again, before all others."""
        with self._lock:
            self._queue.extendleft(reversed(requests))
            self._arrived.notify()

    def until(self, requests: Iterable[str]) -> float:
        """The latest deadline of those who wait for any of these; 0 when nobody does."""
        with self._lock:
            return max((call.deadline for each in requests for call in self._calls.get(each, ())), default=0.0)

    def sent_requests(self) -> list[str]:
        with self._lock:
            return list(self._sent)

    def answer(self, rows: Mapping[str, Row]) -> None:
        """Give those who wait here their entries; many of ``rows`` may be of other processes."""
        done = []
        with self._room:
            for request in rows.keys() & self._calls.keys():
                self._sent.discard(request)
                for call in self._calls.pop(request):
                    call.rows[request] = rows[request]
                    if len(call.rows) == len(set(call.requests)):
                        done.append(call)
            self._room.notify_all()
            self._arrived.notify()  # what is left may be enough for a batch
        for call in done:
            call.resolve()

    def fail(self, requests: Iterable[str], error: BaseException) -> None:
        """Tell those who wait for any of ``requests``. What else was asked for with them may be in the log."""
        failed: dict[Call, BaseException] = {}
        with self._room:
            for request in requests:
                self._sent.discard(request)
                failed |= dict.fromkeys(self._calls.get(request, ()), error)
            for call in failed:
                if getattr(error, "definite", False) and (call.rows or not self._sent.isdisjoint(call.requests)):
                    failed[call] = Indefinite(f"{error}; others of these appends may have happened", node=self.node_id)
                for request in call.requests:
                    self._forget(request, call)
            self._room.notify_all()
        for call, its_error in failed.items():
            call.set_exception(its_error)

    def admit(self, timeout: float) -> None:
        """Raise what forbids to append now, before anything is sent."""
        if trouble := next((each for each in list(self._troubles.values()) if isinstance(each, FINAL)), None):
            raise trouble
        cursor = self.store.heard(RECENTLY) or self.store.cursor(timeout)
        self.join(self.view, cursor.chain, timeout)

    def follow(self, chain: int) -> None:
        """Raise `WrongKind` unless what is in the log belongs into this chain: who sent it may not have known of it."""
        self.join(self.view, chain, RECENTLY, "nothing of the log is inserted")

    @property
    def trouble(self) -> PghcError | None:
        """Why nothing can be appended at the moment, if anything is wrong."""
        return next(iter(list(self._troubles.values())), None)

    def hear(self, thread: str, trouble: PghcError | None) -> None:
        """One of the writer's threads has met an error, or has got over it."""
        if trouble:
            self._troubles[thread] = trouble
        else:
            self._troubles.pop(thread, None)

    def _ordering(self, _view: View, chain: int, timeout: float) -> str:
        return self.sequencer.ordering(chain, self.ordering, timeout)

    def stop(self) -> None:
        """End the threads."""
        self._stop.set()
        with self._lock:
            self._arrived.notify_all()

    def close(self) -> None:
        self.stop()
        super().close()
        with self._lock:
            left = {call for calls in self._calls.values() for call in calls}
            sent = {call for call in left if not self._sent.isdisjoint(call.requests)}
            self._calls.clear()
        for call in left:
            call.set_exception(
                Indefinite(f"{self.node_id}: the writer was closed first; it may have happened", node=self.node_id)
                if call in sent
                else Unavailable(f"{self.node_id}: the writer was closed, nothing was written", node=self.node_id)
            )
