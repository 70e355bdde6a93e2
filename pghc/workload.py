"""Load on a cluster: clients in every region, one process a region, a history, a verdict.

`run` is what `pghc run` and the lessons call. Each region's clients are threads of a process of their own, as API nodes
would be; they die with the program that started them. A client whose append is indefinite tries again under the same
request id where the writer promises that this is safe, as a careful client would.
"""

from __future__ import annotations

import json
import os
import pickle
import random
import signal
import subprocess
import sys
import tempfile
import threading
import time
from array import array
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from itertools import cycle
from pathlib import Path
from typing import Any, Protocol, Self, runtime_checkable

from pghc import history
from pghc.backends import Backend
from pghc.chain import Row
from pghc.errors import BadInput, ClusterError, PghcError, Unavailable
from pghc.history import Read, Recorder
from pghc.sequencer import Entry, Sequencer, hang_up
from pghc.store import Reader, Store, reset
from pghc.topology import View
from pghc.verifier import Verdict, check
from pghc.writers import Writer, check_name, open_writer, writer_class

#: At most so many latencies are kept a region; beyond it every append replaces a random one.
LATENCIES = 100_000

#: Appends that a client with many in flight hands over at once.
GROUP = 100

Progress = Callable[[float, int, int], None]  # seconds so far, appends acknowledged, appends that failed


@runtime_checkable
class SubmitsMany(Protocol):
    """A writer that one client can give many appends at once."""

    def submit_many(self, request_ids: Sequence[str], timeout: float = ...) -> Future[list[Row]]: ...


def new_request_id(chance: random.Random) -> str:
    """A request id whose beginning is the time (UUID version 7, RFC 9562): such ids are cheaper to index."""
    milliseconds = time.time_ns() // 1_000_000
    rest = f"{chance.getrandbits(74):019x}"
    head = f"{milliseconds:012x}"
    variant = "89ab"[int(rest[3], 16) & 3]
    return f"{head[:8]}-{head[8:]}-7{rest[:3]}-{variant}{rest[4:7]}-{rest[7:]}"


@dataclass(frozen=True)
class Job:
    """What one region's process is to do."""

    view: View
    writer: str
    clients: int
    seconds: float
    reads: float
    timeout: float
    path: str | None
    in_flight: int
    seed: int
    life: int = 1  # of the region's process: one that was killed is followed by another
    careful: bool = False  # write each line of the history at once, since the process may be killed


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
    during: Callable[[Clients], None] | None = None,
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
        begin_chain(list(views.values()))
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
        crew = stack.enter_context(Clients(jobs))
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
                    with Store(view, timeout=60) as store:
                        recorder.final(name, store.node, store.chain())
            history.merge([*sorted(parts.glob("*.[0-9]*.jsonl")), parts / "final.jsonl"], path)
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


def _keep() -> Path:
    """A new file for a history that the caller has not named."""
    directory = Path(tempfile.gettempdir()) / f"pghc-{os.getuid()}" / "runs"
    directory.mkdir(parents=True, exist_ok=True, mode=0o700)
    handle, name = tempfile.mkstemp(prefix=time.strftime("%Y%m%d-%H%M%S-"), suffix=".jsonl", dir=directory)
    os.close(handle)
    return Path(name)


