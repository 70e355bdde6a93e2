"""The hash chain, against its definition and against `md5sum`."""

from __future__ import annotations

import shutil
import subprocess
from hashlib import md5
from itertools import takewhile

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pghc.chain import NODE_ID, ROOT, Row, extend, link, successor

LETTERS = "abcdefghijklmnopqrstuvwxyz"
NODE_IDS = st.builds(str.__add__, st.sampled_from(LETTERS), st.text(LETTERS + "0123456789-", max_size=30))
HASHES = st.text("0123456789abcdef", min_size=32, max_size=32)
#: What an entry's hash is made of; only the first has no hash before it.
INPUTS = st.tuples(st.integers(2, 1 << 62), NODE_IDS, HASHES) | st.tuples(st.just(1), NODE_IDS, st.just(ROOT))


def md5_of(text: str) -> str:
    return md5(text.encode(), usedforsecurity=False).hexdigest()


@pytest.mark.skipif(not shutil.which("md5sum"), reason="there is no md5sum")
def test_a_chain_is_what_md5sum_makes_of_it() -> None:
    previous = ""
    for row in extend(None, ["us-east-primary", "eu-west-primary", "a", "ap-south-primary", "z" + "9-" * 15] * 3):
        text = f"{row.zk_id}{row.node_id}{previous}"
        answer = subprocess.run(["md5sum"], input=text, capture_output=True, text=True, check=True, timeout=10)
        assert row.hash == answer.stdout.split()[0]
        previous = row.hash


def test_the_first_entries_are_these() -> None:
    first, second = extend(None, ["us-east-primary", "eu-west-primary"])
    assert first == Row(1, "us-east-primary", md5_of("1us-east-primary"))
    assert second == Row(2, "eu-west-primary", md5_of("2eu-west-primary" + first.hash))


@given(INPUTS, INPUTS)
def test_no_two_inputs_join_to_the_same_text(one: tuple[int, str, str], other: tuple[int, str, str]) -> None:
    assert ("{}{}{}".format(*one) == "{}{}{}".format(*other)) == (one == other)


@given(INPUTS)
def test_the_inputs_can_be_told_from_the_text(inputs: tuple[int, str, str]) -> None:
    text = "{}{}{}".format(*inputs)
    zk_id = int("".join(takewhile(str.isdigit, text)))
    previous = text[-32:] if zk_id > 1 else ROOT
    assert (zk_id, text[len(str(zk_id)) : len(text) - len(previous)], previous) == inputs


@pytest.mark.parametrize("name", ["a", "us-east-primary", "a-", "z" * 31])
def test_these_are_node_ids(name: str) -> None:
    assert NODE_ID.fullmatch(name)


@pytest.mark.parametrize("name", ["", "7a", "-a", "A", "a_b", "a b", "a\n", "é", "z" * 32])
def test_these_are_no_node_ids(name: str) -> None:
    assert not NODE_ID.fullmatch(name)


@given(st.lists(NODE_IDS, max_size=8), st.lists(NODE_IDS, max_size=8))
def test_a_chain_may_be_extended_in_pieces(some: list[str], more: list[str]) -> None:
    begun = list(extend(None, some))
    assert begun + list(extend(begun[-1] if begun else None, more)) == list(extend(None, some + more))


@given(st.lists(NODE_IDS, min_size=1, max_size=8))
def test_each_entry_is_linked_to_the_one_before_and_numbers_have_no_gap(names: list[str]) -> None:
    previous = ROOT
    for number, row in enumerate(extend(None, names), 1):
        assert row == (number, names[number - 1], link(number, names[number - 1], previous))
        previous = row.hash


def test_the_successor_of_an_entry_depends_on_nothing_else() -> None:
    last = Row(41, "x", "0" * 32)
    assert successor(last, "a") == Row(42, "a", md5_of("42a" + "0" * 32))
