"""Histories: what clients asked, what they were told, and what stood in the tables at the end.

A history is a file of JSON objects, one a line, in the order in which things happened (gzip when named ``.gz``)::

    {"time": 1200, "process": "us-east/3", "region": "us-east", "type": "invoke", "op": "append",
     "request_id": "5e0c...", "node": "us-east-primary", "value": null}

========  ======================================================================================================
type      meaning
========  ======================================================================================================
invoke    a client asks
ok        it is told that this happened; ``value`` is the row of an append, the `Read` of a read
fail      definite: this did not happen and will not; ``error`` says why
info      indefinite, as after a time-out: this may have happened, or may yet
final     not a client's: rows of a region's whole chain as read after the run, over as many lines as it takes
========  ======================================================================================================

``time`` is in nanoseconds of one clock. ``process`` is one client: what it is told binds what it may be told later. A
retry keeps its ``request_id`` and is invoked again. Keys that are not listed here are ignored, so other programs may
add their own. No line is ever half believed: one that cannot be read raises `BadInput` naming file and line.
"""

from __future__ import annotations

import gzip
import heapq
import json
import os
import re
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import lru_cache, partial
from itertools import islice, product
from json.encoder import encode_basestring_ascii as _quote
from operator import itemgetter
from pathlib import Path
from threading import Lock
from types import TracebackType
from typing import IO, Any, Literal, NamedTuple, Self, TextIO, cast

from pghc.chain import Row, link
from pghc.errors import BadInput

Type = Literal["invoke", "ok", "fail", "info", "final"]
Op = Literal["append", "read"]
StrPath = str | os.PathLike[str]

#: Rows in one line of a final: about 100 kB.
ROWS_A_LINE = 1_000


class Read(NamedTuple):
    """What a read was told.

    ``position``: the zk_id that the client handed over as already seen, 0 for none. ``watermark``: the zk_id up to
    which the server said it has every entry. ``rows``: the last of them, ascending.
    """

    position: int
    watermark: int
    rows: tuple[Row, ...] = ()


class Final(NamedTuple):
    """Rows of a region's chain after the run, ascending; ``more``: the next line of this region goes on."""

    rows: tuple[Row, ...]
    more: bool = False


class Event(NamedTuple):
    """One line of a history.

    ``value``: a `Row` for an append that is ok, a `Read` for a read that is ok, a `Final` for a final, else as written.
    ``node``: the server asked. ``request_id``: the append's, the same in every retry.
    """

    time: int
    process: str
    region: str
    type: Type
    op: Op
    request_id: str | None = None
    node: str | None = None
    value: Any = None
    error: str | None = None


# Writing


