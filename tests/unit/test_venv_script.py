"""What a newcomer reads when Python is missing or too old."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """As much of the repository as scripts/venv.sh reads."""
    for name in ("scripts", "requirements"):
        shutil.copytree(ROOT / name, tmp_path / name)
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    return tmp_path


def run(checkout: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    command, env = ["sh", "scripts/venv.sh", "run"], {**os.environ, **environment}
    return subprocess.run(command, cwd=checkout, env=env, capture_output=True, text=True, timeout=60, check=False)


def test_an_old_python_is_refused_by_its_version_with_what_to_do(checkout: Path) -> None:
    old = checkout / "python3.9"
    old.write_text('#!/bin/sh\n[ "$1" = --version ] && echo "Python 3.9.2" && exit 0\nexit 1\n')
    old.chmod(0o755)
    done = run(checkout, PYTHON=str(old))
    assert done.returncode == 2
    assert "needs Python 3.11 or later" in done.stderr
    assert "Python 3.9.2" in done.stderr
    assert "make demo PYTHON=" in done.stderr
    assert not (checkout / ".venv").exists()


def test_without_any_python_the_message_says_so(checkout: Path) -> None:
    done = run(checkout, PYTHON=str(checkout / "python3"))
    assert done.returncode == 2
    assert "is not installed" in done.stderr


def test_a_finished_environment_is_not_made_again(checkout: Path) -> None:
    (checkout / ".venv/bin").mkdir(parents=True)
    (checkout / ".venv/bin/python").symlink_to("/bin/true")
    files = [checkout / "requirements/run.txt", checkout / "pyproject.toml"]
    locked = subprocess.run(["cksum"], input=b"".join(map(Path.read_bytes, files)), capture_output=True, check=True)
    (checkout / ".venv/.installed-run").write_bytes(locked.stdout)
    done = run(checkout, PYTHON="/bin/false")
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