class Clients:
    """The processes of a run, one a region, and what faults may do to them."""

    def __init__(self, jobs: Sequence[Job]) -> None:
        self._stack = ExitStack()
        self._began = 0.0
        self._workers: dict[str, list[_Worker]] = {}
        try:
            for job in jobs:
                self._workers[job.view.region] = [self._stack.enter_context(_Worker(job))]
            for lives in self._workers.values():
                lives[-1].expect("ready", 30)
        except BaseException:
            self._stack.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def go(self) -> None:
        self._began = time.monotonic()
        for lives in self._workers.values():
            lives[-1].tell("go")

    @property
    def elapsed(self) -> float:
        return time.monotonic() - self._began

    @property
    def counts(self) -> Counter[str]:
        return sum((worker.counts for lives in self._workers.values() for worker in lives), Counter())

    def kill(self, region: str, step: str) -> None:
        """Kill -9 the region's clients when one of them next has done ``step``; others take their place."""
        self._workers[region][-1].doomed = True
        self._workers[region][-1].tell(f"die {step}")

    def lose_replies(self, region: str) -> None:
        """Break the connection of the region's clients to ZooKeeper: replies on their way are lost."""
        self._workers[region][-1].tell("break")

    def finished(self) -> bool:
        """Have all ended their work? Replaces those that were killed. Raises `ClusterError` when one failed."""
        done = True
        for lives in self._workers.values():
            worker = lives[-1]
            if worker.doomed and worker.gone and "finished" not in worker.heard:
                job = replace(worker.job, life=worker.job.life + 1, seconds=max(worker.job.seconds - self.elapsed, 0.5))
                heir = self._stack.enter_context(_Worker(job))
                heir.expect("ready", 45)
                heir.tell("go")
                lives.append(heir)
                done = False
            else:
                done = worker.poll() and done
        return done

    def results(self) -> dict[str, dict[str, Any]]:
        """Each region's numbers, of all lives of its process. Lets the processes end."""
        totals = {}
        for region, lives in self._workers.items():
            total = dict(lives[-1].result)
            for worker in lives[:-1]:  # killed: what it reported last is what is known
                for name in ("ok", "fail", "info", "reads"):
                    total[name] += worker.counts[name]
            totals[region] = total
        for lives in self._workers.values():
            lives[-1].tell("stop")
        return totals


