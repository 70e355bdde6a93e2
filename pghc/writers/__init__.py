"""The ladder of writers: five ways to append to the chain, one file each, all with the interface `Writer`."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from importlib import import_module
from typing import Protocol, Self, cast

from uuid_utils import uuid7

from pghc.chain import Row
from pghc.errors import BadInput, Indefinite, Unavailable, WrongKind
from pghc.sequencer import ordering
from pghc.store import Store
from pghc.topology import View
from pghc.zookeeper import LOST, connect

#: From the simplest to the fastest.
NAMES = ("naive", "numbered", "locked", "causal", "broadcast")

#: Called with the name of each step that a writer has just done, so that a test can stop it there.
Step = Callable[[str], None]


def new_request_id() -> str:
    """A request id whose beginning is the time (UUID version 7, RFC 9562): such ids are cheaper to index."""
    return str(uuid7())


def no_step(_name: str) -> None:
    """The usual `Step`."""


class Writer(Protocol):
    """Appends entries to the chain from one region. Safe for many threads.

    ``steps`` names what an append does, in order; a writer may be killed after any of them. ``ordered``: entries are
    settled in one total order, so readers can ask for a prefix. ``exactly_once``: to retry under the same request id is
    safe. ``ordering``: how a chain of this writer is ordered; only writers of the same ordering share a chain.
    """

    steps: tuple[str, ...]
    ordered: bool
    exactly_once: bool
    ordering: str

    def append(self, request_id: str, timeout: float = 10.0) -> Row:
        """Append one entry and return it once it is in this region's primary.

        ``request_id``: a UUID, new for each append, the same for each retry of it. Ends within ``timeout`` seconds and
        a tenth. Raises `BadInput`, `WrongKind`, `Unavailable` or `Conflict` when it certainly did not happen,
        `Indefinite` when it may have happened or may yet happen.
        """

    def close(self) -> None:
        """Give back connections and sessions; ends threads."""

    def __enter__(self) -> Self: ...

    def __exit__(self, *_: object) -> None: ...


class Base:
    """What the writers share: what they promise, whether they may write to a chain, and use as a context manager."""

    steps: tuple[str, ...] = ()
    ordered = False
    exactly_once = False
    ordering = ""  # its own, unless it says otherwise

    store: Store
    _resources: ExitStack
    _joined: int | None = None

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        cls.ordering = cls.ordering or cls.__name__.lower()

    @property
    def node_id(self) -> str:
        """The database node that accepts what is appended now: the region's primary."""
        return self.store.node

    def join(self, view: View, chain: int, timeout: float, known: str = "nothing was sent") -> None:
        """Raise `WrongKind` unless the chain that began at log position ``chain`` is ordered as this writer orders.

        The first writer of a chain decides, by consensus. Raises `Unavailable` when it cannot be asked. ``known``: what
        is known to have happened by then.
        """
        if chain == self._joined:
            return
        ordering = self._ordering(view, chain, timeout)
        if ordering != self.ordering:
            raise WrongKind(
                f"{view.region}: this chain is ordered by {ordering!r}, and this writer orders by {self.ordering!r}, "
                f"{known}",
                f"Begin a new chain, as `pghc run` does, or take a writer that orders by {ordering!r}",
                node=view.primary(),
            )
        self._joined = chain

    def _ordering(self, view: View, chain: int, timeout: float) -> str:
        deadline = time.monotonic() + timeout
        client = connect(view, timeout=timeout)
        try:
            return ordering(client, chain, self.ordering, deadline - time.monotonic())
        except LOST as error:
            raise Unavailable(
                f"{view.region}: learn how the chain is ordered: connection to ZooKeeper lost, nothing was written",
                "A quorum is more than half of the servers: see `pghc status`",
            ) from error
        finally:
            client.end()

    def close(self) -> None:
        self._resources.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


@contextmanager
def sent(node: str, what: str) -> Iterator[None]:
    """From here on something of the append may be in the log, so whatever is raised inside is `Indefinite`."""
    try:
        yield
    except Indefinite:
        raise
    except Exception as error:
        raise Indefinite(
            f"{node}: {what}: {getattr(error, 'what', None) or repr(error)}; it may have happened",
            getattr(error, "remedy", "") or "Retry with the same request id, where the writer says that this is safe",
            node=node,
        ) from error


def check_name(name: str) -> None:
    """Raise `BadInput` unless ``name`` is one of `NAMES` or reads "module:Class"."""
    if name not in NAMES and not name.partition(":")[2].isidentifier():
        raise BadInput(
            f"there is no writer {name!r}", f'The writers are {", ".join(NAMES)}; one of your own is "module:Class".'
        )


def writer_class(name: str) -> type[Writer]:
    """The class of the writer called ``name``; "module:Class" is one of your own. Raises `BadInput`."""
    check_name(name)
    module, _, kind = name.partition(":") if ":" in name else (f"pghc.writers.{name}", "", name.capitalize())
    try:
        return cast(type[Writer], getattr(import_module(module), kind))
    except (ImportError, AttributeError) as error:
        raise BadInput(f"the writer {name!r} cannot be loaded: {error}") from error


def open_writer(name: str, view: View, step: Step = no_step) -> Writer:
    """The writer called ``name``, for the clients of ``view``'s region. Raises `BadInput`, `Unavailable`."""
    make = cast(Callable[[View, Step], Writer], writer_class(name))
    return make(view, step)
