"""The size of the log in ZooKeeper while `broadcast` runs: rotation and truncation keep it bounded.

``python -m benchmarks.loglife [--seconds 60] [--figure FILE]``
"""

from __future__ import annotations

import argparse
import asyncio
import tempfile
import time
from pathlib import Path

from pghc.cluster.local.embedded import Embedded
from pghc.cluster.probes import ask_zookeeper
from pghc.lab.plots import Plot
from pghc.workload import runs
from pghc.workload.processes import ClientProcesses


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--writer", default="broadcast")
    parser.add_argument("--in-flight", type=int, default=4000)
    parser.add_argument("--figure", type=Path, help="draw the curve there")
    arguments = parser.parse_args()
    samples: list[tuple[float, int, float]] = []
    with tempfile.TemporaryDirectory(prefix="pghc-bench-") as directory:
        backend = Embedded(directory, owner=True)
        try:
            backend.up()
            region = backend.topology.regions[0]
            address = backend.view(region.name).addresses[region.zookeeper]

            def sample(clients: ClientProcesses) -> None:
                while clients.elapsed < arguments.seconds:
                    answer = asyncio.run(asyncio.wait_for(ask_zookeeper(address, "mntr"), 5))
                    values = dict(line.split("\t") for line in answer.splitlines() if "\t" in line)
                    nodes, size = int(values["zk_znode_count"]), int(values["zk_approximate_data_size"]) / 2**20
                    samples.append((clients.elapsed, nodes, size))
                    print(f"{clients.elapsed:6.1f} s  {nodes:7,} nodes  {size:6.1f} MB", flush=True)
                    time.sleep(max(arguments.seconds / 60, 0.5))

            run = runs.run(
                backend,
                arguments.writer,
                clients=8,
                seconds=arguments.seconds,
                in_flight=arguments.in_flight if arguments.writer == "broadcast" else 0,
                keep_history=False,
                during=sample,
            )
        finally:
            backend.down(purge=True)
    half = len(samples) // 2
    early, late = max(size for _, _, size in samples[:half]), max(size for _, _, size in samples[half:])
    print(f"{run.appends:,} appends; at most {early:.1f} MB in the first half, {late:.1f} MB in the second")
    if arguments.figure:
        plot = Plot(8, 3.5)
        axes = plot.subplots()
        axes.plot([at for at, _, _ in samples], [size for _, _, size in samples])
        axes.set_xlabel("seconds")
        axes.set_ylabel("MB in ZooKeeper")
        title = f"{run.appends:,} appends later the log is no larger"
        plot.state(title, f"{title}: {early:.1f} MB at most in the first half, {late:.1f} MB in the second")
        plot.savefig(arguments.figure)


if __name__ == "__main__":
    main()
