"""The cost of a backward against the share of the rows that it trains: ours, the ideal and dense, a panel for each layer."""

import math
from pathlib import Path
from typing import Any

from bench.render_rows import cost_by_problem, crossing, ideal_of_dense, ours_of_dense
from bench.results import Row
from wuskern.train.files import replacing

COLUMNS = 4


def draw_cost(path: Path, content: dict[str, Any]) -> None:
    """Writes a PNG. Raises ``ValueError`` where the cost was not measured."""
    import matplotlib

    problems = cost_by_problem(content)
    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    lines = math.ceil(len(problems) / COLUMNS)
    figure, panels = plt.subplots(lines, COLUMNS, figsize=(3.4 * COLUMNS, 3.2 * lines), squeeze=False, sharex=True, sharey=True)
    for panel, (use, rows) in zip(panels.flat, problems.items(), strict=False):
        _panel(panel, rows)
        panel.set_title(use, fontsize="small")
    for panel in panels.flat[len(problems) :]:
        panel.set_visible(False)
    panels[0, 0].legend(fontsize="small")
    figure.supxlabel("rows trained, %")
    figure.supylabel("backward, dense = 1")
    figure.tight_layout()
    with replacing(path) as handle:
        figure.savefig(handle, dpi=90, format="png", metadata={"Software": None})
    plt.close(figure)


def _panel(panel: Any, rows: list[Row]) -> None:
    shares = [100 * row["ratio"] for row in rows]
    panel.plot(shares, [ours_of_dense(row) for row in rows], marker=".", color="tab:green", label="ours")
    panel.plot(shares, [ideal_of_dense(row) for row in rows], linestyle="--", color="tab:gray", label="ideal")
    panel.axhline(1, color="tab:blue", linewidth=1, label="dense")
    if (share := crossing(rows)) is not None:
        panel.plot(100 * share, 1, "o", fillstyle="none", color="tab:red", label="as slow as dense")
    panel.set_xscale("log")
    panel.set_yscale("log")
    panel.set_xticks(shares, [f"{share:g}" for share in shares])
    panel.minorticks_off()
    panel.grid(alpha=0.3)
