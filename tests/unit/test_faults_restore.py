"""Faults on a backend that only remembers what it was told."""

from __future__ import annotations

from contextlib import AbstractContextManager, suppress
from typing import Any

import pytest

from pghc.cluster import Status
from pghc.cluster.wan import LinkState, LinkStatus
from pghc.errors import BadInput
from pghc.faults.injection import Faults
from pghc.lab.lab import Lab
from pghc.topology import Topology, View, load


class Idle:
    """A backend without any ability."""

    name = "idle"

    @property
    def topology(self) -> Topology:
        return load()

    def up(self, progress: Any = None) -> None: ...

    def down(self, *, purge: bool = False) -> None: ...

    def status(self) -> Status:
        return Status(self.name, "", True, [], [])

    def view(self, region: str) -> View:
        raise NotImplementedError


class Remembering(Idle):
    """A backend with all of them."""

    name = "remembering"

    def __init__(self) -> None:
        self.told: list[str] = []
        self._links = {pair: (delay, "open") for pair, delay in load().delays_ms.items()}

    def kill(self, node: str) -> None:
        self.told.append(f"kill {node}")

    def start(self, node: str) -> None:
        self.told.append(f"start {node}")

    def pause(self, node: str) -> None:
        self.told.append(f"pause {node}")

    def resume(self, node: str) -> None:
        self.told.append(f"resume {node}")

    def set_link(
        self, source: str, target: str, *, delay_ms: float | None = None, state: LinkState | None = None
    ) -> None:
        delay, was = self._links[source, target]
        self._links[source, target] = (delay if delay_ms is None else delay_ms, state or was)

    def links(self) -> list[LinkStatus]:
        nominal = self.topology.delays_ms
        return [LinkStatus(a, b, delay, nominal[a, b], state) for (a, b), (delay, state) in self._links.items()]  # type: ignore[arg-type]

    def heal_links(self) -> None: ...

    def changed(self) -> set[tuple[str, str, float, LinkState]]:
        """Links that are not as the topology says."""
        usual: set[tuple[str, str, float, LinkState]] = {
            (x.source, x.target, x.nominal_ms, "open") for x in self.links()
        }
        return {(x.source, x.target, x.delay_ms, x.state) for x in self.links()} - usual


@pytest.fixture
def backend() -> Remembering:
    return Remembering()


@pytest.mark.parametrize(
    ("fault", "changed"),
    [
        (lambda f: f.cut("us-east", "eu-west"), {("us-east", "eu-west", 40, "cut")}),
        (
            lambda f: f.partition("us-east", "eu-west"),
            {("us-east", "eu-west", 40, "cut"), ("eu-west", "us-east", 40, "cut")},
        ),
        (
            lambda f: f.reset("us-east", "eu-west"),
            {("us-east", "eu-west", 40, "reset"), ("eu-west", "us-east", 40, "reset")},
        ),
        (lambda f: f.slow("us-east", "ap-south", 500), {("us-east", "ap-south", 500, "open")}),
    ],
)
def test_a_link_fault_changes_its_links_and_restores_them_also_after_an_error(
    backend: Remembering, fault: Any, changed: set[tuple[str, str, float, str]]
) -> None:
    seen = set()
    with suppress(RuntimeError), fault(Faults(backend)):
        seen = backend.changed()
        raise RuntimeError
    assert seen == changed
    assert not backend.changed()


def test_an_inner_fault_leaves_what_an_outer_one_did(backend: Remembering) -> None:
    faults = Faults(backend)
    with faults.partition("us-east", "eu-west"):
        outer = backend.changed()
        with faults.cut("us-east", "eu-west"), faults.slow("us-east", "eu-west", 400):
            pass
        assert backend.changed() == outer


@pytest.mark.parametrize(("fault", "undo"), [("kill", "start"), ("pause", "resume")])
def test_a_server_is_healed_also_after_an_error(backend: Remembering, fault: str, undo: str) -> None:
    block: AbstractContextManager[None] = getattr(Faults(backend), fault)("us-east-primary")
    with suppress(RuntimeError), block:
        raise RuntimeError
    assert backend.told == [f"{fault} us-east-primary", f"{undo} us-east-primary"]


@pytest.mark.parametrize(
    ("fault", "missing"),
    [
        (lambda f: f.kill("us-east-primary"), "cannot kill servers"),
        (lambda f: f.pause("us-east-primary"), "cannot pause servers"),
        (lambda f: f.lose("us-east-primary"), "cannot lose servers"),
        (lambda f: f.cut("us-east", "eu-west"), "cannot change links"),
    ],
)
def test_a_backend_that_lacks_an_ability_says_so(fault: Any, missing: str) -> None:
    with pytest.raises(BadInput, match=missing), fault(Faults(Idle())):
        pass


def test_a_lesson_that_loses_servers_says_first_of_all_where_that_is_not_possible() -> None:
    with pytest.raises(BadInput, match="the backend idle cannot lose and replace servers"):
        _ = Lab(Idle()).replacing


@pytest.mark.parametrize(
    "fault", [lambda f: f.kill("us-west-primary"), lambda f: f.pause("x"), lambda f: f.cut("us-east", "mars")]
)
def test_an_unknown_name_breaks_nothing(backend: Remembering, fault: Any) -> None:
    with pytest.raises(BadInput, match="there is no"), fault(Faults(backend)):
        pass
    assert not backend.told
    assert not backend.changed()
