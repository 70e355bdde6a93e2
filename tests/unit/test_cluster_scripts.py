"""What the scripts of cluster/ say of a machine that lacks something: one message with the remedy, nothing done.

The machine is made up of the programs in one directory, some of them stand-ins.
"""

import json
import os
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import pytest

from pghc.cluster.kubernetes.kind import SCRIPTS
from pghc.topology import load

ROOT = Path(__file__).parents[2]
CLUSTER = ROOT / "cluster"
TOOLS = (
    "awk",
    "bash",
    "cat",
    "cut",
    "date",
    "df",
    "dirname",
    "env",
    "grep",
    "head",
    "id",
    "mkdir",
    "mv",
    "paste",
    "ps",
    "rm",
    "touch",
    "tee",
)
TOOLS += ("printf", "realpath", "sed", "sleep", "sort", "tail", "timeout", "tr", "uname", "wc")


class Machine:
    """A PATH of its own."""

    def __init__(self, directory: Path) -> None:
        self.programs = directory / "bin"
        self.programs.mkdir()
        self.cache = directory / "cache"
        for tool in TOOLS:
            if found := shutil.which(tool):
                (self.programs / tool).symlink_to(found)

    def has(self, program: str, script: str) -> None:
        file = self.programs / program
        file.unlink(missing_ok=True)
        file.write_text(f"#!{shutil.which('bash')}\n{script}\n")
        file.chmod(0o755)

    def up(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        return self.run("up.sh", *arguments)

    def run(self, script: str, *arguments: str) -> subprocess.CompletedProcess[str]:
        command = [CLUSTER / script, *arguments]
        return subprocess.run(
            command, env=self.environment, capture_output=True, text=True, timeout=60, check=False
        )

    @property
    def environment(self) -> dict[str, str]:
        directories = dict.fromkeys(("HOME", "PGHC_CACHE", "PGHC_ENGINE"), str(self.cache))
        return {"PATH": str(self.programs)} | directories


#: An engine with no cluster in it, and with the stock node image.
ENGINE = 'case "$1 $2" in "ps --all") ;; "info --format") echo /;; esac'


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    if not shutil.which("bash") or os.name != "posix":
        pytest.skip("no bash")
    return Machine(tmp_path)


def refused(done: subprocess.CompletedProcess[str], what: str, remedy: str) -> None:
    assert done.returncode == 2, done
    first, *rest = done.stderr.splitlines()
    assert first.startswith("error: ")
    assert what in first
    assert remedy in "\n".join(rest)


def test_without_docker_it_says_how_to_get_it(machine: Machine) -> None:
    refused(machine.up(), "Docker is not installed", "engine.sh start")


def test_an_engine_that_does_not_answer_is_to_be_started(machine: Machine) -> None:
    machine.has("docker", "echo 'Cannot connect to the Docker daemon' >&2; exit 1")
    refused(machine.up(), "does not answer", "systemctl start docker")


def test_a_user_who_may_not_use_the_engine_is_told_the_group(machine: Machine) -> None:
    machine.has("docker", "echo 'permission denied while trying to connect' >&2; exit 1")
    refused(machine.up(), "may not use it", "usermod")


def test_without_kind_it_says_how_to_get_it(machine: Machine) -> None:
    machine.has("docker", ENGINE)
    refused(machine.up(), "kind is not installed", "go install")


def test_without_kubectl_it_says_how_to_get_it(machine: Machine) -> None:
    machine.has("docker", ENGINE)
    machine.has("kind", "exit 0")
    refused(machine.up(), "kubectl is not installed", "kubernetes.io")


def test_too_little_memory_is_noticed_before_anything_is_made(machine: Machine) -> None:
    machine.has("docker", ENGINE)
    machine.has("awk", f'case "$*" in *MemAvailable*) echo 900;; *) exec {shutil.which("awk")} "$@";; esac')
    refused(machine.up(), "900 MB of memory are free", "--regions 2")


def test_a_half_deleted_cluster_is_to_be_removed(machine: Machine) -> None:
    machine.has("docker", '[ "$1" != ps ] || echo pghc-someone-worker2')
    refused(machine.up(), "only a part is left", "cluster/down.sh")


def test_a_cluster_that_lacks_a_regions_node_is_to_be_removed(machine: Machine) -> None:
    three = "printf 'x-control-plane\\nx-worker\\nx-worker2\\n'"
    machine.has("docker", f'case "$*" in *paused*) ;; ps*) {three} ;; esac')
    machine.has("kind", "exit 0")
    machine.has("kubectl", 'case "$*" in *"get nodes"*|*"get namespaces"*) echo some ;; esac')
    done = machine.up("--name", "x")
    refused(done, "only a part is left (x-control-plane x-worker x-worker2)", "cluster/down.sh")
    assert len(done.stderr.splitlines()) == 2


def test_paused_nodes_are_to_be_unpaused(machine: Machine) -> None:
    machine.has("docker", "[ \"$1\" != ps ] || printf 'x-control-plane\\nx-worker\\nx-worker2\\n'")
    refused(machine.up("--name", "x"), "are paused", "docker unpause x-control-plane")


def test_a_port_taken_while_nodes_were_stopped_is_named(machine: Machine) -> None:
    machine.has(
        "docker",
        """case "$1" in
        ps) case "$*" in *status=*) ;; *) printf 'x-control-plane\\nx-worker\\nx-worker2\\n' ;; esac ;;
        start) echo 'Bind for 127.0.0.1:41234 failed: port is already allocated' >&2; exit 1 ;;
        esac""",
    )
    machine.has("kind", "exit 0")
    machine.has("kubectl", "exit 0")
    refused(machine.up("--name", "x"), "127.0.0.1:41234", "ss -ltnp")


def test_more_regions_than_the_topology_lists_are_refused(machine: Machine) -> None:
    machine.has("docker", ENGINE)
    refused(machine.up("--regions", "5"), "lists 3 regions, not 5", "")


@pytest.mark.parametrize("arguments", [("--frobnicate",), ("--regions",), ("--name", "A b")])
def test_wrong_usage_is_refused(machine: Machine, arguments: tuple[str, ...]) -> None:
    assert machine.up(*arguments).returncode == 2


def test_where_no_engine_can_be_started_the_tests_are_skipped_and_it_is_said(machine: Machine) -> None:
    machine.has("id", "echo 1000")
    done = machine.run("test.sh")
    assert done.returncode == 77, done
    assert "starting it needs root" in done.stderr
    assert "Skipped: the tests on Kubernetes" in done.stderr


def test_an_engine_that_misses_one_program_is_installed(machine: Machine) -> None:
    machine.has("id", "echo 0")
    machine.has("jq", "exit 0")
    machine.has("apt-get", 'echo "apt-get $1" >&2; exit 1')
    assert "apt-get update" in machine.run("node-image/engine.sh").stderr


# Interruptions. The stand-in of kind makes "containers", which are lines of a file, and takes its time


class Town(Machine):
    """A machine on which a cluster x can be made, very slowly; ``log`` has what was asked of kind."""

    def __init__(self, directory: Path) -> None:
        super().__init__(directory)
        self.containers, self.log, self.kind_pid = (directory / name for name in ("containers", "log", "pid"))
        self.containers.touch()
        self.log.touch()
        self.has(
            "docker",
            f"""case "$*" in
            *status=paused*|*status=exited*) ;;
            ps*) cat {self.containers} ;;
            rm*) : > {self.containers} ;;
            "info --format"*) echo / ;;
            esac""",
        )
        self.has(
            "kind",
            f"""echo "$1 $2" >> {self.log}
            case "$1 $2" in
            "create cluster") echo $$ > {self.kind_pid}
                printf 'x-control-plane\nx-worker\nx-worker2\nx-worker3\n' > {self.containers}; sleep 50 ;;
            "delete cluster") : > {self.containers} ;;
            esac""",
        )
        self.has("kubectl", "exit 0")
        self.images = directory / "images"

    def start(self) -> "subprocess.Popen[str]":
        """up.sh, up to where kind makes the cluster. The images are a program of the repository: a copy stands in."""
        copy = self.programs.parent / "repository"
        if not copy.exists():
            shutil.copytree(CLUSTER, copy / "cluster")
            for name in (".venv", "pghc", "scripts"):
                (copy / name).symlink_to(ROOT / name)
            (copy / "cluster/images/build.sh").write_text("#!/bin/sh\nprintf 'a:1\\nb:1\\nc:1\\n'\n")
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        command = [copy / "cluster/up.sh", "--name", "x", "--node-image", "any"]
        done: subprocess.Popen[str] = subprocess.Popen(
            command, env=self.environment, text=True, start_new_session=True, **pipes
        )
        until(lambda: self.kind_pid.exists() and self.containers.read_text() != "", "kind begins")
        return done

    def kind_runs(self) -> bool:
        command = ["ps", "-o", "stat=", "-p", self.kind_pid.read_text().strip()]
        state = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False).stdout
        return bool(state) and not state.startswith("Z")


