"""The ways of the CPU through a convolution's row-sparse gradients: operands made small by our kernels, multiplied by PyTorch's
libraries, or by kernels of ours.

With P the gathered dy as a matrix of a row for each pixel of the input and a column for each tap of the kernel and chosen row,
so that dW = P^T X and dX = P W (stride 1, one group; P is small since k is):

- "library": torch's convolution on the gathered dy. "channels_last": the same on copies in that memory format.
- "unfold": P in memory and one product. "images": a product for each image, where images are contiguous.
- "direct": our own products in float32, that make P bit by bit in a cache. "groups": the same, group by group.

In float32 only dX in channels_last may take "unfold": elsewhere the long chains of a library's product lose more digits than
its convolution does.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from wuskern.common.flops import register_flops
from wuskern.common.shapes import output_padding
from wuskern.kernels.cpu.product import new_output, product
from wuskern.kernels.problem import Problem
from wuskern.kernels.reference import library_wgrad

_library = torch.library.Library("wuskern_native", "FRAGMENT")
_GEOMETRY = "int[2] kernel_size, int[2] padding, int[2] dilation"
_library.define(f"unfold_gradient(Tensor dy, int[2] input_size, {_GEOMETRY}, int order) -> Tensor")
_library.define(f"direct_wgrad(Tensor dy, Tensor x, {_GEOMETRY}, bool channels_last) -> Tensor")
_library.define(f"direct_dgrad(Tensor dy, Tensor weight, {_GEOMETRY}, bool channels_last, Tensor(a!) out) -> ()")
_PIXELS_FIRST, _PIXELS_LAST, _PIXELS_LAST_BY_IMAGE = range(3)  # orders of unfold_gradient

Pair = Sequence[int]

# ---- dW ---------------------------------------------------------------------------------------------------------------


def _wgrad_library(dy: Tensor, x: Tensor, problem: Problem) -> Tensor:
    geometry = problem.stride, problem.padding, problem.dilation, problem.groups
    return library_wgrad(dy.contiguous(memory_format=problem.memory_format), x, problem.kernel_size, *geometry)


def _wgrad_unfold(dy: Tensor, x: Tensor, problem: Problem) -> Tensor:
    pixels = x.transpose(0, 1).flatten(1) if problem.planes else x.permute(0, 2, 3, 1).flatten(0, 2).t()  # the first is a copy
    return _fold_weight(product(_unfold(dy, problem, _PIXELS_LAST), pixels), problem)


def _direct_wgrad_flops(dy: torch.Size, x: torch.Size, kernel_size: Pair, *_: Any, **__: Any) -> int:
    return 2 * dy.numel() * x[1] * math.prod(kernel_size)


register_flops(torch.ops.wuskern_native.direct_wgrad, _direct_wgrad_flops)


def _wgrad_direct(dy: Tensor, x: Tensor, problem: Problem) -> Tensor:
    geometry = (problem.kernel_size, problem.padding, problem.dilation)
    return _fold_weight(torch.ops.wuskern_native.direct_wgrad(dy, x, *geometry, not problem.planes).t(), problem)


def _wgrad_groups(dy: Tensor, x: Tensor, problem: Problem) -> Tensor:
    k, channels = problem.k // problem.groups, problem.channels // problem.groups
    one = problem._replace(k=k, channels=channels, groups=1)
    parts = zip(dy.contiguous().split(k, 1), x.split(channels, 1), strict=True)
    return torch.cat([_wgrad_direct(d.contiguous(), c.contiguous(), one) for d, c in parts])


def _wgrad_channels_last(dy: Tensor, x: Tensor, problem: Problem) -> Tensor:
    return _wgrad_library(dy, x.contiguous(memory_format=torch.channels_last), problem._replace(planes=False))


WGRAD: dict[str, Callable[[Tensor, Tensor, Problem], Tensor]] = {  # of dy gathered, and x
    "library": _wgrad_library,
    "channels_last": _wgrad_channels_last,
    "groups": _wgrad_groups,
    "unfold": _wgrad_unfold,
    "direct": _wgrad_direct,
}


# ---- dX ---------------------------------------------------------------------------------------------------------------


def _dgrad_library(dy: Tensor, weight: Tensor, problem: Problem) -> Tensor:
    """The gradient as a transposed convolution, which unlike ``convolution_backward`` wants no tensor of the input's shape."""
    geometry = problem.stride, problem.padding, problem.dilation
    rest = output_padding(problem.size, dy.shape[2:], problem.kernel_size, *geometry)
    dy, weight = (t.contiguous(memory_format=problem.memory_format) for t in (dy, weight))
    dx = torch.ops.aten.convolution(dy, weight, None, *geometry, True, rest, problem.groups)
    return dx.contiguous(memory_format=problem.memory_format)


