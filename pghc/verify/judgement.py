"""The judgement of a history once all of it was heard: what no one event shows to be wrong, and the verdict. Pure."""

from __future__ import annotations

from array import array
from bisect import bisect_left, bisect_right
from functools import partial
from itertools import groupby

from pghc.chain import ROOT, Row
from pghc.errors import BadInput
from pghc.verify.explanations import Explanations
from pghc.verify.hashchain import Walk
from pghc.verify.observations import NEVER, Observations, RegionChain, Requests
from pghc.verify.verdict import Findings, Verdict, count


class Judgement:
    def __init__(self, heard: Observations, findings: Findings, explain: Explanations) -> None:
        self._heard, self._findings, self._explain = heard, findings, explain
        self._appends, self._known, self._chains = heard.appends, heard.known, list(heard.chains.values())

    def verdict(self) -> Verdict:
        appends, heard = self._appends, self._heard
        order = sorted(filter(appends.acknowledged, range(len(appends))), key=appends.zk_id.__getitem__)
        indefinite = sum(map(appends.indefinite, range(len(appends))))
        foreign = sum(map(appends.foreign, range(len(appends))))
        checked = {
            "appends": len(order),
            "indefinite": indefinite,
            "failed": len(appends) - len(order) - indefinite - foreign,
            "reads": heard.reads,
            "chains": len(self._chains),
            "entries": len(self._known) + sum(map(len, heard.rivals.values())),
            "links": sum(chain.walk.links for chain in self._chains),
        }
        self._find_awaited()
        if not self._chains:
            self._find_broken_links_of_what_was_told()
        for zk_id, rivals in heard.rivals.items():
            self._findings.add("fork", zk_id, partial(self._explain.claims, zk_id, rivals))
        self._find_shared(order)
        self._find_lost(order)
        self._find_diverged()
        if any(chain.requests is not None for chain in self._chains):
            checked["requests"], placed = self._find_by_request(order)
            order = sorted([*order, *placed], key=appends.zk_id.__getitem__)
        else:
            self._find_excess(order, indefinite)
        self._find_reordered(order)
        unchecked = self._unchecked()
        if self._findings.counts:
            return self._findings.verdict(checked, unchecked)
        if reason := self._unknown():
            return Verdict(None, reason, checked=checked, unchecked=unchecked)
        return Verdict(True, self._praise(len(order)), checked=checked, unchecked=unchecked)

    # What to say when nothing is wrong

    def _unchecked(self) -> tuple[str, ...]:
        if not self._chains:
            return ("lost appends and regions that disagree, as no chain was read at the end",)
        missing = ", ".join(self._heard.unread())
        return (
            *([f"the chain of {missing}, which was not read at the end"] if missing else []),
            *(f"the chain of {one.region} above entry {one.walk.at}, where its final is cut"
              for one in self._chains if not one.whole),
            *(f"{count(len(places), 'entry')} that {region} may yet get, which had not caught up"
              for (region, _), places in self._heard.awaited.items() if places),
        )  # fmt: skip

    def _unknown(self) -> str:
        """Why nothing can be said for certain, if so."""
        if not self._known:
            return "nothing was written: no append was acknowledged and no chain holds an entry"
        for chain in self._chains:
            if not chain.whole:
                return f"the final chain of {chain.region} is incomplete, and what there is of it holds no anomaly"
        for (region, _), places in self._heard.awaited.items():
            if places:
                lacks = f"lacks {count(len(places), 'entry')} that it may yet get"
                return f"{region} had not caught up when its chain was read, which {lacks}; nothing else is wrong"
        return ""

    def _praise(self, acknowledged: int) -> str:
        parts = []
        if acknowledged:
            parts.append(f"{count(acknowledged, 'acknowledged append')} in real-time order, each in its place once")
        if self._chains:
            same = "agree" if len(self._chains) > 1 else "stands"
            length = count(self._chains[0].walk.entries, "entry")
            parts.append(f"{count(len(self._chains), 'chain')} of {length} {same}, every link holds")
        if self._heard.reads:
            parts.append(f"{count(self._heard.reads, 'read')} saw a prefix and went never back")
        if others := len(self._known) - acknowledged:
            parts.append(f"{count(others, 'entry')} of indefinite appends or of others")
        return "; ".join(parts)

    # What to look for

    def _find_awaited(self) -> None:
        """What regions that had not caught up lack, and others hold or may hold, is held against nobody."""
        unread = bool(self._heard.unread())
        for key, chain in self._heard.chains.items():
            if chain.caught_up:
                continue
            others = [other for other in self._chains if other is not chain]
            missing = [
                zk_id
                for zk_id in sorted(self._known)
                if chain.lacks(zk_id) and (unread or not all(other.lacks(zk_id) for other in others))
            ]
            places = self._heard.awaited[key] = set(missing)
            for first, last, explain in chain.walk.unjudged:
                if unread:
                    places.add(first)
                elif bisect_right(missing, last) - bisect_left(missing, first) <= last - first:
                    self._findings.add("gap", first, explain)

    def _find_broken_links_of_what_was_told(self) -> None:
        below = Row(0, "", ROOT)
        for zk_id in sorted(self._known):
            row = self._known[zk_id]
            if zk_id == below.zk_id + 1:
                Walk(self._findings, "", below if zk_id > 1 else None).feed((row,))
            below = row

    def _find_shared(self, order: list[int]) -> None:
        for zk_id, group in groupby(order, self._appends.zk_id.__getitem__):
            first: dict[Row, int] = {}
            for number in group:
                other = first.setdefault(self._heard.row(number), number)
                if other != number:
                    self._findings.add("shared", zk_id, partial(self._explain.shared, other, number))

    def _find_lost(self, order: list[int]) -> None:
        heard, zk_id_of = self._heard, self._appends.zk_id
        for chain in self._chains:
            # of a regular chain only what lies above it can be missing
            regular = not (chain.odd or chain.walk.gaps or heard.rival_acks)
            for number in order[bisect_right(order, chain.walk.at, key=zk_id_of.__getitem__) :] if regular else order:
                zk_id = zk_id_of[number]
                if heard.tells(chain, zk_id) and heard.row(number) not in heard.rows(chain, zk_id):
                    self._findings.add("lost", zk_id, partial(self._explain.lost, number))
        if not self._chains:
            return
        lowest = 0 if any(chain.walk.gaps for chain in self._chains) else min(chain.walk.at for chain in self._chains)
        for zk_id in [zk_id for zk_id in self._known if zk_id > lowest]:
            if all(heard.tells(chain, zk_id) and chain.lacks(zk_id) for chain in self._chains):
                self._findings.add("lost", zk_id, partial(self._explain.gone, self._known[zk_id]))

    def _find_diverged(self) -> None:
        heard, chains = self._heard, self._chains
        shapes = {(chain.walk.at, tuple(chain.walk.gaps), bool(chain.odd)) for chain in chains}
        if len(shapes) < 2 and not (chains and chains[0].odd):
            return
        for zk_id in sorted(self._known):
            if len({frozenset(heard.rows(one, zk_id)) for one in chains if heard.tells(one, zk_id)}) > 1:
                self._findings.add("diverged", zk_id, partial(self._explain.diverged, zk_id))

    def _find_excess(self, order: list[int], indefinite: int) -> None:
        """More entries than acknowledged and indefinite appends; not those of an earlier run."""
        told = set(map(self._appends.zk_id.__getitem__, order))
        rest = sorted(zk_id for zk_id in self._known if zk_id > self._heard.inherited and zk_id not in told)
        if not all(chain.alone for chain in self._chains):
            return
        if len(rest) > indefinite:
            rows = tuple(self._known[zk_id] for zk_id in rest[: indefinite + 1])
            explain = partial(self._explain.excess, rows, len(rest))
            self._findings.add("excess", rows[-1].zk_id, explain, times=len(rest) - indefinite)

    def _find_by_request(self, order: list[int]) -> tuple[int, list[int]]:
        """What the regions' tables of requests show to be wrong.

        Gives the number of requests in them, and the indefinite appends whose place is known by them.
        """
        if self._heard.nameless:
            why = f"{self._heard.nameless} appends without request id, while the finals say which request became what"
            raise BadInput(why, "Record request ids, or finals without requests.")
        stands = array("q", bytes(8 * len(self._appends)))
        twice: dict[int, set[int]] = {}
        judged: list[Requests] = []
        for chain in self._chains:
            if (table := chain.requests) is None:
                continue
            # one table, one chain, each entry of one request: nothing more to see in a second region
            plain = not (chain.odd or chain.walk.gaps) and table.zk_ids == array("q", range(1, chain.walk.at + 1))
            if plain and table in judged:
                continue
            if plain:
                judged.append(table)
            first = self._find_in_table(chain, table, stands, twice)
            if not plain:
                self._find_unclaimed(chain, first)
            self._find_mismatched(chain, table, first, order)
        for number, places in twice.items():
            lowest, *more = sorted(places)
            for zk_id in more:
                self._findings.add("exactly-once", zk_id, partial(self._explain.exactly_once, number, lowest, zk_id))
        placed = []
        for number, zk_id in enumerate(stands):
            if zk_id in self._known and number not in twice and self._appends.indefinite(number):
                self._appends.zk_id[number] = zk_id
                placed.append(number)
        return len(stands) - stands.count(0), placed

    def _find_in_table(
        self, chain: RegionChain, table: Requests, stands: array[int], twice: dict[int, set[int]]
    ) -> dict[int, int]:
        """What the table alone shows; gives the first append that claims each place."""
        appends, add, explain = self._appends, self._findings.add, self._explain
        first: dict[int, int] = {}
        for number, zk_id in table.pairs():
            if zk_id < 1:
                continue
            other = first.setdefault(zk_id, number)
            if other != number:
                add("shared", zk_id, partial(explain.two_requests, chain, zk_id, (other, number)))
            before = stands[number]
            if not before:
                stands[number] = zk_id
            elif before != zk_id:
                twice.setdefault(number, {before}).add(zk_id)
            if appends.acked[number] == NEVER and appends.open[number] <= 0:
                if not appends.foreign(number):
                    add("aborted-read", zk_id, partial(explain.aborted_read, number, zk_id))
                elif chain.alone and zk_id > self._heard.inherited:
                    add("unexpected", zk_id, partial(explain.unexpected, number, zk_id))
        return first

    def _find_unclaimed(self, chain: RegionChain, first: dict[int, int]) -> None:
        for zk_id in self._known if chain.whole else ():
            if zk_id > self._heard.inherited and zk_id not in first and not chain.lacks(zk_id):
                self._findings.add("unexpected", zk_id, partial(self._explain.unclaimed, chain, zk_id))
        for zk_id, number in first.items():
            if self._heard.tells(chain, zk_id) and chain.lacks(zk_id):
                self._findings.add("lost", zk_id, partial(self._explain.unwritten, chain, number, zk_id))

    def _find_mismatched(self, chain: RegionChain, table: Requests, first: dict[int, int], order: list[int]) -> None:
        heard, where = self._heard, dict[int, set[int]]()
        for number in order:
            zk_id = self._appends.zk_id[number]
            if first.get(zk_id) == number:
                continue
            if not where:
                for one, place in table.pairs():
                    if place > 0:
                        where.setdefault(one, set()).add(place)
            if places := where.get(number):
                wrong = zk_id not in places
            else:  # another's request claims its row
                wrong = chain.whole and zk_id in first and heard.row(number) in heard.rows(chain, zk_id)
            if wrong:
                stands = sorted(places or ())
                self._findings.add("mismatch", zk_id, partial(self._explain.mismatch, chain, number, stands))

    def _find_reordered(self, order: list[int]) -> None:
        appends, earliest, earliest_number = self._appends, NEVER, -1
        for _, group in groupby(reversed(order), appends.zk_id.__getitem__):
            numbers = list(group)
            for number in numbers:
                if earliest < appends.invoked[number]:
                    explain = partial(self._explain.reordered, earliest_number, number)
                    self._findings.add("reordered", appends.zk_id[number], explain)
            for number in numbers:
                if appends.acked[number] < earliest:
                    earliest, earliest_number = appends.acked[number], number
