"""What an engineer might take instead: the end of the chain in one key of etcd, moved by compare-and-swap.

``python -m benchmarks.etcd [--seconds 5]`` prints one JSON object; `benchmarks.ladder` runs it where etcd is installed
(Debian: ``apt-get install etcd-server``). Three members and a client beside each, on loopback, for a few seconds, not
durable and without passwords: there is nothing in them.

A member has one address for all others, so its link to each cannot have a delay of its own. Each member gets a delay of
its own instead, which whatever is sent to it takes: with three regions these can be chosen so that all round trips are
those of the topology.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import shutil
import socket
import statistics
import sys
import tempfile
import time
from base64 import b64decode, b64encode
from contextlib import suppress
from pathlib import Path
from typing import Any

import httpx

from pghc.chain import Row, successor
from pghc.cluster.local.processes import Command, Processes
from pghc.cluster.wan import Wan
from pghc.topology import Address, Region, Topology, load
from pghc.verify.checker import verify_chain

KEY = b64encode(b"chain").decode()
SEA = "sea"  # a place of its own from which all members are dialled


def member_delays(topology: Topology) -> dict[str, float]:
    """For each of three regions the delay of what is sent to it, so that each pair's two add up to its round trip."""
    trip = topology.round_trip_ms
    found = {}
    for name in topology.names:
        one, other = (each for each in topology.names if each != name)
        found[name] = (trip(name, one) + trip(name, other) - trip(one, other)) / 2
    return found


def as_seen_from_the_sea(topology: Topology) -> Topology:
    delays = dict(topology.delays_ms)
    for name, delay in member_delays(topology).items():
        delays[SEA, name] = delays[name, SEA] = delay
    return Topology((*topology.regions, Region(SEA, SEA, 0, 0, 0)), delays)


class Member:
    """One etcd server as its region's clients see it, by its JSON interface."""

    def __init__(self, url: str) -> None:
        self._http = httpx.AsyncClient(base_url=url, timeout=20)

    async def ask(self, path: str, **question: object) -> dict[str, Any]:
        answer = await self._http.post(f"/v3/{path}", json=question)
        answer.raise_for_status()
        found: dict[str, Any] = answer.json()
        return found

    async def read(self) -> tuple[Row | None, str]:
        """The chain's end and the revision that wrote it ("0": nothing yet); linearizable."""
        return end_in(await self.ask("kv/range", key=KEY))

    async def swap(self, row: Row, revision: str) -> tuple[bool, Row | None, str]:
        """Put ``row`` if the end is still of ``revision``; else what the end is now."""
        value = b64encode(json.dumps(row).encode()).decode()
        answer = await self.ask(
            "kv/txn",
            compare=[{"key": KEY, "target": "MOD", "result": "EQUAL", "mod_revision": revision}],
            success=[{"request_put": {"key": KEY, "value": value}}],
            failure=[{"request_range": {"key": KEY}}],
        )
        if answer.get("succeeded"):
            return True, row, answer["header"]["revision"]
        return False, *end_in(answer["responses"][0]["response_range"])


def end_in(answer: dict[str, Any]) -> tuple[Row | None, str]:
    if not answer.get("kvs"):
        return None, "0"
    found = answer["kvs"][0]
    return Row(*json.loads(b64decode(found["value"]))), found["mod_revision"]


async def begin(topology: Topology, directory: Path, processes: Processes, wan: Wan) -> dict[str, Member]:
    """Start a member in each region and let the central one lead."""
    clients, peers = ({name: free_port() for name in topology.names} for _ in range(2))
    dialled = {
        name: await wan.listen(SEA, topology.region(name).primary, "etcd", Address("127.0.0.1", port))
        for name, port in peers.items()
    }
    members = ",".join(f"{name}=http://{address.host}:{address.port}" for name, address in dialled.items())
    for name in topology.names:
        options = {
            "name": name,
            "data-dir": directory / name,
            "listen-peer-urls": f"http://127.0.0.1:{peers[name]}",
            "initial-advertise-peer-urls": f"http://127.0.0.1:{dialled[name].port}",
            "listen-client-urls": f"http://127.0.0.1:{clients[name]}",
            "advertise-client-urls": f"http://127.0.0.1:{clients[name]}",
            "initial-cluster": members,
            "heartbeat-interval": 250,
            "election-timeout": 2500,
            "logger": "zap",
            "unsafe-no-fsync": "true",  # as the lab's own servers run
        }
        argv = [str(shutil.which("etcd")), *(f"--{option}={value}" for option, value in options.items())]
        processes.start(Command(argv, directory, {"PATH": os.defpath}), directory / f"{name}.log")
    found = {name: Member(f"http://127.0.0.1:{port}") for name, port in clients.items()}
    deadline = time.monotonic() + 40
    while True:
        with suppress(httpx.HTTPError):
            states = {name: await member.ask("maintenance/status") for name, member in found.items()}
            ids = {name: state["header"]["member_id"] for name, state in states.items()}
            leader = next((name for name, each in ids.items() if each == states[name].get("leader")), None)
            if leader == topology.central:
                return found
            if leader:
                await found[leader].ask("maintenance/transfer-leadership", targetID=ids[topology.central])
        if time.monotonic() > deadline:
            logs = "\n".join((directory / f"{name}.log").read_text()[-800:] for name in topology.names)
            raise TimeoutError(f"etcd has no leader in {topology.central} after 40 s\n{logs}")
        await asyncio.sleep(0.2)


async def append(member: Member, region: str, end: float, chain: list[Row], took: list[float]) -> None:
    """Append until ``end``; who loses the swap learns the new end with the refusal, and tries again."""
    row, revision = await member.read()
    while (began := time.monotonic()) < end:
        done = False
        while not done:
            done, row, revision = await member.swap(mine := successor(row, f"{region}-primary"), revision)
        chain.append(mine)
        took.append(1000 * (time.monotonic() - began))


async def measure(seconds: float) -> dict[str, Any]:
    topology = load()
    with tempfile.TemporaryDirectory(prefix="pghc-etcd-") as directory:
        processes, wan = Processes(), Wan(as_seen_from_the_sea(topology))
        try:
            members = await begin(topology, Path(directory), processes, wan)
            chain: list[Row] = []
            took: dict[str, list[float]] = {name: [] for name in members}
            end = time.monotonic() + seconds
            await asyncio.gather(*(append(members[name], name, end, chain, took[name]) for name in members))
        finally:
            await processes.stop(processes.living)
            wan.close()
    every = sorted(value for values in took.values() for value in values)
    return {
        "valid": bool(chain) and verify_chain(sorted(chain)).valid is True,
        "rate": len(every) / seconds,
        "p50": statistics.median(every) if every else None,
        "p99": every[int(0.99 * len(every))] if every else None,
        "appends": {name: len(values) for name, values in took.items()},
    }


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=5.0)
    arguments = parser.parse_args()
    if not shutil.which("etcd"):
        print("etcd is not installed (Debian: apt-get install etcd-server)", file=sys.stderr)
        return 2
    print(json.dumps(asyncio.run(measure(arguments.seconds))))
    return 0


if __name__ == "__main__":
    sys.exit(main())
