"""The layer ``SkippableConv1D``: transformers' Conv1D, of GPT-2 and its like, with a plan. It is a Linear whose weight lies
transposed, ``[in, out]``, and no convolution.

The class is made when a layer of that type is first met: transformers is never imported for it, unless a pickle asks.
"""

import functools
import importlib
import sys
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn as nn
from torch import Tensor

from wuskern import functional
from wuskern.choices import Units
from wuskern.kinds import Kind, Linear
from wuskern.modules import Skippable

HOME = "transformers.pytorch_utils"  # the module in which the stock class is


@dataclass(frozen=True)
class TransposedLinear(Linear):
    """The kind ``y = x @ weight + bias``. x: ``[..., in]``. weight: ``[in, out]``.

    ``weight.grad`` of some columns is compact where that is asked for, and of some rows always dense: these are dimension 1.
    """

    transposed: ClassVar[bool] = True

    def units(self, weight: Tensor) -> Units:
        inputs, out = weight.shape
        return Units("Conv1D", out, inputs, transposed=True)

    def fprop(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        y = torch.addmm(bias, x.view(-1, x.size(-1)), weight)  # type: ignore[arg-type]  # stock's own call
        return y.view(x.size()[:-1] + weight.shape[1:])

    def wgrad(self, dy: Tensor, x: Tensor, weight: Tensor) -> Tensor:
        return (x.t() @ dy).t()  # as the weight lies in memory


TRANSPOSED = TransposedLinear()


class PlannedConv1D(Skippable):
    """What a ``SkippableConv1D`` has beside its stock class."""

    nf: int
    nx: int
    weight: Tensor
    bias: Tensor
    __repr__ = nn.Module.__repr__  # stock's says nothing of the plan

    @property
    def kind(self) -> Kind:
        return TRANSPOSED

    @property
    def units(self) -> Units:
        return Units("Conv1D", self.nf, self.nx, transposed=True)

    def extra_repr(self) -> str:
        return f"nf={self.nf}, nx={self.nx}" + super().extra_repr()


def stock() -> Any:
    """The class ``Conv1D`` of transformers, if somebody has imported it; else None."""
    return getattr(sys.modules.get(HOME), "Conv1D", None)


@functools.cache
def skippable(stock: Any) -> type[PlannedConv1D]:
    """The skippable class, derived from the stock class ``Conv1D``; the same each time."""

    class SkippableConv1D(PlannedConv1D, stock):  # type: ignore[misc]
        """A ``Conv1D`` of transformers with a plan (see :class:`Skippable`). x: ``[..., nx]`` -> ``[..., nf]``."""

        def forward(self, x: Tensor) -> Tensor:
            if not getattr(self, "_planned", False):  # a wrapper may call this after revert
                return stock.forward(self, x)  # type: ignore[no-any-return]
            return functional.planned_linear(x, self.weight, self.bias, self._in_use, self._home, TRANSPOSED)

    SkippableConv1D.__qualname__ = "SkippableConv1D"  # by which a pickle finds it, through __getattr__
    return SkippableConv1D


def __getattr__(name: str) -> Any:
    if name == "SkippableConv1D":
        return skippable(importlib.import_module(HOME).Conv1D)
    raise AttributeError(f"module {__name__} has no attribute {name}")
