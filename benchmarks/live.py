"""``python -m benchmarks.live``: what it costs to look. The same runs with and without the page open, in turns;
frames a second meanwhile, and the first paint. Needs Chromium (scripts/browser.sh) and a cluster that runs.
"""

from __future__ import annotations

import argparse
import shutil
import statistics
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager

import psutil
from playwright.sync_api import Page, sync_playwright

from pghc.cluster import Backend, open_backend
from pghc.live import show
from pghc.live.page import Server
from pghc.workload import runs

PAINTED = "performance.getEntriesByName('first-contentful-paint')[0]?.startTime"


@contextmanager
def page_of(backend: Backend) -> Iterator[Page]:
    told: list[str] = []
    with closing(show.watch(backend)) as shown, sync_playwright() as playwright:
        server = Server(shown, tell=told.append)
        thread = threading.Thread(target=server.run)
        thread.start()
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        try:
            while not server.started:
                thread.join(0.05)
            page = browser.new_page(viewport={"width": 1440, "height": 900})
            page.goto(told[0])
            page.wait_for_selector(".card")
            yield page
        finally:
            browser.close()
            server.should_exit = True
            thread.join()


def remember(backend: Backend, minutes: int) -> None:
    """What this process, which serves the page, and the page keep while clients write: it should stay the same."""
    print(f"{'minute':>6} {'appends':>9} {'server MB':>9} {'page MB':>8}", flush=True)
    with page_of(backend) as page:
        for minute in range(1, minutes + 1):
            done: list[runs.Run] = []

            def run() -> None:
                done.append(runs.run(backend, "causal", clients=4, seconds=50, fresh=False, keep_history=False))  # noqa: B023

            thread = threading.Thread(target=run)
            thread.start()
            while thread.is_alive():
                page.wait_for_timeout(1000)
            page.request_gc()
            heap = page.evaluate("performance.memory.usedJSHeapSize") / 2**20
            server = psutil.Process().memory_info().rss / 2**20
            print(f"{minute:6} {done[0].appends if done else 0:9} {server:9.1f} {heap:8.1f}", flush=True)


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--rounds", type=int, default=3)
    options.add_argument("--seconds", type=float, default=5)
    options.add_argument("--dir")
    options.add_argument("--memory", type=int, metavar="MINUTES", help="only this: memory, minute by minute, of a run")
    given = options.parse_args()
    backend = open_backend("embedded", given.dir)
    if given.memory:
        remember(backend, given.memory)
        return
    kinds = {"causal": {"clients": 8}, "broadcast": {"clients": 40}, "broadcast, many in flight": {"in_flight": 2_000}}
    rates: dict[tuple[str, bool], list[float]] = {(kind, looked): [] for kind in kinds for looked in (False, True)}
    frames: dict[str, list[int]] = {kind: [] for kind in kinds}
    painted: list[float] = []
    for _ in range(given.rounds):
        for kind, how in kinds.items():
            writer = kind.partition(",")[0]

            def run(kind: str = kind, writer: str = writer, how: dict[str, int] = how) -> float:
                return runs.run(backend, writer, seconds=given.seconds, keep_history=False, **how).rate

            rates[kind, False].append(run())
            with page_of(backend) as page:
                result: list[float] = []
                thread = threading.Thread(target=lambda: result.append(run()))  # noqa: B023
                thread.start()
                while thread.is_alive():
                    page.wait_for_timeout(500)
                    if result or page.evaluate("document.querySelector('.lanes .entry') !== null"):
                        frames[kind].append(int(page.get_attribute(".pghc-live", "data-fps") or 0))
                rates[kind, True].append(result[0])
                painted.append(page.evaluate(PAINTED))
    print(f"{'':28} {'without':>9} {'with page':>9} {'ratio':>6} {'frames/s':>9}")
    for kind in kinds:
        alone, looked = (statistics.median(rates[kind, each]) for each in (False, True))
        print(f"{kind:28} {alone:9.0f} {looked:9.0f} {looked / alone:6.2f} {statistics.median(frames[kind]):9.0f}")
        print(f"{'':28} {rates[kind, False]} {rates[kind, True]}")
    print(f"first paint: {statistics.median(painted):.0f} ms")


if __name__ == "__main__":
    main()
