"""Verdicts: whether a chain, or a whole history of clients, is as a total order must be. Pure.

`verify` judges the rows of one table, `check` a history (see `pghc.history`). Both give a `Verdict`: valid, invalid
with the first offending entries and what was expected there, or unknown. What they look for:

===================  ===========================================================================================
malformed            a zk_id below 1 or a node_id that is none
fork                 different entries claim one place
duplicate            one chain holds an entry twice
repeated             one append was acknowledged with two entries
shared               two appends were acknowledged with one entry, or are on record as one
link                 a hash does not follow from the entry before
gap                  a number is missing
lost                 at the end an acknowledged append is missing in a region, or an entry that was read in all of them,
                     or one of which a region knows the request
diverged             regions disagree at the end
excess               more entries than appends: an append stands twice, or one stands that failed for certain
exactly-once         an append stands as two entries, in one region or in different ones
aborted-read         an append that failed for certain stands all the same
unexpected           an entry that no append of this history accounts for
mismatch             an append was acknowledged with one entry, and stands as another
reordered            an append was acknowledged before another was invoked, and stands behind it; of an indefinite one a
                     table of requests says where it stands
hole                 what a read returned is not a prefix: an entry is missing inside it
stale                a read is older than the position handed over with it
read-your-writes     a read lacks an append acknowledged to the same process before
monotonic-reads      a read is older than an earlier one of the same process
===================  ===========================================================================================

The session guarantees (the last two) bind a process whether or not it hands over a position; a client that wants none
takes a name of its own for each read. Entries that a read showed before the first append was invoked belong to an
earlier run.

The chain carries no request ids. Where finals bring each region's table of requests, the checker knows whose each entry
is (*exactly-once* to *mismatch*; the names are those of Jepsen's and Elle's anomalies where these have one). Without
them it cannot tell which of two entries is the surplus one, or which failed append stands after all: *excess* counts
the places for which no acknowledged append accounts. There may be as many as there are indefinite appends; the first
beyond them is named.

A region that had not caught up when its chain was read (``caught_up`` false) may yet get what it lacks: what is missing
there and stands elsewhere makes a verdict unknown, never invalid. All else counts there as in any region.

Times are compared between processes only when they differ, so a coarse clock accuses nobody.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial

from pghc.chain import NODE_ID, Row
from pghc.errors import BadInput
from pghc.verify.explanations import Explanations
from pghc.verify.hashchain import malformed, verify_chain
from pghc.verify.history import Event, Final, Read
from pghc.verify.judgement import Judgement
from pghc.verify.observations import ALWAYS, FOR_GOOD, NEVER, Observations, RegionChain, Session
from pghc.verify.verdict import KINDS, Anomaly, Findings, Verdict

__all__ = ["KINDS", "Anomaly", "Verdict", "check", "verify_chain"]


def check(events: Iterable[Event], *, keep: int = 10) -> Verdict:
    """Judges a whole history; see the module for what it looks for.

    Each process's events must stand in the order in which they happened to it. A history without finals is judged on
    what clients were told. ``keep``: how many anomalies of each kind to explain. Raises `BadInput` for events that
    contradict each other as a record: a final whose rows do not ascend, an answer that is timed before its question.
    """
    heard, findings = Observations(), Findings(keep)
    explain = Explanations(heard)
    _Hearing(heard, findings, explain).hear(events)
    return Judgement(heard, findings, explain).verdict()


class _Hearing:
    """Takes in the events one by one, and finds what one event shows to be wrong."""

    def __init__(self, heard: Observations, findings: Findings, explain: Explanations) -> None:
        self._heard, self._findings, self._explain = heard, findings, explain
        self._node_ids: set[str] = set()

    def hear(self, events: Iterable[Event]) -> None:
        sessions, appends = self._heard.sessions, self._heard.appends
        index, opened, invoked = appends.index, appends.open, appends.invoked
        for event in events:
            when, process, _, kind, op, request, _, _, _ = event
            if when < self._heard.start:
                self._heard.start = when
            if kind == "final":
                self._final(event)
                continue
            session = sessions.get(process)
            if session is None:
                session = sessions[process] = Session()
                self._heard.regions.setdefault(event.region)
            if op == "read":
                self._read(event, session)
                continue
            if request is None:
                number = self._unnamed(event, session)
            elif (number := index.get(request, -1)) < 0:
                number = appends.new(request, event)
            self._timely(event, session.appends)
            if kind == "invoke":
                opened[number] += 1
                if not ALWAYS < invoked[number] <= when:
                    invoked[number] = when
            elif kind == "ok":
                self._acknowledged(number, event, session)
            elif kind == "info":
                opened[number] += FOR_GOOD
            else:
                opened[number] -= 1

    # What clients were told

    def _timely(self, event: Event, under_way: dict[str | None, list[int]]) -> None:
        """Keeps how many attempts of this request are under way and when the first was invoked."""
        if event.type == "invoke":
            begun = under_way.setdefault(event.request_id, [0, event.time])
            begun[0] += 1
            begun[1] = min(begun[1], event.time)
        elif attempts := under_way.get(event.request_id):
            if event.time < attempts[1]:
                raise BadInput(
                    f"{event.process} is answered at {event.time} what it asks at {attempts[1]}: "
                    f"{event.op} {event.request_id or ''}".rstrip(),
                    "All times of a history must be of one clock.",
                )
            attempts[0] -= 1
            if not attempts[0]:
                del under_way[event.request_id]

    def _unnamed(self, event: Event, session: Session) -> int:
        """The number of an append without request id: its process has no other open at the time."""
        number, session.append = session.append, -1
        invoke = event.type == "invoke"
        if invoke and number >= 0:
            raise BadInput(f"{event.process} invokes an append while another is open", "Give them request ids.")
        if number < 0:
            self._heard.nameless = event.process
            number = self._heard.appends.new(f"{event.process}, append {len(self._heard.appends)}", event)
        if invoke:
            session.append = number
        return number

    def _acknowledged(self, number: int, event: Event, session: Session) -> None:
        appends, row = self._heard.appends, event.value
        if not isinstance(row, Row):
            raise BadInput(f"an append acknowledged to {event.process} at {event.time} carries no row")
        zk_id = row.zk_id
        if not self._witness(row, event.region):
            appends.open[number] += FOR_GOOD
            return
        if zk_id > session.own:
            session.own, session.own_time = zk_id, event.time
        if appends.acked[number] == NEVER:
            appends.acked[number], appends.zk_id[number] = event.time, zk_id
            appends.told[number] = appends.by(event)
            first = self._heard.known[zk_id]
            if first is not row and first != row:
                self._heard.rival_acks[number] = row
        elif self._heard.row(number) != row:
            first = self._heard.row(number)
            place = max(first.zk_id, zk_id)
            self._findings.add("repeated", place, partial(self._explain.repeated, number, first, event))
        elif event.time < appends.acked[number]:
            appends.acked[number] = event.time

    def _witness(self, row: Row, where: str) -> bool:
        """Remembers what stands in a place; False for a row that can stand in none."""
        zk_id, node_id, _ = row
        if zk_id < 1 or node_id not in self._node_ids:
            if zk_id > 0 and NODE_ID.fullmatch(node_id):
                self._node_ids.add(node_id)
            else:
                self._findings.add("malformed", zk_id, partial(malformed, row, where))
            if zk_id < 1:
                return False
        first = self._heard.known.setdefault(zk_id, row)
        if first is not row and first != row:
            self._rival(row)
        return True

    def _rival(self, row: Row) -> None:
        rivals = self._heard.rivals.setdefault(row.zk_id, [])
        if row not in rivals:
            rivals.append(row)

    def _read(self, event: Event, session: Session) -> None:
        if event.type == "invoke":
            self._timely(event, session.reads)
            now = session.own, session.own_time, session.seen, session.seen_time
            session.told.setdefault(event.request_id, now)
            return
        own, own_time, seen, seen_time = session.told.get(event.request_id, (0, 0, 0, 0))
        self._timely(event, session.reads)
        if event.request_id not in session.reads:
            session.told.pop(event.request_id, None)
        if event.type != "ok":
            return
        read = event.value
        if not isinstance(read, Read):
            raise BadInput(f"a read of {event.process} at {event.time} carries no watermark")
        self._heard.reads += 1
        add = self._findings.add
        at, below = read.watermark, 0
        for row in read.rows:
            if not self._witness(row, event.region):
                continue
            if row.zk_id < below:
                raise BadInput(f"the rows that {event.process} read at {event.time} do not ascend")
            expected = (below or read.watermark) + 1
            if row.zk_id > expected:
                add("hole", expected, partial(self._explain.hole, event, expected, row), anew=True)
            below = row.zk_id
            at = max(at, below)
        if at < read.position:
            add("stale", read.position, partial(self._explain.stale, event, at), anew=True)
        if at < own:
            add("read-your-writes", own, partial(self._explain.own, event, at, own, own_time), anew=True)
        if at < seen:
            add("monotonic-reads", seen, partial(self._explain.back, event, at, seen, seen_time), anew=True)
        if at > session.seen:
            session.seen, session.seen_time = at, event.time
        if not self._heard.appends:
            self._heard.inherited = max(self._heard.inherited, at)

    # What stood there at the end

    def _final(self, event: Event) -> None:
        if not isinstance(event.value, Final):
            raise BadInput(f"the final of {event.region} at {event.time} carries no rows")
        key = event.region, event.node
        chain = self._heard.chains.get(key)
        if chain is None:
            chain = self._heard.chains[key] = RegionChain(self._findings, event)
            self._heard.regions.setdefault(event.region)
        for row in chain.feed(event.value, self._heard.known, self._heard.proven):
            self._rival(row)
        if chain.requests is not None:
            chain.requests.feed(event, self._heard.appends)
        if chain.sound:
            self._heard.proven = max(self._heard.proven, chain.walk.at)
