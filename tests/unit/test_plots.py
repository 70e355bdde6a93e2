"""Figures say what their data says."""

from __future__ import annotations

import networkx as nx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from matplotlib.colors import to_rgb
from matplotlib.text import Text

from pghc.chain import Row, extend, link
from pghc.lab import colours, plots
from pghc.lab.plots import Message, Rung
from pghc.topology import load

REGIONS = load().names
US, EU, AP = (f"{name}-primary" for name in REGIONS)
COMMENT = Message("comment", "us-east", {"us-east": 0, "eu-west": 42, "ap-south": 520})
REPLY = Message("reply", "eu-west", {"eu-west": 60, "us-east": 101, "ap-south": 126})


def test_an_inversion_is_where_the_later_write_is_seen_first() -> None:
    assert plots.inversions([COMMENT, REPLY]) == [("comment", "reply", "ap-south", 394)]


def test_a_write_that_never_comes_is_late_for_ever() -> None:
    lost = Message("comment", "us-east", {"us-east": 0})
    assert ("comment", "reply", "ap-south", float("inf")) in plots.inversions([lost, REPLY])
    assert plots.spacetime(REGIONS, [lost, REPLY]).heading.endswith("has not seen comment")


def test_the_heading_of_a_space_time_diagram_is_its_conclusion() -> None:
    assert plots.spacetime(REGIONS, [COMMENT, REPLY]).heading == "ap-south shows reply 394 ms before comment"
    orderly = Message("reply", "eu-west", {"eu-west": 60, "us-east": 101, "ap-south": 600})
    assert plots.spacetime(REGIONS, [COMMENT, orderly]).heading == "Every region saw the writes in the same order"
    assert plots.spacetime(REGIONS, []).heading == "Nothing was written"


def test_readers_of_a_prefix_see_a_write_only_when_all_before_it_have_come() -> None:
    comment, reply = plots.shown([COMMENT, REPLY])
    assert (comment, reply.seen) == (COMMENT, {**REPLY.seen, "ap-south": 520})
    lost = Message("comment", "us-east", {"us-east": 0, "eu-west": 42})
    assert plots.shown([lost, REPLY])[1].seen == {"eu-west": 60, "us-east": 101}


def test_a_writer_that_did_not_wait_is_not_excused_by_its_readers() -> None:
    hasty = Message("reply", "eu-west", {"eu-west": 30, "us-east": 71, "ap-south": 600})
    assert plots.inversions(plots.shown([COMMENT, hasty])) == [("comment", "reply", "eu-west", 12)]


def test_the_offending_pair_and_no_other_is_red() -> None:
    third = Message("third", "us-east", {"us-east": 700, "eu-west": 740, "ap-south": 800})
    axes = plots.spacetime(REGIONS, [COMMENT, REPLY, third]).axes[0]
    red = {text.get_text() for text in axes.texts if text.get_color() == colours.RED}
    assert {"comment", "reply", "reply arrives", "comment arrives"} == red - {""}


def test_log_times_add_a_lane_for_the_log() -> None:
    logged = Message("1", "us-east", {"us-east": 80}, logged=40)
    labels = [tick.get_text() for tick in plots.spacetime(REGIONS, [logged]).axes[0].get_yticklabels()]
    assert labels[0] == "ZooKeeper's log"


LOST = [
    Message(str(n), "eu-west", {"eu-west": 100 * n, "us-east": 100 * n + 40, "ap-south": 100 * n + 65}, 100 * n - 80)
    for n in (1, 2)
]


def test_what_a_lost_primary_had_came_back_from_the_log_or_is_named() -> None:
    back = plots.comeback(REGIONS, "eu-west", LOST, {"1": 2500.0, "2": 2500.0}, 1000, 2000)
    assert back.heading == "eu-west lost 2 entries with a disk; the log gave them back 1.5 s later"
    gone = plots.comeback(REGIONS, "eu-west", LOST, {"1": 2500.0}, 1000, 2000)
    assert gone.heading == "eu-west lost for good, with its primary's disk: 2"
    assert "2 written 0.8 s before the loss, never back" in gone.alt
    kept = plots.comeback(REGIONS, "eu-west", LOST, {"1": 100.0, "2": 200.0}, 1000, 2000)
    assert kept.heading == "A replica of eu-west had all that its primary lost"


def test_in_the_figure_of_a_lost_primary_only_what_is_lost_is_red() -> None:
    def red(returned: dict[str, float]) -> set[str]:
        axes = plots.comeback(REGIONS, "eu-west", LOST, returned, 1000, 2000).axes[0]
        return {text.get_text() for text in axes.texts if text.get_color() == colours.RED and text.get_text()}

    assert red({"1": 2500.0, "2": 2500.0}) == {"primary and disk lost"}
    assert red({"1": 2500.0}) == {"primary and disk lost", "2"}


def test_labels_of_entries_that_were_written_at_about_the_same_time_are_one_label() -> None:
    axes = plots.comeback(REGIONS, "eu-west", LOST, {"1": 9000.0, "2": 9000.0}, 5000, 6000).axes[0]
    assert "1 to 2" in {text.get_text() for text in axes.texts}


def test_ancestry_follows_the_hashes() -> None:
    one, two, three = extend(None, [US, EU, AP])
    graph = plots.ancestry([three, one, two])
    assert set(graph.edges) == {(one, two), (two, three)}
    assert not any(skips for _, _, skips in graph.edges(data="skips"))


