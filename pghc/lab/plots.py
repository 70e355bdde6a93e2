"""Figures for the lessons, as functions of plain data: no server is asked anything here.

Each returns a `Plot`, a matplotlib figure whose title states what the data shows and whose ``alt`` says it in words.
Colours are those of Okabe and Ito, which colour-blind readers can tell apart; anomalies are also heavier and marked, so
that a black-and-white print loses nothing.
"""

from __future__ import annotations

import math
import tomllib
from base64 import b64encode
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.resources import files
from io import BytesIO
from itertools import combinations
from textwrap import fill
from typing import Any

import networkx as nx
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patheffects import withStroke
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator

from pghc.chain import ROOT, Row, link
from pghc.lab.colours import COLOURS, GREY, INK, MARKERS, RED, STYLES
from pghc.topology import Pair, Topology

HALO = [withStroke(linewidth=2.5, foreground="white")]  # a label stays legible over a line

#: Light in glass fibre: kilometres a millisecond.
FIBRE_KM_PER_MS = 200.0


class Plot(Figure):
    """A figure that shows itself in a notebook, with ``alt``, its text alternative."""

    def __init__(self, width: float, height: float) -> None:
        super().__init__(figsize=(width, height), layout="constrained")
        self.heading = self.alt = ""

    def state(self, heading: str, alt: str) -> Plot:
        """The conclusion, as title, and the text alternative."""
        self.heading, self.alt = heading, f"{heading}. {alt}"
        shown = fill(heading, int(8 * self.get_figwidth()))
        self.suptitle(shown, x=0.01, ha="left", fontsize=12, fontweight="bold", color=INK)
        return self

    def _repr_mimebundle_(self, **_: Any) -> tuple[dict[str, str], dict[str, dict[str, str]]]:
        buffer = BytesIO()
        self.savefig(buffer, format="png", dpi=100, metadata={"Software": None})
        bundle = {"image/png": b64encode(buffer.getvalue()).decode(), "text/plain": self.alt}
        return bundle, {"image/png": {"alt": self.alt}}


# The world


def kilometres(topology: Topology, one: str, other: str) -> float:
    """Great-circle distance between two regions' cities."""
    a, b = topology.region(one), topology.region(other)
    cosine = math.sin(math.radians(a.latitude)) * math.sin(math.radians(b.latitude))
    cosine += (
        math.cos(math.radians(a.latitude))
        * math.cos(math.radians(b.latitude))
        * math.cos(math.radians(a.longitude - b.longitude))
    )
    return 6371.0 * math.acos(max(-1.0, min(1.0, cosine)))


def floor_ms(topology: Topology, one: str, other: str) -> float:
    """The least round trip that light in a straight fibre between two regions allows."""
    return 2 * kilometres(topology, one, other) / FIBRE_KM_PER_MS


