"""Which appends go together: decided by what waits, and by nothing that a clock says."""

from __future__ import annotations

from concurrent.futures import Future
from typing import Any
from uuid import uuid4

from hypothesis import given
from hypothesis import strategies as st

from pghc import topology
from pghc.topology import Credentials, View
from pghc.writers.sharing import BATCH, Sharing

TOPOLOGY = topology.load()
VIEW = View("us-east", TOPOLOGY, {}, Credentials("", "", ""))


def submit(writer: Sharing, count: int) -> tuple[list[str], Future[Any]]:
    requests = [str(uuid4()) for _ in range(count)]
    return requests, writer.submit_many(requests)


def test_a_lone_append_goes_at_once() -> None:
    writer = Sharing(VIEW)
    requests, _ = submit(writer, 1)
    assert writer.next_batch(0, parts=6) == requests


@given(sent=st.integers(1, 400), queued=st.integers(1, 400), parts=st.integers(2, 10))
def test_a_batch_has_its_part_of_all_that_have_no_answer(sent: int, queued: int, parts: int) -> None:
    writer = Sharing(VIEW)
    submit(writer, sent)
    writer.next_batch(0)
    requests, _ = submit(writer, queued)
    early = queued < max(1, (sent + queued) // parts)
    with writer._lock:
        assert writer._is_batch(BATCH, parts) is not early
    assert writer.next_batch(0, parts=parts) == requests  # and after its time, whatever there is
