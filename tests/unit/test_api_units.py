"""What an API node decides before it asks any server."""

from __future__ import annotations

import asyncio
import json
import re
import threading
import time
from base64 import b64encode
from collections.abc import Callable, Iterator
from contextlib import ExitStack, nullcontext
from hashlib import sha256
from pathlib import Path
from typing import ClassVar
from uuid import UUID, uuid4

import pytest
from fastapi.testclient import TestClient
from hypothesis import given
from hypothesis import strategies as st

from pghc.api import Settings, create, service
from pghc.api.app import request_id_of
from pghc.api.problems import problem_of
from pghc.api.service import NeverGiven, Service
from pghc.chain import Row
from pghc.errors import BadInput, Behind, Conflict, Indefinite, PghcError, Unavailable
from pghc.topology import Address, Credentials, View, load
from pghc.writers import NAMES, open_writer
from pghc.writers.sharing import Sharing

TOPOLOGY = load()
VIEW = View(
    "us-east",
    TOPOLOGY,
    {node.name: Address("127.0.0.1", 1) for node in TOPOLOGY.nodes},
    Credentials(password="a-password", admin_password="another", zookeeper_password="a-third"),
)
TOKEN = "correct-horse-battery"

Node = Callable[..., TestClient]


@pytest.fixture
def node() -> Iterator[Node]:
    """An API node whose servers are all away, asked without a network."""
    with ExitStack() as stack:

        def make(base_url: str = "http://localhost", *, careless: bool = False, **settings: object) -> TestClient:
            app = create(VIEW, Settings(**settings))  # type: ignore[arg-type]
            stack.callback(app.state.service.reads.close)
            return TestClient(app, base_url=base_url, raise_server_exceptions=not careless)

        yield make


# Keys


@given(st.uuids())
def test_a_key_that_is_a_uuid_is_the_request_id_in_whatever_case_and_quotes(uuid: UUID) -> None:
    text = str(uuid)
    assert {request_id_of(text), request_id_of(text.upper()), request_id_of(f'"{text}"')} == {text}


visible = st.text(st.characters(min_codepoint=33, max_codepoint=126, exclude_characters='"'), min_size=1, max_size=255)


@given(visible, visible)
def test_other_keys_become_request_ids_of_their_own(one: str, other: str) -> None:
    ids = request_id_of(one), request_id_of(other)
    assert (ids[0] == ids[1]) == (one == other)
    assert ids[0] == request_id_of(one) == request_id_of(f'"{one}"')
    assert all(str(UUID(each)) == each for each in ids)


@given(st.one_of(st.just(""), st.text(min_size=256), st.text("\t é\x7f", min_size=1)))
def test_what_is_no_key_is_refused(text: str) -> None:
    with pytest.raises(BadInput):
        request_id_of(text)


# Settings


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.0.2.1", "example.org"])  # noqa: S104
def test_without_a_token_a_node_listens_on_loopback_only(host: str) -> None:
    with pytest.raises(BadInput, match="loopback only"):
        Settings(host=host)
    Settings(host=host, token=TOKEN)


@pytest.mark.parametrize("host", ["127.0.0.1", "::1", "localhost", "127.9.9.9"])
def test_loopback_needs_no_token(host: str) -> None:
    assert Settings(host=host).token == ""


@pytest.mark.parametrize(
    "wrong",
    [
        {"writer": "fast"},
        {"token": "short"},
        {"token": "with a blank in it, and long"},
        {"origins": ("example.org",)},
        {"origins": ("https://example.org/",)},
        {"port": 65_536},
        {"append_seconds": 0},
        {"log_level": "loud"},
        {"live_page": "javascript:alert(1)"},
    ],
)
def test_wrong_settings_are_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(BadInput):
        Settings(**wrong)  # type: ignore[arg-type]


