"""What lesson 10 says, its run shows."""

from lessons_run import Lesson

LESSON = "10-sequencer"


def test_reading_and_writing_gives_a_number_twice(lesson: Lesson) -> None:
    twice = lesson.value("twice")
    assert twice
    assert f"given more than once: {', '.join(map(str, twice))}" in lesson.shows("judge-first")


def test_compare_and_set_is_valid(lesson: Lesson) -> None:
    assert lesson.value("second.valid") is True


def test_with_lost_replies_compare_and_set_is_safe_but_not_alive(lesson: Lesson) -> None:
    assert lesson.value("third.valid") is not False
    assert lesson.value("counts['ok'] < counts['fail'] + counts['info']")


def test_the_model_solution_is_green(lesson: Lesson) -> None:
    assert lesson.answer(lesson.solution()).startswith("GREEN")


def test_no_answer_is_grey(lesson: Lesson) -> None:
    answer = "class MySequencer(CompareAndSet):\n    def take(self, request_id):\n        raise NotImplementedError"
    assert lesson.answer(answer).startswith("GREY")


def test_compare_and_set_alone_is_red(lesson: Lesson) -> None:
    said = lesson.answer("MySequencer = CompareAndSet")
    assert said.startswith("RED")
    assert "replies that get lost" in said


def test_read_and_write_is_red(lesson: Lesson) -> None:
    assert lesson.answer("MySequencer = ReadAndWrite").startswith("RED")
