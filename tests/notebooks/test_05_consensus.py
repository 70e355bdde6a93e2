"""What lesson 05 says, its run shows."""

from lessons_run import Lesson

LESSON = "05-consensus"


def test_another_server_leads_and_numbers_go_on_without_repeats(lesson: Lesson) -> None:
    assert lesson.value("now_leads") != lesson.value("fallen")
    assert lesson.value("number > 0 and outage < 30")
    assert lesson.value("last_before") < lesson.value("int(number)")


def test_a_minority_gets_no_number_and_the_majority_does(lesson: Lesson) -> None:
    assert lesson.value("cut_off") == []
    majority = lesson.value("majority")
    assert majority
    assert len(set(majority)) == len(majority)


def test_the_region_goes_on_by_itself_with_a_larger_number(lesson: Lesson) -> None:
    assert lesson.value("number") > lesson.value("max(majority)")


def test_the_table_of_quorums(lesson: Lesson) -> None:
    assert "may fail  0  0  1  1  2  2  3" in lesson.shows("table")


def test_the_model_solution_is_green(lesson: Lesson) -> None:
    assert lesson.answer(lesson.solution()).startswith("GREEN")


def test_the_largest_group_is_red(lesson: Lesson) -> None:
    said = lesson.answer("def may_go_on(groups, total):\n    return max(groups, key=len, default=None)")
    assert said.startswith("RED")


def test_half_of_the_servers_is_red(lesson: Lesson) -> None:
    said = lesson.answer(
        "def may_go_on(groups, total):\n    return next((g for g in groups if len(g) >= total / 2), None)"
    )
    assert said.startswith("RED")
    assert "both halves would decide" in said
