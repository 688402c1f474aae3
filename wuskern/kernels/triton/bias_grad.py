"""The op bias_grad in Triton: the twin of csrc/cuda/bias_grad.cu, for every GPU that Triton serves.

Two passes, no atomics: a grid of programs leaves one row of partial sums per chunk, and the same kernel adds those
rows in a fixed order. Loads are widened before any arithmetic. The first pass can sum a score of each element beside it.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from wuskern.kernels.triton import configs


@triton.jit
def score_of(values, SCORE: tl.constexpr):
    if SCORE == "l1":
        return tl.abs(values)
    return values * values


@triton.jit(do_not_specialize=["rows", "rows_per_program"])
def sum_rows(
    src, out, scores, rows, columns, stride, rows_per_program,
    SCORE: tl.constexpr, ACC: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """Sums ``out[chunk, columns]`` of the chunk's rows of src[rows, columns]; with a SCORE, ``scores`` the same of that"""
    chunk = tl.program_id(1).to(tl.int64)
    c = tl.program_id(0).to(tl.int64) * BLOCK_C + tl.arange(0, BLOCK_C)
    first = chunk * rows_per_program
    last = tl.minimum(first + rows_per_program, rows)
    acc = tl.zeros((BLOCK_C, BLOCK_R), ACC)
    acc_scores = tl.zeros((BLOCK_C, BLOCK_R), ACC)
    for start in range(first, last, BLOCK_R):
        r = start + tl.arange(0, BLOCK_R)
        mask = (c[:, None] < columns) & (r[None, :] < last)
        values = tl.load(src + r[None, :] * stride + c[:, None], mask=mask, other=0.0).to(ACC)
        acc += values
        if SCORE != "":
            acc_scores += score_of(values, SCORE)
    tl.store(out + chunk * columns + c, tl.sum(acc, 1).to(out.dtype.element_ty), mask=c < columns)
    if SCORE != "":
        tl.store(scores + chunk * columns + c, tl.sum(acc_scores, 1), mask=c < columns)


@triton.jit(do_not_specialize=["outer", "outer_per_program"])
def sum_planes(
    src, out, scores, outer, channels, inner, outer_stride, channel_stride, outer_per_program, inner_per_program,
    SCORE: tl.constexpr, ACC: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_I: tl.constexpr,
):  # fmt: skip
    """Sums ``out[outer chunk, inner chunk, channels]`` of the chunk of src[outer, channels, inner]; ``scores`` as above"""
    c = tl.program_id(0).to(tl.int64) * BLOCK_C + tl.arange(0, BLOCK_C)
    first = tl.program_id(1).to(tl.int64) * outer_per_program
    first_inner = tl.program_id(2).to(tl.int64) * inner_per_program
    last_inner = tl.minimum(first_inner + inner_per_program, inner)
    acc = tl.zeros((BLOCK_C, BLOCK_I), ACC)
    acc_scores = tl.zeros((BLOCK_C, BLOCK_I), ACC)
    for o in range(first, tl.minimum(first + outer_per_program, outer)):
        for start in range(first_inner, last_inner, BLOCK_I):
            i = start + tl.arange(0, BLOCK_I)
            mask = (c[:, None] < channels) & (i[None, :] < last_inner)
            p = src + o * outer_stride + c[:, None] * channel_stride + i[None, :]
            values = tl.load(p, mask=mask, other=0.0).to(ACC)
            acc += values
            if SCORE != "":
                acc_scores += score_of(values, SCORE)
    row = tl.program_id(1).to(tl.int64) * tl.num_programs(2) + tl.program_id(2)
    tl.store(out + row * channels + c, tl.sum(acc, 1).to(out.dtype.element_ty), mask=c < channels)
    if SCORE != "":
        tl.store(scores + row * channels + c, tl.sum(acc_scores, 1), mask=c < channels)


def bias_grad(dy: Tensor, dim: int) -> Tensor:
    """The op :func:`wuskern.ops.bias_grad`."""
    return add(dy, dim, "")[0]


