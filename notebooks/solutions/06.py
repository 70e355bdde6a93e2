# Lesson 06. Typical wrong answers: waiting for one's own position (never comes); a sleep (enough at times, not
# always); waiting for entry number - 1 but not noticing that the wait ran out.
from pghc import ROOT, Entry, Indefinite, Numbered, Row, link


class Mine(Numbered):
    ordered = True

    def append(self, request_id, timeout=10.0):
        number = self.sequencer.take(Entry(self.node_id, (request_id,)), timeout) - self.base
        before = self.base + number - 1
        if self.store.wait_for(before, timeout).position < before:
            raise Indefinite(f"entry {number - 1} has not arrived; number {number} is taken")
        last = self.store.last()
        row = Row(number, self.node_id, link(number, self.node_id, last.hash if last else ROOT))
        self.store.insert(row, request_id, self.base)
        return row
