"""What is one transaction of a database, and what is one decision of the log: each test fails without it."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from unittest.mock import patch

import pytest
from test_invariants import after, new_id, put, the_chain, until, until_applier

from pghc.chain import successor
from pghc.cluster import Backend
from pghc.errors import ClusterError, Conflict, Indefinite, PghcError
from pghc.faults.injection import Faults
from pghc.mutex import Mutex
from pghc.sequencer import LOG, Entry, Segment, Sequencer
from pghc.store import Cursor, Reader, Store
from pghc.topology import View
from pghc.workload import chains
from pghc.writers import NAMES, housekeeping, open_writer

LOG_WRITERS = ("causal", "broadcast")
REFUSALS = "select sum(apply_error_count)::int from pg_stat_subscription_stats"


@contextmanager
def held(store: Store) -> Iterator[None]:
    """The region's cursor is locked by somebody: nobody can change the chain."""
    admin = Reader(store.view, store.node, admin=True)
    with admin, admin.connection("hold the cursor") as connection, connection.transaction():
        connection.execute("select * from pghc.cursor for update")
        yield


# The database


@pytest.mark.parametrize("how", ["insert", "apply", "applier", "replication"])
def test_a_row_its_request_and_the_cursor_are_of_one_transaction(
    views: dict[str, View], stack: ExitStack, how: str
) -> None:
    us, eu = [stack.enter_context(Store(view)) for view in list(views.values())[:2]]
    start = us.cursor()
    row, request = successor(start, us.node), new_id()
    new = after(start, row)
    if how == "insert":
        us.insert(row, request, start.chain)
    elif how == "applier":
        applier = until_applier(us)
        stack.callback(applier.close)
        assert applier.apply(start, new, [row], [(request, 1, new.position)])
    else:
        assert put(us, start, row, request)
    store = eu if how == "replication" else us
    until(lambda: store.cursor() == new)
    query = "select c.xmin::text, r.xmin::text, m.xmin::text from public.chain c, pghc.request r, pghc.cursor m"
    [transactions] = store.rows(query)
    assert len(set(transactions)) == 1


def test_an_applier_that_dies_between_rows_and_cursor_leaves_neither(views: dict[str, View], stack: ExitStack) -> None:
    store = stack.enter_context(Store(next(iter(views.values()))))
    start = store.cursor()
    row = successor(start, store.node)
    new = after(start, row)
    applier = until_applier(store)
    with held(store), ThreadPoolExecutor() as pool:
        applied = pool.submit(applier.apply, start, new, [row], [(new_id(), 1, new.position)])
        time.sleep(0.5)
        assert store.last() is None, "no row is there before the cursor can move"
        applier._connection.pgconn.finish()
        with pytest.raises(Indefinite):
            applied.result(10)
    assert (store.last(), store.cursor()) == (None, start)


@pytest.mark.parametrize("writer", NAMES)
def test_an_append_is_answered_after_its_commit(views: dict[str, View], stack: ExitStack, writer: str) -> None:
    opened = stack.enter_context(open_writer(writer, next(iter(views.values()))))
    assert opened.append(new_id()).zk_id == 1
    with held(opened.store), pytest.raises(Indefinite):  # type: ignore[attr-defined]
        opened.append(new_id(), 1.0)


def test_a_write_that_is_cut_short_may_have_happened(
    cluster: Backend, views: dict[str, View], stack: ExitStack
) -> None:
    store = stack.enter_context(Store(next(iter(views.values()))))
    start = store.cursor()
    row = successor(start, store.node)
    with Faults(cluster).pause(store.node), pytest.raises(Indefinite, match="may have happened"):
        store.insert(row, new_id(), start.chain, 0.5)
    with Faults(cluster).pause(store.node), pytest.raises(Indefinite, match="may have happened"):
        store.apply(start, after(start, row), [row], [(new_id(), 1, start.position + 1)], 0.5)


