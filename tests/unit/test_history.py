"""Histories: what is written is read back, what is malformed is named, exports are what the other tools read."""

from __future__ import annotations

import gzip
import io
import json
import re
from itertools import count, pairwise
from pathlib import Path
from threading import Thread
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pghc.chain import Row, extend
from pghc.errors import BadInput
from pghc.verify.edn import to_edn
from pghc.verify.history import ROWS_A_LINE, Event, Final, Read, Recorder, parse, read
from pghc.verify.merge import merge
from pghc.verify.shiviz import SHIVIZ, to_shiviz

ROWS = tuple(extend(None, ["us-east-primary", "eu-west-primary"] * 3))
TEXT = st.text(max_size=6) | st.sampled_from(["us-east/3", 'a "b" \\ c', "é\n\t\u2028\x00", "\ud7ff\U0001f600"])
ANY_ROW = st.builds(Row, st.integers(-(1 << 63), (1 << 63) - 1), TEXT, TEXT)
REQUESTS = st.none() | st.lists(st.tuples(TEXT, st.integers(-(1 << 63), (1 << 63) - 1)), max_size=4)
READS = st.builds(Read, st.integers(0, 9), st.integers(0, 9), st.lists(ANY_ROW, max_size=4).map(tuple))


class Ticks:
    """A clock that shows what it is told to."""

    def __init__(self, *times: int) -> None:
        self._times = iter(times or count(1))

    def __call__(self) -> int:
        return next(self._times)


def test_an_append_and_its_acknowledgement_are_recorded_in_the_documented_form(tmp_path: Path) -> None:
    with Recorder(tmp_path / "h.jsonl", Ticks(1200, 3400)) as record:
        record.invoke("us-east/3", "us-east", "append", "5e0c", "us-east-primary")
        record.ok("us-east/3", "us-east", "append", "5e0c", "us-east-primary", ROWS[0])
    asked, told = map(json.loads, (tmp_path / "h.jsonl").read_text().splitlines())
    who = {"process": "us-east/3", "region": "us-east", "op": "append", "request_id": "5e0c", "node": "us-east-primary"}
    assert asked == {"time": 1200, "type": "invoke", "value": None} | who
    assert told == {"time": 3400, "type": "ok", "value": ROWS[0]._asdict()} | who


@given(
    st.lists(
        st.tuples(st.sampled_from(["invoke", "fail", "info", "append", "read"]), TEXT, TEXT, st.none() | TEXT, TEXT)
        | st.tuples(st.just("final"), TEXT, TEXT, st.lists(ANY_ROW, max_size=4), REQUESTS, *[st.booleans()] * 2),
        max_size=6,
    ),
    st.data(),
    st.sampled_from(["h.jsonl", "h.jsonl.gz"]),
)
def test_whatever_is_recorded_is_read_back(
    tmp_path_factory: pytest.TempPathFactory, calls: list[tuple[Any, ...]], data: st.DataObject, name: str
) -> None:
    path = tmp_path_factory.mktemp("history") / name
    expected, times = [], count(1)
    with Recorder(path, Ticks()) as record:
        for what, *arguments in calls:
            if what == "final":
                region, node, rows, requests, caught_up, alone = arguments
                record.final(region, node, rows, requests, caught_up=caught_up, alone=alone)
                none = None if requests is None else ()
                finals = [Final(tuple(rows), False, none, caught_up, alone)] if rows or not requests else []
                finals += [Final((), False, tuple(requests), caught_up, alone)] if requests else []
                for n, final in enumerate(finals):
                    value = final._replace(more=n + 1 < len(finals))
                    now = next(times)
                    expected.append(Event(now, f"{region}/final", region, "final", "read", None, node, value))
                continue
            time = next(times)
            process, region, request, node = arguments
            if what in {"append", "read"}:
                value = data.draw(ANY_ROW if what == "append" else READS)
                record.ok(process, region, what, request, node, value)
                expected.append(Event(time, process, region, "ok", what, request, node, value))
            elif what == "invoke":
                record.invoke(process, region, "append", request, node)
                expected.append(Event(time, process, region, "invoke", "append", request, node))
            else:
                getattr(record, what)(process, region, "append", request, node, ValueError("no: " + node))
                expected.append(Event(time, process, region, what, "append", request, node, None, "no: " + node))
    assert list(read(path)) == expected


