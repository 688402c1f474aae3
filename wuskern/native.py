"""The CPU's half of backend ``native`` that is Python: operands made small by our kernels, multiplied by PyTorch's libraries.

Each of the four functions gathers the chosen rows where dy is whole, asks ``configs`` for a path, and takes it. Paths of a
Linear: "mm" is torch's (MKL in float32, oneDNN in bfloat16), "onednn" is oneDNN in float32 too. Paths of a Conv2d:

- "library": torch's convolution on the gathered dy.
- "unfold": the gathered dy as a matrix P of a row for each pixel of the input and a column for each tap and chosen row;
  dW = P^T X and dX = P W are then single products. For stride 1 and one group.
- "images" (contiguous images): the same, image by image, where the images are large: nothing is transposed.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from wuskern import configs, reference
from wuskern.shapes import memory_format

_library = torch.library.Library("wuskern_native", "FRAGMENT")
_library.define(
    "unfold_gradient(Tensor dy, int[2] input_size, int[2] kernel_size, int[2] padding, int[2] dilation, int order) -> Tensor"
)
_library.define("direct_wgrad(Tensor dy, Tensor x, int[2] kernel_size, int[2] padding, int[2] dilation, bool last) -> Tensor")
_library.define(
    "direct_dgrad(Tensor dy, Tensor weight, int[2] kernel_size, int[2] padding, int[2] dilation, bool last, Tensor(a!) out) -> ()"
)
_library.define("new_output(Tensor like, int[] size) -> Tensor")
PIXELS_FIRST, PIXELS_LAST, PIXELS_LAST_BY_IMAGE = range(3)  # orders of unfold_gradient

Geometry = tuple[Sequence[int], Sequence[int], Sequence[int], Sequence[int], int]  # kernel, stride, padding, dilation, groups


# ---- Linear -----------------------------------------------------------------------------------------------------------


def rowsparse_wgrad(dy: Tensor, x: Tensor, rows: Tensor) -> Tensor:
    dy, x = gathered(dy, rows, -1).flatten(0, -2), x.flatten(0, -2)
    return linear_wgrad(configs.linear_path(dy.dtype, onednn()), dy, x)


def linear_wgrad(path: str, dy: Tensor, x: Tensor) -> Tensor:
    """``dy.T @ x`` of ``[T, k]`` and ``[T, K]``. A transposed copy of the small operand makes either library faster."""
    return PRODUCTS[path](dy.t().contiguous(), x.t())


def rowsparse_dgrad(dy: Tensor, weight: Tensor, rows: Tensor) -> Tensor:
    flat = gathered(dy, rows, -1).flatten(0, -2)
    path = configs.linear_path(dy.dtype, onednn())
    return linear_dgrad(path, flat, weight.index_select(0, rows)).view(*dy.shape[:-1], weight.shape[1])


def linear_dgrad(path: str, dy: Tensor, weight: Tensor) -> Tensor:
    return PRODUCTS[path](dy, weight.t())


def _mm(a: Tensor, b: Tensor) -> Tensor:
    """``a @ b.T``"""
    out = torch.ops.wuskern_native.new_output(a, (a.shape[0], b.shape[0]))
    return torch.mm(a, b.t(), out=out)


def _onednn(a: Tensor, b: Tensor) -> Tensor:
    if a.numel() == 0 or b.numel() == 0:
        return _mm(a, b)
    return torch.ops.mkldnn._linear_pointwise(a, b, None, "none", [], "")


PRODUCTS = {"mm": _mm, "onednn": _onednn}


def onednn() -> bool:
    return True


def product(a: Tensor, b: Tensor) -> Tensor:
    return PRODUCTS[configs.linear_path(a.dtype, onednn())](a, b)


# ---- Conv2d -----------------------------------------------------------------------------------------------------------


def conv2d_wgrad_library(dy: Tensor, x: Tensor, geometry: Geometry) -> Tensor:
    kernel_size, stride, padding, dilation, groups = geometry
    weight = x.new_empty(dy.shape[1], x.shape[1] // groups, *kernel_size)
    rest = (stride, padding, dilation, False, (0, 0), groups)
    return torch.ops.aten.convolution_backward(dy, x, weight, None, *rest, (False, True, False))[1].contiguous()


def conv2d_wgrad_unfold(dy: Tensor, x: Tensor, geometry: Geometry) -> Tensor:
    kernel_size, _, padding, dilation, _ = geometry
    if memory_format(x) is torch.channels_last:
        pixels = x.permute(0, 2, 3, 1).flatten(0, 2).t()
    else:
        pixels = x.transpose(0, 1).flatten(1)  # [C, T]: a copy of whole planes
    p = torch.ops.wuskern_native.unfold_gradient(dy, x.shape[2:], kernel_size, padding, dilation, PIXELS_LAST)
    return _folded_weight(product(p, pixels), kernel_size)


def conv2d_wgrad_images(dy: Tensor, x: Tensor, geometry: Geometry) -> Tensor:
    kernel_size, _, padding, dilation, _ = geometry
    p = torch.ops.wuskern_native.unfold_gradient(dy, x.shape[2:], kernel_size, padding, dilation, PIXELS_LAST_BY_IMAGE)
    total = product(p[0], x[0].flatten(1))
    for i in range(1, x.shape[0]):
        total += product(p[i], x[i].flatten(1))
    return _folded_weight(total, kernel_size)

def conv2d_wgrad_bmm(dy: Tensor, x: Tensor, geometry: Geometry) -> Tensor:
    kernel_size, _, padding, dilation, _ = geometry
    p = torch.ops.wuskern_native.unfold_gradient(dy, x.shape[2:], kernel_size, padding, dilation, PIXELS_LAST_BY_IMAGE)
    return _folded_weight(torch.bmm(p, x.flatten(2).transpose(1, 2)).sum(0), kernel_size)


def conv2d_dgrad_library(dy: Tensor, weight: Tensor, size: Sequence[int], geometry: Geometry) -> Tensor:
    kernel_size, stride, padding, dilation, groups = geometry
    rest = [
        n - ((m - 1) * s - 2 * p + d * (k - 1) + 1)
        for n, m, s, p, d, k in zip(size, dy.shape[2:], stride, padding, dilation, kernel_size, strict=True)
    ]
    return torch.ops.aten.convolution(dy, weight, None, stride, padding, dilation, True, rest, groups)


def conv2d_dgrad_unfold(dy: Tensor, weight: Tensor, size: Sequence[int], geometry: Geometry, last) -> Tensor:
    kernel_size, _, padding, dilation, _ = geometry
    p = torch.ops.wuskern_native.unfold_gradient(dy, size, kernel_size, padding, dilation, PIXELS_FIRST)
    w = _unfolded_weight(weight)
    if last:
        return product(p, w.t()).view(dy.shape[0], *size, weight.shape[1]).permute(0, 3, 1, 2)
    dx = product(w.t().contiguous(), p).view(weight.shape[1], dy.shape[0], *size).transpose(0, 1)
    return torch.ops.wuskern_native.new_output(dx, dx.shape).copy_(dx)

def conv2d_dgrad_huge(dy: Tensor, weight: Tensor, size: Sequence[int], geometry: Geometry) -> Tensor:
    kernel_size, _, padding, dilation, _ = geometry
    p = torch.ops.wuskern_native.unfold_gradient(dy, size, kernel_size, padding, dilation, PIXELS_FIRST)
    w = _unfolded_weight(weight)
    return _mm(p, w.t()).view(dy.shape[0], *size, weight.shape[1]).permute(0, 3, 1, 2)


def conv2d_dgrad_images(dy: Tensor, weight: Tensor, size: Sequence[int], geometry: Geometry) -> Tensor:
    kernel_size, _, padding, dilation, _ = geometry
    p = torch.ops.wuskern_native.unfold_gradient(dy, size, kernel_size, padding, dilation, PIXELS_LAST_BY_IMAGE)
    w = _unfolded_weight(weight).t().contiguous()
    out = torch.ops.wuskern_native.new_output(p, (p.shape[0], w.shape[0], p.shape[2]))
    return torch.bmm(w.expand(p.shape[0], *w.shape), p, out=out).view(p.shape[0], -1, *size)


def _unfolded_weight(weight: Tensor) -> Tensor:
    """``[k, C, kh, kw]`` as ``[taps from the last to the first, k, C]`` in two dimensions."""
    return weight.flip(2, 3).permute(2, 3, 0, 1).flatten(0, 2)


def _folded_weight(w: Tensor, kernel_size: Sequence[int]) -> Tensor:
    taps = w.unflatten(0, (*kernel_size, -1))
    return taps.flip(0, 1).permute(2, 3, 0, 1).contiguous()


def conv2d_wgrad_direct(dy, x, geometry):
    kernel_size, _, padding, dilation, _ = geometry
    w = torch.ops.wuskern_native.direct_wgrad(dy, x, kernel_size, padding, dilation, memory_format(x) is torch.channels_last)
    return _folded_weight(w.t().to(dy.dtype), kernel_size)


def conv2d_dgrad_direct(dy, weight, size, geometry, last):
    kernel_size, _, padding, dilation, _ = geometry
    b, c = dy.shape[0], weight.shape[1]
    w = _unfolded_weight(weight).float()
    if last:
        w = torch.nn.functional.pad(w, (0, -c % 16))
        out = torch.ops.wuskern_native.new_output(dy, (b, *size, c)).permute(0, 3, 1, 2)
    else:
        w = w.t().contiguous()
        out = torch.ops.wuskern_native.new_output(dy, (b, c, *size))
    torch.ops.wuskern_native.direct_dgrad(dy, w, kernel_size, padding, dilation, last, out)
    return out
