"""The same cluster on Kubernetes, made by kind: a node a region, a namespace a region, a pod a server.

``cluster/up.sh`` makes it and ``cluster/down.sh`` removes it. Nothing is remembered here: topology, passwords and state
are asked of Kubernetes, the ports on loopback of the container engine. The user's kubeconfig says who may.
"""

from __future__ import annotations

import asyncio
import getpass
import hashlib
import json
import os
import re
import subprocess
import time
from base64 import b64decode
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from http.client import HTTPConnection, HTTPException
from pathlib import Path
from tempfile import NamedTemporaryFile
from typing import Any

import psycopg

from pghc import topology as topologies
from pghc.cluster import NodeStatus, Progress, State, Status, default_directory
from pghc.cluster.kubernetes.manifests import PART_OF, REGION_LABEL, control_node_port, node_port, pod
from pghc.cluster.kubernetes.pods import HELD, credentials
from pghc.cluster.local.deployment import ask_api, ask_zookeeper
from pghc.cluster.wan import LinkState, LinkStatus
from pghc.errors import BadInput, ClusterError, NotRunning
from pghc.store import complete
from pghc.topology import Address, Node, Topology, View

Json = dict[str, Any]

SCRIPTS = Path(__file__).parents[2] / "cluster"
SELECTOR = ",".join(f"{key}={value}" for key, value in PART_OF.items())
COMPONENT = "app.kubernetes.io/component"
PAUSED = "pghc/paused"

#: Seconds: to make a cluster, to remove one, for a server to be back, for one question.
MAKING, REMOVING, RECOVERY, ANSWER = 2400.0, 300.0, 180.0, 30.0


def quiet(_: str) -> None:
    """Say nothing of the progress."""


def make(directory: Path, topology: Topology | None) -> Kind:
    return Kind(cluster_name(directory), topology)


def cluster_name(directory: Path) -> str:
    """A name a user; another directory than the default means a second cluster of the same user."""
    if given := os.environ.get("PGHC_KIND"):
        return given
    user = re.sub(r"[^a-z0-9-]", "", re.sub(r"[_.]", "-", getpass.getuser().lower()))
    if directory == default_directory():
        return f"pghc-{user}"
    return f"pghc-{user}-{hashlib.sha256(str(directory.absolute()).encode()).hexdigest()[:6]}"


