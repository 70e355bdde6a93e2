"""Topologies: what is read, what is refused, what is derived."""

from __future__ import annotations

import json
import tomllib
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pghc.chain import NODE_ID
from pghc.errors import BadInput
from pghc.topology import Address, Credentials, Topology, View, load, parse


def table(*names: str, **delays: Any) -> dict[str, Any]:
    """A topology of these regions, 10 ms apart."""
    pairs = {f"{a} {b}": 10 for i, a in enumerate(names) for b in names[i + 1 :]}
    regions = [{"name": name, "city": name.title(), "latitude": 1.5, "longitude": -2} for name in names]
    return {"regions": regions, "delays_ms": pairs | delays}


def test_the_default_has_three_regions_and_the_delays_of_the_design() -> None:
    topology = load()
    assert topology.names == ("us-east", "eu-west", "ap-south")
    assert topology.delay_ms("us-east", "eu-west") == topology.delay_ms("eu-west", "us-east") == 40
    assert topology.delay_ms("eu-west", "ap-south") == 65
    assert topology.round_trip_ms("us-east", "ap-south") == 190
    assert topology.delay_ms("us-east", "us-east") == 0
    assert [region.replicas for region in topology.regions] == [2, 2, 2]
    assert topology.central == "eu-west"


@pytest.mark.parametrize("count", [2, 3, 4, 5])
def test_two_to_five_regions_are_possible(count: int) -> None:
    topology = parse(table(*"abcde"[:count]))
    assert len(topology.nodes) == count * 5
    assert len(list(topology.pairs)) == len(topology.delays_ms) == count * (count - 1)


@pytest.mark.parametrize("names", ["", "a", "abcdef"])
def test_fewer_than_two_or_more_than_five_are_refused(names: str) -> None:
    with pytest.raises(BadInput, match=f"{len(names)} region"):
        parse(table(*names))


def test_names_of_nodes_are_unique_and_are_node_ids() -> None:
    topology = parse(table("a" * 20, "b", "c-d"))
    names = [node.name for node in topology.nodes]
    assert len(names) == len(set(names))
    assert all(map(NODE_ID.fullmatch, names))
    assert [topology.node(name).name for name in names] == names


def test_a_delay_may_differ_by_direction_and_the_arrow_wins() -> None:
    topology = parse(table("a", "b", **{"a -> b": 30.5}))
    assert (topology.delay_ms("a", "b"), topology.delay_ms("b", "a")) == (30.5, 10)


def without(key: str) -> dict[str, Any]:
    return {k: v for k, v in table("a", "b").items() if k != key}


def region(**change: Any) -> dict[str, Any]:
    data = table("a", "b")
    data["regions"][1] |= change
    return data


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (without("regions"), "list of tables"),
        ({"regions": [1, 2]}, "list of tables"),
        (without("delays_ms"), "delay from a to b is missing"),
        (table("a", "b") | {"delays_ms": 3}, "delays_ms must be a table"),
        (table("a", "b") | {"colour": 1}, "unknown entry colour"),
        (table("a", "a"), "listed twice"),
        (table("a", "b", **{"a b": -1}), "from 0 to 10000, not -1"),
        (table("a", "b", **{"a b": 10_001}), "from 0 to 10000"),
        (table("a", "b", **{"a b": float("nan")}), "from 0 to 10000"),
        (table("a", "b", **{"a b": True}), "from 0 to 10000"),
        (table("a", "b", **{"a b": "40"}), "from 0 to 10000"),
        (table("a", "b", **{"a c": 1}), 'delay "a c" must name two different listed regions'),
        (table("a", "b", **{"a a": 1}), "two different"),
        (table("a", "b", **{"b a": 1}), "given twice"),
        (table("a", "b", **{"a -> b": 1, "a->b": 2}), "given twice"),
        (region(name="B"), "region name 'B'"),
        (region(name="b" * 21), "region name"),
        (region(name=7), "region name 7"),
        (region(latitude=91), "latitude"),
        (region(longitude=None), "longitude"),
        (region(replicas=-1), "replicas"),
        (region(replicas=6), "replicas"),
        (region(replicas=True), "replicas"),
        (region(city=3), "city"),
        (region(moons=2), "unknown entry moons"),
    ],
)
def test_what_is_wrong_in_a_topology_is_named(data: dict[str, Any], says: str) -> None:
    with pytest.raises(BadInput) as caught:
        parse(data, "my.toml")
    assert says in str(caught.value)
    assert str(caught.value).startswith("my.toml: ")


