"""What a Postgres pod does with the volume that it finds, before any server runs. Postgres' programs are stand-ins."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "cluster/images/postgres/server.sh"
#: What is the pod's own: here in a directory of the test. No process of this machine is looked at.
PLACES = re.compile("/(etc/pghc|run/secrets/pghc|run/state|tmp|proc)(?=[/\\s])")
#: A data directory with one word in it, where --pgdata says.
MAKE = """for each; do case $each in --pgdata=*) directory=${each#*=} ;; esac; done
mkdir -p $directory/global; echo %s > $directory/global/pg_control"""


class Pod:
    """A pod of region us-east whose server is named by ``part`` and ``host``."""

    def __init__(self, directory: Path, part: str, host: str) -> None:
        self.directory, self.part, self.host = directory, part, host
        for place in ("etc/pghc", "run/secrets/pghc", "run/state", "tmp", "proc"):
            self.place(place).mkdir(parents=True)
        text = PLACES.sub(lambda found: str(self.place(found[1])), SCRIPT.read_text())
        (directory / "server.sh").write_text(text)
        for name in ("admin-password", "replicator-password"):
            self.place(f"run/secrets/pghc/{name}").write_text("a-secret-of-this-test")
        (directory / "bin").mkdir()
        self.has("postgres", "echo runs; exec sleep 60")
        self.has("initdb", MAKE % "new")
        self.has("pg_basebackup", MAKE % "copied")
        self.primary(None)

    @property
    def data(self) -> Path:
        return self.directory / "data"

    def place(self, path: str) -> Path:
        return self.directory / "places" / path

    def has(self, program: str, script: str) -> None:
        file = self.directory / "bin" / program
        file.write_text(f"#!{shutil.which('bash')}\n{script}\n")
        file.chmod(0o755)

    def told(self, primary: str, *, new: bool = False) -> None:
        """What Kubernetes says."""
        self.place("run/state/primary").write_text(primary)
        if new:
            self.place("run/state/new").write_text("yes")

    def primary(self, name: str | None, slot: str = "reserved") -> None:
        """Who answers as the region's primary, and what it has for this server."""
        is_another = f"*cluster_name*\\'{name}\\'*) echo f ;; *cluster_name*) echo t ;;"
        answers = f'case "$2" in {is_another} *wal_status*) echo {slot} ;; *) echo f ;; esac'
        self.has("psql", "echo refused >&2; exit 2" if name is None else answers)

    def volume(self, content: str, *, standby: bool = False) -> None:
        (self.data / "global").mkdir(parents=True)
        (self.data / "global/pg_control").write_text(content)
        if standby:
            (self.data / "standby.signal").touch()

    def starts(self, seconds: float = 1.5) -> tuple[bool, str]:
        """Whether Postgres runs after so long, and what is said."""
        env = {"PATH": f"{self.directory / 'bin'}:{os.environ['PATH']}", "REGION": "us-east", "HOSTNAME": self.host}
        env |= {"PGDATA": str(self.data), "MEMORY": "512"}
        command = [shutil.which("bash") or "bash", str(self.directory / "server.sh"), self.part]
        process = subprocess.Popen(command, env=env, stdout=subprocess.PIPE, text=True, start_new_session=True)
        running, deadline = self.place("tmp/running"), time.monotonic() + seconds
        while time.monotonic() < deadline and process.poll() is None and not running.exists():
            time.sleep(0.05)
        runs = running.exists()
        os.killpg(process.pid, signal.SIGTERM)
        said, _ = process.communicate(timeout=20)
        return runs, said


@pytest.fixture
def primary(tmp_path: Path) -> Pod:
    return Pod(tmp_path, "primary", "primary-0")


@pytest.fixture
def replica(tmp_path: Path) -> Pod:
    return Pod(tmp_path, "replica", "replica-1")


def test_the_primary_of_a_new_cluster_makes_its_data(primary: Pod) -> None:
    primary.told("us-east-primary", new=True)
    assert primary.starts()[0]
    assert (primary.data / "global/pg_control").read_text() == "new\n"


def test_where_the_cluster_has_a_history_an_empty_primary_is_refused_and_not_initialised(primary: Pod) -> None:
    primary.told("us-east-primary")
    runs, said = primary.starts()
    assert not runs
    assert not primary.data.exists()
    assert said.count("us-east-primary cannot start: its data is gone. `pghc promote us-east`") == 1


def test_a_volume_that_was_emptied_while_the_cluster_was_made_is_not_initialised_a_second_time(primary: Pod) -> None:
    primary.told("us-east-primary", new=True)
    assert primary.starts()[0]
    shutil.rmtree(primary.data)
    assert not primary.starts()[0]
    assert not primary.data.exists()


def test_a_primary_goes_on_with_its_data_while_nobody_else_is_the_primary(primary: Pod) -> None:
    primary.told("us-east-primary")
    primary.volume("old")
    assert primary.starts()[0]
    assert (primary.data / "global/pg_control").read_text() == "old"


def test_the_data_of_a_former_primary_is_refused_and_kept(primary: Pod) -> None:
    primary.told("us-east-replica-1")
    primary.volume("old")
    runs, said = primary.starts()
    assert not runs
    assert "cannot start: its data is that of a former primary" in said
    assert (primary.data / "global/pg_control").read_text() == "old"


def test_what_kubernetes_said_a_minute_ago_counts_less_than_another_one_that_is_the_primary(primary: Pod) -> None:
    primary.told("us-east-primary")
    primary.primary("us-east-replica-1")
    primary.volume("old")
    assert not primary.starts()[0]


def test_a_replica_that_was_promoted_goes_on_as_the_primary(replica: Pod) -> None:
    replica.told("us-east-replica-1")
    replica.volume("old")
    assert replica.starts()[0]
    shutil.rmtree(replica.data)
    assert not replica.starts()[0], "and its empty volume is refused like any primary's"


def test_an_empty_replica_copies_its_primary(replica: Pod) -> None:
    replica.told("us-east-primary")
    replica.primary("us-east-primary")
    assert replica.starts()[0]
    assert (replica.data / "global/pg_control").read_text() == "copied\n"
    assert (replica.data / "standby.signal").exists()


def test_an_empty_replica_waits_for_a_primary_that_is_away(replica: Pod) -> None:
    replica.told("us-east-primary")
    assert not replica.starts()[0]
    assert not replica.data.exists()


@pytest.mark.parametrize(("slot", "given_up"), [("reserved", False), ("lost", True), ("", True)])
def test_a_replica_gives_up_its_data_only_if_its_primary_has_not_the_log_that_it_lacks(
    replica: Pod, slot: str, given_up: bool
) -> None:
    replica.told("us-east-primary")
    replica.primary("us-east-primary", slot)
    replica.volume("old", standby=True)
    runs, said = replica.starts()
    assert runs is not given_up, "where there is no slot it waits for one"
    assert ("the primary keeps no log for us-east-replica-1" in said) is given_up
    assert (replica.data / "global/pg_control").read_text() == "old", "kept until a copy begins"


def test_a_replica_goes_on_while_its_primary_is_away(replica: Pod) -> None:
    replica.told("us-east-primary")
    replica.volume("old", standby=True)
    assert replica.starts()[0]


def test_a_server_that_is_held_does_nothing(replica: Pod) -> None:
    replica.told("us-east-primary")
    replica.primary("us-east-primary")
    replica.place("tmp/held").touch()
    assert not replica.starts()[0]
    assert not replica.data.exists()
