"""What lesson 06 says, its run shows."""

import re

from lessons_run import Lesson

LESSON = "06-total-order"

WRITER = """
class Mine(Numbered):
    ordered = True

    def append(self, request_id, timeout=10.0):
        number = self.sequencer.take(Entry(self.node_id, (request_id,)), timeout) - self.base
        {wait}
        last = self.store.last()
        row = Row(number, self.node_id, link(number, self.node_id, last.hash if last else ROOT))
        self.store.insert(row, request_id, self.base)
        return row
"""


def test_numbers_taken_at_once_are_all_different_and_none_is_missing(lesson: Lesson) -> None:
    assert lesson.value("[number for number, _, _ in taken]") == [1, 2, 3, 4, 5, 6]


def test_numbers_alone_give_no_forks_but_hashes_of_the_wrong_entry(lesson: Lesson) -> None:
    counts = lesson.value("dict(numbered.verdict.counts)")
    assert lesson.value("numbered.verdict.valid") is False
    assert "link" in counts
    assert "fork" not in counts


def test_the_figure_shows_an_entry_that_was_written_before_the_one_below_it_arrived(lesson: Lesson) -> None:
    assert lesson.has_figure("spacetime-numbered")
    heading = lesson.shows("spacetime-numbered")
    assert re.match(r"\S+ wrote entry \d+ (\d+ ms before|as if)", heading)
    assert "breaks" in lesson.shows("forks-numbered")


def test_numbered_rows_arrive_out_of_order_over_a_slow_link(lesson: Lesson) -> None:
    assert re.search(r"\d +2$", lesson.shows("story"), re.MULTILINE)


def test_number_and_wait_is_valid(lesson: Lesson) -> None:
    assert lesson.value("causal.verdict.valid") is True
    assert lesson.shows("forks-causal").startswith("One chain")
    assert lesson.shows("spacetime-causal").startswith("Every region saw every entry after those before it")


def test_a_prefix_never_shows_the_answer_alone(lesson: Lesson) -> None:
    assert not re.search(r"\d +2$", lesson.shows("story-causal"), re.MULTILINE)
    assert "1, 2" in lesson.shows("story-causal")


def test_waiting_costs_time(lesson: Lesson) -> None:
    assert lesson.value("causal.latency_ms() > numbered.latency_ms()")


def test_the_wait_for_predecessors_takes_longer_than_the_insert(lesson: Lesson) -> None:
    waited, inserted = lesson.value("[steps['waited'], steps['inserted']]")
    assert waited > 10, "a writer that does not wait but asks again and again shows a few milliseconds"
    assert waited > inserted


def test_the_model_solution_is_green(lesson: Lesson) -> None:
    assert lesson.answer(lesson.solution()).startswith("GREEN")


def test_no_wait_is_red_and_names_the_entry(lesson: Lesson) -> None:
    said = lesson.answer(WRITER.format(wait="pass"))
    assert said.startswith("RED")
    assert re.search(r"entry \d+ of ", said)


def test_waiting_for_oneself_is_red(lesson: Lesson) -> None:
    wait = "if self.store.wait_for(self.base + number, 2).position < self.base + number: raise TimeoutError('no')"
    assert lesson.answer(WRITER.format(wait=wait)).startswith("RED")
