"""A fresh chain in all regions, and when all regions have the same one."""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import ExitStack

from pghc.cluster.mesh import reset
from pghc.mutex import Mutex
from pghc.sequencer import Sequencer
from pghc.store import Cursor, Reader
from pghc.topology import View


def begin_chain(views: Sequence[View], ordering: str | None = None) -> None:
    """Begin an empty chain in all regions, ordered by writers of ``ordering`` (None: its first writer decides).

    Where it begins is one entry of the log, so an append belongs to the chain before or to this one; those to the chain
    before are refused from then on, or indefinite. Two at once begin one chain after the other.
    """
    central = next((view for view in views if view.region == view.topology.central), views[0])  # nearest to a quorum
    with Mutex(central, "begin") as mutex, mutex.hold(30), Sequencer(central) as sequencer:
        position = sequencer.begin_chain(after=max(_cursor(view).position for view in views))
        if ordering:
            sequencer.ordering(position, ordering)
        reset(views, position)


def _cursor(view: View) -> Cursor:
    with Reader(view, view.topology.region(view.region).primary, timeout=20, connections=1) as reader:
        return reader.cursor()


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
