"""The embedded backend's life: start, stop, death and healing, on clusters of its own that are as small as can be."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import textwrap
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing, suppress
from pathlib import Path
from typing import TypeVar

import psutil
import psycopg
import pytest

from pghc.cluster import BACKENDS, NodeStatus, default_directory, open_backend
from pghc.cluster.local.directory import ClusterDirectory
from pghc.cluster.local.embedded import Embedded
from pghc.errors import BadInput, ClusterError, NotRunning
from pghc.store import Reader
from pghc.topology import Topology, parse
from pghc.zookeeper import connect

ROOT = os.geteuid() == 0
T = TypeVar("T")


def small(delay_ms: float = 5, replicas: int = 0, regions: int = 2) -> Topology:
    names = [f"r{n}" for n in range(1, regions + 1)]
    places = [{"name": name, "latitude": 0, "longitude": 0, "replicas": replicas} for name in names]
    return parse({"regions": places, "delays_ms": {f"{a} {b}": delay_ms for a in names for b in names if a < b}})


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Embedded]:
    """A cluster for tests that leave it as they found it: running, all servers there."""
    backend = Embedded(tmp_path_factory.mktemp("small"), small(replicas=1), owner=True)
    backend.up()
    yield backend
    backend.down(purge=True)


@pytest.fixture
def directory(tmp_path: Path) -> Iterator[Path]:
    """A place for a new cluster, which is ended whatever happens."""
    yield tmp_path / "cluster"
    Embedded(tmp_path / "cluster").down(purge=True)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A cluster that exists and does not run; to start it takes less than to make it."""
    directory = tmp_path_factory.mktemp("made") / "cluster"
    backend = Embedded(directory, small())
    backend.up()
    backend.down()
    yield directory
    backend.down(purge=True)


@pytest.fixture
def stopped(made: Path) -> Iterator[Path]:
    """The same, ended after each test whatever happens."""
    yield made
    Embedded(made).down()


def node(backend: Embedded, name: str) -> NodeStatus:
    return next(status for status in backend.status().nodes if status.name == name)


def processes_of(backend: Embedded) -> list[psutil.Process]:
    """Supervisor, guard, servers and all below them."""
    supervisor = ClusterDirectory(backend.directory).supervisor()
    assert supervisor
    own = psutil.Process(supervisor["pid"])
    return [own, *own.children(recursive=True)]


def of_each(processes: Iterable[psutil.Process], ask: Callable[[psutil.Process], T]) -> list[T]:
    """What each answers, but for those that have ended: Postgres ends processes of its own at any time."""
    answers = []
    for process in processes:
        with suppress(psutil.NoSuchProcess):
            answers.append(ask(process))
    return answers


def insert(backend: Embedded, region: str, zk_id: int) -> None:
    view = backend.view(region)
    with psycopg.connect(**view.conninfo(view.topology.region(region).primary)) as connection:  # type: ignore[arg-type]
        connection.execute("insert into chain values (%s, 'somebody', 'h')", [zk_id])


def has(backend: Embedded, region: str, name: str, zk_id: int) -> bool:
    with psycopg.connect(**backend.view(region).conninfo(name)) as connection:  # type: ignore[arg-type]
        return connection.execute("select from chain where zk_id = %s", [zk_id]).rowcount == 1


def eventually(claim: object, seconds: float = 10) -> bool:
    assert callable(claim)
    deadline = time.monotonic() + seconds
    while not claim():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.05)
    return True


# What runs


def test_a_durable_cluster_waits_for_the_disk_and_stays_so(directory: Path) -> None:
    backend = Embedded(directory, small(), owner=True, durable=True)
    try:
        backend.up()
        view = backend.view("r1")
        with Reader(view, view.primary()) as reader:
            assert reader.rows("select current_setting('fsync'), current_setting('full_page_writes')") == [("on", "on")]
        java = next(node for node in backend.status().nodes if node.role == "zookeeper")
        assert "-Dzookeeper.forceSync=no" not in psutil.Process(java.pid).cmdline()
        with pytest.raises(ClusterError, match="runs with durability"):
            Embedded(directory, durable=False).up()
        backend.down()
        again = Embedded(directory, owner=True)  # nothing is said of it: as before
        again.up()
        assert again.status().durable
    finally:
        backend.down(purge=True)


