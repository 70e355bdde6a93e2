"""Writer 4: a number, then wait for every preceding write, then insert. Causality holds.

    write(requests):                                       appends of one process that wait together share an entry
        position = the log's next number                   agreed on by a quorum of ZooKeeper servers
        wait until this region has settled all positions below
        insert the successors of the entry before          compare-and-set on the region's cursor

An entry is a function of the log alone: its position, the node_id in the log entry, and the entry before it. So when a
writer dies between taking its number and inserting, whoever waits for it inserts the very same rows in their place;
when two do, or the writer was only slow, there is one row all the same. A request that the log shows twice is settled
by its first position; the second is void and becomes no row.

The method is that of total-order broadcast from consensus (Chandra and Toueg, 1996). Sharing needs no timer: an append
goes at once while a thread is free, and those that come meanwhile go together.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from contextlib import ExitStack
from functools import partial

from pghc.chain import Row
from pghc.errors import Indefinite, PghcError
from pghc.sequencer import Entry, Sequencer
from pghc.store import Store
from pghc.topology import Topology, View
from pghc.writers import Step, no_step, sent
from pghc.writers.housekeeping import Housekeeping
from pghc.writers.log import fold
from pghc.writers.sharing import Sharing

#: Entries of one process that are on their way at once: each hand-over between regions costs a message's time.
THREADS = 2
AHEAD = 64  # entries that are looked at, and completed, together


def patience(topology: Topology) -> float:
    """Seconds without progress after which a writer completes what it waits for: more than the slowest link takes."""
    return 0.2 + 2 * max(topology.delays_ms.values()) / 1000


class Ended(Indefinite):
    """The chain of this log position has ended since."""


class Causal(Sharing):
    steps = ("numbered", "waited", "inserted")

    def __init__(self, view: View, step: Step = no_step) -> None:
        super().__init__(view, step)
        self.patience = patience(view.topology)
        self._completing = threading.Lock()
        with ExitStack() as stack:
            self.store = stack.enter_context(Store(view))
            self.sequencer = stack.enter_context(Sequencer(view))
            # ZooKeeper answers a session in order: a read would wait for the creations that are on their way before it
            self.log = stack.enter_context(Sequencer(view))
            self.store.follow(self.log.client)
            hear = partial(self.hear, "housekeeping")
            stack.callback(Housekeeping(self.store, self.log, self.sequencer.allow, hear, self._catch_up).close)
            self._resources = stack.pop_all()
        for number in range(THREADS):
            threading.Thread(target=self._run, name=f"append {number} {self.node_id}", daemon=True).start()

    def write(self, requests: Sequence[str]) -> dict[str, Row]:
        """Append these in one entry of the log; returns their rows. Raises as `append` does."""
        self.admit(self._left(requests))
        if not (requests := self.mark_sent(requests)):
            return {}
        entry = Entry(self.node_id, tuple(requests))  # also when another primary will accept it in the end
        position = self.sequencer.take(entry, self._left(requests))
        with sent(self.node_id, f"log position {position} is taken"):
            self.step("numbered")
            rows: dict[str, Row] = {}
            while not rows:  # again when another primary takes its place, which may have less so far
                self._wait_for_predecessors(position, requests)
                self.step("waited")
                rows = self._insert(position, entry)
            self.step("inserted")
            return rows

    def _wait_for_predecessors(self, position: int, requests: Sequence[str]) -> None:
        """Until this region has settled every position below; settles those itself for whose rows nobody would wait."""
        while True:
            cursor = self.store.wait_for(position - 1, 0)
            if cursor.position >= position - 1 or cursor.chain > position:
                return
            self._give_up_unless_wanted(position, requests)
            try:
                first = cursor.position + 1
                ahead = self.log.read(first, min(position - 1, cursor.position + AHEAD))
                if own := self._nobody_brings(ahead, requests):
                    self._settle(first, ahead[:own])
                    self.store.wait_for(first + own - 1, self.patience)
                elif self.store.wait_for(first, self.patience).position < first:
                    self._complete(first, ahead)
            except PghcError:  # the primary or ZooKeeper is away; the number is ours, and to try again is safe
                self._stop.wait(0.1)

    def _insert(self, position: int, entry: Entry) -> dict[str, Row]:
        """The rows; none of them: to be tried again."""
        try:
            if rows := self._settle(position, [entry]):
                return rows
        except Ended:
            raise
        except PghcError:
            self._stop.wait(0.1)
        self._give_up_unless_wanted(position, entry.requests)
        return {}

    def _complete(self, first: int, entries: Sequence[Entry]) -> None:
        """Insert what the writers of these entries should have inserted, in their place."""
        if self._completing.acquire(blocking=False):  # one thread is enough
            try:
                self._settle(first, entries)
            finally:
                self._completing.release()

    def _settle(self, first: int, entries: Sequence[Entry]) -> dict[str, Row]:
        """Insert what the log's entries from ``first`` on make of the chain; returns the rows of their requests.

        None of them: it is not their turn here, or another one has moved the cursor.
        """
        cursor, known = self.store.known([request for entry in entries for request in entry.requests])
        if cursor.chain > first:
            raise Ended(f"{self.node_id}: log position {first} belongs to a chain that has ended", node=self.node_id)
        settled = cursor.position + 1 - first
        if settled < 0:
            return {}
        self.follow(cursor.chain)
        new, rows, requests = fold(cursor, entries[settled:], known)
        if new != cursor and not self.store.apply(cursor, new, rows, requests):
            return {}
        return known | {request: row for (request, _, _), row in zip(requests, rows, strict=True)}

    def _nobody_brings(self, entries: Sequence[Entry], requests: Sequence[str]) -> int:
        """How many of the first entries are void, are made by each region for itself, or are this very append."""
        _, known = self.store.known([request for entry in entries for request in entry.requests])
        for number, entry in enumerate(entries):
            if entry.begins or not (entry.everywhere or {*entry.requests} <= {*known, *requests}):
                return number
        return len(entries)

    def _catch_up(self, tip: int) -> None:
        """The region stands still while the log goes on, and nobody here waits: rows that nobody brings are settled."""
        first = self.store.cursor().position + 1
        self._complete(first, self.log.read(first, min(tip, first + AHEAD - 1)))

    def _run(self) -> None:
        while not self._stop.is_set():
            if requests := self.next_batch(0.5):
                try:
                    rows = self.write(requests)
                except BaseException as error:
                    self.fail(requests, error)
                else:
                    self.answer(rows)

    def _left(self, requests: Sequence[str]) -> float:
        return max(self.until(requests) - time.monotonic(), 0.001)

    def _give_up_unless_wanted(self, position: int, requests: Sequence[str]) -> None:
        if self._stop.is_set() or time.monotonic() > self.until(requests):
            raise Indefinite(
                f"{self.node_id}: log position {position} is taken, but entries before it have not arrived in time",
                "It will be in the chain once they do. Retry with the same request id to see it",
                node=self.node_id,
            )