@given(st.sampled_from(["invoke", "ok", "fail", "info"]), st.sampled_from(["append", "read"]), st.booleans(), ANY_ROW)
def test_the_order_of_keys_and_unknown_keys_change_nothing(kind: str, op: str, with_row: bool, row: Row) -> None:
    fields = {"time": 7, "process": "p", "region": "r", "type": kind, "op": op, "request_id": "i", "node": "n"}
    fields["value"] = row._asdict() if with_row else None  # type: ignore[assignment]

    def outcome(line: str) -> Event | str:
        try:
            return parse(line)
        except BadInput as error:
            return str(error)

    usual = outcome(json.dumps(fields) + "\n")
    assert usual == outcome(json.dumps(dict(reversed(fields.items())) | {"colour": [1]}))
    if op == "append" and kind == "ok":
        assert isinstance(usual, Event) is with_row


def test_a_long_final_takes_many_lines_and_says_where_it_ends(tmp_path: Path) -> None:
    for length in (0, 1, ROWS_A_LINE - 1, ROWS_A_LINE, ROWS_A_LINE + 1, 3 * ROWS_A_LINE):
        rows = [Row(n, "a", "") for n in range(1, length + 1)]
        with Recorder(tmp_path / "h", Ticks()) as record:
            record.final("us-east", "us-east-primary", iter(rows))
        finals = [event.value for event in read(tmp_path / "h")]
        assert [row for final in finals for row in final.rows] == rows
        assert [final.more for final in finals] == [True] * (len(finals) - 1) + [False]
        assert len(finals) == max(1, -(-length // ROWS_A_LINE))


def test_a_long_table_of_requests_follows_the_rows_of_its_final(tmp_path: Path) -> None:
    for length in (0, 1, ROWS_A_LINE, ROWS_A_LINE + 1):
        rows = [Row(n, "a", "") for n in range(1, length + 1)]
        requests = [(f"q{n}", n) for n in range(1, length + 1)]
        with Recorder(tmp_path / "h", Ticks()) as record:
            record.final("us-east", "us-east-primary", iter(rows), iter(requests), caught_up=False)
        finals = [event.value for event in read(tmp_path / "h")]
        assert [row for final in finals for row in final.rows] == rows
        assert [pair for final in finals for pair in final.requests or ()] == requests
        assert [final.more for final in finals] == [True] * (len(finals) - 1) + [False]
        assert {final.caught_up for final in finals} == {False}
        assert finals[-1].requests is not None, "a table that was read and is empty is told from one that was not"


def test_a_final_that_says_no_more_than_it_must_is_written_without_the_rest(tmp_path: Path) -> None:
    with Recorder(tmp_path / "h") as record:
        record.final("us-east", "us-east-primary", ROWS[:1])
    assert json.loads((tmp_path / "h").read_text())["value"] == {"rows": [ROWS[0]._asdict()], "more": False}


def test_an_error_that_quotes_bytes_that_are_no_text_is_recorded_all_the_same(tmp_path: Path) -> None:
    with Recorder(tmp_path / "h") as record:
        record.info("p", "r", "append", "i", "n", "no file \udcff")
    assert [event.error for event in read(tmp_path / "h")] == ["no file \\udcff"]


def test_threads_may_share_a_recorder_and_times_ascend(tmp_path: Path) -> None:
    with Recorder(tmp_path / "h") as record:

        def client(name: str) -> None:
            for n in range(300):
                record.invoke(name, "us-east", "append", f"{name} {n}", "us-east-primary")
                record.ok(name, "us-east", "append", f"{name} {n}", "us-east-primary", ROWS[0])

        threads = [Thread(target=client, args=(f"us-east/{n}",)) for n in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
    events = list(read(tmp_path / "h"))
    assert len(events) == 4 * 600
    assert all(one.time <= other.time for one, other in pairwise(events))


def test_what_was_recorded_can_be_read_after_a_flush(tmp_path: Path) -> None:
    with Recorder(tmp_path / "h") as record:
        record.invoke("p", "r", "append", "i", "n")
        record.flush()
        assert len(list(read(tmp_path / "h"))) == 1


def test_a_history_that_cannot_be_written_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="cannot be written: No such file"):
        Recorder(tmp_path / "nowhere" / "h.jsonl")


GOOD = {"time": 1, "process": "p", "region": "r", "type": "ok", "op": "append", "value": ROWS[0]._asdict()}
FINAL = GOOD | {"type": "final", "op": "read"}


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("{", "not JSON"),
        ('{"time": 1, "process": "p"', "not JSON"),
        ("[]", "not an event: Expected `object`"),
        ("7", "not an event: Expected `object`"),
        ("null", "not an event: Expected `object`"),
        ("[" * 100_000, "not "),
        *((json.dumps({k: v for k, v in GOOD.items() if k != key}), f"field `{key}`") for key in list(GOOD)[:5]),
        (json.dumps(GOOD | {"time": "1"}), "Expected `int`, got `str` - at `$.time`"),
        (json.dumps(GOOD | {"time": 1.5}), "Expected `int`, got `float` - at `$.time`"),
        (json.dumps(GOOD | {"time": True}), "Expected `int`, got `bool` - at `$.time`"),
        (json.dumps(GOOD | {"time": 1 << 63}), "at `$.time`"),
        (json.dumps(GOOD | {"process": 3}), "Expected `str`, got `int` - at `$.process`"),
        (json.dumps(GOOD | {"region": None}), "Expected `str`, got `null` - at `$.region`"),
        (json.dumps(GOOD | {"type": "okay"}), "'okay' - at `$.type`"),
        (json.dumps(GOOD | {"type": ["ok"]}), "got `array` - at `$.type`"),
        (json.dumps(GOOD | {"op": "delete"}), "'delete' - at `$.op`"),
        (json.dumps(GOOD | {"type": "final"}), "no event of type 'final' and op 'append'"),
        (json.dumps(GOOD | {"request_id": 5}), "got `int` - at `$.request_id`"),
        (json.dumps(GOOD | {"node": ["n"]}), "got `array` - at `$.node`"),
        (json.dumps(GOOD | {"value": None}), "the value of this ok append is a row"),
        (json.dumps(GOOD | {"value": {"zk_id": 1, "node_id": "a"}}), "is a row"),
        (json.dumps(GOOD | {"value": {"zk_id": "1", "node_id": "a", "hash": ""}}), "is a row"),
        (json.dumps(GOOD | {"value": {"zk_id": 1, "node_id": None, "hash": ""}}), "is a row"),
        (json.dumps(GOOD | {"value": {"zk_id": 1, "node_id": "a", "hash": 0}}), "is a row"),
        (json.dumps(GOOD | {"value": {"zk_id": 1 << 63, "node_id": "a", "hash": ""}}), "is a row"),
        (json.dumps(GOOD | {"op": "read"}), "the value of this ok read"),
        (json.dumps(GOOD | {"op": "read", "value": {"watermark": "3"}}), "the value of this ok read"),
        (json.dumps(GOOD | {"op": "read", "value": {"watermark": 3, "rows": {}}}), "the value of this ok read"),
        (json.dumps(GOOD | {"op": "read", "value": {"watermark": 3, "position": 1.5}}), "the value of this ok read"),
        (json.dumps(GOOD | {"op": "read", "value": [{"zk_id": True, "node_id": "a", "hash": ""}] * 3}), "ok read"),
        (json.dumps(GOOD | {"op": "read", "value": [{"zk_id": 1, "node_id": 2, "hash": ""}] * 3}), "ok read"),
        (json.dumps(GOOD | {"op": "read", "value": [{"zk_id": 1, "node_id": "a", "hash": None}] * 3}), "ok read"),
        (json.dumps(FINAL | {"value": {"more": True}}), "the value of this final read"),
        (json.dumps(FINAL | {"value": {"rows": [], "more": 1}}), "final read"),
        (json.dumps(FINAL | {"value": {"rows": [7]}}), "final read"),
        (json.dumps(FINAL | {"value": {"rows": [], "requests": [["q", "7"]]}}), "got `str` - at `$.requests[0][1]`"),
        (json.dumps(FINAL | {"value": {"rows": [], "requests": {"q": 7}}}), "at `$.requests`"),
        (json.dumps(FINAL | {"value": {"rows": [], "caught_up": None}}), "got `null` - at `$.caught_up`"),
    ],
)
def test_a_malformed_line_is_named_with_its_file_and_number(tmp_path: Path, line: str, says: str) -> None:
    path = tmp_path / "foreign.jsonl"
    path.write_text(f"{json.dumps(GOOD)}\n\n{line}\n{json.dumps(GOOD)}\n")
    events = read(path)
    assert next(events).value == ROWS[0]
    with pytest.raises(BadInput) as caught:
        list(events)
    assert str(caught.value).startswith(f"{path}, line 3: ")
    assert says in str(caught.value)