def test_every_server_answers_and_says_what_it_is(shared: Embedded) -> None:
    status = shared.status()
    assert status.healthy
    assert {n.name for n in status.nodes} >= {n.name for n in shared.topology.nodes if n.role != "api"}
    assert {n.detail for n in status.nodes if n.role == "zookeeper"} == {"leader", "follower"}
    assert all(n.detail == "1 of 1 subscriptions at work" for n in status.nodes if n.role == "primary")
    assert all(n.memory > 1_000_000 for n in status.nodes)
    assert status.memory > sum(n.memory for n in status.nodes)


def test_up_is_idempotent(shared: Embedded) -> None:
    before = {n.name: n.pid for n in shared.status().nodes}
    shared.up()
    assert {n.name: n.pid for n in shared.status().nodes} == before


def test_a_row_reaches_the_replicas_and_the_other_regions(shared: Embedded) -> None:
    insert(shared, "r1", 1001)
    for region in shared.topology.regions:
        for name in (region.primary, *region.replica_names):
            assert eventually(lambda name=name, region=region: has(shared, region.name, name, 1001)), name


def test_every_server_listens_on_loopback_only(shared: Embedded) -> None:
    each = of_each(processes_of(shared), lambda process: process.net_connections("inet"))
    listening = [c for connections in each for c in connections if c.status == psutil.CONN_LISTEN]
    assert len(listening) > 10
    assert {c.laddr.ip for c in listening} == {"127.0.0.1"}


def test_no_connection_between_regions_bypasses_the_wan(shared: Embedded) -> None:
    """Both ends of a direct connection would be servers; one that passes the proxy has the supervisor at one end."""
    ends: dict[str, set[tuple[int, int]]] = {region: set() for region in shared.topology.names}
    for status in shared.status().nodes:
        assert status.pid
        server = psutil.Process(status.pid)
        for connections in of_each(
            [server, *server.children(recursive=True)], lambda process: process.net_connections("tcp")
        ):
            for connection in connections:
                if connection.status == psutil.CONN_ESTABLISHED:
                    ends[status.region].add((connection.laddr.port, connection.raddr.port))
    assert all(len(each) >= 3 for each in ends.values()), "replication and ZooKeeper are connected"
    assert not {(far, near) for near, far in ends["r1"]} & ends["r2"]


def test_passwords_are_demanded_and_shown_nowhere(shared: Embedded) -> None:
    view = shared.view("r1")
    refused: list[dict[str, object]] = [{"password": "wrong"}, {"user": "pghc_admin", "password": "pghc"}]
    for change in refused:
        with pytest.raises(psycopg.OperationalError, match="password authentication failed"):
            psycopg.connect(**view.conninfo("r1-primary") | change)  # type: ignore[arg-type]
    secrets = [view.credentials.password, view.credentials.admin_password, view.credentials.zookeeper_password]
    shown = of_each(processes_of(shared), lambda process: " ".join(process.cmdline()))
    assert len(shown) > 12
    shown += [log.read_text(errors="replace") for log in (shared.directory / "logs").iterdir()]
    assert not [secret for secret in secrets if any(secret in text for text in shown)]
    assert {path.stat().st_mode & 0o777 for path in shared.directory.glob("*.json")} == {0o600}


@pytest.mark.skipif(not ROOT, reason="only root changes the user of its servers")
def test_roots_servers_do_not_run_as_root(shared: Embedded) -> None:
    servers = [psutil.Process(n.pid) for n in shared.status().nodes if n.role != "api"]
    assert {process.username() for process in servers} == {"nobody"}


def test_round_trips_of_a_query_are_the_topologys_within_five_percent(shared: Embedded) -> None:
    shared.set_link("r1", "r2", delay_ms=60)
    shared.set_link("r2", "r1", delay_ms=30)
    try:
        with psycopg.connect(**shared.view("r1").conninfo("r2-primary"), autocommit=True) as connection:  # type: ignore[arg-type]
            trips = [1.0]
            deadline = time.monotonic() + 10
            while min(trips) > 0.093 and time.monotonic() < deadline:  # on a busy machine not the first
                begin = time.perf_counter()
                connection.execute("select 1")
                trips.append(time.perf_counter() - begin)
        assert min(trips) == pytest.approx(0.090, rel=0.05)
    finally:
        shared.heal_links()
    assert {link.delay_ms for link in shared.links()} == {5.0}


# Death and healing