class Recorder:
    """Writes the history of one program; its methods may be called from any thread.

    ``clock`` gives nanoseconds and must be one clock for all programs whose histories will be merged; on one machine
    the default is. Lines are buffered: `close` (or leaving the ``with`` block) writes the last of them. Raises
    `BadInput` when the file cannot be written.
    """

    def __init__(self, path: StrPath, clock: Callable[[], int] = time.monotonic_ns) -> None:
        self._file = _open(path, "wt")
        self._clock = clock
        self._lock = Lock()

    def invoke(self, process: str, region: str, op: Op, request_id: str | None, node: str, value: Any = None) -> None:
        """The client is about to ask ``node``."""
        self._write(process, region, "invoke", op, request_id, node, value)

    def ok(self, process: str, region: str, op: Op, request_id: str | None, node: str, value: Row | Read) -> None:
        """The client was told that this happened: an append's `Row`, a read's `Read`."""
        self._write(process, region, "ok", op, request_id, node, value)

    def fail(self, process: str, region: str, op: Op, request_id: str | None, node: str, error: object = "") -> None:
        """Definite: this did not happen. Never to be used for a time-out."""
        self._write(process, region, "fail", op, request_id, node, None, str(error))

    def info(self, process: str, region: str, op: Op, request_id: str | None, node: str, error: object = "") -> None:
        """Indefinite: this may have happened, or may yet."""
        self._write(process, region, "info", op, request_id, node, None, str(error))

    def final(self, region: str, node: str, rows: Iterable[Row]) -> None:
        """``node``'s whole chain, ascending, as read after the run; an empty one is recorded as such."""
        rest = iter(rows)
        line = tuple(islice(rest, ROWS_A_LINE))
        while True:
            following = tuple(islice(rest, ROWS_A_LINE))
            self._write(f"{region}/final", region, "final", "read", None, node, Final(line, bool(following)))
            if not following:
                return
            line = following

    def flush(self) -> None:
        with self._lock:
            self._file.flush()

    def close(self) -> None:
        with self._lock:
            self._file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _write(
        self,
        process: str,
        region: str,
        kind: Type,
        op: Op,
        request_id: str | None,
        node: str,
        value: Any,
        error: str | None = None,
    ) -> None:
        request = "" if request_id is None else f', "request_id": {_quote(request_id)}'
        reason = "" if error is None else f', "error": {_quote(error)}'
        rest = f'{request}, "node": {_name(node)}, "value": {_json(value)}{reason}}}\n'
        who = _names(process, region, kind, op)
        with self._lock:  # the clock is read inside, so that times ascend in the file
            self._file.write(f'{{"time": {self._clock()}, {who}{rest}')


@lru_cache(maxsize=1 << 14)
def _names(process: str, region: str, kind: str, op: str) -> str:
    return f'"process": {_quote(process)}, "region": {_quote(region)}, "type": "{kind}", "op": "{op}"'


@lru_cache(maxsize=1 << 10)
def _name(text: str) -> str:
    return _quote(text)


def _json(value: Any) -> str:
    if value is None:
        return "null"
    if isinstance(value, Row):
        return f'{{"zk_id": {value.zk_id}, "node_id": {_name(value.node_id)}, "hash": {_quote(value.hash)}}}'
    if isinstance(value, Read):
        rows = ", ".join(map(_json, value.rows))
        return f'{{"position": {value.position}, "watermark": {value.watermark}, "rows": [{rows}]}}'
    if isinstance(value, Final):
        return f'{{"rows": [{", ".join(map(_json, value.rows))}], "more": {"true" if value.more else "false"}}}'
    return json.dumps(value)


# Reading


def read(path: StrPath) -> Iterator[Event]:
    """The events of the file ``path``, one at a time. Raises `BadInput` that names file and line."""
    for number, line in _lines(path):
        yield _usual_event(line) or _any_event(line, f"{path}, line {number}")


def parse(line: str, source: str = "history") -> Event:
    """The event of one line. Raises `BadInput` that begins with ``source``."""
    return _usual_event(line) or _any_event(line, source)


def _usual_event(line: str) -> Event | None:
    """The event, if the line is written as `Recorder` writes most of them; takes half the time of `_any_event`."""
    if usual := _usual(line):
        when, process, region, kind, op, request_id, node, zk_id, node_id, digest, message = usual.groups()
        if zk_id is None:
            if kind != "ok":
                return _make_event((int(when), process, region, kind, op, request_id, node, None, message))
        elif kind == "ok" and op == "append":
            row = _make_row((int(zk_id), node_id, digest))
            return _make_event((int(when), process, region, kind, op, request_id, node, row, message))
    return None


