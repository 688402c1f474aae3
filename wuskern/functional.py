"""``linear`` and ``conv2d`` as in torch.nn.functional, with ``skip``: a backward without a weight gradient."""

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd import forward_ad
from torch.nn import Parameter

from wuskern import ops
from wuskern.autograd import Conv2dFunction, LinearFunction

Pair = int | tuple[int, ...]
_PLAIN = (Tensor, Parameter, type(None))


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None, *, skip: bool = False) -> Tensor:
    """``y = x @ weight.T + bias``. With ``skip``, backward computes dx and db; the gradient of ``weight`` is ``None``.

    Args:
        x: ``[..., in]``. weight: ``[out, in]``. bias: ``[out]`` or None. All of one floating dtype, or autocast.
        skip: leave out the weight gradient and do not keep ``x`` for backward.

    Returns:
        ``[..., out]``. Without ``skip``, and where :func:`stock_reason` names one, this is ``F.linear`` itself.

    Raises:
        What ``F.linear`` raises; ``RuntimeError`` for a second or forward-mode derivative through a skipped call.
    """
    if not skip or stock_reason(x, weight, bias):
        return F.linear(x, weight, bias)
    _refuse_forward_mode(x, weight, bias)
    return LinearFunction.apply(*_autocast(x, _graph_weight(weight), bias))


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
) -> Tensor:
    """``F.conv2d``. With ``skip``, backward computes dx and db; the gradient of ``weight`` is ``None``.

    Args:
        x: ``[B, C, H, W]`` or ``[C, H, W]``. weight: ``[out, C / groups, kh, kw]``. bias: ``[out]`` or None.
        stride, padding, dilation, groups: as for ``F.conv2d``, "same" and "valid" included.
        skip: leave out the weight gradient and do not keep ``x`` for backward.

    Returns:
        What ``F.conv2d`` returns. Without ``skip``, and where :func:`stock_reason` names one, it is ``F.conv2d``.

    Raises:
        What ``F.conv2d`` raises; ``RuntimeError`` for a second or forward-mode derivative through a skipped call.
    """
    if not skip or stock_reason(x, weight, bias):
        return F.conv2d(x, weight, bias, stride, padding, dilation, groups)
    _refuse_forward_mode(x, weight, bias)
    stock = x, weight, bias
    x, weight, bias = _autocast(x, _graph_weight(weight), bias)
    strided_same = padding == "same" and _pair(stride) != (1, 1)
    if strided_same or x.ndim not in (3, 4) or x.dtype != weight.dtype:  # stock raises, in its own words
        return F.conv2d(*stock, stride, padding, dilation, groups)
    unbatched = x.ndim == 3
    if unbatched:
        x = x.unsqueeze(0)
    if isinstance(padding, str):
        x, padding = _numeric_padding(x, weight, padding, _pair(dilation))
    y = Conv2dFunction.apply(x, weight, bias, _pair(stride), _pair(padding), _pair(dilation), groups)
    return y.squeeze(0) if unbatched else y


def stock_reason(x: Tensor, weight: Tensor, bias: Tensor | None) -> str | None:
    """Why a call with these tensors takes PyTorch's own path although ``skip`` is set, or None."""
    if not torch.is_grad_enabled():
        return "gradients are disabled"
    if torch.jit.is_tracing() or torch.compiler.is_exporting():  # type: ignore[attr-defined]
        return "the model is being traced or exported"
    for t in (x, weight, bias):
        if type(t) not in _PLAIN:
            return f"{type(t).__name__} is a subclass of Tensor"
    if x is None or x.dtype not in ops.DTYPES:
        return "the input is no tensor of real floating numbers"
    if x.is_nested or x.layout is not torch.strided:
        return "the input is nested or not strided"
    return None


def _refuse_forward_mode(*tensors: Tensor | None) -> None:
    """By name, and here: a Function with a ``jvp`` that raises could not be compiled."""
    if forward_ad._current_level < 0:
        return
    if any(t is not None and forward_ad.unpack_dual(t).tangent is not None for t in tensors):
        raise RuntimeError("a skipping layer of wuskern has no forward-mode derivative: set skip=False where one is needed")


def _graph_weight(weight: Tensor) -> Tensor:
    """A skipped weight stays out of the graph, and its hooks are not called, unless processes work together: DDP waits for
    every parameter, and gets None."""
    together = torch.distributed.is_available() and torch.distributed.is_initialized()
    return weight if together else weight.detach()


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
