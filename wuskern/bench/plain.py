"""The unified top-k of meProp and ssProp in plain PyTorch, as the methods' public code has it: the peer of ``layer.rows``.

Sum, topk, index_select, the library on the compact part, zeros, index_copy; the whole bias gradient. It adds what the public
code lacks and a fair peer needs: dtypes other than float32, ``groups``, and a dense gradient in the strides of the weight,
without which autograd would copy it once more.
"""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn as nn
import torch.nn.functional as F
from torch import Tensor


def top_rows(dy: Tensor, dim: int, k: int, groups: int = 1) -> Tensor:
    """``[k]``, ascending: the rows with the largest sums of ``|dy|``, as many from each group."""
    scores = dy.abs().sum([d for d in range(dy.ndim) if d != dim % dy.ndim]).view(groups, -1)
    chosen = scores.topk(k // groups)[1]
    first = torch.arange(groups, device=dy.device)[:, None] * scores.shape[1]
    return (chosen + first).flatten().sort()[0]


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, k: int) -> Tensor:  # type: ignore[override]
        ctx.save_for_backward(x, weight)
        ctx.k = k
        return F.linear(x, weight, bias)

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> Any:  # type: ignore[override]
        x, weight = ctx.saved_tensors
        rows = top_rows(dy, 1, ctx.k)
        chosen = dy.index_select(1, rows)
        dx = chosen.mm(weight.index_select(0, rows))
        dw = torch.zeros_like(weight).index_copy_(0, rows, chosen.t().mm(x))
        return dx, dw, dy.sum(0), None


class _Conv2d(torch.autograd.Function):
    @staticmethod
    def forward(  # type: ignore[override]
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, k: int, stride: Any, padding: Any, dilation: Any, groups: int
    ) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.k, ctx.groups, ctx.geometry = k, groups, (stride, padding, dilation, False, (0, 0), groups)
        return F.conv2d(x, weight, bias, stride, padding, dilation, groups)

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> Any:  # type: ignore[override]
        x, weight = ctx.saved_tensors
        rows = top_rows(dy, 1, ctx.k, ctx.groups)
        chosen = dy.index_select(1, rows), x, weight.index_select(0, rows)
        dx, values, _ = torch.ops.aten.convolution_backward(*chosen, None, *ctx.geometry, (True, True, False))
        dw = torch.zeros_like(weight).index_copy_(0, rows, values)
        return dx, dw, dy.sum((0, 2, 3)), None, None, None, None, None


def _linear(x: Tensor, weight: Tensor, bias: Tensor, k: int) -> Tensor:
    return _Linear.apply(x, weight, bias, k)


def _conv2d(x: Tensor, weight: Tensor, bias: Tensor, k: int, *geometry: Any) -> Tensor:
    return _Conv2d.apply(x, weight, bias, k, *geometry)


class PlainTopK(nn.Module):
    """A Linear or Conv2d whose gradients of weight and input come from the ``k`` rows with the largest ``|dY|``.

    ``compiled``: the whole Function goes through torch.compile, forward and backward, for its shapes alone.
    """

    def __init__(self, stock: nn.Linear | nn.Conv2d, k: int, compiled: bool = False) -> None:
        super().__init__()
        assert stock.bias is not None
        self.weight, self.bias, self.k = nn.Parameter(stock.weight.detach()), nn.Parameter(stock.bias.detach()), k
        conv = isinstance(stock, nn.Conv2d)
        self.geometry = (stock.stride, stock.padding, stock.dilation, stock.groups) if conv else ()
        function: Callable[..., Tensor] = _conv2d if conv else _linear
        self.function = torch.compile(function, fullgraph=True, dynamic=False) if compiled else function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x, self.weight, self.bias, self.k, *self.geometry)
