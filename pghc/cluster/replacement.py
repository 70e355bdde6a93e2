"""What replaces a server that is lost for good: another primary, a copy, a region made anew from the others.

    promote(region):  farthest = the replica with most of the write-ahead log
                      begin a term with it                   compare-and-set in ZooKeeper
                      settle the region                      again, whoever was interrupted
    settle(region):   make the term's node the primary       stop the former one; its service leads to the new one
                      join it with each other region         a slot and a subscription for the two regions' terms
                      complete every region from the log     what a lost primary had sent to nobody

The log is the truth and a primary is a copy of it. So a deposed primary, dead, paused or cut off, needs no lease and no
clock to be harmless: a row that a writer commits there is a function of the log, and is made from it everywhere else.
What it commits besides, by a mere psql, stays there: the slots that carried its rows are read by nobody, those that it
read are gone, and before it is a replica again its data is replaced. One thing would do harm, to truncate the log for
it; that is refused by the epoch of its term (`Sequencer.report`). Chains that are not ordered by the log have no such
help: what the replica had not received is lost, as with asynchronous replication everywhere.

A replica that is promoted holds the subscriptions of its predecessor, and must not share their slots with it: the names
of slots carry the epochs of both regions' terms. Where only the reader has changed, its new slot is a copy of the old
one, and skips nothing; where the publisher has, its slot is new, and the log completes what it skips.

Why not Patroni (4.1.5), which knows how to promote: its time to live is 20 s at least, so a primary that died is
followed after 20 s, not 5; and an agent beside each of nine servers takes 47 MB, more than the whole lab may.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any, Protocol

import psycopg
from kazoo.exceptions import KazooException, NodeExistsError
from psycopg import sql

from pghc import terms
from pghc.cluster import losses, settings
from pghc.cluster.mesh import reset, subscription
from pghc.errors import BadInput, ClusterError, Conflict, PghcError, Unavailable
from pghc.mutex import Mutex
from pghc.sequencer import APPLIED, Sequencer
from pghc.store import BoundedConnection, Reader, Store
from pghc.store import complete as arguments_of
from pghc.terms import Term
from pghc.topology import Region, Topology, View
from pghc.writers.log import fold
from pghc.zookeeper import LOST, Client, connect

Say = Callable[[str], None]
Connection = psycopg.Connection[Any]

#: Seconds: for a server to answer a question, and for what it is asked to come about.
ANSWER, PATIENCE = 5.0, 20.0
#: Seconds until a replica that runs reads its primary's log, or never will.
FOLLOWING = 10.0
#: How often a term is begun anew when the region reports at the same moment.
ATTEMPTS = 3
#: Entries of the log that are completed in one transaction.
AHEAD = 200


class Servers(Protocol):
    """What a backend does with its servers for this."""

    name: str

    @property
    def topology(self) -> Topology: ...

    def view(self, region: str) -> View: ...

    def retire(self, node: str) -> bool:
        """Stop a server in order, so that its readers get all that it has; one that is paused or gone stays so.

        Returns whether it ran.
        """

    def appoint(self, region: str, node: str) -> None:
        """From now on ``node`` is the region's primary: whoever dials that finds it. Stops the former one."""

    def copy(self, node: str, source: str, *, primary: bool = False) -> None:
        """Replace the server's data by a base backup of region ``source``'s primary, and start it.

        As a replica; or as a ``primary`` that does not take anybody's rows until it is started again.
        """

    def restart(self, node: str) -> None: ...

    def lacking(self) -> dict[str, str]:
        """The servers that cannot start, and why: their data is gone, or that of a former primary."""


def promote(servers: Servers, region: str, to: str | None = None, say: Say = lambda _: None) -> str:
    """Make a replica the region's primary, the farthest or ``to``; returns its name.

    A primary that works is stopped first. Idempotent: what was interrupted is brought to its end. Raises `BadInput`,
    `ClusterError` and `Unavailable`.
    """
    here = servers.topology.region(region)
    view = servers.view(region)
    if to is not None and to not in here.databases:
        raise BadInput(f"{to} is no database of {region}", f"They are {', '.join(here.databases)}.")
    with _zookeeper(view) as client:
        term = terms.current(client, view, region)
        if term.node == to:
            _settle(servers, [region], client, say)
            return to
        names = [to] if to else [name for name in here.databases if name != term.node]
        _farthest(view, names, term)  # is there any?
        retired = servers.retire(term.node)
        try:
            node = _succeed(view, names, term, client)
        except PghcError:
            if retired and terms.current(client, view, region) == term:  # nobody follows it
                with suppress(PghcError):
                    servers.restart(term.node)
            raise
        say(f"{node} follows {term.node} as primary of {region}")
        _settle(servers, [region], client, say)
    return node


