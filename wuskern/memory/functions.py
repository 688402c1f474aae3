"""What ReLU and its like, Dropout, and BatchNorm with fixed statistics compute, keeping for backward what that needs: a bit for
each element, or a number for each channel.

Forward of an activation is one of our ops, of a BatchNorm PyTorch's own call, and a Dropout draws the same random numbers.
Backward in first order is one of our ops; where it is to be differentiated again, or batched, plain PyTorch.
"""

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from wuskern import ops
from wuskern.common.shapes import fills_memory, is_batched
from wuskern.functional import is_transformed, stock_reason
from wuskern.kernels.reference import bias_grad, unpacked


@dataclass(frozen=True)
class Piecewise:
    """An activation whose derivative is 1 between two bounds and another number elsewhere.

    Attributes:
        name: of PyTorch's function in torch.nn.functional. low, high, nan, outside: see ``ops.piecewise_``. The derivative is
            that of a set bit for NaN where ``nan``, and elsewhere ``outside``; None: 0, whatever the output's gradient holds.
        slope: whether ``outside`` is an argument of the function.
    """

    name: str
    low: float = 0.0
    high: float | None = None
    nan: bool = True
    outside: float | None = None

    def __call__(self, x: Tensor, inplace: bool) -> Tensor:
        """The output of PyTorch's own call."""
        arguments = () if self.outside is None else (self.outside,)
        y: Tensor = getattr(F, self.name)(x, *arguments, inplace=inplace)
        return y


RELU, RELU6 = Piecewise("relu"), Piecewise("relu6", high=6.0)


def piecewise(x: Tensor, activation: Piecewise, inplace: bool) -> Tensor:
    """The activation of ``x``, of which a bit for each element is kept; where nothing is to be kept, PyTorch's own call."""
    if not needs_own_path(x):
        return activation(x, inplace)
    y: Tensor = PiecewiseFunction.apply(x, activation, inplace)
    return y


def dropout(x: Tensor, p: float, inplace: bool) -> Tensor:
    """The output of ``F.dropout(x, p)`` in training, of the same random numbers, of which a bit for each element is kept. On
    other devices than CPUs and NVIDIA's or AMD's GPUs, and in compiled code, PyTorch's own call."""
    drawn = 0 < p < 1 and isinstance(x, Tensor) and x.device.type in ("cpu", "cuda") and not torch.compiler.is_compiling()
    if not (drawn and needs_own_path(x)):
        return F.dropout(x, p, True, inplace)
    y: Tensor = DropoutFunction.apply(x, p, inplace)
    return y


def batch_norm(x: Tensor, weight: Tensor | None, bias: Tensor | None, mean: Tensor, var: Tensor, eps: float) -> Tensor:
    """The output of ``F.batch_norm`` by given statistics, whose weight is a constant: ``x`` is not kept."""
    y: Tensor = BatchNormFunction.apply(x, weight, bias, mean, var, eps)
    return y


def needs_own_path(x: Tensor, weight: Tensor | None = None, bias: Tensor | None = None) -> bool:
    """Whether anything would be kept for the backward of such a call, and ours can take its place."""
    if stock_reason(x, weight, bias) or x.numel() == 0 or is_transformed(x, weight, bias):
        return False
    return x.requires_grad or (bias is not None and bias.requires_grad)


# ---- by bits --------------------------------------------------------------------------------------------------------


