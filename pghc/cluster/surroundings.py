"""What may come from a user's surroundings: these environment variables, and nothing else.

Shells of database people are full of variables that libpq, Java and Python read; limits and masks are as somebody left
them. No server, client or script of ours takes a setting from there unless it is listed here, and so documented.
"""

from __future__ import annotations

import os
import resource
import sys
import unicodedata
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from pghc.errors import BadInput, ClusterError

#: For a program that we start: where programs, files of this user and temporary ones are, and how the names of files
#: are encoded here.
KEPT = ("PATH", "HOME", "TMPDIR", "LANG", "LC_ALL", "LC_CTYPE")
#: For what reaches the network besides: the way there.
NETWORK = tuple(
    name for each in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY") for name in (each, each.lower())
)
#: For another Python: what this one needed to be started and to find our packages; and the settings of API nodes.
PYTHON = ("LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH")
OURS = "PGHC_API_"

#: These of libpq's variables no connection option overrides, so they have to go.
NOT_OVERRIDDEN = ("PGSERVICE", "PGDATESTYLE", "PGTZ", "PGGEQO")

#: Longest name of a cluster's directory in bytes; Postgres takes paths of 1023.
LONGEST = 800


def environment(*more: str) -> dict[str, str]:
    """The environment of a program that we start; ``more``: names that it may see besides."""
    return {name: os.environ[name] for name in (*KEPT, *more) if name in os.environ}


def python_environment() -> dict[str, str]:
    """The environment of another Python that runs our modules: it finds what this one found, and is set as it is.

    The directory that somebody happens to work in is no place to look for modules: it may have a ``random.py``.
    """
    package = str(Path(__file__).parents[2])
    path = [package, *filter(os.path.isabs, os.environ.get("PYTHONPATH", "").split(os.pathsep))]
    ours = {name: value for name, value in os.environ.items() if name.startswith(OURS)}
    return {
        **environment(*PYTHON),
        **ours,
        "PYTHONPATH": os.pathsep.join(path),
        "PYTHONSAFEPATH": "1",
        "PYTHONUTF8": str(sys.flags.utf8_mode),  # or it would read names of files otherwise than we do
    }


def prepare() -> None:
    """Free this process of what its surroundings would do to our connections, files and children. Idempotent."""
    for name in NOT_OVERRIDDEN:
        os.environ.pop(name, None)
    os.umask(os.umask(0o077) & 0o077)  # who may not read back what it wrote cannot work at all
    raise_limits()


# Limits


@dataclass(frozen=True)
class Limit:
    """``least``: what a cluster needs; ``wanted``: what is asked for where the hard limit allows it. None: no limit."""

    which: int
    option: str
    what: str
    least: int
    wanted: int | None = None


#: Enough for a cluster, as `benchmarks/surroundings.py` tries again: a Java reserves more address space than it uses.
LIMITS = (
    Limit(resource.RLIMIT_NOFILE, "-n", "open files", 512, 1 << 16),
    Limit(resource.RLIMIT_NPROC, "-u", "processes", 512, 1 << 15),
    Limit(resource.RLIMIT_FSIZE, "-f", "bytes of a file", 1 << 28),
    Limit(resource.RLIMIT_AS, "-v", "bytes of address space", 4 << 30),
    Limit(resource.RLIMIT_DATA, "-d", "bytes of data", 2 << 30),
    Limit(resource.RLIMIT_STACK, "-s", "bytes of stack", 1 << 20, 8 << 20),
    Limit(resource.RLIMIT_CPU, "-t", "seconds of processor time", 3600),
)


TOO_MANY = "The user of the servers has as many processes as `ulimit -u` allows, all his clusters' together: raise it."


def raise_limits() -> None:
    """Raise this process's soft limits, which its children inherit, as far as its hard ones allow."""
    for limit in LIMITS:
        soft, hard = map(_number, resource.getrlimit(limit.which))
        wanted = _number(limit.wanted)
        for most in (max(wanted, hard), hard):  # who may raise the hard one, does
            with suppress(ValueError, OSError):
                if soft < wanted:
                    resource.setrlimit(limit.which, (_limit(min(wanted, most)), _limit(most)))
                break


def check_limits() -> None:
    """Raises `ClusterError` that names the limit under which no cluster can run, and how to raise it."""
    for limit in LIMITS:
        soft, _ = resource.getrlimit(limit.which)
        if _number(soft) < limit.least:
            raise ClusterError(
                f"this shell allows a process {soft} {limit.what} (`ulimit {limit.option}`), "
                f"a cluster needs {limit.least}",
                f"Start a new shell without that limit; `ulimit -H {limit.option}` shows what it may be raised to. "
                "Who sets it: /etc/security/limits.conf, or the service that started the shell.",
            )


def _number(limit: int | None) -> float:
    return float("inf") if limit is None or limit == resource.RLIM_INFINITY else limit


def _limit(number: float) -> int:
    return resource.RLIM_INFINITY if number == float("inf") else int(number)


# Directories


def place(directory: str | Path) -> Path:
    """A cluster's directory as given by a user: absolute, ``~`` expanded. Raises `BadInput` for one that cannot be."""
    given = os.fspath(directory)
    try:
        path = Path(given).expanduser().absolute()
        given.encode()
    except (RuntimeError, FileNotFoundError) as error:  # nobody's home; no working directory
        why = "its home is not known" if isinstance(error, RuntimeError) else "the working directory was deleted"
        raise BadInput(f"the directory {given!r} cannot be found: {why}", "Name it by its whole path.") from error
    except UnicodeEncodeError as error:
        raise BadInput(f"the directory {given!r} is not written in UTF-8", "Choose another --dir.") from error
    if not given or any(unicodedata.category(letter) == "Cc" for letter in given):
        raise BadInput(
            f"a cluster's directory cannot be {given!r}: "
            + ("it holds a line's end or another control character" if given else "it has no name"),
            "Choose another --dir.",
        )
    if len(os.fsencode(path)) > LONGEST or any(len(os.fsencode(step)) > 255 for step in path.parts):
        raise BadInput(f"the directory {str(path)!r} has too long a name: {LONGEST} bytes are possible, 255 a step")
    return path