def _succeed(view: View, names: Sequence[str], term: Term, client: Client) -> str:
    """Begin a term with the farthest of ``names``, which has all that the region has said to need the log for no more.

    Tries again when the region has said so meanwhile: the last report of the former primary may be on its way.
    """
    region = view.region
    for attempt in range(1, ATTEMPTS + 1):
        node, position = _farthest(view, names, term)
        kept, version = _reported(client, region)
        if position < kept:
            raise ClusterError(
                f"{node}: has log position {position}, and {region} had said that it needs the log only from {kept} on",
                f"Bring back a replica that has more (`pghc up`), or `pghc rebuild {region}`",
                node=node,
            )
        try:
            with suppress(*LOST):  # it may have happened: the next look tells
                terms.succeed(client, region, term, node, unchanged=(f"{APPLIED}/{region}", version))
        except Conflict:
            if attempt == ATTEMPTS or terms.current(client, view, region) != term:
                raise
        else:
            break
    return node


def _farthest(view: View, names: Sequence[str], term: Term) -> tuple[str, int]:
    standings = _standings(view, names)
    if not standings:
        raise ClusterError(
            f"{view.region}: no replica answers that could follow {term.node}",
            f"Start one (`pghc up`); when all are lost, `pghc rebuild {view.region}`",
            node=term.node,
        )
    node = max(standings, key=lambda name: standings[name])
    return node, standings[node][1]


def _standings(view: View, names: Sequence[str]) -> dict[str, tuple[int, int]]:
    """How far each replica that answers is: bytes of the write-ahead log, log position; once it has replayed all."""
    query = """select (greatest(pg_last_wal_receive_lsn(), pg_last_wal_replay_lsn()) - '0/0')::bigint,
               coalesce(pg_last_wal_receive_lsn() <= pg_last_wal_replay_lsn(), true), position
               from pghc.cursor where pg_is_in_recovery()"""
    found = {}
    for name in names:
        end = time.monotonic() + ANSWER
        with suppress(ClusterError), _connected(view, name) as connection:
            while row := connection.execute(query).fetchone():
                found[name] = row[0], row[2]
                if row[1] or time.monotonic() > end:
                    break
                time.sleep(0.02)
    return found


def _reported(client: Client, region: str) -> tuple[int, int]:
    """Up to where the region has said that it needs the log no more, and the version of that report."""
    path = f"{APPLIED}/{region}"
    with suppress(NodeExistsError):
        client.create_async(path, b"0", makepath=True).get(timeout=ANSWER)
    client.sync_async(path).get(timeout=ANSWER)
    data, stat = client.get_async(path).get(timeout=ANSWER)
    return int(data), stat.version


# The mesh


@dataclass(frozen=True)
class _Side:
    """A region's primary in its term."""

    view: View
    term: Term

    @property
    def region(self) -> str:
        return self.view.region

    @contextmanager
    def connected(self) -> Iterator[Connection]:
        with _connected(self.view, self.term.node) as connection:
            yield connection


def settle(servers: Servers, regions: Sequence[str], say: Say = lambda _: None) -> None:
    """Make everything as the regions' terms say. Idempotent; what cannot be reached now is left for the next time."""
    with _zookeeper(servers.view(regions[0])) as client:
        _settle(servers, regions, client, say)