@pytest.mark.parametrize("name", ["r1-primary", "r1-replica-1", "r2-zookeeper"])
def test_a_killed_server_is_reported_and_healed_by_up_on_its_port(shared: Embedded, name: str) -> None:
    before = node(shared, name)
    shared.kill(name)
    dead = node(shared, name)
    assert (dead.state, dead.accessible, dead.pid) == ("stopped", False, None)
    assert "exit code" in dead.detail
    shared.up()
    after = node(shared, name)
    assert after.accessible
    assert after.port == before.port
    assert after.pid != before.pid
    assert eventually(lambda: shared.status().healthy)


@pytest.mark.parametrize("name", ["r1-primary", "r2-zookeeper"])
def test_a_paused_server_keeps_its_port_and_does_not_answer(shared: Embedded, name: str) -> None:
    shared.pause(name)
    try:
        paused = node(shared, name)
        assert (paused.state, paused.accessible) == ("paused", False)
        assert paused.port
        with closing(socket.create_connection(("127.0.0.1", paused.port), timeout=5)) as connection:
            connection.settimeout(0.5)
            connection.sendall(b"ruok")
            with pytest.raises(TimeoutError):
                connection.recv(1)
    finally:
        shared.resume(name)
    assert eventually(lambda: shared.status().healthy)


@pytest.mark.parametrize("name", ["r1-primary", "r1-replica-1", "r2-zookeeper", "r2-api"])
def test_a_server_that_hangs_is_found_by_up_and_started_again(shared: Embedded, name: str) -> None:
    """Nobody has paused it, as far as the supervisor knows."""
    hanging = node(shared, name).pid
    assert hanging
    os.kill(hanging, signal.SIGSTOP)
    assert node(shared, name).state == "unreachable"
    said = list[str]()
    shared.up(said.append)
    assert f"{name} runs and does not answer: ending it" in said
    assert node(shared, name).pid not in (None, hanging)
    assert eventually(lambda: shared.status().healthy)


def test_a_port_taken_while_its_server_was_down_is_named(shared: Embedded) -> None:
    port = node(shared, "r1-replica-1").port
    assert port
    shared.kill("r1-replica-1")
    with socket.socket() as thief:
        thief.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        thief.bind(("127.0.0.1", port))
        thief.listen()
        with pytest.raises(ClusterError, match=f"r1-replica-1 needs port {port}"):
            shared.up()
    shared.up()
    assert eventually(lambda: shared.status().healthy)


def test_one_cut_direction_stops_that_directions_rows_only(shared: Embedded) -> None:
    shared.set_link("r1", "r2", state="cut")
    try:
        insert(shared, "r1", 2001)
        time.sleep(0.5)
        assert not has(shared, "r2", "r2-primary", 2001)
    finally:
        shared.heal_links()
    assert eventually(lambda: has(shared, "r2", "r2-primary", 2001), 15)


@pytest.mark.parametrize(
    "call",
    [
        lambda backend: backend.view("nowhere"),
        lambda backend: backend.kill("r1-secondary"),
        lambda backend: backend.pause("nobody"),
        lambda backend: backend.set_link("r1", "nowhere", state="cut"),
        lambda backend: backend.set_link("r1", "r2", delay_ms=-1),
    ],
)
def test_names_that_do_not_exist_are_bad_input(shared: Embedded, call: object) -> None:
    assert callable(call)
    with pytest.raises(BadInput):
        call(shared)


# Down and up


def test_the_central_regions_zookeeper_leads_after_every_start(tmp_path: Path) -> None:
    backend = Embedded(tmp_path / "three", owner=True)
    try:
        for _ in range(2):
            backend.up()
            leader = next(node for node in backend.status().nodes if node.detail == "leader")
            assert leader.region == backend.topology.central
            backend.down()
    finally:
        backend.down(purge=True)