def test_settings_come_from_the_environment_and_the_token_from_a_file(tmp_path: Path) -> None:
    file = tmp_path / "token"
    file.write_text(TOKEN + "\n")
    found = Settings.from_environment(
        {
            "PGHC_API_WRITER": "broadcast",
            "PGHC_API_TOKEN_FILE": str(file),
            "PGHC_API_ORIGINS": "https://a.example, http://b.example:81",
            "PGHC_API_APPEND_SECONDS": "2.5",
        },
        port=99,
    )
    assert (found.writer, found.token, found.port, found.append_seconds) == ("broadcast", TOKEN, 99, 2.5)
    assert found.origins == ("https://a.example", "http://b.example:81")


def test_no_representation_of_settings_or_view_shows_a_secret() -> None:
    assert TOKEN not in repr(Settings(token=TOKEN))
    assert "a-password" not in repr(VIEW)


def test_a_view_survives_its_file() -> None:
    assert View.from_dict(json.loads(json.dumps(VIEW.to_dict()))) == VIEW


# Problem documents


@pytest.mark.parametrize(
    ("error", "status", "outcome"),
    [
        (BadInput("x"), 400, "definite"),
        (Conflict("x"), 409, "definite"),
        (NeverGiven("x"), 409, "definite"),
        (Unavailable("x", "y", node="n"), 503, "definite"),
        (Behind("x"), 503, "definite"),
        (Indefinite("x"), 504, "indefinite"),
        (PghcError("x"), 500, "definite"),
    ],
)
def test_an_error_becomes_a_problem_document_that_says_whether_it_happened(
    error: PghcError, status: int, outcome: str
) -> None:
    answer = problem_of(error)
    document = json.loads(bytes(answer.body))
    assert (answer.status_code, document["status"], document["outcome"]) == (status, status, outcome)
    assert answer.headers["content-type"] == "application/problem+json"
    assert document["detail"] == "x"
    assert ("retry-after" in answer.headers) == (status in (503, 504))
    assert document.get("node") == error.node


# Requests that are answered without any server


def test_the_cluster_is_described_as_the_original_clients_expect_it(node: Node) -> None:
    config = node().get("/cluster/config").json()
    assert config["num_bdr_groups"] == 3
    assert config["num_total_pg_nodes"] == 9
    assert config["regions"]["eu-west"] == {
        "primary": ["eu-west-primary"],
        "replica": ["eu-west-replica-1", "eu-west-replica-2"],
        "zookeeper": ["eu-west-zookeeper"],
        "api": ["eu-west-api"],
    }


def test_ping_is_the_bare_text_pong(node: Node) -> None:
    answer = node().get("/ping")
    assert (answer.status_code, answer.text) == (200, "pong")
    assert answer.headers["content-type"].startswith("text/plain")


@pytest.mark.parametrize(
    ("method", "path", "options", "status"),
    [
        ("GET", "/nowhere", {}, 404),
        ("GET", "/chain", {}, 405),
        ("DELETE", "/chain/recent", {}, 405),
        ("POST", "/chain", {"content": b"{}"}, 413),
        ("POST", "/chain", {"content": iter([b"{", b"}"])}, 413),
        ("GET", "/chain/recent?limit=0", {}, 422),
        ("GET", "/chain/recent?limit=1001", {}, 422),
        ("GET", "/chain/recent?limit=ten", {}, 422),
        ("GET", "/chain/recent?after=-1", {}, 422),
        ("GET", f"/chain/recent?after={2**63}", {}, 422),
        ("GET", "/chain/recent", {"headers": {"PGHC-Position": "new"}}, 422),
        ("GET", "/chain/verify?last=0", {}, 422),
        ("POST", "/chain", {"headers": {"Idempotency-Key": "x" * 256}}, 400),
        ("POST", "/chain", {"headers": {"Idempotency-Key": ""}}, 400),
        ("POST", "/chain", {"headers": [("Idempotency-Key", "a"), ("Idempotency-Key", "b")]}, 400),
        ("GET", "/chain/recent?" + "x" * 1100, {}, 414),
        ("GET", "/ping", {"headers": {f"x-{n}": "y" for n in range(70)}}, 431),
    ],
)
def test_a_wrong_request_is_refused_with_a_problem_document(
    node: Node, method: str, path: str, options: dict[str, object], status: int
) -> None:
    answer = node().request(method, path, **options)  # type: ignore[arg-type]
    assert answer.status_code == status
    assert answer.headers["content-type"] == "application/problem+json"
    assert answer.json()["status"] == status
    assert answer.json()["outcome"] == "definite"


