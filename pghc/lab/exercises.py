"""The checkers of the lessons' exercises: red and why, or green. Each takes the reader's answer."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from itertools import permutations

from pghc.chain import ROOT, Row, extend, link
from pghc.cluster import Backend
from pghc.errors import Conflict, Indefinite, PghcError, Unavailable
from pghc.lab.lessons import SequencedWriter, Takes, Wrong, checker, expect, judge
from pghc.topology import View
from pghc.writers import Writer

Comment = dict[str, str | None]


@checker
def lesson00(entry_hash: Callable[[int, str, str], str]) -> str:
    """`entry_hash` gives the hash of an entry from its number, its node and the hash of the entry before."""
    before = ROOT
    for row in extend(None, ["us-east-primary", "ap-south-primary", "us-east-primary"]):
        found = entry_hash(row.zk_id, row.node_id, before)
        given = f"entry {row.zk_id} of {row.node_id} after {before or 'nothing'}"
        expect(found, row.hash, given, f"it is the MD5 of the text {f'{row.zk_id}{row.node_id}{before}'!r}")
        before = row.hash
    return "You can recompute every link of the chain, and so can anybody: that is what it is for."


@checker
def lesson01(route: Callable[[int, list[tuple[str, int]]], str]) -> str:
    """`route` gives the nearest replica that has reached what the client has seen, else "primary"."""
    cases = [
        (5, [("near", 9), ("far", 9)], "near", "both have come so far, and near is nearer"),
        (5, [("near", 4), ("far", 9)], "far", "near has not come so far: the client would miss its own write"),
        (5, [("near", 5), ("far", 9)], "near", "a replica that has reached exactly what was seen is good enough"),
        (5, [("near", 4), ("far", 3)], "primary", "no replica has come so far, and the primary has all"),
        (0, [("near", 0)], "near", "a client that has seen nothing may be served anywhere"),
        (1, [], "primary", "there is no replica"),
        (5, [("near", 6), ("far", 99)], "near", "the farthest along is not needed, the nearest that suffices is"),
    ]
    for seen, replicas, expected, because in cases:
        expect(route(seen, list(replicas)), expected, f"seen={seen} and {replicas}", because)
    return "Nobody reads anything older than what they have seen, and nobody travels farther than needed."


Tables = dict[str, dict[str, str]]


@checker
def lesson02(to_delete: Callable[[Tables, dict[str, str]], Mapping[str, set[str]]]) -> str:
    """`to_delete` gives, for each region, the seats whose row must go."""
    cases: list[tuple[Tables, dict[str, str]]] = [
        ({"us": {"1": "alice"}, "eu": {"1": "bob"}, "ap": {"1": "bob"}}, {"1": "alice"}),
        ({"us": {"1": "alice", "2": "al"}, "eu": {"1": "alice", "2": "bob"}}, {"2": "bob"}),
        ({"us": {"1": "a", "2": "a", "3": "a"}, "eu": {"1": "b", "2": "b"}, "ap": {}}, {"1": "a", "2": "b"}),
    ]
    for tables, winners in cases:
        plan = to_delete({region: dict(table) for region, table in tables.items()}, dict(winners))
        for region, table in tables.items():
            chosen = set(plan.get(region, set()))
            for seat in sorted(set(table) | chosen):
                if seat not in table and seat in chosen:
                    raise Wrong(f"In {region} you delete seat {seat}, which it does not hold: {tables}.")
                given = f"{tables}, winners {winners}"
                if seat not in winners and seat in chosen:
                    raise Wrong(f"In {region} you delete seat {seat}, which nobody disputes: {given}.")
                if seat in winners and table[seat] == winners[seat] and seat in chosen:
                    raise Wrong(f"In {region} you delete the winner's own row of seat {seat}: {given}.")
                if seat in winners and table[seat] != winners[seat] and seat not in chosen:
                    raise Wrong(f"In {region} seat {seat} stays {table[seat]}'s, but the winner is {winners[seat]}.")
    return "After your plan no region holds a loser's row, and no row that may stay has gone."


@checker
def lesson03(visible: Callable[[list[Comment]], list[str]]) -> str:
    """`visible` gives the ids of the comments that may be shown, none before the one that it answers."""
    thread: list[tuple[str, str | None]] = [("c", None), ("r", "c"), ("rr", "r"), ("x", None)]
    for size in range(len(thread) + 1):
        for arrived in permutations(thread, size):
            given: list[Comment] = [{"id": name, "reply_to": parent} for name, parent in arrived]
            shown = visible([dict(comment) for comment in given])
            names = [name for name, _ in arrived]
            if not isinstance(shown, list):
                raise Wrong(f"Return a list of ids, not {shown!r}.")
            for name, parent in thread:
                whole, at = True, parent
                while at:
                    whole, at = whole and at in names, dict(thread)[at]
                told = f"{', '.join(f'{n} (answers {p})' if p else n for n, p in arrived) or 'nothing'} arrived"
                if name in names and whole and name not in shown:
                    raise Wrong(f"When {told}, {name} may be shown: all that it answers is there. You hide it.")
                if name in shown and name not in names:
                    raise Wrong(f"When {told}, you show {name}, which has not arrived.")
                if name in shown and not whole:
                    raise Wrong(f"When {told}, you show {name}, but not all that it answers is there, directly or not.")
                if name in shown and parent in shown and shown.index(name) < shown.index(parent):
                    raise Wrong(f"When {told}, you show {name} above {parent}, which it answers.")
            if len(set(shown)) != len(shown):
                raise Wrong(f"You show a comment twice: {shown!r}.")
    return "In whatever order comments arrive, nobody sees an answer without all that it answers: a causal cut."


@checker
def lesson04(first_anomaly: Callable[[list[Row]], int | None]) -> str:
    """`first_anomaly` gives the zk_id of the first entry that is not as it must be, None for a valid chain."""
    nodes = ["us-east-primary", "eu-west-primary", "ap-south-primary", "us-east-primary", "eu-west-primary"]
    good = list(extend(None, nodes))

    def given(rows: Sequence[Row]) -> str:
        return f"the entries {[row.zk_id for row in rows]}"

    expect(first_anomaly([]), None, "an empty chain", "there is no entry that could offend")
    expect(first_anomaly(list(good)), None, "a valid chain", "every link holds")
    forged = [*good[:2], good[2]._replace(hash="0" * 32), *good[3:]]
    expect(first_anomaly(forged), 3, "a chain whose entry 3 holds 32 zeros", "recompute each hash from the one before")
    renamed = [*good[:2], good[2]._replace(node_id="eu-west-primary"), *good[3:]]
    expect(first_anomaly(renamed), 3, "a chain whose entry 3 names another node", "the node_id is part of the hash")
    expect(first_anomaly(good[:2] + good[3:]), 4, given(good[:2] + good[3:]), "entry 4 does not follow entry 2")
    expect(first_anomaly(good[1:]), 2, given(good[1:]), "a chain begins with entry 1 and the empty hash")
    wrong_first = [Row(1, nodes[0], link(1, nodes[0], "x"))]
    expect(first_anomaly(wrong_first), 1, "a first entry hashed after 'x'", "before the first entry is the empty text")
    skipped = [*good[:3], Row(4, nodes[3], link(4, nodes[3], good[1].hash))]
    expect(first_anomaly(skipped), 4, "an entry 4 made after entry 2", "it was made as if entry 3 did not exist")
    gap = [*good[:2], Row(4, nodes[3], link(4, nodes[3], good[1].hash))]
    expect(first_anomaly(gap), 4, "an entry 4 directly after entry 2, hashed so", "the hash is right, but 3 is missing")
    fork = [*good[:3], Row(3, nodes[1], link(3, nodes[1], good[1].hash)), *good[3:]]
    expect(first_anomaly(fork), 3, "two entries numbered 3", "two entries cannot have one place")
    return "You found forged hashes, renamed nodes, gaps, forks and entries made after the wrong one."


@checker
def lesson05(may_go_on: Callable[[list[list[str]], int], list[str] | None]) -> str:
    """`may_go_on` gives the group that is a majority of all servers, or None."""
    cases: list[tuple[list[list[str]], int, list[str] | None, str]] = [
        ([["a", "b", "c"]], 3, ["a", "b", "c"], "all servers are a majority"),
        ([["a"], ["b", "c"]], 3, ["b", "c"], "two of three are a majority"),
        ([["a"], ["b"], ["c"]], 3, None, "no server alone is a majority of three"),
        ([["b"]], 3, None, "the other two have failed, but a quorum is counted among all three"),
        ([["a", "b"], ["c", "d"]], 4, None, "two of four are half, not more than half; else both halves would decide"),
        ([["a", "b"], ["c"]], 5, None, "the largest group is two of five; two more may be deciding somewhere"),
        ([["a", "b"], ["c", "d", "e"]], 5, ["c", "d", "e"], "three of five are a majority"),
        ([["a"]], 1, ["a"], "one of one is a majority"),
        ([], 3, None, "nobody is left"),
    ]
    for groups, total, expected, because in cases:
        found = may_go_on([list(group) for group in groups], total)
        expect(sorted(found) if found else None, expected, f"groups {groups} of {total} servers", because)
    return "At most one group may go on, whatever happens to the network. That is all of consensus' safety."


@checker
def lesson06(backend: Backend, make: Callable[[View], Writer]) -> str:
    """The reader's writer, under the same load as the lab's own."""
    verdict, counts, _ = judge(backend, make, clients=2, seconds=2, timeout=4)
    if verdict.valid is None or counts["ok"] < 3:
        raise Wrong(f"Only {counts['ok']} appends were acknowledged, {counts['info'] + counts['fail']} were not: does "
                    "the wait end? Entry n waits for the entries below its own number, not for itself.")  # fmt: skip
    if not verdict.valid:
        anomaly = verdict.anomalies[0]
        raise Wrong(f"{anomaly.explanation}. Was everything below your number here when you read the last entry?")
    return f"{counts['ok']} appends, each after all entries before it: {verdict.reason}."


@checker
def lesson07(append_once: Callable[[Callable[[str], Row], Callable[[], str], int], Row]) -> str:
    """`append_once` makes at most so many attempts, and the append never stands twice."""
    lost, refused, away = Indefinite("no answer in time"), Conflict("its place was taken"), Unavailable("no quorum")
    plans: list[list[PghcError | None]] = [
        [None], [lost, None], [away, None], [refused, None], [lost, lost, None], [away, lost, refused, None],
        [lost, lost, lost], [away, away, away],
    ]  # fmt: skip
    for plan in plans:
        log: list[str] = []
        made: list[str] = []
        answers = iter(plan)

        def append(request_id: str, answers: Iterator[PghcError | None] = answers, log: list[str] = log) -> Row:
            answer = next(answers, None)
            if answer is None or not answer.definite:  # here an indefinite one has always happened
                log.append(request_id)
            if answer:
                raise answer
            return Row(1 + sorted(set(log)).index(request_id), "us-east-primary", "")

        def new_id(made: list[str] = made) -> str:
            made.append(f"id-{len(made) + 1}")
            return made[-1]

        story = ", then ".join("it succeeds" if one is None else type(one).__name__ for one in plan)
        tries = max(len(plan), 3)
        try:
            row = append_once(append, new_id, tries)
        except PghcError as error:
            if plan[-1] is None:
                raise Wrong(f"When {story}, with {tries} attempts, you give up: {type(error).__name__}.") from error
            continue
        if plan[-1] is not None:
            raise Wrong(f"When {story}, and nothing more is allowed, raise the last error; you return {row!r}.")
        if not isinstance(row, Row):
            raise Wrong(f"When {story}, return the entry, not {row!r}.")
        if len(set(log)) > 1:
            raise Wrong(f"When {story}, the append stands {len(set(log))} times: an attempt without an answer had "
                        "happened, and you tried again under another id.")  # fmt: skip
    return "Whatever is lost, the append stands once; and you give up only when the attempts are used up."


@checker
def lesson08(least_ms: Callable[[str, str, Sequence[str], Callable[[str, str], float]], float]) -> str:
    """`least_ms` is the way to the leader, the quorum's round trip, and the way home."""
    one_way = {("us", "eu"): 40.0, ("eu", "ap"): 65.0, ("us", "ap"): 95.0, ("ap", "au"): 50.0, ("us", "au"): 100.0,
               ("eu", "au"): 120.0, ("us", "br"): 60.0, ("eu", "br"): 95.0, ("ap", "br"): 150.0,
               ("au", "br"): 160.0}  # fmt: skip

    def delay(a: str, b: str) -> float:
        return 0.0 if a == b else one_way.get((a, b), one_way.get((b, a), 0.0))

    def right(region: str, leader: str, regions: Sequence[str]) -> float:
        trips = sorted(2 * delay(leader, other) for other in regions if other != leader)
        followers = len(regions) // 2
        return delay(region, leader) + (trips[followers - 1] if followers else 0.0) + delay(leader, region)

    for regions in (("us", "eu", "ap"), ("us", "eu", "ap", "au", "br"), ("us",)):
        for leader in regions:
            for region in regions:
                found: object = least_ms(region, leader, regions, delay)
                expected = right(region, leader, regions)
                if not isinstance(found, int | float) or abs(found - expected) > 0.01:
                    raise Wrong(f"From {region}, leader in {leader}, servers in {', '.join(regions)}: you say {found} "
                                f"ms, it is {expected:g}. To the leader and back are {2 * delay(region, leader):g} "
                                f"ms; the leader needs {len(regions) // 2} others, the nearest ones.")  # fmt: skip
    return "Right, for three servers, for five and for one. Compare with what you measured."


