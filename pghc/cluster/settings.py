"""What Postgres and ZooKeeper are told: their settings, roles, slots and subscriptions. Pure text, for every backend.

Names: a subscription is called after the region it reads ("from_eu_west"), its slot on the publisher after the region
that reads ("to_us_east"; in later terms with their epochs), a replica's slot after the replica ("us_east_replica_1").

A Postgres server dials others by libpq's *service* names: that of a region's first primary leads to its primary of now.
A file that is rewritten says where each is, so that no subscription and no replica has to be changed with it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pghc.topology import LIBPQ, Address, Node, Role, Topology

ADMIN = "pghc_admin"
APPLICATION = "pghc"
REPLICATOR = "replicator"
DATABASE = "pghc"
PUBLICATION = "pghc"

#: The services of a server and their usual ports; the first is the one that clients dial.
SERVICES: dict[Role, dict[str, int]] = {
    "primary": {"postgres": 5432},
    "replica": {"postgres": 5432},
    "zookeeper": {"client": 2181, "peer": 2888, "election": 3888},
    "api": {"http": 8080},
}


def first_service(role: Role) -> str:
    """The name of the service that clients dial."""
    return next(iter(SERVICES[role]))


def identifier(name: str) -> str:
    """A node's or region's name as Postgres wants the names of slots: no hyphens. Ours have no underscores."""
    return name.replace("-", "_")


# Postgres

#: Megabytes of write-ahead log that a reader may be behind; a link that is cut under full load costs 15 MB a second.
SLOT_MB = 512

#: What every server gets. A region has some dozen connections, a few writing; all nine share one machine's memory.
POSTGRES: dict[str, str | int] = {
    "unix_socket_directories": "",
    "dynamic_shared_memory_type": "mmap",  # in its own directory, so that nothing stays of one that was killed
    "password_encryption": "scram-sha-256",
    "max_connections": 60,
    "max_locks_per_transaction": 16,
    "shared_buffers": "32MB",
    "huge_pages": "off",
    "jit": "off",
    "autovacuum_max_workers": 2,
    "max_worker_processes": 16,
    "wal_level": "logical",
    "min_wal_size": "16MB",
    "max_wal_size": "256MB",
    "max_wal_senders": 16,
    "max_replication_slots": 16,
    # What a server keeps for readers that are away; then their slots are given up, and `pghc up` makes good for it.
    "max_slot_wal_keep_size": f"{SLOT_MB}MB",
    "max_logical_replication_workers": 8,
    "hot_standby_feedback": "on",
    "wal_receiver_status_interval": "1s",
    "wal_sender_timeout": "10s",
    "wal_receiver_timeout": "10s",
    # The pace at which a broken subscription or replica tries again; the default is 5 s.
    "wal_retrieve_retry_interval": "200ms",
    "track_commit_timestamp": "on",
    "log_line_prefix": "%m [%p] %b ",
    "timezone": "UTC",
    "log_timezone": "UTC",
}

#: Options of initdb. Small segments of the log: a server that idles then has two of 4 MB, not of 16 MB.
INITDB = ("-U", ADMIN, "-A", "scram-sha-256", "-E", "UTF8", "--locale=C", "--wal-segsize=4", "--no-sync")

#: For servers whose machine is not expected to lose power. A process killed at any moment loses nothing by these
#: settings: what it had written is in the operating system's cache. Only a crash of the whole machine may damage data.
POSTGRES_NOT_DURABLE: dict[str, str | int] = {"fsync": "off", "full_page_writes": "off"}

#: Settings that came with a version.
POSTGRES_SINCE: dict[int, dict[str, str | int]] = {
    # Without helper processes for input and output, three a server.
    18: {"io_method": "sync", "max_active_replication_origins": 16},
}


def postgres_conf(
    node: Node, topology: Topology, *, version: int, port: int = 5432, listen: str = "127.0.0.1", durable: bool
) -> str:
    """``postgresql.conf`` of a node for a Postgres of major ``version``."""
    settings = dict(POSTGRES, cluster_name=node.name, listen_addresses=listen, port=port)
    for since, more in POSTGRES_SINCE.items():
        if version >= since:
            settings |= more
    if not durable:
        settings |= POSTGRES_NOT_DURABLE
    if node.role == "replica":
        settings["primary_conninfo"] = f"service={topology.region(node.region).primary}"
        settings["primary_slot_name"] = identifier(node.name)
    return "".join(f"{name} = {_quoted(value)}\n" for name, value in settings.items())


def _quoted(value: str | int) -> str:
    return str(value) if isinstance(value, int) else "'" + value.replace("'", "''") + "'"


def pg_hba(network: str = "127.0.0.1/32") -> str:
    """``pg_hba.conf``: everybody shows a password."""
    return f"host all all {network} scram-sha-256\nhost replication {REPLICATOR} {network} scram-sha-256\n"


def service_file(addresses: Mapping[str, Address]) -> str:
    """``pg_service.conf`` of one region: where its servers dial each primary (node name to address).

    Replication ignores connect_timeout; a host that is gone without a word would be waited for for two minutes.
    """
    fixed = "".join(f"{name}={value}\n" for name, value in LIBPQ.items()) + "connect_timeout=5\ntcp_user_timeout=5000\n"
    return "".join(
        f"[{name}]\nhost={at.host}\nport={at.port}\ndbname={DATABASE}\nuser={REPLICATOR}\n{fixed}\n"
        for name, at in addresses.items()
    )


def password_file(replicator_password: str) -> str:
    """``PGPASSFILE`` of the servers. libpq refuses it unless its mode is 0600."""
    return f"*:*:*:{REPLICATOR}:{replicator_password}\n"


def roles(application_verifier: str, replicator_verifier: str) -> list[str]:
    """Statements for the superuser, before the schema.

    SCRAM verifiers, not passwords: a failing statement is logged.
    """
    return [
        f"create role {APPLICATION} login password '{application_verifier}'",
        f"create role {REPLICATOR} login replication password '{replicator_verifier}'",
    ]


def database() -> list[str]:
    return [f"create database {DATABASE}"]


def slot(reader: str, publisher_epoch: int, reader_epoch: int) -> str:
    """The slot by which region ``reader`` takes a primary's rows, while the terms of these epochs last.

    The first terms' is the plain one. `pghc.cluster.mesh.subscriber` is the inverse.
    """
    terms = f"t{publisher_epoch}_{reader_epoch}_" if publisher_epoch or reader_epoch else ""
    return f"{terms}to_{identifier(reader)}"


def slots(topology: Topology, region: str) -> list[str]:
    """Statements for a region's primary: a slot for each reader. Before any subscription of the mesh is made."""
    here = topology.region(region)
    return [
        *(
            f"select pg_create_physical_replication_slot('{identifier(replica)}', true)"
            for replica in here.replica_names
        ),
        *(
            f"select pg_create_logical_replication_slot('{slot(other, 0, 0)}', 'pgoutput')"
            for other in topology.names
            if other != region
        ),
    ]


