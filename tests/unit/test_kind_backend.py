"""What the kind backend does when programs, machines and people do not do as they should. Programs are stand-ins."""

from __future__ import annotations

import base64
import json
import os
import re
import shutil
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as limit
from hypothesis import strategies as st

from pghc.cluster.kubernetes import kind as backend
from pghc.cluster.kubernetes.kind import ENGINE, MEANT, Kind, environment
from pghc.cluster.kubernetes.manifests import REGION_LABEL, control_node_port, new_passwords, node_port
from pghc.cluster.losses import FORMER, GONE
from pghc.errors import ClusterError
from pghc.topology import load

SURROUNDINGS = Path(__file__).parents[2] / "cluster/surroundings.sh"
NAMES = ("x-control-plane", "x-worker", "x-worker2", "x-worker3")


class Stage:
    """Stand-ins for docker and kubectl, and what they say of a cluster x of which all nodes are ready."""

    def __init__(self, directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.directory = directory
        monkeypatch.setenv("PATH", f"{directory}:{os.environ['PATH']}")
        monkeypatch.setenv("PGHC_CACHE", str(directory / "cache"))
        self.topology = load()
        self.machines(dict.fromkeys(NAMES, "running"))
        what = "$(printf %s \"$*\" | tr -c 'a-z\\n' ' ' | grep -oE 'pods|nodes|configmaps' | head -n 1)"
        self.kubectl(f'case "$*" in *--raw*) exit 1 ;; esac; cat FILES/{what}')
        nodes = [
            self._object("Node", name, labels={REGION_LABEL: region}) | self._ready()
            for name, region in zip(NAMES, (None, *self.topology.names), strict=True)
        ]
        pods = [
            self._object("Pod", name, namespace=region)
            | {"status": {"containerStatuses": [{"containerID": "1", "state": {"running": {}}}]}}
            for region in self.topology.names
            for name in ("primary-0", "replica-1", "replica-2", "zookeeper-0", "api-7")
        ]
        secret = {key: base64.b64encode(word.encode()).decode() for key, word in new_passwords().items()}
        facts = [
            self._object("ConfigMap", "topology") | {"data": {"topology.json": json.dumps(self.topology.to_dict())}},
            self._object("Secret", "pghc") | {"data": secret},
        ]
        for name, items in (("nodes", nodes), ("pods", pods), ("configmaps", facts)):
            (directory / name).write_text(json.dumps({"items": items}))

    @staticmethod
    def _object(kind: str, name: str, namespace: str = "", labels: dict[str, Any] | None = None) -> dict[str, Any]:
        return {"kind": kind, "metadata": {"name": name, "namespace": namespace, "labels": labels or {}}}

    @staticmethod
    def _ready() -> dict[str, Any]:
        return {"status": {"conditions": [{"type": "Ready", "status": "True"}]}}

    def _program(self, name: str, script: str) -> None:
        file = self.directory / name
        file.write_text(f"#!{shutil.which('bash')}\n{script.replace('FILES', str(self.directory))}\n")
        file.chmod(0o755)

    def machines(self, states: dict[str, str]) -> None:
        world = self.topology
        ports = [node_port(world, viewer, node) for viewer in world.names for node in world.nodes]
        ports += [control_node_port(world, region) for region in world.names]
        (self.directory / "machines").write_text("".join(f"{name} {state}\n" for name, state in states.items()))
        (self.directory / "ports").write_text("".join(f"{port}/tcp -> 127.0.0.1:1\n" for port in ports))
        volumes = "exec) cat FILES/volumes 2>/dev/null"
        self._program("docker", f'case "$1" in ps) cat FILES/machines ;; port) cat FILES/ports ;; {volumes} ;; esac')

    def volumes(self, *lines: str) -> None:
        """What is on those of each machine."""
        (self.directory / "volumes").write_text("".join(f"{line}\n" for line in lines))

    def primary(self, region: str, node: str) -> None:
        facts = json.loads((self.directory / "configmaps").read_text())
        state = self._object("ConfigMap", "state", namespace=region) | {"data": {"primary": node}}
        (self.directory / "configmaps").write_text(json.dumps({"items": [*facts["items"], state]}))

    def kubectl(self, script: str) -> None:
        self._program("kubectl", script)


@pytest.fixture
def stage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Stage:
    return Stage(tmp_path, monkeypatch)


def test_a_region_whose_machine_has_died_is_unreachable_at_once_and_the_way_back_is_named(stage: Stage) -> None:
    stage.machines(dict.fromkeys(NAMES, "running") | {"x-worker2": "exited"})
    status = Kind("x").status()
    assert {node.region for node in status.nodes if node.state == "unreachable"} == {stage.topology.names[1]}
    assert {node.detail for node in status.nodes if node.state == "unreachable"} == {"its machine x-worker2 is exited"}
    assert status.remedy == "`pghc up --backend kind` starts again what is missing."


def test_without_its_control_plane_every_server_is_unreachable_but_the_cluster_is_not_said_to_be_stopped(
    stage: Stage,
) -> None:
    stage.machines(dict.fromkeys(NAMES, "running") | {"x-control-plane": "exited"})
    stage.kubectl("exec sleep 60")
    status = Kind("x").status()
    assert status.running
    assert {node.state for node in status.nodes} == {"unreachable"}
    assert "x-control-plane" in status.nodes[0].detail


def test_of_a_machine_that_is_lost_with_its_data_it_says_what_then_works(stage: Stage) -> None:
    stage.machines(dict.fromkeys(NAMES[:-1], "running"))
    assert "cluster/down.sh" in Kind("x").status().remedy
    stage.machines(dict.fromkeys(NAMES, "paused"))
    assert "docker unpause x-control-plane" in Kind("x").status().remedy


@pytest.mark.parametrize("program", ["exec sleep 60", "sleep 60; true"], ids=["itself", "a child of it"])
def test_status_answers_in_five_seconds_when_kubernetes_does_not(stage: Stage, program: str) -> None:
    stage.kubectl(program)
    begin = time.monotonic()
    status = Kind("x").status()
    assert time.monotonic() - begin < 5
    assert {node.state for node in status.nodes} == {"unreachable"}


def test_where_all_machines_are_stopped_the_servers_are_stopped(stage: Stage) -> None:
    stage.machines(dict.fromkeys(NAMES, "exited"))
    assert not (status := Kind("x").status()).running
    assert {node.state for node in status.nodes} == {"stopped"}


# Volumes


def test_of_a_server_whose_volume_is_empty_it_says_so_and_what_replaces_it(stage: Stage) -> None:
    stage.volumes("primary-0", "replica-1 data standby", "replica-2 data standby", "replica-5", "zookeeper-0 data")
    status = Kind("x").status()
    lacks = {node.name: (node.state, node.lack, node.detail) for node in status.nodes if node.lack}
    assert lacks == {
        f"{region}-primary": ("stopped", GONE, f"{GONE}: `pghc promote {region} --backend kind`")
        for region in stage.topology.names
    }
    assert "`pghc promote us-east --backend kind`" in status.remedy


def test_where_no_server_of_a_region_has_its_data_the_region_is_rebuilt(stage: Stage) -> None:
    stage.volumes("primary-0", "replica-1", "replica-2", "zookeeper-0")
    found = {node.name: node for node in Kind("x").status().nodes}
    for name in ("us-east-primary", "us-east-replica-1"):
        assert found[name].detail == f"{GONE}: `pghc rebuild us-east --backend kind`"
    assert found["us-east-zookeeper"].detail == f"{GONE}: `pghc rebuild us-east-zookeeper --backend kind`"
    assert found["us-east-api"].lack


def test_who_is_the_primary_is_what_kubernetes_says(stage: Stage) -> None:
    stage.primary("us-east", "us-east-replica-2")
    stage.volumes("primary-0 data", "replica-1 data standby", "replica-2 data", "zookeeper-0 data")
    kind = Kind("x")
    assert kind.view("eu-west").primary("us-east") == "us-east-replica-2"
    found = {node.name: node for node in kind.status().nodes}
    assert [found[f"us-east-{name}"].role for name in ("primary", "replica-2")] == ["replica", "primary"]
    assert found["us-east-primary"].detail == f"{FORMER}: `pghc rebuild us-east-primary --backend kind`"
    assert kind._lacks()["eu-west-replica-2"] == FORMER


# Scripts


def script(stage: Stage, monkeypatch: pytest.MonkeyPatch, text: str) -> Kind:
    monkeypatch.setattr(backend, "SCRIPTS", stage.directory)
    stage._program("down.sh", text)
    return Kind("x")


def gone(pid_file: Path) -> bool:
    command = ["ps", "-o", "stat=", "-p", pid_file.read_text().strip()]
    state = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False).stdout
    return not state or state.startswith("Z")


