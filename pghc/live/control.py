"""What a button does. Each is what a command, or a line of Python, does as well, and says so."""

from __future__ import annotations

import threading
import time
import tomllib
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from importlib.resources import files
from pathlib import Path
from typing import Any, NamedTuple

from pghc.cluster import Backend, CanKill, CanPartition, CanPause, CanReplace
from pghc.errors import BadInput, PghcError
from pghc.live.observer import Observer
from pghc.live.stream import Stream
from pghc.workload import runs
from pghc.writers import NAMES

#: Seconds that a run may be started for, clients a region, and milliseconds that a link may be slowed to.
MOST_SECONDS, MOST_CLIENTS, MOST_DELAY = 600, 20, 2_000


class Saying(NamedTuple):
    """How to do the same elsewhere: names in braces are the button's arguments."""

    command: str
    python: str


SAYINGS = {
    "run": Saying(
        "pghc run --writer {writer} --clients {clients} --seconds {seconds}",
        'lab.run("{writer}", clients={clients}, seconds={seconds})',
    ),
    "stop": Saying("Ctrl-C", "interrupt the kernel"),
    "slow": Saying(
        "pghc fault slow {source} {target} {delay_ms} --seconds 60",
        'with lab.faults.slow("{source}", "{target}", {delay_ms}): ...',
    ),
    "cut": Saying(
        "pghc fault cut {source} {target} --seconds 60", 'with lab.faults.cut("{source}", "{target}"): ...'
    ),
    "partition": Saying(
        "pghc fault partition {source} {target} --seconds 60",
        'with lab.faults.partition("{source}", "{target}"): ...',
    ),
    "mend": Saying("Ctrl-C, or when the seconds are over", "the end of the with block"),
    "kill": Saying("pghc fault kill {node} --seconds 60", 'with lab.faults.kill("{node}"): ...'),
    "pause": Saying("pghc fault pause {node} --seconds 60", 'with lab.faults.pause("{node}"): ...'),
    "start": Saying("pghc up", "lab.backend.up()"),
    "resume": Saying("Ctrl-C, or when the seconds are over", 'lab.backend.resume("{node}")'),
    "lose": Saying("pghc fault lose {node}", 'with lab.faults.lose("{node}"): ...'),
    "promote": Saying("pghc promote {region} --to {node}", 'lab.backend.promote("{region}", "{node}")'),
    "rebuild": Saying("pghc rebuild {node}", 'lab.backend.rebuild("{node}")'),
    "heal": Saying("pghc up", "lab.backend.up()"),
}


def hello(backend: Backend) -> dict[str, Any]:
    """What a view must know before the first event: the regions, and what can be done to them."""
    abilities: dict[str, type] = {"kill": CanKill, "pause": CanPause, "link": CanPartition, "replace": CanReplace}
    return {
        "topology": backend.topology.to_dict(),
        "coasts": coasts(),
        "servers": [
            [node.name, node.region, node.role] for node in backend.topology.nodes if node.role != "api"
        ],
        "can": [name for name, protocol in abilities.items() if isinstance(backend, protocol)],
        "writers": list(NAMES),
        "sayings": {name: list(saying) for name, saying in SAYINGS.items()},
        "limits": {"seconds": MOST_SECONDS, "clients": MOST_CLIENTS, "delay": MOST_DELAY},
    }


def coasts() -> list[list[float]]:
    """Outlines of the continents: longitude and latitude in turn."""
    return list(tomllib.loads(files("pghc").joinpath("coastlines.toml").read_text()).values())


