"""What clients do and record, on a writer that answers as the test wants."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest

from pghc.chain import Row
from pghc.errors import Indefinite, PghcError, Unavailable
from pghc.faults import trials
from pghc.faults.injection import Faults
from pghc.faults.nemesis import Nemesis
from pghc.faults.schedule import Event
from pghc.topology import Credentials, View, load
from pghc.verify import history
from pghc.verify.history import Recorder
from pghc.workload import runs
from pghc.workload.clients import Job, RegionClients
from pghc.writers import Base

VIEW = View("us-east", load(), {}, Credentials())
LOST = Indefinite("no answer in time")


class Scripted(Base):
    """A writer that takes its time, raises what the script says, and then succeeds."""

    ordered = exactly_once = True

    def __init__(self, script: Iterator[PghcError], takes: float = 0.0) -> None:
        self.asked: list[str] = []
        self._script, self._takes = script, takes
        self.answered: Callable[[], None] = lambda: None

    def append(self, request_id: str, timeout: float = 10.0) -> Row:
        self.asked.append(request_id)
        time.sleep(self._takes)
        for error in self._script:
            raise error
        self.answered()
        return Row(len(set(self.asked)), "us-east-primary", "")

    def close(self) -> None:
        pass


def clients_on(writer: Scripted, path: Path) -> RegionClients:
    """One client that asks for one append."""
    job = Job(VIEW, "scripted", 1, 30.0, 0.0, 5.0, str(path), 0, 0)
    with Recorder(path) as recorder:
        clients = RegionClients(job, writer, recorder)
        writer.answered = lambda: setattr(clients, "end", 0.0)
        clients.run()
    clients.close()
    return clients


def test_an_append_is_tried_again_under_the_same_request_id_and_recorded_under_it(tmp_path: Path) -> None:
    writer = Scripted(iter([LOST, LOST]))
    clients = clients_on(writer, tmp_path / "history.jsonl")
    assert len(writer.asked) == 3
    assert len(set(writer.asked)) == 1
    events = list(history.read(tmp_path / "history.jsonl"))
    assert [event.type for event in events] == ["invoke", "info", "invoke", "info", "invoke", "ok"]
    assert {event.request_id for event in events} == set(writer.asked)
    assert clients.counts["ok"] == 1


def test_a_definite_error_of_a_retry_says_nothing_about_the_attempt_before(tmp_path: Path) -> None:
    clients_on(Scripted(iter([LOST, Unavailable("no quorum")])), tmp_path / "history.jsonl")
    types = [event.type for event in history.read(tmp_path / "history.jsonl")]
    assert types == ["invoke", "info", "invoke", "info", "invoke", "ok"]


def test_latency_counts_from_the_first_invocation_through_all_retries(tmp_path: Path) -> None:
    clients = clients_on(Scripted(iter([LOST, LOST]), takes=0.1), tmp_path / "history.jsonl")
    assert len(clients.latencies) == 1
    assert clients.latencies[0] >= 300


class RunThatEnds:
    """The clients of a run, as far as a nemesis looks at them."""

    def __init__(self) -> None:
        self.ended = threading.Event()
        self.hurt: list[str] = []
        self._began = time.monotonic()

    @property
    def elapsed(self) -> float:
        return time.monotonic() - self._began

    def wait(self, seconds: float) -> bool:
        return self.ended.wait(seconds)

    def kill(self, region: str, step: str) -> None:
        self.hurt.append(f"{region} {step}")

    def lose_replies(self, region: str) -> None:
        self.hurt.append(region)

    def pause(self, region: str, seconds: float) -> None:
        self.hurt.append(region)

    def begin_chain(self) -> None:
        self.hurt.append("chain")


def test_a_nemesis_whose_run_has_ended_stops_at_once_and_begins_nothing_more() -> None:
    run = RunThatEnds()
    events = [Event(at, 0.0, "lose-replies", ("us-east",)) for at in (0.0, 1000.0, 2000.0)]
    nemesis = threading.Thread(target=Nemesis(Faults(None), events), args=(run,), daemon=True)  # type: ignore[arg-type]
    nemesis.start()
    time.sleep(0.2)
    run.ended.set()
    nemesis.join(timeout=2)
    assert not nemesis.is_alive()
    assert run.hurt == ["us-east"]


def test_so_many_old_histories_are_kept_and_no_more(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runs.tempfile, "gettempdir", lambda: str(tmp_path))
    made = [runs.new_history() for _ in range(runs.HISTORIES + 5)]
    kept = [path for path in made if path.exists()]
    assert len(kept) == runs.HISTORIES
    assert made[-1] in kept


def test_so_many_diagnostics_are_kept_and_no_more(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runs.tempfile, "gettempdir", lambda: str(tmp_path))
    verdict = SimpleNamespace(to_dict=dict)
    run = SimpleNamespace(writer="causal", verdict=verdict, behind={}, errors={}, path=None)
    nemesis = SimpleNamespace(events=[], troubles=[])
    made = [
        trials.save_diagnostics(None, run, nemesis, seed)  # type: ignore[arg-type]
        for seed in range(trials.DIAGNOSTICS + 3)
    ]
    assert sum(path.exists() for path in made) == trials.DIAGNOSTICS


@pytest.mark.parametrize(
    ("writer", "shares"),
    [
        ("causal", [("us", "causal"), ("eu", "causal"), ("ap", "causal")]),
        ("causal/broadcast", [("us", "causal"), ("eu", "broadcast"), ("ap", "causal")]),
        ("causal+broadcast/locked", [("us", "causal"), ("us", "broadcast"), ("eu", "locked"), ("ap", "causal"),
                                     ("ap", "broadcast")]),
    ],
)  # fmt: skip
def test_mixed_writers_are_shared_out_as_their_names_say(writer: str, shares: list[tuple[str, str]]) -> None:
    assert runs.assign(writer, ["us", "eu", "ap"]) == shares
