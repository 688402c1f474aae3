"""Pictures of a set of runs: test accuracy over training time, by seed, and the front of the best trades of time for accuracy.

Accuracies are drawn by the logarithm of the error, so that ends, which are close together, can be told apart.
"""

import itertools
import math
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from wuskern.train.axes import accuracy_axes, legend_below, new_figure, number_points, plain_style, save, seconds_axis
from wuskern.train.controls import seconds_per_epoch
from wuskern.train.looks import Look, looks
from wuskern.train.methods import DENSE
from wuskern.train.records import Record
from wuskern.train.summary import Row, control, policy_records

PANELS = 4
SIZES = {"*": 13, "d": 9, "P": 9, "X": 9, "p": 9}  # in points, of markers that look small
GREY = "0.5"  # of what is no method
CONTROL, SKIPS, LOST, FRONT = (
    "dense, trained in a method's time",
    "an epoch that skips weight gradients",
    "the loss is no longer finite",
    "Pareto front: the best accuracy within a time",
)
MARKS: dict[str, dict[str, Any]] = {  # by what the legend says of them
    CONTROL: dict(color=GREY, marker="o", markerfacecolor="white", linestyle=(0, (1, 1.5)), linewidth=1, markersize=7),
    SKIPS: dict(color=GREY, marker="o", markerfacecolor="white", linestyle="", markersize=4, zorder=2.5),
    LOST: dict(color="red", marker="x", linestyle="", markersize=11, markeredgewidth=1.5, zorder=4),
    FRONT: dict(color=GREY, linewidth=1, drawstyle="steps-post", zorder=1),
}


def draw(path: Path, title: str, records: list[Record]) -> None:
    """Writes a PNG with a panel for each of the first four seeds, on the same axes: a line per method, dense in its time."""
    every = sorted({record.seed for record in records if record.epochs})
    seeds = every[:PANELS]
    look_of = looks(record.policy for record in records if record.epochs)
    which = _seeds(len(every)) if seeds == every else f"the first {PANELS} of {len(every)} seeds"
    with plain_style():
        figure, panels = new_figure(len(seeds), 1, panel_height=2.8 if len(seeds) > 1 else 5.5)
        marks: dict[str, dict[str, Any]] = {}
        for panel, seed in zip(panels[:, 0], seeds, strict=True):
            marks |= _panel(panel, records, seed, look_of)
            panel.set_title(f"seed {seed}", loc="left", fontsize="medium")
        lines = [line for panel in panels[:, 0] for line in panel.lines]
        accuracy_axes(panels[:, 0], [y for line in lines for y in line.get_ydata()])
        seconds_axis(panels[-1, 0])
        panels[-1, 0].set_xlim(0, 1.03 * max(x for line in lines for x in line.get_xdata()))
        figure.suptitle(
            f"{title}: test accuracy after each epoch of {_methods(len(look_of))}\n{which}; a run ends at its marker"
        )
        legend_below(figure, {method: _of(look) for method, look in look_of.items()} | marks)
        save(figure, path)


def draw_front(path: Path, title: str, rows: Sequence[Row]) -> None:
    """Writes a PNG: mean test accuracy at the end over mean training time, with its standard error. Methods are numbered; the
    Pareto front is a line."""
    methods = [row for row in rows if row.control_of is None]
    best = front([_point(row) for row in rows])
    best.append((max(row.seconds for row in rows), best[-1][1]))
    with plain_style():
        figure, panels = new_figure(1, 1, panel_height=6.5)
        panel = panels[0, 0]
        entries = _ends(panel, rows)
        if len(rows) > 1:
            panel.plot(*zip(*best, strict=True), **MARKS[FRONT])
            entries[FRONT] = MARKS[FRONT]
        accuracy_axes([panel], [y for row in rows for y in _bar(row)])
        seconds_axis(panel)
        figure.suptitle(f"{title}: {_methods(len(methods))}, test accuracy at the end and training time\n{_means(rows)}")
        legend_below(figure, entries)
        bars = [((row.seconds, low), (row.seconds, high)) for row in rows for low, high in [_bar(row)]]
        steps = [((left, y), (right, y)) for (left, y), (right, _) in itertools.pairwise(best)]
        number_points(figure, panel, list(map(_point, methods)), list(map(_point, rows)), bars + steps)
        save(figure, path)