@checker
def lesson09(first_difference: Callable[[Callable[[int], str], Callable[[int], str], int], int | None]) -> str:
    """`first_difference` finds the first entry that differs, with few questions."""
    cases = ((1, None), (1, 1), (2, 2), (10, 1), (10, 10), (1000, None), (1000, 617), (100_000, 77_777), (100_000, 1))
    for n, k in cases:
        asked = [0, 0]

        def ask(which: int, at: int, k: int | None = k, n: int = n, asked: list[int] = asked) -> str:
            if not 1 <= at <= n:
                raise Wrong(f"With {n} entries you asked for entry {at}; they go from 1 to {n}.")
            asked[which] += 1
            return f"{'forged' if which and k is not None and at >= k else 'true'} hash of {at}"

        found = first_difference(partial(ask, 0), partial(ask, 1), n)
        told = f"{n} entries of which the first that differs is {k}" if k else f"{n} entries that are all the same"
        expect(found, k, told, "from the first difference on, all hashes differ, and below it none does")
        allowed = n.bit_length() + 2
        if max(asked) > allowed:
            raise Wrong(f"For {n} entries you asked {max(asked)} questions of one side; {allowed} are enough. Halve.")
    return "Found, with about log2(n) questions: 17 for a hundred thousand entries, 30 for a thousand million."


