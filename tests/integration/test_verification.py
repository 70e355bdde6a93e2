"""The database, by recomputation in SQL, and Python, from the rows, find the same on the same data."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import ExitStack
from hashlib import md5
from itertools import pairwise
from typing import Any

import pytest

from pghc.chain import Row, extend
from pghc.cluster import Backend
from pghc.store import Primary, Reader
from pghc.verify import audit as auditing
from pghc.verify.audit import audit, audit_regions
from pghc.workload import chains

LENGTH = 60
MIDDLE = LENGTH // 2  # where two sessions meet


@pytest.fixture
def admin(cluster: Backend) -> Iterator[Reader]:
    """One primary, which may be tampered with, as its superuser; the chain is empty before and after."""
    views = [cluster.view(name) for name in cluster.topology.names]
    chains.begin_chain(views)
    with Reader(views[0], cluster.topology.regions[0].primary, admin=True) as reader:
        yield reader
    chains.begin_chain(views)


def load(admin: Reader, rows: list[Row]) -> None:
    """Make these rows the table, here alone: neither triggers nor the mesh see them."""
    with admin.connection("load", writes=True) as connection, connection.transaction():
        connection.execute("select pg_replication_origin_session_setup('log')")
        connection.execute("set local session_replication_role = replica")
        connection.execute("delete from public.chain")
        with connection.cursor() as cursor, cursor.copy("copy public.chain from stdin") as copy:
            for row in rows:
                copy.write_row(row)
        connection.execute("select pg_replication_origin_session_reset()")


def by_definition(rows: list[Row], anchor: int) -> list[tuple[int, str, str, str | None, int | None]]:
    """The anomaly of each entry above ``anchor``, from nothing but hashlib."""
    found: list[tuple[int, str, str, str | None, int | None]] = []
    for before, row in pairwise([None, *(row for row in rows if row.zk_id >= anchor)]):
        assert row
        follows = before.zk_id == row.zk_id - 1 if before else row.zk_id == 1
        text = f"{row.zk_id}{row.node_id}{before.hash if before else ''}"
        expected = md5(text.encode(), usedforsecurity=False).hexdigest() if follows else None
        if row.zk_id > anchor and expected != row.hash:
            found.append((*row, expected, before.zk_id if before else None))
    return found


def damaged(rows: list[Row], chance: random.Random) -> list[Row]:
    """The rows with up to three things wrong, more often than not near where two sessions meet."""
    rows = list(rows)
    for _ in range(chance.randrange(4)):
        at = chance.choice([MIDDLE - 1, MIDDLE, MIDDLE + 1, 0, len(rows) - 1, chance.randrange(len(rows))])
        at = min(at, len(rows) - 1)
        match chance.choice(["hash", "node", "gone"]):
            case "hash":
                rows[at] = rows[at]._replace(hash=f"{chance.getrandbits(128):032x}")
            case "node":
                rows[at] = rows[at]._replace(node_id="ap-south-primary")
            case _:
                del rows[at]
    return rows


@pytest.mark.parametrize("share", [LENGTH, 10], ids=["one session", "two sessions"])
def test_sql_and_python_find_the_same_anomalies(admin: Reader, share: int) -> None:
    whole = list(extend(None, ("us-east-primary" for _ in range(LENGTH))))
    for seed in range(60):
        chance = random.Random(seed)
        rows = damaged(whole, chance)
        last = chance.choice([None, 1, 20, LENGTH + 5])
        load(admin, rows)
        anchor, count, anomalies = admin.anomalies(last, share=share)
        assert anchor == (rows[-min(last, len(rows))].zk_id - 1 if last else 0)
        assert count == min(len(rows), last or LENGTH), seed
        assert anomalies == by_definition(rows, anchor), (seed, last)


def test_a_verdict_on_a_server_names_the_first_entry_that_offends(admin: Reader) -> None:
    whole = list(extend(None, ("us-east-primary" for _ in range(LENGTH))))
    wrong = 0
    for seed in range(60):
        chance = random.Random(seed)
        rows = damaged(whole, chance)
        last = chance.choice([None, 1, 20])
        load(admin, rows)
        verdict = audit(admin, last, patience=0)
        anomalies = by_definition(rows, admin.anomalies(last)[0])
        assert verdict.valid is not bool(anomalies), (seed, last)
        if anomalies:
            wrong += 1
            number, *_, expected, _ = anomalies[0]
            below = max((row.zk_id for row in rows if row.zk_id < number), default=0)
            anomaly = verdict.anomalies[0]
            assert (anomaly.kind, anomaly.zk_id) == (("link", number) if expected else ("gap", below + 1)), (seed, last)
    assert wrong > 20


def test_a_gap_that_is_filled_while_it_is_explained_is_still_the_gap_that_was_found(admin: Reader) -> None:
    whole = list(extend(None, ("us-east-primary" for _ in range(LENGTH))))

    class Overtaken(Reader):
        def anomalies(self, *arguments: Any, **options: Any) -> Any:
            found = super().anomalies(*arguments, **options)
            load(admin, whole)
            return found

    load(admin, [*whole[:MIDDLE], *whole[MIDDLE + 1 :]])
    with Overtaken(admin.view, admin.node) as reader:
        verdict = audit(reader, patience=0)
        assert (verdict.anomalies[0].kind, verdict.anomalies[0].zk_id) == ("gap", MIDDLE + 1)
        assert audit(reader, patience=0).valid, "the next verdict is on what stands there then"


def test_regions_are_compared_as_they_stood_when_each_was_judged(
    cluster: Backend, admin: Reader, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Entry 12 reaches us-east before entry 11 does: after us-east was judged, before the regions are compared."""
    rows = list(extend(None, ("us-east-primary" for _ in range(12))))
    views = {name: cluster.view(name) for name in cluster.topology.names}
    late = [[*rows[:10], rows[11]], rows[:11], rows]
    with ExitStack() as stack:
        primaries = [
            stack.enter_context(Reader(view, view.topology.region(name).primary, admin=True))
            for name, view in views.items()
        ]
        for primary in primaries:
            load(primary, rows[:10])
        judged = []

        class Overtaken(Primary):
            def anomalies(self, *arguments: Any, **options: Any) -> Any:
                found = super().anomalies(*arguments, **options)
                judged.append(self.node)
                if len(judged) == len(late):
                    for primary, now in zip(primaries, late, strict=True):
                        load(primary, now)
                return found

        monkeypatch.setattr(auditing, "Primary", Overtaken)
        verdict, _ = audit_regions(views)
        assert judged == [primary.node for primary in primaries]
        assert str(verdict) == "Valid: 10 entries, every link holds, 3 regions agree."
