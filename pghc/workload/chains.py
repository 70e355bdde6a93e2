"""A fresh chain in all regions, and when all regions have the same one."""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import ExitStack

from pghc.cluster.mesh import reset
from pghc.sequencer import Entry, Sequencer
from pghc.store import Reader
from pghc.topology import View


def begin_chain(views: Sequence[View]) -> None:
    """Begin an empty chain in all regions. The log's numbers go on: an old writer's number fits no place in it."""
    central = next((view for view in views if view.region == view.topology.central), views[0])  # nearest to a quorum
    with Sequencer(central) as sequencer:
        position = sequencer.take(Entry(f"{central.region}-primary", ()))
    reset(views, position)


def settle(views: Sequence[View], limit: float = 15.0, still: float = 1.0) -> float | None:
    """Wait until all regions are equal, or nothing has moved for ``still`` seconds; returns when they became equal."""
    with ExitStack() as stack:
        readers = [stack.enter_context(Reader(view, view.topology.region(view.region).primary)) for view in views]
        deadline, before, since = time.monotonic() + limit, None, time.monotonic()
        while True:
            now = [(reader.cursor()[1:], reader.last()) for reader in readers]  # void positions are no part of a chain
            if now != before:
                before, since = now, time.monotonic()
            equal = len(set(now)) == 1
            if time.monotonic() > deadline or time.monotonic() - since > (0.3 if equal else still):
                return since if equal else None
            time.sleep(0.02)  # the end of all change cannot be notified
