"""What the tests in a browser share."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from playwright.sync_api import Browser, Page, expect

from pghc.live import page as live
from pghc.live.show import Show

Address = str


@contextmanager
def serving(shown: Show) -> Iterator[Address]:
    """The page, served by a thread of this process."""
    told: list[str] = []
    ready = threading.Event()

    def tell(address: str) -> None:
        told.append(address)
        ready.set()

    server = live.Server(shown, tell=tell)
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        assert ready.wait(20)
        yield told[0]
    finally:
        server.should_exit = True
        thread.join(20)


@contextmanager
def looking(browser: Browser, address: Address, width: int = 1440, **options: Any) -> Iterator[Page]:
    context = browser.new_context(viewport={"width": width, "height": 900}, accept_downloads=True, **options)
    complaints: list[str] = []
    page = context.new_page()
    page.set_default_timeout(15_000)
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.on("console", lambda message: complaints.append(message.text) if message.type == "error" else None)
    try:
        page.goto(address)
        page.wait_for_selector(".card")
        yield page
    finally:
        context.close()
    assert complaints == []


def verdict(page: Page) -> str:
    return page.inner_text('[data-part="verdict"]')


def run(page: Page, writer: str, seconds: str = "60") -> None:
    """Start a run with the mouse."""
    page.select_option("#pghc-writer", writer)
    page.select_option("#pghc-seconds", seconds)
    page.click('[data-do="run"]')
    expect(page.locator('[data-part="run"]')).to_contain_text("acknowledged", timeout=40_000)


def stop(page: Page) -> None:
    """Stop it, and wait until the checker has judged its history."""
    page.click('[data-do="stop"]')
    expect(page.locator('[data-part="run"]')).to_contain_text("over,", timeout=60_000)


def done(page: Page, text: str) -> None:
    """Wait until the page has heard that this was done."""
    expect(page.locator('[data-part="log"]')).to_contain_text(text, timeout=60_000)
