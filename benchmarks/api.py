"""What HTTP costs: appends by API nodes against the writer called directly, and how many a second `broadcast` answers.

``python benchmarks/api.py [--seconds S] [--dir DIR]``. Without ``--dir`` a cluster of its own, deleted afterwards.

The oceans bound a client that waits for each answer: with n of them and a latency of l seconds there are at most n / l
appends a second, whatever the machine does. So the rate is measured thrice: 256 clients on an Earth without distances,
which shows the machine's limit; 256 in each region, and 256 in all, with the delays of the topology.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import multiprocessing
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from http.client import HTTPConnection
from pathlib import Path
from uuid import uuid4

from pghc.cluster.local.embedded import Embedded
from pghc.store import Reader
from pghc.workload import chains
from pghc.workload.lease import Lease
from pghc.writers import open_writer

CLIENTS = 256
REQUEST = b"POST /chain HTTP/1.1\r\nHost: localhost\r\nContent-Length: 0\r\n\r\n"

Address = tuple[str, int]


@contextmanager
def nodes(cluster: Embedded, writer: str) -> Iterator[dict[str, Address]]:
    """One API node a region with this writer, beside the cluster's own; region to address."""
    with tempfile.TemporaryDirectory() as directory, ExitStack() as stack:
        started = {}
        for name in cluster.topology.names:
            orders = Path(directory) / f"{name}.json"
            orders.touch(mode=0o600)
            orders.write_text(json.dumps({"view": cluster.view(name).to_dict(), "host": "127.0.0.1", "port": 0}))
            log = Path(directory) / f"{name}.log"
            with log.open("w") as file:
                environment = os.environ | {"PGHC_API_WRITER": writer}
                process = subprocess.Popen([sys.executable, "-m", "pghc.api", orders], stderr=file, env=environment)
            stack.callback(process.wait, timeout=30)
            stack.callback(process.terminate)
            started[name] = log
        yield {name: _listening(log) for name, log in started.items()}


def _listening(log: Path) -> Address:
    end = time.monotonic() + 60
    while time.monotonic() < end:
        for line in log.read_text().splitlines():
            said = json.loads(line)
            if said["event"] == "listening":
                return said["host"], said["port"]
        time.sleep(0.05)
    raise RuntimeError(f"an API node did not start:\n{log.read_text()}")


def begin(cluster: Embedded) -> None:
    """Begin an empty chain. Raises `InUse` while somebody else uses the one that there is."""
    views = [cluster.view(name) for name in cluster.topology.names]
    with Lease(views[0], "the bench of the API", fresh=True):
        chains.begin_chain(views)


# Overhead


def overhead(cluster: Embedded, writer: str, region: str, seconds: float) -> tuple[float, float, int]:
    """Median milliseconds of an append by the writer itself and through a node, in turn, and how many of each."""
    direct: list[float] = []
    through: list[float] = []
    with nodes(cluster, writer) as addresses, open_writer(writer, cluster.view(region)) as own:
        connection = HTTPConnection(*addresses[region], timeout=30)

        def ask() -> None:
            connection.request("POST", "/chain")
            answer = connection.getresponse()
            body = answer.read()
            assert answer.status == 200, body

        for _ in range(3):  # connections are made
            own.append(str(uuid4()))
            ask()
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            began = time.perf_counter()
            own.append(str(uuid4()))
            between = time.perf_counter()
            ask()
            direct.append(1000 * (between - began))
            through.append(1000 * (time.perf_counter() - between))
        connection.close()
    return statistics.median(direct), statistics.median(through), len(direct)


# Rate


class Client(asyncio.Protocol):
    """One keep-alive client: sends its next request when it has the answer to the last."""

    def __init__(self, tally: Tally) -> None:
        self.tally, self.buffer = tally, b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport
        self.ask()

    def ask(self) -> None:
        self.asked = time.perf_counter()
        self.transport.write(REQUEST)

    def data_received(self, data: bytes) -> None:
        self.buffer += data
        head, end, body = self.buffer.partition(b"\r\n\r\n")
        if not end or len(body) < int(head.partition(b"content-length: ")[2].split(b"\r\n", 1)[0]):
            return
        if head.startswith(b"HTTP/1.1 200 "):
            self.tally.ok += 1
            if self.tally.counting:
                self.tally.milliseconds.append(1000 * (time.perf_counter() - self.asked))
        else:
            self.tally.errors += 1
        self.buffer = b""
        if self.tally.stop:
            self.transport.close()
        else:
            self.ask()

    def connection_lost(self, error: Exception | None) -> None:
        self.tally.errors += not self.tally.stop


