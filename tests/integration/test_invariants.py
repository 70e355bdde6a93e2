"""The seven invariants of the causal and the broadcast writer (DESIGN, section 3), each on real servers."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from uuid import uuid4

import pytest
from kazoo.exceptions import ConnectionLoss
from kazoo.interfaces import IAsyncResult

from pghc.chain import Row, successor
from pghc.cluster import Backend
from pghc.errors import Behind, ClusterError, Conflict, Indefinite, Unavailable
from pghc.faults.injection import Faults
from pghc.sequencer import Entry, Segment, Sequencer, position_of
from pghc.store import Applier, Cursor, Reader, Store, depose
from pghc.terms import succeed
from pghc.topology import View
from pghc.verify.checker import verify_chain
from pghc.workload import chains, runs
from pghc.writers import open_writer

EXACT = ("causal", "broadcast")


class Died(BaseException):
    """The writer's process is gone."""


class Dies:
    """A step hook: the writer dies when it has done ``step``."""

    def __init__(self, step: str) -> None:
        self.step = step

    def __call__(self, step: str) -> None:
        if step == self.step:
            raise Died


def new_id() -> str:
    return str(uuid4())


def settled_chains(views: dict[str, View]) -> dict[str, list[Row]]:
    """Each region's chain once all have the same number of entries or two seconds have passed."""
    deadline = time.monotonic() + 5
    while True:
        found = {}
        for name, view in views.items():
            with Store(view) as store:
                found[name] = list(store.chain())
        if len({tuple(rows) for rows in found.values()}) == 1 or time.monotonic() > deadline:
            return found
        time.sleep(0.1)


def the_chain(views: dict[str, View]) -> list[Row]:
    """The chain that all regions have."""
    found = settled_chains(views)
    one, *others = found.values()
    assert all(rows == one for rows in others), f"regions differ: {found}"
    return one


# 1  An acknowledged append is in the chain of every region, once, for good.


@pytest.mark.parametrize("writer", EXACT)
def test_1_every_acknowledged_append_is_in_every_region_once(cluster: Backend, writer: str) -> None:
    run = runs.run(cluster, writer, clients=3, seconds=3, reads=0.2)
    assert run.verdict.valid, str(run.verdict)
    assert run.appends > 10
    assert run.failed == run.unknown == 0, run.errors
    rows = the_chain({name: cluster.view(name) for name in cluster.topology.names})
    assert len(rows) == run.appends
    assert verify_chain(rows).valid


# 2  A row is a function of the log alone, so anyone may complete a dead writer's.


def test_2_a_dead_writers_row_is_completed_by_its_successor_within_a_second(
    views: dict[str, View], stack: ExitStack
) -> None:
    us, eu = list(views)[:2]
    dying = stack.enter_context(open_writer("causal", views[us], Dies("numbered")))
    alive = stack.enter_context(open_writer("causal", views[eu]))
    first = alive.append(new_id())
    with pytest.raises(Died):
        dying.append(new_id())
    began = time.monotonic()
    third = alive.append(new_id())
    assert time.monotonic() - began < 1.0 + 3 * cluster_round_trip(views)
    rows = the_chain(views)
    assert [row.node_id for row in rows] == [f"{eu}-primary", f"{us}-primary", f"{eu}-primary"]
    assert (rows[0], rows[2]) == (first, third)
    assert verify_chain(rows).valid


def test_2_when_several_complete_the_same_row_there_is_one(views: dict[str, View], stack: ExitStack) -> None:
    writers = {name: stack.enter_context(open_writer("causal", view)) for name, view in views.items()}
    names = list(views)
    dying = stack.enter_context(open_writer("causal", views[names[0]], Dies("numbered")))
    for _ in range(3):
        with pytest.raises(Died):
            dying.append(new_id())
        with ThreadPoolExecutor() as pool:
            assert len(list(pool.map(lambda name: writers[name].append(new_id()), names))) == len(names)
    rows = the_chain(views)
    assert len(rows) == 3 * (1 + len(names))
    assert verify_chain(rows).valid


def test_2_a_different_row_in_the_same_place_is_refused(views: dict[str, View], stack: ExitStack) -> None:
    view = next(iter(views.values()))
    store = stack.enter_context(Store(view))
    chain = store.cursor().chain
    store.insert(successor(None, store.node), new_id(), chain)
    with pytest.raises(Conflict, match=store.node):
        store.insert(successor(None, "another-primary"), new_id(), chain)
    assert [row.node_id for row in store.chain()] == [store.node]


