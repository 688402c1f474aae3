"""What a skip and a choice of rows mean, in plain PyTorch: stock calls with detached operands."""

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


def plain(model: nn.Module) -> nn.Module:
    """Gives every nn.Linear and nn.Conv2d the flags ``skip`` and ``rows``, in place."""
    for module in model.modules():
        module.__class__ = {nn.Linear: PlainLinear, nn.Conv2d: PlainConv2d}.get(type(module), type(module))
    return model


Flag = bool | wk.Rows


def set_flags(model: nn.Module, flag: Flag) -> nn.Module:
    """``skip``, or with a choice of rows ``rows``, of every layer that has them."""
    for module in model.modules():
        if hasattr(module, "skip"):
            module.skip, module.rows = (flag, None) if isinstance(flag, bool) else (False, flag)
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


def check(
    stock: nn.Module,
    x: Tensor,
    use: Use = nn.Module.__call__,
    change: Change = lambda model: model,
    flag: Flag = True,
) -> None:
    """The converted model against its stock twin, both after ``change`` and in ``use``.

    Dense: the same bits. With ``flag``: every gradient as right as the oracle's in the same dtype, and missing where it misses.
    """
    ours = change(wk.convert(copy.deepcopy(stock)))
    x = x.to(next(ours.parameters()).dtype)
    oracle = set_flags(change(plain(copy.deepcopy(stock))), flag)
    assert_same_bits(gradients(ours, x, use), gradients(change(copy.deepcopy(stock)), x, use))
    draws = [x, *(torch.randn(x.shape).to(x.dtype) for _ in range(4))]  # together: the largest of few errors is luck
    expected = _together([gradients(oracle, draw, use) for draw in draws])
    exact = _together([gradients(oracle.double(), draw.double(), use) for draw in draws])
    set_flags(ours, flag)
    assert_all_as_right(_together([gradients(ours, draw, use) for draw in draws]), expected, exact)


def _together(found: list[Gradients]) -> Gradients:
    """Each name's gradients in one vector, or None where they all are."""
    names = {name: [one[name] for one in found] for name in found[0]}
    return {name: None if values[0] is None else torch.cat([v.flatten() for v in values]) for name, values in names.items()}  # type: ignore[misc]
