"""A distributed lock, by kazoo's recipe."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Self

from kazoo import exceptions as zk
from kazoo.recipe.lock import Lock

from pghc.errors import Indefinite, Unavailable
from pghc.topology import View
from pghc.zookeeper import LOST, connect


class Mutex:
    """A lock that one client in all regions holds at a time (kazoo's), and the number that was last claimed under it.

    A holder whose session ends loses the lock without noticing; `claim` notices.
    """

    def __init__(self, view: View, name: str, *, timeout: float = 10.0) -> None:
        self.region, self.timeout = view.region, timeout
        self._path = f"/pghc/mutex/{name}"
        self._number = f"{self._path}-number"
        self.client = connect(view, timeout=timeout)
        try:
            self.client.ensure_path(self._path)
            with suppress(zk.NodeExistsError):
                self.client.create_async(self._number, b"0 0").get(timeout=timeout)
        except LOST as error:
            self.close()
            raise Unavailable(f"{self.region}: open the lock: connection lost, nothing was written") from error

    def close(self) -> None:
        self.client.end()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @contextmanager
    def hold(self, timeout: float) -> Iterator[None]:
        """Hold the lock. Raises `Unavailable` when it was not had within ``timeout`` seconds."""
        lock = self.client.Lock(self._path, self.region)
        held, lost = _acquire(lock, timeout)
        if not held:
            raise Unavailable(
                f"{self.region}: the lock was not had within {timeout:g} s, nothing was written",
                "Its holder may have died: its session ends by itself. Try again",
            ) from lost
        try:
            yield
        finally:  # in a thread, for kazoo waits without end; if it fails, the session's end releases the lock
            release = threading.Thread(target=_release, args=(lock,), daemon=True)
            release.start()
            release.join(timeout / 20)

    def read(self, chain: int, timeout: float | None = None) -> tuple[int, int]:
        """The number last claimed in ``chain`` (0: none), and the version for the next claim. For the lock's holder.

        No `sync` is needed: our server has seen the lock's last holder leave, and so what it had claimed before.
        """
        try:
            data, stat = self.client.get_async(self._number).get(timeout=timeout or self.timeout)
        except LOST as error:
            raise Unavailable(f"{self.region}: read the last number: connection lost, nothing was written") from error
        of, number = map(int, data.split())
        return number if of == chain else 0, stat.version

    def claim(self, chain: int, number: int, version: int, timeout: float | None = None) -> bool:
        """Claim ``number`` of ``chain``; False when somebody else claimed since `read`. Raises `Indefinite`."""
        try:
            answer = self.client.set_async(self._number, f"{chain} {number}".encode(), version)
            answer.get(timeout=timeout or self.timeout)
        except zk.BadVersionError:
            return False
        except LOST as error:
            raise Indefinite(f"{self.region}: claim number {number}: no answer; it may have been claimed") from error
        return True


def _acquire(lock: Lock, timeout: float) -> tuple[bool, Exception | None]:
    """Whether it was had in time, also when the server is silent: kazoo's own time-out does not count what it asks."""
    outcome: list[tuple[bool, Exception | None]] = []
    given_up = threading.Event()

    def acquire() -> None:
        try:
            outcome.append((bool(lock.acquire(timeout=timeout)), None))  # False: it was cancelled
        except (zk.LockTimeout, zk.CancelledError, *LOST) as error:  # cancelled: below
            outcome.append((False, error))
        if given_up.is_set() and outcome[0][0]:
            _release(lock)

    thread = threading.Thread(target=acquire, daemon=True)
    thread.start()
    thread.join(timeout)
    if not outcome:
        given_up.set()
        lock.cancel()
        return False, None
    return outcome[0]


def _release(lock: Lock) -> None:
    with suppress(*LOST):
        lock.release()
