"""Test accuracy over wall time, one panel per seed: policies, their controls dashed, WUS's skip windows shaded."""

from pathlib import Path
from typing import Any

from wuskern.train.controls import seconds_per_epoch
from wuskern.train.records import Record
from wuskern.train.summary import control, control_name, policy_records

COLOURS = {"dense": "tab:blue", "frozen": "tab:orange", "wus": "tab:green", "wus+lr": "tab:red", "topk": "tab:purple"}
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
    runs = {record.policy: record for record in group}
    drawn = list(group)
    for policy, record in runs.items():
        _curve(panel, _seconds(record), record, COLOURS[policy], policy, marker=".", linewidth=1.2)
        if policy == "wus":
            _shade(panel, record)
    for size, policy in enumerate([policy for policy in runs if policy != "dense"]):
        found = control(records, policy, group[0].seed)
        if found is not None and found.epochs:
            # On the clock of the dense run that it was measured out by: it is trained later, when the machine may be busier.
            seconds = [epoch.number * seconds_per_epoch(runs["dense"].epochs) for epoch in found.epochs]
            _curve(panel, seconds, found, COLOURS[policy], control_name(policy), linestyle="--", linewidth=0.9)
            end = 100 * found.epochs[-1].test_accuracy
            panel.plot(seconds[-1], end, "o", markersize=7 + 3 * size, fillstyle="none", color=COLOURS[policy])
            drawn.append(found)
    late = [100 * e.test_accuracy for record in drawn for e in record.epochs[len(record.epochs) // 3 :]]
    panel.set_ylim(min(late) - 1, max(late) + 0.5)


def _seconds(record: Record) -> list[float]:
    return [epoch.total_seconds for epoch in record.epochs]


def _curve(panel: Any, seconds: list[float], record: Record, colour: str, label: str, **style: Any) -> None:
    panel.plot(seconds, [100 * epoch.test_accuracy for epoch in record.epochs], color=colour, label=label, **style)


def _shade(panel: Any, record: Record) -> None:
    label = "WUS skips"
    for epoch in record.epochs:
        if epoch.mode == "skip":
            begin = epoch.total_seconds - epoch.seconds
            panel.axvspan(begin, epoch.total_seconds, color=COLOURS["wus"], alpha=0.15, linewidth=0, label=label)
            label = ""