def world(topology: Topology, round_trips_ms: Mapping[Pair, float]) -> Plot:
    """A map of the regions, with the measured round trip of each pair beside what light in a fibre would need."""
    plot = Plot(9, 4.6)
    axes = plot.subplots()
    for outline in tomllib.loads(files("pghc").joinpath("coastlines.toml").read_text()).values():
        axes.fill(outline[::2], outline[1::2], facecolor="#E9E6DF", edgecolor="#CFCABF", linewidth=0.6)
    words = []
    for pair in combinations(topology.names, 2):
        measured = round_trips_ms.get(pair, round_trips_ms.get((pair[1], pair[0])))
        path = _great_circle(topology, *pair)
        for piece in path:
            axes.plot(*zip(*piece, strict=True), color=INK, linewidth=1.2, linestyle="--")
        longest = max(path, key=len)
        middle = longest[len(longest) // 2]
        floor = floor_ms(topology, *pair)
        label = f"{measured:.0f} ms" if measured is not None else "not reached"
        axes.annotate(f"{label}\n(light {floor:.0f})", middle, ha="center", va="center", fontsize=8,
                      bbox={"boxstyle": "round,pad=0.25", "facecolor": "white", "edgecolor": GREY})  # fmt: skip
        words.append(f"{pair[0]} to {pair[1]} {label}, light {floor:.0f} ms")
    for number, region in enumerate(topology.regions):
        axes.plot(region.longitude, region.latitude, MARKERS[number], color=COLOURS[number], markersize=10)
        axes.annotate(f"{region.name}\n{region.city}", (region.longitude, region.latitude), xytext=(0, -9),
                      textcoords="offset points", ha="center", va="top", fontsize=9, fontweight="bold",
                      color=COLOURS[number])  # fmt: skip
    longitudes = [region.longitude for region in topology.regions]
    latitudes = [region.latitude for region in topology.regions]
    axes.set_xlim(max(-180, min(longitudes) - 45), min(180, max(longitudes) + 45))
    axes.set_ylim(max(-60, min(latitudes) - 40), min(84, max(latitudes) + 30))
    axes.set_aspect(1.2)
    axes.axis("off")
    reached = {pair: trip for pair, trip in round_trips_ms.items() if not math.isnan(trip)}
    if not reached:
        return plot.state("No region reaches another", "; ".join(words))
    farthest = max(reached, key=reached.__getitem__)
    heading = f"A question from {farthest[0]} to {farthest[1]} is answered after {reached[farthest]:.0f} ms"
    return plot.state(heading, f"Map of {len(topology.regions)} regions with measured round trips: {'; '.join(words)}")


def _great_circle(topology: Topology, one: str, other: str, steps: int = 60) -> list[list[tuple[float, float]]]:
    """The shortest way over the globe as (longitude, latitude), in pieces that do not cross the date line."""

    def vector(name: str) -> tuple[float, float, float]:
        region = topology.region(name)
        la, lo = math.radians(region.latitude), math.radians(region.longitude)
        return math.cos(la) * math.cos(lo), math.cos(la) * math.sin(lo), math.sin(la)

    a, b = vector(one), vector(other)
    angle = kilometres(topology, one, other) / 6371.0
    pieces: list[list[tuple[float, float]]] = [[]]
    for step in range(steps + 1):
        share = step / steps
        if angle < 1e-6:
            x, y, z = a
        else:
            wa, wb = math.sin((1 - share) * angle) / math.sin(angle), math.sin(share * angle) / math.sin(angle)
            x, y, z = (wa * p + wb * q for p, q in zip(a, b, strict=True))
        point = math.degrees(math.atan2(y, x)), math.degrees(math.asin(max(-1.0, min(1.0, z))))
        if pieces[-1] and abs(point[0] - pieces[-1][-1][0]) > 180:
            pieces.append([])
        pieces[-1].append(point)
    return pieces


# What happened where and when


@dataclass(frozen=True)
class Message:
    """One write and the times, in milliseconds of one clock, at which each region had it.

    ``seen``: by region, ``origin`` included; a region that never got it is not there. ``logged``: when its log entry
    was agreed on, None without a log.
    """

    label: str
    origin: str
    seen: Mapping[str, float]
    logged: float | None = None


def inversions(messages: Sequence[Message]) -> list[tuple[str, str, str, float]]:
    """Where a later write was visible before an earlier one: (earlier, later, region, for how many ms).

    ``messages`` stand in the order in which they are meant to be seen. Infinite: the earlier one never came.
    """
    found = []
    for earlier, later in combinations(messages, 2):
        for region, when in later.seen.items():
            before = earlier.seen.get(region, math.inf)
            if before > when:
                found.append((earlier.label, later.label, region, before - when))
    return found


def shown(messages: Sequence[Message]) -> list[Message]:
    """The same writes, seen where and when readers of a prefix see them: not before all those before them have come.

    Rows travel from each region by a way of its own, so a row may be in a table before an earlier one. Where a row was
    written, it keeps its time: that it comes after all earlier ones is for the writer to see to.
    """
    found = []
    for number, message in enumerate(messages, 1):
        written = min(message.seen.values(), default=0.0)
        seen = {
            region: when if when == written else max(before.seen[region] for before in messages[:number])
            for region, when in message.seen.items()
            if all(region in before.seen for before in messages[:number])
        }
        found.append(replace(message, seen=seen))
    return found


def spacetime(
    regions: Sequence[str], messages: Sequence[Message], offending: Iterable[str] | None = None, heading: str = ""
) -> Plot:
    """Space-time diagram: a line for each region, time to the right, an arrow for each write's way to another region.

    ``offending``: labels to draw in red; by default the first pair of which the later was visible first.
    """
    upside = inversions(messages)
    if offending is None:
        offending = upside[0][:2] if upside else ()
    red = set(offending)
    late = {region for earlier, later, region, _ in upside if {earlier, later} <= red}
    times = [t for m in messages for t in (*m.seen.values(), *([m.logged] if m.logged is not None else []))]
    start, end = (min(times), max(times)) if times else (0.0, 1.0)
    width = max(end - start, 1.0)
    has_log = any(m.logged is not None for m in messages)
    lanes = {name: -float(row) for row, name in enumerate(regions)}
    if has_log:
        lanes = {"ZooKeeper's log": 1.0} | lanes
    plot = Plot(9, 1.4 + 0.85 * len(lanes))
    axes = plot.subplots()
    for y in lanes.values():
        axes.axhline(y, color=GREY, linewidth=1, linestyle=":" if y > 0 else "-", zorder=1)
    tagged: list[tuple[float, float]] = []
    for message in sorted(messages, key=lambda m: m.label not in red):
        is_red = message.label in red
        number = list(regions).index(message.origin)
        colour, weight = (RED, 2.4) if is_red else (COLOURS[number], 1.1)
        sent = message.seen.get(message.origin)
        if sent is None:
            continue
        y = lanes[message.origin]
        if message.logged is not None:
            axes.plot([message.logged - start, sent - start], [1.0, y], color=colour, linewidth=0.8, linestyle=":")
            axes.plot(message.logged - start, 1.0, "D", color=colour, markersize=5 if is_red else 3)
        for region in regions:
            if region == message.origin:
                continue
            when = message.seen.get(region)
            if when is None:  # it has not come: the arrow breaks off
                reach = sent - start + 0.06 * width
                half = y + (0.5 if lanes[region] > y else -0.5)
                axes.plot([sent - start, reach], [y, half], color=colour, linewidth=weight, alpha=0.7)
                axes.plot(reach, half, "x", color=colour, markersize=7, markeredgewidth=weight)
            else:
                axes.annotate("", (when - start, lanes[region]), (sent - start, y),
                              arrowprops={"arrowstyle": "-|>", "color": colour, "linewidth": weight,
                                          "shrinkA": 0, "shrinkB": 0, "alpha": 1 if is_red else 0.6})  # fmt: skip
                if is_red and region in late:
                    _tag(axes, f"{message.label} arrives", when - start, lanes[region], colour, below=True)
        size, above = (9, 5) if is_red else (6, 4)
        axes.plot(sent - start, y, MARKERS[number], color=colour, markersize=size, zorder=above)
        if is_red or all(abs(sent - x) > 0.1 * width or y != lane for x, lane in tagged):
            tagged.append((sent, y))
            _tag(axes, message.label, sent - start, y, colour, below=y == min(lanes.values()))
    axes.set_yticks(list(lanes.values()), list(lanes))
    axes.set_ylim(-len(regions) + 0.35, max(lanes.values()) + 0.6)
    axes.set_xlim(-0.04 * width, 1.1 * width)
    axes.set_xlabel("milliseconds")
    _bare(axes)
    if not heading:
        heading = _order_heading(messages, upside)
    words = "; ".join(
        f"{m.label} written in {m.origin}, "
        + ", ".join(f"seen in {r} after {m.seen[r] - m.seen[m.origin]:.0f} ms" if r in m.seen else f"never seen in {r}"
                    for r in regions if r != m.origin)
        for m in messages[:8] if m.origin in m.seen
    )  # fmt: skip
    return plot.state(heading, f"Space-time diagram of {len(messages)} writes: {words}")


def comeback(
    regions: Sequence[str], region: str, written: Sequence[Message], returned: Mapping[str, float],
    lost: float, succeeded: float, heading: str = "",
) -> Plot:  # fmt: skip
    """Space-time diagram of a lost primary: what ``region`` had ``written`` on it, and when its successor had that.

    ``returned``: by label; what is missing never came back. ``lost``: when the primary was; ``succeeded``: when the
    term of its successor began. All times are milliseconds of one clock.
    """
    lanes = {"ZooKeeper's log": 1.0} | {name: -float(row) for row, name in enumerate(regions)}
    number, here = list(regions).index(region), lanes[region]
    first = min([lost, *(t for m in written for t in (*m.seen.values(), m.logged or math.inf))])
    last = max([succeeded, *returned.values()])

    def at(when: float) -> float:
        return (when - lost) / 1000

    left, right = at(first - 0.05 * (last - first)), at(last + 0.15 * (last - first))
    plot = Plot(9, 1.4 + 0.85 * len(lanes))
    axes = plot.subplots()
    for name, y in lanes.items():
        if name != region:
            axes.axhline(y, color=GREY, linewidth=1, linestyle=":" if y > 0 else "-", zorder=1)
    for begin, until in ((left, 0.0), (at(succeeded), right)):
        axes.plot([begin, until], [here, here], color=GREY, linewidth=4, solid_capstyle="butt", zorder=1)
    for message in written:
        sent, back = message.seen[region], returned.get(message.label, math.inf)
        ink = RED if math.isinf(back) else COLOURS[number]
        if message.logged is not None:
            axes.plot([at(message.logged), at(sent)], [1.0, here], color=ink, linewidth=0.8, linestyle=":")
            axes.plot(at(message.logged), 1.0, "D", color=ink, markersize=4)
            if lost < back < math.inf:
                arrow = {"arrowstyle": "-|>", "color": INK, "linewidth": 1.2, "shrinkA": 3, "shrinkB": 0}
                axes.annotate("", (at(back), here), (at(message.logged), 1.0), arrowprops=arrow)
        for other, when in message.seen.items():
            if other != region and when < lost:
                arrow = {"arrowstyle": "-|>", "color": ink, "linewidth": 1, "shrinkA": 0, "shrinkB": 0, "alpha": 0.6}
                axes.annotate("", (at(when), lanes[other]), (at(sent), here), arrowprops=arrow)
        axes.plot(at(sent), here, MARKERS[number], color=ink, markersize=6, zorder=4)
    for group in _near(written, region, 0.04 * (last - first)):
        labels = [message.label for message in group]
        name = labels[0] if len(labels) == 1 else f"{labels[0]} to {labels[-1]}"
        ink = COLOURS[number] if {*labels} <= {*returned} else RED
        _tag(axes, name, at(group[0].seen[region]), here, ink, below=True)
    axes.plot(0, here, "X", color=RED, markersize=11, zorder=5)
    _tag(axes, "primary and disk lost", 0, here, RED, below=True)
    axes.plot(at(succeeded), here, MARKERS[number], color="white", markeredgecolor=INK, markersize=9, zorder=5)
    axes.annotate("a replica's term", (at(succeeded), here), xytext=(2, -20), textcoords="offset points", fontsize=8,
                  va="top", color=INK, path_effects=HALO)  # fmt: skip
    axes.set_yticks(list(lanes.values()), list(lanes))
    axes.set_ylim(-len(regions) + 0.35, 1.6)
    axes.set_xlim(left, right)
    axes.set_xlabel("seconds after the loss")
    _bare(axes)
    late = [when for when in returned.values() if when > lost]
    missing = [message.label for message in written if message.label not in returned]
    if not heading and missing:
        heading = f"{region} lost for good, with its primary's disk: {', '.join(missing)}"
    elif not heading and late:
        heading = f"{region} lost {len(late)} entries with a disk; the log gave them back {at(max(late)):.1f} s later"
    elif not heading:
        heading = f"A replica of {region} had all that its primary lost"
    words = "; ".join(
        f"{message.label} written {-at(message.seen[region]):.1f} s before the loss, "
        + (f"back {at(returned[message.label]):.1f} s after it" if message.label in returned else "never back")
        for message in written[:8]
    )
    return plot.state(heading, f"Space-time diagram of a primary lost in {region}: {words}")


def _near(messages: Sequence[Message], region: str, distance: float) -> list[list[Message]]:
    """Groups of messages whose labels would overlap: each written less than ``distance`` after the one before."""
    groups: list[list[Message]] = []
    for message in messages:
        if groups and message.seen[region] - groups[-1][-1].seen[region] < distance:
            groups[-1].append(message)
        else:
            groups.append([message])
    return groups


def _order_heading(messages: Sequence[Message], upside: Sequence[tuple[str, str, str, float]]) -> str:
    if not messages:
        return "Nothing was written"
    if not upside:
        return "Every region saw the writes in the same order"
    earlier, later, region, by = upside[0]
    if math.isinf(by):
        return f"{region} shows {later}, and has not seen {earlier}"
    return f"{region} shows {later} {by:,.0f} ms before {earlier}"


def _tag(axes: Axes, text: str, x: float, y: float, colour: str, *, below: bool) -> None:
    axes.annotate(text, (x, y), xytext=(2, -7 if below else 7), textcoords="offset points", fontsize=8,
                  ha="left", va="top" if below else "bottom", color=colour, zorder=5, path_effects=HALO)  # fmt: skip


# Chains


def ancestry(rows: Iterable[Row]) -> nx.DiGraph[Row]:
    """Which entry each was made after, as its hash proves: edges lead from an entry to those made after it.

    Edges to an entry whose number is not the next carry ``skips`` True. An entry made as if the chain were empty has no
    edge into it.
    """
    graph: nx.DiGraph[Row] = nx.DiGraph()
    ordered = sorted(set(rows))
    graph.add_nodes_from(ordered)
    for place, row in enumerate(ordered):
        for before in reversed(ordered[max(0, place - 64) : place]):
            if before.zk_id < row.zk_id and link(row.zk_id, row.node_id, before.hash) == row.hash:
                graph.add_edge(before, row, skips=before.zk_id + 1 != row.zk_id)
                break
    return graph


def fork_tree(
    rows: Iterable[Row], first: int = 1, last: int | None = None, nodes: Sequence[str] = (), heading: str = ""
) -> Plot:
    """The entries numbered ``first`` to ``last`` of all regions together: a tree where a chain should be.

    ``nodes``: the node_ids in the order in which to colour them; by default by name.
    """
    graph = ancestry(rows)
    everything: list[Row] = sorted(graph)
    shown = [row for row in everything if row.zk_id >= first and (last is None or row.zk_id <= last)]
    writers = list(dict.fromkeys([*nodes, *sorted({row.node_id for row in everything})]))
    lanes = {row: _lane(graph, row, writers) for row in shown}
    plot = Plot(9, 1.5 + 0.75 * max(len(set(lanes.values())), 2))
    axes = plot.subplots()
    places: dict[int, list[Row]] = {}
    for row in everything:
        places.setdefault(row.zk_id, []).append(row)
    forked = [n for n, claims in places.items() if len(claims) > 1]
    strays = [row for row in everything if _is_stray(graph, row)]
    firsts = [row for row in shown if link(row.zk_id, row.node_id, ROOT) == row.hash and not graph.in_degree(row)]
    if firsts and first == 1:
        height = sum(lanes[row] for row in firsts) / len(firsts)
        axes.plot(0, height, "s", color="white", markeredgecolor=INK, markersize=10, zorder=3)
        axes.annotate("empty", (0, height), xytext=(0, -11), textcoords="offset points", fontsize=7, ha="center",
                      va="top")  # fmt: skip
        for row in firsts:
            axes.annotate("", (row.zk_id, lanes[row]), (0, height), arrowprops={"arrowstyle": "-|>", "shrinkA": 7,
                          "shrinkB": 9, "linewidth": 1.2, "color": INK})  # fmt: skip
    for before, row, data in graph.edges(data=True):
        if row in lanes and before in lanes:
            wrong = data["skips"]
            ink = (
                {"color": RED, "linewidth": 2.2, "linestyle": "--", "connectionstyle": "arc3,rad=-0.3"}
                if wrong
                else {"color": INK, "linewidth": 1.2}
            )
            axes.annotate("", (row.zk_id, lanes[row]), (before.zk_id, lanes[before]),
                          arrowprops={"arrowstyle": "-|>", "shrinkA": 7, "shrinkB": 9} | ink)  # fmt: skip
    for row in shown:
        number = writers.index(row.node_id)
        bad = len(places[row.zk_id]) > 1 or row in strays
        axes.plot(row.zk_id, lanes[row], MARKERS[number % 5], color=COLOURS[number % 5], markersize=13,
                  markeredgecolor=RED if bad else "white", markeredgewidth=2.5 if bad else 1, zorder=3)  # fmt: skip
        axes.annotate(row.hash[:4], (row.zk_id, lanes[row]), xytext=(0, -11), textcoords="offset points", fontsize=7,
                      ha="center", va="top", family="monospace", color=RED if bad else INK)  # fmt: skip
    for number, writer in enumerate(writers):
        axes.plot([], [], MARKERS[number % 5], color=COLOURS[number % 5], label=writer, linestyle="none")
    if writers:
        plot.legend(loc="outside lower center", fontsize=8, frameon=False, ncols=min(len(writers), 5))
    axes.set_yticks([])
    axes.margins(x=0.06, y=0.3)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_xlabel("zk_id")
    _bare(axes)
    if not heading:
        if forked:
            claims = len(places[min(forked)])
            heading = f"The chain forks at {min(forked)}: {claims} entries claim one place"
        elif strays:
            heading = f"The chain breaks at {strays[0].zk_id}: that entry was not made after the one before it"
        else:
            heading = "One chain: each entry was made after the one before it" if everything else "The chain is empty"
    words = f"{len(everything)} entries, {len(forked)} places with more than one claim, {len(strays)} broken links"
    return plot.state(heading, f"Tree of entries by the hash they follow: {words}")


def _is_stray(graph: nx.DiGraph[Row], row: Row) -> bool:
    before = next(iter(graph.predecessors(row)), None)
    if before is None:
        return row.zk_id != 1 or link(row.zk_id, row.node_id, ROOT) != row.hash
    return bool(graph.edges[before, row]["skips"])


def _lane(graph: nx.DiGraph[Row], row: Row, writers: Sequence[str]) -> float:
    """The height of an entry: that of its branch, set by the writer of the branch's first entry; 0 in one chain."""
    while True:
        rivals = [other for other in graph if other.zk_id == row.zk_id]
        if len(rivals) > 1:
            return -float(writers.index(row.node_id))
        before = next(iter(graph.predecessors(row)), None)
        if before is None:
            return 0.0
        row = before


def happens_before(
    lanes: Sequence[str], events: Sequence[tuple[str, str]], edges: Iterable[tuple[str, str]],
    wrong: Iterable[tuple[str, str]] = (), heading: str = "",
) -> Plot:  # fmt: skip
    """The happens-before graph: ``events`` are (name, lane) in the order in which they happened in their lane.

    ``edges``: the messages, from one event to another. ``wrong``: pairs that were shown in the other order, in red.
    Two events that no path joins are concurrent.
    """
    graph = causes(events, edges)
    place = {name: column for column, layer in enumerate(nx.topological_generations(graph)) for name in layer}
    lane = dict(events)
    messages = [(a, b) for a, b in graph.edges if lane[a] != lane[b]]
    pairs = list(combinations([name for name, _ in events], 2))
    loose = [(a, b) for a, b in pairs if not nx.has_path(graph, a, b) and not nx.has_path(graph, b, a)]
    at = {name: (float(place[name]), -float(lanes.index(lane[name]))) for name in graph}
    plot = Plot(9, 1.2 + 0.9 * len(lanes))
    axes = plot.subplots()
    for row, _name in enumerate(lanes):
        axes.axhline(-row, color="#DDDDDD", linewidth=8, zorder=0)
    for a, b in graph.edges:
        far = abs(at[a][1] - at[b][1]) > 1  # bent, to pass by the events of the lanes between
        axes.annotate("", at[b], at[a], arrowprops={"arrowstyle": "-|>", "color": INK, "shrinkA": 8, "shrinkB": 9,
                      "linewidth": 1.6 if (a, b) in messages else 1.0,
                      "connectionstyle": f"arc3,rad={-0.2 if far else 0}"})  # fmt: skip
    wrong = list(wrong)
    for a, b in wrong:
        axes.annotate("", at[b], at[a], arrowprops={"arrowstyle": "-|>", "color": RED, "shrinkA": 8, "shrinkB": 9,
                      "linewidth": 2.4, "linestyle": "--", "connectionstyle": "arc3,rad=-0.3"})  # fmt: skip
    bad = {name for pair in wrong for name in pair}
    for name, (x, y) in at.items():
        number = lanes.index(lane[name])
        axes.plot(x, y, MARKERS[number % 5], color=RED if name in bad else COLOURS[number % 5], markersize=11, zorder=3)
        above = number == 0  # messages come from above to all lanes but the first
        axes.annotate(name, (x, y), xytext=(0, 9 if above else -17), textcoords="offset points", fontsize=8,
                      ha="center", color=RED if name in bad else INK, path_effects=HALO, zorder=4)  # fmt: skip
    axes.set_yticks([-row for row in range(len(lanes))], list(lanes))
    axes.set_xticks([])
    axes.margins(x=0.1)
    axes.set_ylim(-len(lanes) + 0.25, 0.6)
    _bare(axes)
    if not heading:
        heading = f"{len(pairs) - len(loose)} of {len(pairs)} pairs of events are ordered, {len(loose)} are concurrent"
    arrows = ", ".join(f"{a} before {b}" for a, b in graph.edges)
    return plot.state(heading, f"Happens-before graph: {arrows}")


def causes(events: Sequence[tuple[str, str]], edges: Iterable[tuple[str, str]]) -> nx.DiGraph[str]:
    """The graph of `happens_before`: the messages, and the order in each lane."""
    graph: nx.DiGraph[str] = nx.DiGraph()
    latest: dict[str, str] = {}
    for name, lane in events:
        graph.add_node(name)
        if lane in latest:
            graph.add_edge(latest[lane], name)
        latest[lane] = name
    graph.add_edges_from(edges)
    return graph


# Measurements


def lag(
    seconds: Sequence[float], behind: Mapping[str, Sequence[float]], unit: str = "entries",
    faults: Iterable[tuple[float, float, str]] = (), heading: str = "",
) -> Plot:  # fmt: skip
    """How far each server was behind over time. ``faults``: (from, to, name), shaded. ``unit`` of ``behind``."""
    plot = Plot(9, 3.6)
    axes = plot.subplots()
    for begin, end, name in faults:
        axes.axvspan(begin, end, color="#EEDDCC", zorder=0)
        axes.annotate(name, (begin, 1), xycoords=("data", "axes fraction"), xytext=(3, -3), textcoords="offset points",
                      va="top", fontsize=8, color=INK)  # fmt: skip
    worst = ("", 0.0)
    for number, (name, values) in enumerate(behind.items()):
        style = STYLES[number % 5]
        axes.plot(seconds, values, color=COLOURS[number % 5], linestyle=style, linewidth=1.8, label=name)
        worst = max(worst, (name, max(values, default=0.0)), key=lambda pair: pair[1])
    plot.legend(loc="outside right upper", fontsize=8, frameon=False)
    axes.set_xlabel("seconds")
    axes.set_ylabel(f"{unit} behind")
    axes.set_ylim(bottom=0)
    _bare(axes, left=True)
    if not heading:
        heading = f"{worst[0]} fell {worst[1]:,.0f} {unit} behind" if worst[1] > 0 else "No server fell behind"
    words = ", ".join(f"{name} at most {max(values, default=0):,.0f}" for name, values in behind.items())
    return plot.state(heading, f"Lag over {max(seconds, default=0):.1f} s in {unit}: {words}")


def latencies(samples_ms: Mapping[str, Sequence[float]], floor_ms: float, floor_name: str, heading: str = "") -> Plot:
    """The distribution of latencies of each kind, with the least that the distance allows as a vertical line."""
    plot = Plot(9, 4)
    axes = plot.subplots()
    medians: dict[str, float] = {}
    for number, (name, values) in enumerate(samples_ms.items()):
        ordered = sorted(values)
        if not ordered:
            continue
        medians[name] = ordered[len(ordered) // 2]
        shares = [(place + 1) / len(ordered) for place in range(len(ordered))]
        axes.plot(ordered, shares, color=COLOURS[number % 5], linestyle=STYLES[number % 5], linewidth=2, label=name)
        axes.plot(medians[name], 0.5, MARKERS[number % 5], color=COLOURS[number % 5], markersize=8)
    for place, (name, value) in enumerate(sorted(medians.items(), key=lambda item: item[1])):
        leftmost = place == 0 and len(medians) > 1  # the labels of two medians that are close do not meet
        axes.annotate(f"{value:.0f} ms", (value, 0.5), xytext=(-7 if leftmost else 7, -3), textcoords="offset points",
                      ha="right" if leftmost else "left", fontsize=8, path_effects=HALO,
                      color=COLOURS[list(samples_ms).index(name) % 5])  # fmt: skip
    axes.axvline(floor_ms, color=RED, linewidth=2)
    axes.annotate(f"{floor_name}: {floor_ms:.0f} ms", (floor_ms, 1.12), xytext=(4, -2), textcoords="offset points",
                  va="top", fontsize=8, color=RED)  # fmt: skip
    _logarithmic(axes, (1.0, 2.0, 5.0))
    axes.set_xlabel("milliseconds (logarithmic)")
    axes.set_ylabel("share of appends answered")
    axes.yaxis.set_major_formatter(FuncFormatter(lambda y, _: f"{y:.0%}"))
    axes.set_ylim(0, 1.13)
    if medians:
        plot.legend(loc="outside right upper", fontsize=8, frameon=False)
    _bare(axes, left=True)
    if not heading and medians:
        best = min(medians, key=medians.__getitem__)
        median, ratio = f"{medians[best]:.0f} ms", medians[best] / floor_ms
        if ratio < 1:
            heading = f"{best} answers after {median}: too soon to have asked another region"
        else:
            heading = f"{best} answers after {median}, {ratio:.1f} times what the distance allows"
    words = ", ".join(f"{name} median {value:.0f} ms" for name, value in medians.items())
    alt = f"Distributions of latency; {floor_name} {floor_ms:.0f} ms; {words}"
    return plot.state(heading or "Nothing was measured", alt)


@dataclass(frozen=True)
class Rung:
    """One writer's result. ``rate``: appends a second. ``median_ms``: of one append. ``valid``: the verdict."""

    name: str
    rate: float
    median_ms: float
    valid: bool | None


def ladder(rungs: Sequence[Rung], heading: str = "") -> Plot:
    """Writers by appends a second, with the verdict of each."""
    plot = Plot(9, 1.4 + 0.5 * max(len(rungs), 2))
    axes = plot.subplots()
    _bars(axes, rungs)
    axes.set_xlabel("appends a second (logarithmic)")
    return plot.state(heading or _comparison(rungs), f"Bars of appends a second: {_in_words(rungs)}")


def ladders(groups: Mapping[str, Sequence[Rung]]) -> Plot:
    """Writers by appends a second, compared only with those that had as much to do: a panel a group."""
    sizes = [max(len(rungs), 1) for rungs in groups.values()]
    plot = Plot(9, 1.2 + sum(0.7 + 0.35 * size for size in sizes))
    every = plot.subplots(len(groups), 1, sharex=True, squeeze=False, height_ratios=sizes)[:, 0]
    for axes, (name, rungs) in zip(every, groups.items(), strict=True):
        _bars(axes, rungs)
        axes.set_title(fill(f"{name}. {_comparison(rungs)}", 80), x=0, ha="left", fontsize=10, color=INK)
    every[-1].set_xlabel("appends a second (logarithmic)")
    words = "; ".join(f"{name}: {_in_words(rungs)}" for name, rungs in groups.items())
    return plot.state("What each writer reaches, beside those with as many appends in flight", words)


def _bars(axes: Axes, rungs: Sequence[Rung]) -> None:
    """What is said of a bar stands in a column of its own, for which the layout makes room."""
    for row, rung in enumerate(rungs):
        wrong = rung.valid is not True
        word = {True: "valid", False: "INVALID", None: "unknown"}[rung.valid]
        said = f"{rung.rate:,.{0 if rung.rate >= 10 else 1}f} a second, median {rung.median_ms:,.0f} ms, {word}"
        axes.barh(-row, rung.rate, color="white" if wrong else COLOURS[0], edgecolor=RED if wrong else COLOURS[0],
                  hatch="///" if wrong else None, height=0.6)  # fmt: skip
        axes.annotate(said if rung.rate else word, (1, -row), xycoords=("axes fraction", "data"), xytext=(6, 0),
                      textcoords="offset points", va="center", fontsize=9, color=RED if wrong else INK)  # fmt: skip
    _logarithmic(axes, (1.0,))
    axes.set_ylim(0.5 - max(len(rungs), 1), 0.5)
    axes.set_yticks([-row for row in range(len(rungs))], [rung.name for rung in rungs])
    _bare(axes)


def _comparison(rungs: Sequence[Rung]) -> str:
    right = [rung for rung in rungs if rung.valid and rung.rate > 0]
    if not right:
        return "No writer is right"
    best, least = max(right, key=lambda r: r.rate), min(right, key=lambda r: r.rate)
    if best is least:
        return f"Only {best.name} is right" if len(rungs) > 1 else f"{best.name} is right"
    times = best.rate / least.rate
    return f"Of the right ones, {best.name} is {times:,.{0 if times >= 10 else 1}f} times as fast as {least.name}"


def _in_words(rungs: Sequence[Rung]) -> str:
    return "; ".join(f"{r.name} {r.rate:,.1f} a second, {'valid' if r.valid else 'not valid'}" for r in rungs)


def _bare(axes: Axes, *, left: bool = False) -> None:
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(side == "left" and left)
    axes.tick_params(left=left, labelsize=9)


def _logarithmic(axes: Axes, subs: Sequence[float]) -> None:
    axes.set_xscale("log")
    low, high = axes.dataLim.intervalx
    narrow = high < 4 * low  # hardly a power of ten in it
    axes.xaxis.set_major_locator(MaxNLocator(6) if narrow else LogLocator(subs=subs))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:,.0f}" if x >= 1 else f"{x:g}"))
