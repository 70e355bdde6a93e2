"""Ctrl-C, in every command: the first ends what is being done, and what is open is closed, healed and deleted; those
that follow do not end that, but are told what is waited for. After `GRACE` seconds it ends in any case.

SIGTERM and SIGHUP do the same.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import NoReturn

#: Seconds for clearing up. The slowest is to heal servers that were killed.
GRACE = 45

code = 0  # the exit code, once a signal has ended what was being done
_raised = False
_holds = 0
_left = ""


def install() -> None:
    """Handle signals from now on. For the main thread."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, _signalled)
    signal.signal(signal.SIGALRM, _overdue)


def leaves(text: str) -> None:
    """What to tell whoever interrupts the command from now on: what is left, and what to do about it."""
    global _left
    _left = text


@contextmanager
def held() -> Iterator[None]:
    """Carry this block to its end, whatever comes; an interruption that came meanwhile is raised after it."""
    global _holds
    _holds += 1
    try:
        yield
    finally:
        _holds -= 1
    _raise_if_due()


def sleep(seconds: float) -> None:
    """Sleep so long, or until an interruption comes, also in a block that is `held`."""
    end = time.monotonic() + seconds
    while not code and (left := end - time.monotonic()) > 0:
        time.sleep(min(left, 0.1))


def farewell() -> str:
    """What to say in the end."""
    return f"interrupted; {_left or 'nothing is left to clear up'}"


def _signalled(number: int, _frame: FrameType | None) -> None:
    global code
    if code:
        _say("still clearing up, which ends by itself\n")
        return
    code = 128 + number
    signal.alarm(GRACE)
    _raise_if_due()


def _raise_if_due() -> None:
    global _raised
    if code and not _holds and not _raised:
        _raised = True
        raise KeyboardInterrupt if code == 128 + signal.SIGINT else SystemExit(code)


def _overdue(_number: int, _frame: FrameType | None) -> NoReturn:
    _say(f"this could not be cleared up within {GRACE} s: `pghc status` says what runs, `pghc down` stops it\n")
    os._exit(code)


def _say(text: str) -> None:
    """Past all buffers: the signal may have come amid a print."""
    os.write(2, text.encode())
