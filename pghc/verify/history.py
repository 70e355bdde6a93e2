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
final     not a client's: what a region's whole chain holds after the run, over as many lines as it takes
========  ======================================================================================================

``time`` is in nanoseconds of one clock. ``process`` is one client: what it is told binds what it may be told later. A
retry keeps its ``request_id`` and is invoked again. Keys that are not listed here are ignored, so other programs may
add their own. No line is ever half believed: one that cannot be read raises `BadInput` naming file and line.

The ``value`` of a final is a list of rows, or an object of which only ``rows`` must be there::

    {"rows": [...], "more": true, "requests": [["5e0c...", 7], ...], "caught_up": false, "alone": false}

``more``: the next line of this region goes on. ``requests``: which request became which entry, as the region's own
table of requests (``pghc.request``) says, as pairs of request id and zk_id; over all lines of a region it is that whole
table, read in one snapshot with the rows. Without it the checker only counts entries, with it it knows whose each is.
``caught_up`` false: the region still lacked entries of others when it was read; what is missing there proves nothing.
``alone`` false: others wrote to the chain meanwhile, so entries of no append of this history are theirs.
"""

from __future__ import annotations

import gzip
import os
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from io import TextIOWrapper
from itertools import chain, islice
from operator import attrgetter
from threading import Lock
from types import TracebackType
from typing import IO, Annotated, Any, Literal, NamedTuple, Self, TypeVar, cast

from msgspec import DecodeError, Meta, Raw, Struct, ValidationError
from msgspec.json import Decoder, encode

from pghc.chain import Row
from pghc.errors import BadInput

Type = Literal["invoke", "ok", "fail", "info", "final"]
Op = Literal["append", "read"]
T = TypeVar("T")
StrPath = str | os.PathLike[str]

#: Rows, or requests, in one line of a final: about 100 kB.
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
    """A part of what a region's chain holds after the run; the module says what each field means.

    ``rows`` ascend. ``requests``: pairs of request id and zk_id, None when they were not read.
    """

    rows: tuple[Row, ...]
    more: bool = False
    requests: tuple[tuple[str, int], ...] | None = None
    caught_up: bool = True
    alone: bool = True


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
        self._file = open_file(path, "wb")
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

    def final(
        self,
        region: str,
        node: str,
        rows: Iterable[Row],
        requests: Iterable[tuple[str, int]] | None = None,
        *,
        caught_up: bool = True,
        alone: bool = True,
    ) -> None:
        """``node``'s whole chain, ascending, as read after the run; an empty one is recorded as such.

        ``requests``: its whole table of requests, as pairs of request id and zk_id, read in the same snapshot; it is
        gone through after ``rows``. ``caught_up`` False: ``node`` still lacked entries of other regions when it was
        read, so those that are missing here are not held against it. ``alone`` False: others wrote to the chain, too.
        """
        none = None if requests is None else ()
        parts = chain(
            (Final(batch, True, none, caught_up, alone) for batch in _batches(rows)),
            (Final((), True, batch, caught_up, alone) for batch in _batches(requests or ())),
        )
        part = next(parts, Final((), True, none, caught_up, alone))
        for following in parts:
            self._write(f"{region}/final", region, "final", "read", None, node, part)
            part = following
        self._write(f"{region}/final", region, "final", "read", None, node, part._replace(more=False))

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
        fields: dict[str, Any] = {"time": 0, "process": process, "region": region, "type": kind, "op": op}
        if request_id is not None:
            fields["request_id"] = request_id
        fields["node"], fields["value"] = node, _plain(value)
        if error is not None:  # which may quote bytes that are no text
            fields["error"] = error.encode(errors="backslashreplace").decode()
        with self._lock:  # the clock is read inside, so that times ascend in the file
            fields["time"] = self._clock()
            self._file.write(encode(fields) + b"\n")


def _batches(items: Iterable[T]) -> Iterator[tuple[T, ...]]:
    rest = iter(items)
    while batch := tuple(islice(rest, ROWS_A_LINE)):
        yield batch


def _plain(value: Any) -> Any:
    """The same for JSON, in which our named tuples are objects."""
    if isinstance(value, Row):
        return value._asdict()
    if isinstance(value, Read | Final):
        fields = value._asdict() | {"rows": [row._asdict() for row in value.rows]}
        if isinstance(value, Final):
            defaults = {"requests": None, "caught_up": True, "alone": True}
            return {name: field for name, field in fields.items() if defaults.get(name, ...) != field}
        return fields
    return value


# Reading


def read(path: StrPath) -> Iterator[Event]:
    """The events of the file ``path``, one at a time. Raises `BadInput` that names file and line."""
    for number, line in lines(path):
        yield parse(line, f"{path}, line {number}")


def parse(line: str | bytes, source: str = "history") -> Event:
    """The event of one line. Raises `BadInput` that begins with ``source``."""
    try:
        when, process, region, kind, op, request_id, node, raw, message = _fields(_decode_line(line))
    except ValidationError as error:
        raise BadInput(f"{source}: not an event: {error}") from error
    except (DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise BadInput(f"{source}: not JSON: {error}", "If it is the last line, its writer was cut short.") from error
    try:
        value = _decode_value[kind, op](raw)
    except KeyError as error:
        raise BadInput(f"{source}: there is no event of type {kind!r} and op {op!r}") from error
    except ValidationError as error:
        raise BadInput(f"{source}: the value of this {kind} {op} is {_SHAPES[kind, op]}: {error}") from error
    if message is not None:
        message = str(message)
    return _make_event((when, process, region, kind, op, request_id, node, value, message))


# A named tuple made without the interpreter's help: finals hold millions.
_make_row = cast(Callable[[Iterable[Any]], Row], partial(tuple.__new__, Row))
_make_event = cast(Callable[[Iterable[Any]], Event], partial(tuple.__new__, Event))


class _Line(Struct, gc=False):
    time: Annotated[int, Meta(gt=-(1 << 62), lt=1 << 62)]
    process: str
    region: str
    type: Type
    op: Op
    request_id: str | None = None
    node: str | None = None
    value: Raw = Raw(b"null")
    error: Any = None


class _Row(Struct, gc=False):
    zk_id: Annotated[int, Meta(ge=-(1 << 63), le=(1 << 63) - 1)]
    node_id: str
    hash: str


class _Read(Struct):
    watermark: int
    position: int | None = 0
    rows: list[_Row] = []


class _Final(Struct):
    rows: list[_Row]
    more: bool = False
    requests: list[tuple[str, int]] | None = None
    caught_up: bool = True
    alone: bool = True


_decode_line = Decoder(_Line).decode
_decode_row = Decoder(_Row).decode
_decode_read = Decoder(list[_Row] | _Read).decode
_decode_final = Decoder(list[_Row] | _Final).decode
_decode_any = Decoder().decode
_fields = attrgetter(*_Line.__struct_fields__)
_columns = attrgetter(*_Row.__struct_fields__)
_SHAPES = {
    ("ok", "append"): 'a row, {"zk_id": 7, "node_id": "...", "hash": "..."}',
    ("ok", "read"): '{"position": 0, "watermark": 7, "rows": [rows]} or a list of rows',
    ("final", "read"): '{"rows": [rows], "more": false} or a list of rows',
}


def _rows(value: Iterable[_Row]) -> tuple[Row, ...]:
    return tuple(map(_make_row, map(_columns, value)))


def _append(raw: Raw) -> Row:
    return _make_row(_columns(_decode_row(raw)))


def _read(raw: Raw) -> Read:
    value = _decode_read(raw)
    if isinstance(value, list):
        return Read(0, value[-1].zk_id if value else 0, _rows(value))
    return Read(value.position or 0, value.watermark, _rows(value.rows))


def _final(raw: Raw) -> Final:
    value = _decode_final(raw)
    if isinstance(value, list):
        return Final(_rows(value))
    requests = None if value.requests is None else tuple(value.requests)
    return Final(_rows(value.rows), value.more, requests, value.caught_up, value.alone)


def _any(raw: Raw) -> Any:
    return None if raw == b"null" else _decode_any(raw)


_decode_value: dict[tuple[str, str], Callable[[Raw], Any]] = {
    **{(kind, op): _any for kind in ("invoke", "fail", "info") for op in ("append", "read")},
    ("ok", "append"): _append,
    ("ok", "read"): _read,
    ("final", "read"): _final,
}

# Files


def lines(path: StrPath) -> Iterator[tuple[int, bytes]]:
    """The lines that hold something, with their numbers. Raises `BadInput`."""
    number = 0
    try:
        with open_file(path, "rb") as file:
            for number, line in enumerate(file, 1):
                if not line.isspace():
                    yield number, line
    except EOFError as error:
        raise BadInput(f"{path}, after line {number}: the compressed file is cut short") from error
    except OSError as error:
        raise BadInput(f"{path} cannot be read: {error.strerror or error}") from error


def open_file(path: StrPath, mode: Literal["rb", "wb"]) -> IO[bytes]:
    """The file, compressed when it is named ``.gz``. Raises `BadInput`."""
    try:
        if os.fspath(path).endswith(".gz"):
            return cast(IO[bytes], gzip.open(path, mode, compresslevel=1))
        return open(path, mode)
    except OSError as error:
        what = "read" if mode == "rb" else "written"
        raise BadInput(f"{path} cannot be {what}: {error.strerror or error}") from error


@contextmanager
def text_file(out: StrPath | IO[str]) -> Iterator[IO[str]]:
    """A text file to write: a new one, or the one that is given, which stays open."""
    if isinstance(out, str | os.PathLike):
        with TextIOWrapper(open_file(out, "wb"), encoding="utf-8") as file:
            yield file
    else:
        yield out
