"""The kind of a Conv2d."""

from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from wuskern import ops
from wuskern.choices import Units
from wuskern.common.shapes import is_batched, is_channels_last, is_contiguous, memory_format, output_padding
from wuskern.kernels.cpu import paths
from wuskern.kernels.reference import clear_padded_taps
from wuskern.kinds.base import Pair
from wuskern.ops.grouped import grouped_wgrad


class LikeX(NamedTuple):
    """How dx has to lie in memory: the size and strides of x, and the format that the library takes for it, if only one."""

    size: torch.Size
    stride: tuple[int, ...]
    format: torch.memory_format | None


FEW = 16  # input channels: a product with fewer takes a library as long


@dataclass(frozen=True)
class Conv2d:
    """The kind ``y = conv2d(x, weight) + bias``. x: ``[B, C, H, W]``. weight: ``[out, C / groups, kh, kw]``.

    Padding is a number here: the caller takes care of "same", of other padding modes and of unbatched input.
    """

    stride: Pair = (1, 1)
    padding: Pair = (0, 0)
    dilation: Pair = (1, 1)
    groups: int = 1
    dim: ClassVar[int] = 1
    transposed: ClassVar[bool] = False

    @property
    def _geometry(self) -> tuple[Pair, Pair, Pair, int]:
        return self.stride, self.padding, self.dilation, self.groups

    @property
    def _backward_geometry(self) -> tuple[Any, ...]:
        """The geometry as ``convolution_backward`` takes it."""
        return self.stride, self.padding, self.dilation, False, (0, 0), self.groups

    def units(self, weight: Tensor) -> Units:
        return Units("Conv2d", weight.shape[0], weight.shape[1] * self.groups, self.groups)

    def count_tokens(self, x: Tensor) -> int:
        return x.shape[0] if x.ndim == 4 else 1

    def fprop(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return F.conv2d(x, weight, bias, *self._geometry)

    def like(self, x: Tensor, weight: Tensor) -> LikeX:
        format = _only_format(x)
        doubtful = format is torch.contiguous_format and not is_contiguous(weight)
        return LikeX(x.size(), _dense_stride(x), None if doubtful else format)

    def laid_out(self, dy: Tensor, like: LikeX) -> Tensor:
        return dy if like.format is None or is_batched(dy) else dy.contiguous(memory_format=like.format)

    def tokens(self, t: Tensor) -> Tensor:
        return t

    def dgrad(self, dy: Tensor, weight: Tensor, like: LikeX) -> Tensor:
        """The gradient of x, as :meth:`Kind.dgrad` says, by PyTorch's library.

        A transposed convolution is the same computation and, unlike ``convolution_backward``, wants no input for its shape: an
        allocation of that size, though nothing reads it, makes the C library return memory and fault it in again.
        """
        weight = weight.detach()  # where the weight requires a gradient, torch.matmul makes copies
        size, x_stride, wanted = like
        stride, padding, dilation, groups = self._geometry
        if wanted is not None and dy.is_cpu and not is_batched(dy):
            dy = dy.contiguous(memory_format=wanted)
            if paths.conv2d_dgrad_is_matmul(dy.dtype, dy.shape, weight.shape, wanted, stride, padding, groups):
                return torch.matmul(weight.flatten(1).t(), dy.flatten(2)).view(size)
            if _only_format(dy) is wanted:
                uncovered = output_padding(size[2:], dy.shape[2:], weight.shape[2:], stride, padding, dilation)
                return torch.ops.aten.convolution(dy, weight, None, stride, padding, dilation, True, uncovered, groups)
        unread = dy.new_empty_strided(size, x_stride)
        mask = True, False, False
        return torch.ops.aten.convolution_backward(dy, unread, weight, None, *self._backward_geometry, mask)[0]

    def rowsparse_dgrad(self, dy: Tensor, weight: Tensor, rows: Tensor, like: LikeX) -> Tensor:
        if _only_format(dy) is like.format is not None:
            return ops.rowsparse_dgrad_conv2d(dy, weight, rows, like.size[2:], *self._geometry)
        chosen = weight.new_empty_strided(
            (len(rows), *weight.shape[1:]), weight.stride()
        )  # the weight's strides decide about dx's
        return self.dgrad(dy, torch.index_select(weight, 0, rows, out=chosen), like)

    def wgrad(self, dy: Tensor, x: Tensor, weight: Tensor) -> Tensor:
        if self.groups > 1:
            dw = grouped_wgrad(dy, x, weight, *self._geometry)
        else:
            mask = False, True, False
            dw = torch.ops.aten.convolution_backward(dy, x, weight, None, *self._backward_geometry, mask)[1]
        return clear_padded_taps(dw, x.shape[2:], dy.shape[2:], self.stride, self.padding, self.dilation)

    def rowsparse_wgrad(self, dy: Tensor, x: Tensor, rows: Tensor, weight: Tensor) -> Tensor:
        return ops.rowsparse_wgrad_conv2d(dy, x, rows, weight.shape[2:], *self._geometry)

    def column_sums(self, x: Tensor) -> Tensor:
        return ops.row_stats(x, 1, "l2")[1]

    def weight_sums(self, weight: Tensor) -> Tensor:
        return torch.cat([ops.row_stats(of_group, 1, "l2")[1] for of_group in weight.chunk(self.groups)])

    def gathers_columns(self, weight: Tensor) -> bool:
        return self.groups > 1 or weight.shape[1] > FEW

    def widened(self, x: Tensor, weight: Tensor) -> Tensor:
        """The columns, in float32 ``FEW`` at least: of fewer oneDNN adds up in longer chains."""
        short = FEW - x.shape[1]
        if short <= 0 or self.groups > 1 or x.dtype is not torch.float32 or not x.is_cpu or self._is_product(x, weight):
            return x
        return F.pad(x, (0, 0, 0, 0, 0, short))

    def _is_product(self, x: Tensor, weight: Tensor) -> bool:
        """Whether dW is a product of matrices for each image."""
        geometry = weight.shape[2:], self.stride, self.padding, self.groups
        return x.is_cpu and is_contiguous(x) and paths.columns_are_images(x.dtype, *geometry)

    def column_wgrad(self, dy: Tensor, x: Tensor, weight: Tensor) -> Tensor:
        if not self._is_product(x, weight):
            return self.wgrad(dy, x, weight)
        return torch.bmm(dy.flatten(2), x.flatten(2).transpose(1, 2)).sum(0)[..., None, None]

    def part(self, weight: Tensor, x: Tensor) -> Tensor:
        size = weight.shape[0], x.shape[1] // self.groups, *weight.shape[2:]
        return torch.empty(size, dtype=weight.dtype, device=weight.device, memory_format=memory_format(weight))


def _only_format(t: Tensor) -> torch.memory_format | None:
    """The one memory format that t has; None where it has neither, or both, as with one channel or one pixel."""
    contiguous, channels_last = t.is_contiguous(), t.is_contiguous(memory_format=torch.channels_last)
    if contiguous and not channels_last and is_contiguous(t):
        return torch.contiguous_format
    return torch.channels_last if channels_last and not contiguous and is_channels_last(t) else None


def _dense_stride(x: Tensor) -> tuple[int, ...]:
    """The strides of x, or of a copy of x without gaps: a slice of a large tensor must not ask for the large tensor."""
    if x.is_contiguous() or x.is_contiguous(memory_format=torch.channels_last) or x.numel() == 0:
        return x.stride()
    extent = 1 + sum((n - 1) * s for n, s in zip(x.shape, x.stride(), strict=True))
    return x.stride() if extent == x.numel() else torch.empty_like(x, device="meta").stride()
