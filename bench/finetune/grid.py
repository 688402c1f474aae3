"""All runs: what steps take on an idle machine, which rate is best on tuning seeds, and then the paired test seeds.

First, alone on the machine, each method is timed (:mod:`bench.finetune.clock`). Then rates are chosen per task, budget and
method, by seeds and samples that the test does not use, with the same number of runs for each method: of all rates with the
shortest budget, and of two with a longer one. Then come the test seeds.
All but the first only replay the clock, so that they may share the machine. What is done is a line of a file, so that an
interrupted grid goes on where it stopped.
"""

import itertools
import json
import multiprocessing
import statistics
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, cast

from bench.finetune.clock import ReplayedClock, pooled
from bench.finetune.methods import METHODS
from bench.finetune.training import Run, run
from wuskern.train.summary import interval

TIMED = 30.0  # seconds of each round in which a method is timed
ROUNDS = 2
RATES = {"text": (3e-4, 1e-3, 3e-3, 1e-2), "cells": (3e-4, 1e-3, 3e-3, 1e-2), "tiny": (3e-3,)}
TUNING_SEED = 1000  # the first one
# Six hours of two cores hold no more: a prefix that thaws is left out, and the longer budget is for these methods alone.
COMPARED = tuple(name for name in METHODS if name != "prefix+cache, thawed")
LONGER = ("dense", "LoRA r8", "prefix, plain PyTorch", "prefix+cache", "LISA")
CLOSE = 2  # where bf16 takes dense training more than this many times as long as fp32, no other method is tried in it

Record = dict[str, Any]
Measure = Callable[[Run], Record]


@dataclass(frozen=True)
class Plan:
    """What is measured. ``longer``: those of the methods that have all budgets, while the others have the shortest one."""

    tasks: tuple[str, ...]
    budgets: tuple[float, ...]
    methods: tuple[str, ...] = COMPARED
    longer: tuple[str, ...] = LONGER
    seeds: int = 5
    tuning_seeds: int = 1

    def methods_of(self, budget: float) -> tuple[str, ...]:
        return self.methods if budget == min(self.budgets) else tuple(name for name in self.methods if name in self.longer)


class Lines:
    """The records in a file of lines of JSON."""

    def __init__(self, path: Path) -> None:
        self.path = path
        lines = path.read_text().splitlines() if path.exists() else []
        self.records: list[Record] = [json.loads(line) for line in lines if line.endswith("}")]  # an interrupted one has no end

    def add(self, record: Record) -> None:
        with self.path.open("a") as file:
            file.write(json.dumps(record) + "\n")
        self.records.append(record)


def of(record: Record) -> Run:
    """What a record is of."""
    return Run(**{name: record[name] for name in Run.__annotations__})


# ---- what steps take ------------------------------------------------------------------------------------------------


class Clocks:
    """What the steps of methods take; ``lines``: of the rounds. ``measure``: makes a round; None: in a process of its own."""

    def __init__(self, lines: Lines, folder: Path | None, measure: Measure | None = None, seconds: float = TIMED) -> None:
        self.lines, self.folder, self.measure, self.seconds = lines, folder, measure or self._in_a_process, seconds

    def of(self, task: str, method: str, dtype: str) -> list[Record]:
        wanted = (task, method, dtype)
        return [record for record in self.lines.records if (record["task"], record["method"], record["dtype"]) == wanted]

    def clock(self, what: Run) -> ReplayedClock:
        return pooled([(record["first"], record["phases"]) for record in self.of(what.task, what.method, what.dtype)])

    def time(self, tasks: Sequence[str], methods: Sequence[str], rounds: int = ROUNDS) -> None:
        """Times what was not timed yet, the methods in turn."""
        for task in tasks:
            for number in range(1, rounds + 1):
                for method in methods:
                    for dtype in self._dtypes(task, method):
                        if len(self.of(task, method, dtype)) < number:
                            self._add(task, method, dtype)

    def faster(self, task: str, method: str) -> str:
        """The precision in which a step of the method takes less time."""
        return min(("fp32", "bf16"), key=lambda dtype: self._step(task, method, dtype))

    def _dtypes(self, task: str, method: str) -> tuple[str, ...]:
        if method == "dense":
            return "fp32", "bf16"
        return ("fp32", "bf16") if self._step(task, "dense", "bf16") < CLOSE * self._step(task, "dense", "fp32") else ("fp32",)

    def _step(self, task: str, method: str, dtype: str) -> float:
        rounds = self.of(task, method, dtype)
        return min((statistics.median(itertools.chain(*record["phases"])) for record in rounds), default=float("inf"))

    def _add(self, task: str, method: str, dtype: str) -> None:
        record = self.measure(Run(task, method, self.seconds, RATES[task][0], TUNING_SEED, dtype))
        self.lines.add(record)
        print(f"{task:5} {method:22} {dtype}: {record['steps']} steps in {record['seconds']:.1f} s", flush=True)

    def _in_a_process(self, what: Run) -> Record:
        given = asdict(what) | {"folder": None if self.folder is None else str(self.folder)}
        command = [sys.executable, "-W", "ignore", "-m", "bench.finetune.training", json.dumps(given)]
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
        return cast(Record, json.loads(done.stdout.splitlines()[-1]))


