"""Where the ordering core was broken once, it holds: each test is a kind of case, on real servers."""

from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from itertools import permutations
from uuid import uuid4

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from kazoo.exceptions import ConnectionLoss
from kazoo.interfaces import IAsyncResult
from test_invariants import settled_chains, the_chain, until

from pghc.chain import successor
from pghc.cluster import Backend
from pghc.errors import BadInput, ClusterError, Conflict, Indefinite, PghcError, Unavailable, WrongKind
from pghc.faults.injection import Faults
from pghc.sequencer import Entry, Segment, Sequencer
from pghc.store import Cursor, Reader, Store
from pghc.topology import View
from pghc.verify.checker import verify_chain
from pghc.workload import chains
from pghc.writers import NAMES, housekeeping, open_writer
from pghc.writers.causal import Causal

LOG = ("causal", "broadcast")


def new_id() -> str:
    return str(uuid4())


# 1  Writers mixed on one chain


def test_an_early_row_of_the_mesh_blocks_no_applier(
    cluster: Backend, views: dict[str, View], stack: ExitStack
) -> None:
    us, eu, ap = list(views)[:3]
    rows = []
    with Faults(cluster).cut(us, ap):
        with open_writer("causal", views[us]) as one, open_writer("causal", views[eu]) as other:
            rows = [one.append(new_id()), other.append(new_id())]
        with Reader(views[ap], f"{ap}-primary", admin=True) as reader:
            until(lambda: reader.rows("select zk_id from pghc.early") == [(2,)])  # the second came, the first did not
        writers = [stack.enter_context(open_writer("broadcast", view)) for view in views.values()]
        rows += [writer.append(new_id()) for writer in writers]
    rows += [writer.append(new_id()) for writer in writers]
    assert the_chain(views) == rows


def test_causal_and_broadcast_share_a_chain(views: dict[str, View], stack: ExitStack) -> None:
    writers = [stack.enter_context(open_writer(name, view)) for view in views.values() for name in LOG]
    with ThreadPoolExecutor() as pool:
        rows = [row for _ in range(5) for row in pool.map(lambda each: each.append(new_id()), writers)]
    chain = the_chain(views)
    assert sorted(rows) == chain
    assert verify_chain(chain).valid


@pytest.mark.parametrize(("first", "second"), [*permutations(("naive", "numbered", "locked", "causal"), 2)][::2])
def test_a_chain_is_ordered_in_one_way_and_another_writer_is_refused_before_it_sends_anything(
    views: dict[str, View], stack: ExitStack, first: str, second: str
) -> None:
    us, eu = list(views.values())[:2]
    row = stack.enter_context(open_writer(first, us)).append(new_id())
    until(lambda: last(eu) == row)
    other = stack.enter_context(open_writer(second, eu))
    with Sequencer(us) as sequencer:
        before = sequencer.tip()
        with pytest.raises(WrongKind, match="nothing was sent") as raised:
            other.append(new_id())
        assert raised.value.definite
        assert f"{other.ordering!r}" in str(raised.value)
        assert sequencer.tip() == before
    assert last(eu) == row


def last(view: View) -> object:
    with Store(view) as store:
        return store.last()


def test_of_two_kinds_of_writer_that_are_first_at_once_one_is(views: dict[str, View], stack: ExitStack) -> None:
    for _ in range(3):
        chains.begin_chain(list(views.values()))
        pairs = zip(NAMES, (*views.values(), *views.values()), strict=False)
        writers = [stack.enter_context(open_writer(name, view)) for name, view in pairs]
        with ThreadPoolExecutor() as pool:
            answers = list(pool.map(outcome, writers))
        accepted = {w.ordering for w, answer in zip(writers, answers, strict=True) if not isinstance(answer, WrongKind)}
        assert len(accepted) == 1, answers


@pytest.mark.parametrize("writer", LOG)
@pytest.mark.parametrize("other", ["naive", "numbered"])
def test_what_comes_into_the_log_of_a_chain_of_another_kind_becomes_no_row(
    views: dict[str, View], stack: ExitStack, monkeypatch: pytest.MonkeyPatch, writer: str, other: str
) -> None:
    us, eu = list(views.values())[:2]
    late = stack.enter_context(open_writer(writer, eu))
    late.append(new_id())
    chains.begin_chain(list(views.values()))
    with Store(us) as store, Sequencer(us) as sequencer:
        sequencer.ordering(store.cursor().chain, other)
    with monkeypatch.context() as stopped:  # between its look at the chain before and its entry in the log
        stopped.setattr(late, "admit", lambda _: None)
        assert isinstance(outcome(late, 2.0), Indefinite)
    assert isinstance(outcome(late, 5.0), WrongKind)
    rows = [stack.enter_context(open_writer(other, us)).append(new_id())]
    assert the_chain(views) == rows


