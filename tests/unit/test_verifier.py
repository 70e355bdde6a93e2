"""Verdicts on small chains and histories agree with the definition, whatever is in them."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence

import definition
import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from pghc.chain import Row, extend, link, successor
from pghc.errors import BadInput
from pghc.verify.checker import KINDS, Verdict, check, verify_chain
from pghc.verify.history import Event, Final, Read

MANY = 1000

# Rows such as a faulty system may produce: a right chain, its forks, entries that were changed or numbered wrongly.
GOOD = tuple(extend(None, ["a", "b", "a", "c", "b"]))
FORKS = tuple(successor(before, "d") for before in (None, *GOOD))
CHANGED = (GOOD[1]._replace(node_id="c"), GOOD[2]._replace(hash="0" * 32), GOOD[3]._replace(zk_id=6))
LATE = tuple(Row(n + 2, "e", link(n + 2, "e", GOOD[n - 1].hash)) for n in (1, 2, 3))
WRONG = (Row(0, "a", link(0, "a", "")), Row(-1, "b", "x"), Row(3, "B!", link(3, "B!", GOOD[1].hash)), Row(2, "", ""))
ANY_ROW = st.sampled_from(GOOD) | st.sampled_from(GOOD + FORKS + LATE) | st.sampled_from(CHANGED + WRONG)
MOSTLY_GOOD = st.sampled_from(GOOD) | st.sampled_from(GOOD + FORKS + LATE)


def ascending(rows: list[Row]) -> list[Row]:
    return sorted(rows, key=lambda row: row.zk_id)


CHAINS = (
    st.integers(0, 5).map(lambda n: list(GOOD[:n]))
    | st.lists(st.sampled_from(GOOD), max_size=7).map(ascending)
    | st.lists(ANY_ROW, max_size=7).map(ascending)
)

# One chain


@given(CHAINS)
def test_verify_finds_in_a_chain_what_the_definition_finds(rows: list[Row]) -> None:
    anchored = bool(rows) and rows[0].zk_id > 1
    expected = {
        "malformed": definition.malformed(rows),
        "fork": definition.fork(rows),
        "duplicate": definition.duplicate(rows),
        "link": definition.broken(rows, None if anchored else ""),
        "gap": definition.gap(rows, rows[0].zk_id if anchored else 1),
    }
    expected = {kind: places for kind, places in expected.items() if places}
    verdict = verify_chain(rows, keep=MANY)
    found = {kind: {o.zk_id for o in verdict.anomalies if o.kind == kind} for kind in verdict.counts}
    assert found == expected
    assert verdict.counts == {kind: len(places) for kind, places in expected.items()}
    assert verdict.valid is (not expected if rows else None)


@settings(suppress_health_check=[HealthCheck.filter_too_much])
@given(CHAINS, st.integers(0, 5))
def test_verify_after_an_entry_says_what_it_says_of_the_whole(rows: list[Row], at: int) -> None:
    """Except where the piece begins in the midst of a fork, for then its predecessor is not one entry."""
    rows = [row for row in rows if row.zk_id >= 1]
    below, above = rows[:at], rows[at:]
    assume(below and above and above[0].zk_id > below[-1].zk_id)
    assume(len(below) == 1 or below[-2].zk_id < below[-1].zk_id)

    def places(verdict: Verdict) -> list[tuple[int, str, str, str]]:
        return [(o.zk_id, o.kind, o.expected, o.found) for o in verdict.anomalies if o.zk_id > below[-1].zk_id]

    assert places(verify_chain(above, below[-1], keep=MANY)) == places(verify_chain(rows, keep=MANY))


@given(st.integers(1, 5), st.integers(1, 5))
def test_the_last_entries_of_a_right_chain_are_valid_and_the_anchor_is_stated(length: int, last: int) -> None:
    rows = GOOD[max(0, length - last) : length]
    verdict = verify_chain(rows)
    assert verdict.valid
    assert ("anchor" in str(verdict)) == (rows[0].zk_id > 1)
    assert verdict.checked == {"entries": len(rows), "links": len(rows) - (rows[0].zk_id > 1)}


def test_an_empty_chain_is_unknown() -> None:
    assert verify_chain([]).valid is None
    assert verify_chain([], GOOD[0]).exit_code == 2


def test_rows_that_descend_are_refused() -> None:
    with pytest.raises(BadInput, match="entry 1 comes after entry 2"):
        verify_chain(reversed(GOOD[:2]))


def test_rows_may_be_plain_tuples_as_a_driver_gives_them() -> None:
    assert verify_chain(map(tuple, GOOD)).valid  # type: ignore[arg-type]
    assert verify_chain([*map(tuple, GOOD[:3]), (5, *GOOD[4][1:])]).anomalies[0].kind == "gap"  # type: ignore[list-item]


def test_a_broken_link_says_what_is_expected_and_which_entry_it_was_made_after() -> None:
    late = LATE[1]  # entry 4 made after entry 2
    verdict = verify_chain([*GOOD[:3], late])
    (anomaly,) = verdict.anomalies
    assert (anomaly.kind, anomaly.zk_id, anomaly.expected, anomaly.found) == (
        "link",
        4,
        link(4, "e", GOOD[2].hash),
        late.hash,
    )
    assert anomaly.rows == (GOOD[1], GOOD[2], late)
    assert str(verdict).startswith("Invalid: entry 4 of e holds hash")
    assert "made after entry 2 of b" in str(verdict)


def test_a_link_made_to_nothing_is_recognised() -> None:
    assert "as if the chain were empty" in str(verify_chain([GOOD[0], Row(2, "a", link(2, "a", ""))]))


def test_a_fork_names_both_entries_that_claim_the_place() -> None:
    verdict = verify_chain([*GOOD[:3], FORKS[2], GOOD[3]])
    assert verdict.counts == {"fork": 1}
    assert verdict.anomalies[0].rows == (GOOD[2], FORKS[2])
    assert "two entries claim place 3: entry 3 of a (" in str(verdict)


def test_both_branches_of_a_fork_may_go_on() -> None:
    other = successor(FORKS[2], "d")
    assert verify_chain([*GOOD[:3], FORKS[2], GOOD[3], other]).counts == {"fork": 2}


def test_a_gap_counts_once_however_wide() -> None:
    far = Row(1 << 60, "a", link(1 << 60, "a", GOOD[1].hash))
    verdict = verify_chain([*GOOD[:2], far])
    assert verdict.counts == {"gap": 1}
    assert "entries 3 to 1152921504606846975 are missing" in str(verdict)


@given(st.integers(0, 99), st.sampled_from(["node_id", "hash", "zk_id", "gone"]))
def test_one_change_anywhere_in_a_longer_chain_is_found_at_its_place(at: int, what: str) -> None:
    rows = list(extend(None, ["a", "b"] * 50))
    old = rows[at]
    change = {
        "node_id": [old._replace(node_id="c")],
        "hash": [old._replace(hash=link(at, "x", ""))],
        "zk_id": [old._replace(zk_id=101)],
        "gone": [],
    }
    rows[at : at + 1] = [] if what == "zk_id" else change[what]
    rows += change["zk_id"] if what == "zk_id" else []
    if at == 99 and what in {"gone", "zk_id"}:
        assert verify_chain(rows, keep=MANY).valid is (what == "gone")
    elif at == 0 and what in {"gone", "zk_id"}:
        assert verify_chain(rows).unchecked
    else:
        assert verify_chain(rows).anomalies[0].zk_id == at + 1


# A history


@st.composite
def histories(draw: st.DrawFn, row: st.SearchStrategy[Row] = ANY_ROW, *, timely: bool = True) -> list[Event]:
    """Any events at all, as long as each attempt ends at most once and after it began."""
    places: list[tuple[int, int, Event]] = []
    for n in range(draw(st.integers(0, 7))):
        process = draw(st.sampled_from(["a/1", "b/1", "b/2"]))
        start = draw(st.integers(0, 12))
        end = start + draw(st.integers(0, 6))
        outcome = draw(st.sampled_from(["ok", "ok", "ok", "info", "fail", None]))
        if draw(st.integers(0, 2)):
            op, request, value = "append", draw(st.sampled_from([f"own {n}", "r0", "r1"])), draw(row)
        else:
            rows = tuple(ascending(draw(st.lists(row, max_size=3))))
            op, request = "read", f"read {n}"
            value = Read(draw(st.integers(0, 3)), draw(st.integers(0, 5)), rows)  # type: ignore[assignment]
        region, node = process[0], f"{process[0]}-primary"
        invoke = Event(start, process, region, "invoke", op, request, node)  # type: ignore[arg-type]
        if draw(st.integers(0, 9)) or outcome in {"fail", "info"} or op == "read":
            places.append((start if timely else draw(st.integers(0, 20)), 2 * n, invoke))
        if outcome:
            told = value if outcome == "ok" else None
            event = Event(end, process, region, outcome, op, request, node, told)  # type: ignore[arg-type]
            places.append((max(end, places[-1][0]) if places else end, 2 * n + 1, event))
    events = [event for *_, event in sorted(places, key=lambda place: place[:2])]
    first = draw(CHAINS)
    names = [f"{e.request_id}" for e in events if e.op == "append"]
    with_tables = draw(st.booleans())
    for region in draw(st.sampled_from(["", "a", "ab", "ab", "abc"])):
        rows = draw(CHAINS | st.just(first) | st.just(first))
        more, caught_up = draw(st.integers(0, 7)) == 0, draw(st.integers(0, 3)) > 0
        alone = draw(st.integers(0, 3)) > 0
        table = draw(tables(events, rows, names)) if with_tables and draw(st.integers(0, 7)) else None
        cut, seam = draw(st.integers(0, len(rows))), draw(st.integers(0, len(table or ())))
        lines = [(rows[:cut], (table or ())[:seam]), (rows[cut:], (table or ())[seam:])]
        lines = lines if draw(st.booleans()) else [(rows, table or ())]
        for n, (part, pairs) in enumerate(lines, 1):
            held = None if table is None else pairs
            final = Final(tuple(part), more or n < len(lines), held, caught_up, alone)
            events.append(Event(99, f"{region}/final", region, "final", "read", None, f"{region}-primary", final))
    return events


@st.composite
def tables(draw: st.DrawFn, events: list[Event], rows: list[Row], names: list[str]) -> tuple[tuple[str, int], ...]:
    """A region's table of requests: mostly what clients were told, with a few lines too few, too many, or wrong."""
    told = {e.value: f"{e.request_id}" for e in events if (e.type, e.op) == ("ok", "append")}
    any_name = st.sampled_from([*names, "foreign"])
    pairs = [(told.get(row) or draw(any_name), row.zk_id) for row in rows if draw(st.integers(0, 9))]
    pairs += draw(st.lists(st.tuples(any_name, st.integers(0, 6)), max_size=1))
    return tuple(draw(st.permutations(pairs)) if draw(st.booleans()) else sorted(pairs, key=lambda pair: pair[1]))


