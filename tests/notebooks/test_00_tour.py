"""What lesson 00 says, its run shows."""

import pytest
from lessons_run import Lesson

LESSON = "00-tour"


def test_every_server_answers(lesson: Lesson) -> None:
    assert "True" in lesson.shows("status")
    assert "False" not in lesson.shows("status")
    assert lesson.has_figure("world")


def test_what_two_regions_append_the_third_one_shows(lesson: Lesson) -> None:
    assert "us-east-primary" in lesson.shows("append")
    assert "ap-south-primary" in lesson.shows("append")


def test_the_naive_writers_leave_different_chains(lesson: Lesson) -> None:
    assert lesson.shows("naive").splitlines()[-1].startswith("Invalid: ")
    assert lesson.value("'fork' in naive.verdict.counts") is True
    assert lesson.value("different") is True
    assert lesson.has_figure("forks")


def test_the_causal_writers_leave_one_valid_chain(lesson: Lesson) -> None:
    assert lesson.shows("causal").splitlines()[-1].startswith("Valid: ")
    hashes = lesson.value("[lab.chain(region, 1)['hash'].item() for region in lab.regions]")
    assert len(hashes) == 3
    assert len(set(hashes)) == 1


def test_order_has_its_price(lesson: Lesson) -> None:
    assert lesson.value("naive.latency_ms() < causal.latency_ms()") is True
    assert lesson.has_figure("cost")


def test_without_an_answer_the_exercise_is_grey(lesson: Lesson) -> None:
    assert lesson.shows("check").startswith("GREY")


def test_the_model_solution_is_green(lesson: Lesson) -> None:
    assert lesson.answer(lesson.solution()).startswith("GREEN")


@pytest.mark.parametrize("text", ["{node_id}{before}", "{zk_id}{node_id}", "{zk_id} {node_id} {before}"])
def test_a_hash_of_something_else_is_red(lesson: Lesson, text: str) -> None:
    said = lesson.answer(
        f"def entry_hash(zk_id, node_id, before):\n    return hashlib.md5(f'{text}'.encode()).hexdigest()"
    )
    assert said.startswith("RED")
    assert "it is the MD5 of the text" in said
