"""What an API node does, without HTTP: appends under a request id, and reads that never go back in time.

One asyncio loop, and threads for what blocks. Every append that was begun is answered: with its entry, or with an error
that says whether it happened, after a time-out or when the node shuts down.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, suppress
from itertools import count
from typing import Any, NamedTuple, Protocol, TypeVar, runtime_checkable

from pghc.api.metrics import Metrics
from pghc.chain import Row
from pghc.errors import Behind, ClusterError, Indefinite, PghcError, Unavailable
from pghc.store import Cursor, Primary, Reader
from pghc.topology import View
from pghc.verify.audit import audit
from pghc.verify.verdict import Verdict
from pghc.workload.lease import Users
from pghc.writers import Writer, open_writer, writer_class

T = TypeVar("T")

#: Appends in progress at once: each takes a thread, or only a place in the writer's queue.
THREADS, QUEUED = 128, 4096
#: Seconds that appends wait for others to share their way, and how many must be in progress before any waits.
GATHER, FEW = 0.03, 16
#: Seconds: a question to one server; a replica's chance to reach a position; the primary's; between looks at servers.
READ, BRIEF, PATIENT, OBSERVE = 2.0, 0.1, 1.5, 2.0
#: Seconds that an append waits for the first attempt to open the writer; between attempts, at first and at most.
OPENING, SOON, LATER = 8.0, 0.5, 4.0
#: Seconds from a signal until requests are refused, and from then on for those in progress. A supervisor waits for 5.
LINGER, CLOSING = 0.5, 1.5
#: Seconds that a verification may take.
VERIFY = 30.0

log = logging.getLogger("pghc.api")


@runtime_checkable
class Submits(Protocol):
    """A writer whose appends need no thread each, and are cheaper together."""

    def submit_many(self, request_ids: Sequence[str], timeout: float = ...) -> Future[list[Row]]: ...

    def give_up(self, pending: Any, timeout: float) -> PghcError: ...


class NeverGiven(PghcError):
    """A read carries a position that no region has: it is of a chain that was ended, or made up."""


class Reads:
    """The region's servers: its replicas in turn, then its primary."""

    def __init__(self, view: View, metrics: Metrics) -> None:
        self.cursors: dict[str, Cursor | None] = {}
        self._view, self._metrics = view, metrics
        self._primary = Primary(view, timeout=READ)
        self._readers = {name: Reader(view, name, timeout=READ) for name in view.topology.region(view.region).databases}
        self._elsewhere: dict[str, Primary] = {}  # of the other regions, once they are asked
        self._threads = ThreadPoolExecutor(24, "read")
        self._turns = count()

    @property
    def primary(self) -> str:
        """The region's primary as of now."""
        return self._primary.node

    def _reader(self, name: str) -> Reader:
        return self._primary if name == self.primary else self._readers[name]

    def close(self) -> None:
        for reader in (self._primary, *self._readers.values(), *self._elsewhere.values()):
            reader.close()
        self._threads.shutdown(wait=False, cancel_futures=True)

    async def read(self, what: Callable[[Reader], T], position: int = 0) -> T:
        """The answer of the first server that has reached entry ``position`` and gives one.

        A replica gets a moment to reach it, the primary longer. Raises `Unavailable`, `Behind`, `NeverGiven`.
        """
        failure: PghcError | None = None
        for name in self._order():
            if name == self.primary and isinstance(failure, Behind):
                await self._check_given(position)
            wait = PATIENT if name == self.primary else BRIEF
            try:
                return await self._ask(self._reader(name), what, position, wait)
            except (Unavailable, Behind) as error:
                failure = error
                if isinstance(error, Unavailable):
                    self._observed(name, None)
        assert failure
        raise failure

    async def ask_primary(self, what: Callable[[Reader], T]) -> T:
        return await self._ask(self._primary, what)

    async def verify(self, last: int, position: int = 0) -> Verdict:
        """The verdict on the last entries of one server."""

        def judge(reader: Reader) -> Verdict:
            with Reader(self._view, reader.node, timeout=VERIFY, connections=1) as patient:
                return audit(patient, last)

        return await self.read(judge, position)

    async def observe(self) -> None:
        """Look at all servers again and again, for ever."""
        while True:
            await asyncio.gather(*map(self._observe, self._readers))
            await asyncio.sleep(OBSERVE if self.readable else BRIEF)

    @property
    def readable(self) -> bool:
        """Some server of the region answered last time."""
        return any(cursor is not None for cursor in self.cursors.values())

    async def _observe(self, name: str) -> None:
        try:
            self._observed(name, await self._ask(self._reader(name), Reader.cursor))
        except PghcError:
            self._observed(name, None)
        except Exception:  # it goes on observing, whatever it was
            log.exception("cannot be observed", extra={"fields": {"node": name}})
            self._observed(name, None)

    def _observed(self, name: str, cursor: Cursor | None) -> None:
        if (cursor is None) is not (self.cursors.get(name) is None):
            log.info("answers" if cursor else "does not answer", extra={"fields": {"node": name}})
        self.cursors[name] = cursor
        self._metrics.observed(name, cursor, self.cursors.get(self.primary))

    def _order(self) -> list[str]:
        """Replicas in turn, then the primary; those that did not answer last time come last."""
        replicas = [name for name in self._readers if name != self.primary]
        turn = next(self._turns) % max(len(replicas), 1)
        names = (*replicas[turn:], *replicas[:turn], self.primary)
        return sorted(names, key=lambda name: name in self.cursors and self.cursors[name] is None)

    async def _ask(self, reader: Reader, what: Callable[[Reader], T], position: int = 0, wait: float = 0.0) -> T:
        def work() -> T:
            if position:
                reader.reached(position, wait)
            return what(reader)

        return await asyncio.get_running_loop().run_in_executor(self._threads, work)

    async def _check_given(self, position: int) -> None:
        """Whoever was given a position was given it by a primary that had the entry. Raises `NeverGiven` if none has.

        While some region cannot be asked nothing is known, and nothing is raised.
        """
        for region in self._view.topology.names:
            if region != self._view.region and region not in self._elsewhere:
                self._elsewhere[region] = Primary(self._view, region, timeout=READ, connections=1)
        primaries = (self._primary, *self._elsewhere.values())
        answers = await asyncio.gather(*(self._ask(each, Reader.last) for each in primaries), return_exceptions=True)
        if all(not isinstance(last, BaseException) and (last.zk_id if last else 0) < position for last in answers):
            raise NeverGiven(
                f"no region has an entry {position}",
                "The chain was begun anew, or this position was never given: read without it",
            )


