"""Randomised faults: the exact writers stand them, the others are caught."""

from __future__ import annotations

import pytest

from pghc import workload
from pghc.backends import Backend
from pghc.faults import Faults
from pghc.nemesis import Nemesis, save_evidence, schedule
from pghc.writers import writer_class

pytestmark = pytest.mark.slow
SECONDS = 12.0


def run(cluster: Backend, writer: str, seed: int) -> tuple[workload.Run, str]:
    nemesis = Nemesis(Faults(cluster), schedule(seed, cluster.topology, SECONDS, writer_class(writer).steps))
    done = workload.run(cluster, writer, clients=2, seconds=SECONDS, reads=0.3, seed=seed, during=nemesis)
    story = "\n".join([str(done.verdict), *map(str, nemesis.events), *nemesis.troubles])
    if done.verdict.valid is not True and writer in ("causal", "broadcast"):
        story += f"\nevidence: {save_evidence(cluster, done, nemesis, seed)}"
    return done, story


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("writer", ["causal", "broadcast"])
def test_exact_writers_lose_double_and_reorder_nothing_under_random_faults(
    cluster: Backend, writer: str, seed: int
) -> None:
    done, story = run(cluster, writer, seed)
    assert done.appends > 0, story
    assert done.verdict.valid, story
    assert done.caught_up_seconds is not None, f"regions differ after the run\n{story}"


@pytest.mark.parametrize("writer", ["naive", "numbered"])
def test_the_others_are_caught_under_the_same_faults(cluster: Backend, writer: str) -> None:
    done, story = run(cluster, writer, 0)
    assert done.verdict.valid is False, story