def agrees_with_the_definition(events: list[Event]) -> None:
    truth = definition.History(events)
    if truth.refused():
        with pytest.raises(BadInput, match=r"is answered at \d+ what it asks at"):
            check(events)
        return
    expected = truth.anomalies()
    verdict = check(events, keep=MANY)
    found = {kind: sorted(o.zk_id for o in verdict.anomalies if o.kind == kind) for kind in verdict.counts}
    counts = {kind: len(places) for kind, places in expected.items()}
    if "excess" in expected:  # explained once, counted as often as it happened
        expected["excess"] = expected["excess"][:1]
    assert found == expected
    assert verdict.counts == counts
    assert verdict.valid is truth.valid()
    if expected:
        assert (verdict.anomalies[0].zk_id, verdict.anomalies[0].kind) == min(
            ((zk_id, kind) for kind, places in expected.items() for zk_id in places),
            key=lambda place: (place[0], KINDS.index(place[1])),
        )
    speaks_plainly(events)


def speaks_plainly(events: list[Event]) -> None:
    verdict = check(events)
    assert str(verdict).startswith(("Valid: ", "Invalid: ", "Unknown: "))
    assert "\n" not in str(verdict)
    assert json.loads(json.dumps(verdict.to_dict()))["valid"] is verdict.valid
    assert verdict.exit_code == {True: 0, False: 1, None: 2}[verdict.valid]
    assert "</p>" in verdict._repr_html_()
    assert not verdict.anomalies or verdict.anomalies[0].explanation in str(verdict)


