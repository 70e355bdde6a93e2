"""What is rendered for Kubernetes, for every size of topology."""

import base64
import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import settings as limit
from hypothesis import strategies as st

from pghc.api.service import CLOSING, LINGER
from pghc.cluster.kubernetes.manifests import (
    Images,
    control_node_port,
    cut,
    gateway_ports,
    kind_config,
    missing_secrets,
    missing_states,
    new_passwords,
    node_port,
    services,
    settings,
    volumes,
    writable,
    writable_gateway_port,
    write,
)
from pghc.cluster.kubernetes.pods import credentials
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
        if service["spec"].get("type") == "NodePort"
    ]
    assert len(ports) == len(topology.names) * (len(topology.names) * 5 + 1 + sum(r.replicas for r in topology.regions))
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
        others = {writable(other) for other in topology.names if other != region}
        assert set(found) == {node.name for node in topology.nodes} | others | {"gateway"}
        behind = {node.name for node, _, _ in gateway_ports(topology, region)}
        assert behind == {node.name for node in topology.nodes if node.region != region}
        for name in behind | others:
            assert found[name]["selector"] == {"app.kubernetes.io/component": "gateway"}


@limit(max_examples=30, deadline=None)
@given(topologies())
def test_a_gateway_listens_once_for_each_port_of_another_regions_server(topology: Topology) -> None:
    for region in topology.names:
        listens = [port for _, _, port in gateway_ports(topology, region)]
        listens += [writable_gateway_port(topology, other) for other in topology.names if other != region]
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
    assert found["eu-west-rw"]["externalName"] == "eu-west-rw.eu-west.svc.cluster.local"
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


# What is applied again


def as_kubernetes_returns_it(secret: dict[str, Any]) -> dict[str, Any]:
    data = {key: base64.b64encode(value.encode()).decode() for key, value in secret["stringData"].items()}
    return {"kind": "Secret", "metadata": secret["metadata"], "data": data}


@limit(max_examples=30, deadline=None)
@given(topologies(), st.data())
def test_passwords_are_made_once_however_many_regions_have_theirs_already(
    topology: Topology, data: st.DataObject
) -> None:
    first = missing_secrets(topology, [])
    assert [each["metadata"]["namespace"] for each in first] == list(topology.names)
    assert len({json.dumps(each["stringData"]) for each in first}) == 1
    kept = data.draw(st.lists(st.sampled_from(first), min_size=1, unique_by=lambda each: each["metadata"]["namespace"]))
    again = missing_secrets(topology, [as_kubernetes_returns_it(each) for each in kept])
    assert sorted(map(json.dumps, [*kept, *again])) == sorted(map(json.dumps, first))


def test_kubernetes_is_told_to_refuse_other_passwords_for_servers_that_have_theirs() -> None:
    assert all(each["immutable"] is True for each in missing_secrets(load(), []))


def test_regions_with_different_passwords_are_refused() -> None:
    east, west = (as_kubernetes_returns_it(missing_secrets(load(), [])[place]) for place in (0, 1))
    with pytest.raises(BadInput, match="differ"):
        missing_secrets(load(), [east, west])


# Who is the primary


def test_who_is_the_primary_is_made_once_and_is_in_nothing_that_is_applied_again(tmp_path: Path) -> None:
    write(load(), "kind", IMAGES, MANIFESTS, tmp_path)
    made = missing_states(load(), [], new=True)
    assert len(made) == 2 * len(load().names)
    services_of = {
        path.parent.name: {each["metadata"]["name"] for each in json.loads(path.read_text())["items"]}
        for path in tmp_path.rglob("services.json")
    }
    for each in made:
        region, name = each["metadata"]["namespace"], each["metadata"]["name"]
        assert name not in services_of[region]
        assert f'"name": "{name}"' not in (tmp_path / region / "kustomization.yaml").read_text()
    assert missing_states(load(), made, new=True) == []


def test_the_service_of_a_primary_leads_to_one_pod_by_its_name_so_that_it_can_lead_to_another() -> None:
    config, service = missing_states(load(), [], new=False)[:2]
    assert (config["metadata"]["name"], config["data"]) == ("state", {"primary": "us-east-primary"})
    assert service["metadata"]["name"] == writable("us-east")
    assert service["spec"]["selector"] == {"statefulset.kubernetes.io/pod-name": "primary-0"}


def test_whatever_dials_a_primary_dials_the_one_of_now_and_any_database_may_be_its_replica() -> None:
    files = settings(load(), "us-east")["postgres"]
    assert "[eu-west-primary]\nhost=eu-west-rw\n" in files["pg_service.conf"]
    for name in load().region("us-east").databases:
        assert f"primary_slot_name = '{name.replace('-', '_')}'" in files[f"{name}.conf"]


