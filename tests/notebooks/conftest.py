"""Each lesson is run once, top to bottom, by a kernel of its own; tests look at what it shows and put in answers."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from lessons_run import NOTEBOOKS, Lesson
from testbook import testbook

from pghc.cluster import Backend
from pghc.cluster.local.embedded import Embedded

CELL_SECONDS = 120

#: The lessons whose claims are tested on Kubernetes, too.
ON_KIND = {"00-tour", "01-one-region", "02-many-masters", "03-causality", "04-chain", "06-total-order"}


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "lesson" in metafunc.fixturenames:
        on_kind = [pytest.param("kind", marks=pytest.mark.kind)] if metafunc.module.LESSON in ON_KIND else []
        metafunc.parametrize("lesson", ["embedded", *on_kind], indirect=True, scope="module")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.timeout(400))  # the first test of a lesson waits until the lesson has run


@pytest.fixture(scope="module")
def lesson(request: pytest.FixtureRequest) -> Iterator[Lesson]:
    """The lesson that the module's LESSON names, run to its end on a healthy cluster."""
    name: str = request.module.LESSON
    fixture = {"embedded": "running_cluster", "kind": "running_kind"}[request.param]
    backend: Backend = request.getfixturevalue(fixture)
    if not backend.status().healthy:
        backend.up()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PGHC_BACKEND", request.param)
        if isinstance(backend, Embedded):
            patch.setenv("PGHC_DIR", str(backend.directory))
        where = {"metadata": {"path": str(NOTEBOOKS)}}
        with testbook(NOTEBOOKS / f"{name}.ipynb", execute=False, timeout=CELL_SECONDS, resources=where) as client:
            client.execute()
            yield Lesson(name, client)