REFUSALS = "select sum(apply_error_count)::int from pg_stat_subscription_stats"


def test_2_the_same_row_that_arrives_is_accepted_silently(
    cluster: Backend, views: dict[str, View], stack: ExitStack
) -> None:
    us, eu = list(views)[:2]
    stores = [stack.enter_context(Store(views[name])) for name in (us, eu)]
    admins = [stack.enter_context(Reader(views[store.view.region], store.node, admin=True)) for store in stores]
    before = [admin.rows(REFUSALS) for admin in admins]
    start = stores[0].cursor()
    one, request = successor(start, "us-east-primary"), new_id()
    with Faults(cluster).partition(us, eu):
        for store in stores:
            assert put(store, start, one, request)
    two = successor(one, stores[0].node)
    assert put(stores[0], after(start, one), two, new_id())
    until(lambda: list(stores[1].chain()) == [one, two])
    assert [admin.rows(REFUSALS) for admin in admins] == before


def test_2_a_different_row_that_arrives_is_refused_not_dropped(
    cluster: Backend, views: dict[str, View], stack: ExitStack
) -> None:
    us, eu = list(views)[:2]
    stores = [stack.enter_context(Store(views[name])) for name in (us, eu)]
    admin = stack.enter_context(Reader(views[us], stores[0].node, admin=True))
    before = admin.rows(REFUSALS)[0][0]
    with Faults(cluster).partition(us, eu):
        for store in stores:
            store.insert(successor(None, store.node), new_id(), store.cursor().chain)
    until(lambda: admin.rows(REFUSALS)[0][0] > before, seconds=10)
    assert [row.node_id for row in stores[0].chain()] == [stores[0].node], "the first one stays"
    chains.begin_chain(list(views.values()))  # ends what is stuck


# 3  A retry under the same request id yields the same entry.


@pytest.mark.parametrize("writer", EXACT)
def test_3_a_retry_in_another_region_yields_the_same_entry(
    views: dict[str, View], stack: ExitStack, writer: str
) -> None:
    one, other, *_ = [stack.enter_context(open_writer(writer, view)) for view in views.values()]
    request = new_id()
    row = one.append(request)
    assert other.append(request) == row
    assert one.append(request) == row
    after = other.append(new_id())
    assert after.zk_id == row.zk_id + 1, "the void positions left no gap"
    assert the_chain(views) == [row, after]


@pytest.mark.parametrize("writer", EXACT)
def test_3_a_request_that_is_tried_everywhere_at_once_becomes_one_entry(
    views: dict[str, View], stack: ExitStack, writer: str
) -> None:
    writers = [stack.enter_context(open_writer(writer, view)) for view in views.values()]
    request = new_id()
    with ThreadPoolExecutor() as pool:
        answers = list(pool.map(lambda each: each.append(request), writers * 2))
    assert len(set(answers)) == 1
    assert the_chain(views) == answers[:1]


def test_3_a_creation_whose_reply_was_lost_is_done_once(
    views: dict[str, View], stack: ExitStack, monkeypatch: pytest.MonkeyPatch
) -> None:
    writer = stack.enter_context(open_writer("causal", next(iter(views.values()))))
    sequencer: Sequencer = writer.sequencer  # type: ignore[attr-defined]
    create, lost = sequencer._create, []

    def lose_first(segment: Segment, data: bytes) -> IAsyncResult:
        result = create(segment, data)
        if not lost:
            lost.append(result.get(timeout=10))  # it is there, and its creator is not told
            raise ConnectionLoss
        return result

    monkeypatch.setattr(sequencer, "_create", lose_first)
    before = sequencer.tip()
    row = writer.append(new_id())
    assert sequencer.tip() == before + 2, "the request stands in the log twice"
    assert the_chain(views) == [row]
    assert writer.append(new_id()).zk_id == 2


# 4  The cursor moves in the transaction of its rows. A stale applier or a deposed session cannot write.


