"""What came out of a set of runs: the summary, its table, and the file that holds everything."""

import json
import math
import os
import platform
import statistics
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from wuskern.backends import choose
from wuskern.doctor import package_version, processor
from wuskern.train.loop import Epoch, Run

CONTROL = "dense, stopped"
# Two-sided 95 % quantiles of Student's t for 1, 2, ... degrees of freedom; 1.96 beyond.
T95 = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179, 2.160, 2.145, 2.131)


@dataclass(frozen=True)
class Row:
    """One policy over its seeds. ``s``: share of steps skipped; ``f``: saving of a skipped step; their product is the
    reduction to expect; ``faster``: what was measured against dense over the same epochs. None where it does not apply."""

    policy: str
    accuracies: tuple[float, ...]  # at the end, per seed
    seconds: float  # mean over seeds
    s: float | None = None
    f: float | None = None
    faster: float | None = None


def comparable(runs: list[Run]) -> dict[str, dict[int, list[Epoch]]]:
    """Policy -> seed -> epochs. After an interruption: the epochs that all runs of a seed have, of the seeds with most."""
    common: dict[int, int] = {}
    for run in runs:
        common[run.seed] = min(common.get(run.seed, len(run.epochs)), len(run.epochs))
    most = max(common.values(), default=0)
    records: dict[str, dict[int, list[Epoch]]] = {}
    for run in runs:
        if most and common[run.seed] == most:
            records.setdefault(run.policy_name, {})[run.seed] = run.epochs[:most]
    return records


def summarise(runs: list[Run]) -> list[Row]:
    """A row per policy, and one for the control: dense, stopped when WUS of the same seed was through."""
    records = comparable(runs)
    dense = records.get("dense", {})
    rows = [_row(policy, by_seed, dense) for policy, by_seed in records.items()]
    stopped = [last for seed, epochs in records.get("wus", {}).items() if seed in dense and (last := stop(dense[seed], epochs))]
    if stopped:
        seconds = statistics.fmean(epoch.total_seconds for epoch in stopped)
        rows.append(Row(CONTROL, tuple(epoch.test_accuracy for epoch in stopped), seconds))
    return rows


def _row(policy: str, by_seed: dict[int, list[Epoch]], dense: dict[int, list[Epoch]]) -> Row:
    last = {seed: epochs[-1] for seed, epochs in by_seed.items()}
    accuracies = tuple(epoch.test_accuracy for epoch in last.values())
    seconds = statistics.fmean(epoch.total_seconds for epoch in last.values())
    if policy == "dense":
        return Row(policy, accuracies, seconds)
    every = [epoch for epochs in by_seed.values() for epoch in epochs]
    skipped = sum(e.steps for e in every if e.mode == "skip") / sum(e.steps for e in every)
    ratios = [epoch.total_seconds / dense[seed][-1].total_seconds for seed, epoch in last.items() if seed in dense]
    faster = 1 - statistics.fmean(ratios) if ratios else None
    return Row(policy, accuracies, seconds, s=skipped, f=saving(every), faster=faster)


def saving(epochs: list[Epoch]) -> float | None:
    """1 - (median seconds of a skipped step / of a full step), or None where one kind is missing."""
    per_step = {mode: [e.seconds / e.steps for e in epochs if e.mode == mode] for mode in ("full", "skip")}
    if not per_step["full"] or not per_step["skip"]:
        return None
    return 1 - statistics.median(per_step["skip"]) / statistics.median(per_step["full"])


def stop(dense: list[Epoch], other: list[Epoch]) -> Epoch | None:
    """The last epoch that dense finished within the wall time of the other run."""
    within = [epoch for epoch in dense if epoch.total_seconds <= other[-1].total_seconds]
    return within[-1] if within else None


