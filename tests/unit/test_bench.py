"""What the bench shows of what it measured."""

from __future__ import annotations

from io import StringIO

import pytest
from rich.console import Console

from benchmarks.ladder import Line, figure, groups, show
from pghc.cli import terminal

LINES = [
    Line("locked", "1", "valid", 2.1, 470.2, 512.0, {"us-east": 480.1, "eu-west": 400.0, "ap-south": 500.0}),
    Line("naive", "16 x 3", "invalid: 1234 entries offend", note="0 errors"),
    Line("broadcast", "1", "valid", 7.9, 94.1, 223.0, {"us-east": 94.1, "eu-west": 90.0, "ap-south": 217.4}),
    Line("broadcast", "10000 x 3", "valid", 58148.2, 482.0, 888.1, note="0 errors; all regions equal 0.31 s after it"),
    Line("causal", "16 x 3", "valid", 312.5, 150.0, 410.2, note="0 errors"),
    Line("compare-and-swap on etcd", "1 x 3", "not measured", note="etcd is not installed (Debian: etcd-server)"),
]
REPORT = {
    "limits": {"leader": "eu-west", "create_ms": {"us-east": 166.4}, "floor_ms": {"us-east": 160.0}, "verified": 2.1e6},
    "lines": LINES,
    "ratios": {"broadcast, saturated / locked": 27689.6, "not measured": None},
    "start_s": 4.2,
    "memory_mb": 390.0,
}


@pytest.mark.parametrize("width", [40, 80, 160])
def test_no_value_is_cut_however_narrow_the_terminal(width: int, monkeypatch: pytest.MonkeyPatch) -> None:
    console = Console(width=width, soft_wrap=True, file=StringIO(), color_system=None)
    monkeypatch.setattr(terminal, "out", console)
    show(REPORT)
    assert isinstance(console.file, StringIO)
    said = console.file.getvalue()
    assert "…" not in said
    for line in LINES:
        numbers = [f"{value:,.1f}" for value in (line.rate, line.p50, line.p99) if value is not None]
        for value in (line.name, line.verdict, line.note, *numbers):
            assert value in said
    assert "27,689.60  broadcast, saturated / locked" in said


def test_only_writers_with_as_much_in_flight_stand_together() -> None:
    assert {name: [line.name for line in same] for name, same in groups(LINES).items()} == {
        "1 in flight in the world": ["locked", "broadcast"],
        "1 in flight in each region": ["compare-and-swap on etcd"],
        "16 in flight in each region": ["naive", "causal"],
        "10,000 in flight in each region": ["broadcast"],
    }
    titles = [axes.get_title() for axes in figure(LINES).axes]
    assert [title.split(".")[0] for title in titles] == [
        "1 in flight in the world", "16 in flight in each region", "10,000 in flight in each region",
    ]  # fmt: skip
    assert "broadcast is 3.8 times as fast as locked" in " ".join(titles[0].split())

