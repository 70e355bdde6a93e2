"""The same cluster on Kubernetes, made by kind: a node a region, a namespace a region, a pod a server.

``cluster/up.sh`` makes it and ``cluster/down.sh`` removes it. Nothing is remembered here: topology, passwords and state
are asked of Kubernetes, the ports on loopback of the container engine. A kubeconfig of the cluster's own says who may.
"""

from __future__ import annotations

import getpass
import hashlib
import json
import os
import re
import shutil
import signal
import subprocess
import time
from base64 import b64decode
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from http.client import HTTPConnection, HTTPException
from pathlib import Path
from queue import Empty, Queue
from tempfile import NamedTemporaryFile
from threading import Thread
from typing import IO, Any

from pghc import topology as topologies
from pghc.cluster import NodeStatus, Progress, State, Status, default_directory, losses, replacement
from pghc.cluster.kubernetes.manifests import (
    PART_OF,
    POD_NAME,
    REGION_LABEL,
    STATE,
    VOLUMES,
    control_node_port,
    node_port,
    pod,
    writable,
)
from pghc.cluster.kubernetes.pods import HELD, credentials
from pghc.cluster.probes import probe
from pghc.cluster.wan import LinkState, LinkStatus
from pghc.errors import BadInput, ClusterError, NotRunning, PghcError
from pghc.topology import Address, Node, Topology, View

Json = dict[str, Any]

SCRIPTS = Path(__file__).parents[3] / "cluster"
SELECTOR = ",".join(f"{key}={value}" for key, value in PART_OF.items())
COMPONENT = "app.kubernetes.io/component"
PAUSED = "pghc/paused"

#: Seconds: to make a cluster (and, once, its node image), to remove one, for a server to be back, for one question.
MAKING, REMOVING, RECOVERY, ANSWER = 7200.0, 400.0, 180.0, 30.0
#: Seconds for what `status` asks of Kubernetes, and then of all servers at once. Together less than 5.
GLANCE = 2.2
#: Seconds for a script that is told to end.
ENDING = 60.0
#: Seconds for which it is believed who a region's primary is: another process may have promoted one.
FRESH = 2.0

#: Prints of each volume of a Kubernetes node its name and what is there: data, and a replica's mark.
LOOK = f"""cd {VOLUMES} && for pod in *; do
    data=$pod/data
    echo $pod $([ ! -s $data/global/pg_control ] || echo data) $([ ! -e $data/standby.signal ] || echo standby) \\
        $(ls $data/version-2 2>/dev/null | grep -qE '^(log|snap)' && echo data)
done"""

