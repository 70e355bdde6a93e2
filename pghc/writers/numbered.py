"""Writer 2: a number from consensus, and no waiting.

ZooKeeper gives each append a number of its own, so nothing forks. But a number orders events; it does not make you see
them: the entry before may still be on its way from another region, and then the hash is linked to the wrong one.
"""

from __future__ import annotations

import time
from contextlib import ExitStack

from pghc.chain import ROOT, Row, link
from pghc.sequencer import Entry, Sequencer, bounded, canonical
from pghc.store import Store
from pghc.topology import View
from pghc.writers import Base, Step, no_step, sent


class Numbered(Base):
    steps = ("numbered", "inserted")

    def __init__(self, view: View, step: Step = no_step) -> None:
        self.view, self.step = view, step
        with ExitStack() as stack:
            self.store = stack.enter_context(Store(view))
            self.sequencer = stack.enter_context(Sequencer(view))
            self.store.follow(self.sequencer.client)
            self.base = self.store.cursor().chain  # numbers of the chain count from the log position at which it began
            self._resources = stack.pop_all()

    def append(self, request_id: str, timeout: float = 10.0) -> Row:
        request_id, deadline = canonical(request_id), time.monotonic() + bounded(timeout)
        self.base = self.store.cursor(timeout).chain
        self.join(self.view, self.base, deadline - time.monotonic())
        position = self.sequencer.take(Entry(self.node_id, (request_id,)), deadline - time.monotonic())
        number = position - self.base
        with sent(self.node_id, f"insert entry {number}, whose number is taken"):
            self.step("numbered")
            last = self.store.last(deadline - time.monotonic())  # whichever is here
            row = Row(number, self.node_id, link(number, self.node_id, last.hash if last else ROOT))
            self.store.insert(row, request_id, self.base, deadline - time.monotonic())
            self.step("inserted")
        return row

    def _ordering(self, _view: View, chain: int, timeout: float) -> str:
        return self.sequencer.ordering(chain, self.ordering, timeout)
