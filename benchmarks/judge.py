"""How long the checker takes, and how much memory, for a history of a million operations in three regions.

Writes the history (about a gigabyte with its finals) and judges it in a process of its own:
``python -m benchmarks.judge [--operations N] [--keep FILE]``. No servers are needed: what is measured is the judge.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import random
import resource
import sys
import tempfile
import time
from itertools import count
from pathlib import Path

from pghc.chain import Row, extend
from pghc.verify.checker import check
from pghc.verify.history import Read, Recorder, read

REGIONS = ("us-east", "eu-west", "ap-south")
CLIENTS = 30


def write(path: Path, operations: int, reads: float = 0.1, seed: int = 1) -> None:
    """A valid history of that many operations, a share of them reads of the ten newest, and three equal finals."""
    chance = random.Random(seed)  # noqa: S311 - a history to repeat, not a secret
    ticks = count(0, 1000)
    appends = operations - int(operations * reads)
    rows = list(extend(None, (f"{chance.choice(REGIONS)}-primary" for _ in range(appends))))
    with Recorder(path, clock=lambda: next(ticks)) as record:
        pending: list[tuple[str, str, Row]] = []
        for row in rows:
            region = row.node_id.removesuffix("-primary")
            process = f"{region}/{row.zk_id % CLIENTS}"
            request = f"{chance.getrandbits(128):032x}"
            record.invoke(process, region, "append", request, row.node_id)
            pending.append((process, request, row))
            if len(pending) == CLIENTS:
                top = row.zk_id
                chance.shuffle(pending)
                for process, request, row in pending:
                    region = process.split("/")[0]
                    record.ok(process, region, "append", request, row.node_id, row)
                pending.clear()
                for _ in range(round(CLIENTS * reads / (1 - reads))):
                    region = chance.choice(REGIONS)
                    process = f"{region}/{chance.randrange(CLIENTS)}"
                    record.invoke(process, region, "read", None, f"{region}-replica-1")
                    newest = tuple(rows[max(0, top - 10) : top])
                    record.ok(process, region, "read", None, f"{region}-replica-1", Read(0, top, newest))
        for process, request, row in pending:
            record.ok(process, process.split("/")[0], "append", request, row.node_id, row)
        for region in REGIONS:
            record.final(region, f"{region}-primary", rows)


def judge(path: Path) -> dict[str, object]:
    """Seconds, seconds of CPU, peak resident megabytes and verdict of one check."""
    start, work = time.perf_counter(), time.process_time()
    verdict = check(read(path))
    seconds, work = time.perf_counter() - start, time.process_time() - work
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1 << 20 if sys.platform == "darwin" else 1 << 10)
    return {
        "seconds": round(seconds, 1),
        "cpu_seconds": round(work, 1),
        "peak_mib": round(peak),
        "file_mib": path.stat().st_size >> 20,
        "verdict": str(verdict),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--operations", type=int, default=1_000_000)
    parser.add_argument("--keep", type=Path, help="leave the history in this file")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as directory:
        path = options.keep or Path(directory) / "history.jsonl"
        spawn = multiprocessing.get_context("spawn")  # the peak of a fresh process is the checker's alone
        writer = spawn.Process(target=write, args=(path, options.operations))
        writer.start()
        writer.join()
        with spawn.Pool(1) as pool:
            print(json.dumps({"operations": options.operations} | pool.apply(judge, (path,)), indent=2))


if __name__ == "__main__":
    main()