def front(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """The pairs (time, accuracy) that none beats in both, by rising time."""
    best: list[tuple[float, float]] = []
    for point in sorted(points, key=lambda p: (p[0], -p[1])):
        if not best or point[1] > best[-1][1]:
            best.append(point)
    return best


def _panel(panel: Any, records: list[Record], seed: int, look_of: dict[str, Look]) -> dict[str, dict[str, Any]]:
    """The marks that the panel has, beside the methods' lines, once it is drawn."""
    runs = {record.policy: record for record in policy_records(records) if record.seed == seed and record.epochs}
    marks = {}
    for method, record in runs.items():
        points = [(epoch.total_seconds, epoch.test_accuracy) for epoch in record.epochs]
        panel.plot(*zip(*points, strict=True), **_of(look_of[method]), markevery=[-1])
        skips = [point for point, epoch in zip(points, record.epochs, strict=True) if epoch.mode == "skip"]
        lost = [point for point, epoch in zip(points, record.epochs, strict=True) if not math.isfinite(epoch.loss)]
        for name, where, look in ((SKIPS, skips, {"color": look_of[method].colour}), (LOST, lost[:1], {})):
            if where:
                panel.plot(*zip(*where, strict=True), **MARKS[name] | look)
                marks[name] = MARKS[name]
    controls = (control(records, method, seed) for method in runs if method != DENSE)
    for record in {each.planned: each for each in controls if each and each.epochs and each.key != runs[DENSE].key}.values():
        # On the clock of the dense run that it was measured out by: it is trained later, when the machine may be busier.
        seconds = [epoch.number * seconds_per_epoch(runs[DENSE].epochs) for epoch in record.epochs]
        panel.plot(seconds, [epoch.test_accuracy for epoch in record.epochs], **MARKS[CONTROL], markevery=[-1], zorder=1.5)
        marks[CONTROL] = MARKS[CONTROL]
    return marks


def _ends(panel: Any, rows: Sequence[Row]) -> dict[str, dict[str, Any]]:
    """The legend's entries, once a point is drawn for each row."""
    look_of = looks(row.policy for row in rows if row.control_of is None)
    methods: dict[str, dict[str, Any]] = {}
    marks: dict[str, dict[str, Any]] = {}
    for row in rows:
        if row.control_of is None:
            look = _of(look_of[row.policy]) | {"linestyle": "", "zorder": 3}
            methods[f"{len(methods) + 1}  {row.policy}"] = look
        else:
            look = marks[CONTROL] = MARKS[CONTROL] | {"linestyle": ""}
        panel.vlines(row.seconds, *_bar(row), color=look["color"], alpha=0.6, linewidth=1.2)
        panel.plot(*_point(row), **look)
        if row.test_loss is None:
            panel.plot(*_point(row), **MARKS[LOST])
            marks[LOST] = MARKS[LOST]
    return methods | marks


def _point(row: Row) -> tuple[float, float]:
    return row.seconds, statistics.fmean(row.accuracies)


def _bar(row: Row) -> tuple[float, float]:
    """The mean accuracy less and plus its standard error, but no more than all."""
    mean, many = statistics.fmean(row.accuracies), len(row.accuracies)
    error = statistics.stdev(row.accuracies) / many**0.5 if many > 1 else 0.0
    return max(mean - error, 0.0), min(mean + error, 1.0)


def _means(rows: Sequence[Row]) -> str:
    counts = sorted({len(row.accuracies) for row in rows})
    if counts == [1]:
        return _seeds(1)
    seeds = f"{counts[0]} to {counts[-1]}" if len(counts) > 1 else counts[0]
    return f"means over {seeds} seeds; a bar is a standard error of the mean to either side"


def _seeds(many: int) -> str:
    return "one seed" if many == 1 else f"{many} seeds"


def _methods(many: int) -> str:
    return "one method" if many == 1 else f"{many} methods"


def _of(look: Look) -> dict[str, Any]:
    marker = {"marker": look.marker, "markersize": SIZES.get(look.marker, 8)}
    edge = {"markeredgecolor": "white", "markeredgewidth": 0.5}
    return {"color": look.colour, "linestyle": look.line, "linewidth": 1.3, **marker, **edge}