def _dgrad_unfold(dy: Tensor, weight: Tensor, problem: Problem) -> Tensor:
    p, w = _unfold(dy, problem, _PIXELS_FIRST), _unfold_weight(weight)
    if not problem.planes:
        return product(p, w.t()).view(problem.batch, *problem.size, problem.channels).permute(0, 3, 1, 2)
    dx = product(w.t().contiguous(), p).view(problem.channels, problem.batch, *problem.size).transpose(0, 1)
    return new_output(dx, *dx.shape).copy_(dx)


def _dgrad_images(dy: Tensor, weight: Tensor, problem: Problem) -> Tensor:
    p, w = _unfold(dy, problem, _PIXELS_LAST_BY_IMAGE), _unfold_weight(weight).t().contiguous()
    dx = new_output(dy, problem.batch, problem.channels, problem.pixels)
    with torch.no_grad():
        torch.bmm(w.expand(problem.batch, *w.shape), p, out=dx)
    return dx.unflatten(2, problem.size)


def _direct_dgrad_flops(dy: torch.Size, weight: torch.Size, kernel_size: Pair, *rest: Any, **_: Any) -> int:
    return 2 * dy.numel() * rest[-1][1] * math.prod(kernel_size)


register_flops(torch.ops.wuskern_native.direct_dgrad, _direct_dgrad_flops)


def _dgrad_direct(dy: Tensor, weight: Tensor, problem: Problem) -> Tensor:
    w, geometry = _unfold_weight(weight), (problem.kernel_size, problem.padding, problem.dilation)
    if problem.planes:
        dx = new_output(dy, problem.batch, problem.channels, *problem.size)
        torch.ops.wuskern_native.direct_dgrad(dy, w.t().contiguous(), *geometry, False, dx)
    else:
        dx = new_output(dy, problem.batch, *problem.size, problem.channels).permute(0, 3, 1, 2)
        padded = F.pad(w, (0, -problem.channels % 16)).contiguous()  # of one row, w is a view
        torch.ops.wuskern_native.direct_dgrad(dy, padded, *geometry, True, dx)
    return dx


def _dgrad_channels_last(dy: Tensor, weight: Tensor, problem: Problem) -> Tensor:
    return _dgrad_library(dy, weight, problem._replace(planes=False)).contiguous()


DGRAD: dict[str, Callable[[Tensor, Tensor, Problem], Tensor]] = {  # of dy gathered, and the chosen rows of the weight
    "library": _dgrad_library,
    "channels_last": _dgrad_channels_last,
    "unfold": _dgrad_unfold,
    "images": _dgrad_images,
    "direct": _dgrad_direct,
}


# ---- P and its weight -------------------------------------------------------------------------------------------------


def _unfold(dy: Tensor, problem: Problem, order: int) -> Tensor:
    geometry: tuple[Any, ...] = (problem.size, problem.kernel_size, problem.padding, problem.dilation)
    return torch.ops.wuskern_native.unfold_gradient(dy, *geometry, order)


def _unfold_weight(weight: Tensor) -> Tensor:
    """The weight ``[k, C, kh, kw]`` as ``[(kh, kw from the last to the first, k), C]``, as the columns of P are."""
    return weight.flip(2, 3).permute(2, 3, 0, 1).flatten(0, 2)


def _fold_weight(w: Tensor, problem: Problem) -> Tensor:
    taps = w.unflatten(0, (*problem.kernel_size, problem.k))
    return taps.flip(0, 1).permute(2, 3, 0, 1).contiguous()