def until(condition: Callable[[], bool], what: str, seconds: float = 40) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, what
        time.sleep(0.05)


@pytest.fixture
def town(tmp_path: Path) -> Town:
    if not shutil.which("bash") or os.name != "posix":
        pytest.skip("no bash")
    return Town(tmp_path)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_up_removes_what_it_was_making_and_leaves_nothing(town: Town, number: signal.Signals) -> None:
    up = town.start()
    begin = time.monotonic()
    os.kill(up.pid, number)  # as from a keyboard that only bash listens to
    out, err = up.communicate(timeout=30)
    assert time.monotonic() - begin < 15
    assert up.returncode == 128 + number, (out, err)
    assert "Interrupted while the cluster x was made: removing" in err
    assert not town.kind_runs()
    assert town.containers.read_text() == ""
    assert not (town.cache / "kind/x").exists()


def test_after_an_up_that_was_killed_the_next_one_begins_anew_by_itself(town: Town) -> None:
    first = town.start()
    os.kill(first.pid, signal.SIGKILL)
    first.wait()
    maker = town.kind_pid.read_text()
    assert town.kind_runs()  # kind itself goes on making it
    town.kind_pid.unlink()
    second = town.start()
    assert town.log.read_text().split("\n")[:-1].count("delete cluster") == 1
    assert not Path(f"/proc/{maker.strip()}").exists() or "Z" in Path(f"/proc/{maker.strip()}/stat").read_text()
    os.kill(second.pid, signal.SIGTERM)
    out, _ = second.communicate(timeout=30)
    assert "an earlier start or removal of x was broken off: it begins anew" in out


