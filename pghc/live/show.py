"""What is shown, wherever: of a running cluster, or of a file."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from pghc.cluster import Backend
from pghc.errors import BadInput
from pghc.live.control import Control, hello
from pghc.live.observer import Observer
from pghc.live.saved import load_saved, save
from pghc.live.stream import Stream

#: Seconds between two deliveries.
PACE = 0.1


class Show:
    """``view``: what one must know before the first event of ``stream``."""

    def __init__(self, view: dict[str, Any], stream: Stream, close: Callable[[], None] = lambda: None) -> None:
        self.view, self.stream, self.close = view, stream, close
        self.backend: Backend | None = None
        self.control: Control | None = None

    def do(self, order: Any) -> None:
        """Begin what is ordered. Raises `BadInput`."""
        if self.control is None:
            raise BadInput("this is a replay: there is no cluster to do it to", "Watch a running one: pghc watch.")
        if not isinstance(order, dict):
            raise BadInput("an order is a JSON object")
        self.control.do(order)

    def save(self, path: Path) -> None:
        """Write what was seen as a history. Raises `BadInput`, `Unavailable`."""
        if self.backend is None or self.control is None:
            raise BadInput("this is a replay: the file is there already")
        save(self.backend, self.stream, self.control.history, path)


def watch(backend: Backend) -> Show:
    """Begin to watch the cluster of ``backend``, which is up; the caller closes it. Raises `NotRunning`."""
    with ExitStack() as stack:
        show = Show(hello(backend), Stream())
        observer = stack.enter_context(Observer(backend, show.stream))
        show.backend, show.control = backend, Control(backend, show.stream, observer)
        stack.callback(show.control.close)
        show.close = stack.pop_all().close
        return show


def replay(path: Path) -> Show:
    """What a history says, without a cluster. Raises `BadInput`."""
    return Show(*load_saved(path))
