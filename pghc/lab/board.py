"""The story that runs through the lessons: three users, three regions, a comment and a reply.

The `Board` is a table of its own that the mesh carries as it carries the chain; who reads a replica of it reads what
people read every day. `Watch` is such a person, who looks at the page again and again.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import NamedTuple, Self

import pandas as pd
from psycopg import sql

from pghc.errors import Behind, Conflict, PghcError
from pghc.lab.plots import Message
from pghc.store import Primary, Reader
from pghc.topology import View

_TABLE = """
    create table public.comment (
        id text primary key,
        author text not null,
        reply_to text,  -- the id of the comment that this one answers; not checked, as it may be on its way
        body text not null,
        region text not null,
        seen timestamptz not null default clock_timestamp()  -- by this region's clock; not replicated
    )"""


class Board:
    """Comments, in every region; begins empty. Use it in a ``with`` block or `close` it.

    ``views``: of each region. Raises `Unavailable` when a primary cannot be reached.
    """

    def __init__(self, views: Sequence[View]) -> None:
        self.views = {view.region: view for view in views}
        self._primaries = {
            view.region: Primary(view, admin=True, timeout=20, connections=2)
            for view in views
        }
        self._readers: dict[str, Reader] = {}
        with ThreadPoolExecutor(len(views)) as pool:
            list(pool.map(_make, self._primaries.values()))
            list(pool.map(_subscribe, self._primaries.values()))

    def post(self, region: str, author: str, name: str, body: str, reply_to: str | None = None) -> None:
        """Write a comment to a region's primary; ``name`` is its id. Raises `Conflict`, `Unavailable`, `Indefinite`."""
        try:
            with self._primaries[region].connection(f"post {name!r}", writes=True) as connection:
                query = "insert into public.comment (id, author, reply_to, body, region) values (%s, %s, %s, %s, %s)"
                connection.execute(query, (name, author, reply_to, body, region))
        except Conflict as error:
            error.remedy = "It is on the board already. Run the lesson's first cell again to begin anew"
            raise

    def read(self, node: str) -> pd.DataFrame:
        """The page as this server shows it: the comments that it has, by the time at which its region got them."""
        columns = ["id", "author", "reply_to", "body"]
        query = "select id, author, reply_to, body from public.comment order by seen"
        return pd.DataFrame(self._reader(node).rows(query, what="read the comments"), columns=columns)

    def wait_for(self, node: str, name: str, timeout: float = 10.0) -> pd.DataFrame:
        """Read until the comment is on the page. Raises `Behind`."""
        deadline = time.monotonic() + timeout
        while name not in set((page := self.read(node))["id"]):
            if time.monotonic() > deadline:
                what = f"{node}: comment {name!r} has not come within {timeout:g} s"
                raise Behind(what, "Is the link cut?", node=node)
            time.sleep(0.005)  # a replica cannot notify
        return page

    def watch(self, node: str, only: str = "true") -> Watch:
        """Somebody who looks at this server's page about a hundred times a second, from now on.

        ``only``: an SQL condition on the rows that the page shows.
        """
        reader = self._reader(node)
        query = f"select id from public.comment where {only.replace('%', '%%')} order by seen"  # noqa: S608  # asked as a mere reader
        return Watch(lambda: tuple(row[0] for row in reader.rows(query, what="read the comments")))

    def messages(self) -> list[Message]:
        """When each comment was written and when each region's primary got it; by the time of writing."""
        query = """select id, region, 1000 * extract(epoch from pg_xact_commit_timestamp(xmin))::float,
                          1000 * extract(epoch from seen)::float from public.comment"""
        origin: dict[str, str] = {}
        seen: dict[str, dict[str, float]] = {}
        for region, reader in self._primaries.items():
            for name, home, committed, arrived in reader.rows(query, what="read the times of the comments"):
                origin[name] = home
                seen.setdefault(name, {})[region] = committed if home == region else arrived
        found = [Message(name, home, seen[name]) for name, home in origin.items()]
        return sorted(found, key=lambda message: min(message.seen.values()))

    def close(self) -> None:
        for reader in (*self._readers.values(), *self._primaries.values()):
            reader.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _reader(self, node: str) -> Reader:
        if node not in self._readers:
            region = next(view for view in self.views.values()).topology.node(node).region
            self._readers[node] = Reader(self.views[region], node, connections=2)
        return self._readers[node]


