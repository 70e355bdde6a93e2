"""The clients of a run as threads of this program: for a reader's own writer, which other programs do not know."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from typing import Any, Self

from pghc.chain import Row
from pghc.errors import BadInput, Indefinite, PghcError
from pghc.topology import View
from pghc.verify.history import Recorder
from pghc.workload.clients import Job, RegionClients
from pghc.writers import Base, Writer


class ClientThreads:
    """The clients of a run, one group a job, on writers that ``make`` gives. Raises what ``make`` raises."""

    def __init__(self, jobs: Sequence[Job], make: Callable[[View], Writer]) -> None:
        self._began = 0.0
        self._ended = threading.Event()
        self._trouble: list[Exception] = []
        self._seconds: dict[str, float] = {}
        self._groups: list[RegionClients] = []
        with ExitStack() as stack:
            for job in jobs:
                path = job.path.format(life=job.life) if job.path else None
                recorder = stack.enter_context(Recorder(path)) if path else None
                writer = Guarded(stack.enter_context(make(job.view)), self._stop)
                self._groups.append(RegionClients(job, writer, recorder))
                stack.callback(self._groups[-1].close)
            self._stack = stack.pop_all()
        self._threads = [threading.Thread(target=self._run, args=(group,)) for group in self._groups]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.end()
        for thread in self._threads:
            if thread.ident:
                thread.join(timeout=2 * self._groups[0].job.timeout)  # an append that was under way
        self._stack.close()

    def go(self) -> None:
        self._began = time.monotonic()
        for thread in self._threads:
            thread.start()

    @property
    def elapsed(self) -> float:
        return time.monotonic() - self._began

    def wait(self, seconds: float) -> bool:
        """Wait so long, or until the run ends; True when it has ended, in whatever way."""
        return self._ended.wait(seconds)

    def end(self) -> None:
        """Let the clients begin nothing more, and tell all who `wait`."""
        for group in self._groups:
            group.end = 0.0
        self._ended.set()

    @property
    def counts(self) -> Counter[str]:
        return sum((group.counts for group in self._groups), Counter())

    def begun(self) -> list[tuple[int, int]]:
        return []

    def finished(self) -> bool:
        """Have all ended their work? Raises what a writer raised that is no `PghcError`."""
        if self._trouble:
            raise self._trouble[0]
        return not any(thread.is_alive() for thread in self._threads)

    def results(self) -> list[tuple[str, dict[str, Any]]]:
        """Each job's region and numbers."""
        return [
            (
                group.region,
                {name: group.counts[name] for name in ("ok", "fail", "info", "reads")}
                | {"seconds": self._seconds[group.region], "errors": group.errors, "latencies_ms": group.latencies},
            )
            for group in self._groups
        ]

    def kill(self, region: str, step: str) -> None:
        raise self._cannot()

    def lose_replies(self, region: str) -> None:
        raise self._cannot()

    def pause(self, region: str, seconds: float) -> None:
        raise self._cannot()

    def begin_chain(self) -> None:
        raise self._cannot()

    def _run(self, group: RegionClients) -> None:
        self._seconds[group.region] = group.run()
        if group.recorder:
            group.recorder.flush()

    def _stop(self, error: Exception) -> None:
        self._trouble.append(error)
        self.end()

    def _cannot(self) -> BadInput:
        return BadInput("clients that are threads of this program cannot be hurt", "Run a writer by its name.")


class Guarded(Base):
    """A writer whose unexpected errors are told to ``stop`` instead of being lost with their thread."""

    def __init__(self, writer: Writer, stop: Callable[[Exception], None]) -> None:
        self._writer, self._stop = writer, stop
        self.ordered, self.exactly_once = writer.ordered, writer.exactly_once

    def append(self, request_id: str, timeout: float = 10.0) -> Row:
        try:
            return self._writer.append(request_id, timeout)
        except PghcError:
            raise
        except Exception as error:
            self._stop(error)
            raise Indefinite(f"the writer raised {type(error).__name__}") from error

    def close(self) -> None:
        self._writer.close()
