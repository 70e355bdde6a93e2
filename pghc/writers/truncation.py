"""The log's upkeep: each region reports how far it has come, and what all regions have settled is truncated."""

from __future__ import annotations

import threading

from pghc.errors import PghcError
from pghc.sequencer import Sequencer
from pghc.store import Store

EVERY_SECONDS = 2.0


class Truncation:
    """A thread that reports this region's cursor and truncates the log below the lowest of all regions."""

    def __init__(self, store: Store, sequencer: Sequencer) -> None:
        self._store, self._sequencer = store, sequencer
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name=f"truncation {store.node}", daemon=True)
        self._thread.start()

    def close(self) -> None:
        self._stop.set()
        self._thread.join(timeout=2)

    def _run(self) -> None:
        reported = -1
        while not self._stop.wait(EVERY_SECONDS):
            try:
                position = self._store.cursor().position
                if position != reported:
                    self._sequencer.truncate(self._sequencer.applied(position))
                    reported = position
            except PghcError:
                pass  # a server is away: appends tell so, and the next round tries again