def test_a_file_that_is_not_there_or_not_toml_is_named(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=r"nowhere.toml cannot be read"):
        load(str(tmp_path / "nowhere.toml"))
    for content in (b"regions = [", b"\xff\xfe"):
        (tmp_path / "bad.toml").write_bytes(content)
        with pytest.raises(BadInput, match=r"bad.toml is not valid TOML"):
            load(str(tmp_path / "bad.toml"))


@given(st.dictionaries(st.text(max_size=4), st.integers() | st.text(max_size=3) | st.lists(st.integers(), max_size=2)))
def test_no_table_does_worse_than_being_refused(data: dict[str, Any]) -> None:
    with pytest.raises(BadInput):
        parse(data)


@given(st.lists(st.integers(0, 300), min_size=10, max_size=10), st.integers(2, 5))
def test_a_topology_reads_back_what_it_writes(delays: list[int], count: int) -> None:
    data = table(*"abcde"[:count])
    data["delays_ms"] = dict(zip(data["delays_ms"], delays, strict=False))
    topology = parse(data)
    assert parse(topology.to_dict()) == topology


@given(st.lists(st.integers(1, 300), min_size=10, max_size=10), st.integers(2, 5))
def test_the_central_region_reaches_a_quorum_soonest(delays: list[int], count: int) -> None:
    data = table(*"abcde"[:count])
    data["delays_ms"] = dict(zip(data["delays_ms"], delays, strict=False))
    topology = parse(data)

    def quorum(name: str) -> float:
        """The shortest time in which more than half of all, itself included, have answered."""
        trips = sorted([0.0, *(topology.round_trip_ms(name, other) for other in topology.names if other != name)])
        return next(trip for n, trip in enumerate(trips, 1) if n > count / 2)

    assert quorum(topology.central) == min(map(quorum, topology.names))


def test_unknown_regions_and_nodes_are_refused_with_the_known_ones() -> None:
    topology = load()
    with pytest.raises(BadInput, match=r"us-east, eu-west, ap-south"):
        topology.region("mars")
    with pytest.raises(BadInput, match=r"us-east-primary"):
        topology.node("mars-primary")


def view(topology: Topology) -> View:
    addresses = {node.name: Address("127.0.0.1", 5000 + n) for n, node in enumerate(topology.nodes)}
    credentials = Credentials(password="s3cret", admin_password="r00t", zookeeper_password="zk")
    return View("us-east", topology, addresses, credentials)


def test_a_view_reads_back_what_it_writes_for_a_file() -> None:
    seen = view(load())
    assert View.from_dict(json.loads(json.dumps(seen.to_dict()))) == seen


def test_a_client_dials_its_own_zookeeper_first_then_the_nearest() -> None:
    topology = load()
    seen = view(topology)
    near_to_far = [topology.region(name).zookeeper for name in ("us-east", "eu-west", "ap-south")]
    assert seen.zookeeper_hosts == ",".join(str(seen.addresses[name]) for name in near_to_far)


def test_connection_arguments_are_those_of_the_node_and_the_role() -> None:
    seen = view(load())
    arguments = seen.conninfo("eu-west-primary")
    assert (arguments["host"], arguments["port"]) == ("127.0.0.1", seen.addresses["eu-west-primary"].port)
    assert (arguments["user"], arguments["password"]) == ("pghc", "s3cret")
    admin = seen.conninfo("eu-west-primary", admin=True)
    assert (admin["user"], admin["password"]) == ("pghc_admin", "r00t")


def test_no_password_is_shown() -> None:
    assert not any(secret in repr(view(load())) for secret in ("s3cret", "r00t", "'zk'"))


def test_the_default_file_is_toml_of_the_documented_shape() -> None:
    data = tomllib.loads(files("pghc").joinpath("topology.toml").read_text())
    assert set(data) == {"regions", "delays_ms"}