def test_ancestry_shows_an_entry_made_after_the_wrong_one() -> None:
    one, two = extend(None, [US, EU])
    stray = Row(3, AP, link(3, AP, one.hash))
    graph = plots.ancestry([one, two, stray])
    assert graph.edges[one, stray]["skips"]
    assert plots.fork_tree([one, two, stray]).heading.startswith("The chain breaks at 3")


@settings(max_examples=15, deadline=None)  # each draws two figures
@given(st.lists(st.sampled_from([US, EU, AP]), min_size=1, max_size=12), st.data())
def test_a_fork_is_named_where_the_branches_part(nodes: list[str], data: st.DataObject) -> None:
    chain = list(extend(None, nodes))
    place = data.draw(st.integers(0, len(chain) - 1))
    other = next(node for node in (US, EU, AP) if node != chain[place].node_id)
    branch = next(iter(extend(chain[place - 1] if place else None, [other])))
    assert plots.fork_tree([*chain, branch]).heading == f"The chain forks at {place + 1}: 2 entries claim one place"
    assert plots.fork_tree(chain).heading.startswith("One chain")


def test_happens_before_has_the_order_of_each_lane_and_the_messages() -> None:
    events = [("asks", "alice"), ("drinks tea", "alice"), ("reads", "bob"), ("answers", "bob")]
    graph = plots.causes(events, [("asks", "reads")])
    assert nx.has_path(graph, "asks", "answers")
    assert not nx.has_path(graph, "drinks tea", "answers")
    figure = plots.happens_before(["alice", "bob"], events, [("asks", "reads")])
    assert figure.heading == "4 of 6 pairs of events are ordered, 2 are concurrent"


def test_the_map_compares_with_light_in_a_fibre() -> None:
    topology = load()
    assert plots.kilometres(topology, "us-east", "eu-west") == pytest.approx(5450, rel=0.02)
    assert plots.floor_ms(topology, "us-east", "eu-west") == pytest.approx(54.5, rel=0.02)
    figure = plots.world(topology, {("us-east", "eu-west"): 81, ("us-east", "ap-south"): 191})
    assert figure.heading == "A question from us-east to ap-south is answered after 191 ms"
    assert "eu-west to ap-south not reached" in figure.alt


def test_no_delay_of_the_lab_is_less_than_light_needs() -> None:
    topology = load()
    for one, other in topology.pairs:
        assert topology.round_trip_ms(one, other) > plots.floor_ms(topology, one, other)


def test_lag_names_the_server_that_fell_behind_most() -> None:
    assert plots.lag([0, 1], {"a": [0, 3], "b": [1, 40]}).heading == "b fell 40 entries behind"
    assert plots.lag([0, 1], {"a": [0, 0]}).heading == "No server fell behind"


def test_latencies_are_compared_with_the_floor() -> None:
    figure = plots.latencies({"slow": [400, 500, 600], "fast": [90, 96, 100]}, 80, "round trip")
    assert figure.heading == "fast answers after 96 ms, 1.2 times what the distance allows"
    alone = plots.latencies({"alone": [2, 3, 4]}, 80, "round trip")
    assert alone.heading == "alone answers after 3 ms: too soon to have asked another region"
    assert plots.latencies({}, 80, "round trip").heading == "Nothing was measured"


def test_the_ladder_compares_only_those_that_are_right() -> None:
    rungs = [Rung("naive", 9000, 1, False), Rung("locked", 5, 500, True), Rung("broadcast", 5000, 90, True)]
    assert plots.ladder(rungs).heading == "Of the right ones, broadcast is 1,000 times as fast as locked"
    assert plots.ladder(rungs[:1]).heading == "No writer is right"
    assert plots.ladder(rungs[:2]).heading == "Only locked is right"


def test_no_label_of_the_ladder_leaves_the_picture_and_like_is_compared_with_like() -> None:
    slow = [Rung("single primary (eu-west), synchronous", 1.5, 571, True), Rung("locked", 6.6, 470, True)]
    fast = [Rung("naive", 123_456.7, 1, False), Rung("broadcast", 58_148, 482, True)]
    for plot in (plots.ladder(slow + fast), plots.ladders({"one in flight": slow, "10,000 in each region": fast})):
        plot.draw_without_rendering()
        texts = plot.findobj(lambda each: isinstance(each, Text) and each.get_text() and each.get_visible())
        assert len(texts) > 8
        for text in texts:
            box = text.get_window_extent()
            assert plot.bbox.x0 <= box.x0 < box.x1 <= plot.bbox.x1, text
            assert plot.bbox.y0 <= box.y0 < box.y1 <= plot.bbox.y1, text
    titles = [" ".join(axes.get_title().split()) for axes in plot.axes]
    assert titles[0].endswith("locked is 4.4 times as fast as single primary (eu-west), synchronous")
    assert titles[1].endswith("Only broadcast is right")


def test_a_figure_shows_itself_with_its_text_alternative() -> None:
    data, metadata = plots.lag([0, 1], {"a": [0, 3]})._repr_mimebundle_()
    assert data["text/plain"].startswith("a fell 3 entries behind. ")
    assert metadata["image/png"]["alt"] == data["text/plain"]


def test_colours_differ_in_lightness_or_marker_so_that_print_tells_them_apart() -> None:
    def lightness(colour: str) -> float:
        red, green, blue = to_rgb(colour)
        return 0.2126 * red + 0.7152 * green + 0.0722 * blue

    assert len(set(colours.MARKERS)) == len(colours.COLOURS) == len(colours.STYLES)
    for one, other in zip(colours.COLOURS, colours.COLOURS[1:], strict=False):
        assert abs(lightness(one) - lightness(other)) > 0.08
