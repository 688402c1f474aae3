"""Layers whose tokens differ in size, and their gradients by stock PyTorch: shared by the tests of column-row sampling."""

import copy
import math

import torch
import torch.nn as nn

import wuskern as wk
from tests.cases import CONVS


def backward(layer, x, dy):
    """The gradients of x, weight and bias."""
    layer.zero_grad()
    x = x.detach().requires_grad_()
    layer(x).backward(dy)
    return x.grad, layer.weight.grad, None if layer.bias is None else layer.bias.grad


def exact(layer, x, dy, index, scale=None):
    """The weight's gradient in float64, summed over these tokens with these scales, token by token, by stock PyTorch."""
    twin = copy.deepcopy(layer).double()
    twin.skip, twin.rows, twin.tokens = False, None, None
    feature = 3 if isinstance(layer, nn.Conv2d) else 1
    x, dy = x.flatten(0, -feature - 1).double(), dy.flatten(0, -feature - 1).double()
    total = torch.zeros_like(twin.weight)
    for i, factor in zip(index, scale if scale is not None else [1.0] * len(index), strict=True):
        total += backward(twin, x[i : i + 1], factor * dy[i : i + 1])[1]
    return total


def sizes_by_hand(x, dy, feature):
    """The size of what each token adds, in plain Python."""
    rows = [t.flatten(0, -feature - 1).flatten(1).double().tolist() for t in (x, dy)]
    return [math.hypot(*a) * math.hypot(*b) for a, b in zip(*rows, strict=True)]


def problem(name, dtype=torch.float32):
    """A layer, an input and an output's gradient whose tokens differ much in size. "linear", or a name of ``CONVS``."""
    if name == "linear":
        layer, x = wk.SkippableLinear(12, 7), torch.randn(5, 6, 12)
        x, dy = x * torch.rand(5, 6, 1).exp() ** 3, torch.randn(5, 6, 7)
    else:
        case = next(case for case in CONVS if case.name == name)
        layer = wk.convert(nn.Sequential(case.layer()))[0]
        x = torch.randn(9, *case.input().shape[1:]) * torch.rand(9, 1, 1, 1).exp() ** 3
        dy = torch.randn_like(layer(x)) * torch.rand(9, 1, 1, 1).exp()
    return layer.to(dtype), x.to(dtype), dy.to(dtype)
