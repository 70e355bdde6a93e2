"""Another judge than the checker, in another language, comes to the same verdict on right and corrupted histories."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from judging import Judge, build
from test_verifier_planted import Story, story

from pghc.chain import Row, extend, successor
from pghc.errors import BadInput
from pghc.verify.checker import check
from pghc.verify.history import Event, Read, Recorder
from pghc.verify.history import read as read_history

APPENDS = 300
RIGHT = story(APPENDS, seed=11)
CHAIN = RIGHT.chain()
ACKED = {int(e.request_id.split()[1]) for e in RIGHT.events if (e.type, e.op) == ("ok", "append") and e.request_id}
#: Near the middle, and near the end: entries that were acknowledged, and one whose fate no client learned.
AT = next(n for n in range(150, APPENDS) if {n, n + 1} <= ACKED)
LAST = max(ACKED)
UNSURE = next(n for n in range(100, APPENDS) if n not in ACKED)
LATER = 1 << 39  # after everything that clients did

Corruption = Callable[[Story], None]


def relinked(story: Story, change: Callable[[list[str]], object], region: str | None = None) -> None:
    """Chains at the end whose links hold, made of changed node_ids."""
    for name, rows in story.finals.items():
        if region in (None, name):
            node_ids = [row.node_id for row in rows]
            change(node_ids)
            rows[:] = extend(None, node_ids)


def client(story: Story, kind: str, request: str | None, value: object = None, **more: object) -> None:
    """An event of a client that was not there before."""
    event = Event(LATER, "us-east/99", "us-east", kind, "append", request, "us-east-primary", value)  # type: ignore[arg-type]
    story.events.append(event._replace(**more))  # type: ignore[arg-type]


def at(story: Story, kind: str, zk_id: int, **change: object) -> None:
    n = story.find(kind, zk_id)
    story.events[n] = story.events[n]._replace(**change)  # type: ignore[arg-type]


def retime(story: Story, zk_id: int, invoked: int, answered: int) -> None:
    for n, e in enumerate(story.events):
        if e.request_id == f"request {zk_id}":
            story.events[n] = e._replace(time=invoked if e.type == "invoke" else answered)


def when(kind: str, zk_id: int) -> int:
    return RIGHT.events[RIGHT.find(kind, zk_id)].time


def reads(story: Story, *watermarks: int, position: int = 0) -> None:
    for mark in watermarks:
        client(story, "invoke", None, op="read")
        client(story, "ok", None, Read(position, mark, tuple(CHAIN[max(mark - 3, 0) : mark])), op="read")


def spoil_read(story: Story, change: Callable[[Read], Read]) -> None:
    n = next(n for n, e in enumerate(story.events) if isinstance(e.value, Read) and e.value.watermark > AT)
    story.events[n] = story.events[n]._replace(value=change(story.events[n].value))


def everyones_table(story: Story, change: Callable[[list[tuple[str, int]]], object]) -> None:
    story.say_whose()
    for table in story.requests.values():
        change(table)


def refused(story: Story) -> str:
    return next(e.request_id for e in story.events if e.type == "fail" and e.request_id)


def lost_at_the_end(story: Story) -> None:
    story.everywhere(lambda rows: rows.__delitem__(slice(LAST - 1, None)))


def lost_at_the_end_of_one_region(story: Story) -> None:
    del story.finals["ap-south"][LAST - 1 :]


def lost_in_the_middle(story: Story) -> None:
    story.everywhere(lambda rows: rows.pop(AT - 1))


def lost_in_the_middle_of_one_region(story: Story) -> None:
    story.finals["eu-west"].pop(AT - 1)


def lost_in_the_middle_and_linked_anew(story: Story) -> None:
    relinked(story, lambda nodes: nodes.pop(AT - 1))


def lost_from_the_beginning(story: Story) -> None:
    story.everywhere(lambda rows: rows.pop(0))


def lost_all(story: Story) -> None:
    story.everywhere(list.clear)


def lost_all_in_one_region(story: Story) -> None:
    story.finals["eu-west"].clear()


def duplicated_row(story: Story) -> None:
    story.everywhere(lambda rows: rows.insert(AT, rows[AT - 1]))


def duplicated_row_in_one_region(story: Story) -> None:
    story.finals["us-east"].insert(AT, CHAIN[AT - 1])


def append_that_stands_twice(story: Story) -> None:
    everyones_table(story, lambda table: table.append((f"request {AT}", APPENDS + 1)))
    story.everywhere(lambda rows: rows.append(successor(rows[-1], CHAIN[AT - 1].node_id)))


def append_that_stands_twice_in_the_middle(story: Story) -> None:
    relinked(story, lambda nodes: nodes.insert(AT, nodes[AT - 1]))


def swapped_neighbours(story: Story) -> None:
    for rows in story.finals.values():
        one, other = rows[AT - 1], rows[AT]
        rows[AT - 1 : AT + 1] = other._replace(zk_id=AT), one._replace(zk_id=AT + 1)


def swapped_neighbours_of_one_region_linked_anew(story: Story) -> None:
    def swap(nodes: list[str]) -> None:
        nodes[place - 1 : place + 1] = nodes[place], nodes[place - 1]

    place = next(n for n in range(AT, APPENDS) if CHAIN[n - 1].node_id != CHAIN[n].node_id)
    relinked(story, swap, "eu-west")


def swapped_acknowledgements(story: Story) -> None:
    at(story, "ok", AT, value=CHAIN[AT])
    at(story, "ok", AT + 1, value=CHAIN[AT - 1])
    story.say_whose()


def forked_at_the_end(story: Story) -> None:
    story.finals["ap-south"][-1] = successor(CHAIN[-2], "x")


def forked_in_the_middle(story: Story) -> None:
    relinked(story, lambda nodes: nodes.__setitem__(AT - 1, "x"), "ap-south")


def forked_everywhere(story: Story) -> None:
    relinked(story, lambda nodes: nodes.__setitem__(AT - 1, "x"))


def forked_before_a_client(story: Story) -> None:
    client(story, "invoke", "rival")
    client(story, "ok", "rival", successor(CHAIN[AT - 2], "x"))


def renumbered_by_one(story: Story) -> None:
    story.everywhere(lambda rows: rows.__setitem__(slice(None), [row._replace(zk_id=row.zk_id + 1) for row in rows]))


def renumbered_from_the_middle(story: Story) -> None:
    def change(rows: list[Row]) -> None:
        rows[AT:] = [row._replace(zk_id=row.zk_id + 1) for row in rows[AT:]]

    story.everywhere(change)


def hash_overwritten(story: Story) -> None:
    story.everywhere(lambda rows: rows.__setitem__(UNSURE - 1, CHAIN[UNSURE - 1]._replace(hash="f" * 32)))


def hash_overwritten_in_one_region(story: Story) -> None:
    story.finals["us-east"][AT - 1] = CHAIN[AT - 1]._replace(hash="f" * 32)


def last_hash_overwritten(story: Story) -> None:
    story.everywhere(lambda rows: rows.__setitem__(-1, rows[-1]._replace(hash="f" * 32)))


def node_overwritten(story: Story) -> None:
    story.everywhere(lambda rows: rows.__setitem__(AT - 1, CHAIN[AT - 1]._replace(node_id="x")))


def node_that_can_be_none(story: Story) -> None:
    relinked(story, lambda nodes: nodes.append("US East"))
    client(story, "invoke", "late")


def number_below_one(story: Story) -> None:
    story.everywhere(lambda rows: rows.insert(0, Row(0, "us-east-primary", "")))


def entry_that_nobody_asked_for(story: Story) -> None:
    """Every append is acknowledged, and one more entry stands."""
    for n in range(1, APPENDS + 1):
        if n not in ACKED:
            client(story, "ok", f"request {n}", CHAIN[n - 1])
    story.everywhere(lambda rows: rows.append(successor(rows[-1], "x")))


def entry_of_nobody_in_the_table(story: Story) -> None:
    everyones_table(story, lambda table: table.__setitem__(UNSURE - 1, ("nobody", UNSURE)))


def entry_that_the_table_lacks(story: Story) -> None:
    everyones_table(story, lambda table: table.pop(UNSURE - 1))


def entry_of_two_requests(story: Story) -> None:
    client(story, "invoke", "other")
    everyones_table(story, lambda table: table.insert(AT, ("other", AT)))


def entry_on_record_as_anothers(story: Story) -> None:
    def swap(table: list[tuple[str, int]]) -> None:
        table[AT - 1 : AT + 1] = [(f"request {AT + 1}", AT), (f"request {AT}", AT + 1)]

    everyones_table(story, swap)


def definite_error_that_stands(story: Story) -> None:
    everyones_table(story, lambda table: table.__setitem__(UNSURE - 1, (refused(story), UNSURE)))


def definite_error_that_stands_at_the_end(story: Story) -> None:
    story.say_whose()
    for region, rows in story.finals.items():
        rows.append(successor(rows[-1], "x"))
        story.requests[region].append((refused(story), APPENDS + 1))


def acknowledged_with_two_entries(story: Story) -> None:
    client(story, "ok", f"request {AT}", CHAIN[UNSURE - 1])


def entry_acknowledged_to_two(story: Story) -> None:
    client(story, "ok", f"request {UNSURE}", CHAIN[AT - 1])


def acknowledged_with_another_hash(story: Story) -> None:
    at(story, "ok", AT, value=CHAIN[AT - 1]._replace(hash="0" * 32))


def acknowledged_beyond_the_end(story: Story) -> None:
    client(story, "invoke", "late")
    client(story, "ok", "late", successor(CHAIN[-1], "x"))


def asked_after_what_stands_behind_it_was_answered(story: Story) -> None:
    retime(story, AT, LATER, LATER + 1)


def answered_before_what_stands_before_it_was_asked(story: Story) -> None:
    retime(story, LAST, 0, 0)


def two_clients_against_real_time(story: Story) -> None:
    """The first asks when the second, whose entry is the next one, has just been answered."""
    answered = when("ok", AT + 1)
    retime(story, AT, answered + 1, answered + 2)


def answered_before_it_was_asked(story: Story) -> None:
    at(story, "ok", AT, time=when("invoke", AT) - 1)


def unsure_append_asked_too_late(story: Story) -> None:
    """Nobody acknowledged it, but the table says where it stands: before one that had been answered already."""
    story.say_whose()
    retime(story, UNSURE, LATER, LATER + 1)


def read_older_than_what_was_handed_over(story: Story) -> None:
    reads(story, AT, position=AT + 1)


def read_older_than_ones_own_append(story: Story) -> None:
    process = story.events[story.find("ok", AT)].process
    for kind, value in (("invoke", None), ("ok", Read(0, 2, tuple(CHAIN[:2])))):
        client(story, kind, None, value, op="read", process=process)


def read_older_than_an_earlier_one(story: Story) -> None:
    reads(story, AT, AT - 5)


def read_with_a_hole(story: Story) -> None:
    spoil_read(story, lambda read: read._replace(rows=read.rows[:4] + read.rows[5:]))


def read_of_what_never_stood(story: Story) -> None:
    client(story, "invoke", None, op="read")
    client(story, "ok", None, Read(0, APPENDS + 1, (successor(CHAIN[-1], "x"),)), op="read")


def read_of_another_entry(story: Story) -> None:
    spoil_read(story, lambda read: read._replace(rows=(*read.rows[:-1], successor(read.rows[-2], "x"))))


def one_region_ends_earlier(story: Story) -> None:
    """What it lacks was acknowledged to nobody."""
    story.everywhere(lambda rows: rows.append(successor(rows[-1], "x")))
    client(story, "invoke", "late")
    story.finals["ap-south"].pop()


CORRUPTIONS: list[Corruption] = [
    each
    for name, each in list(globals().items())
    if getattr(each, "__module__", "") == __name__
    and getattr(each, "__annotations__", {}) == {"story": "Story", "return": "None"}
    and not name.startswith("test_")
]


def whole(_story: Story) -> None:
    """As it was."""


def with_tables(story: Story) -> None:
    story.say_whose()


def with_appends_that_never_happened(story: Story) -> None:
    story.say_whose()
    for n in range(5):
        client(story, "invoke", f"never {n}")
        client(story, "info", f"never {n}")


def with_retries_under_way_at_the_end(story: Story) -> None:
    for n in range(APPENDS + 1, APPENDS + 4):
        client(story, "invoke", f"request {n}")
    story.everywhere(lambda rows: rows.extend(extend(rows[-1], ["x", "y"])))


RIGHT_ONES: list[Corruption] = [
    whole, with_tables, with_appends_that_never_happened, with_retries_under_way_at_the_end,
]  # fmt: skip


def histories(changes: list[Corruption], directory: Path) -> list[Path]:
    paths = []
    for change in changes:
        spoiled = Story(list(RIGHT.events), {region: list(rows) for region, rows in RIGHT.finals.items()})
        change(spoiled)
        path = directory / f"{change.__name__}.jsonl"
        clock = iter([event.time for event in spoiled.events])
        with Recorder(path, clock=lambda clock=clock: next(clock, LATER + 9)) as recorder:  # type: ignore[misc]
            for event in spoiled.events:
                about = (event.process, event.region, event.op, event.request_id, event.node or "")
                getattr(recorder, event.type)(*about, *([event.value] if event.type in ("invoke", "ok") else []))
            for region, rows in spoiled.finals.items():
                recorder.final(region, f"{region}-primary", rows, spoiled.requests.get(region))
        paths.append(path)
    return paths


def ours(path: Path) -> str:
    """What the checker says against it; nothing when it is valid."""
    try:
        verdict = check(read_history(path))
    except BadInput as error:
        return f"refused: {error}"
    return "" if verdict.valid else f"{verdict}"


@pytest.fixture(scope="module")
def judge(tmp_path_factory: pytest.TempPathFactory) -> Judge:
    return build(tmp_path_factory.mktemp("judge"))


def test_both_judges_accept_right_histories(judge: Judge, tmp_path: Path) -> None:
    paths = histories(RIGHT_ONES, tmp_path)
    assert [ours(path) for path in paths] == judge(paths) == [""] * len(paths)


def test_both_judges_refuse_each_corruption(judge: Judge, tmp_path: Path) -> None:
    assert len(CORRUPTIONS) >= 40
    paths = histories(CORRUPTIONS, tmp_path)
    for path, why in zip(paths, judge(paths), strict=True):
        assert ours(path), f"the checker sees nothing wrong in {path.stem}; the other judge: {why}"
        assert why, f"the other judge sees nothing wrong in {path.stem}; the checker: {ours(path)}"


def test_where_a_region_had_not_caught_up_the_other_judge_decides_less(judge: Judge, tmp_path: Path) -> None:
    """The checker says "unknown"; Porcupine's model has no such answer, so that region is no witness to it."""
    [path] = histories([one_region_ends_earlier], tmp_path)
    lines = path.read_text().splitlines()
    lines = [line.replace('"more":false', '"more":false,"caught_up":false') if "ap-south/final" in line else line
             for line in lines]  # fmt: skip
    path.write_text("\n".join(lines))
    assert check(read_history(path)).valid is None
    assert judge([path]) == [""]
