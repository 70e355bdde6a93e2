"""The processes of a run's clients, one a region and writer. They die with the program that started them.

They have process groups of their own, so that Ctrl-C is the program's business, not theirs.
"""

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

from pghc.cluster.surroundings import python_environment
from pghc.errors import ClusterError
from pghc.topology import View
from pghc.workload.clients import Job
from pghc.writers import writer_class


class ClientProcesses:
    """The processes of a run, one a job, and what faults may do to them.

    A region has one job, or with mixed writers one for each of them: what a fault does to a region it does to all.
    """

    def __init__(self, jobs: Sequence[Job]) -> None:
        self._stack = ExitStack()
        self._began = 0.0
        self._ended = threading.Event()
        self._crews: list[list[_Process]] = []  # of each job: its process, and those that took its place
        self._begun: list[ChainBeginner] = []
        self._views = [job.view for job in jobs]
        try:
            for job in jobs:
                self._crews.append([self._stack.enter_context(_Process(job))])
            for lives in self._crews:
                lives[-1].expect("ready", 30)
        except BaseException:
            self._stack.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.end()
        self._stack.close()

    def go(self) -> None:
        self._began = time.monotonic()
        for lives in self._crews:
            lives[-1].go()

    @property
    def elapsed(self) -> float:
        return time.monotonic() - self._began

    def wait(self, seconds: float) -> bool:
        """Wait so long, or until the run ends; True when it has ended, in whatever way."""
        return self._ended.wait(seconds)

    def end(self) -> None:
        """Let the clients begin nothing more, and tell all who `wait`."""
        self._ended.set()
        for lives in self._crews:
            lives[-1].tell("end")

    @property
    def counts(self) -> Counter[str]:
        return sum((worker.counts for lives in self._crews for worker in lives), Counter())

    def _of(self, region: str) -> list[_Process]:
        return [lives[-1] for lives in self._crews if lives[-1].job.view.region == region]

    def kill(self, region: str, step: str) -> None:
        """Kill -9 the region's clients when one of them next has done ``step``; others take their place."""
        for worker in self._of(region):
            if step in writer_class(worker.job.writer).steps:
                worker.doomed = True
                worker.tell(f"die {step}")

    def lose_replies(self, region: str) -> None:
        """Break the connection of the region's clients to ZooKeeper: replies on their way are lost."""
        for worker in self._of(region):
            worker.tell("break")

    def pause(self, region: str, seconds: float) -> None:
        """Stop all threads of the region's clients, writers and appliers for so long."""
        for worker in self._of(region):
            worker.tell(f"pause {seconds}")

    def begin_chain(self) -> None:
        """Let another program begin a chain, under the run, as if it knew nothing of it. Returns at once."""
        self._begun.append(self._stack.enter_context(ChainBeginner(self._views)))

    def begun(self, timeout: float = 90.0) -> list[tuple[int, int]]:
        """When chains were begun under the run: beginning and end of each, by this machine's monotonic clock in ns.

        Waits for those that are not finished. Raises `ClusterError`.
        """
        return [beginner.span(timeout) for beginner in self._begun]

    def finished(self) -> bool:
        """Have all ended their work? Replaces those that were killed. Raises `ClusterError` when one failed."""
        done = True
        for lives in self._crews:
            worker = lives[-1]
            if worker.doomed and worker.gone and "finished" not in worker.heard:
                job = replace(worker.job, life=worker.job.life + 1, seconds=max(worker.job.seconds - self.elapsed, 0.5))
                replacement = self._stack.enter_context(_Process(job))
                replacement.expect("ready", 45)
                replacement.go()
                lives.append(replacement)
                done = False
            else:
                done = worker.poll() and done
        return done

    def results(self) -> list[tuple[str, dict[str, Any]]]:
        """Each job's region and numbers, of all lives of its process. Lets the processes end."""
        totals = []
        for lives in self._crews:
            total = dict(lives[-1].result)
            total["seconds"] += lives[-1].began - lives[0].began  # from the first life's first invocation
            for worker in lives[:-1]:  # killed: what it reported last is what is known
                for name in ("ok", "fail", "info", "reads"):
                    total[name] += worker.counts[name]
            totals.append((lives[-1].job.view.region, total))
        for lives in self._crews:
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
        self.began = 0.0
        self._error = ""
        self._news = threading.Condition()
        command = [sys.executable, "-m", "pghc.workload.child"]
        self._process = _started(command)
        self._listener = threading.Thread(target=self._listen, daemon=True)
        self._listener.start()
        try:
            _send(self._process, job)
        except BaseException:
            self.__exit__()
            raise

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

    def go(self) -> None:
        self.began = time.monotonic()
        self.tell("go")

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


class ChainBeginner:
    """Another program that begins a chain, again and again until it has begun: servers may be away just now."""

    def __init__(self, views: Sequence[View]) -> None:
        command = [sys.executable, "-m", "pghc.workload.beginner"]
        self._process = _started(command)
        try:
            _send(self._process, list({view.region: view for view in views}.values()))
        except BaseException:
            self.__exit__()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe:
                pipe.close()

    def span(self, timeout: float) -> tuple[int, int]:
        try:
            said, _ = self._process.communicate(timeout=timeout)
            began, ended = json.loads(said)
        except (subprocess.TimeoutExpired, ValueError) as error:
            raise ClusterError(
                f"the chain that another program began under the run was not begun within {timeout:g} s",
                "Begin it again, as `pghc run` does: regions may hold different chains",
            ) from error
        return began, ended


def _started(command: list[str]) -> subprocess.Popen[bytes]:
    pipe, env = subprocess.PIPE, python_environment()
    return subprocess.Popen(command, stdin=pipe, stdout=pipe, process_group=0, env=env)


def _send(process: subprocess.Popen[bytes], what: object) -> None:
    """Hand it over by a pipe: it has passwords, and a list of processes shows arguments."""
    assert process.stdin
    data = pickle.dumps(what)
    with suppress(BrokenPipeError):  # it has ended: whoever waits for its word learns that
        process.stdin.write(data)
        process.stdin.flush()
