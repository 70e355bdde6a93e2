"""What was seen, as a stream of small events of which the last minutes are kept. Pure but for its lock.

An event is a dictionary: ``k`` its kind, ``t`` when, in milliseconds since 1970 by the clock of who says so.
=======  ===========================================================================================================
row      region ``r`` has entry ``n`` of node ``d`` with hash ``h`` since ``t``, by its server's own time if ``s``; a
         client took it at ``a``, it was committed at ``c``, its log position is ``p``, and it came by ``o``: it was
         written "here", or came by the "mesh", or from the "log"
num      ZooKeeper had agreed on log position ``p`` at ``t``
at       server ``v`` has every entry up to ``w``, and ``m`` is the greatest that it has
up       server ``v`` is ``s``: running, paused, stopped, unreachable; ``d`` says more, such as leader
link     what goes from region ``a`` to ``b`` takes ``ms``; the link is ``s``: open, cut, reset
trip     measured: from ``a`` to ``b`` and back in ``ms``
chain    another chain was begun, at log position ``c``
bad      in region ``r`` the link of entry ``n`` does not hold: ``x`` is the checker's sentence
rivals   several entries claim place ``n``: ``rows`` by region, ``x`` the checker's sentence
verdict  ``v`` true: valid up to ``n``; false: ``n`` offends and ``x`` says why; null: nothing to judge
run      a run of the page is ``s``: starting, running, done, failed; ``ok`` appends of writer ``w`` so far
did      ``x`` was done on the page; ``e`` says what went wrong
=======  ===========================================================================================================
"""

from __future__ import annotations

from collections import deque
from threading import Lock
from typing import Any

from msgspec.json import encode

Event = dict[str, Any]

#: Milliseconds, and events, that are kept.
SPAN, MOST = 5 * 60_000, 60_000
#: By what the latest event of a kind replaces those before it. Of other kinds what is too old is forgotten.
_STATE = {
    **dict.fromkeys(("at", "up", "role"), "v"),
    **dict.fromkeys(("link", "trip"), "ab"),
    **dict.fromkeys(("chain", "verdict", "run"), ""),
    "bad": "r",
}


class Stream:
    """The last minutes of events, numbered from 1. Any thread may `put`, and ask for what came `since`."""

    def __init__(self, span: float = SPAN, most: int = MOST) -> None:
        self._span, self._most = span, most
        self._lock = Lock()
        self._kept: deque[tuple[Event, bytes]] = deque()
        self._before: dict[tuple[Any, ...], bytes] = {}  # how things stood when the oldest kept event happened
        self.last = 0

    def put(self, *events: Event) -> None:
        with self._lock:
            for event in events:
                self._kept.append((event, encode(event)))
                self.last += 1
                if event["k"] == "chain":  # what was there of another chain says nothing of this one
                    self._before = {key: each for key, each in self._before.items() if key[0] not in ("bad", "at")}
            while self._kept and (
                len(self._kept) > self._most or self._kept[0][0]["t"] < self._kept[-1][0]["t"] - self._span
            ):
                old, text = self._kept.popleft()
                if (names := _STATE.get(old["k"])) is not None:
                    self._before[old["k"], *(old[name] for name in names)] = text

    def since(self, number: int) -> tuple[int, bytes]:
        """The number of the last event, and those after ``number`` as JSON objects with commas between them.

        To who is new, or has missed what is no longer kept, also how things stood before.
        """
        with self._lock:
            missing = self.last - number
            if missing <= len(self._kept) and number:
                newest = [self._kept[index - missing][1] for index in range(missing)] if missing else []
                return self.last, b",".join(newest)
            return self.last, b",".join([*self._before.values(), *(text for _, text in self._kept)])
