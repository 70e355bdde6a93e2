"""What the verifier looks for, word for word as defined and with no thought of speed: the reference in its tests.

Each function gives the anomalies of one kind as a list of places (zk_ids), one for each. Nothing here is shared with
the verifier but the kinds' names; links are recomputed with hashlib.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from hashlib import md5
from itertools import combinations

from pghc.chain import Row
from pghc.verify.history import Event


def follows(row: Row, hash_before: str) -> bool:
    return md5(f"{row.zk_id}{row.node_id}{hash_before}".encode(), usedforsecurity=False).hexdigest() == row.hash


# One chain


def malformed(rows: Iterable[Row]) -> set[int]:
    return {row.zk_id for row in rows if row.zk_id < 1 or re.fullmatch("[a-z][a-z0-9-]{0,30}", row.node_id) is None}


def stand(rows: Iterable[Row]) -> set[Row]:
    """Those that can stand in a place."""
    return {row for row in rows if row.zk_id >= 1}


def fork(rows: Iterable[Row]) -> set[int]:
    return {one.zk_id for one, other in combinations(stand(rows), 2) if one.zk_id == other.zk_id}


def duplicate(rows: list[Row]) -> set[int]:
    return {row.zk_id for row in rows if row.zk_id >= 1 and rows.count(row) > 1}


def gap(rows: Iterable[Row], start: int = 1) -> set[int]:
    """The first number of each run of missing ones."""
    return {run[0] for run in runs_of_missing(rows, start)}


def runs_of_missing(rows: Iterable[Row], start: int = 1) -> list[range]:
    there = {row.zk_id for row in stand(rows)}
    missing = set(range(start, max(there, default=0))) - there
    first = sorted(number for number in missing if number - 1 not in missing)
    return [range(one, min(n for n in there if n > one)) for one in first]


def broken(rows: Iterable[Row], before_first: str | None = "", *, lagging: bool = False) -> set[int]:
    """Rows that follow none of those in the nearest place below. ``before_first`` None: the first is not judged.

    Nor is, of a ``lagging`` chain, one whose nearest place below is not the one before.
    """
    there = stand(rows)
    bad = set()
    for row in there:
        below = [other for other in there if other.zk_id < row.zk_id]
        nearest = max((other.zk_id for other in below), default=None)
        if lagging and (nearest or 0) < row.zk_id - 1:
            continue
        hashes = [other.hash for other in below if other.zk_id == nearest] or [before_first]
        if not any(one is None or follows(row, one) for one in hashes):
            bad.add(row.zk_id)
    return bad


# A history


class History:
    def __init__(self, events: list[Event]) -> None:
        self.events = events
        self.acks = [e for e in events if (e.type, e.op) == ("ok", "append") and e.value.zk_id >= 1]
        self.reads = [e for e in events if (e.type, e.op) == ("ok", "read")]
        self.finals: dict[tuple[str, str | None], list[Row]] = {}
        self.whole: dict[tuple[str, str | None], bool] = {}
        self.caught_up: dict[tuple[str, str | None], bool] = {}
        self.alone: dict[tuple[str, str | None], bool] = {}
        self.tables: dict[tuple[str, str | None], set[tuple[str, int]]] = {}
        for event in events:
            if event.type == "final":
                key = event.region, event.node
                self.finals[key] = [*self.finals.get(key, []), *event.value.rows]
                self.whole[key] = not event.value.more
                self.caught_up[key] = event.value.caught_up
                self.alone[key] = event.value.alone
                if event.value.requests is not None:
                    self.tables.setdefault(key, set()).update(pair for pair in event.value.requests if pair[1] >= 1)
        self.unread = {e.region for e in events} - {region for region, _ in self.finals}
        told = [e.value for e in events if (e.type, e.op) == ("ok", "append")]
        read = [row for e in self.reads for row in e.value.rows]
        self.rows = [*told, *read, *(row for rows in self.finals.values() for row in rows)]
        #: In the order in which they were heard of.
        self.heard = [row for e in events for row in self.rows_of(e) if row.zk_id >= 1]
        self.requests = list(dict.fromkeys(e.request_id for e in events if e.op == "append" and e.type != "final"))

    @staticmethod
    def rows_of(event: Event) -> Iterable[Row]:
        if event.type == "final":
            return event.value.rows
        if event.type != "ok":
            return ()
        return (event.value,) if event.op == "append" else event.value.rows

    def entry(self, request: str | None) -> Row | None:
        """The row with which an append was first acknowledged."""
        return next((e.value for e in self.acks if e.request_id == request), None)

    def acknowledged(self) -> dict[str | None, Row]:
        return {request: row for request in self.requests if (row := self.entry(request)) is not None}

    def invoked_at(self, request: str | None) -> float:
        times = [e.time for e in self.events if e.request_id == request and e.type == "invoke" and e.op == "append"]
        return min(times, default=float("-inf"))

    def acked_at(self, request: str | None) -> float:
        return min(e.time for e in self.acks if e.request_id == request and e.value == self.entry(request))

    def may_have_happened(self, request: str | None) -> bool:
        types = [e.type for e in self.events if e.request_id == request and e.op == "append"]
        unanswered = types.count("invoke") > types.count("fail")
        return self.entry(request) is None and (unanswered or "info" in types or "ok" in types)

    def inherited(self) -> int:
        before = self.events[: next((n for n, e in enumerate(self.events) if e.op == "append"), len(self.events))]
        return max((reached(e) for e in before if e in self.reads), default=0)

    def knows(self, key: tuple[str, str | None], zk_id: int) -> bool:
        """Whether the final says for good what stands in that place: not if it is cut below, or may yet get it."""
        reaches = self.whole[key] or any(row.zk_id >= zk_id for row in self.finals[key] if row.zk_id >= 1)
        return reaches and zk_id not in self.awaited(key)

    def awaited(self, key: tuple[str, str | None]) -> set[int]:
        """What this region lacks because it had not caught up: places that others fill, or may fill."""
        if self.caught_up[key]:
            return set()
        places = self.places() if self.unread else {row.zk_id for rows in self.finals.values() for row in stand(rows)}
        return places - {row.zk_id for row in self.finals[key]}

    def excused_gaps(self, key: tuple[str, str | None]) -> set[int]:
        """Gaps, by their first number, that may only be there because the region had not caught up."""
        return {
            run[0]
            for run in runs_of_missing(self.finals[key])
            if not self.caught_up[key] and (self.unread or set(run) <= self.awaited(key))
        }

    def places(self) -> set[int]:
        return {row.zk_id for row in stand(self.rows)}

    def refused(self) -> bool:
        """Whether an answer is timed before the question that its process had asked."""
        open_: dict[tuple[str, str, str | None], list[int]] = {}
        for e in self.events:
            asked = open_.setdefault((e.process, e.op, e.request_id), [])
            if e.type == "invoke":
                asked.append(e.time)
            elif e.type != "final" and asked:
                if e.time < min(asked):
                    return True
                asked.remove(max(asked))
        return False

    # Kinds

    def repeated(self) -> set[int]:
        return {
            max(first.zk_id, ack.value.zk_id)
            for request, first in self.acknowledged().items()
            for ack in self.acks
            if ack.request_id == request and ack.value != first
        }

    def shared(self) -> set[int]:
        pairs = combinations(self.acknowledged().values(), 2)
        told = {one.zk_id for one, other in pairs if one == other}
        claims = [combinations(table, 2) for table in self.tables.values()]
        return told | {a for pairs in claims for (one, a), (other, b) in pairs if a == b and one != other}

    def lost(self) -> set[int]:
        acknowledged = {
            row.zk_id
            for row in self.acknowledged().values()
            for key, rows in self.finals.items()
            if self.knows(key, row.zk_id) and row not in rows
        }
        shown = {
            row.zk_id
            for event in [*self.acks, *self.reads]
            for row in stand(self.rows_of(event))
            if self.finals
            and all(self.knows(key, row.zk_id) for key in self.finals)
            and not any(row.zk_id == other.zk_id for rows in self.finals.values() for other in rows)
        }
        on_record = {
            zk_id
            for key, table in self.tables.items()
            for _, zk_id in table
            if self.knows(key, zk_id) and not any(row.zk_id == zk_id for row in self.finals[key])
        }
        return acknowledged | shown | on_record

    def diverged(self) -> set[int]:
        return {
            zk_id
            for zk_id in self.places()
            for one, other in combinations(self.finals, 2)
            if self.knows(one, zk_id)
            and self.knows(other, zk_id)
            and {row for row in self.finals[one] if row.zk_id == zk_id}
            != {row for row in self.finals[other] if row.zk_id == zk_id}
        }

    def excess(self) -> list[int]:
        if self.tables or not all(self.alone.values()):
            return []
        places = {zk_id for zk_id in self.places() if zk_id > self.inherited()}
        rest = places - {row.zk_id for row in self.acknowledged().values()}
        indefinite = sum(map(self.may_have_happened, self.requests))
        return sorted(rest)[indefinite : indefinite + 1] * (len(rest) - indefinite)

    def exactly_once(self) -> set[int]:
        pairs = set().union(*self.tables.values())
        return {zk_id for one, zk_id in pairs if any(one == other and zk_id > lower for other, lower in pairs)}

    def aborted_read(self) -> set[int]:
        failed = {r for r in self.requests if not self.may_have_happened(r) and self.entry(r) is None}
        return {zk_id for table in self.tables.values() for request, zk_id in table if request in failed}

    def unexpected(self) -> set[int]:
        alone = [table for key, table in self.tables.items() if self.alone[key]]
        foreign = {zk_id for table in alone for one, zk_id in table if one not in self.requests}
        unclaimed = {
            row.zk_id
            for key, table in self.tables.items()
            for row in stand(self.finals[key])
            if self.whole[key] and row.zk_id not in {zk_id for _, zk_id in table}
        }
        return {zk_id for zk_id in foreign | unclaimed if zk_id > self.inherited()}

    def mismatch(self) -> set[int]:
        found = set()
        for key, table in self.tables.items():
            for request, row in self.acknowledged().items():
                own = {zk_id for one, zk_id in table if one == request}
                of_another = any(zk_id == row.zk_id for _, zk_id in table) and row in self.finals[key]
                if (own and row.zk_id not in own) or (not own and self.whole[key] and of_another):
                    found.add(row.zk_id)
        return found

    def placed(self) -> dict[str, int]:
        """Indefinite appends, with the one place at which all tables that know them say they are."""
        pairs = {(r, n) for table in self.tables.values() for r, n in table if n >= 1}
        known = {row.zk_id for row in self.rows}
        requests = {r for r in self.requests if self.may_have_happened(r) and self.entry(r) is None}
        found = {r: {n for one, n in pairs if one == r} for r in requests}
        return {r: n for r, places in found.items() if len(places) == 1 for n in places if n in known}

    def reordered(self) -> set[int]:
        acknowledged = {request: row.zk_id for request, row in self.acknowledged().items()}
        return {
            later
            for a, earlier in acknowledged.items()
            for b, later in (acknowledged | self.placed()).items()
            if a != b and self.acked_at(a) < self.invoked_at(b) and earlier > later
        }

    def hole(self) -> list[int]:
        places = []
        for read in self.reads:
            top = read.value.watermark
            rows = [row for row in read.value.rows if row.zk_id >= 1]
            for n, row in enumerate(rows):
                below = rows[n - 1].zk_id if n else top
                if row.zk_id > below + 1:
                    places.append(below + 1)
        return places

    def stale(self) -> list[int]:
        return [e.value.position for e in self.reads if reached(e) < e.value.position]

    def before_invoke(self, read: Event) -> list[Event]:
        """The process's own events before it invoked this read."""
        invoke = next(n for n, e in enumerate(self.events) if e.type == "invoke" and e.request_id == read.request_id)
        return [e for e in self.events[:invoke] if e.process == read.process]

    def read_your_writes(self) -> list[int]:
        own = [max((e.value.zk_id for e in self.before_invoke(r) if e in self.acks), default=0) for r in self.reads]
        return [zk_id for zk_id, read in zip(own, self.reads, strict=True) if reached(read) < zk_id]

    def monotonic_reads(self) -> list[int]:
        seen = [max((reached(e) for e in self.before_invoke(r) if e in self.reads), default=0) for r in self.reads]
        return [zk_id for zk_id, read in zip(seen, self.reads, strict=True) if reached(read) < zk_id]

    def link(self) -> set[int]:
        if self.finals:
            return set().union(*(broken(rows, lagging=not self.caught_up[key]) for key, rows in self.finals.items()))
        first = {row.zk_id: row for row in reversed(self.heard)}
        hashes = {row.zk_id + 1: row.hash for row in first.values()} | {1: ""}
        return {n for n, row in first.items() if n in hashes and not follows(row, hashes[n])}

    def anomalies(self) -> dict[str, list[int]]:
        """Places by kind, for the kinds that there are."""
        finals = self.finals.values()
        found: dict[str, Iterable[int]] = {
            "malformed": malformed(self.rows),
            "fork": fork(self.rows),
            "duplicate": set().union(*map(duplicate, finals)),
            "repeated": self.repeated(),
            "shared": self.shared(),
            "link": self.link(),
            "gap": set().union(*(gap(rows) - self.excused_gaps(key) for key, rows in self.finals.items())),
            "lost": self.lost(),
            "diverged": self.diverged(),
            "excess": self.excess(),
            "exactly-once": self.exactly_once(),
            "aborted-read": self.aborted_read(),
            "unexpected": self.unexpected(),
            "mismatch": self.mismatch(),
            "reordered": self.reordered(),
            "hole": self.hole(),
            "stale": self.stale(),
            "read-your-writes": self.read_your_writes(),
            "monotonic-reads": self.monotonic_reads(),
        }
        return {kind: sorted(places) for kind, places in found.items() if places}

    def valid(self) -> bool | None:
        if self.anomalies():
            return False
        waits = any(self.awaited(key) or self.excused_gaps(key) for key in self.finals)
        return True if self.heard and all(self.whole.values()) and not waits else None


def reached(read: Event) -> int:
    return max([read.value.watermark, *(row.zk_id for row in read.value.rows if row.zk_id >= 1)])