class _Worker:
    """The parent's side of one region's process."""

    def __init__(self, job: Job) -> None:
        self.job = job
        self.counts: Counter[str] = Counter()
        self.result: dict[str, Any] = {}
        self.heard: set[str] = set()
        self.doomed = self.gone = False
        self._error = ""
        self._news = threading.Condition()
        command = [sys.executable, "-m", "pghc.workload"]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        self._listener = threading.Thread(target=self._listen, daemon=True)
        self._listener.start()
        assert self._process.stdin
        with suppress(BrokenPipeError):
            pickle.dump(job, self._process.stdin)  # over a pipe: it has passwords
            self._process.stdin.flush()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        assert self._process.stdin
        assert self._process.stdout
        with suppress(OSError):
            self._process.stdin.close()  # it ends when its standard input does
        try:
            self._process.wait(timeout=10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._listener.join(timeout=5)
        self._process.stdout.close()

    def tell(self, word: str) -> None:
        assert self._process.stdin
        with suppress(OSError):  # it has ended: whoever asks for its state learns that
            self._process.stdin.write(f"{word}\n".encode())
            self._process.stdin.flush()

    def expect(self, word: str, timeout: float) -> None:
        """Wait until the process says ``word``. Raises `ClusterError`."""
        with self._news:
            self._news.wait_for(lambda: word in self.heard or self.gone or self._error, timeout)
            if word not in self.heard:
                why = self._error or ("they were killed" if self.gone else f"not {word} within {timeout:g} s")
                raise ClusterError(f"the clients of {self.job.view.region}: {why}", "See `pghc status`")

    def poll(self) -> bool:
        """Has it finished? Raises `ClusterError` when it failed."""
        with self._news:
            if "finished" not in self.heard and (self.gone or self._error):
                raise ClusterError(f"the clients of {self.job.view.region} ended early: {self._error or 'killed'}")
            return "finished" in self.heard

    def _listen(self) -> None:
        assert self._process.stdout
        for line in self._process.stdout:
            message = json.loads(line)
            with self._news:
                self.counts = Counter(message.get("counts", self.counts))
                self._error = message.get("error", self._error)
                self.result = message.get("result", self.result)
                self.heard.add(message.get("word", ""))
                self._news.notify_all()
        with self._news:
            self.gone = True
            self._news.notify_all()


# In the region's process


class Region:
    """The clients of one region, as threads of this process."""

    def __init__(self, job: Job, writer: Writer, recorder: Recorder | None) -> None:
        self.job, self.writer, self.recorder = job, writer, recorder
        self.region = job.view.region
        self.node = job.view.topology.region(self.region).primary
        self.counts: Counter[str] = Counter()
        self.errors: Counter[str] = Counter()
        self.latencies = array("d")
        self.lock = threading.Lock()
        self.random = random.Random(f"{job.seed} {self.region} {job.life}")  # noqa: S311  # no secrets: ids, samples
        region = job.view.topology.region(self.region)
        servers = (*region.replica_names, region.primary) if job.reads else ()
        self.readers = {name: Reader(job.view, name, timeout=min(job.timeout, 5.0)) for name in servers}

    def run(self) -> float:
        """Run them all; returns the seconds from the first invocation to the last answer."""
        began = time.monotonic()
        self.end = began + self.job.seconds
        if self.job.in_flight:
            self._pipeline()
        else:
            life = f".{self.job.life}" if self.job.life > 1 else ""  # a new process is a new client
            names = [f"{self.region}/{number}{life}" for number in range(1, self.job.clients + 1)]
            threads = [threading.Thread(target=self._client, args=(name,), name=name) for name in names]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
        return time.monotonic() - began

    def _client(self, process: str) -> None:
        chance = random.Random(f"{self.job.seed} {process}")  # noqa: S311  # no secrets: ids, turns
        turns = cycle(name for name in self.readers if name != self.node)
        seen = 0
        while time.monotonic() < self.end:
            seen = self._append(process, new_request_id(chance), seen)
            reads = self.job.reads
            while reads > 0 and (reads >= 1 or chance.random() < reads):
                seen = self._read(process, next(turns, self.node), seen)
                reads -= 1

    def _append(self, process: str, request_id: str, seen: int) -> int:
        tries = 3 if self.writer.exactly_once else 1
        for attempt in range(1, tries + 1):
            started = time.monotonic()
            if self.recorder:
                self.recorder.invoke(process, self.region, "append", request_id, self.node)
                if self.job.careful:
                    self.recorder.flush()
            try:
                row = self.writer.append(request_id, self.job.timeout)
            except PghcError as error:
                kind = "fail" if error.definite and attempt == 1 else "info"
                self._count(kind, error)
                if self.recorder:
                    record = self.recorder.fail if kind == "fail" else self.recorder.info
                    record(process, self.region, "append", request_id, self.node, error.what)
                time.sleep(0.05)  # a server is away: do not hammer it
                if kind == "fail":
                    return seen
            else:
                if self.recorder:
                    self.recorder.ok(process, self.region, "append", request_id, self.node, row)
                    if self.job.careful:
                        self.recorder.flush()
                self._acknowledged(started)
                return max(seen, row.zk_id)
        return seen

    def _read(self, process: str, node: str, seen: int) -> int:
        """Read the newest entries, none older than this client has seen, from a server that is up and not behind."""
        ordered = self.writer.ordered
        position = seen if ordered else 0
        for name in dict.fromkeys((node, self.node)):
            if self.recorder:
                self.recorder.invoke(process, self.region, "read", None, name)
            try:
                if ordered:
                    self.readers[name].reached(position, 1.0)
                mark, rows = self.readers[name].recent(10, prefix=ordered)
            except PghcError as error:
                if self.recorder:
                    self.recorder.fail(process, self.region, "read", None, name, error.what)
                continue
            if self.recorder:
                self.recorder.ok(process, self.region, "read", None, name, Read(position, mark, tuple(rows)))
            with self.lock:
                self.counts["reads"] += 1
            return max(seen, mark) if ordered else seen
        return seen

    def _pipeline(self) -> None:
        """One client that keeps many appends on their way, in groups, as a bulk load would."""
        writer = self.writer
        if not isinstance(writer, SubmitsMany):
            raise BadInput(f"the writer {self.job.writer} cannot have many appends of one client in flight")
        group = max(1, min(GROUP, self.job.in_flight // 10))
        room = threading.Semaphore(self.job.in_flight // group)
        process = f"{self.region}/1"

        def answered(started: float, requests: Sequence[str], future: Future[list[Row]]) -> None:
            room.release()
            if error := future.exception():
                self._count("fail" if getattr(error, "definite", False) else "info", error, len(requests))
                return
            if self.recorder:
                for request, row in zip(requests, future.result(), strict=True):
                    self.recorder.ok(process, self.region, "append", request, self.node, row)
            self._acknowledged(started, len(requests))

        while time.monotonic() < self.end:
            if not room.acquire(timeout=0.1):
                continue
            started, requests = time.monotonic(), [new_request_id(self.random) for _ in range(group)]
            if self.recorder:
                for request in requests:
                    self.recorder.invoke(process, self.region, "append", request, self.node)
            writer.submit_many(requests, self.job.timeout).add_done_callback(partial(answered, started, requests))
        for _ in range(self.job.in_flight // group):
            if not room.acquire(timeout=self.job.timeout):
                break

    def _acknowledged(self, started: float, times: int = 1) -> None:
        took = 1000 * (time.monotonic() - started)
        with self.lock:
            self.counts["ok"] += times
            if len(self.latencies) < LATENCIES:
                self.latencies.append(took)
            elif (place := self.random.randrange(self.counts["ok"])) < LATENCIES:
                self.latencies[place] = took

    def _count(self, kind: str, error: BaseException, times: int = 1) -> None:
        with self.lock:
            self.counts[kind] += times
            self.errors[getattr(error, "what", repr(error))] += times

    def close(self) -> None:
        for reader in self.readers.values():
            reader.close()


def _say(**message: object) -> None:
    sys.stdout.write(json.dumps(message) + "\n")
    sys.stdout.flush()


def main() -> None:
    """A region's process: takes its `Job` and then words from standard input, ends with it, reports on its output."""
    job: Job = pickle.load(sys.stdin.buffer)  # noqa: S301  # from our own parent
    words: set[str] = set()
    heard = threading.Condition()
    doom: list[str] = []

    def step(name: str) -> None:
        if name in doom:
            os.kill(os.getpid(), signal.SIGKILL)

    def listen() -> None:
        for line in sys.stdin.buffer:
            word, _, argument = line.decode().strip().partition(" ")
            if word == "die":
                doom.append(argument)
            elif word == "break":
                _break_connection(writer)
            with heard:
                words.add(word)
                heard.notify_all()
        os._exit(0)  # the parent has ended, in whatever way

    def wait_for(word: str) -> None:
        with heard:
            heard.wait_for(lambda: word in words)

    try:
        with ExitStack() as stack:
            path = job.path.format(life=job.life) if job.path else None
            recorder = stack.enter_context(Recorder(path)) if path else None
            writer = stack.enter_context(_open(job, step))
            clients = Region(job, writer, recorder)
            stack.callback(clients.close)
            threading.Thread(target=listen, daemon=True).start()
            _say(word="ready")
            wait_for("go")
            ended = threading.Event()

            def report() -> None:
                while not ended.wait(0.2):
                    _say(counts=dict(clients.counts))

            threading.Thread(target=report, daemon=True).start()
            seconds = clients.run()
            ended.set()
            if recorder:
                recorder.flush()
            counts = {name: clients.counts[name] for name in ("ok", "fail", "info", "reads")}
            common = dict(clients.errors.most_common(20))
            result = {**counts, "seconds": seconds, "errors": common, "latencies_ms": list(clients.latencies)}
            _say(word="finished", counts=counts, result=result)
            wait_for("stop")  # the writer still applies what others wrote
    except PghcError as error:
        _say(error=str(error))
    except Exception as error:  # the parent reports it
        _say(error=f"{type(error).__name__}: {error}")
    os._exit(0)  # not by way of the interpreter's end: a thread reads standard input


def _open(job: Job, step: Callable[[str], None]) -> Writer:
    """The job's writer. Who takes the place of a killed client waits for servers that are away just now."""
    deadline = time.monotonic() + 25
    while True:
        try:
            return open_writer(job.writer, job.view, step)
        except Unavailable:
            if job.life == 1 or time.monotonic() > deadline:
                raise


def _break_connection(writer: Writer) -> None:
    """Lose what ZooKeeper is about to answer."""
    if client := getattr(getattr(writer, "sequencer", None) or getattr(writer, "mutex", None), "client", None):
        hang_up(client)


if __name__ == "__main__":
    main()
