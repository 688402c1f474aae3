"""Gradient accumulation, mixed precision and data in host memory, each alone and together (a review: arXiv 2312.10024).

    python -m bench.accelerating [--seeds 3] [--out bench/results/accelerating.json]

Dense training on the digits; the runs of a seed take turns epoch by epoch. Memory is the peak of one step. On a CPU nothing is
pinned: what is left of the third is that another process fetches a batch ahead.
"""

import argparse
import contextlib
import json
import statistics
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from bench.render import MIB, machine, points, table
from bench.results import FOLDER, paired, provenance
from wuskern.bench.clocks import settle_allocator
from wuskern.train import data
from wuskern.train.loop import Run
from wuskern.train.methods import DENSE, Method
from wuskern.train.results import replace as write
from wuskern.train.settings import Settings

PLAIN = "plain"
VARIANTS: dict[str, dict[str, Any]] = {
    PLAIN: {},
    "4 micro-batches": {"accumulate": 4},
    "bf16 autocast": {"amp": "bf16"},
    "host memory, 1 worker": {"host": True, "workers": 1},
    "all three": {"accumulate": 4, "amp": "bf16", "host": True, "workers": 1},
}
CASES = {
    "ResNet-50": Settings("resnet50", 0.25, 3, 64, "sgd", 0.02, 0.9, 5e-4, False, "cpu", schedule="cosine"),
    "ViT": Settings("vit", 0.5, 3, 64, "adamw", 0.001, 0.9, 0.01, False, "cpu", schedule="cosine"),
    "EfficientNet-B0": Settings("efficientnet", 0.25, 3, 64, "adamw", 0.003, 0.9, 0.01, False, "cpu", schedule="cosine"),
}


def one_seed(settings: Settings, variants: Mapping[str, dict[str, Any]], samples: data.Data, seed: int) -> dict[str, Any]:
    """Of each variant: test accuracy, and seconds of training."""
    with contextlib.ExitStack() as stack:
        runs = {}
        for name, changes in variants.items():
            run = Run(Method(DENSE), replace(settings, **changes), samples, seed)
            runs[name] = stack.enter_context(contextlib.closing(run))
        for _ in range(settings.epochs):
            for run in runs.values():
                run.epoch()
    ends = {name: run.epochs[-1] for name, run in runs.items()}
    return {name: {"accuracy": end.test_accuracy, "seconds": end.total_seconds} for name, end in ends.items()}


def peak(settings: Settings, samples: data.Data) -> int:
    with contextlib.closing(Run(Method(DENSE), settings, samples, seed=0)) as run:
        return run.peak_bytes()


def measured(name: str, settings: Settings, seeds: int, samples: data.Data) -> dict[str, Any]:
    one_seed(replace(settings, epochs=1), VARIANTS, samples, seed=0)  # the libraries' first calls
    found = []
    for seed in range(seeds):
        found.append(one_seed(settings, VARIANTS, samples, seed))
        seconds = (f"{run['seconds']:.1f}" for run in found[-1].values())
        print(f"{name}, seed {seed}: {', '.join(seconds)} s", flush=True)
    rows = []
    for variant, changes in VARIANTS.items():
        own = [seed[variant] for seed in found]
        accuracies = [(seed[variant]["accuracy"], seed[PLAIN]["accuracy"]) for seed in found]
        rows.append({
            "variant": variant,
            "accuracy": statistics.fmean(run["accuracy"] for run in own),
            "against_plain": paired(accuracies, len(samples.y_test)),
            "seconds": statistics.fmean(run["seconds"] for run in own),
            "times_faster": statistics.median(seed[PLAIN]["seconds"] / seed[variant]["seconds"] for seed in found),
            "peak_bytes": peak(replace(settings, **changes), samples),
        })  # fmt: skip
    return {"case": name, "settings": asdict(settings), "seeds": seeds, "rows": rows}


def render(content: dict[str, Any]) -> str:
    """A row per network and variant."""
    header = ["network", "training", "test accuracy", "points against plain", "seconds", "times faster", "step's peak MiB"]
    body = [
        [
            case["case"],
            row["variant"],
            f"{100 * row['accuracy']:.2f} %",
            "-" if row["variant"] == PLAIN else points(row["against_plain"]),
            f"{row['seconds']:.2f}",
            "-" if row["variant"] == PLAIN else f"{row['times_faster']:.2f}x",
            f"{row['peak_bytes'] / MIB:.1f}",
        ]
        for case in content["cases"]
        for row in case["rows"]
    ]
    said = f"{content['cases'][0]['seeds']} paired seeds on the digits, means and 95 % intervals, median of the factors"
    return f"{table(header, body)}\n\n{said}; {machine(content)}."


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--out", type=Path, default=FOLDER / "accelerating.json")
    given = parser.parse_args()
    settle_allocator()
    samples = data.load("digits")
    cases = [measured(name, settings, given.seeds, samples) for name, settings in CASES.items()]
    content = {"environment": provenance("cpu"), "cases": cases}
    write(given.out, json.dumps(content, indent=1))
    print(render(content))


if __name__ == "__main__":
    main()