def interval(differences: list[float], step: float) -> tuple[float, float]:
    """Mean of paired differences and the half-width of its 95 % interval (Student's t; infinite for a single pair).

    ``step``: the smallest difference that can be seen, one test image. The half-width is never less, since a few seeds can
    agree to the image by chance.
    """
    mean = statistics.fmean(differences)
    if len(differences) < 2:
        return mean, math.inf
    t = T95[len(differences) - 2] if len(differences) - 2 < len(T95) else 1.96
    return mean, max(step, t * statistics.stdev(differences) / math.sqrt(len(differences)))


def verdict(rows: list[Row], test_images: int) -> str:
    """Two sentences: what WUS saved, and whether it is better than stopping dense at the same time."""
    row = {r.policy: r for r in rows}
    if "wus" not in row or CONTROL not in row or len(row["wus"].accuracies) != len(row[CONTROL].accuracies):
        return ""
    wus = row["wus"]
    if not wus.s:
        return "WUS found no window to skip: it trained as dense does."
    time = f"WUS took {wus.faster:.0%} less time than dense over the same epochs. " if wus.faster is not None else ""
    differences = [100 * (a - b) for a, b in zip(wus.accuracies, row[CONTROL].accuracies, strict=True)]
    mean, half = interval(differences, 100 / test_images)
    if len(differences) == 1:
        return f"{time}Against dense stopped at its wall time it ends at {mean:+.2f} points, but one seed decides nothing."
    word = "not measurably better or worse" if abs(mean) <= half else "better" if mean > 0 else "worse"
    bounds = f"95 % interval {mean - half:+.2f} to {mean + half:+.2f}"
    evidence = f"{bounds}, n = {len(differences)}, one test image is {100 / test_images:.2f}"
    return f"{time}It is {word} than dense stopped at its wall time: {mean:+.2f} points ({evidence})."


def table(rows: list[Row]) -> str:
    """The summary as aligned text."""

    def percent(x: float | None) -> str:
        return "-" if x is None else f"{100 * x:.1f} %"

    lines: list[tuple[str, ...]] = [("policy", "test accuracy", "seconds", "s", "f", "s*f", "less time than dense")]
    for r in rows:
        spread = f" +- {100 * statistics.stdev(r.accuracies):.2f}" if len(r.accuracies) > 1 else ""
        product = r.s * r.f if r.s is not None and r.f is not None else None
        accuracy = f"{100 * statistics.fmean(r.accuracies):.2f} %{spread}"
        lines.append((r.policy, accuracy, f"{r.seconds:.1f}", *(percent(v) for v in (r.s, r.f, product, r.faster))))
    widths = [max(len(line[i]) for line in lines) for i in range(len(lines[0]))]
    return "\n".join("  ".join(cell.ljust(w) for cell, w in zip(line, widths, strict=True)).rstrip() for line in lines)


def environment(device: str = "cpu") -> dict[str, Any]:
    """What a reader needs to place the seconds; nothing that names a machine."""
    return {
        "wuskern": package_version("wuskern"),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "processor": processor(),
        "threads": torch.get_num_threads(),
        "device": torch.cuda.get_device_name(device) if device.startswith("cuda") else device,
        "bias_grad": choose("bias_grad", torch.device(device).type).backend,
    }


def save(path: Path, arguments: dict[str, Any], runs: list[Run], complete: bool) -> None:
    """Replaces the file in one step: a reader, or a crash, sees the old one or the new one."""
    rows = summarise(runs)
    content = {
        "arguments": arguments,
        "environment": environment(str(runs[0].settings.device) if runs else "cpu"),
        "complete": complete,
        "summary": [asdict(row) for row in rows],
        "verdict": verdict(rows, len(runs[0].data.x_test)) if runs else "",
        "runs": [{"policy": r.policy_name, "seed": r.seed, "epochs": [e.as_dict() for e in r.epochs]} for r in runs],
    }
    replace(path, json.dumps(content, indent=1))


def replace(path: Path, text: str) -> None:
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_text(text + "\n")
    os.replace(temporary, path)