def add(dy: Tensor, dim: int, score: str) -> tuple[Tensor, Tensor]:
    """The sums of ``dy`` over every dimension but ``dim``, and those of its scores (the same tensor again where ``score``
    is ""). ``reshape`` copies only where the layout leaves no choice."""
    dim %= dy.ndim
    channels = dy.shape[dim]
    if dy.numel() == 0:
        return dy.new_zeros(channels), dy.new_zeros(channels, dtype=_wide(dy.dtype))
    with torch.cuda.device_of(dy):
        if dim == dy.ndim - 1 or (dy.stride(dim) == 1 and channels > 1):
            out, scores = _launch_rows(dy.movedim(dim, -1).reshape(-1, channels), dy.dtype, score)
        else:
            planes = dy.flatten(dim + 1).flatten(0, dim - 1) if dim else dy.flatten(1)[None]
            out, scores = _launch_planes(planes, dy.dtype, score)
        return add_rows(out, dy.dtype), add_rows(scores, scores.dtype) if score else scores


def add_rows(src: Tensor, dtype: torch.dtype) -> Tensor:
    """The sum of the rows of ``src``, in a fixed order, in ``dtype``. One row is given back as it is."""
    while src.shape[0] > 1:
        src, _ = _launch_rows(src, dtype, "")
    return src[0]


def _wide(dtype: torch.dtype) -> torch.dtype:
    return torch.promote_types(dtype, torch.float32)


def _results(src: Tensor, chunks: int, channels: int, dtype: torch.dtype, score: str) -> tuple[Tensor, Tensor]:
    """The memory that the programs write to: a row for each chunk; the sums in ``dtype`` where there is but one."""
    out = src.new_empty((chunks, channels), dtype=dtype if chunks == 1 else _wide(dtype))
    return out, src.new_empty((chunks, channels), dtype=_wide(dtype)) if score else out


def _launch_rows(src: Tensor, dtype: torch.dtype, score: str) -> tuple[Tensor, Tensor]:
    """The sums ``[chunks, columns]`` of ``[rows, columns]``, and of scores."""
    if src.stride(1) != 1 and src.shape[1] > 1:
        src = src.contiguous()
    rows, columns = src.shape
    tile, rows_per_program = configs.sum_rows(rows, columns)
    chunks = triton.cdiv(rows, rows_per_program)
    out, scores = _results(src, chunks, columns, dtype, score)
    sum_rows[triton.cdiv(columns, tile.block_columns), chunks](
        src, out, scores, rows, columns, src.stride(0), rows_per_program, SCORE=score, ACC=accumulator(dtype),
        BLOCK_R=tile.block_rows, BLOCK_C=tile.block_columns, num_warps=tile.num_warps, enable_fp_fusion=False,
    )  # fmt: skip
    return out, scores


def _launch_planes(src: Tensor, dtype: torch.dtype, score: str) -> tuple[Tensor, Tensor]:
    """The sums ``[chunks, channels]`` of ``[outer, channels, inner]``, and of scores."""
    if src.stride(2) != 1:
        src = src.contiguous()
    outer, channels, inner = src.shape
    tile, outer_per_program, inner_per_program = configs.sum_planes(outer, channels, inner)
    grid = (
        triton.cdiv(channels, tile.block_channels),
        triton.cdiv(outer, outer_per_program),
        triton.cdiv(inner, inner_per_program),
    )
    out, scores = _results(src, grid[1] * grid[2], channels, dtype, score)
    sum_planes[grid](
        src, out, scores, outer, channels, inner, src.stride(0), src.stride(1), outer_per_program, inner_per_program,
        SCORE=score, ACC=accumulator(dtype),
        BLOCK_C=tile.block_channels, BLOCK_I=tile.block_inner, num_warps=tile.num_warps, enable_fp_fusion=False,
    )  # fmt: skip
    return out, scores


def accumulator(dtype: torch.dtype) -> tl.dtype:
    return tl.float64 if dtype == torch.float64 else tl.float32