def test_lists_of_rows_from_other_programs_are_reads_and_finals() -> None:
    rows = [row._asdict() for row in ROWS]
    fields = {"time": 1, "process": "p", "region": "r", "op": "read", "extra": {"x": 1}}
    assert parse(json.dumps(fields | {"type": "ok", "value": rows})).value == Read(0, 6, ROWS)
    assert parse(json.dumps(fields | {"type": "ok", "value": []})).value == Read(0, 0, ())
    assert parse(json.dumps(fields | {"type": "ok", "value": {"watermark": 4}})).value == Read(0, 4, ())
    assert parse(json.dumps(fields | {"type": "final", "value": rows})).value == Final(ROWS)
    assert parse(json.dumps(fields | {"type": "final", "value": {"rows": rows}})).value == Final(ROWS)


def test_a_file_that_is_missing_cut_short_or_not_text_is_named(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="nowhere cannot be read"):
        list(read(tmp_path / "nowhere"))
    (tmp_path / "binary").write_bytes(b"\n\n\xff\xfe\n")
    with pytest.raises(BadInput, match="binary, line 3: not JSON"):
        list(read(tmp_path / "binary"))
    whole = gzip.compress(json.dumps(GOOD).encode() * 100)
    (tmp_path / "cut.gz").write_bytes(whole[:-20])
    with pytest.raises(BadInput, match=r"cut\.gz, after line \d+: the compressed file is cut short"):
        list(read(tmp_path / "cut.gz"))
    (tmp_path / "not.gz").write_text("{}")
    with pytest.raises(BadInput, match=r"not\.gz cannot be read"):
        list(read(tmp_path / "not.gz"))