class Wait(NamedTuple):
    """Requests that wait for the same thing of the writer, since ``began``."""

    answers: list[asyncio.Future[Row]]
    future: Future[Any]
    began: float


class Appends:
    """The region's writer. It is opened as soon as there is a quorum; until then appends are refused.

    Appends of one request id go to the writer each with its own time-out; a writer that honours them makes one of them.
    """

    def __init__(self, view: View, name: str, reads: Reads, metrics: Metrics, timeout: float) -> None:
        self.writer: Writer | None = None
        self._submits: Submits | None = None  # the same one
        self.closing = False
        self._tried = asyncio.Event()
        self._view, self._name, self._reads, self._metrics, self._timeout = view, name, reads, metrics, timeout
        self._threads = ThreadPoolExecutor(THREADS, "append")
        self._open: set[asyncio.Future[Row]] = set()
        self._users: Users | None = None
        self._trouble: PghcError | None = None  # why the writer is not open
        self._gathered: list[tuple[str, asyncio.Future[Row]]] = []
        self._waits: deque[Wait] = deque()
        self._done: deque[Wait] = deque()
        self._woken = False

    async def run(self) -> None:
        """Open the writer, then watch over the appends, for ever."""
        self._loop = asyncio.get_running_loop()
        if await self._open_writer():
            await self._watch()

    async def _open_writer(self) -> bool:
        """Try for as long as servers are away, less and less often; what no further attempt mends ends it."""
        pause = SOON
        while True:
            try:
                self._users, writer = await self._loop.run_in_executor(self._threads, self._open_both)
            except (Unavailable, Indefinite, ClusterError) as error:
                self._trouble = error
                log.warning("writer not open", extra={"fields": {"error": str(error), "again_in": pause}})
            except Exception as error:
                what = f"{self._view.region}: the writer {self._name} cannot be opened: {type(error).__name__}: {error}"
                self._trouble = ClusterError(what, "Mend it and start the API node again")
                log.exception("writer cannot be opened")
                return False
            else:
                log.info("writer open", extra={"fields": {"writer": self._name}})
                self.writer, self._submits = writer, writer if isinstance(writer, Submits) else None
                self._metrics.writer_open.set(1)
                return True
            finally:
                self._tried.set()
            await asyncio.sleep(pause)
            pause = min(2 * pause, LATER)

    def _open_both(self) -> tuple[Users, Writer]:
        with ExitStack() as stack:
            users = stack.enter_context(Users(self._view))
            writer = open_writer(self._name, self._view, self._metrics.step)
            stack.pop_all()
            return users, writer

    def close(self) -> None:
        if self._users:
            self._users.close()
        if self.writer:
            self.writer.close()
        self._threads.shutdown(wait=False, cancel_futures=True)

    def begin_closing(self) -> None:
        """Begin nothing any more."""
        self.closing = True
        self._tried.set()

    async def append(self, request_id: str, *, retried: bool) -> Row:
        """Append one entry. ``retried``: this id may have been used before, and then its entry is returned.

        Raises `Unavailable`, `Conflict`, `Indefinite`, and `InUse` while a run uses the chain.
        """
        began = time.monotonic()
        try:
            if retried and (row := await self._reads.ask_primary(lambda primary: primary.entry(request_id))):
                self._metrics.appended(time.monotonic() - began, known=True)
                return row
            row = await self._append(request_id)
        except PghcError as error:
            self._metrics.failed(error)
            raise
        self._metrics.appended(time.monotonic() - began, known=False)
        return row

    async def _append(self, request_id: str) -> Row:
        if self.writer is None:
            with suppress(TimeoutError):
                await asyncio.wait_for(self._tried.wait(), OPENING)
        writer = self.writer
        if writer is None or self.closing:
            raise self._not_now()
        if self._users:
            self._users.check()
        if len(self._open) >= (QUEUED if self._submits else THREADS):
            raise Unavailable(
                f"{self._view.region}: {len(self._open)} appends are in progress, nothing was written",
                "Send more slowly",
            )
        answer: asyncio.Future[Row] = self._loop.create_future()
        self._open.add(answer)
        try:
            if self._submits:
                self._gather(request_id, answer)
            else:
                self._wait([answer], self._threads.submit(writer.append, request_id, self._timeout))
            return await answer
        finally:
            self._open.discard(answer)

    def _not_now(self) -> PghcError:
        if self.closing:
            what, remedy = "the API node is shutting down", "Try again, or ask another region's node"
        elif self._trouble:
            what, remedy = f"the writer is not open: {self._trouble.what}", self._trouble.remedy
        else:
            what, remedy = "the writer is not open yet", "Try again, or ask another region's node"
        return Unavailable(f"{self._view.region}: {what}; nothing was written", remedy)

    def _gather(self, request_id: str, answer: asyncio.Future[Row]) -> None:
        self._gathered.append((request_id, answer))
        if len(self._gathered) == 1:
            self._loop.call_later(GATHER if len(self._open) > FEW else 0, self._submit)

    def _submit(self) -> None:
        assert self._submits
        requests = [request_id for request_id, _ in self._gathered]
        answers = [answer for _, answer in self._gathered]
        self._gathered = []
        try:
            self._wait(answers, self._submits.submit_many(requests, self._timeout))
        except PghcError as error:
            _fail(answers, error)

    def _wait(self, answers: list[asyncio.Future[Row]], future: Future[Any]) -> None:
        wait = Wait(answers, future, self._loop.time())
        self._waits.append(wait)
        future.add_done_callback(lambda _: self._ended(wait))

    async def _watch(self) -> None:
        """End the waits that take too long, for ever. All have the same time, so the oldest come first."""
        while True:
            await asyncio.sleep(0.1)
            while self._waits:
                wait = self._waits[0]
                took = self._loop.time() - wait.began
                if self._submits and took > self._timeout and not wait.future.done():
                    _fail(wait.answers, self._submits.give_up(wait.future, self._timeout))
                elif took > self._timeout + 5:  # a writer keeps its time; this is for a thread that hangs
                    for answer in wait.answers:
                        self._refuse(answer, "did not end in time")
                elif not wait.future.done():
                    break
                self._waits.popleft()

    def refuse_open(self) -> None:
        """Answer whatever is still open: the node ends now."""
        for answer in list(self._open):
            self._refuse(answer, "was given up, because the API node shuts down")

    def _refuse(self, answer: asyncio.Future[Row], why: str) -> None:
        if not answer.done():
            answer.set_exception(
                Indefinite(
                    f"{self._view.region}: this append {why}; it may have happened",
                    "Retry with the same key, here or at another region's node: it happens once",
                )
            )

    def _ended(self, wait: Wait) -> None:
        """On the writer's thread. Answers come in bulk, and the loop is woken once for all that have come."""
        self._done.append(wait)
        if not self._woken:
            self._woken = True
            with suppress(RuntimeError):  # the loop has ended, and has answered all
                self._loop.call_soon_threadsafe(self._deliver)

    def _deliver(self) -> None:
        self._woken = False
        while self._done:
            answers, done, _ = self._done.popleft()
            if done.cancelled():
                for answer in answers:
                    self._refuse(answer, "was cancelled")
            elif error := done.exception():
                _fail(answers, error)
            else:
                rows = done.result()
                for answer, row in zip(answers, rows if isinstance(rows, list) else [rows], strict=True):
                    if not answer.done():
                        answer.set_result(row)


