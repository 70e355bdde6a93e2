"""What lesson 02 says, its run shows."""

from lessons_run import Lesson

LESSON = "02-many-masters"


def test_both_regions_sold_the_same_seat_and_disagree_for_good(lesson: Lesson) -> None:
    owners = lesson.value("sold[sold['id'] == 'seat-2']['author'].to_dict()")
    assert owners["us-east"] == "alice"
    assert owners["eu-west"] == "bob"


def test_a_row_that_nobody_disputes_waits_behind_the_conflict(lesson: Lesson) -> None:
    assert lesson.shows("missing") == "{'us-east': True, 'eu-west': False, 'ap-south': False}"


def test_the_databases_count_the_conflicts_again_and_again(lesson: Lesson) -> None:
    assert lesson.value("int(after['conflicts'].sum())") > lesson.value("int(before['conflicts'].sum())") > 0


def test_after_the_repair_all_regions_hold_the_same(lesson: Lesson) -> None:
    held = lesson.shows("repair")
    assert "bob" not in held
    assert held.count("seat-3") == 3


def test_the_chain_forks_in_the_same_way(lesson: Lesson) -> None:
    assert lesson.value("run.verdict.valid") is False
    assert lesson.value("'diverged' in run.verdict.counts")


def test_with_one_home_for_each_seat_the_second_buyer_is_refused(lesson: Lesson) -> None:
    said = lesson.shows("cure")
    assert "seat 10: alice" in said
    assert "seat 10: no, bob, sold already by eu-west" in said


def test_the_model_solution_is_green(lesson: Lesson) -> None:
    assert lesson.answer(lesson.solution()).startswith("GREEN")


def test_deleting_the_disputed_seat_everywhere_is_red(lesson: Lesson) -> None:
    said = lesson.answer(
        "def to_delete(tables, winners):\n"
        "    return {r: {s for s in table if s in winners} for r, table in tables.items()}"
    )
    assert said.startswith("RED")
    assert "winner's own row" in said


def test_deleting_nothing_is_red(lesson: Lesson) -> None:
    assert lesson.answer("def to_delete(tables, winners):\n    return {}").startswith("RED")
