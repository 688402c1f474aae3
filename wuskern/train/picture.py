"""Test accuracy over wall time, one panel per seed: policies, their controls dashed, WUS's skip windows shaded."""

from pathlib import Path
from typing import Any

from wuskern.train.records import Record
from wuskern.train.summary import control, control_name, policy_records

COLOURS = {"dense": "tab:blue", "frozen": "tab:orange", "wus": "tab:green", "wus+lr": "tab:red"}
PANELS = 4


def draw(path: Path, title: str, records: list[Record]) -> None:
    """Writes a PNG with a panel for each of the first four seeds."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    seeds = sorted({record.seed for record in records if record.epochs})[:PANELS]
    figure, panels = plt.subplots(len(seeds), 1, figsize=(9, 1.2 + 2.8 * len(seeds)), squeeze=False, sharex=True)
    for panel, seed in zip(panels[:, 0], seeds, strict=True):
        _panel(panel, [record for record in policy_records(records) if record.seed == seed and record.epochs], records)
        panel.set_ylabel(f"seed {seed}: test accuracy, %")
        panel.grid(alpha=0.3)
    panels[0, 0].legend(loc="lower right", fontsize="small")
    panels[0, 0].set_title(title)
    panels[-1, 0].set_xlabel("training time, s")
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    plt.close(figure)


def _panel(panel: Any, group: list[Record], records: list[Record]) -> None:
    for record in group:
        _curve(panel, record, COLOURS[record.policy], record.policy, marker=".", linewidth=1.2)
        if record.policy == "wus":
            _shade(panel, record)
        found = control(records, record.policy, record.seed) if record.policy != "dense" else None
        if found is not None and found.epochs:
            _curve(panel, found, COLOURS[record.policy], control_name(record.policy), linestyle="--", linewidth=0.9)
            last = found.epochs[-1]
            panel.plot(
                last.total_seconds, 100 * last.test_accuracy, "o", markersize=8, fillstyle="none", color=COLOURS[record.policy]
            )
    late = [100 * e.test_accuracy for record in group for e in record.epochs[len(record.epochs) // 4 :]]
    panel.set_ylim(min(late) - 1, max(late) + 0.5)


def _curve(panel: Any, record: Record, colour: str, label: str, **style: Any) -> None:
    seconds = [epoch.total_seconds for epoch in record.epochs]
    panel.plot(seconds, [100 * epoch.test_accuracy for epoch in record.epochs], color=colour, label=label, **style)


def _shade(panel: Any, record: Record) -> None:
    label = "WUS skips"
    for epoch in record.epochs:
        if epoch.mode == "skip":
            begin = epoch.total_seconds - epoch.seconds
            panel.axvspan(begin, epoch.total_seconds, color=COLOURS["wus"], alpha=0.15, linewidth=0, label=label)
            label = ""
