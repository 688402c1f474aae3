"""Which way a product of the chosen rows takes on a GPU: a pure function of the problem, the GPU's capability and the ways that
there are. ``wuskern doctor --explain ... --device cuda --capability 9.0`` prints it.

- "native": the CUDA C++ kernel. "triton": the Triton kernel. Both read dy's chosen rows where they lie, or a copy of them.
- "library": cuBLAS or cuDNN, through PyTorch, on a copy of dy's chosen rows.

Nothing is measured. By a data sheet, a way is expected to take its bytes over the bandwidth or its operations over a share of
the peak, whichever is more, and its launches. Bytes count with copies and partial sums, operations with what fills up tiles.
"""

import functools
from typing import NamedTuple

from wuskern.kernels.cuda import tiles
from wuskern.kernels.cuda.gpus import Gpu, gpu_of
from wuskern.kernels.problem import Problem
from wuskern.kernels.triton import configs

WAYS = ("native", "triton", "library")  # the first of those that take the same
SECTOR = 32  # bytes that a GPU reads at least

# Assumptions, ours: the share of a peak that a way reaches. The libraries are tuned for each GPU, a kernel that gathers spends
# registers on addresses, and the CUDA C++ ones have no tcgen05.
REACHED = {"native": 0.6, "triton": 0.5, "library": 0.75}
# Of native: mma.sync on sm_100 is expected to reach 340 of 2250 TFLOP/s; ordinary arithmetic with 4 x 4 results of a thread,
# which waits for shared memory, a quarter.
REACHED_WITHOUT_TCGEN05, REACHED_WITHOUT_CORES = 0.15, 0.25


class Work(NamedTuple):
    """The work of a way: bytes of memory, operations, launches; the seconds that these are expected to take, and which of them
    take most."""

    moved: int
    operations: int
    launches: int
    seconds: float
    bound: str


class Decision(NamedTuple):
    """The way that is taken, why, and the work of each way that there is; of none where there is nothing to do."""

    way: str
    reason: str
    works: dict[str, Work]


@functools.lru_cache(maxsize=4096)
def choose(p: Problem, capability: str, ways: tuple[str, ...] = WAYS) -> Decision:
    """The way that is expected to take the least."""
    if p.operations == 0:
        return Decision(ways[0], "nothing to multiply, any way does that", {})
    gpu = gpu_of(capability)
    works = {way: work(way, p, gpu) for way in WAYS if way in ways}
    best = min(works, key=lambda way: works[way].seconds)
    reason = f"the least time, most of it {works[best].bound}, counted with the rates of {gpu.name}, not measured"
    return Decision(best, reason, works)


def work(way: str, p: Problem, gpu: Gpu) -> Work:
    """The work of one way. No library tells its tiles: those of native are assumed."""
    tiling, copies = tiles.triton(p, gpu) if way == "triton" else tiles.native(p, gpu), []
    if way == "native":
        copies = _packed(p)
    elif p.k < p.out and (way == "library" or configs.gathers_first(0 if p.planes else 1, tiling.reads)):
        copies = [p.chosen_bytes]
    if way == "library":
        copies += _copied_for_a_library(p)
    moved = _touched(p) + p.input_bytes + p.weight_bytes + 2 * sum(copies)
    if tiling.parts > 1:
        moved += 2 * tiling.parts * p.k * p.features * max(4, p.dtype.itemsize)
    operations, launches = int(p.operations * tiling.filled), 1 + len(copies) + (tiling.parts > 1 and not tiling.joins)
    rate = _reached(way, p, gpu) * gpu.peak(
        p.dtype, p.tf32 and way != "native"
    )  # which multiplies float32 exactly, whatever torch allows
    times = {"memory": moved / gpu.bytes_per_second, "arithmetic": operations / rate, "launches": launches * gpu.launch}
    seconds = max(times["memory"], times["arithmetic"]) + times["launches"]
    return Work(moved, operations, launches, seconds, max(times, key=lambda part: times[part]))


def _reached(way: str, p: Problem, gpu: Gpu) -> float:
    if way != "native":
        return REACHED[way]
    if p.dtype.itemsize > 2:
        return REACHED_WITHOUT_CORES
    return REACHED_WITHOUT_TCGEN05 if gpu.architecture == "sm_100" else REACHED[way]


def _touched(p: Problem) -> int:
    """Bytes of dy that are read to get at the chosen rows."""
    return p.chosen_bytes if p.planes else _sectors(p.tokens, p.k, p.out, p.dtype.itemsize)


def touched_of_x(p: Problem, k: int) -> int:
    """Bytes of x that are read to get at k of its columns."""
    pixels = p.batch * p.pixels
    is_planes = p.is_conv2d and p.planes
    return pixels * k * p.dtype.itemsize if is_planes else _sectors(pixels, k, p.channels, p.dtype.itemsize)


def _sectors(tokens: int, k: int, of: int, itemsize: int) -> int:
    """Bytes of the sectors that hold k of so many elements that lie side by side, of each token; all where all are chosen."""
    return int(tokens * of * itemsize * (1 - (1 - k / of) ** (SECTOR / itemsize)))


def _packed(p: Problem) -> list[int]:
    """Bytes of each operand that CUDA C++ packs: halves that do not lie in eights, as the padded rows of a gathered Linear do,
    and the weight of a convolution's dX unless its windows are points. Wider elements are read where they lie."""
    if p.dtype.itemsize > 2:
        return []
    in_eights, in_planes = p.channels // p.groups % 8 == 0, p.is_conv2d and p.planes
    are_points = (p.kernel_size, p.stride, p.padding, p.groups) == ((1, 1), (1, 1), (0, 0), 1)
    operands = (
        (p.chosen_bytes, p.k < p.out or p.planes or (p.is_conv2d and p.k // p.groups % 8 != 0)),
        (p.input_bytes, p.is_wgrad and (in_planes or not in_eights)),
        (p.weight_bytes, not p.is_wgrad and (in_planes or not in_eights or not are_points)),
    )
    return [size for size, is_packed in operands if is_packed]


def _copied_for_a_library(p: Problem) -> list[int]:
    """Bytes of each further copy: the weight's rows of dX; cuDNN multiplies halves as NHWC, and copies planes to and fro."""
    is_copied = p.is_conv2d and p.planes and p.dtype.itemsize == 2
    return ([] if p.is_wgrad else [p.weight_bytes]) + ([p.chosen_bytes, p.input_bytes] if is_copied else [])


def floor(p: Problem, capability: str) -> float:
    """Seconds that no way undercuts: each operand once, at the peak rates, in one launch."""
    gpu = gpu_of(capability)
    moved = p.chosen_bytes + p.input_bytes + p.weight_bytes
    return max(moved / gpu.bytes_per_second, p.operations / gpu.peak(p.dtype, p.tf32)) + gpu.launch
