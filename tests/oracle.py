"""What a skip and a choice of rows mean, in plain PyTorch: stock calls with detached operands."""

import copy
from collections.abc import Callable
from typing import Any

import torch
import torch.nn as nn
import torch.nn.functional as F
from torch import Tensor

import wuskern as wk

Gradients = dict[str, Tensor | None]
Use = Callable[[nn.Module, Tensor], Tensor]
Change = Callable[[nn.Module], nn.Module]


class Plain:
    """A layer that lets no gradient through where ``skip`` and ``rows`` say so."""

    skip = False
    rows: wk.Rows | None = None

    def restricted(self, call: Callable[..., Tensor], x: Tensor) -> Tensor:
        weight = self.weight  # read once: a parametrization may compute another one each time
        if self.skip:
            return call(x, weight.detach(), self.bias)
        if self.rows is None:
            return call(x, weight, self.bias)
        chosen = torch.zeros(len(weight), dtype=torch.bool, device=x.device).index_fill_(0, self.rows.index, True)
        passed = x if self.rows.scope == "weight" else x.detach()
        bias = self.bias if self.rows.bias == "dense" or self.bias is None else self.bias.detach()
        units = chosen if weight.ndim == 2 else chosen[:, None, None]
        return torch.where(units, call(x, weight, self.bias), call(passed, weight.detach(), bias))


class PlainLinear(Plain, nn.Linear):
    def forward(self, input: Tensor) -> Tensor:
        return self.restricted(F.linear, input)


class PlainConv2d(Plain, nn.Conv2d):
    def forward(self, input: Tensor) -> Tensor:
        return self.restricted(self._conv_forward, input)


class PlainConv1D(Plain):
    """What Conv1D of transformers becomes: a Linear with the weight ``[in, out]``, which has no rows here."""

    def forward(self, x: Tensor) -> Tensor:
        return self.restricted(lambda x, weight, bias: F.linear(x, weight.t(), bias), x)


def plain(model: nn.Module) -> nn.Module:
    """Gives every nn.Linear, nn.Conv2d and Conv1D of transformers the flags ``skip`` and ``rows``, in place."""
    for module in model.modules():
        known = {nn.Linear: PlainLinear, nn.Conv2d: PlainConv2d}
        if type(module).__name__ == "Conv1D":
            known[type(module)] = type("PlainConv1D", (PlainConv1D, type(module)), {})
        module.__class__ = known.get(type(module), type(module))
    return model


Flag = bool | wk.Rows


def set_flags(model: nn.Module, flag: Flag) -> nn.Module:
    """``skip``, or with a choice of rows ``rows``, of every layer that has them."""
    for module in model.modules():
        if hasattr(module, "skip"):
            module.skip, module.rows = (flag, None) if isinstance(flag, bool) else (False, flag)
    return model


Values = Callable[..., Tensor]  # torch.randn's arguments


def whole(*size: Any, **options: Any) -> Tensor:
    """Whole numbers from -2 to 2: the sums of products of a small layer are exact in every dtype, in any order."""
    return torch.randint(-2, 3, *size, **options)


def gradients(model: nn.Module, x: Tensor, use: Use = nn.Module.__call__, values: Values = torch.randn) -> Gradients:
    """The output ``y`` of ``use(model, x)``, and the gradients of ``x`` and all parameters for a fixed random dy."""
    x, dx = x.detach().requires_grad_(), []
    x.register_hook(dx.append)  # x.grad would have the strides of x, whatever backward gave
    y = use(model, x)
    dy = values(y.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    y.backward(torch.empty_like(y).copy_(dy.to(torch.bfloat16)))  # values that every dtype holds exactly; laid out as y
    grads = {name: p.grad for name, p in model.named_parameters()}
    model.zero_grad()  # lets go of them: Module.double would change them
    return {"y": y.detach(), "x": dx[0] if dx else None, **grads}


def assert_same_bits(ours: Gradients, stock: Gradients) -> None:
    assert ours.keys() == stock.keys()
    for name, value in stock.items():
        assert (ours[name] is None) == (value is None), name
        assert value is None or (torch.equal(ours[name], value) and ours[name].stride() == value.stride()), name


def check(
    stock: nn.Module, x: Tensor, use: Use = nn.Module.__call__, change: Change = lambda model: model, flag: Flag = True
) -> None:
    """The converted model against its stock twin, both after ``change`` and in ``use``.

    Dense: the same bits. With ``flag``, in float64: the oracle's gradients, and none where it has none.
    """
    _check_bits(stock, x, use, change, flag)
    ours, oracle = (set_flags(change(make(copy.deepcopy(stock).double())), flag) for make in (wk.convert, plain))
    found, expected = (gradients(model, x.double(), use) for model in (ours, oracle))
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert (found[name] is None) == (value is None), name
        if value is not None:
            torch.testing.assert_close(found[name], value, msg=lambda m, n=name: f"{n}: {m}")


def check_layer(
    stock: nn.Module, x: Tensor, use: Use = nn.Module.__call__, change: Change = lambda layer: layer, flag: Flag = True
) -> None:
    """The same of one layer in its own dtype and in whole numbers, where gradients are exact and rounded once."""
    _check_bits(stock, x, use, change, flag)
    stock = _in_whole_numbers(stock)
    ours, oracle = (set_flags(change(make(copy.deepcopy(stock))), flag) for make in (wk.convert, plain))
    x = torch.empty_like(x, dtype=next(ours.parameters()).dtype).copy_(whole(x.shape))
    found, exact = gradients(ours, x, use, whole), gradients(oracle.double(), x.double(), use, whole)
    assert found.keys() == exact.keys()
    for name in found.keys() - {"y"}:
        assert (found[name] is None) == (exact[name] is None), name
        assert found[name] is None or torch.equal(found[name], exact[name].to(found[name].dtype)), name


def _check_bits(stock: nn.Module, x: Tensor, use: Use, change: Change, flag: Flag) -> None:
    """Stock's without a flag, and of the output with one too."""
    ours, stock = change(wk.convert(copy.deepcopy(stock))), change(copy.deepcopy(stock))
    x = x.to(next(ours.parameters()).dtype)
    expected = gradients(stock, x, use)
    assert_same_bits(gradients(ours, x, use), expected)
    assert torch.equal(gradients(set_flags(ours, flag), x, use)["y"], gradients(stock, x, use)["y"])


def _in_whole_numbers(layer: nn.Module) -> nn.Module:
    """A row of the weight has 16 entries of 1 or -1, or as many as there are: its norm is a whole number too."""
    layer = copy.deepcopy(layer)
    with torch.no_grad():
        signs = torch.randn_like(layer.weight, dtype=torch.float32).sign()
        order = torch.rand(signs.flatten(1).shape).argsort(1).view(signs.shape)
        layer.weight.copy_(signs * (order < 16))
        if layer.bias is not None:
            layer.bias.copy_(whole(layer.bias.shape))
    return layer
