"""Histories in EDN, as Jepsen's and Elle's are."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import IO, Any

from pghc.chain import Row
from pghc.verify.history import Event, Final, Read, StrPath, text_file


def to_edn(events: Iterable[Event], out: StrPath | IO[str]) -> None:
    """Writes one EDN map a line, as Jepsen's and Elle's histories are.

    Jepsen's rules hold: ``:process`` is a number, has one operation open at a time, and is not used again after an
    ``:info``; so a client with several operations in flight has several numbers, and ``:client`` keeps its name. Each
    region's final chain becomes a read by a client of its own.
    """
    with text_file(out) as file:
        free: dict[str, list[int]] = {}
        holder: dict[tuple[str, str, str | None], list[int]] = {}
        processes = index = 0

        def put(event: Event, kind: str, process: int, value: Any) -> None:
            nonlocal index
            fields: dict[str, Any] = {
                "index": index,
                "time": event.time,
                "type": _Keyword(kind),
                "process": process,
                "f": _Keyword(event.op),
                "value": value,
                "client": event.process,
                "region": event.region,
                "node": event.node,
            }
            optional = {"request-id": event.request_id, "error": event.error, "final": event.type == "final" or None}
            fields |= {name: value for name, value in optional.items() if value is not None}
            file.write(_edn(fields) + "\n")
            index += 1

        finals: dict[tuple[str, str | None], tuple[list[Row], list[tuple[str, int]]]] = {}
        for event in events:
            if event.type == "final":
                final = event.value
                rows, requests = finals.setdefault((event.region, event.node), ([], []))
                rows += final.rows
                requests += final.requests or ()
                if not final.more:
                    value: dict[str, Any] = {"rows": rows}
                    value |= {} if final.requests is None else {"requests": requests}
                    value |= {} if final.caught_up else {"caught_up": False}
                    value |= {} if final.alone else {"alone": False}
                    put(event, "invoke", processes, None)
                    put(event, "ok", processes, value)
                    processes += 1
                    del finals[event.region, event.node]
                continue
            operation = (event.process, event.op, event.request_id)
            idle = free.setdefault(event.process, [])
            if event.type == "invoke":
                if not idle:
                    idle.append(processes)
                    processes += 1
                holder.setdefault(operation, []).append(idle.pop())
                put(event, "invoke", holder[operation][-1], event.value)
            elif numbers := holder.get(operation):
                number = numbers.pop()
                if not numbers:
                    del holder[operation]
                put(event, event.type, number, event.value)
                if event.type != "info":
                    idle.append(number)


class _Keyword(str):
    __slots__ = ()


def _edn(value: Any) -> str:
    if value is None:
        return "nil"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, _Keyword):
        return f":{value}"
    if isinstance(value, str):
        return json.dumps(value, ensure_ascii=False)
    if isinstance(value, Row | Read | Final):
        value = value._asdict()
    if isinstance(value, Mapping):
        return "{" + ", ".join(f":{str(key).replace('_', '-')} {_edn(item)}" for key, item in value.items()) + "}"
    if isinstance(value, list | tuple):
        return "[" + " ".join(map(_edn, value)) + "]"
    return json.dumps(value)