class Control:
    """Does to the cluster what is asked; what came of it is told in ``stream``, and ``observer`` looks at it."""

    def __init__(self, backend: Backend, stream: Stream, observer: Observer) -> None:
        self._backend, self._stream, self._observer = backend, stream, observer
        self._pool = ThreadPoolExecutor(4, "live")
        self._lock = threading.Lock()
        self._crew: runs.Crew | None = None
        self._running = self._stopping = False
        self._judged: tuple[int, Path | None] = -1, None  # the chain of the last run that was started here, its history
        self._does: Mapping[str, Callable[..., None]] = {
            "run": self._run,
            "stop": self.stop,
            "slow": lambda source, target, delay_ms: self._link(source, target, delay_ms=delay_ms),
            "cut": lambda source, target: self._link(source, target, state="cut"),
            "partition": lambda source, target: self._link(source, target, both=True, state="cut"),
            "mend": lambda source, target: self._link(source, target, both=True, state="open"),
            "kill": lambda node: self._server(CanKill, "kill", node),
            "start": lambda node: self._server(CanKill, "start", node),
            "pause": lambda node: self._server(CanPause, "pause", node),
            "resume": lambda node: self._server(CanPause, "resume", node),
            "lose": lambda node: self._server(CanReplace, "lose", node),
            "promote": lambda region, node: self._server(CanReplace, "promote", region, node),
            "rebuild": lambda node: self._server(CanReplace, "rebuild", node),
            "heal": self._heal,
        }

    def close(self) -> None:
        """Ends a run that was started here."""
        self.stop()
        deadline = time.monotonic() + 30
        while self._running and time.monotonic() < deadline:
            time.sleep(0.05)
        self._pool.shutdown(wait=False, cancel_futures=True)

    @property
    def history(self) -> Path | None:
        """Of the run that was started here, if its chain is the one that is seen."""
        chain, path = self._judged
        return path if chain == self._observer.chain else None

    def do(self, order: Mapping[str, Any]) -> None:
        """Begin what ``order`` says, such as ``{"do": "kill", "node": "eu-west-primary"}``. Raises `BadInput`."""
        name = order.get("do")
        if not isinstance(name, str) or name not in self._does:
            raise BadInput(f"there is no order {name!r}", f"Orders are {', '.join(self._does)}.")
        given = {key: self._checked(key, value) for key, value in order.items() if key != "do"}
        if other := set(given) ^ _PARAMETERS[name]:
            raise BadInput(f"the order {name} takes other arguments: see {', '.join(sorted(other))}")
        self._pool.submit(self._try, name, SAYINGS[name].python.format_map(given), given)

    def _checked(self, key: str, value: object) -> Any:
        topology = self._backend.topology
        if key in ("source", "target", "region") and isinstance(value, str):
            return topology.region(value).name
        if key == "node" and isinstance(value, str):
            return topology.node(value).name
        if key == "writer" and value in NAMES:
            return value
        limits = {"clients": (1, MOST_CLIENTS), "seconds": (1, MOST_SECONDS), "delay_ms": (0, MOST_DELAY)}
        if key in limits and isinstance(value, int) and limits[key][0] <= value <= limits[key][1]:
            return value
        raise BadInput(f"{key} cannot be {value!r}")

    def _try(self, name: str, said: str, given: Mapping[str, Any]) -> None:
        error = None
        try:
            self._does[name](**given)
        except PghcError as trouble:
            error = str(trouble)
        except Exception as trouble:
            error = f"unexpected {type(trouble).__name__}: {trouble}"
        self._stream.put({"k": "did", "t": _now(), "n": name, "x": said, "e": error})
        self._observer.look()

    # Runs

    def _run(self, writer: str, clients: int, seconds: int) -> None:
        with self._lock:
            if self._running:
                raise BadInput("a run is on already", "Stop it first.")
            self._running, self._stopping = True, False

        def tell(state: str, ok: int = 0, **more: Any) -> None:
            self._stream.put({"k": "run", "t": _now(), "s": state, "w": writer, "c": clients, "ok": ok, **more})

        told = 0.0

        def progress(elapsed: float, ok: int, failed: int) -> None:
            nonlocal told
            if elapsed - told >= 0.25:
                told = elapsed
                tell("running", ok, failed=failed, seconds=round(elapsed, 1))

        try:
            tell("starting")
            done = runs.run(
                self._backend, writer, clients=clients, seconds=seconds, progress=progress, during=self._hold
            )
            tell("judging", done.appends)
            verdict = done.verdict
            self._judged = self._observer.chain, done.path
            first = verdict.anomalies[0] if verdict.anomalies else None
            tell("done", done.appends, failed=done.failed + done.unknown, seconds=round(done.seconds, 1),
                 v=verdict.valid, x=str(verdict), n=first.zk_id if first else None)  # fmt: skip
        except BaseException as trouble:
            tell("failed", x=str(trouble))
            raise
        finally:
            self._running = False

    def _hold(self, crew: runs.Crew) -> None:
        self._crew = crew
        if self._stopping:
            crew.end()
        while not crew.wait(60):
            pass
        self._crew = None

    def stop(self) -> None:
        """Let the clients of a run that was started here begin nothing more."""
        self._stopping = True
        if crew := self._crew:
            crew.end()

    # Faults

    def _link(self, source: str, target: str, *, both: bool = False, **change: Any) -> None:
        backend = self._backend
        if not isinstance(backend, CanPartition):
            raise BadInput(f"the backend {backend.name} cannot change links")
        for one, other in [(source, target), (target, source)][: 1 + both]:
            backend.set_link(one, other, **change)

    def _server(self, protocol: type, what: str, *names: str) -> None:
        if not isinstance(self._backend, protocol):
            raise BadInput(f"the backend {self._backend.name} cannot {what} servers")
        getattr(self._backend, what)(*names)

    def _heal(self) -> None:
        backend = self._backend
        if isinstance(backend, CanPause):
            for node in backend.status().nodes:
                if node.state == "paused":
                    with suppress(PghcError):  # whatever is wrong with it, `up` says
                        backend.resume(node.name)
        if isinstance(backend, CanPartition):
            backend.heal_links()
        backend.up(lambda _step: None)


_LINK = {"source", "target"}
_PARAMETERS: dict[str, set[str]] = {
    "run": {"writer", "clients", "seconds"},
    "stop": set(),
    "slow": {*_LINK, "delay_ms"},
    **dict.fromkeys(("cut", "partition", "mend"), _LINK),
    **{name: {"node"} for name in ("kill", "start", "pause", "resume", "lose", "rebuild")},
    "promote": {"region", "node"},
    "heal": set(),
}


def _now() -> float:
    return 1000 * time.time()
