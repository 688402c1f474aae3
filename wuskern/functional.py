"""``linear`` and ``conv2d`` as in torch.nn.functional, with ``skip``, a backward without a weight gradient, ``rows``, one whose
weight gradient has the chosen rows only, and ``tokens``, one whose weight gradient sums over some tokens. They are given
by themselves by ``linear_backward`` and ``conv2d_backward``."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd import forward_ad
from torch.nn import Parameter
from torch.nn.parallel import DistributedDataParallel

from wuskern import ops
from wuskern.autograd import Conv2dFunction, LinearFunction, Plan
from wuskern.compact import row_grad_key, wants_row_grad
from wuskern.gradients import conv2d_backward, linear_backward
from wuskern.rows import ROW_CHOICES, PerExample, RowChoice, TopK, refuse_per_example
from wuskern.tokens import Tokens

__all__ = ["conv2d", "conv2d_backward", "linear", "linear_backward", "stock_reason"]

Pair = int | tuple[int, ...]
_PLAIN = (Tensor, Parameter, type(None))


def linear(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    skip: bool = False,
    rows: RowChoice | None = None,
    tokens: Tokens | None = None,
) -> Tensor:
    """``y = x @ weight.T + bias``. With ``skip``, backward computes dx and db; the gradient of ``weight`` is ``None``.

    Args:
        x: ``[..., in]``. weight: ``[out, in]``. bias: ``[out]`` or None. All of one floating dtype, or autocast.
        skip: leave out the weight gradient and do not keep ``x`` for backward. Wins over ``rows`` and ``tokens``.
        rows: a ``TopK``, ``Rows`` or ``PerExample``: the gradient of ``weight`` is zero outside of the chosen rows, or in
            the compact form where ``weight`` has been asked for that. None, or as many rows as there are: all of them.
        tokens: a ``Tokens``: the gradient of ``weight`` sums over so many elements of the leading dimensions. None, or as many
            as there are: all of them.

    Returns:
        ``[..., out]``. Dense, and where :func:`stock_reason` names a reason, this is ``F.linear`` itself.

    Raises:
        What ``F.linear`` raises; ``ValueError``, ``TypeError`` where ``rows`` do not fit; ``RuntimeError`` for a second or
        forward-mode derivative through a call with skip, rows or tokens.
    """
    rows = None if skip else _restricting(rows, weight, 1)
    tokens = None if skip or tokens is None else _leaving_out(tokens, math.prod(x.shape[:-1]))
    if not (skip or rows or tokens) or _takes_stock_path(x, weight, bias):
        return F.linear(x, weight, bias)
    _refuse_forward_mode(x, weight, bias)
    x, operand, bias = _autocast(x, weight, bias)
    return LinearFunction.apply(x, _graph_weight(weight, rows, skip), bias, _plan(rows, tokens, operand, weight))


def conv2d(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Pair = 1,
    padding: Pair | str = 0,
    dilation: Pair = 1,
    groups: int = 1,
    *,
    skip: bool = False,
    rows: RowChoice | None = None,
    tokens: Tokens | None = None,
) -> Tensor:
    """``F.conv2d``. With ``skip``, backward computes dx and db; the gradient of ``weight`` is ``None``.

    Args:
        x: ``[B, C, H, W]`` or ``[C, H, W]``. weight: ``[out, C / groups, kh, kw]``. bias: ``[out]`` or None.
        stride, padding, dilation, groups: as for ``F.conv2d``, "same" and "valid" included.
        skip: leave out the weight gradient and do not keep ``x`` for backward. Wins over ``rows`` and ``tokens``.
        rows: as for :func:`linear`, of output channels; not ``PerExample``.
        tokens: as for :func:`linear`, of images of the batch; an unbatched input is one.

    Returns:
        What ``F.conv2d`` returns. Dense, and where :func:`stock_reason` names a reason, this is ``F.conv2d`` itself.

    Raises:
        What ``F.conv2d`` raises; ``ValueError``, ``TypeError`` where ``rows`` do not fit; ``RuntimeError`` for a second or
        forward-mode derivative through a call with skip, rows or tokens.
    """
    if not skip:
        refuse_per_example(rows)
    rows = None if skip else _restricting(rows, weight, groups)
    tokens = None if skip or tokens is None else _leaving_out(tokens, x.shape[0] if x.ndim == 4 else 1)
    if not (skip or rows or tokens) or _takes_stock_path(x, weight, bias):
        return F.conv2d(x, weight, bias, stride, padding, dilation, groups)
    _refuse_forward_mode(x, weight, bias)
    stock = x, weight, bias
    x, operand, bias = _autocast(x, weight, bias)
    strided_same = padding == "same" and _pair(stride) != (1, 1)
    if strided_same or x.ndim not in (3, 4) or x.dtype != operand.dtype:  # stock raises, in its own words
        return F.conv2d(*stock, stride, padding, dilation, groups)
    unbatched = x.ndim == 3
    if unbatched:
        x = x.unsqueeze(0)
    if isinstance(padding, str):
        x, padding = _numeric_padding(x, operand, padding, _pair(dilation))
    geometry = _pair(stride), _pair(padding), _pair(dilation), groups
    y = Conv2dFunction.apply(x, _graph_weight(weight, rows, skip), bias, _plan(rows, tokens, operand, weight), geometry)
    return y.squeeze(0) if unbatched else y


def _restricting(rows: RowChoice | None, weight: Tensor, groups: int) -> RowChoice | None:
    """The choice, or None where it means all rows of ``weight``."""
    if rows is None:
        return None
    if not isinstance(rows, ROW_CHOICES):
        raise TypeError(f"rows: expected a TopK, Rows, PerExample or None, got {type(rows).__name__}")
    return rows if rows.count(weight.shape[0], groups) < weight.shape[0] else None


def _leaving_out(tokens: Tokens, n: int) -> Tokens | None:
    """The choice, or None where it means all of ``n`` tokens."""
    if not isinstance(tokens, Tokens):
        raise TypeError(f"tokens: expected a Tokens or None, got {type(tokens).__name__}")
    return tokens if tokens.count(n) < n else None


def _plan(rows: RowChoice | None, tokens: Tokens | None, operand: Tensor, weight: Tensor) -> Plan:
    if torch.compiler.is_compiling() and isinstance(rows, TopK) and rows.agree is not None:
        torch._dynamo.graph_break(msg="rows by the scores of all processes (exact=True) are chosen outside of compiled code")
    return Plan(rows, tokens, operand.detach(), row_grad_key(weight) if rows else None)


def stock_reason(x: Tensor, weight: Tensor, bias: Tensor | None) -> str | None:
    """Why a call with these tensors takes PyTorch's own path although ``skip``, ``rows`` or ``tokens`` is set, or None."""
    if not torch.is_grad_enabled():
        return "gradients are disabled"
    exporting = torch.compiler._is_exporting_flag  # is_exporting() is True under torch 2.10's torch.compile as well
    if torch.jit.is_tracing() or exporting:  # type: ignore[attr-defined]
        return "the model is being traced or exported"
    for t in (x, weight, bias):
        if type(t) not in _PLAIN:
            return f"{type(t).__name__} is a subclass of Tensor"
    if x is None or x.dtype not in ops.DTYPES:
        return "the input is no tensor of real floating numbers"
    if x.is_nested or x.layout is not torch.strided:
        return "the input is nested or not strided"
    return None


