"""What the tests of the core begin with."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack

import pytest

from pghc.cluster import Backend
from pghc.topology import View
from pghc.workload import chains


@pytest.fixture
def views(cluster: Backend) -> dict[str, View]:
    """Every region's view, on an empty chain."""
    views = {name: cluster.view(name) for name in cluster.topology.names}
    chains.begin_chain(list(views.values()))
    return views


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    with ExitStack() as stack:
        yield stack