@settings(max_examples=300)
@given(histories())
def test_check_finds_in_any_history_what_the_definition_finds(events: list[Event]) -> None:
    agrees_with_the_definition(events)


@settings(max_examples=300)
@given(histories(MOSTLY_GOOD))
def test_check_finds_what_the_definition_finds_when_most_is_right(events: list[Event]) -> None:
    agrees_with_the_definition(events)


@settings(max_examples=150)
@given(histories(st.sampled_from(GOOD), timely=False))
def test_the_order_of_lines_matters_only_within_a_process(events: list[Event]) -> None:
    agrees_with_the_definition(events)


# What the strategy above does not reach


def events_of(process: str, request: str | None, row: Row, start: int, end: int) -> list[Event]:
    region = process[0]
    return [
        Event(start, process, region, "invoke", "append", request, f"{region}-primary"),
        Event(end, process, region, "ok", "append", request, f"{region}-primary", row),
    ]


def finals(rows: Iterable[Row], regions: str = "ab", *, more: bool = False) -> list[Event]:
    final = Final(tuple(rows), more)
    return [Event(99, f"{r}/final", r, "final", "read", None, f"{r}-primary", final) for r in regions]


RIGHT = [e for n, row in enumerate(GOOD) for e in events_of("ab"[n % 2] + "/1", f"q{n}", row, 10 * n, 10 * n + 5)]


