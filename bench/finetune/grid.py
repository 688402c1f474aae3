"""All runs: which precision is faster, which rate is best on tuning seeds, and then the paired test seeds.

Every run is a line of a file, so that an interrupted grid goes on where it stopped. Precision and rate are fixed per task,
budget and method, by seeds that the test does not use, with the same number of runs for each method.
"""

import json
import statistics
import subprocess
import sys
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from bench.finetune.methods import METHODS
from bench.finetune.training import Run
from wuskern.train.summary import interval

PROBE = 6.0  # seconds by which precisions are compared
RATES = {"text": (1e-4, 3e-4, 1e-3), "cells": (3e-4, 1e-3, 3e-3), "tiny": (3e-3,)}
TUNING_SEED = 1000  # the first one


@dataclass(frozen=True)
class Plan:
    """What is measured. ``scale``: budgets are multiplied by it, on a slower or faster machine."""

    tasks: tuple[str, ...]
    budgets: tuple[float, ...]
    methods: tuple[str, ...] = tuple(METHODS)
    seeds: int = 5
    tuning_seeds: int = 1
    scale: float = 1.0


class Runs:
    """The runs that there are, in a file of lines of JSON.

    Args:
        path: of the file. folder: of the packages. execute: makes a run; None: in a process of its own.
    """

    def __init__(self, path: Path, folder: Path | None, execute: Callable[[Run], dict[str, Any]] | None = None) -> None:
        self.path, self.folder, self.execute = path, folder, execute or self._in_a_process
        lines = path.read_text().splitlines() if path.exists() else []
        self.done: dict[Run, dict[str, Any]] = {}
        for line in lines:
            if line.endswith("}"):  # an interrupted one has no end
                record = json.loads(line)
                self.done[Run(**{name: record[name] for name in Run.__annotations__})] = record

    def __call__(self, run: Run) -> dict[str, Any]:
        if run not in self.done:
            record = self.execute(run)
            with self.path.open("a") as file:
                file.write(json.dumps(record) + "\n")
            self.done[run] = record
            print(f"{run.task:5} {run.budget:5g} s {run.method:22} seed {run.seed:<5}{run.dtype} lr {run.lr:g}: "
                  f"{100 * record['accuracy']:.2f} %, {record['steps']} steps", flush=True)  # fmt: skip
        return self.done[run]

    def _in_a_process(self, run: Run) -> dict[str, Any]:
        given = asdict(run) | {"folder": None if self.folder is None else str(self.folder)}
        command = [sys.executable, "-W", "ignore", "-m", "bench.finetune.training", json.dumps(given)]
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
        return dict(json.loads(done.stdout.splitlines()[-1]))


def measure(plan: Plan, runs: Runs) -> list[dict[str, Any]]:
    """The records of the test seeds, after everything was tuned; the runs of a seed one after the other, so that they are
    paired."""
    chosen = {}
    for task in plan.tasks:
        for method in plan.methods:
            dtype = faster(task, method, runs)
            for budget in plan.budgets:
                chosen[task, method, budget] = tuned(task, method, budget * plan.scale, dtype, plan.tuning_seeds, runs)
    return [
        runs(replace(chosen[task, method, budget], seed=seed))
        for task in plan.tasks
        for budget in plan.budgets
        for seed in range(plan.seeds)
        for method in plan.methods
    ]


def faster(task: str, method: str, runs: Runs) -> str:
    """The precision in which the method takes more steps in the same time."""
    steps = {dtype: runs(Run(task, method, PROBE, RATES[task][0], TUNING_SEED, dtype))["steps"] for dtype in ("fp32", "bf16")}
    return max(steps, key=steps.__getitem__)


def tuned(task: str, method: str, budget: float, dtype: str, seeds: int, runs: Runs) -> Run:
    """The run whose rate gave the best mean accuracy over the tuning seeds."""
    tries = [
        [Run(task, method, budget, lr, TUNING_SEED + seed, dtype) for seed in range(seeds)] for lr in RATES[task]
    ]  # fmt: skip
    return max(tries, key=lambda tried: statistics.fmean(runs(run)["accuracy"] for run in tried))[0]


# ---- comparing ------------------------------------------------------------------------------------------------------


def difference(a: Iterable[float], b: Iterable[float]) -> tuple[float, float, float]:
    """The mean of paired differences ``a - b`` and its 95 % interval, by Student's t; an interval of one pair is infinite."""
    mean, half = interval([x - y for x, y in zip(a, b, strict=True)], step=0)
    return mean, mean - half, mean + half
