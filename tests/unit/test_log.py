"""The log and what regions make of it, without any server."""

from __future__ import annotations

import json
from collections.abc import Sequence
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pghc.chain import Row, link
from pghc.cluster.mesh import publisher, subscriber, subscription
from pghc.cluster.settings import slot
from pghc.errors import BadInput
from pghc.sequencer import BEGIN, VOID, Entry, Segment, canonical
from pghc.store import Cursor
from pghc.topology import REGION_NAME, load
from pghc.verify.checker import verify_chain
from pghc.writers import NAMES, broadcast, causal
from pghc.writers.log import fold

NODES = ("us-east-primary", "eu-west-primary", "ap-south-primary")
REQUEST = "018f2a6e-5c1b-7d3e-9f00-0123456789ab"
requests = st.integers(0, 12).map(lambda n: str(UUID(int=n)))
appends = st.builds(Entry, st.sampled_from(NODES), st.lists(requests, max_size=4).map(tuple), begins=st.just(False))
entries = st.lists(appends | st.just(VOID), max_size=12)


def settled(log: Sequence[Entry]) -> list[tuple[str, str]]:
    """By definition: of all (request, node) in the order of the log, the first of each request."""
    first: dict[str, str] = {}
    for entry in log:
        for request in entry.requests:
            first.setdefault(request, entry.node_id)
    return list(first.items())


@given(entries)
def test_a_request_is_settled_by_its_first_position_and_later_ones_are_void(log: list[Entry]) -> None:
    folded = fold(Cursor(), log)
    expected = settled(log)
    assert [request for request, _, _ in folded.requests] == [request for request, _ in expected]
    assert [row.node_id for row in folded.rows] == [node for _, node in expected]
    assert [row.zk_id for row in folded.rows] == list(range(1, len(expected) + 1))
    assert all(request in log[position - 1].requests for request, _, position in folded.requests)


@given(entries)
def test_what_a_log_makes_of_the_chain_is_a_valid_chain(log: list[Entry]) -> None:
    rows = fold(Cursor(), log).rows
    assert verify_chain(rows).valid is (True if rows else None)
    previous = ""
    for row in rows:
        assert row.hash == link(row.zk_id, row.node_id, previous)
        previous = row.hash


@given(entries, st.integers(0, 12))
def test_an_applier_that_stops_anywhere_is_continued_by_another_with_the_same_rows(log: list[Entry], at: int) -> None:
    whole = fold(Cursor(), log)
    before = fold(Cursor(), log[:at])
    known = [request for request, _, _ in before.requests]
    after = fold(before.cursor, log[at:], known)
    assert before.rows + after.rows == whole.rows
    assert before.requests + after.requests == whole.requests
    assert after.cursor == whole.cursor


@given(entries)
def test_the_cursor_is_the_end_of_the_rows_it_covers(log: list[Entry]) -> None:
    cursor, rows, _ = fold(Cursor(), log)
    assert cursor.position == len(log)
    last = rows[-1] if rows else Row(0, "", "")
    assert (cursor.zk_id, cursor.hash) == (last.zk_id, last.hash)


@given(appends | st.sampled_from([VOID, BEGIN]))
def test_an_entry_survives_its_encoding(entry: Entry) -> None:
    assert Entry.decode(entry.encode()) == entry


junk = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | requests | requests.map(str.upper),
    lambda inner: st.lists(inner) | st.dictionaries(st.sampled_from(["node_id", "requests", "begins", "x"]), inner),
)


@given(junk.map(lambda value: json.dumps(value).encode()) | st.binary() | st.just(b"[" * 100_000))
def test_whatever_stands_in_the_log_is_an_entry_for_everybody(data: bytes) -> None:
    entry = Entry.decode(data)
    assert entry in (VOID, BEGIN) or (Entry.decode(entry.encode()) == entry and entry.node_id)
    assert all(canonical(request) == request for request in entry.requests)


@pytest.mark.parametrize("requests", [["hello"], "5e0c", [REQUEST.upper()], [REQUEST, REQUEST[1:]], [None], [7], {}])
def test_an_entry_with_a_request_id_that_is_none_is_void_for_everybody(requests: object) -> None:
    assert Entry.decode(json.dumps({"node_id": NODES[0], "requests": [REQUEST]}).encode()) != VOID
    assert Entry.decode(json.dumps({"node_id": NODES[0], "requests": requests}).encode()) == VOID


@given(entries, st.integers(0, 12))
def test_an_entry_that_cannot_be_read_changes_no_row(log: list[Entry], at: int) -> None:
    spoiled = [*log[:at], Entry.decode(b"hello"), *log[at:]]
    assert fold(Cursor(), spoiled).rows == fold(Cursor(), log).rows


@given(entries, entries)
def test_a_chain_ends_where_the_log_says_that_another_begins(log: list[Entry], others: list[Entry]) -> None:
    assert fold(Cursor(), [*log, BEGIN, *others]) == fold(Cursor(), log)


@given(st.uuids())
def test_a_request_id_has_one_form_whoever_writes_it_how(request_id: UUID) -> None:
    text = str(request_id)
    for form in (text, text.upper(), request_id.hex, f"{{{text}}}", request_id.urn):
        assert canonical(form) == text


@pytest.mark.parametrize("text", ["hello", "", "\0", "0" * 31, "5e0c" * 9, None, 7, b"x"])
def test_what_is_no_uuid_is_refused_before_anything_is_sent(text: object) -> None:
    with pytest.raises(BadInput, match="nothing was sent"):
        canonical(text)  # type: ignore[arg-type]


@given(st.integers(1, 2**31), st.integers(0, 2**40), st.integers(1, 2**31 - 1))
def test_a_position_is_found_where_it_was_created(number: int, base: int, offset: int) -> None:
    segment = Segment(number, base)
    assert segment.position(segment.node(base + offset)) == base + offset


def test_a_subscription_tells_which_region_it_reads() -> None:
    for name in load().names:
        assert publisher(subscription(name)) == name


@given(st.from_regex(REGION_NAME, fullmatch=True), st.integers(0, 99), st.integers(0, 99))
def test_a_slot_tells_which_region_reads_it_in_whatever_term(name: str, publisher_epoch: int, epoch: int) -> None:
    assert subscriber(slot(name, publisher_epoch, epoch)) == name
    assert slot(name, publisher_epoch, epoch) != slot(name, publisher_epoch, epoch + 1)


def test_each_writer_names_the_steps_after_which_it_may_die() -> None:
    assert NAMES[-2:] == ("causal", "broadcast")
    assert causal.Causal.steps == ("numbered", "waited", "inserted")
    assert broadcast.Broadcast.steps == ("queued", "sent", "applied")
