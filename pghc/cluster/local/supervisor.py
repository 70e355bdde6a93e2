"""The one process behind a running cluster: it owns all servers, carries the WAN, and does what it is asked.

Started by `Embedded.up` with its orders on standard input; a line on standard output says that it can be asked: on a
loopback port, with a key, both in supervisor.json. A request is a line of JSON on a connection of its own, the answer
one line after any number of lines of progress. When the connection over which `up` was asked ends before the cluster is
up, or later where the asker wanted to be its owner, everything is stopped.

Servers that die stay dead until somebody asks for them: a laboratory must show what was broken.
"""

from __future__ import annotations

import asyncio
import errno
import fcntl
import hmac
import json
import os
import secrets
import signal
import sys
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import asdict, replace
from pathlib import Path
from typing import IO, Any

import psutil

from pghc import errors
from pghc.cluster import losses
from pghc.cluster.local import processes
from pghc.cluster.local.deployment import Deployment, PortTakenError, is_free, together
from pghc.cluster.local.directory import Cluster, ClusterDirectory
from pghc.cluster.local.fetch import Tools
from pghc.cluster.local.processes import Guard, Process, Processes
from pghc.cluster.surroundings import TOO_MANY
from pghc.cluster.wan import Wan
from pghc.errors import BadInput, ClusterError, PghcError
from pghc.topology import Node

Say = Callable[[str], None]

#: How often a start is tried when another program takes one of the chosen ports.
ATTEMPTS = 3
#: Seconds until somebody must have asked for the cluster, and those that an earlier one's guard may take to clear up.
ORDERS, CLEARING = 15.0, 15.0


