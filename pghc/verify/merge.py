"""One history from those that several programs kept of the same run."""

from __future__ import annotations

import heapq
import os
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from operator import itemgetter
from pathlib import Path

from msgspec import DecodeError, Struct, ValidationError
from msgspec.json import Decoder

from pghc.errors import BadInput
from pghc.verify.history import StrPath, lines, open_file


def merge(paths: Iterable[StrPath], out: StrPath) -> None:
    """One history from several, ordered by time; each of them must be. Lines are kept as they are.

    A last line that is cut short, as a killed program leaves it, is left out: its event is then unknown to the history.
    ``out`` appears whole or not at all. Raises `BadInput` for a line without time or out of order.
    """
    partial_file = Path(f"{os.fspath(out)}.partial{'.gz' if os.fspath(out).endswith('.gz') else ''}")
    try:
        with ExitStack() as stack:
            file = stack.enter_context(open_file(partial_file, "wb"))
            file.writelines(line for _, line in heapq.merge(*map(_timed, paths), key=itemgetter(0)))
        partial_file.replace(out)
    finally:
        partial_file.unlink(missing_ok=True)


class _Timed(Struct):
    time: int


_decode = Decoder(_Timed).decode


def _timed(path: StrPath) -> Iterator[tuple[int, bytes]]:
    before = None
    for number, line in lines(path):
        try:
            when = _decode(line).time
        except ValidationError as error:
            raise BadInput(f"{path}, line {number}: time is not a whole number: {error}") from error
        except DecodeError as error:
            if not line.endswith(b"\n"):  # the last line, cut short
                return
            raise BadInput(f"{path}, line {number}: not JSON: {error}") from error
        if before is not None and when < before:
            raise BadInput(f"{path}, line {number}: earlier than the line before it", "Order each file by time first.")
        before = when
        yield when, line if line.endswith(b"\n") else line + b"\n"
