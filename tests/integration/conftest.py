"""What the tests of the core begin with."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, suppress

import pytest
from clusters import embedded

from pghc.cluster import Backend
from pghc.cluster.local.embedded import Embedded
from pghc.errors import PghcError
from pghc.topology import View
from pghc.workload import chains
from pghc.workload.chains import begin_chain


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


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Embedded]:
    """A cluster of these tests' own: roles change in it."""
    with embedded(tmp_path_factory, "losses") as backend:
        yield backend


@pytest.fixture
def lossy(whole: Embedded) -> Iterator[Embedded]:
    """With an empty chain, and every server up again afterwards."""
    whole.up()
    begin_chain([whole.view(name) for name in whole.topology.names])
    yield whole
    if whole.status().healthy:
        return
    with suppress(PghcError):
        whole.up()
    for region in whole.topology.names:
        if whole.view(region).primary() in whole.lacking():
            whole.rebuild(region)
    whole.up()
