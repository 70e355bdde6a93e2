"""Clients that append while servers are lost, and that nothing they were given is lost, on any backend."""

from __future__ import annotations

import itertools
import threading
import time
from contextlib import suppress
from typing import Self

from pghc.chain import Row
from pghc.cluster import Backend
from pghc.errors import PghcError
from pghc.store import Primary
from pghc.verify.checker import verify_chain
from pghc.writers import Writer, new_request_id, open_writer


class Appending:
    """Clients of all regions that append until told to stop; ``acknowledged`` are the rows that they were given."""

    def __init__(self, backend: Backend, writer: str) -> None:
        self.writers: dict[str, Writer] = {n: open_writer(writer, backend.view(n)) for n in backend.topology.names}
        self.acknowledged: list[tuple[float, str, Row]] = []
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=self._append, args=(name,)) for name in self.writers]

    def _append(self, region: str) -> None:
        request = new_request_id()
        while not self._stop.is_set():
            with suppress(PghcError):  # the same request again, until it is answered
                row = self.writers[region].append(request, 5.0)
                self.acknowledged.append((time.monotonic(), region, row))
                request = new_request_id()

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join(20)
        for writer in self.writers.values():
            writer.close()

    def next_in(self, region: str, timeout: float = 30.0) -> Row:
        """The next acknowledged append of that region."""
        since = time.monotonic()
        while time.monotonic() < since + timeout:
            for at, name, row in reversed(self.acknowledged.copy()):
                if name == region and at > since:
                    return row
            time.sleep(0.02)
        raise AssertionError(f"no append of {region} was acknowledged within {timeout} s")

    def longest_pause(self, region: str, since: float) -> float:
        """Seconds between two acknowledged appends of that region, at most, from ``since`` on."""
        times = [since, *(at for at, name, _ in self.acknowledged.copy() if name == region and at > since)]
        return max((later - earlier for earlier, later in itertools.pairwise(times)), default=0.0)


def check_nothing_lost(backend: Backend, rows: list[Row]) -> None:
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
