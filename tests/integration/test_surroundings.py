"""A cluster comes up, is written to and ends amid whatever a user's shell and directories are like."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from benchmarks.surroundings import TOPOLOGY
from pghc.cluster.local.embedded import Embedded

#: Each of them kept a cluster from starting, or a client from connecting.
NASTY = {
    "PGSSLMODE": "require",
    "PGHOSTADDR": "10.255.255.1",
    "PGCHANNELBINDING": "require",
    "PGSERVICE": "nowhere",
    "PGOPTIONS": "-c no.such=1 -c nonsense",
    "PGREQUIREAUTH": "none",
    "PGTARGETSESSIONATTRS": "standby",
    "PGSSLCERTMODE": "require",
    "PGTZ": "nowhere",
    "PGDATESTYLE": "nonsense",
    "PGCLIENTENCODING": "nonsense",
    "PGPORT": "1",
    "PGUSER": "nobody",
    "PGPASSFILE": "/nowhere",
    "JAVA_TOOL_OPTIONS": "-Xmx1m",
    "JDK_JAVA_OPTIONS": "-Xnonsense",
    "_JAVA_OPTIONS": "-Xmx1m",
    "CLASSPATH": "/nowhere",
    "PYTHONOPTIMIZE": "2",
    "PYTHONWARNINGS": "ignore",
    "LC_ALL": "C",
    "TZ": "nowhere",
    "TMPDIR": "/nowhere",
}


NAMES = {
    "plain": "plain",
    "quotes": "Größe 100% = #1 \\ 'q' \"d\" $HOME",
    "dash": "-rf",
    "long": "n" * 200,
    "foreign": "日本 :;&|<>*?",
}


@pytest.fixture
def place() -> Iterator[Path]:
    """Where servers keep their data also when root starts them: others may pass."""
    with tempfile.TemporaryDirectory(dir="/var/tmp") as temporary:
        place = Path(temporary)
        place.chmod(0o755)
        yield place
        for each in place.iterdir():
            if each.is_dir():
                Embedded(each).down(purge=True)


def pghc(*words: str | Path, cwd: Path, before: str = "", **variables: str) -> subprocess.CompletedProcess[str]:
    """A command in a shell of its own, after ``before``."""
    shell = ["bash", "-c", f'{before}\nexec "$@"', "bash", sys.executable, "-P", "-m", "pghc", *words]
    return subprocess.run(
        shell, env=os.environ | variables, cwd=cwd, capture_output=True, text=True, timeout=120, check=False
    )


@pytest.mark.parametrize("name", NAMES.values(), ids=NAMES)
def test_a_cluster_lives_amid_nasty_variables_and_in_a_directory_of_any_name(place: Path, name: str) -> None:
    """With a mask that takes everything away, few open files, and a module in the way where one works."""
    (place / "topology.toml").write_text(TOPOLOGY)
    (place / "random.py").write_text("raise SystemExit('this is no module of yours')")
    shell = "umask 777; ulimit -Sn 64"
    done = pghc("up", "--dir", name, "--topology", "topology.toml", cwd=place, before=shell, **NASTY)
    assert done.returncode == 0, done.stderr
    done = pghc("run", "--dir", name, "--seconds", "1", cwd=place, before=shell, **NASTY)
    assert done.returncode == 0, done.stderr
    assert "Valid" in done.stdout
    done = pghc("down", "--purge", "--dir", name, cwd=place, before=shell, **NASTY)
    assert done.returncode == 0, done.stderr
    assert not (place / name).exists()


def test_a_line_end_in_a_directorys_name_is_refused_and_leaves_nothing(place: Path) -> None:
    done = pghc("up", "--dir", "lab\n", cwd=place)
    assert done.returncode == 2
    assert "line's end" in done.stderr
    assert not list(place.iterdir())
