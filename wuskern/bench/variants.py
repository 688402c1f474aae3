"""What ``wuskern bench`` times: one forward and backward of a layer in each of the ways to train it, ours and PyTorch's."""

import copy
from collections.abc import Callable
from typing import NamedTuple

import torch.nn as nn
from torch import Tensor

from wuskern import ops
from wuskern.bench.asked import Asked
from wuskern.bench.plain import PlainTopK
from wuskern.bench.slices import Layer, Slice, draw_columns
from wuskern.choices import Columns, TopK
from wuskern.convert import convert

STOCK, STOCK_SUM = "stock", "stock sum"
SAID = {
    STOCK: "PyTorch's layer, all of which trains",
    "stock frozen": "the same with requires_grad_(False) on its weight",
    "plain rows": "the chosen rows in plain PyTorch: topk, index_select, index_copy",
    "plain columns": "the chosen columns as a parameter of their own, in plain PyTorch",
    "dense": "wuskern's layer, nothing set",
    "skip": "layer.skip = True",
    "rows": "layer.rows = TopK(ratio, scope='both')",
    "columns": "layer.columns = Columns(index), the same share",
    STOCK_SUM: "the sum over dY alone, by PyTorch",
    "bias_grad": "the same by wuskern's operation",
}
Run = Callable[[Tensor, Tensor], object]


class Gradients(NamedTuple):
    """The gradients of the input, the weight (None where it is frozen; of a slice, or whole) and the bias."""

    x: Tensor
    weight: Tensor | None
    bias: Tensor


def step(layer: nn.Module) -> Callable[[Tensor, Tensor], Gradients]:
    """A forward and a backward; the gradients are returned, and nothing is left behind."""
    weight, bias = layer.weight, layer.bias
    assert isinstance(weight, Tensor)
    assert isinstance(bias, Tensor)

    def run(x: Tensor, dy: Tensor) -> Gradients:
        leaf = x.detach().requires_grad_()
        layer(leaf).backward(dy)
        assert leaf.grad is not None
        assert bias.grad is not None
        found = Gradients(leaf.grad, weight.grad, bias.grad)
        weight.grad = bias.grad = None
        return found

    return run


class Variants:
    """Every way to train one layer: ``runs``, by name, of an x and a dy. ``columns``: those that train."""

    def __init__(self, asked: Asked) -> None:
        self.stock: Layer = asked.layer()
        self.columns = draw_columns(self.stock, asked.ratio) if asked.columns else None
        self.k, self.dim = asked.rows, asked.dim
        others = 0 if asked.kind == "linear" else (0, 2, 3)
        self.runs: dict[str, Run] = {name: step(layer) for name, layer in self._layers(asked).items()}
        self.runs[STOCK_SUM] = lambda x, dy: dy.sum(others)  # type: ignore[arg-type]
        self.runs["bias_grad"] = lambda x, dy: ops.bias_grad(dy, self.dim)

    def _layers(self, asked: Asked) -> dict[str, nn.Module]:
        stock, frozen = copy.deepcopy(self.stock), copy.deepcopy(self.stock)
        frozen.weight.requires_grad_(False)
        layers: dict[str, nn.Module] = {STOCK: stock, "stock frozen": frozen, "plain rows": PlainTopK(self.stock, self.k)}
        if self.columns is not None:
            layers["plain columns"] = Slice(copy.deepcopy(self.stock), self.columns)
        ours = {name: convert(copy.deepcopy(self.stock)) for name in ("dense", "skip", "rows", "columns")}
        ours["skip"].skip = True  # type: ignore[assignment]
        ours["rows"].rows = TopK(ratio=asked.ratio, scope="both")  # type: ignore[assignment]
        if self.columns is None:
            del ours["columns"]
        else:
            ours["columns"].columns = Columns(self.columns)  # type: ignore[assignment]
        return layers | ours


def names(asked: Asked) -> list[str]:
    """The names of all variants of a layer, in the order in which they are shown."""
    return [name for name in SAID if asked.columns or "columns" not in name]