class Kind:
    """A kind cluster. Can kill and pause servers, change links, and take a region's Kubernetes node away.

    A server that is killed stays down until `start`; one that ends otherwise comes back by itself.
    """

    name = "kind"

    def __init__(self, cluster: str, topology: Topology | None = None) -> None:
        self.cluster = cluster
        self._wanted = topology
        self._known: _Known | None = None

    # Backend

    @property
    def topology(self) -> Topology:
        """That of the cluster; before it is made, the one it will get."""
        with suppress(NotRunning):
            return self._facts().topology
        return self._wanted or topologies.load()

    def up(self, progress: Progress = quiet) -> None:
        """Make the cluster, or what is missing of it, and end what faults have left. Raises `ClusterError`."""
        with NamedTemporaryFile("w", suffix=".toml") as file:
            arguments = ["--name", self.cluster]
            if self._wanted and self._wanted != topologies.load():
                file.write(_toml(self._wanted))
                file.flush()
                arguments += ["--topology", file.name]
            with suppress(NotRunning):
                self._let_go()
            self._script("up.sh", arguments, MAKING, progress)
        self._known = None

    def down(self, *, purge: bool = False) -> None:
        """Stop its nodes; ``purge``: remove the cluster and its data, too. Raises `ClusterError`."""
        self._script("down.sh", ["--name", self.cluster, *([] if purge else ["--stop"])], REMOVING, quiet)
        self._known = None

    def status(self) -> Status:
        """Every server and link as it is now."""
        topology = self.topology
        try:
            pods = {(each["metadata"]["namespace"], each["metadata"]["name"]): each for each in self._get("pods")}
            views = {region: self.view(region) for region in topology.names}
            ready = {each["metadata"]["labels"].get(REGION_LABEL) for each in self._get("nodes") if _is_ready(each)}
        except NotRunning:
            stopped = [NodeStatus(node.name, node.region, node.role, "stopped", False) for node in topology.nodes]
            return Status(self.name, self.cluster, False, stopped, [])
        memory = self._memory(sorted(ready - {None}))

        def ask(node: Node) -> NodeStatus:
            names = [name for region, name in pods if region == node.region and _is_pod_of(name, node)]
            state: State = "stopped"
            if node.region not in ready:
                state = "unreachable"
            elif names:
                state = _state(pods[node.region, names[0]])
            accessible, detail = (False, "") if state != "running" else _answers(node, views[node.region])
            port = views[node.region].addresses[node.name].port
            used = sum(memory.get((node.region, name), 0) for name in names)
            return NodeStatus(node.name, node.region, node.role, state, accessible, port, None, used, detail)

        with ThreadPoolExecutor(len(topology.nodes)) as pool:
            nodes = list(pool.map(ask, topology.nodes))
        links: Sequence[LinkStatus] = []
        with suppress(ClusterError):
            links = self.links()
        return Status(self.name, self.cluster, True, nodes, links, sum(memory.values()))

    def view(self, region: str) -> View:
        """What clients of that region see, from outside the cluster. Raises `NotRunning`, `BadInput`."""
        known = self._facts()
        name = known.topology.region(region).name
        addresses = {node.name: known.address(node_port(known.topology, name, node)) for node in known.topology.nodes}
        return View(name, known.topology, addresses, credentials(known.secret))

    # CanKill, CanPause

    def kill(self, node: str) -> None:
        """kill -9 of all processes of the server's pod, which then stays down. Returns when they are gone."""
        server = self._facts().topology.node(node)
        before = _running(self._pod(server))
        # -1: every process of this user but the one that asks and the pod's own first one
        self._in_pod(server, f"touch {HELD}; kill -KILL -1", ends=True)
        _until(lambda: _running(self._pod(server)) != before, f"{node} does not end", node)

    def start(self, node: str) -> None:
        """Returns when the server is accessible."""
        server = self._facts().topology.node(node)
        view = self.view(server.region)

        def back() -> bool:
            self._release(server)
            return _answers(server, view)[0]

        _until(back, f"{node} does not answer", node, f"kubectl logs -n {server.region} {_object(server)} says why")

    def pause(self, node: str) -> None:
        """Stop the server's processes; connections stay open. After a minute its liveness probe starts it again."""
        server = self._facts().topology.node(node)
        self._in_pod(server, "kill -STOP -1")
        self._mark(server, paused=True)

    def resume(self, node: str) -> None:
        server = self._facts().topology.node(node)
        self._in_pod(server, "kill -CONT -1")
        self._mark(server, paused=False)

    # CanPartition: a link joins two gateways, and each carries the bytes of the connections that its region dialled

    def set_link(
        self, source: str, target: str, *, delay_ms: float | None = None, state: LinkState | None = None
    ) -> None:
        """Raises `BadInput`, `ClusterError`."""
        change = {key: value for key, value in (("delay_ms", delay_ms), ("state", state)) if value is not None}
        for region in (source, target):
            self._gateway(region, "PATCH", f"/links/{source}/{target}", change)

    def links(self) -> Sequence[LinkStatus]:
        """Each link as its source's gateway has it."""
        found = []
        for region in self._facts().topology.names:
            links = (LinkStatus(**link) for link in self._gateway(region, "GET", "/links"))
            found += [link for link in links if link.source == region]
        return found

    def heal_links(self) -> None:
        for region in self._facts().topology.names:
            self._gateway(region, "DELETE", "/links")

    # What only Kubernetes can do

    def delete_pod(self, node: str) -> None:
        """Delete the server's pod, which gets a second to stop. Kubernetes makes another, with the same volume."""
        server = self._facts().topology.node(node)
        name = self._pod(server)["metadata"]["name"]
        self._kubectl("delete", "pod", name, "-n", server.region, "--grace-period=1", seconds=RECOVERY)

    def drain(self, region: str) -> None:
        """Evict every pod of the region's Kubernetes node; none is scheduled there until `uncordon`."""
        name = self._kubernetes_node(region)
        options = ("--ignore-daemonsets", "--delete-emptydir-data", "--force", "--timeout=120s")
        self._kubectl("drain", name, *options, seconds=RECOVERY)

    def uncordon(self, region: str) -> None:
        self._kubectl("uncordon", self._kubernetes_node(region))

    def stop_node(self, region: str) -> None:
        """End the region's Kubernetes node as a power cut would: no process gets a signal that it could handle."""
        self._docker("kill", self._kubernetes_node(region))

    def start_node(self, region: str) -> None:
        """Power on. Its pods start again by themselves."""
        self._docker("start", self._kubernetes_node(region))

    # Facts that stay as long as the cluster

    def _facts(self) -> _Known:
        """Raises `NotRunning`."""
        if self._known is None:
            self._known = self._learn()
        return self._known

    def _learn(self) -> _Known:
        control_plane = f"{self.cluster}-control-plane"
        try:
            mapped = self._docker("port", control_plane)
        except ClusterError as error:
            raise NotRunning(f"no kind cluster {self.cluster} runs", "`pghc up --backend kind` starts one.") from error
        ports = {}
        for line in mapped.splitlines():  # 30000/tcp -> 127.0.0.1:41234
            if found := re.fullmatch(r"(\d+)/tcp -> 127\.0\.0\.1:(\d+)", line.strip()):
                ports[int(found[1])] = int(found[2])
        maps = [each for each in self._get("configmaps") if each["metadata"]["name"] == "topology"]
        secrets = [each for each in self._get("secrets") if each["metadata"]["name"] == "pghc"]
        if not ports or not maps or not secrets:
            raise NotRunning(
                f"the kind cluster {self.cluster} is not complete", "`pghc up --backend kind` completes it."
            )
        topology = topologies.parse(json.loads(maps[0]["data"]["topology.json"]), f"the topology of {self.cluster}")
        secret = {key: b64decode(value).decode() for key, value in secrets[0]["data"].items()}
        return _Known(topology, secret, ports)

    # Asking

    def _get(self, kind: str) -> list[Json]:
        """All objects of a kind that are the lab's; of Kubernetes nodes, all. Raises `NotRunning`."""
        selector = [] if kind == "nodes" else ["--selector", SELECTOR]
        try:
            found: list[Json] = json.loads(self._kubectl("get", kind, "-A", *selector, "-o", "json"))["items"]
        except ClusterError as error:
            raise NotRunning(
                f"the Kubernetes API of {self.cluster} does not answer: {error}", "`pghc up --backend kind` starts it."
            ) from error
        return found

    def _pod(self, server: Node) -> Json:
        for each in self._get("pods"):
            name = each["metadata"]["name"]
            if each["metadata"]["namespace"] == server.region and _is_pod_of(name, server):
                return each
        raise ClusterError(f"{server.name} has no pod", f"kubectl get pods -n {server.region}", node=server.name)

    def _kubernetes_node(self, region: str) -> str:
        name = self._facts().topology.region(region).name
        for each in self._get("nodes"):
            if each["metadata"]["labels"].get(REGION_LABEL) == name:
                return str(each["metadata"]["name"])
        raise ClusterError(
            f"no Kubernetes node is labelled {REGION_LABEL}={name}", "cluster/down.sh, then cluster/up.sh"
        )

    def _memory(self, regions: Sequence[str]) -> dict[tuple[str, str], int]:
        """Bytes that each pod uses, as the kubelets know it; nothing where one does not answer."""
        found = {}
        for region in regions:
            with suppress(ClusterError, ValueError):
                node = self._kubernetes_node(region)
                for each in json.loads(self._kubectl("get", "--raw", f"/api/v1/nodes/{node}/proxy/stats/summary"))[
                    "pods"
                ]:
                    place = each["podRef"]["namespace"], each["podRef"]["name"]
                    found[place] = int(each.get("memory", {}).get("workingSetBytes", 0))
        return {place: used for place, used in found.items() if place[0] in regions}

    # Doing

    def _release(self, server: Node) -> None:
        """End what keeps a killed server down. One that died often waits longer each time: a new pod does not."""
        found = self._pod(server)
        waiting = [each["state"]["waiting"] for each in _containers(found) if "waiting" in each.get("state", {})]
        if any(each.get("reason") == "CrashLoopBackOff" for each in waiting):
            self.delete_pod(server.name)
        elif _running(found):
            with suppress(ClusterError):  # it may end this very moment; whoever waits tries again
                self._in_pod(server, f"rm -f {HELD}")

    def _let_go(self) -> None:
        """End every pause and kill, and let pods be scheduled everywhere."""
        topology = self._facts().topology
        for found in self._get("pods"):
            for server in topology.region(found["metadata"]["namespace"]).nodes:
                if _is_pod_of(found["metadata"]["name"], server) and not _is_ready(found):
                    with suppress(ClusterError):
                        if _state(found) == "paused":
                            self.resume(server.name)
                        self._release(server)
        with suppress(ClusterError):
            self.heal_links()

    def _mark(self, server: Node, *, paused: bool) -> None:
        name = self._pod(server)["metadata"]["name"]
        change = f"{PAUSED}=true" if paused else f"{PAUSED}-"
        self._kubectl("annotate", "pod", name, "-n", server.region, "--overwrite", change)

    def _in_pod(self, server: Node, script: str, *, ends: bool = False) -> None:
        """Run a line of bash in the server's pod; ``ends``: it takes its own connection with it."""
        name = self._pod(server)["metadata"]["name"]
        try:
            self._kubectl("exec", name, "-n", server.region, "--", "bash", "-c", script)
        except ClusterError:
            if not ends:
                raise

    def _gateway(self, region: str, method: str, path: str, body: Mapping[str, Any] | None = None) -> Any:
        known = self._facts()
        known.topology.region(region)
        at = known.address(control_node_port(known.topology, region))
        connection = HTTPConnection(at.host, at.port, timeout=ANSWER)
        headers = {"Authorization": f"Bearer {known.secret['gateway-token']}"}
        try:
            connection.request(method, path, json.dumps(body) if body else None, headers)
            response = connection.getresponse()
            answer = json.loads(response.read())
        except (OSError, HTTPException, ValueError) as error:
            raise ClusterError(
                f"the gateway of {region} does not answer: {error}", f"kubectl logs -n {region} deploy/gateway"
            ) from error
        finally:
            connection.close()
        if response.status != 200:
            raise BadInput(answer["error"])
        return answer

    def _kubectl(self, *arguments: str, seconds: float = ANSWER) -> str:
        return _output(["kubectl", "--context", f"kind-{self.cluster}", *arguments], seconds)

    def _docker(self, *arguments: str) -> str:
        return _output(["docker", *arguments], 60)

    def _script(self, name: str, arguments: Sequence[str], seconds: float, progress: Progress) -> None:
        """Run one of ``cluster/``; its lines are the progress, its errors ours."""
        script = SCRIPTS / name
        if not script.exists():
            raise ClusterError(f"{script} is missing", "The kind backend needs the repository: clone it, `make kind`.")
        deadline = time.monotonic() + seconds
        with NamedTemporaryFile("w+") as errors:
            process = subprocess.Popen(
                [script, *arguments], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=errors, text=True
            )
            try:
                assert process.stdout
                for line in process.stdout:
                    progress(line.strip())
                process.wait(max(deadline - time.monotonic(), 1))
            except subprocess.TimeoutExpired:
                process.terminate()
                raise ClusterError(f"cluster/{name} did not end within {seconds:g} s") from None
            except BaseException:
                process.terminate()
                process.wait(60)
                raise
            if process.returncode:
                errors.seek(0)
                what = errors.read().strip().removeprefix("error: ")
                raise ClusterError(what or f"cluster/{name} failed with exit code {process.returncode}")


