"""The op gather_rows in Triton: one read of what is chosen, one write."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from wuskern.common.shapes import gathered_like, memory_format
from wuskern.kernels.triton import configs


@triton.jit(do_not_specialize=["outer"])
def gather_columns(src, rows, out, outer, k, columns, row_stride, column_stride, BLOCK_R: tl.constexpr, BLOCK_C: tl.constexpr):
    """``out[outer, columns] = src[outer, rows]``, and zeros behind the k of them"""
    r = tl.program_id(0).to(tl.int64) * BLOCK_R + tl.arange(0, BLOCK_R)
    c = tl.program_id(1).to(tl.int64) * BLOCK_C + tl.arange(0, BLOCK_C)
    chosen = tl.load(rows + c, mask=c < k, other=0)
    mask = (r[:, None] < outer) & (c[None, :] < k)
    values = tl.load(src + (r * row_stride)[:, None] + (chosen * column_stride)[None, :], mask=mask, other=0.0)
    tl.store(out + (r * columns)[:, None] + c[None, :], values, mask=(r[:, None] < outer) & (c[None, :] < columns))


@triton.jit
def gather_planes(
    src, rows, out, k, inner, outer_stride, channel_stride, inner_stride, BLOCK_C: tl.constexpr, BLOCK_I: tl.constexpr
):
    """``out[outer, k, inner] = src[outer, rows, inner]``"""
    o = tl.program_id(0).to(tl.int64)
    c = tl.program_id(1).to(tl.int64) * BLOCK_C + tl.arange(0, BLOCK_C)
    i = tl.program_id(2).to(tl.int64) * BLOCK_I + tl.arange(0, BLOCK_I)
    chosen = tl.load(rows + c, mask=c < k, other=0)
    mask = (c[:, None] < k) & (i[None, :] < inner)
    p = src + (o * outer_stride + chosen * channel_stride)[:, None] + (i * inner_stride)[None, :]
    tl.store(out + ((o * k + c) * inner)[:, None] + i[None, :], tl.load(p, mask=mask), mask=mask)


def usable(rows: Tensor, n: int) -> Tensor:
    """``rows`` without gaps. On the CPU, where looking waits for nothing, one that is not of ``n`` raises ``IndexError``."""
    if rows.device.type == "cpu" and rows.numel() and not 0 <= rows.min() <= rows.max() < n:
        raise IndexError(f"rows: expected indices from 0 to {n - 1}, got {rows.tolist()}")
    return rows.contiguous()


def gather_rows(dy: Tensor, rows: Tensor, dim: int) -> Tensor:
    """The op :func:`wuskern.ops.gather_rows`. ``reshape`` copies only where the layout leaves no choice."""
    dim %= dy.ndim
    rows = usable(rows, dy.shape[dim])
    layout = memory_format(dy)
    out, whole = gathered_like(dy, rows.shape[0], dim, True)
    if out.numel() == 0:
        return out
    with torch.cuda.device_of(dy):
        if layout is torch.channels_last and dim != 1:
            return out.copy_(gather_rows(dy.contiguous(), rows, dim))
        if layout is torch.channels_last or dim == dy.ndim - 1:
            _gather_columns(dy.movedim(dim, -1).reshape(-1, dy.shape[dim]), rows, whole, whole.shape[dim])
        else:
            _gather_planes(dy.reshape(-1, dy.shape[dim], dy.shape[dim + 1 :].numel()), rows, out)
    return out


def _gather_columns(src: Tensor, rows: Tensor, out: Tensor, columns: int) -> None:
    tile = configs.gather_columns(columns)
    grid = triton.cdiv(src.shape[0], tile.block_rows), triton.cdiv(columns, tile.block_columns)
    gather_columns[grid](
        src, rows, out, src.shape[0], rows.shape[0], columns, *src.stride(),
        BLOCK_R=tile.block_rows, BLOCK_C=tile.block_columns, num_warps=tile.num_warps, enable_fp_fusion=False,
    )  # fmt: skip


def _gather_planes(src: Tensor, rows: Tensor, out: Tensor) -> None:
    outer, _, inner = src.shape
    k = rows.shape[0]
    tile = configs.gather_planes(inner)
    gather_planes[outer, triton.cdiv(k, tile.block_channels), triton.cdiv(inner, tile.block_inner)](
        src, rows, out, k, inner, *src.stride(),
        BLOCK_C=tile.block_channels, BLOCK_I=tile.block_inner, num_warps=tile.num_warps, enable_fp_fusion=False,
    )  # fmt: skip
