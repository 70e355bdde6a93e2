"""Chains begun, and servers replaced, by halves or one amid the other: `up` brings them to their end."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from typing import Any

import pytest
from appending import check_nothing_lost
from replacing import EXACT, data_of

from pghc import terms
from pghc.chain import Row
from pghc.cluster import replacement
from pghc.cluster.local.embedded import Embedded
from pghc.cluster.mesh import subscription
from pghc.errors import ClusterError, Conflict, Unavailable
from pghc.faults.injection import Faults
from pghc.sequencer import Sequencer
from pghc.store import Primary
from pghc.topology import View
from pghc.workload.chains import begin_chain
from pghc.writers import new_request_id, open_writer
from pghc.zookeeper import connect


def views_of(backend: Embedded) -> list[View]:
    return [backend.view(name) for name in backend.topology.names]


def append_everywhere(backend: Embedded, writer: str = "causal") -> list[Row]:
    rows = []
    for view in views_of(backend):
        with open_writer(writer, view) as each:
            rows.append(each.append(new_request_id()))
    return rows


def at_work(backend: Embedded) -> bool:
    """Does every primary take the rows of all others?"""
    for view in views_of(backend):
        with Primary(view, admin=True) as store:
            names = store.rows("select subname from pg_subscription where subenabled")
        if len(names) != len(backend.topology.names) - 1:
            return False
    return True


@pytest.mark.parametrize("writer", EXACT)
def test_a_replica_of_before_a_chain_was_begun_enters_it_when_it_is_promoted(lossy: Embedded, writer: str) -> None:
    region = lossy.topology.regions[0]
    primary = lossy.view(region.name).primary()
    append_everywhere(lossy, writer)
    replicas = [name for name in region.databases if name != primary]
    for name in replicas:
        lossy.kill(name)
    begin_chain(views_of(lossy))
    rows = append_everywhere(lossy, writer)
    lossy.lose(primary)
    for name in replicas:
        lossy.start(name)
    lossy.promote(region.name)
    check_nothing_lost(lossy, [*rows, *append_everywhere(lossy, writer)])


@pytest.mark.parametrize("change", ["promoted", "rebuilt"])
def test_rows_of_an_ended_chain_do_not_come_to_a_region_that_is_made_anew(lossy: Embedded, change: str) -> None:
    here, there = lossy.topology.names[:2]
    append_everywhere(lossy)
    with Faults(lossy).partition(here, there):
        with open_writer("causal", lossy.view(there)) as writer:
            for _ in range(8):
                writer.append(new_request_id())
        begin_chain(views_of(lossy))
        with open_writer("causal", lossy.view(there)) as writer:
            rows = [writer.append(new_request_id()) for _ in range(2)]
        if change == "promoted":
            lossy.promote(here)
        else:
            lossy.lose(here)
    if change == "rebuilt":
        lossy.rebuild(here)
    lossy.up()
    check_nothing_lost(lossy, [*rows, *append_everywhere(lossy)])


def test_rows_of_an_ended_chain_do_not_come_to_a_region_that_was_not_joined_when_it_ended(lossy: Embedded) -> None:
    publisher, reader, _ = views = views_of(lossy)
    with Primary(reader, admin=True) as store, store.connection("leave", writes=True) as connection:
        replacement.drop_subscription(connection, subscription(publisher.region))  # its slot stays
    with open_writer("causal", publisher) as writer:
        for _ in range(8):
            writer.append(new_request_id())
    begin_chain(views)
    lossy.up()
    assert at_work(lossy)
    time.sleep(1)
    rows = append_everywhere(lossy)
    assert [row.zk_id for row in rows] == [1, 2, 3]
    check_nothing_lost(lossy, rows)


@pytest.mark.parametrize("region", [0, 1, 2])
def test_a_chain_that_cannot_be_begun_everywhere_takes_no_rows_of_the_one_before(
    lossy: Embedded, monkeypatch: pytest.MonkeyPatch, region: int
) -> None:
    views = views_of(lossy)
    away, *others = views[region:] + views[:region]
    for view in others:
        with Primary(view, admin=True) as store, store.connection("stop", writes=True) as connection:
            connection.execute(f"alter subscription {subscription(away.region)} disable".encode())
    with open_writer("causal", away) as writer:  # acknowledged where it was written, and on its way to the others
        for _ in range(8):
            writer.append(new_request_id())
    original = Primary.connection

    def refused(self: Primary, what: str, **options: Any) -> Any:
        if what == "empty the chain" and self.region == away.region:
            raise Unavailable(f"{self.node}: not now")
        return original(self, what, **options)

    with monkeypatch.context() as patch:
        patch.setattr(Primary, "connection", refused)
        with pytest.raises(ClusterError, match="`pghc up` begins it there"):
            begin_chain(views)
    time.sleep(1)  # what is on its way arrives, if anybody takes it
    lossy.up()
    assert at_work(lossy)
    rows = append_everywhere(lossy)
    assert [row.zk_id for row in rows] == [1, 2, 3]
    check_nothing_lost(lossy, rows)


@pytest.mark.parametrize("so_far", ["decided", "begun in one region", "begun, and replication is off"])
def test_up_begins_to_the_end_what_was_begun_by_halves(lossy: Embedded, so_far: str) -> None:
    append_everywhere(lossy)
    first, *_ = views = views_of(lossy)
    with Sequencer(first) as log:
        position = log.begin_chain(after=0)
    if so_far == "begun in one region":
        with Primary(first, admin=True) as store, store.connection("begin", writes=True) as connection:
            connection.execute("select pghc.begin(%s)", (position,))
    elif so_far != "decided":
        begin_chain(views)
        for view in views:
            with Primary(view, admin=True) as store, store.connection("stop", writes=True) as connection:
                for (name,) in store.rows("select subname from pg_subscription"):
                    connection.execute(f"alter subscription {name} disable".encode())
    lossy.up()
    assert at_work(lossy)
    check_nothing_lost(lossy, append_everywhere(lossy))
    assert [row.zk_id for row in append_everywhere(lossy)] == [4, 5, 6]


def test_a_run_that_is_interrupted_while_it_begins_has_begun_everywhere(lossy: Embedded) -> None:
    append_everywhere(lossy)
    command = [sys.executable, "-m", "pghc", "run", "--seconds", "30", "--dir", str(lossy.directory)]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as run:
        deadline = time.monotonic() + 30
        while at_work(lossy):
            assert time.monotonic() < deadline
            assert run.poll() is None
        run.send_signal(signal.SIGINT)
        assert run.wait(60) == 130
    assert at_work(lossy)
    check_nothing_lost(lossy, append_everywhere(lossy))


def test_a_region_whose_rebuilding_was_interrupted_is_brought_back_by_up(
    lossy: Embedded, monkeypatch: pytest.MonkeyPatch
) -> None:
    region = lossy.topology.names[0]
    rows = append_everywhere(lossy)
    lossy.lose(region)

    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(replacement, "_take_part", interrupted)  # once it is copied
        with pytest.raises(KeyboardInterrupt):
            lossy.rebuild(region)
    lossy.up()
    assert at_work(lossy)
    check_nothing_lost(lossy, [*rows, *append_everywhere(lossy)])


def test_half_a_copy_is_none(lossy: Embedded) -> None:
    region = lossy.topology.names[0]
    rows = append_everywhere(lossy)
    primary = lossy.view(region).primary()
    lossy.lose(region)
    lossy.down()
    half = data_of(lossy) / primary
    half.mkdir()
    (half / "PG_VERSION").write_text("18\n")
    said: list[str] = []
    lossy.up(said.append)
    assert any("its data is gone" in line and f"`pghc rebuild {region}`" in line for line in said), said
    lossy.rebuild(region)
    lossy.up()
    check_nothing_lost(lossy, rows)


def test_the_log_is_kept_from_where_the_copy_of_a_lost_region_stands(
    lossy: Embedded, monkeypatch: pytest.MonkeyPatch
) -> None:
    region = lossy.topology.names[0]
    append_everywhere(lossy)
    lossy.lose(region)
    position = len(lossy.topology.names)
    told: list[int] = []
    copy = Embedded.copy

    def watched(self: Embedded, node: str, source: str, *, primary: bool = False) -> None:
        if primary:
            with Sequencer(self.view(source)) as log, Primary(self.view(source)) as store:
                told.append(log.reports()[region] - store.cursor().position)
        copy(self, node, source, primary=primary)

    with monkeypatch.context() as patch:
        patch.setattr(Embedded, "copy", watched)
        with Sequencer(lossy.view(lossy.topology.names[1])) as log:  # as a region that had come further
            log.client.set(f"/pghc/applied/{region}", str(position + 1_000_000).encode())
        lossy.rebuild(region)
    assert told
    assert told[0] <= 0, "what the copy lacks might be truncated"


def test_of_two_that_follow_one_primary_one_does(lossy: Embedded) -> None:
    region = lossy.topology.regions[0]
    client = connect(lossy.view(region.name))
    try:
        term = terms.current(client, lossy.view(region.name), region.name)
        assert terms.succeed(client, region.name, term, term.node).epoch == term.epoch + 1
        with pytest.raises(Conflict):
            terms.succeed(client, region.name, term, region.databases[-1])
    finally:
        client.end()
    lossy.up()
    check_nothing_lost(lossy, append_everywhere(lossy))


def test_a_promotion_that_is_refused_leaves_the_primary_at_work(
    lossy: Embedded, monkeypatch: pytest.MonkeyPatch
) -> None:
    region = lossy.topology.names[0]
    primary = lossy.view(region).primary()

    def refused(*_: object, **__: object) -> None:
        raise Conflict("another has acted meanwhile")

    with monkeypatch.context() as patch:
        patch.setattr(terms, "succeed", refused)
        with pytest.raises(Conflict):
            lossy.promote(region)
    assert lossy.view(region).primary() == primary
    check_nothing_lost(lossy, append_everywhere(lossy))
