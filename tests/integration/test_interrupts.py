"""Ctrl-C, twice, at any moment of any command: it ends in bounded time, says what is left, and leaves nothing.

With ``PGHC_MOMENTS=20`` each command is interrupted at so many random moments, of the seed ``PGHC_SEED``.
"""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from uuid import uuid4

import psutil
import pytest

from pghc.cluster.local.embedded import Embedded

MOMENTS, SEED = int(os.environ.get("PGHC_MOMENTS", "1")), os.environ.get("PGHC_SEED", "1")
#: Seconds after the last Ctrl-C within which everything has ended.
BOUND = 60

#: Commands on a running cluster, and the seconds within which they are interrupted.
COMMANDS = {
    "status": 3,
    "append": 5,
    "tail --follow --all": 4,
    "verify": 4,
    "run --seconds 40": 12,
    "run --seconds 40 --continue --reads 1": 12,
    "run --seconds 40 --nemesis --seed 5": 16,
    "fault kill us-east-replica-1 --seconds 40": 6,
    "fault pause eu-west-primary --seconds 40": 6,
    "fault partition us-east ap-south --seconds 40": 5,
    "fault slow us-east ap-south 300 --seconds 40": 5,
    "api --port 0": 6,
}
#: Those that have a cluster of their own, which is not there before nor, unless it is a stopped one, after.
OWN = {
    "up": 12, "down": 5, "demo --fast": 40,
    "watch --no-browser": 15, "lab --no-browser --port 0": 20, "bench --quick": 60,
}  # fmt: skip
SHORT = ("run --seconds 40", "run --seconds 40 --nemesis --seed 5", "fault pause eu-west-primary --seconds 40")


@dataclass
class Sandbox:
    """Where a command runs, and what it may not leave behind."""

    place: Path
    directory: Path

    def __post_init__(self) -> None:
        self.mark = uuid4().hex
        self.tmp = self.place / "tmp"
        self.tmp.mkdir()
        self.environment = {
            **os.environ, "PGHC_DIR": str(self.directory), "TMPDIR": str(self.tmp), "PGHC_MARK": self.mark,
        }  # fmt: skip

    def interrupt(self, command: str, moment: float, second: float) -> str:
        """Run it, and press Ctrl-C after ``moment`` and once more ``second`` seconds later; what it said."""
        words = [sys.executable, "-m", "pghc", *command.split()]
        pipe = subprocess.PIPE
        process = subprocess.Popen(
            words, env=self.environment, stdout=pipe, stderr=pipe, text=True, process_group=0, cwd=ROOT
        )
        try:
            with suppress(subprocess.TimeoutExpired):
                process.wait(moment)
            for pause in (second, 0):
                with suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGINT)  # as a terminal does
                time.sleep(pause)
            out, said = process.communicate(timeout=BOUND)
        finally:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        about = f"{command}, at {moment:.2f} s and {second:.2f} s later: {process.returncode}\n{out}\n{said}"
        if "Traceback" in said:  # the interpreter had not begun to run the command line yet
            assert "commands.py" not in said, about
            return about
        assert process.returncode in (0, 1, 2, 130, -signal.SIGINT), about
        if process.returncode == 130 and "api" not in command:
            assert "interrupted; " in said, about
        return about

    def check_nothing_is_left(self, about: str, *, cluster: bool) -> None:
        deadline = time.monotonic() + 15
        while left := list(self._processes(cluster=cluster)):
            assert time.monotonic() < deadline, f"{about}\nleft: {left}"
            time.sleep(0.1)
        names = [path.name for path in self.tmp.iterdir() if path.name.startswith("pghc-") and path.name[5:] != UID]
        assert names == [], about

    def _processes(self, *, cluster: bool) -> Iterator[str]:
        for process in psutil.process_iter():
            with suppress(psutil.Error):
                words = process.cmdline()
                of_cluster = cluster and any(str(self.directory) in word for word in words)
                if of_cluster or process.environ().get("PGHC_MARK") == self.mark:
                    yield " ".join(words)


ROOT = Path(__file__).parents[2]
UID = str(os.getuid())


def moments(command: str, longest: float) -> Iterator[tuple[float, float]]:
    dice = random.Random(f"{SEED} {command}")
    for _ in range(MOMENTS):
        yield dice.uniform(0.0, longest), dice.choice((0.0, dice.uniform(0.0, 2.0)))


@pytest.mark.timeout(60 * MOMENTS + 120)
@pytest.mark.parametrize(
    "command", [pytest.param(each, marks=() if each in SHORT else pytest.mark.slow) for each in COMMANDS]
)
def test_a_command_that_is_interrupted_twice_leaves_nothing_and_the_next_one_works(
    command: str, cluster: Embedded, tmp_path: Path
) -> None:
    sandbox = Sandbox(tmp_path, cluster.directory)
    for moment, second in moments(command, COMMANDS[command]):
        about = sandbox.interrupt(command, moment, second)
        sandbox.check_nothing_is_left(about, cluster=False)
        assert cluster.status().healthy, about
        assert all(link.delay_ms == link.nominal_ms for link in cluster.links()), about
        following = subprocess.run(
            [sys.executable, "-m", "pghc", "run", "--clients", "1", "--seconds", "0.3"],
            env=sandbox.environment, capture_output=True, text=True, timeout=90, check=False,
        )  # fmt: skip
        assert following.returncode == 0, f"{about}\nthen: {following.stdout}{following.stderr}"


@pytest.mark.slow
@pytest.mark.timeout(120 * MOMENTS + 120)
@pytest.mark.parametrize("command", OWN)
def test_a_command_with_a_cluster_of_its_own_that_is_interrupted_twice_leaves_no_cluster(
    command: str, tmp_path: Path
) -> None:
    for number, (moment, second) in enumerate(moments(command, OWN[command])):
        place = tmp_path / str(number)
        place.mkdir()
        sandbox = Sandbox(place, place / "cluster")
        asked = command
        if command == "down":
            Embedded(sandbox.directory).up()
        elif command.startswith("demo"):
            asked = f"{command} --dir {sandbox.directory}"
        try:
            about = sandbox.interrupt(asked, moment, second)
            if Embedded(sandbox.directory).status().running:  # `up` was done before, or `down` had not begun
                assert command in ("up", "down"), about
                Embedded(sandbox.directory).down()
            sandbox.check_nothing_is_left(about, cluster=True)
            if command in ("demo --fast", "bench --quick"):
                assert not sandbox.directory.exists(), about
            Embedded(sandbox.directory).up()  # the next one works
        finally:
            Embedded(sandbox.directory).down(purge=True)
            shutil.rmtree(place)