#: What of the user's environment reaches docker and kubectl: where things are, and which engine is meant.
ENGINE = ("DOCKER_HOST", "DOCKER_CONTEXT", "DOCKER_CONFIG", "DOCKER_CERT_PATH", "DOCKER_TLS_VERIFY")
MEANT = ("PATH", "HOME", "USER", "LOGNAME", "TMPDIR", "XDG_CONFIG_HOME", "XDG_RUNTIME_DIR", *ENGINE)
#: What makes bash do something before it reads a script. All else the scripts themselves keep out.
BEFORE_BASH = ("BASH_ENV", "ENV", "SHELLOPTS", "BASHOPTS")


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
    """A kind cluster. Can kill, pause and replace servers, change links, and take a region's Kubernetes node away.

    A server that is killed stays down until `start`; one that ends otherwise comes back by itself. Who is the primary
    of a region stands in its ConfigMap `STATE`, and the Service `writable` leads there.
    """

    name = "kind"

    def __init__(self, cluster: str, topology: Topology | None = None) -> None:
        self.cluster = cluster
        self._wanted = topology
        self._known: _Known | None = None
        self._states: tuple[float, dict[str, str]] = (-FRESH, {})

    # Backend

    @property
    def topology(self) -> Topology:
        """That of the cluster; before it is made, the one it will get."""
        with suppress(NotRunning):
            return self._facts().topology
        return self._expected()

    def up(self, progress: Progress = quiet) -> None:
        """Make the cluster, or what is missing of it, and end what faults have left. Raises `ClusterError`."""
        with NamedTemporaryFile("w", suffix=".toml") as file:
            arguments = ["--name", self.cluster]
            if self._wanted and self._wanted != topologies.load():
                file.write(_toml(self._wanted))
                file.flush()
                arguments += ["--topology", file.name]
            with suppress(PghcError):
                self._let_go()
                if self._lacks():  # first: while one lacks its data, nothing that concerns it can be rolled
                    replacement.restore(self, progress)
            self._script("up.sh", arguments, MAKING, progress)
        self._forget()
        replacement.restore(self, progress)

    def down(self, *, purge: bool = False) -> None:
        """Stop its nodes; ``purge``: remove the cluster and its data, too. Raises `ClusterError`."""
        self._script("down.sh", ["--name", self.cluster, *([] if purge else ["--stop"])], REMOVING, quiet)
        self._forget()

    def status(self) -> Status:
        """Every server and link as it is now; within 5 s, whatever is away."""
        machines = self._machines()
        if not set(machines.values()) & {"running", "paused"}:
            stopped = [NodeStatus(n.name, n.region, n.role, "stopped", False) for n in self._expected().nodes]
            return Status(self.name, self.cluster, False, stopped, [])
        with ThreadPoolExecutor(32) as pool:
            try:
                return self._look(machines, pool)
            except NotRunning as error:
                expected, why = self._expected(), error.what
                nodes = [NodeStatus(n.name, n.region, n.role, "unreachable", False, detail=why) for n in expected.nodes]
                remedy = _remedy(self.cluster, expected, machines)
                return Status(self.name, self.cluster, True, nodes, [], remedy=remedy)

    def _look(self, machines: Mapping[str, str], pool: ThreadPoolExecutor) -> Status:
        """Raises `NotRunning` when Kubernetes does not answer."""
        control_plane = _machine_names(self.cluster, 0)[0]
        if (state := machines.get(control_plane, "gone")) != "running":
            raise NotRunning(f"the machine {control_plane}, through which all are reached, is {state}")
        found = pool.submit(self._get, "pods", GLANCE), pool.submit(self._get, "nodes", GLANCE)
        topology = self._facts(GLANCE).topology
        pods = {(each["metadata"]["namespace"], each["metadata"]["name"]): each for each in found[0].result()}
        away = _away(found[1].result(), machines)
        hosts = {region: name for name, region in _regions(found[1].result()).items() if region not in away}
        views = {region: self.view(region) for region in topology.names}
        primaries = self._primaries(GLANCE)
        looked = [pool.submit(self._lacks_of, region, host, primaries[region]) for region, host in hosts.items()]
        memory = [pool.submit(self._memory, region, host) for region, host in hosts.items()]
        links = [pool.submit(self._links_of, region) for region in hosts]

        lacks = {name: lack for each in looked for name, lack in each.result().items()}
        remedies = {
            name: losses.remedy(topology, topology.node(name), primaries[topology.node(name).region], lacks, self.name)
            for name in lacks
        }

        def ask(first: Node) -> NodeStatus:
            node = losses.in_its_part(first, primaries[first.region])
            names = [name for region, name in pods if region == node.region and _is_pod_of(name, first)]
            state: State = "stopped"
            if node.region in away:
                state = "unreachable"
            elif names:
                state = _state(pods[node.region, names[0]])
            accessible, detail = (False, away.get(node.region, ""))
            if state == "running":
                accessible, detail = probe(node, views[node.region], GLANCE)
            lack = lacks.get(node.name, "")
            if lack:
                state, detail = state if accessible else "stopped", f"{lack}: {remedies[node.name]}"
            elif node.role == "api" and not accessible and {*topology.region(node.region).databases} <= lacks.keys():
                lack = detail = "no database of its region has its data"
            port = views[node.region].addresses[node.name].port
            used = sum(each.result().get((node.region, name), 0) for each in memory for name in names)
            return NodeStatus(node.name, node.region, node.role, state, accessible, port, None, used, detail, lack)

        nodes = list(pool.map(ask, topology.nodes))
        return Status(
            self.name,
            self.cluster,
            True,
            nodes,
            [link for each in links for link in each.result()],
            sum(sum(each.result().values()) for each in memory),
            remedy=losses.summary(remedies.values()) if remedies else _remedy(self.cluster, topology, machines),
        )

    def view(self, region: str) -> View:
        """What clients of that region see, from outside the cluster. Raises `NotRunning`, `BadInput`."""
        known = self._facts()
        name = known.topology.region(region).name
        addresses = {node.name: known.address(node_port(known.topology, name, node)) for node in known.topology.nodes}
        return View(name, known.topology, addresses, credentials(known.secret), self._primaries())

    # CanKill, CanPause

    def kill(self, node: str) -> None:
        """kill -9 of all processes of the server's pod, which then stays down. Returns when they are gone."""
        server = self._facts().topology.node(node)
        before = _running(self._pod(server))
        # -1: every process of this user but the one that asks and the pod's own first one
        self._in_pod(server, f"touch {HELD}; kill -KILL -1", ends=True)
        _until(lambda: _running(self._pod(server)) != before, f"{node} does not end", node)

    def start(self, node: str) -> None:
        """Returns when it is accessible. A former primary gets its successor's data and becomes a replica."""
        topology = self._facts().topology
        primary, lacks = self.view(topology.node(node).region).primary(), self._lacks()
        if lacks.get(node) == losses.FORMER:
            self.rebuild(node)
        elif node in lacks and primary in lacks:
            remedy = losses.remedy(topology, topology.node(node), primary, lacks, self.name)
            raise ClusterError(f"{node} cannot start: {lacks[node]}", remedy, node=node)
        else:
            self._start(node)
            self._rejoin(node)

    def _start(self, node: str) -> None:
        server = self._facts().topology.node(node)
        view = self.view(server.region)

        def back() -> bool:
            self._release(server)
            return probe(server, view, GLANCE)[0]

        _until(back, f"{node} does not answer", node, f"kubectl logs -n {server.region} {_object(server)} says why")

    def pause(self, node: str) -> None:
        """Stop the server's processes; connections stay open. After a minute its liveness probe starts it again."""
        server = self._facts().topology.node(node)
        self._in_pod(server, "kill -STOP -1")
        self._mark(server, paused=True)

    def resume(self, node: str) -> None:
        """A former primary gets its successor's data and becomes a replica."""
        self._resume(node)
        if self._lacks().get(node) == losses.FORMER:
            self.rebuild(node)
        else:
            self._rejoin(node)

    def _resume(self, node: str) -> None:
        server = self._facts().topology.node(node)
        self._in_pod(server, "kill -CONT -1")
        self._mark(server, paused=False)

    def _rejoin(self, node: str) -> None:
        if node in self._primaries().values():
            with suppress(PghcError):  # it is back, which was asked; the rest is left for the next `up`
                replacement.rejoin(self)

    # CanReplace, and what `pghc.cluster.replacement` needs for it

    def lose(self, name: str) -> None:
        """kill -9, and the data is deleted. It stays down until `up`, `start`, or what replaces it."""
        topology = self._facts().topology
        lost = topology.region(name).nodes if name in topology.names else [topology.node(name)]
        with ThreadPoolExecutor(len(lost)) as pool:
            list(pool.map(self._lose, lost))

    def _lose(self, server: Node) -> None:
        if losses.is_database(server):
            was_paused = _state(self._pod(server)) == "paused"
            self._in_pod(server, "server.sh lose")
            if was_paused:
                self._mark(server, paused=False)
            return
        self.kill(server.name)
        if server.role == "zookeeper":
            data = f"{VOLUMES}/{pod(server)}/data"
            self._docker("exec", self._kubernetes_node(server.region), "rm", "-rf", data)

    def promote(self, region: str, to: str | None = None, progress: Progress = quiet) -> str:
        return replacement.promote(self, region, to, progress)

    def rebuild(self, name: str, progress: Progress = quiet) -> None:
        replacement.rebuild(self, name, progress)

    def lacking(self) -> dict[str, str]:
        away = _away(self._get("nodes"), self._machines())
        ready = [each["metadata"] for each in self._get("pods") if _is_ready(each)]
        idle = {
            node.name: "it does not run"
            for node in self._facts().topology.nodes
            if not losses.is_database(node)
            and node.region not in away
            and not any(each["namespace"] == node.region and _is_pod_of(each["name"], node) for each in ready)
        }
        return idle | self._lacks()

    def retire(self, node: str) -> bool:
        server = self._facts().topology.node(node)
        if self._machines().get(self._kubernetes_node(server.region)) != "running":
            return False
        with suppress(ClusterError):  # its pod is gone, or does not run
            return bool(self._in_pod(server, "server.sh retire").strip())
        return False

    def appoint(self, region: str, node: str) -> None:
        former = self._primaries(fresh=0)[region]
        if former == node:
            return
        selector = {POD_NAME: pod(self._facts().topology.node(node))}
        with ThreadPoolExecutor(1) as pool:
            retired = pool.submit(self.retire, former)
            self._patch("service", writable(region), region, {"spec": {"selector": selector}})
            retired.result()
        # What says who it is comes last: an interrupted change is made again
        self._patch("configmap", STATE, region, {"data": {"primary": node}})
        self._primaries(fresh=0)

    def copy(self, node: str, source: str, *, primary: bool = False) -> None:
        first = self._facts().topology.region(source).primary
        self._order(node, f"copy {first} {'primary' if primary else 'replica'}")

    def restart(self, node: str) -> None:
        server = self._facts().topology.node(node)
        if losses.is_database(server):
            self._order(node, "again")
            return
        if server.role == "zookeeper":  # one whose volume was emptied may run on, out of its memory
            self.delete_pod(node)
        self._start(node)

    def _order(self, node: str, order: str) -> None:
        """Tell a server what to do before it starts again. Returns when it has started and is accessible."""
        server = self._facts().topology.node(node)
        found = self._pod(server)
        if not _running(found):
            self._release(server)
            _until(lambda: bool(_running(self._pod(server))), f"{node}: its pod does not run", node)
        self._in_pod(server, f"server.sh order {order}", seconds=RECOVERY)
        if _state(found) == "paused":
            self._mark(server, paused=False)
        self._start(node)

    def _patch(self, kind: str, name: str, region: str, change: Json) -> None:
        self.kubectl("patch", kind, name, "-n", region, "--type", "merge", "-p", json.dumps(change))

    def _primaries(self, seconds: float = ANSWER, fresh: float = FRESH) -> dict[str, str]:
        """Each region's primary, as Kubernetes has it."""
        when, primaries = self._states
        if time.monotonic() - when >= fresh:
            if not primaries:
                primaries = {region.name: region.primary for region in self._facts(seconds).topology.regions}
            with suppress(NotRunning):
                states = [each for each in self._get("configmaps", seconds) if _is(each, "ConfigMap", STATE)]
                primaries = primaries | {each["metadata"]["namespace"]: each["data"]["primary"] for each in states}
            self._states = time.monotonic(), primaries
        return primaries

    def _lacks(self) -> dict[str, str]:
        """The servers whose data is not what they need to start, and why; of a region whose machine is away, none."""
        machines, primaries = self._machines(), self._primaries(fresh=0)
        hosts = {region: self._kubernetes_node(region) for region in primaries}
        running = [(region, host) for region, host in hosts.items() if machines.get(host) == "running"]
        with ThreadPoolExecutor(len(hosts)) as pool:
            found = list(pool.map(lambda at: self._lacks_of(at[0], at[1], primaries[at[0]], ANSWER), running))
        return {name: lack for each in found for name, lack in each.items()}

    def _lacks_of(self, region: str, host: str, primary: str, seconds: float = GLANCE) -> dict[str, str]:
        there: dict[str, set[str]] = {}
        with suppress(ClusterError):
            for line in self._docker("exec", host, "bash", "-c", LOOK, seconds=seconds).splitlines():
                name, *what = line.split()
                there[name] = {*what}
        found = {}
        for node in self._facts().topology.region(region).nodes:
            if node.role != "api" and pod(node) in there:
                if "data" not in there[pod(node)]:
                    found[node.name] = losses.GONE
                elif losses.is_database(node) and node.name != primary and "standby" not in there[pod(node)]:
                    found[node.name] = losses.FORMER
        return found

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

    def _links_of(self, region: str) -> list[LinkStatus]:
        """Those of a gateway that answers at once, else none."""
        with suppress(ClusterError):
            links = (LinkStatus(**link) for link in self._gateway(region, "GET", "/links", seconds=GLANCE))
            return [link for link in links if link.source == region]
        return []

    def heal_links(self) -> None:
        for region in self._facts().topology.names:
            self._gateway(region, "DELETE", "/links")

    # What only Kubernetes can do

    def delete_pod(self, node: str) -> None:
        """Delete the server's pod, which gets a second to stop. Kubernetes makes another, with the same volume."""
        server = self._facts().topology.node(node)
        name = self._pod(server)["metadata"]["name"]
        self.kubectl("delete", "pod", name, "-n", server.region, "--grace-period=1", seconds=RECOVERY)

    def drain(self, region: str) -> None:
        """Evict every pod of the region's Kubernetes node; none is scheduled there until `uncordon`."""
        name = self._kubernetes_node(region)
        options = ("--ignore-daemonsets", "--delete-emptydir-data", "--force", "--timeout=120s")
        self.kubectl("drain", name, *options, seconds=RECOVERY)

    def uncordon(self, region: str) -> None:
        self.kubectl("uncordon", self._kubernetes_node(region))

    def stop_node(self, region: str) -> None:
        """End the region's Kubernetes node as a power cut would: no process gets a signal that it could handle."""
        self._docker("kill", self._kubernetes_node(region))

    def start_node(self, region: str) -> None:
        """Power on. Its pods start again by themselves."""
        self._docker("start", self._kubernetes_node(region))

    # Facts that stay as long as the cluster

    def _facts(self, seconds: float = ANSWER) -> _Known:
        """Raises `NotRunning`."""
        if self._known is None:
            self._known = self._learn(seconds)
        return self._known

    def _forget(self) -> None:
        self._known, self._states = None, (-FRESH, {})

    def _learn(self, seconds: float) -> _Known:
        control_plane = f"{self.cluster}-control-plane"
        try:
            mapped = self._docker("port", control_plane, seconds=seconds)
        except ClusterError as error:
            raise NotRunning(f"no kind cluster {self.cluster} runs", "`pghc up --backend kind` starts one.") from error
        ports = {}
        for line in mapped.splitlines():  # 30000/tcp -> 127.0.0.1:41234
            if found := re.fullmatch(r"(\d+)/tcp -> 127\.0\.0\.1:(\d+)", line.strip()):
                ports[int(found[1])] = int(found[2])
        objects = self._get("configmaps,secrets", seconds)
        maps = [each["data"] for each in objects if _is(each, "ConfigMap", "topology")]
        secrets = [each["data"] for each in objects if _is(each, "Secret", "pghc")]
        if not ports or not maps or not secrets:
            raise NotRunning(
                f"the kind cluster {self.cluster} is not complete", "`pghc up --backend kind` completes it."
            )
        topology = topologies.parse(json.loads(maps[0]["topology.json"]), f"the topology of {self.cluster}")
        secret = {key: b64decode(value).decode() for key, value in secrets[0].items()}
        return _Known(topology, secret, ports)

    def _expected(self) -> Topology:
        """The topology of a cluster that cannot be asked: the known one, what up.sh was given, or what it will be."""
        with suppress(OSError, ValueError):
            file = self._files / "topology.json"
            return self._known.topology if self._known else topologies.parse(json.loads(file.read_text()), str(file))
        return self._wanted or topologies.load()

    @property
    def _files(self) -> Path:
        """Where the scripts keep what concerns this cluster; the same place in ``cluster/common.sh``."""
        return _cache() / "kind" / self.cluster

    # Asking

    def _machines(self) -> dict[str, str]:
        """The containers that are the cluster's machines: name to state, such as *running*, *paused*, *exited*."""
        mine = f"label=io.x-k8s.kind.cluster={self.cluster}"
        lines = ""
        with suppress(ClusterError):
            lines = self._docker("ps", "--all", "--filter", mine, "--format", "{{.Names}} {{.State}}", seconds=GLANCE)
        return dict(line.split() for line in lines.splitlines())

    def _get(self, kind: str, seconds: float = ANSWER) -> list[Json]:
        """All objects of a kind that are the lab's; of Kubernetes nodes, all. Raises `NotRunning`."""
        selector = [] if kind == "nodes" else ["--selector", SELECTOR]
        try:
            found: list[Json] = json.loads(
                self.kubectl("get", kind, "-A", *selector, "-o", "json", seconds=seconds)
            )["items"]
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
        known = self._facts()
        wanted = known.topology.region(region).name
        known.hosts = known.hosts or {place: name for name, place in _regions(self._get("nodes")).items()}
        if wanted in known.hosts:
            return known.hosts[wanted]
        raise ClusterError(
            f"no Kubernetes node is labelled {REGION_LABEL}={wanted}", "cluster/down.sh, then cluster/up.sh"
        )

    def _memory(self, region: str, host: str) -> dict[tuple[str, str], int]:
        """Bytes that each pod of a region uses, as its kubelet knows them; nothing where it does not answer at once."""
        with suppress(ClusterError, ValueError, LookupError):
            raw = self.kubectl("get", "--raw", f"/api/v1/nodes/{host}/proxy/stats/summary", seconds=GLANCE)
            return {
                (region, each["podRef"]["name"]): int(each.get("memory", {}).get("workingSetBytes", 0))
                for each in json.loads(raw)["pods"]
                if each["podRef"]["namespace"] == region
            }
        return {}

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
        """End every pause, kill and cut where there is a machine that can be asked."""
        topology = self._facts().topology
        away = _away(self._get("nodes"), self._machines())
        for found in self._get("pods"):
            if found["metadata"]["namespace"] in away:
                continue
            for server in topology.region(found["metadata"]["namespace"]).nodes:
                if _is_pod_of(found["metadata"]["name"], server) and not _is_ready(found):
                    with suppress(ClusterError):
                        if _state(found) == "paused":
                            self._resume(server.name)
                        self._release(server)
        for region in set(topology.names) - set(away):
            with suppress(ClusterError):
                self._gateway(region, "DELETE", "/links")

    def _mark(self, server: Node, *, paused: bool) -> None:
        name = self._pod(server)["metadata"]["name"]
        change = f"{PAUSED}=true" if paused else f"{PAUSED}-"
        self.kubectl("annotate", "pod", name, "-n", server.region, "--overwrite", change)

    def _in_pod(self, server: Node, script: str, *, ends: bool = False, seconds: float = ANSWER) -> str:
        """Run a line of bash in the server's pod; ``ends``: it takes its own connection with it."""
        name = self._pod(server)["metadata"]["name"] if server.role == "api" else pod(server)
        try:
            return self.kubectl("exec", name, "-n", server.region, "--", "bash", "-c", script, seconds=seconds)
        except ClusterError:
            if not ends:
                raise
        return ""

    def _gateway(
        self, region: str, method: str, path: str, body: Mapping[str, Any] | None = None, seconds: float = ANSWER
    ) -> Any:
        known = self._facts()
        known.topology.region(region)
        at = known.address(control_node_port(known.topology, region))
        connection = HTTPConnection(at.host, at.port, timeout=seconds)
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

    def kubectl(self, *arguments: str, seconds: float = ANSWER) -> str:
        """What kubectl, on this cluster and with no setting of the user's, prints. Raises `ClusterError`."""
        ours = ("--kubeconfig", str(self._files / "kubeconfig"), "--context", f"kind-{self.cluster}")
        return _output(["kubectl", *arguments], seconds, ours)

    def _docker(self, *arguments: str, seconds: float = 60) -> str:
        return _output(["docker", *arguments], seconds)

    def _script(self, name: str, arguments: Sequence[str], seconds: float, progress: Progress) -> None:
        """Run one of ``cluster/``; its lines are the progress, its errors ours. Whatever happens, it has ended then."""
        script = SCRIPTS / name
        if not script.exists():
            raise ClusterError(f"{script} is missing", "The kind backend needs the repository: clone it, `make kind`.")
        deadline = time.monotonic() + seconds
        env = {key: value for key, value in os.environ.items() if key not in BEFORE_BASH}
        last = ""
        with NamedTemporaryFile("w+") as errors:
            # A session of its own: Ctrl-C comes to this process alone, which tells the script once
            process = subprocess.Popen(
                [script, *arguments],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
                env=env,
                start_new_session=True,
            )
            try:
                assert process.stdout
                for line in _lines(process.stdout, deadline):
                    last = line.strip()
                    progress(last)
                process.wait(max(deadline - time.monotonic(), 1))
            except (TimeoutError, subprocess.TimeoutExpired):
                raise ClusterError(
                    f"cluster/{name} did not end within {seconds:g} s{f'; it was at: {last}' if last else ''}",
                    "Run it again: it goes on where it was, or begins anew.",
                ) from None
            finally:
                _end(process)
            if process.returncode:
                errors.seek(0)
                what = errors.read().strip().removeprefix("error: ")
                raise ClusterError(what or f"cluster/{name} failed with exit code {process.returncode}")


