"""What holds for the tests of this directory: they need a container engine, and begin and end on a healthy cluster."""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest

from pghc.cluster.kubernetes.kind import Kind
from pghc.errors import PghcError


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if "tests/kind/" in item.path.as_posix():
            item.add_marker(pytest.mark.kind)
            item.add_marker(pytest.mark.timeout(600))


@pytest.fixture
def kind(running_kind: Kind) -> Iterator[Kind]:
    """The cluster with every server up and every link open, before the test and after it."""
    _heal(running_kind)
    yield running_kind
    _heal(running_kind)


def _heal(kind: Kind) -> None:
    for _ in range(5):  # a busy machine may not answer at once
        status = kind.status()
        if status.healthy and all(link.delay_ms == link.nominal_ms for link in status.links):
            return
        time.sleep(2)
    kind.up(print)
    for node in kind.status().nodes:
        if not node.accessible:
            try:
                kind.start(node.name)
            except PghcError as error:
                pytest.fail(f"the cluster cannot be healed: {error}")
