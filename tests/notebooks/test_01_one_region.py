"""What lesson 01 says, its run shows."""

import re

from lessons_run import Lesson

LESSON = "01-one-region"


def test_a_held_replica_answers_with_old_rows(lesson: Lesson) -> None:
    had, wrote = re.findall(r"with (\d+) entries\nthe primary had (\d+)", lesson.shows("hold"))[0]
    assert int(had) < int(wrote)


def test_the_figure_names_the_replica_that_fell_behind(lesson: Lesson) -> None:
    assert lesson.has_figure("figure")
    assert lesson.shows("figure").startswith("us-east-replica-1 fell")


def test_a_busy_replica_misses_writes_and_a_position_cures_it(lesson: Lesson) -> None:
    assert lesson.value("missed") > 0
    assert lesson.value("missed_cured") == 0


def test_the_model_solution_is_green(lesson: Lesson) -> None:
    assert lesson.answer(lesson.solution()).startswith("GREEN")


def test_without_an_answer_the_checker_is_grey(lesson: Lesson) -> None:
    assert lesson.answer("def route(seen, replicas):\n    raise NotImplementedError").startswith("GREY")


def test_the_nearest_replica_whatever_it_has_is_red(lesson: Lesson) -> None:
    said = lesson.answer("def route(seen, replicas):\n    return replicas[0][0] if replicas else 'primary'")
    assert said.startswith("RED")
    assert "miss its own write" in said


def test_a_replica_that_must_be_beyond_what_was_seen_is_red(lesson: Lesson) -> None:
    said = lesson.answer(
        "def route(seen, replicas):\n    return next((n for n, at in replicas if at > seen), 'primary')"
    )
    assert said.startswith("RED")
    assert "exactly what was seen" in said