def test_a_body_that_ends_without_a_byte_is_no_body(node: Node) -> None:
    assert node().request("GET", "/ping", content=iter([b""])).status_code == 200


def test_a_writer_that_cannot_repeat_an_append_refuses_keys(node: Node) -> None:
    answer = node(writer="naive").post("/chain", headers={"Idempotency-Key": "a"})
    assert answer.status_code == 400
    assert "naive" in answer.json()["detail"]


@pytest.mark.parametrize("path", ["/chain/recent", "/cluster/config", "/metrics", "/openapi.json", "/nowhere"])
@pytest.mark.parametrize("header", [{}, {"Authorization": f"Bearer {TOKEN}x"}, {"Authorization": f"Basic {TOKEN}"}])
def test_with_a_token_nothing_is_told_to_who_does_not_show_it(
    node: Node, path: str, header: dict[str, str]
) -> None:
    answer = node(token=TOKEN).get(path, headers=header)
    assert answer.status_code == 401
    assert answer.headers["www-authenticate"] == "Bearer"
    assert TOKEN not in answer.text


def test_who_shows_the_token_is_served_by_whatever_name_and_probes_need_none(node: Node) -> None:
    client = node("http://api.example.org", token=TOKEN)
    assert client.get("/cluster/config", headers={"Authorization": f"Bearer {TOKEN}"}).status_code == 200
    assert client.get("/cluster/config", headers={"Authorization": f"bearer {TOKEN}"}).status_code == 200
    assert [client.get(path).status_code for path in ("/ping", "/health/live", "/health/ready")] == [200, 200, 503]


@pytest.mark.parametrize("name", ["http://example.org", "http://localhost.example.org", "http://192.0.2.1", "http://[::2]"])
def test_without_a_token_a_node_answers_only_by_names_that_nobody_else_can_have(node: Node, name: str) -> None:
    assert node(name).get("/ping").status_code == 403
    assert node("http://127.0.0.1:8080").get("/ping").status_code == 200
    assert node("http://[::1]:8080").get("/ping").status_code == 200


