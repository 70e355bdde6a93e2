"""How long a region is without answers when its primary is lost for good, and the other regions with it.

    python -m benchmarks.failover [--writer causal] [--times 5]

Clients append in all regions; the primary of the first is killed and its data deleted; a replica is promoted at once.
Printed, in seconds: from the loss and from the order to promote to the next acknowledged append of that region, and the
longest pause of the other regions meanwhile. The cluster is the bench's own.
"""

from __future__ import annotations

import argparse
import tempfile
import threading
import time
from contextlib import suppress
from itertools import pairwise
from pathlib import Path
from statistics import median

from pghc.cluster.local.embedded import Embedded
from pghc.errors import PghcError
from pghc.workload.chains import begin_chain
from pghc.writers import new_request_id, open_writer


def once(backend: Embedded, writer: str) -> tuple[float, float, float]:
    begin_chain([backend.view(name) for name in backend.topology.names])
    region = backend.topology.names[0]
    writers = {name: open_writer(writer, backend.view(name)) for name in backend.topology.names}
    answered: dict[str, list[float]] = {name: [] for name in writers}
    stop = threading.Event()

    def append(name: str) -> None:
        request = new_request_id()
        while not stop.is_set():
            with suppress(PghcError):
                writers[name].append(request, 5.0)
                answered[name].append(time.monotonic())
                request = new_request_id()

    threads = [threading.Thread(target=append, args=(name,)) for name in writers for _ in range(4)]
    for thread in threads:
        thread.start()
    time.sleep(3)
    lost = time.monotonic()
    backend.lose(backend.view(region).primary())
    ordered = time.monotonic()
    backend.promote(region)
    while not answered[region] or answered[region][-1] < ordered:
        time.sleep(0.02)
    back = next(at for at in answered[region] if at > ordered)
    time.sleep(2)
    stop.set()
    for thread in threads:
        thread.join()
    for each in writers.values():
        each.close()
    others = [sorted(at for at in answered[name] if at > lost - 1) for name in writers if name != region]
    pause = max(after - before for times in others for before, after in pairwise(times))
    backend.up()
    return back - lost, back - ordered, pause


def main() -> None:
    parser = argparse.ArgumentParser(description="Fail-over after a primary is lost for good.")
    parser.add_argument("--writer", default="causal")
    parser.add_argument("--times", type=int, default=5)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="pghc-bench-") as directory:
        backend = Embedded(Path(directory) / "cluster", owner=True)
        try:
            backend.up()
            found = [once(backend, options.writer) for _ in range(options.times)]
        finally:
            backend.down(purge=True)
    names = "from the loss", "from the order", "others' pause"
    for name, values in zip(names, zip(*found, strict=True), strict=True):
        print(f"{name}: median {median(values):.2f} s, worst {max(values):.2f} s")


if __name__ == "__main__":
    main()
