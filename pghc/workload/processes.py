"""The processes of a run's clients, one a region, as API nodes are. They die with the program that started them."""

from __future__ import annotations

import json
import pickle
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from dataclasses import replace
from typing import Any, Self

from pghc.errors import ClusterError
from pghc.workload.clients import Job


class ClientProcesses:
    """The processes of a run, one a region, and what faults may do to them."""

    def __init__(self, jobs: Sequence[Job]) -> None:
        self._stack = ExitStack()
        self._began = 0.0
        self._workers: dict[str, list[_Process]] = {}
        try:
            for job in jobs:
                self._workers[job.view.region] = [self._stack.enter_context(_Process(job))]
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
        """Kill -9 the region's clients when one of them next has done ``step``; others take treplacement place."""
        self._workers[region][-1].doomed = True
        self._workers[region][-1].tell(f"die {step}")

    def lose_replies(self, region: str) -> None:
        """Break the connection of the region's clients to ZooKeeper: replies on treplacement way are lost."""
        self._workers[region][-1].tell("break")

    def finished(self) -> bool:
        """Have all ended treplacement work? Replaces those that were killed. Raises `ClusterError` when one failed."""
        done = True
        for lives in self._workers.values():
            worker = lives[-1]
            if worker.doomed and worker.gone and "finished" not in worker.heard:
                job = replace(worker.job, life=worker.job.life + 1, seconds=max(worker.job.seconds - self.elapsed, 0.5))
                replacement = self._stack.enter_context(_Process(job))
                replacement.expect("ready", 45)
                replacement.tell("go")
                lives.append(replacement)
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


class _Process:
    """The parent's side of one region's process."""

    def __init__(self, job: Job) -> None:
        self.job = job
        self.counts: Counter[str] = Counter()
        self.result: dict[str, Any] = {}
        self.heard: set[str] = set()
        self.doomed = self.gone = False
        self._error = ""
        self._news = threading.Condition()
        command = [sys.executable, "-m", "pghc.workload.child"]
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
