"""What runs in the pods of a Kubernetes cluster: ``python -m pghc.cluster.kubernetes.pods setup|gateway|api``.

A pod learns its region from the environment, the topology from ``/etc/pghc``, passwords from ``/run/secrets/pghc``.
Every server of the world has one name, and the region's Services know where it leads.
"""

from __future__ import annotations

import asyncio
import hmac
import json
import os
import sys
import time
from collections.abc import Awaitable, Callable, Iterable, Mapping, MutableMapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, TypeVar

import psycopg

from pghc import topology as topologies
from pghc.cluster import bootstrap, settings
from pghc.cluster.kubernetes.manifests import (
    CONTROL_PORT,
    client_port,
    gateway_ports,
    writable,
    writable_gateway_port,
)
from pghc.cluster.wan import Wan
from pghc.errors import BadInput, ClusterError, PghcError
from pghc.store import complete
from pghc.topology import Address, Credentials, Topology, View

SETTINGS = Path("/etc/pghc")
SECRETS = Path("/run/secrets/pghc")
#: While it is there, a server that a fault has killed stays down. It goes with the pod.
HELD = Path("/tmp/held")  # noqa: S108  the pod's own

#: Seconds that setup gives the other regions to come up; the Job tries again after that.
PATIENCE = 300.0

T = TypeVar("T")


def own_region() -> str:
    return os.environ["REGION"]


def own_topology() -> Topology:
    file = SETTINGS / "topology.json"
    return topologies.parse(json.loads(file.read_text()), str(file))


def view() -> View:
    """What this pod's region sees of the world."""
    topology = own_topology()
    addresses = {node.name: Address(node.name, client_port(node)) for node in topology.nodes}
    return View(own_region(), topology, addresses, credentials({path.name: path.read_text() for path in _secrets()}))


def credentials(secret: Mapping[str, str]) -> Credentials:
    """From the entries of the Secret ``pghc``; a pod has only those that it needs."""
    return Credentials(
        password=secret.get("password", ""),
        admin_password=secret.get("admin-password", ""),
        zookeeper_password=secret.get("zookeeper-password", ""),
    )


def _secrets() -> Iterable[Path]:
    return (path for path in SECRETS.iterdir() if path.is_file())


def say(what: str) -> None:
    print(what, flush=True)  # noqa: T201  a pod's log


# The setup Job


async def setup() -> None:
    """Make this region part of the mesh; what is there already stays. Raises `ClusterError` when time is up."""
    here = view()
    region = here.topology.region(here.region)
    deadline = time.monotonic() + PATIENCE
    admin = here.conninfo(region.primary, admin=True) | {"host": writable(here.region)}
    async with await _connect(admin | {"dbname": "postgres"}, deadline) as connection:
        replicator = (SECRETS / "replicator-password").read_text()
        made = await bootstrap.make_database(connection, here.credentials.password, replicator)
        say(f"roles and database: {made} made")
    async with await _connect(admin, deadline) as connection:
        await bootstrap.make_schema(connection)
        if await _is_of_a_later_term(connection):
            say("a replica has been promoted here or elsewhere: what the mesh lacks, `pghc up` makes")
            return
        made = await bootstrap.make(connection, settings.slots(here.topology, here.region))
        say(f"slots for replicas and other regions: {made} made")
        subscriptions = settings.subscriptions(here.topology, here.region)
        made = await _until(deadline, lambda: bootstrap.make(connection, subscriptions))
        say(f"subscriptions: {made} made")
        readers = region.replicas + len(here.topology.names) - 1
        await _until(deadline, lambda: _expect_streams(connection, readers))
    say(f"{here.region} is part of the mesh: {readers} readers follow {region.primary}")


async def _is_of_a_later_term(connection: bootstrap.Connection) -> bool:
    """Whether the mesh has slots with epochs; one more, under the name of the first terms, would have no reader."""
    query = """select exists (select from pg_subscription where subslotname ~ '^t[0-9]')
               or exists (select from pg_replication_slots where slot_type = 'logical' and slot_name ~ '^t[0-9]')"""
    row = await (await connection.execute(query)).fetchone()
    return bool(row and row[0])


async def _connect(conninfo: dict[str, str | int], deadline: float) -> bootstrap.Connection:
    arguments = complete(conninfo)
    return await _until(deadline, lambda: psycopg.AsyncConnection.connect(**arguments, autocommit=True))


async def _expect_streams(connection: bootstrap.Connection, expected: int) -> None:
    if (streams := await bootstrap.streams(connection)) < expected:
        raise ClusterError(f"{streams} of {expected} readers of the log are connected")