class _Known:
    """What stays as long as the cluster: its topology, its passwords, and the loopback port of each node port."""

    def __init__(self, topology: Topology, secret: Mapping[str, str], ports: Mapping[int, int]) -> None:
        self.topology, self.secret, self._ports = topology, secret, ports

    def address(self, port: int) -> Address:
        if port not in self._ports:
            raise ClusterError(f"node port {port} is not mapped to loopback", "cluster/down.sh, then cluster/up.sh")
        return Address("127.0.0.1", self._ports[port])


def _object(server: Node) -> str:
    return "deploy/api" if server.role == "api" else pod(server)


def _is_pod_of(name: str, server: Node) -> bool:
    return name.startswith("api-") if server.role == "api" else name == pod(server)


def _containers(found: Json) -> list[Json]:
    return list(found.get("status", {}).get("containerStatuses", []))


def _running(found: Json) -> list[str]:
    """The containers that run now; one that is started again is another."""
    return [each["containerID"] for each in _containers(found) if "running" in each.get("state", {})]


def _state(found: Json) -> State:
    if found["metadata"].get("annotations", {}).get(PAUSED):
        return "paused"
    return "running" if _running(found) and "deletionTimestamp" not in found["metadata"] else "stopped"


def _is_ready(found: Json) -> bool:
    return any(each["type"] == "Ready" and each["status"] == "True" for each in found["status"].get("conditions", []))