def _settle(servers: Servers, regions: Sequence[str], client: Client, say: Say) -> None:
    views = {name: servers.view(name) for name in servers.topology.names}
    sides = {name: _Side(view, terms.current(client, view, name)) for name, view in views.items()}
    pairs = [(sides[one], sides[other]) for one, other in servers.topology.pairs if {one, other} & {*regions}]
    with _alone(views[regions[0]]), ThreadPoolExecutor(2 * len(pairs)) as pool:
        list(pool.map(lambda region: _install(servers, sides[region]), regions))
        now = [servers.view(name) for name in views]  # with the primaries that have just been installed
        joined = [pool.submit(_attempt, join, pair, say) for pair in pairs]
        completed = [pool.submit(_attempt, complete, (view,), say) for view in now]
        for each in (*joined, *completed):
            each.result()
        _attempt(_begin, (now,), say)


def _install(servers: Servers, side: _Side) -> None:
    """Make the node of a region's term its primary, which its replicas read."""
    databases, node = servers.topology.region(side.region).databases, side.term.node
    servers.appoint(side.region, node)
    try:
        with side.connected() as connection:
            if _one(connection, "select pg_is_in_recovery()"):
                connection.execute("select pg_promote(true, 15)")
            _physical_slots(connection, [name for name in databases if name != node])
    except ClusterError as error:
        raise ClusterError(
            f"{node} is to be {side.region}'s primary: {error.what}",
            f"`pghc up`, then `pghc promote {side.region}`",
            node=node,
        ) from error
    for replica in databases:
        if replica != node:
            _follow(side.view, replica, side.term)


def _attempt(what: Callable[..., None], arguments: tuple[Any, ...], say: Say) -> None:
    try:
        what(*arguments)
    except PghcError as error:
        say(f"left for the next `pghc up`: {error.what}")


def join(publisher: _Side, reader: _Side) -> None:
    """Let ``reader``'s primary take the rows of ``publisher``'s, by the slot of their two terms."""
    slot = slot_of(publisher, reader)
    name = subscription(publisher.region)
    with reader.connected() as there:
        if _one(there, "select subslotname = %s from pg_subscription where subname = %s", slot, name):
            with publisher.connected() as here:
                if _one(here, "select wal_status <> 'lost' from pg_replication_slots where slot_name = %s", slot):
                    return
        drop_subscription(there, name)
        prepare(publisher, reader)
        with publisher.connected() as here, there.transaction():
            chain, began = here.execute("select chain, began::text from pghc.cursor").fetchone() or (0, None)
            statements = settings.subscriptions(reader.view.topology, reader.region, {publisher.region: slot})
            for statement in statements:
                there.execute(statement.encode())
            if began:  # what is before is of older chains, which a new reader would not know
                skip = "select pg_replication_origin_advance('pg_' || oid, %s) from pg_subscription where subname = %s"
                there.execute(skip, (began, name))
            if chain != _one(there, "select chain from pghc.cursor"):  # until both have begun the newest one: `_begin`
                there.execute(f"alter subscription {name} disable".encode())


def prepare(publisher: _Side, reader: _Side) -> None:
    """The slot by which ``reader`` will take ``publisher``'s rows, from now on or from where it had come before."""
    slot, first = slot_of(publisher, reader), settings.slot(reader.region, 0, 0)
    query = """select slot_name, wal_status <> 'lost' from pg_replication_slots where slot_type = 'logical'
               and (slot_name = %s or slot_name ~ ('^t[0-9]+_[0-9]+_' || %s || '$')) order by slot_name = %s"""
    with publisher.connected() as here:
        slots = dict(here.execute(query, (first, first, slot)).fetchall())
        if not slots.get(slot):
            usable = [name for name, good in slots.items() if good and name != slot]
            if slot in slots:
                _drop_slot(here, slot)
            if usable:
                _release(here, usable[-1])
                here.execute("select pg_copy_logical_replication_slot(%s, %s)", (usable[-1], slot))
            else:
                here.execute("select pg_create_logical_replication_slot(%s, 'pgoutput')", (slot,))
        for other in slots:
            if other != slot:
                _drop_slot(here, other)


def slot_of(publisher: _Side, reader: _Side) -> str:
    return settings.slot(reader.region, publisher.term.epoch, reader.term.epoch)


def drop_subscription(connection: Connection, name: str) -> None:
    """Its slot stays, wherever that is."""
    if _one(connection, "select true from pg_subscription where subname = %s", name):
        for change in ("disable", "set (slot_name = none)"):
            connection.execute(f"alter subscription {name} {change}".encode())
        connection.execute(f"drop subscription {name}".encode())