class Supervisor:
    def __init__(self, files: ClusterDirectory, cluster: Cluster, tools: Tools, guard: Guard) -> None:
        self._files, self._cluster, self._tools, self._guard = files, cluster, tools, guard
        self._processes = Processes()
        self._servers: dict[str, Process] = {}
        self._deployment = Deployment(cluster, tools, self._processes, files.logs)
        self._wan: Wan | None = None
        self._key = secrets.token_urlsafe(32)
        self._port = 0
        self._up_seconds: float | None = None
        self._busy = asyncio.Lock()
        self._starting: asyncio.Task[Any] | None = None
        self._ending = asyncio.Event()
        self._operations: dict[str, Callable[..., Awaitable[Any]]] = {
            "up": self.up,
            "down": self.down,
            "nodes": self.nodes,
            "kill": self.kill,
            "start": self.start,
            "pause": self.pause,
            "resume": self.resume,
            "set_link": self.set_link,
            "heal_links": self.heal_links,
            "links": self.links,
            "lose": self.lose,
            "lacking": self.lacking,
            "retire": self.retire,
            "appoint": self.appoint,
            "copy": self.copy,
            "restart": self.restart,
            "streams": self.streams,
        }

    # The cluster

    async def up(self, say: Say) -> dict[str, Any]:
        async with self._busy:
            begin = time.monotonic()
            if self._wan is None:
                await self._cold_start(say)
                self._up_seconds = round(time.monotonic() - begin, 2)
                self._remember()
            else:
                await self._heal(say)
            return {"up_seconds": self._up_seconds}

    async def _cold_start(self, say: Say) -> None:
        for attempt in range(1, ATTEMPTS + 1):
            try:
                await self._try_cold_start(say)
            except PortTakenError:
                await self._stop_servers()
                if attempt == ATTEMPTS:
                    raise
                say("another program took a port; starting again with others")
            except BaseException:  # cancelled, too: nothing is left half done
                await self._stop_servers()
                if not self._cluster.complete:
                    self._deployment.delete_data()
                raise
            else:
                return

    async def _try_cold_start(self, say: Say) -> None:
        deployment = self._deployment
        wan = Wan(self._cluster.topology)
        self._wan = wan
        for source, target in self._cluster.topology.pairs:  # distance only delays the start
            wan.set_link(source, target, delay_ms=0)
        await deployment.listen(wan)
        new = not self._cluster.complete
        if new:
            deployment.make_data_directory()
        deployment.configure(wan)
        say("starting ZooKeeper" + ("; making the databases" if new else ""))
        first, *others = self._of_role("zookeeper")
        self._start(first)
        self._deployment.preload()
        if new:
            await deployment.make_postgres()
        # The first two to meet elect a leader, and the central region's shall be one of them: it looks for others now
        await deployment.wait_for_zookeeper(first, self._servers[first.name], quorum=False)
        for node in others:
            self._start(node)
        say("starting Postgres: primaries and replicas")
        for node in self._databases():
            deployment.configure_postgres(node)
        primaries = [node for node in self._databases() if deployment.is_primary(node)]
        for node in primaries:
            self._start(node)
        if new:
            await self._wait_for_nodes(primaries)
            await deployment.make_slots()
        for node in self._databases():
            if node not in primaries:
                self._start(node)
        self._launch("api")
        await self._wait_for("primary", "replica")
        if new:
            say("connecting the primaries with each other")
            await deployment.make_mesh()
        say("waiting for ZooKeeper's quorum and for replication")
        await self._wait_for("zookeeper")
        if new:
            await self._wait_for_streams()
        await self._wait_for("api")
        wan.heal_links()
        if new:
            self._cluster = replace(self._cluster, complete=True)
            self._files.save(self._cluster)

    async def _heal(self, say: Say) -> None:
        assert self._wan
        self._wan.heal_links()  # first: without links there is no quorum to wait for
        for node in self._deployment.nodes:
            if self._runs(node) and self._servers[node.name].paused:
                say(f"resuming {node.name}")
                processes.resume(self._servers[node.name])
        await together(self._end_if_it_hangs(node, say) for node in self._deployment.nodes)
        able = [node for node in self._deployment.nodes if not self._deployment.lack(node)]
        for node in able:
            if not self._runs(node):
                say(f"starting {node.name}")
                self._start(node)
        await self._wait_for("primary", "replica", "zookeeper", "api")

    async def streams(self, _: Say) -> None:
        """Wait until whoever runs reads what it has to read."""
        await self._wait_for_streams()

    async def _end_if_it_hangs(self, node: Node, say: Say) -> None:
        process = self._servers.get(node.name)
        if process and process.running and not await self._deployment.answers(node):
            say(f"{node.name} runs and does not answer: ending it")
            await processes.kill(process)

    async def down(self, _: Say) -> None:
        if self._starting:
            self._starting.cancel()
        self._ending.set()

    async def nodes(self, _: Say) -> list[dict[str, Any]]:
        """What is known here of each server: its process. Whether it answers is for the asker to try."""
        return [
            {
                "name": node.name,
                "pid": process.pid if process and process.running else None,
                "state": "stopped" if not self._runs(node) else "paused" if process and process.paused else "running",
                "exit_code": process.exit_code if process else None,
                "lack": self._deployment.lack(node),
                "primary": self._deployment.primaries[node.region],
                "remedy": self._remedy(node),
            }
            for node, process in ((node, self._servers.get(node.name)) for node in self._deployment.nodes)
        ]

    # Faults

    async def kill(self, _: Say, node: str) -> None:
        await processes.kill(self._server(node))

    async def start(self, _: Say, node: str) -> None:
        if not self._runs(self._cluster.topology.node(node)):
            self._start(self._cluster.topology.node(node))
        await self._wait_for_nodes([self._cluster.topology.node(node)])

    async def pause(self, _: Say, node: str) -> None:
        process = self._server(node)
        if not process.running:
            raise ClusterError(f"{node} cannot be paused: it does not run", node=node)
        processes.pause(process)

    async def resume(self, _: Say, node: str) -> None:
        process = self._server(node)
        if process.running:
            processes.resume(process)
            await self._wait_for_nodes([self._cluster.topology.node(node)])

    # Losses, and what replaces servers: the steps of pghc.cluster.replacement

    async def lose(self, _: Say, node: str) -> None:
        """Kill the server and delete its data."""
        if self._runs(self._cluster.topology.node(node)):
            await self.kill(_, node)
        await asyncio.to_thread(self._deployment.lose, self._cluster.topology.node(node))

    async def lacking(self, _: Say) -> dict[str, str]:
        found = {node.name: self._deployment.lack(node) for node in self._deployment.nodes}
        return {name: lack for name, lack in found.items() if lack} | {
            node.name: "it does not run" for node in self._deployment.nodes
            if node.role in ("zookeeper", "api") and not self._runs(node)
        }

    async def retire(self, _: Say, node: str) -> bool:
        process = self._servers.get(node)
        runs = bool(process and process.running and not process.paused)
        if process and runs:
            await self._processes.stop([process])
        return runs

    async def appoint(self, _: Say, region: str, node: str) -> None:
        deployment, wan = self._deployment, self._running_wan()
        former = deployment.primaries[region]
        if former != node:
            await self.retire(_, former)
            deployment.primaries[region] = node
            self._cluster = replace(self._cluster, primaries=dict(deployment.primaries))
            self._files.save(self._cluster)
            deployment.configure(wan)
            self._remember()

    async def copy(self, _: Say, node: str, source: str, primary: bool) -> None:
        await self._end(node)
        await self._deployment.copy(self._cluster.topology.node(node), source, primary=primary)
        await self.start(_, node)

    async def restart(self, _: Say, node: str) -> None:
        await self._end(node)
        self._deployment.take_rows(self._cluster.topology.node(node))
        await self.start(_, node)

    async def _end(self, node: str) -> None:
        process = self._servers.get(node)
        if process and process.paused:
            await self.kill(quiet, node)
        elif process and process.running:
            await self._processes.stop([process])

    async def set_link(self, _: Say, **change: Any) -> None:
        self._running_wan().set_link(**change)

    async def heal_links(self, _: Say) -> None:
        self._running_wan().heal_links()

    async def links(self, _: Say) -> list[dict[str, Any]]:
        return [asdict(link) for link in self._wan.links()] if self._wan else []

    # Servers

    def _running_wan(self) -> Wan:
        if self._wan is None:
            raise errors.NotRunning("the cluster is not up yet")
        return self._wan

    def _server(self, node: str) -> Process:
        self._cluster.topology.node(node)
        if node not in self._servers:
            raise BadInput(f"{node} is not started yet")
        return self._servers[node]

    def _of_role(self, role: str) -> list[Node]:
        """The central region's first."""
        central = self._cluster.topology.central
        nodes = [node for node in self._deployment.nodes if node.role == role]
        return sorted(nodes, key=lambda node: node.region != central)

    def _databases(self) -> list[Node]:
        """Those that can start; the central region's first."""
        nodes = self._of_role("primary") + self._of_role("replica")
        return [node for node in nodes if not self._deployment.lack(node)]

    def _remedy(self, node: Node) -> str:
        lacking = [each.name for each in self._deployment.nodes if self._deployment.lack(each)]
        return losses.remedy(self._cluster.topology, node, self._deployment.primaries[node.region], lacking)

    def _runs(self, node: Node) -> bool:
        return node.name in self._servers and self._servers[node.name].running

    def _launch(self, role: str) -> None:
        for node in self._of_role(role):
            self._start(node)

    def _start(self, node: Node) -> None:
        """Raises `ClusterError` at once when it lacks its data, or its port was taken while it was down."""
        if lack := self._deployment.lack(node):
            raise ClusterError(f"{node.name} cannot start: {lack}", self._remedy(node), node=node.name)
        for port in self._deployment.ports[node.name].values():
            if not is_free(port):
                raise PortTakenError(node, port)
        if node.role == "zookeeper" and not (self._deployment.data / node.name).exists():
            self._deployment.configure(self._running_wan())
        try:
            self._servers[node.name] = self._processes.start(self._deployment.command(node), self._files.log(node.name))
        except OSError as error:
            remedy = TOO_MANY if error.errno == errno.EAGAIN else ""
            raise ClusterError(f"{node.name} could not be started: {error}", remedy, node=node.name) from error

    async def _wait_for(self, *roles: str) -> None:
        """For those that have been started; an API node of a region without any database is not waited for."""
        read = {node.region for node in self._databases()}
        await self._wait_for_nodes(
            [
                node
                for node in self._deployment.nodes
                if node.role in roles and node.name in self._servers and not self._deployment.lack(node)
                and (node.role != "api" or node.region in read)
            ]
        )

    async def _wait_for_nodes(self, nodes: list[Node]) -> None:
        waits = []
        for node in nodes:
            deployment = self._deployment
            waiting = {"zookeeper": deployment.wait_for_zookeeper, "api": deployment.wait_for_api}
            wait = waiting.get(node.role, deployment.wait_for_postgres)
            waits.append(wait(node, self._servers[node.name]))
        await together(waits)

    async def _wait_for_streams(self) -> None:
        running = [node.name for node in self._deployment.nodes if self._runs(node)]
        names = self._cluster.topology.names
        await together(self._deployment.wait_for_streams(name, running) for name in names)

    async def _stop_servers(self) -> None:
        topology = self._cluster.topology
        clients = [process for name, process in self._servers.items() if topology.node(name).role == "api"]
        for processes_ in (clients, list(self._servers.values())):  # requests end while there are servers
            await self._processes.stop(processes_)
        self._servers.clear()
        if self._wan:
            self._wan.close()
            self._wan = None

    # Requests

    async def serve(self, ready: Callable[[dict[str, Any]], None]) -> None:
        """Until `down`, a signal, or the end of the owner."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            loop.add_signal_handler(number, self._ending.set)
        server = await asyncio.start_server(self._answer, "127.0.0.1", 0)
        self._port = server.sockets[0].getsockname()[1]
        self._remember()
        ready({"port": self._port})
        loop.call_later(ORDERS, lambda: None if self._wan or self._starting else self._ending.set())
        await self._ending.wait()
        if self._starting:
            self._starting.cancel()
            await asyncio.wait([self._starting], timeout=20)
        async with self._busy:
            await self._stop_servers()
        server.close()

    def _remember(self) -> None:
        views = {}
        if self._wan and self._up_seconds is not None:
            views = {
                name: {node: [at.host, at.port] for node, at in self._deployment.view(self._wan, name).items()}
                for name in self._cluster.topology.names
            }
        self._files.save_supervisor(
            {
                "pid": os.getpid(),
                "created": psutil.Process().create_time(),
                "guard": self._guard.pid,
                "port": self._port,
                "key": self._key,
                "up_seconds": self._up_seconds,
                "views": views,
                "primaries": self._deployment.primaries,
            }
        )

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        def send(**message: Any) -> None:
            writer.write(json.dumps(message).encode() + b"\n")

        # Cancelled: at the end, while an owner's connection is still open.
        with suppress(OSError, ValueError, KeyError, TimeoutError, asyncio.CancelledError):
            async with asyncio.timeout(5):
                request = json.loads(await reader.readline())
            if not hmac.compare_digest(str(request.pop("key", "")).encode(), self._key.encode()):
                return
            operation = self._operations[request.pop("op")]
            owner = request.pop("owner", False) and self._wan is None
            work = asyncio.create_task(_outcome(operation(lambda text: send(progress=text), **request)))
            gone = asyncio.create_task(reader.read())  # the asker says nothing more: when this ends, it has left
            if operation == self.up:
                await self._attend(work, gone)
            send(**await work)
            await writer.drain()
            if owner:
                await gone
                self._ending.set()
            gone.cancel()
        writer.close()

    async def _attend(self, work: asyncio.Task[dict[str, Any]], gone: asyncio.Task[bytes]) -> None:
        """Until `up` is done; if the cluster was not up before, it ends when its asker leaves or the start fails."""
        cold = self._wan is None
        self._starting = work
        await asyncio.wait([work, gone] if cold else [work], return_when=asyncio.FIRST_COMPLETED)
        if cold and (not work.done() or "error" in work.result()):
            self._ending.set()
        self._starting = None if work.done() else work


def quiet(_: str) -> None:
    """Say nothing."""


async def _outcome(operation: Awaitable[Any]) -> dict[str, Any]:
    """The answer to a request; ``error`` is what `embedded` raises on the other side."""
    try:
        return {"result": await operation}
    except PghcError as error:
        kind, what = type(error).__name__, error.what
        return {"error": {"kind": kind, "what": what, "remedy": error.remedy, "node": error.node}}
    except asyncio.CancelledError:
        return {"error": {"kind": "ClusterError", "what": "the start was broken off", "remedy": "", "node": None}}
    except OSError as error:
        what, remedy = str(error), "Free some space, or choose another --dir." if error.errno == errno.ENOSPC else ""
        return {"error": {"kind": "ClusterError", "what": what, "remedy": remedy, "node": None}}
    except Exception as error:  # the asker learns of it, whatever it is
        what = f"{type(error).__name__}: {error}"
        return {"error": {"kind": "ClusterError", "what": what, "remedy": "", "node": None}}


def main() -> None:
    orders = json.loads(sys.stdin.readline())
    files = ClusterDirectory(Path(orders["directory"]))
    with open(files.lock, "w") as lock:
        if not _hold(lock, files):
            _ready({})
            return
        os.umask(0o077)
        cluster = files.cluster()
        assert cluster, "Embedded.up has written it"
        processes.sweep(cluster.data)
        guard = Guard(cluster.data, lock)
        try:
            asyncio.run(_serve(files, cluster, Tools.from_json(orders["tools"]), guard))
        finally:
            files.forget_supervisor()
            guard.dismiss()


def _hold(lock: IO[str], files: ClusterDirectory) -> bool:
    """Whether this is the directory's supervisor. A dead one's guard holds the lock until all is swept."""
    deadline = time.monotonic() + CLEARING
    while time.monotonic() < deadline:
        with suppress(OSError):
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        if files.supervisor():
            return False
        time.sleep(0.05)
    return False


async def _serve(files: ClusterDirectory, cluster: Cluster, tools: Tools, guard: Guard) -> None:
    await Supervisor(files, cluster, tools, guard).serve(_ready)


def _ready(message: dict[str, Any]) -> None:
    """Tell who started us; then let go of its terminal."""
    sys.stdout.write(json.dumps(message) + "\n")
    sys.stdout.flush()
    with open(os.devnull, "w") as nowhere:
        os.dup2(nowhere.fileno(), sys.stdout.fileno())


if __name__ == "__main__":
    main()
