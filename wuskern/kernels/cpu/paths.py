"""Paths of the CPU through PyTorch's libraries and our kernels, see native.py: pure functions of the problem, no I/O."""

from collections.abc import Sequence

import torch

from wuskern.kernels.problem import Problem

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
WHY_COLUMNS = {  # of each path of the chosen columns of x
    "mm": "torch's product of dY and the columns that forward gathered",
    "library": "torch's convolution of the channels that forward gathered, in float32 of 16 at least: of fewer it loses digits",
    "images": "a product for each contiguous image: faster than torch's convolution of few channels",
}

MAPPED_BYTES = 2**25  # glibc maps blocks of so many bytes anew each time, and the system then faults in each page
FEW_FLOPS = 256  # depth of a product below which those faults cost more than MKL does over oneDNN
CHAIN = 448  # products that oneDNN may add up in one chain, as long as there are few chains
CALL_FLOPS = 4e6  # what MKL computes in the time that calling oneDNN once takes, 14 us; joining two parts is another call
MATMUL_PIXELS = {torch.float32: 1024, torch.bfloat16: 256}  # of an image, from which a product beats oneDNN's convolution


def onednn_parts(depth: int) -> int:
    """The parts that a float32 product by oneDNN is computed in: it adds up each in one chain, and long ones lose digits."""
    return min(-(-depth // CHAIN), max(1, round(depth**0.5 / 8)))


def product_path(dtype: torch.dtype, m: int, n: int, depth: int) -> str:
    """The path of ``[m, depth] @ [depth, n]``, "mm" or "onednn". Only the first writes into memory of ours, in huge pages."""
    faults = m * n * dtype.itemsize >= MAPPED_BYTES and depth < FEW_FLOPS
    calls = 2 * onednn_parts(depth) - 1
    large = 2 * m * n * depth >= calls * CALL_FLOPS
    return "onednn" if dtype is torch.float32 and large and not faults else "mm"


# ---- convolutions -----------------------------------------------------------------------------------------------------


def _columns(problem: Problem) -> int:
    """The columns of P: one for each tap of the kernel and each chosen row."""
    return problem.taps * problem.k


def _unfolded_bytes(problem: Problem) -> int:
    """The size of P."""
    return problem.batch * problem.pixels * _columns(problem) * problem.dtype.itemsize


def _is_product(problem: Problem) -> bool:
    return problem.stride == (1, 1) and problem.groups == 1 and problem.dtype in (torch.float32, torch.bfloat16)


def _are_slow_groups(problem: Problem, whole: int) -> bool:
    """Whether the library's convolution takes a multiple of its time: on contiguous images in groups whose rows do not fill
    blocks of ``whole``."""
    images = problem.groups > 1 and problem.planes
    return images and problem.dtype in (torch.float32, torch.bfloat16) and problem.k // problem.groups % whole > 0


def onednn_wgrad_fails(
    dtype: torch.dtype,
    channels: int,
    kernel_size: Sequence[int],
    stride: Sequence[int],
    dilation: Sequence[int],
    groups: int,
) -> bool:
    """Whether oneDNN's dW of images in channels_last is wrong, which its dW of contiguous ones is not: in bfloat16 with a
    dilation in height it leaves sums out, and of a 1x1 kernel with strides it writes beyond its memory where channels are fewer
    than a vector's elements. Found by tests/kernels/cpu/test_library_wgrad.py's grid, with torch 2.13."""
    leaves_out = dtype is torch.bfloat16 and dilation[0] > 1
    few = channels < 16 and groups == 1 and dtype in (torch.float32, torch.bfloat16)
    return leaves_out or (few and tuple(kernel_size) == (1, 1) and tuple(stride) != (1, 1))


def conv2d_wgrad_paths(problem: Problem) -> tuple[str, ...]:
    """The paths that can compute dW."""
    float32 = problem.dtype is torch.float32
    if _is_product(problem):
        return ("library", "direct" if float32 else "unfold")
    if problem.planes and problem.dtype is torch.bfloat16:
        return ("library", "channels_last")
    if problem.planes and float32 and problem.stride == (1, 1):
        return ("library", "groups")
    return ("library",)


def conv2d_dgrad_paths(problem: Problem) -> tuple[str, ...]:
    """The paths that can compute dX."""
    if not _is_product(problem):
        return ("library", "channels_last") if problem.planes else ("library",)
    if problem.dtype is torch.float32:
        return ("library", "direct", *([] if problem.planes else ["unfold"]))
    return ("library", "unfold", *(["images"] if problem.planes else []))


def conv2d_wgrad_path(problem: Problem, capability: str) -> str:
    """The path for dW. "direct" runs far from memory's limits, at a rate below oneDNN's: it pays up to so many columns, for
    a single tap fewer, and needs wide vectors. P, which "unfold" writes and reads, has columns / channels of the size of x: it
    pays while that is little, for longer where the library has few pixels to work with."""
    columns, channels, one_tap = _columns(problem), problem.channels, problem.kernel_size == (1, 1)
    if not _is_product(problem):
        if not _are_slow_groups(problem, 16):
            return "library"
        if problem.dtype is torch.bfloat16:  # in float32 channels_last would lose digits
            return "library" if problem.dilation[0] > 1 else "channels_last"
        return "groups" if problem.stride == (1, 1) and capability == "avx512" else "library"
    if problem.dtype is torch.float32:
        return "direct" if capability == "avx512" and columns <= (128 if one_tap else 512) else "library"
    if one_tap and not problem.planes:
        return "unfold" if columns < 16 else "library"  # which pads its channels to 16
    return "unfold" if columns <= (5 if problem.pixels < 32 else 2) * channels else "library"


def conv2d_dgrad_path(problem: Problem, capability: str) -> str:
    """The path for dX. The library's convolution is slow on contiguous images, since it reorders them, and near its floor
    in channels_last, where only a small P beside many channels, or a dX that it faults in, leave anything to gain."""
    columns, channels = _columns(problem), problem.channels
    if not _is_product(problem):
        return "channels_last" if _are_slow_groups(problem, 4) else "library"
    direct = problem.dtype is torch.float32 and capability == "avx512"
    if not problem.planes:
        if direct and problem.input_bytes >= MAPPED_BYTES:
            return "direct"
        small = 2 * columns <= channels or (channels >= 256 and _unfolded_bytes(problem) <= 2 * 2**20)
        return "unfold" if small and channels > 64 and problem.kernel_size != (1, 1) else "library"
    if problem.dtype is torch.float32:
        few = columns <= (128 if problem.pixels < 32 else 512)
        return "direct" if direct and few else "library"
    if problem.pixels >= 64:
        return "images" if columns <= (2 if problem.pixels >= 256 else 1) * channels else "library"
    return "unfold" if 4 * columns <= channels else "library"


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


# ---- some columns ---------------------------------------------------------------------------------------------------


def columns_are_images(
    dtype: torch.dtype, kernel_size: Sequence[int], stride: Sequence[int], padding: Sequence[int], groups: int
) -> bool:
    """Whether dW of some columns of contiguous images is a product for each image: faster than oneDNN's convolution."""
    one_tap = tuple(kernel_size) == tuple(stride) == (1, 1) and tuple(padding) == (0, 0) and groups == 1
    return one_tap and dtype is torch.float32


def column_path(problem: Problem) -> str:
    """The path for dW of all rows, of the columns that the problem's x has: a key of ``WHY_COLUMNS``."""
    if not problem.is_conv2d:
        return "mm"
    geometry = problem.kernel_size, problem.stride, problem.padding, problem.groups
    return "images" if problem.planes and columns_are_images(problem.dtype, *geometry) else "library"
