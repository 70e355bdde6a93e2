"""What a judgement says: a `Verdict` and the `Anomaly`s in it, with the least evidence that shows each. Pure."""

from __future__ import annotations

import html
from bisect import insort
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from pghc.chain import Row
from pghc.verify.history import Event

#: Every kind of anomaly; of several at one entry the one that stands first here is named first.
KINDS = (
    "malformed",
    "fork",
    "duplicate",
    "repeated",
    "shared",
    "link",
    "gap",
    "lost",
    "diverged",
    "excess",
    "exactly-once",
    "aborted-read",
    "unexpected",
    "mismatch",
    "reordered",
    "hole",
    "stale",
    "read-your-writes",
    "monotonic-reads",
)
_SEVERITY = {kind: rank for rank, kind in enumerate(KINDS)}


@dataclass(frozen=True, slots=True)
class Anomaly:
    """One thing that is wrong, with the least evidence that shows it.

    ``kind``: one of `KINDS`. ``zk_id``: the place of the offending entry. ``region``: where, empty when it is no one
    region's. ``rows`` and ``events``: the entries and the clients' events that cannot all be right.
    """

    kind: str
    zk_id: int
    region: str
    expected: str
    found: str
    explanation: str
    rows: tuple[Row, ...] = ()
    events: tuple[Event, ...] = ()

    def __str__(self) -> str:
        return self.explanation


@dataclass(frozen=True, slots=True)
class Verdict:
    """What was found: ``valid`` is True, False, or None for unknown.

    ``anomalies``: the first few, by zk_id, the worst first. ``counts``: for each kind found, how many entries or reads
    it concerns. ``checked``: how many of what were looked at. ``unchecked``: what could not be, in words.
    """

    valid: bool | None
    reason: str
    anomalies: tuple[Anomaly, ...] = ()
    counts: Mapping[str, int] = field(default_factory=dict)
    checked: Mapping[str, int] = field(default_factory=dict)
    unchecked: tuple[str, ...] = ()

    def __str__(self) -> str:
        caveat = f" Not checked: {'; '.join(self.unchecked)}." if self.unchecked else ""
        return f"{self.word.capitalize()}: {self.reason}.{caveat}"

    @property
    def word(self) -> str:
        return {True: "valid", False: "invalid", None: "unknown"}[self.valid]

    @property
    def exit_code(self) -> int:
        """0 valid, 1 invalid, 2 unknown."""
        return {True: 0, False: 1, None: 2}[self.valid]

    def to_dict(self) -> dict[str, Any]:
        """The same for JSON; rows as objects, ``valid`` as true, false or null."""
        anomalies = [
            {name: getattr(anomaly, name) for name in ("kind", "zk_id", "region", "expected", "found", "explanation")}
            | {"rows": [row._asdict() for row in anomaly.rows]}
            for anomaly in self.anomalies
        ]
        return asdict(self) | {
            "anomalies": anomalies,
            "counts": dict(self.counts),
            "checked": dict(self.checked),
            "unchecked": list(self.unchecked),
        }

    def _repr_pretty_(self, printer: Any, _cycle: bool) -> None:
        printer.text(str(self))

    def _repr_html_(self) -> str:
        def cells(tag: str, *texts: object) -> str:
            return "<tr>" + "".join(f"<{tag}>{html.escape(str(text))}</{tag}>" for text in texts) + "</tr>"

        lines = [f"<p><b>{self.word.capitalize()}</b>: {html.escape(str(self).split(': ', 1)[1])}</p>"]
        if self.anomalies:
            lines += ["<table>", cells("th", "entry", "anomaly", "region", "expected", "found")]
            lines += [cells("td", o.zk_id, o.kind, o.region, o.expected, o.found) for o in self.anomalies]
            lines += ["</table>", f"<p>{html.escape(tally(self.counts))}</p>"]
        return "\n".join(lines)


class Findings:
    """Counts all anomalies and keeps the first few of each kind, explained only when the verdict is spoken."""

    def __init__(self, keep: int) -> None:
        self.counts: dict[str, int] = {}
        self._keep = max(keep, 1)
        self._places: dict[str, set[int]] = {}
        self._kept: dict[str, list[tuple[int, int, Callable[[], Anomaly]]]] = {}

    def add(self, kind: str, zk_id: int, explain: Callable[[], Anomaly], *, times: int = 1, anew: bool = False) -> None:
        """Records an anomaly; of one kind at one place only the first counts, unless it is ``anew``."""
        if not anew:
            places = self._places.setdefault(kind, set())
            if zk_id in places:
                return
            places.add(zk_id)
        found = self.counts[kind] = self.counts.get(kind, 0) + times
        kept = self._kept.setdefault(kind, [])
        if len(kept) < self._keep or zk_id < kept[-1][0]:
            insort(kept, (zk_id, found, explain), key=lambda entry: entry[:2])
            del kept[self._keep :]

    def verdict(self, checked: Mapping[str, int], unchecked: tuple[str, ...]) -> Verdict:
        kept = [(zk_id, kind, explain) for kind in KINDS for zk_id, _, explain in self._kept.get(kind, ())]
        kept.sort(key=lambda entry: (entry[0], _SEVERITY[entry[1]]))
        anomalies = [explain() for *_, explain in kept[: self._keep]]
        counts = {kind: self.counts[kind] for kind in KINDS if kind in self.counts}
        reason = anomalies[0].explanation
        if sum(counts.values()) > 1:
            reason += f" (in all: {tally(counts)})"
        return Verdict(False, reason, tuple(anomalies), counts, checked, unchecked)


# Words


def short(digest: str) -> str:
    return digest if len(digest) < 10 else digest[:8]


def named(row: Row) -> str:
    return f"entry {row[0]} of {row[1]} ({short(row[2])})"


def within(where: str) -> str:
    return f" in {where}" if where else ""


def both(names: Iterable[str]) -> str:
    return " and ".join(names)


def count(number: int, noun: str) -> str:
    plural = noun if number == 1 else noun[:-1] + "ies" if noun.endswith("y") else noun + "s"
    return f"{number:,} {plural}"


def tally(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{number:,} {kind}" for kind, number in counts.items())
