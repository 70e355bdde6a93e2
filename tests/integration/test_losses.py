"""Servers and regions that are lost for good: what goes on, and that no acknowledged append is lost."""

from __future__ import annotations

import shutil
import threading
import time
from contextlib import ExitStack

import psycopg
import pytest
from appending import Appending, check_nothing_lost
from replacing import EXACT, data_of

from pghc.cluster import replacement
from pghc.cluster.local.embedded import Embedded
from pghc.cluster.mesh import wait_for_mesh
from pghc.errors import BadInput, ClusterError
from pghc.faults.injection import Faults
from pghc.lab.lab import Lab
from pghc.store import Primary, Reader, Store
from pghc.terms import Term
from pghc.writers import new_request_id, open_writer


@pytest.mark.parametrize("writer", EXACT)
def test_a_primary_that_is_lost_under_load_is_followed_and_no_acknowledged_append_is_lost(
    lossy: Embedded, writer: str
) -> None:
    region, other = lossy.topology.names[:2]
    with Appending(lossy, writer) as clients:
        clients.next_in(region)
        lost = lossy.view(region).primary()
        lossy.lose(lost)
        assert clients.next_in(other), "the others go on"
        promoted = lossy.promote(region)
        assert promoted != lost
        clients.next_in(region)
        assert clients.next_in(region).node_id == promoted
        lossy.up()
        clients.next_in(region)
    status = {node.name: node for node in lossy.status().nodes}
    assert (status[lost].role, status[promoted].role) == ("replica", "primary")
    assert status[lost].detail == "reads its primary's log"
    check_nothing_lost(lossy, [row for _, _, row in clients.acknowledged])


@pytest.mark.parametrize("writer", EXACT)
def test_what_the_promoted_replica_had_not_received_comes_from_the_log(lossy: Embedded, writer: str) -> None:
    region = lossy.topology.region(lossy.topology.names[0])
    primary = lossy.view(region.name).primary()
    replicas = [name for name in region.databases if name != primary]
    with ExitStack() as stack:
        writers = [stack.enter_context(open_writer(writer, lossy.view(name))) for name in lossy.topology.names]
        rows = [each.append(new_request_id()) for each in writers]
        for replica in replicas:
            lossy.kill(replica)
        rows += [each.append(new_request_id()) for _ in range(3) for each in writers]
    lossy.lose(primary)
    for replica in replicas:
        lossy.start(replica)
    lossy.promote(region.name)
    check_nothing_lost(lossy, rows)


@pytest.mark.parametrize("writer", EXACT)
def test_a_deposed_primary_that_goes_on_is_not_believed(lossy: Embedded, writer: str) -> None:
    """It was paused with an open transaction of a mere psql and one of a writer, which end when it goes on."""
    region, other = lossy.topology.names[:2]
    view = lossy.view(region)
    deposed = view.primary()
    with ExitStack() as stack:
        clients = stack.enter_context(Appending(lossy, writer))
        clients.next_in(region)
        psql = stack.enter_context(psycopg.connect(**view.conninfo(deposed)))  # type: ignore[arg-type]
        psql.execute("insert into chain values (1000000, 'an-intruder', 'a hash')")
        lossy.pause(deposed)
        outcome: list[str] = []
        ending = threading.Thread(target=commit, args=(psql, outcome))
        ending.start()
        time.sleep(0.3)  # the order to commit waits at the server
        promoted = lossy.promote(region)
        assert clients.next_in(region, 40).node_id in (promoted, deposed)
        (other_replica,) = set(lossy.topology.region(region).databases) - {deposed, promoted}
        deadline = time.monotonic() + 5
        while readers_of(lossy, promoted) != {other_replica}:
            assert time.monotonic() < deadline, "it waits for the primary that is paused"
            time.sleep(0.1)
        lossy.resume(deposed)
        ending.join(20)
        assert outcome, "it was told something"
        clients.next_in(region)
        clients.next_in(other)
    assert {node.name: node.role for node in lossy.status().nodes}[deposed] == "replica"
    check_nothing_lost(lossy, [row for _, _, row in clients.acknowledged])
    with Store(lossy.view(other)) as store:
        assert not store.rows("select 1 from chain where node_id = 'an-intruder'")


def readers_of(backend: Embedded, node: str) -> set[str]:
    view = backend.view(backend.topology.node(node).region)
    with Reader(view, node, admin=True) as reader:
        found = reader.rows("select slot_name from pg_replication_slots where slot_type = 'physical' and active")
    return {name.replace("_", "-") for (name,) in found}


