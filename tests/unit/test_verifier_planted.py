"""One error planted in a large right history is found, at its entry, and nothing else is accused."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

import pytest

from pghc.chain import Row, extend, link, successor
from pghc.verify.checker import KINDS, Verdict, check, verify_chain
from pghc.verify.history import Event, Final, Read

REGIONS = ("us-east", "eu-west", "ap-south")
APPENDS = 9_000
#: The entry at which errors are planted, well within a line of the finals.
AT = 4_321


@dataclass
class Story:
    """A right history of many clients, in a form that is easy to spoil."""

    events: list[Event] = field(default_factory=list)
    finals: dict[str, list[Row]] = field(default_factory=dict)
    #: Which request became which entry, by region; empty where nobody asked.
    requests: dict[str, list[tuple[str, int]]] = field(default_factory=dict)
    cut: set[str] = field(default_factory=set)

    def all(self) -> Iterable[Event]:
        yield from self.events
        for region, rows in self.finals.items():
            lines = [rows[n : n + 1000] for n in range(0, max(len(rows), 1), 1000)]
            table = self.requests.get(region)
            for n, line in enumerate(lines, 1):
                pairs = None if table is None else tuple(table if n == len(lines) else ())
                final = Final(tuple(line), n < len(lines) or region in self.cut, pairs)
                yield Event(1 << 40, f"{region}/final", region, "final", "read", None, f"{region}-primary", final)

    def find(self, kind: str, zk_id: int) -> int:
        """Where the events of an append stand."""
        request = f"request {zk_id}"
        return next(n for n, e in enumerate(self.events) if (e.type, e.request_id) == (kind, request))

    def chain(self) -> list[Row]:
        return self.finals["us-east"]

    def say_whose(self) -> None:
        """From now on the finals say which request became which entry."""
        self.requests = {r: [(f"request {row.zk_id}", row.zk_id) for row in rows] for r, rows in self.finals.items()}

    def everywhere(self, change: Callable[[list[Row]], object]) -> None:
        for rows in self.finals.values():
            change(rows)


def story(appends: int = APPENDS, seed: int = 7) -> Story:
    """Thirty clients at once; replies overtake each other, some are lost and retried; some appends fail; some reads."""
    chance = random.Random(seed)
    rows = list(extend(None, (f"{chance.choice(REGIONS)}-primary" for _ in range(appends))))
    told = Story(finals={region: list(rows) for region in REGIONS})
    time, seen = 0, dict.fromkeys(range(30), 0)

    def tell(kind: str, process: int, request: str | None, value: object = None, op: str = "append") -> None:
        nonlocal time
        time += chance.randint(1, 1000)
        region = REGIONS[process % 3]
        name, node = f"{region}/{process}", f"{region}-primary"
        told.events.append(Event(time, name, region, kind, op, request, node, value))  # type: ignore[arg-type]

    for start in range(0, appends, 30):
        batch = rows[start : start + 30]
        clients = chance.sample(range(30), len(batch))
        for process, row in zip(clients, batch, strict=True):
            tell("invoke", process, f"request {row.zk_id}")
        replies = list(zip(clients, batch, strict=True))
        chance.shuffle(replies)
        for process, row in replies:
            fate = chance.random()
            if fate < 0.02:  # written, and its client never hears of it
                tell("info", process, f"request {row.zk_id}")
                continue
            if fate < 0.05:
                tell("info", process, f"request {row.zk_id}")
                tell("invoke", process, f"request {row.zk_id}")
            tell("ok", process, f"request {row.zk_id}", row)
            seen[process] = row.zk_id
        if chance.random() < 0.3:
            tell("invoke", clients[0], f"refused {start}")
            tell("fail", clients[0], f"refused {start}")
        for process in chance.sample(range(30), 3):
            tell("invoke", process, None, op="read")
            top = chance.randint(seen[process], start + len(batch))
            tell("ok", process, None, Read(seen[process], top, tuple(rows[max(0, top - 10) : top])), op="read")
            seen[process] = top
    return told


RIGHT = story()
ACKED = {e.request_id: e.value for e in RIGHT.events if (e.type, e.op) == ("ok", "append")}
#: Near AT: one that was acknowledged at once, and one whose fate no client learned.
SURE = next(n for n in range(AT, APPENDS) if f"request {n}" in ACKED)
UNSURE = next(n for n in range(AT, APPENDS) if f"request {n}" not in ACKED)


def spoiled(plant: Callable[[Story], object]) -> Verdict:
    copy = Story(list(RIGHT.events), {region: list(rows) for region, rows in RIGHT.finals.items()})
    plant(copy)
    return check(copy.all())


def test_the_history_is_right_as_it_is() -> None:
    verdict = spoiled(lambda story: None)
    assert str(verdict).startswith("Valid: ")
    assert verdict.checked["appends"] == len(ACKED) < APPENDS
    assert verdict.checked["indefinite"] == APPENDS - len(ACKED) > 50
    assert verdict.checked["failed"] > 50
    assert verdict.checked["reads"] == 900
    assert verdict.checked["entries"] == APPENDS
    assert (verdict.checked["chains"], verdict.checked["links"]) == (3, 3 * APPENDS)
    assert not verdict.unchecked


def test_it_is_right_too_when_finals_say_whose_each_entry_is() -> None:
    verdict = spoiled(Story.say_whose)
    assert str(verdict).startswith("Valid: ")
    assert verdict.checked["requests"] == APPENDS


# Plants: each spoils one thing and gives the place at which it must be named.


def change_event(story: Story, n: int, **change: object) -> None:
    story.events[n] = story.events[n]._replace(**change)  # type: ignore[arg-type]


def node_id_that_is_none(story: Story) -> int:
    row = RIGHT.chain()[UNSURE - 1]
    story.everywhere(lambda rows: rows.__setitem__(UNSURE - 1, row._replace(node_id="US East")))
    return UNSURE


def zk_id_below_one(story: Story) -> int:
    story.everywhere(lambda rows: rows.insert(0, Row(0, "us-east-primary", "")))
    return 0


def two_regions_take_the_same_number(story: Story) -> int:
    other = successor(story.chain()[SURE - 2], "x")
    n = story.find("ok", SURE)
    story.events[n + 1 : n + 1] = [
        Event(story.events[n].time, "us-east/99", "us-east", "invoke", "append", "rival", "us-east-primary"),
        Event(story.events[n].time, "us-east/99", "us-east", "ok", "append", "rival", "us-east-primary", other),
    ]
    story.everywhere(lambda rows: rows.insert(SURE, other))
    return SURE


def entry_twice_in_one_chain(story: Story) -> int:
    story.finals["eu-west"].insert(AT, story.finals["eu-west"][AT - 1])
    return AT


def append_acknowledged_with_two_entries(story: Story) -> int:
    n = story.find("ok", SURE)
    again = story.events[n]._replace(value=RIGHT.chain()[UNSURE - 1])
    story.events.insert(n + 1, again)
    return max(SURE, UNSURE)


def entry_acknowledged_to_two_appends(story: Story) -> int:
    n = story.find("invoke", UNSURE)
    story.events.append(story.events[n]._replace(type="ok", time=1 << 39, value=RIGHT.chain()[SURE - 1]))
    return SURE


def hash_overwritten(story: Story) -> int:
    row = RIGHT.chain()[UNSURE - 1]
    story.everywhere(lambda rows: rows.__setitem__(UNSURE - 1, row._replace(hash="f" * 32)))
    return UNSURE


def entry_made_without_seeing_the_one_before(story: Story) -> int:
    late = Row(APPENDS + 1, "x", link(APPENDS + 1, "x", RIGHT.chain()[-2].hash))
    story.events += [
        Event(1 << 39, "us-east/0", "us-east", "invoke", "append", "late", "us-east-primary"),
        Event((1 << 39) + 1, "us-east/0", "us-east", "ok", "append", "late", "us-east-primary", late),
    ]
    story.everywhere(lambda rows: rows.append(late))
    return late.zk_id


def number_never_used(story: Story) -> int:
    at = APPENDS + 1
    row = Row(at + 1, "x", link(at + 1, "x", RIGHT.chain()[-1].hash))
    story.events.append(Event(1 << 39, "us-east/0", "us-east", "invoke", "append", "x", "us-east-primary"))
    story.everywhere(lambda rows: rows.append(row))
    return at


def acknowledged_entry_lost_at_the_end(story: Story) -> int:
    """Every region forgets the last entry: chains agree and every link holds."""
    last = max(row.zk_id for row in ACKED.values())
    story.everywhere(lambda rows: rows.__delitem__(slice(last - 1, None)))
    return last


def acknowledged_entry_lost_in_one_region(story: Story) -> int:
    last = max(row.zk_id for row in ACKED.values())
    del story.finals["ap-south"][last - 1 :]
    return last


def entry_read_and_then_gone(story: Story) -> int:
    """Its append is indefinite, and a client has seen it."""
    extra = successor(RIGHT.chain()[-1], "x")
    story.events += [
        Event(1 << 39, "us-east/0", "us-east", "invoke", "append", "x", "us-east-primary"),
        Event(1 << 39, "us-east/98", "us-east", "invoke", "read", "y", "us-east-replica-1"),
        Event(1 << 39, "us-east/98", "us-east", "ok", "read", "y", "us-east-replica-1", Read(0, APPENDS + 1, (extra,))),
    ]
    return extra.zk_id


def region_behind(story: Story) -> int:
    """The entry that one region lacks was not acknowledged."""
    extra = successor(RIGHT.chain()[-1], "x")
    story.events.append(Event(1 << 39, "us-east/0", "us-east", "invoke", "append", "x", "us-east-primary"))
    story.finals["us-east"].append(extra)
    story.finals["eu-west"].append(extra)
    return extra.zk_id


def append_written_twice_after_a_lost_reply(story: Story) -> int:
    """Every indefinite append is retried and acknowledged; one had been written the first time after all."""
    extra = successor(RIGHT.chain()[-1], "x")
    invokes = {e.request_id: e for e in story.events if e.type == "invoke" and e.request_id}
    for n in range(1, APPENDS + 1):
        if f"request {n}" not in ACKED:
            ok = invokes[f"request {n}"]._replace(type="ok", time=1 << 39, value=RIGHT.chain()[n - 1])
            story.events.append(ok)
    story.everywhere(lambda rows: rows.append(extra))
    return extra.zk_id


def order_against_real_time(story: Story) -> int:
    change_event(story, story.find("invoke", SURE), time=(1 << 39) - 1)
    n = story.find("ok", SURE)
    change_event(story, n, time=1 << 39)
    for n, e in enumerate(story.events):
        if e.request_id == f"request {SURE}" and e.type == "invoke":
            change_event(story, n, time=(1 << 39) - 1)
    return SURE


def append_on_record_twice(story: Story) -> int:
    """Every append may have happened once; one did twice, and another not at all."""
    story.say_whose()
    extra = successor(RIGHT.chain()[-1], "x")
    story.events.append(Event(1 << 39, "us-east/0", "us-east", "invoke", "append", "never", "us-east-primary"))
    for region, rows in story.finals.items():
        rows.append(extra)
        story.requests[region].append((f"request {UNSURE}", extra.zk_id))
    return extra.zk_id


def failed_append_on_record(story: Story) -> int:
    story.say_whose()
    refused = next(e.request_id for e in story.events if e.type == "fail" and e.request_id)
    for table in story.requests.values():
        table[UNSURE - 1] = (refused, UNSURE)
    return UNSURE


def entry_of_a_request_that_nobody_made(story: Story) -> int:
    story.say_whose()
    story.requests["ap-south"][UNSURE - 1] = ("nobody's", UNSURE)
    return UNSURE


def entry_on_record_as_anothers(story: Story) -> int:
    story.say_whose()
    for table in story.requests.values():
        table[SURE - 1], table[UNSURE - 1] = (f"request {UNSURE}", SURE), (f"request {SURE}", UNSURE)
    return SURE


def nth_read(story: Story, after: int) -> int:
    return next(n for n, e in enumerate(story.events) if isinstance(e.value, Read) and e.value.watermark > after)


def hole_in_a_read(story: Story) -> int:
    n = nth_read(story, AT)
    value = story.events[n].value
    change_event(story, n, value=value._replace(rows=value.rows[:4] + value.rows[5:]))
    return value.rows[4].zk_id


def hole_below_a_read(story: Story) -> int:
    n = nth_read(story, AT)
    value = story.events[n].value
    change_event(story, n, value=Read(0, value.rows[0].zk_id - 2, value.rows))
    return value.rows[0].zk_id - 1


def read_older_than_its_position(story: Story) -> int:
    n = nth_read(story, AT)
    value = story.events[n].value
    change_event(story, n, value=value._replace(position=value.watermark + 1))
    return value.watermark + 1


def read_without_ones_own_append(story: Story) -> int:
    ok = story.find("ok", SURE)
    e = story.events[ok]
    events = [e._replace(type=kind, op="read", request_id=None, value=value, time=e.time)
              for kind, value in (("invoke", None), ("ok", Read(0, SURE - 1, ())))]  # fmt: skip
    first = next(n for n in range(SURE, SURE + 99) if RIGHT.chain()[n - 1] == e.value)
    story.events[ok + 1 : ok + 1] = [one._replace(process=e.process) for one in events]
    return first


def read_behind_an_earlier_read(story: Story) -> int:
    n = nth_read(story, AT)
    e = story.events[n]
    fresh = "us-east/reader"
    two = [(AT, "invoke"), (AT, "ok"), (AT - 5, "invoke"), (AT - 5, "ok")]
    story.events[n + 1 : n + 1] = [
        e._replace(process=fresh, type=kind, value=Read(0, top) if kind == "ok" else None) for top, kind in two
    ]
    return AT


PLANTS: list[tuple[Callable[[Story], int], str, set[str]]] = [
    (node_id_that_is_none, "malformed", {"link", "fork"}),
    (zk_id_below_one, "malformed", set()),
    (two_regions_take_the_same_number, "fork", set()),
    (entry_twice_in_one_chain, "duplicate", set()),
    (append_acknowledged_with_two_entries, "repeated", set()),
    (entry_acknowledged_to_two_appends, "shared", {"reordered", "excess"}),
    (hash_overwritten, "link", {"fork"}),
    (entry_made_without_seeing_the_one_before, "link", set()),
    (number_never_used, "gap", set()),
    (acknowledged_entry_lost_at_the_end, "lost", set()),
    (acknowledged_entry_lost_in_one_region, "lost", {"diverged"}),
    (entry_read_and_then_gone, "lost", set()),
    (region_behind, "diverged", set()),
    (append_written_twice_after_a_lost_reply, "excess", set()),
    (append_on_record_twice, "exactly-once", set()),
    (failed_append_on_record, "aborted-read", set()),
    (entry_of_a_request_that_nobody_made, "unexpected", set()),
    (entry_on_record_as_anothers, "mismatch", {"reordered"}),
    (order_against_real_time, "reordered", set()),
    (hole_in_a_read, "hole", set()),
    (hole_below_a_read, "hole", set()),
    (read_older_than_its_position, "stale", set()),
    (read_without_ones_own_append, "read-your-writes", {"monotonic-reads"}),
    (read_behind_an_earlier_read, "monotonic-reads", set()),
]


@pytest.mark.parametrize(("plant", "kind", "besides"), PLANTS, ids=[plant.__name__ for plant, *_ in PLANTS])
def test_a_planted_error_is_found_at_its_entry(plant: Callable[[Story], int], kind: str, besides: set[str]) -> None:
    place: list[int] = []
    verdict = spoiled(lambda story: place.append(plant(story)))
    assert verdict.valid is False
    assert kind in verdict.counts
    assert set(verdict.counts) <= {kind} | besides, verdict.counts
    named = next(anomaly for anomaly in verdict.anomalies if anomaly.kind == kind)
    assert named.zk_id == place[0]
    assert str(place[0]) in str(verdict)


def test_errors_of_every_kind_are_planted() -> None:
    assert {kind for _, kind, _ in PLANTS} == set(KINDS)


LONG = list(extend(None, ["us-east-primary", "eu-west-primary", "ap-south-primary"] * 7_000))


@pytest.mark.parametrize("at", [1, 2, 9_999, 10_000, 10_001, 10_002, 20_000, 20_001, 20_002, 21_000])
def test_a_long_chain_is_followed_across_the_stretches_in_which_it_is_verified(at: int) -> None:
    assert verify_chain(LONG).checked == {"entries": 21_000, "links": 21_000}
    changed = [*LONG[: at - 1], LONG[at - 1]._replace(node_id="x"), *LONG[at:]]
    assert [(o.kind, o.zk_id) for o in verify_chain(changed).anomalies] == [("link", at)]
    fork = successor(LONG[at - 2] if at > 1 else None, "x")
    assert [(o.kind, o.zk_id) for o in verify_chain([*LONG[:at], fork, *LONG[at:]]).anomalies] == [("fork", at)]
    assert verify_chain([*LONG[: at - 1], fork, LONG[at - 1], *LONG[at:]]).counts == {"fork": 1}
    without = verify_chain([*LONG[: at - 1], *LONG[at:]])
    expected = [("gap", at), ("link", at + 1)] if 1 < at < 21_000 else []
    assert [(o.kind, o.zk_id) for o in without.anomalies] == expected


@pytest.mark.parametrize("at", [1, 2, 999, 1000, 1001, 1002, 2000, 9000])
@pytest.mark.parametrize("region", REGIONS)
def test_one_region_with_another_entry_is_found_across_the_lines_of_its_final(at: int, region: str) -> None:
    def plant(story: Story) -> None:
        story.finals[region][at - 1] = story.finals[region][at - 1]._replace(node_id="x")

    verdict = spoiled(plant)
    assert {kind: number for kind, number in verdict.counts.items() if kind != "lost"} == {
        "fork": 1,
        "link": 1,
        "diverged": 1,
    }
    assert {anomaly.zk_id for anomaly in verdict.anomalies} == {at}


def test_an_entry_after_another_hash_is_judged_by_the_chain_in_which_it_stands() -> None:
    """The last entry of a final's first line is changed: the next no longer follows, though all regions have it."""

    def plant(story: Story) -> None:
        story.finals["ap-south"][999] = story.finals["ap-south"][999]._replace(hash="0" * 32)

    assert {(o.kind, o.zk_id) for o in spoiled(plant).anomalies if o.kind == "link"} == {("link", 1000), ("link", 1001)}
