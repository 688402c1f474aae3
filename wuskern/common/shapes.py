"""Shapes and memory formats that ops and backends agree on."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor


def memory_format(dy: Tensor) -> torch.memory_format:
    """The memory format of what follows ``dy``: channels_last where ``dy`` is that and not contiguous, else contiguous."""
    is_last = dy.ndim == 4 and not dy.is_contiguous() and dy.is_contiguous(memory_format=torch.channels_last)
    return torch.channels_last if is_last else torch.contiguous_format


ROW_UNIT = 16  # elements: 32 bytes of halves, which a GPU reads at least; csrc/torch/gather_order.h has the same number


def gathered_like(dy: Tensor, k: int, dim: int, pads: bool) -> tuple[Tensor, Tensor]:
    """A new tensor for k rows of ``dy``, in the memory format that follows it, and the same with its padding: where ``pads``,
    as on a GPU, rows of a Linear start ROW_UNIT elements apart, or a multiple of them."""
    dim, shape, layout = dim % dy.ndim, list(dy.shape), memory_format(dy)
    shape[dim] = k
    if pads and dim == dy.ndim - 1 and layout is torch.contiguous_format:
        shape[dim] = -(-k // ROW_UNIT) * ROW_UNIT
    whole = torch.empty(shape, dtype=dy.dtype, device=dy.device, memory_format=layout)
    return whole.narrow(dim, 0, k), whole


def with_padding(t: Tensor) -> Tensor:
    """The matrix ``t`` with what lies between its rows, where they start as :func:`gathered_like` has them; else ``t``. The
    further columns may hold anything."""
    (tokens, k), (stride, step) = t.shape, t.stride()
    if step != 1 or stride % ROW_UNIT or not k < stride < k + ROW_UNIT:
        return t
    if (t.storage_offset() + tokens * stride) * t.itemsize > t.untyped_storage().nbytes():
        return t
    return t.as_strided((tokens, stride), (stride, 1))


def is_contiguous(t: Tensor) -> bool:
    """Whether ``t`` lies in memory as ``[B, C, H, W]`` without gaps, in every stride, also that of a dimension of size 1."""
    if t.ndim != 4:
        return False
    _, c, h, w = t.shape
    return t.stride() == (c * h * w, h * w, w, 1)


def is_channels_last(t: Tensor) -> bool:
    """Whether ``t`` lies in memory as ``[B, H, W, C]`` without gaps, in every stride, also that of a dimension of size 1."""
    if t.ndim != 4:
        return False
    _, c, h, w = t.shape
    return t.stride() == (c * h * w, 1, w * c, c)


def fills_memory(t: Tensor) -> bool:
    """Whether the elements of ``t`` are one run of memory, in whatever order of its dimensions, and there are some."""
    if t.is_contiguous():
        return t.numel() > 0
    steps = sorted((step, size) for size, step in zip(t.shape, t.stride(), strict=True) if size != 1)
    dense = 1
    for step, size in steps:
        if step != dense:
            return False
        dense = dense * size
    return True


def new_filled(like: Tensor) -> Tensor:
    """A tensor without values, in the strides of ``like`` where these fill memory, else contiguous; those of single elements do
    not count."""
    if like.is_contiguous() or not fills_memory(like):
        return like.new_empty(like.shape)
    return like.new_empty_strided(like.shape, like.stride())


def is_batched(t: Tensor) -> bool:
    """Whether ``t`` stands for a batch of tensors: under ``vmap``, or in a backward with ``is_grads_batched``."""
    functorch = torch._C._functorch  # type: ignore[attr-defined]
    if torch.compiler.is_compiling():
        return False
    return bool(functorch.is_batchedtensor(t) or functorch.is_legacy_batchedtensor(t))


def as_matrix(t: Tensor) -> Tensor:
    """The matrix ``[tokens, features]`` of ``t``, ``[..., features]``; a vector is one token."""
    return t[None] if t.ndim == 1 else t.flatten(0, -2)


def rows_first(weight: Tensor, transposed: bool) -> Tensor:
    """The weight with its output units in dimension 0: a view of one that is ``transposed``, ``[in, out]``."""
    return weight.t() if transposed else weight


def output_size(
    size: Sequence[int],
    kernel_size: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
) -> list[int]:
    """The height and width of a convolution's output; ``size``: those of its input."""
    return [
        (n + 2 * p - d * (k - 1) - 1) // s + 1
        for n, k, s, p, d in zip(size, kernel_size, stride, padding, dilation, strict=True)
    ]


def output_padding(
    size: Sequence[int],
    output: Sequence[int],
    kernel_size: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
) -> list[int]:
    """The ``output_padding`` with which a transposed convolution leads from ``output``, a convolution's height and width, back
    to ``size``, those of its input."""
    return [
        n - ((m - 1) * s - 2 * p + d * (k - 1) + 1)
        for n, m, k, s, p, d in zip(size, output, kernel_size, stride, padding, dilation, strict=True)
    ]


def numeric_padding(x: Tensor, weight: Tensor, padding: str, dilation: tuple[int, ...]) -> tuple[Tensor, tuple[int, ...]]:
    """The input and padding in numbers for ``padding`` "same" or "valid". With "same" an even kernel pads one more at the end:
    that one goes into the input, the rest is symmetric."""
    if padding == "valid":
        return x, (0, 0)
    if padding != "same":
        raise ValueError(f"padding: expected numbers, 'same' or 'valid', got {padding!r}")
    total = [d * (k - 1) for d, k in zip(dilation, weight.shape[2:], strict=True)]
    odd_h, odd_w = (t % 2 for t in total)
    if odd_h or odd_w:
        x = F.pad(x, (0, odd_w, 0, odd_h))
    return x, tuple(t // 2 for t in total)
