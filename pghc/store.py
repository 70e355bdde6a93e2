"""Postgres by psycopg: reading the chain on any server, writing it on a primary. The SQL proper is in ``schema.sql``.

Every call ends within its time-out, also when the server is paused and its kernel still answers. A write that is cut
short is `Indefinite`; a connection that could not be made is `Unavailable`, and then nothing was written.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from copy import copy
from itertools import starmap
from typing import Any, NamedTuple, Self

import psycopg
from kazoo.exceptions import KazooException
from kazoo.handlers.threading import KazooTimeoutError
from psycopg import errors as pg
from psycopg import pq, sql
from psycopg.rows import TupleRow
from psycopg_pool import ConnectionPool, PoolClosed, PoolTimeout

from pghc import terms
from pghc.chain import ROOT, Row
from pghc.errors import Behind, Conflict, Indefinite, PghcError, Unavailable
from pghc.terms import Follower
from pghc.topology import View
from pghc.zookeeper import Client, connect

CHANNEL = "pghc"
SUSPECT = 1.0  # seconds without a connection after which another server may be the primary
LOOK = 3.0  # seconds to learn from ZooKeeper who the primary is
APPLIER = "pghc applier"  # the application_name of the session that applies the log
_CURSOR = "select position, zk_id, hash, chain from pghc.cursor"


logging.getLogger("psycopg.pool").setLevel(logging.CRITICAL)  # what it could not do, our errors say


class Cursor(NamedTuple):
    """How far a region has come: log position, and number and hash of the last entry there. All below is there too.

    ``chain``: the log position at which this chain began.
    """

    position: int = 0
    zk_id: int = 0
    hash: str = ROOT
    chain: int = 0

    @property
    def place(self) -> tuple[int, int]:
        """What only grows in a region: a new chain begins at a position above those of the one before."""
        return self.chain, self.position


#: For options that libpq has a variable for, but no default that it would take as a value.
_NEUTRAL = {"sslcertmode": "disable", "min_protocol_version": "3.0", "max_protocol_version": "3.0"}


def complete(conninfo: Mapping[str, str | int]) -> dict[str, Any]:
    """psycopg's connection arguments: options not in ``conninfo`` are as compiled, whatever the environment says.

    This is about libpq's variables, whichever this version has. ``PGSERVICE`` cannot be overridden so, nor can those
    that set a session's parameters: `pghc.cluster.surroundings.prepare` removes them.
    """
    options = {each.keyword.decode(): each.compiled for each in pq.Conninfo.get_defaults() if each.envvar}
    del options["service"]
    return {name: _NEUTRAL.get(name, (value or b"").decode()) for name, value in options.items()} | dict(conninfo)


class Ends(NamedTuple):
    """How far a primary has come, and how much of its write-ahead log ends there, and is on a replica's disk (bytes).

    ``replicated``: None when no replica reads it.
    """

    cursor: Cursor
    end: int
    replicated: int | None


class BoundedConnection(psycopg.Connection[TupleRow]):
    """A connection whose every wait ends after ``seconds``; psycopg's own have no end while a server is paused.

    psycopg tells the end of such a wait by an exception without a public name, so this is the one place that knows it.
    """

    seconds = 10.0

    def wait(self, gen: Any, interval: float = 0.1, timeout: float | None = None) -> Any:
        try:
            return super().wait(gen, interval, self.seconds if timeout is None else timeout)
        except pg._WaitTimeout as error:
            if timeout is not None:  # the caller's own limit, which it handles
                raise
            self.pgconn.finish()  # in an unknown state: the answer may still come
            raise pg.OperationalError(f"no answer within {self.seconds:g} s") from error


class Reader:
    """Reads of one Postgres server, primary or replica.

    ``timeout`` is the limit of each call in seconds. Calls raise `Unavailable` when the server cannot be reached.
    """

    _held: BoundedConnection | None = None

    def __init__(
        self, view: View, node: str, *, timeout: float = 5.0, connections: int = 4, admin: bool = False
    ) -> None:
        self.view, self.node, self.timeout = view, node, timeout
        self._connections, self._admin = connections, admin
        self._pool = self._make_pool(node)

    def _make_pool(self, node: str) -> ConnectionPool[BoundedConnection]:
        return ConnectionPool(
            connection_class=BoundedConnection,
            check=_not_closed,
            kwargs={**self._conninfo(node), "autocommit": True, "connect_timeout": max(2, round(self.timeout))},
            min_size=0,
            max_size=self._connections,
            timeout=self.timeout,
            reconnect_timeout=self.timeout,
            name=node,
            open=True,
        )

    def _conninfo(self, node: str) -> dict[str, Any]:
        return complete(self.view.conninfo(node, admin=self._admin))

    def _suspect(self) -> None:
        """The server did not answer."""

    def close(self) -> None:
        self._pool.close(timeout=1)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @contextmanager
    def connection(
        self, what: str, *, writes: bool = False, timeout: float | None = None
    ) -> Iterator[BoundedConnection]:
        """A connection for ``what``, with psycopg's errors turned into ours, which say whether a write happened."""
        if self._held:  # errors are turned where the snapshot was taken
            yield self._held
            return
        deadline = time.monotonic() + (self.timeout if timeout is None else max(timeout, 0.001))
        pool, connection = self._get(what, deadline)
        try:
            connection.seconds = max(deadline - time.monotonic(), 0.001)
            yield connection
        except (pg.UniqueViolation, pg.CheckViolation) as error:
            raise Conflict(f"{self.node}: {what}: refused, {_message(error)}", node=self.node) from error
        except (pg.UndefinedTable, pg.UndefinedFunction, pg.InvalidSchemaName) as error:
            raise Unavailable(
                f"{self.node}: {what}: the database is not set up yet, nothing was done", node=self.node
            ) from error
        except pg.OperationalError as error:
            self._suspect()
            if not writes:
                raise Unavailable(f"{self.node}: {what}: {_message(error)}", node=self.node) from error
            raise Indefinite(
                f"{self.node}: {what}: {_message(error)}; it may have happened",
                "Retry with the same request id, or look it up",
                node=self.node,
            ) from error
        finally:
            pool.putconn(connection)

    def _get(self, what: str, deadline: float) -> tuple[ConnectionPool[BoundedConnection], BoundedConnection]:
        while True:
            pool, left = self._pool, deadline - time.monotonic()
            try:
                return pool, pool.getconn(min(left, SUSPECT))
            except (PoolTimeout, PoolClosed) as error:
                self._suspect()
                if left <= SUSPECT or (pool.closed and pool is self._pool):
                    raise Unavailable(
                        f"{self.node}: {what}: no connection in time, nothing was done",
                        "Is the server up? See `pghc status`",
                        node=self.node,
                    ) from error

    @contextmanager
    def snapshot(self) -> Iterator[Self]:
        """The server as it stands now: all that is asked of what is yielded, in one thread, sees one state of it."""
        if self._held:
            yield self
            return
        with self.connection("read in one snapshot") as connection, connection.transaction():
            connection.execute("set transaction isolation level repeatable read, read only")
            yield self._holding(connection)

    def _holding(self, connection: BoundedConnection | None) -> Self:
        other = copy(self)
        other._held = connection
        return other

    def rows(self, query: str, *parameters: Any, what: str = "query", timeout: float | None = None) -> list[TupleRow]:
        """The rows of one read-only statement."""
        with self.connection(what, timeout=timeout) as connection:
            return connection.execute(query.encode(), parameters).fetchall()

    def cursor(self, timeout: float | None = None) -> Cursor:
        """How far this server has come. On a replica: as far as it has replayed the log of its primary."""
        return Cursor(*self.rows(_CURSOR, what="read the cursor", timeout=timeout)[0])

    def ends(self) -> Ends:
        """How far this primary has come, and its replicas with it. What ``cursor`` tells lies before ``end``."""
        query = f"""select position, zk_id, hash, chain, (pg_current_wal_insert_lsn() - '0/0')::bigint,
                    (pghc.replicated() - '0/0')::bigint from ({_CURSOR}) c"""  # noqa: S608  # a literal
        *cursor, end, replicated = self.rows(query, what="read the cursor")[0]
        return Ends(Cursor(*cursor), end, replicated)

    def last(self, timeout: float | None = None) -> Row | None:
        """The entry with the greatest number that this server has, with or without those before it."""
        query = "select * from public.chain order by zk_id desc limit 1"
        rows = self.rows(query, what="read the last entry", timeout=timeout)
        return Row(*rows[0]) if rows else None

    def entry(self, request_id: str) -> Row | None:
        """The entry that this request became, or None as far as this server knows."""
        query = "select e.* from pghc.request r join public.chain e using (zk_id) where r.request_id = %s"
        rows = self.rows(query, request_id, what="look up a request")
        return Row(*rows[0]) if rows else None

    def recent(self, limit: int = 10, *, after: int = 0, prefix: bool = True) -> tuple[int, list[Row]]:
        """The watermark of this server and the newest ``limit`` entries above number ``after``, ascending.

        With ``prefix`` nothing above the contiguous watermark is shown, so that no entry is seen without all those
        before it; without, whatever is there.
        """
        query = """
            with mark as materialized (select zk_id from pghc.cursor)
            select (select zk_id from mark), r.* from (values (true)) one
            left join lateral (
                select * from public.chain c
                where c.zk_id > %s and (not %s or c.zk_id <= (select zk_id from mark))
                order by c.zk_id desc limit %s) r on true
            order by r.zk_id"""
        rows = self.rows(query, after, prefix, limit, what="read the newest entries")
        return rows[0][0], [Row(*row[1:]) for row in rows if row[1] is not None]

    def reached(self, zk_id: int, timeout: float | None = None) -> int:
        """Wait until this server's watermark is at least ``zk_id``; returns it. Raises `Behind`."""
        deadline = time.monotonic() + (self.timeout if timeout is None else timeout)
        pause = 0.002
        while (mark := self.cursor(deadline - time.monotonic()).zk_id) < zk_id:
            if time.monotonic() + pause > deadline:
                raise Behind(
                    f"{self.node}: has entries up to {mark}, not yet {zk_id}",
                    "Retry, or ask another replica or the primary",
                    node=self.node,
                )
            time.sleep(pause)  # a server in recovery cannot notify: LISTEN is refused there
            pause = min(2 * pause, 0.05)
        return mark

    def chain(self, *, after: int = 0, last: int | None = None, batch: int = 50_000) -> Iterator[Row]:
        """The entries numbered above ``after`` (or the last ``last`` ones), ascending, in one snapshot."""
        if last is not None:
            after = max((self.last() or Row(0, "", "")).zk_id - last, 0)
        query = "select * from public.chain where zk_id > %s order by zk_id"
        yield from starmap(Row, self._stream("read the chain", query, after, batch=batch))

    def requests(self, *, batch: int = 50_000) -> Iterator[tuple[str, int]]:
        """Which request became which entry, as this server knows: request ids and zk_ids, ascending by zk_id."""
        query = "select request_id::text, zk_id from pghc.request order by zk_id"
        yield from self._stream("read the requests", query, batch=batch)

    def _stream(self, what: str, query: str, *parameters: Any, batch: int) -> Iterator[TupleRow]:
        with (
            self.connection(what) as connection,
            connection.transaction(),
            connection.cursor(name="stream") as cursor,
        ):
            cursor.itersize = batch
            yield from cursor.execute(query.encode(), parameters)

    def anomalies(
        self, last: int | None = None, *, share: int = 200_000
    ) -> tuple[int, int, list[tuple[int, str, str, str | None, int | None]]]:
        """Verify the last ``last`` entries (None: all) in the database.

        Returns their anchor, which is the number that they are all above (0 when they begin with the first), how many
        they are, and those of them that offend: (zk_id, node_id, hash found, hash expected or None where the
        predecessor is missing, predecessor). More than ``share`` entries are shared by two sessions, which look at one
        snapshot: a window runs on one core.
        """
        with self.snapshot() as now, now.connection("verify") as connection:
            if last is None:
                ends = connection.execute("select 0, count(*), max(zk_id) from public.chain")
            else:
                newest = "select zk_id from public.chain order by zk_id desc limit %s"
                query = f"select coalesce(min(zk_id), 1) - 1, count(*), max(zk_id) from ({newest})"  # noqa: S608  # literals
                ends = connection.execute(query, (last,))
            anchor, count, top = _one(ends)
            query = "select * from pghc.anomalies(%s, %s)"
            if count <= share:
                rows = connection.execute(query, (anchor, top)).fetchall()
            else:
                snapshot = _one(connection.execute("select pg_export_snapshot()"))[0]
                # an entry that is there: the second session compares the next one with it
                middle = "select max(zk_id) from public.chain where zk_id <= %s"
                seam = _one(connection.execute(middle, ((anchor + top) // 2,)))[0] or anchor

                def second() -> list[TupleRow]:
                    with self._holding(None).connection("verify") as other, other.transaction():
                        other.execute("set transaction isolation level repeatable read, read only")
                        other.execute(sql.SQL("set transaction snapshot {}").format(snapshot))
                        return other.execute(query, (seam, top)).fetchall()

                with ThreadPoolExecutor(1) as pool:
                    rest = pool.submit(second)
                    rows = connection.execute(query, (anchor, seam)).fetchall() + rest.result()
        return anchor, count, [(row[0], row[1], row[2], row[3], row[4]) for row in rows]


class Primary(Reader):
    """Reads of a region's primary (default: ``view``'s), whichever node that is; ``node`` is the one that is asked now.

    It begins with the one that ``view`` knows. Who has a client of ZooKeeper calls `follow`, and then learns at once
    when another takes its place. Else a server that does not answer is the occasion to look.
    """

    def __init__(
        self,
        view: View,
        region: str | None = None,
        *,
        timeout: float = 5.0,
        connections: int = 4,
        admin: bool = False,
    ) -> None:
        self.region = region or view.region
        self._changing, self._looking = threading.Lock(), threading.Lock()
        self._follower: Follower | None = None
        super().__init__(view, view.primary(self.region), timeout=timeout, connections=connections, admin=admin)

    def follow(self, client: Client) -> None:
        """Ask the primary that consensus names from now on, as long as ``client`` lives."""
        self._follower = Follower(client, self.region, lambda term: self.use(term.node))

    def use(self, node: str) -> None:
        """Ask ``node`` from now on. What waits for a connection to another one ends as `Unavailable`."""
        with self._changing:
            if node == self.node or self._pool.closed:
                return
            before, self.node, self._pool = self._pool, node, self._make_pool(node)
        before.close(timeout=0)

    def close(self) -> None:
        with self._changing:
            super().close()

    def _conninfo(self, node: str) -> dict[str, Any]:
        return super()._conninfo(node) | {"target_session_attrs": "read-write"}  # a replica is no primary any more

    def _suspect(self) -> None:
        if self._follower is None and self._looking.acquire(blocking=False):
            threading.Thread(target=self._look, name=f"look for {self.region}'s primary", daemon=True).start()

    def _look(self) -> None:
        try:
            client = connect(self.view, timeout=LOOK)
            try:
                self.use(terms.current(client, self.view, self.region, LOOK).node)
            finally:
                client.end()
        except (PghcError, KazooException, KazooTimeoutError):
            pass  # without a quorum nobody knows; the next failure looks again
        finally:
            self._looking.release()


class Store(Primary):
    """Reads and writes of one region's primary, and waits for what arrives there."""

    def __init__(self, view: View, *, timeout: float = 5.0, connections: int = 8) -> None:
        super().__init__(view, timeout=timeout, connections=connections)
        self._progress = Progress(self)

    def close(self) -> None:
        self._progress.close()
        super().close()

    def insert(self, row: Row, request_id: str, chain: int, timeout: float | None = None) -> None:
        """Insert ``row`` as it is into the chain that began at log position ``chain``.

        Raises `Conflict` when its place is taken or that chain has ended, `Unavailable`, or `Indefinite`.
        """
        what = f"insert entry {row.zk_id}"
        with self.connection(what, writes=True, timeout=timeout) as connection:
            query = "select pghc.insert(%s, %s, %s, %s, %s)"
            inserted = connection.execute(query, (*row, request_id, chain)).fetchone()
        if inserted != (True,):
            raise Conflict(
                f"{self.node}: {what}: the chain that this writer knows has ended, nothing was written",
                "Append again: it will be to the new chain",
                node=self.node,
            )

    def known(self, requests: Sequence[str], timeout: float | None = None) -> tuple[Cursor, dict[str, Row]]:
        """The cursor, and those of ``requests`` that are settled up to there, with their entries. In one snapshot."""
        query = """select c.position, c.zk_id, c.hash, c.chain, r.request_id::text, e.* from pghc.cursor c
                   left join (pghc.request r join public.chain e using (zk_id))
                   on r.request_id = any(%s::uuid[]) and r.zk_id <= c.zk_id"""
        found = self.rows(query, list(requests), what="look up requests", timeout=timeout)
        return Cursor(*found[0][:4]), {row[4]: Row(*row[5:]) for row in found if row[4]}

    def apply(
        self,
        old: Cursor,
        new: Cursor,
        rows: Sequence[Row],
        requests: Sequence[tuple[str, int, int]],
        timeout: float | None = None,
    ) -> bool:
        """Move the cursor from ``old`` to ``new`` and add ``rows``, in one transaction.

        ``requests``: (request_id, zk_id, position) of each row. False: the cursor is no longer at ``old``, nothing
        happened. Rows that came early by replication are taken as they are. Raises `Conflict` when a row or a request
        stands otherwise already (nothing happened), `Unavailable`, or `Indefinite` when the answer was lost.
        """
        what = f"apply log positions {old.position + 1} to {new.position}"
        zk_ids, node_ids, hashes = zip(*rows, strict=True) if rows else ((), (), ())
        ids, _, positions = zip(*requests, strict=True) if requests else ((), (), ())
        with self.connection(what, writes=True, timeout=timeout) as connection:
            query = """select pghc.apply(%s, %s, %s, %s, %s, %s,
                                         %s::bigint[], %s::text[], %s::text[], %s::uuid[], %s::bigint[])"""
            columns = [list(column) for column in (zk_ids, node_ids, hashes, ids, positions)]
            applied = connection.execute(query, (old.chain, old.position, old.zk_id, *new[:3], *columns)).fetchone()
        return applied == (True,)

    def wait_for(self, position: int, timeout: float) -> Cursor:
        """Wait until every log position up to ``position`` is settled in this region; woken by NOTIFY, no polling.

        Returns the cursor, which may be farther, or in a later chain. After ``timeout`` seconds, returns it as it is:
        the caller compares.
        """
        return self._progress.wait_for(position, timeout)

    def heard(self, within: float) -> Cursor | None:
        """The cursor as the server told it in the last ``within`` seconds, if it has told; nobody is asked."""
        return self._progress.heard(within)

    def applier(self) -> Applier:
        """The right to apply the log in this region. Raises `Conflict` while another session has it."""
        return Applier(self)


class Applier:
    """The one session that applies the log in a region: rows in bulk, under the replication origin ``log``.

    The other regions take the same rows from the log themselves, so the mesh (``origin = none``) need not bring them.
    A replication origin belongs to one session at a time, so a second applier is refused; one whose session was ended
    for it (`depose`) finds the cursor moved, or its connection closed.
    """

    def __init__(self, store: Store) -> None:
        self.node, self._timeout = store.node, store.timeout
        what = "begin to apply the log"
        try:
            arguments = {**store._conninfo(self.node), "application_name": APPLIER}
            self._connection = BoundedConnection.connect(**arguments, autocommit=True)
            self._connection.seconds = store.timeout
            self._connection.execute("select pg_replication_origin_session_setup('log')")
        except pg.ObjectInUse as error:
            self._connection.close()
            raise Conflict(f"{self.node}: {what}: another session does already", node=self.node) from error
        except psycopg.Error as error:
            raise Unavailable(f"{self.node}: {what}: {_message(error)}", node=self.node) from error

    def close(self) -> None:
        self._connection.close()

    def apply(self, old: Cursor, new: Cursor, rows: Sequence[Row], requests: Sequence[tuple[str, int, int]]) -> bool:
        """Move the cursor from ``old`` to ``new`` and add ``rows``, in one transaction.

        ``requests``: (request_id, zk_id, position) of each row. False: the cursor is no longer at ``old``, nothing
        happened. Raises `Conflict` when a request id is known already (nothing happened), `Indefinite` when the answer
        was lost; the cursor tells.
        """
        what = f"apply log positions {old.position + 1} to {new.position}"
        connection = self._connection
        try:
            with connection.transaction(), connection.cursor() as cursor:
                cursor.execute(
                    "update pghc.cursor set position = %s, zk_id = %s, hash = %s "
                    "where position = %s and zk_id = %s and chain = %s",
                    (*new[:3], old.position, old.zk_id, old.chain),
                )
                if cursor.rowcount != 1:
                    return False
                early = self._early(cursor, new.zk_id, rows)
                with cursor.copy("copy public.chain from stdin") as copy:
                    copy.write("".join([f"{n}\t{node}\t{h}\n" for n, node, h in rows if n not in early]))
                with cursor.copy("copy pghc.request (request_id, zk_id, position) from stdin") as copy:
                    copy.write("".join([f"{request}\t{n}\t{at}\n" for request, n, at in requests if n not in early]))
                cursor.execute("select pg_notify('pghc', '')")
        except pg.UniqueViolation as error:
            raise Conflict(f"{self.node}: {what}: {_message(error)}", node=self.node) from error
        except psycopg.Error as error:
            raise Indefinite(f"{self.node}: {what}: {_message(error)}", node=self.node) from error
        return True

    def _early(self, cursor: psycopg.Cursor[TupleRow], upto: int, rows: Sequence[Row]) -> set[int]:
        """The numbers up to ``upto`` whose rows came by replication before their turn: their turn is now."""
        cursor.execute("delete from pghc.early where zk_id <= %s returning zk_id", (upto,))
        early = {zk_id for (zk_id,) in cursor.fetchall()}
        if early:
            cursor.execute("select * from public.chain where zk_id = any(%s)", (list(early),))
            if others := {Row(*row) for row in cursor.fetchall()} - set(rows):
                raise pg.UniqueViolation(f"another row than the log's stands there: {min(others)}")
        return early


def depose(store: Store) -> None:
    """End the session that applies the log in this region, if there is one: it has not moved for too long."""
    query = """select pg_terminate_backend(pid) from pg_stat_activity
               where application_name = %s and usename = current_user and datname = current_database()"""
    store.rows(query, APPLIER, what="depose the applier")


class Progress:
    """Follows a primary's cursor by LISTEN on one connection, for any number of waiting threads."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._node = store.node
        self._cursor: Cursor | None = None  # not known yet
        self._heard = 0.0  # when it was read last
        self._moved = threading.Condition()
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    def close(self) -> None:
        self._stop.set()
        if self._thread:
            self._thread.join(timeout=2)

    def wait_for(self, position: int, timeout: float) -> Cursor:
        with self._moved:
            self._begin()
            deadline = time.monotonic() + timeout
            self._moved.wait_for(lambda: self._cursor, timeout)
            if self._cursor is None:
                return Cursor()
            end = self._cursor.chain, position
            self._moved.wait_for(lambda: self._cursor and self._cursor.place >= end, deadline - time.monotonic())
            reached: Cursor | None = self._cursor  # none any more when another primary is asked since
            return reached or Cursor()

    def heard(self, within: float) -> Cursor | None:
        with self._moved:
            self._begin()
            return self._cursor if time.monotonic() - self._heard <= within else None

    def _begin(self) -> None:
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name=f"listen {self._store.node}", daemon=True)
            self._thread.start()

    def _run(self) -> None:
        while not self._stop.is_set():
            try:
                self._listen()
            except (psycopg.Error, PghcError):
                self._stop.wait(0.2)  # the server is away: pace of the next attempt

    def _listen(self) -> None:
        node = self._store.node
        with BoundedConnection.connect(**self._store._conninfo(node), autocommit=True) as connection:
            connection.execute(sql.SQL("listen {}").format(sql.Identifier(CHANNEL)))
            while not self._stop.is_set() and node == self._store.node:
                # A notification says no more than that the cursor has moved: anybody may notify
                asked = time.monotonic()
                current = connection.execute(_CURSOR).fetchone()
                self._set(node, Cursor(*current or ()), asked)
                while not self._stop.is_set() and node == self._store.node:
                    if list(connection.notifies(timeout=0.5, stop_after=1)):
                        break

    def _set(self, node: str, cursor: Cursor, asked: float) -> None:
        with self._moved:
            self._heard = asked
            if node != self._node:  # another primary, which may have to catch up with what the one before had
                self._node, self._cursor = node, None
            if self._cursor is None or cursor.place > self._cursor.place:
                self._cursor = cursor
                self._moved.notify_all()


def _one(cursor: psycopg.Cursor[TupleRow]) -> TupleRow:
    row = cursor.fetchone()
    assert row is not None
    return row


def _not_closed(connection: psycopg.Connection[TupleRow]) -> None:
    """Raise when the server has closed this idle connection; looks at what has arrived, without asking the server."""
    connection.pgconn.consume_input()


def _message(error: psycopg.Error) -> str:
    return " ".join(str(error).split()) or type(error).__name__
