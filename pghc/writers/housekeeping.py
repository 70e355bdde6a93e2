"""What a writer of the log does besides: it reports how far its region has come, truncates what all regions have
settled, keeps the log from filling ZooKeeper's memory, and notices a log that is not that of its database.
"""

from __future__ import annotations

import threading
from collections.abc import Callable

from pghc.errors import PghcError
from pghc.sequencer import LOG_BYTES, Sequencer
from pghc.store import Cursor, Store

EVERY_SECONDS = 1.0
STANDSTILL = 10  # turns without progress after which rows that nobody brings are settled, though nobody waits for them
FEW = 200  # entries that are no reason to ask how much room they take


class Housekeeping:
    """A thread of a writer. ``allow`` hears whether there is room in the log, and else why not; ``tell`` what is wrong,
    or None; ``stalled`` the end of the log when the region has stood still for long while the log went on.
    """

    def __init__(
        self,
        store: Store,
        log: Sequencer,
        allow: Callable[[bool, str], None],
        tell: Callable[[PghcError | None], None],
        stalled: Callable[[int], None] = lambda _tip: None,
    ) -> None:
        self._store, self._log, self._allow, self._tell, self._stalled = store, log, allow, tell, stalled
        self._stop = threading.Event()
        self._standstill = 0
        self._cursor = Cursor()
        self._thread = threading.Thread(target=self._run, name=f"housekeeping {store.node}", daemon=True)
        self._thread.start()

    def close(self) -> None:
        self._stop.set()
        self._thread.join(timeout=2)

    def _run(self) -> None:
        while not self._stop.wait(EVERY_SECONDS):
            try:
                self._turn()
            except PghcError as error:  # a server is away, most often: the next turn looks again
                self._tell(error)
            else:
                self._tell(None)

    def _turn(self) -> None:
        before, self._cursor = self._cursor, self._store.cursor()
        if self._log.ordering(self._cursor.chain) != "log":
            return  # its entries are numbered without regard to the log
        self._log.check(self._store.node, self._cursor.position)
        reports = self._log.report(self._cursor.position)
        behind = min(reports, key=reports.__getitem__)
        self._log.truncate(reports[behind])
        tip = self._log.tip()
        size = self._log.size() if tip - reports[behind] > FEW else 0
        if size is not None:
            why = f"{size / 1e6:.0f} MB wait for {behind}, which has settled it up to position {reports[behind]}"
            self._allow(size < LOG_BYTES, why)
        self._standstill = self._standstill + 1 if before == self._cursor and self._cursor.position < tip else 0
        if self._standstill >= STANDSTILL:
            self._stalled(tip)
