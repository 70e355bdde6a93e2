"""The directory of an embedded cluster: what is remembered about it, and where its servers keep their data."""

from __future__ import annotations

import hashlib
import json
import os
import secrets
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

from pghc import topology as topologies
from pghc.cluster.local.processes import forget_shared_memory
from pghc.errors import ClusterError
from pghc.topology import Credentials, Topology

FORMAT = 4
PURGE = "`pghc down --purge` deletes the cluster."


@dataclass(frozen=True)
class Cluster:
    """What stays as long as the data: written by the first `up`."""

    topology: Topology
    credentials: Credentials
    replicator_password: str = field(repr=False)
    data: Path
    complete: bool  # the first start came to its end
    primaries: Mapping[str, str] = field(default_factory=dict)  # region to its primary, where it is not the first one
    durable: bool = False  # what is acknowledged is on the disk, not only in the operating system's cache


class ClusterDirectory:
    """The directory and its files.

    cluster.json: topology and passwords (0600). supervisor.json: while the cluster runs, who its supervisor is, how to
    ask it, and where servers are dialled (0600). lock: held by the supervisor. logs/: one file a server, and the
    supervisor's. data/: the servers' own; elsewhere if they cannot reach it, for root's servers do not run as root.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory.absolute()
        self.lock = self.directory / "lock"
        self.logs = self.directory / "logs"
        self._cluster = self.directory / "cluster.json"
        self._supervisor = self.directory / "supervisor.json"

    def make(self, data: Path) -> None:
        """The directory itself, that of ``data``, and their parents; root's servers may pass, and see nothing."""
        try:
            for directory in (self.directory, data.parent):
                for step in reversed([directory, *directory.parents]):
                    if not step.exists():
                        step.mkdir()
                        step.chmod(0o711 if os.geteuid() == 0 else 0o700)  # whatever the user's mask is
            self.logs.mkdir(mode=0o700, exist_ok=True)
        except OSError as error:
            raise _failed("make", self.directory, error) from error

    def log(self, node: str) -> Path:
        return self.logs / f"{node}.log"

    # cluster.json

    def cluster(self) -> Cluster | None:
        """What is remembered; None: no cluster was made here yet. Raises `ClusterError`."""
        saved = _read(self._cluster)
        if saved is None:
            return None
        try:
            if saved["format"] != FORMAT:
                raise ClusterError(
                    f"{self.directory} was made by another version of pghc",
                    "`pghc down --purge` with that version, or another --dir.",
                )
            return Cluster(
                topologies.parse(saved["topology"], str(self._cluster)),
                Credentials(**saved["credentials"]),
                saved["replicator_password"],
                Path(saved["data"]),
                saved["complete"],
                saved.get("primaries", {}),
                saved.get("durable", False),
            )
        except (KeyError, TypeError) as error:
            raise ClusterError(f"{self._cluster} is damaged ({error!r})", PURGE) from error

    def found(self, topology: Topology) -> Cluster:
        """A new cluster, with new passwords."""
        return Cluster(
            topology,
            Credentials(
                password=secrets.token_urlsafe(24),
                admin_password=secrets.token_urlsafe(24),
                zookeeper_password=secrets.token_urlsafe(24),
            ),
            secrets.token_urlsafe(24),
            self._place_for_data(),
            complete=False,
        )

    def save(self, cluster: Cluster) -> None:
        _write(
            self._cluster,
            {
                "format": FORMAT,
                "topology": cluster.topology.to_dict(),
                "credentials": vars(cluster.credentials),
                "replicator_password": cluster.replicator_password,
                "data": str(cluster.data),
                "complete": cluster.complete,
                "primaries": dict(cluster.primaries),
                "durable": cluster.durable,
            },
        )

    def _place_for_data(self) -> Path:
        inside = self.directory / "data"
        if os.geteuid() != 0 or _passable_by_all(self.directory):
            return inside
        name = hashlib.sha256(str(self.directory).encode()).hexdigest()[:16]
        return Path("/var/lib/pghc") / f"data-{name}"

    def purge(self) -> None:
        """Delete all that is listed above, and the directory if nothing else is in it."""
        try:
            cluster = self.cluster()
        except ClusterError:  # damaged: what it says is not needed for this
            cluster = None
        try:
            for path in (cluster.data if cluster else self._place_for_data(), self.logs):
                for server in path.glob("*/postmaster.pid"):
                    forget_shared_memory(server.parent)
                if path.exists():
                    shutil.rmtree(path)
            for path in (self._supervisor, self._cluster, self.lock):
                path.unlink(missing_ok=True)
            if self.directory.exists() and not any(self.directory.iterdir()):
                self.directory.rmdir()
        except OSError as error:
            raise _failed("delete", Path(error.filename or self.directory), error) from error

    # supervisor.json

    def supervisor(self) -> dict[str, Any] | None:
        """What the running supervisor wrote; None: none runs."""
        saved = _read(self._supervisor)
        return saved if saved and is_alive(saved.get("pid", 0), saved.get("created", 0)) else None

    def save_supervisor(self, state: Mapping[str, Any]) -> None:
        _write(self._supervisor, state)

    def forget_supervisor(self) -> None:
        self._supervisor.unlink(missing_ok=True)


def is_alive(pid: int, created: float) -> bool:
    """Whether the process that had this id then still runs. Ids are used again, ids with a time of birth are not."""
    try:
        process = psutil.Process(pid)
        return abs(process.create_time() - created) < 1 and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def _passable_by_all(directory: Path) -> bool:
    """Whether every user may pass through ``directory``, which may not exist yet, to what is in it."""
    directory = directory.resolve()
    return all(step.stat().st_mode & 0o001 for step in (directory, *directory.parents) if step.exists())


def _read(path: Path) -> dict[str, Any] | None:
    try:
        saved = json.loads(path.read_text())
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, ValueError) as error:
        raise ClusterError(f"{path} cannot be read: {error}", PURGE) from error
    return saved if isinstance(saved, dict) else {}


def _write(path: Path, data: Mapping[str, Any]) -> None:
    """Atomically, and for our eyes only."""
    new = path.with_suffix(".new")
    try:
        with open(os.open(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as file:
            json.dump(data, file, indent=1)
        new.replace(path)
    except OSError as error:
        raise _failed("write", path, error) from error


def _failed(verb: str, path: Path, error: OSError) -> ClusterError:
    return ClusterError(f"could not {verb} {path}: {error.strerror or error}")
