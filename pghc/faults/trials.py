"""A trial: clients of a writer amid the faults of a seed, the judgement, and what explains it when it is not valid."""

from __future__ import annotations

import json
import random
import shutil
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from pghc.cluster import Backend, CanReplace
from pghc.faults.injection import Faults
from pghc.faults.nemesis import Nemesis
from pghc.faults.schedule import BEGIN, LOSE, Event, schedule
from pghc.verify.verdict import Verdict
from pghc.workload import runs
from pghc.workload.runs import Run, assign
from pghc.writers import writer_class

#: Entries of the log after which writers begin another segment, for want of which rotation is rare in a short run.
SEGMENT_SIZES = (None, 7, 40)
#: How many failed runs' diagnostics, some ten megabytes each, stay in the temporary directory.
DIAGNOSTICS = 20


@runtime_checkable
class HasLogs(Protocol):
    """A backend that keeps each server's log in a file."""

    def log(self, node: str) -> Path: ...


@dataclass(frozen=True)
class Trial:
    """What came of it. ``troubles``: what was not healed by itself. ``diagnostics``: a directory, where kept."""

    seed: int
    run: Run
    events: Sequence[Event]
    troubles: Sequence[str]
    diagnostics: Path | None

    @property
    def verdict(self) -> Verdict:
        return self.run.verdict

    @property
    def stuck(self) -> bool:
        """Do regions still differ, although everything was healed and they were waited for?"""
        return self.run.caught_up_seconds is None

    def __str__(self) -> str:
        lines = [f"{self.run.writer}, seed {self.seed}: {self.verdict}", *map(str, self.events), *self.troubles]
        lines += [f"{region}: {reason}" for region, reason in self.run.behind.items()]
        if self.diagnostics:
            lines.append(f"diagnostics: {self.diagnostics}")
        return "\n".join(lines)


def trial(
    backend: Backend,
    writer: str,
    seed: int,
    seconds: float,
    *,
    run: Callable[..., Run] = runs.run,
    say: Callable[[str], None] = lambda _text: None,
    **options: Any,
) -> Trial:
    """Run clients of ``writer`` amid the faults of ``seed`` for ``seconds``, and judge.

    ``run`` is `runs.run`, or what calls it; it gets ``options``. ``say`` hears of each fault. Of an exact writer's
    trial that is not valid, or whose regions differ in the end, the diagnostics are kept.
    """
    kinds = [writer_class(name) for _, name in assign(writer, backend.topology.names)]
    exact = all(kind.exactly_once for kind in kinds)
    steps = sorted({step for kind in kinds for step in kind.steps})
    impossible = [] if exact else [BEGIN, LOSE]  # what others acknowledge is lost with a primary
    if not isinstance(backend, CanReplace):
        impossible.append(LOSE)
    events = schedule(seed, backend.topology, seconds, steps, leave_out=impossible)
    nemesis = Nemesis(Faults(backend), events, say)
    chosen = {"segment_size": random.Random(seed).choice(SEGMENT_SIZES)} | options  # noqa: S311  # repeatable
    done = run(backend, writer, seconds=seconds, seed=seed, during=nemesis, **chosen)
    wrong = exact and (done.verdict.valid is not True or done.caught_up_seconds is None)
    kept = save_diagnostics(backend, done, nemesis, seed) if wrong else None
    return Trial(seed, done, events, nemesis.troubles, kept)


def save_diagnostics(backend: Backend, run: Run, nemesis: Nemesis, seed: int) -> Path:
    """Keep what explains a failed run in a new directory: schedule, history, and each server's log; returns it.

    The newest `DIAGNOSTICS` of them are kept.
    """
    place = runs.own_place("diagnostics")
    for old in sorted(place.iterdir())[: 1 - DIAGNOSTICS]:  # their names begin with their time
        shutil.rmtree(old, ignore_errors=True)
    directory = Path(tempfile.mkdtemp(prefix=time.strftime(f"%Y%m%d-%H%M%S-seed-{seed}-"), dir=place))
    report = {
        "seed": seed,
        "writer": run.writer,
        "verdict": run.verdict.to_dict(),
        "behind": run.behind,
        "errors": run.errors,
        "events": [asdict(event) for event in nemesis.events],
        "troubles": nemesis.troubles,
    }
    (directory / "schedule.json").write_text(json.dumps(report, indent=1) + "\n")
    if run.path:
        shutil.copy(run.path, directory / "history.jsonl")
    if isinstance(backend, HasLogs):
        for node in backend.status().nodes:
            if (log := backend.log(node.name)).exists():
                shutil.copy(log, directory / f"{node.name}.log")
    return directory
