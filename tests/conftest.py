"""One cluster of real servers for all tests of a process; healed after each of them and deleted after the last.

With ``PGHC_DIR`` set, the tests use the embedded cluster there instead and leave it running, which saves some seconds.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
from collections.abc import Generator, Iterator
from pathlib import Path

import pytest
from clusters import embedded

from pghc.cluster import CanPartition, CanPause, default_directory
from pghc.cluster.kubernetes.kind import Kind, cluster_name, environment
from pghc.cluster.local.embedded import Embedded

# Whatever starts the tests may ignore Ctrl-C, as a shell does for what runs in the background; processes inherit that.
signal.signal(signal.SIGINT, signal.default_int_handler)

#: Of each server's log, how many of the lines written during a failed test to print.
LOG_LINES = 15


@pytest.fixture(scope="session")
def running_cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Embedded]:
    if chosen := os.environ.get("PGHC_DIR"):
        if "PYTEST_XDIST_WORKER" in os.environ:
            pytest.fail(f"several processes of tests would share the cluster in {chosen}: run pytest without -n")
        backend = Embedded(chosen)
        backend.up()
        yield backend
        return
    with embedded(tmp_path_factory, "cluster") as backend:
        yield backend


@pytest.fixture(scope="session")
def running_kind() -> Iterator[Kind]:
    """The cluster on Kubernetes. One that runs is used and left running; else one is made, and removed at the end."""
    if (missing := no_container_engine()) and "CI" not in os.environ:  # there it must not be left out in silence
        pytest.skip(missing)
    backend = Kind(cluster_name(default_directory()))
    was_there = backend.status().running
    backend.up(print)
    yield backend
    if not was_there:
        backend.down(purge=True)


def no_container_engine() -> str:
    """Why no cluster can be made on Kubernetes here; empty if it can."""
    path = environment()["PATH"]
    if missing := [tool for tool in ("docker", "kind", "kubectl") if not shutil.which(tool, path=path)]:
        return f"no cluster on Kubernetes: {', '.join(missing)} not installed"
    try:
        done = subprocess.run(["docker", "info"], capture_output=True, text=True, timeout=20, check=False)
    except subprocess.TimeoutExpired:
        return "no cluster on Kubernetes: the container engine does not answer"
    why = " ".join(done.stderr.split())[:200]
    return f"no cluster on Kubernetes: no container engine answers: {why}" if done.returncode else ""


@pytest.fixture
def cluster(running_cluster: Embedded, request: pytest.FixtureRequest) -> Iterator[Embedded]:
    """The cluster with every server up and every link open, before the test and after it."""
    _heal(running_cluster)
    logs = {node.name: running_cluster.log(node.name) for node in running_cluster.topology.nodes}
    starts = {name: _size(log) for name, log in logs.items()}
    yield running_cluster
    if request.node.stash.get(FAILED, False):
        for name, log in logs.items():
            if lines := _read_from(log, starts[name])[-LOG_LINES:]:
                print(f"--- {name}, its log during this test", *lines, sep="\n")
    _heal(running_cluster)


FAILED = pytest.StashKey[bool]()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    if report.when == "call":
        item.stash[FAILED] = report.failed
    return report


def _heal(backend: Embedded) -> None:
    status = backend.status()
    if status.healthy and all(link.delay_ms == link.nominal_ms for link in status.links):
        return
    assert isinstance(backend, CanPause)
    assert isinstance(backend, CanPartition)
    for node in status.nodes:
        if node.state == "paused":
            backend.resume(node.name)
    if status.running:
        backend.heal_links()
    backend.up()


def _size(log: Path) -> int:
    return log.stat().st_size if log.exists() else 0


def _read_from(log: Path, start: int) -> list[str]:
    if not log.exists():
        return []
    with log.open("rb") as file:
        file.seek(start)
        return file.read().decode(errors="replace").splitlines()
