"""Axes hold what they were given, in round percent; a legend's lines end where a name may."""

import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from wuskern.train import axes


def drawn(accuracies):
    figure, panels = axes.new_figure(1, 1, panel_height=4)
    panels[0, 0].plot(range(len(accuracies)), accuracies)
    axes.accuracy_axes(panels[0], accuracies)
    axes.seconds_axis(panels[0, 0])
    return figure, panels[0, 0]


def shown(axis, low, high):
    ticks = [tick for tick in axis.get_major_ticks() if low <= tick.get_loc() <= high]
    return [tick.label1.get_text() for tick in ticks], [tick.label1.get_window_extent() for tick in ticks]


@settings(max_examples=20)
@given(st.lists(st.floats(0, 1), min_size=1, max_size=5))
def test_every_accuracy_is_inside_and_the_ticks_are_percent(accuracies):
    figure, panel = drawn(accuracies)
    low, high = panel.get_ylim()
    assert low < min(accuracies)
    assert high > max(accuracies)
    figure.draw_without_rendering()
    texts, boxes = shown(panel.yaxis, low, high)
    assert 2 <= len(texts) <= axes.TICKS + 1
    assert all(text.endswith(" %") and 0 <= float(text[:-2]) <= 100 for text in texts)
    assert len(set(texts)) == len(texts)
    assert not any(box.overlaps(other) for box, other in itertools.pairwise(boxes))
    texts, _ = shown(panel.xaxis, *panel.get_xlim())
    assert texts
    assert all(text.endswith(" s") for text in texts)


@pytest.mark.parametrize(
    ("low", "high", "ticks"),
    [
        (0.09, 0.995, [0.1, 0.5, 0.8, 0.9, 0.95, 0.98]),
        (0.269, 0.291, [0.27, 0.275, 0.28, 0.285, 0.29]),
        (-0.1, 0.1, [0, 0.05, 0.1]),
    ],
)
def test_ticks_are_round(low, high, ticks):
    assert axes.ticks_between(low, high) == pytest.approx(ticks)


def test_what_is_not_finite_has_no_place():
    _, panel = drawn([float("nan"), 0.5, 0.9])
    assert 0.4 < panel.get_ylim()[0] < 0.5


@pytest.mark.parametrize(
    "name", ["wus", "an epoch that skips weight gradients", "12  " + "+".join(["sieve:keep=.7:interval=2"] * 5)]
)
def test_a_long_name_is_folded_and_loses_nothing(name):
    lines = axes._folded(name).split("\n")
    assert max(map(len, lines)) <= axes.LETTERS
    assert "".join(lines).replace(" ", "") == name.replace(" ", "")
    assert all(line[0] in ":+" or name[name.index(line) - 1] == " " for line in lines[1:])
