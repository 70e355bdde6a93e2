"""Writer 4: a number, then wait for every preceding write, then insert. Causality holds.

    append(request):
        position = the log's next number                   agreed on by a quorum of ZooKeeper servers
        wait until this region has settled all positions below
        insert the successor of the entry before           compare-and-set on the region's cursor

An entry is a function of the log alone: its position, the node_id in the log entry, and the entry before it. So when a
writer dies between taking its number and inserting, whoever waits for it inserts the very same row in its place; when
two do, or the writer was only slow, there is one row all the same. A request that the log shows twice is settled by
its first position; the second is void and becomes no row.

The method is that of total-order broadcast from consensus (Chandra and Toueg, 1996), one message at a time.
"""

from __future__ import annotations

import threading
import time

from pghc.chain import Row, successor
from pghc.errors import Conflict, Indefinite, PghcError
from pghc.sequencer import Entry, Sequencer
from pghc.store import Store
from pghc.topology import View
from pghc.writers import Base, Step, no_step
from pghc.writers.truncation import Truncation

#: Seconds without any progress after which a writer completes what it waits for: a little more than the slowest link.
PATIENCE = 0.4


class Causal(Base):
    steps = ("numbered", "waited", "inserted")
    ordered = exactly_once = True

    def __init__(self, view: View, step: Step = no_step) -> None:
        self.store = Store(view)
        self.sequencer = Sequencer(view)
        self.node_id = self.store.node
        self.step = step
        self._completing = threading.Lock()
        self._truncation = Truncation(self.store, self.sequencer)

    def append(self, request_id: str, timeout: float = 10.0) -> Row:
        deadline = time.monotonic() + timeout
        self.store.cursor()  # is the primary there? As long as no number is taken, a "no" is definite
        position = self.sequencer.take(Entry(self.node_id, (request_id,)), timeout)
        self.step("numbered")
        while True:
            try:
                self._wait_for_predecessors(position, deadline)
                self.step("waited")
                row = self._settle(position, self.node_id, request_id)
            except Conflict:
                raise
            except PghcError as error:  # the primary or ZooKeeper is away; the number is ours, and to try again is safe
                self._give_up_after(deadline, position, error)
                time.sleep(0.1)
            else:
                if row:
                    self.step("inserted")
                    return row
                self._give_up_after(deadline, position)

    def _wait_for_predecessors(self, position: int, deadline: float) -> None:
        while self.store.wait_for(position - 1, PATIENCE).position < position - 1:
            self._give_up_after(deadline, position)
            if self._completing.acquire(blocking=False):  # one thread is enough
                try:
                    settled = self.store.cursor().position  # what was notified may be older
                    self._complete(settled + 1, min(position - 1, settled + 64))
                finally:
                    self._completing.release()

    def _complete(self, first: int, last: int) -> None:
        """Insert what the writers of these positions should have inserted, in their place."""
        for position, (node_id, requests) in enumerate(self.sequencer.read(first, last), first):
            if len(requests) != 1:
                raise Conflict(f"{self.node_id}: log position {position} was written by another kind of writer")
            self._settle(position, node_id, requests[0])

    def _settle(self, position: int, node_id: str, request_id: str) -> Row | None:
        """Insert the entry of ``position``; None: it is not its turn here, another one has moved the cursor."""
        cursor = self.store.cursor()
        row = self.store.put(position, node_id, request_id, successor(cursor, node_id))
        if row is None and cursor.position >= position:
            raise Conflict(f"{self.node_id}: log position {position} belongs to a chain that was ended")
        return row

    def _give_up_after(self, deadline: float, position: int, cause: Exception | None = None) -> None:
        if time.monotonic() > deadline:
            raise Indefinite(
                f"{self.node_id}: log position {position} is taken, but entries before it have not arrived in time",
                "It will be in the chain once they do. Retry with the same request id to see it",
                node=self.node_id,
            ) from cause

    def close(self) -> None:
        self._truncation.close()
        self.store.close()
        self.sequencer.close()
