"""A slice of a weight that is a parameter of its own, in plain PyTorch, as PaCA (arXiv 2503.01905) has it: the peer of
``layer.columns``."""

from typing import Any

import torch
import torch.nn as nn
import torch.nn.functional as F
from torch import Tensor

Layer = nn.Linear | nn.Conv2d


class Slice(nn.Module):
    """The chosen columns as a parameter beside a constant weight: in forward both are multiplied, and the difference added."""

    def __init__(self, stock: Layer, columns: Tensor) -> None:
        super().__init__()
        assert stock.bias is not None
        self.stock, self.columns = stock, columns
        self.weight = nn.Parameter(stock.weight.detach().index_select(1, within(stock, columns)).clone())
        self.register_buffer("start", self.weight.detach().clone())
        self.bias = nn.Parameter(stock.bias.detach().clone())

    def forward(self, x: Tensor) -> Tensor:
        stock, change = self.stock, self.weight - self.get_buffer("start")
        weight = stock.weight.detach()
        if isinstance(stock, nn.Linear):
            return F.linear(x, weight, self.bias) + F.linear(x[..., self.columns], change)
        sides: tuple[Any, ...] = stock.stride, stock.padding, stock.dilation, stock.groups
        return F.conv2d(x, weight, self.bias, *sides) + F.conv2d(x[:, self.columns], change, None, *sides)


def groups_of(layer: Layer) -> int:
    return layer.groups if isinstance(layer, nn.Conv2d) else 1


def within(layer: Layer, columns: Tensor) -> Tensor:
    """The columns of the first group: the same are taken of each."""
    return columns[: len(columns) // groups_of(layer)]


def draw_columns(layer: Layer, ratio: float) -> Tensor:
    """A share of the columns at random, ascending, the same ones of each group, at least one."""
    groups, each = groups_of(layer), layer.weight.shape[1]
    of_one = torch.randperm(each)[: max(1, int(ratio * each))].sort().values
    index = (of_one + each * torch.arange(groups)[:, None]).flatten()
    return index.to(layer.weight.device)
