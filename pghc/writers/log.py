"""What the log makes of the chain: the one function that all writers of ordering "log" share. Pure."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from itertools import takewhile
from typing import NamedTuple

from pghc.chain import Row, link
from pghc.sequencer import Entry
from pghc.store import Cursor


class Fold(NamedTuple):
    cursor: Cursor
    rows: list[Row]
    requests: list[tuple[str, int, int]]  # request_id, zk_id, log position


def fold(cursor: Cursor, entries: Iterable[Entry], known: Collection[str] = ()) -> Fold:
    """What the log's ``entries`` after ``cursor`` make of the chain, as far as no new chain begins.

    ``known``: requests that are settled up to ``cursor``. They, and those seen twice, are void.
    """
    seen = set(known)
    position, zk_id, digest, chain = cursor
    rows, requests = [], []
    for node_id, batch, _, _ in takewhile(lambda entry: not entry.begins, entries):
        position += 1
        for request in batch:
            if request not in seen:
                seen.add(request)
                zk_id += 1
                digest = link(zk_id, node_id, digest)
                rows.append(Row(zk_id, node_id, digest))
                requests.append((request, zk_id, position))
    return Fold(Cursor(position, zk_id, digest, chain), rows, requests)
