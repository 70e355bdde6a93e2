"""Whether a server answers where its clients dial it, and a word about it: the same question on both backends."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import psycopg

from pghc.cluster import settings
from pghc.store import complete
from pghc.topology import Address, Node, View

#: MB of log that a primary may keep for a reader before `status` speaks of it.
KEPT = 64


def probe(node: Node, view: View, seconds: float) -> tuple[bool, str]:
    """Ask the server, in the role that it has now, for at most about ``seconds``; never raises for what it does."""
    address = view.addresses[node.name]
    try:
        match node.role:
            case "zookeeper":
                mode = asyncio.run(asyncio.wait_for(ask_zookeeper(address, "srvr"), seconds)).partition("Mode: ")[2]
                return (True, mode.split()[0]) if mode else (False, "no quorum")
            case "api":
                ready = asyncio.run(asyncio.wait_for(ask_api(address), seconds))
                return True, ", ".join(f"{what}: {'yes' if each else 'no'}" for what, each in ready.items())
        return True, _ask_postgres(node, view, seconds)
    except (psycopg.Error, OSError, ValueError) as error:
        return False, str(error).partition("\n")[0] or type(error).__name__


async def ask_zookeeper(address: Address, word: str) -> str:
    """The answer to a four-letter word. Raises `OSError`."""
    reader, writer = await asyncio.open_connection(address.host, address.port)
    try:
        writer.write(word.encode())
        return (await reader.read(65536)).decode()
    finally:
        writer.close()


async def ask_api(address: Address) -> dict[str, bool]:
    """What an API node says of its readiness. Raises `OSError`, `ValueError`."""
    reader, writer = await asyncio.open_connection(address.host, address.port)
    try:
        writer.write(b"GET /health/ready HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
        ready: dict[str, bool] = json.loads((await reader.read(65536)).partition(b"\r\n\r\n")[2])
        return ready
    finally:
        writer.close()


def _ask_postgres(node: Node, view: View, seconds: float) -> str:
    arguments: dict[str, Any] = complete(view.conninfo(node.name))
    arguments["connect_timeout"] = max(int(seconds), 2)  # libpq takes 1 for 2
    arguments["options"] = f"-c statement_timeout={seconds * 1000:.0f}"
    with psycopg.connect(**arguments) as connection:
        if node.role == "replica":
            row = connection.execute("select count(*) from pg_stat_wal_receiver where pid is not null").fetchone()
            return "reads its primary's log" if row and row[0] else "has lost its primary"
        row = connection.execute("select count(pid), count(distinct subid) from pg_stat_subscription").fetchone()
        kept = connection.execute(_KEPT, (KEPT << 20,)).fetchall()
    detail = f"{row[0]} of {row[1]} subscriptions at work" if row else ""
    return "; ".join([detail, *(_kept(*each) for each in kept)])


_KEPT = """select slot_name, wal_status = 'lost', (pg_current_wal_lsn() - restart_lsn)::bigint >> 20
           from pg_replication_slots where wal_status = 'lost' or pg_current_wal_lsn() - restart_lsn > %s
           order by slot_name"""


def _kept(slot: str, lost: bool, megabytes: int | None) -> str:
    """What `status` says of a slot whose reader is far behind."""
    if lost:
        return f"has given up {slot}, {settings.SLOT_MB} MB behind: `pghc up`"
    return f"keeps {megabytes} MB for {slot}; gives it up at {settings.SLOT_MB}"
