"""What the WAN changes in ZooKeeper's election hand-shake, and that it changes nothing else."""

from __future__ import annotations

import struct
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pghc.cluster.wan import ElectionHandshake
from pghc.topology import Address

PROXY = Address("127.0.0.1", 40001)


def message(version: int, server: int, addresses: bytes) -> bytes:
    return struct.pack(">qqi", version, server, len(addresses)) + addresses


def pieces(data: bytes, cuts: list[int]) -> list[bytes]:
    edges = [0, *sorted(cut % (len(data) + 1) for cut in cuts), len(data)]
    return [data[a:b] for a, b in pairwise(edges)]


@pytest.mark.parametrize(
    ("version", "advertised"),
    [(-65536, b"127.0.0.1:3888"), (-65535, b"127.0.0.1:3888|127.0.0.1:3889"), (-65535, b"[0:0:0:0:0:0:0:1]:3888")],
)
@given(server=st.integers(1, 2**63 - 1), after=st.binary(max_size=64), cuts=st.lists(st.integers(0, 200), max_size=6))
def test_the_advertised_address_becomes_the_proxys_however_the_bytes_arrive(
    version: int, advertised: bytes, server: int, after: bytes, cuts: list[int]
) -> None:
    handshake = ElectionHandshake(PROXY)
    received = pieces(message(version, server, advertised) + after, cuts)
    assert b"".join(map(handshake, received)) == message(version, server, b"127.0.0.1:40001") + after


@given(data=st.binary(max_size=64), cuts=st.lists(st.integers(0, 64), max_size=4))
def test_anything_that_is_no_such_message_passes_unchanged(data: bytes, cuts: list[int]) -> None:
    """A prefix of a message is held back, for it may become one: hence the first byte that no message has."""
    data = b"\x00" + data
    handshake = ElectionHandshake(PROXY)
    assert b"".join(map(handshake, pieces(data, cuts))) == data


@pytest.mark.parametrize("length", [-1, 0, 2049, 2**31 - 1])
def test_a_length_that_no_address_has_is_no_such_message(length: int) -> None:
    data = struct.pack(">qqi", -65536, 3, length) + b"x" * 10
    assert ElectionHandshake(PROXY)(data) == data


def test_an_incomplete_message_waits_for_its_rest() -> None:
    handshake = ElectionHandshake(PROXY)
    whole = message(-65536, 2, b"127.0.0.1:3888")
    assert handshake(whole[:25]) == b""
    assert handshake(whole[25:]) == message(-65536, 2, b"127.0.0.1:40001")
