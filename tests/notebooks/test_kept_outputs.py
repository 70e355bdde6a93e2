"""The lessons as they are kept: read on the web without running anything."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest
from lessons_run import NOTEBOOKS

from pghc.lab.plots import FIBRE_KM_PER_MS

LESSONS = sorted(NOTEBOOKS.glob("*.ipynb"))


def test_outputs_are_fresh_complete_small_and_name_no_path_of_a_machine() -> None:
    script = Path(__file__).parents[2] / "scripts" / "notebooks.py"
    done = subprocess.run([sys.executable, script, "--check"], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("path", LESSONS, ids=lambda path: path.stem)
def test_tags_are_unique_figures_have_alternatives_and_one_cell_is_graded(path: Path) -> None:
    notebook = nbformat.read(path, as_version=4)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    tags = [tag for cell in code for tag in cell.metadata.get("tags", [])]
    assert len(tags) == len(set(tags))
    for cell in code:
        for output in cell.outputs:
            if "image/png" in output.get("data", {}):
                assert output.metadata["image/png"]["alt"]
    marks = [cell.metadata["nbgrader"] for cell in code if "nbgrader" in cell.metadata]
    assert any(mark["solution"] for mark in marks)
    assert any(mark["grade"] and mark["points"] == 1 for mark in marks)


@pytest.mark.parametrize("path", LESSONS, ids=lambda path: path.stem)
def test_there_is_a_model_solution_and_a_line_in_the_course_at_a_glance(path: Path) -> None:
    assert (NOTEBOOKS / "solutions" / f"{path.stem[:2]}.py").exists()
    assert f"({path.name})" in (NOTEBOOKS / "README.md").read_text()


NUMBERS = {"half": "0.5", "one": "1", "two": "2", "three": "3", "four": "4", "five": "5", "hundred": "100",
           "five thousand": "5000", "twenty": "20"}  # fmt: skip
UNITS = r"ms|milliseconds?|s|seconds?|km|kilometres|times|reads|appends|clients|retries|per cent|%"


@pytest.mark.parametrize("path", LESSONS, ids=lambda path: path.stem)
def test_a_quantity_in_the_prose_is_one_that_a_cell_sets_or_shows(path: Path) -> None:
    """What is measured is printed by a cell; the prose repeats only what the cells set."""
    notebook = nbformat.read(path, as_version=4)
    prose = " ".join(cell.source for cell in notebook.cells if cell.cell_type == "markdown").lower()
    code = "\n".join(cell.source for cell in notebook.cells if cell.cell_type == "code")
    words = "|".join(sorted(NUMBERS, key=len, reverse=True))
    said = re.findall(rf"\b(\d[\d.,]*|{words})(?:-|\s+)(?:a\s+)?(?:{UNITS})\b", prose)
    in_the_package = {"200"}  # FIBRE_KM_PER_MS, as the next test says
    for number in {NUMBERS.get(each, each) for each in said} - in_the_package:
        assert re.search(rf"(?<![\d.]){re.escape(number)}(?:\.0)?(?![\d.])", code), f"no cell has {number}"


def test_the_speed_of_light_in_the_prose_is_that_of_the_figures() -> None:
    assert f"{FIBRE_KM_PER_MS:.0f} km a millisecond" in (NOTEBOOKS / "08-price.ipynb").read_text()
