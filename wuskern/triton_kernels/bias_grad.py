"""bias_grad in Triton: the twin of csrc/cuda/bias_grad.cu, for every GPU that Triton serves.

Two passes, no atomics: a grid of programs leaves one row of partial sums per chunk, and the same kernel adds those
rows in a fixed order. Loads are widened before any arithmetic.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from wuskern import configs


@triton.jit
def sum_rows(
    src, out, rows, columns, stride, rows_per_program, ACC: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_C: tl.constexpr
):
    """out[chunk, columns] = sum of the chunk's rows of src[rows, columns]"""
    chunk = tl.program_id(1).to(tl.int64)
    c = tl.program_id(0).to(tl.int64) * BLOCK_C + tl.arange(0, BLOCK_C)
    first = chunk * rows_per_program
    last = tl.minimum(first + rows_per_program, rows)
    acc = tl.zeros((BLOCK_C, BLOCK_R), ACC)
    for start in range(first, last, BLOCK_R):
        r = start + tl.arange(0, BLOCK_R)
        mask = (c[:, None] < columns) & (r[None, :] < last)
        acc += tl.load(src + r[None, :] * stride + c[:, None], mask=mask, other=0.0).to(ACC)
    tl.store(out + chunk * columns + c, tl.sum(acc, 1).to(out.dtype.element_ty), mask=c < columns)


@triton.jit
def sum_planes(
    src, out, outer, channels, inner, outer_stride, channel_stride, outer_per_program, inner_per_program,
    ACC: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_I: tl.constexpr,
):  # fmt: skip
    """out[outer chunk, inner chunk, channels] = sum of the chunk of src[outer, channels, inner]"""
    c = tl.program_id(0).to(tl.int64) * BLOCK_C + tl.arange(0, BLOCK_C)
    first = tl.program_id(1).to(tl.int64) * outer_per_program
    first_inner = tl.program_id(2).to(tl.int64) * inner_per_program
    last_inner = tl.minimum(first_inner + inner_per_program, inner)
    acc = tl.zeros((BLOCK_C, BLOCK_I), ACC)
    for o in range(first, tl.minimum(first + outer_per_program, outer)):
        for start in range(first_inner, last_inner, BLOCK_I):
            i = start + tl.arange(0, BLOCK_I)
            mask = (c[:, None] < channels) & (i[None, :] < last_inner)
            p = src + o * outer_stride + c[:, None] * channel_stride + i[None, :]
            acc += tl.load(p, mask=mask, other=0.0).to(ACC)
    row = tl.program_id(1).to(tl.int64) * tl.num_programs(2) + tl.program_id(2)
    tl.store(out + row * channels + c, tl.sum(acc, 1).to(out.dtype.element_ty), mask=c < channels)


def bias_grad(dy: Tensor, dim: int) -> Tensor:
    """See :func:`wuskern.ops.bias_grad`. ``reshape`` copies only where the layout leaves no choice."""
    dim %= dy.ndim
    channels = dy.shape[dim]
    if dy.numel() == 0:
        return dy.new_zeros(channels)
    with torch.cuda.device_of(dy):
        if dim == dy.ndim - 1 or (dy.stride(dim) == 1 and channels > 1):
            return _launch_rows(dy.movedim(dim, -1).reshape(-1, channels), dy.dtype)
        return _launch_planes(dy.flatten(dim + 1).flatten(0, dim - 1) if dim else dy.flatten(1)[None], dy.dtype)


def _accumulator(dtype: torch.dtype) -> tuple[torch.dtype, tl.dtype]:
    return (torch.float64, tl.float64) if dtype == torch.float64 else (torch.float32, tl.float32)


def _launch_rows(src: Tensor, dtype: torch.dtype) -> Tensor:  # [rows, columns] -> [columns]
    if src.stride(1) != 1 and src.shape[1] > 1:
        src = src.contiguous()
    rows, columns = src.shape
    tile, rows_per_program = configs.sum_rows(rows, columns)
    chunks = triton.cdiv(rows, rows_per_program)
    partial, acc = _accumulator(dtype)
    out = src.new_empty((chunks, columns), dtype=dtype if chunks == 1 else partial)
    sum_rows[triton.cdiv(columns, tile.block_columns), chunks](
        src, out, rows, columns, src.stride(0), rows_per_program,
        ACC=acc, BLOCK_R=tile.block_rows, BLOCK_C=tile.block_columns, num_warps=tile.num_warps, enable_fp_fusion=False,
    )  # fmt: skip
    return out[0] if chunks == 1 else _launch_rows(out, dtype)


def _launch_planes(src: Tensor, dtype: torch.dtype) -> Tensor:  # [outer, channels, inner] -> [channels]
    if src.stride(2) != 1:
        src = src.contiguous()
    outer, channels, inner = src.shape
    tile, outer_per_program, inner_per_program = configs.sum_planes(outer, channels, inner)
    grid = (
        triton.cdiv(channels, tile.block_channels),
        triton.cdiv(outer, outer_per_program),
        triton.cdiv(inner, inner_per_program),
    )
    chunks = grid[1] * grid[2]
    partial, acc = _accumulator(dtype)
    out = src.new_empty((chunks, channels), dtype=dtype if chunks == 1 else partial)
    sum_planes[grid](
        src, out, outer, channels, inner, src.stride(0), src.stride(1), outer_per_program, inner_per_program,
        ACC=acc, BLOCK_C=tile.block_channels, BLOCK_I=tile.block_inner, num_warps=tile.num_warps, enable_fp_fusion=False,
    )  # fmt: skip
    return out[0] if chunks == 1 else _launch_rows(out, dtype)
