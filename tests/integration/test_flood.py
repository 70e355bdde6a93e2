"""More is put into the log than it can hold while a region does not take it out."""

from __future__ import annotations

from uuid import uuid4

import pytest

from pghc.cluster.local.embedded import Embedded
from pghc.errors import PghcError, Unavailable
from pghc.faults.injection import Faults
from pghc.sequencer import LOG_BYTES, Sequencer
from pghc.workload.runs import Crew, run
from pghc.writers import open_writer


def zookeepers(cluster: Embedded) -> dict[str, int | None]:
    return {node.name: node.pid for node in cluster.status().nodes if node.role == "zookeeper"}


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_flood_while_a_region_is_away_is_held_and_refused_before_zookeeper_is_in_danger(cluster: Embedded) -> None:
    """Without a bound two of three ZooKeeper servers died of memory after 44 MB, in 45 s on a machine of its own."""
    before, sizes, refusals = zookeepers(cluster), list[int](), list[PghcError]()

    def flood(crew: Crew) -> None:
        view = cluster.view("eu-west")
        with Faults(cluster).pause("us-east-primary"), Sequencer(view) as log:
            while not crew.wait(1) and (not sizes or sizes[-1] < LOG_BYTES):
                sizes.append(log.size(5) or 0)
            with open_writer("broadcast", view) as writer:
                while writer.sequencer._room.is_set() and not crew.wait(0.5):  # what it sent would be nobody's
                    pass
                sizes.append(log.size(5) or 0)
                try:
                    writer.append(str(uuid4()), 5)
                except PghcError as error:
                    refusals.append(error)

    came = run(cluster, "broadcast", in_flight=4000, seconds=80, during=flood)
    print(f"{came.appends} appends, most {max(sizes)} bytes; {refusals} {came.errors}")
    assert zookeepers(cluster) == before, "none has died"
    assert LOG_BYTES <= max(sizes) < 1.25 * LOG_BYTES, "those on their way come on top"
    assert [type(error) for error in refusals] == [Unavailable], "definite"
    assert "us-east" in refusals[0].what, "the region that is behind is named"
    assert not came.behind
    assert came.verdict.valid is True
    assert cluster.status().healthy
