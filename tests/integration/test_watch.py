"""`pghc watch` as people type it; what it says, whom it lets in, how it ends. The page in a browser: tests/browser."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx

from pghc.cluster.local.embedded import Embedded
from pghc.verify.history import Recorder


@contextmanager
def watching(directory: Path, *options: str) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """The command, and the address that it prints."""
    command = [sys.executable, "-m", "pghc", "watch", "--no-browser", *options]
    environment = {**os.environ, "PGHC_DIR": str(directory)}
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as watch:
        try:
            assert watch.stdout
            yield watch, watch.stdout.readline().split()[-1]
        finally:
            watch.kill()


def test_ctrl_c_ends_the_page_also_while_somebody_looks_and_leaves_the_cluster_running(cluster: Embedded) -> None:
    with watching(cluster.directory) as (watch, address):
        base, _, token = address.partition("/#")
        with httpx.stream("GET", f"{base}/events", headers={"authorization": f"Bearer {token}"}) as events:
            lines = events.iter_lines()
            assert next(lines) == "event: hello"
            assert {name for name, *_ in json.loads(next(lines)[6:])["servers"]} >= {"us-east-primary"}
            watch.send_signal(signal.SIGINT)
            assert watch.wait(20) == 130
    assert cluster.status().healthy


def test_a_history_is_played_without_a_cluster_and_nothing_can_be_done_to_it(tmp_path: Path) -> None:
    with Recorder(tmp_path / "h.jsonl") as recorder:
        recorder.final("us-east", "us-east-primary", [])
    with watching(tmp_path / "none", "--replay", str(tmp_path / "h.jsonl")) as (_, address):
        base, _, token = address.partition("/#")
        shown = {"authorization": f"Bearer {token}"}
        answer = httpx.post(f"{base}/do", json={"do": "heal"}, headers=shown)
        assert answer.status_code == 400
        assert "replay" in answer.json()["error"]
        assert httpx.get(f"{base}/save", headers=shown).status_code == 409


def test_without_the_token_or_from_elsewhere_nothing_is_seen_or_done(cluster: Embedded) -> None:
    order = {"do": "kill", "node": "us-east-replica-1"}
    with watching(cluster.directory) as (_, address):
        base, _, token = address.partition("/#")
        shown = {"authorization": f"Bearer {token}"}
        with httpx.Client(base_url=base) as client:
            assert client.get("/events").status_code == 401
            assert client.get("/save", headers={"authorization": "Bearer guess"}).status_code == 401
            assert client.post("/do", json=order).status_code == 401
            assert client.post("/do", json=order, headers=shown | {"origin": "http://evil.example"}).status_code == 403
            assert client.post("/do", json=order, headers=shown | {"host": "evil.example"}).status_code == 403
            assert client.get("/", headers={"host": "evil.example"}).status_code == 403
            assert client.get("/").headers["content-security-policy"].startswith("default-src 'none'")
            wrong = ({"do": "none"}, {"do": "kill"}, {"do": "kill", "node": "/"}, {"do": "run", "writer": "causal"}, [])
            for bad in wrong:
                answer = client.post("/do", json=bad, headers=shown)
                assert answer.status_code == 400, bad
                assert answer.json()["error"]
            assert client.post("/do", content=b"x" * 5_000, headers=shown).status_code == 413
    assert cluster.status().healthy