def outcome(writer: object, timeout: float = 5.0) -> object:
    try:
        return writer.append(new_id(), timeout)  # type: ignore[attr-defined]
    except PghcError as error:
        return error


# 2  False certainty


def test_a_lost_reply_followed_by_a_lost_quorum_is_indefinite(
    views: dict[str, View], stack: ExitStack, monkeypatch: pytest.MonkeyPatch
) -> None:
    view = next(iter(views.values()))
    sequencer, other = stack.enter_context(Sequencer(view)), stack.enter_context(Sequencer(view))
    create, calls = sequencer._create, []

    def lose(segment: Segment, data: bytes) -> IAsyncResult:
        answer = create(segment, data)
        calls.append(answer.get(timeout=10))
        if len(calls) == 1:  # it is in the log, and its reply is lost; then somebody begins another segment
            other.rotate()
            raise ConnectionLoss
        return answer

    def no_quorum(*_: object) -> None:
        raise Unavailable("no quorum")

    monkeypatch.setattr(sequencer, "_create", lose)
    monkeypatch.setattr(sequencer, "next_segment", no_quorum)
    with pytest.raises(Indefinite, match="may have happened"):
        sequencer.take(Entry(f"{view.region}-primary", (new_id(),)), 3)
    assert len(calls) == 2


# 3  Poison


@pytest.mark.parametrize("writer", NAMES)
def test_a_request_id_that_is_none_is_refused_and_a_known_one_in_another_form_is_the_same(
    views: dict[str, View], stack: ExitStack, writer: str
) -> None:
    view = next(iter(views.values()))
    opened = stack.enter_context(open_writer(writer, view))
    with pytest.raises(BadInput, match="hello"):
        opened.append("hello")
    request = new_id()
    row = opened.append(request)
    if opened.exactly_once:
        assert opened.append(request.upper()) == row
    assert opened.append(new_id()).zk_id == 2


@pytest.mark.parametrize("writer", LOG)
def test_what_stands_in_the_log_whoever_wrote_it_stops_nobody(
    views: dict[str, View], stack: ExitStack, writer: str
) -> None:
    writers = [stack.enter_context(open_writer(writer, view)) for view in views.values()]
    rows = [writers[0].append(new_id())]
    sequencer = stack.enter_context(Sequencer(next(iter(views.values()))))
    request = new_id()
    for data in (
        b"hello",
        b"",
        b"\xff\x00",
        b"[" * 50_000,
        b'{"node_id": "us-east-primary", "requests": ["hello"]}',
        b'{"node_id": "us-east-primary", "requests": "%s"}' % request.encode(),
        b'{"node_id": "us-east-primary", "requests": ["%s"]}' % request.upper().encode(),
        b'{"node_id": "US East", "requests": ["%s"]}' % request.encode(),
        b'{"node_id": 7, "requests": [["x"]]}',
    ):
        assert sequencer._create(sequencer._segments[-1], data).get(timeout=10)
        rows += [each.append(new_id()) for each in writers]
    assert the_chain(views) == rows


# 4  A full log


def test_a_full_log_refuses_appends_and_names_the_region_that_is_behind(
    cluster: Backend, views: dict[str, View], stack: ExitStack, monkeypatch: pytest.MonkeyPatch
) -> None:
    us, eu = list(views)[:2]
    monkeypatch.setattr(housekeeping, "LOG_BYTES", 100_000)
    monkeypatch.setattr(housekeeping, "FEW", 5)
    writers = [stack.enter_context(open_writer("broadcast", view)) for view in views.values()]
    assert writers[1].append(new_id()).zk_id == 1
    answered = 1
    with Faults(cluster).pause(f"{us}-primary"):
        error = None
        deadline = time.monotonic() + 30
        while not isinstance(error, Unavailable):
            assert time.monotonic() < deadline, "the log takes without end"
            try:
                answered += len(writers[1].submit_many([new_id() for _ in range(500)]).result(4))  # type: ignore[attr-defined]
            except TimeoutError:
                error = outcome(writers[1], 2)
        assert us in str(error)
        assert "nothing was written" in str(error)
        assert Sequencer(views[eu]).size() < 1_000_000
    deadline = time.monotonic() + 30
    while isinstance(outcome(writers[1], 3), PghcError):
        assert time.monotonic() < deadline, "it goes on when the region is back"
    assert len(the_chain(views)) > answered