async def _until(deadline: float, attempt: Callable[[], Awaitable[T]]) -> T:
    """What ``attempt`` returns, once it does; other regions come up when they do. Raises `ClusterError`."""
    said = ""
    while True:
        try:
            return await attempt()
        except (psycopg.OperationalError, ClusterError) as error:
            why = " ".join(str(error).split())
            if time.monotonic() > deadline:
                raise ClusterError(f"gave up after {PATIENCE:g} s: {why}") from error
            if why != said:
                say(f"waiting: {why}")
                said = why
            await asyncio.sleep(0.25)


# The gateway


async def gateway() -> None:
    """Carry what leaves this region, and do what is asked on the control port."""
    import uvicorn  # with the API's packages, which this pod's image has

    topology, region = own_topology(), own_region()
    wan = Wan(topology, rewrite_elections=False)  # a server's name leads each region to its own gateway
    for node, port, listens in gateway_ports(topology, region):
        service = next(name for name, number in settings.SERVICES[node.role].items() if number == port)
        upstream = Address(f"{node.name}.{node.region}.svc.cluster.local", port)
        await wan.listen(region, node.name, service, upstream, host="0.0.0.0", port=listens)  # noqa: S104  its pod's
    for other in topology.regions:
        if other.name != region:
            upstream = Address(f"{writable(other.name)}.{other.name}.svc.cluster.local", 5432)
            port = writable_gateway_port(topology, other.name)
            await wan.listen(region, other.primary, "writable", upstream, host="0.0.0.0", port=port)  # noqa: S104
    say(f"the gateway of {region} carries {', '.join(f'{a} → {b}' for a, b in topology.pairs if region in (a, b))}")
    token = (SECRETS / "gateway-token").read_text()
    config = uvicorn.Config(control(wan, token), host="0.0.0.0", port=CONTROL_PORT, log_level="warning", lifespan="off")  # noqa: S104
    await uvicorn.Server(config).serve()
    wan.close()


def control(wan: Wan, token: str) -> Callable[..., Awaitable[None]]:
    """An ASGI application: GET /links, PATCH /links/SOURCE/TARGET with delay_ms or state, DELETE /links to heal all.

    Whoever asks for more than GET /health shows the token.
    """
    expected = f"Bearer {token}".encode()

    def act(method: str, path: list[str], body: bytes) -> list[dict[str, Any]]:
        match method, path:
            case "GET", ["links"] | ["health"]:
                pass
            case "DELETE", ["links"]:
                wan.heal_links()
            case "PATCH", ["links", source, target]:
                wan.set_link(source, target, **_change(body))
            case _:
                raise BadInput(f"there is no {method} /{'/'.join(path)}")
        return [asdict(link) for link in wan.links()]

    async def application(scope: MutableMapping[str, Any], receive: Any, send: Any) -> None:
        method, path = scope["method"], scope["path"].strip("/").split("/")
        shown = dict(scope["headers"]).get(b"authorization", b"")
        status = 200
        answer: Any
        if path != ["health"] and not hmac.compare_digest(shown, expected):
            status, answer = 401, {"error": "the token is missing or wrong"}
        else:
            try:
                answer = act(method, path, (await receive()).get("body", b"") if method == "PATCH" else b"")
            except PghcError as error:
                status, answer = 400, {"error": str(error)}
        headers = [(b"content-type", b"application/json")]
        await send({"type": "http.response.start", "status": status, "headers": headers})
        await send({"type": "http.response.body", "body": json.dumps(answer).encode()})

    return application


def _change(body: bytes) -> dict[str, Any]:
    try:
        change = json.loads(body)
    except ValueError as error:
        raise BadInput(f"the change is not JSON: {error}") from error
    if not isinstance(change, dict) or not change or set(change) - {"delay_ms", "state"}:
        raise BadInput("a change has delay_ms, state, or both")
    return change


# The API node


def api() -> None:
    """Become the region's API node."""
    while HELD.exists():
        time.sleep(0.1)
    orders = {"view": view().to_dict(), "host": "0.0.0.0", "port": settings.SERVICES["api"]["http"]}  # noqa: S104  its pod's
    file = Path("/tmp/orders.json")  # noqa: S108  the pod's own, in memory
    with open(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as writing:
        json.dump(orders, writing)
    os.execv(sys.executable, [sys.executable, "-m", "pghc.api", str(file)])  # noqa: S606  no shell


def main() -> None:
    match sys.argv[1:]:
        case ["setup"]:
            asyncio.run(setup())
        case ["gateway"]:
            asyncio.run(gateway())
        case ["api"]:
            api()
        case _:
            sys.exit("usage: python -m pghc.cluster.kubernetes.pods setup|gateway|api")


if __name__ == "__main__":
    try:
        main()
    except PghcError as error:
        sys.exit(f"error: {error}")
