"""Where servers run. A backend starts, stops and finds a cluster; what only some can do are protocols of their own."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Literal, Protocol, cast, runtime_checkable

from pghc.cluster import surroundings
from pghc.cluster.wan import LinkState, LinkStatus
from pghc.errors import BadInput
from pghc.topology import Role, Topology, View

State = Literal["running", "paused", "stopped", "unreachable"]
Progress = Callable[[str], None]

#: Where each backend is.
BACKENDS = {"embedded": "pghc.cluster.local.embedded", "kind": "pghc.cluster.kubernetes.kind"}


@dataclass(frozen=True)
class NodeStatus:
    """One server. *Running* (there is a process) and *accessible* (it answers) are different questions.

    ``memory``: bytes, shared pages counted once (PSS). ``detail``: a few words, such as a ZooKeeper server's part.
    ``lack``: why it cannot start by itself; then ``detail`` has the remedy, too.
    """

    name: str
    region: str
    role: Role
    state: State
    accessible: bool
    port: int | None = None
    pid: int | None = None
    memory: int = 0
    detail: str = ""
    lack: str = ""


@dataclass(frozen=True)
class Status:
    """The whole cluster. ``memory``: of all its processes; ``up_seconds``: how long the last `up` took.

    ``durable``: what was acknowledged survives the loss of the machine's power; else only the death of any process.
    ``remedy``: what makes answer what does not, as a sentence.
    """

    backend: str
    directory: str
    running: bool
    nodes: Sequence[NodeStatus]
    links: Sequence[LinkStatus]
    memory: int = 0
    up_seconds: float | None = None
    durable: bool = True
    remedy: str = "`pghc up` starts again what is missing."

    @property
    def healthy(self) -> bool:
        """Every node answers and every link is open."""
        return self.running and all(n.accessible for n in self.nodes) and all(x.state == "open" for x in self.links)


@runtime_checkable
class Backend(Protocol):
    name: str

    @property
    def topology(self) -> Topology: ...

    def up(self, progress: Progress = ...) -> None:
        """Start the cluster, or start again what is missing of it and heal its links. Idempotent.

        Raises `ClusterError`.
        """

    def down(self, *, purge: bool = False) -> None:
        """Stop everything; with ``purge`` delete its data, too. Idempotent. Raises `ClusterError`."""

    def status(self) -> Status:
        """What runs, and what answers."""

    def view(self, region: str) -> View:
        """What clients of that region see. Raises `NotRunning`, `BadInput`."""


@runtime_checkable
class CanKill(Protocol):
    def kill(self, node: str) -> None:
        """End the server's processes at once (kill -9). Returns when they are gone."""

    def start(self, node: str) -> None:
        """Start it again. Returns when it is accessible."""


@runtime_checkable
class CanPause(Protocol):
    def pause(self, node: str) -> None:
        """Stop the server's processes in their tracks; its connections stay open."""

    def resume(self, node: str) -> None:
        """Let them go on. Returns when the server is accessible."""


@runtime_checkable
class CanReplace(Protocol):
    """Servers are lost for good, and replaced. ``name``: a server, or a region with all its servers."""

    def lose(self, name: str) -> None:
        """End the servers at once and delete their data."""

    def promote(self, region: str, to: str | None = None, progress: Progress = ...) -> str:
        """Make a replica the primary: the farthest, or ``to``; returns its name. Idempotent.

        Raises `BadInput`, `ClusterError` when no replica can, `Unavailable` without a quorum.
        """

    def rebuild(self, name: str, progress: Progress = ...) -> None:
        """Give servers their data back, from those that have it. Raises `BadInput`, `ClusterError`."""


@runtime_checkable
class CanPartition(Protocol):
    def set_link(
        self, source: str, target: str, *, delay_ms: float | None = None, state: LinkState | None = None
    ) -> None:
        """Change one direction between two regions; what is not given stays."""

    def links(self) -> Sequence[LinkStatus]: ...

    def heal_links(self) -> None:
        """All links open, with the topology's delays."""


def open_backend(
    name: str = "embedded", directory: str | Path | None = None, topology: Topology | None = None
) -> Backend:
    """The backend of that name; nothing is started.

    ``directory`` keeps clusters apart; without one ``PGHC_DIR``, else a place of this user's. ``topology``: for a
    cluster that is yet to be made; an existing one knows its own. This process is freed of what its surroundings would
    do to the cluster (see `surroundings.prepare`). Raises `BadInput`.
    """
    if name not in BACKENDS:
        raise BadInput(f"there is no backend {name!r}", f"The backends are {', '.join(BACKENDS)}.")
    surroundings.prepare()
    module = import_module(BACKENDS[name])
    chosen = default_directory() if directory is None else surroundings.place(directory)
    return cast(Backend, module.make(chosen, topology))


def replacing(backend: Backend) -> CanReplace:
    """The backend as one that loses servers for good and replaces them. Raises `BadInput` where it cannot."""
    if not isinstance(backend, CanReplace):
        what = f"the backend {backend.name} cannot lose and replace servers"
        raise BadInput(what, f"These can: {', '.join(BACKENDS)}.")
    return backend


def default_directory() -> Path:
    if chosen := os.environ.get("PGHC_DIR"):
        return surroundings.place(chosen)
    if os.geteuid() == 0:  # root's home is closed to the user that runs the servers
        return Path("/var/lib/pghc/default")
    return surroundings.place(os.environ.get("XDG_STATE_HOME") or "~/.local/state") / "pghc"
