"""The tiles of the Triton kernels, all that can be dispatched: MEMORY's on every architecture, PRODUCTS' by architecture.

Tests compile each for where it can be dispatched. The choice among them is ``configs``'.
"""

from dataclasses import dataclass


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


@dataclass(frozen=True)
class SelectTile:
    """The program of ``select``: it looks at ``chunk`` scores at a time."""

    chunk: int
    num_warps: int


@dataclass(frozen=True)
class UpdateTile:
    """One program of ``update_sgd`` or ``update_adam``: it updates ``block`` neighbours of one row."""

    block: int
    num_warps: int


@dataclass(frozen=True)
class LineTile:
    """One program of ``pack``, ``piecewise``, ``scale_set`` or ``scale_each``: it takes ``block`` neighbours, of bits so many
    bytes."""

    block: int
    num_warps: int


@dataclass(frozen=True)
class GemmTile:
    """One program of a product: ``block_m`` x ``block_n`` results, ``block_k`` terms of their sums at a time."""

    block_m: int
    block_n: int
    block_k: int
    num_warps: int
    num_stages: int


BySize = dict[int, tuple[GemmTile, ...]]  # by the bytes of an element, smallest first

# What reads memory alone: each thread has 32 to 64 bytes on their way, on every architecture.
WIDE_ROWS = RowsTile(block_rows=32, block_columns=128, num_warps=8)
NARROW_ROWS = RowsTile(block_rows=256, block_columns=16, num_warps=4)
LONG_PLANES = PlanesTile(block_channels=4, block_inner=1024, num_warps=4)
SHORT_PLANES = PlanesTile(block_channels=32, block_inner=64, num_warps=8)
FEW_SCORES = SelectTile(chunk=1024, num_warps=8)
MANY_SCORES = SelectTile(chunk=2048, num_warps=16)
LONG_ROWS = UpdateTile(block=1024, num_warps=4)
SHORT_ROWS = UpdateTile(block=128, num_warps=1)
BYTES_OF_BITS = LineTile(block=256, num_warps=4)
LONG_LINE = LineTile(block=2048, num_warps=4)

MEMORY = {
    "sum_rows": (WIDE_ROWS, NARROW_ROWS),
    "sum_planes": (LONG_PLANES, SHORT_PLANES),
    "gather_columns": (WIDE_ROWS, NARROW_ROWS),
    "gather_planes": (LONG_PLANES, SHORT_PLANES),
    "select": (FEW_SCORES, MANY_SCORES),
    "update_sgd": (LONG_ROWS, SHORT_ROWS),
    "update_adam": (LONG_ROWS, SHORT_ROWS),
    "pack": (BYTES_OF_BITS,),
    "piecewise": (BYTES_OF_BITS,),
    "scale_set": (BYTES_OF_BITS,),
    "scale_each": (LONG_LINE,),
}


def _products(deep: int, warps: int, stages: int) -> dict[str, dict[bool, BySize]]:
    """The tiles of each kernel, by whether its images are scattered (see ``gemm.scattered``).

    Two bytes go to tensor cores; four and eight where exact products may take ordinary arithmetic. The chosen rows are
    block_n of a weight's gradient and summed over in an input's. An address for each element takes registers: a convolution
    that cannot read its channels as vectors takes the smaller tiles.

    ``deep``: block_k of a weight's gradient in two bytes, but for the largest tile. ``warps``: of a tile of 128 rows.
    ``stages``: of two bytes.
    """
    double = (GemmTile(32, 32, 16, num_warps=8, num_stages=2),)
    single_dgrad = tuple(GemmTile(64, 64, k, num_warps=8, num_stages=2) for k in (16, 32))
    wgrad: BySize = {
        2: (*(GemmTile(128, n, deep, warps, stages) for n in (16, 32, 64)), GemmTile(128, 128, 32, warps, stages)),
        4: tuple(GemmTile(64, n, 32, num_warps=8, num_stages=min(3, stages)) for n in (16, 64)),
        8: double,
    }
    wgrad_scattered: BySize = {
        2: tuple(GemmTile(64, n, 32, num_warps=8, num_stages=stages) for n in (16, 64)),
        4: tuple(GemmTile(64, n, 16, w, num_stages=min(3, stages)) for n, w in ((16, 4), (64, 8))),
        8: double,
    }
    dgrad: BySize = {
        2: tuple(GemmTile(m, m, k, w, stages) for m, w in ((64, 4), (128, warps)) for k in (16, 32)),
        4: single_dgrad,
        8: double,
    }
    dgrad_conv2d: BySize = {
        2: tuple(GemmTile(m, 64, k, num_warps=8, num_stages=stages) for m in (64, 128) for k in (16, 32)),
        4: single_dgrad,
        8: double,
    }
    dgrad_scattered: BySize = {
        2: tuple(GemmTile(64, 64, k, num_warps=8, num_stages=stages) for k in (16, 32)),
        4: (GemmTile(64, 64, 16, num_warps=8, num_stages=2),),
        8: double,
    }
    return {
        "wgrad": {False: wgrad},
        "wgrad_conv2d": {False: wgrad, True: wgrad_scattered},
        "dgrad": {False: dgrad},
        "dgrad_conv2d": {False: dgrad_conv2d, True: dgrad_scattered},
    }


# By shared memory and matrix unit. sm_80 serves 8.6 and 8.9 too, which have 99 KiB as sm_120 has. wgmma and tcgen05 read
# operands of 64 halves (128 bytes) in one swizzle, and 227 KiB hold two programs of them; 128 x 128 of them spilled. gfx942 has
# 64 KiB, waves of 64, and its pipeliner two stages.
PRODUCTS = {
    "sm_80": _products(deep=32, warps=8, stages=4),
    "sm_90": _products(deep=64, warps=8, stages=4),
    "sm_100": _products(deep=64, warps=8, stages=4),
    "sm_120": _products(deep=32, warps=8, stages=3),
    "gfx942": _products(deep=32, warps=4, stages=2),
}
