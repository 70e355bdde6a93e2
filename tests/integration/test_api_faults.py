"""Clients of API nodes while servers, nodes and links are hurt: what they were told stands in the chain, once."""

from __future__ import annotations

import asyncio
import random
import threading
import time
from collections import Counter
from pathlib import Path
from uuid import uuid4

import httpx
import pytest

from pghc.chain import Row
from pghc.cluster.local.embedded import Embedded
from pghc.faults.injection import Faults
from pghc.faults.nemesis import Nemesis
from pghc.faults.schedule import BEGIN, schedule
from pghc.store import Store
from pghc.verify import history
from pghc.verify.checker import check
from pghc.verify.history import Read, Recorder
from pghc.workload import chains

CLIENTS = 64  # in each region
TRIES = 4


class Crowd:
    """The clients of all regions. For a nemesis they are a run whose client processes are the API nodes."""

    def __init__(self, cluster: Embedded, recorder: Recorder, seconds: float) -> None:
        self.counts: Counter[str] = Counter()
        self.surprises: list[str] = []
        self._cluster, self._recorder, self._seconds = cluster, recorder, seconds
        self._began = time.monotonic()
        names = cluster.topology.names
        # A client reaches its own region's node directly and the others' by the WAN
        self._urls = {
            name: {f"{each}-api": f"http://{cluster.view(name).addresses[f'{each}-api']}" for each in names}
            for name in names
        }

    @property
    def elapsed(self) -> float:
        return time.monotonic() - self._began

    def wait(self, seconds: float) -> bool:
        time.sleep(seconds)
        return False

    def kill(self, region: str, _step: str) -> None:
        """An API node is killed amid its requests, whose replies are lost, and started again."""
        Faults(self._cluster).restart(f"{region}-api")

    async def run(self) -> None:
        limits = httpx.Limits(max_connections=None, max_keepalive_connections=CLIENTS * 3)
        async with httpx.AsyncClient(timeout=15, limits=limits) as http:
            clients = [(region, number) for region in self._urls for number in range(CLIENTS)]
            async with asyncio.TaskGroup() as tasks:
                for region, number in clients:
                    tasks.create_task(self._client(http, region, f"{region}/{number}"))

    async def _client(self, http: httpx.AsyncClient, region: str, process: str) -> None:
        chance, seen = random.Random(process), 0
        while self.elapsed < self._seconds:
            seen = await self._append(http, region, process, seen)
            if chance.random() < 0.3:
                seen = await self._read(http, region, process, seen)

    async def _append(self, http: httpx.AsyncClient, region: str, process: str, seen: int) -> int:
        """One append, tried under the same key, at another region's node the second time, until its fate is known."""
        key, nodes = str(uuid4()), list(self._urls[region].items())
        nodes.sort(key=lambda each: each[0] != f"{region}-api")
        for attempt in range(TRIES):
            node, url = nodes[attempt % len(nodes)]
            about = (process, region, "append", key, node)
            self._recorder.invoke(*about)
            try:
                answer = await http.post(f"{url}/chain", headers={"Idempotency-Key": key})
            except httpx.TransportError as error:
                self._recorder.info(*about, repr(error))
                self.counts["no answer"] += 1
                await asyncio.sleep(0.2)
                continue
            self.counts[str(answer.status_code)] += 1
            if answer.status_code == 200:
                row = Row(**answer.json())
                self._recorder.ok(*about, row)
                if answer.headers["PGHC-Position"] != str(row.zk_id):
                    self.surprises.append(answer.headers["PGHC-Position"])
                return max(seen, row.zk_id)
            problem = answer.json()
            if (answer.status_code, problem["outcome"]) not in ((503, "definite"), (504, "indefinite")):
                self.surprises.append(answer.text)
            if problem["outcome"] == "definite" and attempt == 0:
                self._recorder.fail(*about, problem["detail"])
                await asyncio.sleep(0.2)
                return seen
            self._recorder.info(*about, problem["detail"])
            await asyncio.sleep(0.2)
        return seen

    async def _read(self, http: httpx.AsyncClient, region: str, process: str, seen: int) -> int:
        node = f"{region}-api"
        about = (process, region, "read", None, node)
        self._recorder.invoke(*about)
        try:
            url = f"{self._urls[region][node]}/chain/recent"
            answer = await http.get(url, headers={"PGHC-Position": str(seen)})
        except httpx.TransportError as error:
            self._recorder.fail(*about, repr(error))
            return seen
        self.counts[f"read {answer.status_code}"] += 1
        if answer.status_code != 200:
            if answer.status_code != 503:
                self.surprises.append(answer.text)
            self._recorder.fail(*about, answer.json()["detail"])
            return seen
        mark = int(answer.headers["PGHC-Position"])
        rows = tuple(Row(**row) for row in reversed(answer.json()))
        self._recorder.ok(*about, Read(seen, mark, rows))
        return max(seen, mark)


def clients_under_faults(cluster: Embedded, path: Path, seconds: float, seed: int) -> None:
    """Run the crowd under the faults of the seed, and judge."""
    views = {name: cluster.view(name) for name in cluster.topology.names}
    chains.begin_chain(list(views.values()))
    with Recorder(path) as recorder:
        crowd = Crowd(cluster, recorder, seconds)
        others = ("lose-replies", "pause-clients", BEGIN)
        events = schedule(seed, cluster.topology, seconds, steps=("answered",), leave_out=others)
        nemesis = Nemesis(Faults(cluster), events, say=print)
        thread = threading.Thread(target=nemesis, args=(crowd,))
        thread.start()
        asyncio.run(crowd.run())
        thread.join()
        cluster.heal_links()
        cluster.up()
        chains.settle(list(views.values()))
        found = {}
        for name, view in views.items():
            with Store(view, timeout=60) as store:
                found[name] = list(store.chain())
                recorder.final(name, store.node, found[name])
    print(dict(crowd.counts), f"{len(found['us-east'])} entries", *nemesis.troubles, sep="\n")
    verdict = check(history.read(path))
    assert verdict.valid, str(verdict)
    assert not crowd.surprises
    acknowledged = Counter(
        event.value for event in history.read(path) if event.type == "ok" and event.op == "append"
    )
    assert crowd.counts["200"] == sum(acknowledged.values()) > CLIENTS
    for chain in found.values():
        entries = Counter(chain)
        assert all(entries[row] == 1 for row in acknowledged)
    assert events


@pytest.mark.timeout(240)
def test_64_clients_in_each_region_are_told_the_truth_for_ten_seconds_of_faults(
    cluster: Embedded, tmp_path: Path
) -> None:
    clients_under_faults(cluster, tmp_path / "history.jsonl", seconds=10, seed=4)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_64_clients_in_each_region_are_told_the_truth_for_a_minute_of_faults(
    cluster: Embedded, tmp_path: Path
) -> None:
    clients_under_faults(cluster, tmp_path / "history.jsonl", seconds=60, seed=5)