class Tally:
    ok = errors = 0
    counting = stop = False

    def __init__(self) -> None:
        self.milliseconds: list[float] = []


async def _load(addresses: list[Address], clients: int, seconds: float) -> tuple[float, list[float], int, int]:
    loop, tally = asyncio.get_running_loop(), Tally()
    for number in range(clients):
        await loop.create_connection(lambda: Client(tally), *addresses[number % len(addresses)])
    await asyncio.sleep(2)
    before, began, tally.counting = tally.ok, time.perf_counter(), True
    await asyncio.sleep(seconds)
    rate = (tally.ok - before) / (time.perf_counter() - began)
    tally.counting, tally.stop = False, True
    await asyncio.sleep(1)
    return rate, tally.milliseconds, tally.ok, tally.errors


def _load_process(addresses: list[Address], clients: int, seconds: float, out: multiprocessing.Queue) -> None:
    out.put(asyncio.run(_load(addresses, clients, seconds)))


def rate(cluster: Embedded, clients: int, seconds: float) -> tuple[float, float, float]:
    """Answered appends a second by `broadcast` behind nodes in all regions, and median and p99 of their milliseconds.

    Raises `AssertionError` unless every answer is an entry and every region has all of them.
    """
    views = [cluster.view(name) for name in cluster.topology.names]
    begin(cluster)
    with nodes(cluster, "broadcast") as addresses:
        out: multiprocessing.Queue = multiprocessing.Queue()
        process = multiprocessing.Process(target=_load_process, args=([*addresses.values()], clients, seconds, out))
        process.start()
        rate, milliseconds, ok, errors = out.get(timeout=seconds + 60)
        process.join()
        chains.settle(views)
        assert not errors, f"{errors} requests failed"
        for view in views:
            with Reader(view, view.topology.region(view.region).primary) as reader:
                assert reader.cursor().zk_id >= ok
    milliseconds.sort()
    return rate, statistics.median(milliseconds), milliseconds[int(0.99 * len(milliseconds))]


def measure(cluster: Embedded, seconds: float) -> None:
    """Print all measurements."""
    print(f"{'append, one at a time':44}{'direct ms':>10}{'API ms':>10}{'more ms':>10}{'pairs':>8}")
    for writer, region in (("causal", cluster.topology.central), ("broadcast", cluster.topology.central)):
        begin(cluster)
        direct, through, pairs = overhead(cluster, writer, region, seconds)
        print(f"{f'  {writer} in {region}':44}{direct:10.1f}{through:10.1f}{through - direct:10.1f}{pairs:8}")
    regions = len(cluster.topology.names)
    print(f"\n{'broadcast behind the API, keep-alive clients':44}{'appends/s':>10}{'p50 ms':>10}{'p99 ms':>10}")
    for what, clients, distances in (
        (f"  {CLIENTS} in all, no distances", CLIENTS, False),
        (f"  {CLIENTS} in each region, with oceans", CLIENTS * regions, True),
        (f"  {CLIENTS} in all, with oceans", CLIENTS, True),
    ):
        try:
            if not distances:
                for source, target in cluster.topology.pairs:
                    cluster.set_link(source, target, delay_ms=0)
            found, median, high = rate(cluster, clients, seconds)
        finally:
            cluster.heal_links()
        print(f"{what:44}{found:10,.0f}{median:10.1f}{high:10.1f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=8, help="of each measurement")
    parser.add_argument("--dir", help="of a running cluster to use")
    given = parser.parse_args()
    if given.dir:
        measure(Embedded(given.dir), given.seconds)
        return
    with tempfile.TemporaryDirectory() as directory:
        cluster = Embedded(Path(directory) / "cluster", owner=True)
        try:
            cluster.up()
            measure(cluster, given.seconds)
        finally:
            with suppress(KeyboardInterrupt):
                cluster.down(purge=True)


if __name__ == "__main__":
    main()
