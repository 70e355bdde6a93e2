"""Verdicts on running servers: each region's chain verified in its database, then the regions compared.

Links are recomputed where the rows are; rows come here only to explain an anomaly. Two chains whose links hold are
equal up to an entry if that entry is, so regions are compared by a binary search.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Literal

from pghc.chain import Row
from pghc.errors import ClusterError
from pghc.store import Primary, Reader
from pghc.topology import View
from pghc.verify.checker import Anomaly, Verdict, verify_chain

#: How long a gap may last before it counts: more than the slowest link, or a writer's recovery.
SETTLE_SECONDS = 3.0


def audit(reader: Reader, last: int | None = None, *, patience: float = SETTLE_SECONDS) -> Verdict:
    """The verdict on the last ``last`` entries (None: all) that this server has. Raises `Unavailable`.

    An entry may be here before the one below it, which comes from another region: a gap is one when it stays for
    ``patience`` seconds.
    """
    with _judged(reader, last, patience) as (_, verdict):
        return verdict


def audit_regions(views: Mapping[str, View], last: int | None = None) -> tuple[Verdict, dict[str, Verdict]]:
    """The verdict on the whole cluster, and on each region's primary alone.

    Invalid when any region is, or when two hold different entries in one place; unknown when any region is. A region
    that is merely behind another is no anomaly.
    """
    with ExitStack() as stack:
        judged = []
        for view in views.values():
            reader = stack.enter_context(Primary(view, timeout=60))
            judged.append(stack.enter_context(_judged(reader, last, SETTLE_SECONDS)))
        each = dict(zip(views, (verdict for _, verdict in judged), strict=True))
        for wanted in (False, None):
            for name, verdict in each.items():
                if verdict.valid is wanted:
                    whole = Verdict(wanted, f"{name}: {verdict.reason}", verdict.anomalies, verdict.counts)
                    return whole, each
        anomaly = _first_difference([reader for reader, _ in judged])
    if anomaly:
        return Verdict(False, anomaly.explanation, (anomaly,), {"fork": 1}), each
    count = max(verdict.checked["entries"] for verdict in each.values())
    return Verdict(True, f"{count} entries, every link holds, {len(each)} regions agree"), each


@contextmanager
def _judged(reader: Reader, last: int | None, patience: float) -> Iterator[tuple[Reader, Verdict]]:
    """The server in one snapshot and the verdict on it. What is explained or compared must be read from there."""
    deadline = time.monotonic() + patience
    while True:
        with reader.snapshot() as now:
            anchor, count, anomalies = now.anomalies(last)
            if not anomalies or any(expected for _, _, _, expected, _ in anomalies) or time.monotonic() > deadline:
                yield now, _verdict(now, anchor, count, bool(anomalies))
                return
        time.sleep(0.1)  # replication that stands still notifies nobody


def _verdict(now: Reader, anchor: int, count: int, offends: bool) -> Verdict:
    if not count:
        return Verdict(None, "the chain is empty, there is nothing to verify", checked={"entries": 0, "links": 0})
    if not offends:
        return Verdict(True, f"{count} entries, every link holds", checked={"entries": count, "links": count})
    after = _entry(now, anchor, "<=")  # one that is missing there is an anomaly of the entry after it
    verdict = verify_chain(now.chain(after=anchor), after=after, whole=after is None)
    if verdict.valid:
        raise ClusterError(f"{now.node}: the database finds anomalies that its rows do not show")
    return verdict


def _first_difference(readers: Sequence[Reader]) -> Anomaly | None:
    """The first place in which two of these valid chains differ, as far as all of them reach."""
    reached = min((last.zk_id if (last := reader.last()) else 0) for reader in readers)

    def entries(zk_id: int) -> dict[str, Row | None]:
        return {reader.node: _entry(reader, zk_id) for reader in readers}

    if not reached or len(set(entries(reached).values())) == 1:
        return None
    low, high = 1, reached  # the first difference is at or below high
    while low < high:
        middle = (low + high) // 2
        if len(set(entries(middle).values())) == 1:
            low = middle + 1
        else:
            high = middle
    found = entries(low)
    rows = tuple(dict.fromkeys(row for row in found.values() if row))
    claims = " and ".join(f"{row.node_id} {row.hash[:8]}" for row in rows)
    where = "; ".join(f"{node} holds {row.hash[:8] if row else 'none'}" for node, row in found.items())
    return Anomaly("fork", low, "", "one entry", claims, f"{len(rows)} entries claim place {low}: {where}", rows)


def _entry(reader: Reader, zk_id: int, comparison: Literal["=", "<="] = "=") -> Row | None:
    """The entry of this number, or with "<=" the last one up to it."""
    query = f"select * from public.chain where zk_id {comparison} %s order by zk_id desc limit 1"  # noqa: S608  # literals
    rows = reader.rows(query, zk_id, what=f"read entry {zk_id}")
    return Row(*rows[0]) if rows else None
