"""The servers of an embedded cluster: their files, how each is started, and when it is ready."""

from __future__ import annotations

import asyncio
import json
import os
import random
import shutil
import signal
import socket
import sys
from collections.abc import Collection, Coroutine, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import psycopg

from pghc.cluster import bootstrap, losses, settings
from pghc.cluster.local.directory import Cluster
from pghc.cluster.local.fetch import Tools
from pghc.cluster.local.processes import Command, Process, Processes, forget_shared_memory
from pghc.cluster.probes import ask_api, ask_zookeeper
from pghc.cluster.settings import SERVICES, ZooKeeperAddresses, first_service
from pghc.cluster.surroundings import environment, python_environment
from pghc.cluster.wan import Wan
from pghc.errors import ClusterError
from pghc.store import complete
from pghc.topology import Address, Node, Topology, View

#: Below the ephemeral range, so that no outgoing connection takes a port between its choice and its use.
PORTS = range(12_000, 32_000)

API_MODULE = "pghc.api"

#: Seconds until a started server must answer; and until one that says nothing at all counts as hanging.
PATIENCE = 60.0
SILENCE = 10.0

PURGE = "If its data is damaged: `pghc down --purge` deletes the data of the cluster, `pghc up` makes a new one."

Ports = Mapping[str, Mapping[str, int]]


class PortTakenError(ClusterError):
    """Another program took the port between its choice and its use, or while the server was down."""

    def __init__(self, node: Node, port: int) -> None:
        super().__init__(
            f"{node.name} needs port {port}, which another program has taken",
            f"End that program (`ss -ltnp sport = {port}` shows it), or `pghc down` and `pghc up` for new ports.",
            node=node.name,
        )


def nodes_to_run(topology: Topology) -> list[Node]:
    """All nodes; without the packages of the optional group ``api``, which the demo does not need, no API nodes."""
    possible = all(find_spec(package) for package in ("fastapi", "httptools", "prometheus_client", "uvicorn"))
    return [node for node in topology.nodes if possible or node.role != "api"]


def choose_ports(nodes: Sequence[Node]) -> dict[str, dict[str, int]]:
    """A free port for each service of each node. Raises `ClusterError`."""
    wanted = [(node.name, service) for node in nodes for service in SERVICES[node.role]]
    free: dict[str, dict[str, int]] = {node.name: {} for node in nodes}
    for port in random.sample(PORTS, len(PORTS)):
        if not wanted:
            return free
        if is_free(port):
            node, service = wanted.pop()
            free[node][service] = port
    raise ClusterError(f"no {len(wanted)} free ports from {PORTS.start} to {PORTS.stop}")