@pytest.mark.parametrize("how", ["apply", "applier"])
def test_another_row_than_the_logs_that_came_early_is_refused(
    cluster: Backend, views: dict[str, View], stack: ExitStack, how: str
) -> None:
    us, eu, ap = [stack.enter_context(Store(view)) for view in views.values()]
    start = us.cursor()
    one, first, second = successor(start, "a-primary"), new_id(), new_id()
    other, right = successor(one, "b-primary"), successor(one, "c-primary")
    with Faults(cluster).cut(us.view.region, ap.view.region):
        assert put(us, start, one, first)
        until(lambda: eu.cursor() == after(start, one))
        assert put(eu, after(start, one), other, second)
        until(lambda: ap.last() == other)  # before its turn: the first is not there
        new = after(after(start, one), right)
        requests = [(first, 1, new.position - 1), (new_id(), 2, new.position)]
        target = until_applier(ap) if how == "applier" else ap
        with pytest.raises(Conflict, match="another row"):
            target.apply(start, new, [one, right], requests)
        assert (ap.cursor(), ap.last()) == (start, other)
        requests[1] = (second, 2, new.position)
        assert target.apply(start, after(after(start, one), other), [one, other], requests), "the log's own is taken"
        assert list(ap.chain()) == [one, other]
        if how == "applier":
            target.close()


def test_a_request_is_known_when_it_is_its_entrys_turn_and_not_before(
    cluster: Backend, views: dict[str, View], stack: ExitStack
) -> None:
    us, eu, ap = [stack.enter_context(Store(view)) for view in views.values()]
    start, request = us.cursor(), new_id()
    one = successor(start, us.node)
    with Faults(cluster).cut(us.view.region, ap.view.region):
        assert put(us, start, one, new_id())
        until(lambda: eu.cursor() == after(start, one))
        assert put(eu, after(start, one), successor(one, eu.node), request)
        until(lambda: ap.last() is not None)
        assert ap.known([request]) == (start, {})
    until(lambda: request in ap.known([request])[1])


def test_who_fills_a_gap_goes_on_over_what_came_before_its_turn(
    cluster: Backend, views: dict[str, View], stack: ExitStack
) -> None:
    us, eu, ap = [stack.enter_context(Store(view)) for view in views.values()]
    start, request = us.cursor(), new_id()
    one = successor(start, us.node)
    two = successor(one, eu.node)
    with Faults(cluster).cut(us.view.region, ap.view.region):
        assert put(us, start, one, request)
        until(lambda: eu.cursor() == after(start, one))
        assert put(eu, after(start, one), two, new_id())
        until(lambda: ap.last() == two)
        assert put(ap, start, one, request)
        assert ap.cursor() == after(after(start, one), two)


def test_who_waits_is_woken_after_its_listening_connection_was_ended(views: dict[str, View], stack: ExitStack) -> None:
    store = stack.enter_context(Store(next(iter(views.values()))))
    admin = stack.enter_context(Reader(store.view, store.node, admin=True))
    start = store.cursor()
    assert store.wait_for(start.position, 5) == start, "it listens"
    admin.rows("select pg_terminate_backend(pid) from pg_stat_activity where usename = 'pghc'")
    time.sleep(0.6)
    row = successor(start, store.node)
    until(lambda: store.cursor() == start)  # whose own connection was ended, too, perhaps
    assert put(store, start, row, new_id())
    assert store.wait_for(start.position + 1, 8) == after(start, row)


def test_a_row_that_arrives_waits_for_the_same_row_that_is_about_to_be_committed(
    views: dict[str, View], stack: ExitStack
) -> None:
    us, eu = [stack.enter_context(Store(view)) for view in list(views.values())[:2]]
    admin = stack.enter_context(Reader(eu.view, eu.node, admin=True))
    before = admin.rows(REFUSALS)
    start, request = us.cursor(), new_id()
    row = successor(start, us.node)
    query = "select pghc.apply(%s, %s, %s, %s, %s, %s, %s::bigint[], %s::text[], %s::text[], %s::uuid[], %s::bigint[])"
    new = after(start, row)
    values = [[row.zk_id], [row.node_id], [row.hash], [request], [new.position]]
    with eu.connection("under way") as connection, connection.transaction():
        connection.execute(query, (start.chain, start.position, start.zk_id, *new[:3], *values))
        assert put(us, start, row, request)
        time.sleep(1.0)  # it has arrived
    until(lambda: eu.cursor() == new)
    two = successor(new, us.node)
    assert put(us, new, two, new_id())
    until(lambda: eu.last() == two)
    assert admin.rows(REFUSALS) == before


