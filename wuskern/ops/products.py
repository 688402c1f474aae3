"""The products of the chosen rows, and the gather that goes before them."""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from wuskern.common.shapes import gathered_like, memory_format
from wuskern.ops import checks, product_checks
from wuskern.ops.contract import call, declare

# ---- gather_rows ----------------------------------------------------------------------------------------------------


def gather_rows(dy: Tensor, rows: Tensor, dim: int) -> Tensor:
    """The chosen rows of a gradient of the output, next to each other: ``dy.index_select(dim, rows)``.

    Args:
        dy, dim: as for :func:`bias_grad`; ``dim`` is -1 or, of ``[B, C, H, W]``, 1.
        rows: ``[k]``, see the top of :mod:`wuskern.ops`.

    Returns:
        ``[..., k]`` or ``[B, k, *spatial]`` in the dtype of ``dy``: channels_last where ``dy`` is that and not contiguous,
        else contiguous. On a GPU the rows of ``[..., k]`` are padded with zeros, to a multiple of 16 elements: its products
        copy and multiply vectors.

    Raises:
        TypeError, ValueError: as :func:`bias_grad`; ``rows`` is not 1-d int64.
        RuntimeError, IndexError: (CPU) a row out of range; nothing was read.

    Reads the cache lines that hold chosen elements, where ``dy`` lies in the order of the result; else all of it, twice.
    """
    return call("gather_rows", dy, rows, dim)


def _gather_rows_fake(dy: Tensor, rows: Tensor, dim: int) -> Tensor:
    return gathered_like(dy, rows.shape[0], dim, dy.is_cuda)[0]


declare(
    "gather_rows",
    "(Tensor dy, Tensor rows, int dim) -> Tensor",
    checks.gather_rows,
    _gather_rows_fake,
    lambda dy_shape, rows_shape, dim, **_: 0,
)


# ---- rowsparse_wgrad ------------------------------------------------------------------------------------------------


def rowsparse_wgrad(dy: Tensor, x: Tensor, rows: Tensor) -> Tensor:
    """The weight gradient of a Linear in the chosen rows: ``dy[:, rows].T @ x`` over all leading dimensions.

    Args:
        dy: ``[..., N]``; or already gathered, ``[..., k]`` (with ``k = N`` the two are the same).
        x: ``[..., K]``, the same leading dimensions and dtype.
        rows: ``[k]``, see the top of :mod:`wuskern.ops`.

    Returns:
        ``[k, K]``, contiguous; zeros where there are no tokens. Summed as the top of :mod:`wuskern.ops` says.

    Raises:
        TypeError, ValueError: dtypes, shapes or ``rows`` do not fit.

    Reads the chosen part of ``dy`` once, ``x`` once. Source: meProp (arXiv 1706.06197), unified top-k.
    """
    return call("rowsparse_wgrad", dy, x, rows)


def _rowsparse_wgrad_flops(dy_shape: torch.Size, x_shape: torch.Size, rows_shape: torch.Size, **_: Any) -> int:
    return 2 * x_shape.numel() * rows_shape[0]


declare(
    "rowsparse_wgrad",
    "(Tensor dy, Tensor x, Tensor rows) -> Tensor",
    product_checks.rowsparse_wgrad,
    lambda dy, x, rows: dy.new_empty((rows.shape[0], x.shape[-1])),
    _rowsparse_wgrad_flops,
)


def rowsparse_wgrad_conv2d(
    dy: Tensor,
    x: Tensor,
    rows: Tensor,
    kernel_size: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
) -> Tensor:
    """The weight gradient of a Conv2d in the chosen output channels.

    Args:
        dy: ``[B, N, HO, WO]``; or already gathered, ``[B, k, HO, WO]`` (with ``k = N`` the two are the same).
        x: ``[B, C, H, W]``, the same dtype.
        rows: ``[k]``, see the top of :mod:`wuskern.ops`; the same number in each group.
        kernel_size, stride, padding, dilation: two integers each. groups: as for ``F.conv2d``.

    Returns:
        ``[k, C / groups, kh, kw]``, contiguous. Summed as the top of :mod:`wuskern.ops` says.

    Raises:
        TypeError, ValueError: dtypes, shapes or ``rows`` do not fit.

    Source: ssProp (arXiv 2408.12561).
    """
    return call("rowsparse_wgrad_conv2d", dy, x, rows, kernel_size, stride, padding, dilation, groups)


