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
from typing import Any, Protocol, Self

from pghc.cluster import Backend
from pghc.errors import BadInput, ClusterError, Unavailable
from pghc.store import Store
from pghc.topology import View
from pghc.verify import history
from pghc.verify.checker import check
from pghc.verify.history import Read, Recorder
from pghc.verify.merge import merge
from pghc.verify.verdict import Verdict
from pghc.workload.begun import leave_out
from pghc.workload.chains import begin_chain, catch_up
from pghc.workload.clients import Job
from pghc.workload.lease import Lease
from pghc.workload.processes import ClientProcesses
from pghc.workload.threads import ClientThreads
from pghc.writers import Writer, check_name, writer_class

Progress = Callable[[float, int, int], None]  # seconds so far, appends acknowledged, appends that failed

#: So many histories are kept of runs whose caller has not named a file.
HISTORIES = 50


class Crew(Protocol):
    """The clients of a run, wherever they are."""

    def __enter__(self) -> Self: ...
    def __exit__(self, *_: object) -> None: ...
    def go(self) -> None: ...
    @property
    def elapsed(self) -> float: ...
    @property
    def counts(self) -> Counter[str]: ...
    def finished(self) -> bool: ...
    def wait(self, seconds: float) -> bool: ...
    def end(self) -> None: ...
    def begun(self) -> list[tuple[int, int]]: ...
    def results(self) -> list[tuple[str, dict[str, Any]]]: ...
    def kill(self, region: str, step: str) -> None: ...
    def lose_replies(self, region: str) -> None: ...
    def pause(self, region: str, seconds: float) -> None: ...
    def begin_chain(self) -> None: ...


@dataclass
class Run:
    """What came of a run. Latencies are of acknowledged appends, from the first invocation, in milliseconds.

    ``caught_up_seconds``: how long after the last answer all regions had the same chain; None: they had not.
    ``behind``: of each region that had not received in time what others have, what the servers say of it.
    """

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
    behind: dict[str, str] = field(default_factory=dict)

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
    segment_size: int | None = None,
    regions: Sequence[str] | None = None,
    progress: Progress | None = None,
    during: Callable[[Crew], None] | None = None,
    make: Callable[[View], Writer] | None = None,
) -> Run:
    """Let ``clients`` clients in each region append with ``writer`` for ``seconds``; return what came of it.

    ``writer``: its name, or several as `assign` reads them. ``make``: instead, gives one's own writer of a region,
    whose clients are threads of this program. ``fresh`` begins an empty chain; else the run goes on with the one there
    is. ``reads``: reads for each append, from the region's replicas in turn. ``in_flight``: instead of clients that
    wait for each answer, one that keeps so many appends on their way (`broadcast` only). ``segment_size``: entries of
    the log after which writers begin another segment; None: as many as they think right. ``during`` is called in a
    thread when the clients begin, for faults; it must end when its `Crew` says that the run has. Raises `BadInput`,
    `ClusterError`; `InUse` when somebody else uses the chain.
    """
    if not (1 <= clients <= 1000 and 0 < seconds <= 86_400 and 0 <= reads <= 100 and timeout > 0):
        raise BadInput(
            f"clients={clients}, seconds={seconds:g}, reads={reads:g}, timeout={timeout:g}",
            "Possible are 1 to 1000 clients a region, more than 0 seconds, 0 to 100 reads an append.",
        )
    views = {name: backend.view(name) for name in backend.topology.names}
    for name in regions or ():
        backend.topology.region(name)
    shares = [(name, "") for name in regions or views] if make else assign(writer, regions or list(views))
    ordered = not make and all(writer_class(name).ordered for _, name in shares)
    by_log = not make and all(writer_class(name).exactly_once for _, name in shares)
    everywhere = list(views.values())
    with ExitStack() as stack:
        lease = stack.enter_context(Lease(everywhere[0], f"a run of {writer}", _ordering(shares), fresh=fresh))
        if fresh:
            begin_chain(everywhere, None if make else writer_class(shares[0][1]).ordering)
        parts = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="pghc-run-")))
        mixed = len(shares) > len({region for region, _ in shares})
        jobs = [
            Job(
                view=views[region],
                writer=name,
                clients=clients,
                seconds=seconds,
                reads=reads,
                timeout=timeout,
                path=str(parts / f"{region}-{name.replace(':', '.')}.{{life}}.jsonl") if keep_history else None,
                in_flight=in_flight,
                seed=seed,
                careful=during is not None,
                name=f"{name}-" if mixed else "",
                segment_size=segment_size,
            )
            for region, name in shares
        ]
        if keep_history and not fresh:
            _record_inheritance(parts / "before.0.jsonl", everywhere)
        crew: Crew = ClientThreads(jobs, make) if make else ClientProcesses(jobs)
        stack.enter_context(crew)
        ended = _work(crew, seconds, timeout * 3 + 60, lease, progress, during)
        begun = crew.begun()
        views = {name: backend.view(name) for name in views}  # a region may have another primary since
        everywhere = list(views.values())
        still = 5.0 if ordered else 1.0  # links and servers that were healed take their time
        settled = catch_up(everywhere, still=still, by_log=by_log)
        lease.check()
        path, behind = None, dict(settled.behind)
        if keep_history:
            path = Path(history_path) if history_path else new_history()
            _record_finals(parts / "final.jsonl", everywhere, behind, lease)
            lives = sorted(parts.glob("*.[0-9]*.jsonl"))
            merge([*(leave_out(part, begun) for part in lives), parts / "final.jsonl"], path)
        results = crew.results()
    latencies = {name: array("d") for name, _ in results}
    for name, result in results:
        latencies[name].extend(result["latencies_ms"])
    return Run(
        writer,
        max(result["seconds"] for _, result in results),
        path,
        {name: sum(result["ok"] for region, result in results if region == name) for name, _ in results},
        sum(result["fail"] for _, result in results),
        sum(result["info"] for _, result in results),
        sum(result["reads"] for _, result in results),
        sum((Counter(result["errors"]) for _, result in results), Counter()),
        latencies,
        None if settled.since is None else max(settled.since - ended, 0.0),
        behind,
    )