def test_two_at_once_are_refused_and_the_first_goes_on(town: Town) -> None:
    first = town.start()
    try:
        for script in ("up.sh", "down.sh"):
            refused(town.run(script, "--name", "x"), f"process {first.pid} works on the cluster x", f"kill {first.pid}")
        assert first.poll() is None
        assert town.kind_runs()
    finally:
        os.kill(first.pid, signal.SIGTERM)
        first.communicate(timeout=30)


def test_an_archive_that_an_interrupted_load_left_is_removed(town: Town) -> None:
    left = town.cache / "kind/x/tmp/images-tar123"
    left.mkdir(parents=True)
    up = town.start()
    assert not left.exists()
    os.kill(up.pid, signal.SIGTERM)
    up.communicate(timeout=30)


def test_a_removal_that_was_interrupted_is_finished_by_the_next_one(town: Town) -> None:
    town.containers.write_text("x-control-plane\nx-worker\n")
    town.has("kind", f"echo $$ > {town.kind_pid}; sleep 50")
    command = [CLUSTER / "down.sh", "--name", "x"]
    down = subprocess.Popen(command, env=town.environment, stderr=subprocess.PIPE, text=True, start_new_session=True)
    until(town.kind_pid.exists, "kind deletes")
    os.kill(down.pid, signal.SIGINT)
    _, err = down.communicate(timeout=30)
    assert down.returncode == 130
    assert "of x is left: x-control-plane x-worker" in err
    assert not town.kind_runs()
    town.has("kind", "exit 0")
    assert town.run("down.sh", "--name", "x").returncode == 0
    assert town.containers.read_text() == ""
    assert not (town.cache / "kind/x").exists()