def _takes_stock_path(x: Tensor, weight: Tensor, bias: Tensor | None) -> bool:
    """Not under a prepared DDP, which would take the flags for what backward computes."""
    reason = stock_reason(x, weight, bias)
    if reason and torch.is_grad_enabled() and hasattr(_active_ddp(), "_wuskern_prepared"):
        raise RuntimeError(
            f"under wuskern.distributed.prepare a layer with skip, rows or tokens cannot take PyTorch's path: {reason}"
        )
    return reason is not None


def _active_ddp() -> DistributedDataParallel | None:
    """The DDP in whose forward this is; None also while a compiler traces."""
    return None if torch.compiler.is_compiling() else DistributedDataParallel._active_ddp_module


def _refuse_forward_mode(*tensors: Tensor | None) -> None:
    """By name, and here: a Function with a ``jvp`` that raises could not be compiled."""
    if forward_ad._current_level < 0:
        return
    if any(t is not None and forward_ad.unpack_dual(t).tangent is not None for t in tensors):
        raise RuntimeError(
            "a skipping, row-sparse or token-sampling layer of wuskern has no forward-mode derivative: set skip=False, "
            "rows=None and tokens=None where one is needed"
        )


def _graph_weight(weight: Tensor, rows: RowChoice | None, skip: bool) -> Tensor:
    """A skipped weight stays out of the graph, and its hooks are not called, unless processes work together: DDP waits for
    every parameter, and gets None."""
    together = torch.distributed.is_available() and torch.distributed.is_initialized()
    if together and rows and not isinstance(rows, PerExample) and wants_row_grad(weight):
        ddp = _active_ddp()
        if ddp is not None and not hasattr(ddp, "_wuskern_prepared"):
            raise RuntimeError(
                "weight: row_grad was requested, but DistributedDataParallel would not send it: call "
                "wuskern.distributed.prepare(ddp_model) after wrapping"
            )
    return weight.detach() if skip and not together else weight


def _pair(value: Pair) -> tuple[int, ...]:
    if isinstance(value, int):
        return value, value
    return tuple(value) if len(value) == 2 else tuple(value) * 2


def _numeric_padding(x: Tensor, weight: Tensor, padding: str, dilation: tuple[int, ...]) -> tuple[Tensor, tuple[int, ...]]:
    """ "same" pads one more at the end where the kernel is even: that one goes into the input, the rest is symmetric."""
    if padding == "valid":
        return x, (0, 0)
    if padding != "same":
        raise ValueError(f"padding: expected numbers, 'same' or 'valid', got {padding!r}")
    total = [d * (k - 1) for d, k in zip(dilation, weight.shape[2:], strict=True)]
    odd_h, odd_w = (t % 2 for t in total)
    if odd_h or odd_w:
        x = F.pad(x, (0, odd_w, 0, odd_h))
    return x, tuple(t // 2 for t in total)


def _autocast(x: Tensor, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor, Tensor | None]:
    """Under autocast, what stock would compute in. Done out here, where autograd casts the gradients back."""
    device = x.device.type
    try:
        if not torch.is_autocast_enabled(device):
            return x, weight, bias
    except RuntimeError:  # a device that knows no autocast
        return x, weight, bias
    dtype = torch.get_autocast_dtype(device)

    def cast(t: Tensor) -> Tensor:
        return t.to(dtype) if t.is_floating_point() and t.dtype != torch.float64 else t

    return cast(x), cast(weight), None if bias is None else cast(bias)
