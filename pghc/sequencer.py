"""Consensus-backed, strictly increasing numbers: a log of sequential nodes in ZooKeeper, by kazoo.

An entry of the log is a sequential node; creating it is agreed on by a quorum, and its place among its siblings is its
*log position*. Positions start at 1, have no gaps, and go on across sessions, servers and segments::

    /pghc/log                                         {"first": 1}       the number of the oldest segment
    /pghc/log/s0000000001                             {"base": 0}        a segment: positions base + 1, base + 2, ...
    /pghc/log/s0000000001/n-0000000000                position 1: {"node_id": ..., "requests": [...]}
    /pghc/applied/us-east                             12    up to where that region needs the log no more
    /pghc/chains/00000000000000000017                 how the chain that began at position 17 is ordered

ZooKeeper numbers the children of one parent with a signed 32-bit counter, so the log goes on under a new parent from
time to time (`rotate`); old segments are deleted whole (`truncate`). Each creation is one transaction with a check that
the parent's version is still 0, and rotation begins with a write to the parent: an order to the leader like any other,
hence no creation slips in after its end was read. (To take away the right to create does not do: the leader checks
rights against what is committed, not against what is under way.) A segment is begun in one transaction with a check
that the one before it has ended and is still there, and the oldest is deleted in one transaction with the mark of which
is the oldest now: who sleeps through a truncation can bring nothing back.

When the session or the connection is lost while a node is created, it may or may not be there. `take` then creates
again, under the same request id; whoever reads the log finds the id twice and treats the second position as void.
The recipe is that of sequential nodes (Hunt et al., "ZooKeeper: wait-free coordination", 2010).
"""

from __future__ import annotations

import json
import re
import socket
import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from itertools import pairwise
from typing import NamedTuple, Self
from uuid import UUID

from kazoo import exceptions as zk
from kazoo.interfaces import IAsyncResult
from kazoo.protocol.states import KazooState

from pghc import terms
from pghc.chain import NODE_ID
from pghc.errors import BadInput, ClusterError, Conflict, Indefinite, PghcError, Unavailable
from pghc.terms import Term
from pghc.topology import View
from pghc.zookeeper import LOST, Client, connect

LOG, APPLIED, CHAINS = "/pghc/log", "/pghc/applied", "/pghc/chains"

#: Bytes that the servers of ZooKeeper may hold before nothing more is put into the log; their heap is made for it
#: (`pghc.cluster.settings`): a server keeps a tree of all entries and the last ones once more, for followers that lag.
LOG_BYTES = 24_000_000

#: Seconds that an append may be given.
LONGEST = 86_400
_REQUEST_ID = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}")


def canonical(request_id: str) -> str:
    """The request id as it stands in the log: a UUID in lower case with hyphens. Raises `BadInput` if it is none."""
    try:
        # Most are written so already, and UUID takes five times as long
        return request_id if _REQUEST_ID.fullmatch(request_id) else str(UUID(request_id))
    except (ValueError, AttributeError, TypeError) as error:
        raise BadInput(f"the request id {request_id!r} is no UUID, nothing was sent", "Take `uuid.uuid4()`.") from error


def bounded(timeout: float) -> float:
    """The seconds of a time-out as they are. Raises `BadInput` for more than a day, and for what is no number."""
    if not timeout <= LONGEST:
        raise BadInput(f"a time-out of {timeout} seconds, nothing was sent", f"At most {LONGEST:,} are possible.")
    return timeout


