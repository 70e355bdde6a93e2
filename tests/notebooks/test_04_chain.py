"""What lesson 04 says, its run shows."""

from lessons_run import Lesson

LESSON = "04-chain"


def test_by_turns_the_chain_is_valid_and_a_link_can_be_recomputed(lesson: Lesson) -> None:
    assert lesson.shows("by-turns-verdict").startswith("Valid: 4 entries")
    holds, recomputed = (line.split()[-1] for line in lesson.shows("by-hand").splitlines())
    assert holds == recomputed


def test_all_at_once_the_chain_forks_and_the_verdict_names_the_place(lesson: Lesson) -> None:
    assert lesson.value("run.verdict.valid") is False
    first = lesson.value("n")
    assert lesson.value("run.verdict.anomalies[0].kind") == "fork"
    assert f"claim place {first}" in lesson.shows("run")


def test_the_tree_of_entries_branches_there(lesson: Lesson) -> None:
    assert lesson.has_figure("forks")
    assert lesson.shows("forks").startswith(f"The chain forks at {lesson.value('n')}")


def test_the_space_time_diagram_shows_the_claims(lesson: Lesson) -> None:
    assert lesson.has_figure("spacetime")
    assert f"claim place {lesson.value('n')}" in lesson.shows("spacetime")


def test_one_region_alone_writes_a_valid_chain(lesson: Lesson) -> None:
    assert lesson.value("alone.verdict.valid") is True


def test_the_model_solution_is_green(lesson: Lesson) -> None:
    assert lesson.answer(lesson.solution()).startswith("GREEN")


def test_a_verifier_that_forgets_gaps_is_red(lesson: Lesson) -> None:
    said = lesson.answer(
        "def first_anomaly(rows):\n"
        "    before = ROOT\n"
        "    for row in rows:\n"
        "        if row.hash != link(row.zk_id, row.node_id, before):\n"
        "            return row.zk_id\n"
        "        before = row.hash"
    )
    assert said.startswith("RED")
    assert "3 is missing" in said


def test_a_verifier_that_finds_nothing_is_red(lesson: Lesson) -> None:
    assert lesson.answer("def first_anomaly(rows):\n    return None").startswith("RED")
