"""Real servers as child processes on loopback: the default backend. No root, no container engine, no account.

This is the asker's side; a supervisor process owns the servers (see `pghc.cluster.local.supervisor`).
"""

from __future__ import annotations

import json
import os
import select
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil

from pghc import errors
from pghc import topology as topologies
from pghc.cluster import NodeStatus, Progress, Status, losses, replacement, surroundings
from pghc.cluster.local import fetch, processes
from pghc.cluster.local.deployment import nodes_to_run, tail
from pghc.cluster.local.directory import Cluster, ClusterDirectory, is_alive
from pghc.cluster.probes import probe
from pghc.cluster.wan import LinkState, LinkStatus
from pghc.errors import ClusterError, NotRunning, PghcError
from pghc.topology import Address, Node, Topology, View

#: Seconds: the longest silence of a supervisor that is at work, and of one that is asked a question.
START, ANSWER = 150.0, 30.0
#: Seconds until a server that does not answer counts as unreachable.
PROBE = 4
#: Bytes on disk that a new cluster wants for each Postgres server: 37 MB for a start, then its log.
DISK_PER_SERVER = 64 << 20


def quiet(_: str) -> None:
    """Say nothing of the progress."""


def make(directory: Path, topology: Topology | None) -> Embedded:
    return Embedded(directory, topology)


