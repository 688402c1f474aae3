"""What a skip means, in plain PyTorch: the stock call with a detached weight."""

import copy
from collections.abc import Callable

import torch
import torch.nn as nn
import torch.nn.functional as F
from torch import Tensor

import wuskern as wk
from tests.accuracy import assert_as_right_as_stock

Gradients = dict[str, Tensor | None]
Use = Callable[[nn.Module, Tensor], Tensor]
Change = Callable[[nn.Module], nn.Module]


class PlainLinear(nn.Linear):
    skip = False

    def forward(self, input: Tensor) -> Tensor:
        return F.linear(input, self.weight.detach() if self.skip else self.weight, self.bias)


class PlainConv2d(nn.Conv2d):
    skip = False

    def forward(self, input: Tensor) -> Tensor:
        return self._conv_forward(input, self.weight.detach() if self.skip else self.weight, self.bias)


def plain(model: nn.Module) -> nn.Module:
    """Gives every nn.Linear and nn.Conv2d the flag ``skip``, in place."""
    for module in model.modules():
        module.__class__ = {nn.Linear: PlainLinear, nn.Conv2d: PlainConv2d}.get(type(module), type(module))
    return model


def set_flags(model: nn.Module, skip: bool) -> nn.Module:
    for module in model.modules():
        if hasattr(module, "skip"):
            module.skip = skip
    return model


def gradients(model: nn.Module, x: Tensor, use: Use = nn.Module.__call__) -> Gradients:
    """The output ``y`` of ``use(model, x)``, and the gradients of ``x`` and all parameters for a fixed random dy."""
    x, dx = x.detach().requires_grad_(), []
    x.register_hook(dx.append)  # x.grad would have the strides of x, whatever backward gave
    y = use(model, x)
    dy = torch.randn(y.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    y.backward(torch.empty_like(y).copy_(dy.to(torch.bfloat16)))  # values that every dtype holds exactly; laid out as y
    grads = {name: p.grad for name, p in model.named_parameters()}
    model.zero_grad()  # lets go of them: Module.double would change them
    return {"y": y.detach(), "x": dx[0] if dx else None, **grads}


def assert_same_bits(ours: Gradients, stock: Gradients) -> None:
    assert ours.keys() == stock.keys()
    for name, value in stock.items():
        assert (ours[name] is None) == (value is None), name
        assert value is None or (torch.equal(ours[name], value) and ours[name].stride() == value.stride()), name


def assert_all_as_right(ours: Gradients, stock: Gradients, exact: Gradients) -> None:
    assert ours.keys() == stock.keys()
    for name, value in stock.items():
        assert (ours[name] is None) == (value is None), name
        if value is not None:
            assert_as_right_as_stock(ours[name], value, exact[name])


def check(stock: nn.Module, x: Tensor, use: Use = nn.Module.__call__, change: Change = lambda model: model) -> None:
    """The converted model against its stock twin, both after ``change`` and in ``use``.

    Dense: the same bits. Skip: every gradient as right as the oracle's in the same dtype, and missing where it misses.
    """
    ours = change(wk.convert(copy.deepcopy(stock)))
    x = x.to(next(ours.parameters()).dtype)
    oracle = set_flags(change(plain(copy.deepcopy(stock))), True)
    assert_same_bits(gradients(ours, x, use), gradients(change(copy.deepcopy(stock)), x, use))
    expected, exact = gradients(oracle, x, use), gradients(oracle.double(), x.double(), use)
    assert_all_as_right(gradients(set_flags(ours, True), x, use), expected, exact)