def test_4_a_stale_writer_cannot_write(views: dict[str, View], stack: ExitStack) -> None:
    store = stack.enter_context(Store(next(iter(views.values()))))
    start = store.cursor()
    row = successor(start, store.node)
    request = new_id()
    assert not put(store, start._replace(position=start.position + 1), row, new_id()), "its turn has not come"
    assert put(store, start, row, request)
    late = successor(start, "late-primary")
    assert not put(store, start, late, new_id()), "its turn is over"
    assert not put(store, start._replace(position=start.position + 1), late, new_id()), "made of an old cursor"
    assert not put(store, after(start, row)._replace(chain=start.chain - 1), successor(row, "x"), new_id()), "ended"
    assert list(store.chain()) == [row]
    assert store.cursor() == after(start, row)


def test_4_a_deposed_applier_cannot_write(views: dict[str, View], stack: ExitStack) -> None:
    store = stack.enter_context(Store(next(iter(views.values()))))
    start = store.cursor()
    rows = [successor(start, store.node)]
    new = after(start, rows[0])
    stale, request = store.applier(), new_id()
    with pytest.raises(Conflict):
        store.applier()  # one at a time
    stale.close()
    current = until_applier(store)
    assert current.apply(start, new, rows, [(request, 1, new.position)])
    assert not current.apply(start, new, rows, [(new_id(), 1, new.position)]), "the cursor has moved on"
    assert list(store.chain()) == rows
    depose(store)
    with pytest.raises(Indefinite):
        current.apply(new, Cursor(new.position + 1, 2, "x", new.chain), [Row(2, store.node, "x")], [(new_id(), 2, 2)])
    assert store.cursor() == new
    assert list(store.chain()) == rows


def test_4_a_paused_applier_is_replaced_and_changes_nothing_when_it_wakes(
    cluster: Backend, views: dict[str, View], stack: ExitStack
) -> None:
    view = next(iter(views.values()))
    stack.enter_context(Faults(cluster).kill(f"{view.region}-api"))  # its writer would bring the region forward
    store = stack.enter_context(Store(view))
    sleeper = store.applier()  # holds the right to apply, and does nothing with it
    writers = [stack.enter_context(open_writer("broadcast", each)) for each in views.values()]
    assert writers[0].append(new_id(), timeout=15).zk_id == 1
    now = store.cursor()
    start = Cursor(now.position - 1, 0, "", now.chain)
    with pytest.raises(Indefinite):
        sleeper.apply(start, Cursor(now.position, 1, "x", now.chain), [Row(1, store.node, "x")], [(new_id(), 1, 1)])
    assert verify_chain(the_chain(views)).valid


def test_4_a_writer_of_an_ended_chain_cannot_write_into_the_next(views: dict[str, View], stack: ExitStack) -> None:
    view = next(iter(views.values()))
    sequencer = stack.enter_context(Sequencer(view))
    store = stack.enter_context(Store(view))
    start = store.cursor()
    position = sequencer.take(Entry(store.node, (new_id(),)))
    chains.begin_chain(list(views.values()))
    assert store.cursor().chain > position
    assert not put(store, start, successor(None, store.node), new_id())
    with pytest.raises(Conflict, match="has ended, nothing was written"):
        store.insert(successor(None, store.node), new_id(), start.chain)
    assert store.last() is None


# 5  Readers see a prefix, no older than what they have seen.


def test_5_no_reader_sees_an_entry_before_those_it_depends_on(
    cluster: Backend, views: dict[str, View], stack: ExitStack
) -> None:
    us, eu, ap = list(views)[:3]
    first = stack.enter_context(open_writer("causal", views[us]))
    second = stack.enter_context(open_writer("causal", views[eu]))
    region = cluster.topology.region(ap)
    readers = [stack.enter_context(Reader(views[ap], name)) for name in (region.primary, *region.replica_names)]
    with Faults(cluster).cut(us, ap):
        comment = first.append(new_id())
        reply = second.append(new_id())
        for reader in readers:
            until(lambda r=reader: r.last() == reply)  # the reply is there, its comment is not
            mark, rows = reader.recent(10)
            assert (mark, rows) == (0, [])
            assert reader.recent(10, prefix=False)[1] == [reply]
            with pytest.raises(Behind, match=reader.node):
                reader.reached(reply.zk_id, 0.2)
    for reader in readers:
        assert reader.reached(reply.zk_id, 5) >= 2
        assert reader.recent(10) == (2, [comment, reply])


# 6  The log is truncated below what all regions have applied; numbers go on.


