"""Where the servers stand, how far apart, and which address a client of a region dials. Pure.

A `Topology` is read from a TOML file (``topology.toml`` beside this module is the default and the example). A `View` is
what one region sees: its own servers directly, those of other regions through the WAN.
"""

from __future__ import annotations

import math
import re
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from importlib.resources import files
from itertools import permutations
from typing import Any, Literal

from pghc.errors import BadInput

Role = Literal["primary", "replica", "zookeeper", "api"]
Pair = tuple[str, str]

MIN_REGIONS, MAX_REGIONS, MAX_REPLICAS = 2, 5, 5
#: Short enough that "<region>-zookeeper" and "<region>-replica-1" are node_ids (31 characters).
REGION_NAME = re.compile(r"[a-z][a-z0-9-]{0,19}")


@dataclass(frozen=True)
class Node:
    """One server: its name is unique in the cluster, and a primary's name is the node_id of the rows it accepts."""

    name: str
    region: str
    role: Role


@dataclass(frozen=True)
class Region:
    """A region: one primary, ``replicas`` streaming replicas, one ZooKeeper server, one API node, in one city."""

    name: str
    city: str
    latitude: float
    longitude: float
    replicas: int = 2

    @property
    def primary(self) -> str:
        return f"{self.name}-primary"

    @property
    def replica_names(self) -> tuple[str, ...]:
        return tuple(f"{self.name}-replica-{n}" for n in range(1, self.replicas + 1))

    @property
    def databases(self) -> tuple[str, ...]:
        """Its Postgres servers, the first of which is its first primary."""
        return self.primary, *self.replica_names

    @property
    def zookeeper(self) -> str:
        return f"{self.name}-zookeeper"

    @property
    def api(self) -> str:
        return f"{self.name}-api"

    @property
    def nodes(self) -> tuple[Node, ...]:
        return (
            Node(self.primary, self.name, "primary"),
            *(Node(name, self.name, "replica") for name in self.replica_names),
            Node(self.zookeeper, self.name, "zookeeper"),
            Node(self.api, self.name, "api"),
        )


@dataclass(frozen=True)
class Topology:
    """Regions and the one-way delay in milliseconds of each directed pair of them."""

    regions: tuple[Region, ...]
    delays_ms: Mapping[Pair, float]

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(region.name for region in self.regions)

    @property
    def nodes(self) -> tuple[Node, ...]:
        return tuple(node for region in self.regions for node in region.nodes)

    @property
    def pairs(self) -> Iterator[Pair]:
        """Every directed pair of distinct regions."""
        return permutations(self.names, 2)

    def region(self, name: str) -> Region:
        """The region of that name. Raises `BadInput` that lists the known ones."""
        for region in self.regions:
            if region.name == name:
                return region
        raise BadInput(f"there is no region {name!r}", f"The regions are {', '.join(self.names)}.")

    def node(self, name: str) -> Node:
        """The node of that name. Raises `BadInput` that lists the known ones."""
        for node in self.nodes:
            if node.name == name:
                return node
        raise BadInput(f"there is no node {name!r}", f"The nodes are {', '.join(n.name for n in self.nodes)}.")

    def delay_ms(self, source: str, target: str) -> float:
        """One-way delay from ``source`` to ``target``; 0 within a region."""
        return 0.0 if source == target else self.delays_ms[source, target]

    def round_trip_ms(self, one: str, other: str) -> float:
        return self.delay_ms(one, other) + self.delay_ms(other, one)

    @property
    def central(self) -> str:
        """The region whose farthest quorum is nearest: the best place for a ZooKeeper leader."""
        followers = len(self.regions) // 2

        def quorum_round_trip(name: str) -> tuple[float, float]:
            trips = sorted(self.round_trip_ms(name, other) for other in self.names if other != name)
            return trips[followers - 1], sum(trips)

        return min(self.names, key=quorum_round_trip)

    def to_dict(self) -> dict[str, Any]:
        """The same topology as `parse` reads it, for JSON and TOML files."""
        return {
            "regions": [vars(region) for region in self.regions],
            "delays_ms": {f"{a} -> {b}": delay for (a, b), delay in self.delays_ms.items()},
        }