def _make(primary: Reader) -> None:
    """An empty table of comments here, published to the others (what is removed is not)."""
    with primary.connection("make the table of comments", writes=True) as connection, connection.transaction():
        if connection.execute("select to_regclass('public.comment') is not null").fetchone() == (True,):
            connection.execute("truncate public.comment")
            return
        connection.execute(_TABLE)
        connection.execute("grant select on public.comment to pghc")
        connection.execute("alter publication pghc add table public.comment (id, author, reply_to, body, region)")


def _subscribe(primary: Reader) -> None:
    """Let this region's subscriptions learn of the table, those that do not know of it yet."""
    unaware = """select subname from pg_subscription s where not exists (
                     select from pg_subscription_rel r
                     where r.srsubid = s.oid and r.srrelid = 'public.comment'::regclass)"""
    with primary.connection("subscribe to the comments", writes=True) as connection:
        for (name,) in connection.execute(unaware).fetchall():
            order = "alter subscription {} refresh publication with (copy_data = false)"
            connection.execute(sql.SQL(order).format(sql.Identifier(name)))


@contextmanager
def watch_chain(view: View, node: str, *, prefix: bool) -> Iterator[Watch]:
    """Somebody who looks at the chain on this server: the numbers of the entries there.

    ``prefix``: only those up to the first gap.
    """
    with (
        Reader(view, node, connections=1) as reader,
        Watch(lambda: tuple(str(row.zk_id) for row in reader.recent(20, prefix=prefix)[1])) as watch,
    ):
        yield watch


class Glance(NamedTuple):
    """From ``ms`` milliseconds after the watch began, the page showed these."""

    ms: float
    shown: tuple[str, ...]


class Watch:
    """Looks at something again and again, in a thread, and keeps each change of what is shown.

    In a ``with`` block: from the first look on, which the block waits for.
    """

    def __init__(self, look: Callable[[], tuple[str, ...]], every: float = 0.01) -> None:
        self._look, self._every = look, every
        self._glances: list[Glance] = []
        self._trouble: PghcError | None = None
        self._began = time.monotonic()
        self._stop, self._looked = threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._run, name="watch", daemon=True)
        self._thread.start()

    def __enter__(self) -> Self:
        self._looked.wait(timeout=10)
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def stop(self) -> list[Glance]:
        """End the watch; returns what was shown from when on."""
        self._stop.set()
        self._thread.join(timeout=10)
        if self._trouble:
            raise self._trouble
        return self._glances

    def wait_for(self, *names: str, timeout: float = 10.0) -> None:
        """Wait until all of these have been shown at once. Raises `Behind`."""
        deadline = time.monotonic() + timeout
        while not (self._glances and set(names) <= set(self._glances[-1].shown)):
            if self._trouble or time.monotonic() > deadline:
                raise self._trouble or Behind(f"{', '.join(names)} was not shown within {timeout:g} s")
            time.sleep(self._every)

    @property
    def table(self) -> pd.DataFrame:
        """What was shown, from which millisecond on."""
        shown = [(round(glance.ms), ", ".join(glance.shown) or "nothing") for glance in self._glances]
        return pd.DataFrame(shown, columns=["from ms", "the page shows"])

    def _run(self) -> None:
        while not self._stop.is_set():
            try:
                shown = self._look()
            except PghcError as error:
                self._trouble = error
                return
            if not self._glances or shown != self._glances[-1].shown:
                self._glances.append(Glance(1000 * (time.monotonic() - self._began), shown))
            self._looked.set()
            self._stop.wait(self._every)