def test_data_survives_down_and_up_and_numbers_go_on(directory: Path, shared: Embedded) -> None:
    backend = Embedded(directory, small())
    backend.up()
    insert(backend, "r1", 7)
    first = next_number(backend, "r1")
    ports = {n.name: n.port for n in backend.status().nodes}
    alive = processes_of(backend)
    with pytest.raises(ClusterError, match="runs with another topology"):
        Embedded(directory, small(8)).up()
    backend.down()
    assert all_ended(alive, 1)
    assert {n.state for n in backend.status().nodes} == {"stopped"}
    with pytest.raises(NotRunning):
        backend.view("r1")
    backend.down()  # idempotent

    with pytest.raises(ClusterError, match="other regions"):
        Embedded(directory, small(regions=3)).up()
    again = Embedded(directory, small(8))
    again.up()
    assert {link.delay_ms for link in again.links()} == {8.0}, "a stopped cluster takes new delays"
    assert {n.name: n.port for n in again.status().nodes} != ports
    assert has(again, "r2", "r2-primary", 7)
    insert(again, "r2", 8)
    assert eventually(lambda: has(again, "r1", "r1-primary", 8))
    assert next_number(again, "r2") == first + 1

    assert not {n.port for n in again.status().nodes} & {n.port for n in shared.status().nodes}
    assert not has(shared, "r1", "r1-primary", 8), "two clusters run side by side"

    cluster = ClusterDirectory(directory).cluster()
    assert cluster
    again.down(purge=True)
    assert not cluster.data.exists()
    assert not directory.exists()
    assert eventually(lambda: shared.status().healthy)


def next_number(backend: Embedded, region: str) -> int:
    client = connect(backend.view(region))
    try:
        client.ensure_path("/numbers")
        return int(client.create("/numbers/n-", b"", sequence=True)[-10:])
    finally:
        client.stop()
        client.close()


# Ends of owners and supervisors


def starter(directory: Path, *, owner: bool, then: str) -> subprocess.Popen[str]:
    """A process that starts a cluster of two regions in ``directory``, then does ``then``."""
    program = f"""
        import sys, time
        from pathlib import Path
        from pghc.cluster.local.embedded import Embedded
        from pghc.topology import parse
        places = [dict(name=name, latitude=0, longitude=0, replicas=0) for name in ("r1", "r2")]
        topology = parse(dict(regions=places, delays_ms={{"r1 r2": 5}}))
        backend = Embedded(Path({str(directory)!r}), topology, owner={owner})
        backend.up(lambda text: print(text, flush=True))
        print("up", flush=True)
        {then}
    """
    return subprocess.Popen([sys.executable, "-c", textwrap.dedent(program)], stdout=subprocess.PIPE, text=True)


def said(process: subprocess.Popen[str], word: str) -> None:
    assert process.stdout
    for line in process.stdout:
        if word in line:
            return
    raise AssertionError(f"the starter ended without saying {word!r}")


def all_ended(processes: list[psutil.Process], seconds: float = 10) -> bool:
    return eventually(lambda: not any(of_each(processes, lives)), seconds)


def lives(process: psutil.Process) -> bool:
    return process.is_running() and process.status() != psutil.STATUS_ZOMBIE


def test_a_cluster_ends_within_ten_seconds_of_a_killed_owner(stopped: Path) -> None:
    with starter(stopped, owner=True, then="time.sleep(100)") as process:
        said(process, "up")
        alive = processes_of(Embedded(stopped))
        process.kill()
    assert all_ended(alive)


def test_a_first_start_that_was_killed_half_way_leaves_nothing(directory: Path) -> None:
    with starter(directory, owner=False, then="pass") as process:
        said(process, "starting Postgres")
        alive = processes_of(Embedded(directory))
        process.kill()
    assert all_ended(alive)
    cluster = ClusterDirectory(directory).cluster()
    assert cluster
    assert not cluster.data.exists()


def test_a_cluster_outlives_its_starter_and_leaves_nothing_when_its_supervisor_is_killed(stopped: Path) -> None:
    """Nor does a server that is paused, whose children cannot notice that they are orphans."""
    with starter(stopped, owner=False, then="pass") as process:
        said(process, "up")
        assert process.wait(20) == 0
    backend = Embedded(stopped)
    assert eventually(lambda: backend.status().healthy)
    backend.pause("r1-primary")
    alive = processes_of(backend)
    alive[0].kill()
    assert all_ended(alive)
    assert not backend.status().running
    backend.up()
    assert eventually(lambda: backend.status().healthy)


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere the guard alone sees to it")
def test_servers_die_with_the_supervisor_even_without_the_guard(stopped: Path) -> None:
    backend = Embedded(stopped)
    backend.up()
    alive = processes_of(backend)
    saved = ClusterDirectory(stopped).supervisor()
    assert saved
    psutil.Process(saved["guard"]).kill()
    alive[0].kill()
    assert all_ended([process for process in alive if process.pid != saved["guard"]])


# Bad surroundings


