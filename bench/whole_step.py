"""A whole training step, part by part: eager and compiled, dense, skipping, and training 5 % of the rows compactly.

    python -m bench.whole_step [--out bench/results/whole-step.json]

Forward, backward and optimizer are timed inside each step. Two more variants split the backward: one that only passes
gradients on (dgrad), and the skip, which adds the biases'; what a variant takes beyond the skip is its wgrad. Every variant
trains a model of its own, all from the same start, and is verified before anything is timed: compiled as eager, a skip that
leaves weights alone, rows that are trained and others that are not. Variants are interleaved; medians over rounds.
"""

import argparse
import copy
import itertools
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn as nn
import torch.nn.functional as F
from torch import Tensor

import wuskern as wk
from bench.results import FOLDER, provenance
from wuskern.bench.clocks import settle_allocator
from wuskern.bench.turns import iqr
from wuskern.modules import skippable_layers
from wuskern.train.results import replace

FORMAT = 1
RATIO = 0.05
MODES = ("dense", "skip", "rows")
CALLS = ("eager", "compiled")
PHASES = ("forward", "backward", "optimizer")
WARM_UP, ROUNDS = 3, 11

Seconds = dict[str, float]  # by phase


class Block(nn.Module):
    """A block of a GPT: attention and a feed-forward part, each behind a norm."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm, self.qkv, self.out = nn.LayerNorm(width), nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.mlp = nn.Sequential(
            nn.LayerNorm(width), nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width)
        )  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (t.unflatten(-1, (self.heads, -1)).transpose(1, 2) for t in self.qkv(self.norm(x)).chunk(3, -1))
        x = x + self.out(F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).flatten(-2))
        return x + self.mlp(x)


def mlp(width: int = 4096, depth: int = 3) -> nn.Module:
    layers = [nn.Sequential(nn.Linear(width, width), nn.ReLU()) for _ in range(depth)]
    return nn.Sequential(*itertools.chain.from_iterable(layers))


def gpt(width: int = 768, depth: int = 2, heads: int = 12) -> nn.Module:
    return nn.Sequential(*(Block(width, heads) for _ in range(depth)))


MODELS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "MLP, 3 layers of 4096": (mlp, (512, 4096)),
    "GPT, 2 blocks of 768": (gpt, (4, 256, 768)),
}


# ---- a variant ------------------------------------------------------------------------------------------------------


class Variant:
    """One way to take a step, and the model that it trains."""

    def __init__(self, model: nn.Module, mode: str, compiled: bool) -> None:
        self.model, self.mode = wk.convert(copy.deepcopy(model)), mode
        wk.set_skip(self.model, mode in ("skip", "dgrad"))
        wk.set_rows(self.model, wk.TopK(ratio=RATIO) if mode == "rows" else None)
        for layer in skippable_layers(self.model).values():
            layer.bias.requires_grad_(mode != "dgrad")
        kind = wk.optim.AdamW if mode == "rows" else torch.optim.AdamW
        self.optimizer = kind(self.model.parameters(), lr=1e-4, weight_decay=0.0, fused=True)
        self.call = torch.compile(self.model, fullgraph=True) if compiled else self.model

    def step(self, x: Tensor) -> Seconds:
        times = [time.perf_counter()]
        loss = self.call(x.detach().requires_grad_()).square().mean()
        times.append(time.perf_counter())
        loss.backward()
        times.append(time.perf_counter())
        self.optimizer.step()
        self.optimizer.zero_grad()
        times.append(time.perf_counter())
        return {phase: b - a for phase, (a, b) in zip(PHASES, itertools.pairwise(times), strict=True)}

    def weights(self) -> dict[str, Tensor]:
        return {name: layer.weight.detach().clone() for name, layer in skippable_layers(self.model).items()}


def variants(model: nn.Module) -> dict[tuple[str, str], Variant]:
    return {(call, mode): Variant(model, mode, call == "compiled") for call in CALLS for mode in (*MODES, "dgrad")}


def verify(found: dict[tuple[str, str], Variant], x: Tensor) -> None:
    """Two steps of each. Raises ``AssertionError`` where a variant does not train what it says."""
    for (call, mode), variant in found.items():
        before = variant.weights()
        for _ in range(2):
            variant.step(x)
        for name, weight in variant.weights().items():
            moved = (weight != before[name]).flatten(1).any(1).float().mean().item()
            least, most = {"dense": (0.5, 1), "rows": (0.5 * RATIO, 2 * RATIO)}.get(mode, (0, 0))
            assert least <= moved <= most, f"{call} {mode}: {moved:.1%} of the rows of {name} moved"
            eager = skippable_layers(found["eager", mode].model)[name].weight
            distance = (weight - eager).norm() / (eager - before[name]).norm().clamp(min=1e-9)
            assert mode in ("skip", "dgrad") or distance < 0.1, f"{call} {mode}: {name} is not where eager has it"


# ---- measuring ------------------------------------------------------------------------------------------------------


def measure(name: str, rounds: int = ROUNDS) -> list[dict[str, Any]]:
    """A row for each call and mode: the phases, and the split of the backward, in milliseconds."""
    make, shape = MODELS[name]
    torch.manual_seed(0)
    found = variants(make())
    verify(found, torch.randn(shape))
    inputs = [torch.randn(shape) for _ in range(4)]
    seconds: dict[tuple[str, str], list[Seconds]] = {key: [] for key in found}
    for turn in range(WARM_UP + rounds):
        for key in [*found][turn % len(found) :] + [*found][: turn % len(found)]:
            taken = found[key].step(inputs[turn % len(inputs)])
            if turn >= WARM_UP:
                seconds[key].append(taken)
    return [row(name, call, mode, seconds) for call in CALLS for mode in MODES]


def row(name: str, call: str, mode: str, seconds: dict[tuple[str, str], list[Seconds]]) -> dict[str, Any]:
    def median(mode: str, phase: str, call: str = call) -> float:
        return 1e3 * statistics.median(taken[phase] for taken in seconds[call, mode])

    totals = {key: [sum(taken.values()) for taken in rounds] for key, rounds in seconds.items()}
    dgrad, skip, backward = (median(m, "backward") for m in ("dgrad", "skip", mode))
    parts = {
        "fprop": median(mode, "forward"),
        "dgrad": dgrad,
        "bias": skip - dgrad,
        "wgrad": backward - skip,
        "optimizer": median(mode, "optimizer"),
    }

    def times(over: tuple[str, str]) -> float:
        return statistics.median(b / a for a, b in zip(totals[call, mode], totals[over], strict=True))

    mine = totals[call, mode]
    return {
        "model": name,
        "call": call,
        "mode": mode,
        "milliseconds": {part: round(value, 3) for part, value in parts.items()},
        "step": round(1e3 * statistics.median(mine), 3),
        "spread": round(iqr(mine) / statistics.median(mine), 4),
        "over_dense": round(times((call, "dense")), 3),
        "over_eager": round(times(("eager", mode)), 3),
    }


def render(content: dict[str, Any]) -> str:
    lines = [
        "| model | call | mode | fprop | dgrad | bias | wgrad | optimizer | step, ms | over dense | over eager |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for r in content["rows"]:
        parts = " | ".join(f"{value:.1f}" for value in r["milliseconds"].values())
        slower = " **slower**" if round(r["over_eager"], 2) < 1 else ""
        over = f"{r['over_dense']:.2f}x | {r['over_eager']:.2f}x{slower}"
        lines.append(f"| {r['model']} | {r['call']} | {r['mode']} | {parts} | {r['step']:.1f} | {over} |")
    e = content["environment"]
    return "\n".join(lines) + f"\n\n{e['processor']}, {e['threads']} threads, torch {e['torch']}, {content['rounds']} rounds."


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.whole_step", description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=FOLDER / "whole-step.json", help="results, JSON [%(default)s]")
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    arguments = parser.parse_args()
    settle_allocator()
    rows = [row for name in MODELS for row in measure(name, arguments.rounds)]
    content = {"format": FORMAT, "environment": provenance("cpu"), "rounds": arguments.rounds, "rows": rows}
    replace(arguments.out, json.dumps(content, indent=1))
    print(render(content))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
