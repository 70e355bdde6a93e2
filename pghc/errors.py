"""The errors of the lab, and what each says about whether a write happened.

::

    PghcError
    ├── BadInput              the request itself is wrong; nothing was attempted
    ├── ClusterError          servers are not in the state that the request needs
    │   └── NotRunning        there is no running cluster here
    ├── Unavailable           definite: no quorum or no primary, nothing was written
    ├── Conflict              definite: a different entry already stands in that place
    │   └── WrongKind         definite: the chain is ordered by another kind of writer
    ├── Behind                a read: the server has not reached the position asked for in time
    └── Indefinite            a write that may or may not have happened

*Definite* means: this write did not happen and never will by itself. *Indefinite* means that it may have happened,
now or later; only a retry under the same request id is safe. A time-out of a write is always indefinite. The
distinction is that of Maelstrom's error table.
"""

from __future__ import annotations


class PghcError(Exception):
    """Base of all errors raised on purpose.

    ``what``: what was attempted and what went wrong, naming the node; ``remedy``: what to do next (may be empty).
    ``definite``: True when the thing attempted is known not to have happened, False when it may have happened.
    """

    definite = True

    def __init__(self, what: str, remedy: str = "", *, node: str | None = None) -> None:
        super().__init__(what)
        self.what = what
        self.remedy = remedy
        self.node = node

    def __str__(self) -> str:
        return f"{self.what}. {self.remedy}" if self.remedy else self.what

    def __reduce__(self) -> tuple[object, ...]:
        return _rebuild, (type(self), self.what, self.remedy, self.node)


def _rebuild(kind: type[PghcError], what: str, remedy: str, node: str | None) -> PghcError:
    return kind(what, remedy, node=node)


class BadInput(PghcError):
    """The request is wrong as written: an unknown region, a malformed topology, a negative count."""


class ClusterError(PghcError):
    """A server, a port, a file or a download is not as it must be."""


class NotRunning(ClusterError):
    """No cluster runs here."""


class Unavailable(PghcError):
    """Definite: the consensus service or the primary could not be reached, and nothing was written."""


class Conflict(PghcError):
    """Definite: another entry already stands in the place that this one claims, or the writer was deposed."""


class WrongKind(Conflict):
    """Definite: this chain is ordered by another kind of writer; nothing was sent."""


class Behind(PghcError):
    """A read asked for a position that this server had not reached within the time-out."""


class Indefinite(PghcError):
    """The write may have happened, or may still happen. Retry with the same request id to find out."""

    definite = False