def _fail(answers: Iterable[asyncio.Future[Row]], error: BaseException) -> None:
    for answer in answers:
        if not answer.done():
            answer.set_exception(error)


class Service:
    """One region's API node. ``timeout``: seconds that an append may take."""

    def __init__(self, view: View, writer: str, *, timeout: float = 10.0) -> None:
        self.view, self.writer, self.timeout = view, writer, timeout
        self.ordered, self.exactly_once = writer_class(writer).ordered, writer_class(writer).exactly_once
        self.metrics = Metrics()
        self.reads = Reads(view, self.metrics)
        self.appends = Appends(view, writer, self.reads, self.metrics, timeout)
        self.ending = False  # the node is about to shut down: not ready, though it still serves
        self.requests: set[asyncio.Task[Any]] = set()  # that are in progress
        self._tasks: list[asyncio.Task[None]] = []
        self._verifying = asyncio.Semaphore(2)

    async def start(self) -> None:
        self._tasks = [asyncio.create_task(work) for work in (self.appends.run(), self.reads.observe())]

    async def end(self) -> None:
        """Answer what is in progress, and whatever comes meanwhile: served for a moment, since who routes by readiness
        learns it late, then refused. Returns within `LINGER` + `CLOSING` seconds.
        """
        self.ending = True
        await asyncio.sleep(LINGER)
        self.appends.begin_closing()
        deadline = time.monotonic() + CLOSING
        while self.requests and time.monotonic() < deadline:
            await asyncio.sleep(0.02)
        self.appends.refuse_open()
        await asyncio.sleep(0.05)
        for task in self.requests:  # reads, which the edge then answers
            task.cancel()

    async def close(self, patience: float = 1.0) -> None:
        """Give everything back, within about ``patience`` seconds."""
        self.ending = True
        self.appends.begin_closing()
        self.appends.refuse_open()
        for task in self._tasks:
            task.cancel()
        parts = [threading.Thread(target=part.close, daemon=True) for part in (self.appends, self.reads)]
        for part in parts:
            part.start()
        deadline = time.monotonic() + patience
        while any(part.is_alive() for part in parts) and time.monotonic() < deadline:
            await asyncio.sleep(0.02)

    async def recent(self, limit: int, after: int, position: int) -> tuple[int, list[Row]]:
        """The watermark and the newest entries above number ``after``, newest first; none older than ``position``."""
        prefix = self.ordered
        mark, rows = await self.reads.read(
            lambda reader: reader.recent(limit, after=after, prefix=prefix), position if prefix else 0
        )
        return mark, rows[::-1]

    async def verify(self, last: int, position: int) -> Verdict:
        if self._verifying.locked():
            raise Unavailable(f"{self.view.region}: two verifications are in progress", "Try again in a moment")
        async with self._verifying:
            return await self.reads.verify(last, position if self.ordered else 0)

    @property
    def writable(self) -> bool:
        """The writer is open and the primary answered last time."""
        return self.appends.writer is not None and self.reads.cursors.get(self.reads.primary) is not None