def _answers(server: Node, view: View) -> tuple[bool, str]:
    """Whether a server answers where a client dials it, and a word about it."""
    address = view.addresses[server.name]
    try:
        match server.role:
            case "zookeeper":
                answer = asyncio.run(asyncio.wait_for(ask_zookeeper(address, "srvr"), 3))
                mode = re.search(r"Mode: (\w+)", answer)
                return bool(mode), mode[1] if mode else ""
            case "api":
                return asyncio.run(asyncio.wait_for(ask_api(address), 3))["reads"], ""
            case _:
                arguments = complete(view.conninfo(server.name)) | {"connect_timeout": 3}
                with psycopg.connect(**arguments, autocommit=True) as connection:
                    connection.execute("select 1")
                return True, ""
    except (OSError, TimeoutError, ValueError, LookupError, psycopg.Error):
        return False, ""


def _until(condition: Callable[[], bool], what: str, node: str, remedy: str = "") -> None:
    deadline = time.monotonic() + RECOVERY
    while not condition():
        if time.monotonic() > deadline:
            raise ClusterError(f"{what} within {RECOVERY:g} s", remedy, node=node)
        time.sleep(0.3)


def _output(command: list[str], seconds: float) -> str:
    """Raises `ClusterError` with what the command said."""
    said = " ".join(command[:1] + [word for word in command[1:] if not word.startswith(("-", "kind-"))][:3])
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=seconds, check=False)
    except FileNotFoundError as error:
        raise ClusterError(f"{command[0]} is not installed", "cluster/up.sh says how to get it.") from error
    except subprocess.TimeoutExpired as error:
        raise ClusterError(f"{said} did not answer within {seconds:g} s") from error
    if done.returncode:
        raise ClusterError(f"{said}: {' '.join(done.stderr.split())}")
    return done.stdout


def _toml(topology: Topology) -> str:
    """The topology as the file that ``cluster/up.sh --topology`` reads."""
    regions = "".join(
        "[[regions]]\n" + "".join(f"{key} = {json.dumps(value)}\n" for key, value in vars(region).items()) + "\n"
        for region in topology.regions
    )
    delays = "".join(f'"{a} -> {b}" = {delay:g}\n' for (a, b), delay in topology.delays_ms.items())
    return f"{regions}[delays_ms]\n{delays}"