def load(path: str | None = None) -> Topology:
    """The topology in the TOML file ``path``; without one, the lab's own. Raises `BadInput`."""
    if path is None:
        return parse(tomllib.loads(files("pghc").joinpath("topology.toml").read_text()), "topology.toml")
    try:
        with open(path, "rb") as file:
            data = tomllib.load(file)
    except OSError as error:
        raise BadInput(f"the topology {path} cannot be read: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise BadInput(f"the topology {path} is not valid TOML: {error}") from error
    return parse(data, path)


def parse(data: Mapping[str, Any], source: str = "topology") -> Topology:
    """A checked `Topology` from a file's tables. Raises `BadInput` that names ``source`` and the faulty entry."""

    def bad(what: str) -> BadInput:
        return BadInput(f"{source}: {what}", "See pghc/topology.toml for an example.")

    if unknown := set(data) - {"regions", "delays_ms"}:
        raise bad(f"unknown entry {', '.join(sorted(unknown))}")
    tables = data.get("regions")
    if not isinstance(tables, list) or not all(isinstance(table, dict) for table in tables):
        raise bad("regions must be a list of tables, [[regions]]")
    regions = tuple(_region(table, bad) for table in tables)
    if not MIN_REGIONS <= len(regions) <= MAX_REGIONS:
        raise bad(f"{len(regions)} region(s) listed, from {MIN_REGIONS} to {MAX_REGIONS} are possible")
    names = [region.name for region in regions]
    if twice := {name for name in names if names.count(name) > 1}:
        raise bad(f"region {', '.join(sorted(twice))} is listed twice")
    delays = data.get("delays_ms", {})
    if not isinstance(delays, dict):
        raise bad("delays_ms must be a table of \"a b\" = milliseconds")
    return Topology(regions, _delays(delays, names, bad))


def _region(table: Mapping[str, Any], bad: Any) -> Region:
    name = table.get("name")
    if not isinstance(name, str) or not REGION_NAME.fullmatch(name):
        raise bad(f"region name {name!r} must match {REGION_NAME.pattern}")
    if unknown := set(table) - {"name", "city", "latitude", "longitude", "replicas"}:
        raise bad(f"region {name}: unknown entry {', '.join(sorted(unknown))}")
    for key, limit in (("latitude", 90), ("longitude", 180)):
        if not _is_number(table.get(key)) or abs(table[key]) > limit:
            raise bad(f"region {name}: {key} must be a number from -{limit} to {limit}, not {table.get(key)!r}")
    city, replicas = table.get("city", name), table.get("replicas", 2)
    if not isinstance(city, str):
        raise bad(f"region {name}: city must be a text, not {city!r}")
    if not isinstance(replicas, int) or isinstance(replicas, bool) or not 0 <= replicas <= MAX_REPLICAS:
        raise bad(f"region {name}: replicas must be a whole number from 0 to {MAX_REPLICAS}, not {replicas!r}")
    return Region(name, city, float(table["latitude"]), float(table["longitude"]), replicas)


def _delays(table: Mapping[str, Any], names: list[str], bad: Any) -> dict[Pair, float]:
    both_ways: dict[Pair, float] = {}
    one_way: dict[Pair, float] = {}
    for key, delay in table.items():
        arrow = "->" in key
        ends = key.replace("->", " ").split()
        if len(ends) != 2 or ends[0] == ends[1] or not set(ends) <= set(names):
            raise bad(f'delay "{key}" must name two different listed regions, as "a b" or "a -> b"')
        if not _is_number(delay) or not 0 <= delay <= 10_000:
            raise bad(f'delay "{key}" must be a number of milliseconds from 0 to 10000, not {delay!r}')
        for pair in [(ends[0], ends[1])] if arrow else [(ends[0], ends[1]), (ends[1], ends[0])]:
            target = one_way if arrow else both_ways
            if pair in target:
                raise bad(f"the delay from {pair[0]} to {pair[1]} is given twice")
            target[pair] = float(delay)
    delays = both_ways | one_way
    for a, b in permutations(names, 2):
        if (a, b) not in delays:
            raise bad(f"the delay from {a} to {b} is missing")
    return delays


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


# What a client dials


@dataclass(frozen=True)
class Address:
    host: str
    port: int

    def __str__(self) -> str:
        return f"{self.host}:{self.port}"


@dataclass(frozen=True)
class Credentials:
    """Generated passwords. ``user`` is the application's Postgres role, ``admin`` a superuser for the lessons."""

    database: str = "pghc"
    user: str = "pghc"
    password: str = field(default="", repr=False)
    admin: str = "pghc_admin"
    admin_password: str = field(default="", repr=False)
    zookeeper_user: str = "pghc"
    zookeeper_password: str = field(default="", repr=False)


#: How everybody connects, clients and servers. Connections stay on loopback or among pods, and no password is shown.
LIBPQ = {"sslmode": "disable", "gssencmode": "disable", "require_auth": "scram-sha-256"}


@dataclass(frozen=True)
class View:
    """What the clients of one region see of the cluster.

    ``addresses``: node name to the address to dial from here: direct for this region's nodes, by the WAN for others'.
    ``primaries``: region to the node that was its primary when this view was made, where it is not the first one.
    """

    region: str
    topology: Topology
    addresses: Mapping[str, Address]
    credentials: Credentials
    primaries: Mapping[str, str] = field(default_factory=dict)

    def primary(self, region: str | None = None) -> str:
        """The primary of a region (default: this one) as far as this view knows: another may have followed it."""
        name = region or self.region
        return self.primaries.get(name) or self.topology.region(name).primary

    @property
    def zookeeper_hosts(self) -> str:
        """ZooKeeper connection string, this region's server first, the others by distance."""
        order = sorted(self.topology.names, key=lambda name: self.topology.round_trip_ms(self.region, name))
        return ",".join(str(self.addresses[self.topology.region(name).zookeeper]) for name in order)

    def conninfo(self, node: str, *, admin: bool = False) -> dict[str, str | int]:
        """Connection options for a Postgres node, as the application's role or the superuser.

        Of the options that it does not name libpq takes some from the environment: see `pghc.store.complete`.
        """
        address, who = self.addresses[node], self.credentials
        return {
            "host": address.host,
            "port": address.port,
            "dbname": who.database,
            "user": who.admin if admin else who.user,
            "password": who.admin_password if admin else who.password,
            "connect_timeout": 5,
            **LIBPQ,
        }

    def to_dict(self) -> dict[str, Any]:
        """The same as `from_dict` reads it, passwords included: for a file of mode 0600, or a pipe."""
        return {
            "region": self.region,
            "topology": self.topology.to_dict(),
            "addresses": {name: [at.host, at.port] for name, at in self.addresses.items()},
            "credentials": vars(self.credentials),
            "primaries": dict(self.primaries),
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> View:
        addresses = {name: Address(host, port) for name, (host, port) in data["addresses"].items()}
        credentials = Credentials(**data["credentials"])
        return cls(data["region"], parse(data["topology"]), addresses, credentials, data.get("primaries", {}))
