"""The figures of `pghc.plots`, of a running cluster and of runs on it: what the lessons call as ``lab.plot``."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from pghc.chain import Row
from pghc.cluster import Backend
from pghc.errors import BadInput
from pghc.lab import plots, timeline
from pghc.lab.plots import Message, Plot
from pghc.topology import Topology, View
from pghc.verify.checker import Anomaly
from pghc.verify.history import Final
from pghc.workload.latency import round_trips
from pghc.workload.runs import Run
from pghc.writers import writer_class


class Figures:
    """Figures of the cluster that ``backend`` runs."""

    def __init__(self, backend: Backend) -> None:
        self._backend = backend

    @property
    def _topology(self) -> Topology:
        return self._backend.topology

    @property
    def _views(self) -> Mapping[str, View]:
        return {name: self._backend.view(name) for name in self._topology.names}

    def world(self) -> Plot:
        """The regions on a map, with the round trips measured now."""
        return plots.world(self._topology, round_trips(self._views))

    def spacetime(self, run: Run, first: int | None = None, entries: int = 5) -> Plot:
        """When the entries of ``run`` were logged, written and seen, around the first anomaly, or from ``first`` on.

        Of a writer that orders its entries they are seen when a reader of a prefix sees them, else when they arrive.
        The times are those that the servers keep, so the run must be the last one. Raises `BadInput` when it is not.
        """
        anomaly = next(iter(run.verdict.anomalies), None)
        first = first or (max(1, anomaly.zk_id - entries + 2) if anomaly else 1)
        messages = timeline.writes(list(self._views.values()), first, first + entries - 1)
        chains = final_chains(run)
        known = {row for rows in chains.values() for row in rows}
        if not messages or not {self._row(known, message) for message in messages} <= known:
            raise BadInput("the servers hold another chain than that of this run", "Run it again, then draw it.")
        if writer_class(run.writer).ordered:
            messages = plots.shown(messages)
        labels, heading = self._offending(anomaly, messages)
        return plots.spacetime(self._topology.names, messages, labels, heading)

    def comeback(self, region: str, written: Sequence[Message], lost: float) -> Plot:
        """When what ``region`` had ``written`` on a primary that is lost came back to its successor.

        ``written``: what `Lab.writes` told before the loss. ``lost``: when it was, as ``time.time()`` says.
        """
        now = timeline.writes(list(self._views.values()), *_span(written))
        returned = {message.label: message.seen[region] for message in now if region in message.seen}
        succeeded = timeline.term_began(self._backend.view(region))
        return plots.comeback(self._topology.names, region, written, returned, 1000 * lost, succeeded)

    def forks(self, run: Run, first: int | None = None, entries: int = 8) -> Plot:
        """The entries of all regions by what each was made after, around the first anomaly."""
        rows = [row for chain in final_chains(run).values() for row in chain]
        anomaly = next(iter(run.verdict.anomalies), None)
        first = first or (max(1, anomaly.zk_id - 2) if anomaly else 1)
        nodes = [region.primary for region in self._topology.regions]
        return plots.fork_tree(rows, first, first + entries - 1, nodes)

    def lag(self, lag: timeline.Lag, *faults: tuple[float, float, str]) -> Plot:
        """How far each server was behind. ``faults``: (from, to, name) in the lag's seconds, shaded."""
        return plots.lag(lag.seconds, lag.behind, faults=faults)

    def latencies(self, *runs: Run, region: str | None = None) -> Plot:
        """How long appends took, beside the quorum's round trip from ``region`` (default: the ZooKeeper leader's)."""
        region = region or self._topology.central
        samples = {run.writer: list(run.latencies_ms[region]) for run in runs}
        floor = min(self._topology.round_trip_ms(region, other) for other in self._topology.names if other != region)
        return plots.latencies(samples, floor, f"nearest other region of {region} and back")

    def ladder(self, *runs: Run) -> Plot:
        """Appends a second and the verdict of each run."""
        rungs = [plots.Rung(run.writer, run.rate, run.latency_ms(), run.verdict.valid) for run in runs]
        return plots.ladder(rungs)

    def _row(self, known: Iterable[Row], message: Message) -> Row | None:
        number, nodes = int(message.label.split()[0]), self._topology.region(message.origin).databases
        return next((row for row in known if row.zk_id == number and row.node_id in nodes), None)

    def _offending(self, anomaly: Anomaly | None, messages: Sequence[Message]) -> tuple[list[str], str]:
        """The labels of the entries that cannot all be right, and what the figure says of them."""
        if anomaly is None:
            return [], "" if plots.inversions(messages) else "Every region saw every entry after those before it"
        origin = {node.name: node.region for node in self._topology.nodes}
        at = {message.label: message for message in messages}
        rows = [row for row in dict.fromkeys(anomaly.rows) if row.node_id in origin]
        names = [f"{row.zk_id}" if f"{row.zk_id}" in at else f"{row.zk_id} {origin[row.node_id]}" for row in rows]
        names = [name for name in dict.fromkeys(names) if name in at]
        if anomaly.kind == "link" and len(names) >= 2:
            before, row = at[names[-2]], at[names[-1]]
            late = before.seen.get(row.origin, float("inf")) - row.seen[row.origin]
            heading = f"{row.origin} wrote entry {row.label} as if entry {before.label} did not exist"
            if 0 < late < float("inf"):
                heading = f"{row.origin} wrote entry {row.label} {late:.0f} ms before entry {before.label} got there"
            return [before.label, row.label], heading
        if anomaly.kind == "fork" and len(names) >= 2:
            return names, f"{len(names)} entries claim place {anomaly.zk_id}: none of their writers saw another"
        return names, ""


def _span(messages: Sequence[Message]) -> tuple[int, int]:
    """The least and the greatest number of these entries."""
    numbers = [int(message.label.split()[0]) for message in messages]
    return min(numbers), max(numbers)


def final_chains(run: Run) -> dict[str, list[Row]]:
    """Each region's chain as it stood after the run."""
    chains: dict[str, list[Row]] = {}
    for event in run.events():
        if isinstance(event.value, Final):
            chains.setdefault(event.region, []).extend(event.value.rows)
    return chains
