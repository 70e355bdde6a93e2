"""What the lessons need besides the lab: predictions, checkers that explain what is wrong, a judge of writers."""

from __future__ import annotations

import html
import inspect
import os
import time
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import wraps
from itertools import count
from pathlib import Path
from textwrap import dedent
from typing import Any, ParamSpec, Protocol
from uuid import uuid4

from IPython.display import Code
from kazoo.client import KazooClient
from kazoo.exceptions import ConnectionLoss, KazooException
from kazoo.handlers.threading import KazooTimeoutError
from psycopg import sql

from pghc.chain import Row, extend, link
from pghc.cluster import Backend
from pghc.cluster.mesh import subscription
from pghc.errors import ClusterError, Indefinite
from pghc.store import Primary, Store
from pghc.topology import View
from pghc.verify.checker import Verdict, check
from pghc.verify.history import Event, Read
from pghc.workload.runs import run
from pghc.workload.threads import Guarded
from pghc.writers import Base, Writer, open_writer
from pghc.zookeeper import connect

P = ParamSpec("P")


# Predictions


@dataclass(frozen=True)
class Outcome:
    """What was predicted beside what came out. ``right``: None without a prediction."""

    question: str
    predicted: object
    actual: object
    right: bool | None
    remark: str

    def __repr__(self) -> str:
        return f"{self.remark} ({self.question})"

    def _repr_html_(self) -> str:
        mark = {True: "✓", False: "✗", None: "–"}[self.right]
        predicted = "no prediction" if self.predicted is None else str(self.predicted)
        cells = (("you predicted", predicted), ("it was", str(self.actual)), ("", f"{mark} {self.remark}"))
        body = "".join(f"<tr><th>{html.escape(a)}</th><td>{html.escape(b)}</td></tr>" for a, b in cells)
        return f"<p><b>{html.escape(self.question)}</b></p><table>{body}</table>"


@dataclass(frozen=True)
class Prediction:
    """A reader's answer, given before the experiment. Make it with `predict`."""

    question: str
    choices: tuple[str, ...]
    answer: object

    _HOW = "Put your answer in place of None and run this cell again."

    def compare(self, actual: object) -> Outcome:
        """The prediction beside what came out. Numbers within a factor of 1.5 count as right."""
        if self.answer is None:
            return Outcome(self.question, None, actual, None, "Predict first next time: it is how this is remembered.")
        if isinstance(actual, int | float) and isinstance(self.answer, int | float) and not isinstance(actual, bool):
            low, high = sorted((abs(float(self.answer)), abs(float(actual))))
            factor = high / low if low else float("inf") if high else 1.0
            right = factor <= 1.5
            remark = "Close enough." if right else f"Off by a factor of {factor:.1f}."
            return Outcome(self.question, self.answer, actual, right, remark)
        right = self.answer == actual
        remark = "As predicted." if right else "A surprise. Why? Read on."
        return Outcome(self.question, self.answer, actual, right, remark)

    def __repr__(self) -> str:
        if self.answer is not None:
            return f"{self.question} Your prediction: {self.answer}"
        options = f" Choose one of: {', '.join(map(repr, self.choices))}." if self.choices else ""
        return f"{self.question}{options} {self._HOW}"

    def _repr_html_(self) -> str:
        choices = "".join(f"<li><code>{html.escape(repr(choice))}</code></li>" for choice in self.choices)
        said = self._HOW if self.answer is None else f"Your prediction: <b>{html.escape(str(self.answer))}</b>"
        return f"<p><b>{html.escape(self.question)}</b></p><ul>{choices}</ul><p>{said}</p>"


def predict(question: str, choices: Sequence[str] = (), answer: object = None) -> Prediction:
    """Commit to an answer before the experiment. Without one (None) the lesson goes on all the same.

    Raises ValueError for an answer that is none of the ``choices``.
    """
    if answer is not None and choices and answer not in choices:
        raise ValueError(f"{answer!r} is none of the possible answers: {', '.join(map(repr, choices))}")
    return Prediction(question, tuple(choices), answer)


def show_source(of: Callable[..., object]) -> Code:
    """The source of a function or class of the package, as it runs."""
    return Code(dedent(inspect.getsource(of)), language="python")


# Exercises

UNANSWERED = "There is no answer yet: write one into the cell above, run it, and run this one again."


class Wrong(Exception):
    """An answer to an exercise is wrong, and why."""


