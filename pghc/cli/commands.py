"""What people type: ``pghc --help``.

Exit codes: 0 valid, or done; 1 invalid; 2 could not tell, wrong usage or an error; 130 after Ctrl-C.
"""

from __future__ import annotations

import logging
import os
import sqlite3
import sys
import threading
import webbrowser
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, closing
from dataclasses import asdict
from importlib.util import find_spec
from pathlib import Path
from runpy import run_module
from typing import Annotated, NoReturn
from uuid import UUID, uuid4

import typer

from pghc.chain import Row
from pghc.cli import interrupts, terminal
from pghc.cli.demo import tell
from pghc.cli.terminal import out, put_error, put_json, put_table, put_verdict
from pghc.cluster import BACKENDS, Backend, default_directory, open_backend, replacing
from pghc.cluster.local.embedded import Embedded
from pghc.cluster.surroundings import place
from pghc.errors import BadInput, ClusterError, PghcError
from pghc.faults.injection import Faults
from pghc.faults.trials import trial
from pghc.live import show
from pghc.store import Primary, Store
from pghc.topology import View, load
from pghc.verify import history
from pghc.verify.audit import audit, audit_regions
from pghc.verify.checker import Verdict
from pghc.verify.checker import check as check_events
from pghc.verify.edn import to_edn
from pghc.verify.shiviz import to_shiviz
from pghc.workload.lease import Users
from pghc.writers import NAMES, open_writer

