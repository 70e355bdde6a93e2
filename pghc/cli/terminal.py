"""What the command line and the demo print: to people in colour, to programs as JSON.

Results go to standard output; progress and errors to standard error, so that a pipe carries results only. Colour and
moving bars appear on a terminal alone, and never under ``NO_COLOR``.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.measure import Measurement
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text

from pghc.chain import Row
from pghc.cli import interrupts
from pghc.cluster import Backend, Status
from pghc.errors import PghcError
from pghc.verify.checker import Verdict
from pghc.workload import runs

#: A colour a region; they differ in brightness too.
COLOURS = ("cyan", "magenta", "yellow", "blue", "green")
VERDICTS = {True: "bold green", False: "bold red", None: "bold yellow"}
STATES = {"running": "green", "paused": "yellow", "stopped": "red", "unreachable": "red"}



class _Console(Console):
    def on_broken_pipe(self) -> None:
        """Whoever read our output has seen enough: end as programs do that a closed pipe ends."""
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise SystemExit(128 + signal.SIGPIPE)


def _console(*, stderr: bool = False) -> Console:
    """As wide as the terminal; in a file or a pipe wide enough for every line."""
    console = _Console(stderr=stderr, highlight=False, soft_wrap=True)
    if not console.is_terminal:
        console.width = 160
    return console


out, err = _console(), _console(stderr=True)


def put_json(value: Any) -> None:
    """One JSON document, on one line of standard output."""
    out.print(Text(json.dumps(value, ensure_ascii=False, default=str)))


def put_error(error: PghcError, *, write: bool = False) -> None:
    """Say what went wrong and what to do next; of a ``write`` also whether it may have happened."""
    err.print(f"[bold red]error:[/] {escape(error.what)}")
    if write:
        err.print(
            "  definite: this write did not happen"
            if error.definite
            else "  indefinite: this write may have happened, or may yet happen"
        )
    if error.remedy:
        err.print(f"  {escape(error.remedy)}")


def put_verdict(verdict: Verdict, regions: Sequence[str] = ()) -> None:
    """The verdict as a sentence, and the entries of its first anomaly."""
    word, reason = str(verdict).split(": ", 1)
    out.print(Text.assemble((word, VERDICTS[verdict.valid]), f": {reason}"))
    if verdict.anomalies and verdict.anomalies[0].rows:
        put_table(rows_table(verdict.anomalies[0].rows, regions))


def rows_table(rows: Iterable[Row], regions: Sequence[str]) -> Table:
    """Entries, each in the colour of the region that accepted it."""
    entries = table("zk_id", "node_id", "hash")
    entries.columns[0].justify = "right"
    for row in rows:
        entries.add_row(str(row.zk_id), row.node_id, row.hash, style=colour(row.node_id, regions))
    return entries


def status_table(status: Status) -> Table:
    """A line a server."""
    regions = tuple(dict.fromkeys(node.region for node in status.nodes))
    servers = table("server", "state", "answers", "port", "pid", "MB", "")
    for node in status.nodes:
        servers.add_row(
            Text(node.name, colour(node.name, regions)),
            Text(node.state, STATES[node.state]),
            "yes" if node.accessible else Text("no", "red"),
            str(node.port or ""),
            str(node.pid or ""),
            f"{node.memory / 1e6:.0f}" if node.memory else "",
            node.detail,
        )
    return servers


def run_table(run: runs.Run) -> Table:
    """What each region's clients got."""
    regions = table("region", "appends", "median ms", "99 % ms")
    for region, count in run.acknowledged.items():
        latencies = [f"{run.latency_ms(quantile, region):.1f}" if count else "" for quantile in (0.5, 0.99)]
        regions.add_row(Text(region, colour(region, tuple(run.acknowledged))), str(count), *latencies)
    for column in regions.columns[1:]:
        column.justify = "right"
    return regions


def colour(name: str, regions: Sequence[str]) -> str:
    """The colour of the region that a node belongs to; none for a stranger."""
    owner = max((region for region in regions if name == region or name.startswith(f"{region}-")), key=len, default="")
    return COLOURS[regions.index(owner) % len(COLOURS)] if owner else "default"


def table(*columns: str) -> Table:
    """An empty table in the lab's style."""
    empty = Table(box=None, pad_edge=False, header_style="dim")
    for column in columns:
        empty.add_column(column, no_wrap=True)
    return empty


def put_table(full: Table, console: Console | None = None) -> None:
    """Print a table; where it is wider than the console, as a list, so that no value is ever cut."""
    console = console or out
    endless = console.options.update(max_width=10_000)
    if Measurement.get(console, endless, full).maximum <= console.width:
        console.print(full)
        return
    names = [Text(str(column.header), "dim") for column in full.columns]
    for cells in zip(*(column.cells for column in full.columns), strict=True):
        first, *others = [Text(cell) if isinstance(cell, str) else cell for cell in cells]
        console.print(first)
        for name, cell in zip(names[1:], others, strict=True):
            if str(cell):
                console.print(Text.assemble("  ", name, "  " if str(name) else "", cell))


# What takes longer than two seconds


@contextmanager
def bar(what: str) -> Iterator[tuple[Progress, Any]]:
    columns = (
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(bar_width=30),
        TimeElapsedColumn(),
        TextColumn("{task.fields[note]}"),
    )
    with Progress(*columns, console=err, transient=True, disable=not err.is_terminal) as progress:
        yield progress, progress.add_task(what, total=None, note="")


@contextmanager
def steps(what: str) -> Iterator[Callable[[str], None]]:
    """A progress bar that shows each step that it is told."""
    with bar(what) as (progress, task):
        yield lambda step: progress.update(task, note=escape(step))


def start(backend: Backend) -> None:
    """`Backend.up` with a progress bar. Interrupted, it stops again what it started."""
    before = backend.status()
    interrupts.leaves("the cluster runs as before" if before.running else "the cluster is stopped again")
    made = not before.running and not Path(before.directory).exists()
    try:
        with steps("starting the cluster") as say:
            backend.up(say)
    except BaseException:
        if interrupts.code and not before.running:
            with interrupts.held(), bar("stopping the cluster"):
                backend.down(purge=made)
        raise
    interrupts.leaves(f"the cluster in {before.directory} runs: `pghc down` stops it")


def run(backend: Backend, writer: str, *, seconds: float, **options: Any) -> runs.Run:
    """`runs.run` with a progress bar."""
    with bar(f"{writer}: every region's clients append") as (progress, task):
        progress.update(task, total=seconds)

        def report(elapsed: float, acknowledged: int, failed: int) -> None:
            note = f"{acknowledged} appends" + (f", {failed} failed" if failed else "")
            progress.update(task, completed=elapsed, note=note)

        return runs.run(backend, writer, seconds=seconds, progress=report, **options)