def _any_event(line: str, source: str) -> Event:
    try:
        fields = json.loads(line)
        when, process, region, kind, op = _required(fields)
        known = (kind, op) in _KNOWN
    except json.JSONDecodeError as error:
        raise BadInput(f"{source}: not JSON: {error}", "If it is the last line, its writer was cut short.") from error
    except KeyError as error:
        raise BadInput(f"{source}: there is no {error}") from error
    except (TypeError, RecursionError) as error:
        raise BadInput(f"{source}: not a JSON object with time, process, region, type and op") from error
    get = fields.get
    request_id, node, value, message = get("request_id"), get("node"), get("value"), get("error")
    if type(when) is not int or not -(1 << 62) < when < 1 << 62:
        raise BadInput(f"{source}: time must be a whole number of nanoseconds, not {when!r}")
    if type(process) is not str or type(region) is not str:
        raise BadInput(f"{source}: process and region must be texts")
    if not known:
        raise BadInput(f"{source}: there is no event of type {kind!r} and op {op!r}")
    if not isinstance(request_id, str | None) or not isinstance(node, str | None):
        raise BadInput(f"{source}: request_id and node must be texts")
    try:
        if kind == "ok":
            value = _row(value) if op == "append" else _read(value)
        elif kind == "final":
            value = _final(value)
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise BadInput(f"{source}: the value of this {kind} {op} is {_SHAPES[kind, op]}") from error
    return Event(when, process, region, kind, op, request_id, node, value, None if message is None else str(message))


_TEXT, _NUMBER = r'"([^"\\]*)"', r"(0|-?[1-9]\d{0,17})"
_usual = re.compile(
    rf'\{{"time": {_NUMBER}, "process": {_TEXT}, "region": {_TEXT}, "type": "(invoke|ok|fail|info)", '
    rf'"op": "(append|read)"(?:, "request_id": {_TEXT})?, "node": {_TEXT}, "value": (?:null|'
    rf'\{{"zk_id": {_NUMBER}, "node_id": {_TEXT}, "hash": {_TEXT}\}})(?:, "error": {_TEXT})?\}}\n?'
).fullmatch
_required = itemgetter("time", "process", "region", "type", "op")
_KNOWN = frozenset(product(("invoke", "ok", "fail", "info"), ("append", "read"))) | {("final", "read")}
_SHAPES = {
    ("ok", "append"): 'a row, {"zk_id": 7, "node_id": "...", "hash": "..."}',
    ("ok", "read"): '{"position": 0, "watermark": 7, "rows": [rows]} or a list of rows',
    ("final", "read"): '{"rows": [rows], "more": false} or a list of rows',
}
_columns = itemgetter("zk_id", "node_id", "hash")
# A named tuple made without the interpreter's help: finals hold millions.
_make_row = cast(Callable[[Iterable[Any]], Row], partial(tuple.__new__, Row))
_make_event = cast(Callable[[Iterable[Any]], Event], partial(tuple.__new__, Event))


def _row(value: Any) -> Row:
    zk_id, node_id, digest = _columns(value)
    if type(zk_id) is not int or type(node_id) is not str or type(digest) is not str:
        raise TypeError(value)
    if not -(1 << 63) <= zk_id < 1 << 63:
        raise ValueError(value)
    return Row(zk_id, node_id, digest)


def _rows(value: Any) -> tuple[Row, ...]:
    if type(value) is not list:
        raise TypeError(value)
    if len(value) < 3:
        return tuple(map(_row, value))
    # The same in bulk.
    rows = tuple(map(_make_row, map(_columns, value)))
    zk_ids, node_ids, digests = zip(*rows, strict=True)
    if {*map(type, zk_ids)} != {int} or {*map(type, node_ids)} != {str} or {*map(type, digests)} != {str}:
        raise TypeError(value)
    return rows


def _read(value: Any) -> Read:
    if type(value) is list:
        rows = _rows(value)
        return Read(0, rows[-1].zk_id if rows else 0, rows)
    position, watermark = value.get("position") or 0, value["watermark"]
    if type(position) is not int or type(watermark) is not int:
        raise TypeError(value)
    return Read(position, watermark, _rows(value.get("rows", [])))


def _final(value: Any) -> Final:
    if type(value) is list:
        return Final(_rows(value))
    more = value.get("more", False)
    if type(more) is not bool:
        raise TypeError(value)
    return Final(_rows(value["rows"]), more)


