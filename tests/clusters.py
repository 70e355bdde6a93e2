"""Clusters that end with whoever made them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from pghc.cluster.local.embedded import Embedded


@contextmanager
def embedded(temporary: pytest.TempPathFactory, name: str) -> Iterator[Embedded]:
    """An embedded cluster with the lab's own topology. It dies with this process, however that ends."""
    backend = Embedded(temporary.mktemp(name), owner=True)
    try:
        backend.up()
        yield backend
    finally:
        backend.down(purge=True)
