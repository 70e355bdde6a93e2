"""Who uses the cluster's chain: so that a run is not begun under another one, and is told whose it would be.

::

    /pghc/users              the generation: who came to an unused chain, or begins a fresh one, makes it the next
    /pghc/users/u-...        one holder of a lease, ephemeral: it goes with the holder's session

A lease is had in one transaction: it sets the parent, at the version that was read *before* the holders were looked at,
and creates the holder's node. Of two that come at the same moment only one finds that version. A holder whose session
ended (a long pause) takes its place again when the generation is still its own; else somebody else has had the chain,
and what the holder did with it cannot be judged.

This is politeness among those who ask. What keeps two orderings of one chain apart is decided in the log.
"""

from __future__ import annotations

import getpass
import json
import os
import socket
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from typing import Any, NamedTuple, Self

import psutil
from kazoo import exceptions as zk
from kazoo.protocol.states import KazooState

from pghc.errors import ClusterError, Unavailable
from pghc.topology import View
from pghc.zookeeper import LOST, SESSION_SECONDS, connect

USERS = "/pghc/users"


class InUse(ClusterError):
    """Somebody else uses the chain; nothing was done."""


class Holder(NamedTuple):
    """Who uses the chain. ``ordering``: how its writers order it; empty for who only begins a chain."""

    what: str
    ordering: str
    pid: int
    user: str
    host: str
    since: float  # seconds since 1970

    def __str__(self) -> str:
        since = time.strftime("%H:%M:%S", time.localtime(self.since))
        return f"{self.what}: process {self.pid} of {self.user} on {self.host}, since {since}"

    @property
    def is_gone(self) -> bool:
        """Has its process ended, as far as this machine can tell? Then its session is about to end."""
        return self.host == socket.gethostname() and not psutil.pid_exists(self.pid)


