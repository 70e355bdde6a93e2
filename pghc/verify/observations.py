"""What a history says, in the form in which the checker needs it: appends, sessions, chains. Pure.

There may be millions of appends, so what became of them stands in columns, and chains that agree are kept once.
"""

from __future__ import annotations

from array import array
from bisect import bisect_left
from collections.abc import Iterator, Mapping
from operator import eq

from pghc.chain import Row
from pghc.errors import BadInput
from pghc.verify.hashchain import Walk
from pghc.verify.history import Event, Final
from pghc.verify.verdict import Findings

NEVER = (1 << 63) - 1
ALWAYS = -NEVER
#: More invocations than can ever fail.
FOR_GOOD = 1 << 32

#: Process, region and node of an event.
Who = tuple[str, str, str | None]


class Appends:
    """What became of each append, in columns, because there may be millions."""

    def __init__(self) -> None:
        self.index: dict[str, int] = {}
        self.invoked, self.acked, self.zk_id = array("q"), array("q"), array("q")
        #: Invocations less failures: an append that was not acknowledged is indefinite while this is above 0.
        self.open = array("q")
        #: Who asked first, and who was told first, as numbers of `who`.
        self.asker, self.told = array("l"), array("l")
        self.who: dict[Who, int] = {}

    def __len__(self) -> int:
        return len(self.invoked)

    def new(self, request: str, event: Event) -> int:
        """The number of an append that had not been heard of."""
        number = self.index[request] = len(self.invoked)
        self.invoked.append(ALWAYS)
        self.acked.append(NEVER)
        self.zk_id.append(0)
        self.open.append(0)
        by = self.by(event)
        self.asker.append(by)
        self.told.append(by)
        return number

    def by(self, event: Event) -> int:
        return self.who.setdefault((event.process, event.region, event.node), len(self.who))

    def acknowledged(self, number: int) -> bool:
        return self.acked[number] != NEVER

    def indefinite(self, number: int) -> bool:
        return self.acked[number] == NEVER and self.open[number] > 0

    def foreign(self, number: int) -> bool:
        """Only a table of requests speaks of it, no client."""
        return self.invoked[number] == ALWAYS and self.acked[number] == NEVER and self.open[number] == 0


class Session:
    """What a process has been told so far: the highest entry of its own, the highest it has read, and when."""

    __slots__ = ("append", "appends", "own", "own_time", "reads", "seen", "seen_time", "told")

    def __init__(self) -> None:
        self.own = self.seen = self.own_time = self.seen_time = 0
        #: The append without request id that is open.
        self.append = -1
        #: What is under way, by request id: how many attempts, and when the first was invoked.
        self.appends: dict[str | None, list[int]] = {}
        self.reads: dict[str | None, list[int]] = {}
        #: Of reads under way: own, own_time, seen and seen_time when the first was invoked.
        self.told: dict[str | None, tuple[int, int, int, int]] = {}


class Requests:
    """A region's table of requests: the numbers of its appends, and the entry of each."""

    def __init__(self) -> None:
        self.numbers, self.zk_ids = array("l"), array("q")

    def feed(self, event: Event, appends: Appends) -> None:
        requests = event.value.requests
        numbers = [appends.index.get(request, -1) for request, _ in requests]
        if -1 in numbers:
            numbers = [
                appends.new(request, event) if (number := appends.index.get(request, -1)) < 0 else number
                for request, _ in requests
            ]
        self.numbers.extend(numbers)
        self.zk_ids.extend(zk_id for _, zk_id in requests)

    def pairs(self) -> Iterator[tuple[int, int]]:
        return zip(self.numbers, self.zk_ids, strict=True)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Requests) and (self.numbers, self.zk_ids) == (other.numbers, other.zk_ids)

    __hash__ = None  # type: ignore[assignment]  # it grows


