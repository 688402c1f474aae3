"""Looks for the composition of methods that trains fastest at dense training's accuracy: in rounds over a grid.

Each round trains the candidates that are left, beside dense training, over more seeds, and keeps the better third: those at
least ``--times`` faster than dense first, the more accurate the better. The winner is then to be measured over ten other seeds
(bench/methods/best.toml), since a winner of many is partly lucky.
"""

import argparse
import contextlib
import json
import statistics
from collections.abc import Sequence
from itertools import product
from pathlib import Path
from typing import Any

from wuskern.bench.clocks import settle_allocator
from wuskern.train import data
from wuskern.train.loop import Run
from wuskern.train.methods import DENSE, parse
from wuskern.train.results import environment, replace
from wuskern.train.settings import Settings

EPOCHS = 20
ROUNDS = ((100, 101), (102, 103, 104), (105, 106, 107))  # seeds, none of those that the tables are over


def grid() -> list[str]:
    """Over 20 epochs: freezing schedules by themselves, and beside chosen rows, bars of them, or skip windows."""
    freezing = [f"freeze:start={a}:end={b}:share=.9" for a, b in product((1, 3, 5), (9, 13))]
    beside = [
        f"{other}+freeze:start=3:end=13:share=.9" for other in ("meprop:ratio=.5", "ssprop", "memory:ratio=.5", "wus:warmup=3")
    ]
    return freezing + beside


def train(methods: Sequence[str], seeds: Sequence[int], settings: Settings, samples: data.Data) -> list[dict[str, Any]]:
    """Of each method: mean accuracy, how many times faster than dense, and the share of FLOPs; dense first."""
    accuracies: dict[str, list[float]] = {}
    faster: dict[str, list[float]] = {}
    flops: dict[str, list[float]] = {}
    for seed in seeds:
        with contextlib.ExitStack() as stack:
            runs = [stack.enter_context(contextlib.closing(Run(m, settings, samples, seed))) for m in parse(",".join(methods))]
            for _ in range(settings.epochs):
                for run in runs:  # in turns, so that all meet the same machine
                    run.epoch()
        print(f"seed {seed}: {', '.join(f'{run.epochs[-1].total_seconds:.1f}' for run in runs)} s", flush=True)
        seconds = [run.epochs[-1].total_seconds for run in runs]
        for run, own in zip(runs, seconds, strict=True):
            name = run.record.policy
            accuracies.setdefault(name, []).append(run.epochs[-1].test_accuracy)
            faster.setdefault(name, []).append(seconds[0] / own)
            flops.setdefault(name, []).append(1 - statistics.fmean(e.saved["total"] if e.saved else 0.0 for e in run.epochs))
    return [
        {
            "method": name,
            "accuracies": found,
            "times_faster": statistics.fmean(faster[name]),
            "flops": statistics.fmean(flops[name]),
        }
        for name, found in accuracies.items()
    ]


def better_third(found: list[dict[str, Any]], times: float) -> list[str]:
    """Those fast enough come first, the others after them; both by accuracy."""
    ranked = sorted(found[1:], key=lambda f: (f["times_faster"] < times, -statistics.fmean(f["accuracies"])))
    return [f["method"] for f in ranked[: max(1, len(ranked) // 3)]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--times", type=float, default=2.0, help="faster than dense, over the same epochs")
    parser.add_argument("--methods", default="", help="instead of the grid, with commas between them")
    parser.add_argument("--out", type=Path, default=Path("bench/results/search-vgg11.json"))
    given = parser.parse_args()

    settle_allocator()
    settings = Settings("vgg11", 1.0, EPOCHS, 64, "sgd", 0.01, 0.9, 5e-4, False, "cpu", schedule="cosine", cache=1024)
    samples = data.load("digits")
    methods = [m.label for m in parse(given.methods)] if given.methods else grid()
    rounds = []
    for seeds in ROUNDS:
        rounds.append(train([DENSE, *methods], seeds, settings, samples))
        for row in rounds[-1]:
            accuracy = 100 * statistics.fmean(row["accuracies"])
            print(f"{accuracy:6.2f} %  {row['times_faster']:5.2f}x  {row['flops']:4.0%}  {row['method']}", flush=True)
        methods = better_third(rounds[-1], given.times)
        print(flush=True)
    content = {"environment": environment(), "epochs": EPOCHS, "times": given.times, "rounds": rounds, "best": methods[0]}
    replace(given.out, json.dumps(content, indent=1))


if __name__ == "__main__":
    main()