class _Known:
    """What stays as long as the cluster: its topology, its passwords, and the loopback port of each node port.

    ``hosts``: the Kubernetes node of each region, once they are asked for.
    """

    def __init__(self, topology: Topology, secret: Mapping[str, str], ports: Mapping[int, int]) -> None:
        self.topology, self.secret, self._ports = topology, secret, ports
        self.hosts: dict[str, str] = {}

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


def _is(found: Json, kind: str, name: str) -> bool:
    return bool(found["kind"] == kind and found["metadata"]["name"] == name)


def _machine_names(cluster: str, regions: int) -> list[str]:
    """The containers of a whole cluster, as kind names them."""
    return [f"{cluster}-control-plane", *(f"{cluster}-worker{n if n > 1 else ''}" for n in range(1, regions + 1))]


def _regions(nodes: Sequence[Json]) -> dict[str, str]:
    """Kubernetes node to region."""
    labels = {each["metadata"]["name"]: each["metadata"]["labels"].get(REGION_LABEL) for each in nodes}
    return {name: region for name, region in labels.items() if region}


def _away(nodes: Sequence[Json], machines: Mapping[str, str]) -> dict[str, str]:
    """Regions whose machine is away, and a word why. Kubernetes learns of it after 40 s, the engine knows at once."""
    ready = {each["metadata"]["name"] for each in nodes if _is_ready(each)}
    away = {}
    for name, region in _regions(nodes).items():
        if (state := machines.get(name, "gone")) != "running":
            away[region] = f"its machine {name} is {state}"
        elif name not in ready:
            away[region] = f"Kubernetes does not hear of its machine {name}"
    return away


