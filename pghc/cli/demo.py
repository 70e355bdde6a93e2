"""The story in a terminal: causality breaks on real servers, and a total order repairs it. ``make demo``.

Every number printed is of this very run.
"""

from __future__ import annotations

import time

from rich.console import Console
from rich.table import Table
from rich.text import Text

from pghc.chain import Row
from pghc.cli import interrupts, terminal
from pghc.cli.terminal import colour, rows_table
from pghc.cluster import Backend
from pghc.store import Primary
from pghc.verify.checker import Verdict
from pghc.workload.latency import round_trips, take_numbers
from pghc.workload.runs import Run

#: Characters a second that a reader takes in; the story waits accordingly, unless it is told to hurry.
READING_PACE = 70.0
NAIVE_SECONDS, CAUSAL_SECONDS = 3.0, 8.0
WIDTH = 100
#: What the checker's kinds of anomaly mean, in few words.
WORDS = {
    "fork": "places claimed by more than one entry",
    "link": "broken links",
    "gap": "missing numbers",
    "lost": "acknowledged entries that some region lacks",
    "diverged": "places in which the regions differ",
    "reordered": "entries behind others that were asked for after they had been acknowledged",
}


class Demo:
    """Tells the story on ``backend``, which is up. ``pace``: 1 to be read along, 0 without a pause."""

    def __init__(self, backend: Backend, console: Console, pace: float = 1.0) -> None:
        self.backend, self.pace = backend, pace
        self.names = backend.topology.names
        self.views = {name: backend.view(name) for name in self.names}
        self.console = console
        self.width = min(console.width, WIDTH)

    def tell(self) -> bool:
        """True when the naive writers were caught and the causal ones proved valid."""
        self.regions()
        naive = self.naive()
        if naive.verdict.valid is not False:
            self.say("The naive writers were not caught this time, which happens when they do not meet. Try again.")
            return False
        self.numbers()
        causal = self.causal()
        if not causal.verdict.valid:
            self.say("The causal writers must be valid, and are not: this is a defect of the lab.")
            return False
        self.cost(naive, causal)
        self.farewell()
        return True

    # The chapters

    def regions(self) -> None:
        self.title("Regions of real servers")
        self.say(
            "Each region has a Postgres primary that takes writes, two replicas of it, and a ZooKeeper server. The "
            "primaries replicate to each other in both directions. Between regions lie oceans: a proxy that adds their "
            "delay to every byte."
        )
        trips = round_trips(self.views)
        table = terminal.table("round trip, measured", *self.names)
        for source in self.names:
            cells = [f"{trips[source, target]:.0f} ms" if source != target else "·" for target in self.names]
            city = self.backend.topology.region(source).city
            table.add_row(Text(f"{source} ({city})", self.colour(source)), *cells)
        self.show(table)

    def naive(self) -> Run:
        self.title("Everybody writes, nobody asks")
        self.say(
            "The table is a chain: each entry holds the MD5 of its number, its node, and the hash of the entry before. "
            f"Now two clients in every region append for {NAIVE_SECONDS:g} seconds. Each takes the next number and the "
            "last hash from its own region's database, as if it were alone."
        )
        run = terminal.run(self.backend, "naive", clients=2, seconds=NAIVE_SECONDS)
        verdict = run.verdict
        style = terminal.VERDICTS[verdict.valid]
        self.say(
            f"{run.appends} appends were acknowledged, {run.latency_ms():.1f} ms each in the median. What the checker "
            f"says of the history: [{style}]{verdict.word}[/]."
        )
        if verdict.counts:
            self.show(findings(verdict))
        fork = next((each for each in verdict.anomalies if len({row.node_id for row in each.rows}) > 1), None)
        if fork:
            self.say(f"The first broken link: these entries claim place {fork.zk_id}, and a chain has room for one.")
            self.show(rows_table(fork.rows, self.names))
            neither = "Neither knew of the other" if len(fork.rows) == 2 else "None knew of another"
            self.say(
                f"{neither}: the news was still under way. From there on each region tells a story of "
                "its own, and replication is stuck, for no database takes a second entry in the same place."
            )
        return run

    def numbers(self) -> None:
        self.title("A number that all agree on")
        self.say(
            "ZooKeeper gives out numbers: a quorum of its servers agrees on each, so nobody gets one twice, even when "
            "all ask at once."
        )
        taken = take_numbers(self.views)
        table = terminal.table("number", "taken by a client in", "which took")
        for number, region, took in taken:
            table.add_row(str(number), Text(region, self.colour(region)), f"{took:.0f} ms")
        self.show(table)
        self.say(
            "A number alone orders events; it does not make you see them. So a causal writer takes a number, waits "
            "until every entry below it has arrived in its own region, and only then inserts."
        )

    def causal(self) -> Run:
        self.title("Number, wait, insert")
        self.say(f"The same clients, the same regions, causal writers, {CAUSAL_SECONDS:g} seconds:")
        run = terminal.run(self.backend, "causal", clients=2, seconds=CAUSAL_SECONDS)
        verdict = run.verdict
        self.say(f"[{terminal.VERDICTS[verdict.valid]}]{verdict.word.capitalize()}[/]: {verdict.reason}.")
        table = terminal.table("newest entry in", "zk_id", "node_id", "hash")
        for name, row in self.newest().items():
            table.add_row(Text(name, self.colour(name)), str(row.zk_id), row.node_id, row.hash)
        self.show(table)
        return run

    def cost(self, naive: Run, causal: Run) -> None:
        self.title("What it costs")
        table = terminal.table("median append", "naive", "causal", "farthest region, one way")
        topology = self.backend.topology
        for name in self.names:
            farthest = max(topology.delay_ms(other, name) for other in self.names)
            table.add_row(
                Text(name, self.colour(name)),
                *(f"{run.latency_ms(0.5, name):.1f} ms" if run.acknowledged[name] else "" for run in (naive, causal)),
                f"{farthest:.0f} ms",
            )
        self.show(table)
        self.say(
            f"{naive.rate:.0f} appends a second that are wrong, or {causal.rate:.0f} that are right. Order costs "
            "messages, and messages travel no faster than light. How much of the price is physics and how much is "
            "avoidable is what the lessons measure."
        )

    def farewell(self) -> None:
        self.title("Where to go next")
        for command, what in (
            ("make watch", "the regions alive, on a page: break it with your own hands"),
            ("make lab", "the lessons: break it, predict, repair, in a notebook"),
            (".venv/bin/pghc up", "a cluster of your own; then append, tail, verify, run; down stops it"),
            (".venv/bin/pghc --help", "what else can be typed"),
        ):
            self.console.print(Text.assemble(("  " + command.ljust(26), "bold"), what))

    # How it is told

    def title(self, text: str) -> None:
        self.console.print()
        self.console.print(Text(text, "bold underline"))

    def say(self, text: str) -> None:
        self.console.print(text, soft_wrap=False, width=self.width)
        self.pause(len(text) / READING_PACE)

    def show(self, table: Table) -> None:
        terminal.put_table(table, self.console)
        self.pause(1.5)

    def pause(self, seconds: float) -> None:
        time.sleep(self.pace * seconds)

    def colour(self, name: str) -> str:
        return colour(name, self.names)

    def newest(self) -> dict[str, Row]:
        found = {}
        for name, view in self.views.items():
            with Primary(view) as reader:
                if row := reader.last():
                    found[name] = row
        return found


def findings(verdict: Verdict) -> Table:
    """How often each kind of anomaly was found."""
    table = terminal.table("", "")
    table.show_header = False
    for kind, count in verdict.counts.items():
        table.add_row(str(count), WORDS.get(kind, kind))
    table.columns[0].justify = "right"
    return table


def tell(backend: Backend, pace: float = 1.0) -> bool:
    """Start ``backend``, tell the story, stop it and delete its data, whatever happens."""
    try:
        terminal.start(backend)
        return Demo(backend, terminal.out, pace).tell()
    finally:
        with interrupts.held(), terminal.bar("stopping the cluster"):
            backend.down(purge=True)