_GEOMETRY = "int[2] stride, int[2] padding, int[2] dilation, int groups"
declare(
    "rowsparse_wgrad_conv2d",
    f"(Tensor dy, Tensor x, Tensor rows, int[2] kernel_size, {_GEOMETRY}) -> Tensor",
    product_checks.rowsparse_wgrad_conv2d,
    lambda dy, x, rows, kernel_size, *rest: dy.new_empty((rows.shape[0], x.shape[1] // rest[-1], *kernel_size)),
    lambda dy_shape, x_shape, rows_shape, kernel_size, stride, padding, dilation, groups, **_: _conv2d_flops(
        dy_shape, rows_shape[0], x_shape[1] // groups, kernel_size
    ),
)


def _conv2d_flops(dy_shape: torch.Size, k: int, channels: int, kernel_size: Sequence[int]) -> int:
    return 2 * dy_shape[0] * math.prod(dy_shape[2:]) * k * channels * math.prod(kernel_size)


# ---- rowsparse_dgrad ------------------------------------------------------------------------------------------------


def rowsparse_dgrad(dy: Tensor, weight: Tensor, rows: Tensor) -> Tensor:
    """The input gradient of a Linear from the chosen rows alone: ``dy[:, rows] @ weight[rows]``.

    Args:
        dy: ``[..., N]``; or already gathered, ``[..., k]``.
        weight: ``[N, K]``, the same dtype.
        rows: ``[k]``, see the top of :mod:`wuskern.ops`.

    Returns:
        ``[..., K]``, contiguous. Summed as the top of :mod:`wuskern.ops` says.

    Raises:
        TypeError, ValueError: dtypes, shapes or ``rows`` do not fit.

    Reads the chosen part of ``dy`` and of ``weight`` once. Source: meProp (arXiv 1706.06197), unified top-k.
    """
    return call("rowsparse_dgrad", dy, weight, rows)


def _rowsparse_dgrad_flops(dy_shape: torch.Size, weight_shape: torch.Size, rows_shape: torch.Size, **_: Any) -> int:
    return 2 * math.prod(dy_shape[:-1]) * rows_shape[0] * weight_shape[1]


declare(
    "rowsparse_dgrad",
    "(Tensor dy, Tensor weight, Tensor rows) -> Tensor",
    product_checks.rowsparse_dgrad,
    lambda dy, weight, rows: dy.new_empty((*dy.shape[:-1], weight.shape[1])),
    _rowsparse_dgrad_flops,
)


def rowsparse_dgrad_conv2d(
    dy: Tensor,
    weight: Tensor,
    rows: Tensor,
    input_size: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
) -> Tensor:
    """The input gradient of a Conv2d from the chosen output channels alone.

    Args:
        dy: ``[B, N, HO, WO]``; or already gathered, ``[B, k, HO, WO]``.
        weight: ``[N, C / groups, kh, kw]``, the same dtype.
        rows: ``[k]``, see the top of :mod:`wuskern.ops`; the same number in each group.
        input_size: height and width of the input.
        stride, padding, dilation: two integers each. groups: as for ``F.conv2d``.

    Returns:
        ``[B, C, H, W]``: channels_last where ``dy`` is that and not contiguous, else contiguous. Summed as the top of
        :mod:`wuskern.ops` says.

    Raises:
        TypeError, ValueError: dtypes, shapes or ``rows`` do not fit.
    """
    return call("rowsparse_dgrad_conv2d", dy, weight, rows, input_size, stride, padding, dilation, groups)


def _rowsparse_dgrad_conv2d_fake(dy: Tensor, weight: Tensor, rows: Tensor, input_size: Sequence[int], *rest: Any) -> Tensor:
    shape = dy.shape[0], weight.shape[1] * rest[-1], *input_size
    return torch.empty(shape, dtype=dy.dtype, device=dy.device, memory_format=memory_format(dy))


declare(
    "rowsparse_dgrad_conv2d",
    f"(Tensor dy, Tensor weight, Tensor rows, int[2] input_size, {_GEOMETRY}) -> Tensor",
    product_checks.rowsparse_dgrad_conv2d,
    _rowsparse_dgrad_conv2d_fake,
    lambda dy_shape, weight_shape, rows_shape, *_, **__: _conv2d_flops(
        dy_shape, rows_shape[0], weight_shape[1], weight_shape[2:]
    ),
)