def test_pages_of_other_origins_get_nothing_unless_they_are_allowed(node: Node) -> None:
    page = {"Origin": "https://page.example"}
    assert node().get("/ping", headers=page).status_code == 403
    assert node().post("/chain", headers=page).status_code == 403
    allowed = node(origins=("https://page.example",))
    answer = allowed.get("/ping", headers=page)
    assert answer.status_code == 200
    assert answer.headers["access-control-allow-origin"] == "https://page.example"
    assert "PGHC-Position" in answer.headers["access-control-expose-headers"]
    assert allowed.get("/ping", headers={"Origin": "https://other.example"}).status_code == 403
    preflight = page | {"Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "idempotency-key"}
    assert allowed.options("/chain", headers=preflight).status_code == 200


def test_the_document_describes_every_problem_as_one_and_asks_for_the_token(node: Node) -> None:
    document = node(token=TOKEN).get("/openapi.json", headers={"Authorization": f"Bearer {TOKEN}"}).json()
    assert "Problem" in document["components"]["schemas"]
    for path, operations in document["paths"].items():
        for operation in operations.values():
            errors = {s: r for s, r in operation["responses"].items() if s >= "400" and path != "/health/ready"}
            assert all(list(response["content"]) == ["application/problem+json"] for response in errors.values())
            assert ("security" in operation) == (path not in ("/ping", "/health/live", "/health/ready"))
    assert "example" in document["paths"]["/chain"]["post"]["responses"]["200"]["content"]["application/json"]


@pytest.mark.parametrize(("method", "outcome"), [("post", "indefinite"), ("get", "definite")])
def test_an_error_that_nobody_foresaw_is_a_problem_document_too(
    node: Node, monkeypatch: pytest.MonkeyPatch, method: str, outcome: str
) -> None:
    async def fail(*_: object, **__: object) -> None:
        raise ZeroDivisionError("a secret detail")

    monkeypatch.setattr("pghc.api.service.Appends.append", fail)
    monkeypatch.setattr("pghc.api.service.Service.recent", fail)
    answer = node(careless=True).request(method, "/chain" if method == "post" else "/chain/recent")
    assert (answer.status_code, answer.json()["outcome"]) == (500, outcome)
    assert "secret" not in answer.text


def test_the_token_file_must_be_there(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="cannot be read"):
        Settings.from_environment({"PGHC_API_TOKEN_FILE": str(tmp_path / "none")})


# Metrics


def measured(client: TestClient) -> set[str]:
    found = re.findall(r"pghc_requests_total\{(.*)\} [1-9]", client.get("/metrics").text)
    return {re.sub(r'"|\w+=', "", each) for each in found}


def test_every_request_is_counted_under_its_own_route(node: Node) -> None:
    client = node(careless=True)
    client.post("/chain", headers={"Idempotency-Key": ""})
    client.get("/chain")
    client.get("/ping")
    client.head("/ping")
    client.get("/ping", headers={"Origin": "https://page.example"})
    client.get("/nowhere/at/all")
    assert measured(client) == {
        "POST,/chain,400", "GET,/chain,405", "GET,/ping,200", "HEAD,/ping,200", "GET,/ping,403", "other,other,404",
    }  # fmt: skip


# For people


@pytest.mark.parametrize(
    "path",
    ["/", "/docs", "/docs/begin.js", "/docs/swagger-ui.css", "/ping", "/cluster/config", "/openapi.json", "/nowhere"],
)
def test_head_answers_as_get_does_without_a_body(node: Node, path: str) -> None:
    client = node()
    get, head = client.get(path), client.head(path)
    assert head.status_code == get.status_code
    assert head.headers == get.headers
    assert head.content == b"" != get.content


def test_a_browser_is_told_what_this_is_and_how_to_the_live_page(node: Node) -> None:
    answer = node().get("/")
    assert answer.headers["content-type"] == "text/html; charset=utf-8"
    assert "us-east" in answer.text
    assert "<code>pghc watch</code>" in answer.text
    assert 'href="/docs"' in answer.text
    page = "http://127.0.0.1:8090/?a=1&b=2"
    answer = node(live_page=page).get("/")
    assert f'href="{page.replace("&", "&amp;")}"' in answer.text


def test_the_interface_is_shown_without_reaching_for_another_host(node: Node) -> None:
    client = node()
    page = client.get("/docs")
    policy = dict(part.strip().split(" ", 1) for part in page.headers["content-security-policy"].split(";"))
    assert policy.pop("default-src") == "'none'"
    assert not any(re.search(r"https?:|\*|'unsafe-eval'", source) for source in policy.values())
    assert policy["script-src"] == "'self'"
    parts = re.findall(r'(?:src|href)="(/[^"]*)"', page.text)
    assert len(parts) == 3
    for part in parts:
        answer = client.get(part)
        assert answer.status_code == 200, part
        assert answer.headers["content-type"].split(";")[0] in ("text/css", "text/javascript")
        assert answer.headers["x-content-type-options"] == "nosniff"
    assert "'/openapi.json'" in client.get("/docs/begin.js").text
    assert "<script>" not in page.text  # the policy would forbid it


def test_the_style_of_the_front_page_is_the_one_that_its_policy_allows(node: Node) -> None:
    answer = node().get("/")
    [style] = re.findall(r"<style>(.*?)</style>", answer.text, re.DOTALL)
    digest = b64encode(sha256(style.encode()).digest()).decode()
    assert f"'sha256-{digest}'" in answer.headers["content-security-policy"]


def test_a_node_s_own_pages_may_call_it_and_no_others(node: Node) -> None:
    client = node()
    assert client.get("/ping", headers={"Origin": "http://localhost"}).status_code == 200
    assert client.get("/ping", headers={"Origin": "http://localhost:81"}).status_code == 403
    assert client.get("/ping", headers={"Origin": "null"}).status_code == 403


# A writer that cannot be opened


class Refusing:
    """A writer whose constructor fails."""

    error: Exception = ValueError("no such setting")
    opened: ClassVar[list[float]] = []
    ordered = exactly_once = True

    def __init__(self, *_: object) -> None:
        self.opened.append(time.monotonic())
        raise self.error


@pytest.fixture
def refusing(monkeypatch: pytest.MonkeyPatch) -> type[Refusing]:
    monkeypatch.setattr(Refusing, "opened", [])
    monkeypatch.setattr(service, "writer_class", lambda _name: Refusing)
    monkeypatch.setattr(service, "open_writer", lambda *_: Refusing())
    monkeypatch.setattr(service, "Users", lambda *_: nullcontext())
    monkeypatch.setattr(service, "OPENING", 0.2)
    return Refusing


def test_a_writer_that_no_further_attempt_opens_is_not_tried_again_and_appends_say_why(
    node: Node, refusing: type[Refusing]
) -> None:
    with node() as client:
        answers = [client.post("/chain") for _ in range(3)]
        time.sleep(1)
    assert {answer.status_code for answer in answers} == {503}
    assert "ValueError: no such setting" in answers[-1].json()["detail"]
    assert answers[-1].json()["outcome"] == "definite"
    assert len(refusing.opened) == 1


def test_while_servers_are_away_the_writer_is_tried_less_and_less_often_and_appends_say_why(
    node: Node, refusing: type[Refusing], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(refusing, "error", Unavailable("us-east: no quorum", "See `pghc status`"))
    with node() as client:
        deadline = time.monotonic() + 20
        while len(refusing.opened) < 3:
            assert time.monotonic() < deadline
            time.sleep(0.05)
        answer = client.post("/chain")
    assert answer.status_code == 503
    assert "no quorum" in answer.json()["detail"]
    assert answer.json()["remedy"] == "See `pghc status`"
    first, second, third = refusing.opened
    assert second - first >= 0.5
    assert third - second >= 1.0


@pytest.mark.parametrize("name", [name for name in NAMES if name != "naive"])  # which needs no session
def test_a_writer_whose_constructor_fails_leaves_no_session_and_no_thread(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pghc.sequencer.Sequencer.__init__.__kwdefaults__", {"timeout": 0.3, "segment_size": 9})
    monkeypatch.setattr("pghc.mutex.Mutex.__init__.__kwdefaults__", {"timeout": 0.3})
    before = {thread.ident for thread in threading.enumerate()}
    for _ in range(3):
        with pytest.raises(Unavailable):
            open_writer(name, VIEW)
    deadline = time.monotonic() + 5
    while left := {thread for thread in threading.enumerate() if thread.ident not in before}:
        assert time.monotonic() < deadline, left
        time.sleep(0.05)


# Two callers of one request


class Slow(Sharing):
    """A writer that answers when it is told."""

    node_id = "us-east-primary"

    def __init__(self) -> None:
        super().__init__(VIEW)
        self._resources = ExitStack()


def test_of_two_callers_of_one_request_the_first_that_gives_up_does_not_strand_the_second() -> None:
    async def story() -> None:
        writer, key = Slow(), str(uuid4())
        app = Service(VIEW, "causal", timeout=1.0)
        try:
            appends = app.appends
            appends.writer = appends._submits = writer  # type: ignore[assignment]
            appends._loop = asyncio.get_running_loop()
            watch = asyncio.create_task(appends._watch())
            first = asyncio.create_task(appends.append(key, retried=False))
            await asyncio.sleep(0.6)
            second = asyncio.create_task(appends.append(key, retried=False))
            with pytest.raises(PghcError):
                await first
            assert not second.done()
            row = Row(1, "us-east-primary", "0" * 32)
            writer.answer({key: row})
            assert await asyncio.wait_for(second, 1) == row
            third = asyncio.create_task(appends.append(key, retried=False))
            fourth = asyncio.create_task(appends.append(key, retried=False))
            await asyncio.sleep(0.1)
            third.cancel()
            writer.answer({key: row})
            assert await asyncio.wait_for(fourth, 1) == row
            watch.cancel()
        finally:
            app.reads.close()

    asyncio.run(story())