def test_who_waits_is_woken_by_an_applier_and_by_no_foreign_notification(
    views: dict[str, View], stack: ExitStack
) -> None:
    store = stack.enter_context(Store(next(iter(views.values()))))
    start = store.cursor()
    assert store.wait_for(start.position, 5) == start, "it listens"
    for payload in ("", "hello", '{"position": "x"}', "[" * 1000):
        store.rows("select pg_notify('pghc', %s)", payload)
    applier = until_applier(store)
    stack.callback(applier.close)
    row = successor(start, store.node)
    new = after(start, row)
    with ThreadPoolExecutor() as pool:
        waits = pool.submit(store.wait_for, new.position, 8.0)
        time.sleep(0.3)
        assert not waits.done()
        began = time.monotonic()
        assert applier.apply(start, new, [row], [(new_id(), 1, new.position)])
        assert waits.result(8) == new
        assert time.monotonic() - began < 1.5
    listeners = [thread for thread in threading.enumerate() if thread.name == f"listen {store.node}"]
    assert listeners, "it still listens"


def test_a_chain_that_begins_has_nothing_of_the_one_before(views: dict[str, View], stack: ExitStack) -> None:
    us, eu, ap = [stack.enter_context(Store(view)) for view in views.values()]
    start = us.cursor()
    assert put(us, start, successor(start, us.node), new_id())
    with ap.connection("what came before its turn", writes=True) as connection:
        connection.execute("insert into pghc.early values (3, %s)", (start.position + 3,))
    chains.begin_chain(list(views.values()))
    for store in (us, eu, ap):
        with Reader(store.view, store.node, admin=True) as admin:
            left = "select (select count(*) from public.chain) + (select count(*) from pghc.request) \
                    + (select count(*) from pghc.early)"
            assert admin.rows(left) == [(0,)]
    assert len({store.cursor() for store in (us, eu, ap)}) == 1


def test_a_chain_that_is_begun_a_second_time_or_after_a_later_one_stays_as_it_is(
    views: dict[str, View], stack: ExitStack
) -> None:
    store = stack.enter_context(Store(next(iter(views.values()))))
    admin = stack.enter_context(Reader(store.view, store.node, admin=True))
    start = store.cursor()
    row = successor(start, store.node)
    assert put(store, start, row, new_id())
    began = admin.rows("select began from pghc.cursor")
    assert admin.rows("select pghc.begin(%s)", start.chain) == began != [(None,)]
    assert admin.rows("select pghc.begin(%s)", start.chain - 1) == [(None,)]
    assert (store.last(), store.cursor()) == (row, after(start, row))


@pytest.mark.parametrize("before", NAMES)
def test_a_writer_of_the_log_goes_on_after_a_chain_of_each_kind(
    views: dict[str, View], stack: ExitStack, before: str
) -> None:
    """Positions go on; no chain begins at a position that a region has passed."""
    opened = {name: stack.enter_context(open_writer("causal", view)) for name, view in views.items()}
    us = next(iter(views))
    with open_writer(before, views[us]) as other:
        for _ in range(3):
            other.append(new_id())
    with Store(views[us]) as store:
        reached = store.cursor()
    chains.begin_chain(list(views.values()))
    rows = [writer.append(new_id(), 5) for writer in opened.values()]
    assert [row.zk_id for row in rows] == [1, 2, 3]
    assert the_chain(views) == rows
    with Store(views[us]) as store:
        assert store.cursor().chain > reached.position


@pytest.mark.parametrize("writer", NAMES)
def test_a_writer_that_stays_open_counts_from_one_when_another_chain_begins(
    views: dict[str, View], stack: ExitStack, writer: str
) -> None:
    opened = stack.enter_context(open_writer(writer, next(iter(views.values()))))
    for _ in range(2):
        assert [opened.append(new_id()).zk_id for _ in range(2)] == [1, 2]
        chains.begin_chain(list(views.values()))


