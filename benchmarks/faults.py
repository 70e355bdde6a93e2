"""Randomised fault runs in number: each seed's faults over each writer, judged; a line a run, and a sum.

``python -m benchmarks.faults [--seeds 0-49] [--seconds 20] [--writers causal,broadcast,causal+broadcast] [--jobs 1]``

Each job has a cluster of its own, so as many runs go on at once. Exit code 1 when an exactly-once writer's run is not
valid, or its regions are not equal in the end, or another writer's run is not caught; then the diagnostics of that run
are kept, and their directory is printed.
"""

from __future__ import annotations

import argparse
import multiprocessing
import signal
import sys
import tempfile
import time
from collections import Counter
from contextlib import suppress
from multiprocessing.connection import Connection
from pathlib import Path
from queue import Empty, SimpleQueue
from threading import Thread

from pghc.cluster.local.embedded import Embedded
from pghc.errors import PghcError
from pghc.faults.trials import trial
from pghc.workload import chains
from pghc.workload.runs import assign
from pghc.writers import writer_class

#: What is summed, and the checker's kinds of anomaly that it stands for.
SUMS = {
    "lost": ("lost",),
    "duplicated": ("duplicate", "repeated", "shared", "excess"),
    "forked": ("fork", "diverged"),
    "reordered": ("reordered",),
    "other anomalies": ("malformed", "link", "gap", "hole", "stale", "read-your-writes", "monotonic-reads"),
}

Task = tuple[str, int, float]
Outcome = tuple[Counter[str], str, str]  # what is summed, the line of the run, what is wrong with it


def one(backend: Embedded, writer: str, seed: int, seconds: float, path: Path) -> Outcome:
    """One run."""
    exact = all(writer_class(name).exactly_once for _, name in assign(writer, backend.topology.names))
    with suppress(PghcError):  # ends a mesh that a naive run left stuck
        chains.begin_chain([backend.view(name) for name in backend.topology.names])
    backend.up()  # whatever else the last run left
    done = trial(backend, writer, seed, seconds, clients=2, reads=0.3, history_path=path)
    run, verdict = done.run, done.verdict
    found = Counter({"runs": 1, "appends": run.appends, verdict.word: 1, "regions stuck": done.stuck})
    named = {kind for kinds in SUMS.values() for kind in kinds}
    for name, kinds in SUMS.items():
        found[name] = sum(verdict.counts.get(kind, 0) for kind in kinds)
    for kind, count in verdict.counts.items():  # such as a definite error that happened
        if kind not in named:
            found[kind] += count
    equal = "regions differ" if done.stuck else f"equal {run.caught_up_seconds:.1f} s after the end"
    faults = ", ".join(f"{times} {kind}" for kind, times in Counter(event.kind for event in done.events).items())
    line = f"{writer:16} seed {seed:4}  {run.appends:6} appends  {verdict.word:7}  {equal}; {faults}"
    right = verdict.valid is exact and not (exact and done.stuck)
    return found, line, "" if right else str(done)


def work(parent: Connection, directory: str) -> None:
    """The process of one cluster: tasks come by the pipe, and it ends when the pipe does."""
    backend = Embedded(directory, owner=True)
    try:
        backend.up()
        while True:
            writer, seed, seconds = parent.recv()
            path = Path(directory) / "history.jsonl"
            try:
                outcome = one(backend, writer, seed, seconds, path)
            except PghcError as error:
                what = f"{writer}, seed {seed}: no outcome: {error}"
                outcome = Counter({"runs": 1, "without outcome": 1}), f"{writer:16} seed {seed:4}  no outcome", what
            parent.send(outcome)
    except (EOFError, KeyboardInterrupt):
        pass
    finally:
        backend.down(purge=True)


class Job(Thread):
    """A cluster's side here: hands it tasks until there are none."""

    def __init__(self, tasks: SimpleQueue[Task], outcomes: list[Outcome]) -> None:
        super().__init__()
        self._tasks, self._outcomes = tasks, outcomes
        self.stopped = False

    def run(self) -> None:
        spawn = multiprocessing.get_context("spawn")
        with tempfile.TemporaryDirectory(prefix="pghc-faults-") as directory:
            here, there = spawn.Pipe()
            process = spawn.Process(target=work, args=(there, directory))
            process.start()
            there.close()
            try:
                while not self.stopped:
                    here.send(self._tasks.get_nowait())
                    outcome: Outcome = here.recv()
                    self._outcomes.append(outcome)
                    print(outcome[1], *([f"  WRONG  {outcome[2]}"] if outcome[2] else []), sep="\n", flush=True)
            except (Empty, EOFError, BrokenPipeError):  # no more tasks, or the process has ended
                pass
            finally:
                here.close()
                process.join()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", default="0-49", help="FIRST-LAST")
    parser.add_argument("--seconds", type=float, default=20.0, help="of each run")
    parser.add_argument("--writers", default="causal,broadcast,causal+broadcast", help="as `pghc run --writer`")
    parser.add_argument("--jobs", type=int, default=1, help="clusters, and so runs, at once")
    arguments = parser.parse_args()
    first, _, last = arguments.seeds.partition("-")
    tasks: SimpleQueue[Task] = SimpleQueue()
    for seed in range(int(first), int(last or first) + 1):
        for writer in arguments.writers.split(","):
            tasks.put((writer, seed, arguments.seconds))
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # ends as Ctrl-C does: after the runs that go on, tidily
    asked, began = tasks.qsize(), time.monotonic()
    outcomes: list[Outcome] = []
    jobs = [Job(tasks, outcomes) for _ in range(arguments.jobs)]
    for job in jobs:
        job.start()
    try:
        for job in jobs:
            job.join()
    except KeyboardInterrupt:  # the processes have heard it, too
        for job in jobs:
            job.stopped = True
    finally:
        for job in jobs:
            job.join()
    total = sum((found for found, _, _ in outcomes), Counter({"regions stuck": 0} | dict.fromkeys(SUMS, 0)))
    wrong = [what for _, _, what in outcomes if what]
    names = ("runs", "appends", "valid", "invalid", "unknown", *SUMS, "regions stuck")
    rest = [name for name in total if name not in names and total[name]]
    print(f"{len(outcomes)} of {asked} runs in {time.monotonic() - began:.0f} s, {len(wrong)} of them wrong")
    print("; ".join(f"{total[name]} {name}" for name in (*names, *rest)))
    print(*wrong, sep="\n")
    return 1 if wrong or len(outcomes) < asked else 0


if __name__ == "__main__":
    sys.exit(main())
