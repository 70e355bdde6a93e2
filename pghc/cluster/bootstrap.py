"""How an empty primary becomes one of the lab's: roles, database, schema, slots, subscriptions. Both backends do this.

Connections are a superuser's, in autocommit. Everything may be done again: what is there already stays as it is.
"""

from __future__ import annotations

from collections.abc import Iterable
from importlib.resources import files
from typing import Any

import psycopg

from pghc.cluster import settings

Connection = psycopg.AsyncConnection[Any]


async def make(connection: Connection, statements: Iterable[str]) -> int:
    """Execute them; returns how many made something that was not there. Raises `psycopg.Error`."""
    made = 0
    for statement in statements:
        try:
            await connection.execute(statement.encode())
        except (psycopg.errors.DuplicateObject, psycopg.errors.DuplicateDatabase):
            continue
        made += 1
    return made


async def make_database(connection: Connection, password: str, replicator_password: str) -> int:
    """Roles and the empty database. The server, and so its log, is told verifiers of the passwords only."""
    pairs = (password, settings.APPLICATION), (replicator_password, settings.REPLICATOR)
    encrypt = connection.pgconn.encrypt_password
    verifiers = [encrypt(word.encode(), role.encode(), b"scram-sha-256").decode() for word, role in pairs]
    return await make(connection, [*settings.roles(*verifiers), *settings.database()])


async def make_schema(connection: Connection) -> None:
    cursor = await connection.execute("select to_regclass('public.chain') is null")
    if await cursor.fetchone() == (True,):
        async with connection.transaction():
            await connection.execute(schema().encode())


async def streams(connection: Connection) -> int:
    """How many read this server's log now: its replicas, and the other regions' primaries."""
    cursor = await connection.execute("select count(*) from pg_stat_replication where state = 'streaming'")
    row = await cursor.fetchone()
    return int(row[0]) if row else 0


def schema() -> str:
    return files("pghc").joinpath("schema.sql").read_text()
