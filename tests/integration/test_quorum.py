"""What becomes of appends when servers of the consensus service are lost, and when the holder of a lock dies."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from itertools import pairwise
from uuid import uuid4

import pytest

from pghc.chain import Row
from pghc.cluster import Backend
from pghc.errors import Indefinite, PghcError, Unavailable
from pghc.faults.injection import Faults
from pghc.sequencer import Entry, Sequencer
from pghc.store import Store
from pghc.topology import View
from pghc.verify.checker import verify_chain
from pghc.workload import chains, runs
from pghc.workload.processes import ClientProcesses
from pghc.writers import open_writer

pytestmark = pytest.mark.slow


def new_id() -> str:
    return str(uuid4())


@pytest.fixture
def views(cluster: Backend) -> dict[str, View]:
    views = {name: cluster.view(name) for name in cluster.topology.names}
    chains.begin_chain(list(views.values()))
    return views


def zookeepers(cluster: Backend, detail: str) -> list[str]:
    return [node.name for node in cluster.status().nodes if node.role == "zookeeper" and node.detail == detail]


@pytest.mark.parametrize("writer", ["causal", "broadcast"])
@pytest.mark.parametrize("part", ["leader", "follower"])
def test_with_one_of_three_zookeeper_servers_down_appends_pause_and_go_on(
    cluster: Backend, views: dict[str, View], writer: str, part: str
) -> None:
    with ExitStack() as stack:
        writers = [stack.enter_context(open_writer(writer, view)) for view in views.values()]
        first = [each.append(new_id()) for each in writers]
        with Faults(cluster).kill(zookeepers(cluster, part)[0]), ThreadPoolExecutor() as pool:
            during = list(pool.map(lambda each: each.append(new_id(), timeout=25), writers))
        after = [each.append(new_id(), timeout=25) for each in writers]
        assert sorted(row.zk_id for row in (*first, *during, *after)) == list(range(1, 3 * len(writers) + 1))


@pytest.mark.parametrize("writer", ["causal", "broadcast"])
def test_with_two_of_three_down_appends_end_with_a_clear_error_and_resume_by_themselves(
    cluster: Backend, views: dict[str, View], writer: str
) -> None:
    answered: list[Row] = []
    open_requests: list[str] = []
    with ExitStack() as stack:
        writers = [stack.enter_context(open_writer(writer, view)) for view in views.values()]
        answered += [each.append(new_id()) for each in writers]
        followers = zookeepers(cluster, "follower")
        with Faults(cluster).kill(followers[0]), Faults(cluster).kill(followers[1]):
            time.sleep(2)  # the last one notices that it is alone
            for each in writers:
                request, began = new_id(), time.monotonic()
                with pytest.raises((Unavailable, Indefinite), match=r"quorum|answer|log") as raised:
                    each.append(request, timeout=3)
                assert time.monotonic() - began < 6, "in bounded time"
                assert "pghc" in raised.value.remedy or "Retry" in raised.value.remedy
                if not raised.value.definite:
                    open_requests.append(request)
        for each in writers:
            answered.append(append_until(each, new_id(), 30))
        answered += [append_until(writers[0], request, 30) for request in open_requests]
        for view in views.values():
            with Store(view) as store:
                deadline = time.monotonic() + 5
                while (last := store.last()) is None or last.zk_id < max(row.zk_id for row in answered):
                    assert time.monotonic() < deadline
                    time.sleep(0.05)
                rows = list(store.chain())
                assert set(answered) <= set(rows), "nothing acknowledged is lost"
                assert verify_chain(rows).valid


def append_until(writer: object, request: str, seconds: float) -> Row:
    """As a patient client: again and again, under the same request id."""
    deadline = time.monotonic() + seconds
    while True:
        try:
            row: Row = writer.append(request, timeout=5)  # type: ignore[attr-defined]
        except PghcError:
            assert time.monotonic() < deadline
        else:
            return row


def test_a_dead_holder_of_the_lock_stalls_all_until_its_session_ends_and_the_chain_stays_valid(
    cluster: Backend, views: dict[str, View]
) -> None:
    def kill_one(clients: ClientProcesses) -> None:
        time.sleep(2)
        clients.kill(next(iter(views)), "locked")

    run = runs.run(cluster, "locked", clients=1, seconds=10, during=kill_one)
    assert run.verdict.valid is not False, str(run.verdict)
    stamps = [event.time for event in run.events() if event.type == "ok" and event.op == "append"]
    longest = max(b - a for a, b in pairwise(stamps)) / 1e9
    assert longest > 2.0, "everyone waits for the session of the dead"


def test_a_lock_holder_that_dies_after_its_claim_stops_everyone_for_good(
    cluster: Backend, views: dict[str, View]
) -> None:
    class Died(BaseException):
        pass

    def die(step: str) -> None:
        if step == "claimed":
            raise Died

    first, second = list(views.values())[:2]
    with open_writer("locked", first, die) as dying, open_writer("locked", second) as other:
        with pytest.raises(Died):
            dying.append(new_id())
        with pytest.raises(Unavailable, match="was claimed but has not arrived"):
            other.append(new_id(), timeout=3)


def test_a_client_that_keeps_asking_notices_that_its_far_server_is_cut_off(cluster: Backend) -> None:
    """kazoo by itself pings only while it has nothing to send."""
    home = "eu-west"
    view = cluster.view(home)
    others = {region: view.addresses[f"{region}-zookeeper"].port for region in cluster.topology.names if region != home}
    with Faults(cluster).kill(f"{home}-zookeeper"), Sequencer(view, timeout=20) as sequencer:
        entry = Entry(f"{home}-primary", ())
        first = sequencer.take(entry, 20)
        _, port = sequencer.client.server() or ("", 0)
        far = next(region for region, of in others.items() if of == port)
        with Faults(cluster).partition(home, far), ThreadPoolExecutor(64) as pool:
            asked = []
            deadline = time.monotonic() + 20
            while not any(each.done() for each in asked) and time.monotonic() < deadline:
                asked.append(pool.submit(sequencer.take, entry, 30))
                time.sleep(0.5)
            assert any(each.done() for each in asked), f"cut off from {far} for 20 s, and there is another server"
        assert min(each.result() for each in asked) > first
