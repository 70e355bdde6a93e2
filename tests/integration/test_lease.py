"""One chain, one run at a time: who comes second is told whose it is."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import psutil
import pytest
from kazoo.client import KazooClient

from pghc.cluster.local.embedded import Embedded
from pghc.errors import ClusterError
from pghc.lab.lab import Lab
from pghc.topology import View
from pghc.workload import runs
from pghc.workload.lease import InUse, Lease


@pytest.fixture
def view(cluster: Embedded) -> View:
    return cluster.view("us-east")


@contextmanager
def begun(cluster: Embedded, *arguments: str) -> Iterator[subprocess.Popen[str]]:
    """``pghc run`` in a process of its own, once its clients are at work."""
    process = subprocess.Popen(
        [sys.executable, "-m", "pghc", "run", *arguments],
        env={**os.environ, "PGHC_DIR": str(cluster.directory)},
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, process_group=0,
    )  # fmt: skip
    try:
        deadline = time.monotonic() + 30
        while not any("child" in " ".join(each.cmdline()) for each in psutil.Process(process.pid).children()):
            assert time.monotonic() < deadline
            assert process.poll() is None, process.communicate()
            time.sleep(0.05)
        yield process
    finally:
        process.kill()
        process.wait()


def refused(cluster: Embedded, writer: str, *, fresh: bool) -> str:
    """How a run is refused, which must be at once; it may not have touched the chain."""
    began = time.monotonic()
    with pytest.raises(InUse) as refusal:
        runs.run(cluster, writer, seconds=1, fresh=fresh)
    assert time.monotonic() - began < 5
    return str(refusal.value)


def test_a_second_run_is_refused_and_told_who_uses_the_chain_and_the_first_is_valid(cluster: Embedded) -> None:
    with begun(cluster, "--writer", "causal", "--seconds", "5") as first:
        said = refused(cluster, "causal", fresh=True)
        assert "causal" in said
        assert f"process {first.pid} of " in said
        assert "since " in said
        assert "naive" not in said
        output, _ = first.communicate(timeout=60)
    assert first.returncode == 0, output
    assert "Valid" in output


def test_a_run_that_continues_with_the_same_writer_shares_and_with_another_is_refused(cluster: Embedded) -> None:
    with begun(cluster, "--writer", "causal", "--seconds", "8") as first:
        refused(cluster, "locked", fresh=False)
        second = runs.run(cluster, "causal", clients=1, seconds=2, fresh=False)
        assert second.appends > 0
        assert Lab(cluster).append("ap-south")
        output, _ = first.communicate(timeout=60)
    assert first.returncode == 0, output


def test_a_run_whose_process_was_killed_frees_the_chain(cluster: Embedded) -> None:
    with begun(cluster, "--writer", "causal", "--seconds", "60") as first:
        first.send_signal(signal.SIGKILL)
        first.wait()
        run = runs.run(cluster, "causal", clients=1, seconds=1)
    assert run.verdict.valid, str(run.verdict)


def test_of_many_that_come_at_the_same_moment_one_has_the_chain(view: View) -> None:
    had: list[Lease] = []
    told: list[str] = []
    start = threading.Barrier(8)

    def come(number: int) -> None:
        start.wait()
        try:
            had.append(Lease(view, f"visitor {number}", "causal", fresh=True))
        except InUse as error:
            told.append(str(error))

    threads = [threading.Thread(target=come, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=30)
    try:
        assert len(had) == 1
        assert len(told) == 7
    finally:
        for lease in had:
            lease.close()


def end_session(lease: Lease, view: View) -> None:
    """End the lease's session, as a long pause of its holder does: another client takes it over and closes it."""
    who = view.credentials
    thief = KazooClient(
        view.zookeeper_hosts, client_id=lease.client.client_id,
        auth_data=[("digest", f"{who.zookeeper_user}:{who.zookeeper_password}")],
    )  # fmt: skip
    thief.start(10)
    thief.stop()
    thief.close()
    assert lease.lost.wait(10)


def test_a_lease_whose_session_ended_is_taken_again_while_nobody_else_came(view: View) -> None:
    with Lease(view, "a run", "causal", fresh=True) as lease:
        end_session(lease, view)
        lease.check()
        with pytest.raises(InUse, match="a run"):
            Lease(view, "a newcomer", "locked", fresh=True)


def test_a_lease_whose_session_ended_and_whose_chain_somebody_else_used_says_so(view: View) -> None:
    with Lease(view, "a run", "causal", fresh=True) as lease:
        end_session(lease, view)
        with Lease(view, "a newcomer", "locked", fresh=True), pytest.raises(ClusterError, match="a newcomer"):
            lease.check()
        with pytest.raises(ClusterError, match="somebody who has left"):
            lease.check()


def test_a_lease_is_shared_by_those_of_one_ordering_whoever_began(view: View) -> None:
    with (
        Lease(view, "a run", "causal", fresh=True),
        Lease(view, "one more", "causal", fresh=False),
        pytest.raises(InUse, match=r"a run.*one more"),
    ):
        Lease(view, "a stranger", "locked", fresh=False)