def test_a_right_history_is_valid_and_says_what_was_looked_at() -> None:
    assert str(check(RIGHT + finals(GOOD))) == (
        "Valid: 5 acknowledged appends in real-time order, each in its place once; "
        "2 chains of 5 entries agree, every link holds."
    )


def test_nothing_written_is_unknown() -> None:
    assert check([]).valid is None
    assert check(finals([])).valid is None
    refused = [RIGHT[0], RIGHT[0]._replace(type="fail", error="no quorum")]
    verdict = check(refused + finals([]))
    assert (verdict.valid, verdict.exit_code) == (None, 2)
    assert verdict.checked["failed"] == 1


def test_without_finals_a_history_is_judged_on_what_clients_were_told_and_says_so() -> None:
    verdict = check(RIGHT)
    assert verdict.valid
    assert "Not checked: lost appends and regions that disagree" in str(verdict)


def test_a_region_whose_chain_was_not_read_is_named() -> None:
    verdict = check(RIGHT + finals(GOOD, "a"))
    assert verdict.valid
    assert verdict.unchecked == ("the chain of b, which was not read at the end",)


def test_a_final_that_is_cut_short_accuses_nobody_and_acquits_nobody() -> None:
    verdict = check(RIGHT + finals(GOOD, "a") + finals(GOOD[:3], "b", more=True))
    assert verdict.valid is None
    assert verdict.unchecked == ("the chain of b above entry 3, where its final is cut",)
    tampered = [GOOD[0], GOOD[1]._replace(node_id="z")]
    assert check(RIGHT + finals(tampered, "b", more=True)).valid is False


def test_finals_of_several_nodes_of_a_region_must_agree_too() -> None:
    replica = finals(GOOD[:4], "a")[0]._replace(node="a-replica-1")
    assert check([*RIGHT, *finals(GOOD), replica]).counts == {"lost": 1, "diverged": 1}


def test_a_retry_that_is_acknowledged_again_with_the_same_entry_is_no_anomaly() -> None:
    again = events_of("b/2", "q0", GOOD[0], 60, 70)
    assert check(RIGHT + again + finals(GOOD)).valid


def test_an_entry_of_an_indefinite_append_is_accounted_for_but_only_once() -> None:
    lost = [*RIGHT[:-1], RIGHT[-1]._replace(type="info", value=None, error="time-out")]
    assert check(lost + finals(GOOD)).valid
    assert check(lost + finals(GOOD[:4])).valid
    twice = [*GOOD, successor(GOOD[-1], "b")]
    verdict = check(lost + finals(twice))
    assert verdict.counts == {"excess": 1}
    assert verdict.anomalies[0].zk_id == 6


def test_an_append_that_failed_for_certain_accounts_for_no_entry() -> None:
    refused = [*RIGHT[:-1], RIGHT[-1]._replace(type="fail", value=None)]
    assert check(refused + finals(GOOD)).counts == {"excess": 1}
    assert check(refused + finals(GOOD[:4])).valid


def test_a_failed_attempt_does_not_settle_an_earlier_one_that_timed_out() -> None:
    attempts = [RIGHT[-2], RIGHT[-1]._replace(type="info", value=None), RIGHT[-2], RIGHT[-1]._replace(type="fail")]
    assert check(RIGHT[:-2] + attempts + finals(GOOD)).valid


def test_a_time_out_whose_invocation_is_not_on_record_may_have_happened_all_the_same() -> None:
    assert check([*RIGHT[:-2], RIGHT[-1]._replace(type="info", value=None), *finals(GOOD)]).valid


def test_entries_read_before_the_first_append_belong_to_an_earlier_run() -> None:
    before = Event(0, "a/0", "a", "ok", "read", None, "a-primary", Read(0, 3, GOOD[2:3]))
    assert check(RIGHT[6:] + finals(GOOD)).counts == {"excess": 3}
    assert check([before, *RIGHT[6:], *finals(GOOD)]).valid


def test_entries_read_later_do_not() -> None:
    after = Event(45, "a/0", "a", "ok", "read", None, "a-primary", Read(0, 3, GOOD[2:3]))
    assert check([*RIGHT[6:], after, *finals(GOOD)]).counts == {"excess": 3}


# Whose each entry is

#: Which request became which entry when nothing is wrong.
TABLE = tuple((f"q{n}", row.zk_id) for n, row in enumerate(GOOD))


def with_requests(table: Iterable[tuple[str, int]], rows: Iterable[Row] = GOOD, regions: str = "a") -> list[Event]:
    final = Final(tuple(rows), requests=tuple(table))
    return [Event(99, f"{r}/final", r, "final", "read", None, f"{r}-primary", final) for r in regions]


def test_a_right_history_whose_finals_say_whose_each_entry_is_is_valid() -> None:
    verdict = check(RIGHT + with_requests(TABLE, regions="ab"))
    assert verdict.valid
    assert verdict.checked["requests"] == 5
    assert str(verdict) == str(check(RIGHT + finals(GOOD)))


