"""Seeded surroundings: ``python -m benchmarks.surroundings --seconds 900 --seed 1``.

Each turn draws variables, a directory's name, a mask and limits, and lets a shell with them start a small cluster,
write to it and end it. Every command must end in time with success, or with exit code 2 and an error that says what to
do; nothing may be left. Prints each turn, and in the end how many; exit code 1 if one was neither.
"""

from __future__ import annotations

import argparse
import os
import random
import shlex
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil
from psycopg import pq

from pghc.cluster.local.embedded import Embedded
from pghc.cluster.surroundings import LIMITS

TOPOLOGY = """
[[regions]]
name = "r1"
latitude = 0
longitude = 0
replicas = 1

[[regions]]
name = "r2"
latitude = 0
longitude = 0
replicas = 0

[delays_ms]
"r1 r2" = 5
"""
VARIABLES = sorted(
    {each.envvar.decode() for each in pq.Conninfo.get_defaults() if each.envvar}
    | {"PGSERVICEFILE", "PGDATESTYLE", "PGTZ", "PGGEQO", "PGSYSCONFDIR", "PGDATA", "LC_ALL", "LANG", "TZ", "TMPDIR"}
    | {"JAVA_TOOL_OPTIONS", "JDK_JAVA_OPTIONS", "_JAVA_OPTIONS", "CLASSPATH", "PYTHONOPTIMIZE", "PYTHONWARNINGS"}
    | {"PYTHONHASHSEED", "PYTHONUTF8", "APT_CONFIG", "XDG_STATE_HOME", "LC_CTYPE"}
)
VALUES = ["require", "nowhere", "10.255.255.1", "1", "0", "-Xmx1m", "-c x=1", "read-write", "none", "/x", "", "C", "ü"]
LETTERS = "aZ09 .,;:!?'\"\\$%&=#@~^`*(){}[]<>|+-_éßñ日本🐘"


def draw(chance: random.Random) -> tuple[dict[str, str], str, list[str]]:
    """Variables, a directory's name, and words of the shell that come before."""
    names = chance.sample(VARIABLES, chance.randint(0, 12))
    variables = {name: chance.choice(["0", "1"] if name.startswith("PYTHON") else VALUES) for name in names}
    letters = chance.choices(LETTERS, k=chance.choice([1, 5, 20, 80]))
    shell = [f"umask {chance.choice(['000', '022', '077', '277', '777'])}"]
    if chance.random() < 0.5:
        limit = chance.choice(LIMITS)
        unit = {"-f": 1024, "-v": 1024, "-d": 1024, "-s": 1024}.get(limit.option, 1)  # of bash
        hard = chance.random() < 0.5
        most = int(limit.least * chance.choice([0.5, 1])) // unit
        shell.append(f"ulimit -{'' if hard else 'S'}{limit.option[1]} {most}")
    if chance.random() < 0.05:
        letters.insert(chance.randint(0, len(letters)), chance.choice("\n\t"))
    return variables, "".join(letters).replace("/", "") or "x", shell


def turn(seed: int) -> str:
    """What came of it; begins with "works", "refused" or "FAILED"."""
    variables, name, shell = draw(random.Random(seed))  # noqa: S311  # no secrets
    with tempfile.TemporaryDirectory(dir="/var/tmp") as temporary:
        place = Path(temporary)
        place.chmod(0o755)
        (place / "topology.toml").write_text(TOPOLOGY)
        told = f"{variables} --dir {name!r} {'; '.join(shell)}"
        outcome = "works"
        try:
            for words in (["up", "--topology", "topology.toml"], ["run", "--seconds", "1"], ["down", "--purge"]):
                command = shlex.join([sys.executable, "-m", "pghc", *words, "--dir", f"./{name}"])
                done = subprocess.run(
                    ["bash", "-c", "\n".join([*shell, f"exec {command}"])],
                    env=os.environ | variables, cwd=place, capture_output=True, timeout=150, check=False,
                )  # fmt: skip
                said = (done.stderr or b"").decode(errors="replace").strip()
                if done.returncode == 2 and words[0] == "up" and clear(said):
                    return f"refused: {said.partition('error: ')[2].splitlines()[0]}"
                if done.returncode:
                    return f"FAILED: {words[0]}: exit code {done.returncode}: {said} -- {told}"
            left = [each.pid for each in psutil.process_iter() if works_in(each, place)]
            if left or (place / name).exists():
                outcome = f"FAILED: left {left} {list(place.iterdir())} -- {told}"
        except subprocess.TimeoutExpired:
            outcome = f"FAILED: no end -- {told}"
        finally:
            for each in place.iterdir():
                if each.is_dir():
                    Embedded(each).down(purge=True)
        return outcome


def clear(said: str) -> bool:
    """An error that names the cause, and no trace of ours."""
    told = any(line.startswith("error: ") for line in said.splitlines())  # bash may have said something before
    return told and "defect" not in said and "Traceback" not in said


def works_in(process: psutil.Process, place: Path) -> bool:
    try:
        return Path(process.cwd()).is_relative_to(place)
    except psutil.Error:
        return False


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=900)
    parser.add_argument("--seed", type=int, default=1)
    given = parser.parse_args()
    end, seed, outcomes = time.monotonic() + given.seconds, given.seed, list[str]()
    while time.monotonic() < end:
        begin = time.monotonic()
        outcomes.append(turn(seed))
        print(f"seed {seed}, {time.monotonic() - begin:.0f} s: {outcomes[-1]}", flush=True)
        seed += 1
    count = {word: sum(each.startswith(word) for each in outcomes) for word in ("works", "refused", "FAILED")}
    print(f"{len(outcomes)} turns from seed {given.seed}: {count}")
    sys.exit(1 if count["FAILED"] else 0)


if __name__ == "__main__":
    main()
