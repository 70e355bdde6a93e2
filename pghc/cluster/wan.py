"""The wide area network: a TCP proxy that gives each directed pair of regions its delay, and can cut it.

A `Wan` listens once for each service of another region that a region may dial. What passes such a listener crosses two
directed links, one with the dialler's bytes and one with the answers::

    dialler in us-east ──▶ listener: eu-west-primary as us-east sees it ──▶ eu-west-primary
                               link us-east → eu-west: 40 ms, open
                               link eu-west → us-east: 40 ms, open

What is modelled: opening a connection costs a round trip; bytes arrive in order, one delay after they were sent; a
receiver that does not read slows its sender down. A link that is *cut* is a black hole: nothing arrives, senders are
not told, new connections hang, and what was sent meanwhile arrives after healing, as TCP would retransmit it. A link
that is *reset* ends every connection between the two regions, for each needs both directions, and refuses new ones.
"""

from __future__ import annotations

import asyncio
import socket
import struct
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from enum import Enum
from typing import Literal, cast, get_args

from pghc.errors import BadInput
from pghc.topology import Address, Pair, Topology

LinkState = Literal["open", "cut", "reset"]
MAX_DELAY_MS = 60_000

#: Bytes of one connection and direction that may be under way: 4 MiB in 95 ms are 44 MB/s.
WINDOW = 4 << 20
#: A timer fires up to a millisecond late, for epoll counts in milliseconds; half of one ahead centres the error.
AHEAD = 0.0005
#: How long a connection may take to open, in seconds, before its dialler is told that it failed.
OPENING = 30.0
#: How long its server may take to accept it: nothing is far there, but a pod may be gone without a word.
ACCEPTING = 5.0
#: For how long to dial a ZooKeeper leader that refuses followers, and how often, in seconds. A follower dials the one
#: that it voted for a little before that opens its port, and again when refused. Through a proxy, which accepts before
#: it dials, it would see a connection that breaks instead and vote again, while the leader waits `initLimit` in vain.
PATIENCE = 1.0
DIAL_AGAIN = 0.02


@dataclass(frozen=True)
class LinkStatus:
    """One directed link: its delay now and the topology's in milliseconds, and its state."""

    source: str
    target: str
    delay_ms: float
    nominal_ms: float
    state: LinkState


