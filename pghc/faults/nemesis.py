"""Randomised faults: a schedule from a seed, and its execution on a cluster while clients run.

The schedule is a pure function of the seed: which faults, on which servers, when and for how long. What servers and
threads make of it is theirs; so a seed repeats what is done to the cluster, not each interleaving.
"""

from __future__ import annotations

import json
import random
import shutil
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Protocol, runtime_checkable

from pghc.cluster import Backend
from pghc.errors import PghcError
from pghc.faults.injection import Faults
from pghc.topology import Topology

#: Kind of fault and how often it is drawn. The last two are done to clients, the others to servers and links.
KINDS = {
    "kill": 4,
    "pause": 3,
    "partition": 2,
    "cut": 3,
    "slow": 2,
    "reset": 1,
    "kill-clients": 3,
    "lose-replies": 4,
}
#: Seconds that a fault lasts.
SHORTEST, LONGEST = 0.3, 2.5
#: Seconds without any fault at the end of a run, so that it shows whether everything comes back by itself.
QUIET = 3.0


class Clients(Protocol):
    """What faults may do to the clients of a run."""

    @property
    def elapsed(self) -> float: ...
    def kill(self, region: str, step: str) -> None: ...
    def lose_replies(self, region: str) -> None: ...


@runtime_checkable
class HasLogs(Protocol):
    """A backend that keeps each server's log in a file."""

    def log(self, node: str) -> Path: ...


@dataclass(frozen=True)
class Event:
    """One fault: it begins ``at`` seconds after the clients do and is healed after ``seconds``."""

    at: float
    seconds: float
    kind: str
    targets: tuple[str, ...]
    amount: float = 0.0

    def __str__(self) -> str:
        return f"{self.at:5.1f} s  {self.kind} {' '.join(self.targets)} for {self.seconds:.1f} s"


def schedule(seed: int, topology: Topology, seconds: float, steps: Sequence[str]) -> list[Event]:
    """The faults of a run of ``seconds`` seconds, by beginning; one server is never hit twice at the same time.

    ``steps``: the steps of the writer after which clients may be killed.
    """
    dice = random.Random(seed)  # noqa: S311  # repeatable on purpose
    events: list[Event] = []
    busy: dict[str, float] = {}
    now = dice.uniform(0.5, 1.5)
    while now < seconds - QUIET - SHORTEST:
        kind = dice.choices(list(KINDS), list(KINDS.values()))[0]
        length = dice.uniform(SHORTEST, min(LONGEST, seconds - QUIET - now))
        regions = dice.sample(topology.names, 2)
        region = topology.region(regions[0])
        amount = 0.0
        if kind in ("kill", "pause"):
            servers = [region.primary, region.zookeeper, *region.replica_names[: kind == "kill"]]
            targets: tuple[str, ...] = (dice.choice(servers),)
        elif kind == "kill-clients":
            targets, length = (region.name, dice.choice(list(steps))), 0.0
        elif kind == "lose-replies":
            targets, length = (region.name,), 0.0
        else:
            targets = tuple(regions)
            amount = topology.delay_ms(*regions) * dice.choice((3, 6)) if kind == "slow" else 0.0
        taken = "links" if kind in ("partition", "cut", "slow", "reset") else targets[0]
        if busy.get(taken, 0.0) <= now:
            busy[taken] = now + length + 0.5
            events.append(Event(round(now, 2), round(length, 2), kind, targets, round(amount, 1)))
        now += dice.uniform(0.2, 2.0)
    return events


class Nemesis:
    """Executes a schedule: ``runs.run(..., during=Nemesis(...))``. ``say`` hears of each fault as it begins."""

    def __init__(
        self, faults: Faults, events: Sequence[Event], say: Callable[[str], None] = lambda _text: None
    ) -> None:
        self.events = events
        self.troubles: list[str] = []
        self._faults, self._say = faults, say

    def __call__(self, clients: Clients) -> None:
        threads = [threading.Thread(target=self._execute, args=(event, clients)) for event in self.events]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    def _execute(self, event: Event, clients: Clients) -> None:
        time.sleep(max(event.at - clients.elapsed, 0.0))
        self._say(str(event))
        try:
            with self._fault(event, clients):
                time.sleep(event.seconds)
        except PghcError as error:  # the run goes on, and `pghc up` heals what this left
            self.troubles.append(f"{event}: {error}")

    def _fault(self, event: Event, clients: Clients) -> AbstractContextManager[object]:
        if event.kind == "kill-clients":
            clients.kill(*event.targets)
            return nullcontext()
        if event.kind == "lose-replies":
            clients.lose_replies(*event.targets)
            return nullcontext()
        if event.kind == "slow":
            source, target = event.targets
            return self._faults.slow(source, target, event.amount)
        fault: Callable[..., AbstractContextManager[object]] = getattr(self._faults, event.kind)
        return fault(*event.targets)


def save_diagnostics(backend: Backend, history: Path | None, nemesis: Nemesis, *, writer: str, seed: int) -> Path:
    """Keep what explains a failed run in a new directory: schedule, history, and each server's log; returns it."""
    directory = Path(tempfile.mkdtemp(prefix=f"pghc-seed-{seed}-"))
    events = [asdict(event) for event in nemesis.events]
    report = {"seed": seed, "writer": writer, "events": events, "troubles": nemesis.troubles}
    (directory / "schedule.json").write_text(json.dumps(report, indent=1) + "\n")
    if history:
        shutil.copy(history, directory / "history.jsonl")
    if isinstance(backend, HasLogs):
        for node in backend.status().nodes:
            if (log := backend.log(node.name)).exists():
                shutil.copy(log, directory / f"{node.name}.log")
    return directory
