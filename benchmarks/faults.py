"""Randomised fault runs in number: each seed's schedule of faults over each writer, judged, a line a run and a sum.

``python -m benchmarks.faults [--seeds 0-49] [--seconds 20] [--writers causal,broadcast]``

Exit code 1 when an exactly-once writer's run is not valid, or its regions are not equal in the end, or another writer's
run is not caught; then the evidence of that run is kept, and its directory printed.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

from pghc.cluster.local.embedded import Embedded
from pghc.errors import PghcError
from pghc.faults.injection import Faults
from pghc.faults.nemesis import Nemesis, save_diagnostics, schedule
from pghc.workload import chains, runs
from pghc.writers import writer_class


def one(backend: Embedded, writer: str, seed: int, seconds: float, path: Path) -> str | None:
    """One run; returns what is wrong with it."""
    exact = writer_class(writer).exactly_once
    nemesis = Nemesis(Faults(backend), schedule(seed, backend.topology, seconds, writer_class(writer).steps))
    run = runs.run(
        backend, writer, clients=2, seconds=seconds, reads=0.3, seed=seed, during=nemesis, history_path=path
    )
    caught_up = run.caught_up_seconds
    equal = "regions differ" if caught_up is None else f"equal {caught_up:.1f} s after the end"
    faults = ", ".join(f"{times} {kind}" for kind, times in Counter(event.kind for event in nemesis.events).items())
    print(f"{writer:9} seed {seed:3}  {run.appends:6} appends  {run.verdict.word:7}  {equal}; {faults}", flush=True)
    if run.verdict.valid is exact and (caught_up is not None or not exact):
        return None
    kept = save_diagnostics(backend, run.path, nemesis, writer=run.writer, seed=seed) if exact else None
    return f"{writer}, seed {seed}: {run.verdict}; {equal}" + (f"; diagnostics: {kept}" if kept else "")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", default="0-49", help="FIRST-LAST")
    parser.add_argument("--seconds", type=float, default=20.0, help="of each run")
    parser.add_argument("--writers", default="causal,broadcast")
    arguments = parser.parse_args()
    first, _, last = arguments.seeds.partition("-")
    seeds: Iterable[int] = range(int(first), int(last or first) + 1)
    wrong, runs, began = [], 0, time.monotonic()
    with tempfile.TemporaryDirectory(prefix="pghc-faults-") as directory:
        backend = Embedded(directory, owner=True)
        try:
            backend.up()
            for seed in seeds:
                for writer in arguments.writers.split(","):
                    with suppress(PghcError):  # ends a mesh that a naive run left stuck
                        chains.begin_chain([backend.view(name) for name in backend.topology.names])
                    backend.up()  # whatever else the last run left
                    runs += 1
                    if trouble := one(backend, writer, seed, arguments.seconds, Path(directory) / "history.jsonl"):
                        print(f"  WRONG  {trouble}", flush=True)
                        wrong.append(trouble)
        finally:
            backend.down(purge=True)
    print(f"{runs} runs in {time.monotonic() - began:.0f} s, {len(wrong)} of them wrong", *wrong, sep="\n")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