def test_an_append_that_stands_as_two_entries_is_named_where_counting_is_blind() -> None:
    """The reply to q4 was lost, and the entry after it is its retry; another append that timed out never happened."""
    unheard = [RIGHT[8], RIGHT[8]._replace(request_id="q5"), RIGHT[8]._replace(type="info")]
    rows = [*GOOD, successor(GOOD[-1], "a")]
    assert check(RIGHT[:8] + unheard + finals(rows, "a") + finals(rows, "b")).valid
    verdict = check(RIGHT[:8] + unheard + with_requests([*TABLE, ("q4", 6)], rows, "ab"))
    assert verdict.counts == {"exactly-once": 1}
    assert str(verdict) == (
        "Invalid: append q4 of a/1 stands more than once: as entry 5 in a and b and entry 6 in a and b."
    )


def test_an_append_that_is_another_entry_in_another_region_is_named() -> None:
    swapped = [*TABLE[:3], ("q3", 5), ("q4", 4)]
    verdict = check(RIGHT + with_requests(TABLE, regions="a") + with_requests(swapped, regions="b"))
    assert verdict.counts == {"exactly-once": 1, "mismatch": 2}
    (twice,) = [anomaly for anomaly in verdict.anomalies if anomaly.kind == "exactly-once"]
    assert str(twice) == "append q3 of b/1 stands more than once: as entry 4 in a and entry 5 in b"


def test_an_append_that_failed_for_certain_and_stands_is_named() -> None:
    refused = [*RIGHT[:-1], RIGHT[-1]._replace(type="fail", value=None)]
    verdict = check(refused + with_requests(TABLE, regions="ab"))
    assert verdict.counts == {"aborted-read": 1}
    assert str(verdict) == (
        "Invalid: append q4 of a/1 failed for certain and stands all the same as entry 5 in a and b."
    )
    assert check(refused + with_requests(TABLE[:4], GOOD[:4], "ab")).valid


def test_a_failed_append_does_not_hide_behind_another_that_may_have_happened() -> None:
    """By count alone one entry for one indefinite append is right."""
    unheard = [RIGHT[-2]._replace(request_id="q5"), *RIGHT[:-1], RIGHT[-1]._replace(type="fail", value=None)]
    assert check(unheard + finals(GOOD)).valid
    assert check(unheard + with_requests(TABLE, regions="ab")).counts == {"aborted-read": 1}


def test_an_append_that_was_acknowledged_with_anothers_entry_is_named() -> None:
    table = [*TABLE[:3], ("q4", 4), ("q3", 5)]
    verdict = check(RIGHT + with_requests(table, regions="ab"))
    assert verdict.counts == {"mismatch": 2}
    assert "append q3 was acknowledged to b/1 with entry 4 of c" in str(verdict)
    assert "and in a it stands as entry 5" in str(verdict)
    taken = [*RIGHT[:-2], RIGHT[-2]._replace(request_id="q5"), *RIGHT[-2:]]
    verdict = check(taken + with_requests([*TABLE[:4], ("q5", 5)], regions="ab"))
    assert verdict.counts == {"mismatch": 1}
    assert "in a it is not the one whose entry 5 is" in str(verdict)


def test_an_entry_of_a_request_that_no_client_made_is_named() -> None:
    rows = [*GOOD, successor(GOOD[-1], "a")]
    verdict = check(RIGHT + with_requests([*TABLE, ("x", 6)], rows, "ab"))
    assert verdict.counts == {"unexpected": 1}
    assert str(verdict) == (
        "Invalid: entry 6 in a and b is of request x, which no client of this history made."
    )
    before = Event(0, "a/0", "a", "ok", "read", None, "a-primary", Read(0, 3, GOOD[2:3]))
    earlier = [("old", 1), ("older", 2), ("oldest", 3), *TABLE[3:]]
    assert check([before, *RIGHT[6:], *with_requests(earlier, regions="ab")]).valid, "an earlier run's"


def test_an_entry_of_others_is_right_where_others_wrote_to_the_chain() -> None:
    rows = [*GOOD, successor(GOOD[-1], "a")]
    shared = [e._replace(value=e.value._replace(alone=False)) for e in with_requests([*TABLE, ("x", 6)], rows, "ab")]
    assert check(RIGHT + shared).valid
    uncounted = [e._replace(value=e.value._replace(requests=None)) for e in shared]
    assert check(RIGHT + uncounted).valid