def commit(connection: psycopg.Connection[object], outcome: list[str]) -> None:
    try:
        connection.commit()
        outcome.append("committed")  # there, and nowhere else
    except psycopg.Error as error:
        outcome.append(str(error))


def test_a_region_that_is_lost_is_brought_back_from_the_others_while_they_write(lossy: Embedded) -> None:
    region, other = lossy.topology.names[:2]
    with Appending(lossy, "causal") as clients:
        clients.next_in(region)
        lossy.lose(region)
        clients.next_in(other)
        assert "its data is gone" in {n.name: n.detail for n in lossy.status().nodes}[lossy.view(region).primary()]
        lossy.rebuild(region)
        clients.next_in(region)
        clients.next_in(other)
    lossy.up()
    assert lossy.status().healthy
    check_nothing_lost(lossy, [row for _, _, row in clients.acknowledged])


@pytest.mark.parametrize("role", ["primary", "replica", "zookeeper"])
def test_a_cluster_starts_with_any_servers_data_deleted_and_says_what_is_to_be_done(lossy: Embedded, role: str) -> None:
    region = lossy.topology.region(lossy.topology.names[1])
    primary = lossy.view(region.name).primary()
    replica = next(name for name in region.databases if name != primary)
    node = {"primary": primary, "replica": replica, "zookeeper": region.zookeeper}[role]
    with open_writer("causal", lossy.view(region.name)) as writer:
        rows = [writer.append(new_request_id()) for _ in range(3)]
    lossy.down()
    shutil.rmtree(data_of(lossy) / node)
    said: list[str] = []
    lossy.up(said.append)
    if role == "primary":
        assert any(f"`pghc promote {region.name}`" in line for line in said), said
        assert f"`pghc promote {region.name}`" in {n.name: n.detail for n in lossy.status().nodes}[node]
        with pytest.raises(ClusterError, match="promote"):
            lossy.rebuild(node)
        lossy.promote(region.name)
        lossy.up()
    assert lossy.status().healthy
    check_nothing_lost(lossy, rows)


def test_an_emptied_zookeeper_server_elects_nobody(lossy: Embedded) -> None:
    one, two, three = (region.zookeeper for region in lossy.topology.regions)
    lossy.kill(one)
    lossy.kill(three)
    lossy.lose(two)
    threads = [threading.Thread(target=lossy.start, args=(name,)) for name in (two, three)]
    for thread in threads:
        thread.start()
    time.sleep(8)  # an election takes a second
    leaders = {node.name for node in lossy.status().nodes if node.role == "zookeeper" and node.accessible}
    assert not leaders, "two of three make no quorum when one of them may have forgotten what it acknowledged"
    lossy.start(one)
    for thread in threads:
        thread.join(60)
    assert lossy.status().healthy


def test_a_reader_that_is_too_far_behind_is_given_up_and_made_good_for(lossy: Embedded) -> None:
    here, there = lossy.topology.names[:2]
    view = lossy.view(here)
    with Primary(view, admin=True) as primary, primary.connection("flood") as connection, ExitStack() as stack:
        connection.execute("alter system set max_slot_wal_keep_size = '8MB'")
        stack.callback(connection.execute, "select pg_reload_conf()")
        stack.callback(connection.execute, "alter system reset max_slot_wal_keep_size")
        connection.execute("select pg_reload_conf()")
        with Faults(lossy).partition(here, there), open_writer("causal", view) as writer:
            rows = [writer.append(new_request_id())]
            for _ in range(100):
                connection.execute("select pg_logical_emit_message(false, 'flood', repeat('x', 1000000))")
            connection.execute("checkpoint")
            assert "has given up" in {n.name: n.detail for n in lossy.status().nodes}[primary.node]
    lossy.up()
    with open_writer("causal", view) as writer:
        rows.append(writer.append(new_request_id()))
    assert "given up" not in {n.name: n.detail for n in lossy.status().nodes}[view.primary()]
    assert lossy.status().healthy
    check_nothing_lost(lossy, rows)


