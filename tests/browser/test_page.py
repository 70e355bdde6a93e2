"""What is seen and done on the page, with a real browser and real servers."""

from __future__ import annotations

import re
from collections import Counter
from contextlib import closing
from pathlib import Path

import pytest
from browsing import Address, done, looking, run, serving, stop, verdict
from playwright.sync_api import Browser, Page, expect

from pghc.chain import Row
from pghc.cluster.local.embedded import Embedded
from pghc.live import show
from pghc.verify.checker import check
from pghc.verify.history import Final, read

PICTURES = Path(__file__).parents[2] / "docs"


def saved(page: Page, path: Path) -> Path:
    with page.expect_download() as download:
        page.click('[data-do="save"]')
    download.value.save_as(path)
    return path


def choose_link(page: Page, one: str = "us-east", other: str = "ap-south") -> None:
    page.click(f'[data-link="{one} {other}"]')


def mark(page: Page, region: str) -> int:
    """Up to which entry a region has all, as the table says."""
    return int(page.text_content(f'tr[data-row="{region}"] [data-cell="upto"]').replace(",", ""))  # type: ignore[union-attr]


# Breaking and holding


def test_naive_writers_break_the_chain_and_both_rivals_are_shown_within_five_seconds(
    page: Page, tmp_path: Path
) -> None:
    run(page, "naive")
    expect(page.locator("[data-rival]").first).to_be_visible(timeout=5_000)
    expect(page.locator('[data-part="verdict"]')).to_contain_text("Invalid: entry", timeout=5_000)
    number = page.locator("[data-rival]").first.get_attribute("data-rival")
    hashes = page.locator(f'[data-rival="{number}"] .hash').all_text_contents()
    assert len(set(hashes)) >= 2
    assert re.search(rf"entries claim place {number}: entry {number} of .*; entry {number} of", verdict(page))
    stop(page)
    judged = check(read(saved(page, tmp_path / "h.jsonl.gz")))
    assert judged.reason in verdict(page)
    assert f"Invalid: entry {judged.anomalies[0].zk_id}" in verdict(page)


def test_causal_writers_are_valid_and_the_numbers_are_those_of_the_saved_history(page: Page, tmp_path: Path) -> None:
    run(page, "causal")
    expect(page.locator('[data-part="verdict"]')).to_contain_text(re.compile(r"Valid up to [1-9]"))
    stop(page)
    path = saved(page, tmp_path / "h.jsonl.gz")
    events = list(read(path))
    judged = check(events)
    assert judged.valid
    assert judged.reason in verdict(page)
    acknowledged = sum(isinstance(event.value, Row) for event in events)
    assert f"over, {acknowledged:,} appends" in page.inner_text('[data-part="run"]')
    chains: Counter[str] = Counter()
    for event in events:
        if isinstance(event.value, Final):
            chains[event.region] += len(event.value.rows)
    assert {region: mark(page, region) for region in chains} == dict(chains)
    with serving(show.replay(path)) as again, looking(page.context.browser, again) as replayed:  # type: ignore[arg-type]
        expect(replayed.locator('[data-part="checked"]')).to_contain_text(judged.reason)
        expect(replayed.locator(".entry[data-state=here]").first).to_be_visible(timeout=60_000)
        replayed.locator('[aria-label^="Time:"]').fill("1000")
        expect(replayed.locator('[data-part="verdict"]')).to_contain_text(judged.reason)
        assert {region: mark(replayed, region) for region in chains} == dict(chains)


