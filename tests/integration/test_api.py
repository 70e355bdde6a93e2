"""API nodes on a running cluster: the promises that their clients rely on."""

from __future__ import annotations

import json
import os
import random
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from hashlib import md5
from pathlib import Path
from uuid import uuid4

import httpx
import psutil
import pytest

from pghc.cluster.local.embedded import Embedded
from pghc.faults.injection import Faults
from pghc.store import Reader, Store
from pghc.workload import chains, runs

Row = dict[str, object]


@pytest.fixture
def urls(cluster: Embedded) -> dict[str, str]:
    """Each region's API node, as clients of that region reach it; the chain is empty."""
    names = cluster.topology.names
    chains.begin_chain([cluster.view(name) for name in names])
    return {name: f"http://{cluster.view(name).addresses[f'{name}-api']}" for name in names}


@pytest.fixture
def client() -> Iterator[httpx.Client]:
    with httpx.Client(timeout=30) as client:
        yield client


def rows_of(cluster: Embedded, region: str) -> list[Row]:
    with Store(cluster.view(region)) as store:
        return [row._asdict() for row in store.chain()]


def the_chain(cluster: Embedded) -> list[Row]:
    """The chain that all regions have once nothing moves any more."""
    chains.settle([cluster.view(name) for name in cluster.topology.names])
    one, *others = [rows_of(cluster, name) for name in cluster.topology.names]
    assert all(rows == one for rows in others)
    return one


