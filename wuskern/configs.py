"""What runs for a problem: whether rows are gathered, and the Triton kernels' launches. Pure, printable, no I/O.

What a function of a launch can return is enumerable (``ALL``), so that tests compile every configuration that can be
dispatched, for every target.
"""

from collections.abc import Sequence
from dataclasses import dataclass


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
class GemmTile:
    """One program of a product: ``block_m`` x ``block_n`` results, ``block_k`` terms of their sums at a time."""

    block_m: int
    block_n: int
    block_k: int
    num_warps: int
    num_stages: int


WIDE_ROWS = RowsTile(block_rows=32, block_columns=128, num_warps=8)
NARROW_ROWS = RowsTile(block_rows=256, block_columns=16, num_warps=4)
LONG_PLANES = PlanesTile(block_channels=4, block_inner=1024, num_warps=4)
SHORT_PLANES = PlanesTile(block_channels=32, block_inner=64, num_warps=8)
FEW_SCORES = SelectTile(chunk=1024, num_warps=4)
MANY_SCORES = SelectTile(chunk=2048, num_warps=16)
LONG_ROWS = UpdateTile(block=1024, num_warps=4)
SHORT_ROWS = UpdateTile(block=128, num_warps=1)

# By the bytes of an element: two on tensor cores, four and eight where exact products may take ordinary arithmetic. The
# chosen rows are block_n of a weight's gradient and summed over in an input's. An address for each element takes registers:
# a convolution that cannot read its channels as vectors takes the smaller tiles.
WGRAD = {
    2: tuple(GemmTile(128, n, 32, num_warps=8, num_stages=4) for n in (16, 32, 64, 128)),
    4: tuple(GemmTile(64, n, 32, num_warps=8, num_stages=3) for n in (16, 32, 64)),
    8: tuple(GemmTile(32, n, 16, num_warps=4, num_stages=2) for n in (16, 32)),
}
WGRAD_SCATTERED = {
    2: tuple(GemmTile(64, n, 32, num_warps=8, num_stages=4) for n in (16, 32, 64)),
    4: tuple(GemmTile(64, n, 16, w, num_stages=3) for n, w in ((16, 4), (32, 4), (64, 8))),
    8: WGRAD[8],
}
DGRAD = {
    2: tuple(GemmTile(m, m, k, w, num_stages=4) for m, w in ((64, 4), (128, 8)) for k in (16, 32)),
    4: tuple(GemmTile(64, 64, k, num_warps=8, num_stages=2) for k in (16, 32)),
    8: (GemmTile(32, 32, 16, num_warps=4, num_stages=2),),
}
DGRAD_CONV2D = {
    2: tuple(GemmTile(m, 64, k, num_warps=8, num_stages=4) for m in (64, 128) for k in (16, 32)),
    4: DGRAD[4],
    8: DGRAD[8],
}
DGRAD_SCATTERED = {
    2: tuple(GemmTile(64, 64, k, num_warps=8, num_stages=4) for k in (16, 32)),
    4: (GemmTile(64, 64, 16, num_warps=8, num_stages=2),),
    8: DGRAD[8],
}

ALL = {
    "sum_rows": (WIDE_ROWS, NARROW_ROWS),
    "sum_planes": (LONG_PLANES, SHORT_PLANES),
    "gather_columns": (WIDE_ROWS, NARROW_ROWS),
    "gather_planes": (LONG_PLANES, SHORT_PLANES),
    "select": (FEW_SCORES, MANY_SCORES),
    "update_sgd": (LONG_ROWS, SHORT_ROWS),
    "update_adam": (LONG_ROWS, SHORT_ROWS),
    "wgrad": {False: WGRAD},  # scattered or not; bytes of an element; tiles
    "wgrad_conv2d": {False: WGRAD, True: WGRAD_SCATTERED},
    "dgrad": {False: DGRAD},
    "dgrad_conv2d": {False: DGRAD_CONV2D, True: DGRAD_SCATTERED},
}

PROGRAMS = 1024  # wanted in one launch that adds: several for each processor of a large GPU
GEMM_PROGRAMS = 256  # in one that multiplies: two
INT32_ELEMENTS = 2**31 - 2**20  # operands of so many, or fewer, are indexed in 32 bits: a tile may start before their end


