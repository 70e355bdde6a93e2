"""Faults as context managers: what a block breaks, its end heals, also when the block raises.

::

    with Faults(backend).partition("us-east", "ap-south"): ...
    with Faults(backend).kill("eu-west-primary"): ...
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from pghc.cluster import Backend, CanKill, CanPartition, CanPause, CanReplace
from pghc.cluster.wan import LinkState
from pghc.errors import BadInput, ClusterError, Conflict, Unavailable

#: Seconds for which it is tried to replace what was lost.
PERSIST = 40.0


def _persist(step: Callable[[], object]) -> None:
    """Try again while other faults are in the way. Raises what the last attempt did."""
    end = time.monotonic() + PERSIST
    while True:
        try:
            step()
        except (ClusterError, Conflict, Unavailable):
            if time.monotonic() > end:
                raise
            time.sleep(0.5)
        else:
            return


class Faults:
    """The faults that a backend can do. One that it cannot do, an unknown name, an impossible delay raise `BadInput`.

    Leaving a block restores what was before it: servers are accessible again, links as they were. What cannot be
    restored raises `ClusterError`.
    """

    def __init__(self, backend: Backend) -> None:
        self._backend = backend

    @contextmanager
    def kill(self, node: str) -> Iterator[None]:
        """End a server at once (kill -9); start it again afterwards."""
        backend = self._backend
        if not isinstance(backend, CanKill):
            raise self._cannot("kill servers")
        name = backend.topology.node(node).name
        try:
            backend.kill(name)
            yield
        finally:
            backend.start(name)

    @contextmanager
    def pause(self, node: str) -> Iterator[None]:
        """Stop a server in its tracks, its connections open; let it go on afterwards."""
        backend = self._backend
        if not isinstance(backend, CanPause):
            raise self._cannot("pause servers")
        name = backend.topology.node(node).name
        try:
            backend.pause(name)
            yield
        finally:
            backend.resume(name)

    @contextmanager
    def lose(self, name: str) -> Iterator[None]:
        """End a server, or all of a region, and delete its data; afterwards what is left replaces it.

        Where a primary is lost that has replicas, one of them is the primary afterwards, unless the block has promoted
        another already.
        """
        backend = self._backend
        if not isinstance(backend, CanReplace):
            raise self._cannot("lose servers")
        topology = backend.topology
        region = name if name in topology.names else topology.node(name).region
        try:
            backend.lose(name)
            yield
        finally:
            if name == backend.view(region).primary() and topology.region(region).replicas:
                _persist(lambda: backend.promote(region))
            _persist(lambda: backend.rebuild(name))

    def restart(self, node: str) -> None:
        """End a server at once and start it again. Returns when it is accessible."""
        with self.kill(node):
            pass

    @contextmanager
    def cut(self, source: str, target: str) -> Iterator[None]:
        """Nothing gets from ``source`` to ``target``; what was sent arrives afterwards, as with TCP."""
        with self._links((source, target), state="cut"):
            yield

    @contextmanager
    def partition(self, one: str, other: str) -> Iterator[None]:
        """Nothing gets from one region to the other, in both directions."""
        with self._links((one, other), (other, one), state="cut"):
            yield

    @contextmanager
    def reset(self, one: str, other: str) -> Iterator[None]:
        """Connections between two regions are closed, and new ones refused."""
        with self._links((one, other), (other, one), state="reset"):
            yield

    @contextmanager
    def slow(self, source: str, target: str, delay_ms: float) -> Iterator[None]:
        """Everything from ``source`` to ``target`` takes ``delay_ms`` milliseconds."""
        with self._links((source, target), delay_ms=delay_ms):
            yield

    @contextmanager
    def _links(
        self, *pairs: tuple[str, str], state: LinkState | None = None, delay_ms: float | None = None
    ) -> Iterator[None]:
        backend = self._backend
        if not isinstance(backend, CanPartition):
            raise self._cannot("change links")
        for pair in pairs:
            for name in pair:
                backend.topology.region(name)
        before = [link for link in backend.links() if (link.source, link.target) in pairs]
        try:
            for source, target in pairs:
                backend.set_link(source, target, state=state, delay_ms=delay_ms)
            yield
        finally:
            for link in before:  # only what this block changed: another may have changed the rest
                backend.set_link(
                    link.source,
                    link.target,
                    state=link.state if state else None,
                    delay_ms=None if delay_ms is None else link.delay_ms,
                )

    def _cannot(self, what: str) -> BadInput:
        return BadInput(f"the backend {self._backend.name} cannot {what}", "The embedded backend can.")
