"""What people type, on real servers: answers, exit codes, and what a program can read."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack
from functools import partial
from hashlib import md5
from pathlib import Path
from uuid import uuid4

import pytest

from pghc.chain import Row, link
from pghc.cli.commands import main
from pghc.cluster.local.embedded import Embedded
from pghc.faults.injection import Faults
from pghc.lab.lessons import judge
from pghc.store import Reader, Store
from pghc.workload import chains, runs
from pghc.workload.lease import Lease
from pghc.writers import open_writer

VALID, INVALID, UNKNOWN = 0, 1, 2


class Pghc:
    """Runs ``pghc`` on the cluster in ``directory``, by calling `main`, or with `start` as a process of its own."""

    def __init__(self, directory: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
        self.environment = {**os.environ, "PGHC_DIR": str(directory)}
        self._monkeypatch, self._capsys = monkeypatch, capsys

    def __call__(self, *arguments: str, expect: int = 0) -> str:
        """Its standard output; with another exit code than ``expect`` the test fails."""
        done = self.run(*arguments)
        assert done.returncode == expect, f"exit code {done.returncode}\n{done.stdout}\n{done.stderr}"
        assert "Traceback" not in done.stderr
        return done.stdout

    def fails(self, *arguments: str) -> str:
        """Its standard error when it must fail without a verdict."""
        done = self.run(*arguments)
        assert done.returncode == UNKNOWN, f"exit code {done.returncode}\n{done.stdout}\n{done.stderr}"
        assert done.stdout == ""
        assert "Traceback" not in done.stderr
        assert "defect" not in done.stderr
        return done.stderr

    def run(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        with self._monkeypatch.context() as patched:
            patched.setattr(sys, "argv", ["pghc", *arguments])
            patched.setenv("PGHC_DIR", self.environment["PGHC_DIR"])
            patched.setattr(signal, "signal", lambda *_: None)  # pytest's own handlers stay
            with pytest.raises(SystemExit) as ended:
                main()
        said = self._capsys.readouterr()
        return subprocess.CompletedProcess([], int(ended.value.code or 0), said.out, said.err)

    def start(self, *arguments: str) -> subprocess.Popen[str]:
        """Begin it; the test ends it."""
        pipe = subprocess.PIPE
        command = [sys.executable, "-m", "pghc", *arguments]
        return Started(command, env=self.environment, stdout=pipe, stderr=pipe, text=True)


class Started(subprocess.Popen[str]):
    """A process that does not outlive the block that it is for, whatever fails there."""

    def __exit__(self, *error: object) -> None:
        if self.poll() is None:
            self.kill()
        super().__exit__(None, None, None)


@pytest.fixture
def pghc(cluster: Embedded, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Pghc:
    """The command line, on an empty chain."""
    chains.begin_chain([cluster.view(name) for name in cluster.topology.names])
    return Pghc(cluster.directory, monkeypatch, capsys)


@pytest.fixture
def nowhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Pghc:
    """The command line where no cluster is."""
    return Pghc(tmp_path / "none", monkeypatch, capsys)


def rows(text: str) -> list[Row]:
    return [Row(**json.loads(line)) for line in text.splitlines()]


# Status


def test_status_names_every_server_and_the_memory(pghc: Pghc, cluster: Embedded) -> None:
    said = pghc("status")
    for node in cluster.topology.nodes:
        if node.role != "api":
            assert node.name in said
    assert " MB, started in " in said


def test_status_json_says_what_answers(pghc: Pghc, cluster: Embedded) -> None:
    status = json.loads(pghc("status", "--json"))
    assert status["healthy"] is True
    assert {node["name"] for node in status["nodes"] if node["accessible"]} >= {"us-east-primary", "us-east-zookeeper"}


def test_status_of_a_cluster_that_lost_a_server_is_1_and_up_heals_it(pghc: Pghc, cluster: Embedded) -> None:
    cluster.kill("eu-west-replica-1")
    said = pghc("status", expect=1)
    [line] = [line for line in said.splitlines() if line.startswith("eu-west-replica-1")]
    assert "stopped" in line
    assert "stopped" not in pghc("up")
    pghc("status")


def test_status_without_a_cluster_is_2_and_says_how_to_get_one(nowhere: Pghc) -> None:
    assert "pghc up" in nowhere("status", expect=UNKNOWN)
    assert json.loads(nowhere("status", "--json", expect=UNKNOWN))["running"] is False


def test_down_without_a_cluster_does_nothing(nowhere: Pghc) -> None:
    assert nowhere("down") == ""
    assert nowhere("down", "--purge") == ""


# The chain


def test_what_is_appended_in_one_region_is_at_the_tail_of_another(pghc: Pghc) -> None:
    first = rows(pghc("append", "--region", "us-east", "--json"))
    second = rows(pghc("append", "--region", "ap-south", "--json"))
    assert first == [Row(1, "us-east-primary", link(1, "us-east-primary", ""))]
    assert second == [Row(2, "ap-south-primary", link(2, "ap-south-primary", first[0].hash))]
    deadline = time.monotonic() + 5
    while (seen := rows(pghc("tail", "--region", "eu-west", "--json"))) != first + second:
        assert time.monotonic() < deadline, seen
    assert rows(pghc("tail", "-n", "1", "--region", "ap-south", "--json")) == second


def test_an_append_repeated_under_its_request_id_happens_once(pghc: Pghc) -> None:
    request = str(uuid4())
    first = pghc("append", "--region", "us-east", "--request-id", request, "--json")
    assert pghc("append", "--region", "eu-west", "--request-id", request, "--json") == first
    assert len(rows(pghc("tail", "--region", "us-east", "--json"))) == 1


@pytest.mark.parametrize("writer", ["naive", "causal"])
def test_an_append_without_its_primary_says_whether_it_may_have_happened(
    pghc: Pghc, cluster: Embedded, writer: str
) -> None:
    request = str(uuid4())
    append = ("append", "--region", "us-east", "--writer", writer, "--timeout", "2", "--request-id", request)
    with Faults(cluster).kill("us-east-primary"):
        said = pghc.fails(*append)
    assert said.startswith("error: us-east-primary")
    if " definite: this write did not happen" in said:
        assert rows(pghc("tail", "--region", "us-east", "--all", "--json")) == []
    else:
        assert "indefinite: this write may have happened" in said
        assert request in said.splitlines()[-1]
    pghc(*append)
    assert len(rows(pghc("tail", "--region", "us-east", "--json"))) == 1


def test_tail_follows_what_arrives_until_it_is_interrupted(pghc: Pghc) -> None:
    pghc("append", "--region", "us-east")
    with pghc.start("tail", "--follow", "--region", "eu-west", "--json") as tail:
        assert tail.stdout
        assert tail.stderr
        assert Row(**json.loads(tail.stdout.readline())).zk_id == 1
        pghc("append", "--region", "ap-south")
        assert Row(**json.loads(tail.stdout.readline())).zk_id == 2
        tail.send_signal(signal.SIGINT)
        assert tail.wait(timeout=10) == 130
        assert "Traceback" not in tail.stderr.read()


def test_tail_of_all_shows_lower_numbers_that_come_late_and_a_chain_that_is_begun_anew(
    pghc: Pghc, cluster: Embedded
) -> None:
    def row(zk_id: int) -> Row:
        return Row(zk_id, "us-east-primary", md5(str(zk_id).encode(), usedforsecurity=False).hexdigest())

    with Store(cluster.view("us-east")) as store:

        def insert(zk_id: int) -> None:
            store.insert(row(zk_id), str(uuid4()), store.cursor().chain)

        for zk_id in (1, 4, 7):
            insert(zk_id)
        with pghc.start("tail", "--follow", "--all", "-n", "1", "--json") as tail:
            assert tail.stdout
            seen = [Row(**json.loads(tail.stdout.readline()))]
            for zk_id in (9, 5, 2, 10):
                insert(zk_id)
                seen.append(Row(**json.loads(tail.stdout.readline())))
            assert seen == [row(zk_id) for zk_id in (7, 9, 5, 2, 10)]
            chains.begin_chain([cluster.view(name) for name in cluster.topology.names])
            insert(1)
            assert Row(**json.loads(tail.stdout.readline())) == row(1)
            insert(3)
            assert Row(**json.loads(tail.stdout.readline())) == row(3)
            tail.send_signal(signal.SIGINT)
            assert tail.wait(timeout=10) == 130


def test_a_reader_that_has_seen_enough_ends_tail_quietly(pghc: Pghc) -> None:
    for _ in range(2):
        pghc("append")
    with pghc.start("tail", "--follow", "--json") as tail:
        assert tail.stdout
        assert tail.stderr
        assert Row(**json.loads(tail.stdout.readline())).zk_id == 1
        tail.stdout.close()
        pghc("append")
        assert tail.wait(timeout=20) == 141
        assert tail.stderr.read() == ""


# Verdicts


def test_verify_of_an_empty_chain_cannot_tell(pghc: Pghc) -> None:
    assert "Unknown" in pghc("verify", expect=UNKNOWN)


def test_verify_of_causal_appends_is_valid_and_of_a_tampered_row_invalid(pghc: Pghc, cluster: Embedded) -> None:
    for region in cluster.topology.names:
        pghc("append", "--region", region)
    deadline = time.monotonic() + 5
    while "3 entries" not in pghc("verify") and time.monotonic() < deadline:
        pass
    assert json.loads(pghc("verify", "--json"))["valid"] is True
    assert "Valid" in pghc("verify", "--last", "2", "--region", "us-east")
    superuser = Reader(cluster.view("us-east"), "us-east-primary", admin=True)
    with superuser, superuser.connection("tamper", writes=True) as connection:
        connection.execute("update chain set hash = md5('another') where zk_id = 2")
    assert "entry 2" in pghc("verify", "--region", "us-east", expect=INVALID)
    assert "entry 2" in pghc("verify", "--last", "2", "--region", "us-east", expect=INVALID)
    assert "Valid" in pghc("verify", "--region", "eu-west")
    whole = json.loads(pghc("verify", "--json", expect=INVALID))
    assert whole["regions"]["us-east"]["valid"] is False
    assert whole["anomalies"][0]["zk_id"] == 2


@pytest.fixture
def history(tmp_path: Path) -> Path:
    return tmp_path / "history.jsonl.gz"


def test_naive_writers_are_judged_invalid_and_check_agrees(pghc: Pghc, history: Path, tmp_path: Path) -> None:
    ran = ("run", "--writer", "naive", "--clients", "2", "--seconds", "2", "--history", str(history), "--json")
    report = json.loads(pghc(*ran, expect=INVALID))
    assert report["verdict"]["valid"] is False
    assert sum(report["appends"].values()) > 0
    assert json.loads(pghc("check", str(history), "--json", expect=INVALID)) == report["verdict"]
    pghc("verify", expect=INVALID)
    pghc("check", str(history), "--edn", str(tmp_path / "h.edn"), "--shiviz", str(tmp_path / "h.log"), expect=INVALID)
    assert (tmp_path / "h.edn").read_text().startswith("{:index 0")
    assert (tmp_path / "h.log").read_text().startswith("(?<host>")


def test_causal_writers_are_judged_valid_with_their_reads(pghc: Pghc, history: Path) -> None:
    said = pghc("run", "--writer", "causal", "--seconds", "3", "--reads", "1", "--history", str(history))
    assert "Valid" in said
    assert "Valid" in pghc("check", str(history))
    assert "3 regions agree" in pghc("verify")


def test_a_run_that_continues_keeps_the_chain(pghc: Pghc) -> None:
    first = rows(pghc("append", "--json"))
    pghc("run", "--clients", "1", "--seconds", "1", "--continue")
    assert rows(pghc("tail", "-n", "1000", "--json"))[:1] == first
    pghc("run", "--clients", "1", "--seconds", "1")
    assert len(rows(pghc("tail", "-n", "1000", "--json"))) >= 1


def test_what_would_use_a_chain_that_is_in_use_is_refused_at_once_and_told_by_whom(
    pghc: Pghc, cluster: Embedded
) -> None:
    with Lease(cluster.view("eu-west"), "a visit", "causal", fresh=True):
        for arguments in (("run",), ("run", "--continue", "--writer", "naive"), ("append",), ("run", "--nemesis")):
            began = time.monotonic()
            assert f"a visit: process {os.getpid()} of " in pghc.fails(*arguments)
            assert time.monotonic() - began < 10
    pghc("append")


# Bad input and bad surroundings


@pytest.mark.parametrize(
    "arguments",
    [
        ("append", "--region", "mars"),
        ("tail", "--region", "mars"),
        ("verify", "--region", "mars"),
        ("append", "--writer", "psychic"),
        ("run", "--writer", "psychic"),
    ],
)
def test_an_unknown_name_is_refused_with_the_known_ones(pghc: Pghc, arguments: tuple[str, ...]) -> None:
    said = pghc.fails(*arguments)
    assert "us-east, eu-west, ap-south" in said or "naive, numbered" in said


@pytest.mark.parametrize(
    "arguments",
    [
        (),
        ("fly",),
        ("run", "--clients", "0"),
        ("run", "--clients", "many"),
        ("run", "--seconds", "-1"),
        ("run", "--seconds", "nan"),
        ("tail", "-n", "0"),
        ("verify", "--last", "0"),
        ("append", "--request-id", "one"),
        ("append", "--timeout", "0"),
        ("check",),
        ("status", "--backend", "cloud"),
    ],
)
def test_wrong_usage_is_2(nowhere: Pghc, arguments: tuple[str, ...]) -> None:
    done = nowhere.run(*arguments)
    assert done.returncode == UNKNOWN
    assert done.stderr + done.stdout
    assert "Traceback" not in done.stderr
    assert "defect" not in done.stderr


def test_the_bench_is_found_from_wherever_it_is_asked_for(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "pghc", "bench", "--help"], cwd=tmp_path, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "--quick" in done.stdout


@pytest.mark.parametrize("arguments", [("append",), ("tail",), ("verify",), ("run", "--seconds", "1")])
def test_without_a_cluster_each_command_says_how_to_start_one(nowhere: Pghc, arguments: tuple[str, ...]) -> None:
    assert "pghc up" in nowhere.fails(*arguments)


def topology(regions: int) -> str:
    """A topology file without delays."""
    return "".join(f"[[regions]]\nname = 'r{n}'\nlatitude = 0\nlongitude = 0\n" for n in range(regions))


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("", "regions"),
        ("regions = 3", "regions"),
        (topology(1), "1 region"),
        (topology(6), "6 region"),
        (topology(2), "missing"),
        (topology(2) + "[delays_ms]\n'r0 r1' = -1", "-1"),
        ("not toml", "TOML"),
    ],
)
def test_a_bad_topology_is_refused_and_nothing_is_made(
    nowhere: Pghc, tmp_path: Path, text: str, fault: str
) -> None:
    (tmp_path / "topology.toml").write_text(text)
    assert fault in nowhere.fails("up", "--topology", str(tmp_path / "topology.toml"))
    assert "absent.toml" in nowhere.fails("up", "--topology", str(tmp_path / "absent.toml"))
    assert not (tmp_path / "none").exists()


def test_a_history_that_is_none_is_refused_by_line(nowhere: Pghc, tmp_path: Path) -> None:
    (tmp_path / "h.jsonl").write_text('{"time": 1\n')
    assert "line 1" in nowhere.fails("check", str(tmp_path / "h.jsonl"))
    assert "absent" in nowhere.fails("check", str(tmp_path / "absent"))
    (tmp_path / "h.jsonl").write_text("")
    assert "Unknown" in nowhere("check", str(tmp_path / "h.jsonl"), expect=UNKNOWN)


def test_a_history_that_cannot_be_written_is_refused_before_the_run(pghc: Pghc, tmp_path: Path) -> None:
    begin = time.monotonic()
    assert "cannot be written" in pghc.fails("run", "--seconds", "30", "--history", str(tmp_path / "no" / "h.jsonl"))
    assert time.monotonic() - begin < 15


def test_a_run_that_is_interrupted_ends_with_130_and_leaves_no_client(pghc: Pghc) -> None:
    with pghc.start("run", "--seconds", "30") as run:
        time.sleep(4)
        run.send_signal(signal.SIGINT)
        assert run.wait(timeout=20) == 130
        assert run.stderr
        assert "Traceback" not in run.stderr.read()


def test_a_run_amid_faults_that_is_interrupted_waits_for_no_fault_that_was_yet_to_come_and_heals_what_was_done(
    pghc: Pghc, cluster: Embedded
) -> None:
    with pghc.start("run", "--nemesis", "--seed", "3", "--seconds", "300") as run:
        assert run.stderr
        first = run.stderr.readline()
        assert " s  " in first, first
        began = time.monotonic()
        run.send_signal(signal.SIGINT)
        time.sleep(0.2)
        run.send_signal(signal.SIGINT)
        assert run.wait(timeout=40) == 130
        said = run.stderr.read()
    assert time.monotonic() - began < 30
    assert "Traceback" not in said
    assert "healed" in said.splitlines()[-1]
    assert cluster.status().healthy


@pytest.mark.parametrize("how", ["cut off", "killed"])
def test_a_run_whose_region_is_away_in_the_end_could_not_tell_and_says_why(
    pghc: Pghc, cluster: Embedded, history: Path, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    monkeypatch.setattr(runs, "catch_up", partial(runs.catch_up, limit=3))
    faults, away = Faults(cluster), ExitStack()

    def go_away(crew: runs.Crew) -> None:
        crew.wait(1.5)
        if how == "killed":
            away.enter_context(faults.kill("ap-south-primary"))
        else:
            away.enter_context(faults.partition("ap-south", "eu-west"))
            away.enter_context(faults.partition("ap-south", "us-east"))

    with away:
        run = runs.run(cluster, "causal", seconds=2.5, timeout=2, during=go_away, history_path=history)
        assert run.verdict.valid is None, str(run.verdict)
        assert "ap-south" in run.verdict.reason
        assert "ap-south" in run.behind
        assert pghc.run("check", str(history)).returncode == UNKNOWN
    chains.settle([cluster.view(name) for name in cluster.topology.names])
    assert "Valid" in pghc("verify")


def test_an_exercise_leaves_no_directory_behind_but_the_one_of_the_histories(
    cluster: Embedded, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    _, counts, path = judge(cluster, lambda view: open_writer("naive", view), seconds=1)
    assert counts["ok"] > 0
    assert [each.name for each in tmp_path.iterdir()] == [f"pghc-{os.getuid()}"]
    assert list(path.parent.iterdir()) == [path]


def test_output_in_a_pipe_has_no_colour(pghc: Pghc) -> None:
    pghc("append")
    assert "\x1b" not in pghc("tail") + pghc("status") + pghc("verify") + pghc("--help")


def test_a_lab_on_a_cluster_that_ran_already_says_that_it_still_runs(pghc: Pghc, cluster: Embedded) -> None:
    with pghc.start("lab", "--no-browser", "--port", "0") as lab:
        assert lab.stdout
        line = lab.stdout.readline()
        while "The cluster runs." not in line:
            assert line, "it has ended"
            line = lab.stdout.readline()
        time.sleep(3)  # JupyterLab takes Ctrl-C for itself once it is up
        lab.send_signal(signal.SIGINT)
        said, _ = lab.communicate(timeout=60)
    assert "The cluster still runs: `pghc down` stops it." in said
    assert cluster.status().healthy