def sum_rows(rows: int, columns: int) -> tuple[RowsTile, int]:
    """The tile, and how many rows one program takes (so many programs share a column block)."""
    tile = WIDE_ROWS if columns > NARROW_ROWS.block_columns else NARROW_ROWS
    return tile, _chunk(rows, tile.block_rows, _ceil_div(columns, tile.block_columns))


def sum_planes(outer: int, channels: int, inner: int) -> tuple[PlanesTile, int, int]:
    """The tile, and how many outer indices and how many inner elements one program takes."""
    tile = _planes(inner)
    blocks = _ceil_div(channels, tile.block_channels)
    outer_chunk = _chunk(outer, 1, blocks)
    blocks *= _ceil_div(outer, outer_chunk)
    return tile, outer_chunk, _chunk(inner, 4 * tile.block_inner, blocks)


def gather_columns(k: int) -> RowsTile:
    return WIDE_ROWS if k > NARROW_ROWS.block_columns else NARROW_ROWS


def gather_planes(inner: int) -> PlanesTile:
    return _planes(inner)


def select(scores: int) -> SelectTile:
    """For the scores of one group."""
    return FEW_SCORES if scores <= 4 * FEW_SCORES.chunk else MANY_SCORES


def update_rows(elements: int) -> UpdateTile:
    """For rows of so many elements."""
    return SHORT_ROWS if elements <= 4 * SHORT_ROWS.block else LONG_ROWS


def gathers_first(row_stride: int, reads: int) -> bool:
    """Whether a product that reads the chosen rows of dy so many times takes a compact copy of them. Single elements side by
    side cost a sector of 32 bytes each time they are read; whole planes cost what they hold."""
    return row_stride == 1 and reads > 1


def wgrad(tiles: Sequence[GemmTile], tokens: int, features: int, k: int, groups: int = 1) -> tuple[GemmTile, int]:
    """The tile, and how many tokens (output pixels of a convolution) one program takes. ``features`` (channels times taps)
    and ``k`` are those of one group."""
    tile = next((t for t in tiles if t.block_n >= k), tiles[-1])
    blocks = _ceil_div(features, tile.block_m) * _ceil_div(k, tile.block_n) * groups
    return tile, _chunk(tokens, 4 * tile.block_k, blocks, GEMM_PROGRAMS)


def dgrad(tiles: Sequence[GemmTile], tokens: int, features: int, k: int, groups: int = 1) -> GemmTile:
    """``tokens`` are the input pixels of a convolution; ``features`` and ``k`` are those of one group."""
    small, large = tiles[0], tiles[-1]
    blocks = groups * _ceil_div(tokens, large.block_m) * _ceil_div(features, large.block_n)
    enough = blocks >= GEMM_PROGRAMS // 2 and features >= large.block_n
    side = large.block_m if enough else small.block_m
    tiles = [t for t in tiles if t.block_m == side]
    return next((t for t in tiles if t.block_k >= k), tiles[-1])


def _planes(inner: int) -> PlanesTile:
    return LONG_PLANES if inner > 4 * SHORT_PLANES.block_inner else SHORT_PLANES


def _chunk(total: int, unit: int, blocks: int, programs: int = PROGRAMS) -> int:
    """A multiple of ``unit`` that splits ``total`` into enough chunks for ``programs``, given ``blocks`` already."""
    chunks = max(1, min(_ceil_div(programs, blocks), total // unit))
    return _ceil_div(_ceil_div(total, chunks), unit) * unit


# ---- which rows a weight's gradient is computed of --------------------------------------------------------------------

GATHER = 25  # products for which the time suffices that gathering an element takes: element bytes * FLOP/s / (2 * bytes/s)


def gathers(features: int, k: int, out: int) -> bool:
    """Whether k of out rows of dW, of so many features each, come from those rows of dy alone. For each token, gathering reads
    out elements and writes k, and saves ``(out - k) * features`` products. Where that does not pay, k being too large or the
    rows too short, the product of all rows is taken, and k rows of it."""
    return features * (out - k) >= GATHER * (out + k)
