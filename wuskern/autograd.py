"""What a skipping layer saves in forward and computes in backward.

Both Functions take the weight as an argument and answer its gradient with ``None``: where it is part of the graph (DDP
wants that) no kernel runs for it. The input is never kept. Only what autograd asks for is computed: no dgrad for an
input that needs none, no bias_grad for a bias that does not train. A second derivative raises.
"""

import functools
from collections.abc import Callable
from typing import Any, NoReturn

import torch
import torch.nn.functional as F
from torch import Tensor

from wuskern import configs, ops

Backward = Callable[[Any, Tensor], tuple[Tensor | None, ...]]


class _Once(torch.autograd.Function):
    """A gradient that cannot be differentiated again: the weight's share would be missing without a word."""

    @staticmethod
    def forward(ctx: Any, gradient: Tensor, dy: Tensor) -> Tensor:
        return gradient.view_as(gradient)

    @staticmethod
    def backward(ctx: Any, *_: Any) -> NoReturn:
        raise RuntimeError("a skipping layer of wuskern has no second derivative: set skip=False where one is needed")


def _once(backward: Backward) -> Backward:
    """torch's ``once_differentiable`` with a message of our own, and cheaper where no graph of the backward is made."""

    @functools.wraps(backward)
    def once(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        if not torch.is_grad_enabled():
            return backward(ctx, dy)
        with torch.no_grad():
            gradients = backward(ctx, dy)
        return tuple(_Once.apply(g, dy) if isinstance(g, Tensor) else g for g in gradients)

    return once


class LinearFunction(torch.autograd.Function):
    """y = x @ weight.T + bias; dx = dy @ weight, db = sum of dy over all rows, dweight = None."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        if ctx.needs_input_grad[0]:
            ctx.save_for_backward(weight)
            ctx.by_columns = x.ndim == 2 and x.stride() == (1, x.size(0))
        return F.linear(x, weight, bias)

    @staticmethod
    @_once
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
            ctx.like_x = x.size(), _dense_stride(x), _format(x, weight)
            ctx.geometry = stride, padding, dilation, groups
        return F.conv2d(x, weight, bias, stride, padding, dilation, groups)

    @staticmethod
    @_once
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        dx = db = None
        if ctx.needs_input_grad[0]:
            (weight,) = ctx.saved_tensors
            dx = _conv2d_dgrad(dy, weight, *ctx.like_x, *ctx.geometry)
        if ctx.needs_input_grad[2]:
            db = ops.bias_grad(dy, 1)
        return dx, None, db, None, None, None, None


def _conv2d_dgrad(
    dy: Tensor,
    weight: Tensor,
    size: torch.Size,
    x_stride: tuple[int, ...],
    memory_format: torch.memory_format | None,
    stride: tuple[int, int],
    padding: tuple[int, int],
    dilation: tuple[int, int],
    groups: int,
) -> Tensor:
    """dx of a convolution whose input had ``size`` and ``x_stride``, in stock's strides.

    A transposed convolution is the same computation and, unlike ``convolution_backward``, wants no input for its shape: an
    allocation of that size, though nothing reads it, makes the C library return memory and fault it in again.
    """
    if memory_format is not None and dy.is_cpu:
        dy = dy.contiguous(memory_format=memory_format)
        if configs.conv2d_dgrad_is_matmul(dy.dtype, dy.shape, weight.shape, memory_format, stride, padding, groups):
            return torch.matmul(weight.flatten(1).t(), dy.flatten(2)).view(size)
        if _only_format(dy) is memory_format:
            rest = [
                n - ((m - 1) * s - 2 * p + d * (k - 1) + 1)
                for n, m, s, p, d, k in zip(size[2:], dy.shape[2:], stride, padding, dilation, weight.shape[2:], strict=True)
            ]
            return torch.ops.aten.convolution(dy, weight, None, stride, padding, dilation, True, rest, groups)
    unread = dy.new_empty_strided(size, x_stride)
    geometry = (stride, padding, dilation, False, (0, 0), groups)
    return torch.ops.aten.convolution_backward(dy, unread, weight, None, *geometry, (True, False, False))[0]


def _format(x: Tensor, weight: Tensor) -> torch.memory_format | None:
    """The memory format that the library takes for this input and weight, where their strides leave no doubt."""
    found = _only_format(x)
    return None if found is torch.contiguous_format and not weight.is_contiguous() else found


def _only_format(t: Tensor) -> torch.memory_format | None:
    """The one format that t has; None where it has neither, or both (one channel, one pixel), or strides in disguise."""
    contiguous, channels_last = t.is_contiguous(), t.is_contiguous(memory_format=torch.channels_last)
    if contiguous == channels_last:
        return None
    _, c, h, w = t.shape
    if t.stride() != ((c * h * w, h * w, w, 1) if contiguous else (c * h * w, 1, w * c, c)):
        return None
    return torch.contiguous_format if contiguous else torch.channels_last


def _dense_stride(x: Tensor) -> tuple[int, ...]:
    """The strides of x, or of a copy of x without gaps: a slice of a large tensor must not ask for the large tensor."""
    if x.is_contiguous() or x.is_contiguous(memory_format=torch.channels_last) or x.numel() == 0:
        return x.stride()
    extent = 1 + sum((n - 1) * s for n, s in zip(x.shape, x.stride(), strict=True))
    return x.stride() if extent == x.numel() else torch.empty_like(x, device="meta").stride()
