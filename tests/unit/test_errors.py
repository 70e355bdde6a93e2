"""What an error says, and whether the write happened."""

from __future__ import annotations

import pickle

import pytest

from pghc import errors
from pghc.errors import Behind, ClusterError, Conflict, Indefinite, NotRunning, PghcError, Unavailable

ALL = [kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, PghcError)]


def test_only_an_indefinite_write_may_have_happened() -> None:
    assert [kind for kind in ALL if not kind.definite] == [Indefinite]


@pytest.mark.parametrize("kind", [Unavailable, Conflict, Behind, Indefinite, ClusterError])
def test_every_error_can_be_caught_as_one_of_ours(kind: type[PghcError]) -> None:
    with pytest.raises(PghcError):
        raise kind("x")


def test_a_cluster_that_does_not_run_is_a_cluster_error() -> None:
    assert issubclass(NotRunning, ClusterError)


def test_an_error_says_what_was_attempted_then_what_to_do() -> None:
    assert str(Unavailable("us-east-primary is silent", "Is it up?")) == "us-east-primary is silent. Is it up?"
    assert str(Unavailable("us-east-primary is silent")) == "us-east-primary is silent"


@pytest.mark.parametrize("kind", ALL)
def test_an_error_survives_the_way_from_another_process(kind: type[PghcError]) -> None:
    error = pickle.loads(pickle.dumps(kind("what", "remedy", node="us-east-primary")))  # noqa: S301 - our own pickle
    assert type(error) is kind
    assert (error.what, error.remedy, error.node, str(error)) == ("what", "remedy", "us-east-primary", "what. remedy")


def test_every_error_stands_in_the_tree_of_the_docstring() -> None:
    tree = errors.__doc__ or ""
    assert [kind.__name__ for kind in ALL if kind.__name__ not in tree] == []