def test_a_script_that_says_nothing_and_does_not_end_is_ended_with_its_children(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    kind = script(stage, monkeypatch, "echo half way; sleep 60 & echo $! > FILES/child; sleep 60")
    monkeypatch.setattr(backend, "REMOVING", 1.0)
    begin = time.monotonic()
    with pytest.raises(ClusterError, match="did not end within 1 s; it was at: half way"):
        kind.down()
    assert time.monotonic() - begin < 10
    time.sleep(0.1)
    assert gone(stage.directory / "child")


def test_an_interruption_ends_the_script_which_may_tidy_up(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    tidy = "trap 'touch FILES/tidied; exit 143' TERM; echo $$ > FILES/child; echo begun; sleep 60 & wait"
    kind = script(stage, monkeypatch, tidy)

    def interrupt(_: str) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(backend, "quiet", interrupt)
    with pytest.raises(KeyboardInterrupt):
        kind.down()
    assert (stage.directory / "tidied").exists()
    assert gone(stage.directory / "child")


# Surroundings

NAME = st.from_regex(r"[A-Z_][A-Z0-9_]{0,20}", fullmatch=True)
HOSTILE = ("KUBECONFIG", "KUBECTL_EXTERNAL_DIFF", "KUBERC", "KIND_EXPERIMENTAL_PROVIDER", "KIND_CLUSTER_NAME")
HOSTILE += ("DOCKER_DEFAULT_PLATFORM", "DOCKER_API_VERSION", "DOCKER_BUILDKIT", "BASH_ENV", "ENV", "CDPATH", "GOFLAGS")
HOSTILE += ("GREP_OPTIONS", "POSIXLY_CORRECT", "PGHOST", "PGSSLMODE", "PYTHONPATH", "PYTHONHOME", "JAVA_TOOL_OPTIONS")


@limit(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.dictionaries(NAME | st.sampled_from(HOSTILE), st.sampled_from(["", "/nowhere", "1"]), max_size=12))
def test_no_variable_reaches_docker_or_kubectl_that_is_not_listed(
    monkeypatch: pytest.MonkeyPatch, variables: dict[str, str]
) -> None:
    with monkeypatch.context() as patched:
        for name, value in variables.items():
            patched.setenv(name, value)
        assert set(environment()) <= {*MEANT, "LC_ALL"}


def meant(name: str) -> bool:
    lines = re.findall(r"^meant\+?='\|?(.*?)'", SURROUNDINGS.read_text(), re.MULTILINE)
    pattern = "|".join(line.replace("*", ".*") for line in lines)
    return re.fullmatch(pattern, name) is not None


@limit(max_examples=20, deadline=None)
@given(st.dictionaries(NAME | st.sampled_from(HOSTILE), st.sampled_from(["", "/nowhere", "1"]), max_size=12))
def test_no_variable_reaches_what_a_script_starts_that_is_not_listed(variables: dict[str, str]) -> None:
    bash, env = shutil.which("bash"), shutil.which("env")
    assert bash
    ours = {"PATH": os.environ["PATH"], "BASH_FUNC_dirname%%": "() { echo a function of the user; }"}
    command = [bash, "-c", f". {SURROUNDINGS}; dirname /a/b; {env}"]
    done = subprocess.run(command, env=variables | ours, capture_output=True, text=True, timeout=30, check=True)
    first, *rest = done.stdout.splitlines()
    assert first == "/a"
    left = {line.split("=")[0] for line in rest} - {"PWD", "SHLVL", "OLDPWD", "_", "LC_ALL"}
    assert all(map(meant, left)), left


def test_what_says_which_engine_is_meant_reaches_the_scripts_and_the_backend_alike() -> None:
    assert all(map(meant, MEANT))
    assert set(ENGINE) <= set(MEANT)
    assert not any(map(meant, HOSTILE))
