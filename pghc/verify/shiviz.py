"""Histories as logs with vector clocks, as ShiViz draws them."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import IO

from pghc.chain import Row, link
from pghc.verify.history import Event, Final, Read, StrPath, text_file

#: The expression by which ShiViz reads what `to_shiviz` writes; it is the file's first line.
SHIVIZ = r"(?<host>\S+) (?<clock>\{.*\})\n(?<event>.*)"


def to_shiviz(events: Iterable[Event], out: StrPath | IO[str]) -> None:
    """Writes a log with vector clocks for ShiViz, whose browser page draws some hundreds of events well.

    Clients are the hosts. What the chain proves is drawn as messages: an entry's hash names the entry before it, so the
    client that got an entry has heard of the client that asked for the one before; and so has whoever reads it.
    """
    events = list(events)
    asked_for: dict[str, Row] = {}
    rows_at: dict[int, dict[Row, None]] = {}
    for event in events:
        if event.type == "ok" and event.op == "append":
            if event.request_id is not None:
                asked_for.setdefault(event.request_id, event.value)
            rows_at.setdefault(event.value.zk_id, {})[event.value] = None
        elif event.type in {"ok", "final"}:
            for row in event.value.rows:
                rows_at.setdefault(row.zk_id, {})[row] = None

    def before(row: Row) -> Row | None:
        candidates = rows_at.get(row.zk_id - 1, ())
        return next((one for one in candidates if link(row.zk_id, row.node_id, one.hash) == row.hash), None)

    clocks: dict[str, dict[str, int]] = {}
    asked: dict[Row, dict[str, int]] = {}
    heard: dict[Row, dict[str, int]] = {}

    def hear(row: Row) -> dict[str, int]:
        """What is in the past of an entry: every request in it or below it that had been made by now."""
        path = []
        at: Row | None = row
        while at is not None and at not in heard:
            path.append(at)
            at = before(at)
        clock = dict(heard[at]) if at is not None else {}
        for one in reversed(path):
            _join(clock, asked.get(one, {}))
            heard[one] = dict(clock)
        return clock

    with text_file(out) as file:
        file.write(f"{SHIVIZ}\n\n")
        for event in events:
            if event.type == "final" and event.value.requests and not event.value.rows:
                continue  # which request became which entry is not drawn
            host = "_".join(event.process.split()) or "_"
            clock = clocks.setdefault(host, {})
            clock[host] = clock.get(host, 0) + 1
            told: tuple[Row, ...] = ()
            if event.type == "invoke" and event.request_id in asked_for:
                asked.setdefault(asked_for[event.request_id], dict(clock))
            elif event.type == "ok" and event.op == "append":
                told = (event.value,)
            elif event.type in {"ok", "final"}:
                told = event.value.rows
            for row in told:
                _join(clock, hear(row))
            file.write(f"{host} {json.dumps(clock)}\n{_caption(event)}\n")


def _join(clock: dict[str, int], other: Mapping[str, int]) -> None:
    for host, count in other.items():
        if clock.get(host, 0) < count:
            clock[host] = count


def _caption(event: Event) -> str:
    what = f"{event.op} {event.type} at {event.node or event.region}"
    if isinstance(event.value, Row):
        what += f": entry {event.value.zk_id} by {event.value.node_id}"
    elif isinstance(event.value, Read):
        what += f": up to {event.value.watermark}"
    elif isinstance(event.value, Final):
        what += f": {len(event.value.rows)} entries"
    return f"{what}: {event.error}".replace("\n", " ") if event.error else what
