"""The op rowsparse_dgrad in Triton: tensor-core products over the chosen rows (and the taps of a convolution)."""

import math
from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from wuskern.common.shapes import as_matrix, memory_format
from wuskern.kernels.problem import problem_of
from wuskern.kernels.triton import configs
from wuskern.kernels.triton.gather_rows import usable
from wuskern.kernels.triton.gemm import chosen, key, options, scattered, tiles
from wuskern.kernels.triton.tuning import Config, pick


@triton.jit(do_not_specialize=["tokens"])
def dgrad(
    dy, weight, rows, out, tokens, features, k, dy_token_stride, dy_row_stride, weight_row_stride, weight_feature_stride,
    PACKED: tl.constexpr, ACC: tl.constexpr, INDEX: tl.constexpr, PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """``out[tokens, features] = dy[tokens, rows] @ weight[rows, features]``"""
    feature_blocks = tl.cdiv(features, BLOCK_N)
    t = (tl.program_id(0) // feature_blocks).to(INDEX) * BLOCK_M + tl.arange(0, BLOCK_M)
    f = (tl.program_id(0) % feature_blocks).to(INDEX) * BLOCK_N + tl.arange(0, BLOCK_N)
    acc = tl.zeros((BLOCK_M, BLOCK_N), ACC)
    whole = k // BLOCK_K * BLOCK_K  # rows that need no mask, which dy's rows are read in vectors without
    for start in range(0, whole, BLOCK_K):
        r = start + tl.arange(0, BLOCK_K)
        row = tl.load(rows + r).to(INDEX)
        dy_row = r.to(INDEX) if PACKED else row
        a = tl.load(dy + t[:, None] * dy_token_stride + dy_row[None, :] * dy_row_stride, mask=t[:, None] < tokens, other=0.0)
        p = weight + row[:, None] * weight_row_stride + f[None, :] * weight_feature_stride
        b = tl.load(p, mask=f[None, :] < features, other=0.0)
        acc = tl.dot(a, b, acc, input_precision=PRECISION, out_dtype=ACC)
    if whole < k:
        r = whole + tl.arange(0, BLOCK_K)
        row = tl.load(rows + r, mask=r < k, other=0).to(INDEX)
        dy_row = r.to(INDEX) if PACKED else row
        dy_mask = (t[:, None] < tokens) & (r[None, :] < k)
        weight_mask = (r[:, None] < k) & (f[None, :] < features)
        a = tl.load(dy + t[:, None] * dy_token_stride + dy_row[None, :] * dy_row_stride, mask=dy_mask, other=0.0)
        p = weight + row[:, None] * weight_row_stride + f[None, :] * weight_feature_stride
        acc = tl.dot(a, tl.load(p, mask=weight_mask, other=0.0), acc, input_precision=PRECISION, out_dtype=ACC)
    mask = (t[:, None] < tokens) & (f[None, :] < features)
    tl.store(out + t[:, None] * features + f[None, :], acc.to(out.dtype.element_ty), mask=mask)


@triton.jit
def first_and_number(phase, padding, dilation, stride, size, SIZE: tl.constexpr):
    """The taps along one side that join input pixels ``phase + stride * n`` to output pixels: the first, and how many."""
    tap = tl.arange(0, SIZE)
    joins = (tap < size) & ((phase + padding - tap * dilation) % stride == 0)
    return tl.min(tl.where(joins, tap, size), 0), tl.sum(joins.to(tl.int32), 0)


@triton.jit(do_not_specialize=["batch"])
def dgrad_conv2d(
    dy, weight, rows, out, batch, height, width, out_height, out_width, channels, k, kernel_h, kernel_w, groups,
    stride_h, stride_w, padding_h, padding_w, dilation_h, dilation_w, tap_step_h, tap_step_w,
    dy_image_stride, dy_row_stride, dy_h_stride, dy_w_stride,
    weight_row_stride, weight_channel_stride, weight_h_stride, weight_w_stride,
    image_stride, channel_stride, h_stride, w_stride,
    TAPS: tl.constexpr, PACKED: tl.constexpr, ACC: tl.constexpr, INDEX: tl.constexpr, PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """``out[batch, groups * channels, height, width]``. ``k`` and ``channels`` are those of one group. A program takes input
    pixels ``phase + stride * n`` of one phase, which meet the same taps: every ``tap_step``-th from a first one."""
    channel_blocks = tl.cdiv(channels, BLOCK_N)
    group = (tl.program_id(1) % groups).to(INDEX)
    phase_h = tl.program_id(1) // groups // stride_w
    phase_w = tl.program_id(1) // groups % stride_w
    rows_of_phase, columns_of_phase = tl.cdiv(height, stride_h), tl.cdiv(width, stride_w)
    plane = rows_of_phase * columns_of_phase
    start = (tl.program_id(0) // channel_blocks).to(INDEX) * BLOCK_M
    c = (tl.program_id(0) % channel_blocks).to(INDEX) * BLOCK_N + tl.arange(0, BLOCK_N)
    ahead = (start % plane).to(tl.int32) + tl.arange(0, BLOCK_M)
    image, pixel = start // plane + (ahead // plane).to(INDEX), ahead % plane
    h = phase_h + pixel // columns_of_phase * stride_h
    w = phase_w + pixel % columns_of_phase * stride_w
    is_pixel = (image < batch) & (h < height) & (w < width)

    tap_h, taps_h = first_and_number(phase_h, padding_h, dilation_h, stride_h, kernel_h, TAPS)
    tap_w, taps_w = first_and_number(phase_w, padding_w, dilation_w, stride_w, kernel_w, TAPS)
    row_blocks = tl.cdiv(k, BLOCK_K)
    acc = tl.zeros((BLOCK_M, BLOCK_N), ACC)
    for step in range(0, taps_h * taps_w * row_blocks):
        tap = step // row_blocks
        i, j = tap_h + tap // taps_w * tap_step_h, tap_w + tap % taps_w * tap_step_w
        r = step % row_blocks * BLOCK_K + tl.arange(0, BLOCK_K)
        row = tl.load(rows + group * k + r, mask=r < k, other=0).to(INDEX)
        dy_row = group * k + r if PACKED else row
        out_h, out_w = (h + padding_h - i * dilation_h) // stride_h, (w + padding_w - j * dilation_w) // stride_w
        joined = is_pixel & (out_h >= 0) & (out_h < out_height) & (out_w >= 0) & (out_w < out_width)
        dy_pixel = image * dy_image_stride + out_h.to(INDEX) * dy_h_stride + out_w.to(INDEX) * dy_w_stride
        weight_row = row * weight_row_stride + i.to(INDEX) * weight_h_stride + j.to(INDEX) * weight_w_stride
        a = dy + dy_pixel[:, None] + (dy_row * dy_row_stride)[None, :]
        b = weight + weight_row[:, None] + (c * weight_channel_stride)[None, :]
        a = tl.load(a, mask=joined[:, None] & (r[None, :] < k), other=0.0)
        b = tl.load(b, mask=(r[:, None] < k) & (c[None, :] < channels), other=0.0)
        acc = tl.dot(a, b, acc, input_precision=PRECISION, out_dtype=ACC)
    pixel = image * image_stride + h.to(INDEX) * h_stride + w.to(INDEX) * w_stride
    to = out + pixel[:, None] + ((group * channels + c) * channel_stride)[None, :]
    tl.store(to, acc.to(out.dtype.element_ty), mask=is_pixel[:, None] & (c[None, :] < channels))


def rowsparse_dgrad(dy: Tensor, weight: Tensor, rows: Tensor) -> Tensor:
    """The op :func:`wuskern.ops.rowsparse_dgrad`."""
    k, features = rows.shape[0], weight.shape[1]
    shape = (*dy.shape[:-1], features)
    if 0 in (*shape, k):
        return dy.new_zeros(shape)
    dy, rows = as_matrix(dy), usable(rows, weight.shape[0])
    tokens = dy.shape[0]
    allowed, setting = tiles("dgrad", dy), torch.backends.cuda.matmul.fp32_precision

    def run(config: Config) -> Tensor:
        tile, out = config[0], dy.new_empty(shape)
        feature_blocks = triton.cdiv(features, tile.block_n)
        gradient, index = chosen(dy, rows, -1, feature_blocks)
        dgrad[(triton.cdiv(tokens, tile.block_m) * feature_blocks,)](
            gradient, weight, index, out, tokens, features, k, *gradient.stride(), *weight.stride(),
            PACKED=gradient.shape[1] == k, **options(tile, dy.dtype, (gradient, weight, out), setting),
        )  # fmt: skip
        return out

    sizes = tokens, features, k

    def words() -> str:
        return key(problem_of("rowsparse_dgrad", dy, weight, rows), (dy, weight), False)

    with torch.cuda.device_of(dy):
        default = configs.dgrad(allowed, *sizes), 0
        return run(pick(words, dy.device, default, lambda: [(tile, 0) for tile in allowed], run))


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
    """The op :func:`wuskern.ops.rowsparse_dgrad_conv2d`."""
    k, channels, rows = rows.shape[0] // groups, weight.shape[1], usable(rows, weight.shape[0])
    shape = dy.shape[0], channels * groups, *input_size
    layout = dict(dtype=dy.dtype, memory_format=memory_format(dy))
    if 0 in (*shape, k):
        return torch.empty(shape, device=dy.device, **layout).zero_()
    phase_pixels = dy.shape[0] * triton.cdiv(input_size[0], stride[0]) * triton.cdiv(input_size[1], stride[1])
    phases = stride[0] * stride[1] * groups
    taps = weight.shape[2:]
    apart, setting = scattered(torch.empty(shape, device="meta", **layout), groups), torch.backends.cudnn.conv.fp32_precision
    allowed = tiles("dgrad_conv2d", dy, apart)

    def run(config: Config) -> Tensor:
        tile, out = config[0], torch.empty(shape, device=dy.device, **layout)
        channel_blocks = triton.cdiv(channels, tile.block_n)
        gradient, index = chosen(dy, rows, 1, channel_blocks * taps.numel())
        dgrad_conv2d[triton.cdiv(phase_pixels, tile.block_m) * channel_blocks, phases](
            gradient, weight, index, out, dy.shape[0], *input_size, *dy.shape[2:], channels, k, *taps, groups,
            *stride, *padding, *dilation, *(s // math.gcd(s, d) for s, d in zip(stride, dilation, strict=True)),
            *gradient.stride(), *weight.stride(), *out.stride(),
            TAPS=triton.next_power_of_2(max(taps)), PACKED=gradient.shape[1] == rows.shape[0],
            **options(tile, dy.dtype, (gradient, weight, out), setting),
        )  # fmt: skip
        return out

    sizes = phase_pixels, channels, k, phases

    def words() -> str:
        problem = problem_of("rowsparse_dgrad_conv2d", dy, weight, rows, input_size, stride, padding, dilation, groups)
        return key(problem, (dy, weight), apart)

    with torch.cuda.device_of(dy):
        default = configs.dgrad(allowed, *sizes), 0
        return run(pick(words, dy.device, default, lambda: [(tile, 0) for tile in allowed], run))
