"""What zeros save in time on this CPU: inference by PyTorch's sparse kernels, and what masks cost a training step.

    python -m bench.masks [--out bench/results/masks.json]

Inference: the forward of a Linear whose weight has zeros at random, by the dense kernel and by ``policies.sparse.pack``: CSR
for single weights, BSR for blocks. Training, where the kernels are dense ones: a step with masks over one without, and the
change of all masks in steps. Everything is verified before it is timed. Variants are interleaved; ratios are taken within a
round, and are their medians.
"""

import argparse
import copy
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn as nn
from torch import Tensor

import wuskern as wk
from bench.results import FOLDER, provenance
from wuskern.bench.clocks import settle_allocator
from wuskern.bench.turns import iqr
from wuskern.policies import MEST, RigL, SparseTraining
from wuskern.policies.sparse import pack
from wuskern.train.results import replace

FORMAT = 1
LINEARS = ((512, 1024, 1024), (64, 4096, 1024))  # tokens, in, out
SPARSITIES = (0.5, 0.8, 0.9, 0.95)
BLOCKS = (1, 16, 32, 64)
POLICIES: dict[str, Callable[[nn.Module], SparseTraining]] = {
    "mest": lambda model: MEST(model, epochs=10**6, interval=1),
    "rigl": lambda model: RigL(model, epochs=10**6, interval=10**6),
}
OPTIMIZERS: dict[str, Callable[[Any], torch.optim.Optimizer]] = {
    "SGD, momentum": lambda p: torch.optim.SGD(p, lr=1e-3, momentum=0.9),
    "AdamW": lambda p: torch.optim.AdamW(p, lr=1e-4),
}
TOKENS, WIDTH, DEPTH = 512, 1024, 4  # of the network that trains
WARM_UP, ROUNDS = 2, 9

Seconds = dict[str, list[float]]  # by variant, of each round


def rounds_of(variants: dict[str, Callable[[int], object]], rounds: int) -> Seconds:
    """Each variant once in each round, in an order that rotates. They are given the round's number."""
    names, seconds = list(variants), {name: [] for name in variants}
    for turn in range(WARM_UP + rounds):
        shift = turn % len(names)
        for name in names[shift:] + names[:shift]:
            start = time.perf_counter()
            variants[name](turn)
            if turn >= WARM_UP:
                seconds[name].append(time.perf_counter() - start)
    return seconds


def ratio(over: list[float], under: list[float]) -> dict[str, float]:
    values = [a / b for a, b in zip(over, under, strict=True)]
    return {"median": round(statistics.median(values), 3), "iqr": round(iqr(values), 3)}


def milliseconds(seconds: list[float]) -> float:
    return round(1e3 * statistics.median(seconds), 3)


# ---- inference ------------------------------------------------------------------------------------------------------


def inference(linear: tuple[int, int, int], block: int, sparsity: float, rounds: int) -> dict[str, Any]:
    tokens, features, out = linear
    torch.manual_seed(0)
    layer = wk.convert(nn.Linear(features, out))
    pattern = "block" if block > 1 else "unstructured"
    packed = pack(MEST(layer, epochs=1, sparsity=sparsity, pattern=pattern, block=block, dense=()))
    inputs = [torch.randn(tokens, features) for _ in range(3)]
    with torch.no_grad():
        torch.testing.assert_close(packed(inputs[0]), layer(inputs[0]), rtol=1e-4, atol=1e-4)
        variants = {"dense": lambda turn: layer(inputs[turn % 3]), "packed": lambda turn: packed(inputs[turn % 3])}
        seconds = rounds_of(variants, rounds)
    return {
        "kind": "inference",
        "case": f"{tokens} x {features} -> {out}",
        "block": block,
        "sparsity": sparsity,
        "milliseconds": {name: milliseconds(taken) for name, taken in seconds.items()},
        "faster": ratio(seconds["dense"], seconds["packed"]),
    }


# ---- training -------------------------------------------------------------------------------------------------------