# ---- accuracies -----------------------------------------------------------------------------------------------------


class Runs:
    """The runs that there are.

    Args:
        clocks: whose times the runs take. workers: processes, of one thread each. execute: makes runs; None: in the workers.
    """

    def __init__(
        self, lines: Lines, clocks: Clocks, workers: int = 1, execute: Callable[[list[Run]], Iterable[Record]] | None = None
    ) -> None:
        self.lines, self.clocks, self.workers, self.execute = lines, clocks, workers, execute or self._in_workers
        self.done = {of(record): record for record in lines.records}

    def __call__(self, runs: Sequence[Run]) -> list[Record]:
        """The records of the runs, in their order; what is missing is made."""
        for record in self.execute([what for what in dict.fromkeys(runs) if what not in self.done]):
            self.lines.add(record)
            self.done[of(record)] = record
            print("{task:5} {budget:5g} s {method:22} seed {seed:<5}{split:11}lr {lr:g}: ".format(**record)
                  + f"{100 * record['accuracy']:.2f} %, {record['steps']} steps", flush=True)  # fmt: skip
        return [self.done[what] for what in runs]

    def _in_workers(self, runs: list[Run]) -> Iterator[Record]:
        if not runs:
            return
        context = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(self.workers, context, initializer=_one_thread) as pool:
            folders, clocks = [self.clocks.folder] * len(runs), [self.clocks.clock(what) for what in runs]
            yield from pool.map(run, runs, folders, clocks)


def _one_thread() -> None:
    import warnings

    import torch

    warnings.simplefilter("ignore")
    torch.set_num_threads(1)


def measure(plan: Plan, runs: Runs) -> list[Record]:
    """The records of the test seeds, after all rates were chosen; the runs of a seed one after the other."""
    test = []
    for task in plan.tasks:
        dtypes = {method: runs.clocks.faster(task, method) for method in plan.methods}
        rates = dict.fromkeys(plan.methods, RATES[task])
        for budget in sorted(plan.budgets):
            base = {
                Run(task, method, budget, 0, TUNING_SEED, dtypes[method], "validation"): rates[method]
                for method in plan.methods_of(budget)
            }
            chosen = tuned(base, plan.tuning_seeds, runs)
            rates |= {what.method: around(what.lr, RATES[task]) for what in chosen}
            test += [replace(what, seed=seed, split="test") for seed in range(plan.seeds) for what in chosen]
            runs(test)
    return runs(test)


def around(rate: float, rates: tuple[float, ...]) -> tuple[float, ...]:
    """What is tried with a longer budget: the rate that was best with the shorter one, and the one below it."""
    first = max(rates.index(rate) - 1, 0)
    return rates[first : first + 2]


def tuned(base: Mapping[Run, Sequence[float]], seeds: int, runs: Runs) -> list[Run]:
    """Each run with that of its rates that gave the best mean accuracy over the tuning seeds."""
    tries = {
        what: [[replace(what, lr=lr, seed=what.seed + i) for i in range(seeds)] for lr in rates] for what, rates in base.items()
    }  # fmt: skip
    runs([what for alike in tries.values() for tried in alike for what in tried])

    def mean(tried: list[Run]) -> float:
        return statistics.fmean(record["accuracy"] for record in runs(tried))

    return [max(alike, key=mean)[0] for alike in tries.values()]


# ---- comparing ------------------------------------------------------------------------------------------------------


def difference(a: Iterable[float], b: Iterable[float]) -> tuple[float, float, float]:
    """The mean of paired differences ``a - b`` and its 95 % interval, by Student's t; an interval of one pair is infinite."""
    mean, half = interval([x - y for x, y in zip(a, b, strict=True)], step=0)
    return mean, mean - half, mean + half