# 5  A dead client


@pytest.mark.parametrize("writer", LOG)
def test_a_client_whose_answers_come_out_of_order_goes_on(
    views: dict[str, View], stack: ExitStack, writer: str
) -> None:
    opened, *_ = [stack.enter_context(open_writer(writer, view)) for view in views.values()]
    rows = [opened.append(new_id())]
    for client in (opened.sequencer.client, opened.log.client):  # type: ignore[attr-defined]
        client._pending.append((None, client.handler.async_result(), 12345))  # its answer went missing
        rows.append(opened.append(new_id()))
    assert the_chain(views) == rows


def test_a_client_whose_loop_ends_for_whatever_reason_begins_another(
    views: dict[str, View], stack: ExitStack, monkeypatch: pytest.MonkeyPatch
) -> None:
    sequencer = stack.enter_context(Sequencer(next(iter(views.values()))))
    connection, failed = sequencer.client._connection, []
    read = connection._read_socket

    def fail_once(timeout: float) -> object:
        if not failed:
            failed.append(True)
            raise ValueError("a defect")
        return read(timeout)

    monkeypatch.setattr(connection, "_read_socket", fail_once)
    position = sequencer.take(Entry("us-east-primary", (new_id(),)))
    assert failed
    assert sequencer.take(Entry("us-east-primary", (new_id(),))) == position + 1


# 6  Time-outs are kept


def test_an_append_keeps_its_time_while_the_cursor_creeps(views: dict[str, View], stack: ExitStack) -> None:
    us = next(iter(views.values()))
    writer, store = stack.enter_context(open_writer("causal", us)), stack.enter_context(Store(us))
    others = stack.enter_context(Sequencer(us))
    requests = [new_id() for _ in range(40)]
    first = min([others.take(Entry(store.node, (request,))) for request in requests])
    stop = threading.Event()

    def creep() -> None:
        for number, request in enumerate(requests):
            cursor = store.cursor()
            if stop.wait(0.25) or cursor.position >= first + number:
                return
            row = successor(cursor, store.node)
            new = Cursor(first + number, row.zk_id, row.hash, cursor.chain)
            store.apply(cursor, new, [row], [(request, row.zk_id, new.position)])

    thread = threading.Thread(target=creep)
    thread.start()
    began = time.monotonic()
    with pytest.raises(Indefinite):
        writer.append(new_id(), 1.0)
    took = time.monotonic() - began
    stop.set()
    thread.join()
    assert took < 1.1 + SLACK


SLACK = 0.5  # seconds: a busy machine's


@pytest.mark.parametrize("writer", NAMES)
@pytest.mark.parametrize("slow", ["primary", "zookeeper"])
def test_an_append_keeps_its_time_while_a_server_is_silent(
    cluster: Backend, views: dict[str, View], stack: ExitStack, writer: str, slow: str
) -> None:
    us = next(iter(views))
    opened = stack.enter_context(open_writer(writer, views[us]))
    opened.append(new_id())
    with Faults(cluster).pause(f"{us}-{slow}"):

        @given(st.floats(0.2, 1.5))
        @settings(max_examples=3, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)
        def check(timeout: float) -> None:
            began = time.monotonic()
            with suppress(PghcError):
                opened.append(new_id(), timeout)
            assert time.monotonic() - began < 1.1 * timeout + SLACK

        check()


# 7  Stale segments


def test_a_rotator_that_slept_through_a_truncation_brings_no_segment_back(
    views: dict[str, View], stack: ExitStack
) -> None:
    one, other, *_ = list(views.values())
    sleeper, busy = stack.enter_context(Sequencer(one)), stack.enter_context(Sequencer(other))
    node = f"{one.region}-primary"
    position = sleeper.take(Entry(node, (new_id(),)))
    old = sleeper._segments[-1]
    until(lambda: busy.tip() == position)
    busy.rotate()
    busy.truncate(busy.tip())
    until(lambda: not sleeper.client.exists(old.path))
    sleeper.rotate(Segment(old.number - 1, old.base - 5))  # it was about to begin the segment that is gone
    assert not busy.client.exists(old.path)
    assert sleeper.take(Entry(node, (new_id(),))) == position + 1, "no position is given twice"


# 8  Void positions