def _remedy(cluster: str, topology: Topology, machines: Mapping[str, str]) -> str:
    gone = [name for name in _machine_names(cluster, len(topology.regions)) if name not in machines]
    paused = [name for name, state in machines.items() if state == "paused"]
    if gone:
        return f"{', '.join(gone)} is lost with its data: `cluster/down.sh`, then `pghc up --backend kind`."
    if paused:
        return f"`docker unpause {' '.join(paused)}` lets go on what was paused."
    return "`pghc up --backend kind` starts again what is missing."


def _is_ready(found: Json) -> bool:
    return any(each["type"] == "Ready" and each["status"] == "True" for each in found["status"].get("conditions", []))


def _until(condition: Callable[[], bool], what: str, node: str, remedy: str = "") -> None:
    deadline = time.monotonic() + RECOVERY
    while not condition():
        if time.monotonic() > deadline:
            raise ClusterError(f"{what} within {RECOVERY:g} s", remedy, node=node)
        time.sleep(0.3)


def _cache() -> Path:
    """Where ``cluster/`` keeps what it makes; the same place in ``cluster/common.sh``."""
    if given := os.environ.get("PGHC_CACHE"):
        return Path(given)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "pghc"


def environment() -> dict[str, str]:
    """Of docker and kubectl, which may be where the node image was built."""
    found = {name: os.environ[name] for name in MEANT if name in os.environ}
    path = os.pathsep.join([found.get("PATH", os.defpath), str(_cache() / "node-image/bin")])
    return found | {"PATH": path, "LC_ALL": "C"}


