"""Pictures of results: of a backward's cost against the share of the rows that it trains, and of the methods' trainings."""

import math
from pathlib import Path
from typing import Any

from bench.render import machine
from bench.render_rows import cost_by_problem, crossing, ideal_of_dense, ours_of_dense
from bench.results import Row
from wuskern.train import summary
from wuskern.train.axes import legend_below, new_figure, percent, plain_style, save
from wuskern.train.picture import draw_front

COLUMNS = 4
OURS, IDEAL, DENSE, CROSSING = (
    "ours",
    "ideal: operands that are compact already, one read of the gradient, the gather",
    "dense: PyTorch's backward of all rows",
    "where ours is as slow as dense",
)
LOOKS: dict[str, dict[str, Any]] = {
    OURS: dict(color="#009E73", marker="."),
    IDEAL: dict(color="0.5", linestyle="--"),
    DENSE: dict(color="black", linewidth=1),
    CROSSING: dict(color="#D55E00", marker="o", markersize=8, fillstyle="none", linestyle=""),
}


def draw_methods(path: Path, content: dict[str, Any]) -> None:
    """Writes a PNG of the front, as a training does, from its results."""
    arguments = content["arguments"]
    draw_front(path, f"{arguments['model']} on {arguments['data']}", [summary.Row(**row) for row in content["summary"]])


def draw_cost(path: Path, content: dict[str, Any]) -> None:
    """Writes a PNG with a panel for each layer. Raises ``ValueError`` where the cost was not measured."""
    problems = cost_by_problem(content)
    lines = math.ceil(len(problems) / COLUMNS)
    with plain_style():
        figure, panels = new_figure(lines, COLUMNS, panel_height=3)
        for panel, (use, rows) in zip(panels.flat, problems.items(), strict=False):
            _panel(panel, rows)
            panel.set_title(use, fontsize="medium")
        for panel in panels.flat[len(problems) :]:
            panel.set_visible(False)
        for panel in panels.flat[max(0, len(problems) - COLUMNS) : len(problems)]:  # the lowest of each column
            panel.tick_params(labelbottom=True)
            panel.set_xlabel("rows trained")
        for panel in panels[:, 0]:
            panel.set_ylabel("time, share of dense's")
        rounds = min(row["rounds"] for rows in problems.values() for row in rows)
        title = f"{len(problems)} layers: a backward's time against the share of the rows that it trains, on {machine(content)}"
        figure.suptitle(f"{title}\nmedians over {rounds} rounds or more; the same axes for all")
        legend_below(figure, LOOKS)
        save(figure, path)


def _panel(panel: Any, rows: list[Row]) -> None:
    from matplotlib.ticker import FuncFormatter, LogLocator

    shares = [row["ratio"] for row in rows]
    panel.plot(shares, [ours_of_dense(row) for row in rows], **LOOKS[OURS])
    panel.plot(shares, [ideal_of_dense(row) for row in rows], **LOOKS[IDEAL])
    panel.axhline(1, **LOOKS[DENSE])
    if (share := crossing(rows)) is not None:
        panel.plot(share, 1, **LOOKS[CROSSING])
    panel.set_xscale("log")
    panel.set_yscale("log")
    panel.set_xticks(shares, [percent(share) for share in shares], fontsize="small")
    panel.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    panel.yaxis.set_major_formatter(FuncFormatter(percent))
    panel.minorticks_off()
    panel.grid(alpha=0.3)
