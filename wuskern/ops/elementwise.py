"""The ops that spare a layer what it would keep for backward: a bit for each element, alone and with an activation, products by
bits and by channel."""

from typing import Any

import torch
from torch import Tensor

from wuskern.common.shapes import new_filled
from wuskern.ops import checks
from wuskern.ops.contract import call, declare

# ---- pack_bits ------------------------------------------------------------------------------------------------------


def pack_bits(x: Tensor, low: float, high: float | None = None, nan: bool = True) -> Tensor:
    """One bit for each element of ``x``: whether ``low < x``, and ``x < high`` where there is a bound.

    Args:
        x: of any shape and strides; float64, float32, float16, bfloat16 or bool.
        low, high: the bounds, which do not count as between; None: no upper one. Compared in float32 (float64 for float64).
        nan: the bit of a NaN.

    Returns:
        ``[ceil(x.numel() / 8)]``: uint8, the first element in the lowest bit of the first byte; unused bits are zero. The order
        is that of memory where ``x`` fills it without gaps, in whatever order of its dimensions, else that of its indices.

    Raises:
        TypeError: another dtype.
    """
    return call("pack_bits", x, low, high, nan)


declare(
    "pack_bits",
    "(Tensor x, float low, float? high, bool nan) -> Tensor",
    checks.pack_bits,
    lambda x, *_: x.new_empty(((x.numel() + 7) // 8,), dtype=torch.uint8),
    lambda x_shape, low, high, nan, **_: x_shape.numel() * (1 + (high is not None)),  # comparisons
)


# ---- piecewise_ -----------------------------------------------------------------------------------------------------


def piecewise_(
    y: Tensor, x: Tensor, low: float, high: float | None = None, nan: bool = True, outside: float | None = None
) -> Tensor:
    """The bits of ``pack_bits(x, low, high, nan)``; ``y`` becomes ``x`` where a bit is set. Elsewhere it becomes
    ``x * outside``, or, without a factor, the bound that x has passed, if any: ReLU, ReLU6 and LeakyReLU with what backward
    needs, in one read.

    Args:
        y: as ``x``, in the same strides. Written to. It may be ``x`` itself.
        x: of any shape, and filling its memory without gaps, in whatever order of its dimensions; float64, float32, float16 or
            bfloat16.
        low, high, nan: as in :func:`pack_bits`; without ``outside`` a NaN's bit has to be set.
        outside: rounded to float32 (float64 for float64).

    Returns:
        As :func:`pack_bits`.

    Raises:
        TypeError, ValueError: dtypes, shapes, strides or memory do not fit, or ``nan=False`` without ``outside``.
    """
    return call("piecewise_", y, x, low, high, nan, outside)


declare(
    "piecewise_",
    "(Tensor(a!) y, Tensor x, float low, float? high, bool nan, float? outside) -> Tensor",
    checks.piecewise,
    lambda y, *_: y.new_empty(((y.numel() + 7) // 8,), dtype=torch.uint8),
    lambda y_shape, x_shape, low, high, nan, outside, **_: x_shape.numel() * (1 + (high is not None) + (outside is not None)),
    written=1,
)


# ---- scale_by_bits --------------------------------------------------------------------------------------------------


def scale_by_bits(dy: Tensor, bits: Tensor, on: float, off: float | None = None) -> Tensor:
    """The product ``dy * on`` where a bit is set, and ``dy * off`` elsewhere.

    Args:
        dy: of any shape and strides; float64, float32, float16 or bfloat16.
        bits: ``[ceil(dy.numel() / 8)]``, contiguous uint8, as :func:`pack_bits` gives them of what lies as ``dy`` does.
        on, off: the factors, rounded to float32 (float64 for float64); None: zero, whatever ``dy`` holds, NaN included.

    Returns:
        As ``dy``, in its strides where it fills memory without gaps, else contiguous; rounded once.

    Raises:
        TypeError, ValueError: dtypes, or the number of ``bits``, do not fit.
    """
    return call("scale_by_bits", dy, bits, on, off)


def _like(dy: Tensor, *_: Any) -> Tensor:
    return new_filled(dy)


declare(
    "scale_by_bits",
    "(Tensor dy, Tensor bits, float on, float? off) -> Tensor",
    checks.scale_by_bits,
    _like,
    lambda dy_shape, *_, **__: dy_shape.numel(),
)


# ---- scale_channels -------------------------------------------------------------------------------------------------


def scale_channels(dy: Tensor, scale: Tensor, dim: int) -> Tensor:
    """The product of ``dy`` and a number for each channel, in one read of ``dy``.

    Args:
        dy: of any shape with at least one dimension, and any strides; float64, float32, float16 or bfloat16.
        scale: ``[dy.shape[dim]]``, contiguous, in float32 (float64 for float64).
        dim: the dimension of the channels.

    Returns:
        As ``dy``, in its strides where it fills memory without gaps, else contiguous; rounded once.

    Raises:
        TypeError, ValueError: dtypes, shapes or ``dim`` do not fit.
    """
    return call("scale_channels", dy, scale, dim)


declare(
    "scale_channels",
    "(Tensor dy, Tensor scale, int dim) -> Tensor",
    checks.scale_channels,
    _like,
    lambda dy_shape, *_, **__: dy_shape.numel(),
)
