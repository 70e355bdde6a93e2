"""Writer 2: a number from consensus, and no waiting.

ZooKeeper gives each append a number of its own, so nothing forks. But a number orders events; it does not make you see
them: the entry before may still be on its way from another region, and then the hash is linked to the wrong one.
"""

from __future__ import annotations

from pghc.chain import ROOT, Row, link
from pghc.errors import Indefinite, PghcError
from pghc.sequencer import Entry, Sequencer
from pghc.store import Store
from pghc.topology import View
from pghc.writers import Base, Step, no_step


class Numbered(Base):
    steps = ("numbered", "inserted")

    def __init__(self, view: View, step: Step = no_step) -> None:
        self.store = Store(view)
        self.sequencer = Sequencer(view)
        self.node_id = self.store.node
        self.step = step
        start = self.store.cursor()
        self.base = start.position - start.zk_id  # the log's positions go on when a chain begins anew

    def append(self, request_id: str, timeout: float = 10.0) -> Row:
        number = self.sequencer.take(Entry(self.node_id, (request_id,)), timeout) - self.base
        self.step("numbered")
        try:
            last = self.store.last()  # whichever is here
            row = Row(number, self.node_id, link(number, self.node_id, last.hash if last else ROOT))
            self.store.insert(row, request_id)
        except Indefinite:
            raise
        except PghcError as error:
            error.what += f"; number {number} stays empty"
            raise
        self.step("inserted")
        return row

    def close(self) -> None:
        self.store.close()
        self.sequencer.close()
