"""Consensus-backed, strictly increasing numbers: a log of sequential nodes in ZooKeeper, by kazoo.

An entry of the log is a sequential node; creating it is agreed on by a quorum, and its place among its siblings is its
*log position*. Positions start at 1, have no gaps, and go on across sessions, servers and segments::

    /pghc/log/s0000000001          {"base": 0}        a segment: positions base + 1, base + 2, ...
    /pghc/log/s0000000001/n-0000000000                position 1: {"node_id": ..., "requests": [...]}

ZooKeeper numbers the children of one parent with a signed 32-bit counter, so the log goes on under a new parent from
time to time (`rotate`); old segments are deleted whole (`truncate`). Each creation is
one transaction with a check that the parent's version is still 0, and rotation begins with a write to the parent: an
order to the leader like any other, hence no creation slips in after its end was read. (To take away the right to create
does not do: the leader checks rights against what is committed, not against what is under way.)

When the session or the connection is lost while a node is created, it may or may not be there. `take` then creates
again, under the same request id; whoever reads the log finds the id twice and treats the second position as void.
The recipe is that of sequential nodes (Hunt et al., "ZooKeeper: wait-free coordination", 2010).
"""

from __future__ import annotations

import json
import logging
import socket
import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from itertools import pairwise
from typing import NamedTuple, Self

from kazoo import exceptions as zk
from kazoo.client import KazooClient
from kazoo.handlers.threading import KazooTimeoutError
from kazoo.interfaces import IAsyncResult
from kazoo.protocol.states import KazooState
from kazoo.retry import KazooRetry
from kazoo.security import ACL, make_digest_acl

from pghc.errors import ClusterError, Indefinite, Unavailable
from pghc.topology import Credentials, View

LOG = "/pghc/log"
APPLIED = "/pghc/applied"
SESSION_SECONDS = 4.0

#: A broken connection: what was asked may have happened.
LOST = (
    zk.ConnectionLoss,
    zk.ConnectionClosedError,
    zk.OperationTimeoutError,
    zk.SessionExpiredError,
    zk.SessionMovedError,
    KazooTimeoutError,
)

logging.getLogger("kazoo").setLevel(logging.CRITICAL)  # its warnings on every reconnection are our errors' job


class Entry(NamedTuple):
    """An entry of the log: the node that accepts the rows, and the appends' request ids (canonical UUID text)."""

    node_id: str
    requests: tuple[str, ...]

    def encode(self) -> bytes:
        return json.dumps(self._asdict()).encode()

    @classmethod
    def decode(cls, data: bytes) -> Entry:
        fields = json.loads(data)
        return cls(fields["node_id"], tuple(fields["requests"]))


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


def connect(view: View, *, timeout: float = 10.0) -> KazooClient:
    """A started client that prefers the region's own server; nodes that it creates are readable by our user alone.

    Raises `Unavailable` when no server with a quorum answers within ``timeout`` seconds.
    """
    who = view.credentials
    retry = {"max_tries": -1, "delay": 0.05, "backoff": 2, "max_delay": 0.5}
    client = KazooClient(
        hosts=view.zookeeper_hosts,
        timeout=SESSION_SECONDS,
        randomize_hosts=False,
        auth_data=[("digest", f"{who.zookeeper_user}:{who.zookeeper_password}")],
        default_acl=[_acl(who)],
        connection_retry=KazooRetry(**retry),
        command_retry=KazooRetry(max_tries=0),
    )
    try:
        client.start(timeout=timeout)
    except KazooTimeoutError as error:
        client.stop()
        client.close()
        raise Unavailable(
            f"{view.region}: no ZooKeeper server with a quorum answered within {timeout:g} s, nothing was written",
            "A quorum is more than half of the servers: see `pghc status`",
            node=view.topology.region(view.region).zookeeper,
        ) from error
    threading.Thread(target=_watch_over, args=(client,), name=f"zookeeper watchdog {view.region}", daemon=True).start()
    return client


def hang_up(client: KazooClient) -> None:
    """Shut the client's TCP connection: what it has asked may be done, and is not answered. It connects anew."""
    connection = getattr(getattr(client, "_connection", None), "_socket", None)
    if connection:
        with suppress(OSError):
            connection.shutdown(socket.SHUT_RDWR)


def _watch_over(client: KazooClient) -> None:
    """Hang up when the oldest question has had no answer for a session's time.

    kazoo pings, and so notices that its server is cut off, only while it has nothing to send: a client that keeps
    asking would wait for ever. Answers come in order, so the oldest question tells.
    """
    oldest, since = None, time.monotonic()
    while not client._stopped.wait(SESSION_SECONDS / 4):
        pending = next(iter(client._pending.copy()), None)
        if pending is None or pending is not oldest:
            oldest, since = pending, time.monotonic()
        elif time.monotonic() - since > SESSION_SECONDS:
            hang_up(client)
            oldest = None


