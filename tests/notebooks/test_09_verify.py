"""What lesson 09 says, its run shows."""

from lessons_run import Lesson

LESSON = "09-verify"


def test_the_untouched_chain_is_valid_by_both_ways(lesson: Lesson) -> None:
    assert lesson.value("n") > 2000  # "many thousands"
    assert lesson.value("[fetched.valid, in_place.valid]") == [True, True]


def test_a_changed_entry_is_named(lesson: Lesson) -> None:
    assert lesson.value("caught.valid") is False
    assert lesson.value("caught.anomalies[0].zk_id") == lesson.value("k")


def test_with_its_hash_mended_the_next_one_offends(lesson: Lesson) -> None:
    assert lesson.value("moved.anomalies[0].zk_id") == lesson.value("k") + 1


def test_all_hashes_made_anew_are_valid_alone_and_differ_from_the_others(lesson: Lesson) -> None:
    assert lesson.value("alone.valid") is True
    assert lesson.value("compared.valid") is False
    assert lesson.value("compared.anomalies[0].zk_id") == lesson.value("k")


def test_an_empty_chain_is_unknown(lesson: Lesson) -> None:
    assert lesson.shows("clean").startswith("Unknown")


def test_the_model_solution_is_green(lesson: Lesson) -> None:
    assert lesson.answer(lesson.solution()).startswith("GREEN")


def test_asking_for_every_entry_is_red(lesson: Lesson) -> None:
    said = lesson.answer(
        "def first_difference(ours, theirs, n):\n"
        "    return next((k for k in range(1, n + 1) if ours(k) != theirs(k)), None)"
    )
    assert said.startswith("RED")
    assert "are enough" in said


def test_forgetting_equal_chains_is_red(lesson: Lesson) -> None:
    said = lesson.answer(
        "def first_difference(ours, theirs, n):\n"
        "    low, high = 1, n\n"
        "    while low < high:\n"
        "        middle = (low + high) // 2\n"
        "        low, high = (middle + 1, high) if ours(middle) == theirs(middle) else (low, middle)\n"
        "    return low"
    )
    assert said.startswith("RED")