def test_damaged_data_names_the_node_and_shows_its_log_and_of_lost_data_the_command_is_named(stopped: Path) -> None:
    cluster = ClusterDirectory(stopped).cluster()
    assert cluster
    control = cluster.data / "r2-primary/global/pg_control"
    sound = control.read_bytes()
    control.write_bytes(bytes(len(sound)))
    backend = Embedded(stopped)
    try:
        with pytest.raises(ClusterError, match=r"(?s)r2-primary did not start.*log:.*down --purge"):
            backend.up()
        assert not backend.status().running
    finally:
        control.write_bytes(sound)  # a failed start deletes nothing

    elsewhere = (cluster.data / "r1-primary").rename(cluster.data / "elsewhere")
    try:
        backend.up()
        lost = node(backend, "r1-primary")
        assert lost.state != "running"
        assert re.match(r"its data is gone: .*`pghc (promote|rebuild) r1", lost.detail), lost.detail
    finally:
        backend.down()
        elsewhere.rename(cluster.data / "r1-primary")


@pytest.mark.parametrize("seen", [True, False])
def test_a_port_that_is_taken_after_its_choice_is_replaced(
    stopped: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seen: bool
) -> None:
    """The choice is forced upon the supervisor; ``seen``: it notices before the server does."""
    with socket.socket() as thief:
        thief.bind(("127.0.0.1", 0))
        thief.listen()
        port = thief.getsockname()[1]
        forced = f"""
            from pghc.cluster.local import deployment, supervisor
            choose, free = deployment.choose_ports, deployment.is_free
            def choose_once(nodes):
                deployment.choose_ports = choose
                return choose(nodes) | {{"r1-primary": {{"postgres": {port}}}}}
            deployment.choose_ports = choose_once
            supervisor.is_free = lambda port: {not seen} or free(port)
        """
        (tmp_path / "sitecustomize.py").write_text(textwrap.dedent(forced))
        monkeypatch.setenv("PYTHONPATH", str(tmp_path))
        backend, progress = Embedded(stopped), list[str]()
        backend.up(progress.append)
    assert "another program took a port; starting again with others" in progress
    assert node(backend, "r1-primary").port not in (None, port)
    assert eventually(lambda: backend.status().healthy)


def test_a_damaged_state_file_is_named_and_purge_gets_rid_of_it(directory: Path) -> None:
    directory.mkdir()
    (directory / "cluster.json").write_text("{")
    with pytest.raises(ClusterError, match=r"cluster\.json"):
        Embedded(directory).up()
    Embedded(directory).down(purge=True)
    assert not directory.exists()


@pytest.fixture
def little_disk() -> Iterator[Path]:
    """20 MB, at a place that servers can reach."""
    if not ROOT:
        pytest.skip("only root mounts")
    place = Path(tempfile.mkdtemp(dir="/var/tmp"))
    place.chmod(0o755)
    try:
        subprocess.run(["mount", "-t", "tmpfs", "-o", "size=20m,mode=755", "none", place], check=True)
    except (OSError, subprocess.CalledProcessError):
        place.rmdir()
        pytest.skip("mounting is not allowed here")
    yield place
    Embedded(place / "cluster").down(purge=True)
    subprocess.run(["umount", place], check=True)
    place.rmdir()


def test_a_disk_without_room_for_a_cluster_is_told_before_anything_is_made(little_disk: Path) -> None:
    with pytest.raises(ClusterError, match=r"needs 128 MB of disk, .* has 20 MB free"):
        Embedded(little_disk / "cluster", small()).up()
    assert not (little_disk / "cluster/cluster.json").exists()


def test_a_disk_that_fills_up_while_a_cluster_is_made_is_told(
    little_disk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pghc.cluster.local.embedded.DISK_PER_SERVER", 0)
    backend = Embedded(little_disk / "cluster", small())
    with pytest.raises(ClusterError, match=r"(?s)No space left on device.*Free some space"):
        backend.up()
    assert not (little_disk / "cluster/data").exists()
    assert not backend.status().running


def test_a_directory_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ClusterError, match=r"make .*file"):
        Embedded(tmp_path / "file/cluster", small()).up()


# Finding backends


def test_a_backend_is_opened_by_name() -> None:
    assert "embedded" in BACKENDS
    with pytest.raises(BadInput, match="no backend 'cloud'"):
        open_backend("cloud")


def test_the_directory_comes_from_the_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PGHC_DIR", str(tmp_path / "mine"))
    assert default_directory() == tmp_path / "mine"
    backend = open_backend()
    assert isinstance(backend, Embedded)
    assert backend.directory == tmp_path / "mine"
