"""The op rowsparse_wgrad in Triton: tensor-core products over the tokens (the output pixels of a convolution).

The chosen rows are few, so they are the narrow side of a tile, ``BLOCK_N``, and the features of ``x`` the wide one. Few
tiles leave most of a GPU idle: the tokens are split over programs, and the partial sums are added in a fixed order.
"""

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from wuskern.common.shapes import as_matrix, with_padding
from wuskern.kernels.problem import problem_of
from wuskern.kernels.triton import configs
from wuskern.kernels.triton.bias_grad import add_rows
from wuskern.kernels.triton.gemm import chosen, key, options, scattered, tiles
from wuskern.kernels.triton.tuning import Config, pick


@triton.jit(do_not_specialize=["tokens", "tokens_per_program"])
def wgrad(
    dy, x, rows, out, tokens, features, k, columns, tokens_per_program,
    dy_token_stride, dy_row_stride, x_token_stride, x_feature_stride,
    PACKED: tl.constexpr, ACC: tl.constexpr, INDEX: tl.constexpr, PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """``out[chunk, k, features] = dy[tokens of the chunk, rows].T @ x[tokens of the chunk, features]``. ``columns``: how many
    there are of a packed dy, from k on of any value, so that they are read in vectors; else k."""
    f = tl.program_id(0).to(INDEX) * BLOCK_M + tl.arange(0, BLOCK_M)
    r = tl.program_id(1).to(INDEX) * BLOCK_N + tl.arange(0, BLOCK_N)
    chunk = tl.program_id(2).to(INDEX)
    first = chunk * tokens_per_program
    last = tl.minimum(first + tokens_per_program, tokens)
    row = r
    if not PACKED:
        row = tl.load(rows + r, mask=r < k, other=0).to(INDEX)
    acc = tl.zeros((BLOCK_M, BLOCK_N), ACC)
    for start in range(first, last, BLOCK_K):
        t = start + tl.arange(0, BLOCK_K)
        x_mask = (f[:, None] < features) & (t[None, :] < last)
        dy_mask = (t[:, None] < last) & (r[None, :] < columns)
        a = tl.load(x + t[None, :] * x_token_stride + f[:, None] * x_feature_stride, mask=x_mask, other=0.0)
        b = tl.load(dy + t[:, None] * dy_token_stride + row[None, :] * dy_row_stride, mask=dy_mask, other=0.0)
        acc = tl.dot(a, b, acc, input_precision=PRECISION, out_dtype=ACC)
    p = out + (chunk * k + r[None, :]) * features + f[:, None]
    tl.store(p, acc.to(out.dtype.element_ty), mask=(f[:, None] < features) & (r[None, :] < k))


@triton.jit(do_not_specialize=["pixels", "pixels_per_program"])
def wgrad_conv2d(
    dy, x, rows, out, pixels, plane, out_width, height, width, channels, k, taps, kernel_width, pixels_per_program,
    stride_h, stride_w, padding_h, padding_w, dilation_h, dilation_w,
    dy_image_stride, dy_row_stride, dy_pixel_stride, x_image_stride, x_channel_stride, x_h_stride, x_w_stride,
    PACKED: tl.constexpr, ACC: tl.constexpr, INDEX: tl.constexpr, PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """``out[chunk, groups * k, channels, taps]``: the same over output pixels (``plane`` of them in an image); a feature is a
    channel of ``x`` under a tap of the kernel. ``k`` and ``channels`` are those of one group, program_id(1) counts blocks
    of rows within groups."""
    f = tl.program_id(0).to(INDEX) * BLOCK_M + tl.arange(0, BLOCK_M)
    row_blocks = tl.cdiv(k, BLOCK_N)
    group = (tl.program_id(1) // row_blocks).to(INDEX)
    r = (tl.program_id(1) % row_blocks).to(INDEX) * BLOCK_N + tl.arange(0, BLOCK_N)
    chunk = tl.program_id(2).to(INDEX)
    first = chunk * pixels_per_program
    last = tl.minimum(first + pixels_per_program, pixels)
    is_row, is_feature = r < k, f < channels * taps
    row = group * k + r
    if not PACKED:
        row = tl.load(rows + row, mask=is_row, other=0).to(INDEX)

    c, tap = f % channels, (f // channels).to(tl.int32)
    tap_h = tap // kernel_width * dilation_h - padding_h
    tap_w = tap % kernel_width * dilation_w - padding_w
    x_feature = (group * channels + c) * x_channel_stride + tap_h.to(INDEX) * x_h_stride + tap_w.to(INDEX) * x_w_stride
    dy_row = row * dy_row_stride
    i = tl.arange(0, BLOCK_K)
    acc = tl.zeros((BLOCK_M, BLOCK_N), ACC)
    for start in range(first, last, BLOCK_K):
        ahead = (start % plane).to(tl.int32) + i
        image, pixel = start // plane + (ahead // plane).to(INDEX), ahead % plane
        h, w = pixel // out_width * stride_h, pixel % out_width * stride_w
        x_h, x_w = h[None, :] + tap_h[:, None], w[None, :] + tap_w[:, None]
        is_pixel = start + i < last
        x_mask = (x_h >= 0) & (x_h < height) & (x_w >= 0) & (x_w < width) & is_feature[:, None] & is_pixel[None, :]
        x_pixel = image * x_image_stride + h.to(INDEX) * x_h_stride + w.to(INDEX) * x_w_stride
        a = tl.load(x + x_pixel[None, :] + x_feature[:, None], mask=x_mask, other=0.0)
        dy_pixel = image * dy_image_stride + pixel.to(INDEX) * dy_pixel_stride
        dy_mask = is_row[:, None] & is_pixel[None, :]
        b = tl.load(dy + dy_pixel[None, :] + dy_row[:, None], mask=dy_mask, other=0.0)
        acc = tl.dot(a, tl.trans(b), acc, input_precision=PRECISION, out_dtype=ACC)
    total = tl.num_programs(1) // row_blocks * k
    to = out + ((chunk * total + group * k + r[None, :]) * channels + c[:, None]) * taps + tap[:, None]
    tl.store(to, acc.to(out.dtype.element_ty), mask=is_feature[:, None] & is_row[None, :])


def rowsparse_wgrad(dy: Tensor, x: Tensor, rows: Tensor) -> Tensor:
    """The op :func:`wuskern.ops.rowsparse_wgrad`."""
    k, features = rows.shape[0], x.shape[-1]
    dy, x = as_matrix(dy), as_matrix(x)
    tokens = x.shape[0]
    if 0 in (k, features, tokens):
        return dy.new_zeros(k, features)
    allowed, setting = tiles("wgrad", dy), torch.backends.cuda.matmul.fp32_precision

    def run(config: Config) -> Tensor:
        tile, tokens_per_program = config
        blocks = triton.cdiv(features, tile.block_m), triton.cdiv(k, tile.block_n)
        gradient, index = chosen(dy, rows, -1, blocks[0])
        out, packed = _partial_sums(dy, triton.cdiv(tokens, tokens_per_program), k * features), gradient.shape[1] == k
        columns = with_padding(gradient).shape[1] if packed else k
        wgrad[(*blocks, out.shape[0])](
            gradient, x, index, out, tokens, features, k, columns, tokens_per_program, *gradient.stride(), *x.stride(),
            PACKED=packed, **options(tile, dy.dtype, (gradient, x, out), setting),
        )  # fmt: skip
        return add_rows(out, dy.dtype).view(k, features)

    sizes = tokens, features, k

    def words() -> str:
        return key(problem_of("rowsparse_wgrad", dy, x, rows), (dy, x), False)

    with torch.cuda.device_of(dy):
        default = configs.wgrad(allowed, *sizes)
        return run(pick(words, dy.device, default, lambda: configs.wgrad_candidates(allowed, *sizes), run))


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
    """The op :func:`wuskern.ops.rowsparse_wgrad_conv2d`."""
    shape = rows.shape[0], x.shape[1] // groups, *kernel_size
    k, channels, taps = shape[0] // groups, shape[1], kernel_size[0] * kernel_size[1]
    out_width, plane = dy.shape[3], dy.shape[2] * dy.shape[3]
    pixels = dy.shape[0] * plane
    if 0 in (k, channels, taps, pixels):
        return dy.new_zeros(shape)
    apart, setting = scattered(x, groups), torch.backends.cudnn.conv.fp32_precision
    allowed = tiles("wgrad_conv2d", dy, apart)

    def run(config: Config) -> Tensor:
        tile, pixels_per_program = config
        blocks = triton.cdiv(channels * taps, tile.block_m), triton.cdiv(k, tile.block_n) * groups
        gradient, index = chosen(dy, rows, 1, blocks[0])
        gradient = gradient.flatten(2)
        out = _partial_sums(dy, triton.cdiv(pixels, pixels_per_program), shape[0] * channels * taps)
        wgrad_conv2d[(*blocks, out.shape[0])](
            gradient, x, index, out, pixels, plane, out_width, *x.shape[2:], channels, k, taps, kernel_size[1],
            pixels_per_program, *stride, *padding, *dilation, *gradient.stride(), *x.stride(),
            PACKED=gradient.shape[1] == shape[0], **options(tile, dy.dtype, (gradient, x, out), setting),
        )  # fmt: skip
        return add_rows(out, dy.dtype).view(shape)

    sizes = pixels, channels * taps, k, groups

    def words() -> str:
        problem = problem_of("rowsparse_wgrad_conv2d", dy, x, rows, kernel_size, stride, padding, dilation, groups)
        return key(problem, (dy, x), apart)

    with torch.cuda.device_of(dy):
        default = configs.wgrad(allowed, *sizes)
        return run(pick(words, dy.device, default, lambda: configs.wgrad_candidates(allowed, *sizes), run))


def _partial_sums(dy: Tensor, chunks: int, elements: int) -> Tensor:
    """The memory that the programs write to: the result itself if there is one chunk, else a row for each, in the
    accumulator's type."""
    return dy.new_empty((chunks, elements), dtype=dy.dtype if chunks == 1 else torch.promote_types(dy.dtype, torch.float32))