class Sequencer:
    """The log as one region sees it. Safe for many threads.

    ``timeout``: default limit of each call in seconds. Calls raise `Unavailable` (definite) when there was no quorum
    for that long and nothing was sent, `Indefinite` when something was sent and no answer came.
    """

    def __init__(self, view: View, *, timeout: float = 10.0, segment_size: int = 20_000) -> None:
        self.region, self.timeout, self.segment_size = view.region, timeout, segment_size
        self._regions = view.topology.names
        self._segments: list[Segment] = []
        self._changed, self._connected = threading.Event(), threading.Event()
        self.client = connect(view, timeout=timeout)
        self._connected.set()
        self.client.add_listener(self._on_state)
        try:
            with self._guarded("open the log", timeout) as deadline:
                for path in (LOG, APPLIED):
                    self.client.ensure_path(path)
                if not self._load(deadline)._segments:
                    self._begin(Segment(1, 0), deadline)
                    self._load(deadline)
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        self.client.stop()
        self.client.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # Positions

    def take(self, entry: Entry, timeout: float | None = None) -> int:
        """Append ``entry`` to the log and return its position, larger than any that was given before the call.

        A lost reply is no concern of the caller: the entry is created again, and the log shows the request twice.
        Raises `Unavailable` or `Indefinite`.
        """
        data, sent = entry.encode(), False
        deadline = time.monotonic() + (self.timeout if timeout is None else timeout)
        while True:
            segment = self._segments[-1]
            try:
                self.await_quorum("append to the log", _left(deadline))
                sent = True
                results = self._create(segment, data).get(timeout=_left(deadline))
            except (Unavailable, *LOST) as error:
                if not sent:
                    raise
                if time.monotonic() >= deadline or isinstance(error, Unavailable):
                    raise Indefinite(
                        f"{self.region}: append to the log: no answer in time; it may have happened",
                        "Retry with the same request id: it happens once, however often it is tried",
                        node=f"{self.region}-zookeeper",
                    ) from error
            else:
                position = position_of(segment, results)
                if position is None:  # this segment has ended: certainly not created
                    self.next_segment(segment, _left(deadline))
                    continue
                if position - segment.base >= self.segment_size:
                    with suppress(Unavailable):  # the next one will try: this entry is in the log
                        self.rotate(segment, _left(deadline))
                return position

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
            with self._guarded("watch the log", None) as deadline:
                segment = self._segment_of(position + 1)
                try:
                    last = self._end(segment, deadline)
                except zk.NoNodeError:  # all regions had all of it, so it was truncated: the next one is there
                    if self._load(deadline)._segment_of(position + 1) == segment:
                        raise self._unavailable("watch the log") from None
                    continue
                if last > position:
                    return last
                entry = self.client.exists_async(segment.node(position + 1), watch=self._wake)
                following = self.client.exists_async(Segment(segment.number + 1, 0).path, watch=self._wake)
                if entry.get(timeout=_left(deadline)):
                    return position + 1
                if following.get(timeout=_left(deadline)) and self._load(deadline)._segment_of(position + 1) != segment:
                    continue
            self._changed.wait(left)
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

    # Segments

    def rotate(self, segment: Segment | None = None, timeout: float | None = None) -> Segment:
        """End ``segment`` (default: the current one) and go on in the next; returns the one that is current afterwards.

        Idempotent, by any number of callers at once: whoever finds an ended segment begins the next with the same base.
        """
        with self._guarded("rotate the log", timeout) as deadline:
            segment = segment or self._load(deadline)._segments[-1]
            try:
                ended = json.dumps({"base": segment.base, "ended": True}).encode()
                with suppress(zk.BadVersionError):  # it is ended already
                    self.client.set_async(segment.path, ended, 0).get(timeout=_left(deadline))
                self._begin(Segment(segment.number + 1, self._end(segment, deadline)), deadline)
            except zk.NoNodeError:
                pass  # truncated already: so the next was begun long ago
            return self._load(deadline)._segments[-1]

    def next_segment(self, ended: Segment, timeout: float | None = None) -> None:
        """Go on after ``ended``, as a refused creation or its size has shown; begin the next if nobody did yet."""
        with self._guarded("find the log's next segment", timeout) as deadline:
            if self._load(deadline)._segments[-1].number <= ended.number:
                self.rotate(ended, _left(deadline))

    def applied(self, position: int, timeout: float | None = None) -> int:
        """Report that this region has settled all up to ``position``; returns what all regions have settled.

        A region that has reported nothing yet counts as 0.
        """
        with self._guarded("report progress", timeout) as deadline:
            path, data = f"{APPLIED}/{self.region}", str(position).encode()
            try:
                self.client.set_async(path, data).get(timeout=_left(deadline))
            except zk.NoNodeError:
                with _may_exist():
                    self.client.create_async(path, data).get(timeout=_left(deadline))
            lowest = position
            for region in self._regions:
                try:
                    reported, _ = self.client.get_async(f"{APPLIED}/{region}").get(timeout=_left(deadline))
                except zk.NoNodeError:
                    return 0
                lowest = min(lowest, int(reported))
            return lowest

    def truncate(self, below: int, timeout: float | None = None) -> int:
        """Delete the ended segments that hold no position above ``below``; returns how many were deleted."""
        deleted = 0
        with self._guarded("truncate the log", timeout) as deadline:
            segments = self._load(deadline)._segments
            for segment, following in pairwise(segments):
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
                try:
                    self.client.delete_async(segment.path).get(timeout=_left(deadline))
                except (zk.NotEmptyError, zk.NoNodeError):
                    break  # another region is at the same task
                deleted += 1
        return deleted

    def _begin(self, segment: Segment, deadline: float) -> None:
        data = json.dumps({"base": segment.base}).encode()
        with _may_exist():
            self.client.create_async(segment.path, data).get(timeout=_left(deadline))

    def _load(self, deadline: float) -> Self:
        """Learn which segments there are, from this region's server."""
        numbers = sorted(int(name[1:]) for name in self.client.get_children_async(LOG).get(timeout=_left(deadline)))
        known = {segment.number: segment for segment in self._segments}
        segments = []
        for number in numbers:
            if number not in known:
                try:
                    data, _ = self.client.get_async(Segment(number, 0).path).get(timeout=_left(deadline))
                except zk.NoNodeError:
                    continue  # truncated meanwhile
                known[number] = Segment(number, json.loads(data)["base"])
            segments.append(known[number])
        self._segments = segments or self._segments
        return self

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
        """Run reads and idempotent changes before a deadline, with kazoo's errors turned into `Unavailable`."""
        deadline = time.monotonic() + (self.timeout if timeout is None else timeout)
        self.await_quorum(what, _left(deadline))
        try:
            yield deadline
        except LOST as error:
            raise self._unavailable(what) from error

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


