"""Child processes that never outlive their owner, and whole trees of them.

A server dies with the supervisor in whatever way that ends. On Linux the kernel sees to it (PR_SET_PDEATHSIG).
Everywhere a *guard*, a second process that waits for the supervisor's end, kills what is left: servers where the kernel
does not do it, and children of a paused Postgres, which cannot notice that they are orphans.
"""

from __future__ import annotations

import asyncio
import ctypes
import gc
import importlib
import os
import runpy
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Protocol

import psutil

PR_SET_PDEATHSIG, PR_SET_NAME = 1, 15
#: What `ps -e` shows for a fork; its command line stays the supervisor's.
FORK_NAME = "pghc-api"
IPC_RMID = 0
_libc = ctypes.CDLL(None, use_errno=True) if sys.platform == "linux" else None


@dataclass(frozen=True)
class Command:
    """How to start a server or a short program. ``uid``: the user to run it as; None: ours."""

    argv: Sequence[str | Path]
    cwd: Path
    env: Mapping[str, str]
    uid: int | None = None
    stop: signal.Signals = signal.SIGTERM

    @property
    def module(self) -> str:
        """Of ``python -m module``, run as ourselves; else empty."""
        python = len(self.argv) > 2 and list(self.argv[:2]) == [sys.executable, "-m"] and self.uid is None
        return str(self.argv[2]) if python else ""


class Child(Protocol):
    """What a started process is known by: `subprocess.Popen`, or a fork of this process."""

    pid: int
    returncode: int | None

    def poll(self) -> int | None: ...


@dataclass(eq=False)
class Process:
    """A started command and the part of its log that it wrote."""

    command: Command
    log: Path
    log_begin: int
    popen: Child
    ended: asyncio.Event = field(default_factory=asyncio.Event)
    paused: bool = False

    @property
    def pid(self) -> int:
        return self.popen.pid

    @property
    def running(self) -> bool:
        return not self.ended.is_set()

    @property
    def exit_code(self) -> int | None:
        return self.popen.returncode

    def written(self, longest: int = 20_000) -> str:
        """The end of what it has written to its log."""
        with suppress(OSError), open(self.log, "rb") as file:
            file.seek(max(self.log_begin, file.seek(0, os.SEEK_END) - longest))
            return file.read().decode(errors="replace")
        return ""


class Processes:
    """All children of this process. Lives in the main thread's asyncio loop: the kernel ties children to the thread."""

    def __init__(self) -> None:
        self._living: set[Process] = set()
        self._preloaded: set[str] = set()
        asyncio.get_running_loop().add_signal_handler(signal.SIGCHLD, self._reap)

    @property
    def living(self) -> list[Process]:
        return list(self._living)

    def preload(self, module: str) -> None:
        """Import ``module``, so that each ``python -m module`` is started as a fork that shares its pages.

        Three API nodes then take half the memory. A fork has our environment, not its command's. Raises `ImportError`.
        """
        if _libc:  # elsewhere a fork that does not exec is not safe with the system's libraries
            importlib.import_module(module)
            gc.collect()
            gc.freeze()  # a collection in the child would write to, and so copy, every page
            self._preloaded.add(module)

    def start(self, command: Command, log: Path) -> Process:
        """Raises `OSError`."""
        begin_child = _Fork if command.module in self._preloaded else _execute
        with _appending(log) as file:
            begin = file.tell()
            process = Process(command, log, begin, begin_child(command, file.fileno()))
        self._living.add(process)
        return process

    async def run(self, command: Command, log: Path, timeout: float = 60) -> Process:
        """Run a short program to its end, or kill it. Raises `OSError`, `TimeoutError`."""
        process = self.start(command, log)
        try:
            async with asyncio.timeout(timeout):
                await process.ended.wait()
        finally:
            if process.running:
                await kill(process)
        return process

    async def stop(self, processes: Sequence[Process], patience: float = 5) -> None:
        """End servers in their orderly way, and what does not obey within ``patience`` seconds by force."""
        for process in processes:
            if process.running:
                if process.paused:
                    resume(process)
                signal_to(process.pid, process.command.stop)
        with suppress(TimeoutError):
            async with asyncio.timeout(patience):
                await _all_ended(processes)
        await asyncio.gather(*map(kill, processes))

    def _reap(self) -> None:
        for process in self.living:
            if process.popen.poll() is not None:
                self._living.discard(process)
                process.ended.set()


def _execute(command: Command, log: int) -> Child:
    as_user = {"user": command.uid, "group": command.uid, "extra_groups": []} if command.uid is not None else {}
    child: Child = subprocess.Popen(
        command.argv,
        cwd=command.cwd,
        env=command.env,
        stdin=subprocess.DEVNULL,
        stdout=log,
        stderr=subprocess.STDOUT,
        start_new_session=True,
        preexec_fn=_die_with(os.getpid()),  # safe: this process has one thread
        **as_user,  # type: ignore[call-overload]
    )
    return child


class _Fork:
    """A fork of this process that runs ``python -m module`` with a log of its own, and nothing else of ours."""

    def __init__(self, command: Command, log: int) -> None:
        self.returncode: int | None = None
        parent = os.getpid()
        self.pid = os.fork()
        if self.pid:
            return
        try:
            os.setsid()
            _die_with(parent)()
            os.chdir(command.cwd)
            os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
            os.dup2(log, 1)
            os.dup2(log, 2)
            os.closerange(3, os.sysconf("SC_OPEN_MAX"))  # of the loop that goes on in the parent, and its sockets
            signal.set_wakeup_fd(-1)
            for number in (signal.SIGCHLD, signal.SIGTERM, signal.SIGHUP):
                signal.signal(number, signal.SIG_DFL)
            signal.signal(signal.SIGINT, signal.default_int_handler)
            if _libc:
                _libc.prctl(PR_SET_NAME, FORK_NAME.encode(), 0, 0, 0)
            sys.argv = [str(each) for each in command.argv[2:]]
            runpy.run_module(command.module, run_name="__main__", alter_sys=True)
        except BaseException:
            traceback.print_exc()
            sys.stderr.flush()
        finally:  # never back into the parent's frames
            os._exit(1)

    def poll(self) -> int | None:
        if self.returncode is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                self.returncode = os.waitstatus_to_exitcode(status)
        return self.returncode