def test_an_entry_that_a_region_keeps_without_its_request_is_named() -> None:
    """A retry would find nothing there, and write the entry a second time."""
    verdict = check(RIGHT + with_requests(TABLE, regions="a") + with_requests(TABLE[:4], regions="b"))
    assert verdict.counts == {"unexpected": 1}
    assert str(verdict) == "Invalid: entry 5 in b is of no request that its table knows of."
    cut = with_requests(TABLE[:4], regions="b")
    cut[0] = cut[0]._replace(value=cut[0].value._replace(more=True))
    assert check(RIGHT + with_requests(TABLE, regions="a") + cut).valid is None


def test_an_entry_on_record_as_two_appends_is_named() -> None:
    twins = [RIGHT[-2]._replace(request_id="q5"), *RIGHT]
    verdict = check(twins + with_requests([*TABLE, ("q5", 5)], regions="ab"))
    assert verdict.counts == {"shared": 1}
    assert str(verdict) == "Invalid: entry 5 in a is of two appends, q4 and q5."


def test_a_request_on_record_without_its_entry_is_named() -> None:
    unheard = RIGHT[:-1]
    assert check(unheard + with_requests(TABLE[:4], GOOD[:4], "ab")).valid
    verdict = check(unheard + with_requests(TABLE, GOOD[:4], "ab"))
    assert verdict.counts == {"lost": 1}
    assert str(verdict) == "Invalid: append q4 is on record in a as entry 5, which is missing there."


def test_whose_each_entry_is_cannot_be_said_of_appends_without_request_ids() -> None:
    nameless = [e._replace(request_id=None) for e in RIGHT]
    with pytest.raises(BadInput, match="appends without request id"):
        check(nameless + with_requests(TABLE))


def test_the_lines_of_a_final_agree_on_what_it_holds() -> None:
    first = finals(GOOD[:3], "a", more=True)
    for change in ({"requests": ()}, {"caught_up": False}, {"alone": False}):
        rest = first[0]._replace(value=Final(GOOD[3:])._replace(**change))  # type: ignore[arg-type]
        with pytest.raises(BadInput, match="the lines of a's final do not agree"):
            check([*RIGHT, *first, rest])


# Regions that had not caught up


def behind(rows: Iterable[Row], regions: str = "b") -> list[Event]:
    return [e._replace(value=e.value._replace(caught_up=False)) for e in finals(rows, regions)]


@pytest.mark.parametrize(
    "rows", [GOOD[:3], GOOD[:0], GOOD[2:], [GOOD[0], GOOD[2], GOOD[4]]], ids=["end", "all", "beginning", "holes"]
)
def test_what_a_region_lacks_that_had_not_caught_up_makes_the_verdict_unknown(rows: Sequence[Row]) -> None:
    assert check(RIGHT + finals(GOOD, "a") + finals(rows, "b")).valid is False
    verdict = check(RIGHT + finals(GOOD, "a") + behind(rows))
    assert (verdict.valid, verdict.exit_code) == (None, 2)
    assert "b had not caught up when its chain was read, which lacks" in str(verdict)
    assert verdict.unchecked == (f"{5 - len(rows)} entries that b may yet get, which had not caught up",)


def test_a_region_that_lacks_nothing_is_judged_though_it_was_said_to_be_behind() -> None:
    assert check(RIGHT + finals(GOOD, "a") + behind(GOOD)).valid


@pytest.mark.parametrize(
    ("rows", "kind"),
    [
        ([*GOOD[:3], FORKS[3]], "fork"),
        ([*GOOD[:3], GOOD[3]._replace(hash="0" * 32)], "link"),
        ([*GOOD[:2], GOOD[1]], "duplicate"),
        ([*GOOD[:2], WRONG[2]], "malformed"),
    ],
)
def test_what_lag_cannot_explain_stays_invalid_in_a_region_that_had_not_caught_up(rows: list[Row], kind: str) -> None:
    verdict = check(RIGHT + finals(GOOD, "a") + behind(rows))
    assert verdict.valid is False
    assert kind in verdict.counts
    assert "b may yet get" in str(verdict)


def test_an_entry_that_no_region_holds_is_lost_though_none_had_caught_up() -> None:
    assert check(RIGHT + behind(GOOD[:4], "ab")).counts == {"lost": 1}
    away = events_of("c/1", "q5", successor(GOOD[-1], "c"), 90, 95)
    assert check(RIGHT + away + behind(GOOD, "ab")).valid is None, "the region that was not read may hold it"


def test_a_number_that_was_never_used_is_a_gap_though_no_region_had_caught_up() -> None:
    assert check(RIGHT[:6] + RIGHT[8:] + behind([*GOOD[:3], GOOD[4]], "ab")).counts == {"gap": 1}
    half = [GOOD[0], *GOOD[3:]]
    verdict = check(RIGHT[:4] + RIGHT[6:] + behind(half, "a") + behind([*GOOD[:2], *GOOD[3:]], "b"))
    assert [(o.kind, o.zk_id, o.region) for o in verdict.anomalies] == [("gap", 2, "a"), ("gap", 3, "b")]


