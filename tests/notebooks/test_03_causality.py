"""What lesson 03 says, its run shows."""

import re

from lessons_run import Lesson

LESSON = "03-causality"


def test_with_healthy_links_nobody_sees_the_answer_first(lesson: Lesson) -> None:
    assert lesson.value("inversions(calm)") == []


def test_over_a_slow_link_the_replica_shows_the_answer_first(lesson: Lesson) -> None:
    assert lesson.value("list(seen['the page shows'])")[:2] == ["nothing", "answer-2"]
    assert re.findall(r"^\d+ +(\S+)", lesson.shows("rows"), re.MULTILINE) == ["answer-2"]


def test_the_databases_own_times_say_so_too(lesson: Lesson) -> None:
    earlier, later, region, by = lesson.value("inversions(slow)")[0]
    assert (earlier, later, region) == ("question-2", "answer-2", "ap-south")
    assert 0 < by < 700
    assert lesson.has_figure("slow-figure")
    assert lesson.shows("slow-figure").startswith("ap-south shows answer-2")


def test_the_checker_finds_the_hole_and_names_the_entry(lesson: Lesson) -> None:
    assert lesson.value("judgement.valid") is False
    assert "shows entry 2" in lesson.shows("judgement")
    assert "without entry 1" in lesson.shows("judgement")


def test_a_reader_who_waits_for_causes_sees_no_hole(lesson: Lesson) -> None:
    assert lesson.value("cured_judgement.valid") is True
    assert "answer-3" not in lesson.value("list(cured['the page shows'])")


def test_cause_and_effect_are_ordered_and_tea_is_concurrent(lesson: Lesson) -> None:
    reaches = "__import__('networkx').has_path(causes(events, messages), {!r}, {!r})"
    assert lesson.value(reaches.format("Alice asks", "Bob answers"))
    assert not lesson.value(reaches.format("Alice makes tea", "Bob answers"))
    assert not lesson.value(reaches.format("Bob answers", "Alice makes tea"))
    assert lesson.has_figure("graph")


def test_the_model_solution_is_green(lesson: Lesson) -> None:
    assert lesson.answer(lesson.solution()).startswith("GREEN")


def test_to_look_only_at_the_direct_cause_is_red(lesson: Lesson) -> None:
    said = lesson.answer(
        "def visible(comments):\n"
        "    here = {c['id'] for c in comments}\n"
        "    return [c['id'] for c in comments if c['reply_to'] is None or c['reply_to'] in here]"
    )
    assert said.startswith("RED")


def test_to_show_only_what_arrived_in_order_is_red(lesson: Lesson) -> None:
    said = lesson.answer(
        "def visible(comments):\n"
        "    shown = []\n"
        "    for c in comments:\n"
        "        if c['reply_to'] is None or c['reply_to'] in shown:\n"
        "            shown.append(c['id'])\n"
        "    return shown"
    )
    assert said.startswith("RED")
    assert "You hide it" in said


def test_to_show_nothing_is_red(lesson: Lesson) -> None:
    assert lesson.answer("def visible(comments):\n    return []").startswith("RED")
