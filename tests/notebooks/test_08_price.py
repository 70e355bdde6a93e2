"""What lesson 08 says, its run shows. Rates are compared only where orders of magnitude lie between them."""

from lessons_run import Lesson

LESSON = "08-price"


def test_the_map_gives_the_measured_round_trips(lesson: Lesson) -> None:
    assert lesson.has_figure("setup")
    assert "us-east to eu-west" in lesson.shows("setup")


def test_the_first_two_are_wrong_and_the_others_right(lesson: Lesson) -> None:
    verdicts = lesson.value("{run.writer: run.verdict.valid for run in runs}")
    assert verdicts == {"naive": False, "numbered": False, "locked": True, "causal": True, "broadcast": True}


def test_broadcast_is_far_faster_than_the_lock(lesson: Lesson) -> None:
    assert lesson.value("factor") > 50
    assert lesson.shows("ladder").startswith("Of the right ones, broadcast is")


def test_nobody_is_faster_than_the_distance_allows(lesson: Lesson) -> None:
    assert lesson.value("measured[leader]") >= lesson.value(
        "min(lab.topology.round_trip_ms(leader, other) for other in lab.regions if other != leader)"
    )
    assert lesson.has_figure("single")


def test_more_appends_in_flight_are_more_appends_a_second(lesson: Lesson) -> None:
    rates = lesson.value("[depths[depth].rate for depth in (1, 100, 5000)]")
    assert rates == sorted(rates)


def test_causal_appends_that_wait_together_share_and_their_rate_grows(lesson: Lesson) -> None:
    alone, crowd = lesson.value("[crowds[clients].rate for clients in (1, 64)]")
    assert crowd > 5 * alone
    assert lesson.value("crowds[64].verdict.valid") is True


def test_the_wait_for_predecessors_takes_longer_than_the_insert(lesson: Lesson) -> None:
    waited, inserted = lesson.value("[steps['waited'], steps['inserted']]")
    assert waited > 5, "a writer that does not wait but asks again and again shows a few milliseconds"
    assert waited > inserted


def test_the_model_solution_is_green(lesson: Lesson) -> None:
    assert lesson.answer(lesson.solution()).startswith("GREEN")


def test_the_farthest_server_is_red(lesson: Lesson) -> None:
    said = lesson.answer(
        "def least_ms(region, leader, regions, delay):\n"
        "    return 2 * delay(region, leader) + max((2 * delay(leader, o) for o in regions), default=0)"
    )
    assert said.startswith("RED")


def test_only_the_way_to_the_leader_is_red(lesson: Lesson) -> None:
    said = lesson.answer("def least_ms(region, leader, regions, delay):\n    return 2 * delay(region, leader)")
    assert said.startswith("RED")
