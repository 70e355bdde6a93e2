"""What follows from the rows that the regions were seen to have: which entries are rivals, and up to where all is well.

Pure. A hash stands for everything before it: where all regions hold the same entry, and each region's links hold up to
there, they hold the same chain. So a few entries of many are enough, as long as they are the same ones everywhere.
"""

from __future__ import annotations

from collections.abc import Sequence

from pghc.chain import Row
from pghc.live.stream import Event
from pghc.verify.hashchain import fork
from pghc.verify.verdict import named

#: Places of which the entries are remembered, and rivals that are told of.
PLACES, RIVALS = 5_000, 200
#: Entries that a region is asked for at once to find the first that differs, and those after it that help to see it.
STRETCH, AROUND = 200, 24


def stride(more: int) -> int:
    """Which multiples of ``more`` new entries to look at; those of one stride are also those of a smaller one."""
    every = 1
    while more > 12 * every:
        every *= 4
    return every


class Evidence:
    """Takes what each region was seen to have, and says what is new. ``regions``: all of them."""

    def __init__(self, regions: Sequence[str]) -> None:
        self._regions = tuple(regions)
        self.chain = -1
        self._begin(-1)

    def _begin(self, chain: int) -> None:
        self.chain = chain
        self._places: dict[int, dict[str, Row]] = {}
        self._verified = dict.fromkeys(self._regions, 0)
        self._agreed = 0
        self._rivals: dict[int, int] = {}  # how many were told of, by place
        self._offence: tuple[int, str] | None = None
        self._said: tuple[object, ...] = ()
        self.wanted: tuple[int, int] | None = None  # places of which each region's entry would help

    def take(
        self, now: float, region: str, chain: int, rows: Sequence[Row], verified: int, broken: tuple[int, str] | None
    ) -> list[Event]:
        """What a region was seen to have at ``now``; returns events.

        ``verified``: its links were recomputed up to there; ``broken``: the first that did not hold, and the checker's
        sentence for it.
        """
        events: list[Event] = []
        if chain < self.chain:  # this region has not heard of the new chain yet
            return events
        if chain > self.chain:
            self._begin(chain)
            events.append({"k": "chain", "t": now, "c": chain})
        for row in rows:
            place = self._places.setdefault(row.zk_id, {})
            place[region] = row
            if len(set(place.values())) > 1:
                events += self._claims(now, row.zk_id, place)
            elif len(place) == len(self._regions) and not self._rivals:
                self._agreed = max(self._agreed, row.zk_id)
        self._verified[region] = max(self._verified[region], verified)
        if broken:
            events.append({"k": "bad", "t": now, "r": region, "n": broken[0], "x": broken[1]})
            self._offends(*broken)
        while len(self._places) > PLACES:
            del self._places[next(iter(self._places))]
        return events + self._verdict(now)

    def _claims(self, now: float, zk_id: int, place: dict[str, Row]) -> list[Event]:
        rows = tuple(dict.fromkeys(place.values()))
        if not self._rivals or zk_id < min(self._rivals):  # is it the first? All below are asked for
            low = self._agreed + 1
            self.wanted = max(low - AROUND, 1), min(zk_id, low + STRETCH) + AROUND
        if len(self._rivals) > RIVALS or self._rivals.get(zk_id) == len(rows):
            return []
        self._rivals[zk_id] = len(rows)
        where = {row: ", ".join(name for name, each in place.items() if each == row) for row in rows}
        sentence = fork(rows, "", [f"{named(row)} in the chain of {where[row]}" for row in rows]).explanation
        self._offends(zk_id, sentence)
        held = {name: row[1:] for name, row in place.items()}
        return [{"k": "rivals", "t": now, "n": zk_id, "x": sentence, "rows": held}]

    def _offends(self, zk_id: int, sentence: str) -> None:
        if self._offence is None or zk_id <= self._offence[0]:
            self._offence = zk_id, sentence

    def _verdict(self, now: float) -> list[Event]:
        valid_to = min(self._agreed, *self._verified.values())
        said: tuple[object, ...] = (False, *self._offence) if self._offence else (valid_to > 0 or None, valid_to, "")
        if said == self._said:
            return []
        self._said = said
        return [{"k": "verdict", "t": now, "v": said[0], "n": said[1], "x": said[2]}]