@dataclass(frozen=True)
class Result:
    """What a checker says. ``passed``: None while there is no answer yet."""

    passed: bool | None
    text: str

    @property
    def colour(self) -> str:
        return {True: "green", False: "red", None: "grey"}[self.passed]

    def __repr__(self) -> str:
        return f"{self.colour.upper()}: {self.text}"

    def _repr_html_(self) -> str:
        ink = {True: "#009E73", False: "#D55E00", None: "#8C8C8C"}[self.passed]
        mark = {True: "✓ green", False: "✗ red", None: "– not answered yet"}[self.passed]
        return (
            f'<div style="border-left: 6px solid {ink}; padding: 4px 12px"><b style="color: {ink}">{mark}</b><br>'
            f"{html.escape(self.text)}</div>"
        )


def checker(examine: Callable[P, str]) -> Callable[P, Result]:
    """Makes a `Result` of a function that returns praise, or raises `Wrong`, or whatever the answer itself raises.

    An answer that is None, or raises NotImplementedError, is none yet. While nbgrader marks, a wrong or missing answer
    raises AssertionError, which is how it counts points.
    """

    @wraps(examine)
    def run(*args: P.args, **kwargs: P.kwargs) -> Result:
        if any(argument is None for argument in args):
            result = Result(None, UNANSWERED)
        else:
            result = _attempt(lambda: examine(*args, **kwargs))
        if result.passed is not True and os.environ.get("NBGRADER_EXECUTION") in ("autograde", "validate"):
            raise AssertionError(result.text)
        return result

    return run


def _attempt(examine: Callable[[], str]) -> Result:
    try:
        return Result(True, examine())
    except NotImplementedError:
        return Result(None, UNANSWERED)
    except Wrong as wrong:
        return Result(False, str(wrong))
    except Exception as error:  # the answer's own: it is shown, not hidden
        return Result(False, f"Your answer raised {type(error).__name__}: {error}")


def expect(found: object, expected: object, given: str, because: str) -> None:
    """Raise `Wrong` unless ``found`` is what is ``expected`` for what was ``given``."""
    if found != expected:
        raise Wrong(f"For {given} your answer is {found!r}, it should be {expected!r}: {because}.")


# Verdicts on what somebody was shown


def judge_pages(pages: Sequence[Sequence[str]], order: Sequence[str]) -> Verdict:
    """The checker's verdict on pages that one reader was shown, one after the other.

    ``order``: the names of all that was written, each after what it depends on: the entries 1, 2, ... of a chain.
    """
    rows = dict(zip(order, extend(None, ["board"] * len(order)), strict=True))
    shown = [sorted(rows[name] for name in page) for page in pages]
    return check(
        Event(number, "a reader", "the page", kind, "read", value=Read(0, 0, tuple(page)) if kind == "ok" else None)
        for number, page in enumerate(shown)
        for kind in ("invoke", "ok")
    )


# Repair


def skip_what_waits(subscriber: View, publisher: View) -> None:
    """Let a region leave out all that another one has written up to now and that has not been applied here."""
    name = subscription(publisher.region)
    with (
        Primary(publisher, admin=True) as there,
        Primary(subscriber, admin=True) as here,
        here.connection("skip", writes=True) as connection,
    ):
        end = there.rows("select pg_current_wal_lsn()::text")[0][0]
        oid = here.rows("select oid::bigint from pg_subscription where subname = %s", name)[0][0]
        connection.execute(sql.SQL("alter subscription {} disable").format(sql.Identifier(name)))
        stop = "select pg_terminate_backend(pid) from pg_stat_subscription where subname = %s and pid is not null"
        deadline = time.monotonic() + 20
        while here.rows(stop, name):
            if time.monotonic() > deadline:
                raise ClusterError(f"{here.node}: {name} did not stop within 20 s", "Try again", node=here.node)
            time.sleep(0.05)
        connection.execute("select pg_replication_origin_advance(%s, %s)", (f"pg_{oid}", end))
        connection.execute(sql.SQL("alter subscription {} enable").format(sql.Identifier(name)))


# A reader's own writer


def judge(
    backend: Backend,
    make: Callable[[View], Writer],
    *,
    clients: int = 1,
    seconds: float = 3.0,
    timeout: float = 5.0,
    during: Callable[[], None] | None = None,
) -> tuple[Verdict, Counter[str], Path]:
    """Run clients of one's own writer in every region, on a fresh chain, as threads of this program, and judge them.

    ``make`` gives the writer of a region. ``during`` runs meanwhile, for faults. Returns the verdict on the history,
    how many appends were ok, fail and info (unknown), and the history's file. Raises what ``make`` raises, and what the
    writer's append raises that is no `PghcError`.
    """
    done = run(
        backend,
        "your own writer",
        clients=clients,
        seconds=seconds,
        timeout=timeout,
        during=(lambda _clients: during()) if during else None,
        make=make,
    )
    assert done.path
    return done.verdict, Counter(ok=done.appends, fail=done.failed, info=done.unknown), done.path


