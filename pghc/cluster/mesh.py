"""The mesh: the subscriptions by which the primaries replicate to each other, watched and begun anew."""

from __future__ import annotations

import re
import time
from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack, suppress

import psycopg
from psycopg import sql
from psycopg.rows import TupleRow

from pghc.errors import ClusterError, PghcError
from pghc.store import Primary, Reader
from pghc.topology import View


def reset(views: Sequence[View], position: int, *, timeout: float = 20.0) -> None:
    """Begin a fresh chain in all regions, after log position ``position``; ends a stuck mesh, too.

    ``views``: the view of each region. What the mesh still carries of the old chain is skipped, not applied. All
    primaries must be reachable. Raises `ClusterError`: then no region takes rows from one that is in another chain.
    Idempotent: after an interruption it is run again, by `up` if by nobody else, and regions that had begun already
    keep what they have.
    """
    with ExitStack() as closing:
        stores = [closing.enter_context(Primary(view, admin=True, timeout=timeout)) for view in views]
        try:
            try:
                _stop(stores, timeout)
            except PghcError:
                _enable(stores)  # as they were: none has begun
                raise
            begun, failure = _begin(stores, position)
            for store in stores:
                _take_rows(store, begun)
            if failure:
                raise failure
        except PghcError as error:
            raise ClusterError(
                f"the chain was not begun in every region: {error.what}", "`pghc up` begins it there; then try again"
            ) from error


def _stop(stores: Sequence[Primary], timeout: float) -> None:
    """Returns when no primary takes another's rows."""
    deadline = time.monotonic() + timeout
    for store in stores:
        _each_subscription(store, "disable")
    for store in stores:
        while _workers(store):
            if time.monotonic() > deadline:
                raise ClusterError(f"{store.node}: its replication did not stop within {timeout:g} s")
            time.sleep(0.02)  # a worker's end is not notified


def _begin(stores: Sequence[Primary], position: int) -> tuple[dict[str, str], PghcError | None]:
    """The regions that are in the chain of ``position`` now, with the place in the write-ahead log where it begins
    there; and why others are not.
    """
    begun: dict[str, str] = {}
    failure: PghcError | None = None
    for store in stores:
        try:
            with store.connection("empty the chain", writes=True) as connection, connection.transaction():
                # Nobody replicates now who could confirm it
                connection.execute("set local synchronous_commit = local")
                row = connection.execute("select pghc.begin(%s)::text", (position,)).fetchone()
            if not (row and row[0]):
                raise ClusterError(f"{store.node}: the chain of log position {position} has been followed by another")
            begun[store.region] = row[0]
        except PghcError as error:
            failure = error
    return begun, failure


def _take_rows(store: Primary, begun: Mapping[str, str]) -> None:
    """Let a primary take the rows of regions that are in the same chain, from its beginning there."""
    skip = """select pg_replication_origin_advance(o, %s) from (select %s) s (o)
              where coalesce(pg_replication_origin_progress(o, false), '0/0') < %s"""
    for oid, name in _subscriptions(store):
        if (end := begun.get(publisher(name))) and store.region in begun:
            store.rows(skip, end, f"pg_{oid}", end, what="skip the old chain")
        if (end is not None) == (store.region in begun):
            _alter(store, "enable", [name])


def wait_for_mesh(views: Sequence[View], *, timeout: float = 20.0) -> None:
    """Wait until every primary streams to all the others again, as after `reset`; rows of before that come late.

    ``views``: the view of each region. Raises `ClusterError`, `Unavailable`.
    """
    deadline = time.monotonic() + timeout
    query = "select count(*) from pg_stat_replication r join pg_replication_slots s on s.active_pid = r.pid \
             where s.slot_type = 'logical' and r.state = 'streaming'"
    for view in views:
        with Primary(view, admin=True, timeout=timeout, connections=1) as store:
            while (streams := store.rows(query, what="watch replication")[0][0]) < len(views) - 1:
                if time.monotonic() > deadline:
                    raise ClusterError(
                        f"{store.node}: {streams} of {len(views) - 1} regions read it again within {timeout:g} s",
                        "Look at the links with `pghc status`, and heal them with `pghc up`", node=store.node,
                    )  # fmt: skip
                time.sleep(0.02)  # that a stream begins is not notified


def subscription(publisher_region: str) -> str:
    """The name of the subscription to a region's primary; each primary has one for each other region."""
    return "from_" + publisher_region.replace("-", "_")


def publisher(subscription_name: str) -> str:
    """The region that this subscription takes rows from: the inverse of `subscription`."""
    return subscription_name.removeprefix("from_").replace("_", "-")


def subscriber(slot_name: str) -> str:
    """The region whose subscription takes a primary's rows by this slot."""
    return re.sub(r"^(t\d+_\d+_)?to_", "", slot_name).replace("_", "-")


def _subscriptions(store: Reader) -> list[tuple[int, str]]:
    rows = store.rows("select oid::bigint, subname from pg_subscription order by subname", what="list subscriptions")
    return [(row[0], row[1]) for row in rows]


def _workers(store: Reader) -> list[TupleRow]:
    query = "select 1 from pg_stat_subscription s join pg_subscription u on u.oid = s.subid where s.pid is not null"
    return store.rows(query, what="watch replication workers")


def _enable(primaries: Iterable[Reader]) -> None:
    for store in primaries:
        with suppress(PghcError, psycopg.Error):
            _each_subscription(store, "enable")


def _each_subscription(store: Reader, verb: str) -> None:
    _alter(store, verb, [name for _, name in _subscriptions(store)])


def _alter(store: Reader, verb: str, subscriptions: Iterable[str]) -> None:
    with store.connection(f"{verb} subscriptions", writes=True) as connection:
        for name in subscriptions:
            connection.execute(sql.SQL("alter subscription {} {}").format(sql.Identifier(name), sql.SQL(verb)))
