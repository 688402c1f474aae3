"""What pictures have in common: a white figure, axes that hold everything that is drawn, and a legend beneath them."""

import contextlib
import itertools
import math
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from wuskern.train.files import replacing

WIDTH = 12.0  # inches
COLUMNS, LETTERS = 6, 48  # of the legend, and of a line in it, at most
LEGEND = dict(fontsize=8.5, frameon=False, handlelength=3.5)
LEAST = 0.001  # added to an error, so that an error of 0 has a logarithm, too
STEPS = [step / 10**power for power in range(7) for step in (10, 5, 2)]  # of ticks: the roundest first
TICKS = 9  # at most
NUMBER = 8.0  # points that a number is high
# Where a number may stand, in points from its own: the nearest first.
AROUND = ((1, 0.6), (1, -0.6), (-1, 0.6), (-1, -0.6), (1.2, 0), (-1.2, 0), (0, 1.1), (0, -1.1))
PLACES = [(distance * x, distance * y) for distance in (9, 12, 16, 21, 28, 36) for x, y in AROUND]
Point = tuple[float, float]
Line = tuple[Point, Point]


def plain_style() -> contextlib.AbstractContextManager[None]:
    """A block in which matplotlib draws as it comes, whatever its user has set."""
    from matplotlib import style

    return style.context("default", after_reset=True)


def new_figure(rows: int, columns: int, panel_height: float) -> tuple[Any, Any]:
    """A white figure, and its panels, which share their axes."""
    from matplotlib.figure import Figure

    size = WIDTH, 0.9 + panel_height * rows
    figure = Figure(figsize=size, dpi=110, layout="constrained", facecolor="white")
    return figure, figure.subplots(rows, columns, squeeze=False, sharex=True, sharey=True)


def accuracy_axes(panels: Sequence[Any], accuracies: Sequence[float]) -> None:
    """Makes the y axes of panels, which they share, hold all of these, in percent, by the logarithm of the error."""
    from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

    places = [place_of(accuracy) for accuracy in accuracies if math.isfinite(accuracy)]
    span = max(places) - min(places)
    margin = max(0.05 * span, 0.005) if span else 0.5
    low, high = accuracy_at(min(places) - margin), accuracy_at(max(places) + margin)
    for panel in panels:
        panel.set_yscale("function", functions=(_each(place_of), _each(accuracy_at)))
        panel.set_ylim(low, high)
        panel.yaxis.set_major_locator(FixedLocator(ticks_between(low, high)))
        panel.yaxis.set_minor_locator(NullLocator())
        panel.yaxis.set_major_formatter(FuncFormatter(percent))
        panel.set_ylabel("test accuracy\n(log scale of the error)")
        panel.grid(alpha=0.3)


def place_of(accuracy: float) -> float:
    """Where an accuracy is drawn: the logarithm of its error, upside down."""
    return -math.log(max(1 + LEAST - accuracy, 1e-9))


def accuracy_at(place: float) -> float:
    return 1 + LEAST - math.exp(-place)


def _each(function: Callable[[float], float]) -> Any:
    import numpy as np

    return np.vectorize(function, otypes=[float])


def ticks_between(low: float, high: float) -> list[float]:
    """The roundest accuracies that are far enough from each other, until no stretch of the axis lacks one."""
    least = (place_of(high) - place_of(low)) / TICKS
    low, high = max(low, 0.0), min(high, 1.0)
    ticks: list[float] = []
    for step in STEPS:
        numbers = range(math.floor(high / step), math.ceil(low / step) - 1, -1)
        for tick in (number * step for number in numbers):
            if all(abs(place_of(tick) - place_of(other)) >= least for other in ticks):
                ticks.append(tick)
        places = sorted(map(place_of, [low, high, *ticks]))
        if max(right - left for left, right in itertools.pairwise(places)) < 2.5 * least:
            break
    return sorted(ticks)


def percent(share: float, _: object = None) -> str:
    return f"{100 * share:.6g} %"


def seconds_axis(panel: Any) -> None:
    panel.xaxis.set_major_formatter(lambda seconds, _: f"{seconds:g} s")
    panel.set_xlabel("training time, without evaluation")


def legend_below(figure: Any, looks: Mapping[str, Mapping[str, Any]]) -> None:
    """Makes the figure higher by a legend of these, in as many columns as there is room for."""
    from matplotlib.lines import Line2D

    handles = [Line2D([], [], **look, label=_folded(name)) for name, look in looks.items()]
    for columns in range(min(COLUMNS, len(handles)), 0, -1):
        legend = figure.legend(handles=handles, ncols=columns, loc="outside lower center", **LEGEND)
        width, height = legend.get_window_extent().size / figure.dpi
        if width <= WIDTH or columns == 1:
            break
        legend.remove()
    figure.set_figheight(figure.get_figheight() + height)


def _folded(name: str) -> str:
    """The name in lines that end at a space, or before a colon or a plus sign."""
    lines = [""]
    for word in re.split("(?=[ :+])", name):
        if len(lines[-1] + word) > LETTERS:
            lines.append("")
        lines[-1] += word
    return "\n".join(line.strip() for line in lines)


def number_points(figure: Any, panel: Any, points: Sequence[Point], others: Sequence[Point], lines: Sequence[Line]) -> None:
    """Numbers the points from 1, each as near as can be without covering a point, one of the others, a line or a number."""
    from matplotlib.transforms import Bbox

    figure.draw_without_rendering()  # which gives the panel its place
    unit = figure.dpi / 72
    marks = [_around(panel.transData.transform(point), 5 * unit, 5 * unit) for point in (*points, *others)]
    thin = [Bbox(panel.transData.transform(line)).padded(2) for line in lines]
    for number, point in enumerate(points, 1):
        text = _around(panel.transData.transform(point), unit * (0.33 * NUMBER * len(str(number)) + 0.5), unit * NUMBER / 2)
        boxes = [text.translated(unit * x, unit * y) for x, y in PLACES]
        covers = [3 * box.count_overlaps(marks) + box.count_overlaps(thin) for box in boxes]
        outside = [99 * (not _inside(box, panel.bbox)) for box in boxes]
        far = [place // len(AROUND) / 2 for place in range(len(PLACES))]
        costs = list(map(sum, zip(covers, outside, far, strict=True)))
        best = costs.index(min(costs))
        marks.append(boxes[best])
        arrow = dict(arrowstyle="-", color="0.6", linewidth=0.6, shrinkA=0, shrinkB=4) if best >= len(AROUND) else None
        place = dict(xytext=PLACES[best], textcoords="offset points", ha="center", va="center_baseline", fontsize=NUMBER)
        panel.annotate(str(number), point, **place, arrowprops=arrow, in_layout=False, zorder=5)


def _around(centre: Point, half_width: float, half_height: float) -> Any:
    from matplotlib.transforms import Bbox

    x, y = centre
    return Bbox.from_extents(x - half_width, y - half_height, x + half_width, y + half_height)


def _inside(box: Any, frame: Any) -> bool:
    return bool(frame.contains(*box.min) and frame.contains(*box.max))


def save(figure: Any, path: Path) -> None:
    with replacing(path) as handle:
        figure.savefig(handle, format="png", facecolor="white", metadata={"Software": None})
