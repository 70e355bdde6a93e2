"""The page in a real browser, on a real cluster."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
from browsing import Address, looking, serving
from playwright.sync_api import Browser, Page, sync_playwright

from pghc.cluster.local.embedded import Embedded
from pghc.live import show


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.browser)


@pytest.fixture(scope="module")
def chromium() -> Iterator[Browser]:
    """For one file: while Playwright lives its event loop runs in this thread, and no other test may start one."""
    found = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if found is None:
        pytest.skip("no Chromium is installed: scripts/browser.sh installs Debian's")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=found, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def address(chromium: Browser, cluster: Embedded) -> Iterator[Address]:
    """Of the page of the cluster; not served where there is no browser to look at it."""
    with closing(show.watch(cluster)) as shown, serving(shown) as at:
        yield at


@pytest.fixture
def page(chromium: Browser, address: Address) -> Iterator[Page]:
    """The page, as a light one of 1,440 pixels. What it complains of fails the test."""
    with looking(chromium, address) as page:
        yield page