# Merging


@given(st.lists(st.lists(st.integers(0, 9), max_size=5).map(sorted), min_size=1, max_size=3), st.booleans())
def test_a_merged_history_holds_every_line_in_the_order_of_time(
    tmp_path_factory: pytest.TempPathFactory, files: list[list[int]], usual: bool
) -> None:
    folder = tmp_path_factory.mktemp("merge")
    lines = []
    for n, times in enumerate(files):
        fields = [GOOD | {"process": f"{n}", "time": time, "mark": k} for k, time in enumerate(times)]
        mine = [json.dumps(one if usual else dict(reversed(one.items()))) for one in fields]
        (folder / f"{n}").write_text("\n".join(mine))
        lines += mine
    merge([folder / f"{n}" for n in range(len(files))], folder / "all.gz")
    merged = gzip.open(folder / "all.gz", "rt").read().splitlines()  # noqa: SIM115
    assert sorted(merged) == sorted(lines)
    keys = [(json.loads(line)["time"], json.loads(line)["process"], json.loads(line)["mark"]) for line in merged]
    assert keys == sorted(keys)


def test_a_line_that_a_killed_program_left_unfinished_is_left_out_of_a_merge(tmp_path: Path) -> None:
    line = json.dumps(GOOD)
    for end in range(1, len(line)):
        (tmp_path / "a").write_text(f"{line}\n{line[:end]}")
        merge([tmp_path / "a"], tmp_path / "out")
        assert (tmp_path / "out").read_text() == line + "\n"
        with pytest.raises(BadInput, match="a, line 2: not JSON"):
            list(read(tmp_path / "a"))
    (tmp_path / "a").write_text(f"{line}\n{line}")
    merge([tmp_path / "a"], tmp_path / "out")
    assert (tmp_path / "out").read_text() == f"{line}\n{line}\n"