def test_void_positions_are_learned_from_the_log_by_all_at_once(views: dict[str, View], stack: ExitStack) -> None:
    us, eu = list(views.values())[:2]
    one, other = stack.enter_context(Causal(us)), stack.enter_context(Causal(eu))
    one.patience = other.patience = 8.0
    request = new_id()
    row = one.append(request)
    until(lambda: last(eu) == row)
    for _ in range(3):
        with Sequencer(us) as sequencer:
            for entry in (Entry(one.node_id, (request,)), Entry(one.node_id, ())):  # a lost reply's, and an empty one
                sequencer.take(entry)
        began = time.monotonic()
        row = other.append(new_id(), 6)
        assert time.monotonic() - began < 4, "it does not wait for rows that will never come"
        until(lambda r=row: last(us) == r)
    assert len(the_chain(views)) == 4


def test_the_entries_of_broadcast_are_not_waited_for(views: dict[str, View], stack: ExitStack) -> None:
    us, eu = list(views.values())[:2]
    with open_writer("broadcast", us) as one:
        row = one.append(new_id())
    other = stack.enter_context(Causal(eu))
    other.patience = 8.0
    assert other.append(new_id(), 6).zk_id == row.zk_id + 1


# 9  A chain begun while another is in use


def test_two_that_begin_a_chain_at_once_begin_one_after_the_other(views: dict[str, View], stack: ExitStack) -> None:
    with ThreadPoolExecutor() as pool:
        list(pool.map(lambda _: chains.begin_chain(list(views.values())), range(3)))
    begun = {store_cursor(view) for view in views.values()}
    assert len(begun) == 1
    rows = [stack.enter_context(open_writer("causal", view)).append(new_id()) for view in views.values()]
    assert the_chain(views) == rows


def store_cursor(view: View) -> Cursor:
    with Store(view) as store:
        return store.cursor()


@pytest.mark.parametrize("writer", NAMES)
def test_who_writes_to_a_chain_that_another_follows_is_refused_or_indefinite(
    views: dict[str, View], stack: ExitStack, writer: str
) -> None:
    writers = [stack.enter_context(open_writer(writer, view)) for view in views.values()]
    stop, answers = threading.Event(), []

    def client(number: int) -> None:
        while not stop.is_set():
            answers.append((outcome(writers[number], 3), time.monotonic()))

    threads = [threading.Thread(target=client, args=(number,)) for number in range(len(writers))]
    for thread in threads:
        thread.start()
    time.sleep(1)
    chains.begin_chain(list(views.values()), writers[0].ordering)
    begun = time.monotonic()
    time.sleep(1.5)
    stop.set()
    for thread in threads:
        thread.join()
    errors = [answer for answer, _ in answers if isinstance(answer, Exception)]
    assert all(isinstance(error, Conflict | Indefinite | Unavailable) for error in errors), errors
    if writer in LOG:
        rows = [answer for answer, when in answers if not isinstance(answer, Exception) and when > begun + 0.5]
        chain = the_chain(views)
        assert rows, "the writers go on with the new chain"
        assert set(rows) <= set(chain)
        assert verify_chain(chain, whole=True).valid


# 10  Older disks


def test_a_log_that_is_not_that_of_the_databases_is_noticed_at_once(views: dict[str, View], stack: ExitStack) -> None:
    view = next(iter(views.values()))
    writer = stack.enter_context(open_writer("causal", view))
    writer.append(new_id())
    writer.sequencer.client.delete("/pghc/log", recursive=True)  # type: ignore[attr-defined]  # all its servers emptied
    began = time.monotonic()
    until(lambda: "emptied" in str(outcome(writer, 5)))
    assert time.monotonic() - began < 6
    with Sequencer(view):  # somebody makes the log anew: it is not that of the databases
        until(lambda: "older than the database" in str(outcome(writer, 5)))
    assert isinstance(outcome(writer, 5), ClusterError)
    chains.begin_chain(list(views.values()))
    until(lambda: not isinstance(outcome(writer), PghcError), seconds=10)
    assert settled_chains(views)[view.region]


def test_a_primary_that_is_older_than_the_log_is_noticed(views: dict[str, View], stack: ExitStack) -> None:
    view = next(iter(views.values()))
    sequencer = stack.enter_context(Sequencer(view))
    sequencer.take(Entry("us-east-primary", ()))
    sequencer.rotate()
    first = sequencer.tip()
    sequencer.truncate(first)
    sequencer.check("us-east-primary", first)
    with pytest.raises(ClusterError, match=r"us-east-primary.*older than what all regions had reported"):
        sequencer.check("us-east-primary", first - 1)
    with pytest.raises(ClusterError, match="older than the database"):
        sequencer.check("us-east-primary", first + 1)
