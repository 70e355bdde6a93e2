"""What the tests of lost servers share."""

from __future__ import annotations

from pathlib import Path

from pghc.cluster.local.embedded import Embedded

EXACT = ("causal", "broadcast")


def data_of(backend: Embedded) -> Path:
    cluster = backend._files.cluster()
    assert cluster
    return cluster.data
