"""What servers are told, as text."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pghc.cluster.settings import (
    ZooKeeperAddresses,
    identifier,
    password_file,
    pg_hba,
    postgres_conf,
    service_file,
    slots,
    subscriptions,
    zoo_cfg,
    zookeeper_ids,
)
from pghc.topology import MAX_REGIONS, MIN_REGIONS, REGION_NAME, Address, Topology, load, parse


@st.composite
def topologies(draw: st.DrawFn) -> Topology:
    names = draw(
        st.lists(st.from_regex(REGION_NAME, fullmatch=True), min_size=MIN_REGIONS, max_size=MAX_REGIONS, unique=True)
    )
    places = [{"name": name, "latitude": 0, "longitude": 0, "replicas": draw(st.integers(0, 2))} for name in names]
    delays = {f"{a} -> {b}": draw(st.integers(0, 300)) for a in names for b in names if a != b}
    return parse({"regions": places, "delays_ms": delays})


def settings(text: str) -> dict[str, str]:
    return dict(line.split(" = ", 1) for line in text.splitlines())


@given(topologies())
def test_the_central_regions_server_has_the_highest_id(topology: Topology) -> None:
    ids = zookeeper_ids(topology)
    assert sorted(ids.values()) == list(range(1, len(topology.regions) + 1))
    assert max(ids, key=lambda name: ids[name]) == topology.central


@given(topologies())
def test_every_subscription_finds_its_slot_on_its_publisher(topology: Topology) -> None:
    made = {name: " ".join(slots(topology, name)) for name in topology.names}
    for reader in topology.names:
        read = subscriptions(topology, reader)
        assert len(read) == len(topology.names) - 1
        for statement in read:
            publisher = re.search(r"service=([a-z0-9-]+)-primary'", statement)
            slot = re.search(r"slot_name = (\w+)", statement)
            assert publisher
            assert slot
            assert f"'{slot[1]}'" in made[publisher[1]]
            assert "origin = none" in statement


@given(topologies())
def test_every_replica_finds_its_slot_on_its_primary(topology: Topology) -> None:
    for region in topology.regions:
        for name in region.replica_names:
            conf = settings(postgres_conf(topology.node(name), topology, version=18, durable=False))
            assert conf["primary_conninfo"] == f"'service={region.primary}'"
            assert f"({conf['primary_slot_name']}, true)" in " ".join(slots(topology, region.name))


@given(topologies())
def test_names_of_slots_are_as_distinct_as_names(topology: Topology) -> None:
    names = {identifier(node.name) for node in topology.nodes}
    assert len(names) == len(topology.nodes)
    assert all(re.fullmatch(r"[a-z0-9_]{1,63}", name) for name in names)


def test_a_primary_follows_nobody() -> None:
    topology = load()
    conf = settings(postgres_conf(topology.node("us-east-primary"), topology, version=18, durable=False))
    assert "primary_conninfo" not in conf


@pytest.mark.parametrize(("version", "known"), [(16, False), (17, False), (18, True)])
def test_a_setting_is_given_to_versions_that_know_it(version: int, known: bool) -> None:
    topology = load()
    conf = settings(postgres_conf(topology.node("us-east-primary"), topology, version=version, durable=False))
    assert ("io_method" in conf) is known


@pytest.mark.parametrize("durable", [True, False])
def test_only_servers_that_need_not_survive_a_power_cut_skip_fsync(durable: bool) -> None:
    topology = load()
    conf = settings(postgres_conf(topology.node("us-east-primary"), topology, version=18, durable=durable))
    assert ("fsync" in conf) is not durable


def test_nobody_is_trusted() -> None:
    assert {line.split()[-1] for line in pg_hba().splitlines()} == {"scram-sha-256"}
    assert {line.split()[3] for line in pg_hba().splitlines()} == {"127.0.0.1/32"}


def test_passwords_stand_in_the_password_file_alone() -> None:
    assert "secret" in password_file("secret")
    assert "password" not in service_file({"a-primary": Address("127.0.0.1", 5432)})


def test_a_zookeeper_knows_the_others_by_the_addresses_seen_from_its_region() -> None:
    topology = load()
    ids = zookeeper_ids(topology)
    peers = {
        name: ZooKeeperAddresses(*(Address("127.0.0.1", 1000 * number + n) for n in (1, 2, 3)))
        for name, number in ids.items()
    }
    lines = zoo_cfg(topology, "/data", peers).splitlines()
    assert "dataDir=/data" in lines
    for name, number in ids.items():
        at = peers[name]
        expected = f"{at.peer}:{at.election.port}:participant;{at.client}"
        assert f"server.{number}={expected}" in lines
