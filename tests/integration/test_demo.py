"""The story in a terminal, told on a cluster of its own, which is gone afterwards however the story ends."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from pghc.cluster.local.embedded import Embedded

TELL = [sys.executable, "-m", "pghc", "demo", "--fast", "--dir"]


def read_until(demo: subprocess.Popen[str], words: str) -> str:
    """What it says up to the line that holds ``words``."""
    assert demo.stdout
    said = ""
    for line in demo.stdout:
        said += line
        if words in line:
            return said
    raise AssertionError(f"it ended without {words!r}:\n{said}")


def processes_of(demo: subprocess.Popen[str]) -> list[psutil.Process]:
    """Its servers, and what watches over them."""
    found = psutil.Process(demo.pid).children(recursive=True)
    assert len(found) > 12
    return found


@pytest.mark.timeout(240)
def test_the_demo_catches_the_naive_writers_and_proves_the_causal_ones(tmp_path: Path) -> None:
    place = tmp_path / "demo"
    with subprocess.Popen([*TELL, place], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as demo:
        first = read_until(demo, "Number, wait, insert")
        servers = processes_of(demo)
        rest, errors = demo.communicate(timeout=200)
    assert demo.returncode == 0, first + rest + errors
    said = " ".join((first + rest).split())
    assert "us-east (Ashburn)" in said
    assert "of the history: invalid" in said
    assert "these entries claim place" in said
    assert "number taken by a client in which took" in said
    assert "3 chains of" in said
    assert "every link holds" in said
    assert "make lab" in said
    assert "\x1b" not in first + rest
    assert psutil.wait_procs(servers, timeout=10)[1] == []
    assert not place.exists()


def test_the_demo_refuses_a_directory_that_exists(tmp_path: Path) -> None:
    (tmp_path / "precious").write_text("mine")
    done = subprocess.run([*TELL, tmp_path], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 2
    assert "exists" in done.stderr
    assert (tmp_path / "precious").read_text() == "mine"


@pytest.mark.slow
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGKILL, -9)])
def test_a_demo_that_is_ended_early_leaves_no_process(tmp_path: Path, number: signal.Signals, code: int) -> None:
    with subprocess.Popen([*TELL, tmp_path / "demo"], stdout=subprocess.PIPE, text=True) as demo:
        read_until(demo, "Everybody writes")
        servers = processes_of(demo)
        demo.send_signal(number)
        assert demo.wait(timeout=30) == code
    assert psutil.wait_procs(servers, timeout=10)[1] == []
    Embedded(tmp_path / "demo").down(purge=True)  # after kill -9 nobody was left to delete its data
