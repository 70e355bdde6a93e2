"""``python -m pghc.workload.beginner``: begins a chain while others write, as a fault.

Takes the views of all regions from its standard input, tries until it has begun one, and prints when that began and
ended, by the machine's monotonic clock in nanoseconds.
"""

from __future__ import annotations

import json
import pickle
import sys
import time

from pghc.errors import PghcError
from pghc.workload.chains import begin_chain

SECONDS = 80.0


def main() -> None:
    views = pickle.load(sys.stdin.buffer)  # noqa: S301  # from our own parent
    began, deadline = time.monotonic_ns(), time.monotonic() + SECONDS
    while True:
        try:
            begin_chain(views)
            break
        except PghcError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.5)  # a server is away
    sys.stdout.write(json.dumps([began, time.monotonic_ns()]) + "\n")


if __name__ == "__main__":
    main()
