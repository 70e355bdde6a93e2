"""A run: clients in every region, one process a region, a history, a verdict. What `pghc run` and the lessons call."""

from __future__ import annotations

import os
import tempfile
import threading
import time
from array import array
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from pghc.cluster import Backend
from pghc.errors import BadInput, ClusterError
from pghc.store import Store
from pghc.topology import View
from pghc.verify import history
from pghc.verify.checker import check
from pghc.verify.history import Read, Recorder
from pghc.verify.merge import merge
from pghc.verify.verdict import Verdict
from pghc.workload.chains import begin_chain, settle
from pghc.workload.clients import Job
from pghc.workload.processes import ClientProcesses
from pghc.writers import check_name, writer_class

Progress = Callable[[float, int, int], None]  # seconds so far, appends acknowledged, appends that failed


@dataclass
class Run:
    """What came of a run. Latencies are of acknowledged appends, in milliseconds."""

    writer: str
    seconds: float
    path: Path | None
    acknowledged: dict[str, int]
    failed: int
    unknown: int
    reads: int
    errors: Counter[str]
    latencies_ms: dict[str, array[float]] = field(repr=False)
    caught_up_seconds: float | None = None

    @property
    def appends(self) -> int:
        return sum(self.acknowledged.values())

    @property
    def rate(self) -> float:
        """Acknowledged appends a second, all regions."""
        return self.appends / self.seconds

    def latency_ms(self, quantile: float = 0.5, region: str | None = None) -> float:
        """The ``quantile`` (0 to 1) of the latencies in ``region``, or in all; NaN when nothing was acknowledged."""
        chosen = [self.latencies_ms[region]] if region else list(self.latencies_ms.values())
        ordered = sorted(value for values in chosen for value in values)
        return ordered[min(int(quantile * len(ordered)), len(ordered) - 1)] if ordered else float("nan")

    @cached_property
    def verdict(self) -> Verdict:
        """The checker's judgement of the run's history."""
        if self.path is None:
            raise BadInput("this run kept no history, so there is nothing to judge", "Run with a history.")
        return check(history.read(self.path))

    def events(self) -> Iterator[history.Event]:
        if self.path is None:
            raise BadInput("this run kept no history", "Run with a history.")
        return history.read(self.path)


def run(
    backend: Backend,
    writer: str = "causal",
    *,
    clients: int = 2,
    seconds: float = 5.0,
    history_path: str | os.PathLike[str] | None = None,
    keep_history: bool = True,
    fresh: bool = True,
    reads: float = 0.0,
    timeout: float = 10.0,
    in_flight: int = 0,
    seed: int = 0,
    regions: Sequence[str] | None = None,
    progress: Progress | None = None,
    during: Callable[[ClientProcesses], None] | None = None,
) -> Run:
    """Let ``clients`` clients in each region append with ``writer`` for ``seconds``; return what came of it.

    ``fresh`` begins an empty chain; else the run goes on with the one there is. ``reads``: reads for each append, from
    the region's replicas in turn. ``in_flight``: instead of clients that wait for each answer, one that keeps so many
    appends on their way (`broadcast` only). ``during`` is called in a thread when the clients begin, for faults; it
    must end by itself. Raises `BadInput`, `ClusterError`.
    """
    check_name(writer)
    if not (1 <= clients <= 1000 and 0 < seconds <= 86_400 and 0 <= reads <= 100 and timeout > 0):
        raise BadInput(
            f"clients={clients}, seconds={seconds:g}, reads={reads:g}, timeout={timeout:g}",
            "Possible are 1 to 1000 clients a region, more than 0 seconds, 0 to 100 reads an append.",
        )
    names = list(regions or backend.topology.names)
    views = {name: backend.view(name) for name in backend.topology.names}
    for name in names:
        backend.topology.region(name)
    if fresh:
        begin_chain(list(views.values()), writer_class(writer).ordering)
    with ExitStack() as stack:
        parts = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="pghc-run-")))
        jobs = [
            Job(
                view=views[name],
                writer=writer,
                clients=clients,
                seconds=seconds,
                reads=reads,
                timeout=timeout,
                path=str(parts / f"{name}.{{life}}.jsonl") if keep_history else None,
                in_flight=in_flight,
                seed=seed,
                careful=during is not None,
            )
            for name in names
        ]
        if keep_history and not fresh:
            _record_inheritance(parts / "before.0.jsonl", list(views.values()))
        crew = stack.enter_context(ClientProcesses(jobs))
        crew.go()
        trouble: list[Exception] = []
        helper = threading.Thread(target=_catch, args=(lambda: during(crew), trouble)) if during else None
        if helper:
            helper.start()
        try:
            while not crew.finished():
                if crew.elapsed > seconds + timeout * 3 + 60:
                    raise ClusterError(f"clients did not end within {timeout * 3 + 60:g} s after the run")
                if progress:
                    counts = crew.counts
                    progress(min(crew.elapsed, seconds), counts["ok"], counts["fail"] + counts["info"])
                time.sleep(0.05)
            ended = time.monotonic()
        finally:
            if helper:
                helper.join()
        if trouble:
            raise trouble[0]
        still = 5.0 if writer_class(writer).ordered else 1.0  # links and servers that were healed take their time
        settled = settle(list(views.values()), still=still)
        path = None
        if keep_history:
            path = Path(history_path) if history_path else _keep()
            with Recorder(parts / "final.jsonl") as recorder:
                for name, view in views.items():
                    with Store(view, timeout=60) as store, store.snapshot() as now:
                        recorder.final(name, store.node, now.chain(), now.requests())
            merge([*sorted(parts.glob("*.[0-9]*.jsonl")), parts / "final.jsonl"], path)
        results = crew.results()
    errors: Counter[str] = Counter()
    for result in results.values():
        errors.update(result["errors"])
    return Run(
        writer,
        max(result["seconds"] for result in results.values()),
        path,
        {name: result["ok"] for name, result in results.items()},
        sum(result["fail"] for result in results.values()),
        sum(result["info"] for result in results.values()),
        sum(result["reads"] for result in results.values()),
        errors,
        {name: array("d", result["latencies_ms"]) for name, result in results.items()},
        None if settled is None else max(settled - ended, 0.0),
    )


def _record_inheritance(path: Path, views: Sequence[View]) -> None:
    """Record what stands in each region before the first append, for the checker must not ask who appended it."""
    with Recorder(path) as recorder:
        for view in views:
            with Store(view) as store:
                recorder.invoke(f"before/{view.region}", view.region, "read", None, store.node)
                mark, rows = store.recent(1, prefix=False)
                seen = Read(0, max(mark, rows[-1].zk_id if rows else 0), tuple(rows))
                recorder.ok(f"before/{view.region}", view.region, "read", None, store.node, seen)


def _catch(work: Callable[[], None], trouble: list[Exception]) -> None:
    try:
        work()
    except Exception as error:
        trouble.append(error)


def _keep() -> Path:
    """A new file for a history that the caller has not named."""
    directory = Path(tempfile.gettempdir()) / f"pghc-{os.getuid()}" / "runs"
    directory.mkdir(parents=True, exist_ok=True, mode=0o700)
    handle, name = tempfile.mkstemp(prefix=time.strftime("%Y%m%d-%H%M%S-"), suffix=".jsonl", dir=directory)
    os.close(handle)
    return Path(name)