class OwnNode:
    """An API node of our own beside the cluster's."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.process = process
        self.log: list[dict[str, object]] = []
        assert process.stderr
        for line in process.stderr:
            self.log.append(json.loads(line))
            if self.log[-1]["event"] == "listening":
                self.port = int(str(self.log[-1]["port"]))
                self.url = f"http://127.0.0.1:{self.port}"
                return
        raise AssertionError(f"it did not start: {self.log}")

    def end(self, number: signal.Signals = signal.SIGTERM) -> int:
        """Its exit code; the rest of its log is in ``log`` afterwards."""
        self.process.send_signal(number)
        _, rest = self.process.communicate(timeout=20)
        self.log += [json.loads(line) for line in rest.splitlines()]
        return self.process.returncode


@contextmanager
def own_node(cluster: Embedded, region: str, **settings: object) -> Iterator[OwnNode]:
    environment = {f"PGHC_API_{name.upper()}": str(value) for name, value in settings.items()}
    process = subprocess.Popen(
        [sys.executable, "-m", "pghc", "api", "--dir", cluster.directory, "--region", region, "--port", "0"],
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | environment,
    )
    try:
        yield OwnNode(process)
    finally:
        process.kill()
        process.wait()


def eventually(check: Callable[[], bool], seconds: float = 20.0) -> bool:
    deadline = time.monotonic() + seconds
    while not check():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.1)
    return True


@contextmanager
def agreement_takes(cluster: Embedded, milliseconds: float) -> Iterator[None]:
    """Appends in us-east take at least so long before they have a number, whoever leads the ZooKeeper servers."""
    faults = Faults(cluster)
    with faults.slow("us-east", "eu-west", milliseconds), faults.slow("us-east", "ap-south", milliseconds):
        yield


# What the original clients do


def test_a_client_that_recomputes_the_hashes_agrees_with_every_row(urls: dict[str, str], client: httpx.Client) -> None:
    for turn in range(12):
        answer = client.post(f"{urls[list(urls)[turn % 3]]}/chain")
        assert answer.status_code == 200
        assert list(answer.json()) == ["zk_id", "node_id", "hash"]
    position = answer.headers["PGHC-Position"]
    newest = client.get(f"{urls['us-east']}/chain/recent", headers={"PGHC-Position": position}).json()
    assert [row["zk_id"] for row in newest] == list(range(12, 2, -1))
    everything = client.get(f"{urls['us-east']}/chain/recent?limit=100").json()[::-1]
    assert [row["zk_id"] for row in everything] == list(range(1, 13))
    assert {row["node_id"] for row in everything} == {f"{region}-primary" for region in urls}
    before = ""
    for row in everything:
        text = f"{row['zk_id']}{row['node_id']}{before}"
        before = md5(text.encode(), usedforsecurity=False).hexdigest()
        assert row["hash"] == before


def test_ping_config_and_verification_answer_in_every_region(urls: dict[str, str], client: httpx.Client) -> None:
    assert client.get(f"{urls['us-east']}/chain/verify").json()["valid"] is None
    for region, url in urls.items():
        assert client.get(f"{url}/ping").text == "pong"
        config = client.get(f"{url}/cluster/config").json()
        assert (config["num_bdr_groups"], config["num_total_pg_nodes"], config["region"]) == (3, 9, region)
        position = client.post(f"{url}/chain").headers["PGHC-Position"]
        verdict = client.get(f"{url}/chain/verify?last=100", headers={"PGHC-Position": position}).json()
        assert verdict["valid"] is True
        assert verdict["checked"]["entries"] == int(position)


def test_a_tampered_row_is_found_by_verification(
    cluster: Embedded, urls: dict[str, str], client: httpx.Client
) -> None:
    for _ in range(5):
        client.post(f"{urls['eu-west']}/chain")
    with Reader(cluster.view("eu-west"), "eu-west-primary", admin=True) as admin, admin.connection("tamper") as session:
        session.execute("update public.chain set hash = md5('x') where zk_id = 3")
    url = f"{urls['eu-west']}/chain/verify"
    assert eventually(lambda: client.get(url).json()["valid"] is False)
    verdict = client.get(url).json()
    assert verdict["anomalies"][0]["zk_id"] == 3
    chains.begin_chain([cluster.view(name) for name in urls])


def test_a_node_that_starts_before_the_databases_are_made_is_ready_afterwards(
    cluster: Embedded, urls: dict[str, str], client: httpx.Client
) -> None:
    with Reader(cluster.view("us-east"), "us-east-primary", admin=True) as admin:
        with admin.connection("hide") as session:
            session.execute("alter table pghc.cursor rename to hidden")
        try:
            with own_node(cluster, "us-east") as node:
                assert eventually(lambda: client.get(f"{node.url}/metrics").status_code == 200)
                assert client.get(f"{node.url}/health/ready").status_code == 503
                time.sleep(1)  # it has looked at the servers, and more than once
                with admin.connection("show") as session:
                    session.execute("alter table pghc.hidden rename to cursor")
                assert eventually(lambda: client.get(f"{node.url}/health/ready").json()["appends"])
                assert client.post(f"{node.url}/chain").json()["zk_id"] == 1
        finally:
            with admin.connection("show") as session:
                session.execute("alter table if exists pghc.hidden rename to cursor")


# Exactly once


def test_the_same_key_gives_the_same_row_through_every_node_also_at_the_same_time(
    cluster: Embedded, urls: dict[str, str]
) -> None:
    keys = [f"order {n}".replace(" ", "-") for n in range(5)]
    with ThreadPoolExecutor(30) as pool, httpx.Client(timeout=30) as client:

        def post(url: str, key: str) -> Row:
            answer = client.post(f"{url}/chain", headers={"Idempotency-Key": key})
            assert answer.status_code == 200, answer.text
            row: Row = answer.json()
            return row

        asked = [(url, key) for key in keys for url in list(urls.values()) * 2]
        rows = list(pool.map(lambda each: post(*each), asked))
        again = [post(url, key) for url, key in asked[:3]]
    by_key = {key: {json.dumps(row) for (_, k), row in zip(asked, rows, strict=True) if k == key} for key in keys}
    assert all(len(each) == 1 for each in by_key.values())
    assert len({*map(str, rows)}) == len(keys)
    assert again == rows[:3]
    chain = the_chain(cluster)
    assert len(chain) == len(keys)
    assert all(row in chain for row in rows)


def test_a_key_whose_node_was_killed_in_between_gives_one_row(
    cluster: Embedded, urls: dict[str, str], client: httpx.Client
) -> None:
    keys = [str(uuid4()) for _ in range(8)]
    with ThreadPoolExecutor(len(keys)) as pool:

        def first_try(key: str) -> None:
            with suppress(httpx.TransportError):
                client.post(f"{urls['ap-south']}/chain", headers={"Idempotency-Key": key})

        tries = [pool.submit(first_try, key) for key in keys]
        time.sleep(0.15)  # less than ap-south's way to the ZooKeeper leader and back
        with Faults(cluster).kill("ap-south-api"):
            for each in tries:
                each.result()
            rows = [client.post(f"{urls['us-east']}/chain", headers={"Idempotency-Key": key}) for key in keys]
    assert [row.status_code for row in rows] == [200] * len(keys)
    again = [client.post(f"{urls['ap-south']}/chain", headers={"Idempotency-Key": key}).json() for key in keys]
    assert again == [row.json() for row in rows]
    assert sorted(row["zk_id"] for row in again) == list(range(1, len(keys) + 1))
    assert len(the_chain(cluster)) == len(keys)


# Never back in time


def test_a_read_that_carries_a_position_shows_the_entry_in_whatever_region(
    urls: dict[str, str], client: httpx.Client
) -> None:
    for turn in range(9):
        writer, reader = random.sample(list(urls), 2)
        written = client.post(f"{urls[writer]}/chain")
        seen = {"PGHC-Position": written.headers["PGHC-Position"]}
        answer = client.get(f"{urls[reader]}/chain/recent", headers=seen)
        assert answer.status_code == 200, answer.text
        assert answer.json()[0]["zk_id"] >= turn + 1
        assert written.json() in answer.json()
        assert int(answer.headers["PGHC-Position"]) >= int(seen["PGHC-Position"])


def test_reads_fall_back_to_another_replica_and_then_to_the_primary(
    cluster: Embedded, urls: dict[str, str], client: httpx.Client
) -> None:
    faults, url = Faults(cluster), f"{urls['eu-west']}/chain"
    with faults.kill("eu-west-replica-1"), faults.pause("eu-west-replica-2"):
        for _ in range(4):
            position = client.post(url).headers["PGHC-Position"]
            answer = client.get(f"{url}/recent", headers={"PGHC-Position": position})
            assert answer.status_code == 200, answer.text
            assert answer.json()[0]["zk_id"] >= int(position)


def test_reads_go_on_without_the_primary_and_appends_say_so(
    cluster: Embedded, urls: dict[str, str], client: httpx.Client
) -> None:
    url = urls["us-east"]
    position = client.post(f"{url}/chain").headers["PGHC-Position"]
    assert client.get(f"{url}/chain/recent", headers={"PGHC-Position": position}).status_code == 200
    with Faults(cluster).kill("us-east-primary"):
        answer = client.get(f"{url}/chain/recent", headers={"PGHC-Position": position})
        assert answer.status_code == 200, answer.text
        assert eventually(lambda: client.get(f"{url}/health/ready").json() == {"reads": True, "appends": False})
        key = {"Idempotency-Key": str(uuid4())}
        refused = client.post(f"{url}/chain", headers=key)
        assert (refused.status_code, refused.json()["outcome"]) == (503, "definite")
        assert refused.json()["node"] == "us-east-primary"
    assert eventually(lambda: client.post(f"{url}/chain", headers=key).status_code == 200)


def test_a_position_that_no_region_has_is_a_conflict_and_not_worth_a_retry(
    urls: dict[str, str], client: httpx.Client
) -> None:
    answer = client.get(f"{urls['us-east']}/chain/recent", headers={"PGHC-Position": "1000000"})
    assert answer.status_code == 409
    assert "retry-after" not in answer.headers


# Errors


@pytest.mark.parametrize("writer", ["causal", "broadcast"])
def test_without_a_quorum_appends_are_refused_for_certain_and_reads_go_on(
    cluster: Embedded, urls: dict[str, str], client: httpx.Client, writer: str
) -> None:
    faults = Faults(cluster)
    with own_node(cluster, "us-east", append_seconds=2, writer=writer) as node:
        assert client.post(f"{node.url}/chain").status_code == 200
        with faults.kill("eu-west-zookeeper"), faults.kill("ap-south-zookeeper"):
            assert eventually(lambda: client.post(f"{node.url}/chain").status_code == 503)
            key = str(uuid4())
            answer = client.post(f"{node.url}/chain", headers={"Idempotency-Key": key})
            assert (answer.status_code, answer.json()["outcome"]) == (503, "definite")
            assert int(answer.headers["Retry-After"]) >= 1
            assert answer.json()["request_id"] == key
            assert client.get(f"{node.url}/chain/recent").status_code == 200
            assert client.get(f"{node.url}/health/ready").status_code == 200
        assert eventually(lambda: client.post(f"{node.url}/chain").status_code == 200)
    with Store(cluster.view("us-east")) as store:
        assert store.entry(key) is None


def test_an_append_whose_primary_stops_in_between_is_indefinite_and_its_key_finds_it_afterwards(
    cluster: Embedded, urls: dict[str, str], client: httpx.Client
) -> None:
    faults = Faults(cluster)
    with own_node(cluster, "us-east", append_seconds=4) as node, ThreadPoolExecutor(1) as pool:
        assert client.post(f"{node.url}/chain").status_code == 200
        with agreement_takes(cluster, 2000):  # time to pause the primary
            post = pool.submit(client.post, f"{node.url}/chain")
            time.sleep(0.7)
            with faults.pause("us-east-primary"):
                answer = post.result()
        assert (answer.status_code, answer.json()["outcome"]) == (504, "indefinite")
        key = {"Idempotency-Key": answer.json()["request_id"]}
        rows = [client.post(f"{url}/chain", headers=key) for url in [*urls.values(), node.url]]
    assert [row.status_code for row in rows] == [200] * 4
    assert len({row.text for row in rows}) == 1


@pytest.mark.parametrize(("chain", "writer"), [("locked", "causal"), ("log", "naive"), ("naive", "broadcast")])
def test_a_node_whose_writer_orders_otherwise_than_the_chain_refuses_and_names_both_orderings(
    cluster: Embedded, urls: dict[str, str], client: httpx.Client, chain: str, writer: str
) -> None:
    views = [cluster.view(name) for name in urls]
    with own_node(cluster, "us-east", writer=writer) as node:
        chains.begin_chain(views, chain)
        answer = client.post(f"{node.url}/chain")
        assert (answer.status_code, answer.json()["outcome"]) == (409, "definite")
        assert answer.json()["type"] == "urn:pghc:wrong-kind"
        assert f"'{chain}'" in answer.json()["detail"]
        assert client.get(f"{node.url}/chain/recent").json() == []
        chains.begin_chain(views)
        assert eventually(lambda: client.post(f"{node.url}/chain").status_code == 200), "the chain is its own again"


def test_while_a_run_uses_the_chain_a_node_stands_back_and_names_it_and_the_run_is_valid(
    cluster: Embedded, urls: dict[str, str], client: httpx.Client
) -> None:
    key = {"Idempotency-Key": str(uuid4())}
    assert eventually(lambda: client.post(f"{urls['us-east']}/chain", headers=key).status_code == 200)
    answers: list[httpx.Response] = []

    def ask(crew: runs.Crew) -> None:
        for url in urls.values():
            crew.wait(0.5)
            answers.append(client.post(f"{url}/chain"))

    run = runs.run(cluster, "causal", clients=1, seconds=3, during=ask)
    assert run.verdict.valid, str(run.verdict)
    assert {answer.status_code for answer in answers} == {503}
    for answer in answers:
        assert (answer.json()["type"], answer.json()["outcome"]) == ("urn:pghc:in-use", "definite")
        assert f"a run of causal: process {os.getpid()} of " in answer.json()["detail"]
    assert eventually(lambda: client.post(f"{urls['us-east']}/chain").status_code == 200)


def test_a_key_that_is_none_is_the_client_s_mistake(urls: dict[str, str], client: httpx.Client) -> None:
    for key in ("", "x" * 256):
        answer = client.post(f"{urls['us-east']}/chain", headers={"Idempotency-Key": key})
        assert (answer.status_code, answer.json()["outcome"]) == (400, "definite")


# The end of a node


def test_a_node_that_is_told_to_end_is_not_ready_first_then_refuses_and_gives_no_read_up_in_silence(
    cluster: Embedded, urls: dict[str, str], client: httpx.Client
) -> None:
    with own_node(cluster, "us-east") as node, ThreadPoolExecutor(1) as pool, ExitStack() as paused:
        assert client.post(f"{node.url}/chain").status_code == 200
        assert eventually(lambda: client.get(f"{node.url}/health/ready").status_code == 200)
        for server in ("us-east-replica-1", "us-east-replica-2", "us-east-primary"):
            paused.enter_context(Faults(cluster).pause(server))
        read = pool.submit(client.get, f"{node.url}/chain/verify")  # would take as long as the pause does
        time.sleep(0.3)
        began = time.monotonic()
        node.process.send_signal(signal.SIGTERM)
        time.sleep(0.2)
        ready, ping = client.get(f"{node.url}/health/ready"), client.get(f"{node.url}/ping")
        time.sleep(0.8)
        refused = client.get(f"{node.url}/chain/recent")
        cut_short = read.result(timeout=10)
        assert node.process.wait(timeout=10) == 0
        assert time.monotonic() - began < 5
    assert (ready.status_code, ping.status_code) == (503, 200)
    for answer in (refused, cut_short):
        assert (answer.status_code, answer.json()["outcome"]) == (503, "definite")
        assert answer.headers["content-type"] == "application/problem+json"
    assert {answer.headers["connection"] for answer in (ready, ping, refused, cut_short)} == {"close"}


def test_a_node_that_is_told_to_end_answers_every_open_request_and_ends_within_seconds(
    cluster: Embedded, urls: dict[str, str], client: httpx.Client
) -> None:
    with own_node(cluster, "us-east") as node, ThreadPoolExecutor(24) as pool, ExitStack() as slow:
        assert client.post(f"{node.url}/chain").status_code == 200
        slow.enter_context(agreement_takes(cluster, 1500))

        def post(key: str) -> httpx.Response:
            return client.post(f"{node.url}/chain", headers={"Idempotency-Key": key})

        keys = [str(uuid4()) for _ in range(24)]
        posts = [pool.submit(post, key) for key in keys]
        open_now = "pghc_open_requests 25.0"  # ours, and the one that asks
        assert eventually(lambda: open_now in client.get(f"{node.url}/metrics").text or any(p.done() for p in posts))
        began = time.monotonic()
        code = node.end()
        took = time.monotonic() - began
        answers = [each.result() for each in posts]
    assert code == 0
    assert took < 8
    assert {answer.status_code for answer in answers} <= {200, 503, 504}
    outcomes = {answer.json().get("outcome") for answer in answers if answer.status_code != 200}
    assert outcomes <= {"definite", "indefinite"}
    again = [client.post(f"{urls['us-east']}/chain", headers={"Idempotency-Key": key}) for key in keys]
    for first, second in zip(answers, again, strict=True):
        assert second.status_code == 200, second.text
        assert first.status_code != 200 or first.json() == second.json()


def test_a_cluster_s_node_serves_with_the_writer_of_its_configuration(
    cluster: Embedded, urls: dict[str, str], client: httpx.Client
) -> None:
    with own_node(cluster, "eu-west", writer="broadcast") as node:
        with ThreadPoolExecutor(32) as pool:
            answers = list(pool.map(lambda _: client.post(f"{node.url}/chain"), range(96)))
        assert {answer.status_code for answer in answers} == {200}
        assert sorted(answer.json()["zk_id"] for answer in answers) == list(range(1, 97))
        with ThreadPoolExecutor(32) as pool:
            keys = [f"key-{n % 24}" for n in range(72)]
            rows = pool.map(lambda k: client.post(f"{node.url}/chain", headers={"Idempotency-Key": k}).text, keys)
            assert len(set(zip(keys, rows, strict=True))) == 24
        assert client.get(f"{node.url}/chain/recent?limit=1").json()[0]["zk_id"] == 96 + 24
        assert client.get(f"{node.url}/chain/verify").json()["valid"] is True
        assert node.end() == 0


# Secrets


def test_a_node_tells_nothing_without_its_token_and_no_secret_is_in_a_log_or_a_command_line(
    cluster: Embedded, urls: dict[str, str], tmp_path: Path, client: httpx.Client
) -> None:
    token = "a-token-of-some-length"
    (tmp_path / "token").write_text(token)
    who = cluster.view("us-east").credentials
    secrets = [token, who.password, who.admin_password, who.zookeeper_password]
    with own_node(cluster, "us-east", token_file=tmp_path / "token", log_level="debug") as node:
        assert client.post(f"{node.url}/chain").status_code == 401
        shown = {"Authorization": f"Bearer {token}"}
        assert client.post(f"{node.url}/chain", headers=shown).status_code == 200
        assert client.get(f"{node.url}/metrics", headers=shown).status_code == 200
        commands = [" ".join(process.info["cmdline"] or ()) for process in psutil.process_iter(["cmdline"])]
        node.end()
    logs = [*map(json.dumps, node.log), *(cluster.log(f"{name}-api").read_text() for name in urls)]
    assert not [line for line in (*commands, *logs) if any(secret in line for secret in secrets)]
    assert {line["status"] for line in node.log if line["event"] == "request"} == {200, 401}


def test_what_a_node_measures_is_there_for_prometheus(urls: dict[str, str], client: httpx.Client) -> None:
    client.post(f"{urls['us-east']}/chain")
    wanted = r'pghc_log_position\{node="us-east-replica-2"\} ([1-9]\d*)'
    assert eventually(lambda: bool(re.search(wanted, client.get(f"{urls['us-east']}/metrics").text)))
    answer = client.get(f"{urls['us-east']}/metrics")
    assert answer.headers["content-type"].startswith("text/plain; version=0.0.4")
    for name in (
        'pghc_appends_total{outcome="ok"}',
        'pghc_appends_total{outcome="indefinite"}',
        "pghc_predecessor_wait_seconds_count",
        'pghc_replication_lag_entries{node="us-east-replica-1"}',
        'pghc_watermark{node="us-east-primary"}',
        'pghc_server_up{node="us-east-primary"} 1.0',
    ):
        assert name in answer.text


def test_status_shows_every_api_node(cluster: Embedded) -> None:
    nodes = {node.name: node for node in cluster.status().nodes if node.role == "api"}
    assert list(nodes) == [f"{name}-api" for name in cluster.topology.names]
    assert all(node.accessible and "reads: yes" in node.detail for node in nodes.values())


# Whatever is sent


def exchange(port: int, data: bytes) -> list[int]:
    """The statuses of the answers to these bytes; the connection must end by itself soon after ours has."""
    with socket.create_connection(("127.0.0.1", port), timeout=20) as connection:
        received = b""
        try:
            connection.sendall(data)
            connection.shutdown(socket.SHUT_WR)
            while chunk := connection.recv(65536):
                received += chunk
        except ConnectionError:
            pass
    return [int(status) for status in re.findall(rb"HTTP/1\.1 (\d{3}) ", received) if status != b"100"]


def some_bytes(dice: random.Random, longest: int) -> bytes:
    length = dice.choice([0, 1, 3, 20, 200, longest])
    alphabet = dice.choice([bytes(range(256)), bytes(range(32, 127)), b"0123456789-", b'"\\;,= \t', b"\x00\xff\r\n"])
    return bytes(dice.choices(alphabet, k=length))


HEADERS = (
    b"Host Content-Length Transfer-Encoding Expect Connection Upgrade Authorization Origin Idempotency-Key "
    b"PGHC-Position Accept Content-Type Cookie Range If-Match X-Y Access-Control-Request-Method"
).split()


@pytest.mark.timeout(300)
def test_no_header_body_or_other_bytes_make_a_node_fail(cluster: Embedded, urls: dict[str, str]) -> None:
    port = int(urls["us-east"].rsplit(":", 1)[1])
    dice = random.Random(20)
    statuses: dict[str, list[int]] = {"headers": [], "bodies": [], "bytes": [], "targets": []}
    slow = socket.create_connection(("127.0.0.1", port), timeout=20)
    slow.sendall(b"GET /ping HTTP/1.1\r\nHost: local")
    for _ in range(250):
        name = dice.choice(HEADERS)
        head = b"GET /chain/recent HTTP/1.1\r\nHost: localhost\r\n%s: %s\r\n\r\n" % (name, some_bytes(dice, 20_000))
        statuses["headers"] += exchange(port, head)
        body = some_bytes(dice, 50_000) or b"x"
        head = dice.choice([b"POST /chain", b"GET /ping", b"POST /nowhere", b"GET /chain/recent"])
        if dice.random() < 0.5:
            framed = b"Content-Length: %d\r\n\r\n%s" % (len(body), body)
        else:
            framed = b"Transfer-Encoding: chunked\r\n\r\n%x\r\n%s\r\n0\r\n\r\n" % (len(body), body)
        answers = exchange(port, head + b" HTTP/1.1\r\nHost: localhost\r\n" + framed)
        assert answers, framed[:80]
        statuses["bodies"] += answers
        statuses["bytes"] += exchange(port, some_bytes(dice, 40_000))
        target = b"/chain/recent?" + some_bytes(dice, 2_000).replace(b"\n", b"")
        statuses["targets"] += exchange(port, b"GET %s HTTP/1.1\r\nHost: localhost\r\n\r\n" % target)
    assert {status // 100 for status in statuses["bodies"]} == {4}
    assert {status // 100 for status in statuses["bytes"]} == {4}
    assert {status // 100 for status in statuses["headers"]} == {2, 4}
    assert {status // 100 for status in statuses["targets"]} == {2, 4}
    assert slow.recv(1) == b"", "a head that never ends is waited for"
    slow.close()
    assert "exception" not in cluster.log("us-east-api").read_text()


@pytest.mark.timeout(600)
def test_schemathesis_finds_nothing(urls: dict[str, str], tmp_path: Path) -> None:
    url = f"{urls['us-east']}/openapi.json"
    command = [sys.executable, "-m", "schemathesis.cli", "run", url, "--checks", "all", "--max-examples", "25"]
    found = subprocess.run(
        [*command, "--seed", "5", "--no-color", "--generation-database", "none"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=500,
        check=False,
    )
    assert found.returncode == 0, found.stdout[-5000:] + found.stderr[-2000:]
    assert "8 selected / 8 total" in found.stdout
