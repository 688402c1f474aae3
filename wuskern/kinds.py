"""What each kind of layer does with its weight: one frozen value for each, which says how its products are called.

Shapes: ``x`` is the layer's input, ``dy`` the gradient of its output. ``like``: how the gradient of x has to lie in memory, as
the kind's ``like`` said in forward. ``units`` and ``fprop`` take the weight as the layer has it, all others with its output
units in dimension 0, as ``rows_first`` gives it, and gradients of it have them there, too.
"""

import math
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from wuskern import ops
from wuskern.choices import Units
from wuskern.common.shapes import as_matrix, is_batched, is_channels_last, is_contiguous, memory_format, output_padding
from wuskern.kernels.cpu import paths
from wuskern.kernels.reference import clear_padded_taps
from wuskern.ops.grouped import grouped_wgrad

Pair = tuple[int, ...]  # height and width
Sides = int | tuple[int, ...]  # as torch's functions take a pair


def pair(value: Sides) -> Pair:
    """The two numbers, for height and width, of what may be one number for both."""
    if isinstance(value, int):
        return value, value
    return tuple(value) if len(value) == 2 else tuple(value) * 2


class Kind(Protocol):
    """A kind of layer.

    Attributes:
        dim: the dimension of y that holds the output units. groups: into how many equal parts these fall.
        transposed: whether the weight has its input units in dimension 0, and the output units in dimension 1.
    """

    dim: ClassVar[int]
    transposed: ClassVar[bool]

    @property
    def groups(self) -> int: ...

    def units(self, weight: Tensor) -> Units:
        """The units that choices have to fit."""

    def count_tokens(self, x: Tensor) -> int:
        """How many tokens the weight's gradient sums over; y has as many as x."""

    def fprop(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """The output y."""

    def like(self, x: Tensor, weight: Tensor) -> Any:
        """How the gradient of x has to lie in memory, for stock's strides."""

    def laid_out(self, dy: Tensor, like: Any) -> Tensor:
        """The gradient ``dy`` in the memory format that its products want."""

    def tokens(self, t: Tensor) -> Tensor:
        """The tensor ``t``, x or dy, as ``[tokens, ...]``."""

    def dgrad(self, dy: Tensor, weight: Tensor, like: Any) -> Tensor:
        """The gradient of x, by a constant weight, made of calls that autograd knows: it can be differentiated again."""

    def rowsparse_dgrad(self, dy: Tensor, weight: Tensor, rows: Tensor, like: Any) -> Tensor:
        """The gradient of x from the chosen rows alone, which are all that ``dy`` has."""

    def wgrad(self, dy: Tensor, x: Tensor, weight: Tensor) -> Tensor:
        """The whole gradient of the weight, in its shape and layout, from dy and x as ``[tokens, ...]``."""

    def column_sums(self, x: Tensor) -> Tensor:
        """The sums ``[inputs]`` of the squares of x, one for each input unit."""

    def weight_sums(self, weight: Tensor) -> Tensor:
        """The sums ``[inputs]`` of the squares of the weight, one for each input unit."""

    def gathers_columns(self, weight: Tensor) -> bool:
        """Whether forward keeps columns of x alone: where a gather costs less than the product that it saves."""

    def widened(self, x: Tensor, weight: Tensor) -> Tensor:
        """Columns of x with as many zeros behind them as a library needs to be as right as it is for all columns."""

    def part(self, weight: Tensor, x: Tensor) -> Tensor:
        """A tensor without values, in shape and layout the weight's with as many columns as x has."""

    def column_wgrad(self, dy: Tensor, x: Tensor, weight: Tensor) -> Tensor:
        """The gradient of the columns that x has, as :meth:`wgrad`; ``weight``: that part of the weight."""

    def rowsparse_wgrad(self, dy: Tensor, x: Tensor, rows: Tensor, weight: Tensor) -> Tensor:
        """The gradient ``[k, ...]`` of the chosen rows; ``dy`` has all rows or these alone."""


# ---- Linear ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Linear:
    """The kind ``y = x @ weight.T + bias``. x: ``[..., in]``. weight: ``[out, in]``. ``like``: whether x, as a matrix, is
    transposed in memory."""

    dim: ClassVar[int] = -1
    transposed: ClassVar[bool] = False
    groups: ClassVar[int] = 1  # type: ignore[misc]

    def units(self, weight: Tensor) -> Units:
        return Units("Linear", *weight.shape)

    def count_tokens(self, x: Tensor) -> int:
        return math.prod(x.shape[:-1])

    def fprop(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return F.linear(x, weight, bias)

    def like(self, x: Tensor, weight: Tensor) -> bool:
        if x.ndim < 3:
            return x.ndim == 2 and x.stride() == (1, x.size(0))
        tokens = 1
        for size, stride in zip(x.shape[-2::-1], x.stride()[-2::-1], strict=True):
            if size > 1 and stride != tokens:
                return False
            tokens *= size
        return tokens > 1 and x.stride(-1) == tokens

    def laid_out(self, dy: Tensor, like: bool) -> Tensor:
        return dy

    def tokens(self, t: Tensor) -> Tensor:
        return as_matrix(t)

    def dgrad(self, dy: Tensor, weight: Tensor, like: bool) -> Tensor:
        weight = weight.detach()  # where the weight requires a gradient, torch.matmul makes copies
        if not like:
            return dy.matmul(weight)
        return weight.t().mm(as_matrix(dy).t()).t().view(*dy.shape[:-1], weight.shape[1])

    def rowsparse_dgrad(self, dy: Tensor, weight: Tensor, rows: Tensor, like: bool) -> Tensor:
        dx = ops.rowsparse_dgrad(dy, weight, rows)
        return as_matrix(dx).t().contiguous().t().view(dx.shape) if like else dx

    def wgrad(self, dy: Tensor, x: Tensor, weight: Tensor) -> Tensor:
        return dy.t() @ x

    def rowsparse_wgrad(self, dy: Tensor, x: Tensor, rows: Tensor, weight: Tensor) -> Tensor:
        return ops.rowsparse_wgrad(dy, x, rows)

    def column_sums(self, x: Tensor) -> Tensor:
        return ops.row_stats(x, -1, "l2")[1]

    def weight_sums(self, weight: Tensor) -> Tensor:
        return ops.row_stats(weight, -1, "l2")[1]

    def gathers_columns(self, weight: Tensor) -> bool:
        return True

    def widened(self, x: Tensor, weight: Tensor) -> Tensor:
        return x

    def part(self, weight: Tensor, x: Tensor) -> Tensor:
        return weight.new_empty(weight.shape[0], x.shape[-1])

    def column_wgrad(self, dy: Tensor, x: Tensor, weight: Tensor) -> Tensor:
        return self.wgrad(dy, x, weight)


LINEAR = Linear()


# ---- Conv2d ---------------------------------------------------------------------------------------------------------


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