def test_a_cluster_that_not_all_nodes_have_joined_and_where_nothing_runs_is_made_anew(town: Town) -> None:
    town.containers.write_text("x-control-plane\nx-worker\nx-worker2\nx-worker3\n")
    town.has("kubectl", 'case "$*" in *"get nodes"*) echo node/x-control-plane ;; esac')
    up = town.start()
    os.kill(up.pid, signal.SIGTERM)
    out, _ = up.communicate(timeout=30)
    assert "not all nodes of x have joined it, and nothing runs there: it begins anew" in out
    assert town.log.read_text().startswith("export kubeconfig\ndelete cluster\ncreate cluster")


# Rolling


def roll(machine: Machine, directory: Path, kubectl: str) -> tuple[str, list[str]]:
    """What roll.sh prints, and the directories that it applies."""
    applied = directory / "applied"
    machine.has("kubectl", f"""case "$*" in *"apply -k"*) echo "$*" >> {applied} ;; esac; {kubectl}""")
    for region in ("east", "south", "west"):
        (directory / "out" / region / "topology").mkdir(parents=True, exist_ok=True)
        (directory / "out" / region / "namespace.json").touch()
        (directory / "out" / region / "kustomization.yaml").touch()
        (directory / "out" / region / "topology/topology.json").write_text(json.dumps(load().to_dict()))
    (directory / "out/kustomization.yaml").touch()
    done = machine.run("roll.sh", str(directory / "out"), "--context", "c")
    assert done.returncode == 0, done
    lines = applied.read_text().splitlines() if applied.exists() else []
    return done.stdout, [line.rsplit("/", 1)[-1] for line in lines]


#: Every object is there, the leader is in south, and the secrets are complete.
THERE = """case "$*" in
    *"get secrets"*) echo '{"items": []}' ;;
    *"exec zookeeper-0 -n south"*) exit 0 ;;
    *"exec zookeeper-0"*) exit 1 ;;
    *" diff "*) exit 1 ;;
    *"get statefulset zookeeper"*|*"get namespace"*) echo x ;;
    *"create -f -"*) cat >/dev/null ;;
esac"""


def test_a_change_is_applied_region_by_region_and_where_the_leader_is_last(machine: Machine, tmp_path: Path) -> None:
    said, applied = roll(machine, tmp_path, THERE)
    assert applied == ["east", "west", "south"]
    assert [line.rsplit(" ", 1)[-1] for line in said.splitlines()] == applied


def test_what_did_not_change_is_not_touched(machine: Machine, tmp_path: Path) -> None:
    assert roll(machine, tmp_path, THERE.replace("*\" diff \"*) exit 1", "*\" diff \"*) exit 0")) == ("", [])


def test_a_new_world_is_applied_at_once_for_its_regions_need_each_other(machine: Machine, tmp_path: Path) -> None:
    _, applied = roll(machine, tmp_path, THERE.replace("echo x", "true"))
    assert applied == ["out"]


# Names

NAMING = [path for path in (ROOT / "cluster").rglob("*") if path.is_file()]
NAMING += [ROOT / "Makefile", ROOT / ".ci/run", ROOT / ".devcontainer/devcontainer.json", *(ROOT / "scripts").iterdir()]
NAMING += [*(ROOT / ".github").rglob("*.yml"), *(ROOT / "pghc/cluster/kubernetes").glob("*.py")]


def test_every_module_and_file_that_a_script_or_manifest_names_is_there() -> None:
    modules, files = set(), set()
    for path in NAMING:
        text = path.read_text(errors="ignore")
        modules |= set(re.findall(r"(?:-m |import |from |args: \[)(pghc(?:\.\w+)+)", text))
        files |= set(re.findall(r"(?<![\w./$}])(?:pghc|cluster|scripts)/[\w/.-]+\.(?:py|toml|sql|sh|md)\b", text))
    assert {"pghc.cluster.kubernetes.pods", "pghc.cluster.local.fetch", "pghc.cli.commands"} <= modules
    assert [module for module in sorted(modules) if not find_spec(module)] == []
    assert "cluster/up.sh" in files
    assert [file for file in sorted(files) if not (ROOT / file).is_file()] == []


def test_the_backend_finds_the_scripts() -> None:
    assert (SCRIPTS / "up.sh").is_file()