@pytest.mark.slow
def test_a_cut_link_holds_writes_back_and_opening_it_lets_them_through(page: Page) -> None:
    run(page, "causal", "600")
    choose_link(page, "us-east", "ap-south")
    page.click('.inspector [data-do="partition"]')
    label = page.locator('[data-link="us-east ap-south"]')
    expect(label).to_contain_text("cut")
    expect(page.locator(".wire.cut")).to_have_count(2)
    expect(label).to_contain_text(re.compile("[→←] [1-9]"))  # writes that are on their way, and stay so
    page.wait_for_timeout(3_000)
    lag = max(mark(page, name) for name in ("us-east", "eu-west")) - mark(page, "ap-south")
    page.click('.inspector [data-do="mend"]')
    expect(label).not_to_contain_text("cut")
    stop(page)
    marks = {mark(page, name) for name in ("us-east", "eu-west", "ap-south")}
    assert len(marks) == 1, f"they were {lag} apart while the link was cut, and are {marks}"
    expect(page.locator('[data-part="verdict"]')).to_contain_text("Valid")


def test_a_link_is_slowed_by_the_slider_and_healed_with_everything_else(page: Page, cluster: Embedded) -> None:
    choose_link(page)
    slider = page.locator('[aria-label="Delay from us-east to ap-south, milliseconds"]')
    slider.fill("400")
    slider.dispatch_event("change")
    expect(page.locator('[data-link="us-east ap-south"]')).to_contain_text("≈ 495 ms")
    page.click('[data-do="heal"]')
    expect(page.locator('[data-link="us-east ap-south"]')).not_to_contain_text("495")
    assert all(link.delay_ms == link.nominal_ms for link in cluster.links())


def test_a_killed_and_a_paused_server_are_seen_as_such_until_all_is_healed(page: Page, cluster: Embedded) -> None:
    page.click('[data-server="ap-south-replica-1"]')
    page.click('.inspector [data-do="kill"]')
    expect(page.locator('[data-server="ap-south-replica-1"]')).to_have_class(re.compile("stopped"))
    page.click('[data-server="eu-west-replica-1"]')
    page.click('.inspector [data-do="pause"]')
    expect(page.locator('[data-server="eu-west-replica-1"]')).to_have_class(re.compile("paused"))
    page.click('[data-do="heal"]')
    done(page, "lab.backend.up()")
    for name in ("ap-south-replica-1", "eu-west-replica-1"):
        expect(page.locator(f'[data-server="{name}"]')).to_have_class(re.compile("running"))
    assert cluster.status().healthy


# Time, and everybody


@pytest.mark.slow
def test_time_stands_still_goes_back_and_comes_back_to_now(page: Page) -> None:
    run(page, "causal", "60")
    while mark(page, "us-east") < 30:  # so that thirty steps back are not yet before the chain
        page.wait_for_timeout(200)
    page.click('[data-do="time"]')
    page.wait_for_timeout(300)  # the frame that was being drawn
    stood = page.inner_text('[data-part="when"]').split()[0]
    shown = mark(page, "us-east")
    page.wait_for_timeout(1_500)
    assert page.inner_text('[data-part="when"]').split()[0] == stood
    page.locator(".pghc-live").focus()
    for _ in range(30):
        page.keyboard.press("ArrowLeft")
    page.wait_for_timeout(300)
    assert page.inner_text('[data-part="when"]').split()[0] < stood
    assert mark(page, "us-east") < shown
    page.click('[data-do="now"]')
    page.wait_for_timeout(300)
    assert mark(page, "us-east") >= shown
    stop(page)


def test_the_keyboard_alone_breaks_causality_and_cuts_a_link(page: Page, cluster: Embedded) -> None:
    def tab_to(selector: str) -> None:
        for _ in range(60):
            if page.evaluate("(wanted) => document.activeElement.matches(wanted)", selector):
                return
            page.keyboard.press("Tab")
        raise AssertionError(f"Tab never comes to {selector}")

    tab_to('[data-link="us-east ap-south"]')
    page.keyboard.press("Enter")  # the focus goes to what can be done with it
    tab_to('.inspector [data-do="partition"]')
    page.keyboard.press("Enter")
    expect(page.locator('[data-link="us-east ap-south"]')).to_contain_text("cut")
    tab_to('[data-do="mend"]')
    page.keyboard.press("Enter")
    expect(page.locator('[data-link="us-east ap-south"]')).not_to_contain_text("cut")
    tab_to("footer button")
    tab_to("#pghc-writer")
    page.keyboard.press("Home")
    tab_to('[data-do="run"]')
    page.keyboard.press("Enter")
    expect(page.locator('[data-part="verdict"]')).to_contain_text("Invalid: entry", timeout=45_000)
    tab_to('[data-do="stop"]')
    page.keyboard.press("Enter")
    expect(page.locator('[data-part="run"]')).to_contain_text("over,", timeout=60_000)