def test_6_numbers_go_on_over_rotation_and_truncation(views: dict[str, View], stack: ExitStack) -> None:
    sequencers = {name: stack.enter_context(Sequencer(view, segment_size=10)) for name, view in views.items()}
    one, other = list(sequencers.values())[:2]
    start = one.tip()
    taken = [s.take(Entry("a-primary", (new_id(),))) for _ in range(18) for s in (one, other)]
    assert taken == list(range(start + 1, start + 37)), "contiguous and in order, over at least three segments"
    assert [entry.node_id for entry in other.read(start + 1, start + 36)] == 36 * ["a-primary"]
    behind, *others = sequencers.values()
    behind.report(start + 25, behind.term())
    lowest = [min(sequencer.report(start + 36, sequencer.term()).values()) for sequencer in others][-1]
    assert lowest == start + 25, "what all regions have"
    assert one.truncate(lowest) >= 2
    assert other.read(start + 30, start + 36), "what is above is still there"
    with pytest.raises(Exception, match="truncated"):
        other.read(start + 1, start + 5)
    assert one.take(Entry("a-primary", (new_id(),))) == start + 37


def test_6_nothing_is_created_in_an_segment_after_its_end_was_read(views: dict[str, View], stack: ExitStack) -> None:
    sequencers = [stack.enter_context(Sequencer(view)) for view in views.values()]
    start = sequencers[0].tip()
    given: list[tuple[Segment, IAsyncResult]] = []
    for turn in range(6):  # creations of all regions are under way whenever a segment ends
        for _ in range(40):
            given += [sequencer.take_async(Entry("a-primary", (new_id(),))) for sequencer in sequencers]
        sequencers[turn % len(sequencers)].rotate()
        for sequencer in sequencers:
            sequencer.tip()
    found = (position_of(segment, answer.get(timeout=20)) for segment, answer in given)
    positions = sorted(position for position in found if position is not None)
    assert positions == list(range(start + 1, start + 1 + len(positions))), "each once, and none left out"
    logs = [sequencer.read(start + 1, positions[-1]) for sequencer in sequencers]
    assert len(logs[0]) == len(positions)
    assert all(log == logs[0] for log in logs), "the log is the same everywhere"


def test_6_who_was_idle_while_its_segment_was_truncated_goes_on_in_the_next(
    views: dict[str, View], stack: ExitStack
) -> None:
    idle, busy = [stack.enter_context(Sequencer(view, segment_size=10)) for view in list(views.values())[:2]]
    start = busy.take(Entry("a-primary", (new_id(),)))
    until(lambda: idle.wait_beyond(start - 1, 1.0) >= start)
    busy.rotate()
    ended = busy.client.get_children("/pghc/log")
    assert busy.truncate(start) >= 1
    until(lambda: len(idle.client.get_children("/pghc/log")) < len(ended))  # its server has heard of it, it has not
    assert idle.wait_beyond(start, 0.3) == start
    assert busy.take(Entry("b-primary", (new_id(),))) == start + 1
    until(lambda: idle.wait_beyond(start, 1.0) == start + 1)
    assert [entry.node_id for entry in idle.read(start + 1, start + 1)] == ["b-primary"]


def test_6_a_writer_truncates_what_all_regions_have(views: dict[str, View], stack: ExitStack) -> None:
    writers = [stack.enter_context(open_writer("causal", view)) for view in views.values()]
    for writer in writers:
        writer.sequencer.segment_size = 5  # type: ignore[attr-defined]
    for _ in range(4):
        for writer in writers:
            writer.append(new_id())
    sequencer: Sequencer = writers[0].sequencer  # type: ignore[attr-defined]
    until(lambda: len(sequencer.client.get_children("/pghc/log")) <= 2, seconds=10)
    assert verify_chain(the_chain(views)).valid


# 8  The log keeps an entry until every region has it on its primary and on one replica more.


