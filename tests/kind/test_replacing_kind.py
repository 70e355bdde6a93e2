"""Servers that are lost with their volumes on Kubernetes: what is refused, what goes on, and that no append is lost.

The same is claimed of the embedded cluster in tests/integration/test_losses.py.
"""

from __future__ import annotations

import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from functools import partial

import pytest
from appending import Appending, check_nothing_lost

from pghc.cluster import CanReplace, NodeStatus, losses
from pghc.cluster.kubernetes.kind import Kind
from pghc.cluster.kubernetes.manifests import VOLUMES, pod
from pghc.errors import ClusterError, PghcError
from pghc.faults.injection import Faults
from pghc.workload.chains import begin_chain
from pghc.writers import new_request_id, open_writer

#: Seconds for what goes on by itself to be seen to, on a busy machine.
PATIENCE = 60


@pytest.fixture(scope="module")
def lasting(running_kind: Kind) -> Iterator[Kind]:
    """Afterwards each region's first primary is the primary again."""
    yield running_kind
    make_whole(running_kind)
    for region in running_kind.topology.regions:
        if (now := running_kind.view(region.name).primary()) != region.primary:
            running_kind.promote(region.name, region.primary, print)
            running_kind.rebuild(now, print)


@pytest.fixture
def lossy(lasting: Kind) -> Iterator[Kind]:
    """With an empty chain, and every server up again afterwards."""
    make_whole(lasting)
    begin_chain([lasting.view(name) for name in lasting.topology.names])
    yield lasting
    make_whole(lasting)


def make_whole(kind: Kind) -> None:
    if kind.status().healthy:
        return
    with suppress(PghcError):
        kind.up(print)
    for region in kind.topology.names:
        if kind.view(region).primary() in kind.lacking():
            kind.rebuild(region, print)
    kind.up(print)
    assert kind.status().healthy, kind.status()


def on_machine(kind: Kind, node: str, script: str) -> str:
    """A command where the volumes are, at that of a server."""
    server = kind.topology.node(node)
    command = ["docker", "exec", "--workdir", f"{VOLUMES}/{pod(server)}", kind._kubernetes_node(server.region)]
    return subprocess.run([*command, "sh", "-c", script], check=True, capture_output=True, text=True, timeout=60).stdout


def now(kind: Kind, node: str) -> NodeStatus:
    return next(each for each in kind.status().nodes if each.name == node)


def has(kind: Kind, node: str, words: str) -> bool:
    """Whether `pghc status` says so of a server. It answers within 5 s: on a busy machine not all may be told yet."""
    return words in now(kind, node).detail


def log_of(kind: Kind, node: str) -> str:
    server = kind.topology.node(node)
    with suppress(ClusterError):
        return kind.kubectl("logs", pod(server), "-n", server.region)
    return ""  # its container is being made