class Lease:
    """The right to use the chain, as a context manager.

    ``what`` tells others what it is used for. ``fresh``: to begin a chain, which nobody else may use; else the lease is
    shared with those whose writers order the chain by the same ``ordering``. Raises `InUse` at once, naming the holder
    (one whose process has ended on this machine is waited for: its session ends by itself), or `Unavailable`.
    ``alone``: whether nobody else has used the chain since the lease was taken, as of the last `check`.
    """

    def __init__(self, view: View, what: str, ordering: str = "", *, fresh: bool, timeout: float = 10.0) -> None:
        self._me = Holder(what, ordering, os.getpid(), _user(), socket.gethostname(), time.time())
        self._fresh, self._timeout, self.alone = fresh, timeout, True
        self._changed, self.lost = threading.Event(), threading.Event()
        self._region = view.region
        self.client = connect(view, timeout=timeout)
        self.client.add_listener(self._on_state)
        try:
            self._ask("ensure_path", USERS)
            self._path, self._generation, self._version = self._join(fresh)
        except LOST as error:
            self.close()
            raise self._unavailable("take the lease of the chain") from error
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Give the lease back."""
        self.client.remove_listener(self._on_state)
        self.client.end()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def keep(self) -> None:
        """Take the lease again if its session has ended. Raises `ClusterError` when somebody else had the chain."""
        if self.lost.is_set() and self.client.connected:
            try:
                self._take_again()
            except LOST:  # the next call tries again
                self.lost.set()

    def check(self, timeout: float | None = None) -> None:
        """Make sure that nobody else has had the chain since the lease was taken.

        Raises `ClusterError` when somebody has, `Unavailable` when there is no quorum to ask within ``timeout``
        seconds.
        """
        deadline = time.monotonic() + (self._timeout if timeout is None else timeout)
        while True:
            with suppress(*LOST):
                self._ask("sync", USERS)
                if not self._ask("exists", self._path):
                    self._take_again()
                self.alone &= self._ask("exists", USERS).version == self._version
                return
            if time.monotonic() > deadline:
                raise self._unavailable("check the lease of the chain")
            time.sleep(0.1)  # kazoo is connecting anew

    def _join(self, fresh: bool) -> tuple[str, int, int]:
        """The new node's path, its generation, and the version that its parent has by it: each who comes makes one."""
        deadline = time.monotonic() + self._timeout + 2 * SESSION_SECONDS
        while True:
            self._changed.clear()
            data, stat = self._ask("get", USERS)
            holders = self._holders()
            others = [one for one in holders if fresh or one.ordering != self._me.ordering]
            if not others:
                generation = int(data or 0) + (fresh or not holders)
                with suppress(zk.RolledBackError, zk.BadVersionError):
                    path = self._create(generation, stat.version)
                    self.alone = not holders
                    return path, generation, stat.version + 1
                continue
            if time.monotonic() > deadline or not all(one.is_gone for one in others):
                raise InUse(
                    f"the chain is in use by {'; '.join(str(one) for one in others)}; nothing was done",
                    "Wait until it ends, or end it. To share its chain, continue it with the same writer",
                )
            self._changed.wait(SESSION_SECONDS / 4)

    def _holders(self) -> Sequence[Holder]:
        holders = []
        for name in sorted(self._ask("get_children", USERS, lambda _event: self._changed.set())):
            with suppress(zk.NoNodeError):  # it has just gone
                holders.append(Holder(*json.loads(self._ask("get", f"{USERS}/{name}")[0])))
        return holders

    def _create(self, generation: int, version: int) -> str:
        transaction = self.client.transaction()
        transaction.set_data(USERS, str(generation).encode(), version)
        transaction.create(f"{USERS}/u-", json.dumps(self._me).encode(), ephemeral=True, sequence=True)
        results = transaction.commit_async().get(timeout=self._timeout)
        for result in results:
            if isinstance(result, Exception):
                raise result
        return str(results[-1])

    def _take_again(self) -> None:
        self.lost.clear()
        while True:
            data, stat = self._ask("get", USERS)
            if int(data) != self._generation:
                users = "; ".join(map(str, self._holders())) or "somebody who has left"
                raise ClusterError(
                    f"{self._me.what}: its session with ZooKeeper ended, and the chain has been used by {users}",
                    "What was written cannot be judged: do it again",
                )
            with suppress(zk.RolledBackError, zk.BadVersionError):
                self._path = self._create(self._generation, stat.version)
                self.alone &= stat.version == self._version
                self._version = stat.version + 1
                return

    def _ask(self, call: str, *arguments: object) -> Any:
        return getattr(self.client, f"{call}_async")(*arguments).get(timeout=self._timeout)

    def _on_state(self, state: str) -> None:
        if state == KazooState.LOST:
            self.lost.set()

    def _unavailable(self, what: str) -> Unavailable:
        return Unavailable(
            f"{self._region}: {what}: no ZooKeeper server with a quorum answered in time",
            "A quorum is more than half of the servers: see `pghc status`",
        )


class Users:
    """Who uses the chain, for those who stand back meanwhile: to a run's checker an entry of theirs would be
    nobody's. A context manager. Raises `Unavailable`.
    """

    def __init__(self, view: View, *, timeout: float = 10.0) -> None:
        self._region, self._timeout = view.region, timeout
        self._holders: dict[str, Holder] = {}
        self._client = connect(view, timeout=timeout)
        try:
            self._client.ensure_path_async(USERS).get(timeout=timeout)
            self._client.ChildrenWatch(USERS, self._look)
        except LOST as error:
            self.close()
            raise Unavailable(f"{self._region}: ask who uses the chain: connection to ZooKeeper lost") from error

    def check(self) -> None:
        """Raise `InUse`, naming them, while somebody uses the chain. Asks nobody: what is known may be a moment old."""
        if holders := self._holders:
            raise InUse(
                f"{self._region}: the chain is in use by {'; '.join(map(str, holders.values()))}; nothing was written",
                "Append when it has ended",
            )

    def close(self) -> None:
        self._client.end()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _look(self, names: Sequence[str]) -> None:
        holders = {}
        for name in names:
            with suppress(zk.NoNodeError):
                data, _ = self._client.get_async(f"{USERS}/{name}").get(timeout=self._timeout)
                holders[name] = Holder(*json.loads(data))
        self._holders = holders


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a container's user may have no name
        return str(os.getuid())
