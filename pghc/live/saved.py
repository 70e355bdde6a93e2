"""A moment to send around: a history that `pghc check` judges like any other, and that carries what was seen of it.

What was seen stands under the key ``live`` of one of its lines, which other readers of histories ignore. A history
without it can be played, too: of it is known when clients asked and were told, and what stood where in the end.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from msgspec.json import decode, encode

from pghc.chain import Row
from pghc.cluster import Backend
from pghc.errors import BadInput
from pghc.live.control import coasts, hello
from pghc.live.stream import Event, Stream
from pghc.store import Primary
from pghc.topology import load
from pghc.verify import history
from pghc.verify.checker import check
from pghc.verify.history import Final, Read, Recorder, open_file

KEY = b'"live":'


def save(backend: Backend, stream: Stream, run: Path | None, path: Path) -> None:
    """Write what was seen to ``path``. ``run``: the history of the run that was seen; without one, what stands now."""
    if run is None:
        with Recorder(path) as recorder:
            _record(backend, recorder)
    elif run != path:
        with open_file(path, "wb") as out:
            out.writelines(line if line.endswith(b"\n") else line + b"\n" for _, line in history.lines(run))
    _, events = stream.since(0)
    view = {"hello": hello(backend), "saved": time.strftime("%Y-%m-%d %H:%M:%S")}
    live = b'{"view":' + encode(view) + b',"events":[' + events + b"]}"
    kept = [line for _, line in history.lines(path)]
    last = kept.pop().rstrip()
    with open_file(path, "wb") as out:
        out.writelines(kept)
        out.write(last[:-1] + b"," + KEY + live + b"}\n")


def _record(backend: Backend, recorder: Recorder) -> None:
    """What stands in each region, as entries that somebody read and nobody of this history appended."""
    for name in backend.topology.names:
        with Primary(backend.view(name), timeout=60) as reader:
            recorder.invoke(f"live/{name}", name, "read", None, reader.node)
            with reader.snapshot() as now:
                rows = list(now.chain())
                seen = Read(0, rows[-1].zk_id if rows else 0, tuple(rows[-1:]))
                recorder.ok(f"live/{name}", name, "read", None, reader.node, seen)
                recorder.final(name, reader.node, rows, caught_up=False)


def load_saved(path: Path) -> tuple[dict[str, Any], Stream]:
    """What a view must know, and the events, of a file. Raises `BadInput` when it is no history."""
    stream, view = Stream(span=float("inf"), most=1_000_000), None
    for number, line in history.lines(path):
        if KEY in line:
            try:
                found = decode(line)["live"]
                view = {**found["view"]["hello"], "saved": found["view"]["saved"]}
                stream.put(*found["events"])
            except (KeyError, TypeError, ValueError) as error:
                raise BadInput(f"{path}, line {number}: what was seen cannot be read: {error!r}") from error
    verdict = check(history.read(path))
    if view is None:
        view = {**_plain_view(path), "saved": path.name}
        stream.put(*_plain_events(path))
    first = verdict.anomalies[0].zk_id if verdict.anomalies else None
    view |= {"can": [], "verdict": {"v": verdict.valid, "x": str(verdict), "n": first}}
    return view, stream


def _plain_view(path: Path) -> dict[str, Any]:
    """Regions that the lab's topology knows stand where it says; others in a row."""
    known = {region["name"]: region for region in load().to_dict()["regions"]}
    names = list(dict.fromkeys(event.region for event in history.read(path)))
    regions = [
        known.get(name, {"name": name, "city": "", "latitude": 40 - 20 * (at % 2), "longitude": -100 + 60 * at})
        for at, name in enumerate(names)
    ]
    servers = [[f"{name}-primary", name, "primary"] for name in names]
    topology = {"regions": regions, "delays_ms": {}}
    return {"topology": topology, "coasts": coasts(), "servers": servers, "writers": [], "sayings": {}}


def _plain_events(path: Path) -> Iterator[Event]:
    """What a history without ``live`` says: clients' own times, and at its end what stood in each region."""
    asked: dict[str | None, float] = {}
    told: set[Row] = set()
    base, last = None, 0.0
    finals: dict[str, list[Row]] = {}
    for event in history.read(path):
        base = event.time if base is None else base
        last = max(last, now := (event.time - base) / 1e6)
        if isinstance(event.value, Final):
            finals.setdefault(event.region, []).extend(event.value.rows)
        elif event.op == "append" and event.type == "invoke":
            asked.setdefault(event.request_id, now)
        elif isinstance(event.value, Row):
            told.add(event.value)
            yield _row(event.region, now, event.value, 1, asked.get(event.request_id), "here")
    for region, rows in finals.items():
        for row in rows[-5_000:]:
            if row.node_id != f"{region}-primary" or row not in told:
                yield _row(region, last, row, 0, None, "mesh")
        if rows:
            mark = {"w": rows[-1].zk_id, "m": rows[-1].zk_id, "c": 0, "h": rows[-1].hash[:8]}
            yield {"k": "at", "t": last, "v": f"{region}-primary", **mark}


def _row(region: str, at: float, row: Row, sure: int, taken: float | None, came: str) -> Event:
    values = {"n": row.zk_id, "d": row.node_id, "h": row.hash, "a": taken, "c": at if came == "here" else None}
    return {"k": "row", "r": region, "t": at, "s": sure, "p": None, "o": came, **values}