def until(what: str, condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline, what
        time.sleep(0.5)


def test_the_backend_can_replace_servers(kind: Kind) -> None:
    assert isinstance(kind, CanReplace)


def test_a_primary_that_is_lost_with_its_volume_under_load_is_followed(lossy: Kind) -> None:
    region, *others = lossy.topology.names
    with Appending(lossy, "causal") as clients:
        for name in (region, *others):
            clients.next_in(name)
        lost = lossy.view(region).primary()
        begin = time.monotonic()
        lossy.lose(lost)
        clients.next_in(others[0])
        until("status names the command", partial(has, lossy, lost, f"`pghc promote {region} "))
        asked = time.monotonic()
        promoted = lossy.promote(region, progress=print)
        while (row := clients.next_in(region)).node_id != promoted:
            assert time.monotonic() < asked + PATIENCE, row
        first = next(at for at, name, row in clients.acknowledged if name == region and row.node_id == promoted)
        lossy.rebuild(lost, print)
        clients.next_in(region)
        pauses = {name: clients.longest_pause(name, begin) for name in others}
    print(f"from lose to the next append in {region}: {first - begin:.1f} s, from promote on {first - asked:.1f} s;")
    print("longest pauses elsewhere:", ", ".join(f"{name} {pause:.1f} s" for name, pause in pauses.items()))
    assert (now(lossy, lost).role, now(lossy, promoted).role) == ("replica", "primary")
    until("it follows", partial(has, lossy, lost, "reads its primary's log"))
    check_nothing_lost(lossy, [row for _, _, row in clients.acknowledged])


def test_the_emptied_volume_of_a_primary_is_refused_and_not_initialised(lossy: Kind) -> None:
    regions = lossy.topology.names[:2]
    running, stopped = (lossy.view(region).primary() for region in regions)
    with ExitStack() as stack:
        writers = [stack.enter_context(open_writer("causal", lossy.view(name))) for name in lossy.topology.names]
        rows = [each.append(new_request_id()) for each in writers]
        lossy.kill(stopped)
        for primary in (running, stopped):
            on_machine(lossy, primary, "rm -rf data")
            until("status says so", partial(has, lossy, primary, losses.GONE))
        with pytest.raises(ClusterError, match="its data is gone"):
            lossy.start(stopped)
        lossy.delete_pod(stopped)  # another pod, that remembers nothing
        refusal = f"{stopped} cannot start: {losses.GONE}"
        until("it says why it does not start", lambda: refusal in log_of(lossy, stopped))
        said: list[str] = []
        lossy.up(said.append)
        rows.append(writers[-1].append(new_request_id()))
    status = {node.name: node for node in lossy.status().nodes}
    assert (status[stopped].state, status[stopped].accessible) == ("stopped", False)
    for region, primary in zip(regions, (running, stopped), strict=True):
        assert any(f"{primary}: {losses.GONE}: `pghc promote {region} --backend kind`" in line for line in said), said
        assert on_machine(lossy, primary, "ls data/base 2>/dev/null || true") == "", "it was initialised"
        lossy.promote(region, progress=print)
        lossy.rebuild(primary, print)
    until("every server answers", lambda: lossy.status().healthy)
    check_nothing_lost(lossy, rows)


def test_replicas_whose_volumes_are_emptied_get_their_primarys_data_by_up(lossy: Kind) -> None:
    region = lossy.topology.regions[1]
    running, stopped = (name for name in region.databases if name != lossy.view(region.name).primary())
    with open_writer("causal", lossy.view(region.name)) as writer:
        rows = [writer.append(new_request_id())]
        lossy.kill(stopped)
        for replica in (running, stopped):
            on_machine(lossy, replica, "rm -rf data")
            until("status names the command", partial(has, lossy, replica, f"`pghc rebuild {replica} "))
        rows.append(writer.append(new_request_id()))
    lossy.up(print)
    for replica in (running, stopped):
        until("it follows", partial(has, lossy, replica, "reads its primary's log"))
    until("every server answers", lambda: lossy.status().healthy)
    check_nothing_lost(lossy, rows)


def test_a_deposed_primary_that_comes_back_writes_for_nobody_and_becomes_a_replica(lossy: Kind) -> None:
    region, other = lossy.topology.names[:2]
    deposed = lossy.view(region).primary()
    with Appending(lossy, "causal") as clients:
        clients.next_in(region)
        with Faults(lossy).pause(deposed):
            promoted = lossy.promote(region, progress=print)
            while clients.next_in(region, PATIENCE).node_id != promoted:
                pass
        clients.next_in(region)
        clients.next_in(other)
    assert now(lossy, deposed).role == "replica"
    until("it follows", partial(has, lossy, deposed, "reads its primary's log"))
    # And one that was stopped by its successor's promotion, whose pod then forgets that it was
    lossy.promote(region, deposed, print)
    lossy.delete_pod(promoted)
    until("it says why it does not start", lambda: losses.FORMER in log_of(lossy, promoted))
    assert not now(lossy, promoted).accessible
    lossy.start(promoted)
    until("it follows", partial(has, lossy, promoted, "reads its primary's log"))
    until("every server answers", lambda: lossy.status().healthy)
    check_nothing_lost(lossy, [row for _, _, row in clients.acknowledged])


def test_a_region_that_is_lost_is_brought_back_from_the_others_while_they_write(lossy: Kind) -> None:
    region, other = lossy.topology.names[:2]
    with Appending(lossy, "causal") as clients:
        clients.next_in(region)
        begin = time.monotonic()
        lossy.lose(region)
        clients.next_in(other)
        until("status names the command", partial(has, lossy, lossy.view(region).primary(), f"`pghc rebuild {region} "))
        asked = time.monotonic()
        lossy.rebuild(region, print)
        rebuilt = time.monotonic()
        clients.next_in(region, PATIENCE)
        clients.next_in(other)
        pause = clients.longest_pause(other, begin)
    print(f"{region} was rebuilt in {rebuilt - asked:.1f} s; longest pause in {other}: {pause:.1f} s")
    until("every server answers", lambda: lossy.status().healthy)
    check_nothing_lost(lossy, [row for _, _, row in clients.acknowledged])