def subscriptions(topology: Topology, region: str, slots: Mapping[str, str] | None = None) -> list[str]:
    """Statements for a region's primary: it reads each other primary, and only what was written there.

    ``slots``: the regions to read, and by which slot; without it all of them, by the slots of their first terms.

    ``origin = none``: rows that a publisher got by replication are not passed on, else they would go round for ever.
    Slots exist already, for those that two subscriptions make of each other can wait for one another.
    """
    if slots is None:
        slots = {other: slot(region, 0, 0) for other in topology.names if other != region}
    return [
        f"create subscription from_{identifier(other)} connection 'service={topology.region(other).primary}' "
        f"publication {PUBLICATION} with (slot_name = {name}, create_slot = false, copy_data = false, "
        f"origin = none, streaming = off)"
        for other, name in slots.items()
    ]


# ZooKeeper

#: Milliseconds of ZooKeeper's clock; sessions last from 2 to 20 ticks.
TICK = 500

ZOOKEEPER: dict[str, str | int] = {
    "tickTime": TICK,
    "initLimit": 12,
    "syncLimit": 8,
    "maxClientCnxns": 0,
    "snapCount": 200_000,
    "autopurge.snapRetainCount": 3,
    "autopurge.purgeInterval": 1,
    "standaloneEnabled": "false",
    "reconfigEnabled": "false",
    "admin.enableServer": "false",
    "4lw.commands.whitelist": "ruok, srvr, mntr",
}

