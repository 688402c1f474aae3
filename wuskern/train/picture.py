"""Test accuracy over wall time, one panel per seed, WUS's skip windows shaded."""

from pathlib import Path

from wuskern.train.loop import Run
from wuskern.train.results import stop

COLOURS = {"dense": "tab:blue", "frozen": "tab:orange", "wus": "tab:green"}
PANELS = 4


def draw(path: Path, title: str, runs: list[Run]) -> None:
    """Writes a PNG with a panel for each of the first four seeds."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    seeds = sorted({run.seed for run in runs if run.epochs})[:PANELS]
    figure, panels = plt.subplots(len(seeds), 1, figsize=(9, 1.2 + 2.8 * len(seeds)), squeeze=False, sharex=True)
    for panel, seed in zip(panels[:, 0], seeds, strict=True):
        group = {run.policy_name: run for run in runs if run.seed == seed and run.epochs}
        for policy, run in group.items():
            time = [epoch.total_seconds for epoch in run.epochs]
            accuracy = [100 * epoch.test_accuracy for epoch in run.epochs]
            panel.plot(time, accuracy, color=COLOURS[policy], marker=".", linewidth=1.2, label=policy)
        if "wus" in group:
            _shade(panel, group["wus"])
            if "dense" in group and (control := stop(group["dense"].epochs, group["wus"].epochs)):
                panel.plot(
                    control.total_seconds, 100 * control.test_accuracy, "o", markersize=9, fillstyle="none",
                    color=COLOURS["dense"], label="dense stopped at WUS's time",
                )  # fmt: skip
        panel.set_ylabel(f"seed {seed}: test accuracy, %")
        late = [100 * e.test_accuracy for run in group.values() for e in run.epochs[len(run.epochs) // 4 :]]
        panel.set_ylim(min(late) - 1, max(late) + 0.5)
        panel.grid(alpha=0.3)
    panels[0, 0].legend(loc="lower right", fontsize="small")
    panels[0, 0].set_title(title)
    panels[-1, 0].set_xlabel("training time, s")
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    plt.close(figure)


def _shade(panel: object, run: Run) -> None:
    label = "WUS skips"
    for epoch in run.epochs:
        if epoch.mode == "skip":
            begin = epoch.total_seconds - epoch.seconds
            panel.axvspan(begin, epoch.total_seconds, color=COLOURS["wus"], alpha=0.15, linewidth=0, label=label)  # type: ignore[attr-defined]
            label = ""