# Records


def test_an_answer_that_is_timed_before_its_question_is_refused() -> None:
    late = RIGHT[1]._replace(time=RIGHT[0].time - 1)
    with pytest.raises(BadInput, match="a/1 is answered at -1 what it asks at 0: append q0"):
        check([RIGHT[0], late, *RIGHT[2:]])
    assert check([RIGHT[0], RIGHT[1]._replace(time=0), *RIGHT[2:]]).valid, "the clock may be coarse"
    for kind in ("fail", "info"):
        with pytest.raises(BadInput, match="is answered at"):
            check([RIGHT[0], late._replace(type=kind, value=None)])  # type: ignore[arg-type]
    read = Event(20, "a/1", "a", "invoke", "read", None, "a-replica-1")
    with pytest.raises(BadInput, match="a/1 is answered at 19 what it asks at 20: read"):
        check([*RIGHT, read, read._replace(type="ok", time=19, value=Read(0, 5))])


def test_a_retry_is_timed_by_its_own_question() -> None:
    again = [e._replace(time=e.time + 90) for e in RIGHT[:2]]
    assert check(RIGHT + again + finals(GOOD)).valid
    with pytest.raises(BadInput, match="is answered at 89 what it asks at 90"):
        check([*RIGHT, again[0], again[1]._replace(time=89)])


def test_of_several_acknowledgements_the_earliest_counts() -> None:
    one = [*events_of("b/1", "q1", GOOD[1], 0, 50), *events_of("b/2", "q1", GOOD[1], 10, 20)]
    assert check(one + events_of("a/1", "q0", GOOD[0], 30, 60) + finals(GOOD[:2])).counts == {"reordered": 1}


def test_appends_without_request_ids_are_told_apart_by_their_process() -> None:
    nameless = [e._replace(request_id=None) for e in RIGHT]
    assert check(nameless + finals(GOOD)).checked["appends"] == 5
    assert check(nameless + finals(GOOD)).valid
    hurried = [nameless[0], nameless[0]]
    with pytest.raises(BadInput, match="a/1 invokes an append while another is open"):
        check(hurried)
    unheard = [e for e in nameless if e.type == "ok"]
    assert check(unheard + finals(GOOD)).checked["appends"] == 5


def test_reads_under_way_together_are_held_to_what_was_told_before_the_first_began() -> None:
    ask = Event(20, "a/1", "a", "invoke", "read", None, "a-replica-1")
    answer = ask._replace(type="ok", value=Read(0, 1, GOOD[:1]))
    own = RIGHT[:2]  # a/1 has appended entry 1
    more = events_of("a/1", "q2", GOOD[2], 20, 25)
    assert check([*own, ask, *more, ask, answer, answer]).valid
    assert check([*own, *more, ask, answer]).counts == {"read-your-writes": 1}
    assert check([*own, ask, answer, *more, ask, answer]).counts == {"read-your-writes": 1}


def test_a_read_that_failed_binds_nothing() -> None:
    ask = Event(20, "a/1", "a", "invoke", "read", None, "a-replica-1")
    events = [*RIGHT[:2], ask, ask._replace(type="fail"), *RIGHT[2:], ask, ask._replace(type="ok", value=Read(0, 5))]
    assert check(events + finals(GOOD)).valid


def test_equal_times_are_concurrent() -> None:
    """Entry 2 is acknowledged in the very nanosecond in which entry 1 is invoked, then a nanosecond earlier."""
    for acked, kinds in ((50, set()), (49, {"reordered"})):
        events = events_of("b/1", "q1", GOOD[1], 0, acked) + events_of("a/1", "q0", GOOD[0], 50, 60)
        assert set(check(events + finals(GOOD[:2])).counts) == kinds


def test_an_order_violation_names_both_appends_and_their_times() -> None:
    events = events_of("b/1", "q1", GOOD[1], 0, 1_000_000) + events_of("a/1", "q0", GOOD[0], 2_000_000, 3_000_000)
    (anomaly,) = check(events + finals(GOOD[:2])).anomalies
    assert anomaly.rows == (GOOD[0], GOOD[1])
    assert [(e.request_id, e.type, e.time) for e in anomaly.events] == [
        ("q1", "invoke", 0),
        ("q1", "ok", 1_000_000),
        ("q0", "invoke", 2_000_000),
        ("q0", "ok", 3_000_000),
    ]
    assert "invoked by a/1 at 0.002000 s, after entry 2 of b" in str(anomaly)
    assert "acknowledged to b/1 at 0.001000 s" in str(anomaly)


