"""What meSimp leaves of a network, and how much faster the smaller model runs: ten seeds, each beside dense training.

    python -m bench.simplify [--seeds 10] [--out bench/results/simplify.json]

Of each seed a dense and a pruned network are trained over the same epochs, in turns. ``wuskern.simplify`` then makes the
smaller model, whose outputs are verified against the pruned network's before it is timed against the dense one, in turns.
"""

import argparse
import contextlib
import json
import statistics
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
import torch.nn as nn
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

import wuskern as wk
from bench.render import machine, points, table
from bench.results import FOLDER, paired, provenance
from wuskern.bench.clocks import on_host, repeat_for, settle_allocator
from wuskern.train import data
from wuskern.train.evaluation import evaluate
from wuskern.train.loop import Run
from wuskern.train.methods import parse
from wuskern.train.results import replace
from wuskern.train.settings import Settings

MLP = Settings("mlp", 1.0, 20, 64, "sgd", 0.1, 0.9, 5e-4, False, "cpu", schedule="cosine")
VGG = Settings("vgg11", 0.5, 16, 64, "sgd", 0.01, 0.9, 5e-4, False, "cpu", schedule="cosine")
CASES = [  # name, settings, method
    ("MLP-500", MLP, "mesimp:k=40"),
    ("MLP-500", MLP, "mesimp:k=20"),
    ("VGG-11 of half the width", VGG, "mesimp:ratio=.5:per=batch:scope=weight"),
    ("VGG-11 of half the width", VGG, "mesimp:ratio=.3:per=batch:scope=weight"),
]
BATCHES = (1, 256)
ROUNDS = 21


def trained(settings: Settings, methods: str, samples: data.Data, seed: int) -> list[Run]:
    with contextlib.ExitStack() as stack:
        runs = [stack.enter_context(contextlib.closing(Run(m, settings, samples, seed))) for m in parse(methods)]
        for _ in range(settings.epochs):
            for run in runs:
                run.epoch()
    return runs


def times_faster(dense: nn.Module, smaller: nn.Module, x: Tensor) -> float:
    """Median over rounds of the quotient of their times for one batch."""
    ratios = []
    with torch.inference_mode():
        calls = [(x,)] * repeat_for(on_host(smaller, [(x,)]), "cpu")
        for i in range(ROUNDS):
            order = (dense, smaller) if i % 2 else (smaller, dense)
            seconds = {model: on_host(model, calls) for model in order}
            ratios.append(seconds[dense] / seconds[smaller])
    return statistics.median(ratios)


def flops(model: nn.Module, x: Tensor) -> int:
    with torch.inference_mode(), FlopCounterMode(display=False) as counter:
        model(x)
    return counter.get_total_flops()


def one_seed(settings: Settings, method: str, samples: data.Data, seed: int) -> dict[str, Any]:
    dense, pruned = trained(settings, f"dense,{method}", samples, seed)
    x = samples.x_test[: max(BATCHES)]
    smaller, report = wk.simplify(pruned.model.eval(), x[:2])
    with torch.inference_mode():
        torch.testing.assert_close(smaller(x), pruned.model(x), rtol=1e-4, atol=1e-4)
    _, accuracy = evaluate(smaller, samples.x_test, samples.y_test, torch.device("cpu"), samples.classes)
    stock = dense.model.eval()
    return {
        "seed": seed,
        "dense_accuracy": dense.epochs[-1].test_accuracy,
        "accuracy": accuracy,
        "rows": [[rows.before, rows.after] for rows in report.layers.values()],
        "parameters": [report.parameters_before, report.parameters_after],
        "flops": [flops(stock, x[:1]), flops(smaller, x[:1])],
        "times_faster": {batch: times_faster(stock, smaller, x[:batch]) for batch in BATCHES},
    }


def measured(name: str, settings: Settings, method: str, seeds: int, samples: data.Data) -> dict[str, Any]:
    found = []
    for seed in range(seeds):
        found.append(one_seed(settings, method, samples, seed))
        left = "/".join(str(after) for _, after in found[-1]["rows"][:-1])
        accuracies = f"{100 * found[-1]['dense_accuracy']:.2f} % dense, {100 * found[-1]['accuracy']:.2f} %"
        print(f"{name}, {method}, seed {seed}: {accuracies}; left: {left}", flush=True)
    return {
        "case": name,
        "method": method,
        "settings": asdict(settings),
        "against_dense": paired([(f["accuracy"], f["dense_accuracy"]) for f in found], len(samples.y_test)),
        "seeds": found,
    }


def render(content: dict[str, Any]) -> str:
    """A row per network; the hidden layers are all but the last."""
    header = ["network", "method", "hidden rows left", "parameters left", "FLOPs left", "accuracy, dense", "accuracy, smaller"]
    header += ["points", "inference faster, batch 1", "batch 256"]
    body = []
    for row in content["rows"]:
        seeds = row["seeds"]
        hidden = [[sum(rows[i] for rows in s["rows"][:-1]) for i in (0, 1)] for s in seeds]
        shares = (_share(hidden), _share([s["parameters"] for s in seeds]), _share([s["flops"] for s in seeds]))
        accuracies = (f"{100 * statistics.fmean(s[key] for s in seeds):.2f} %" for key in ("dense_accuracy", "accuracy"))
        faster = (f"{statistics.median(s['times_faster'][str(batch)] for s in seeds):.2f}x" for batch in BATCHES)
        body.append([row["case"], f"`{row['method']}`", *shares, *accuracies, points(row["against_dense"]), *faster])
    said = f"{len(content['rows'][0]['seeds'])} paired seeds on the digits, means and 95 % intervals; medians of times"
    return f"{table(header, body)}\n\n{said}; {machine(content)}."


def _share(pairs: list[list[int]]) -> str:
    return f"{statistics.fmean(after / before for before, after in pairs):.0%}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--out", type=Path, default=FOLDER / "simplify.json")
    given = parser.parse_args()
    settle_allocator()
    samples = data.load("digits")
    rows = [measured(*case, given.seeds, samples) for case in CASES]
    replace(given.out, json.dumps({"environment": provenance("cpu"), "rows": rows}, indent=1))
    print(render(json.loads(given.out.read_text())))


if __name__ == "__main__":
    main()