@pytest.mark.parametrize("at_once", [1, 2, 7])
def test_causal_completes_an_entry_of_broadcast_with_all_its_appends(
    views: dict[str, View], stack: ExitStack, at_once: int
) -> None:
    """Its region has no applier; a refusal here was said to be definite, and the append happened later."""
    us, eu, ap = views
    with ExitStack() as open_ones:
        one, _ = [open_ones.enter_context(open_writer("broadcast", views[name])) for name in (us, ap)]
        rows = one.submit_many([new_id() for _ in range(at_once)]).result(10)  # type: ignore[attr-defined]
    row = stack.enter_context(open_writer("causal", views[eu])).append(new_id(), 6)
    assert row == successor(rows[-1], f"{eu}-primary")
    for name in (us, ap):
        stack.enter_context(open_writer("broadcast", views[name]))
    assert the_chain(views) == [*rows, row]


# The log


def test_the_logs_tip_is_what_any_region_has_taken_before(views: dict[str, View], stack: ExitStack) -> None:
    sequencers = [stack.enter_context(Sequencer(view)) for view in views.values()]
    for turn in range(9):
        position = sequencers[turn % 3].take(Entry("a-primary", (new_id(),)))
        with ThreadPoolExecutor() as pool:
            assert set(pool.map(lambda each: each.tip(), sequencers)) == {position}


@pytest.mark.parametrize("rotated", [False, True])
def test_who_waits_for_the_log_is_woken_by_its_next_entry(
    views: dict[str, View], stack: ExitStack, rotated: bool
) -> None:
    one, other = [stack.enter_context(Sequencer(view)) for view in list(views.values())[:2]]
    tip = one.tip()
    with ThreadPoolExecutor() as pool:
        waits = pool.submit(one.wait_beyond, tip, 20.0)
        time.sleep(0.7)
        began = time.monotonic()
        if rotated:
            other.rotate()
        assert other.take(Entry("a-primary", (new_id(),))) == tip + 1
        assert waits.result(20) == tip + 1
        assert time.monotonic() - began < 3, "woken, not by its time-out"


def test_a_rotator_that_sleeps_between_its_two_steps_brings_nothing_back(
    views: dict[str, View], stack: ExitStack
) -> None:
    """It has read where the segment ends; before it begins the next, others have done so, and truncated both."""
    sleeper, busy = [stack.enter_context(Sequencer(view)) for view in list(views.values())[:2]]
    position = busy.take(Entry("a-primary", (new_id(),)))
    until(lambda: sleeper.wait_beyond(position - 1, 1.0) == position)
    sleeper._load(time.monotonic() + 5)
    old, end = sleeper._segments[-1], sleeper._end

    def sleep(segment: Segment, deadline: float) -> int:
        found = end(segment, deadline)
        with patch.object(sleeper, "_end", end):
            busy.rotate()
            following = busy._segments[-1]
            busy.take(Entry("a-primary", (new_id(),)))
            busy.rotate()
            busy.truncate(busy.tip())
            until(lambda: not sleeper.client.exists(following.path))
        return found

    with patch.object(sleeper, "_end", sleep):
        sleeper.rotate(old)
    assert not busy.client.exists(Segment(old.number + 1, 0).path)
    assert sleeper.take(Entry("a-primary", (new_id(),))) == position + 2, "no position is given twice"


def test_a_log_whose_segments_are_gone_is_not_begun_anew(views: dict[str, View], stack: ExitStack) -> None:
    """Somebody deleted them by hand: positions from 1 on would be given again."""
    view = next(iter(views.values()))
    sequencer = stack.enter_context(Sequencer(view))
    sequencer.take(Entry("a-primary", (new_id(),)))
    sequencer.rotate()
    unmarked = sequencer.client.get(LOG)[1].version
    assert sequencer.truncate(sequencer.tip()) >= 1
    mark, stat = sequencer.client.get(LOG)
    assert stat.version > unmarked
    assert json.loads(mark)["first"] == sequencer._load(time.monotonic() + 5)._segments[0].number
    for name in sequencer.client.get_children(LOG):
        sequencer.client.delete(f"{LOG}/{name}", recursive=True)
    with pytest.raises(ClusterError, match="emptied"):
        Sequencer(view)
    sequencer.client.delete(LOG, recursive=True)
    chains.begin_chain(list(views.values()))