def _release(connection: Connection, slot: str) -> None:
    query = "select pg_terminate_backend(active_pid) from pg_replication_slots where slot_name = %s and active"
    connection.execute(query, (slot,))


def _drop_slot(connection: Connection, slot: str) -> None:
    end = time.monotonic() + ANSWER
    while True:
        _release(connection, slot)  # a reader that was deposed, and may come again before the slot is gone
        try:
            connection.execute("select pg_drop_replication_slot(%s)", (slot,))
        except psycopg.errors.UndefinedObject:
            return
        except psycopg.errors.ObjectInUse:
            if time.monotonic() > end:
                raise
            time.sleep(0.02)
        else:
            return


def _physical_slots(connection: Connection, replicas: Sequence[str]) -> None:
    for replica in replicas:
        name = settings.identifier(replica)
        good = _one(connection, "select wal_status <> 'lost' from pg_replication_slots where slot_name = %s", name)
        if good is False:
            _drop_slot(connection, name)
        if not good:
            connection.execute("select pg_create_physical_replication_slot(%s, true)", (name,))


def _follow(view: View, replica: str, term: Term) -> None:
    """Let a replica leave the primary that it reads and look where that of ``term`` is.

    Its name stays, the region's service; but only what has changed makes a replica end its connection, and one to a
    primary that is paused lasts. So the epoch stands there, too.
    """
    source = f"service={view.topology.region(view.region).primary} fallback_application_name=term_{term.epoch}"
    with suppress(ClusterError), _connected(view, replica) as connection:
        if _one(connection, "select pg_is_in_recovery() and current_setting('primary_conninfo') <> %s", source):
            connection.execute(sql.SQL("alter system set primary_conninfo = {}").format(source))
            connection.execute("select pg_reload_conf()")


def _timeline(view: View, primary: str) -> int:
    with _connected(view, primary) as connection:
        query = "select ('x' || substr(pg_walfile_name(pg_current_wal_lsn()), 1, 8))::bit(32)::int"
        return int(_one(connection, query))


def _follows(view: View, timeline: int, replica: str) -> bool:
    """Whether a replica reads the log of the primary of this timeline, once it has had the time to begin.

    One that has log which the primary has not, as it read on from a predecessor, stays on a timeline of its own.
    """
    reads = "select status = 'streaming' and received_tli = %s from pg_stat_wal_receiver"
    end = time.monotonic() + FOLLOWING
    with suppress(ClusterError), _connected(view, replica) as connection:
        while not _one(connection, reads, timeline):
            if time.monotonic() > end:
                return False
            time.sleep(0.1)
        return True
    return False


def complete(view: View) -> None:
    """Settle in the region all that the log holds now, whoever would have brought it, up to where a chain begins."""
    with Store(view) as store, Sequencer(view) as log:
        tip, cursor = log.tip(), store.cursor()
        if log.ordering(cursor.chain) != "log":
            return
        end = time.monotonic() + PATIENCE
        while cursor.position < tip and time.monotonic() < end:
            first = cursor.position + 1
            entries = log.read(first, min(tip, cursor.position + AHEAD))
            now, known = store.known([request for entry in entries for request in entry.requests])
            if now == cursor:  # else somebody was faster
                new, rows, requests = fold(cursor, entries, known)
                if new == cursor:  # another chain begins here, which is begun in all regions at once
                    return
                store.apply(cursor, new, rows, requests)
            cursor = store.cursor()


def begin(views: Sequence[View]) -> None:
    """`_begin`, alone; nothing is locked where nothing is to be done."""
    if _unbegun(views) is not None:
        with _alone(views[0]):
            _begin(views)


@contextmanager
def _alone(view: View) -> Iterator[None]:
    """While a chain is begun the mesh stands still, and nobody joins it. Raises `Unavailable`."""
    with Mutex(view, "begin") as mutex, mutex.hold(PATIENCE + ANSWER):
        yield


def _begin(views: Sequence[View]) -> None:
    """Begin in every region the newest chain of the log, where that was interrupted, or a replica was behind it.

    Then enter what the log has of it. Nothing to do when all have it, and take each other's rows.
    """
    if (position := _unbegun(views)) is not None:
        reset(views, position)
        for view in views:
            complete(view)