class Embedded:
    """A cluster in ``directory``. Can kill and pause its servers, and change its links.

    ``topology`` is for a cluster yet to be made; one that exists keeps its regions, and takes new delays when stopped.
    ``owner``: the cluster that `up` starts ends when this process does. ``durable``: its servers wait for the disk
    from the next start on; None: as before, a new one's do not.
    """

    name = "embedded"

    def __init__(
        self,
        directory: str | Path,
        topology: Topology | None = None,
        *,
        owner: bool = False,
        durable: bool | None = None,
    ) -> None:
        self.durable = durable
        self._files = ClusterDirectory(surroundings.place(directory))
        self._wanted = topology
        self._owner = owner
        self._leash: socket.socket | None = None

    @property
    def directory(self) -> Path:
        return self._files.directory

    @property
    def topology(self) -> Topology:
        """That of the cluster; before it is made, the one it will get."""
        cluster = self._files.cluster()
        return cluster.topology if cluster and cluster.complete else self._wanted or topologies.load()

    # Backend

    def up(self, progress: Progress = quiet) -> None:
        """Start the cluster, or what is missing of it, and heal its links. Raises `ClusterError`."""
        supervisor = self._files.supervisor()
        if running := supervisor is not None:
            if self._wanted and self._wanted != self.topology:
                what = f"the cluster in {self.directory} runs with another topology"
                raise ClusterError(what, "`pghc down` first, or another --dir.")
            cluster = self._files.cluster()
            if self.durable is not None and cluster and cluster.durable != self.durable:
                what = f"the cluster in {self.directory} runs {'without' if self.durable else 'with'} durability"
                raise ClusterError(what, "`pghc down` first: it is chosen when the servers start.")
        else:
            supervisor = self._start_supervisor(progress)
        with self._asked(supervisor, {"op": "up", "owner": self._owner}) as (answers, connection):
            try:
                _result(answers, progress)
            except ClusterError:
                if not running:  # it ends by itself, with all that it has started
                    self._has_ended(supervisor, 20)
                raise
            if self._owner and self._leash is None:  # the one that started it: to let go of that ends the cluster
                self._leash = connection.dup()
        replacement.restore(self, progress)
        self._ask("streams", START)

    def down(self, *, purge: bool = False) -> None:
        """Stop everything; ``purge``: delete its data, too. Raises `ClusterError`."""
        if supervisor := self._files.supervisor():
            with suppress(ClusterError):
                self._ask("down")
            self._wait_for_end(supervisor)
        if self._leash:
            self._leash.close()
            self._leash = None
        if purge:
            self._files.purge()

    def status(self) -> Status:
        """Every server and link as it is now."""
        supervisor, cluster = self._files.supervisor(), self._files.cluster()
        topology = self.topology
        nodes = {node.name: node for node in nodes_to_run(topology)}
        if supervisor is None or cluster is None or not supervisor["views"]:
            stopped = [NodeStatus(node.name, node.region, node.role, "stopped", False) for node in nodes.values()]
            return Status(self.name, str(self.directory), False, stopped, [])
        known = self._ask("nodes")
        with ThreadPoolExecutor(len(nodes)) as pool:
            parts = [losses.in_its_part(topology.node(each["name"]), each["primary"]) for each in known]
            statuses = list(pool.map(self._node_status, parts, known))
        remedies = [each["remedy"] for each in known if each["lack"]]
        remedy = {"remedy": losses.summary(remedies)} if remedies else {}
        own = sum(processes.memory(supervisor[each], tree=False) for each in ("pid", "guard"))
        return Status(
            self.name,
            str(self.directory),
            True,
            sorted(statuses, key=lambda status: list(nodes).index(status.name)),
            self.links(),
            own + sum(status.memory for status in statuses),
            supervisor["up_seconds"],
            cluster.durable,
            **remedy,
        )

    def view(self, region: str) -> View:
        """What clients of that region see. Raises `NotRunning`, `BadInput`."""
        supervisor, cluster = self._files.supervisor(), self._files.cluster()
        if supervisor is None or cluster is None or not supervisor["views"]:
            raise self._not_running()
        name = cluster.topology.region(region).name
        addresses = {node: Address(*at) for node, at in supervisor["views"][name].items()}
        return View(name, cluster.topology, addresses, cluster.credentials, supervisor["primaries"])

    # CanKill, CanPause, CanPartition

    def kill(self, node: str) -> None:
        """kill -9 of the server and all its processes. Returns when they are gone."""
        self._ask("kill", node=node)

    def start(self, node: str) -> None:
        """Returns when it is accessible. A former primary gets its successor's data and becomes a replica."""
        if self.lacking().get(node) == losses.FORMER:
            self.rebuild(node)
        else:
            self._ask("start", START, node=node)
            self._rejoin(node)

    def pause(self, node: str) -> None:
        self._ask("pause", node=node)

    def resume(self, node: str) -> None:
        """Returns when it is accessible. A former primary gets its successor's data and becomes a replica."""
        self._ask("resume", START, node=node)
        if self.lacking().get(node) == losses.FORMER:
            self.rebuild(node)
        else:
            self._rejoin(node)

    def _rejoin(self, node: str) -> None:
        if node in (self.view(region).primary() for region in self.topology.names):
            with suppress(PghcError):  # it is back, which was asked; the rest is left for the next `up`
                replacement.rejoin(self)

    # CanReplace, and what `pghc.cluster.replacement` needs for it

    def lose(self, name: str) -> None:
        """kill -9, and the data is deleted."""
        for node in nodes_of(self.topology, name):
            self._ask("lose", node=node)

    def promote(self, region: str, to: str | None = None, progress: Progress = quiet) -> str:
        return replacement.promote(self, region, to, progress)

    def rebuild(self, name: str, progress: Progress = quiet) -> None:
        replacement.rebuild(self, name, progress)

    def lacking(self) -> dict[str, str]:
        lacking: dict[str, str] = self._ask("lacking")
        return lacking

    def retire(self, node: str) -> bool:
        return bool(self._ask("retire", node=node))

    def appoint(self, region: str, node: str) -> None:
        self._ask("appoint", region=region, node=node)

    def copy(self, node: str, source: str, *, primary: bool = False) -> None:
        self._ask("copy", START, node=node, source=source, primary=primary)

    def restart(self, node: str) -> None:
        self._ask("restart", START, node=node)

    def set_link(
        self, source: str, target: str, *, delay_ms: float | None = None, state: LinkState | None = None
    ) -> None:
        self._ask("set_link", source=source, target=target, delay_ms=delay_ms, state=state)

    def links(self) -> Sequence[LinkStatus]:
        return [LinkStatus(**link) for link in self._ask("links")]

    def heal_links(self) -> None:
        self._ask("heal_links")

    def log(self, node: str) -> Path:
        """The file that a server's log goes to."""
        return self._files.log(node)

    # The supervisor

    def _start_supervisor(self, progress: Progress) -> dict[str, Any]:
        surroundings.prepare()
        surroundings.check_limits()
        cluster = self._cluster_to_start()
        if self.durable is not None:
            cluster = replace(cluster, durable=self.durable)
        tools = fetch.find_tools(progress)
        self._files.make(cluster.data)
        if not cluster.complete:
            self._check_space(cluster)
        self._files.save(cluster)
        self._launch(tools)
        deadline = time.monotonic() + ANSWER
        while time.monotonic() < deadline:
            if supervisor := self._files.supervisor():
                return supervisor
            time.sleep(0.05)
        raise ClusterError(f"another process holds {self._files.lock}, but no supervisor answers there")

    def _launch(self, tools: fetch.Tools) -> None:
        """Start the supervisor, detached from this terminal; wait until it can be asked."""
        log = self._files.log("supervisor")
        with open(os.open(log, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o600), "ab+") as output:
            begin = output.seek(0, os.SEEK_END)
            child = subprocess.Popen(
                [sys.executable, "-m", "pghc.cluster.local.supervisor"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=output,
                start_new_session=True,
                cwd="/",
                env=surroundings.python_environment(),
            )
            assert child.stdin
            assert child.stdout
            try:
                with suppress(BrokenPipeError), child.stdin as orders:
                    text = json.dumps({"directory": str(self.directory), "tools": tools.to_json()})
                    orders.write(text.encode() + b"\n")
                with child.stdout as answer:
                    said = bool(select.select([answer], [], [], ANSWER)[0])
                    ready = answer.readline() if said else b""
            except BaseException:  # interrupted: nobody will ask it for anything
                child.terminate()
                child.wait(20)
                raise
            if not ready:
                child.terminate()
                child.wait(20)
                output.seek(begin)
                raise ClusterError(f"the supervisor did not start:\n{tail(output.read().decode(errors='replace'))}")
            child.returncode = 0  # it is to outlive us: no warning of that

    def _cluster_to_start(self) -> Cluster:
        cluster = self._files.cluster()
        if cluster is None or not cluster.complete:
            return self._files.found(self._wanted or topologies.load())
        if self._wanted is None or self._wanted == cluster.topology:
            return cluster
        if _shape(self._wanted) != _shape(cluster.topology):
            raise ClusterError(
                f"the cluster in {self.directory} was made for other regions, or with other numbers of replicas",
                "`pghc down --purge` deletes it; or choose another --dir.",
            )
        return replace(cluster, topology=self._wanted)

    def _check_space(self, cluster: Cluster) -> None:
        place = next(step for step in (cluster.data, *cluster.data.parents) if step.exists())
        needed = DISK_PER_SERVER * sum(1 for node in cluster.topology.nodes if node.role in ("primary", "replica"))
        free = shutil.disk_usage(place).free
        if free < needed:
            raise ClusterError(
                f"a new cluster needs {needed >> 20} MB of disk, {place} has {free >> 20} MB free",
                "Free some space, or choose another --dir.",
            )

    def _wait_for_end(self, supervisor: dict[str, Any]) -> None:
        """Of the supervisor, which ends its servers; by force if it does not obey."""
        for patience, act in ((20, psutil.Process.terminate), (10, psutil.Process.kill), (10, None)):
            if self._has_ended(supervisor, patience):
                return
            if act:
                with suppress(psutil.NoSuchProcess):
                    act(psutil.Process(supervisor["pid"]))
        raise ClusterError(f"the supervisor, process {supervisor['pid']}, does not end")

    def _has_ended(self, supervisor: dict[str, Any], patience: float) -> bool:
        """Whether it ends within ``patience`` seconds, and its guard after it."""
        deadline = time.monotonic() + patience
        while is_alive(supervisor["pid"], supervisor["created"]):
            if time.monotonic() > deadline:
                return False
            time.sleep(0.02)
        with suppress(psutil.Error):
            psutil.Process(supervisor["guard"]).wait(timeout=12)
        return True

    def _ask(self, operation: str, patience: float = ANSWER, **arguments: Any) -> Any:
        supervisor = self._files.supervisor()
        if supervisor is None:
            raise self._not_running()
        with self._asked(supervisor, {"op": operation, **arguments}, patience) as (answers, _):
            return _result(answers, quiet)

    @contextmanager
    def _asked(
        self, supervisor: dict[str, Any], request: dict[str, Any], patience: float = START
    ) -> Iterator[tuple[Iterator[bytes], socket.socket]]:
        try:
            with socket.create_connection(("127.0.0.1", supervisor["port"]), timeout=patience) as connection:
                connection.sendall(json.dumps({"key": supervisor["key"], **request}).encode() + b"\n")
                with connection.makefile("rb") as answers:
                    yield answers, connection
        except TimeoutError as error:
            raise ClusterError(
                f"the supervisor, process {supervisor['pid']}, gave no answer to {request['op']!r} for {patience:g} s",
                "`pghc down` ends it.",
            ) from error
        except OSError as error:
            raise ClusterError(f"the supervisor, process {supervisor['pid']}, is gone: {error}") from error

    def _not_running(self) -> NotRunning:
        return NotRunning(f"no cluster runs in {self.directory}", "Start it with `pghc up`.")

    # Status of one node

    def _node_status(self, node: Node, known: dict[str, Any]) -> NodeStatus:
        address = self.view(node.region).addresses[node.name]
        accessible, detail = False, ""
        if known["state"] == "running":
            accessible, detail = probe(node, self.view(node.region), PROBE)
        elif known["state"] == "stopped":
            detail = f"exit code {known['exit_code']}"
        if known["lack"]:
            detail = f"{known['lack']}: {known['remedy']}"
        return NodeStatus(
            node.name,
            node.region,
            node.role,
            known["state"] if known["state"] != "running" or accessible else "unreachable",
            accessible,
            address.port,
            known["pid"],
            processes.memory(known["pid"], tree=True) if known["pid"] else 0,
            detail,
            known["lack"],
        )


def nodes_of(topology: Topology, name: str) -> list[str]:
    """The servers that are meant by the name of one, or of a region. Raises `BadInput`."""
    if name not in topology.names:
        return [topology.node(name).name]
    return [node.name for node in nodes_to_run(topology) if node.region == name]


def _shape(topology: Topology) -> list[tuple[str, int]]:
    return [(region.name, region.replicas) for region in topology.regions]


def _result(answers: Iterator[bytes], progress: Progress) -> Any:
    """The result at the end of the answers, or the error."""
    for line in answers:
        answer = json.loads(line)
        if "progress" in answer:
            progress(answer["progress"])
        elif "error" in answer:
            error = answer["error"]
            kind: type[PghcError] = getattr(errors, error["kind"], ClusterError)
            raise kind(error["what"], error["remedy"], node=error["node"])
        else:
            return answer["result"]
    raise ClusterError("the supervisor ended before it had done what it was asked", "Its log says why.")

