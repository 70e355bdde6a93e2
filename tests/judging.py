"""The other judge: Porcupine on the files that `pghc check` judges, built with Go from ``tests/judge``."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

SOURCE = Path(__file__).parent / "judge"
Judge = Callable[[Sequence[Path]], list[str]]


def build(directory: Path) -> Judge:
    """The judge: for each file "" where its appends are linearizable, else why not. Skips where it cannot be built."""
    go = shutil.which("go")
    if go is None:
        pytest.skip("Go is not installed")
    environment = os.environ | {"GOTOOLCHAIN": "local", "GOFLAGS": "-mod=readonly"}

    def run(*arguments: str | Path, seconds: float = 100) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            arguments, cwd=SOURCE, env=environment, capture_output=True, text=True, timeout=seconds
        )

    had = run(go, "mod", "download")
    if had.returncode:
        pytest.skip(f"Porcupine cannot be had: {had.stderr.strip().splitlines()[-1]}")
    built = run(go, "build", "-o", directory / "judge", ".")
    assert not built.returncode, built.stderr

    def judge(paths: Sequence[Path]) -> list[str]:
        done = run(directory / "judge", *paths)
        assert not done.returncode, done.stderr
        said = [json.loads(line) for line in done.stdout.splitlines()]
        assert [Path(each["file"]) for each in said] == list(paths)
        return [each["why"] for each in said]

    return judge