app = typer.Typer(
    help="A laboratory for consensus, total-order broadcast and causality on real Postgres and ZooKeeper servers.",
    epilog="Exit codes: 0 valid or done, 1 invalid, 2 could not tell or an error, 130 after Ctrl-C.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

Where = Annotated[
    str, typer.Option("--backend", envvar="PGHC_BACKEND", help=f"Where the servers run: {', '.join(BACKENDS)}.")
]
Directory = Annotated[
    Path | None,
    typer.Option("--dir", envvar="PGHC_DIR", help="The cluster's directory; one each keeps clusters apart."),
]
Region = Annotated[str | None, typer.Option("--region", "-r", help="Whose client this is. Default: the first region.")]
WriterName = Annotated[
    str, typer.Option("--writer", "-w", help=f"How entries get their place: {', '.join(NAMES)}.")
]
#: Seconds after which entries are looked for that came without those before them, which nothing notifies.
LATE = 0.5
ALL = 1_000_000
#: The files of our lessons; a notebook of somebody else's is not for us to trust.
LESSON = "[0-9][0-9]-*.ipynb"
Timeout = Annotated[float, typer.Option(min=0.1, max=600, help="Seconds until an append counts as indefinite.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON, for a program to read.")]


# The cluster


@app.command()
def up(
    topology: Annotated[
        Path | None, typer.Option(help="Regions and delays of a new cluster, as in pghc/topology.toml.")
    ] = None,
    durable: Annotated[
        bool | None,
        typer.Option(help="Wait for the disk, so that the machine may lose its power. Default: as before, first no."),
    ] = None,
    backend: Where = "embedded",
    directory: Directory = None,
    json: AsJson = False,
) -> None:
    """Start the cluster, or start again what is missing of it, and open links that are cut."""
    cluster = open_backend(backend, directory, load(str(topology)) if topology else None)
    if isinstance(cluster, Embedded):
        cluster.durable = durable
    elif durable is False:
        raise BadInput(f"the backend {cluster.name} is durable", "The embedded one need not be.")
    terminal.start(cluster)
    raise typer.Exit(2 if _put_status(cluster, json) else 0)


@app.command()
def down(
    purge: Annotated[bool, typer.Option("--purge", help="Delete the cluster's data, too.")] = False,
    backend: Where = "embedded",
    directory: Directory = None,
) -> None:
    """Stop every server."""
    interrupts.leaves("the cluster was stopped all the same")
    with interrupts.held(), terminal.bar("stopping the cluster"):
        open_backend(backend, directory).down(purge=purge)


@app.command()
def status(backend: Where = "embedded", directory: Directory = None, json: AsJson = False) -> None:
    """Say what runs and what answers. Exit code 1 when something is amiss, 2 when nothing runs."""
    raise typer.Exit(_put_status(open_backend(backend, directory), json))


def _put_status(cluster: Backend, json: bool) -> int:
    now = cluster.status()
    if json:
        put_json(asdict(now) | {"healthy": now.healthy})
    elif now.running:
        put_table(terminal.status_table(now))
        for link in now.links:
            if link.state != "open" or link.delay_ms != link.nominal_ms:
                out.print(f"link {link.source} → {link.target}: {link.state}, {link.delay_ms:g} ms one way")
        started = f", started in {now.up_seconds:.1f} s" if now.up_seconds is not None else ""
        out.print(f"{now.backend} cluster in {now.directory}: {now.memory / 1e6:.0f} MB{started}")
        machine = "and the machine's" if now.durable else "not the machine's"
        out.print(f"What is acknowledged survives the death of any process, {machine}.")
        if not now.healthy:
            out.print(f"Not everything answers: {now.remedy}", style="yellow")
    else:
        out.print(f"no {now.backend} cluster runs in {now.directory}: `pghc up` starts one")
    return 0 if now.healthy else 1 if now.running else 2


@app.command()
def promote(
    region: Annotated[str, typer.Argument(help="The region whose primary is lost, or is to be another.")],
    to: Annotated[str | None, typer.Option(help="The replica. Default: the one that has most.")] = None,
    backend: Where = "embedded",
    directory: Directory = None,
) -> None:
    """Make a replica the region's primary. What it had not received comes from the log."""
    cluster = replacing(open_backend(backend, directory))
    interrupts.leaves("the promotion may be half done: `pghc up` brings it to its end")
    with terminal.steps(f"promoting a replica of {region}") as say:
        node = cluster.promote(region, to, say)
    out.print(f"{node} is the primary of {region}", markup=False)


@app.command()
def rebuild(
    name: Annotated[str, typer.Argument(help="The server, as `pghc status` names it, or a whole region.")],
    backend: Where = "embedded",
    directory: Directory = None,
) -> None:
    """Give a server its data back from those that have it; a region, all that lack theirs."""
    cluster = replacing(open_backend(backend, directory))
    interrupts.leaves("the copy goes on: `pghc up` brings it to its end, or say the same again")
    with terminal.steps(f"rebuilding {name}") as say:
        cluster.rebuild(name, say)
    out.print(f"{name} is rebuilt", markup=False)


# The chain


@app.command()
def append(
    region: Region = None,
    writer: WriterName = "causal",
    request_id: Annotated[
        UUID | None, typer.Option(help="The same for every retry of one append: it then happens once.")
    ] = None,
    timeout: Timeout = 10,
    backend: Where = "embedded",
    directory: Directory = None,
    json: AsJson = False,
) -> None:
    """Append one entry as a client of a region, and print it."""
    view = _view(open_backend(backend, directory), region)
    request = str(request_id or uuid4())
    again = f"pghc append --region {view.region} --writer {writer} --request-id {request}"
    interrupts.leaves(f"the append may have happened, or may yet happen. The same append again: {again}")
    try:
        with Users(view) as users, open_writer(writer, view) as chosen:
            users.check()
            row = chosen.append(request, timeout)
    except PghcError as error:
        put_error(error, write=True)
        if not error.definite:
            terminal.err.print(f"  The same append again: {again}")
        raise typer.Exit(2) from error
    _put_rows([row], view, json)


@app.command()
def tail(
    region: Region = None,
    last: Annotated[int, typer.Option("--last", "-n", min=1, max=1_000_000, help="How many entries.")] = 10,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on with those that arrive.")] = False,
    everything: Annotated[
        bool, typer.Option("--all", help="Also entries whose predecessors have not arrived in the region.")
    ] = False,
    backend: Where = "embedded",
    directory: Directory = None,
    json: AsJson = False,
) -> None:
    """Print the newest entries that a region's primary has."""
    view = _view(open_backend(backend, directory), region)
    with Store(view) as store:
        for turn, rows in enumerate(_arrivals(store, last, prefix=not everything)):
            _put_rows(rows, view, json, header=not turn)
            if not follow:
                break


def _arrivals(store: Store, last: int, *, prefix: bool) -> Iterator[list[Row]]:
    """The newest ``last`` entries, then for ever those that arrive, in the order in which they do.

    Without ``prefix``, entries above the watermark come in any order: those that have been given are remembered.
    """
    with store.snapshot() as now:
        cursor = now.cursor()
        above, rows = now.recent(last, prefix=prefix)
        given = {*rows, *now.recent(ALL, after=above, prefix=prefix)[1]}
    yield rows
    while True:
        store.wait_for(cursor.position + 1, 5.0 if prefix else LATE)
        with store.snapshot() as now:
            current = now.cursor()
            if current.chain != cursor.chain:
                terminal.err.print("a new chain begins", style="dim")
                above, given = 0, set()
            cursor = current
            above, rows = now.recent(ALL, after=above, prefix=prefix)
        if new := [row for row in rows if row not in given]:
            yield new
        given = {row for row in rows if row.zk_id > above}


@app.command()
def verify(
    last: Annotated[int | None, typer.Option("--last", "-n", min=1, help="Only so many entries.")] = None,
    region: Annotated[
        str | None, typer.Option("--region", "-r", help="Only that region's primary. Default: all, compared.")
    ] = None,
    backend: Where = "embedded",
    directory: Directory = None,
    json: AsJson = False,
) -> None:
    """Recompute the chain's links in the databases and compare the regions: 0 valid, 1 invalid, 2 could not tell."""
    cluster = open_backend(backend, directory)
    names = cluster.topology.names
    each: dict[str, Verdict] = {}
    with terminal.bar("verifying"):
        if region:
            view = _view(cluster, region)
            with Primary(view, timeout=60) as reader:
                whole = audit(reader, last)
        else:
            whole, each = audit_regions({name: cluster.view(name) for name in names}, last)
    if json:
        put_json(whole.to_dict() | {"regions": {name: verdict.to_dict() for name, verdict in each.items()}})
    else:
        for name, verdict in each.items():
            out.print(f"{name}: {verdict.word}, {verdict.checked.get('entries', 0)} entries")
        put_verdict(whole, names)
    raise typer.Exit(whole.exit_code)


@app.command()
def api(
    region: Region = None,
    writer: Annotated[
        str, typer.Option("--writer", "-w", envvar="PGHC_API_WRITER", help="How entries get their place.")
    ] = "causal",
    host: Annotated[str, typer.Option(help="Where to listen; other than on loopback only with a token.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65_535, help="0: any free port; the log names it.")] = 8080,
    backend: Where = "embedded",
    directory: Directory = None,
) -> None:
    """Run one more API node of a region, in the foreground: the chain behind HTTP.

    More by environment: PGHC_API_TOKEN_FILE, a file with the token that clients must show; PGHC_API_ORIGINS, whose
    pages may call, separated by commas.
    """
    try:
        from pghc.api import Settings, serve
    except ImportError as error:
        raise ClusterError(f"the API lacks a package: {error}", "Install it: pip install 'pghc[api]'") from error
    settings = Settings.from_environment(writer=writer, host=host, port=port)
    serve(_view(open_backend(backend, directory), region), settings)


# Histories


@app.command()
def run(
    writer: WriterName = "causal",
    clients: Annotated[int, typer.Option("--clients", "-c", min=1, max=1000, help="Clients in each region.")] = 2,
    seconds: Annotated[float, typer.Option("--seconds", "-s", min=0.1, max=86_400, help="How long.")] = 5,
    reads: Annotated[float, typer.Option(min=0, max=100, help="Reads of the region's replicas for each append.")] = 0,
    history: Annotated[Path | None, typer.Option(help="Keep the history in this file; .gz compresses it.")] = None,
    fresh: Annotated[bool, typer.Option("--fresh/--continue", help="A new chain, or go on with the last.")] = True,
    timeout: Timeout = 10,
    nemesis: Annotated[
        bool, typer.Option("--nemesis", help="Random faults meanwhile: servers, links, clients; all healed in the end.")
    ] = False,
    seed: Annotated[int, typer.Option(help="Of the clients' choices and of the faults.")] = 0,
    backend: Where = "embedded",
    directory: Directory = None,
    json: AsJson = False,
) -> None:
    """Let clients in every region append at once, and judge what came of it: 0 valid, 1 invalid, 2 could not tell.

    Two writers at once: causal+broadcast in each region, causal/broadcast in turns. A run with --nemesis of writers
    that must be valid and are not leaves its history, its schedule and the servers' logs behind.
    """
    _writable(history)
    cluster = open_backend(backend, directory)
    options = {"clients": clients, "reads": reads, "history_path": history, "fresh": fresh, "timeout": timeout}
    interrupts.leaves("the chain keeps what was appended until then, and no history is kept" + (
        "; what was hurt has been healed" if nemesis else ""
    ))
    chaos = None
    if nemesis:
        def say(text: str) -> None:
            terminal.err.print(text, style="dim", markup=False)

        chaos = trial(cluster, writer, seed, seconds, run=terminal.run, say=say, **options)
    done = chaos.run if chaos else terminal.run(cluster, writer, seconds=seconds, seed=seed, **options)
    with terminal.bar("judging the history"):
        verdict = done.verdict
    if chaos:
        for trouble in chaos.troubles:
            terminal.err.print(f"not healed by itself: {trouble}", markup=False)
        if chaos.diagnostics:
            terminal.err.print(f"diagnostics: {chaos.diagnostics}", markup=False)
    for name, reason in done.behind.items():
        terminal.err.print(f"not waited for any longer: {name} {reason}", markup=False)
    if json:
        put_json(
            {
                "writer": done.writer,
                "seconds": done.seconds,
                "appends": done.acknowledged,
                "failed": done.failed,
                "indefinite": done.unknown,
                "reads": done.reads,
                "errors": done.errors,
                "latency_ms": {
                    name: {"p50": done.latency_ms(0.5, name), "p99": done.latency_ms(0.99, name)}
                    for name, count in done.acknowledged.items()
                    if count
                },
                "caught_up_seconds": done.caught_up_seconds,
                "behind": done.behind,
                "history": done.path,
                "verdict": verdict.to_dict(),
            }
        )
    else:
        put_table(terminal.run_table(done))
        outcome = f"{done.failed} failed, {done.unknown} indefinite"
        out.print(f"{done.appends} appends in {done.seconds:.1f} s: {done.rate:.1f} a second; {outcome}")
        for error, count in done.errors.most_common(3):
            out.print(f"  {count} × {error}", markup=False)
        out.print(f"history: {done.path}", markup=False)
        put_verdict(verdict, cluster.topology.names)
    raise typer.Exit(verdict.exit_code)


@app.command()
def check(
    file: Annotated[Path, typer.Argument(help="A history, ours or another program's; /dev/stdin for a pipe.")],
    edn: Annotated[Path | None, typer.Option(help="Write it as EDN too, for Jepsen's and Elle's checkers.")] = None,
    shiviz: Annotated[Path | None, typer.Option(help="Write it for ShiViz too, which draws it.")] = None,
    json: AsJson = False,
) -> None:
    """Judge a history: 0 valid, 1 invalid, 2 could not tell."""
    for target in (edn, shiviz):
        _writable(target)
    with terminal.bar("judging the history"):
        verdict = check_events(history.read(file))
        if edn:
            to_edn(history.read(file), edn)
        if shiviz:
            to_shiviz(history.read(file), shiviz)
    if json:
        put_json(verdict.to_dict())
    else:
        put_verdict(verdict)
    raise typer.Exit(verdict.exit_code)


# Faults

faults = typer.Typer(no_args_is_help=True, help="Hurt the running cluster for some seconds, and heal it again.")
app.add_typer(faults, name="fault")
Seconds = Annotated[float, typer.Option("--seconds", "-s", min=0.1, max=3600, help="Until it is healed; Ctrl-C too.")]
Source = Annotated[str, typer.Argument(help="Region.")]
Server = Annotated[str, typer.Argument(help="Server, as `pghc status` names it.")]


def _hurt(fault: AbstractContextManager[None], seconds: float, what: str) -> None:
    interrupts.leaves(f"{what}: healed")
    with interrupts.held(), fault, terminal.bar(f"{what} for {seconds:g} s"):
        interrupts.sleep(seconds)
    out.print(f"{what}: healed", markup=False)


@faults.command()
def cut(
    source: Source, target: Source, seconds: Seconds = 5, backend: Where = "embedded", directory: Directory = None
) -> None:
    """Deliver nothing from one region to another; the other direction stays open."""
    _hurt(Faults(open_backend(backend, directory)).cut(source, target), seconds, f"{source} → {target} cut")


@faults.command()
def partition(
    one: Source, other: Source, seconds: Seconds = 5, backend: Where = "embedded", directory: Directory = None
) -> None:
    """Deliver nothing between two regions, in both directions."""
    _hurt(Faults(open_backend(backend, directory)).partition(one, other), seconds, f"{one} | {other} partitioned")


@faults.command()
def slow(
    source: Source,
    target: Source,
    delay_ms: Annotated[float, typer.Argument(min=0, max=60_000, help="One way, in milliseconds.")],
    seconds: Seconds = 5,
    backend: Where = "embedded",
    directory: Directory = None,
) -> None:
    """Let everything from one region to another take longer."""
    fault = Faults(open_backend(backend, directory)).slow(source, target, delay_ms)
    _hurt(fault, seconds, f"{source} → {target} at {delay_ms:g} ms")


@faults.command()
def reset(
    one: Source, other: Source, seconds: Seconds = 5, backend: Where = "embedded", directory: Directory = None
) -> None:
    """Close the connections between two regions and refuse new ones."""
    _hurt(Faults(open_backend(backend, directory)).reset(one, other), seconds, f"{one} | {other} reset")


@faults.command()
def kill(node: Server, seconds: Seconds = 5, backend: Where = "embedded", directory: Directory = None) -> None:
    """Kill -9 a server; start it again afterwards."""
    _hurt(Faults(open_backend(backend, directory)).kill(node), seconds, f"{node} killed")


@faults.command()
def pause(node: Server, seconds: Seconds = 5, backend: Where = "embedded", directory: Directory = None) -> None:
    """Stop a server in its tracks, its connections open."""
    _hurt(Faults(open_backend(backend, directory)).pause(node), seconds, f"{node} paused")


@faults.command()
def lose(
    name: Annotated[str, typer.Argument(help="Server, as `pghc status` names it, or region.")],
    backend: Where = "embedded",
    directory: Directory = None,
) -> None:
    """Kill -9 a server, or a whole region, and delete its data. Nothing heals this by itself: see promote, rebuild."""
    replacing(open_backend(backend, directory)).lose(name)
    out.print(f"{name}: lost, with its data. `pghc status` says what to do", markup=False)


# Guided tours


@app.command()
def demo(
    fast: Annotated[bool, typer.Option("--fast", help="Without pauses for reading.")] = False,
    directory: Annotated[
        Path | None, typer.Option("--dir", help="A directory that does not exist; the cluster there is deleted after.")
    ] = None,
) -> None:
    """Tell the whole story in this terminal: break causality, repair it. Exit code 0 only if both were shown."""
    chosen = place(directory or default_directory().with_name(f"demo-{os.getpid()}"))
    if chosen.exists():
        raise BadInput(f"{chosen} exists, and the demo would delete it", "Choose another --dir.")
    interrupts.leaves("the demo's cluster is deleted")
    told = tell(Embedded(chosen, owner=True), 0 if fast or not out.is_terminal else 1)
    raise typer.Exit(0 if told else 1)


@app.command()
def watch(
    replay: Annotated[
        Path | None, typer.Option(help="Play this history instead; needs no cluster. The page saves such files.")
    ] = None,
    port: Annotated[int, typer.Option(min=0, max=65_535, help="Of the page, on loopback. 0: any free one.")] = 0,
    browser: Annotated[bool, typer.Option(help="Open a browser.")] = True,
    backend: Where = "embedded",
    directory: Directory = None,
) -> None:
    """See the regions run, on a page of this machine: writes travel, chains break, links are cut by your own hand.

    The address holds the token without which nobody may look or press a button. Ctrl-C ends the page; a cluster that
    ran already is left running.
    """
    try:
        from pghc.live.page import Server
    except ImportError as error:
        raise ClusterError(f"the page lacks a package: {error}", "Install it: pip install 'pghc[api]'") from error

    def tell(address: str) -> None:
        out.print(f"The page: {address}\nCtrl-C ends it.", markup=False)
        if browser:
            threading.Thread(target=webbrowser.open, args=(address,), daemon=True).start()

    if replay:
        Server(show.replay(replay), port, tell).run()
        return
    cluster, ours = _attach(backend, directory)
    try:
        terminal.start(cluster)
        if ours:
            interrupts.leaves("the cluster is stopped again")
        with closing(show.watch(cluster)) as shown:
            Server(shown, port, tell).run()
    finally:
        interrupts.install()  # the page's server has put its own handlers in their place
        if ours:
            with interrupts.held(), terminal.bar("stopping the cluster"):
                cluster.down()


@app.command()
def lab(
    lessons: Annotated[Path, typer.Argument(help="The directory of the lessons.")] = Path("notebooks"),
    port: Annotated[int, typer.Option(min=0, max=65_535, help="Of JupyterLab, on loopback.")] = 8888,
    browser: Annotated[bool, typer.Option(help="Open a browser.")] = True,
    backend: Where = "embedded",
    directory: Directory = None,
) -> None:
    """Open the lessons in JupyterLab with the cluster running behind them; Ctrl-C stops both.

    A cluster that ran already is left running.
    """
    try:
        from jupyterlab.labapp import LabApp
    except ImportError as error:
        raise ClusterError(f"the lessons lack a package: {error}", "Install it: pip install 'pghc[lab]'") from error
    if not lessons.is_dir():
        raise BadInput(f"there is no directory {lessons}", "Run this where the repository is, or name the directory.")
    cluster, ours = _attach(backend, directory)
    os.environ["PGHC_BACKEND"] = backend  # for the notebooks' kernels
    if directory:
        os.environ["PGHC_DIR"] = str(place(directory))
    trust(lessons)
    settings = {
        "ServerApp.ip": "127.0.0.1",
        "ServerApp.port": port,
        "ServerApp.root_dir": lessons.resolve(),
        "ServerApp.open_browser": browser,
        "ServerApp.answer_yes": True,  # to the question whether Ctrl-C was meant
        "ServerApp.allow_root": os.geteuid() == 0,
        "ServerApp.log_level": "WARN",
        "LabApp.check_for_updates_class": "jupyterlab.NeverCheckForUpdate",  # nothing is asked of the network
        "LabApp.log_level": "WARN",
        "LabApp.news_url": "",
        "LabApp.default_url": "/lab/tree/00-tour.ipynb" if (lessons / "00-tour.ipynb").exists() else "/lab",
        "LabApp.extension_manager": "readonly",
    }
    try:
        terminal.start(cluster)
        if ours:
            interrupts.leaves("the cluster is stopped again")
        out.print(f"The cluster runs. Ctrl-C stops JupyterLab{' and the cluster' if ours else ''}.")
        out.print("To see it run: lab.watch() in a notebook, or `pghc watch` in another terminal.")
        LabApp.launch_instance([f"--{name}={value}" for name, value in settings.items()])
    finally:
        interrupts.install()  # JupyterLab has put its own handlers in their place
        if ours:
            with interrupts.held(), terminal.bar("stopping the cluster"):
                cluster.down()
        else:  # JupyterLab has taken Ctrl-C for itself, and nobody says farewell
            out.print("The cluster still runs: `pghc down` stops it.")


@app.command(context_settings={"ignore_unknown_options": True, "allow_extra_args": True, "help_option_names": []})
def bench(context: typer.Context) -> None:
    """Measure all writers beside the raw limits of this machine, on a cluster of the bench's own. Options: --help."""
    sys.path.insert(0, str(Path(__file__).parents[2]))  # the bench is in the repository, not in the package
    if not find_spec("benchmarks"):
        raise BadInput("the bench is not installed with the package", "Run it where the repository is.")
    sys.argv = ["pghc bench", *context.args]
    run_module("benchmarks.ladder", run_name="__main__")


# What the commands share


def trust(lessons: Path) -> None:
    """Let the lessons' kept outputs show before their first run: whoever opens them here has them from us."""
    from nbformat import read, sign

    notary = sign.NotebookNotary()
    try:
        for path in lessons.glob(LESSON):
            notary.sign(read(path, as_version=4))
    except (OSError, ValueError, sqlite3.Error) as error:
        terminal.err.print(f"lessons show their tables only once they have run: {error}", style="dim", markup=False)
    finally:
        notary.store.close()


def _attach(backend: str, directory: Path | None) -> tuple[Backend, bool]:
    """The cluster; and whether it is started here, and so must end with this program."""
    cluster = open_backend(backend, directory)
    ours = backend == "embedded" and not cluster.status().running
    if ours:
        cluster = Embedded(directory or default_directory(), owner=True)
    return cluster, ours


def _view(cluster: Backend, region: str | None) -> View:
    return cluster.view(cluster.topology.region(region).name if region else cluster.topology.names[0])


def _put_rows(rows: Iterable[Row], view: View, json: bool, *, header: bool = True) -> None:
    if json:
        for row in rows:
            put_json(row._asdict())
    else:
        table = terminal.rows_table(rows, view.topology.names)
        table.show_header = header
        put_table(table)


def _writable(path: Path | None) -> None:
    """Refuse a file that cannot be written before the work is done, not after. Raises `BadInput`."""
    if path and not (path.parent.is_dir() and os.access(path if path.exists() else path.parent, os.W_OK)):
        raise BadInput(f"{path} cannot be written")


def main() -> NoReturn:
    """Run the command line; every error is a message and an exit code."""
    logging.getLogger().addHandler(logging.NullHandler())  # what matters of libraries' warnings is in our errors
    try:
        app()
    except SystemExit:
        if not interrupts.code:
            raise
    except PghcError as error:
        put_error(error)
    except Exception as error:
        if os.environ.get("PGHC_DEBUG"):
            raise
        what = f"unexpected {type(error).__name__}: {error}"
        put_error(PghcError(what, "This is a defect of the lab; PGHC_DEBUG=1 shows where."))
    if interrupts.code:
        terminal.err.print(interrupts.farewell(), markup=False)
    sys.exit(interrupts.code or 2)
