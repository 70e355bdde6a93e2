"""What is seen live, and what follows from it: pure."""

from __future__ import annotations

import json
from pathlib import Path
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st
from uuid_utils import uuid7

from pghc.chain import Row, extend
from pghc.errors import BadInput
from pghc.live.evidence import Evidence, stride
from pghc.live.observer import taken_at
from pghc.live.saved import load_saved
from pghc.live.stream import Event, Stream
from pghc.verify.checker import check
from pghc.verify.history import Recorder, read

REGIONS = ("us-east", "eu-west", "ap-south")
CHAIN = list(extend(None, ["us-east-primary", "eu-west-primary"] * 40))


def verdicts(events: list[Event]) -> list[tuple[bool | None, int]]:
    return [(event["v"], event["n"]) for event in events if event["k"] == "verdict"]


def take_all(evidence: Evidence, rows: dict[str, list[Row]], verified: int) -> list[Event]:
    return [event for name in REGIONS for event in evidence.take(0, name, 1, rows[name], verified, None)]


# The stream


def test_who_asks_again_gets_only_what_is_new() -> None:
    stream = Stream()
    stream.put({"k": "num", "t": 1, "p": 1}, {"k": "num", "t": 2, "p": 2})
    number, _ = stream.since(0)
    stream.put({"k": "num", "t": 3, "p": 3})
    assert stream.since(number) == (3, b'{"k":"num","t":3,"p":3}')
    assert stream.since(3) == (3, b"")


@given(st.lists(st.integers(0, 4), max_size=60), st.integers(1, 10))
def test_who_comes_late_learns_how_every_link_stands_however_long_ago_it_changed(changes: list[int], most: int) -> None:
    stream, now = Stream(most=most), {}
    for t, link in enumerate(changes):
        now[str(link)] = t
        stream.put({"k": "link", "t": t, "a": str(link), "b": "", "ms": t, "s": "open"})
    seen = {}
    for event in json.loads(b"[" + stream.since(0)[1] + b"]"):
        seen[event["a"]] = event["ms"]
    assert seen == now


def test_what_is_older_than_the_span_is_forgotten() -> None:
    stream = Stream(span=10)
    stream.put(*({"k": "num", "t": t, "p": t} for t in range(100)))
    assert len(json.loads(b"[" + stream.since(0)[1] + b"]")) <= 11


# What follows


def test_valid_as_far_as_every_region_holds_the_same_and_its_links_were_recomputed() -> None:
    evidence = Evidence(REGIONS)
    rows = dict.fromkeys(REGIONS, CHAIN[:20]) | {"ap-south": CHAIN[:15]}
    assert verdicts(take_all(evidence, rows, verified=12))[-1] == (True, 12)
    assert verdicts(take_all(evidence, rows, verified=20))[-1] == (True, 15)


def test_nothing_is_said_to_be_valid_while_a_region_has_nothing() -> None:
    evidence = Evidence(REGIONS)
    assert verdicts(evidence.take(0, "us-east", 1, CHAIN, 80, None)) == [(None, 0)]


def test_a_few_common_entries_of_many_are_enough() -> None:
    evidence = Evidence(REGIONS)
    rows = {name: [CHAIN[31], CHAIN[47 + at], CHAIN[63]] for at, name in enumerate(REGIONS)}
    assert verdicts(take_all(evidence, rows, verified=80))[-1] == (True, 64)


def test_rivals_are_told_with_the_checkers_sentence_and_the_first_is_searched_for() -> None:
    evidence = Evidence(REGIONS)
    take_all(evidence, dict.fromkeys(REGIONS, CHAIN[:8]), 8)
    other = list(extend(CHAIN[9], ["ap-south-primary"] * 40))
    rows = {name: [CHAIN[31]] for name in REGIONS} | {"ap-south": [other[21]]}
    [rivals] = [event for event in take_all(evidence, rows, 32) if event["k"] == "rivals"]
    assert rivals["n"] == 32
    assert rivals["x"].startswith("two entries claim place 32: entry 32 of")
    assert evidence.wanted is not None
    low, high = evidence.wanted
    assert low <= 9
    assert high >= 32
    rows = dict.fromkeys(REGIONS, CHAIN[8:32]) | {"ap-south": [*CHAIN[8:10], *other[:20]]}
    assert verdicts(take_all(evidence, rows, 32))[-1] == (False, 11)