class Training:
    """A model of its own, and steps of it."""

    def __init__(self, model: nn.Module, optimizer: str, policy: str | None) -> None:
        self.model = copy.deepcopy(model)
        self.optimizer = OPTIMIZERS[optimizer](self.model.parameters())
        self.policy = POLICIES[policy](self.model) if policy else None
        if self.policy is not None:
            self.policy.attach(self.optimizer)

    def step(self, x: Tensor) -> None:
        if self.policy is not None:
            self.policy.before_step()
        self.model(x).square().mean().backward()
        self.optimizer.step()
        if self.policy is not None:
            self.policy.after_step()
        self.optimizer.zero_grad()

    def change(self, x: Tensor) -> None:
        """A step that changes all masks."""
        assert self.policy is not None
        self.policy.due = set(self.policy.masks)
        self.step(x)

    def verify(self, x: Tensor) -> None:
        assert self.policy is not None
        before = dict(self.policy.masks)
        self.change(x)
        for name, mask in self.policy.masks.items():
            assert not torch.equal(mask, before[name]), f"{name}: its mask did not change"
            assert mask.sum() == before[name].sum(), f"{name}: another number of weights trains"
            assert not self.policy.weights[name][~mask].any(), f"{name}: a masked weight is not zero"


def training(optimizer: str, policy: str, rounds: int) -> dict[str, Any]:
    torch.manual_seed(0)
    layers = [part for _ in range(DEPTH) for part in (nn.Linear(WIDTH, WIDTH), nn.ReLU())]
    model = wk.convert(nn.Sequential(*layers, nn.Linear(WIDTH, 10)))
    inputs = [torch.randn(TOKENS, WIDTH) for _ in range(3)]
    dense, masked, changing = (Training(model, optimizer, name) for name in (None, policy, policy))
    changing.verify(inputs[0])
    steps = {"dense": dense.step, "masked": masked.step, "changing": changing.change}
    seconds = rounds_of({name: lambda turn, f=f: f(inputs[turn % 3]) for name, f in steps.items()}, rounds)
    change = [a - b for a, b in zip(seconds["changing"], seconds["masked"], strict=True)]
    return {
        "kind": "training",
        "case": f"{DEPTH} Linears of {WIDTH}, {TOKENS} tokens",
        "optimizer": optimizer,
        "policy": policy,
        "milliseconds": {name: milliseconds(taken) for name, taken in seconds.items()},
        "over_dense": ratio(seconds["masked"], seconds["dense"]),
        "change_in_steps": ratio(change, seconds["dense"]),
    }


# ---- both -----------------------------------------------------------------------------------------------------------


def measure(rounds: int = ROUNDS) -> list[dict[str, Any]]:
    grid = [(linear, block, sparsity) for linear in LINEARS for block in BLOCKS for sparsity in SPARSITIES]
    rows = [inference(*case, rounds) for case in grid]
    return rows + [training(optimizer, policy, rounds) for optimizer in OPTIMIZERS for policy in POLICIES]


def render(content: dict[str, Any]) -> str:
    """Two tables: how many times faster a packed layer is, and what masks cost in training."""
    rows = [row for row in content["rows"] if row["kind"] == "inference"]
    sparsities = sorted({row["sparsity"] for row in rows})
    lines = [
        f"| inference: tokens x in -> out | zeros in | {' | '.join(f'{s:.0%} zeros' for s in sparsities)} |",
        f"| --- | --- | {' | '.join('---' for _ in sparsities)} |",
    ]
    for case, block in dict.fromkeys((row["case"], row["block"]) for row in rows):
        found = {row["sparsity"]: _faster(row["faster"]) for row in rows if (row["case"], row["block"]) == (case, block)}
        layout = "single weights, CSR" if block == 1 else f"blocks of {block}, BSR"
        lines.append(f"| {case} | {layout} | {' | '.join(found.get(s, '-') for s in sparsities)} |")
    lines += ["", "| training: 90 % zeros | policy | optimizer | dense, ms | a step with masks | a change of all masks |"]
    lines.append("| --- | --- | --- | --- | --- | --- |")
    for row in content["rows"]:
        if row["kind"] == "training":
            cost, change = row["over_dense"]["median"], row["change_in_steps"]["median"]
            dense = f"{row['milliseconds']['dense']:.1f}"
            lines.append(
                f"| {row['case']} | `{row['policy']}` | {row['optimizer']} | {dense} | {cost:.2f}x | {change:.1f} steps |"
            )
    e = content["environment"]
    return "\n".join(lines) + f"\n\n{e['processor']}, {e['threads']} threads, torch {e['torch']}, {content['rounds']} rounds."


def _faster(value: dict[str, float]) -> str:
    slower = " **slower**" if round(value["median"], 2) < 1 else ""
    return f"{value['median']:.2f}x{slower}"


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.masks", description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=FOLDER / "masks.json", help="results, JSON [%(default)s]")
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    arguments = parser.parse_args()
    settle_allocator()
    rows = measure(arguments.rounds)
    content = {"format": FORMAT, "environment": provenance("cpu"), "rounds": arguments.rounds, "rows": rows}
    replace(arguments.out, json.dumps(content, indent=1))
    print(render(content))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
