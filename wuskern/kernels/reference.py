"""The pure-PyTorch twin of every op: fallback where no kernel runs, oracle of the tests, baseline of the benchmarks.

Each does what :mod:`wuskern.ops` says of its name, in as few plain calls as that takes.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from wuskern.common.shapes import as_matrix, fills_memory, gathered_like, memory_format, new_filled
from wuskern.kernels.cpu.paths import onednn_wgrad_fails


def bias_grad(dy: Tensor, dim: int) -> Tensor:
    others = [d for d in range(dy.ndim) if d != dim % dy.ndim]
    return torch.sum(dy, others) if others else dy.clone()


def row_stats(dy: Tensor, dim: int, score: str) -> tuple[Tensor, Tensor]:
    wide = dy.to(torch.promote_types(dy.dtype, torch.float32))
    return bias_grad(dy, dim), bias_grad(wide.abs() if score == "l1" else wide.square(), dim)


def select_rows(scores: Tensor, k: int, block: int, groups: int) -> Tensor:
    wide = scores.to(torch.promote_types(scores.dtype, torch.float32))
    order = wide.view(groups, -1, block).sum(-1).argsort(dim=1, descending=True, stable=True)  # a NaN comes first
    chosen = order[:, : k // (block * groups)].sort(1)[0]
    first_block = torch.arange(groups, device=scores.device)[:, None] * order.shape[1]
    return ((chosen + first_block).flatten()[:, None] * block + torch.arange(block, device=scores.device)).flatten()


def top_rows(dy: Tensor, dim: int, score: str, k: int, block: int, groups: int) -> tuple[Tensor, Tensor, Tensor]:
    db, scores = row_stats(dy, dim, score)
    return db, scores, select_rows(scores, k, block, groups)


def gather_rows(dy: Tensor, rows: Tensor, dim: int) -> Tensor:
    if not dy.is_cuda:
        return dy.index_select(dim, rows).contiguous(memory_format=memory_format(dy))
    out, whole = gathered_like(dy, rows.shape[0], dim, True)
    whole.narrow(dim, out.shape[dim], whole.shape[dim] - out.shape[dim]).zero_()
    return torch.index_select(dy.detach(), dim, rows, out=out)


def rowsparse_wgrad(dy: Tensor, x: Tensor, rows: Tensor) -> Tensor:
    return as_matrix(_chosen(dy, rows, -1)).t() @ as_matrix(x)


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
    return library_wgrad(_chosen(dy, rows, 1), x, kernel_size, stride, padding, dilation, groups)


def library_wgrad(
    dy: Tensor,
    x: Tensor,
    kernel_size: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
) -> Tensor:
    """The gradient dW of all of dy's channels by PyTorch's convolution, contiguous; right also where that is not on the CPU."""
    if x.is_cpu and onednn_wgrad_fails(x.dtype, x.shape[1], kernel_size, stride, dilation, groups):
        dy, x = _in_planes(dy), _in_planes(x)
    weight = x.new_empty(dy.shape[1], x.shape[1] // groups, *kernel_size)
    geometry = (stride, padding, dilation, False, (0, 0), groups)
    dw = torch.ops.aten.convolution_backward(dy, x, weight, None, *geometry, (False, True, False))[1].contiguous()
    return clear_padded_taps(dw, x.shape[2:], dy.shape[2:], stride, padding, dilation)


def _in_planes(t: Tensor) -> Tensor:
    """The tensor t, contiguous, with those strides for dimensions of size 1 too: torch takes the format from strides."""
    return t.contiguous().flatten().view(t.shape)


def clear_padded_taps(
    dw: Tensor,
    size: Sequence[int],
    output: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
) -> Tensor:
    """The gradient dw ``[out, C, kh, kw]``, zero at the taps that meet padding alone: with strides, oneDNN leaves them
    unwritten in bfloat16."""
    if not dw.is_cpu or dw.dtype is not torch.bfloat16:
        return dw
    sides = zip(size, output, dw.shape[2:], stride, padding, dilation, strict=True)
    for dim, (n, m, k, s, p, d) in enumerate(sides, start=2):
        padded = [tap for tap in range(k) if not any(0 <= tap * d - p + i * s < n for i in range(m))]
        if padded:
            dw.index_fill_(dim, torch.tensor(padded), 0)
    return dw


def rowsparse_dgrad(dy: Tensor, weight: Tensor, rows: Tensor) -> Tensor:
    return _chosen(dy, rows, -1) @ weight.index_select(0, rows)


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
    x = dy.new_empty(dy.shape[0], weight.shape[1] * groups, *input_size)
    geometry = (stride, padding, dilation, False, (0, 0), groups)
    chosen = _chosen(dy, rows, 1), x, weight.index_select(0, rows)
    dx = torch.ops.aten.convolution_backward(*chosen, None, *geometry, (True, False, False))[0]
    return dx.contiguous(memory_format=memory_format(dy))


def _chosen(dy: Tensor, rows: Tensor, dim: int) -> Tensor:
    """All of dy, or its chosen rows where it holds all of them."""
    return dy if dy.shape[dim] == rows.shape[0] else gather_rows(dy, rows, dim)


# ---- what writes to its arguments -----------------------------------------------------------------------------------


@torch.no_grad()
def rowsparse_sgd_(
    param: Tensor,
    momentum_buffer: Tensor | None,
    rows: Tensor,
    values: Tensor,
    lr: float,
    momentum: float,
    dampening: float,
    weight_decay: float,
    nesterov: bool,
    maximize: bool,
) -> None:
    old, gradient = _wide_rows(param, rows), _gradient(values, rows, maximize)
    if weight_decay:
        gradient = gradient + weight_decay * old
    if momentum_buffer is not None:
        kept = _kept(momentum_buffer, param, rows)
        buffer = momentum * _wide_rows(momentum_buffer, kept) + (1 - dampening) * gradient
        _put(momentum_buffer, kept, buffer)
        gradient = gradient + momentum * buffer if nesterov else buffer
    _put(param, rows, old - lr * gradient)


@torch.no_grad()
def rowsparse_adam_(
    param: Tensor,
    exp_avg: Tensor,
    exp_avg_sq: Tensor,
    max_exp_avg_sq: Tensor | None,
    step: Tensor,
    rows: Tensor,
    values: Tensor,
    lr: float,
    beta1: float,
    beta2: float,
    eps: float,
    weight_decay: float,
    decoupled: bool,
    maximize: bool,
) -> None:
    old, gradient = _wide_rows(param, rows), _gradient(values, rows, maximize)
    steps = step.add_(1).double()
    if weight_decay and not decoupled:
        gradient = gradient + weight_decay * old
    if decoupled:
        old = old * (1 - lr * weight_decay)
    kept = _kept(exp_avg, param, rows)
    first = beta1 * _wide_rows(exp_avg, kept) + (1 - beta1) * gradient
    second = beta2 * _wide_rows(exp_avg_sq, kept) + (1 - beta2) * gradient.square()
    _put(exp_avg, kept, first)
    _put(exp_avg_sq, kept, second)
    if max_exp_avg_sq is not None:
        second = torch.maximum(_wide_rows(max_exp_avg_sq, kept), second)
        _put(max_exp_avg_sq, kept, second)
    size, root_factor = lr / (1 - beta1**steps), (1 - beta2**steps).rsqrt()
    _put(param, rows, old - size * (first / (second.sqrt() * root_factor + eps)))


def _kept(state: Tensor, param: Tensor, rows: Tensor) -> Tensor:
    """The rows of a state that belong to the chosen ones: these, or all where it holds no others."""
    return rows if len(state) == len(param) else torch.arange(len(rows), device=rows.device)


def _wide_rows(t: Tensor, rows: Tensor) -> Tensor:
    return t.index_select(0, rows).to(torch.promote_types(t.dtype, torch.float32))


def _gradient(values: Tensor, rows: Tensor, maximize: bool) -> Tensor:
    values = values if len(values) == len(rows) else values.index_select(0, rows)
    wide = values.to(torch.promote_types(values.dtype, torch.float32))
    return -wide if maximize else wide


def _put(t: Tensor, rows: Tensor, values: Tensor) -> None:
    t.index_copy_(0, rows, values.to(t.dtype))


def pack_bits(x: Tensor, low: float, high: float | None, nan: bool) -> Tensor:
    line = in_memory(x)
    wide = line.to(torch.promote_types(line.dtype, torch.float32))
    set_ = wide > low if high is None else (wide > low) & (wide < high)
    if nan:
        set_ |= wide.isnan()
    bytes_ = F.pad(set_.to(torch.uint8), (0, -line.shape[0] % 8)).view(-1, 8)
    return (bytes_ << torch.arange(8, dtype=torch.uint8, device=x.device)).sum(1, dtype=torch.uint8)


def piecewise_(y: Tensor, x: Tensor, low: float, high: float | None, nan: bool, outside: float | None) -> Tensor:
    bits, wide = pack_bits(x, low, high, nan), x.to(torch.promote_types(x.dtype, torch.float32))
    elsewhere = torch.where(wide < low, low, wide) if outside is None else wide * _rounded(outside, wide)
    if outside is None and high is not None:
        elsewhere = torch.where(wide > high, high, elsewhere)
    y.copy_(torch.where(unpacked(bits, x.shape, x.stride()), wide, elsewhere))
    return bits


def scale_by_bits(dy: Tensor, bits: Tensor, on: float, off: float | None) -> Tensor:
    set_, wide = unpacked(bits, dy.shape, new_filled(dy).stride()), dy.to(torch.promote_types(dy.dtype, torch.float32))
    out = torch.where(set_, wide * _rounded(on, wide), 0.0 if off is None else wide * _rounded(off, wide))
    return _laid_out(out.to(dy.dtype), dy)


def scale_channels(dy: Tensor, scale: Tensor, dim: int) -> Tensor:
    shape = [1] * dy.ndim
    shape[dim] = dy.shape[dim]
    return _laid_out((dy * scale.view(shape)).to(dy.dtype), dy)


def in_memory(t: Tensor) -> Tensor:
    """The elements of t in a line: as they lie in memory where they fill it, else by their indices."""
    return t.as_strided((t.numel(),), (1,)) if fills_memory(t) else t.reshape(-1)


def unpacked(bits: Tensor, shape: Sequence[int], strides: Sequence[int]) -> Tensor:
    """The bits as booleans of a shape, in the order that strides without gaps give its memory."""
    each = (bits[:, None] >> torch.arange(8, dtype=torch.uint8, device=bits.device)) & 1
    return each.view(-1).bool().as_strided(shape, strides)


def _rounded(factor: float, wide: Tensor) -> Tensor:
    return torch.tensor(factor, dtype=wide.dtype, device=wide.device)


def _laid_out(out: Tensor, like: Tensor) -> Tensor:
    """The result in the strides that ``like`` has where it fills memory, else contiguous."""
    target = new_filled(like)
    return out if out.stride() == target.stride() else target.copy_(out)


OPS: dict[str, Callable[..., Any]] = {
    "bias_grad": bias_grad,
    "row_stats": row_stats,
    "select_rows": select_rows,
    "top_rows": top_rows,
    "gather_rows": gather_rows,
    "rowsparse_wgrad": rowsparse_wgrad,
    "rowsparse_wgrad_conv2d": rowsparse_wgrad_conv2d,
    "rowsparse_dgrad": rowsparse_dgrad,
    "rowsparse_dgrad_conv2d": rowsparse_dgrad_conv2d,
    "rowsparse_sgd_": rowsparse_sgd_,
    "rowsparse_adam_": rowsparse_adam_,
    "pack_bits": pack_bits,
    "piecewise_": piecewise_,
    "scale_by_bits": scale_by_bits,
    "scale_channels": scale_channels,
}