@pytest.mark.parametrize(
    ("second", "says"),
    [('{"time": 0}', "earlier than"), ('{"time": x, ', "not JSON"), ('{"time": "x"}', "time is not a whole number")],
)
def test_a_merge_that_fails_leaves_nothing(tmp_path: Path, second: str, says: str) -> None:
    (tmp_path / "a").write_text(json.dumps(GOOD) + "\n" + second + "\n")
    with pytest.raises(BadInput, match=f"a, line 2: {says}"):
        merge([tmp_path / "a"], tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


# EDN


def edn(text: str) -> Any:
    """A reader of as much EDN as a history needs, for the tests."""
    tokens = re.findall(r'"(?:[^"\\]|\\.)*"|[{}\[\]]|[^\s,{}\[\]]+', text)

    def value() -> Any:
        token = tokens.pop(0)
        if token in "{[":
            items = []
            while tokens[0] not in "}]":
                items.append(value())
            tokens.pop(0)
            return dict(zip(items[::2], items[1::2], strict=True)) if token == "{" else items
        if token[0] == '"':
            return json.loads(token)
        return {"nil": None, "true": True, "false": False}[token] if token in {"nil", "true", "false"} else (
            token if token[0] == ":" else int(token)
        )  # fmt: skip

    result = value()
    assert not tokens
    return result


def told(time: int, process: str, row: Row, request: str | None = None) -> Event:
    return Event(time, process, "r", "ok", "append", request or f"q{row.zk_id}", "n", row)


def asked(time: int, process: str, request: str) -> Event:
    return Event(time, process, "r", "invoke", "append", request, "n")


def exported(events: list[Event]) -> list[dict[str, Any]]:
    out = io.StringIO()
    to_edn(events, out)
    return [edn(line) for line in out.getvalue().splitlines()]


def test_edn_has_jepsens_keys_and_the_values() -> None:
    first, second, third, fourth = exported(
        [
            asked(1, "r/1", "q1"),
            told(2, "r/1", ROWS[0]),
            Event(3, 'r/"2"', "r", "invoke", "read", None, "n"),
            Event(4, 'r/"2"', "r", "ok", "read", None, "n", Read(0, 1, ROWS[:1])),
        ]
    )
    assert first == {
        ":index": 0, ":time": 1, ":type": ":invoke", ":process": 0, ":f": ":append", ":value": None,
        ":client": "r/1", ":region": "r", ":node": "n", ":request-id": "q1",
    }  # fmt: skip
    row = {":zk-id": 1, ":node-id": "us-east-primary", ":hash": ROWS[0].hash}
    assert (second[":type"], second[":value"]) == (":ok", row)
    assert (third[":process"], third[":client"]) == (1, 'r/"2"')
    assert fourth[":value"] == {":position": 0, ":watermark": 1, ":rows": [row]}


def test_edn_holds_an_error_and_the_final_chains_as_reads() -> None:
    lines = [Event(7, "a/final", "a", "final", "read", None, "n", Final(ROWS[k : k + 3], k == 0)) for k in (0, 3)]
    error = Event(2, "r/1", "r", "info", "append", "q1", "n", None, 'lost "reply"')
    _, info, invoke, ok = exported([asked(1, "r/1", "q1"), error, *lines])
    assert (info[":type"], info[":error"]) == (":info", 'lost "reply"')
    assert (invoke[":type"], invoke[":f"], invoke[":final"], invoke[":process"]) == (":invoke", ":read", True, 1)
    assert [row[":zk-id"] for row in ok[":value"][":rows"]] == [1, 2, 3, 4, 5, 6]
    assert list(ok[":value"]) == [":rows"]


def test_edn_says_which_request_became_which_entry_and_whether_a_region_was_behind() -> None:
    requests = (("q1", 1),), (("q2", 2),)
    parts = [Final(ROWS[:1], True, (), False), *(Final((), n < 2, two, False) for n, two in enumerate(requests, 1))]
    _, ok = exported([Event(7, "a/final", "a", "final", "read", None, "n", part) for part in parts])
    assert len(ok[":value"][":rows"]) == 1
    assert (ok[":value"][":requests"], ok[":value"][":caught-up"]) == ([["q1", 1], ["q2", 2]], False)


STEPS = st.tuples(st.sampled_from(["a", "b"]), st.integers(0, 4), st.sampled_from(["ok", "fail", "info"]))


@given(st.lists(STEPS, max_size=20))
def test_in_edn_a_process_has_one_operation_open_and_ends_with_an_info(steps: list[tuple[str, int, Any]]) -> None:
    events, under_way = [], set()
    for time, (process, n, kind) in enumerate(steps):
        if (process, n) in under_way:
            events.append(Event(time, process, "r", kind, "append", f"q{n}", "n", ROWS[0] if kind == "ok" else None))
            under_way.remove((process, n))
        else:
            events.append(asked(time, process, f"q{n}"))
            under_way.add((process, n))
    lines = exported(events)
    assert [line[":index"] for line in lines] == list(range(len(events)))
    state: dict[int, str] = {}
    clients: dict[int, set[str]] = {}
    for event, line in zip(events, lines, strict=True):
        process = line[":process"]
        clients.setdefault(process, set()).add(line[":client"])
        assert state.get(process, "idle") == ("idle" if event.type == "invoke" else event.request_id)
        state[process] = {"invoke": event.request_id or "", "info": "gone"}.get(event.type, "idle")
    assert all(len(names) == 1 for names in clients.values())


# ShiViz


def clocks(events: list[Event]) -> list[tuple[str, dict[str, int], str]]:
    out = io.StringIO()
    to_shiviz(events, out)
    first, delimiter, *log = out.getvalue().splitlines()
    assert (first, delimiter) == (SHIVIZ, "")
    pattern = SHIVIZ.replace("(?<", "(?P<")
    found = [re.fullmatch(pattern, f"{a}\n{b}") for a, b in zip(log[::2], log[1::2], strict=True)]
    assert all(found)
    return [(match["host"], json.loads(match["clock"]), match["event"]) for match in found if match]


def before(one: dict[str, int], other: dict[str, int]) -> bool:
    return one != other and all(other.get(host, 0) >= n for host, n in one.items())


def test_in_shiviz_an_append_has_heard_of_the_request_for_the_entry_before() -> None:
    asks = [asked(1, "a", "q1"), asked(2, "b", "q2"), asked(3, "c", "q3")]
    answers = [told(4, "b", ROWS[1]), told(5, "a", ROWS[0])]
    a_asks, b_asks, c_asks, b_told, a_told = (clock for _, clock, _ in clocks(asks + answers))
    assert before(a_asks, b_told)
    assert not before(b_asks, a_told)
    assert not before(a_told, b_told)
    assert c_asks == {"c": 1}


def test_in_shiviz_a_reader_has_heard_of_all_below_what_it_read() -> None:
    read_by_c = Event(5, "c", "r", "ok", "read", "x", "n", Read(0, 3, (ROWS[2],)))
    appends = [told(3, "a", ROWS[0]), told(4, "a", ROWS[1]), told(4, "b", ROWS[2])]
    log = clocks([asked(1, "a", "q1"), asked(2, "b", "q3"), *appends, read_by_c])
    assert log[-1] == ("c", {"c": 1, "a": 1, "b": 1}, "read ok at n: up to 3")


def test_in_shiviz_a_fork_has_not_heard_of_the_other_branch() -> None:
    other = next(extend(ROWS[0], ["x"]))
    log = clocks([asked(1, "a", "q1"), asked(2, "b", "q2"), asked(3, "c", "qx"), told(4, "a", ROWS[0]),
                  told(5, "b", ROWS[1]), Event(6, "c", "r", "ok", "append", "qx", "n", other)])  # fmt: skip
    assert log[4][1] == {"a": 1, "b": 2}
    assert log[5][1] == {"a": 1, "c": 2}


def test_in_shiviz_the_entry_before_is_the_one_whose_hash_it_is() -> None:
    """Two entries claim place 1; the second entry follows the one that was heard of later."""
    other, follower = extend(None, ["x", "y"])
    asks = [asked(1, "a", "q1"), asked(2, "b", "qx"), asked(3, "c", "qy")]
    answers = [told(4, "a", ROWS[0]), told(5, "b", other, "qx"), told(6, "c", follower, "qy")]
    assert clocks(asks + answers)[-1][1] == {"b": 1, "c": 2}


@given(st.lists(st.tuples(st.sampled_from(["a b", "c", ""]), st.integers(0, 5), st.booleans()), max_size=12))
def test_shiviz_clocks_count_each_host_from_one_and_never_go_back(steps: list[tuple[str, int, bool]]) -> None:
    events = [
        asked(t, who, f"q{n + 1}") if ask else told(t, who, ROWS[n]) for t, (who, n, ask) in enumerate(steps)
    ]
    seen: dict[str, dict[str, int]] = {}
    for host, clock, _ in clocks(events):
        assert clock[host] == seen.get(host, {}).get(host, 0) + 1
        assert all(clock.get(other, 0) >= n for other, n in seen.get(host, {}).items())
        assert all(n <= seen.get(other, {}).get(other, 0) for other, n in clock.items() if other != host)
        seen[host] = clock