class Wan:
    """The links of a topology and the listeners of their proxies. Lives in a running asyncio loop.

    ``rewrite_elections``: ZooKeeper servers tell each other the address at which they accept election messages. Where
    that is a loopback address it leads past the proxy, and is replaced by that of the proxy; where it is a name that
    each region resolves to its own gateway, nothing needs replacing.
    """

    def __init__(self, topology: Topology, *, rewrite_elections: bool = True) -> None:
        self.topology = topology
        self._rewrite_elections = rewrite_elections
        self._links = {pair: _Link(topology.delay_ms(*pair)) for pair in topology.pairs}
        self._addresses: dict[tuple[str, str, str], Address] = {}
        self._servers: list[asyncio.Server] = []
        self._connections: set[_Connection] = set()

    async def listen(
        self, source: str, node: str, service: str, upstream: Address, *, host: str = "127.0.0.1", port: int = 0
    ) -> Address:
        """Accept what region ``source`` sends to a service ("postgres", "election", ...) of another region's node.

        Connections go on to ``upstream``. Port 0: any free one. Returns the address to dial. Raises `OSError`.
        """
        target = self.topology.node(node).region

        def accept() -> _End:
            connection = _Connection(
                self._links[source, target], self._links[target, source], upstream, self._connections
            )
            if service == "peer":
                connection.patience = PATIENCE
            if service == "election" and self._rewrite_elections:
                dial_back = self.address(target, self.topology.region(source).zookeeper, service)
                connection.forth.rewrite = ElectionHandshake(dial_back)
            return connection.dialler

        server = await asyncio.get_running_loop().create_server(accept, host, port, backlog=512)
        self._servers.append(server)
        address = Address(host, server.sockets[0].getsockname()[1])
        self._addresses[source, node, service] = address
        return address

    def address(self, source: str, node: str, service: str) -> Address:
        """Where region ``source`` dials a service of another region's node."""
        return self._addresses[source, node, service]

    def set_link(
        self, source: str, target: str, *, delay_ms: float | None = None, state: LinkState | None = None
    ) -> None:
        """Change a directed link while it carries traffic. What is not given stays. Raises `BadInput`."""
        link = self._link(source, target)
        if delay_ms is not None and not 0 <= delay_ms <= MAX_DELAY_MS:
            raise BadInput(f"a delay must be from 0 to {MAX_DELAY_MS} ms, not {delay_ms!r}")
        if state is not None and state not in get_args(LinkState):
            raise BadInput(f"a link is {', '.join(get_args(LinkState))}; not {state!r}")
        link.change(link.delay_ms if delay_ms is None else delay_ms, state or link.state)
        if state == "reset":
            for connection in [c for c in self._connections if link in (c.forth.link, c.back.link)]:
                connection.abort()

    def heal_links(self) -> None:
        """All links open, with the topology's delays."""
        for link in self._links.values():
            link.change(link.nominal_ms, "open")

    def links(self) -> list[LinkStatus]:
        """The state of every directed link."""
        return [LinkStatus(a, b, x.delay_ms, x.nominal_ms, x.state) for (a, b), x in self._links.items()]

    def close(self) -> None:
        """End every listener and connection."""
        for server in self._servers:
            server.close()
        for connection in list(self._connections):
            connection.abort()

    def _link(self, source: str, target: str) -> _Link:
        pair: Pair = self.topology.region(source).name, self.topology.region(target).name
        if source == target:
            raise BadInput(f"a link joins two regions; {source} was named twice")
        return self._links[pair]


class _Mark(Enum):
    """What a link carries beside bytes."""

    CONNECT = "open a connection to the server"
    CONNECTED = "it is open"
    END = "no more bytes from here"
    ABORT = "the connection is broken"


class _Link:
    """One direction between two regions: a delay line that all connections of the pair share."""

    def __init__(self, nominal_ms: float) -> None:
        self.nominal_ms = self.delay_ms = nominal_ms
        self.state: LinkState = "open"
        self._loop = asyncio.get_running_loop()
        self._under_way: deque[tuple[float, _Pipe, bytes | _Mark]] = deque()
        self._timer: asyncio.TimerHandle | None = None

    def send(self, pipe: _Pipe, item: bytes | _Mark) -> None:
        if self.delay_ms == 0 and self.state == "open" and not self._under_way:
            pipe.deliver(item)
            return
        due = self._loop.time() + self.delay_ms / 1000
        if self._under_way:  # a link made faster lets nothing overtake
            due = max(due, self._under_way[-1][0])
        self._under_way.append((due, pipe, item))
        self._arm()

    def change(self, delay_ms: float, state: LinkState) -> None:
        if self.state != "open" and state == "open":  # what was held sets out now
            now = self._loop.time() + delay_ms / 1000
            self._under_way = deque((max(due, now), pipe, item) for due, pipe, item in self._under_way)
        self.delay_ms, self.state = delay_ms, state
        if self._timer:
            self._timer.cancel()
            self._timer = None
        self._arm()

    def _arm(self) -> None:
        if self._timer is None and self.state == "open" and self._under_way:
            self._timer = self._loop.call_at(self._under_way[0][0] - AHEAD, self._arrive)

    def _arrive(self) -> None:
        self._timer = None
        horizon = self._loop.time() + AHEAD
        try:
            while self._under_way and self._under_way[0][0] <= horizon:
                _, pipe, item = self._under_way.popleft()
                pipe.deliver(item)
        finally:  # one connection's trouble must not hold up the others
            self._arm()


