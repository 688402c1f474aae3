"""Whole training steps on a GPU, eager and as CUDA graphs: dense, stock frozen, skipped, and a tenth of the rows.

"ours" skips. "frozen" is the stock layer whose weights take no gradient. "top-k" trains 10 % of the rows, scope "both", with
torch's AdamW; "compact" the same with ``wk.optim.AdamW``, eager alone: its step reads numbers of the host and refuses to be
captured. Each trains a model of its own, all from the same start, and is verified first: which rows of its weights move.
"""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn as nn
from torch import Tensor

import wuskern as wk
from bench.gpu.models import NETWORKS, TINY, Network
from wuskern.modules import skippable_layers

RATIO = 0.1
MODES = ("ours", "dense", "frozen", "top-k", "compact")
MOVED = {"dense": (0.5, 1.0), "top-k": (0.5 * RATIO, 0.5), "compact": (0.5 * RATIO, 0.5)}  # shares of the rows, in two steps
ROUNDS = 7


def pytest_generate_tests(metafunc):
    metafunc.parametrize("network", NETWORKS if metafunc.config.getoption("--device") == "cuda" else TINY, ids=str)


class Variant:
    """One way to train a copy of ``model``. A call takes a step."""

    def __init__(self, model: nn.Module, network: Network, mode: str, graphed: bool, device: str) -> None:
        self.model, self.network, self.mode = wk.convert(copy.deepcopy(model)), network, mode
        wk.set_skip(self.model, mode == "ours")
        wk.set_rows(self.model, wk.TopK(ratio=RATIO, scope="both") if mode in ("top-k", "compact") else None)
        for layer in skippable_layers(self.model).values():
            layer.weight.requires_grad_(mode != "frozen")
        self.optimizer = self._optimizer(device, graphed)
        self.call: Callable[..., Any] = graph_of(self.model, self.step, device) if graphed else self.step

    def _optimizer(self, device: str, graphed: bool) -> torch.optim.Optimizer:
        parameters = [p for p in self.model.parameters() if p.requires_grad]
        if self.mode == "compact":
            return wk.optim.AdamW(parameters, lr=1e-3, weight_decay=0.0, fused=True)
        on_gpu = {"capturable": graphed} if device == "cuda" else {}
        return torch.optim.AdamW(parameters, lr=1e-3, weight_decay=0.0, fused=True, **on_gpu)

    def step(self, x: Tensor, y: Tensor) -> Tensor:
        self.optimizer.zero_grad(set_to_none=True)
        loss = self.network.loss(self.model(x), y)
        loss.backward()
        self.optimizer.step()
        return loss.detach()

    def weights(self) -> dict[str, Tensor]:
        return {name: layer.weight.detach().clone() for name, layer in skippable_layers(self.model).items()}


class _Again(wk.GraphedStep):
    """Where there is no GPU: the step run again, on the tensors that a graph would read."""

    def _capture(self, inputs):
        return lambda: self._step(*inputs)


def graph_of(model: nn.Module, step: Callable[..., Any], device: str) -> wk.GraphedStep:
    return (wk.GraphedStep if device == "cuda" else _Again)(model, step)


def verify(variants: dict[str, Variant], x: Tensor, y: Tensor) -> None:
    """Two steps of each. Raises ``AssertionError`` where a variant does not train what it says."""
    for name, variant in variants.items():
        before = variant.weights()
        losses = [variant.call(x, y).float().item() for _ in range(2)]
        assert all(map(torch.isfinite, torch.tensor(losses))), (name, losses)
        after = variant.weights()
        moved = sum((after[n] != w).flatten(1).any(1).sum().item() for n, w in before.items())
        share = moved / sum(len(w) for w in before.values())
        least, most = MOVED.get(variant.mode, (0.0, 0.0))
        assert least <= share <= most, f"{name}: {share:.1%} of the rows moved"


@pytest.mark.parametrize("graphed", [False, True], ids=["eager", "graph"])
def test_steps(network, graphed, device, race):
    dtype = torch.bfloat16 if device == "cuda" else torch.float32
    like = torch.channels_last if len(network.shape) == 4 else torch.preserve_format
    model = network.make().to(device, dtype).to(memory_format=like)
    modes = [mode for mode in MODES if not (graphed and mode == "compact")]
    variants = {mode: Variant(model, network, mode, graphed, device) for mode in modes}
    race(
        {mode: variant.call for mode, variant in variants.items()},
        group=f"gpu step, {'graph' if graphed else 'eager'}",
        case=network.name,
        inputs=lambda: network.batch(device, dtype),
        verify=lambda results, x, y: verify(variants, x, y),
        peer="dense",
        derived={f"{m}_over_dense": lambda t, m=m: t["dense"] / t[m] for m in modes if m not in ("ours", "dense")},
        flops=0,
        copies=2,
        rounds=ROUNDS,
        batch=network.shape[0],
    )
