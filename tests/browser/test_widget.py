"""The same view in a notebook: in a kernel alone, and once in JupyterLab."""

from __future__ import annotations

import gzip
import json
import re
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import httpx
import nbformat
import pytest
from nbclient import NotebookClient
from playwright.sync_api import Browser, expect

from pghc.cluster.local.embedded import Embedded
from pghc.verify.checker import check
from pghc.verify.history import read

ATTACH = "from pghc import Lab\nlab = Lab.attach()\nview = lab.watch()\nview"


def notebook(*cells: str) -> nbformat.NotebookNode:
    book = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell) for cell in cells])
    book.metadata.kernelspec = {"name": "python3", "display_name": "Python 3", "language": "python"}
    return book


def test_the_widget_sees_a_run_of_its_notebook_and_saves_what_the_checker_judges(
    cluster: Embedded, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PGHC_DIR", str(cluster.directory))
    path = tmp_path / "seen.jsonl.gz"
    book = notebook(ATTACH, "lab.run('causal', seconds=2)", f"view.save({str(path)!r})\nview.close()")
    NotebookClient(book, timeout=120).execute()
    shown = book.cells[0].outputs[0].data
    assert "application/vnd.jupyter.widget-view+json" in shown
    assert check(read(path)).valid
    lines = map(json.loads, gzip.decompress(path.read_bytes()).splitlines())
    [live] = [line["live"] for line in lines if "live" in line]
    kinds = {event["k"] for event in live["events"]}
    assert kinds >= {"row", "at", "up", "link", "verdict"}


@pytest.fixture
def jupyterlab(cluster: Embedded, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The address of a JupyterLab that shows one notebook with the widget."""
    monkeypatch.setenv("PGHC_DIR", str(cluster.directory))
    nbformat.write(notebook(ATTACH), tmp_path / "watch.ipynb")
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    options = ["--no-browser", "--allow-root", "--ip=127.0.0.1", f"--port={port}", f"--ServerApp.root_dir={tmp_path}"]
    options += ["--IdentityProvider.token=for-a-test", "--LabApp.news_url=", "--LabApp.extension_manager=readonly"]
    with open(tmp_path / "jupyter.log", "wb") as log:
        server = subprocess.Popen([sys.executable, "-m", "jupyterlab", *options], stdout=log, stderr=log, cwd=tmp_path)
    address = f"http://127.0.0.1:{port}"
    try:
        deadline = time.monotonic() + 60
        while True:
            with suppress(httpx.TransportError):
                httpx.get(f"{address}/api", timeout=5)
                break
            assert time.monotonic() < deadline, (tmp_path / "jupyter.log").read_text()
            time.sleep(0.3)
        yield f"{address}/lab/tree/watch.ipynb?token=for-a-test&reset"
    finally:
        server.terminate()
        server.wait(30)


@pytest.mark.slow
def test_in_jupyterlab_the_widget_is_alive_and_its_buttons_work(chromium: Browser, jupyterlab: str) -> None:
    context = chromium.new_context(viewport={"width": 1600, "height": 1000})
    page = context.new_page()
    page.set_default_timeout(60_000)
    page.goto(jupyterlab)
    page.locator(".jp-CodeCell .cm-content").first.click()
    expect(page.locator(".jp-Notebook-ExecutionIndicator")).to_have_attribute("data-status", "idle", timeout=60_000)
    page.keyboard.press("Shift+Enter")
    expect(page.locator(".pghc-live .card")).to_have_count(3, timeout=60_000)
    expect(page.locator('[data-server="us-east-primary"]')).to_have_class(re.compile("running"), timeout=30_000)
    page.locator('[data-link="us-east ap-south"]').click()
    page.locator('.inspector [data-do="partition"]').click()
    expect(page.locator('[data-link="us-east ap-south"]')).to_contain_text("cut", timeout=30_000)
    page.locator('.inspector [data-do="mend"]').click()
    expect(page.locator('[data-link="us-east ap-south"]')).not_to_contain_text("cut", timeout=30_000)
    context.close()
