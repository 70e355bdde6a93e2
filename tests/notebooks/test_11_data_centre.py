"""What lesson 11 says, its run shows."""

import pytest
from lessons_run import Lesson

LESSON = "11-data-centre"


def test_the_payments_that_no_replica_had_are_gone_and_named(lesson: Lesson) -> None:
    gone = lesson.value("list(found.loc[~found['still there'], 'which'])")
    assert gone == ["carol", "dave", "erin"]


def test_every_acknowledged_entry_is_there_after_the_promotion(lesson: Lesson) -> None:
    assert lesson.value("len(entries)") == 5
    assert lesson.value("{row.hash for row in entries} <= chain") is True
    assert lesson.value("has_payments") is False
    assert lesson.value("lab.verify().valid") is True


def test_the_figure_says_that_the_entries_came_back_after_the_loss(lesson: Lesson) -> None:
    assert lesson.shows("comeback").startswith("eu-west lost 4 entries with a disk; the log gave them back")
    assert lesson.has_figure("comeback")


def test_no_more_of_the_log_was_given_up_than_a_replica_had(lesson: Lesson) -> None:
    """Else the log might have been cut off where the promoted replica needed it."""
    log, primary, reported = (lesson.value(f"int(held.loc['eu-west', '{name}'])") for name in ("log", "primary", "reported"))
    assert primary == log, "the primary had all"
    assert lesson.value("bool(held['farthest replica'].isna()['eu-west'])") is True, "no replica answered"
    assert reported <= log - 4, "each of the four entries is one of the log"


def test_the_lost_primary_is_a_replica_afterwards(lesson: Lesson) -> None:
    assert "reads its primary's log" in lesson.shows("copy")


def test_what_a_deposed_primary_has_committed_nobody_reads(lesson: Lesson) -> None:
    said = lesson.shows("paused")
    assert "appended by eu-west-primary" in said
    assert "eu-west-replica-1 answers the intruder: committed" in said
    rows = [line.split() for line in lesson.shows("nobody").splitlines()[1:]]
    assert len(rows) == 9
    assert {(intruders, newest) for _, intruders, newest in rows} == {("0", "6")}


def test_the_report_of_a_deposed_primary_is_refused(lesson: Lesson) -> None:
    said = lesson.shows("fence")
    assert "refused: eu-west-replica-1: its term as primary is over" in said
    assert "believed" not in said


def test_the_others_go_on_while_a_region_is_lost_and_made_anew(lesson: Lesson) -> None:
    assert lesson.value("run.verdict.valid") is True
    assert "Valid" in lesson.shows("region")
    assert lesson.value("max(lag.behind['ap-south-primary'])") > 5, "they wrote what it lacked"
    assert lesson.value("min(run.acknowledged.values())") > 0
    assert lesson.shows("region-figure").startswith("ap-south-primary fell")
    assert lesson.has_figure("region-figure")


def test_what_durable_means_is_said_as_it_is(lesson: Lesson) -> None:
    durable = lesson.value("lab.backend.status().durable")
    assert f"loss of power: {durable}" in lesson.shows("durable")
    assert lesson.value("lab.sql('eu-west', 'show fsync')['fsync'][0]") == ("on" if durable else "off")


def test_it_leaves_every_server_at_work_in_its_first_role(lesson: Lesson) -> None:
    assert lesson.value("lab.backend.status().healthy") is True
    assert lesson.shows("restored").split("\n")[0] == "primaries: us-east-primary eu-west-primary ap-south-primary"


def test_the_model_solution_is_green(lesson: Lesson) -> None:
    assert lesson.answer(lesson.solution()).startswith("GREEN")


ANSWER = """
def safe_to_truncate(reports, terms):
    safe = {start}
    for region, epoch, primary, replicas in reports:
        if {believed}:
            safe[region] = {kept}
    return {least}
"""
RIGHT = {
    "start": "dict.fromkeys(terms, 0)",
    "believed": "epoch == terms[region]",
    "kept": "min(primary, max(replicas))",
    "least": "min(safe.values())",
}


@pytest.mark.parametrize(
    ("wrong", "because"),
    [
        ({"kept": "primary"}, "its best replica has 4"),
        ({"kept": "min(primary, *replicas)"}, "must not hold the log up"),
        ({"kept": "max(replicas)"}, "the primary was asked before its replicas"),
        ({"believed": "True"}, "whose primary is deposed"),
        ({"start": "{}"}, "it may need all of the log"),
        ({"least": "max(safe.values())"}, "still needs what is above 5"),
    ],
    ids=["primaries alone", "the slowest replica", "replicas alone", "a deposed primary", "a silent region", "the most"],
)
def test_a_wrong_answer_is_red_for_its_reason(lesson: Lesson, wrong: dict[str, str], because: str) -> None:
    said = lesson.answer(ANSWER.format(**RIGHT | wrong))
    assert said.startswith("RED")
    assert because in said