async def _all_ended(processes: Sequence[Process]) -> None:
    for process in processes:
        await process.ended.wait()


async def kill(process: Process, patience: float = 10) -> None:
    """SIGKILL to the process and all below it. Returns when all are gone, which for the children may take longer: a
    Postgres that is started again refuses while one of its predecessor's still has the shared memory.

    It is stopped first, so that it starts none meanwhile. Raises `TimeoutError`.
    """
    if not process.running:
        return
    signal_to(process.pid, signal.SIGSTOP)
    tree = _tree(process.pid)
    for each in tree:
        signal_to(each.pid, signal.SIGKILL)
    async with asyncio.timeout(patience):
        await process.ended.wait()
        while any(map(_lives, tree)):
            await asyncio.sleep(0.005)  # nobody is told of the end of a process that is not its child


def pause(process: Process) -> None:
    """SIGSTOP to the process, then to all below it."""
    signal_to(process.pid, signal.SIGSTOP)
    for each in _tree(process.pid):
        signal_to(each.pid, signal.SIGSTOP)
    process.paused = True


def resume(process: Process) -> None:
    for each in reversed(_tree(process.pid)):
        signal_to(each.pid, signal.SIGCONT)
    process.paused = False


def signal_to(pid: int, number: signal.Signals) -> None:
    with suppress(ProcessLookupError):
        os.kill(pid, number)


def _tree(pid: int) -> list[psutil.Process]:
    """The process and all below it, it first."""
    try:
        process = psutil.Process(pid)
        return [process, *process.children(recursive=True)]
    except psutil.NoSuchProcess:
        return []


def _lives(process: psutil.Process) -> bool:
    """A zombie has given back everything but its number."""
    with suppress(psutil.NoSuchProcess):
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    return False


def memory(pid: int, *, tree: bool) -> int:
    """Bytes of a process, or of it and all below it; shared pages are counted once (PSS) where the system can tell."""
    total = 0
    for each in [process.pid for process in _tree(pid)] if tree else [pid]:
        with suppress(psutil.Error):
            process = psutil.Process(each)
            try:
                full = process.memory_full_info()
                total += getattr(full, "pss", full.uss)
            except psutil.AccessDenied:
                total += process.memory_info().rss
    return total


def sweep(data: Path, patience: float = 10) -> None:
    """Kill every server that works below ``data``, whoever its parent is."""
    deadline = time.monotonic() + patience
    while time.monotonic() < deadline:
        left = [process for process in psutil.process_iter(["name"]) if _works_below(process, data)]
        if not left:
            return
        for process in left:
            with suppress(psutil.Error):
                process.kill()
        psutil.wait_procs(left, timeout=1)


def _works_below(process: psutil.Process, data: Path) -> bool:
    """A server of ours, and not the shell of somebody who looks around there."""
    with suppress(psutil.Error):
        name = process.info["name"]
        ours = name in ("postgres", "java", FORK_NAME)
        ours = ours or (name.startswith("python") and "pghc.api" in process.cmdline())
        return ours and process.status() != psutil.STATUS_ZOMBIE and Path(process.cwd()).is_relative_to(data)
    return False


class Guard:
    """A process that waits for this one's end, then sweeps ``data``.

    While it waits it is a shell, which takes next to no memory. ``keep``: an open file that it holds until it is done.
    """

    # Its own group and deaf to these signals: what ends the supervisor's group does not end the guard
    WAIT = 'trap "" INT TERM HUP; read -r word || exec "$@"'

    def __init__(self, data: Path, keep: IO[str]) -> None:
        read, self._write = os.pipe()
        sweeper = [sys.executable, "-m", __name__, str(data)]
        self._popen = subprocess.Popen(
            ["/bin/sh", "-c", self.WAIT, "pghc-guard", *sweeper],
            cwd="/",
            stdin=read,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
            pass_fds=[keep.fileno()],
        )
        os.close(read)
        self.pid = self._popen.pid

    def dismiss(self) -> None:
        """Nothing is left to guard: end it."""
        with suppress(OSError):
            os.write(self._write, b"done\n")
        os.close(self._write)
        self._popen.wait(timeout=10)


def _die_with(parent: int) -> Callable[[], None]:
    """For a child, after its change of user, which would undo it: be killed when the parent's main thread ends."""

    def arrange() -> None:
        if _libc:
            _libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
            if os.getppid() != parent:  # it ended meanwhile
                os._exit(1)

    return arrange


def _appending(log: Path) -> IO[bytes]:
    file = open(os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600), "ab")  # noqa: SIM115 -- the caller closes it
    file.seek(0, os.SEEK_END)
    return file


if __name__ == "__main__":
    sweep(Path(sys.argv[1]))


def forget_shared_memory(data: Path) -> None:
    """Free the segment that Postgres marks its data directory with, when a killed server's directory is deleted.

    Its number stands in ``postmaster.pid``, which goes with an orderly end.
    """
    with suppress(OSError, ValueError, IndexError):
        number = int((data / "postmaster.pid").read_text().splitlines()[6].split()[1])
        (_libc or ctypes.CDLL(None)).shmctl(number, IPC_RMID, None)
