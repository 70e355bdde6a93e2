"""``python -m pghc.workload.child``: the process of one region's clients. It takes its `Job` and then words from its
standard input, ends with it, and reports on standard output.
"""

from __future__ import annotations

import ctypes
import json
import os
import pickle
import signal
import sys
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack, suppress

from pghc.errors import PghcError, Unavailable
from pghc.verify.history import Recorder
from pghc.workload.clients import Job, RegionClients
from pghc.writers import Base, Writer, open_writer


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
            elif word == "end":
                clients.end = 0.0
            elif word == "break":
                _break_connection(writer)
            elif word == "pause":
                _pause(float(argument))
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
            clients = RegionClients(job, writer, recorder)
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
            writer = open_writer(job.writer, job.view, step)
        except Unavailable:
            if job.life == 1 or time.monotonic() > deadline:
                raise
        else:
            if job.segment_size and (sequencer := getattr(writer, "sequencer", None)):
                sequencer.segment_size = job.segment_size
            if isinstance(writer, Base):  # before the clock starts: naive has to connect to ZooKeeper for it
                with suppress(PghcError):
                    writer.join(job.view, writer.store.cursor().chain, 5.0)
            return writer


def _pause(seconds: float) -> None:
    """Stop all threads of this process for so long, as a pause of its machine would.

    A C function that is called without giving up the interpreter's lock; unlike SIGSTOP, it ends by itself also when
    whoever asked for it has died.
    """
    ctypes.PyDLL(None).poll(None, 0, int(1000 * seconds))


def _break_connection(writer: Writer) -> None:
    """Lose what ZooKeeper is about to answer."""
    if client := getattr(getattr(writer, "sequencer", None) or getattr(writer, "mutex", None), "client", None):
        client.hang_up()


if __name__ == "__main__":
    main()