def assign(writer: str, regions: Sequence[str]) -> list[tuple[str, str]]:
    """Which region's clients use which writer, as pairs of both.

    "causal": all of them causal. "causal+broadcast": each region has clients of both. "causal/broadcast": the regions
    take turns. Raises `BadInput`.
    """
    turns = writer.split("/")
    shares = [(name, each) for turn, name in enumerate(regions) for each in turns[turn % len(turns)].split("+")]
    for _, each in shares:
        check_name(each)
    return shares


def _ordering(shares: Sequence[tuple[str, str]]) -> str:
    """How the chain is ordered, for those who may share it: as the writer says, else by itself."""
    orderings = {writer_class(name).ordering if name else "yours" for _, name in shares}
    return "+".join(sorted(orderings))


def _work(
    crew: Crew,
    seconds: float,
    patience: float,
    lease: Lease,
    progress: Progress | None,
    during: Callable[[Crew], None] | None,
) -> float:
    """Let the clients work; returns when they ended. Whatever ends it, what is done ``during`` it ends, too."""
    crew.go()
    trouble: list[Exception] = []
    helper = threading.Thread(target=_catch, args=(lambda: during(crew), trouble)) if during else None
    if helper:
        helper.start()
    try:
        while not crew.finished():
            if crew.elapsed > seconds + patience:
                raise ClusterError(f"clients did not end within {patience:g} s after the run")
            lease.keep()
            if progress:
                counts = crew.counts
                progress(min(crew.elapsed, seconds), counts["ok"], counts["fail"] + counts["info"])
            time.sleep(0.05)
        ended = time.monotonic()
    finally:
        crew.end()
        if helper:
            helper.join()  # it heals what it has hurt
    if trouble:
        raise trouble[0]
    return ended


def _record_inheritance(path: Path, views: Sequence[View]) -> None:
    """Record what stands in each region before the first append, for the checker must not ask who appended it."""
    with Recorder(path) as recorder:
        for view in views:
            with Store(view) as store:
                recorder.invoke(f"before/{view.region}", view.region, "read", None, store.node)
                mark, rows = store.recent(1, prefix=False)
                seen = Read(0, max(mark, rows[-1].zk_id if rows else 0), tuple(rows))
                recorder.ok(f"before/{view.region}", view.region, "read", None, store.node, seen)


def _record_finals(path: Path, views: Sequence[View], behind: dict[str, str], lease: Lease) -> None:
    """Record each region's whole chain; once more if somebody came to use the chain meanwhile.

    Of a region that cannot be read nothing is known, which is no reason to lose what is known of the others: it is
    added to those that are ``behind``.
    """
    while True:
        alone = lease.alone
        with Recorder(path) as recorder:
            for view in views:
                held = {"caught_up": view.region not in behind, "alone": alone}
                try:
                    with Store(view, timeout=60 if held["caught_up"] else 5) as store, store.snapshot() as now:
                        recorder.final(view.region, store.node, now.chain(), now.requests(), **held)
                except Unavailable as error:
                    behind[view.region] = f"could not be read in the end: {error.what}"
                    node = view.primary()
                    recorder.final(view.region, node, (), caught_up=False, alone=alone)
        lease.check()
        if lease.alone == alone:
            return


def _catch(work: Callable[[], None], trouble: list[Exception]) -> None:
    try:
        work()
    except Exception as error:
        trouble.append(error)


def new_history() -> Path:
    """A new file for a history that the caller has not named. The newest `HISTORIES` of them are kept."""
    directory = own_place("runs")
    for old in sorted(directory.glob("*.jsonl"))[: 1 - HISTORIES]:  # their names begin with their time
        old.unlink(missing_ok=True)
    handle, name = tempfile.mkstemp(prefix=time.strftime("%Y%m%d-%H%M%S-"), suffix=".jsonl", dir=directory)
    os.close(handle)
    return Path(name)


def own_place(what: str) -> Path:
    """The user's directory for files of that kind, which outlive their program, in the machine's temporary one."""
    directory = Path(tempfile.gettempdir()) / f"pghc-{os.getuid()}" / what
    directory.mkdir(parents=True, exist_ok=True, mode=0o700)
    return directory