def _output(command: list[str], seconds: float, options: Sequence[str] = ()) -> str:
    """Raises `ClusterError` with what the command said. ``options``: more of it, not worth repeating to anybody."""
    said = " ".join(command[:1] + [word for word in command[1:] if not word.startswith("-")][:3])
    env = environment()
    program = shutil.which(command[0], path=env["PATH"])
    if program is None:
        raise ClusterError(f"{command[0]} is not installed", "cluster/up.sh says how to get it.")
    process = subprocess.Popen(
        [program, *options, *command[1:]],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=env,
        start_new_session=True,  # some kubectl is a program that starts another, and both are to end
    )
    try:
        output, errors = process.communicate(timeout=seconds)
    except BaseException as error:
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
        if isinstance(error, subprocess.TimeoutExpired):
            raise ClusterError(f"{said} did not answer within {seconds:g} s") from error
        raise
    if process.returncode:
        raise ClusterError(f"{said}: {' '.join(errors.split())}")
    return output


def _lines(stream: IO[str], deadline: float) -> Iterator[str]:
    """Each line when it comes. Raises `TimeoutError` when none comes, and the stream does not end, by the deadline."""
    arrived: Queue[str | None] = Queue()

    def read() -> None:
        with suppress(ValueError):  # closed
            for line in stream:
                arrived.put(line)
        arrived.put(None)

    Thread(target=read, daemon=True).start()
    while True:
        try:
            line = arrived.get(timeout=max(deadline - time.monotonic(), 0.01))
        except Empty:
            raise TimeoutError from None
        if line is None:
            return
        yield line


def _end(process: subprocess.Popen[str]) -> None:
    """End a script that still runs, with all of its session: politely, for it tidies up, and then not."""
    if process.poll() is not None:
        return
    os.killpg(process.pid, signal.SIGTERM)
    try:
        process.wait(ENDING)
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def _toml(topology: Topology) -> str:
    """The topology as the file that ``cluster/up.sh --topology`` reads."""
    regions = "".join(
        "[[regions]]\n" + "".join(f"{key} = {json.dumps(value)}\n" for key, value in vars(region).items()) + "\n"
        for region in topology.regions
    )
    delays = "".join(f'"{a} -> {b}" = {delay:g}\n' for (a, b), delay in topology.delays_ms.items())
    return f"{regions}[delays_ms]\n{delays}"
