"""The ladder of writers in one run, beside what this machine and this WAN can do at best and what else one would pick.

``pghc bench [--quick] [--seconds 5] [--json FILE] [--figure FILE]``. --quick: the main numbers, in about a minute.

Every row's chain is verified; a row whose chain is not valid shows no rate. All numbers of a table come from one run,
as only their ratios mean something on a noisy machine. The cluster is the bench's own and is deleted afterwards.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from itertools import cycle, groupby, islice
from pathlib import Path
from typing import Any, Protocol, Self
from uuid import uuid4

from kazoo.exceptions import BadVersionError
from psycopg import sql
from rich.text import Text

from pghc.chain import ROOT, Row, extend, successor
from pghc.cli import interrupts, terminal
from pghc.cluster.local.embedded import Embedded
from pghc.cluster.mesh import subscription
from pghc.lab import plots
from pghc.sequencer import Entry, Sequencer
from pghc.store import Reader, Store
from pghc.topology import Topology, View
from pghc.verify.checker import verify_chain
from pghc.workload import chains, runs
from pghc.writers import NAMES, Base, Step, no_step, open_writer


@dataclass
class Line:
    """One row of the table; latencies in milliseconds, rates a second, of all regions together."""

    name: str
    in_flight: str
    verdict: str
    rate: float | None = None
    p50: float | None = None
    p99: float | None = None
    by_region: dict[str, float] | None = None
    note: str = ""


class Bench:
    def __init__(self, backend: Embedded, seconds: float, say: Callable[[str], None]) -> None:
        self.backend, self.seconds, self.say = backend, seconds, say
        self.topology: Topology = backend.topology
        self.views = {name: backend.view(name) for name in self.topology.names}
        self.leader = next(
            node.region for node in backend.status().nodes if node.role == "zookeeper" and node.detail == "leader"
        )

    # Raw limits

    def creates_in_turn(self, times: int = 25) -> dict[str, float]:
        """Median milliseconds of one sequential create at a time, from each region."""
        found = {}
        for name, view in self.views.items():
            self.say(f"raw: one create at a time from {name}")
            with Sequencer(view) as sequencer:
                entry = Entry(f"{name}-primary", (str(uuid4()),))
                found[name] = statistics.median(timed(lambda: sequencer.take(entry)) for _ in range(times))  # noqa: B023
        return found

    def creates_pipelined(self) -> float:
        """Creates a second from the leader's region, 256 on their way."""
        self.say("raw: creates in a pipeline")
        with Sequencer(self.views[self.leader]) as sequencer:
            entry, began, sent, open_ = Entry("a-primary", (str(uuid4()),)), time.monotonic(), 0, []
            while time.monotonic() < began + self.seconds:
                open_.append(sequencer.take_async(entry)[1])
                sent += 1
                if len(open_) >= 256:
                    open_.pop(0).get(timeout=10)
            for answer in open_:
                answer.get(timeout=10)
            return sent / (time.monotonic() - began)

    def copy_replicated(self, rows: int = 100_000) -> float:
        """Rows a second by COPY into a plain table on one primary until all other primaries have them."""
        self.say("raw: COPY, replicated")
        table = "create table bench_copy (zk_id bigint primary key, node_id text, hash text)"
        with ExitStack() as stack:
            readers = {
                name: stack.enter_context(Reader(view, f"{name}-primary", admin=True, timeout=120))
                for name, view in self.views.items()
            }
            for reader in readers.values():
                run_sql(reader, table, "alter publication pghc add table bench_copy")
            for name, reader in readers.items():
                for other in readers:
                    if other != name:
                        refresh = sql.SQL("alter subscription {} refresh publication with (copy_data = false)")
                        run_sql(reader, refresh.format(sql.Identifier(subscription(other))))
            first, *others = readers.values()
            text = "".join(f"{n}\ta-primary\t{'0' * 32}\n" for n in range(1, rows + 1))
            began = time.monotonic()
            with (
                first.connection("COPY", writes=True) as connection,
                connection.cursor() as cursor,
                cursor.copy("copy bench_copy from stdin") as copy,
            ):
                copy.write(text)
            for reader in others:
                while reader.rows("select count(*) from bench_copy")[0][0] < rows:
                    if time.monotonic() > began + 100:
                        raise TimeoutError("the rows of COPY did not arrive")
                    time.sleep(0.01)
            rate = rows / (time.monotonic() - began)
            for reader in readers.values():
                run_sql(reader, "drop table bench_copy")
        return rate

    def verification(self, rows: int = 1_000_000) -> float:
        """Rows a second that the verifier in the database judges."""
        self.say(f"verification of {rows:,} rows in the database")
        chains.begin_chain(list(self.views.values()))
        view = self.views[self.leader]
        with Store(view, timeout=300) as store, Reader(view, store.node, timeout=300, admin=True) as admin:
            node = store.node
            with admin.connection("load", writes=True) as connection, connection.transaction():
                connection.execute("select pg_replication_origin_session_setup('log')")
                with connection.cursor() as cursor, cursor.copy("copy public.chain from stdin") as copy:
                    for row in extend(None, (node for _ in range(rows))):
                        copy.write_row(row)
            run_sql(admin, "vacuum (analyze) public.chain")
            began = time.monotonic()
            _, count, anomalies = store.anomalies()
            took = time.monotonic() - began
            assert (count, anomalies) == (rows, [])
        chains.begin_chain(list(self.views.values()))
        return rows / took

    def floor_ms(self, region: str) -> float:
        """The least that one consensus takes: to the leader, from there to the nearest quorum and back, and home."""
        trips = sorted(self.topology.round_trip_ms(self.leader, other) for other in self.topology.names)
        return self.topology.round_trip_ms(region, self.leader) + trips[len(self.topology.names) // 2]

    # Writers

    def one_at_a_time(
        self, name: str, make: Callable[[View], Appends] | None = None, *, rounds: int | None = None
    ) -> Line:
        """One append in the whole world at a time, the regions in turn, ``rounds`` times."""
        rounds = rounds or 10 * max(1, round(self.seconds / 5))
        self.say(f"{name}: one in flight")
        chains.begin_chain(list(self.views.values()))
        took: dict[str, list[float]] = {region: [] for region in self.views}
        with ExitStack() as stack:
            writers = {
                region: stack.enter_context(make(view) if make else open_writer(name, view))
                for region, view in self.views.items()
            }
            for writer in writers.values():
                writer.append(str(uuid4()))  # connections are made with the first
            began = time.monotonic()
            for region in islice(cycle(writers), rounds * len(writers)):
                took[region].append(timed(lambda: writers[region].append(str(uuid4()))))  # noqa: B023
            elapsed = time.monotonic() - began
            verdict = self.verdict()
        every = sorted(value for values in took.values() for value in values)
        line = Line(name, "1", verdict, by_region={r: round(statistics.median(v), 1) for r, v in took.items()})
        if verdict == "valid":
            line.rate, line.p50, line.p99 = len(every) / elapsed, statistics.median(every), every[-1]
        return line

    def loaded(self, name: str, clients: int, in_flight: int = 0) -> Line:
        """``clients`` clients a region, each with one append in flight, or one with ``in_flight`` of them."""
        many = in_flight or clients
        self.say(f"{name}: {many} in flight a region")
        exact = name in ("causal", "broadcast")
        run = runs.run(
            self.backend,
            name,
            clients=clients,
            seconds=self.seconds,
            keep_history=False,
            timeout=20,
            in_flight=in_flight,
        )
        verdict = self.verdict(run.appends + run.unknown if exact else None)
        line = Line(name, f"{many} x {len(self.views)}", verdict, note=f"{run.failed + run.unknown} errors")
        if verdict == "valid":
            line.rate, line.p50, line.p99 = run.rate, run.latency_ms(0.5), run.latency_ms(0.99)
            line.by_region = {region: round(run.latency_ms(0.5, region), 1) for region in self.views}
            if run.caught_up_seconds is not None:
                line.note += f"; all regions equal {run.caught_up_seconds:.2f} s after the end"
        return line

    def verdict(self, most: int | None = None) -> str:
        """Each region's chain verified in its database, and all the same; ``most``: entries there may be."""
        deadline = time.monotonic() + 10
        while time.monotonic() < deadline:
            ends: set[tuple[int, Row | None]] = set()
            for view in self.views.values():
                with Store(view, timeout=120) as store:
                    _, count, anomalies = store.anomalies()
                    ends.add((count, store.last()))
                    if anomalies:
                        return f"invalid: {len(anomalies)} entries offend"
            if len(ends) == 1:
                count = next(iter(ends))[0]
                return "valid" if most is None or count <= most else f"invalid: {count} entries of {most} appends"
            time.sleep(0.1)
        return "invalid: regions differ"

    # What else one would pick

    def single_primary(self) -> Line:
        """One primary for the world, its transactions acknowledged by a majority of the primaries."""
        home = self.topology.central
        name = f"single primary ({home}), synchronous"
        needed = len(self.topology.names) // 2
        view = self.views[home]
        with Reader(view, f"{home}-primary", admin=True, timeout=30) as admin:
            chains.begin_chain(list(self.views.values()))
            run_sql(
                admin,
                """create or replace function public.bench_append(node text, request uuid) returns void
                   language plpgsql as $$
                   declare c pghc.cursor;
                   begin
                     select * into c from pghc.cursor for update;
                     perform pghc.insert(c.zk_id + 1, node, md5((c.zk_id + 1)::text || node || c.hash), request);
                   end $$""",
            )
            standbys = f'ANY {needed} ("{subscription(home)}")'  # so the other primaries' connections are called
            run_sql(admin, f"alter system set synchronous_standby_names = '{standbys}'", "select pg_reload_conf()")
            self._confirm_at_once(home, "on")
            try:
                line = self.one_at_a_time(name, lambda each: SinglePrimary(each, home))
            finally:
                self._confirm_at_once(home, "off")
                run_sql(admin, "alter system reset synchronous_standby_names", "select pg_reload_conf()")
                run_sql(admin, "drop function public.bench_append(text, uuid)")
        return line

    def _confirm_at_once(self, publisher: str, choice: str) -> None:
        """Whether those who subscribe to ``publisher`` flush with each commit; else they confirm seconds later."""
        for name, view in self.views.items():
            if name != publisher:
                change = sql.SQL("alter subscription {} set (synchronous_commit = {})")
                with Reader(view, f"{name}-primary", admin=True, timeout=30) as reader:
                    run_sql(reader, change.format(sql.Identifier(subscription(publisher)), choice))

    def compare_and_swap(self) -> Line:
        """The end of the chain in one znode, moved by compare-and-set; who loses reads and tries again."""
        name = "compare-and-set of one znode"
        self.say(f"{name}: 1 client a region")
        rows: dict[str, int] = dict.fromkeys(self.views, 0)
        took: list[float] = []
        with ExitStack() as stack:
            sequencers = {region: stack.enter_context(Sequencer(view)) for region, view in self.views.items()}
            first = next(iter(sequencers.values())).client
            path = f"/pghc/bench-{uuid4()}"
            first.create(path, json.dumps([0, "", ROOT]).encode())
            chain: list[Row] = []
            end, stop = time.monotonic() + self.seconds, threading.Event()

            def append(region: str) -> None:
                client = sequencers[region].client
                client.sync(path)  # this region's server may not have it yet
                began = time.monotonic()
                while time.monotonic() < end and not stop.is_set():
                    data, stat = client.get(path)
                    row = successor(Row(*json.loads(data)), f"{region}-primary")
                    try:
                        client.set(path, json.dumps(row).encode(), stat.version)
                    except BadVersionError:
                        continue
                    chain.append(row)
                    rows[region] += 1
                    took.append(1000 * (time.monotonic() - began))
                    began = time.monotonic()

            threads = [threading.Thread(target=append, args=(region,)) for region in self.views]
            for thread in threads:
                thread.start()
            try:
                interrupts.sleep(self.seconds)
            finally:
                stop.set()
                for thread in threads:
                    thread.join()
        valid = verify_chain(sorted(chain)).valid
        took.sort()
        note = "appends by region: " + ", ".join(f"{region} {count}" for region, count in rows.items())
        if not valid or not took:
            return Line(name, f"1 x {len(rows)}", "invalid", note=note)
        return Line(
            name, f"1 x {len(rows)}", "valid", len(took) / self.seconds, statistics.median(took), took[-1], note=note
        )


    def compare_and_swap_on_etcd(self) -> Line:
        """The same on etcd, in a process of its own."""
        name = "compare-and-swap on etcd"
        self.say(f"{name}: 1 client a region")
        many = f"1 x {len(self.views)}"
        if not shutil.which("etcd"):
            return Line(name, many, "not measured", note="etcd is not installed (Debian: etcd-server)")
        command = [sys.executable, "-m", "benchmarks.etcd", "--seconds", str(self.seconds)]
        found = json.loads(subprocess.run(command, check=True, capture_output=True, timeout=120).stdout)
        note = "appends by region: " + ", ".join(f"{region} {count}" for region, count in found["appends"].items())
        if not found["valid"]:
            return Line(name, many, "invalid", note=note)
        return Line(name, many, "valid", found["rate"], found["p50"], found["p99"], note=note)


class Appends(Protocol):
    """What is measured of a writer."""

    def append(self, request_id: str) -> object: ...
    def __enter__(self) -> Self: ...
    def __exit__(self, *_: object) -> None: ...


class SinglePrimary(Base):
    """Appends on the one primary of the world, from any region: one round trip and one synchronous commit."""

    ordered = True

    def __init__(self, view: View, home: str, step: Step = no_step) -> None:
        self.node_id = f"{home}-primary"
        self.store = Reader(view, self.node_id, timeout=20)

    def append(self, request_id: str, timeout: float = 10.0) -> None:
        with self.store.connection("append", writes=True) as connection:
            connection.execute("select public.bench_append(%s, %s)", (self.node_id, request_id))

    def close(self) -> None:
        self.store.close()


def run_sql(reader: Reader, *statements: object) -> None:
    with reader.connection("bench", writes=True) as connection:
        for statement in statements:
            connection.execute(statement)  # type: ignore[call-overload]


def timed(work: Callable[[], object]) -> float:
    """Milliseconds that ``work`` takes."""
    began = time.perf_counter()
    work()
    return 1000 * (time.perf_counter() - began)


def main() -> None:
    parser = argparse.ArgumentParser(
        "pghc bench", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seconds", type=float, default=0.0, help="of each measurement (5; with --quick 2)")
    parser.add_argument("--quick", action="store_true", help="the main numbers only, in about a minute")
    parser.add_argument("--json", type=Path, help="write the numbers there")
    parser.add_argument("--figure", type=Path, help="draw the ladder there (PNG or SVG)")
    arguments = parser.parse_args()
    interrupts.install()
    interrupts.leaves("the bench's cluster is deleted")
    for path in (arguments.json, arguments.figure):
        if path and not path.absolute().parent.is_dir():
            parser.error(f"{path} cannot be written: there is no such directory")

    def say(text: str) -> None:
        terminal.err.print(f"  {text}", style="dim", markup=False)

    with tempfile.TemporaryDirectory(prefix="pghc-bench-") as directory:
        backend = Embedded(directory, owner=True)
        try:
            began = time.monotonic()
            backend.up()
            cold = time.monotonic() - began
            memory = backend.status().memory / 2**20
            bench = Bench(backend, arguments.seconds or (2.0 if arguments.quick else 5.0), say)
            report = (measure_quickly if arguments.quick else measure)(bench) | {"start_s": cold, "memory_mb": memory}
        finally:
            with interrupts.held():
                backend.down(purge=True)
    show(report)
    if arguments.json:
        arguments.json.write_text(json.dumps(report, indent=1, default=asdict) + "\n")
    if arguments.figure:
        figure(report["lines"]).savefig(arguments.figure)


def measure(bench: Bench) -> dict[str, Any]:
    """Everything, in one run."""
    creates = bench.creates_in_turn()
    limits = {
        "leader": bench.leader,
        "floor_ms": {region: bench.floor_ms(region) for region in bench.views},
        "create_ms": creates,
        "creates_pipelined": bench.creates_pipelined(),
        "copy_replicated": bench.copy_replicated(),
        "verified": bench.verification(),
    }
    lines = [bench.one_at_a_time(name) for name in ("locked", "causal", "broadcast")]
    lines += [bench.loaded(name, clients) for clients in (1, 16) for name in NAMES]
    lines += [bench.loaded("causal", 256), bench.loaded("broadcast", 256)]
    lines += [bench.loaded("broadcast", 1, in_flight=10_000)]
    lines += [bench.single_primary(), bench.compare_and_swap(), bench.compare_and_swap_on_etcd()]
    return {"limits": limits, "lines": lines, "ratios": ratios(bench, limits, lines)}


def measure_quickly(bench: Bench) -> dict[str, Any]:
    """What shows the story of the ladder."""
    limits = {
        "leader": bench.leader,
        "floor_ms": {region: bench.floor_ms(region) for region in bench.views},
        "create_ms": bench.creates_in_turn(5),
    }
    lines = [bench.one_at_a_time(name, rounds=3) for name in ("locked", "causal", "broadcast")]
    lines += [bench.loaded(name, 16) for name in ("naive", "causal", "broadcast")]
    lines += [bench.loaded("broadcast", 1, in_flight=10_000)]
    return {"limits": limits, "lines": lines, "ratios": ratios(bench, limits, lines)}


def ratios(bench: Bench, limits: dict[str, Any], lines: list[Line]) -> dict[str, float | None]:
    """What DESIGN, section 8, asks for."""
    found = {(line.name, line.in_flight): line for line in lines}
    causal, broadcast, locked = (found[name, "1"] for name in ("causal", "broadcast", "locked"))
    names = bench.topology.names
    one_way = {
        name: bench.topology.delay_ms(before, name)
        for before, name in zip((names[-1], *names[:-1]), names, strict=True)
    }
    best = max((line.rate or 0.0 for line in lines if line.name == "broadcast"), default=0.0)
    create = limits["create_ms"]
    return {
        "causal, one in flight / (create + one-way from the region before), worst region": causal.by_region
        and max(causal.by_region[name] / (create[name] + one_way[name]) for name in names),
        "broadcast, one in flight / create, leader's region": broadcast.by_region
        and broadcast.by_region[bench.leader] / create[bench.leader],
        "broadcast, saturated / locked": best / locked.rate if locked.rate else None,
        "broadcast, saturated / COPY replicated": best / limits["copy_replicated"]
        if "copy_replicated" in limits
        else None,
    }


def show(report: dict[str, Any]) -> None:
    """Print all numbers, however wide the terminal is."""
    limits, out = report["limits"], terminal.out
    start, memory, leader = report["start_s"], report["memory_mb"], limits["leader"]
    out.print(f"Cold start {start:.1f} s, {memory:.0f} MB. ZooKeeper's leader: {leader}.")
    table = terminal.table("raw limits", "", "of which the links take")
    for region, value in limits["create_ms"].items():
        table.add_row(f"one create from {region}", f"{value:,.1f} ms", f"{limits['floor_ms'][region]:.0f} ms")
    for name, what, unit in (
        ("creates_pipelined", "creates in a pipeline", "a second"),
        ("copy_replicated", "COPY, replicated", "rows a second"),
        ("verified", "verified in the database", "rows a second"),
    ):
        if name in limits:
            table.add_row(what, f"{limits[name]:,.0f} {unit}", "")
    terminal.put_table(table)
    for in_flight, lines in groups(report["lines"]).items():
        out.print()
        table = terminal.table(in_flight, "verdict", "appends/s", "p50 ms", "p99 ms", "by region", "note")
        for column in table.columns[2:5]:
            column.justify = "right"
        for line in lines:
            numbers = [f"{value:,.1f}" if value is not None else "-" for value in (line.rate, line.p50, line.p99)]
            regions = " ".join(f"{value:.0f}" for value in (line.by_region or {}).values())
            table.add_row(Text(line.name, "bold"), line.verdict, *numbers, regions, line.note)
        terminal.put_table(table)
    out.print()
    for what, value in report["ratios"].items():
        if value is not None:
            out.print(f"{value:,.2f}  {what}", markup=False)


def groups(lines: Sequence[Line]) -> dict[str, list[Line]]:
    """The lines of each number of appends in flight: only these can be compared."""

    def many(line: Line) -> int:
        return int(line.in_flight.split()[0]) * ("x" in line.in_flight)  # one in the world comes first

    found = {}
    for number, same in groupby(sorted(lines, key=many), many):
        found[f"{number:,} in flight in each region" if number else "1 in flight in the world"] = list(same)
    return found


def figure(lines: Sequence[Line]) -> plots.Plot:
    """The ladder, like beside like; what was not measured is left out."""
    measured = [line for line in lines if line.verdict != "not measured"]
    return plots.ladders(
        {
            name: [plots.Rung(line.name, line.rate or 0.0, line.p50 or 0.0, line.verdict == "valid") for line in same]
            for name, same in groups(measured).items()
        }
    )


if __name__ == "__main__":
    main()
