"""What is rendered for Kubernetes, for every size of topology."""

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import settings as limit
from hypothesis import strategies as st

from pghc.cluster.kubernetes.manifests import (
    Images,
    control_node_port,
    cut,
    gateway_ports,
    kind_config,
    new_passwords,
    node_port,
    services,
    settings,
    volumes,
    write,
)
from pghc.errors import BadInput
from pghc.topology import Region, Topology, load

MANIFESTS = Path(__file__).parents[2] / "cluster/manifests"
IMAGES = Images("pghc/postgres:1", "pghc/zookeeper:1", "pghc/pghc:1")


@st.composite
def topologies(draw: st.DrawFn) -> Topology:
    names = [f"region-{letter}" for letter in "abcde"[: draw(st.integers(2, 5))]]
    regions = tuple(Region(name, name, 0, 0, draw(st.integers(0, 5))) for name in names)
    return Topology(regions, {(a, b): 10 for a in names for b in names if a != b})


@limit(max_examples=30, deadline=None)
@given(topologies())
def test_no_two_services_have_the_same_node_port_and_all_are_in_kubernetes_range(topology: Topology) -> None:
    ports = [
        port["nodePort"]
        for region in topology.names
        for service in services(topology, region, "kind")
        for port in service["spec"]["ports"]
    ]
    assert len(ports) == len(set(ports))
    assert all(30_000 <= port <= 32_767 for port in ports)


@limit(max_examples=30, deadline=None)
@given(topologies())
def test_every_port_that_a_client_dials_is_mapped_to_loopback_and_no_other(topology: Topology) -> None:
    control_plane, *workers = kind_config(topology, "c", iter(range(12_000, 32_000)))["nodes"]
    mapped = {each["containerPort"] for each in control_plane["extraPortMappings"]}
    dialled = {node_port(topology, region, node) for region in topology.names for node in topology.nodes}
    assert mapped == dialled | {control_node_port(topology, region) for region in topology.names}
    assert {each["listenAddress"] for each in control_plane["extraPortMappings"]} == {"127.0.0.1"}
    assert not any("extraPortMappings" in worker for worker in workers)


@limit(max_examples=30, deadline=None)
@given(topologies())
def test_a_region_has_every_server_of_the_world_under_its_name_and_strangers_behind_the_gateway(
    topology: Topology,
) -> None:
    for region in topology.names:
        found = {each["metadata"]["name"]: each["spec"] for each in services(topology, region, "kind")}
        assert set(found) == {node.name for node in topology.nodes} | {"gateway"}
        behind = {node.name for node, _, _ in gateway_ports(topology, region)}
        assert behind == {node.name for node in topology.nodes if node.region != region}
        for name in behind:
            assert found[name]["selector"] == {"app.kubernetes.io/component": "gateway"}


@limit(max_examples=30, deadline=None)
@given(topologies())
def test_a_gateway_listens_once_for_each_port_of_another_regions_server(topology: Topology) -> None:
    for region in topology.names:
        listens = [port for _, _, port in gateway_ports(topology, region)]
        assert len(listens) == len(set(listens))


@limit(max_examples=30, deadline=None)
@given(topologies())
def test_all_servers_of_the_ensemble_have_the_same_configuration(topology: Topology) -> None:
    found = {settings(topology, region)["zookeeper"]["zoo.cfg"] for region in topology.names}
    assert len(found) == 1
    assert "server.1=" in found.pop()


@limit(max_examples=30, deadline=None)
@given(topologies())
def test_every_server_with_data_has_a_volume_of_its_own(topology: Topology) -> None:
    claims = [each["spec"]["claimRef"] for each in volumes(topology) if each["kind"] == "PersistentVolume"]
    keys = {(claim["namespace"], claim["name"]) for claim in claims}
    assert len(keys) == len(claims) == sum(node.role != "api" for node in topology.nodes)


def test_no_password_is_in_what_is_written_to_disk(tmp_path: Path) -> None:
    write(load(), "kind", IMAGES, MANIFESTS, tmp_path)
    written = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert written
    assert not any("Secret" in path.read_text() for path in written)


def test_passwords_are_new_each_time() -> None:
    assert not set(new_passwords().values()) & set(new_passwords().values())


def test_in_the_cloud_a_server_of_another_region_is_dialled_there() -> None:
    found = {each["metadata"]["name"]: each["spec"] for each in services(load(), "us-east", "cloud")}
    assert found["eu-west-primary"]["externalName"] == "eu-west-primary.eu-west.svc.cluster.local"
    assert "gateway" not in found
    assert "nodePort" not in json.dumps(found)


def test_a_smaller_world_is_the_first_regions_of_the_topology() -> None:
    small = cut(load(), 2, 1)
    assert small.names == load().names[:2]
    assert [region.replicas for region in small.regions] == [1, 1]


@pytest.mark.parametrize(("regions", "replicas"), [(1, None), (6, None), (None, 6), (None, -1)])
def test_a_world_of_an_impossible_size_is_refused(regions: int | None, replicas: int | None) -> None:
    with pytest.raises(BadInput):
        cut(load(), regions, replicas)
