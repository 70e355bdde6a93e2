"""What the scripts of cluster/ say of a machine that lacks something: one message with the remedy, nothing done.

The machine is made up of the programs in one directory, some of them stand-ins.
"""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

CLUSTER = Path(__file__).parents[2] / "cluster"
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
    "rm",
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
        directories = dict.fromkeys(("HOME", "PGHC_CACHE", "PGHC_ENGINE"), str(self.cache))
        return subprocess.run(
            [CLUSTER / script, *arguments],
            env={"PATH": str(self.programs)} | directories,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )


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
    machine.has("kubectl", "exit 0")
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
