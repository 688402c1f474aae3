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


@dataclass(frozen=True)
class SelectTile:
    """The program of ``select``: it looks at ``chunk`` scores at a time."""

    chunk: int
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


# ---- which rows a weight's gradient is computed of --------------------------------------------------------------------

GATHER = 25  # products for which the time suffices that gathering an element takes: element bytes * FLOP/s / (2 * bytes/s)


def gathers(features: int, k: int, out: int) -> bool:
    """Whether k of out rows of dW, of so many features each, come from those rows of dy alone. For each token, gathering reads
    out elements and writes k, and saves ``(out - k) * features`` products. Where that does not pay, k being too large or the
    rows too short, the product of all rows is taken, and k rows of it."""
    return features * (out - k) >= GATHER * (out + k)


# ---- paths of the row-sparse gradients on the CPU, see native.py ----------------------------------------------------

WHY = {  # of each path, for `wuskern doctor --explain`
    "mm": "torch's product: oneDNN in bfloat16; in float32 MKL, where oneDNN's calls or the faults of its memory cost more",
    "onednn": "oneDNN's product: about twice MKL's rate in float32 on this processor",
    "channels_last": "torch's convolution on copies in channels_last: it is slow on contiguous images in groups",
    "groups": "our own product for each group: torch's convolution is slow on contiguous images in groups",
    "library": "torch's convolution on the gathered dY: nothing else takes strides, groups and this dtype, or is faster here",
    "unfold": "one product with dY unfolded by the kernel's taps, which is small beside x",
    "images": "a product for each contiguous image, which torch's convolution would reorder first",
    "direct": "our own product, which unfolds dY in a cache: few columns, where torch's convolution is far from its floor",
}

MAPPED_BYTES = 2**25  # glibc maps blocks of so many bytes anew each time, and the system then faults in each page
FEW_FLOPS = 256  # depth of a product below which those faults cost more than MKL does over oneDNN


CHAIN = 448  # products that oneDNN may add up in one chain, as long as there are few chains
CALL_FLOPS = 4e6  # what MKL computes in the time that calling oneDNN once takes, 14 us; joining two parts is another call


def onednn_parts(depth: int) -> int:
    """Parts that a float32 product by oneDNN is computed in: it adds up each in one chain, and long ones lose digits."""
    return min(_ceil_div(depth, CHAIN), max(1, round(depth**0.5 / 8)))


def product_path(dtype: torch.dtype, m: int, n: int, depth: int) -> str:
    """The path of ``[m, depth] @ [depth, n]``, "mm" or "onednn". Only the first writes into memory of ours, in huge pages."""
    faults = m * n * dtype.itemsize >= MAPPED_BYTES and depth < FEW_FLOPS
    calls = 2 * onednn_parts(depth) - 1
    large = 2 * m * n * depth >= calls * CALL_FLOPS
    return "onednn" if dtype is torch.float32 and large and not faults else "mm"


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


def _are_slow_groups(problem: ConvProblem, whole: int) -> bool:
    """Whether the library's convolution takes a multiple of its time: on contiguous images in groups whose rows do not fill
    blocks of ``whole``."""
    images = problem.groups > 1 and problem.memory_format is CONTIGUOUS
    return images and problem.dtype in (torch.float32, torch.bfloat16) and problem.k // problem.groups % whole > 0


def conv2d_wgrad_paths(problem: ConvProblem) -> tuple[str, ...]:
    """Those that can compute dW."""
    if not _is_product(problem):
        if problem.memory_format is not CONTIGUOUS or problem.dtype not in (torch.float32, torch.bfloat16):
            return ("library",)
        if problem.dtype is torch.bfloat16:
            return ("library", "channels_last")
        return ("library", "groups") if problem.stride == (1, 1) else ("library",)
    return ("library", "direct" if problem.dtype is torch.float32 else "unfold")


def conv2d_dgrad_paths(problem: ConvProblem) -> tuple[str, ...]:
    """Those that can compute dX."""
    if not _is_product(problem):
        return ("library", "channels_last") if problem.memory_format is CONTIGUOUS else ("library",)
    if problem.dtype is torch.float32:
        return ("library", "direct", *([] if problem.memory_format is CONTIGUOUS else ["unfold"]))
    return ("library", "unfold", *(["images"] if problem.memory_format is CONTIGUOUS else []))


def conv2d_wgrad_path(problem: ConvProblem, capability: str) -> str:
    """The path for dW. "direct" runs far from memory's limits, at a rate below oneDNN's: it pays up to so many columns, for
    a single tap fewer, and needs wide vectors. P, which "unfold" writes and reads, has columns / channels of the size of x: it
    pays while that is little, for longer where the library has few pixels to work with."""
    columns, channels, one_tap = problem.columns, problem.channels, problem.kernel_size == (1, 1)
    if not _is_product(problem):
        if not _are_slow_groups(problem, 16):
            return "library"
        if problem.dtype is torch.bfloat16:
            return "channels_last"  # which in float32 would lose digits
        return "groups" if problem.stride == (1, 1) and capability == "avx512" else "library"
    if problem.dtype is torch.float32:
        return "direct" if capability == "avx512" and columns <= (128 if one_tap else 512) else "library"
    if one_tap and problem.memory_format is torch.channels_last:
        return "unfold" if columns < 16 else "library"  # which pads its channels to 16
    return "unfold" if columns <= (5 if problem.pixels < 32 else 2) * channels else "library"


def conv2d_dgrad_path(problem: ConvProblem, capability: str) -> str:
    """The path for dX. The library's convolution is slow on contiguous images, since it reorders them, and near its floor
    in channels_last, where only a small P beside many channels, or a dX that it faults in, leave anything to gain."""
    columns, channels = problem.columns, problem.channels
    if not _is_product(problem):
        return "channels_last" if _are_slow_groups(problem, 4) else "library"
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
