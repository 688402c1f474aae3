"""The section about fine-tuning on a budget: a table for each task and budget, and the verdict, losses first."""

import statistics
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from bench.finetune.grid import difference
from bench.finetune.methods import OURS
from bench.render import MIB, table

BASELINES = ("dense", "LoRA r8")
CACHED, CONTROL = "prefix+cache", "prefix, plain PyTorch"
TITLES = {"text": "MiniLM-L6 on 20 Newsgroups", "cells": "EfficientNet-Lite0 on solar cells", "tiny": "a tiny BERT on digits"}
HEADER = [
    "method", "rate", "test accuracy", "points against dense", "steps", "s", "s ahead of the first step", "MiB at the peak",
    "numbers that train", "file",
]  # fmt: skip
Record = dict[str, Any]


@dataclass(frozen=True)
class Case:
    """The runs of one task and budget. ``runs``: by method, those of the test seeds in their order."""

    task: str
    budget: float
    runs: dict[str, list[Record]]
    tuning: dict[str, list[Record]]
    clocks: dict[str, list[Record]]

    def accuracies(self, method: str) -> list[float]:
        return [100 * run["accuracy"] for run in self.runs[method]]

    def mean(self, method: str) -> float:
        return statistics.fmean(self.accuracies(method))

    def against(self, method: str, other: str) -> tuple[float, float, float]:
        return difference(self.accuracies(method), self.accuracies(other))

    def timed(self, method: str) -> list[Record]:
        """The rounds in which the method was timed, in the precision of its runs."""
        return [clock for clock in self.clocks[method] if clock["dtype"] == self.runs[method][0]["dtype"]]

    def best(self, methods: Iterable[str]) -> str:
        """Of those that were run, the method that the tuning seeds favour, each with the rate that it was given."""

        def tuned(method: str) -> float:
            rate = self.runs[method][0]["lr"]
            return statistics.fmean(run["accuracy"] for run in self.tuning[method] if run["lr"] == rate)

        return max((method for method in methods if method in self.runs), key=tuned)


def cases(content: dict[str, Any]) -> list[Case]:
    keys = dict.fromkeys((run["task"], run["budget"]) for run in content["runs"])
    return [
        Case(task, budget, *(_by_method(content[part], task, budget) for part in ("runs", "tuning")),
             _by_method(content["clocks"], task))
        for task, budget in keys
    ]  # fmt: skip


def _by_method(records: list[Record], task: str, budget: float | None = None) -> dict[str, list[Record]]:
    found: dict[str, list[Record]] = {}
    for record in records:
        if record["task"] == task and budget in (None, record["budget"]):
            found.setdefault(record["method"], []).append(record)
    return found


def render(content: dict[str, Any]) -> str:
    """Every task and budget, as Markdown."""
    of_all = cases(content)
    parts = [verdict(of_all)]
    for case in of_all:
        parts += [f"**{TITLES[case.task]}, {case.budget:g} s.** {_compared(case)}", table(HEADER, _body(case))]
    seeds = min(len(runs) for case in of_all for runs in case.runs.values())
    parts += [
        against_control(case) for case in {case.task: case for case in of_all}.values() if {CACHED, CONTROL} <= {*case.runs}
    ]
    return "\n\n".join([*parts, f"{seeds} paired test seeds, 95 % intervals; timed on {_machine(content)}."])


def against_control(case: Case) -> str:
    """How many steps the cache makes in the time of the control, by the rounds in which both were timed."""
    rounds = list(zip(case.timed(CACHED), case.timed(CONTROL), strict=False))
    ratio = statistics.median(cached["steps"] / control["steps"] for cached, control in rounds)
    return (
        f"{TITLES[case.task]}: in {rounds[0][0]['budget']:g} s `{CACHED}` makes {ratio:.2f} of the steps of the same front in "
        f"plain PyTorch, caching included (median of {len(rounds)} rounds in turn)."
    )


def _machine(content: dict[str, Any]) -> str:
    e = content["environment"]
    return f"{e['processor']}, {content['clocks'][0]['threads']} threads, torch {e['torch']}"


def summary(content: dict[str, Any]) -> list[list[str]]:
    """The rows of the README's table: what, against what, and what came of it."""
    return [
        [
            f"fine-tuning {TITLES[case.task]}, {case.budget:g} s",
            f"the better of {' and '.join(BASELINES)}",
            f"{_in_points(case)} points",
        ]
        for case in cases(content)
    ]


def verdict(of_all: list[Case]) -> str:
    """What lost, what could not be told apart, and what won, against the better of dense and LoRA."""
    words: dict[str, list[str]] = {"Worse": [], "Not to be told apart": [], "Better": []}
    for case in of_all:
        _, low, high = _best_against_baseline(case)
        kind = "Worse" if high < 0 else "Better" if low > 0 else "Not to be told apart"
        words[kind].append(f"{TITLES[case.task]} in {case.budget:g} s ({_in_points(case)} points)")
    said = [f"{kind}: {'; '.join(found)}." for kind, found in words.items() if found]
    return f"The best of ours by the tuning seeds, against the better of {' and '.join(BASELINES)}. {' '.join(said)}"


def _best_against_baseline(case: Case) -> tuple[float, float, float]:
    return case.against(case.best(OURS), max((b for b in BASELINES if b in case.runs), key=case.mean))


def _in_points(case: Case) -> str:
    return f"`{case.best(OURS)}` {_interval(_best_against_baseline(case))}"


def _interval(found: tuple[float, float, float]) -> str:
    mean, low, high = found
    return f"{mean:+.2f} ({low:+.2f} to {high:+.2f})"


def _compared(case: Case) -> str:
    baseline = max((b for b in BASELINES if b in case.runs), key=case.mean)
    return (
        f"Chosen by the tuning seeds: `{case.best(OURS)}`, {_interval(_best_against_baseline(case))} points against {baseline}."
    )


def _body(case: Case) -> list[list[str]]:
    return [_row(case, method) for method in sorted(case.runs, key=case.mean, reverse=True)]


def _row(case: Case, method: str) -> list[str]:
    runs, clock = case.runs[method], case.timed(method)[0]
    deviation = statistics.stdev(case.accuracies(method)) if len(runs) > 1 else 0.0
    return [
        method, f"{runs[0]['lr']:g}", f"{case.mean(method):.2f} % +- {deviation:.2f}",
        "-" if method == "dense" or "dense" not in case.runs else _interval(case.against(method, "dense")),
        f"{statistics.fmean(run['steps'] for run in runs):.0f}", f"{statistics.fmean(run['seconds'] for run in runs):.1f}",
        f"{clock['first']:.1f}", f"{clock['peak_bytes'] / MIB:.0f}", f"{clock['saved_numbers']:,}",
        f"{clock['saved_bytes'] / MIB:.2f} MiB",
    ]  # fmt: skip
