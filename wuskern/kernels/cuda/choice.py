"""Which way a product of the chosen rows is computed on a GPU: a pure function of the problem, the GPU's capability and
measured tables. Printable: ``wuskern doctor --explain ... --device cuda --capability 9.0``, which needs no GPU.

- "native": the CUDA C++ kernel. "triton": the Triton kernel. Both read dy's chosen rows where they lie, or a copy of them.
- "library": cuBLAS or cuDNN, through PyTorch, on a copy of dy's chosen rows.

A way is expected to take its counted floor, the larger of bytes over bandwidth and operations over rate, plus its launches;
times what it was measured to take over that, in problems nearby, where a table has any.
"""

import functools
from collections.abc import Sequence
from dataclasses import dataclass

from wuskern.kernels.cuda import measured
from wuskern.kernels.cuda.gpus import RATES, Rates, architecture
from wuskern.kernels.cuda.product import Product
from wuskern.kernels.triton import configs
from wuskern.kernels.triton.tiles import GemmTile

WAYS = ("native", "triton", "library")  # the first of those that take the same
SECTOR = 32  # bytes that a GPU reads at least

# The share of a peak rate of products that a way is taken to reach until it was measured. An assumption, ours: the libraries
# are tuned for each GPU, a kernel that gathers spends registers on addresses, and the CUDA C++ ones have no tcgen05.
REACHED = {"native": 0.6, "triton": 0.5, "library": 0.75}
REACHED_WITHOUT_TCGEN05 = 0.3  # native on sm_100


@dataclass(frozen=True)
class Count:
    """What a way does: bytes of memory, operations with those that fill up its tiles, launches."""

    moved: int
    operations: int
    launches: int

    def floor(self, rates: Rates, rate: str, reached: float) -> float:
        """Seconds."""
        work = self.operations / (reached * rates.flops_per_second[rate])
        return max(self.moved / rates.bytes_per_second, work) + self.launches * rates.launch


@dataclass(frozen=True)
class Decision:
    """``seconds``: expected, of each way that there is."""

    way: str
    seconds: dict[str, float]
    reason: str


# ---- what each way does ---------------------------------------------------------------------------------------------


def counts(p: Product, capability: str) -> dict[str, Count]:
    """Of every way. Each fills up tiles and splits long sums over programs, about as the Triton kernel does."""
    allowed = configs.products(architecture(capability), p.op.removeprefix("rowsparse_"), p.itemsize)
    filled, reads, chunks = (_wgrad if p.is_wgrad else _dgrad)(p, allowed)
    partial_sums = 2 * chunks * p.k * p.features * max(4, p.itemsize) if chunks > 1 else 0  # written and read
    operations, launches = int(p.operations * filled), 2 if chunks > 1 else 1
    copies = {"native": _packed(p), "triton": _in_place(p, reads), "library": _gathered(p)}
    return {
        way: Count(moved + p.other_bytes + partial_sums, operations, launches + more) for way, (moved, more) in copies.items()
    }


def _read_chosen(p: Product) -> int:
    """Bytes that are read to get at them: sectors, where single elements lie apart."""
    if p.planes or p.k == p.out:
        return p.compact_bytes
    touched = 1 - (1 - p.k / p.out) ** (SECTOR / p.itemsize)
    return int(p.tokens * p.out * p.itemsize * touched)


