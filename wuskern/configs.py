"""Launch configurations of the Triton kernels: pure functions of the problem, printable, no I/O.

What a function here can return is enumerable (``ALL``), so that tests compile every configuration that can be
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


def linear_path(dtype: torch.dtype, onednn: bool) -> str:
    return "onednn" if dtype is torch.float32 and onednn else "mm"
