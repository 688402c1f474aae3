"""The tiles that a product of the chosen rows has on a GPU: those of the CUDA C++ kernels, as csrc/common/gemm.h takes them
(the tests hold the two against each other), and those of the Triton kernels, as ``triton.configs`` has them. Pure."""

import math
from collections.abc import Sequence
from typing import NamedTuple

from wuskern.kernels.cuda.gpus import Gpu
from wuskern.kernels.problem import Problem
from wuskern.kernels.triton import configs


class Tiling(NamedTuple):
    """A factor of the operations for what fills up tiles, in how many parts a sum is computed, how often dy is read where it is
    not packed, and whether the parts are added without a launch of their own."""

    filled: float
    parts: int = 1
    reads: int = 1
    joins: bool = False


def ceil_div(a: int, b: int) -> int:
    return -(-a // b)


def _filled(sides: Sequence[int], tile: Sequence[int]) -> float:
    return math.prod(ceil_div(n, block) * block / n for n, block in zip(sides, tile, strict=True))


def sides_of(p: Problem) -> tuple[int, int, int]:
    """The sides of one of the equal products that a problem falls into: features, rows and tokens of a group's dW; pixels,
    channels and rows of a group's dX, the pixels being those that lie a stride apart."""
    k = p.k // p.groups
    if p.is_wgrad:
        return p.features, k, p.tokens
    (height, width), (stride_h, stride_w) = p.size, p.stride
    return p.batch * ceil_div(height, stride_h) * ceil_div(width, stride_w), p.channels // p.groups, k


# ---- CUDA C++ -------------------------------------------------------------------------------------------------------

M, DEPTH, PART = 128, 64, 16  # of a tile on tensor cores: its first side, the terms of a step, those of one instruction
SIMT, SIMT_DEPTH = 64, 16  # of a tile without them: both sides, the terms of a step
WIDEST = 256  # second side of a tile; for wgmma alone
LONG_SUM = 512  # terms from which the widest tile pays for dX
MOST_PARTS, LEAST_STEPS = 256, 4  # of a sum, and of a part
MOST_JOINED = 512 * 1024  # bytes of partial sums that one block adds


def native(p: Problem, gpu: Gpu) -> Tiling:
    """The tiles of the CUDA C++ kernel: on tensor cores for halves, else without."""
    a, b, c = sides_of(p)
    on_cores = p.dtype.itemsize == 2
    if p.is_wgrad:
        m, n, depth = (M, wgrad_tile(b, gpu), DEPTH) if on_cores else (SIMT, SIMT, SIMT_DEPTH)
        slots = blocks(n, gpu) if on_cores else 4 * gpu.processors
        parts = wgrad_parts(p.groups * ceil_div(a, m) * ceil_div(b, n), ceil_div(c, depth), m, n, slots)
        columns = wgrad_columns(b, gpu) if on_cores else n
        return Tiling(_filled((a, b, c), (m, columns, PART)), parts, joins=on_cores and blocks_join(parts, b, n))
    strides = math.prod(p.stride)
    terms = p.taps * ceil_div(c, 8) * 8 // strides
    n = dgrad_tile(a, b, terms, strides * p.groups, gpu)
    tile = (M, n, PART) if on_cores else (SIMT, SIMT, SIMT_DEPTH)
    return Tiling(_filled((a, b, c), tile))


def blocks(n: int, gpu: Gpu) -> int:
    """The blocks of tiles n wide that run at once. (One for a processor where they do not fit, as on AMD's: a library's tiles
    are assumed to be these, see ``rule``.)"""
    shared = (4 if n == WIDEST else 3) * 2 * DEPTH * (M + max(n, 64)) + 1024
    most = 2 if n < 128 or (n == 128 and gpu.wgmma) else 1
    return gpu.processors * max(1, min(most, 1024 * gpu.shared_kib // shared))


def wgrad_tile(k: int, gpu: Gpu) -> int:
    """How wide a tile of dW is, along k chosen rows."""
    return _tile_of(wgrad_columns(k, gpu))


def wgrad_columns(k: int, gpu: Gpu) -> int:
    """How many columns of that tile are multiplied: fewer than it has where wgmma can and one tile holds all k rows."""
    fewer = [columns for columns in (96, 160, 192, 208) if k <= columns]
    widths = sorted((32, 64, 128, WIDEST, *fewer)) if gpu.wgmma else (32, 64, 128)
    return min(widths, key=lambda columns: ceil_div(k, columns) * (columns + M // 4))


def _tile_of(columns: int) -> int:
    return next(n for n in (32, 64, 128, WIDEST) if columns <= n)


def blocks_join(parts: int, k: int, n: int) -> bool:
    """Whether the last block of a tile of dW adds its parts."""
    return parts * min(k, n) * M * 4 <= MOST_JOINED


def dgrad_tile(pixels: int, channels: int, terms: int, others: int, gpu: Gpu) -> int:
    """How wide a tile of dX is, along the channels; there are ``others`` such products."""
    for n in (WIDEST, 128) if gpu.wgmma and terms >= LONG_SUM else (128,):
        if channels > n // 2 and ceil_div(pixels, M) * ceil_div(channels, n) * others >= blocks(n, gpu):
            return n
    return 64


def wgrad_parts(tiles: int, steps: int, m: int, n: int, slots: int) -> int:
    """The number of parts in which the steps of each tile of dW are summed, ``slots`` blocks running at once."""
    partial = ceil_div(8 * m * n, 2 * DEPTH * (m + n))

    def cost(parts: int) -> int:
        joining, adding = (partial, parts // 8) if parts > 1 else (0, 0)
        return ceil_div(tiles * parts, slots) * (ceil_div(steps, parts) + 3 + joining) + adding

    return min(range(1, max(1, min(MOST_PARTS, steps // LEAST_STEPS)) + 1), key=cost)


# ---- Triton ---------------------------------------------------------------------------------------------------------


def triton(p: Problem, gpu: Gpu) -> Tiling:
    """The tiles of the Triton kernel without autotuning."""
    a, b, c = sides_of(p)
    scattered = p.is_conv2d and (p.planes or p.channels % (16 * p.groups) != 0)
    allowed = configs.products(gpu.architecture, p.op.removeprefix("rowsparse_"), p.dtype.itemsize, scattered)
    if p.is_wgrad:
        tile, tokens = configs.wgrad(allowed, c, a, b, p.groups)
        parts, reads = ceil_div(c, tokens), ceil_div(a, tile.block_m)
    else:
        tile = configs.dgrad(allowed, a, b, c, math.prod(p.stride) * p.groups)
        parts, reads = 1, ceil_div(b, tile.block_n) * p.taps
    return Tiling(_filled((a, b, c), (tile.block_m, tile.block_n, tile.block_k)), parts, reads)