def _packed(p: Product) -> tuple[int, int]:
    """Bytes of dy and of copies, and further launches, of the CUDA C++ kernels: in two bytes they read operands whose channels
    lie in eights, and pack others; of a convolution's dX, the weight's rows too. Wider elements are read where they lie."""
    moved, launches = _read_chosen(p), 0
    if p.itemsize > 2:
        return moved, launches
    if p.k < p.out or p.planes or p.k // p.groups % 8:
        moved, launches = moved + 2 * p.compact_bytes, 1
    if p.is_wgrad and p.is_conv2d and (p.planes or p.features // p.taps % 8):
        moved, launches = moved + 2 * p.inputs * p.itemsize, launches + 1
    if not p.is_wgrad and p.is_conv2d:
        moved, launches = moved + 2 * p.k * p.features * p.itemsize, launches + 1
    return moved, launches


def _in_place(p: Product, reads: int) -> tuple[int, int]:
    """The same of the Triton kernels, which gather as they read, or first where that is the cheaper."""
    if p.k < p.out and configs.gathers_first(0 if p.planes else 1, reads):
        return _read_chosen(p) + 2 * p.compact_bytes, 1
    return _read_chosen(p), 0


def _gathered(p: Product) -> tuple[int, int]:
    """The same of the library: gathered first; of dX, the weight's rows too. cuDNN multiplies two bytes on tensor cores in
    NHWC, and copies what lies in planes, to and fro."""
    moved, launches = _read_chosen(p), 0
    if p.k < p.out:
        moved, launches = moved + 2 * p.compact_bytes, 1
    if not p.is_wgrad:
        moved, launches = moved + 2 * p.k * p.features * p.itemsize, launches + 1
    if p.is_conv2d and p.planes and p.itemsize == 2:
        moved, launches = moved + 2 * (p.compact_bytes + p.inputs * p.itemsize), launches + 2
    return moved, launches


def _wgrad(p: Product, allowed: Sequence[GemmTile]) -> tuple[float, int, int]:
    """What filling up tiles multiplies the work by, how often dy is read, and in how many parts the tokens are added."""
    k = p.k // p.groups
    tile, tokens = configs.wgrad(allowed, p.tokens, p.features, k, p.groups)
    return _filled(p.features, tile.block_m) * _filled(k, tile.block_n), -(-p.features // tile.block_m), -(-p.tokens // tokens)


def _dgrad(p: Product, allowed: Sequence[GemmTile]) -> tuple[float, int, int]:
    """As :func:`_wgrad`."""
    k, channels = p.k // p.groups, p.features // p.taps
    tile = configs.dgrad(allowed, p.tokens, channels, k, p.groups)
    return _filled(channels, tile.block_n) * _filled(k, tile.block_k), -(-channels // tile.block_n) * p.taps, 1


def _filled(n: int, block: int) -> float:
    return -(-n // block) * block / n


# ---- the choice -----------------------------------------------------------------------------------------------------


@functools.lru_cache(maxsize=4096)
def choose(
    p: Product, capability: str, ways: Sequence[str] = WAYS, table: tuple[measured.Point, ...] | None = None
) -> Decision:
    """The way that is expected to take the least, of those there are. ``table``: measured points, by default those that the
    package has of the architecture. Where it has some of such products, a way without any is not considered."""
    table = measured.of(architecture(capability)) if table is None else table
    floors = {way: _floor(way, capability, p) for way in WAYS if way in ways}
    ratios = {way: measured.slowdown(table, p, way, functools.partial(_floor, way, capability)) for way in floors}
    known = {way: floors[way] * ratio for way, ratio in ratios.items() if ratio is not None}
    seconds = known or floors
    best = min(seconds, key=seconds.__getitem__)
    rates = RATES[architecture(capability)].name
    return Decision(
        best, seconds, f"measured nearby, with the rates of {rates}" if known else f"counted, with the rates of {rates}"
    )


def _floor(way: str, capability: str, p: Product) -> float:
    """The CUDA C++ kernels multiply float32 exactly, whatever torch allows."""
    arch = architecture(capability)
    reached = REACHED_WITHOUT_TCGEN05 if (way, arch) == ("native", "sm_100") else REACHED[way]
    return counts(p, capability)[way].floor(RATES[arch], p.dtype if way == "native" else p.rate, reached)


def floor(p: Product, capability: str) -> float:
    """Seconds that no way undercuts: each operand once, at the peak rates, in one launch."""
    rates = RATES[architecture(capability)]
    return Count(p.compact_bytes + p.other_bytes, p.operations, 1).floor(rates, p.rate, 1)
