"""The README's one table: what a skip, chosen rows and whole trainings came to, each a line of a longer table of the docs."""

import json
from pathlib import Path
from typing import Any

from bench import render_finetune
from bench.render import ADAMW_ROWS, against_control, machine, mean, number, rows_of, table
from bench.results import Row, read

DTYPES = ("float32", "bfloat16")
SHARE = 0.05
NETWORKS = {"vgg11": "VGG-11", "mlp": "MLP", "gpt": "GPT"}  # methods-*.json


def summary(folder: Path) -> str:
    """Raises ``OSError`` where a file is missing, ``ValueError`` where a run was of a part only."""
    races = read(folder / "cpu.json")
    body = [
        ["backward of a Conv2d that skips", "stock, its weight frozen", _by_dtype(rows_of(races, "conv2d"), "faster")],
        *([f"step of {name} that skips", "dense", text] for name, text in _steps(races, folder)),
        ["backward of 5 % of a Linear's rows", "dense", _by_dtype(_of_share(races, "rowsparse linear"), "over_dense")],
        ["backward of 5 % of a Conv2d's rows", "dense", _by_dtype(_of_share(races, "rowsparse conv2d"), "over_dense")],
        ["AdamW's step in 5 % of the rows", "torch's best, dense", _optimizer(races)],
        ["DDP's step that skips, over 1 Gbit/s", "dense", _skipped_over_a_link(folder)],
        *_kept(folder / "memory.json"),
        *_fine_tuning(folder / "finetune.json"),
        *(["training from scratch: " + name, "dense in the same time", text] for name, text in _trainings(folder)),
    ]
    return f"{table(['what', 'against', 'times faster, or as named'], body)}\n\nCPU: {machine(races)}."


def _by_dtype(rows: list[Row], name: str) -> str:
    """Geometric means."""
    return ", ".join(f"{mean([row for row in rows if row['dtype_name'] == dtype], name)} {dtype}" for dtype in DTYPES)


def _of_share(races: dict[str, Any], group: str) -> list[Row]:
    return [row for row in rows_of(races, group) if row["ratio"] == SHARE]


def _steps(races: dict[str, Any], folder: Path) -> list[tuple[str, str]]:
    """Of networks whose cost is in convolutions, then of those whose cost is in Linears."""
    convolutions = [("VGG-16", mean(rows_of(races, "step"), "faster"))]
    rows = json.loads((folder / "whole-step.json").read_text())["rows"]
    skipped = [row for row in rows if (row["call"], row["mode"]) == ("eager", "skip")]
    return convolutions + [(row["model"].split(",")[0], f"{row['over_dense']:.2f}x") for row in skipped]


def _optimizer(races: dict[str, Any]) -> str:
    return ", ".join(number(row, "over_best").split()[0] for row in rows_of(races, "optim") if row["case"] == ADAMW_ROWS)


def _skipped_over_a_link(folder: Path) -> str:
    rows = json.loads((folder / "ddp.json").read_text())["rows"]
    return ", ".join(f"{row['faster']:.2f}x" for row in rows if row["step"] == "skip")


def _kept(path: Path) -> list[list[str]]:
    """How much of what dense training keeps for backward is kept where biases train; nothing where it was not measured."""
    if not path.exists():
        return []
    rows = [row for row in json.loads(path.read_text())["bytes"]["rows"] if row["mode"] == "batch statistics"]
    kept = {(row["network"], row["way"]): row["kept_bytes"] for row in rows}
    found = []
    for what, way in (("a skip", "biases, skip"), ("a skip with `memory=True`", "biases, skip, memory=True")):
        parts = [f"{name} {kept[name, way] / kept[name, 'dense']:.2f}x" for name, of in kept if of == way]
        found.append([f"memory that forward keeps, {what}", "dense", f"{'; '.join(parts)} of the bytes"])
    return found


def _fine_tuning(path: Path) -> list[list[str]]:
    """What the best of ours gave in the same seconds; nothing where it was not measured."""
    return render_finetune.summary(json.loads(path.read_text())) if path.exists() else []


def _trainings(folder: Path) -> list[tuple[str, str]]:
    """How many methods beat dense training in the same time."""
    found = []
    for net, name in NETWORKS.items():
        rows = json.loads((folder / f"methods-{net}.json").read_text())["summary"]
        compared = [row for row in rows if row["against_control"] is not None]
        better = [row for row in compared if not row["loss"]]
        said = "; ".join(f"`{row['policy']}` {against_control(row)} points" for row in better) or "none"
        found.append((name, f"better: {said}, of {len(compared)} methods"))
    return found
