"""Layers of plain PyTorch that mask their own gradients by hand, in float64: what ours have to equal."""

import torch.nn as nn
import torch.nn.functional as F
from torch import Tensor

import wuskern as wk
from tests.fuzz.plans import chosen_columns, passed
from wuskern.choices import Units


class Plain:
    """A layer with a plan. Each of its three gradients has a branch of its own, whose hook masks dY; together the branches have
    the layer's value. No plan that draws at random."""

    plan = wk.Plan()

    def forward(self, x: Tensor) -> Tensor:
        plan, groups = self.plan, getattr(self, "groups", 1)
        units = Units(type(self).__name__.removeprefix("Plain"), len(self.weight), self.weight.shape[1] * groups, groups)

        def masked(branch: Tensor, name: str) -> Tensor:
            if branch.requires_grad:
                branch.register_hook(lambda dy: getattr(passed(plan, units, dy, x.detach(), 0, self.weight.detach()), name))
            return branch

        y = masked(self._product(x, self.weight.detach()), "x")
        if not plan.skip:
            y = y + _worth_nothing(masked(self._product(self._kept(x.detach(), units), self.weight), "weight"))
        shape = (len(self.weight), 1, 1) if self.weight.ndim == 4 else (-1,)
        return y if self.bias is None else y + masked(self.bias.view(shape).expand_as(y), "bias")

    def _kept(self, x: Tensor, units: Units) -> Tensor:
        """x, zero in the columns that are not chosen."""
        columns, dim = self.plan.columns, -1 if units.layer == "Linear" else -3
        if columns is None:
            return x
        return x * chosen_columns(columns, x, self.weight.detach(), dim, units).view(-1, *[1] * (-dim - 1))

    def _product(self, x: Tensor, weight: Tensor) -> Tensor:
        raise NotImplementedError


def _worth_nothing(branch: Tensor) -> Tensor:
    """Zeros with the gradient of the branch."""
    return branch - branch.detach()


class PlainLinear(Plain, nn.Linear):
    def _product(self, x: Tensor, weight: Tensor) -> Tensor:
        return F.linear(x, weight)


class PlainConv2d(Plain, nn.Conv2d):
    def _product(self, x: Tensor, weight: Tensor) -> Tensor:
        return self._conv_forward(x, weight, None)


def network() -> nn.Module:
    """A small one. x: ``[B, 2, 6, 6]``."""
    first, second = nn.Conv2d(2, 6, 3), nn.Conv2d(6, 6, 3, groups=2)
    parts = first, nn.Tanh(), second, nn.Tanh(), nn.Flatten(), nn.Linear(24, 8), nn.Tanh(), nn.Linear(8, 4, bias=False)
    return nn.Sequential(*parts).double()


def plain(model: nn.Module) -> nn.Module:
    """Changes the class of every nn.Linear and nn.Conv2d, in place."""
    for module in model.modules():
        module.__class__ = {nn.Linear: PlainLinear, nn.Conv2d: PlainConv2d}.get(type(module), type(module))
    return model


def plain_layers(model: nn.Module) -> dict[str, Plain]:
    return {name: module for name, module in model.named_modules() if isinstance(module, Plain)}
