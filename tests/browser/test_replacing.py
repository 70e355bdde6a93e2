"""A primary is lost, followed and rebuilt by the page's buttons, while clients write."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import closing

import pytest
from browsing import looking, run, serving
from clusters import embedded
from playwright.sync_api import Browser, expect

from pghc.cluster.local.embedded import Embedded
from pghc.live import show


@pytest.fixture
def own_cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Embedded]:
    """Roles change in it."""
    with embedded(tmp_path_factory, "replacing") as backend:
        yield backend


@pytest.mark.slow
def test_a_primary_is_lost_followed_and_rebuilt_by_buttons_while_clients_write(
    chromium: Browser, own_cluster: Embedded
) -> None:
    with closing(show.watch(own_cluster)) as shown, serving(shown) as address, looking(chromium, address) as page:
        run(page, "causal", "60")
        page.click('[data-server="eu-west-primary"]')
        page.hover('.inspector [data-do="lose"]')
        assert "pghc fault lose eu-west-primary" in page.inner_text('[data-part="same"]')
        page.click('.inspector [data-do="lose"]')
        expect(page.locator('[data-server="eu-west-primary"]')).to_have_class(re.compile("stopped"), timeout=20_000)
        page.click('[data-server="eu-west-replica-1"]')
        page.click('.inspector [data-do="promote"]')
        assert "pghc promote eu-west --to eu-west-replica-1" in page.inner_text('[data-part="same"]')
        expect(page.locator('[data-server="eu-west-replica-1"]')).to_have_class(
            re.compile("primary running"), timeout=30_000
        )
        page.click('[data-server="eu-west-primary"]')
        page.click('.inspector [data-do="rebuild"]')
        expect(page.locator('[data-server="eu-west-primary"]')).to_have_class(
            re.compile("replica running"), timeout=40_000
        )
        expect(page.locator('[data-part="run"]')).to_contain_text("over,", timeout=90_000)
        expect(page.locator('[data-part="verdict"]')).to_contain_text("every link holds")
        assert not page.locator('[data-part="log"] .error').count()