class PiecewiseFunction(torch.autograd.Function):
    """A :class:`Piecewise` activation. Backward: ``dx = dy`` where the bit is set, and ``dy * outside`` elsewhere."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, activation: Piecewise, inplace: bool) -> Tensor:
        own = _filled(x)
        y = own if inplace else torch.empty_like(own)
        ctx.save_for_backward(ops.piecewise_(y, own, activation.low, activation.high, activation.nan, activation.outside))
        ctx.strides, ctx.outside = own.stride(), activation.outside
        if not inplace:
            return y
        if own is not x:
            x.copy_(own)
        ctx.mark_dirty(x)
        return x

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        (bits,) = ctx.saved_tensors
        return by_bits(dy, bits, ctx.strides, 1.0, ctx.outside), None, None


class DropoutFunction(torch.autograd.Function):
    """The dropout of training. Backward: ``dx = dy * scale`` where the bit is set, and ``dy * 0`` elsewhere."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, p: float, inplace: bool) -> Tensor:
        if x.is_cuda and not inplace:  # as F.dropout draws there
            y, mask = torch.native_dropout(x, p, True)
            mask = _filled(mask)
            bits, ctx.strides, ctx.scale = ops.pack_bits(mask, 0.0), mask.stride(), 1 / (1 - p)
        else:
            noise = torch.empty_like(x).bernoulli_(1 - p)
            bits, ctx.strides, ctx.scale = ops.pack_bits(noise, 0.0), noise.stride(), _scale(p, x.dtype)
            if inplace:
                y = x.mul_(noise.div_(1 - p))
                ctx.mark_dirty(x)
            else:
                y = by_bits_once(x, bits, ctx.strides, ctx.scale, 0.0)
        ctx.save_for_backward(bits)
        return y

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        (bits,) = ctx.saved_tensors
        return by_bits(dy, bits, ctx.strides, ctx.scale, 0.0), None, None


@functools.lru_cache
def _scale(p: float, dtype: torch.dtype) -> float:
    """The number that PyTorch multiplies by what is not dropped, rounded as it rounds it."""
    return torch.ones((), dtype=dtype).div_(1 - p).item()


def by_bits(dy: Tensor, bits: Tensor, strides: Sequence[int], on: float, off: float | None) -> Tensor:
    """The product of ``dy`` and one of two factors, by bits in the order of memory that ``strides`` give it."""
    if not (torch.is_grad_enabled() or is_batched(dy)):
        return by_bits_once(dy, bits, strides, on, off)
    return torch.where(unpacked(bits, dy.shape, strides), dy * on, 0.0 if off is None else dy * off)


def by_bits_once(dy: Tensor, bits: Tensor, strides: Sequence[int], on: float, off: float | None) -> Tensor:
    return ops.scale_by_bits(_laid_out(dy, strides), bits, on, off)


def _filled(x: Tensor) -> Tensor:
    """The tensor, or a copy of it that fills its memory, in the order of its dimensions there."""
    return x if fills_memory(x) else torch.empty_like(x).copy_(x)


def _laid_out(dy: Tensor, strides: Sequence[int]) -> Tensor:
    """The tensor, or a copy of it, with these strides; those of single elements do not count."""
    if all(n == 1 or a == b for n, a, b in zip(dy.shape, dy.stride(), strides, strict=True)):
        return dy
    return dy.new_empty_strided(dy.shape, strides).copy_(dy)


# ---- by channel -----------------------------------------------------------------------------------------------------


class BatchNormFunction(torch.autograd.Function):
    """The batch norm of given statistics, with a weight that is a constant: ``dx = dy * weight / sqrt(var + eps)``."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor | None, bias: Tensor | None, mean: Tensor, var: Tensor, eps: float
    ) -> Tensor:
        wide = torch.promote_types(x.dtype, torch.float32)
        scale = torch.rsqrt(var.to(wide) + eps) if ctx.needs_input_grad[0] else None
        if scale is not None and weight is not None:
            scale *= weight
        ctx.save_for_backward(scale)
        ctx.bias_dtype = None if bias is None else bias.dtype
        return F.batch_norm(x, mean, var, weight, bias, False, 0.0, eps)

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        (scale,) = ctx.saved_tensors
        needs_x, _, needs_bias, *_ = ctx.needs_input_grad
        by_torch = torch.is_grad_enabled() or is_batched(dy)
        dx = db = None
        if needs_x and by_torch:
            dx = (dy * scale.view(-1, *[1] * (dy.ndim - 2))).to(dy.dtype)
        elif needs_x:
            dx = ops.scale_channels(dy, scale, 1)
        if needs_bias and (by_torch or dy.dtype != ctx.bias_dtype):
            db = bias_grad(dy.to(ctx.bias_dtype), 1)
        elif needs_bias:
            db = ops.bias_grad(dy, 1)
        return dx, None, db, None, None, None