@checker
def lesson10(backend: Backend, make: type[Takes]) -> str:
    """The reader's sequencer: in peace, then with lost replies."""
    for lose_every, peace in ((0, "without faults"), (4, "with replies that get lost")):
        made = SequencedWriter.of(make, lose_every=lose_every)
        verdict, counts, _ = judge(backend, made, clients=1, seconds=3, timeout=3)
        bad = counts["fail"] + counts["info"]
        if verdict.valid is False:
            raise Wrong(f"Judged {peace}: {verdict.anomalies[0].explanation}.")
        if counts["ok"] < 3:
            said = "; ".join(made.errors[-1:]) or "everybody waits for a number that nobody inserts"
            raise Wrong(f"Judged {peace}: only {counts['ok']} appends were acknowledged and {bad} were not. The last "
                        f"thing heard: {said}.")  # fmt: skip
        if bad > counts["ok"] / 2:
            raise Wrong(f"Judged {peace}: {bad} appends were not acknowledged, {counts['ok']} were. A number that was "
                        "taken and not used leaves a hole for which all others wait.")  # fmt: skip
    return "Every number once and none left out, also when replies are lost: this is what ZooKeeper's log gives us."


Reports = list[tuple[str, int, int, list[int]]]


@checker
def lesson11(safe_to_truncate: Callable[[Reports, dict[str, int]], int]) -> str:
    """`safe_to_truncate` gives the log position up to which no promotion, in whatever region, can need the log."""
    two = {"us": 0, "eu": 0}
    cases: list[tuple[Reports, dict[str, int], int, str]] = [
        ([("us", 0, 9, [9, 9]), ("eu", 0, 9, [9, 9])], two, 9, "everybody has all up to 9"),
        ([("us", 0, 9, [9, 9]), ("eu", 0, 5, [5, 5])], two, 5, "eu still needs what is above 5"),
        ([("us", 0, 9, [4, 4]), ("eu", 0, 9, [9, 9])], two, 4,
         "if us loses its primary, its best replica has 4 and completes the rest from the log"),
        ([("us", 0, 9, [9, 2]), ("eu", 0, 9, [9, 9])], two, 9,
         "one replica besides the primary suffices: the farthest is promoted, and a slow one must not hold the log up"),
        ([("us", 0, 6, [9, 9]), ("eu", 0, 9, [9, 9])], two, 6,
         "the primary was asked before its replicas: that it has more by now nobody has said"),
        ([("us", 0, 9, [9, 9])], two, 0, "eu has reported nothing, so it may need all of the log"),
        ([("us", 0, 3, [3, 3]), ("eu", 0, 9, [9, 9]), ("us", 0, 8, [8, 8])], two, 8, "the later report of us counts"),
        ([("us", 0, 4, [4, 4]), ("us", 1, 6, [6, 5]), ("us", 0, 9, [9, 9]), ("eu", 0, 9, [9, 9])],
         {"us": 1, "eu": 0}, 6,
         "the report of 9 is of epoch 0, whose primary is deposed: what is on its disk, nobody reads any more"),
        ([("us", 0, 9, [9, 9]), ("eu", 0, 9, [9, 9])], {"us": 1, "eu": 0}, 0,
         "us has a new primary, which has reported nothing yet"),
    ]  # fmt: skip
    for reports, terms, expected, because in cases:
        found = safe_to_truncate([(*report[:3], [*report[3]]) for report in reports], dict(terms))
        expect(found, expected, f"the reports {reports} and the epochs {terms}", because)
    return "No promoted replica misses anything, no slow replica holds the log up, and no deposed primary is believed."
