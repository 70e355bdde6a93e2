"""What to say of an anomaly: what was expected, what was found, and the least evidence that shows it. Pure."""

from __future__ import annotations

from pghc.chain import Row
from pghc.verify.hashchain import fork
from pghc.verify.history import Event
from pghc.verify.observations import ALWAYS, Observations, RegionChain
from pghc.verify.verdict import Anomaly, both, count, named, within


class Explanations:
    """Explains each kind of anomaly that a history, rather than one chain, can show; called once all was heard."""

    def __init__(self, heard: Observations) -> None:
        self.heard, self.appends = heard, heard.appends

    def _when(self, time: int) -> str:
        return f"{(time - self.heard.start) / 1e9:.6f} s"

    def _events(self, number: int) -> tuple[Event, ...]:
        """The events of an append that was acknowledged, or whose place a region knows."""
        appends = self.appends
        request, who = self.request(number), list(appends.who)
        (asker, home, node), (told, region, server) = who[appends.asker[number]], who[appends.told[number]]
        invoke = Event(appends.invoked[number], asker, home, "invoke", "append", request, node)
        ok = Event(appends.acked[number], told, region, "ok", "append", request, server, self.heard.row(number))
        asked = () if appends.invoked[number] == ALWAYS else (invoke,)
        return (*asked, ok) if appends.acknowledged(number) else asked

    def request(self, number: int) -> str:
        return list(self.appends.index)[number]

    def _process(self, number: int) -> str:
        return list(self.appends.who)[self.appends.told[number]][0]

    def _asker(self, number: int) -> str:
        return list(self.appends.who)[self.appends.asker[number]][0]

    def _where(self, number: int, zk_id: int) -> str:
        """The regions whose table of requests says so."""
        return both(chain.region for chain in self.heard.chains.values()
                    if chain.requests and (number, zk_id) in chain.requests.pairs())  # fmt: skip

    def _known(self, zk_id: int) -> tuple[Row, ...]:
        return (self.heard.known[zk_id],) if zk_id in self.heard.known else ()

    def _first_told(self, row: Row) -> int:
        """The first append that was acknowledged with this entry, or -1."""
        number = -1
        try:
            while number < 0 or self.heard.row(number) != row:
                number = self.appends.zk_id.index(row.zk_id, number + 1)
        except ValueError:
            return -1
        return number

    def claims(self, zk_id: int, rivals: list[Row]) -> Anomaly:
        def said(row: Row) -> str:
            number = self._first_told(row)
            words = [f"acknowledged to {self._process(number)}"] if number >= 0 else []
            words += [f"in the chain of {', '.join(holders)}"] if (holders := self.heard.holders(row)) else []
            return f"{named(row)}, {' and '.join(words) or 'returned by a read'}"

        rows = (self.heard.known[zk_id], *rivals)
        return fork(rows, "", [said(row) for row in rows])

    def repeated(self, number: int, first: Row, event: Event) -> Anomaly:
        again = event.value
        return Anomaly("repeated", max(first.zk_id, again.zk_id), event.region, "one entry for one append",
                       f"entries {first.zk_id} and {again.zk_id}",
                       f"append {event.request_id} was acknowledged with {named(first)} and again with {named(again)}",
                       (first, again), (*self._events(number), event))  # fmt: skip

    def shared(self, one: int, other: int) -> Anomaly:
        row, events = self.heard.row(one), (*self._events(one), *self._events(other))
        requests = " and ".join(str(self._events(number)[-1].request_id) for number in (one, other))
        return Anomaly("shared", row.zk_id, "", "one append for one entry", "two appends",
                       f"{named(row)} was acknowledged to two appends, {requests}", (row,), events)  # fmt: skip

    def lost(self, number: int) -> Anomaly:
        row = self.heard.row(number)
        without, found = [], []
        for chain in self.heard.chains.values():
            there = self.heard.rows(chain, row.zk_id)
            if row not in there and self.heard.tells(chain, row.zk_id):
                without.append(chain.region)
                found += [one for one in there if one not in found]
        stands = f", where {both(map(named, found))} stands" if found else ""
        return Anomaly("lost", row.zk_id, ", ".join(without), named(row), both(map(named, found)) or "nothing",
                       f"{named(row)} was acknowledged to {self._process(number)} at "
                       f"{self._when(self.appends.acked[number])} and is missing in {', '.join(without)}{stands}",
                       (row, *found), self._events(number))  # fmt: skip

    def gone(self, row: Row) -> Anomaly:
        why = f"{named(row)} was shown to a client, and at the end is missing in every region"
        return Anomaly("lost", row.zk_id, "", named(row), "nothing", why, (row,))

    def diverged(self, zk_id: int) -> Anomaly:
        chains = [chain for chain in self.heard.chains.values() if self.heard.tells(chain, zk_id)]
        there = [(chain.region, self.heard.rows(chain, zk_id)) for chain in chains]
        found = [f"{region} has {both(map(named, rows)) or 'nothing'}" for region, rows in there]
        rows = dict.fromkeys(row for _, rows in there for row in rows)
        return Anomaly("diverged", zk_id, "", "the same entry in every region", "; ".join(found),
                       f"the regions disagree about entry {zk_id}: {', '.join(found)}", tuple(rows))  # fmt: skip

    def excess(self, rows: tuple[Row, ...], unaccounted: int) -> Anomaly:
        possible = count(len(rows) - 1, "append")
        return Anomaly("excess", rows[-1].zk_id, "", f"at most {possible} besides those acknowledged",
                       f"{count(unaccounted, 'entry')} besides",
                       f"up to {named(rows[-1])} stand {count(len(rows), 'entry')} that no acknowledged append accounts"
                       f" for, but only {possible} may have happened besides: an append stands twice, or one stands "
                       "that failed for certain", rows[-10:])  # fmt: skip

    def exactly_once(self, number: int, first: int, zk_id: int) -> Anomaly:
        stands = both(f"entry {one}{within(self._where(number, one))}" for one in (first, zk_id))
        return Anomaly("exactly-once", zk_id, "", "one entry for one append", stands,
                       f"append {self.request(number)} of {self._asker(number)} stands more than once: as {stands}",
                       self._known(first) + self._known(zk_id))  # fmt: skip

    def two_requests(self, chain: RegionChain, zk_id: int, numbers: tuple[int, int]) -> Anomaly:
        requests = both(map(self.request, numbers))
        return Anomaly("shared", zk_id, chain.region, "one append for one entry", "two appends",
                       f"entry {zk_id} in {chain.region} is of two appends, {requests}",
                       tuple(self.heard.rows(chain, zk_id)))  # fmt: skip

    def aborted_read(self, number: int, zk_id: int) -> Anomaly:
        return Anomaly("aborted-read", zk_id, "", "nothing of an append that failed", f"entry {zk_id}",
                       f"append {self.request(number)} of {self._asker(number)} failed for certain and stands all the "
                       f"same as entry {zk_id}{within(self._where(number, zk_id))}", self._known(zk_id))  # fmt: skip

    def unexpected(self, number: int, zk_id: int) -> Anomaly:
        return Anomaly("unexpected", zk_id, "", "an append of this history", f"request {self.request(number)}",
                       f"entry {zk_id}{within(self._where(number, zk_id))} is of request {self.request(number)}, which "
                       "no client of this history made", self._known(zk_id))  # fmt: skip

    def unclaimed(self, chain: RegionChain, zk_id: int) -> Anomaly:
        return Anomaly("unexpected", zk_id, chain.region, "a request for each entry", "none",
                       f"entry {zk_id} in {chain.region} is of no request that its table knows of",
                       tuple(self.heard.rows(chain, zk_id)))  # fmt: skip

    def mismatch(self, chain: RegionChain, number: int, stands: list[int]) -> Anomaly:
        row = self.heard.row(number)
        found = both(f"entry {zk_id}" for zk_id in stands) if stands else "of another request"
        as_what = f"stands as {found}" if stands else f"is not the one whose entry {row.zk_id} is"
        return Anomaly("mismatch", row.zk_id, chain.region, named(row), found,
                       f"append {self.request(number)} was acknowledged to {self._process(number)} with {named(row)}, "
                       f"and in {chain.region} it {as_what}", (row,), self._events(number))  # fmt: skip

    def unwritten(self, chain: RegionChain, number: int, zk_id: int) -> Anomaly:
        why = f"append {self.request(number)} is on record in {chain.region} as entry {zk_id}, which is missing there"
        return Anomaly("lost", zk_id, chain.region, f"entry {zk_id}", "nothing", why, self._known(zk_id))

    def reordered(self, earlier: int, later: int) -> Anomaly:
        one, other = self.heard.row(earlier), self.heard.row(later)
        invoked, acked = self._when(self.appends.invoked[later]), self._when(self.appends.acked[earlier])
        return Anomaly("reordered", other.zk_id, "", f"a zk_id above {one.zk_id}", f"zk_id {other.zk_id}",
                       f"{named(other)} was invoked by {self._process(later)} at {invoked}, after {named(one)} had "
                       f"been acknowledged to {self._process(earlier)} at {acked}, and yet stands before it",
                       (other, one), (*self._events(earlier), *self._events(later)))  # fmt: skip

    def hole(self, event: Event, missing: int, row: Row) -> Anomaly:
        return Anomaly("hole", missing, event.region, f"entry {missing}", named(row),
                       f"what {event.process} read from {event.node or event.region} at {self._when(event.time)} is no "
                       f"prefix: it shows {named(row)} without entry {missing}", (row,), (event,))  # fmt: skip

    def stale(self, event: Event, at: int) -> Anomaly:
        position = event.value.position
        return self._late("stale", event, at, position, f"although it handed over position {position}")

    def own(self, event: Event, at: int, own: int, when: int) -> Anomaly:
        why = f"although entry {own} had been acknowledged to it at {self._when(when)}"
        return self._late("read-your-writes", event, at, own, why)

    def back(self, event: Event, at: int, seen: int, when: int) -> Anomaly:
        why = f"although it had read up to {seen} at {self._when(when)}"
        return self._late("monotonic-reads", event, at, seen, why)

    def _late(self, kind: str, event: Event, at: int, expected: int, why: str) -> Anomaly:
        return Anomaly(kind, expected, event.region, f"entries up to {expected}", f"entries up to {at}",
                       f"{event.process} read from {event.node or event.region} at {self._when(event.time)} no further "
                       f"than entry {at}, {why}", event.value.rows[-1:], (event,))  # fmt: skip