def _lines(path: StrPath) -> Iterator[tuple[int, str]]:
    """The lines that hold something, with their numbers."""
    number = 0
    try:
        with _open(path, "rt") as file:
            for number, line in enumerate(file, 1):
                if not line.isspace():
                    yield number, line
    except UnicodeDecodeError as error:
        raise BadInput(f"{path}, near line {number + 1}: not UTF-8: {error.reason}") from error
    except EOFError as error:
        raise BadInput(f"{path}, after line {number}: the compressed file is cut short") from error
    except OSError as error:  # gzip's errors are of this kind too
        raise BadInput(f"{path} cannot be read: {error.strerror or error}") from error


def _open(path: StrPath, mode: Literal["rt", "wt"]) -> TextIO:
    try:
        if os.fspath(path).endswith(".gz"):
            return cast(TextIO, gzip.open(path, mode, compresslevel=1, encoding="utf-8"))
        return cast(TextIO, open(path, mode, encoding="utf-8"))
    except OSError as error:
        what = "read" if mode == "rt" else "written"
        raise BadInput(f"{path} cannot be {what}: {error.strerror or error}") from error


def merge(paths: Iterable[StrPath], out: StrPath) -> None:
    """One history from several, ordered by time; each of them must be. Lines are kept as they are.

    A last line that is cut short, as a killed program leaves it, is left out: its event is then unknown to the history.
    ``out`` appears whole or not at all. Raises `BadInput` for a line without time or out of order.
    """
    partial_file = Path(f"{os.fspath(out)}.partial{'.gz' if os.fspath(out).endswith('.gz') else ''}")
    try:
        with ExitStack() as stack:
            file = stack.enter_context(_open(partial_file, "wt"))
            for _, line in heapq.merge(*map(_timed, paths), key=itemgetter(0)):
                file.write(line)
        partial_file.replace(out)
    finally:
        partial_file.unlink(missing_ok=True)


def _timed(path: StrPath) -> Iterator[tuple[int, str]]:
    before = None
    for number, line in _lines(path):
        if line[-1] != "\n" and _cut_short(line):
            return
        comma = line.find(",")
        try:  # as `Recorder` writes it, the time can be had without parsing the rest
            when = int(line[9:comma]) if line.startswith('{"time": ') else parse(line, f"{path}, line {number}").time
        except ValueError as error:
            raise BadInput(f"{path}, line {number}: time is not a whole number") from error
        if before is not None and when < before:
            raise BadInput(f"{path}, line {number}: earlier than the line before it", "Order each file by time first.")
        before = when
        yield when, line if line.endswith("\n") else line + "\n"


def _cut_short(line: str) -> bool:
    try:
        json.loads(line)
    except json.JSONDecodeError:
        return True
    return False


# For other tools


def to_edn(events: Iterable[Event], out: StrPath | IO[str]) -> None:
    """Writes one EDN map a line, as Jepsen's and Elle's histories are.

    Jepsen's rules hold: ``:process`` is a number, has one operation open at a time, and is not used again after an
    ``:info``; so a client with several operations in flight has several numbers, and ``:client`` keeps its name. Each
    region's final chain becomes a read by a client of its own.
    """
    with _text(out) as file:
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

        finals: dict[tuple[str, str | None], list[Row]] = {}
        for event in events:
            if event.type == "final":
                rows = finals.setdefault((event.region, event.node), [])
                rows += event.value.rows
                if not event.value.more:
                    put(event, "invoke", processes, None)
                    put(event, "ok", processes, {"rows": finals.pop((event.region, event.node))})
                    processes += 1
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

    with _text(out) as file:
        file.write(f"{SHIVIZ}\n\n")
        for event in events:
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


@contextmanager
def _text(out: StrPath | IO[str]) -> Iterator[IO[str]]:
    if isinstance(out, str | os.PathLike):
        with _open(out, "wt") as file:
            yield file
    else:
        yield out