def time_steps(backend: Backend, writer: str, *, seconds: float = 2.0) -> dict[str, float]:
    """Where the time of an append goes: the median of the milliseconds before each of the writer's steps.

    A client in each region appends at once, on a fresh chain, as a thread of this program.
    """
    spent: dict[str, list[float]] = {}

    class Timed(Guarded):
        """Of one client, so that the steps between two of its calls are those of one append, in whatever thread."""

        def __init__(self, view: View) -> None:
            super().__init__(open_writer(writer, view, self.step), lambda _error: None)

        def append(self, request_id: str, timeout: float = 10.0) -> Row:
            self.before = time.monotonic()
            return super().append(request_id, timeout)

        def step(self, name: str) -> None:
            now = time.monotonic()
            spent.setdefault(name, []).append(1000 * (now - self.before))
            self.before = now

    judge(backend, Timed, clients=1, seconds=seconds)
    return {name: sorted(took)[len(took) // 2] for name, took in spent.items()}


class Takes(Protocol):
    """A reader's sequencer: made with a ZooKeeper client and a folder, it gives numbers from 1 on."""

    def __init__(self, client: KazooClient, folder: str) -> None: ...

    def take(self, request_id: str) -> int: ...


class SequencedWriter(Base):
    """A writer that gets its numbers from a reader's sequencer: number, wait for the entry below, insert."""

    steps: tuple[str, ...] = ("numbered", "waited", "inserted")

    def __init__(self, view: View, make: Callable[[KazooClient, str], Takes], folder: str, errors: list[str]) -> None:
        with ExitStack() as stack:
            self.store = stack.enter_context(Store(view))
            self.client = connect(view)
            stack.callback(self.client.end)
            self.base = self.store.cursor().chain
            self.errors = errors
            self.sequencer = make(self.client, folder)
            self._resources = stack.pop_all()

    @classmethod
    def of(cls, make: type[Takes], *, lose_every: int = 0) -> Maker:
        """For `judge`: a writer a region, whose sequencers share a fresh folder.

        ``lose_every``: of each so many writing calls to ZooKeeper one loses its reply, after it was carried out.
        """
        return Maker(make, f"/lesson10-{uuid4()}", lose_every)

    def append(self, request_id: str, timeout: float = 10.0) -> Row:
        try:
            number = self.sequencer.take(request_id)
        except (KazooException, KazooTimeoutError) as error:
            self.errors.append(f"take raised {type(error).__name__}")
            raise Indefinite(f"{self.node_id}: no number: {type(error).__name__}; it may have been taken") from error
        before = self.store.wait_for(self.base + number - 1, timeout)
        if before.zk_id < number - 1:
            raise Indefinite(f"{self.node_id}: entry {number - 1} has not arrived; number {number} is taken")
        row = Row(number, self.node_id, link(number, self.node_id, before.hash))
        self.store.insert(row, request_id, self.base)
        return row

    def close(self) -> None:
        self._resources.close()


class Maker:
    """Makes the writers of one judgement; ``errors``: what their sequencers raised."""

    def __init__(self, make: type[Takes], folder: str, lose_every: int) -> None:
        self._make, self._folder, self._lose_every = make, folder, lose_every
        self.errors: list[str] = []

    def __call__(self, view: View) -> SequencedWriter:
        def make(client: KazooClient, folder: str) -> Takes:
            client.ensure_path(folder)
            sequencer = self._make(client, folder)
            if self._lose_every:  # from now on; what it sets up at the beginning is left in peace
                _lose_replies(client, self._lose_every)
            return sequencer

        return SequencedWriter(view, make, self._folder, self.errors)


def _lose_replies(client: KazooClient, every: int) -> None:
    """Of each so many creations and changes one is carried out by the server and its reply is not handed on."""
    calls = count(1)
    for name in ("set", "create"):
        real = getattr(client, name)

        def call(*args: Any, real: Callable[..., Any] = real, **kwargs: Any) -> Any:
            answer = real(*args, **kwargs)
            if next(calls) % every == 0:
                raise ConnectionLoss
            return answer

        setattr(client, name, call)
