"""Schedules of faults: what a seed stands for."""

from __future__ import annotations

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from pghc.faults.schedule import BEGIN, KINDS, LONGEST, QUIET, REPLACED, USUAL, schedule
from pghc.topology import load

STEPS = ("numbered", "waited")


@given(st.integers(0, 10_000), st.floats(5, 60))
def test_a_schedule_is_the_same_for_the_same_seed_and_ends_before_the_quiet_time(seed: int, seconds: float) -> None:
    topology = load()
    events = schedule(seed, topology, seconds, STEPS)
    assert events == schedule(seed, topology, seconds, STEPS)
    assert all(event.kind in {*KINDS, BEGIN} and event.seconds <= LONGEST for event in events)
    assert all(event.at + event.seconds <= seconds - QUIET + 0.02 for event in events)
    assert [event.at for event in events] == sorted(event.at for event in events)


@given(st.integers(0, 10_000))
def test_a_schedule_never_hits_one_server_twice_at_the_same_time(seed: int) -> None:
    until: dict[str, float] = {}
    for event in schedule(seed, load(), 30, STEPS):
        if event.kind in ("kill", "pause"):
            for server in event.targets:
                assert until.get(server, 0) <= event.at
                until[server] = event.at + event.seconds


@given(st.integers(0, 10_000))
def test_one_server_is_lost_at_a_time_and_no_other_of_its_region_is_hit_before_it_is_replaced(seed: int) -> None:
    topology = load()
    events = schedule(seed, topology, 60, STEPS)
    for lost in (event for event in events if event.kind == "lose"):
        region = topology.region(topology.node(lost.targets[0]).region)
        hit = {*region.databases, region.zookeeper}
        for other in events:
            if other is not lost and other.kind in ("kill", "pause", "lose") and other.at >= lost.at:
                near = other.at < lost.at + lost.seconds + REPLACED
                assert not (near and (other.kind == "lose" or hit & {*other.targets}))


def test_in_two_hundred_seeds_every_kind_of_fault_occurs_long_ones_and_outages_of_two_servers_too() -> None:
    events = [event for seed in range(200) for event in schedule(seed, load(), 30, STEPS)]
    kinds = Counter(event.kind for event in events)
    assert set(kinds) == {*KINDS, BEGIN}
    assert sum(event.seconds > USUAL for event in events) > len(events) / 20
    assert max(event.seconds for event in events) > 0.9 * LONGEST
    double = [event for event in events if event.kind in ("kill", "pause") and len(event.targets) == 2]
    assert any(all(name.endswith("zookeeper") for name in event.targets) for event in double)
    assert any(all(name.endswith("primary") for name in event.targets) for event in double)


@given(st.integers(0, 10_000), st.sampled_from([*KINDS, BEGIN]))
def test_a_schedule_leaves_out_the_kinds_that_it_is_told_to(seed: int, kind: str) -> None:
    assert all(event.kind != kind for event in schedule(seed, load(), 30, STEPS, leave_out=[kind]))
