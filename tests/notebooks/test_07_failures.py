"""What lesson 07 says, its run shows."""

from lessons_run import Lesson

LESSON = "07-failures"


def test_a_death_leaves_a_hole_with_numbers_alone(lesson: Lesson) -> None:
    assert lesson.value("numbered.verdict.valid") is False
    assert "gap" in lesson.value("dict(numbered.verdict.counts)")


def test_others_complete_the_dead_writers_entry(lesson: Lesson) -> None:
    assert lesson.value("causal.verdict.valid") is True
    assert lesson.shows("death-verdict").startswith("Valid")


def test_the_same_request_in_two_regions_is_one_entry(lesson: Lesson) -> None:
    assert lesson.value("first == again")


def test_lost_replies_make_no_append_stand_twice(lesson: Lesson) -> None:
    assert lesson.value("lossy.verdict.valid") is True
    assert lesson.value("lossy.appends") > 0
    assert lesson.value("int(positions['entries'][0])") >= lesson.value("lossy.appends")
    assert lesson.value("int(positions['positions'][0])") > 0


def test_under_a_partition_nothing_wrong_is_said_and_the_region_catches_up(lesson: Lesson) -> None:
    assert lesson.value("parted.verdict.valid") is True
    assert lesson.shows("partition-figure").startswith("us-east-primary fell")
    assert lesson.has_figure("partition-figure")


def test_the_model_solution_is_green(lesson: Lesson) -> None:
    assert lesson.answer(lesson.solution()).startswith("GREEN")


ATTEMPTS = """
def append_once(append, new_id, tries):
    {before}
    for attempt in range(tries):
        try:
            return append({id})
        except {errors}:
            if attempt == tries - 1:
                raise
"""


def test_a_new_id_for_each_attempt_is_red(lesson: Lesson) -> None:
    said = lesson.answer(ATTEMPTS.format(before="pass", id="new_id()", errors="(Unavailable, Conflict, Indefinite)"))
    assert said.startswith("RED")
    assert "stands 2 times" in said


def test_giving_up_when_it_is_not_known_is_red(lesson: Lesson) -> None:
    said = lesson.answer(ATTEMPTS.format(before="one = new_id()", id="one", errors="(Unavailable, Conflict)"))
    assert said.startswith("RED")
    assert "you give up" in said