def _unbegun(views: Sequence[View]) -> int | None:
    """The position of the chain that some region has not begun, or in which the mesh stands still."""
    cursors, disabled = [], 0
    for view in views:
        with _connected(view, view.primary()) as connection:
            cursors.append(connection.execute("select position, chain from pghc.cursor").fetchone() or (0, 0))
            disabled += _one(connection, "select count(*) from pg_subscription where not subenabled") or 0
    newest = max(chain for _, chain in cursors)
    with Sequencer(views[0]) as log:
        tip, position = log.tip(), min(position for position, _ in cursors)
        while position < tip:
            entries = log.read(position + 1, min(tip, position + AHEAD))
            newest = max([newest, *(position + n for n, entry in enumerate(entries, 1) if entry.begins)])
            position += len(entries) or tip
    return newest if disabled or any(chain < newest for _, chain in cursors) else None


# Copies


def rebuild(servers: Servers, name: str, say: Say = lambda _: None) -> None:
    """Give a server, or all that lack their data in a region, their data back from those that have it.

    Raises `BadInput`, `ClusterError`.
    """
    topology = servers.topology
    region = topology.region(name if name in topology.names else topology.node(name).region)
    lacking = servers.lacking()
    nodes = [each.name for each in region.nodes if each.name == name or (name == region.name and each.name in lacking)]
    primary = servers.view(region.name).primary()
    if primary in nodes and primary in lacking:
        replicas = [node for node in region.databases if node not in (primary, *lacking)]
        if replicas and name not in topology.names:
            raise ClusterError(
                f"{name} is the primary of {region.name} and has lost its data",
                f"`pghc promote {region.name}` makes a replica the primary; then `pghc up`",
                node=name,
            )
        if replicas:
            promote(servers, region.name, say=say)
        else:
            found(servers, region.name, say)
    elif primary in nodes and name == primary:
        raise BadInput(f"{name} is the primary of {region.name}, and has its data", f"`pghc promote {region.name}`")
    primary = servers.view(region.name).primary()
    for node in nodes:
        if node in region.databases and node != primary:
            _copy(servers, node, region.name, say)
        elif node not in region.databases:
            servers.restart(node)


def _copy(servers: Servers, replica: str, region: str, say: Say) -> None:
    view = servers.view(region)
    say(f"{replica}: copying the data of {view.primary()}")
    with _connected(view, view.primary()) as connection:
        _physical_slots(connection, [replica])
    servers.copy(replica, region)


def found(servers: Servers, region: str, say: Say = lambda _: None) -> None:
    """Make a region's primary anew, from that of the region that is farthest: its chain and cursor in one snapshot.

    The other regions keep what they write from now on for it before the copy begins, so nothing falls between.
    """
    views = {name: servers.view(name) for name in servers.topology.names}
    here = views[region]
    positions = {}
    for name, view in views.items():
        if name != region:
            with suppress(PghcError), Reader(view, view.primary(), connections=1) as reader:
                positions[name] = reader.cursor().position
    if not positions:
        raise ClusterError(f"{region}: no other region answers from which its primary could be copied", "`pghc up`")
    donor = max(positions, key=lambda name: positions[name])
    with _zookeeper(views[donor]) as client:
        term = terms.current(client, here, region)
        # A term of its own: who read the former one reads it no more. Of the log it needs what the donor's copy lacks.
        _reported(client, region)  # is there a report?
        report = f"{APPLIED}/{region}", str(positions[donor]).encode()
        terms.succeed(client, region, term, term.node, also=report)
        sides = {name: _Side(view, terms.current(client, view, name)) for name, view in views.items()}
    for name in positions:
        prepare(sides[name], sides[region])
    node = sides[region].term.node
    say(f"{node}: copying the data of {sides[donor].term.node}")
    servers.copy(node, donor, primary=True)
    _take_part(servers, region, node, say)


def _take_part(servers: Servers, region: str, node: str, say: Say) -> None:
    """Let a primary that was copied from another region's take the rows of all others, and no longer as its donor."""
    with _connected(servers.view(region), node) as connection:
        for (name,) in connection.execute("select subname from pg_subscription").fetchall():
            drop_subscription(connection, name)
    servers.restart(node)
    settle(servers, [region], say)