def test_every_button_says_how_to_do_the_same_elsewhere(page: Page) -> None:
    page.click('[data-server="eu-west-primary"]')
    page.hover('.inspector [data-do="kill"]')
    said = page.inner_text('[data-part="same"]')
    assert "pghc fault kill eu-west-primary" in said
    assert 'lab.faults.kill("eu-west-primary")' in said


def test_what_a_mark_on_the_map_means_is_said_by_its_tooltip(page: Page) -> None:
    expect(page.locator('[data-server="eu-west-primary"]')).to_have_attribute(
        "title", re.compile(r"^eu-west-primary: running, primary, has every entry up to \d+$")
    )
    one, other = page.locator(".link").all()[:2]
    for link in (one, other):
        expect(link).to_have_attribute(
            "title", re.compile(r"to [a-z-]+: open, \d+ ms one way, \d+ writes on their way")
        )


@pytest.mark.parametrize("width", [420, 900, 2560])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_nothing_hangs_over_the_edge(chromium: Browser, address: Address, width: int, scheme: str) -> None:
    with looking(chromium, address, width, color_scheme=scheme) as page:
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
        ground = page.evaluate("getComputedStyle(document.querySelector('.pghc-live')).backgroundColor")
        assert (ground == "rgb(255, 255, 255)") == (scheme == "light")
        for card in page.locator(".card").all():
            box, around = card.bounding_box(), page.locator(".map").bounding_box()
            assert box
            assert around
            assert around["x"] <= box["x"]
            assert box["x"] + box["width"] <= around["x"] + around["width"]
            assert around["y"] <= box["y"]
            assert box["y"] + box["height"] <= around["y"] + around["height"]


@pytest.mark.slow
def test_where_the_system_wants_no_motion_nothing_moves_and_the_counts_remain(
    chromium: Browser, address: Address
) -> None:
    with looking(chromium, address, reduced_motion="reduce") as page:
        run(page, "causal", "10")
        drawn = "(sky) => sky.getContext('2d').getImageData(0, 0, sky.width, sky.height).data.some(Boolean)"
        assert not page.locator("canvas").evaluate(drawn)
        expect(page.locator('[data-part="verdict"]')).to_contain_text(re.compile(r"Valid up to [1-9]"))


def test_the_page_asks_no_other_host_for_anything(chromium: Browser, address: Address) -> None:
    asked: list[str] = []
    with looking(chromium, address) as page:
        page.on("request", lambda request: asked.append(request.url))
        page.reload()
        page.wait_for_selector(".card")
    assert asked
    assert all(url.startswith((address.partition("#")[0], "data:")) for url in asked)


def test_a_page_whose_server_has_ended_says_so_and_offers_nothing(chromium: Browser, cluster: Embedded) -> None:
    page = chromium.new_page()
    with closing(show.watch(cluster)) as shown, serving(shown) as address:
        page.goto(address)
        expect(page.locator('[data-do="run"]')).to_be_enabled()
    expect(page.locator('[data-do="now"]')).to_have_text("ended", timeout=15_000)
    expect(page.locator('[data-do="run"]')).to_be_disabled()
    page.close()


def test_where_entries_are_left_out_a_mark_says_so_and_the_number_of_clients_is_the_one_that_counts(page: Page) -> None:
    page.fill("#pghc-clients", "5000")
    page.locator("#pghc-clients").blur()
    expect(page.locator("#pghc-clients")).to_have_value("20")
    run(page, "broadcast")
    expect(page.locator(".lanes .skip").first).to_be_visible(timeout=30_000)
    stop(page)