JVM = (
    "-Xms8m",
    # Made for `pghc.sequencer.LOG_BYTES` (24 MB), the most that a log holds which nobody takes out. Measured at 28 MB:
    # 195 MB for a leader when entries have one append each, 238,000 of them (700 bytes a node in its tree, and the last
    # 500 transactions once more, for followers that lag: `commitLogCount`, of which 500 is the least); 130 MB when they
    # have 1,000. What was full before 44 MB of log was 128 MB.
    "-Xmx256m",
    # A server without memory would go on without the threads that found none, and be silent: its end can be seen.
    "-XX:+ExitOnOutOfMemoryError",
    "-Xss256k",
    "-XX:+UseSerialGC",
    "-XX:TieredStopAtLevel=1",
    "-XX:MaxMetaspaceSize=48m",
    "-XX:ReservedCodeCacheSize=24m",
    "-XX:-UsePerfData",
    # Gives back what the compiler took while the server started, 6 MB; Java 22 or newer, older ones go without.
    "-XX:+IgnoreUnrecognizedVMOptions",
    "-XX:TrimNativeHeapInterval=2000",
    "-Djava.net.preferIPv4Stack=true",
    "-Djute.maxbuffer=4194304",
    "-Dzookeeper.preAllocSize=4096",
    "-Dzookeeper.jmx.log4j.disable=true",
    # A new leader in about a second. The throttler's default, 10 s, would be waited for whenever a loaded leader stops.
    "-Dzookeeper.fastleader.minNotificationInterval=200",
    "-Dzookeeper.fastleader.maxNotificationInterval=1000",
    "-Dzookeeper.cnxTimeout=2000",
    "-Dzookeeper.request_throttler.shutdownTimeout=100",
    "-Dorg.slf4j.simpleLogger.showDateTime=true",
    "-Dorg.slf4j.simpleLogger.dateTimeFormat=yyyy-MM-dd'T'HH:mm:ss.SSSX",
)

#: A server whose data is gone would vote without what it had acknowledged, and with its vote a quorum could forget an
#: entry. With this it votes for nobody, and counts in no election, before it has everything from a leader that others
#: follow (ZOOKEEPER-261): it has left and joined, under its old id. A new cluster's servers are told by a file,
#: "initialize", that there is nothing to remember. Dynamic reconfiguration would give all servers the same addresses of
#: each other, and here each region has its own way, by the WAN.
JVM_REMEMBERS = ("-Dzookeeper.db.autocreate=false",)

#: One arena for malloc: the heap of Java's threads is not there. The locale is how Java learns to read names of files,
#: such as its jars in a home directory.
JVM_ENVIRONMENT = {"MALLOC_ARENA_MAX": "1", "LC_ALL": "C.UTF-8"}

#: As for Postgres: safe against the death of the process, not of the machine.
JVM_NOT_DURABLE = ("-Dzookeeper.forceSync=no",)

ZOOKEEPER_MAIN = "org.apache.zookeeper.server.quorum.QuorumPeerMain"


@dataclass(frozen=True)
class ZooKeeperAddresses:
    """Where a server is dialled by its peers, for its log and for elections, and by clients."""

    peer: Address
    election: Address
    client: Address


def zookeeper_ids(topology: Topology) -> dict[str, int]:
    """Region to server id. The highest wins an election among equals: the central region's."""
    others = [name for name in topology.names if name != topology.central]
    return {name: number for number, name in enumerate([*others, topology.central], start=1)}


def zoo_cfg(topology: Topology, data: str, peers: Mapping[str, ZooKeeperAddresses]) -> str:
    """``zoo.cfg`` of one region's server. ``data``: its directory; ``peers``: all servers, as seen there."""
    ids = zookeeper_ids(topology)
    settings: dict[str, Any] = dict(ZOOKEEPER, dataDir=data)
    for region, at in peers.items():
        settings[f"server.{ids[region]}"] = (
            f"{at.peer.host}:{at.peer.port}:{at.election.port}:participant;{at.client.host}:{at.client.port}"
        )
    return "".join(f"{name}={value}\n" for name, value in settings.items())
