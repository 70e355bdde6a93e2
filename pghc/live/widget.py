"""The same view in a notebook, by anywidget: no port, so it works on a hosted notebook as well."""

from __future__ import annotations

import threading
import time
from importlib.resources import files
from pathlib import Path
from typing import Any

import anywidget
import traitlets
from msgspec.json import decode

from pghc.errors import BadInput
from pghc.live.show import PACE, Show

_STATIC = files("pghc.live").joinpath("static")


class Watch(anywidget.AnyWidget):
    """What ``lab.watch()`` returns. It shows itself until `close`, or until the kernel ends.

    Buttons are heard when no cell is running; what is seen is shown all the while.
    """

    _esm = _STATIC.joinpath("live.js").read_text(encoding="utf-8")
    _css = _STATIC.joinpath("live.css").read_text(encoding="utf-8")
    _hello = traitlets.Dict().tag(sync=True)

    def __init__(self, show: Show) -> None:
        super().__init__(_hello=show.view)
        self._show = show
        self._ended = threading.Event()
        self._new = threading.Event()  # a view was opened, and has seen nothing yet
        self.on_msg(self._heard)
        self._thread = threading.Thread(target=self._deliver, name="watch", daemon=True)
        self._thread.start()

    def save(self, path: str | Path) -> Path:
        """Write what was seen as a history, which ``pghc check`` judges and ``pghc watch --replay`` plays."""
        self._show.save(Path(path))
        return Path(path)

    def close(self) -> None:
        if not self._ended.is_set():
            self._ended.set()
            self._thread.join(timeout=2)
            self._show.close()
        super().close()

    def _heard(self, _widget: Any, order: Any, _buffers: Any) -> None:
        if order == {"do": "open"}:
            self._new.set()
            return
        try:
            self._show.do(order)
        except BadInput as error:
            self.send({"error": str(error)})

    def _deliver(self) -> None:
        number: int | None = None
        while not self._ended.wait(PACE):
            if self._new.is_set():
                self._new.clear()
                number = 0
            if number is not None:
                begin = number == 0
                number, news = self._show.stream.since(number)
                if news:
                    now = 1000 * time.time()
                    self.send({"now": now, "begin": begin, "events": decode(b"[" + news + b"]")})
