"""Randomised faults: the exact writers stand them, the others are caught."""

from __future__ import annotations

import pytest

from pghc.cluster import Backend
from pghc.faults.injection import Faults
from pghc.faults.nemesis import Nemesis, save_diagnostics, schedule
from pghc.workload import runs
from pghc.writers import writer_class

pytestmark = pytest.mark.slow
SECONDS = 12.0


def run(cluster: Backend, writer: str, seed: int) -> tuple[runs.Run, str]:
    nemesis = Nemesis(Faults(cluster), schedule(seed, cluster.topology, SECONDS, writer_class(writer).steps))
    done = runs.run(cluster, writer, clients=2, seconds=SECONDS, reads=0.3, seed=seed, during=nemesis)
    story = "\n".join([str(done.verdict), *map(str, nemesis.events), *nemesis.troubles])
    if done.verdict.valid is not True and writer in ("causal", "broadcast"):
        story += f"\ndiagnostics: {save_diagnostics(cluster, done.path, nemesis, writer=done.writer, seed=seed)}"
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