def test_the_log_keeps_what_one_region_has_not_settled(
    cluster: Backend, views: dict[str, View], stack: ExitStack
) -> None:
    us, eu, ap = views
    writers = {name: stack.enter_context(open_writer("causal", views[name])) for name in (us, eu)}
    for writer in writers.values():
        writer.sequencer.segment_size = 3  # type: ignore[attr-defined]
    rows = [writers[us].append(new_id())]
    until(lambda: all(store_cursor(view).zk_id == 1 for view in views.values()))
    with Faults(cluster).pause(f"{ap}-primary"):
        rows += [writer.append(new_id()) for _ in range(6) for writer in writers.values()]
        time.sleep(3)  # the writers report and truncate every second
        log: Sequencer = writers[us].log  # type: ignore[attr-defined]
        position = store_cursor(views[us]).position
        assert len(log.read(position - len(rows) + 2, position)) >= len(rows) - 1
    assert the_chain(views) == rows


def test_a_region_that_stands_still_is_brought_forward_though_nobody_waits_there(
    views: dict[str, View], stack: ExitStack, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(housekeeping, "STANDSTILL", 2)
    view = next(iter(views.values()))
    writer = stack.enter_context(open_writer("causal", view))
    first = writer.append(new_id())
    position = stack.enter_context(Sequencer(view)).take(Entry("dead-primary", (new_id(),)))
    until(lambda: store_cursor(view).position >= position, seconds=8)  # before the API's own node does it, in 10 s
    assert store_cursor(view).zk_id == first.zk_id + 1


def store_cursor(view: View) -> Cursor:
    with Store(view) as store:
        return store.cursor()


# The lock


def test_a_number_is_claimed_by_one_of_those_that_read_the_one_before(views: dict[str, View], stack: ExitStack) -> None:
    one, other = [stack.enter_context(Mutex(view, "test")) for view in list(views.values())[:2]]
    chain = time.time_ns()
    (number, version), others = one.read(chain), other.read(chain)
    assert number == others[0] == 0
    assert one.claim(chain, 1, version)
    assert not other.claim(chain, 1, others[1]), "it slept past the end of its session"
    assert one.read(chain)[0] == 1
    assert one.read(chain + 1)[0] == 0, "another chain's number is none of this"


# A writer that cannot be opened


@pytest.mark.parametrize("writer", NAMES)
@pytest.mark.parametrize("away", ["primary", "zookeeper"])
def test_a_writer_whose_opening_fails_leaves_nothing_behind(
    cluster: Backend, views: dict[str, View], writer: str, away: str
) -> None:
    us = next(iter(views))
    before = set(threading.enumerate())

    def refuse(*_: object, **__: object) -> None:
        raise ClusterError(f"{away} is away")

    where = "pghc.store.Store.cursor" if away == "primary" else "pghc.sequencer.Sequencer._load"
    opened = None
    with patch(where, refuse):
        try:
            opened = open_writer(writer, views[us])
        except PghcError:
            until(lambda: not (set(threading.enumerate()) - before), seconds=10)
    if opened:  # it needs no such server to be opened
        opened.close()
        until(lambda: not (set(threading.enumerate()) - before), seconds=10)




def test_an_answer_out_of_order_costs_a_connection_and_not_the_session(
    views: dict[str, View], stack: ExitStack
) -> None:
    sequencer = stack.enter_context(Sequencer(next(iter(views.values()))))
    client = sequencer.client
    session = client.client_id[0]
    position = sequencer.take(Entry("a-primary", (new_id(),)))
    client._pending.append((None, client.handler.async_result(), 12345))  # its answer went missing
    assert sequencer.take(Entry("a-primary", (new_id(),))) > position
    assert client.client_id[0] == session
