"""The time of each layer that keeps less, forward and backward, over PyTorch's layer, in turn."""

import copy
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn as nn
from torch import Tensor

from wuskern.bench.turns import iqr
from wuskern.memory.candidates import make_lean

WARM_UP, SETS = 3, 3
NETWORK_INPUT, TEXT = (8, 256, 56, 56), (16, 128, 1536)


@dataclass(frozen=True)
class Case:
    """A layer and its input."""

    name: str
    make: Callable[[], nn.Module]
    shape: tuple[int, ...]
    dtype: torch.dtype = torch.float32
    channels_last: bool = False

    def inputs(self) -> list[tuple[Tensor, Tensor]]:
        form = torch.channels_last if self.channels_last else torch.contiguous_format
        return [
            tuple(torch.randn(self.shape).to(self.dtype).contiguous(memory_format=form) for _ in range(2)) for _ in range(SETS)
        ]


def _norm() -> nn.Module:
    layer = nn.BatchNorm2d(256).eval()
    layer.weight.requires_grad_(False)
    return layer


LAYERS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "ReLU": (nn.ReLU, NETWORK_INPUT),
    "ReLU, in place": (lambda: nn.ReLU(inplace=True), NETWORK_INPUT),
    "ReLU6": (nn.ReLU6, NETWORK_INPUT),
    "ReLU6, in place": (lambda: nn.ReLU6(inplace=True), NETWORK_INPUT),
    "LeakyReLU": (nn.LeakyReLU, NETWORK_INPUT),
    "Dropout": (lambda: nn.Dropout(0.1), TEXT),
    "BatchNorm2d in evaluation, biases alone": (_norm, NETWORK_INPUT),
}


def cases() -> list[Case]:
    found = []
    for name, (make, shape) in LAYERS.items():
        for dtype in (torch.float32, torch.bfloat16):
            found += [Case(name, make, shape, dtype, last) for last in ((False, True) if len(shape) == 4 else (False,))]
    return found


def measure(rounds: int) -> list[dict[str, Any]]:
    return [_row(case, rounds) for case in cases()]


def _row(case: Case, rounds: int) -> dict[str, Any]:
    torch.manual_seed(0)
    stock = case.make().to(case.dtype)
    ours = copy.deepcopy(stock)
    make_lean(ours)
    inputs = case.inputs()
    _verify(stock, ours, *inputs[0])
    seconds: dict[str, list[float]] = {"stock": [], "ours": []}
    for turn in range(WARM_UP + rounds):
        x, dy = inputs[turn % SETS]
        for name in ("stock", "ours") if turn % 2 else ("ours", "stock"):
            taken = _step(stock if name == "stock" else ours, x, dy)
            if turn >= WARM_UP:
                seconds[name].append(taken)
    ratios = [a / b for a, b in zip(seconds["ours"], seconds["stock"], strict=True)]
    return {
        "layer": case.name,
        "shape": list(case.shape),
        "dtype": str(case.dtype).removeprefix("torch."),
        "channels_last": case.channels_last,
        "stock_ms": round(1e3 * statistics.median(seconds["stock"]), 3),
        "ours_ms": round(1e3 * statistics.median(seconds["ours"]), 3),
        "over_stock": round(statistics.median(ratios), 3),
        "spread": round(iqr(ratios), 3),
    }


class _Front(torch.autograd.Function):
    """A copy, which the layer may change, with a backward that costs nothing."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> Tensor:
        return dy


def _step(layer: nn.Module, x: Tensor, dy: Tensor) -> float:
    """The seconds of forward and backward."""
    leaf = x.detach().requires_grad_()
    wanted = [leaf, *(p for p in layer.parameters() if p.requires_grad)]
    given = _Front.apply(leaf)
    start = time.perf_counter()
    torch.autograd.grad(layer(given), wanted, dy)
    return time.perf_counter() - start


def _verify(stock: nn.Module, ours: nn.Module, x: Tensor, dy: Tensor) -> None:
    grads = []
    for layer in (stock, ours):
        leaf = x.detach().requires_grad_()
        torch.manual_seed(1)
        layer(leaf.mul(1)).backward(dy)
        grads.append(leaf.grad)
    torch.testing.assert_close(*grads)
