"""Launch configurations of the Triton kernels, and paths on the CPU: pure functions of the problem, printable, no I/O.

What a function of a launch can return is enumerable (``ALL``), so that tests compile every configuration that can be
dispatched, for every target.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch


def _ceil_div(a: int, b: int) -> int:
    return -(-a // b)


@dataclass(frozen=True)
class RowsTile:
    """One program of ``sum_rows``: it adds tiles of ``block_rows`` x ``block_columns``."""

    block_rows: int
    block_columns: int
    num_warps: int


@dataclass(frozen=True)
class PlanesTile:
    """One program of ``sum_planes``: it adds tiles of ``block_channels`` x ``block_inner``."""

    block_channels: int
    block_inner: int
    num_warps: int


WIDE_ROWS = RowsTile(block_rows=32, block_columns=128, num_warps=4)
NARROW_ROWS = RowsTile(block_rows=256, block_columns=16, num_warps=4)
LONG_PLANES = PlanesTile(block_channels=4, block_inner=1024, num_warps=4)
SHORT_PLANES = PlanesTile(block_channels=32, block_inner=64, num_warps=4)

ALL = {"sum_rows": (WIDE_ROWS, NARROW_ROWS), "sum_planes": (LONG_PLANES, SHORT_PLANES)}

PROGRAMS = 1024  # wanted in one launch: several for each processor of a large GPU


def sum_rows(rows: int, columns: int) -> tuple[RowsTile, int]:
    """The tile, and how many rows one program takes (so many programs share a column block)."""
    tile = WIDE_ROWS if columns > NARROW_ROWS.block_columns else NARROW_ROWS
    return tile, _chunk(rows, tile.block_rows, _ceil_div(columns, tile.block_columns))


def sum_planes(outer: int, channels: int, inner: int) -> tuple[PlanesTile, int, int]:
    """The tile, and how many outer indices and how many inner elements one program takes."""
    tile = LONG_PLANES if inner > 4 * SHORT_PLANES.block_inner else SHORT_PLANES
    blocks = _ceil_div(channels, tile.block_channels)
    outer_chunk = _chunk(outer, 1, blocks)
    blocks *= _ceil_div(outer, outer_chunk)
    return tile, outer_chunk, _chunk(inner, 4 * tile.block_inner, blocks)


def _chunk(total: int, unit: int, blocks: int) -> int:
    """A multiple of ``unit`` that splits ``total`` into enough chunks for PROGRAMS programs, given ``blocks`` already."""
    chunks = max(1, min(_ceil_div(PROGRAMS, blocks), total // unit))
    return _ceil_div(_ceil_div(total, chunks), unit) * unit


# ---- paths through PyTorch's own kernels ----------------------------------------------------------------------------

MATMUL_PIXELS = {torch.float32: 1024, torch.bfloat16: 256}


def conv2d_dgrad_is_matmul(
    dtype: torch.dtype,
    dy: Sequence[int],
    weight: Sequence[int],
    memory_format: torch.memory_format,
    stride: Sequence[int],
    padding: Sequence[int],
    groups: int,
) -> bool:
    """Whether dx of a 1x1 convolution on the CPU is taken as ``weight.T @ dy`` per image: on contiguous images (not
    channels_last) of so many pixels oneDNN takes longer, by the copies that it reorders them into."""
    return (
        memory_format is torch.contiguous_format
        and tuple(weight[2:]) == tuple(stride) == (1, 1)
        and tuple(padding) == (0, 0)
        and groups == 1
        and dtype in MATMUL_PIXELS
        and dy[2] * dy[3] >= MATMUL_PIXELS[dtype]
    )


# ---- paths of the row-sparse gradients on the CPU, see native.py ----------------------------------------------------

MAPPED_BYTES = 2**25  # glibc maps blocks of so many bytes anew each time, and the system then faults in each page
FEW_FLOPS = 256  # depth of a product below which those faults cost more than MKL does over oneDNN


CHAIN = 448  # products that oneDNN may add up in one chain, as long as there are few chains
PART_FLOPS = 8e6  # what MKL computes in the time that calling oneDNN once more takes


def onednn_parts(depth: int) -> int:
    """Parts that a float32 product by oneDNN is computed in: it adds up each in one chain, and long ones lose digits."""
    return min(_ceil_div(depth, CHAIN), max(1, round(depth**0.5 / 8)))


def product_path(dtype: torch.dtype, m: int, n: int, depth: int) -> str:
    """The path of ``[m, depth] @ [depth, n]``, "mm" or "onednn". Only the first writes into memory of ours, in huge pages."""
    faults = m * n * dtype.itemsize >= MAPPED_BYTES and depth < FEW_FLOPS
    parts = onednn_parts(depth)
    small = parts > 1 and 2 * m * n * depth < parts * PART_FLOPS
    return "onednn" if dtype is torch.float32 and not faults and not small else "mm"


CONTIGUOUS = torch.contiguous_format


@dataclass(frozen=True)
class ConvProblem:
    """A convolution of x [batch, channels, *size] in a memory format, and k chosen rows of its weight."""

    dtype: torch.dtype
    batch: int
    channels: int
    size: tuple[int, ...]
    memory_format: torch.memory_format
    k: int
    kernel_size: tuple[int, ...]
    stride: tuple[int, ...]
    padding: tuple[int, ...]
    dilation: tuple[int, ...]
    groups: int

    @property
    def pixels(self) -> int:
        return self.size[0] * self.size[1]

    @property
    def columns(self) -> int:
        """Of P: one for each tap of the kernel and each chosen row."""
        return self.kernel_size[0] * self.kernel_size[1] * self.k

    @property
    def unfolded_bytes(self) -> int:
        """Of P."""
        return self.batch * self.pixels * self.columns * self.dtype.itemsize

    @property
    def output_bytes(self) -> int:
        """Of dX."""
        return self.batch * self.channels * self.pixels * self.dtype.itemsize


def _is_product(problem: ConvProblem) -> bool:
    return problem.stride == (1, 1) and problem.groups == 1 and problem.dtype in (torch.float32, torch.bfloat16)


def conv2d_wgrad_paths(problem: ConvProblem) -> tuple[str, ...]:
    """Those that can compute dW."""
    if not _is_product(problem):
        return ("library",)
    return ("library", "direct" if problem.dtype is torch.float32 else "unfold")


def conv2d_dgrad_paths(problem: ConvProblem) -> tuple[str, ...]:
    """Those that can compute dX."""
    if not _is_product(problem):
        return ("library",)
    if problem.dtype is torch.float32:
        return ("library", "direct", *([] if problem.memory_format is CONTIGUOUS else ["unfold"]))
    return ("library", "unfold", *(["images"] if problem.memory_format is CONTIGUOUS else []))


def conv2d_wgrad_path(problem: ConvProblem, capability: str) -> str:
    """The path for dW. "direct" runs far from memory's limits, at a rate below oneDNN's: it pays up to so many columns, for
    a single tap fewer, and needs wide vectors. P, which "unfold" writes and reads, has columns / channels of the size of x: it
    pays while that is little, for longer where the library has few pixels to work with."""
    columns, channels, one_tap = problem.columns, problem.channels, problem.kernel_size == (1, 1)
    if not _is_product(problem):
        return "library"
    if problem.dtype is torch.float32:
        return "direct" if capability == "avx512" and columns <= (128 if one_tap else 512) else "library"
    if one_tap and problem.memory_format is torch.channels_last:
        return "library"
    return "unfold" if columns <= (5 if problem.pixels < 32 else 2) * channels else "library"


def conv2d_dgrad_path(problem: ConvProblem, capability: str) -> str:
    """The path for dX. The library's convolution is slow on contiguous images, since it reorders them, and near its floor
    in channels_last, where only a small P beside many channels, or a dX that it faults in, leave anything to gain."""
    columns, channels = problem.columns, problem.channels
    if not _is_product(problem):
        return "library"
    direct = problem.dtype is torch.float32 and capability == "avx512"
    if problem.memory_format is torch.channels_last:
        if direct and problem.output_bytes >= MAPPED_BYTES:
            return "direct"
        small = 2 * columns <= channels or (channels >= 256 and problem.unfolded_bytes <= 2 * 2**20)
        return "unfold" if small and channels > 64 and problem.kernel_size != (1, 1) else "library"
    if problem.dtype is torch.float32:
        few = columns <= (128 if problem.pixels < 32 else 512)
        return "direct" if direct and few else "library"
    if problem.pixels >= 64:
        return "images" if columns <= (2 if problem.pixels >= 256 else 1) * channels else "library"
    return "unfold" if 4 * columns <= channels else "library"
