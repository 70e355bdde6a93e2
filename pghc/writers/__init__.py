"""The ladder of writers: five ways to append to the chain, one file each, all with the interface `Writer`."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from typing import Protocol, Self, cast

from uuid_utils import uuid7

from pghc.chain import Row
from pghc.errors import BadInput
from pghc.topology import View

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
    safe.
    """

    steps: tuple[str, ...]
    ordered: bool
    exactly_once: bool

    def append(self, request_id: str, timeout: float = 10.0) -> Row:
        """Append one entry and return it once it is in this region's primary.

        ``request_id``: a UUID as canonical text, new for each append, the same for each retry of it. Returns within
        about ``timeout`` seconds. Raises `Unavailable` or `Conflict` when it certainly did not happen, `Indefinite`
        when it may have happened or may yet happen.
        """

    def close(self) -> None:
        """Give back connections and sessions; ends threads."""

    def __enter__(self) -> Self: ...

    def __exit__(self, *_: object) -> None: ...


class Base:
    """What the writers share: what they promise, and use as a context manager."""

    steps: tuple[str, ...] = ()
    ordered = False
    exactly_once = False

    def close(self) -> None:
        raise NotImplementedError

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


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
