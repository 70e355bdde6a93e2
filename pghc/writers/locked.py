"""Writer 3: a distributed lock around read, hash and insert.

Only the holder of the lock may append. It learns the last number from ZooKeeper, waits until that entry is in its own
region, claims the next number and inserts. Correct while nobody fails, and slow: each append pays for the hand-over of
the lock and for the replication between two holders, one after the other. A holder that dies keeps everyone waiting
until its session ends; one that dies between claim and insert leaves a number that nobody fills, and appends stop for
good.

The lock is kazoo's, the recipe of ZooKeeper's documentation. The claim is a compare-and-set, so a holder that slept
past the end of its session cannot claim a number a second time (a fencing token, Kleppmann, 2016).
"""

from __future__ import annotations

import time
from contextlib import ExitStack

from pghc.chain import Row, successor
from pghc.errors import Conflict, Unavailable
from pghc.mutex import Mutex
from pghc.sequencer import bounded, canonical
from pghc.store import Store
from pghc.topology import View
from pghc.writers import Base, Step, no_step, sent


class Locked(Base):
    steps = ("locked", "waited", "claimed", "inserted")
    ordered = True

    def __init__(self, view: View, step: Step = no_step) -> None:
        self.view, self.step = view, step
        with ExitStack() as stack:
            self.store = stack.enter_context(Store(view))
            self.mutex = stack.enter_context(Mutex(view, "chain"))
            self.store.follow(self.mutex.client)
            self._resources = stack.pop_all()

    def append(self, request_id: str, timeout: float = 10.0) -> Row:
        request_id, deadline = canonical(request_id), time.monotonic() + bounded(timeout)
        base = self.store.cursor(timeout).chain
        self.join(self.view, base, deadline - time.monotonic())
        with self.mutex.hold(deadline - time.monotonic()):
            self.step("locked")
            number, version = self.mutex.read(base, deadline - time.monotonic())
            cursor = self.store.wait_for(base + number, deadline - time.monotonic())
            if cursor.zk_id < number:
                raise Unavailable(
                    f"{self.node_id}: entry {number} was claimed but has not arrived within {timeout:g} s",
                    "Its writer died, or replication stands still; with this writer nobody else may fill it",
                    node=self.node_id,
                )
            self.step("waited")
            row = successor(cursor, self.node_id)
            lost = f"{self.node_id}: the lock was lost while waiting; another holder took entry {row.zk_id}"
            if cursor.zk_id > number or cursor.chain != base:
                raise Conflict(lost, "Append again", node=self.node_id)
            if not self.mutex.claim(base, row.zk_id, version, deadline - time.monotonic()):
                raise Conflict(lost, "Append again", node=self.node_id)
            with sent(self.node_id, f"insert entry {row.zk_id}, whose number is claimed"):
                self.step("claimed")
                self.store.insert(row, request_id, base, deadline - time.monotonic())
                self.step("inserted")
            return row