@limit(max_examples=30, deadline=None)
@given(topologies(), st.booleans(), st.data())
def test_a_region_is_new_only_if_all_that_are_known_are(topology: Topology, begun: bool, data: st.DataObject) -> None:
    first = missing_states(topology, [], new=True)
    assert all(each["data"].get("new") == "yes" for each in first if each["kind"] == "ConfigMap")
    kept = data.draw(st.lists(st.sampled_from(first), min_size=1, unique_by=json.dumps))
    if not begun:  # the cluster has been made
        kept = [each | {"data": {"primary": each["data"]["primary"]}} if "data" in each else each for each in kept]
    known = any("data" in each for each in kept)
    for each in missing_states(topology, kept, new=not known and begun):
        assert each["kind"] == "Service" or ("new" in each["data"]) == begun


def kustomization(directory: Path, images: Images, overlay: Any = "kind") -> dict[str, Any]:
    write(load(), overlay, images, MANIFESTS, directory)
    found: dict[str, Any] = json.loads((directory / "us-east/kustomization.yaml").read_text())
    return found


def test_with_another_image_the_setup_job_is_another_one_for_a_job_cannot_be_changed(tmp_path: Path) -> None:
    def job(images: Images) -> str:
        [patch] = [p for p in kustomization(tmp_path, images)["patches"] if p["target"]["kind"] == "Job"]
        return str(json.loads(patch["patch"])[0]["value"])

    assert job(IMAGES) == job(Images("other:2", "other:2", IMAGES.pghc))
    assert job(IMAGES) != job(Images(IMAGES.postgres, IMAGES.zookeeper, "pghc/pghc:2"))


def test_a_real_cluster_pulls_images_by_digest_and_never_by_tag(tmp_path: Path) -> None:
    pinned = [f"registry.example:5000/{name}@sha256:{'a' * 64}" for name in ("postgres", "zookeeper", "pghc")]
    [postgres, *_] = kustomization(tmp_path, Images(*pinned), "cloud")["images"]
    assert postgres["newName"] == "registry.example:5000/postgres"
    assert postgres["digest"] == f"sha256:{'a' * 64}"
    with pytest.raises(BadInput, match="pghc/pghc:1: a tag"):
        write(load(), "cloud", Images(*pinned[:2], IMAGES.pghc), MANIFESTS, tmp_path)


# What every pod is told


def workloads() -> dict[str, dict[str, Any]]:
    """Name to the pod's specification, of all that run pods."""
    files = [*MANIFESTS.glob("base/*.yaml"), *MANIFESTS.glob("overlays/kind/*.yaml")]
    objects = [each for file in files for each in yaml.safe_load_all(file.read_text())]
    runs = [each for each in objects if "template" in each.get("spec", {})]
    return {each["metadata"]["name"]: each["spec"]["template"]["spec"] for each in runs}


@pytest.mark.parametrize(
    ("name", "needs"),
    {
        "primary": {"admin-password", "replicator-password"},
        "replica": {"replicator-password"},
        "zookeeper": set(),
        "setup": {"admin-password", "password", "replicator-password"},
        "api": {"password", "zookeeper-password", "api-token"},
        "gateway": {"gateway-token"},
    }.items(),
)
def test_each_pod_mounts_its_own_secrets_and_no_other(name: str, needs: set[str]) -> None:
    mounted = [each["secret"] for each in workloads()[name]["volumes"] if "secret" in each]
    assert {item["key"] for secret in mounted for item in secret["items"]} == needs
    credentials(dict.fromkeys(needs, "x"))


def test_a_servers_settings_follow_the_memory_of_its_pod_wherever_that_is_set() -> None:
    for name, image in (("primary", "postgres"), ("replica", "postgres"), ("zookeeper", "zookeeper")):
        [container] = workloads()[name]["containers"]
        limit_of = {each["name"]: each["valueFrom"]["resourceFieldRef"] for each in container["env"]}
        assert limit_of["MEMORY"] == {"resource": "limits.memory", "divisor": "1Mi"}
        assert "$((MEMORY / 2))" in (MANIFESTS.parent / "images" / image / "server.sh").read_text()


def test_an_ending_api_pod_has_time_for_requests_that_still_arrive_and_then_for_those_in_flight() -> None:
    pod = workloads()["api"]
    waits = pod["containers"][0]["lifecycle"]["preStop"]["sleep"]["seconds"]
    assert waits >= 10
    assert pod["terminationGracePeriodSeconds"] >= waits + LINGER + CLOSING + 5
