"""Writer 1: every region believes that it is alone.

The next number and the hash before it come from the region's own database. Two regions that append at the same time
both see the same last entry, so both add an entry under the same number after it: the chain forks.
"""

from __future__ import annotations

import time
from contextlib import ExitStack

from pghc.chain import Row, successor
from pghc.errors import Conflict
from pghc.sequencer import bounded, canonical
from pghc.store import Store
from pghc.topology import View
from pghc.writers import Base, Step, no_step


class Naive(Base):
    steps = ("read", "inserted")

    def __init__(self, view: View, step: Step = no_step) -> None:
        self.view, self.step = view, step
        with ExitStack() as stack:
            self.store = stack.enter_context(Store(view))
            self._resources = stack.pop_all()

    def append(self, request_id: str, timeout: float = 10.0) -> Row:
        request_id, deadline = canonical(request_id), time.monotonic() + bounded(timeout)
        while True:
            chain = self.store.cursor(deadline - time.monotonic()).chain
            self.join(self.view, chain, deadline - time.monotonic())
            row = successor(self.store.last(deadline - time.monotonic()), self.node_id)
            self.step("read")
            try:
                self.store.insert(row, request_id, chain, deadline - time.monotonic())
            except Conflict:  # another entry took the number here, in this region: look again
                if time.monotonic() > deadline:
                    raise
            else:
                self.step("inserted")
                return row