@pytest.mark.parametrize("writer", EXACT)
def test_8_the_log_keeps_what_no_replica_of_a_region_has(
    cluster: Backend, views: dict[str, View], stack: ExitStack, writer: str
) -> None:
    writers = [stack.enter_context(open_writer(writer, view)) for view in views.values()]
    for each in writers:
        each.sequencer.segment_size = 2  # type: ignore[attr-defined]
        each.append(new_id())
    log: Sequencer = writers[0].sequencer  # type: ignore[attr-defined]
    until(lambda: min(log.reports().values()) >= log.tip(), seconds=10)
    kept = log.tip()
    region = cluster.topology.regions[0]
    with ExitStack() as faults:
        for replica in {*region.databases} - {views[region.name].primary()}:
            faults.enter_context(Faults(cluster).kill(replica))
        rows = [each.append(new_id()) for _ in range(4) for each in writers]
        time.sleep(4)  # several turns of housekeeping
        assert log.reports()[region.name] <= kept
        assert len(log.read(kept + 1, kept + len(rows))) == len(rows), "all are still there"
    until(lambda: is_truncated(log, kept + 1), seconds=15)


def test_8_nothing_is_reported_in_the_name_of_a_term_that_is_over(views: dict[str, View], stack: ExitStack) -> None:
    view = next(iter(views.values()))
    log = stack.enter_context(Sequencer(view))
    term = log.term()
    before = log.report(1, term)[view.region]
    later = succeed(log.client, view.region, term, term.node)
    with pytest.raises(Conflict, match="over"):
        log.report(before + 1_000_000, term)
    with pytest.raises(Conflict, match="did not become the primary"):
        succeed(log.client, view.region, term, term.node)
    assert log.report(before, later)[view.region] == before


# 7  No wait is by polling where the server can notify, and none is without time-out.


def test_7_a_waiting_writer_asks_the_database_nothing(views: dict[str, View], stack: ExitStack) -> None:
    view = next(iter(views.values()))
    store = stack.enter_context(Store(view))
    admin = stack.enter_context(Reader(view, store.node, admin=True))
    began = admin.rows("select clock_timestamp()")[0][0]
    start = store.cursor().position
    assert store.wait_for(start, 5.0).position == start, "it listens"
    waiter = threading.Thread(target=store.wait_for, args=(start + 1, 2.0))
    query = """select count(*) from pg_stat_activity
               where usename = 'pghc' and query_start > clock_timestamp() - interval '1.5 s' and backend_start > %s"""
    waiter.start()
    time.sleep(1.7)
    assert admin.rows(query, began)[0][0] == 0
    waiter.join()
    woken = threading.Event()
    waiter = threading.Thread(target=lambda: (store.wait_for(start + 1, 10.0), woken.set()))
    waiter.start()
    put(store, store.cursor(), successor(store.cursor(), store.node), new_id())
    assert woken.wait(0.5), "woken by the notification"


def test_7_every_wait_ends_when_a_primary_is_paused(cluster: Backend, views: dict[str, View], stack: ExitStack) -> None:
    name = next(iter(views))
    store = stack.enter_context(Store(views[name], timeout=1.0))
    assert store.last() is None
    with Faults(cluster).pause(store.node):
        for ask in (store.last, store.cursor, lambda: store.insert(successor(None, store.node), new_id(), 0)):
            began = time.monotonic()
            with pytest.raises((Unavailable, Indefinite), match=store.node):
                ask()
            assert time.monotonic() - began < 4
    until(lambda: store.cursor() is not None)


def after(cursor: Cursor, row: Row) -> Cursor:
    """Where the cursor is once the next log position has become ``row``."""
    return Cursor(cursor.position + 1, row.zk_id, row.hash, cursor.chain)


def put(store: Store, cursor: Cursor, row: Row, request: str) -> bool:
    """Settle the log position after ``cursor`` with ``row``."""
    new = after(cursor, row)
    return store.apply(cursor, new, [row], [(request, row.zk_id, new.position)])


def is_truncated(log: Sequencer, position: int) -> bool:
    try:
        log.read(position, position)
    except ClusterError as error:
        return "truncated" in str(error)
    return False


def until(condition: Callable[[], bool], seconds: float = 5.0) -> None:
    deadline = time.monotonic() + seconds
    while True:
        with suppress(Unavailable):
            if condition():
                return
        assert time.monotonic() < deadline, "it did not come to be"
        time.sleep(0.05)


def until_applier(store: Store) -> Applier:
    deadline = time.monotonic() + 5
    while True:
        try:
            return store.applier()
        except Conflict:
            assert time.monotonic() < deadline
            time.sleep(0.05)


def cluster_round_trip(views: dict[str, View]) -> float:
    """The longest round trip in seconds."""
    topology = next(iter(views.values())).topology
    return max(topology.round_trip_ms(a, b) for a, b in topology.pairs) / 1000
