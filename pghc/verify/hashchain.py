"""One chain of entries: `verify`, and the walk along the chain that it is made of. Pure."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from itertools import islice

from pghc.chain import NODE_ID, ROOT, Row, link
from pghc.errors import BadInput
from pghc.verify.verdict import Anomaly, Findings, Verdict, count, named, short, within

#: How many entries back to look for the one that a broken link was made after.
RECENT = 32


def verify_chain(rows: Iterable[Row], after: Row | None = None, *, whole: bool = False, keep: int = 10) -> Verdict:
    """Judges the entries ``rows`` of one chain, ascending by zk_id (other rows of the three columns do as well).

    ``after``: the entry before the first of them. Without it, a chain that begins at 1 begins with the empty hash, and
    of any other the first entry is taken as the anchor: its own link is not checked, and the verdict says so. Not so
    of a ``whole`` chain, which lacks what is not there. ``keep``: how many anomalies of each kind to explain. Raises
    `BadInput` when rows do not ascend.
    """
    findings = Findings(keep)
    walk = Walk(findings, "", after)
    rest = iter(rows)
    first = next(rest, None)
    if first is None:
        return Verdict(None, "there is no entry to verify", checked={"entries": 0, "links": 0})
    if anchored := after is None and not whole and first[0] > 1:
        walk.anchor(first)
    walk.feed((first,))
    while stretch := tuple(islice(rest, 10_000)):
        walk.feed(stretch)
    checked = {"entries": walk.entries, "links": walk.links}
    unchecked = (f"entry {first[0]} is taken as the anchor, its own link was not checked",) if anchored else ()
    if findings.counts:
        return findings.verdict(checked, unchecked)
    span = f"entry {first[0]}" if walk.entries == 1 else f"entries {first[0]} to {walk.at}"
    return Verdict(True, f"{span} without gap or fork, {count(walk.links, 'link')} recomputed", checked=checked,
                   unchecked=unchecked)  # fmt: skip


class Walk:
    """Follows one chain upwards: recomputes each link, finds gaps, duplicates and forks.

    Of a ``lagging`` chain, which may yet get what it lacks, gaps are left to others to judge (`unjudged`), and an
    entry above one is taken on trust.
    """

    def __init__(self, findings: Findings, where: str, after: Row | None = None, *, lagging: bool = False) -> None:
        self.findings, self.where, self.lagging = findings, where, lagging
        self.unjudged: list[tuple[int, int, Callable[[], Anomaly]]] = []
        self.entries = self.links = 0
        self.at, self.gaps = (after[0] if after else 0), list[tuple[int, int]]()
        self._here: list[Row] = [after] if after else []
        self._before: list[Row] = []
        self._anchored = False
        self._recent: deque[Row] = deque(self._here, maxlen=RECENT)
        self._node_ids: set[str] = set()

    def anchor(self, first: Row) -> None:
        """Takes ``first``, which is yet to be fed, on trust."""
        self.at, self._anchored = first[0] - 1, True

    def feed(self, rows: Sequence[Row]) -> bool:
        """The next entries, ascending; True if nothing is wrong with them. Raises `BadInput`."""
        passed = self._passes(rows)
        if not passed:
            self._inspect(rows)
        return passed

    def _passes(self, rows: Sequence[Row]) -> bool:
        """Whether nothing is wrong with these entries; if so they are behind us. Without a step of our own for each."""
        if not rows:
            return True
        zk_ids, node_ids, digests = zip(*rows, strict=True)
        if any(map(int.__ne__, zk_ids, range(self.at + 1, self.at + 1 + len(rows)))):
            return False
        if not all(map(NODE_ID.fullmatch, {*node_ids})):
            return False
        before = (self._here[0][2] if self._here else ROOT, *digests[:-1])
        if any(map(str.__ne__, map(link, zk_ids, node_ids, before), digests)):
            return False
        self.skip(rows)
        return True

    def skip(self, rows: Sequence[Row]) -> None:
        """Goes past entries that are known to be right."""
        self.entries += len(rows)
        self.links += len(rows)
        self.at, self._here, self._before = rows[-1][0], [rows[-1]], list(rows[-2:-1]) or self._here
        self._recent.extend(rows[-RECENT:])

    def _inspect(self, rows: Iterable[Row]) -> None:
        """Looks at entries one by one, to name what is wrong."""
        findings, node_ids, recent = self.findings, self._node_ids, self._recent
        at, here, before = self.at, self._here, self._before
        for row in rows:
            zk_id, node_id, digest = row
            self.entries += 1
            if zk_id > at:
                if zk_id != at + 1:
                    self.gaps.append((at + 1, zk_id - 1))
                    explain = partial(self._gap, at + 1, zk_id - 1, here[-1:], row)
                    if self.lagging:
                        self.unjudged.append((*self.gaps[-1], explain))
                        here, self._anchored = [], True
                    else:
                        findings.add("gap", at + 1, explain)
                before, here, at = here, [row], zk_id
            elif zk_id < 1:
                findings.add("malformed", zk_id, partial(malformed, row, self.where))
                continue
            elif zk_id < at:
                raise BadInput(f"entry {zk_id}{within(self.where)} comes after entry {at}", "Order the rows by zk_id.")
            elif row in here:
                findings.add("duplicate", zk_id, partial(self._duplicate, row))
                continue
            else:
                findings.add("fork", zk_id, partial(fork, (*here, row), self.where))
                here.append(row)
            if node_id not in node_ids:
                if NODE_ID.fullmatch(node_id):
                    node_ids.add(node_id)
                else:
                    findings.add("malformed", zk_id, partial(malformed, row, self.where))
            if before:
                self.links += 1
                if link(zk_id, node_id, before[0][2]) != digest and not _follows(row, before[1:]):
                    findings.add("link", zk_id, partial(self._broken, row, before[0], tuple(recent)))
            elif not self._anchored:
                self.links += 1
                if link(zk_id, node_id, ROOT) != digest:
                    findings.add("link", zk_id, partial(self._broken, row, None, ()))
            recent.append(row)
        self.at, self._here, self._before = at, here, before

    def _gap(self, first: int, last: int, below: list[Row], above: Row) -> Anomaly:
        missing = f"entry {first} is" if first == last else f"entries {first} to {last} are"
        stands = f"{'after ' + named(below[0]) if below else 'at the beginning'} comes {named(above)}"
        return Anomaly("gap", first, self.where, f"entry {first}", named(above),
                       f"{missing} missing{within(self.where)}: {stands}", (*below, above))  # fmt: skip

    def _duplicate(self, row: Row) -> Anomaly:
        return Anomaly("duplicate", row[0], self.where, "one entry", "the same entry twice",
                       f"{named(row)} stands twice{within(self.where)}", (row, row))  # fmt: skip

    def _broken(self, row: Row, before: Row | None, recent: tuple[Row, ...]) -> Anomaly:
        zk_id, node_id, digest = row
        expected = link(zk_id, node_id, before[2] if before else ROOT)
        why = f"entry {zk_id} of {node_id}{within(self.where)} holds hash {digest!r}, "
        why += f"but after {named(before)} it must be {expected}" if before else f"but the first must hold {expected}"
        followed = next((one for one in reversed(recent) if link(zk_id, node_id, one[2]) == digest), None)
        if followed:
            why += f"; it was made after {named(followed)}, as if nothing stood between"
        elif before and link(zk_id, node_id, ROOT) == digest:
            why += "; it was made as if the chain were empty"
        rows = tuple(one for one in (followed, before, row) if one)
        return Anomaly("link", zk_id, self.where, expected, digest, why, rows)


def _follows(row: Row, before: Iterable[Row]) -> bool:
    return any(link(row[0], row[1], one[2]) == row[2] for one in before)


def fork(rows: tuple[Row, ...], where: str, said: Iterable[str] = ()) -> Anomaly:
    claims = "; ".join(said or map(named, rows))
    number = "two entries claim" if len(rows) == 2 else f"{len(rows)} entries claim"
    return Anomaly("fork", rows[0][0], where, "one entry", ", ".join(f"{row[1]} {short(row[2])}" for row in rows),
                   f"{number} place {rows[0][0]}{within(where)}: {claims}", rows)  # fmt: skip


def malformed(row: Row, where: str) -> Anomaly:
    expected = "a zk_id of at least 1" if row[0] < 1 else f"a node_id that matches {NODE_ID.pattern}"
    found = str(row[0]) if row[0] < 1 else repr(row[1])
    return Anomaly("malformed", row[0], where, expected, found,
                   f"entry {row[0]}{within(where)} has {found} where {expected} is due", (row,))  # fmt: skip