def test_a_broken_link_is_the_verdict_unless_an_entry_before_it_offends() -> None:
    evidence = Evidence(REGIONS)
    events = evidence.take(0, "us-east", 1, CHAIN[:9], 8, (9, "us-east: it does not follow"))
    assert verdicts(events)[-1] == (False, 9)
    events = evidence.take(0, "eu-west", 1, CHAIN[:3], 3, (4, "eu-west: nor does this"))
    assert verdicts(events)[-1] == (False, 4)
    assert verdicts(evidence.take(0, "ap-south", 1, CHAIN[:3], 3, (7, "later"))) == []


def test_another_chain_begins_with_nothing_held_against_it_and_the_old_one_is_not_mixed_in() -> None:
    evidence = Evidence(REGIONS)
    take_all(evidence, {name: [Row(1, name, name)] for name in REGIONS}, 1)
    events = evidence.take(0, "us-east", 5, CHAIN[:3], 3, None)
    assert [event["k"] for event in events] == ["chain", "verdict"]
    assert evidence.take(0, "eu-west", 1, [Row(1, "eu-west", "old")], 9, None) == []


@given(st.integers(0, 10**6), st.integers(0, 10**6))
def test_multiples_of_one_stride_are_common_to_all(one: int, other: int) -> None:
    assert max(stride(one), stride(other)) % min(stride(one), stride(other)) == 0


def test_a_request_id_says_when_its_client_made_it_and_another_kind_says_nothing() -> None:
    made = uuid7()
    assert taken_at(UUID(str(made))) == made.timestamp
    assert taken_at(UUID("5e0c8f6e-52d4-4f6c-8d3c-111111111111")) is None
    assert taken_at(None) is None


# Files


def history(path: Path) -> Path:
    with Recorder(path) as recorder:
        for row in CHAIN[:4]:
            region = row.node_id.removesuffix("-primary")
            recorder.invoke("c", region, "append", str(row.zk_id), row.node_id)
            recorder.ok("c", region, "append", str(row.zk_id), row.node_id, row)
        for region in ("us-east", "eu-west"):
            recorder.final(region, f"{region}-primary", CHAIN[:4])
    return path


def test_any_history_can_be_played_and_what_nobody_timed_is_marked_as_such(tmp_path: Path) -> None:
    path = history(tmp_path / "h.jsonl")
    view, stream = load_saved(path)
    assert view["can"] == []
    assert view["verdict"]["x"] == str(check(read(path)))
    events = json.loads(b"[" + stream.since(0)[1] + b"]")
    rows = {(event["n"], event["r"]): event["s"] for event in events if event["k"] == "row"}
    assert rows == {(row.zk_id, name): int(row.node_id.startswith(name)) for row in CHAIN[:4] for name in REGIONS[:2]}


def test_what_was_seen_is_ignored_by_the_checker_and_played_again(tmp_path: Path) -> None:
    path = history(tmp_path / "h.jsonl")
    before = check(read(path))
    lines = path.read_text().splitlines()
    events = [{"k": "link", "t": 1.0, "a": "us-east", "b": "eu-west", "ms": 40.0, "s": "cut"}]
    live = {"view": {"hello": {"servers": []}, "saved": "then"}, "events": events}
    lines[-1] = lines[-1][:-1] + ', "live":' + json.dumps(live) + "}"
    path.write_text("\n".join(lines))
    assert check(read(path)) == before
    view, stream = load_saved(path)
    assert view["saved"] == "then"
    assert json.loads(b"[" + stream.since(0)[1] + b"]") == events


def test_a_file_whose_moment_was_cut_short_is_refused_with_its_line(tmp_path: Path) -> None:
    path = history(tmp_path / "h.jsonl")
    line = {"time": 1, "process": "x", "region": "us-east", "type": "final", "op": "read"}
    path.write_text(path.read_text() + json.dumps(line)[:-1] + ',"live":[]}')
    with pytest.raises(BadInput, match="line 11"):
        load_saved(path)