def test_a_replica_that_is_told_of_a_term_leaves_the_connection_that_it_has(lossy: Embedded) -> None:
    """One to a primary that is paused would last as long as the pause."""
    region = lossy.topology.regions[0]
    view = lossy.view(region.name)
    replica = next(name for name in region.databases if name != view.primary())
    with Reader(view, replica, admin=True) as reader:
        query = "select pid from pg_stat_wal_receiver where status = 'streaming'"
        before = reader.rows(query)
        replacement._follow(view, replica, Term(1_000_000, view.primary()))
        deadline = time.monotonic() + 6  # below the ten after which it gives up a silent primary
        while (now := reader.rows(query)) == before or not now:
            assert time.monotonic() < deadline, "it has kept its connection"
            time.sleep(0.05)


def test_a_replica_that_has_more_log_than_its_new_primary_is_copied_by_up(lossy: Embedded) -> None:
    region = lossy.topology.region(lossy.topology.names[0])
    view = lossy.view(region.name)
    primary = view.primary()
    ahead, behind = (name for name in region.databases if name != primary)
    with open_writer("causal", view) as writer:
        rows = [writer.append(new_request_id())]
    lossy.kill(behind)
    with Primary(view, admin=True) as store, store.connection("write log") as connection:
        connection.execute("select pg_logical_emit_message(true, 'more', repeat('x', 100000))")
    time.sleep(0.5)  # `ahead` reads it
    lossy.lose(primary)
    lossy.kill(ahead)
    lossy.start(behind)
    assert lossy.promote(region.name) == behind
    said: list[str] = []
    lossy.up(said.append)
    assert any(ahead in line and "copying" in line for line in said), said
    assert lossy.status().healthy
    check_nothing_lost(lossy, rows)


@pytest.mark.parametrize("away", ["killed", "paused"])
def test_a_region_that_was_away_during_a_promotion_joins_when_it_is_back(lossy: Embedded, away: str) -> None:
    region, other = lossy.topology.names[:2]
    with open_writer("causal", lossy.view(region)) as writer:
        rows = [writer.append(new_request_id())]
    absent = lossy.view(other).primary()
    if away == "killed":
        lossy.kill(absent)
    else:
        lossy.pause(absent)
    said: list[str] = []
    lossy.promote(region, progress=said.append)
    assert any("left for the next" in line for line in said), said
    if away == "killed":
        lossy.start(absent)
    else:
        lossy.resume(absent)
    for name in (region, other):
        with open_writer("causal", lossy.view(name)) as writer:
            rows.append(writer.append(new_request_id()))
    wait_for_mesh([lossy.view(name) for name in lossy.topology.names])
    check_nothing_lost(lossy, rows)


def test_what_cannot_be_promoted_or_rebuilt_is_refused(lossy: Embedded) -> None:
    region, other = lossy.topology.names[:2]
    with pytest.raises(BadInput, match="no database"):
        lossy.promote(region, f"{other}-replica-1")
    with pytest.raises(BadInput, match="promote"):
        lossy.rebuild(lossy.view(region).primary())
    with pytest.raises(BadInput, match="no node"):
        lossy.lose("nobody")


def test_whoever_is_needed_and_does_not_answer_is_named(lossy: Embedded) -> None:
    region, other = lossy.topology.regions[:2]
    primary = lossy.view(region.name).primary()
    replica = next(name for name in region.databases if name != primary)
    lossy.lose(replica)
    lossy.kill(primary)
    with pytest.raises(ClusterError, match=primary) as refused:
        lossy.rebuild(replica)
    assert refused.value.node == primary
    lossy.start(primary)
    lossy.rebuild(replica)
    for name in other.databases:
        lossy.kill(name)
    with pytest.raises(ClusterError, match="no replica answers"):
        lossy.promote(other.name)


def test_what_a_block_loses_is_back_afterwards(lossy: Embedded) -> None:
    name = lossy.topology.names[2]
    for node in (lossy.view(name).primary(), lossy.topology.region(name).zookeeper):
        with Faults(lossy).lose(node):
            assert not {each.name: each.accessible for each in lossy.status().nodes}[node]
    assert lossy.status().healthy


def test_a_lesson_begins_with_every_server_in_its_first_role_whatever_was_lost_before(lossy: Embedded) -> None:
    region, other = lossy.topology.names[:2]
    lossy.promote(region)
    lossy.lose(lossy.view(other).primary())
    lab = Lab(lossy)
    lab.begin_chain()
    assert lossy.status().healthy
    assert [lossy.view(each.name).primary() for each in lossy.topology.regions] == [
        each.primary for each in lossy.topology.regions
    ]
    rows = lab.appends(region, *EXACT)
    check_nothing_lost(lossy, rows)
