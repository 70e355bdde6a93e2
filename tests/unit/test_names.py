"""What lessons import from ``pghc`` is what its name says."""

from __future__ import annotations

import subprocess
import sys
from types import ModuleType

import pytest

import pghc


@pytest.mark.parametrize("name", dir(pghc))
def test_a_public_name_is_no_subpackage_that_happens_to_be_called_so(name: str) -> None:
    __import__("pghc.verify.checker")  # its import sets pghc.verify
    assert isinstance(getattr(pghc, name), ModuleType) is (name == "exercises")


def test_the_command_line_does_not_load_the_notebooks_packages() -> None:
    code = "import sys, pghc.cli.commands; sys.exit(bool({'pandas', 'matplotlib', 'IPython'} & {*sys.modules}))"
    assert subprocess.run([sys.executable, "-c", code], timeout=60).returncode == 0
