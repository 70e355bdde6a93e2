"""Randomised faults: the exact writers stand them, the others are caught."""

from __future__ import annotations

import pytest

from pghc.cluster import Backend
from pghc.faults.trials import trial

pytestmark = pytest.mark.slow
SECONDS = 12.0


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("writer", ["causal", "broadcast", "causal+broadcast", "causal/broadcast"])
def test_exact_writers_lose_double_and_reorder_nothing_under_random_faults(
    cluster: Backend, writer: str, seed: int
) -> None:
    done = trial(cluster, writer, seed, SECONDS, clients=2, reads=0.3)
    assert done.run.appends > 0, str(done)
    assert done.verdict.valid, str(done)
    assert not done.stuck, f"regions differ after the run\n{done}"


@pytest.mark.parametrize("writer", ["naive", "numbered"])
def test_the_others_are_caught_under_the_same_faults(cluster: Backend, writer: str) -> None:
    done = trial(cluster, writer, 0, SECONDS, clients=2, reads=0.3)
    assert done.verdict.valid is False, str(done)
