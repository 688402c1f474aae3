"""What a skipping layer saves in forward and computes in backward.

Both Functions take the weight as an argument and answer its gradient with ``None``: where it is part of the graph (DDP
wants that) no kernel runs for it. The input is never kept. Only what autograd asks for is computed: no dgrad for an
input that needs none, no bias_grad for a bias that does not train.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from wuskern import ops


class LinearFunction(torch.autograd.Function):
    """y = x @ weight.T + bias; dx = dy @ weight, db = sum of dy over all rows, dweight = None."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        if ctx.needs_input_grad[0]:
            ctx.save_for_backward(weight)
            ctx.by_columns = x.ndim == 2 and x.stride() == (1, x.size(0))
        return F.linear(x, weight, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        dx = db = None
        if ctx.needs_input_grad[0]:
            (weight,) = ctx.saved_tensors
            # dX lies in memory as stock lays it: like x, where x is a transposed matrix
            dx = weight.t().mm(dy.t()).t() if ctx.by_columns else dy.matmul(weight)
        if ctx.needs_input_grad[2]:
            db = ops.bias_grad(dy, -1)
        return dx, None, db


class Conv2dFunction(torch.autograd.Function):
    """y = conv2d(x, weight) + bias; dx by the library's dgrad alone, db over batch and space, dweight = None.

    x: [B, C, H, W]; the geometry is four pairs of integers and ``groups``. Padding is a number here: the caller takes
    care of "same", of other padding modes and of unbatched input.
    """

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        stride: tuple[int, int],
        padding: tuple[int, int],
        dilation: tuple[int, int],
        groups: int,
    ) -> Tensor:
        if ctx.needs_input_grad[0]:
            ctx.save_for_backward(weight)
            ctx.x_size, ctx.x_stride = x.size(), _dense_stride(x)
            ctx.geometry = (stride, padding, dilation, False, (0, 0), groups)
        return F.conv2d(x, weight, bias, stride, padding, dilation, groups)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        dx = db = None
        if ctx.needs_input_grad[0]:
            (weight,) = ctx.saved_tensors
            # The library wants an input for its shape and strides, and reads none of it.
            unread = dy.new_empty_strided(ctx.x_size, ctx.x_stride)
            mask = (True, False, False)
            dx = torch.ops.aten.convolution_backward(dy, unread, weight, None, *ctx.geometry, mask)[0]
        if ctx.needs_input_grad[2]:
            db = ops.bias_grad(dy, 1)
        return dx, None, db, None, None, None, None


def _dense_stride(x: Tensor) -> tuple[int, ...]:
    """The strides of x, or of a copy of x without gaps: a slice of a large tensor must not ask for the large tensor."""
    if x.is_contiguous() or x.is_contiguous(memory_format=torch.channels_last):
        return x.stride()
    return torch.empty_like(x, device="meta").stride()
