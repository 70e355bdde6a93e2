"""What an error of an append says about whether it happened, and that it comes in time: all writers, any failure of any
call to a server. The servers are stand-ins that keep a log, a lock and a table, and fail as the adapters say they may.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, nullcontext
from copy import copy
from dataclasses import replace
from itertools import cycle
from types import SimpleNamespace
from typing import Any, NamedTuple, Self
from unittest.mock import Mock, patch
from uuid import UUID, uuid4

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from kazoo.exceptions import CancelledError, ConnectionLoss, RolledBackError

from pghc import writers
from pghc.chain import Row
from pghc.errors import BadInput, ClusterError, Conflict, Indefinite, PghcError, Unavailable, WrongKind
from pghc.mutex import Mutex
from pghc.sequencer import Entry, Segment, Sequencer
from pghc.store import Cursor
from pghc.topology import Credentials, View, load
from pghc.writers import NAMES, broadcast, causal, locked, naive, new_request_id, numbered, writer_class

VIEW = View("us-east", load(), {}, Credentials())
MODULES = {"naive": naive, "numbered": numbered, "locked": locked, "causal": causal, "broadcast": broadcast}
ALONE = NAMES[:3]  # each append in its caller's thread
BEGUN = 7  # where the chain began in the log
OTHERS = Entry("eu-west-primary", (str(UUID(int=1)),))  # an entry that its writer left behind


class Fault(NamedTuple):
    """What comes of a call, so many times: an error, before or after its effect; without an error it is slow."""

    error: Exception | None
    after: bool
    times: int


#: What each call may raise before it has had an effect. What comes after it is never said to be definite.
MAY_RAISE = {
    "cursor": [Unavailable("cursor")],
    "last": [Unavailable("last")],
    "known": [Unavailable("known")],
    "wait_for": [RuntimeError("a defect")],
    "insert": [Unavailable("insert"), Conflict("insert"), Indefinite("insert")],
    "apply": [Unavailable("apply"), Conflict("apply"), Indefinite("apply")],
    "applier": [Unavailable("applier"), Conflict("another session")],
    "connect": [Unavailable("connect")],
    "ordering": [Unavailable("ordering"), ClusterError("ordering"), WrongKind("ordering")],
    "take": [Unavailable("take"), ClusterError("take"), Indefinite("take")],
    "take_async": [ConnectionLoss(), RuntimeError("a defect"), RolledBackError()],
    "await_room": [Unavailable("the log is full")],
    "next_segment": [Unavailable("next_segment"), ClusterError("next_segment")],
    "read": [Unavailable("read"), ClusterError("read")],
    "wait_beyond": [Unavailable("wait_beyond"), ClusterError("wait_beyond")],
    "hold": [Unavailable("the lock was not had")],
    "claimed": [Unavailable("claimed")],
    "claim": [Indefinite("claim")],
}
WRITES = {"insert", "apply", "take", "take_async", "claim"}
SLOW = 0.3  # seconds: longer than the appends below wait
LOST = {"take_async": ConnectionLoss()}

faults = st.one_of(
    *(st.tuples(st.just(call), st.builds(Fault, st.sampled_from(errors), st.just(False), st.sampled_from([1, 2, 99])))
      for call, errors in MAY_RAISE.items()),
    *(st.tuples(st.just(call), st.builds(Fault, st.just(LOST.get(call, Indefinite(call))), st.just(True),
                                         st.sampled_from([1, 2, 99])))
      for call in WRITES),
    st.tuples(st.sampled_from(["cursor", "ordering", "await_room", "next_segment"]), st.just(Fault(None, False, 1))),
)  # fmt: skip
scripts = st.lists(faults, min_size=1, max_size=4)


class Answer:
    """What `take_async` gives."""

    def __init__(self, value: Any, exception: Exception | None = None) -> None:
        self.value, self.exception = value, exception

    def get_nowait(self) -> Any:
        return self.value

    def rawlink(self, heard: Callable[[Answer], None]) -> None:
        heard(self)


class World:
    """What servers hold, and what comes of the calls to them. One object stands for each adapter."""

    segment_size = 10_000
    node = "us-east-primary"

    def __init__(
        self, script: Sequence[tuple[str, Fault]] = (), delays: Iterator[float] | None = None, begun: int = BEGUN
    ) -> None:
        self.script: dict[str, deque[Fault]] = {}
        for call, fault in script:
            self.script.setdefault(call, deque()).extend([fault] * fault.times)
        self.delays, self.now = delays, 0.0
        self.lock = threading.RLock()
        self.log: list[Entry] = []
        self.rows: dict[str, Row] = {}
        self.at = Cursor(begun, 0, "", begun)
        self.claims = [0, 0]
        self.segment = Segment(1, begun)

    def holds(self, request: str) -> bool:
        """Something of this append is there: it may yet happen, or has."""
        return request in self.rows or any(request in entry.requests for entry in self.log) or self.claims[0] > 0

    def call(self, name: str, timeout: float | None, effect: Callable[[], Any]) -> Any:
        if self.delays is not None:
            limit, takes = (5.0 if timeout is None else max(timeout, 0.001)), next(self.delays)
            self.now += min(limit, takes)
            if takes > limit:
                if name in WRITES:
                    effect()
                    raise Indefinite(f"{name}: no answer in time")
                raise Unavailable(f"{name}: no answer in time")
        with self.lock:
            script = self.script.get(name)
            fault = script.popleft() if script else None
        if fault and not fault.error:
            time.sleep(SLOW)
        with self.lock:
            if fault and fault.error and not fault.after:
                raise copy(fault.error)
            result = effect()
            if fault and fault.error:
                raise copy(fault.error)
            return result

    # The database

    def cursor(self, timeout: float | None = None) -> Cursor:
        return self.call("cursor", timeout, lambda: self.at)

    def last(self, timeout: float | None = None) -> Row | None:
        return self.call("last", timeout, lambda: max(self.rows.values(), default=None))

    def insert(self, row: Row, request: str, _chain: int, timeout: float | None = None) -> None:
        def effect() -> None:
            if any(row.zk_id == other.zk_id for other in self.rows.values()):
                raise Conflict("another row stands there")
            self.rows[request] = row

        self.call("insert", timeout, effect)

    def known(self, requests: Sequence[str], timeout: float | None = None) -> tuple[Cursor, dict[str, Row]]:
        return self.call("known", timeout, lambda: (self.at, {r: self.rows[r] for r in requests if r in self.rows}))

    def apply(
        self, old: Cursor, new: Cursor, rows: Sequence[Row], requests: Sequence[Any], timeout: float | None = None
    ) -> bool:
        def effect() -> bool:
            if self.at != old:
                return False
            if any(request in self.rows for request, _, _ in requests):
                raise Conflict("a request stands already")
            self.rows |= {request: row for (request, _, _), row in zip(requests, rows, strict=True)}
            self.at = new
            return True

        return self.call("apply", timeout, effect)

    def heard(self, within: float) -> None:
        """Nothing: so the cursor is asked for, and that can go wrong."""

    def wait_for(self, position: int, timeout: float) -> Cursor:
        if self.at.position < position and self.delays is None:
            time.sleep(min(max(timeout, 0), 0.01))
        return self.call("wait_for", timeout, lambda: self.at)

    def applier(self) -> World:
        return self.call("applier", None, lambda: self)

    # The log

    def ordering(self, _chain: int, proposed: str, timeout: float | None = None) -> str:
        return self.call("ordering", timeout, lambda: proposed)

    def take(self, entry: Entry, timeout: float | None = None) -> int:
        return self.call("take", timeout, lambda: self.append(entry))

    def take_async(self, entry: Entry) -> tuple[Segment, Answer]:
        try:
            self.call("take_async", None, lambda: self.append(entry))
        except ConnectionLoss as error:
            return self.segment, Answer(None, error)
        except RolledBackError as error:  # this segment has ended
            return self.segment, Answer([error])
        return self.segment, Answer([True, self.segment.node(self.segment.base + len(self.log))])

    def append(self, entry: Entry) -> int:
        self.log.append(entry)
        return self.segment.base + len(self.log)

    def await_room(self, _what: str, timeout: float) -> None:
        self.call("await_room", timeout, lambda: None)

    def next_segment(self, _ended: Segment, timeout: float | None = None) -> None:
        self.call("next_segment", timeout, lambda: None)

    def read(self, first: int, last: int, timeout: float | None = None) -> list[Entry]:
        base = self.segment.base
        return self.call("read", timeout, lambda: self.log[first - base - 1 : last - base])

    def wait_beyond(self, position: int, _timeout: float) -> int:
        end = self.call("wait_beyond", None, lambda: self.segment.base + len(self.log))
        if end == position:
            time.sleep(0.005)
        return max(end, position)

    def allow(self, _room: bool, _why: str = "") -> None: ...

    # The lock

    @contextmanager
    def hold(self, timeout: float) -> Iterator[None]:
        self.call("hold", timeout, lambda: None)
        yield

    def claimed(self, _chain: int, timeout: float | None = None) -> tuple[int, int]:
        number, version = self.call("claimed", timeout, lambda: self.claims)
        return number, version

    def claim(self, _chain: int, number: int, version: int, timeout: float | None = None) -> bool:
        def effect() -> bool:
            if version != self.claims[1]:
                return False
            self.claims = [number, version + 1]
            return True

        return self.call("claim", timeout, effect)

    # What else is asked of them

    client = None

    def follow(self, _client: object) -> None: ...

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None: ...
    def close(self) -> None: ...


@contextmanager
def opened(name: str, world: World) -> Iterator[Any]:
    """The writer on this world."""
    module = MODULES[name]
    mutex = SimpleNamespace(hold=world.hold, read=world.claimed, claim=world.claim, client=None)
    clock = SimpleNamespace(monotonic=lambda: world.now) if world.delays is not None else time
    stands_in = {
        "Store": lambda *_: world,
        "Sequencer": lambda *_, **__: world,
        "Mutex": lambda *_: nullcontext(mutex),
        "Housekeeping": lambda *_: world,
        "depose": lambda _: None,
        "time": clock,
    }
    client = SimpleNamespace(end=lambda: None)
    connect = patch.object(writers, "connect", lambda _, timeout: world.call("connect", timeout, lambda: client))
    ordering = patch.object(writers, "ordering", lambda _, *of: world.ordering(*of))
    replaced = {name: stand_in for name, stand_in in stands_in.items() if hasattr(module, name)}
    clocks = patch.object(writers, "time", clock)
    servers = patch.multiple(module, **replaced)
    with connect, ordering, clocks, servers, getattr(module, name.capitalize())(VIEW) as writer:
        writer.patience = 0.02
        yield writer


def outcome(writer: Any, request: str, timeout: float) -> Row | BaseException:
    try:
        row: Row = writer.append(request, timeout)
    except Exception as error:
        return error
    return row


SLOWLY = Fault(None, False, 1)
#: What was found once: the caller gave up before the sender went on; a lost reply, and then a refusal; an insert that
#: is refused after its number was taken.
FOUND = [
    [("cursor", SLOWLY)],
    [("ordering", SLOWLY)],
    [("await_room", SLOWLY)],
    [
        ("apply", Fault(Unavailable("apply"), False, 99)),
        ("take_async", Fault(ConnectionLoss(), True, 1)),
        ("take_async", Fault(RolledBackError(), False, 1)),
        ("next_segment", Fault(ClusterError("the log is gone"), False, 99)),
    ],
    [("take_async", Fault(ConnectionLoss(), False, 1))],
    [("insert", Fault(Conflict("insert"), False, 99))],
    [("insert", Fault(Unavailable("insert"), False, 1))],
    [("wait_for", Fault(RuntimeError("a defect"), False, 99))],
    [("apply", Fault(Unavailable("apply"), False, 99))],
]


@pytest.mark.parametrize("name", NAMES)
def test_after_the_first_byte_that_may_have_reached_the_log_every_error_is_indefinite(name: str) -> None:
    @settings(max_examples=40)
    @given(scripts)
    def check(script: list[tuple[str, Fault]]) -> None:
        world, request = World(), str(uuid4())
        with opened(name, world) as writer:
            if writer.exactly_once:
                world.append(OTHERS)
            world.script = World(script).script
            answer = outcome(writer, request, 0.25)
            there = world.holds(request)
            if not isinstance(answer, Row) and any(not fault.error for _, fault in script):
                time.sleep(SLOW)
        asked = {request, *OTHERS.requests}
        assert all({*entry.requests} <= asked for entry in world.log), "what is sent again is sent as it was"
        if isinstance(answer, Row):
            assert world.rows[request] == answer
        elif there:
            assert isinstance(answer, Indefinite), f"{answer!r}, and it is there"
        assert there or not world.holds(request), "what was not there when the error came never gets there"

    for script in FOUND:
        check = example(script)(check)
    check()


@pytest.mark.parametrize("name", ALONE)
def test_an_append_keeps_its_time_however_slow_each_server_is(name: str) -> None:
    """By a clock of their own: each call takes a part of the time-out, or all that it is given and then fails."""

    @settings(max_examples=200)
    @given(st.lists(st.sampled_from([0, 0, 0.3, 0.6, 0.9, 9]), min_size=8, max_size=8), st.floats(0.1, 3))
    def check(parts: list[float], timeout: float) -> None:
        world = World(delays=cycle([0.0]))
        with opened(name, world) as writer:
            world.delays = cycle([part * timeout for part in parts])
            began = world.now
            answer = outcome(writer, str(uuid4()), timeout)
            assert world.now - began <= 1.1 * timeout + 0.05, answer  # a call that has no time left is given a little
        assert isinstance(answer, Row | PghcError)

    check()


@pytest.mark.parametrize("name", ["causal", "broadcast"])
@pytest.mark.parametrize("call", ["cursor", "ordering", "await_room", "take", "known", "apply", "read"])
def test_an_append_keeps_its_time_while_any_call_of_its_threads_stands_still(name: str, call: str) -> None:
    world = World()
    with opened(name, world) as writer:
        world.append(OTHERS)
        writer.append(str(uuid4()), 5)
        world.script = World([(call, Fault(None, False, 9))]).script
        with patch.dict(globals(), SLOW=1.2):
            began = time.monotonic()
            outcome(writer, str(uuid4()), 0.1)
            assert time.monotonic() - began < 1.0


@pytest.mark.parametrize("after", [False, True])
def test_what_was_lost_is_sent_again_under_the_same_request_id_and_happens_once(after: bool) -> None:
    world, requests = World(), [str(uuid4()), str(uuid4())]
    with opened("broadcast", world) as writer:
        world.script = World([("take_async", Fault(ConnectionLoss(), after, 1))]).script
        rows = writer.submit_many(requests).result(5)
        deadline = time.monotonic() + 5
        while len(world.log) <= after:
            assert time.monotonic() < deadline
            time.sleep(0.01)
    assert [row.zk_id for row in rows] == [1, 2]
    assert {entry.requests for entry in world.log} == {tuple(requests)}
    assert set(world.rows) == set(requests)


def test_a_number_that_another_took_in_the_meantime_is_no_end_for_naive() -> None:
    world = World()
    with opened("naive", world) as writer:
        world.script = World([("insert", Fault(Conflict("insert"), False, 2))]).script
        assert writer.append(str(uuid4()), 5).zk_id == 1


def test_a_sender_goes_on_after_whatever_has_failed() -> None:
    world = World()
    with patch.object(broadcast, "ENTRIES_SENT", 2), opened("broadcast", world) as writer:
        world.script = World([("take_async", Fault(RuntimeError("a defect"), False, 3))]).script
        assert writer.append(str(uuid4()), 5).zk_id == 1


def test_a_call_that_gives_up_strands_no_other_of_the_same_request() -> None:
    world, request = World(), str(uuid4())
    with opened("causal", world) as writer, ThreadPoolExecutor() as pool:
        world.script = World([("known", Fault(None, False, 1))]).script
        short, long = pool.submit(outcome, writer, request, 0.1), pool.submit(outcome, writer, request, 5)
        assert isinstance(short.result(), Indefinite)
        assert long.result() == world.rows[request]
    assert len(world.log) == 1, "they shared one entry"


def test_an_append_whose_chain_ended_under_it_is_told_so_at_once() -> None:
    world = World()
    with opened("causal", world) as writer:
        take = world.take

        def end_after(entry: Entry, timeout: float | None = None) -> int:
            position = take(entry, timeout)
            world.at = Cursor(position + 1, 0, "", position + 1)
            return position

        with patch.object(world, "take", end_after):
            began = time.monotonic()
            answer = outcome(writer, str(uuid4()), 5)
    assert isinstance(answer, Indefinite)
    assert "has ended" in str(answer)
    assert time.monotonic() - began < 3


@pytest.mark.parametrize("now", [Cursor(BEGUN + 5, 0, "", BEGUN + 5), Cursor(BEGUN + 1, 1, "another's", BEGUN)])
def test_a_lock_holder_that_was_overtaken_while_it_waited_claims_nothing(now: Cursor) -> None:
    world = World()
    with opened("locked", world) as writer, patch.object(world, "wait_for", lambda *_: now):
        answer = outcome(writer, str(uuid4()), 2)
    assert isinstance(answer, Conflict)
    assert world.claims == [0, 0]


def test_a_writer_waits_longer_than_the_slowest_link_of_its_own_topology_takes() -> None:
    for milliseconds in (1, 95, 1500):
        topology = load()
        slow = replace(topology, delays_ms=dict.fromkeys(topology.delays_ms, float(milliseconds)))
        assert causal.patience(slow) > 2 * milliseconds / 1000


# The lock


@pytest.mark.parametrize(
    ("answers", "had"), [([True], True), ([False], False), ([ConnectionLoss()], False), ([CancelledError()], False)]
)
def test_a_lock_is_held_only_if_it_was_had(answers: list[Any], had: bool) -> None:
    lock = SimpleNamespace(acquire=Mock(side_effect=answers), release=Mock(), cancel=Mock())
    mutex = Mutex.__new__(Mutex)
    mutex.region, mutex._path = "us-east", "/lock"
    mutex.client = SimpleNamespace(Lock=lambda *_: lock)
    inside = []
    with nullcontext() if had else pytest.raises(Unavailable, match="nothing was written"), mutex.hold(0.2):
        inside.append(True)
    assert bool(inside) == had == lock.release.called


def test_a_lock_that_is_had_too_late_is_given_back() -> None:
    late = threading.Event()
    lock = SimpleNamespace(acquire=lambda timeout: late.wait(5), release=Mock(), cancel=late.set)
    mutex = Mutex.__new__(Mutex)
    mutex.region, mutex._path = "us-east", "/lock"
    mutex.client = SimpleNamespace(Lock=lambda *_: lock)
    with pytest.raises(Unavailable), mutex.hold(0.1):
        pytest.fail("it was not had")
    deadline = time.monotonic() + 5
    while not lock.release.called:
        assert time.monotonic() < deadline
        time.sleep(0.01)


# The log


created = st.sampled_from(["created", "lost before", "lost after", "ended"])
trouble = st.sampled_from([None, Unavailable("no quorum"), ClusterError("the log is gone")])


@settings(max_examples=300)
@example(["created"], [None, ClusterError("the log is gone"), None, None, None, None], True)
@example(["lost after"], [None, ClusterError("the log is gone"), None, None, None, None], False)
@given(st.lists(created, min_size=1, max_size=4), st.lists(trouble, min_size=6, max_size=6), st.booleans())
def test_a_position_is_refused_for_certain_only_if_nothing_was_created(
    creations: list[str], troubles: list[PghcError | None], last: bool
) -> None:
    log, calls, errors = [], iter(creations), iter(troubles)
    segment = Segment(1, BEGUN)

    def create(_segment: Segment, data: bytes) -> Any:
        what = next(calls, "lost before")
        if what in ("created", "lost after"):
            log.append(data)
        if what.startswith("lost"):
            return SimpleNamespace(get=raising(ConnectionLoss()))
        node = segment.node(BEGUN + len(log))
        return SimpleNamespace(get=lambda timeout: [True, node] if what == "created" else [RolledBackError()])

    def meet(*_: object) -> None:
        if error := next(errors, None):
            raise copy(error)

    sequencer = Sequencer.__new__(Sequencer)
    sequencer.region, sequencer.timeout, sequencer.segment_size = "us-east", 0.01, 1 if last else 99
    sequencer._segments = [segment]
    replaced = {"_create": create, "await_room": meet, "next_segment": meet, "rotate": meet}
    with patch.multiple(sequencer, **replaced):
        try:
            answer: int | PghcError = sequencer.take(OTHERS)
        except PghcError as error:
            answer = error
    assert len(set(log)) <= 1, "what is created again is the same entry, under the same request id"
    if isinstance(answer, int):
        assert answer == BEGUN + len(log)
    elif log:
        assert isinstance(answer, Indefinite), f"{answer!r}, and it is there"


def raising(error: Exception) -> Callable[..., None]:
    def get(timeout: float) -> None:
        raise error

    return get


def test_to_begin_a_chain_keeps_its_time() -> None:
    sequencer = Sequencer.__new__(Sequencer)
    sequencer.timeout = 1.0
    spent: list[float] = []

    def slow(timeout: float, answer: Any) -> Any:
        spent.append(timeout / 2)
        return answer

    with (
        patch.multiple(
            sequencer,
            tip=lambda timeout=None: slow(timeout, 0),
            rotate=lambda timeout=None, base=0: slow(timeout, None),
            take=lambda entry, timeout=None: slow(timeout, 9),
        ),
        patch("pghc.sequencer.time", SimpleNamespace(monotonic=lambda: sum(spent))),
    ):
        assert sequencer.begin_chain(5, 1.0) == 9
    assert sum(spent) <= 1.0


@pytest.mark.parametrize("timeout", [float("nan"), float("inf"), 1e10])
@pytest.mark.parametrize("name", NAMES)
def test_a_time_out_that_cannot_be_kept_is_refused_before_anything_is_sent(name: str, timeout: float) -> None:
    writer = object.__new__(writer_class(name))  # with nothing that it could ask
    with pytest.raises(BadInput, match="nothing was sent"):
        writer.append(new_request_id(), timeout)
