"""A stand-in for ``Conv1D`` of transformers, which need not be installed."""

import sys
import types

import torch
import torch.nn as nn
from torch import Tensor

import wuskern as wk
from wuskern.layers import conv1d


class Conv1D(nn.Module):
    """A linear layer with a weight ``[in, out]``, of the attributes and calls of the real one."""

    def __init__(self, nf: int, nx: int) -> None:
        super().__init__()
        self.nf, self.nx = nf, nx
        self.weight = nn.Parameter(torch.randn(nx, nf) / 4)
        self.bias = nn.Parameter(torch.randn(nf))

    def __repr__(self) -> str:
        return f"Conv1D(nf={self.nf}, nx={self.nx})"

    def forward(self, x: Tensor) -> Tensor:
        shape = x.size()[:-1] + (self.nf,)  # noqa: RUF005
        return torch.addmm(self.bias, x.view(-1, x.size(-1)), self.weight).view(shape)


def module() -> types.ModuleType:
    """A module that holds the stand-in, for ``sys.modules``."""
    made = types.ModuleType(conv1d.HOME)
    made.Conv1D = Conv1D
    return made


def install() -> None:
    """Puts the stand-in where transformers would have its class, for the rest of the process."""
    sys.modules[conv1d.HOME] = module()


def converted(nf: int, nx: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> nn.Module:
    torch.manual_seed(seed)
    return wk.convert(Conv1D(nf, nx).to(dtype))


def linear_of(layer: nn.Module) -> nn.Linear:
    """The nn.Linear with the transposed weight and the same bias."""
    inputs, out = layer.weight.shape
    linear = nn.Linear(inputs, out, dtype=layer.weight.dtype)
    with torch.no_grad():
        linear.weight.copy_(layer.weight.t())
        linear.bias.copy_(layer.bias)
    return linear
