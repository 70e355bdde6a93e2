"""Each lesson is run once, top to bottom, by a kernel of its own; tests look at what it shows and put in answers."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from lessons_run import NOTEBOOKS, Lesson
from testbook import testbook

from pghc.backends import Backend

CELL_SECONDS = 120


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.timeout(400))  # the first test of a lesson waits until the lesson has run


@pytest.fixture(scope="module")
def lesson(request: pytest.FixtureRequest) -> Iterator[Lesson]:
    """The lesson that the module's LESSON names, run to its end on a healthy cluster."""
    name: str = request.module.LESSON
    with pytest.MonkeyPatch.context() as patch:
        if os.environ.get("PGHC_BACKEND", "embedded") == "embedded":
            backend: Backend = request.getfixturevalue("running_cluster")
            backend.up()
            patch.setenv("PGHC_DIR", str(backend.directory))  # type: ignore[attr-defined]
        where = {"metadata": {"path": str(NOTEBOOKS)}}
        with testbook(NOTEBOOKS / f"{name}.ipynb", execute=False, timeout=CELL_SECONDS, resources=where) as client:
            client.execute()
            yield Lesson(name, client)
