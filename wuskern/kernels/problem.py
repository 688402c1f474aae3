"""A product of the chosen rows as all see it that choose how it is computed: the CPU's path (``cpu.paths``), a GPU's way
(``cuda.rule``), what autotuning keeps (``triton.gemm.key``), and the doctor, which explains them.

Only these products have such a choice. The ops that read or move memory run on one backend for each device: ``backends``
chooses it by the op's name, for each call within a microsecond, and builds no problem for that.
"""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from wuskern.common.shapes import memory_format, output_size

OPS = ("rowsparse_wgrad", "rowsparse_dgrad", "rowsparse_wgrad_conv2d", "rowsparse_dgrad_conv2d")

Sides = tuple[int, ...]  # along height and width


class Problem(NamedTuple):
    """A product of k rows of dy. A Linear is a convolution of one tap on images of one pixel, a token each.

    A named tuple: the CPU makes one for each convolution, and a GPU looks each up among those that it has met."""

    op: str  # of OPS
    dtype: torch.dtype
    batch: int  # images
    channels: int  # of x or dX, in all groups
    out: int  # rows that dy holds: k where they have been gathered
    k: int  # chosen rows, in all groups
    size: Sides = (1, 1)  # of an image of x or dX
    kernel_size: Sides = (1, 1)
    stride: Sides = (1, 1)
    padding: Sides = (0, 0)
    dilation: Sides = (1, 1)
    groups: int = 1
    planes: bool = False  # images lie as NCHW, or a Linear's dy transposed: a row's elements side by side, not a pixel's
    tf32: bool = False  # whether float32 may be multiplied so

    @property
    def is_wgrad(self) -> bool:
        return self.op in ("rowsparse_wgrad", "rowsparse_wgrad_conv2d")

    @property
    def is_conv2d(self) -> bool:
        return self.op in ("rowsparse_wgrad_conv2d", "rowsparse_dgrad_conv2d")

    @property
    def memory_format(self) -> torch.memory_format:
        """The format of a convolution's images."""
        return torch.contiguous_format if self.planes else torch.channels_last

    # ---- counts ------------------------------------------------------------------------------------------------------

    @property
    def pixels(self) -> int:
        """The pixels of an image of x or dX."""
        return self.size[0] * self.size[1]

    @property
    def taps(self) -> int:
        return self.kernel_size[0] * self.kernel_size[1]

    @property
    def inputs(self) -> int:
        """The elements of x or dX."""
        return self.batch * self.channels * self.pixels

    @property
    def tokens(self) -> int:
        """The pixels of dy, of all images."""
        return self.batch * math.prod(output_size(self.size, self.kernel_size, self.stride, self.padding, self.dilation))

    @property
    def features(self) -> int:
        """The elements of a row of the weight."""
        return self.channels // self.groups * self.taps

    @property
    def operations(self) -> int:
        """The multiplications and additions."""
        return 2 * self.tokens * self.k * self.features

    @property
    def chosen_bytes(self) -> int:
        """The size of the chosen rows of dy."""
        return self.tokens * self.k * self.dtype.itemsize

    @property
    def input_bytes(self) -> int:
        """The size of x or dX."""
        return self.inputs * self.dtype.itemsize

    @property
    def weight_bytes(self) -> int:
        """The size of the chosen rows of the weight or of its gradient."""
        return self.k * self.features * self.dtype.itemsize


def problem_of(op: str, dy: Tensor, other: Tensor, rows: Tensor, *geometry: Any) -> Problem:
    """The problem that an op's arguments are. A convolution's images lie as those of x where it has them, else as dy's."""
    k, tf32 = rows.shape[0], dy.is_cuda and dy.dtype is torch.float32 and fp32_precision(geometry) == "tf32"
    if not geometry:
        transposed = dy.ndim > 1 and dy.stride(-1) != 1
        tokens = math.prod(dy.shape[:-1])
        return Problem(op, dy.dtype, tokens, other.shape[-1], dy.shape[-1], k, planes=transposed, tf32=tf32)
    given, stride, padding, dilation, groups = geometry  # the size of the kernel for dW, that of the input for dX
    if op == "rowsparse_wgrad_conv2d":
        images, channels, size, kernel_size = other, other.shape[1], other.shape[2:], given
    else:
        images, channels, size, kernel_size = dy, other.shape[1] * groups, given, other.shape[2:]
    sides = tuple(size), tuple(kernel_size), tuple(stride), tuple(padding), tuple(dilation)
    planes = memory_format(images) is torch.contiguous_format
    return Problem(op, dy.dtype, dy.shape[0], channels, dy.shape[1], k, *sides, groups, planes, tf32)


def call_key(dy: Tensor, other: Tensor, rows: Tensor, geometry: Sequence[Any]) -> tuple[Any, ...]:
    """A tuple of all that a call of an op, and the device that it runs on, have to do with its :class:`Problem`: each call asks
    for it, and it takes a fifth of the time of a problem."""
    dtype = dy.dtype
    multiplied = fp32_precision(geometry) if dtype is torch.float32 else None
    key = (dy.shape, dy.stride(), other.shape, other.stride(), rows.shape, dtype, dy.device, multiplied)
    return key if not geometry else (*key, *map(tuple, geometry[:-1]), geometry[-1])


def fp32_precision(geometry: Sequence[Any]) -> str:
    """The setting of torch that says how a GPU multiplies float32: of convolutions, which have a geometry, or of matrices."""
    if geometry:
        return torch.backends.cudnn.conv.fp32_precision  # type: ignore[attr-defined,no-any-return]
    return torch.backends.cuda.matmul.fp32_precision
