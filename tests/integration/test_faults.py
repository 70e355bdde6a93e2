"""Faults on real servers: what they break, and that nothing of it stays."""

from __future__ import annotations

import time

import psycopg
import pytest

from pghc.cluster import State
from pghc.cluster.local.embedded import Embedded
from pghc.faults.injection import Faults
from pghc.workload.runs import Crew, run
from pghc.zookeeper import connect


def state(cluster: Embedded, name: str) -> State:
    return next(node.state for node in cluster.status().nodes if node.name == name)


def query(cluster: Embedded, region: str, name: str, seconds: float = 3) -> float:
    """Seconds that a query on an open connection from ``region`` takes; infinite when it is not answered in time."""
    arguments = cluster.view(region).conninfo(name) | {"connect_timeout": max(2, int(seconds))}
    try:
        with psycopg.connect(**arguments, autocommit=True) as connection:  # type: ignore[arg-type]
            begin = time.perf_counter()
            connection.execute("select 1")
            return time.perf_counter() - begin
    except psycopg.OperationalError:
        return float("inf")


@pytest.mark.parametrize("name", ["us-east-primary", "us-east-replica-1"])
def test_a_killed_postgres_refuses_and_is_accessible_after_the_block(cluster: Embedded, name: str) -> None:
    with Faults(cluster).kill(name):
        assert state(cluster, name) == "stopped"
        assert query(cluster, "us-east", name) == float("inf")
    assert query(cluster, "us-east", name) < 3


def test_a_paused_postgres_hangs_and_is_accessible_after_the_block(cluster: Embedded) -> None:
    with Faults(cluster).pause("us-east-primary"):
        assert state(cluster, "us-east-primary") == "paused"
        assert query(cluster, "us-east", "us-east-primary") == float("inf")
    assert query(cluster, "us-east", "us-east-primary") < 3


def test_zookeepers_majority_goes_on_without_its_leader_and_takes_it_back(cluster: Embedded) -> None:
    leader = next(node for node in cluster.status().nodes if node.detail == "leader")
    others = [name for name in cluster.topology.names if name != leader.region]
    with Faults(cluster).kill(leader.name):
        begin = time.monotonic()
        client = connect(cluster.view(others[0]), timeout=20)
        try:
            assert time.monotonic() - begin < 6, "the two that are left have to vote once, not until a time-out helps"
            assert client.exists("/zookeeper")
        finally:
            client.stop()
            client.close()
    assert state(cluster, leader.name) == "running"


def test_a_partition_stops_both_directions_and_leaves_the_third_region_alone(cluster: Embedded) -> None:
    with Faults(cluster).partition("us-east", "ap-south"):
        assert query(cluster, "us-east", "ap-south-primary") == float("inf")
        assert query(cluster, "ap-south", "us-east-primary") == float("inf")
        assert query(cluster, "us-east", "eu-west-primary") < 3
    assert query(cluster, "us-east", "ap-south-primary") < 3


def test_a_reset_link_refuses_at_once(cluster: Embedded) -> None:
    with Faults(cluster).reset("us-east", "ap-south"):
        begin = time.perf_counter()
        assert query(cluster, "us-east", "ap-south-primary", 10) == float("inf")
        assert time.perf_counter() - begin < 5
    assert query(cluster, "us-east", "ap-south-primary") < 3


def test_a_slow_link_slows_one_direction(cluster: Embedded) -> None:
    usual = cluster.topology.round_trip_ms("us-east", "eu-west")
    with Faults(cluster).slow("us-east", "eu-west", 400):
        back = cluster.topology.delay_ms("eu-west", "us-east")
        assert query(cluster, "us-east", "eu-west-primary", 10) >= (400 + back) / 1000 * 0.99
    assert query(cluster, "us-east", "eu-west-primary") >= usual / 1000 * 0.99


def test_the_time_of_a_run_is_that_of_all_lives_of_a_client_that_was_killed(cluster: Embedded) -> None:
    def kill_late(crew: Crew) -> None:
        crew.wait(3)
        for region in cluster.topology.names:
            crew.kill(region, "numbered")

    done = run(cluster, "causal", clients=1, seconds=4, during=kill_late)
    assert done.verdict
    assert done.verdict.valid
    assert done.seconds > 4, "else the rate would be that of the last life's second"
    assert done.rate == done.appends / done.seconds