class Entry(NamedTuple):
    """An entry of the log: the node that accepts the rows, and the appends' request ids (canonical UUID text).

    ``everywhere``: each region makes the rows itself, the mesh carries none. ``begins``: a new chain begins here.
    """

    node_id: str
    requests: tuple[str, ...]
    everywhere: bool = False
    begins: bool = False

    def encode(self) -> bytes:
        flags = {name: True for name in ("everywhere", "begins") if getattr(self, name)}
        return json.dumps({"node_id": self.node_id, "requests": self.requests} | flags).encode()

    @classmethod
    def decode(cls, data: bytes) -> Entry:
        """What everybody makes of ``data``: `VOID`, an entry without any append, of what cannot be read."""
        try:
            fields = json.loads(data)
            node_id, requests = fields["node_id"], fields["requests"]
            if fields.get("begins") is True:
                return BEGIN
            if type(requests) is list and NODE_ID.fullmatch(node_id) and all(map(_REQUEST_ID.fullmatch, requests)):
                return cls(node_id, tuple(requests), fields.get("everywhere") is True)
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
            pass
        return VOID


VOID, BEGIN = Entry("", ()), Entry("", (), begins=True)


class Segment(NamedTuple):
    number: int
    base: int

    @property
    def path(self) -> str:
        return f"{LOG}/s{self.number:010d}"

    def node(self, position: int) -> str:
        return f"{self.path}/n-{position - self.base - 1:010d}"

    def position(self, created: str) -> int:
        return self.base + int(created[-10:]) + 1


