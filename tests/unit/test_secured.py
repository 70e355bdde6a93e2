"""What a region may report as safe: what its primary and one replica have on their disks."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from pghc.store import Cursor, Ends
from pghc.writers.housekeeping import Secured


def ends(position: int, end: int, replicated: int | None) -> Ends:
    return Ends(Cursor(position), end, replicated)


def test_a_region_without_replicas_reports_what_its_primary_has() -> None:
    assert Secured(replicas=0).look(ends(7, 700, None)) == 7


def test_nothing_is_reported_that_no_replica_has() -> None:
    secured = Secured(replicas=2)
    assert secured.look(ends(7, 700, None)) == 0
    assert secured.look(ends(9, 900, 699)) == 0
    assert secured.look(ends(9, 900, 700)) == 7
    assert secured.look(ends(9, 900, 900)) == 9


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 40), st.booleans()), max_size=120))
def test_a_report_never_falls_and_never_passes_a_replica(steps: list[tuple[int, int, bool]]) -> None:
    secured, position, before, replicated = Secured(replicas=1), 0, 0, 0
    for forward, lag, connected in steps:
        position += forward
        replicated = max(replicated, position - lag)  # here a position takes one byte of the log
        reported = secured.look(ends(position, position, replicated if connected else None))
        assert before <= reported <= replicated
        before = reported
