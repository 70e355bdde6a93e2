"""Verdicts: whether a chain, or a whole history of clients, is as a total order must be. Pure.

`verify` judges the rows of one table, `check` a history (see `pghc.history`). Both give a `Verdict`: valid, invalid
with the first offending entries and what was expected there, or unknown. What they look for:

===================  ===========================================================================================
malformed            a zk_id below 1 or a node_id that is none
fork                 different entries claim one place
duplicate            one chain holds an entry twice
repeated             one append was acknowledged with two entries
shared               two appends were acknowledged with one entry
link                 a hash does not follow from the entry before
gap                  a number is missing
lost                 at the end an acknowledged append is missing in a region, or an entry that was read in all of them
diverged             regions disagree at the end
excess               more entries than appends: an append stands twice, or one stands that failed for certain
reordered            an append was acknowledged before another was invoked, and stands behind it
hole                 what a read returned is not a prefix: an entry is missing inside it
stale                a read is older than the position handed over with it
read-your-writes     a read lacks an append acknowledged to the same process before
monotonic-reads      a read is older than an earlier one of the same process
===================  ===========================================================================================

The session guarantees (the last two) bind a process whether or not it hands over a position; a client that wants none
takes a name of its own for each read. The chain carries no request ids, so which of two entries is the surplus one, or
which failed append stands after all, cannot be told: *excess* counts the places for which no acknowledged append
accounts. There may be as many as there are indefinite appends; the first beyond them is named. Entries that a read
showed before the first append was invoked belong to an earlier run.

Times are compared between processes only when they differ, so a coarse clock accuses nobody.
"""

from __future__ import annotations

from array import array
from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Iterator, Mapping
from functools import partial
from itertools import groupby, islice
from operator import eq

from pghc.chain import NODE_ID, ROOT, Row
from pghc.errors import BadInput
from pghc.verify.hashchain import Walk, fork, malformed, verify
from pghc.verify.history import Event, Final, Read
from pghc.verify.verdict import KINDS, Anomaly, Findings, Verdict, both, count, named

__all__ = ["KINDS", "Anomaly", "Verdict", "check", "verify"]

_NEVER = (1 << 63) - 1
_ALWAYS = -_NEVER
#: More invocations than can ever fail.
_FOR_GOOD = 1 << 32


def check(events: Iterable[Event], *, keep: int = 10) -> Verdict:
    """Judges a whole history; see the module for what it looks for.

    Each process's events must stand in the order in which they happened to it. A history without finals is judged on
    what clients were told. ``keep``: how many anomalies of each kind to explain. Raises `BadInput` for events that
    contradict each other as a record, such as a final whose rows do not ascend.
    """
    checker = _Checker(Findings(keep))
    checker.hear(events)
    return checker.close()


#: Process, region and node of an event.
_Who = tuple[str, str, str | None]


class _Appends:
    """What became of each append, in columns, because there may be millions."""

    def __init__(self) -> None:
        self.index: dict[str, int] = {}
        self.invoked, self.acked, self.zk_id = array("q"), array("q"), array("q")
        #: Invocations less failures: an append that was not acknowledged is indefinite while this is above 0.
        self.open = array("q")
        #: Who asked first, and who was told first, as numbers of `who`.
        self.asker, self.told = array("l"), array("l")
        self.who: dict[_Who, int] = {}

    def __len__(self) -> int:
        return len(self.invoked)

    def new(self, request: str, event: Event) -> int:
        """The number of an append that had not been heard of."""
        number = self.index[request] = len(self.invoked)
        self.invoked.append(_ALWAYS)
        self.acked.append(_NEVER)
        self.zk_id.append(0)
        self.open.append(0)
        by = self.by(event)
        self.asker.append(by)
        self.told.append(by)
        return number

    def by(self, event: Event) -> int:
        return self.who.setdefault((event.process, event.region, event.node), len(self.who))