def _is_apart(view: View, primary: str) -> bool:
    """Whether the primary is a copy of another region's which does not take part yet."""
    with _connected(view, primary) as connection:
        return bool(_one(connection, "show max_logical_replication_workers") == "0")


def rejoin(servers: Servers, say: Say = lambda _: None) -> None:
    """Make again what could not be made while a primary was away, which has come back. Raises `PghcError`.

    Nothing to do where no region has ever had another term.
    """
    query = "select count(*), count(*) filter (where subslotname like 't%%') from pg_subscription"
    reached, amiss = [], False
    for name in servers.topology.names:
        view = servers.view(name)
        with suppress(ClusterError), _connected(view, view.primary()) as connection:
            subscriptions, of_later_terms = connection.execute(query).fetchone() or (0, 0)
            reached.append(name)
            amiss = amiss or bool(of_later_terms) or subscriptions < len(servers.topology.names) - 1
    if amiss:
        settle(servers, reached, say)


def restore(servers: Servers, say: Say = lambda _: None) -> None:
    """What `up` does by itself: bring interrupted changes to their end, and make again the copies that lack.

    A region that has lost its primary is left as it is, for to go on with a replica is not `up`'s to decide.
    """
    topology = servers.topology
    lacking = servers.lacking()
    with _zookeeper(servers.view(topology.central)) as client:
        current = {name: terms.current(client, servers.view(name), name) for name in topology.names}
    here: list[Region] = []
    for region in topology.regions:
        primary = current[region.name].node
        if primary in lacking:
            command = losses.remedy(topology, topology.node(primary), primary, lacking, servers.name)
            say(f"{primary}: {lacking[primary]}: {command}")
        else:
            here.append(region)
    for region in here:
        if _is_apart(servers.view(region.name), current[region.name].node):
            _take_part(servers, region.name, current[region.name].node, say)
    given_up = {region.name: _given_up(servers.view(region.name), current[region.name].node) for region in here}
    unsettled = [
        name
        for name, slots in given_up.items()
        if current[name].epoch or servers.view(name).primary() != current[name].node or any(slots.values())
    ]
    if unsettled:
        settle(servers, unsettled, say)
    elif len(here) == len(topology.names):
        _attempt(begin, ([servers.view(name) for name in topology.names],), say)
    for region in here:
        primary, view = current[region.name].node, servers.view(region.name)
        timeline = _timeline(view, primary)
        for name in region.databases:
            if name != primary and (
                name in lacking
                or settings.identifier(name) in given_up[region.name]
                or not _follows(view, timeline, name)
            ):
                _copy(servers, name, region.name, say)


def _given_up(view: View, primary: str) -> dict[str, bool]:
    """Slots of a primary whose readers were too far behind, and whether a region's, not a replica's.

    The log has what a region lacks; a replica is copied.
    """
    query = "select slot_name, slot_type = 'logical' from pg_replication_slots where wal_status = 'lost'"
    with _connected(view, primary) as connection:
        return dict(connection.execute(query).fetchall())


# Connections


@contextmanager
def _zookeeper(view: View) -> Iterator[Client]:
    client = connect(view)
    try:
        yield client
    except LOST as error:
        raise Unavailable(
            f"{view.region}: learn who the primary is: the connection to ZooKeeper was lost",
            "A quorum is more than half of the servers: see `pghc status`; then try again",
        ) from error
    except KazooException as error:
        raise ClusterError(f"{view.region}: ZooKeeper refused: {type(error).__name__}") from error
    finally:
        client.end()


@contextmanager
def _connected(view: View, node: str) -> Iterator[Connection]:
    """Raises `ClusterError`, with the node's name, for whatever goes wrong there."""
    try:
        with BoundedConnection.connect(**arguments_of(view.conninfo(node, admin=True)), autocommit=True) as connection:
            connection.seconds = PATIENCE
            yield connection
    except psycopg.Error as error:
        why = " ".join(str(error).split()) or type(error).__name__
        raise ClusterError(f"{node}: {why}", "See `pghc status`; `pghc up`, then the same again", node=node) from error


def _one(connection: Connection, query: str, *parameters: Any) -> Any:
    row = connection.execute(query.encode(), parameters or None).fetchone()
    return row and row[0]
