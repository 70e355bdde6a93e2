"""Measurements on a running cluster: how far apart its regions are, and what a number from ZooKeeper takes."""

from __future__ import annotations

import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from uuid import uuid4

import psycopg

from pghc.errors import ClusterError
from pghc.store import complete
from pghc.topology import Pair, View
from pghc.zookeeper import connect


def round_trips(views: Mapping[str, View], times: int = 5) -> dict[Pair, float]:
    """The median time in milliseconds that a statement takes from a client in one region to the other's primary."""

    def trip(pair: Pair) -> float:
        source, target = pair
        view = views[source]
        arguments = complete(view.conninfo(view.primary(target)))
        took = []
        with psycopg.connect(**arguments, autocommit=True) as connection:
            for _ in range(times):
                start = time.perf_counter()
                connection.execute("select 1")
                took.append(1000 * (time.perf_counter() - start))
        return sorted(took)[times // 2]

    pairs = [(source, target) for source in views for target in views if source != target]
    try:
        with ThreadPoolExecutor(len(pairs)) as pool:
            return dict(zip(pairs, pool.map(trip, pairs), strict=True))
    except psycopg.Error as error:
        raise ClusterError(f"a region cannot reach another one's primary: {error}", "See `pghc status`") from error


def take_numbers(views: Mapping[str, View], each: int = 2) -> list[tuple[int, str, float]]:
    """Let clients of all regions take ``each`` numbers at once: (number, region, milliseconds), by number."""
    path = f"/demo-{uuid4()}"

    def take(name: str) -> list[tuple[int, str, float]]:
        client = connect(views[name])
        try:
            client.ensure_path(path)
            taken = []
            for _ in range(each):
                start = time.perf_counter()
                created = client.create(f"{path}/n-", sequence=True)
                taken.append((int(created[-10:]) + 1, name, 1000 * (time.perf_counter() - start)))
            return taken
        finally:
            client.end()

    with ThreadPoolExecutor(len(views)) as pool:
        return sorted(number for taken in pool.map(take, views) for number in taken)