class _Chain:
    """A region's chain at the end: the rows that are not what was known of their place, and the walk along it."""

    def __init__(self, findings: Findings, region: str, node: str | None) -> None:
        self.region, self.node = region, node
        self.walk = Walk(findings, region)
        self.odd: dict[int, list[Row]] = {}
        #: Whether the last line has been heard, and whether all links hold and all rows are the known ones.
        self.whole, self.sound = False, True

    def feed(self, final: Final, known: dict[int, Row], proven: int) -> list[Row]:
        """Takes the next rows; gives those that differ from what was known of their place.

        ``proven``: every link between the known rows up to there has been recomputed.
        """
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


class _Session:
    """What a process has been told so far: the highest entry of its own, the highest it has read, and when."""

    __slots__ = ("append", "own", "own_time", "reads", "seen", "seen_time")

    def __init__(self) -> None:
        self.own = self.seen = self.own_time = self.seen_time = 0
        #: The append without request id that is open.
        self.append = -1
        #: Reads under way by request id: how many, and what the process had been told when the first was invoked.
        self.reads: dict[str | None, list[int]] = {}


class _Checker:
    def __init__(self, findings: Findings) -> None:
        self.findings = findings
        self.appends = _Appends()
        self.sessions: dict[str, _Session] = {}
        self.chains: dict[tuple[str, str | None], _Chain] = {}
        #: The row first heard of in each place, and any others.
        self.known: dict[int, Row] = {}
        self.rivals: dict[int, list[Row]] = {}
        #: Acknowledged rows that are not the known ones of their place, by append.
        self.rival_acks: dict[int, Row] = {}
        #: Every link between the known rows up to here has been recomputed.
        self.proven = 0
        self.regions: dict[str, None] = {}
        self.reads = 0
        self.start = _NEVER
        #: The highest entry read before the first append was invoked.
        self.inherited = 0
        self._node_ids: set[str] = set()

    def hear(self, events: Iterable[Event]) -> None:
        sessions, appends = self.sessions, self.appends
        index, opened, invoked = appends.index, appends.open, appends.invoked
        for event in events:
            when, process, _, kind, op, request, _, _, _ = event
            if when < self.start:
                self.start = when
            if kind == "final":
                self._final(event)
                continue
            session = sessions.get(process)
            if session is None:
                session = sessions[process] = _Session()
                self.regions.setdefault(event.region)
            if op == "read":
                self._read(event, session)
                continue
            if request is None:
                number = self._unnamed(event, session)
            elif (number := index.get(request, -1)) < 0:
                number = appends.new(request, event)
            if kind == "invoke":
                opened[number] += 1
                if not _ALWAYS < invoked[number] <= when:
                    invoked[number] = when
            elif kind == "ok":
                self._acknowledged(number, event, session)
            elif kind == "info":
                opened[number] += _FOR_GOOD
            else:
                opened[number] -= 1

    # What clients were told

    def _unnamed(self, event: Event, session: _Session) -> int:
        """The number of an append without request id: its process has no other open at the time."""
        number, session.append = session.append, -1
        invoke = event.type == "invoke"
        if invoke and number >= 0:
            raise BadInput(f"{event.process} invokes an append while another is open", "Give them request ids.")
        if number < 0:
            number = self.appends.new(f"{event.process}, append {len(self.appends)}", event)
        if invoke:
            session.append = number
        return number

    def _acknowledged(self, number: int, event: Event, session: _Session) -> None:
        appends, row = self.appends, event.value
        if not isinstance(row, Row):
            raise BadInput(f"an append acknowledged to {event.process} at {event.time} carries no row")
        zk_id = row.zk_id
        if not self._witness(row, event.region):
            appends.open[number] += _FOR_GOOD
            return
        if zk_id > session.own:
            session.own, session.own_time = zk_id, event.time
        if appends.acked[number] == _NEVER:
            appends.acked[number], appends.zk_id[number] = event.time, zk_id
            appends.told[number] = appends.by(event)
            first = self.known[zk_id]
            if first is not row and first != row:
                self.rival_acks[number] = row
        elif self._row(number) != row:
            first = self._row(number)
            place = max(first.zk_id, zk_id)
            self.findings.add("repeated", place, partial(self._repeated, number, first, event))
        elif event.time < appends.acked[number]:
            appends.acked[number] = event.time

    def _witness(self, row: Row, where: str) -> bool:
        """Remembers what stands in a place; False for a row that can stand in none."""
        zk_id, node_id, _ = row
        if zk_id < 1 or node_id not in self._node_ids:
            if zk_id > 0 and NODE_ID.fullmatch(node_id):
                self._node_ids.add(node_id)
            else:
                self.findings.add("malformed", zk_id, partial(malformed, row, where))
            if zk_id < 1:
                return False
        first = self.known.setdefault(zk_id, row)
        if first is not row and first != row:
            self._rival(row)
        return True

    def _rival(self, row: Row) -> None:
        rivals = self.rivals.setdefault(row.zk_id, [])
        if row not in rivals:
            rivals.append(row)

    def _row(self, number: int) -> Row:
        """The row with which an append was acknowledged."""
        rival = self.rival_acks.get(number)
        return self.known[self.appends.zk_id[number]] if rival is None else rival

    def _read(self, event: Event, session: _Session) -> None:
        if event.type == "invoke":
            told = [0, session.own, session.own_time, session.seen, session.seen_time]
            session.reads.setdefault(event.request_id, told)[0] += 1
            return
        under_way = session.reads.get(event.request_id)
        if under_way:
            under_way[0] -= 1
            if not under_way[0]:
                del session.reads[event.request_id]
        if event.type != "ok":
            return
        read = event.value
        if not isinstance(read, Read):
            raise BadInput(f"a read of {event.process} at {event.time} carries no watermark")
        self.reads += 1
        add = self.findings.add
        at, below = read.watermark, 0
        for row in read.rows:
            if not self._witness(row, event.region):
                continue
            if row.zk_id < below:
                raise BadInput(f"the rows that {event.process} read at {event.time} do not ascend")
            expected = (below or read.watermark) + 1
            if row.zk_id > expected:
                add("hole", expected, partial(self._hole, event, expected, row), anew=True)
            below = row.zk_id
            at = max(at, below)
        if at < read.position:
            add("stale", read.position, partial(self._stale, event, at), anew=True)
        if under_way and at < under_way[1]:
            add("read-your-writes", under_way[1], partial(self._own, event, at, *under_way[1:3]), anew=True)
        if under_way and at < under_way[3]:
            add("monotonic-reads", under_way[3], partial(self._back, event, at, *under_way[3:5]), anew=True)
        if at > session.seen:
            session.seen, session.seen_time = at, event.time
        if not len(self.appends):
            self.inherited = max(self.inherited, at)

    # What stood there at the end

    def _final(self, event: Event) -> None:
        if not isinstance(event.value, Final):
            raise BadInput(f"the final of {event.region} at {event.time} carries no rows")
        key = event.region, event.node
        chain = self.chains.get(key)
        if chain is None:
            chain = self.chains[key] = _Chain(self.findings, event.region, event.node)
            self.regions.setdefault(event.region)
        for row in chain.feed(event.value, self.known, self.proven):
            self._rival(row)
        if chain.sound:
            self.proven = max(self.proven, chain.walk.at)

    # The judgement

    def close(self) -> Verdict:
        appends, chains = self.appends, list(self.chains.values())
        order = sorted((n for n in range(len(appends)) if appends.acked[n] != _NEVER), key=appends.zk_id.__getitem__)
        if not chains:
            self._links_of_what_was_told()
        for zk_id, rivals in self.rivals.items():
            self.findings.add("fork", zk_id, partial(self._claims, zk_id, rivals))
        accounted = self._find_shared(order)
        self._find_lost(order)
        self._find_diverged()
        self._find_reordered(order)

        indefinite = sum(1 for n in range(len(appends)) if appends.acked[n] == _NEVER and appends.open[n] > 0)
        unaccounted = sum(zk_id > self.inherited for zk_id in self.known) - accounted
        if unaccounted > indefinite:
            rows = tuple(islice(self._unaccounted(order), indefinite + 1))
            explain = partial(self._excess, rows, unaccounted)
            self.findings.add("excess", rows[-1].zk_id, explain, times=unaccounted - indefinite)

        checked = {
            "appends": len(order),
            "indefinite": indefinite,
            "failed": len(appends) - len(order) - indefinite,
            "reads": self.reads,
            "chains": len(chains),
            "entries": len(self.known) + sum(map(len, self.rivals.values())),
            "links": sum(chain.walk.links for chain in chains),
        }
        unchecked = []
        if not chains:
            unchecked.append("lost appends and regions that disagree, as no chain was read at the end")
        elif missing := [name for name in self.regions if name not in {chain.region for chain in chains}]:
            unchecked.append(f"the chain of {', '.join(missing)}, which was not read at the end")
        cut = [chain for chain in chains if not chain.whole]
        unchecked += [f"the chain of {one.region} above entry {one.walk.at}, where its final is cut" for one in cut]
        if self.findings.counts:
            return self.findings.verdict(checked, tuple(unchecked))
        if not self.known:
            reason = "nothing was written: no append was acknowledged and no chain holds an entry"
            return Verdict(None, reason, checked=checked, unchecked=tuple(unchecked))
        if cut:
            reason = f"the final chain of {cut[0].region} is incomplete, and what there is of it holds no anomaly"
            return Verdict(None, reason, checked=checked, unchecked=tuple(unchecked))
        parts = []
        if order:
            parts.append(f"{count(len(order), 'acknowledged append')} in real-time order, each in its place once")
        if chains:
            same = "agree" if len(chains) > 1 else "stands"
            length = count(chains[0].walk.entries, "entry")
            parts.append(f"{count(len(chains), 'chain')} of {length} {same}, every link holds")
        if self.reads:
            parts.append(f"{count(self.reads, 'read')} saw a prefix and went never back")
        if others := len(self.known) - len(order):
            parts.append(f"{count(others, 'entry')} of indefinite appends or an earlier run")
        return Verdict(True, "; ".join(parts), checked=checked, unchecked=tuple(unchecked))

    def _links_of_what_was_told(self) -> None:
        below = Row(0, "", ROOT)
        for zk_id in sorted(self.known):
            row = self.known[zk_id]
            if zk_id == below.zk_id + 1:
                Walk(self.findings, "", below if zk_id > 1 else None).feed((row,))
            below = row

    def _find_shared(self, order: list[int]) -> int:
        """Also gives the number of places, above the inherited ones, that acknowledged appends account for."""
        places = 0
        for zk_id, group in groupby(order, self.appends.zk_id.__getitem__):
            first: dict[Row, int] = {}
            for number in group:
                other = first.setdefault(self._row(number), number)
                if other != number:
                    self.findings.add("shared", zk_id, partial(self._shared, other, number))
            places += zk_id > self.inherited
        return places

    def _find_lost(self, order: list[int]) -> None:
        zk_id_of = self.appends.zk_id
        for chain in self.chains.values():
            top = chain.walk.at
            regular = not (chain.odd or chain.walk.gaps or self.rival_acks)  # then only what lies above can be missing
            for number in order[bisect_right(order, top, key=zk_id_of.__getitem__) :] if regular else order:
                zk_id = zk_id_of[number]
                if chain.tells(zk_id) and self._row(number) not in chain.at(zk_id, self.known):
                    self.findings.add("lost", zk_id, partial(self._lost, number))
        chains = self.chains.values()
        lowest = 0 if any(chain.walk.gaps for chain in chains) else min((chain.walk.at for chain in chains), default=0)
        for zk_id in [zk_id for zk_id in self.known if zk_id > lowest] if chains else ():
            if all(chain.tells(zk_id) and chain.lacks(zk_id) for chain in chains):
                self.findings.add("lost", zk_id, partial(self._gone, self.known[zk_id]))

    def _find_diverged(self) -> None:
        chains = list(self.chains.values())
        if len({(chain.walk.at, tuple(chain.walk.gaps), bool(chain.odd)) for chain in chains}) < 2 and not (
            chains and chains[0].odd
        ):
            return
        for zk_id in sorted(self.known):
            if len({frozenset(one.at(zk_id, self.known)) for one in chains if one.tells(zk_id)}) > 1:
                self.findings.add("diverged", zk_id, partial(self._diverged, zk_id))

    def _unaccounted(self, order: list[int]) -> Iterator[Row]:
        """The entries whose places no acknowledged append accounts for, ascending; not those of an earlier run."""
        told = set(map(self.appends.zk_id.__getitem__, order))
        return (self.known[zk_id] for zk_id in sorted(self.known) if zk_id > self.inherited and zk_id not in told)

    def _find_reordered(self, order: list[int]) -> None:
        appends, earliest, earliest_number = self.appends, _NEVER, -1
        for _, group in groupby(reversed(order), appends.zk_id.__getitem__):
            numbers = list(group)
            for number in numbers:
                if earliest < appends.invoked[number]:
                    explain = partial(self._reordered, earliest_number, number)
                    self.findings.add("reordered", appends.zk_id[number], explain)
            for number in numbers:
                if appends.acked[number] < earliest:
                    earliest, earliest_number = appends.acked[number], number

    # What to say of an anomaly

    def _when(self, time: int) -> str:
        return f"{(time - self.start) / 1e9:.6f} s"

    def _events(self, number: int) -> tuple[Event, ...]:
        """The events of an acknowledged append."""
        appends = self.appends
        request, who = list(appends.index)[number], list(appends.who)
        (asker, home, node), (told, region, server) = who[appends.asker[number]], who[appends.told[number]]
        ok = Event(appends.acked[number], told, region, "ok", "append", request, server, self._row(number))
        if appends.invoked[number] == _ALWAYS:
            return (ok,)
        return Event(appends.invoked[number], asker, home, "invoke", "append", request, node), ok

    def _process(self, number: int) -> str:
        return list(self.appends.who)[self.appends.told[number]][0]

    def _first_told(self, row: Row) -> int:
        """The first append that was acknowledged with this entry, or -1."""
        number = -1
        try:
            while number < 0 or self._row(number) != row:
                number = self.appends.zk_id.index(row.zk_id, number + 1)
        except ValueError:
            return -1
        return number

    def _holders(self, row: Row) -> list[str]:
        return [chain.region for chain in self.chains.values() if row in chain.at(row.zk_id, self.known)]

    def _claims(self, zk_id: int, rivals: list[Row]) -> Anomaly:
        def said(row: Row) -> str:
            number = self._first_told(row)
            words = [f"acknowledged to {self._process(number)}"] if number >= 0 else []
            words += [f"in the chain of {', '.join(holders)}"] if (holders := self._holders(row)) else []
            return f"{named(row)}, {' and '.join(words) or 'returned by a read'}"

        rows = (self.known[zk_id], *rivals)
        return fork(rows, "", [said(row) for row in rows])

    def _repeated(self, number: int, first: Row, event: Event) -> Anomaly:
        again = event.value
        return Anomaly("repeated", max(first.zk_id, again.zk_id), event.region, "one entry for one append",
                       f"entries {first.zk_id} and {again.zk_id}",
                       f"append {event.request_id} was acknowledged with {named(first)} and again with {named(again)}",
                       (first, again), (*self._events(number), event))  # fmt: skip

    def _shared(self, one: int, other: int) -> Anomaly:
        row, events = self._row(one), (*self._events(one), *self._events(other))
        requests = " and ".join(str(self._events(number)[-1].request_id) for number in (one, other))
        return Anomaly("shared", row.zk_id, "", "one append for one entry", "two appends",
                       f"{named(row)} was acknowledged to two appends, {requests}", (row,), events)  # fmt: skip

    def _lost(self, number: int) -> Anomaly:
        row = self._row(number)
        without, found = [], []
        for chain in self.chains.values():
            there = chain.at(row.zk_id, self.known)
            if row not in there and chain.tells(row.zk_id):
                without.append(chain.region)
                found += [one for one in there if one not in found]
        stands = f", where {both(map(named, found))} stands" if found else ""
        return Anomaly("lost", row.zk_id, ", ".join(without), named(row), both(map(named, found)) or "nothing",
                       f"{named(row)} was acknowledged to {self._process(number)} at "
                       f"{self._when(self.appends.acked[number])} and is missing in {', '.join(without)}{stands}",
                       (row, *found), self._events(number))  # fmt: skip

    def _gone(self, row: Row) -> Anomaly:
        why = f"{named(row)} was shown to a client, and at the end is missing in every region"
        return Anomaly("lost", row.zk_id, "", named(row), "nothing", why, (row,))

    def _diverged(self, zk_id: int) -> Anomaly:
        there = [(one.region, one.at(zk_id, self.known)) for one in self.chains.values() if one.tells(zk_id)]
        found = [f"{region} has {both(map(named, rows)) or 'nothing'}" for region, rows in there]
        rows = dict.fromkeys(row for _, rows in there for row in rows)
        return Anomaly("diverged", zk_id, "", "the same entry in every region", "; ".join(found),
                       f"the regions disagree about entry {zk_id}: {', '.join(found)}", tuple(rows))  # fmt: skip

    def _excess(self, rows: tuple[Row, ...], unaccounted: int) -> Anomaly:
        possible = count(len(rows) - 1, "append")
        return Anomaly("excess", rows[-1].zk_id, "", f"at most {possible} besides those acknowledged",
                       f"{count(unaccounted, 'entry')} besides",
                       f"up to {named(rows[-1])} stand {count(len(rows), 'entry')} that no acknowledged append accounts"
                       f" for, but only {possible} may have happened besides: an append stands twice, or one stands "
                       "that failed for certain", rows[-10:])  # fmt: skip

    def _reordered(self, earlier: int, later: int) -> Anomaly:
        one, other = self._row(earlier), self._row(later)
        invoked, acked = self._when(self.appends.invoked[later]), self._when(self.appends.acked[earlier])
        return Anomaly("reordered", other.zk_id, "", f"a zk_id above {one.zk_id}", f"zk_id {other.zk_id}",
                       f"{named(other)} was invoked by {self._process(later)} at {invoked}, after {named(one)} had "
                       f"been acknowledged to {self._process(earlier)} at {acked}, and yet stands before it",
                       (other, one), (*self._events(earlier), *self._events(later)))  # fmt: skip

    def _hole(self, event: Event, missing: int, row: Row) -> Anomaly:
        return Anomaly("hole", missing, event.region, f"entry {missing}", named(row),
                       f"what {event.process} read from {event.node or event.region} at {self._when(event.time)} is no "
                       f"prefix: it shows {named(row)} without entry {missing}", (row,), (event,))  # fmt: skip

    def _stale(self, event: Event, at: int) -> Anomaly:
        position = event.value.position
        return self._late("stale", event, at, position, f"although it handed over position {position}")

    def _own(self, event: Event, at: int, own: int, when: int) -> Anomaly:
        why = f"although entry {own} had been acknowledged to it at {self._when(when)}"
        return self._late("read-your-writes", event, at, own, why)

    def _back(self, event: Event, at: int, seen: int, when: int) -> Anomaly:
        why = f"although it had read up to {seen} at {self._when(when)}"
        return self._late("monotonic-reads", event, at, seen, why)

    def _late(self, kind: str, event: Event, at: int, expected: int, why: str) -> Anomaly:
        return Anomaly(kind, expected, event.region, f"entries up to {expected}", f"entries up to {at}",
                       f"{event.process} read from {event.node or event.region} at {self._when(event.time)} no further "
                       f"than entry {at}, {why}", event.value.rows[-1:], (event,))  # fmt: skip
