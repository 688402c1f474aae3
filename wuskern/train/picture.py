"""Pictures of a set of runs: test accuracy over wall time, by seed, and the front of the best trades of time for accuracy.

Accuracy is drawn as the error, on a logarithmic axis that rises as it falls, so that no point is outside and ends can be told
apart.
"""

import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from wuskern.train.controls import seconds_per_epoch
from wuskern.train.files import replacing
from wuskern.train.methods import DENSE
from wuskern.train.records import Record
from wuskern.train.summary import Row, control, control_name, policy_records

PANELS = 4
MARKERS = "osD^vPX*"  # each for ten methods, as many as there are colours
LINE = 0.2  # inches of a legend's line


def draw(path: Path, title: str, records: list[Record]) -> None:
    """Writes a PNG with a panel for each of the first four seeds: controls dashed, WUS's skip windows shaded."""
    plt = _pyplot()
    seeds = sorted({record.seed for record in records if record.epochs})[:PANELS]
    styles = {method: style(i) for i, method in enumerate(dict.fromkeys(record.policy for record in records))}
    height = max(1.2 + 2.8 * len(seeds), 1.2 + 2 * LINE * len(styles))
    figure, panels = plt.subplots(len(seeds), 1, figsize=(12, height), squeeze=False, sharex=True, layout="constrained")
    for panel, seed in zip(panels[:, 0], seeds, strict=True):
        group = [record for record in policy_records(records) if record.seed == seed and record.epochs]
        _panel(panel, group, records, styles)
        _error_axis(panel, f"seed {seed}: test error, %")
    figure.legend(*panels[0, 0].get_legend_handles_labels(), loc="outside right upper", fontsize="x-small")
    panels[0, 0].set_title(title)
    panels[-1, 0].set_xlabel("training time, s")
    _save(figure, path)


def draw_front(path: Path, title: str, rows: Sequence[Row]) -> None:
    """Writes a PNG: mean test error at the end over mean training time, with its standard error. Methods are numbered, dense
    controls hollow; the Pareto front is a line."""
    plt = _pyplot()
    figure, panel = plt.subplots(figsize=(11, max(6, 1.2 + LINE * len(rows))), layout="constrained")
    points = [(row.seconds, statistics.fmean(row.accuracies)) for row in rows]
    number = 0
    for row, (seconds, accuracy) in zip(rows, points, strict=True):
        many = len(row.accuracies) > 1
        spread = 100 * statistics.stdev(row.accuracies) / len(row.accuracies) ** 0.5 if many else 0.0
        look: dict[str, Any] = dict(capsize=2, linestyle="")
        if row.control_of is not None:
            look |= dict(marker="o", color="tab:gray", fillstyle="none", linewidth=0.8)
        else:
            look |= dict(label=f"{number} {row.policy}", **style(number))
            panel.annotate(number, (seconds, _error(accuracy)), textcoords="offset points", xytext=(5, 4), fontsize="small")
            number += 1
        panel.errorbar(seconds, _error(accuracy), min(spread, 0.9 * _error(accuracy)), **look)
    best = front(points)
    panel.plot([x for x, _ in best], [_error(y) for _, y in best], color="black", linewidth=0.8, label="Pareto front")
    panel.plot([], [], "o", color="tab:gray", fillstyle="none", label="dense, as long as a method took")
    _error_axis(panel, "test error, %")
    panel.set_xlabel("training time, s")
    panel.set_title(title)
    panel.legend(loc="center left", bbox_to_anchor=(1, 0.5), fontsize="x-small")
    _save(figure, path)


def style(number: int) -> dict[str, Any]:
    """Of a method's points: no two of the first 80 look the same."""
    return dict(color=f"C{number % 10}", marker=MARKERS[number // 10 % len(MARKERS)])


def _error_axis(panel: Any, label: str) -> None:
    panel.set_yscale("log")
    panel.yaxis.set_major_formatter("{x:g}")
    panel.invert_yaxis()
    panel.set_ylabel(label)
    panel.grid(alpha=0.3, which="both")


def _error(accuracy: float) -> float:
    """In points; that of a method without any is drawn as a hundredth."""
    return max(100 * (1 - accuracy), 0.01)


def front(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """Of (time, accuracy), those that none beats in both: by rising time."""
    best: list[tuple[float, float]] = []
    for point in sorted(points, key=lambda p: (p[0], -p[1])):
        if not best or point[1] > best[-1][1]:
            best.append(point)
    return best


def _pyplot() -> Any:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    return plt


def _save(figure: Any, path: Path) -> None:
    with replacing(path) as handle:
        figure.savefig(handle, dpi=110, format="png")
    _pyplot().close(figure)


def _panel(panel: Any, group: list[Record], records: list[Record], styles: dict[str, dict[str, Any]]) -> None:
    runs = {record.policy: record for record in group}
    for method, record in runs.items():
        _curve(panel, _seconds(record), record, label=method, linewidth=1.2, **styles[method])
        if method.split(":")[0] == "wus":
            _shade(panel, record, styles[method]["color"])
    for size, method in enumerate([method for method in runs if method != DENSE]):
        found = control(records, method, group[0].seed)
        if found is not None and found.epochs:
            # On the clock of the dense run that it was measured out by: it is trained later, when the machine may be busier.
            seconds = [epoch.number * seconds_per_epoch(runs[DENSE].epochs) for epoch in found.epochs]
            _curve(panel, seconds, found, label=control_name(method), linestyle="--", linewidth=0.9, **styles[method])
            end, size_of_it = _error(found.epochs[-1].test_accuracy), 7 + 3 * min(size, 3)
            panel.plot(seconds[-1], end, "o", markersize=size_of_it, fillstyle="none", color=styles[method]["color"])


def _seconds(record: Record) -> list[float]:
    return [epoch.total_seconds for epoch in record.epochs]


def _curve(panel: Any, seconds: list[float], record: Record, **look: Any) -> None:
    panel.plot(seconds, [_error(epoch.test_accuracy) for epoch in record.epochs], markersize=3, **look)


def _shade(panel: Any, record: Record, colour: str) -> None:
    label = "WUS skips"
    for epoch in record.epochs:
        if epoch.mode == "skip":
            begin = epoch.total_seconds - epoch.seconds
            panel.axvspan(begin, epoch.total_seconds, color=colour, alpha=0.15, linewidth=0, label=label)
            label = ""
