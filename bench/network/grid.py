"""All runs, each a line of a file, so that an interrupted grid goes on where it stopped; and what they come to."""

import json
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from bench import link
from bench.network.methods import METHODS, NOT_FROM_SCRATCH, PEERS, SCRATCH
from bench.network.training import Run

LOOPBACK = "loopback"
RATES = ("100mbit", "1gbit", LOOPBACK)
# By the task: one for all methods that train weights as they are, and one for LoRA's new ones.
LEARNING = {"text": 3e-4, "tiny": 3e-3, "vgg11": 1e-3, "small vgg11": 3e-3}
FEW = {"text": 1e-3}  # of methods that train little
OF_FEW = ("LoRA r8", "BitFit", "rows 5 %", "rows 5 %, fp16 hook", "columns 5 %")


@dataclass(frozen=True)
class Plan:
    """What is measured. ``budget``: seconds of each run."""

    tasks: tuple[str, ...]
    rates: tuple[str, ...] = RATES
    methods: tuple[str, ...] = tuple(METHODS)
    seeds: int = 5
    budget: float = 60.0

    def runs(self) -> list[Run]:
        """The runs of a seed one after the other, so that they are paired."""
        return [
            Run(task, method, rate, self.budget, _rate_of(task, method), seed)
            for task in self.tasks
            for seed in range(self.seeds)
            for rate in self.rates
            for method in self.methods
            if not (task in SCRATCH and method in NOT_FROM_SCRATCH)
        ]


def _rate_of(task: str, method: str) -> float:
    return FEW.get(task, LEARNING[task]) if method in OF_FEW else LEARNING[task]


class Runs:
    """The runs that there are, in a file of lines of JSON.

    Args:
        path: of the file. folder: of the packages. execute: makes a run; None: in two processes.
    """

    def __init__(self, path: Path, folder: Path | None, execute: Callable[[Run], dict[str, Any]] | None = None) -> None:
        self.path, self.folder, self.execute = path, folder, execute or self._in_two
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
            print(f"{run.task:5} {run.rate:8} {run.method:22} seed {run.seed}: {100 * record['tests'][-1][1]:.2f} %, "
                  f"{record['steps']} steps", flush=True)  # fmt: skip
        return self.done[run]

    def _in_two(self, run: Run) -> dict[str, Any]:
        with ExitStack() as stack:
            out = Path(stack.enter_context(tempfile.TemporaryDirectory())) / "run.json"
            if run.rate == LOOPBACK:
                places: list[tuple[tuple[str, ...], str]] = [((), "lo")] * 2
                address = "127.0.0.1"
            else:
                ends = stack.enter_context(link.shaped(run.rate))
                places, address = [(end.prefix, end.interface) for end in ends], ends[0].address
            rest = [json.dumps(asdict(run)), str(out), *([] if self.folder is None else [str(self.folder)])]
            python = sys.executable, "-W", "ignore", "-m", "bench.network.training"
            commands = [(*prefix, *python, str(rank), address, at, *rest) for rank, (prefix, at) in enumerate(places)]
            children = [subprocess.Popen(command) for command in commands]
            try:
                failed = [child.wait() for child in children]
            finally:
                for child in children:
                    child.kill()
            if any(failed):
                raise SystemExit(f"bench.network: the processes of {run} ended with {failed}")
            return dict(json.loads(out.read_text()))


# ---- what they come to -------------------------------------------------------------------------------------------------


def seconds_to(tests: list[list[float]], accuracy: float) -> float | None:
    """When a run first had that accuracy, between two tests on a line; None: never."""
    before: list[float] | None = None
    for at, found in tests:
        if found >= accuracy:
            if before is None or found == before[1]:
                return at
            return before[0] + (at - before[0]) * (accuracy - before[1]) / (found - before[1])
        before = [at, found]
    return None


def summary(records: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """A row for each task, rate and method: medians over the seeds, paired with dense's run of the same seed.

    "sooner": the budget over the seconds in which a method has the accuracy that dense has at the end; None where it does not
    have it in half of the seeds. "best": the peer other than dense that is soonest.
    """
    by_run = {(r["task"], r["rate"], r["method"], r["seed"]): r for r in records}
    rows = []
    for task, rate, method in dict.fromkeys((r["task"], r["rate"], r["method"]) for r in records):
        of_method = [seed for t, r, m, seed in by_run if (t, r, m) == (task, rate, method)]
        seeds = [seed for seed in of_method if (task, rate, "dense", seed) in by_run]
        runs = [by_run[task, rate, method, seed] for seed in seeds]
        if not runs:
            continue
        reached = [
            seconds_to(run["tests"], by_run[task, rate, "dense", seed]["tests"][-1][1])
            for seed, run in zip(seeds, runs, strict=True)
        ]
        ratios = [run["budget"] / s for run, s in zip(runs, reached, strict=True) if s]
        rows.append(
            {
                "task": task, "rate": rate, "method": method, "seeds": len(seeds), "budget": runs[0]["budget"],
                "accuracy": statistics.fmean(run["tests"][-1][1] for run in runs),
                "steps": statistics.median(run["steps"] for run in runs),
                "sent": None if runs[0]["sent"] is None else statistics.median(run["sent"] for run in runs),
                "sooner": statistics.median(ratios) if 2 * len(ratios) > len(runs) else None, "reached": len(ratios),
            }
        )  # fmt: skip
    for row in rows:
        peers = [r["sooner"] for r in rows if (r["task"], r["rate"]) == (row["task"], row["rate"])
                 and r["method"] in PEERS[1:] and r["sooner"]]  # fmt: skip
        best = max(peers, default=None)
        row["over_best_peer"] = row["sooner"] / best if best and row["sooner"] and row["method"] not in PEERS else None
    return rows
