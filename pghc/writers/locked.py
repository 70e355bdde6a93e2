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

from pghc.chain import Row, successor
from pghc.errors import Conflict, Indefinite, PghcError, Unavailable
from pghc.sequencer import Mutex
from pghc.store import Store
from pghc.topology import View
from pghc.writers import Base, Step, no_step


class Locked(Base):
    steps = ("locked", "waited", "claimed", "inserted")
    ordered = True

    def __init__(self, view: View, step: Step = no_step) -> None:
        self.store = Store(view)
        self.node_id = self.store.node
        self.step = step
        start = self.store.cursor()
        self.base = start.position - start.zk_id
        self.mutex = Mutex(view, f"chain-{self.base}")

    def append(self, request_id: str, timeout: float = 10.0) -> Row:
        deadline = time.monotonic() + timeout
        with self.mutex.hold(timeout):
            self.step("locked")
            number, version = self.mutex.read()
            cursor = self.store.wait_for(self.base + number, deadline - time.monotonic())
            if cursor.zk_id < number:
                raise Unavailable(
                    f"{self.node_id}: entry {number} was claimed but has not arrived within {timeout:g} s",
                    "Its writer died, or replication stands still; with this writer nobody else may fill it",
                    node=self.node_id,
                )
            self.step("waited")
            row = successor(cursor, self.node_id)
            if cursor.zk_id > number or not self.mutex.claim(row.zk_id, version):
                raise Conflict(
                    f"{self.node_id}: the lock was lost while waiting; another holder took entry {row.zk_id}"
                )
            self.step("claimed")
            try:
                self.store.insert(row, request_id)
            except PghcError as error:
                raise Indefinite(f"{error.what}; its number {row.zk_id} is claimed", error.remedy) from error
            self.step("inserted")
            return row

    def close(self) -> None:
        self.store.close()
        self.mutex.close()
