"""What the tests of lost servers share."""

from __future__ import annotations

import time
from pathlib import Path

from pghc.chain import Row
from pghc.cluster.local.embedded import Embedded
from pghc.store import Primary
from pghc.verify.checker import verify_chain

EXACT = ("causal", "broadcast")


def check_nothing_lost(backend: Embedded, rows: list[Row]) -> None:
    deadline = time.monotonic() + 20
    while True:
        found = {}
        for name in backend.topology.names:
            with Primary(backend.view(name)) as reader:
                found[name] = list(reader.chain())
        one = next(iter(found.values()))
        if all(chain == one for chain in found.values()) or time.monotonic() > deadline:
            break
        time.sleep(0.2)
    assert all(chain == one for chain in found.values()), {name: len(chain) for name, chain in found.items()}
    assert verify_chain(one).valid
    assert len(rows) == len(set(rows)), "each request has a row of its own"
    assert set(rows) <= set(one), "acknowledged, and not there"


def data_of(backend: Embedded) -> Path:
    cluster = backend._files.cluster()
    assert cluster
    return cluster.data
