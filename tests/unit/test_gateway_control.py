"""The control port of a region's gateway on Kubernetes: what it lets whom change."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import httpx
import pytest

from pghc.cluster.kubernetes.pods import control
from pghc.cluster.wan import Wan
from pghc.topology import load

TOKEN = "a-token-of-this-test"


def ask(work: Callable[[httpx.AsyncClient], Awaitable[Any]], token: str = TOKEN) -> Any:
    """What ``work`` returns when it asks a new gateway."""

    async def run() -> Any:
        wan = Wan(load(), rewrite_elections=False)
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        transport = httpx.ASGITransport(app=control(wan, TOKEN))
        async with httpx.AsyncClient(transport=transport, base_url="http://gateway", headers=headers) as client:
            return await work(client)

    return asyncio.run(run())


async def link(client: httpx.AsyncClient) -> dict[str, Any]:
    """What the gateway says of the link us-east → eu-west."""
    links: list[dict[str, Any]] = (await client.get("/links")).json()
    return next(each for each in links if (each["source"], each["target"]) == ("us-east", "eu-west"))


@pytest.mark.parametrize("token", ["", "another-token-of-this-test"])
def test_without_the_token_nothing_but_health_is_answered(token: str) -> None:
    async def work(client: httpx.AsyncClient) -> list[int]:
        asked = [
            await client.get("/links"),
            await client.patch("/links/us-east/eu-west", json={"state": "cut"}),
            await client.delete("/links"),
            await client.get("/health"),
        ]
        return [each.status_code for each in asked]

    assert ask(work, token) == [401, 401, 401, 200]


def test_one_direction_of_a_link_is_changed_and_healed() -> None:
    async def work(client: httpx.AsyncClient) -> list[dict[str, Any]]:
        found = [await link(client)]
        await client.patch("/links/us-east/eu-west", json={"state": "cut", "delay_ms": 7})
        found.append(await link(client))
        await client.delete("/links")
        return [*found, await link(client)]

    before, changed, healed = ask(work)
    assert (before["state"], changed["state"], changed["delay_ms"]) == ("open", "cut", 7)
    assert healed == before


@pytest.mark.parametrize(
    ("path", "change"),
    [
        ("/links/us-east/eu-west", {}),
        ("/links/us-east/eu-west", {"state": "torn"}),
        ("/links/us-east/eu-west", {"delay_ms": -1}),
        ("/links/us-east/eu-west", {"colour": "red"}),
        ("/links/us-east/us-east", {"state": "cut"}),
        ("/links/us-east/nowhere", {"state": "cut"}),
        ("/somewhere", {"state": "cut"}),
    ],
)
def test_a_change_that_makes_no_sense_is_refused_and_changes_nothing(path: str, change: dict[str, Any]) -> None:
    async def work(client: httpx.AsyncClient) -> tuple[int, dict[str, Any], dict[str, Any]]:
        before = await link(client)
        return (await client.patch(path, json=change)).status_code, before, await link(client)

    status, before, after = ask(work)
    assert status == 400
    assert before == after
