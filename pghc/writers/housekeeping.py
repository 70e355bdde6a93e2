"""What a writer of the log does besides: it reports how far its region has come, truncates what all regions have
settled, keeps the log from filling ZooKeeper's memory, and notices a log that is not that of its database.

What a primary has acknowledged its replicas may lack, and it may be lost with its disk: then the log is what completes
the replica that takes its place. So a region reports only what is on a replica's disk, too.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable

from pghc.errors import PghcError
from pghc.sequencer import LOG_BYTES, Sequencer
from pghc.store import Cursor, Ends, Reader, Store
from pghc.terms import Term

EVERY_SECONDS = 1.0
STANDSTILL = 10  # turns without progress after which rows that nobody brings are settled, though nobody waits for them
REMEMBERED = 60  # turns: a replica that is farther behind reports later what it had
FEW = 200  # entries that are no reason to ask how much room they take


class Secured:
    """The log position up to which a region has everything on its primary and on a replica more. Pure.

    ``replicas``: without any, the primary alone counts.
    """

    def __init__(self, replicas: int) -> None:
        self.position = 0
        self._replicas = replicas
        self._ends: deque[tuple[int, int]] = deque()  # positions, and where the write-ahead log ended beyond them

    def look(self, now: Ends) -> int:
        """Learn how the primary stands; returns the position, which never falls; 0 while it is not known."""
        if not self._replicas:
            self.position = now.cursor.position
        elif len(self._ends) < REMEMBERED:
            self._ends.append((now.cursor.position, now.end))
        while self._ends and now.replicated is not None and self._ends[0][1] <= now.replicated:
            self.position = self._ends.popleft()[0]
        return self.position


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
        self._replicas = store.view.topology.region(store.view.region).replicas
        self._term: Term | None = None
        self._primary: Reader | None = None
        self._thread = threading.Thread(target=self._run, name=f"housekeeping {store.node}", daemon=True)
        self._thread.start()

    def close(self) -> None:
        self._stop.set()
        self._thread.join(timeout=2)
        if self._primary:
            self._primary.close()

    def _run(self) -> None:
        while not self._stop.wait(EVERY_SECONDS):
            try:
                self._turn()
            except PghcError as error:  # a server is away, most often: the next turn looks again
                self._tell(error)
            else:
                self._tell(None)

    def _begin(self, term: Term) -> None:
        """Look at the primary of ``term`` and at no other: the log hears of it in this term's name."""
        if self._primary:
            self._primary.close()
        self._term, self._secured = term, Secured(self._replicas)
        self._primary = Reader(self._store.view, term.node, connections=1)

    def _turn(self) -> None:
        term = self._log.term()
        if term != self._term:
            self._begin(term)
        assert self._primary
        now = self._primary.ends()
        before, self._cursor = self._cursor, now.cursor
        if self._log.ordering(self._cursor.chain) != "log":
            return  # its entries are numbered without regard to the log
        self._log.check(term.node, self._cursor.position)
        reports = self._log.report(self._secured.look(now), term)
        behind = min(reports, key=reports.__getitem__)
        self._log.truncate(reports[behind])
        tip = self._log.tip()
        size = self._log.size() if tip - reports[behind] > FEW else 0
        if size is not None:
            why = f"{size / 1e6:.0f} MB wait for {behind}, which has safely settled it up to position {reports[behind]}"
            self._allow(size < LOG_BYTES, why)
        self._standstill = self._standstill + 1 if before == self._cursor and self._cursor.position < tip else 0
        if self._standstill >= STANDSTILL:
            self._stalled(tip)