def is_free(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as the servers do
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True


class Deployment:
    """What is to run, and where."""

    def __init__(self, cluster: Cluster, tools: Tools, processes: Processes, logs: Path) -> None:
        self.topology = cluster.topology
        self.data = cluster.data
        self._cluster, self._tools, self._processes, self._logs = cluster, tools, processes, logs
        first = {region.name: region.primary for region in cluster.topology.regions}
        self.primaries: dict[str, str] = first | dict(cluster.primaries)
        self._ids = settings.zookeeper_ids(cluster.topology)
        self.ports: Ports = {}
        self.nodes = nodes_to_run(cluster.topology)

    async def listen(self, wan: Wan) -> None:
        """Give every service its port, and its listeners in the other regions."""
        self.ports = choose_ports(self.topology.nodes)
        for node in self.topology.nodes:
            for service in SERVICES[node.role]:
                for source in self.topology.names:
                    if source != node.region:
                        await wan.listen(source, node.name, service, self._direct(node.name, service))

    # Commands

    def preload(self) -> None:
        """Import what several nodes will run."""
        if any(node.role == "api" for node in self.nodes):
            self._processes.preload(API_MODULE)

    def command(self, node: Node) -> Command:
        """How to start that node."""
        if node.role == "api":  # as ourselves: another user may not reach our packages
            return Command([sys.executable, "-m", API_MODULE, self._orders(node)], self.data, python_environment())
        return self._zookeeper(node) if node.role == "zookeeper" else self._postgres(node.region, self.data / node.name)

    def _postgres(self, region: str, directory: Path) -> Command:
        env = {
            "PGSERVICEFILE": str(self._services(region)),
            "PGPASSFILE": str(self._passwords),
            "LC_ALL": "C",
            "PATH": os.defpath,
        }
        return Command(
            [self._tools.postgres / "postgres", "-D", directory],
            self.data,
            env,
            self._tools.uid,
            stop=signal.SIGINT,  # "fast": ends sessions, writes a checkpoint
        )

    def _zookeeper(self, node: Node) -> Command:
        directory = self.data / node.name  # it works there: no setting of it holds the directory's name
        classpath = os.pathsep.join(map(str, self._tools.classpath))
        hasty = () if self._cluster.durable else settings.JVM_NOT_DURABLE
        options = [*settings.JVM, *hasty, *settings.JVM_REMEMBERS, "-cp", classpath]
        if self._tools.classes:  # at the address that it was made for, else its pages are not shared
            archive = f"-XX:SharedArchiveFile={self._tools.classes}"
            options += [archive, "-XX:+UnlockDiagnosticVMOptions", "-XX:ArchiveRelocationMode=0"]
        argv = [str(self._tools.java), *options, settings.ZOOKEEPER_MAIN, "zoo.cfg"]
        return Command(argv, directory, {"PATH": os.defpath, **settings.JVM_ENVIRONMENT}, self._tools.uid)

    # Files

    @property
    def _passwords(self) -> Path:
        return self.data / "passwords"

    def _services(self, region: str) -> Path:
        return self.data / f"{region}.pg_service.conf"

    def _orders(self, node: Node) -> Path:
        return self.data / f"{node.name}.json"

    def _direct(self, node: str, service: str) -> Address:
        return Address("127.0.0.1", self.ports[node][service])

    def view(self, wan: Wan, region: str) -> dict[str, Address]:
        """Node name to the address that clients of ``region`` dial."""
        return {node.name: self._seen(wan, region, node.name, first_service(node.role)) for node in self.topology.nodes}

    def _seen(self, wan: Wan, region: str, node: str, service: str) -> Address:
        if self.topology.node(node).region == region:
            return self._direct(node, service)
        return wan.address(region, node, service)

    def delete_data(self) -> None:
        if self.data.exists():
            shutil.rmtree(self.data)

    def make_data_directory(self) -> None:
        """Empty, and the servers' own."""
        self.delete_data()
        self.data.mkdir(mode=0o700)
        self._own(self.data)
        for node in self.nodes:
            if node.role == "zookeeper":
                self._make_zookeeper(node.name)
                self._write(self.data / node.name / "initialize", "")

    def _make_zookeeper(self, name: str) -> None:
        (self.data / name).mkdir(mode=0o700)
        self._own(self.data / name)

    def configure(self, wan: Wan) -> None:
        """Write every file that a server reads when it starts. Ports are new with each start of the cluster."""
        self._write(self._passwords, settings.password_file(self._cluster.replicator_password))
        for region in self.topology.regions:

            def seen(node: str, service: str, region: str = region.name) -> Address:
                return self._seen(wan, region, node, service)

            self.configure_services(wan, region.name)
            zookeepers = {
                each.name: ZooKeeperAddresses(
                    *(seen(each.zookeeper, service) for service in ("peer", "election", "client"))
                )
                for each in self.topology.regions
            }
            directory = self.data / region.zookeeper
            if not directory.exists():  # without "initialize": see JVM_REMEMBERS
                self._make_zookeeper(region.zookeeper)
            self._write(directory / "zoo.cfg", settings.zoo_cfg(self.topology, "./.", zookeepers))
            self._write(directory / "myid", f"{self._ids[region.name]}\n")
        for node in self.nodes:
            if node.role == "api":
                addresses, who = self.view(wan, node.region), self._cluster.credentials
                view = View(node.region, self.topology, addresses, who, self.primaries)
                at = self._direct(node.name, "http")
                self._write(self._orders(node), json.dumps({"view": view.to_dict(), "host": at.host, "port": at.port}))

    def configure_services(self, wan: Wan, region: str) -> None:
        """Where the region's servers dial each region's primary."""
        primaries = {
            each.primary: self._seen(wan, region, self.primaries[each.name], "postgres")
            for each in self.topology.regions
        }
        self._write(self._services(region), settings.service_file(primaries))

    def is_primary(self, node: Node) -> bool:
        return node.role in ("primary", "replica") and node.name == self.primaries[node.region]

    def lack(self, node: Node) -> str:
        """Why a database cannot start; empty: it can. A replica has a mark, which Postgres takes away by promotion."""
        directory = self.data / node.name
        if not losses.is_database(node):
            return ""
        if not (directory / "global/pg_control").exists():
            return losses.GONE
        if not self.is_primary(node) and not (directory / "standby.signal").exists():
            return losses.FORMER
        return ""

    async def copy(self, node: Node, source: str, *, primary: bool) -> None:
        """A base backup of region ``source``'s primary as the data of ``node``; as a primary it takes nobody's rows.

        It is made beside and moved when it is whole: half a copy is none.
        """
        directory = self.data / f"{node.name}.new"
        await asyncio.to_thread(self.lose, node)
        program = str(self._tools.postgres / "pg_basebackup")
        service = f"service={self.topology.region(source).primary}"
        options = ["--wal-method=stream", "--checkpoint=fast", *([] if self._cluster.durable else ["--no-sync"])]
        argv = [program, "-D", str(directory), "-d", service, *options]
        environment = self._postgres(node.region, directory).env
        await self._run(argv, self._logs / f"{node.name}.log", f"copying data to {node.name}", environment)
        self._write(directory / "postgresql.auto.conf", "max_logical_replication_workers = 0\n" if primary else "")
        if not primary:
            self._write(directory / "standby.signal", "")
        self.configure_postgres(node, directory)
        directory.rename(self.data / node.name)

    def take_rows(self, node: Node) -> None:
        """From its next start on a primary that was made by `copy` takes the other regions' rows."""
        if node.role in ("primary", "replica"):
            self._write(self.data / node.name / "postgresql.auto.conf", "")

    def lose(self, node: Node) -> None:
        """Delete its data."""
        forget_shared_memory(self.data / node.name)
        for name in (node.name, f"{node.name}.new"):
            with suppress(FileNotFoundError):
                shutil.rmtree(self.data / name)

    def configure_postgres(self, node: Node, directory: Path | None = None) -> None:
        directory = directory or self.data / node.name
        conf = settings.postgres_conf(
            replace(node, role="primary" if self.is_primary(node) else "replica"),
            self.topology,
            version=self._tools.postgres_version,
            port=self.ports[node.name]["postgres"],
            durable=self._cluster.durable,
        )
        self._write(directory / "postgresql.conf", conf)
        self._write(directory / "pg_hba.conf", settings.pg_hba())
        self._forget_old_process(directory)

    def _forget_old_process(self, directory: Path) -> None:
        """After a crash of the machine the process id in ``postmaster.pid`` may be that of another server of ours."""
        with suppress(OSError, ValueError, IndexError):
            lock = directory / "postmaster.pid"
            pid = int(lock.read_text().split()[0])
            command = Path(f"/proc/{pid}/cmdline")
            if command.exists() and os.fsencode(directory) not in command.read_bytes():
                lock.unlink()

    def _write(self, path: Path, text: str) -> None:
        with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as file:
            file.write(text)
        self._own(path)

    def _own(self, path: Path) -> None:
        if self._tools.uid is not None:
            os.chown(path, self._tools.uid, self._tools.uid)

    # The first start

    async def make_postgres(self) -> None:
        """The data directories of all Postgres servers: one is made, the others are copies of it.

        A copy of a stopped server is a base for a replica as good as pg_basebackup's, and faster to get.
        """
        template = self.data / "template"
        log = self._logs / "template.log"
        nodes = [node for node in self.nodes if node.role in ("primary", "replica")]
        password = self.data / "initdb-password"
        self._write(password, self._cluster.credentials.admin_password)
        try:
            program = str(self._tools.postgres / "initdb")
            await self._run([program, "-D", str(template), *settings.INITDB, "--pwfile", str(password)], log, "initdb")
        finally:
            password.unlink()
        first = nodes[0]
        self.configure_postgres(first, template)
        server = self._processes.start(self._postgres(first.region, template), log)
        try:
            await self.wait_for_postgres(first, server, database="postgres")
            await self._fill(first)
        finally:
            await self._processes.stop([server])
        await together(
            self._run(["cp", "-Rp", template, self.data / node.name], log, f"copying the data of {node.name}")
            for node in nodes[1:]
        )
        template.rename(self.data / first.name)
        for node in nodes:
            if not self.is_primary(node):
                self._write(self.data / node.name / "standby.signal", "")
        if self._cluster.durable:
            await asyncio.to_thread(os.sync)

    async def _fill(self, node: Node) -> None:
        passwords = self._cluster.credentials.password, self._cluster.replicator_password
        async with self.connection(node, database="postgres") as connection:
            await bootstrap.make_database(connection, *passwords)
        async with self.connection(node) as connection:
            await bootstrap.make_schema(connection)

    async def make_slots(self) -> None:
        names = self.topology.names
        await together(self._on_primary(name, settings.slots(self.topology, name)) for name in names)

    async def make_mesh(self) -> None:
        names = self.topology.names
        await together(self._on_primary(n, [each]) for n in names for each in settings.subscriptions(self.topology, n))

    async def _on_primary(self, region: str, statements: Sequence[str]) -> None:
        node = self.topology.node(self.primaries[region])
        try:
            async with self.connection(node) as connection, asyncio.timeout(PATIENCE):
                await bootstrap.make(connection, statements)
        except (psycopg.Error, TimeoutError) as error:
            raise ClusterError(f"{node.name}: {str(error) or 'no answer'}", node=node.name) from error

    async def _run(
        self, argv: Sequence[str | Path], log: Path, what: str, more: Mapping[str, str] | None = None
    ) -> None:
        env = environment() | {"LC_ALL": "C"} | dict(more or {})
        try:
            process = await self._processes.run(Command(argv, self.data, env, self._tools.uid), log, PATIENCE)
        except TimeoutError:
            raise ClusterError(f"{what} did not end within {PATIENCE:g} s", "Is the disk very slow?") from None
        if process.exit_code:
            said = process.written()
            raise ClusterError(f"{what} failed; the end of its log:\n{tail(said)}", remedy(said))

    # Readiness

    @asynccontextmanager
    async def connection(self, node: Node, database: str = settings.DATABASE) -> Any:
        """A superuser's connection to a node, direct."""
        here = {node.name: self._direct(node.name, "postgres")}
        admin = View(node.region, self.topology, here, self._cluster.credentials).conninfo(node.name, admin=True)
        arguments = complete(admin | {"dbname": database})
        connection = await psycopg.AsyncConnection.connect(**arguments, autocommit=True)
        async with connection:
            yield connection

    async def answers(self, node: Node) -> bool:
        """Whether it says anything within `SILENCE` seconds, as one does that has no quorum or is still starting."""
        with suppress(TimeoutError):
            async with asyncio.timeout(SILENCE):
                while not await self._says_anything(node):
                    await asyncio.sleep(0.2)
                return True
        return False

    async def _says_anything(self, node: Node) -> bool:
        at = self._direct(node.name, first_service(node.role))
        try:
            match node.role:
                case "zookeeper":
                    return bool(await ask_zookeeper(at, "srvr"))
                case "api":
                    return bool(await ask_api(at))
            async with self.connection(node):
                return True
        except psycopg.OperationalError as error:
            return "starting up" in str(error) or "shutting down" in str(error)
        except (OSError, ValueError):
            return False

    async def wait_for_postgres(self, node: Node, process: Process, database: str = settings.DATABASE) -> None:
        """Until it answers queries. Raises `ClusterError` with the end of its log."""

        async def answers() -> bool:
            try:
                async with asyncio.timeout(5), self.connection(node, database) as connection:
                    await connection.execute("select 1")
            except (psycopg.Error, TimeoutError):
                return False
            return True

        await self._wait(node, process, answers, "does not accept connections")

    async def wait_for_zookeeper(self, node: Node, process: Process, *, quorum: bool = True) -> None:
        """Until it leads or follows a quorum; without ``quorum`` until it looks for one."""

        async def answers() -> bool:
            with suppress(OSError, TimeoutError):
                async with asyncio.timeout(2):
                    answer = await ask_zookeeper(self._direct(node.name, "client"), "srvr")
                    return "Mode: " in answer or (not quorum and bool(answer))
            return False

        await self._wait(node, process, answers, "has not joined a quorum" if quorum else "does not answer")

    async def wait_for_api(self, node: Node, process: Process) -> None:
        """Until it answers, and can read some server of its region."""

        async def answers() -> bool:
            with suppress(OSError, ValueError, TimeoutError):
                async with asyncio.timeout(2):
                    return bool((await ask_api(self._direct(node.name, "http")))["reads"])
            return False

        await self._wait(node, process, answers, "is not ready")

    async def _wait(self, node: Node, process: Process, answers: Any, missing: str) -> None:
        loop = asyncio.get_running_loop()
        deadline, pause = loop.time() + PATIENCE, 0.02
        while not await answers():
            log = process.written()
            port = next((p for p in self.ports[node.name].values() if _says_taken(log, p)), None)
            if port:
                raise PortTakenError(node, port)
            if not process.running:
                raise ClusterError(
                    f"{node.name} did not start (exit code {process.exit_code}); the end of its log:\n{tail(log)}",
                    remedy(log),
                    node=node.name,
                )
            if loop.time() > deadline:
                raise ClusterError(
                    f"{node.name} {missing} after {PATIENCE:g} s; the end of its log:\n{tail(log)}",
                    "Is a link cut, or another server down? `pghc status` shows it.",
                    node=node.name,
                )
            await asyncio.sleep(pause)
            pause = min(1.5 * pause, 0.2)  # asking takes time from those that start

    async def wait_for_streams(self, region: str, running: Collection[str]) -> None:
        """Until every replica and every other primary reads this region's primary, of those that are running."""
        node = self.topology.node(self.primaries[region])
        if node.name not in running:
            return
        readers = {*self.topology.region(region).databases, *self.primaries.values()} - {node.name}
        expected = len(readers & {*running})
        async with self.connection(node) as connection:
            deadline = asyncio.get_running_loop().time() + PATIENCE
            while True:
                if (streams := await bootstrap.streams(connection)) >= expected:
                    return
                if asyncio.get_running_loop().time() > deadline:
                    raise ClusterError(
                        f"{node.name}: {streams} of {expected} readers of its log came within {PATIENCE:g} s",
                        "The servers' logs say why.",
                        node=node.name,
                    )
                await asyncio.sleep(0.05)


async def together(coroutines: Iterable[Coroutine[Any, Any, None]]) -> None:
    """Run all at once; the first that fails ends the others and is raised."""
    try:
        async with asyncio.TaskGroup() as tasks:
            for each in coroutines:
                tasks.create_task(each)
    except BaseExceptionGroup as failures:
        raise failures.exceptions[0] from None


def _says_taken(log: str, port: int) -> bool:
    return str(port) in log and any(
        sign in log for sign in ("Address already in use", "could not bind", "BindException")
    )


def tail(log: str, lines: int = 12) -> str:
    return "\n".join(f"    {line}" for line in log.splitlines()[-lines:])


def remedy(log: str) -> str:
    """What the end of a log suggests to do."""
    if "No space left on device" in log:
        return "The disk is full. Free some space, or choose another --dir."
    return PURGE
