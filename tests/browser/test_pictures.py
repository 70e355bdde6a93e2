"""The pictures of the page in README and the lessons. With ``PGHC_PICTURES`` set they are kept with the lessons."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest
from browsing import Address, looking, run, stop
from PIL import Image
from playwright.sync_api import Browser, expect

KEPT = Path(__file__).parents[2] / "notebooks/pictures"


@pytest.mark.slow
def test_pictures_of_a_broken_and_of_a_valid_chain(chromium: Browser, address: Address, tmp_path: Path) -> None:
    place = KEPT if os.environ.get("PGHC_PICTURES") else tmp_path
    place.mkdir(exist_ok=True)
    with looking(chromium, address) as page:
        run(page, "naive")
        expect(page.locator("[data-rival]").first).to_be_visible()
        page.wait_for_timeout(1_500)
        page.screenshot(path=place / "live-naive.png")
        stop(page)
    with looking(chromium, address, color_scheme="dark") as page:
        run(page, "causal")
        page.click('[data-link="us-east ap-south"]')
        page.click('.inspector [data-do="partition"]')
        expect(page.locator(".wire.cut")).to_have_count(2)
        expect(page.locator('[data-part="verdict"]')).to_contain_text(re.compile(r"Valid up to [1-9]"))
        page.wait_for_timeout(3_000)
        page.screenshot(path=place / "live-cut.png")
        page.click('.inspector [data-do="mend"]')
        stop(page)
    for name in ("live-naive.png", "live-cut.png"):
        Image.open(place / name).quantize(192).save(place / name, optimize=True)
        assert 20_000 < (place / name).stat().st_size < 200_000, name