class _Pipe:
    """One direction of one connection: from the socket ``source`` over a link to the socket ``sink``."""

    def __init__(self, link: _Link, source: _End, sink: _End, on_mark: Callable[[_Mark], None]) -> None:
        self.link, self._source, self._sink, self._on_mark = link, source, sink, on_mark
        self._under_way = 0
        self.blocked = False  # the receiver does not read
        self.rewrite: Callable[[bytes], bytes] | None = None

    def send(self, item: bytes | _Mark) -> None:
        if isinstance(item, bytes):
            if self.rewrite and not (item := self.rewrite(item)):
                return
            self._under_way += len(item)
            self.throttle()
        self.link.send(self, item)

    def deliver(self, item: bytes | _Mark) -> None:
        if isinstance(item, bytes):
            self._under_way -= len(item)
            self._sink.write(item)
            self.throttle()
        else:
            self._on_mark(item)

    def throttle(self) -> None:
        """Read on only while the window has room and the receiver takes what arrives, so that memory is bounded."""
        if self.blocked or self._under_way >= WINDOW:
            self._source.read(False)
        elif self._under_way <= WINDOW // 2:
            self._source.read(True)


class _End(asyncio.Protocol):
    """One of the two sockets of a proxied connection."""

    out: _Pipe  # for received bytes
    into: _Pipe  # that of the bytes to write

    def __init__(self, connection: _Connection) -> None:
        self._connection = connection
        self._transport: asyncio.Transport | None = None
        self._reading = True
        self.closed = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self._transport.set_write_buffer_limits(high=WINDOW // 8)
        self._connection.made(self)

    def data_received(self, data: bytes) -> None:
        self._connection.send(self, data)

    def eof_received(self) -> bool:
        self._connection.send(self, _Mark.END)
        return True  # the other direction goes on

    def connection_lost(self, error: Exception | None) -> None:
        self.closed = True
        self._connection.lost(self, error)

    def pause_writing(self) -> None:
        self.into.blocked = True
        self.into.throttle()

    def resume_writing(self) -> None:
        self.into.blocked = False
        self.into.throttle()

    def write(self, data: bytes) -> None:
        if self._transport and not self._transport.is_closing():
            self._transport.write(data)

    def end(self) -> None:
        if self._transport and not self._transport.is_closing():
            with suppress(OSError):  # reset by its peer meanwhile, of which we hear next
                self._transport.write_eof()

    def read(self, wanted: bool) -> None:
        if wanted is not self._reading and self._transport and not self._transport.is_closing():
            self._reading = wanted
            (self._transport.resume_reading if wanted else self._transport.pause_reading)()

    def close(self) -> None:
        """Close when all is written."""
        if self._transport:
            self._transport.close()

    def abort(self) -> None:
        """Close at once, with RST, as a broken or refused connection does."""
        self.closed = True
        if self._transport and not self._transport.is_closing():
            sock = self._transport.get_extra_info("socket")
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self._transport.abort()


class _Connection:
    """A connection dialled in one region to a server of another."""

    def __init__(self, there: _Link, back: _Link, upstream: Address, register: set[_Connection]) -> None:
        self.dialler, self.server = _End(self), _End(self)
        self.forth = _Pipe(there, self.dialler, self.server, self._at_server)
        self.back = _Pipe(back, self.server, self.dialler, self._at_dialler)
        self.dialler.out = self.server.into = self.forth
        self.server.out = self.dialler.into = self.back
        self.patience = 0.0  # seconds to dial a server that refuses
        self._upstream = upstream
        self._register = register
        self._early: list[bytes | _Mark] | None = []  # what the dialler sent before the connection was open
        self._ended = 0  # directions at their end
        self._dial: asyncio.Task[None] | None = None
        self._opening: asyncio.TimerHandle | None = None

    def made(self, end: _End) -> None:
        if end is self.server:
            if self.dialler.closed:
                end.abort()
            return
        if "reset" in (self.forth.link.state, self.back.link.state):
            end.abort()
            return
        self._register.add(self)
        self._opening = asyncio.get_running_loop().call_later(OPENING, self.abort)
        self.forth.send(_Mark.CONNECT)

    def send(self, end: _End, item: bytes | _Mark) -> None:
        if end is self.dialler and self._early is not None:
            # The dialler's kernel believes that it is connected; really its bytes wait for the answer to CONNECT.
            if item is _Mark.END and not self._early:
                self.abort()  # it gave up
                return
            self._early.append(item)
            if sum(len(early) for early in self._early if isinstance(early, bytes)) >= WINDOW:
                end.read(False)
        else:
            end.out.send(item)

    def lost(self, end: _End, error: Exception | None) -> None:
        if error:  # otherwise it was closed here
            end.out.send(_Mark.ABORT)
        if self.dialler.closed and (self.server.closed or self._early is not None):
            self._forget()

    def abort(self) -> None:
        self.dialler.abort()
        self.server.abort()
        self._forget()

    def _forget(self) -> None:
        self._register.discard(self)
        if self._opening:
            self._opening.cancel()

    def _at_server(self, mark: _Mark) -> None:
        if mark is _Mark.CONNECT:
            if not self.dialler.closed:
                self._dial = asyncio.create_task(self._dial_server())
        elif mark is _Mark.END:
            self._end(self.server)
        else:
            self.server.abort()

    def _at_dialler(self, mark: _Mark) -> None:
        if mark is _Mark.CONNECTED:
            early, self._early = self._early or [], None
            if self._opening:
                self._opening.cancel()
            self.dialler.read(True)
            for item in early:
                self.forth.send(item)
        elif mark is _Mark.END:
            self._end(self.dialler)
        else:
            self.dialler.abort()

    async def _dial_server(self) -> None:
        loop = asyncio.get_running_loop()
        until = loop.time() + self.patience
        try:
            async with asyncio.timeout(ACCEPTING):
                while True:
                    try:
                        await loop.create_connection(lambda: self.server, self._upstream.host, self._upstream.port)
                        break
                    except ConnectionRefusedError:
                        if loop.time() >= until or self.dialler.closed:
                            raise
                    await asyncio.sleep(DIAL_AGAIN)
        except (OSError, TimeoutError):
            self.server.closed = True
            self.back.send(_Mark.ABORT)
        else:
            self.back.send(_Mark.CONNECTED)

    def _end(self, receiver: _End) -> None:
        receiver.end()
        self._ended += 1
        if self._ended == 2:
            self.dialler.close()
            self.server.close()


class ElectionHandshake:
    """Puts ``address`` in the place of a ZooKeeper server's own in what it sends first on an election connection.

    The first message is: protocol version (int64, negative), server id (int64), length (int32), and so many bytes of
    "host:port"; several addresses are joined by "|". Everything after it passes unchanged, and so does anything that is
    not such a message.
    """

    HEAD = struct.Struct(">qqi")
    VERSIONS = (-65536, -65535)
    LONGEST = 2048

    def __init__(self, address: Address) -> None:
        self._address = str(address).encode()
        self._begin: bytes | None = b""

    def __call__(self, data: bytes) -> bytes:
        if self._begin is None:
            return data
        self._begin += data
        replaced = self._replaced(self._begin)
        if replaced is None:
            return b""
        self._begin = None
        return replaced

    def _replaced(self, begin: bytes) -> bytes | None:
        """The bytes to pass on; None: what the stream begins with is not known yet."""
        version = begin[:8]
        if not any(struct.pack(">q", known).startswith(version) for known in self.VERSIONS):
            return begin
        if len(begin) < self.HEAD.size:
            return None
        number, server_id, length = self.HEAD.unpack_from(begin)
        if not 0 < length <= self.LONGEST:
            return begin
        end = self.HEAD.size + length
        if len(begin) < end:
            return None
        return self.HEAD.pack(number, server_id, len(self._address)) + self._address + begin[end:]
