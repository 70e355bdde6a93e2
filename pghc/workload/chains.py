"""A fresh chain in all regions, and when all regions have the same one."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass

from psycopg.rows import TupleRow

from pghc.chain import Row
from pghc.cluster.mesh import reset, subscriber
from pghc.errors import PghcError, Unavailable
from pghc.mutex import Mutex
from pghc.sequencer import Sequencer
from pghc.store import Cursor, Primary
from pghc.topology import View

#: Seconds for which regions must stay equal to count as settled.
EQUAL_SECONDS = 0.3


def begin_chain(views: Sequence[View], ordering: str | None = None) -> None:
    """Begin an empty chain in all regions, ordered by writers of ``ordering`` (None: its first writer decides).

    Where it begins is one entry of the log, so an append belongs to the chain before or to this one; those to the chain
    before are refused from then on, or indefinite. Two at once begin one chain after the other.
    """
    central = next((view for view in views if view.region == view.topology.central), views[0])  # nearest to a quorum
    with Mutex(central, "begin") as mutex, mutex.hold(30), Sequencer(central) as sequencer:
        position = sequencer.begin_chain(after=max(_cursor(view).position for view in views))
        if ordering:
            sequencer.ordering(position, ordering)
        with ThreadPoolExecutor(1) as pool:  # decided: whoever interrupts this waits until all regions have begun
            pool.submit(reset, views, position).result()


def _cursor(view: View) -> Cursor:
    with Primary(view, timeout=20, connections=1) as reader:
        return reader.cursor()


@dataclass(frozen=True)
class Settled:
    """How the regions stand when nothing more is to be waited for.

    ``since``: since when (monotonic clock, seconds) all have the same chain; None when they do not. ``behind``: what
    servers say of each region that has not yet received what others have; what it lacks is no proof of a loss.
    """

    since: float | None
    behind: Mapping[str, str]


def settle(views: Sequence[View], limit: float = 15.0, still: float = 1.0) -> float | None:
    """Wait until all regions are equal, or will not become so by themselves; returns when they became equal."""
    return catch_up(views, limit, still).since


def catch_up(views: Sequence[View], limit: float = 30.0, still: float = 1.0, *, by_log: bool = False) -> Settled:
    """Wait until all regions are equal, or have received all that the others have and nothing has moved for ``still``
    seconds, or hold different entries in one place. Ends after ``limit`` seconds.

    ``by_log``: entries come by the log, not by replication alone, so that the cursors tell who has applied it.
    """
    regions = [_Region(view) for view in views]
    try:
        deadline, since = time.monotonic() + limit, time.monotonic()
        before: object = None
        while True:
            now = [region.look() for region in regions]
            if now != before:
                before, since = now, time.monotonic()
                for region in regions:
                    region.mark_end()
            quiet = time.monotonic() - since
            over = time.monotonic() > deadline
            chains = {state and state[1:] for state in now}  # void positions are no part of a chain
            if None not in chains and len(chains) == 1:
                if quiet > EQUAL_SECONDS or over:
                    return Settled(since, {})
            elif quiet > still or over:
                if _forked(regions):  # replication stops there: no wait will help
                    return Settled(None, {})
                behind = _behind(regions, by_log=by_log)
                if over or not behind:
                    return Settled(None, behind)
            time.sleep(0.02 if quiet < still else 0.1)  # the end of all change cannot be notified
    finally:
        for region in regions:
            region.reader.close()


class _Region:
    """What one primary says. One that does not answer says None."""

    def __init__(self, view: View) -> None:
        self.name = view.region
        self.reader = Primary(view)
        self.state: tuple[int, int, str, Row | None] | None = None
        self.end: str | None = None

    def look(self) -> tuple[int, int, str, Row | None] | None:
        """Log position, watermark and its hash, last entry."""
        try:
            cursor = self.reader.cursor()
            self.state = (cursor.position, cursor.zk_id, cursor.hash, self.reader.last())
        except PghcError:
            self.state = None
        return self.state

    def mark_end(self) -> None:
        """Keep where this server's own log ends: who has confirmed that has all that it has written up to now."""
        self.end = None
        with suppress(PghcError):
            self.end = self.reader.rows("select pg_current_wal_lsn()::text", what="read the log's end")[0][0]

    def unconfirmed(self) -> list[str]:
        """The regions that have not confirmed this one's rows up to the marked end."""
        query = "select slot_name from pg_replication_slots where slot_type = 'logical' \
                 and (confirmed_flush_lsn is null or confirmed_flush_lsn < %s::pg_lsn)"
        if self.end is None:
            self.mark_end()
        return [subscriber(row[0]) for row in self.reader.rows(query, self.end, what="watch replication")]

    def holds(self, zk_id: int) -> list[TupleRow]:
        return self.reader.rows("select * from public.chain where zk_id = %s", zk_id, what="read an entry")


def _behind(regions: Sequence[_Region], *, by_log: bool) -> dict[str, str]:
    behind: dict[str, list[str]] = {}
    for region in regions:
        try:
            if region.state is None:
                raise Unavailable(f"{region.reader.node} does not answer")
            for name in region.unconfirmed():
                behind.setdefault(name, []).append(f"has not confirmed the rows of {region.name}")
        except PghcError as error:
            for other in regions:
                behind.setdefault(other.name, []).append(error.what)
    farthest = max((region.state[0] for region in regions if region.state), default=0)
    for region in regions:
        if by_log and region.state and region.state[0] < farthest:
            behind.setdefault(region.name, []).append(f"stands at log position {region.state[0]} of {farthest}")
    return {name: "; ".join(reasons) for name, reasons in behind.items()}


def _forked(regions: Sequence[_Region]) -> bool:
    """Do two regions hold different entries in one place? Hashes are linked: then they do at the last common place."""
    tops = [region.state[3].zk_id for region in regions if region.state and region.state[3]]
    try:
        held = {tuple(row) for region in regions for row in region.holds(min(tops, default=0))}
    except PghcError:
        return False
    return len(held) > 1
