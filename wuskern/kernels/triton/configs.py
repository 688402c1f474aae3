"""The launches of the Triton kernels: a tile of ``tiles`` for each problem. Pure, printable, no I/O."""

from collections.abc import Sequence

from wuskern.kernels.triton.tiles import (
    FEW_SCORES,
    LONG_PLANES,
    LONG_ROWS,
    MANY_SCORES,
    NARROW_ROWS,
    PRODUCTS,
    SHORT_PLANES,
    SHORT_ROWS,
    WIDE_ROWS,
    GemmTile,
    PlanesTile,
    RowsTile,
    SelectTile,
    UpdateTile,
)


def _ceil_div(a: int, b: int) -> int:
    return -(-a // b)


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
    """The tile for the scores of one group."""
    return FEW_SCORES if scores <= 4 * FEW_SCORES.chunk else MANY_SCORES


def update_rows(elements: int) -> UpdateTile:
    """The tile for rows of so many elements."""
    return SHORT_ROWS if elements <= 4 * SHORT_ROWS.block else LONG_ROWS


def gathers_first(row_stride: int, reads: int) -> bool:
    """Whether a product that reads the chosen rows of dy so many times takes a compact copy of them. Single elements side by
    side cost a sector of 32 bytes each time they are read; whole planes cost what they hold."""
    return row_stride == 1 and reads > 1


def products(architecture: str, kernel: str, itemsize: int, scattered: bool = False) -> tuple[GemmTile, ...]:
    """The tiles that ``kernel`` can have on one of ``gpus.ARCHITECTURES``, smallest first."""
    return PRODUCTS[architecture][kernel][scattered][itemsize]


def wgrad(tiles: Sequence[GemmTile], tokens: int, features: int, k: int, groups: int = 1) -> tuple[GemmTile, int]:
    """The tile, and how many tokens (output pixels of a convolution) one program takes. ``features`` (channels times taps)
    and ``k`` are those of one group."""
    tile = next((t for t in tiles if t.block_n >= k), tiles[-1])
    blocks = _ceil_div(features, tile.block_m) * _ceil_div(k, tile.block_n) * groups
    return tile, _chunk(tokens, 4 * tile.block_k, blocks, GEMM_PROGRAMS)


def wgrad_candidates(
    tiles: Sequence[GemmTile], tokens: int, features: int, k: int, groups: int = 1
) -> list[tuple[GemmTile, int]]:
    """The configurations that autotuning tries: each tile, with the programs that :func:`wgrad` wants, half and twice those."""
    candidates: dict[tuple[GemmTile, int], None] = {}
    for tile in tiles:
        blocks = _ceil_div(features, tile.block_m) * _ceil_div(k, tile.block_n) * groups
        for programs in (GEMM_PROGRAMS // 2, GEMM_PROGRAMS, 2 * GEMM_PROGRAMS):
            candidates[tile, _chunk(tokens, 4 * tile.block_k, blocks, programs)] = None
    return list(candidates)


def dgrad(tiles: Sequence[GemmTile], tokens: int, features: int, k: int, groups: int = 1) -> GemmTile:
    """The tile; ``tokens`` are the input pixels of a convolution, ``features`` and ``k`` those of one group."""
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
