"""A layer of PyTorch's beside its lean twin, on the same input."""

import copy
from collections.abc import Callable
from typing import Any

import torch
import torch.nn as nn
from torch import Tensor

from wuskern.memory.candidates import make_lean
from wuskern.memory.layers import Lean

ACTIVATIONS: dict[str, Callable[..., nn.Module]] = {
    "ReLU": nn.ReLU,
    "ReLU6": nn.ReLU6,
    "LeakyReLU": lambda inplace=False: nn.LeakyReLU(0.1, inplace),
    "negative slope": lambda inplace=False: nn.LeakyReLU(-0.2, inplace),
    "slope of zero": lambda inplace=False: nn.LeakyReLU(0.0, inplace),
    "Dropout": lambda inplace=False: nn.Dropout(0.1, inplace),
    "half dropped": lambda inplace=False: nn.Dropout(0.5, inplace),
}


def lean(layer: nn.Module) -> nn.Module:
    """A copy of the layer that keeps less."""
    twin = copy.deepcopy(layer)
    make_lean(twin)
    assert isinstance(twin, Lean)
    return twin


def run(layer: nn.Module, x: Tensor, dy: Tensor | None = None, **calls: Any) -> tuple[Tensor, Tensor, Tensor]:
    """The output, the gradient of x, and what x became, with the same random numbers each time."""
    leaf = x.detach().requires_grad_()
    inner = leaf.mul(1)  # may be changed in place, and lies as x does
    assert inner.stride() == x.stride() or not x.is_contiguous()
    torch.manual_seed(3)
    y = layer(inner)
    dy = torch.ones_like(y) if dy is None else dy
    y.backward(dy)
    assert leaf.grad is not None
    return y.detach(), leaf.grad, inner.detach()


def assert_same_bits(ours: Tensor, stock: Tensor) -> None:
    assert ours.dtype is stock.dtype
    torch.testing.assert_close(ours, stock, rtol=0, atol=0, equal_nan=True)
    assert torch.equal(torch.signbit(ours), torch.signbit(stock)) or bool(stock.isnan().any())
    assert ours.stride() == stock.stride()