class RegionChain:
    """A region's chain at the end: the rows that are not what was known of their place, and the walk along it."""

    def __init__(self, findings: Findings, event: Event) -> None:
        self.region, self.node = event.region, event.node
        self.caught_up, self.alone = event.value.caught_up, event.value.alone
        self.walk = Walk(findings, self.region, lagging=not self.caught_up)
        self.odd: dict[int, list[Row]] = {}
        self.requests = None if event.value.requests is None else Requests()
        #: Whether the last line has been heard, and whether all links hold and all rows are the known ones.
        self.whole, self.sound = False, True

    def feed(self, final: Final, known: dict[int, Row], proven: int) -> list[Row]:
        """Takes the next rows; gives those that differ from what was known of their place.

        ``proven``: every link between the known rows up to there has been recomputed.
        """
        held = final.caught_up, final.alone, final.requests is None
        if held != (self.caught_up, self.alone, self.requests is None):
            what = "requests, caught_up, alone"
            raise BadInput(f"the lines of {self.region}'s final do not agree on what they hold: {what}")
        rows, at = final.rows, self.walk.at
        self.whole = not final.more
        if not rows:
            return []
        zk_ids = [row[0] for row in rows]
        regular = zk_ids == [*range(at + 1, at + 1 + len(rows))]
        as_known = regular and all(map(eq, map(known.get, zk_ids), rows))
        if as_known and self.sound and zk_ids[-1] <= proven:
            self.walk.skip(rows)
            return []
        self.sound = self.walk.feed(rows) and self.sound
        others = []
        for zk_id, row in () if as_known else zip(zk_ids, rows, strict=True):
            if zk_id < 1:
                continue
            first = known.setdefault(zk_id, row)
            if zk_id == at or first != row:
                self.sound = False
                self.odd.setdefault(zk_id, [first] if zk_id == at else []).append(row)
                if first != row:
                    others.append(row)
            at = zk_id
        return others

    def tells(self, zk_id: int) -> bool:
        """Whether it is known what stands in that place: not above the end of a final that is cut short."""
        return self.whole or zk_id <= self.walk.at

    def at(self, zk_id: int, known: Mapping[int, Row]) -> list[Row]:
        """The rows in that place."""
        if zk_id in self.odd:
            return self.odd[zk_id]
        return [] if self.lacks(zk_id) else [known[zk_id]]

    def lacks(self, zk_id: int) -> bool:
        """No row stands in that place."""
        if zk_id > self.walk.at:
            return True
        gaps = self.walk.gaps
        nearest = bisect_left(gaps, zk_id, key=lambda gap: gap[1])
        return nearest < len(gaps) and gaps[nearest][0] <= zk_id


class Observations:
    """All that was heard."""

    def __init__(self) -> None:
        self.appends = Appends()
        self.sessions: dict[str, Session] = {}
        self.chains: dict[tuple[str, str | None], RegionChain] = {}
        #: The row first heard of in each place, and any others.
        self.known: dict[int, Row] = {}
        self.rivals: dict[int, list[Row]] = {}
        #: Acknowledged rows that are not the known ones of their place, by append.
        self.rival_acks: dict[int, Row] = {}
        #: Every link between the known rows up to here has been recomputed.
        self.proven = 0
        self.regions: dict[str, None] = {}
        self.reads = 0
        self.start = NEVER
        #: A process that appended without request id.
        self.nameless = ""
        #: The highest entry read before the first append was invoked.
        self.inherited = 0
        #: Places in which a region that had not caught up lacks an entry that it may yet get, by region and node.
        self.awaited: dict[tuple[str, str | None], set[int]] = {}

    def row(self, number: int) -> Row:
        """The row with which an append was acknowledged."""
        rival = self.rival_acks.get(number)
        return self.known[self.appends.zk_id[number]] if rival is None else rival

    def rows(self, chain: RegionChain, zk_id: int) -> list[Row]:
        """The rows in that place of a region's chain."""
        return chain.at(zk_id, self.known)

    def tells(self, chain: RegionChain, zk_id: int) -> bool:
        """Whether a region's final says for good what stands in that place there."""
        return chain.tells(zk_id) and zk_id not in self.awaited.get((chain.region, chain.node), ())

    def holders(self, row: Row) -> list[str]:
        return [chain.region for chain in self.chains.values() if row in self.rows(chain, row.zk_id)]

    def unread(self) -> list[str]:
        """The regions whose chains were not read at the end."""
        read = {chain.region for chain in self.chains.values()}
        return [name for name in self.regions if name not in read]