def test_a_fork_says_who_was_told_and_where_each_entry_stands() -> None:
    rival = FORKS[3]
    events = [*RIGHT, *events_of("c/1", "qx", rival, 0, 50)]
    verdict = check(events + finals(GOOD, "a") + finals([*GOOD[:3], rival], "c"))
    assert verdict.anomalies[0].kind == "fork"
    assert f"entry 4 of c ({GOOD[3].hash[:8]}), acknowledged to b/1 and in the chain of a; " in str(verdict)
    assert f"entry 4 of d ({rival.hash[:8]}), acknowledged to c/1 and in the chain of c" in str(verdict)


def test_a_lost_append_names_the_region_and_what_stands_there() -> None:
    rival = FORKS[3]
    verdict = check(RIGHT + finals(GOOD, "a") + finals([*GOOD[:3], rival], "b"))
    lost = next(anomaly for anomaly in verdict.anomalies if anomaly.kind == "lost")
    assert (lost.zk_id, lost.region) == (4, "b")
    assert "acknowledged to b/1 at 0.000000 s and is missing in b, where entry 4 of d" in lost.explanation
    assert lost.rows == (GOOD[3], rival)


def test_an_acknowledged_entry_is_lost_where_another_stands_however_regular_the_chains_look() -> None:
    verdict = check([*RIGHT, *events_of("c/1", "qx", FORKS[3], 0, 50), *finals(GOOD)])
    assert verdict.counts == {"fork": 1, "lost": 1}


def test_a_chain_that_skips_an_entry_says_nothing_of_the_link_to_that_entry() -> None:
    late = LATE[2]  # entry 5 made after entry 3
    told = RIGHT[:8] + events_of("a/1", "q4", late, 40, 45)
    verdict = check(told + finals([*GOOD[:3], late], "a") + finals([*GOOD[:4], late], "b"))
    assert [(o.kind, o.zk_id) for o in verdict.anomalies] == [("gap", 4), ("lost", 4), ("diverged", 4), ("link", 5)]


def test_a_chain_of_other_entries_says_nothing_of_the_links_between_those_that_were_told() -> None:
    wrong = GOOD[4]._replace(node_id="c")
    told = RIGHT[:8] + events_of("a/1", "q4", wrong, 40, 45)
    verdict = check(told + finals(GOOD, "a") + finals([*GOOD[:4], wrong], "b"))
    assert verdict.counts == {"fork": 1, "link": 1, "lost": 1, "diverged": 1}


def test_only_the_first_anomalies_are_explained_but_all_are_counted() -> None:
    events = [e for n, row in enumerate(FORKS) for e in events_of("a/1", f"x{n}", row, 0, 99)]
    verdict = check(RIGHT + events, keep=2)
    assert len(verdict.anomalies) == 2
    assert [o.zk_id for o in verdict.anomalies if o.kind == "fork"] == [1, 2][: len(verdict.anomalies)]
    assert verdict.counts["fork"] == 5


def test_the_first_anomalies_are_those_with_the_lowest_numbers_in_whatever_order_they_are_found() -> None:
    backwards = [e for n, row in enumerate(reversed(GOOD)) for e in events_of("a/1", f"q{n}", row, 10 * n, 10 * n + 5)]
    verdict = check(backwards + finals(GOOD), keep=2)
    assert verdict.counts == {"reordered": 4}
    assert [anomaly.zk_id for anomaly in verdict.anomalies] == [1, 2]


@pytest.mark.parametrize(
    "events",
    [
        finals(reversed(GOOD)),
        [RIGHT[0]._replace(type="ok", value=None)],
        [Event(0, "a/1", "a", "ok", "read", None, "n", None)],
        [Event(0, "a/1", "a", "final", "read", None, "n", None)],
        [Event(0, "a/1", "a", "ok", "read", None, "n", Read(0, 5, GOOD[::-1]))],
    ],
)
def test_events_that_contradict_themselves_as_a_record_are_refused(events: list[Event]) -> None:
    with pytest.raises(BadInput):
        check(events)


def test_a_verdict_for_a_program_holds_rows_and_counts() -> None:
    answer = check(RIGHT + finals(GOOD, "a") + finals(GOOD[:4], "b")).to_dict()
    assert (answer["valid"], answer["counts"]) == (False, {"lost": 1, "diverged": 1})
    assert answer["anomalies"][0]["rows"] == [GOOD[4]._asdict()]


def test_a_verdict_in_a_notebook_shows_nothing_that_a_row_could_smuggle_in() -> None:
    verdict = verify_chain([Row(1, "<script>", "")])
    assert "<script>" in str(verdict)
    assert "<script>" not in verdict._repr_html_()
