"""The hash chain: what an entry is, and which entry follows another. Pure.

An entry's hash is the MD5 of its zk_id, the database node that accepted it and the hash of the entry before it, joined
as text. MD5 because the exercise is order, not secrecy; the method is that of linked timestamping (Haber and
Stornetta, 1991).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from hashlib import md5
from typing import NamedTuple, Protocol

#: The hash "before the first entry".
ROOT = ""

#: A node_id neither begins with a digit nor contains anything but ``[a-z0-9-]``, so no two inputs join to the same
#: text: zk_id ends at the first letter, and the hash before is either empty or exactly the last 32 characters.
NODE_ID = re.compile(r"[a-z][a-z0-9-]{0,30}")


class Row(NamedTuple):
    """One entry of the table ``chain``."""

    zk_id: int
    node_id: str
    hash: str


def link(zk_id: int, node_id: str, previous: str) -> str:
    """The hash (32 hexadecimal digits) of entry ``zk_id`` accepted by ``node_id`` after one hashed ``previous``."""
    return md5(f"{zk_id}{node_id}{previous}".encode(), usedforsecurity=False).hexdigest()


class Last(Protocol):
    """The end of a chain: a `Row`, or what else carries its number and hash (0 and `ROOT` when empty)."""

    @property
    def zk_id(self) -> int: ...
    @property
    def hash(self) -> str: ...


def successor(last: Last | None, node_id: str) -> Row:
    """The entry that ``node_id`` adds after ``last`` (None: the chain is empty). Numbers start at 1."""
    zk_id, previous = (last.zk_id + 1, last.hash) if last else (1, ROOT)
    return Row(zk_id, node_id, link(zk_id, node_id, previous))


def extend(last: Row | None, node_ids: Iterable[str]) -> Iterator[Row]:
    """The entries that follow ``last`` when ``node_ids`` append in this order."""
    for node_id in node_ids:
        last = successor(last, node_id)
        yield last