class Sequencer:
    """The log as one region sees it. Safe for many threads.

    ``timeout``: default limit of each call in seconds. Calls raise `Unavailable` (definite) when there was no quorum
    for that long and nothing was sent, `Indefinite` when something was sent and no answer came, `ClusterError` when the
    log is not there any more.
    """

    def __init__(self, view: View, *, timeout: float = 10.0, segment_size: int = 20_000) -> None:
        self.region, self.timeout, self.segment_size = view.region, timeout, segment_size
        self._view, self._regions = view, view.topology.names
        self._segments: list[Segment] = []
        self._changed, self._connected = threading.Event(), threading.Event()
        self._room, self._full = threading.Event(), ""
        self._room.set()
        deadline = time.monotonic() + timeout
        self.client: Client = connect(view, timeout=timeout)
        self._connected.set()
        self.client.add_listener(self._on_state)
        try:
            with self._guarded("open the log", _left(deadline)) as deadline:
                for path in ("/pghc", APPLIED, CHAINS):
                    self._create_if_missing(path, b"", deadline)
                self._create_if_missing(LOG, _json(first=1), deadline)
                if not self._load(deadline)._segments:
                    self._begin_first(deadline)
                terms.current(self.client, view, view.region, _left(deadline))  # from now on there is one to follow
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        self.client.end()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # Positions

    def take(self, entry: Entry, timeout: float | None = None) -> int:
        """Append ``entry`` to the log and return its position, larger than any that was given before the call.

        A lost reply is no concern of the caller: the entry is created again, and the log shows the request twice.
        Raises `Unavailable` when nothing of it can be in the log, `Indefinite` otherwise.
        """
        data, lost = entry.encode(), False
        deadline = time.monotonic() + (self.timeout if timeout is None else timeout)
        try:
            while True:
                self.await_room("append to the log", _left(deadline))
                segment = self._segments[-1]
                try:
                    results = self._create(segment, data).get(timeout=_left(deadline))
                except LOST:
                    lost = True
                    if time.monotonic() >= deadline:
                        raise
                    continue
                position = position_of(segment, results)
                if position is None:  # this segment has ended: not created
                    if time.monotonic() >= deadline:
                        raise self._unavailable("append to the log")
                    self.next_segment(segment, _left(deadline))
                    continue
                if position - segment.base >= self.segment_size:
                    with suppress(PghcError):  # the next one will try: this entry is in the log
                        self.rotate(segment, _left(deadline))
                return position
        except (Unavailable, ClusterError, *LOST) as error:
            if not lost:
                raise
            raise Indefinite(
                f"{self.region}: append to the log: no answer in time; it may have happened",
                "Retry with the same request id: it happens once, however often it is tried",
                node=f"{self.region}-zookeeper",
            ) from error

    def take_async(self, entry: Entry) -> tuple[Segment, IAsyncResult]:
        """Begin to append ``entry`` in the current segment; for callers that keep many entries on their way.

        ``position_of(segment, result.get(...))`` is its position. Entries of one session keep their order.
        """
        segment = self._segments[-1]
        return segment, self._create(segment, entry.encode())

    def _create(self, segment: Segment, data: bytes) -> IAsyncResult:
        transaction = self.client.transaction()
        transaction.check(segment.path, 0)
        transaction.create(f"{segment.path}/n-", data, sequence=True)
        return transaction.commit_async()

    def read(self, first: int, last: int, timeout: float | None = None) -> list[Entry]:
        """The entries at positions ``first`` to ``last``, as far as this region's server has them.

        Raises `ClusterError` when they have been truncated.
        """
        entries: list[Entry] = []
        with self._guarded("read the log", timeout) as deadline:
            while first <= last:
                segment = self._segment_of(first)
                window = range(first, min(first + 64, last + 1))  # so many reads on their way at once
                answers = [self.client.get_async(segment.node(position)) for position in window]
                read = 0
                try:
                    for answer in answers:
                        entries.append(Entry.decode(answer.get(timeout=_left(deadline))[0]))
                        read += 1
                except zk.NoNodeError:
                    if self._load(deadline)._segment_of(first + read) == segment:
                        break
                first += read
        return entries

    def wait_beyond(self, position: int, timeout: float) -> int:
        """Wait, woken by a watch, until this region's server has entries after ``position``.

        Returns the last position that it has, in the segment that holds the next one; ``position`` itself on time-out.
        """
        end = time.monotonic() + timeout
        while (left := end - time.monotonic()) > 0:
            self._changed.clear()
            try:
                last = self._look_beyond(position, left)
            except Unavailable:
                if time.monotonic() < end:
                    raise
                return position
            if last > position:
                return last
            if last == position:
                self._changed.wait(end - time.monotonic())
        return position

    def _look_beyond(self, position: int, timeout: float) -> int:
        """The last position in the segment of the next one; ``position`` if there is none; less: look again."""
        with self._guarded("watch the log", timeout) as deadline:
            segment = self._segment_of(position + 1)
            try:
                last = self._end(segment, deadline)
            except zk.NoNodeError:  # all regions had all of it, so it was truncated: the next one is there
                if self._load(deadline)._segment_of(position + 1) == segment:
                    raise self._unavailable("watch the log") from None
                return position - 1
            if last > position:
                return last
            entry = self.client.exists_async(segment.node(position + 1), watch=self._wake)
            following = self.client.exists_async(Segment(segment.number + 1, 0).path, watch=self._wake)
            if entry.get(timeout=_left(deadline)):
                return position + 1
            gone_on = following.get(timeout=_left(deadline))
            if gone_on and self._load(deadline)._segment_of(position + 1) != segment:
                return position - 1
            return position

    def tip(self, timeout: float | None = None) -> int:
        """The last position given so far; linearizable, as it begins with a `sync`."""
        with self._guarded("read the log's tip", timeout) as deadline:
            self.client.sync_async(LOG).get(timeout=_left(deadline))
            self._load(deadline)
            return self._end(self._segments[-1], deadline)

    def times(self, positions: Iterable[int], timeout: float | None = None) -> dict[int, int]:
        """When these positions were agreed on, in milliseconds since 1970; those that the log lacks are left out.

        The clock is that of the ZooKeeper server that was the leader.
        """
        with self._guarded("read the log's times", timeout) as deadline:
            first = self._load(deadline)._segments[0].base + 1
            asked = {p: self.client.exists_async(self._segment_of(p).node(p)) for p in positions if p >= first}
            stats = {position: answer.get(timeout=_left(deadline)) for position, answer in asked.items()}
        return {position: int(stat.ctime) for position, stat in stats.items() if stat}

    # How a chain is ordered

    def begin_chain(self, after: int, timeout: float | None = None) -> int:
        """Begin a new chain, for everybody, at the position that is returned: what comes before belongs to older ones.

        It is above ``after``, the highest position that any region has settled, also when ZooKeeper's data was emptied.
        Raises `Unavailable`, `Indefinite`, `ClusterError`.
        """
        deadline = time.monotonic() + (self.timeout if timeout is None else timeout)
        if self.tip(_left(deadline)) < after:
            self.rotate(timeout=_left(deadline), base=after)
        return self.take(BEGIN, _left(deadline))

    def ordering(self, chain: int, proposed: str = "", timeout: float | None = None) -> str:
        """How the chain that began at position ``chain`` is ordered: ``proposed``, if nobody has proposed before.

        Without a proposal the empty text, if nobody has.
        """
        with self._guarded("learn how the chain is ordered", timeout) as deadline:
            return ordering(self.client, chain, proposed, _left(deadline))

    # Segments

    def rotate(self, segment: Segment | None = None, timeout: float | None = None, base: int = 0) -> Segment:
        """End ``segment`` (default: the current one) and go on in the next; returns the one that is current afterwards.

        Idempotent, by any number of callers at once: whoever finds an ended segment begins the next with the same base.
        With ``base``, positions up to there are left out.
        """
        with self._guarded("rotate the log", timeout) as deadline:
            segment = segment or self._load(deadline)._segments[-1]
            ended = _json(base=segment.base, ended=True)
            with suppress(zk.BadVersionError, zk.NoNodeError):  # it has ended already, or has been truncated since
                self.client.set_async(segment.path, ended, 0).get(timeout=_left(deadline))
            with suppress(zk.NoNodeError):
                following = Segment(segment.number + 1, max(self._end(segment, deadline), base))
                begin = self.client.transaction()
                begin.check(segment.path, 1)  # it has ended, and has not been truncated meanwhile
                begin.create(following.path, _json(base=following.base))
                begin.commit_async().get(timeout=_left(deadline))
            return self._load(deadline)._segments[-1]

    def next_segment(self, ended: Segment, timeout: float | None = None) -> None:
        """Go on after ``ended``, as a refused creation or its size has shown; begin the next if nobody did yet."""
        with self._guarded("find the log's next segment", timeout) as deadline:
            if self._load(deadline)._segments[-1].number <= ended.number:
                self.rotate(ended, _left(deadline))

    def term(self, timeout: float | None = None) -> Term:
        """Who is this region's primary, and since which epoch."""
        with self._guarded("learn who is the primary", timeout) as deadline:
            return terms.current(self.client, self._view, self.region, _left(deadline))

    def report(self, position: int, term: Term, timeout: float | None = None) -> dict[str, int]:
        """Report that this region has settled all up to ``position``, and loses it with no single server.

        The report is in the name of ``term``, whose primary has told the position. Raises `Conflict` when that term is
        over: a deposed primary may have what its successor still needs the log for. Returns what each region has
        reported; a region that has reported nothing yet counts as 0.
        """
        with self._guarded("report progress", timeout) as deadline:
            if position:
                self._report(str(position).encode(), term, deadline)
            return self.reports(_left(deadline))

    def _report(self, data: bytes, term: Term, deadline: float) -> None:
        path = f"{APPLIED}/{self.region}"
        self._create_if_missing(path, b"0", deadline)
        transaction = self.client.transaction()
        transaction.check(terms.path(self.region), term.epoch)
        transaction.set_data(path, data)
        if any(isinstance(result, Exception) for result in transaction.commit_async().get(timeout=_left(deadline))):
            raise Conflict(f"{term.node}: its term as primary is over, it has reported nothing", node=term.node)

    def reports(self, timeout: float | None = None) -> dict[str, int]:
        """What each region has reported."""
        with self._guarded("read reports", timeout) as deadline:
            reports = dict.fromkeys(self._regions, 0)
            for region in self._regions:
                with suppress(zk.NoNodeError):
                    answer = self.client.get_async(f"{APPLIED}/{region}").get(timeout=_left(deadline))
                    reports[region] = int(answer[0])
            return reports

    def truncate(self, below: int, timeout: float | None = None) -> int:
        """Delete the ended segments that hold no position above ``below``; returns how many were deleted."""
        deleted = 0
        with self._guarded("truncate the log", timeout) as deadline:
            for segment, following in pairwise(self._load(deadline)._segments):
                if following.base > below:
                    break
                try:
                    names = self.client.get_children_async(segment.path).get(timeout=_left(deadline))
                except zk.NoNodeError:
                    continue  # another region was at the same task
                for start in range(0, len(names), 500):
                    transaction = self.client.transaction()
                    for name in names[start : start + 500]:
                        transaction.delete(f"{segment.path}/{name}")
                    transaction.commit_async().get(timeout=_left(deadline))
                last = self.client.transaction()
                last.set_data(LOG, _json(first=following.number))
                last.delete(segment.path)
                if isinstance(last.commit_async().get(timeout=_left(deadline))[-1], Exception):
                    break  # another region is at the same task
                deleted += 1
        return deleted

    # Room

    def size(self, timeout: float = 1.0) -> int | None:
        """About how many bytes this region's ZooKeeper server holds; None: it does not say."""
        at = self._view.addresses[self._view.topology.region(self.region).zookeeper]
        said = b""
        with suppress(OSError), socket.create_connection((at.host, at.port), timeout) as connection:
            connection.sendall(b"mntr")
            while piece := connection.recv(65_536):
                said += piece
        found = re.search(rb"zk_approximate_data_size\t(\d+)", said)
        return int(found[1]) if found else None

    def allow(self, room: bool, why_not: str = "") -> None:
        """Let entries into the log, or none for now. ``why_not`` names the region that holds it up."""
        self._full = "" if room else why_not
        (self._room.set if room else self._room.clear)()

    def await_room(self, what: str, timeout: float) -> None:
        """Wait for a quorum, and for room in the log. Raises `Unavailable`: ``what`` was to be done, and was not."""
        deadline = time.monotonic() + timeout
        self.await_quorum(what, timeout)
        if not self._room.wait(_left(deadline)):
            raise Unavailable(
                f"{self.region}: {what}: the log is full, nothing was written: {self._full}",
                "Bring that region back (`pghc status`, `pghc up`), or send more slowly",
                node=f"{self.region}-zookeeper",
            )

    # Is it the log of these databases?

    def check(self, node: str, position: int, timeout: float | None = None) -> None:
        """Raise `ClusterError` unless the log goes on where ``node`` is: at ``position``."""
        tip = self.tip(timeout)
        if position > tip:
            raise ClusterError(
                f"{node}: has settled log position {position}, but the log ends at {tip}: "
                "ZooKeeper's data has been emptied or is older than the database's",
                "Bring ZooKeeper's own data back; or begin a new chain, as `pghc run` does, without these rows",
                node=node,
            )
        if position < (first := self._segments[0].base):
            raise ClusterError(
                f"{node}: has settled log position {position}, but the log begins after {first}: "
                "the database's data is older than what all regions had reported",
                "Bring the primary's own data back; or begin a new chain, as `pghc run` does, without these rows",
                node=node,
            )

    def _begin_first(self, deadline: float) -> None:
        begin = self.client.transaction()
        begin.check(LOG, 0)  # nothing has ever been truncated
        begin.create(Segment(1, 0).path, _json(base=0))
        begin.commit_async().get(timeout=_left(deadline))
        if not self._load(deadline)._segments:
            raise self._gone()

    def _create_if_missing(self, path: str, data: bytes, deadline: float) -> None:
        with suppress(zk.NodeExistsError):
            self.client.create_async(path, data).get(timeout=_left(deadline))

    def _load(self, deadline: float) -> Self:
        """Learn which segments there are, from this region's server."""
        try:
            names = self.client.get_children_async(LOG).get(timeout=_left(deadline))
        except zk.NoNodeError:
            raise self._gone() from None
        known = {segment.number: segment for segment in self._segments}
        segments = []
        for number in sorted(int(name[1:]) for name in names):
            if number not in known:
                try:
                    data, _ = self.client.get_async(Segment(number, 0).path).get(timeout=_left(deadline))
                except zk.NoNodeError:
                    continue  # truncated meanwhile
                known[number] = Segment(number, json.loads(data)["base"])
            segments.append(known[number])
        self._segments = segments or self._segments
        return self

    def _gone(self) -> ClusterError:
        return ClusterError(
            f"{self.region}: the log is not in ZooKeeper any more: its data has been emptied",
            "Bring ZooKeeper's own data back; or begin a new chain, as `pghc run` does, without these rows",
            node=f"{self.region}-zookeeper",
        )

    def _segment_of(self, position: int) -> Segment:
        for segment in reversed(self._segments):
            if segment.base < position:
                return segment
        raise ClusterError(
            f"{self.region}: log position {position} has been truncated, it begins at {self._segments[0].base + 1}",
            "Truncation never passes what all regions have applied: is this server's data from an older cluster?",
        )

    def _end(self, segment: Segment, deadline: float) -> int:
        """The last position in ``segment``: a parent counts creations and deletions, its children are the rest."""
        stat = self.client.exists_async(segment.path).get(timeout=_left(deadline))
        if stat is None:
            raise zk.NoNodeError
        return segment.base + (int(stat.cversion) + int(stat.numChildren)) // 2

    # Connection

    @contextmanager
    def _guarded(self, what: str, timeout: float | None) -> Iterator[float]:
        """Run reads and idempotent changes before a deadline, with kazoo's errors turned into ours."""
        deadline = time.monotonic() + (self.timeout if timeout is None else timeout)
        self.await_quorum(what, _left(deadline))
        try:
            yield deadline
        except LOST as error:
            raise self._unavailable(what) from error
        except zk.KazooException as error:
            raise ClusterError(
                f"{self.region}: {what}: ZooKeeper refused: {type(error).__name__}",
                "Is its data that of this cluster? See `pghc status`",
                node=f"{self.region}-zookeeper",
            ) from error

    def await_quorum(self, what: str, timeout: float) -> None:
        """Wait for a server with a quorum. Raises `Unavailable`, which names ``what`` was to be done."""
        if not self._connected.wait(timeout):
            raise self._unavailable(what)

    def _unavailable(self, what: str) -> Unavailable:
        return Unavailable(
            f"{self.region}: {what}: no ZooKeeper server with a quorum answered in time",
            "A quorum is more than half of the servers: see `pghc status`",
            node=f"{self.region}-zookeeper",
        )

    def _on_state(self, state: str) -> None:
        if state == KazooState.CONNECTED:
            self._connected.set()
        else:
            self._connected.clear()
        self._wake()

    def _wake(self, _event: object = None) -> None:
        self._changed.set()


def ordering(client: Client, chain: int, proposed: str, timeout: float) -> str:
    """`Sequencer.ordering` for who has a client and no log. Raises kazoo's errors."""
    deadline = time.monotonic() + timeout
    path = f"{CHAINS}/{chain:020d}"
    if proposed:
        with suppress(zk.NodeExistsError):
            client.create_async(path, proposed.encode(), makepath=True).get(timeout=_left(deadline))
            return proposed
    with suppress(zk.NoNodeError):
        decided: bytes = client.get_async(path).get(timeout=_left(deadline))[0]
        return decided.decode()
    return ""


def position_of(segment: Segment, results: Sequence[object]) -> int | None:
    """The position of what was created, from its transaction's results; None: nothing was, ``segment`` has ended."""
    created = results[-1]
    return segment.position(created) if isinstance(created, str) else None


def _left(deadline: float) -> float:
    return max(deadline - time.monotonic(), 0.001)


def _json(**fields: object) -> bytes:
    return json.dumps(fields).encode()
