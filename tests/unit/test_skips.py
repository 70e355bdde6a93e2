"""What cannot be tested on a machine says so, and does not fail."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_without_a_container_engine_lessons_on_kubernetes_are_skipped_with_the_reason(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "pytest", "-m", "kind", "-q", "-rs", "-p", "no:cacheprovider", "tests/notebooks"]
    without = {name: value for name, value in os.environ.items() if name not in ("CI", "PGHC_KIND", "DOCKER_HOST")}
    without |= {"PATH": os.defpath, "PGHC_CACHE": str(tmp_path), "DOCKER_HOST": f"unix://{tmp_path}/nobody"}
    done = subprocess.run(command, cwd=ROOT, env=without, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "no cluster on Kubernetes: " in done.stdout
    assert "passed" not in done.stdout
    assert "failed" not in done.stdout
