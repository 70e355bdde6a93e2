"""Does to a cluster what a schedule says, while clients run.

The schedule is a pure function of the seed. What servers and threads make of it is theirs; so a seed repeats what is
done to the cluster, not each interleaving.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from typing import Protocol

from pghc.errors import PghcError
from pghc.faults.injection import Faults
from pghc.faults.schedule import Event


class Clients(Protocol):
    """What faults may do to the clients of a run."""

    @property
    def elapsed(self) -> float:
        """Seconds since the clients began."""

    def wait(self, seconds: float) -> bool:
        """Wait so long, or until the run ends; True when it has ended, in whatever way."""

    def kill(self, region: str, step: str) -> None: ...
    def lose_replies(self, region: str) -> None: ...
    def pause(self, region: str, seconds: float) -> None: ...
    def begin_chain(self) -> None: ...


class Nemesis:
    """Executes a schedule: ``runs.run(..., during=Nemesis(...))``. ``say`` hears of each fault as it begins.

    When the run ends early, what is under way is healed at once and nothing more begins.
    """

    def __init__(
        self, faults: Faults, events: Sequence[Event], say: Callable[[str], None] = lambda _text: None
    ) -> None:
        self.events = events
        self.troubles: list[str] = []
        self._faults, self._say = faults, say

    def __call__(self, clients: Clients) -> None:
        threads = [threading.Thread(target=self._execute, args=(event, clients)) for event in self.events]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    def _execute(self, event: Event, clients: Clients) -> None:
        if clients.wait(max(event.at - clients.elapsed, 0.0)):
            return
        self._say(str(event))
        try:
            with self._fault(event, clients):
                clients.wait(event.seconds)
        except PghcError as error:  # the run goes on, and `pghc up` heals what this left
            self.troubles.append(f"{event}: {error}")

    @contextmanager
    def _fault(self, event: Event, clients: Clients) -> Iterator[None]:
        with ExitStack() as stack:
            match event.kind:
                case "kill-clients":
                    clients.kill(*event.targets)
                case "lose-replies":
                    clients.lose_replies(*event.targets)
                case "pause-clients":
                    (region,) = event.targets
                    clients.pause(region, event.seconds)
                case "begin-chain":
                    clients.begin_chain()
                case "slow":
                    source, target = event.targets
                    stack.enter_context(self._faults.slow(source, target, event.amount))
                case "kill" | "pause":
                    fault: Callable[[str], AbstractContextManager[None]] = getattr(self._faults, event.kind)
                    for server in event.targets:
                        stack.enter_context(fault(server))
                case _:
                    stack.enter_context(getattr(self._faults, event.kind)(*event.targets))
            yield