class Mutex:
    """A lock that one client in all regions holds at a time (kazoo's), and the number that was last claimed under it.

    A holder whose session ends loses the lock without noticing; `claim` notices.
    """

    def __init__(self, view: View, name: str, *, timeout: float = 10.0) -> None:
        self.region = view.region
        self._path = f"/pghc/mutex/{name}"
        self._number = f"{self._path}-number"
        self.client = connect(view, timeout=timeout)
        self.client.ensure_path(self._path)
        with _may_exist():
            self.client.create(self._number, b"0")

    def close(self) -> None:
        self.client.stop()
        self.client.close()

    @contextmanager
    def hold(self, timeout: float) -> Iterator[None]:
        """Hold the lock. Raises `Unavailable` when it was not had within ``timeout`` seconds."""
        lock = self.client.Lock(self._path, self.region)
        try:
            lock.acquire(timeout=timeout)
        except (zk.LockTimeout, *LOST) as error:
            raise Unavailable(
                f"{self.region}: the lock was not had within {timeout:g} s, nothing was written",
                "Its holder may have died: its session ends by itself. Try again",
            ) from error
        try:
            yield
        finally:
            with suppress(*LOST):  # the session's end releases it
                lock.release()

    def read(self) -> tuple[int, int]:
        """The number that was last claimed, and the version to claim the next with; only the lock's holder may ask.

        No `sync` is needed: our server has seen the lock's last holder leave, and so what it had claimed before.
        """
        try:
            data, stat = self.client.get(self._number)
        except LOST as error:
            raise Unavailable(f"{self.region}: read the last number: connection lost, nothing was written") from error
        return int(data), stat.version

    def claim(self, number: int, version: int) -> bool:
        """Claim ``number`` by compare-and-set; False when somebody else claimed since `read`. Raises `Indefinite`."""
        try:
            self.client.set(self._number, str(number).encode(), version)
        except zk.BadVersionError:
            return False
        except LOST as error:
            raise Indefinite(f"{self.region}: claim number {number}: no answer; it may have been claimed") from error
        return True


def _left(deadline: float) -> float:
    return max(deadline - time.monotonic(), 0.001)


def position_of(segment: Segment, results: Sequence[object]) -> int | None:
    """The position of what was created, from its transaction's results; None: nothing was, ``segment`` has ended."""
    created = results[-1]
    return segment.position(created) if isinstance(created, str) else None


def _acl(who: Credentials) -> ACL:
    return make_digest_acl(who.zookeeper_user, who.zookeeper_password, all=True)


@contextmanager
def _may_exist() -> Iterator[None]:
    with suppress(zk.NodeExistsError):
        yield
