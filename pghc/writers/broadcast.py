"""Writer 5: the log entry is the message. Total-order broadcast, batched and pipelined.

    append(request):  put it into the log               many appends share one entry, many entries are on their way
    apply, in each region, one session at a time:
        read the log in order
        (rows, cursor) = fold(cursor, entries)
        write rows and cursor in one transaction        if the cursor is where we left it
        answer those who wait here

Nobody waits for rows of other regions: each region makes all rows itself, from the log, the same ones everywhere. This
is state-machine replication (Lamport, 1978; Schneider, 1990): what is left is the time of one consensus.

Batching needs no timer: an append is sent at once while there are few on their way; else it waits until it has company,
a part of all that have no answer yet. Without that rule entries are half as large, and ZooKeeper has twice the work.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial

from kazoo.interfaces import IAsyncResult

from pghc.chain import Row
from pghc.errors import Conflict, Indefinite, PghcError
from pghc.sequencer import Entry, Segment, Sequencer, position_of
from pghc.store import Applier, Cursor, Store, depose
from pghc.topology import View
from pghc.writers import Step, no_step
from pghc.writers.housekeeping import Housekeeping
from pghc.writers.log import fold
from pghc.writers.sharing import FINAL, Sharing

ENTRIES_SENT = 16  # entries on their way at once; more appends wait and share
PARTS = 6  # an entry has one of so many parts, or more, of the appends that have no answer yet
READ_AHEAD = 24  # entries applied in one transaction at most
SEGMENT = 250  # entries a segment: at most 10 MB each in the memory of ZooKeeper's servers
PATIENCE = 1.0  # seconds without progress after which another session takes over as applier


class Broadcast(Sharing):
    steps = ("queued", "sent", "applied")

    def __init__(self, view: View, step: Step = no_step) -> None:
        super().__init__(view, step)
        self._slots = threading.BoundedSemaphore(ENTRIES_SENT)
        self._ended: Segment | None = None  # the log goes on in another segment than this one
        with ExitStack() as stack:
            self.store = stack.enter_context(Store(view))
            self.sequencer = stack.enter_context(Sequencer(view, segment_size=SEGMENT))
            # ZooKeeper answers a session in order: a read would wait for all creations that are on their way before it
            self.log = stack.enter_context(Sequencer(view, segment_size=SEGMENT))
            self.store.follow(self.log.client)
            hear = partial(self.hear, "housekeeping")
            stack.callback(Housekeeping(self.store, self.log, self.sequencer.allow, hear).close)
            for loop in (self._send, self._apply):
                name = f"{loop.__name__} {self.node_id}"
                thread = threading.Thread(target=self._run, args=(loop,), name=name, daemon=True)
                thread.start()
                stack.callback(thread.join, 5)
            self._resources = stack.pop_all()

    def append(self, request_id: str, timeout: float = 10.0) -> Row:
        row = super().append(request_id, timeout)
        self.step("applied")
        return row

    # Into the log

    def _send(self) -> None:
        if not self._slots.acquire(timeout=0.5):
            return
        batch = self.next_batch(0.5, parts=PARTS)
        try:
            if batch:
                self.step("queued")
                self._send_batch(batch)
                return
        except FINAL as error:
            before = set(self.sent_requests()).intersection(batch)  # whose reply was lost
            self.fail(before, Indefinite(f"{error}; it may have happened", node=self.node_id))
            self.fail([request for request in batch if request not in before], error)
        except Exception:
            self.put_back(batch)  # nothing of it was sent this time
            self._slots.release()
            raise
        self._slots.release()

    def _send_batch(self, batch: list[str]) -> None:
        self.admit(1.0)
        self.sequencer.await_room("append to the log", 1.0)
        if self._ended:
            self.sequencer.next_segment(self._ended)
            self._ended = None
        if not (batch := self.mark_sent(batch)):
            self._slots.release()
            return
        segment, result = self.sequencer.take_async(Entry(self.node_id, tuple(batch), everywhere=True))
        result.rawlink(lambda answer: self._sent_batch(segment, batch, answer))
        self.step("sent")

    def _sent_batch(self, segment: Segment, batch: list[str], answer: IAsyncResult) -> None:
        """The log's answer, on kazoo's thread. Without one the batch is sent again; what comes second is void."""
        self._slots.release()
        position = None if answer.exception else position_of(segment, answer.get_nowait())
        if position:
            if position - segment.base >= self.sequencer.segment_size:
                self._ended = segment
            return
        if not answer.exception:
            self._ended = segment
        self.put_back(batch)

    # Out of the log

    def _apply(self) -> None:
        """One session's time as applier of this region; without that right, one look at what the applier did."""
        try:
            applier = self.store.applier()
        except Conflict:
            self._follow()
            return
        try:
            self._answer_known()
            cursor = self.store.cursor()
            while not self._stop.is_set() and applier.node == self.store.node:
                end = self.log.wait_beyond(cursor.position, 0.5)
                if end > cursor.position:
                    entries = self.log.read(cursor.position + 1, min(end, cursor.position + READ_AHEAD))
                    cursor = self._apply_entries(applier, cursor, entries)
        finally:
            applier.close()

    def _apply_entries(self, applier: Applier, cursor: Cursor, entries: list[Entry]) -> Cursor:
        """Apply what the log makes of these; returns the cursor, whoever moved it."""
        new, rows, requests = fold(cursor, entries)
        if new == cursor:  # a new chain begins here: whoever began it moves the cursor
            return self.store.wait_for(cursor.position + 1, 1.0) if entries else cursor
        self.follow(cursor.chain)
        try:
            applied = applier.apply(cursor, new, rows, requests)
        except Conflict:  # the unique index on request ids found what the log holds twice
            asked = [request for entry in entries for request in entry.requests]
            new, rows, requests = fold(cursor, entries, self.store.known(asked)[1])
            applied = applier.apply(cursor, new, rows, requests)
        if not applied:  # a writer that does without an applier was first, or this session has been deposed
            self._answer_known()
            return self.store.cursor()
        self.answer({request: row for (request, _, _), row in zip(requests, rows, strict=True)})
        if len(rows) < sum(len(entry.requests) for entry in entries):
            self._answer_known()
        return new

    def _follow(self) -> None:
        before = self.store.cursor()
        end = self.log.wait_beyond(before.position, PATIENCE)
        if end > before.position and self.store.wait_for(before.position + 1, PATIENCE).place == before.place:
            depose(self.store)
        self._answer_known()

    def _answer_known(self) -> None:
        if asked := self.sent_requests():
            self.answer(self.store.known(asked)[1])

    # Threads

    def _run(self, loop: Callable[[], None]) -> None:
        while not self._stop.is_set():
            trouble = None
            try:
                loop()
            except PghcError as error:  # most often a server is away; the appends that time out tell it
                trouble = error
            except Exception as error:
                trouble = PghcError(f"{self.node_id}: {loop.__name__}: {error!r}", node=self.node_id)
            self.hear(loop.__name__, trouble)
            if trouble:
                self._stop.wait(0.1)
