"""Writer 1: every region believes that it is alone.

The next number and the hash before it come from the region's own database. Two regions that append at the same time
both see the same last entry, so both add an entry under the same number after it: the chain forks.
"""

from __future__ import annotations

import time

from pghc.chain import Row, successor
from pghc.errors import Conflict
from pghc.store import Store
from pghc.topology import View
from pghc.writers import Base, Step, no_step


class Naive(Base):
    steps = ("read", "inserted")

    def __init__(self, view: View, step: Step = no_step) -> None:
        self.store = Store(view)
        self.node_id = self.store.node
        self.step = step

    def append(self, request_id: str, timeout: float = 10.0) -> Row:
        deadline = time.monotonic() + timeout
        while True:
            row = successor(self.store.last(), self.node_id)
            self.step("read")
            try:
                self.store.insert(row, request_id)
            except Conflict:  # another entry took the number here, in this region: look again
                if time.monotonic() > deadline:
                    raise
            else:
                self.step("inserted")
                return row

    def close(self) -> None:
        self.store.close()
