"""The CPU's half of backend ``native`` that is Python: operands made small by our kernels, multiplied by PyTorch's libraries.

Each op gathers the chosen rows where dy is whole, asks ``paths`` for a path, and takes it. Of a Linear:

- "mm": torch's own product, MKL in float32 and oneDNN in bfloat16. "onednn": oneDNN in float32 too.

Of a Conv2d, with P the gathered dy as a matrix of a row for each pixel of the input and a column for each tap of the kernel
and chosen row, so that dW = P^T X and dX = P W (stride 1, one group; P is small since k is):

- "library": torch's convolution on the gathered dy. "channels_last": the same on copies in that memory format.
- "unfold": P in memory and one product. "images": a product for each image, where images are contiguous.
- "direct": our own products in float32, that make P bit by bit in a cache. "groups": the same, group by group.

In float32 only dX in channels_last may take "unfold": elsewhere the long chains of a library's product lose more digits than
its convolution does.
"""

import dataclasses
import functools
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from wuskern.common.flops import register_flops
from wuskern.common.shapes import memory_format, output_padding
from wuskern.kernels.cpu import paths
from wuskern.kernels.cpu.paths import CONTIGUOUS, ConvProblem
from wuskern.kernels.reference import library_wgrad

_library = torch.library.Library("wuskern_native", "FRAGMENT")
_GEOMETRY = "int[2] kernel_size, int[2] padding, int[2] dilation"
_library.define(f"unfold_gradient(Tensor dy, int[2] input_size, {_GEOMETRY}, int order) -> Tensor")
_library.define(f"direct_wgrad(Tensor dy, Tensor x, {_GEOMETRY}, bool channels_last) -> Tensor")
_library.define(f"direct_dgrad(Tensor dy, Tensor weight, {_GEOMETRY}, bool channels_last, Tensor(a!) out) -> ()")
_library.define("new_output(Tensor like, int[] size) -> Tensor")
_library.define("write_rows(Tensor(a!) target, Tensor? stale, Tensor rows, Tensor values) -> ()")  # for delivery/dense_grad.py
_PIXELS_FIRST, _PIXELS_LAST, _PIXELS_LAST_BY_IMAGE = range(3)  # orders of unfold_gradient

Pair = Sequence[int]


def _gathered(dy: Tensor, rows: Tensor, dim: int) -> Tensor:
    return dy if dy.shape[dim] == rows.shape[0] else torch.ops.wuskern_native.gather_rows.default(dy, rows, dim)


# ---- products ---------------------------------------------------------------------------------------------------------


def _mm(a: Tensor, b: Tensor) -> Tensor:
    """``a @ b.T``"""
    if a.shape[0] * b.shape[0] * a.itemsize < paths.MAPPED_BYTES:
        return torch.mm(a, b.t())
    with torch.no_grad():
        return torch.mm(a, b.t(), out=_new(a, a.shape[0], b.shape[0]))


def _onednn(a: Tensor, b: Tensor) -> Tensor:
    """``a @ b.T`` by the calls that torch.compile makes of a Linear, in parts along the depth that join one by one."""
    linear, depth = torch.ops.mkldnn._linear_pointwise, a.shape[1]
    parts = paths.onednn_parts(depth)
    if parts == 1:
        return linear(_dense(a), _dense(b), None, "none", [], "")
    step = -(-depth // parts)
    pieces = ((_dense(x), _dense(y)) for x, y in zip(a.split(step, 1), b.split(step, 1), strict=True))
    total = linear(*next(pieces), None, "none", [], "")
    for x, y in pieces:
        total = linear.binary(x, total, y, None, "add")
    return total


def _dense(t: Tensor) -> Tensor:
    """t, or a copy of it where neither its rows nor its columns are one run of memory: oneDNN may take a thousand times as
    long for such a matrix."""
    return t if t.is_contiguous() or t.t().is_contiguous() else t.contiguous()


def _linear_flops(a: torch.Size, b: torch.Size, c: torch.Size | None, *_: Any, **__: Any) -> int:
    """Of ``_linear_pointwise(a, weight)`` and of ``_linear_pointwise.binary(a, other, weight)``, which torch does not count."""
    weight = b if c is None else c
    return 2 * a.numel() * weight[0]


PRODUCTS = {"mm": _mm, "onednn": _onednn}
if hasattr(torch.ops.mkldnn, "_linear_pointwise"):
    register_flops(torch.ops.mkldnn._linear_pointwise, _linear_flops)


def product(a: Tensor, b: Tensor) -> Tensor:
    """``a @ b.T`` of ``[m, depth]`` and ``[n, depth]``, contiguous."""
    return PRODUCTS[product_path(a.dtype, a.shape[0], b.shape[0], a.shape[1])](a, b)


def product_path(dtype: torch.dtype, m: int, n: int, depth: int) -> str:
    """The path of ``[m, depth] @ [depth, n]`` on this processor, with the user's settings."""
    path = paths.product_path(dtype, m, n, depth)
    return path if path == "mm" or onednn_obstacle() is None else "mm"


def onednn_obstacle() -> str | None:
    """Why float32 products are left to torch, or None. MKL takes about twice oneDNN's time on AMD's processors; elsewhere
    the two are close, and what torch takes is right. A precision below float32 that the user allows is torch's matter."""
    if vendor() != "AuthenticAMD":
        return f"MKL serves this processor ({vendor() or 'unknown'})"
    if not torch.backends.mkldnn.is_available() or not hasattr(torch.ops.mkldnn, "_linear_pointwise"):
        return "this torch is built without oneDNN"
    if not torch._C._get_mkldnn_enabled():
        return "torch.backends.mkldnn.enabled is False"
    if torch.backends.mkldnn.matmul.fp32_precision in ("tf32", "bf16"):  # type: ignore[attr-defined]
        return "float32_matmul_precision allows less than float32"
    return None


@functools.cache
def vendor() -> str:
    """What the processor calls its maker; empty where the system does not tell."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return ""
    return next((line.split(":")[1].strip() for line in lines if line.startswith("vendor_id")), "")


def _new(like: Tensor, *size: int) -> Tensor:
    return torch.ops.wuskern_native.new_output(like, size)


# ---- Linear -----------------------------------------------------------------------------------------------------------


def rowsparse_wgrad(dy: Tensor, x: Tensor, rows: Tensor) -> Tensor:
    dy = _gathered(dy, rows, -1)
    if dy.numel() == 0 or x.numel() == 0:
        return x.new_zeros(rows.shape[0], x.shape[-1])
    return product(dy.reshape(-1, dy.shape[-1]).t(), x.reshape(-1, x.shape[-1]).t())


def rowsparse_dgrad(dy: Tensor, weight: Tensor, rows: Tensor) -> Tensor:
    dy, weight = _gathered(dy, rows, -1), weight.index_select(0, rows)
    if dy.numel() == 0 or weight.numel() == 0:
        return dy.new_zeros(*dy.shape[:-1], weight.shape[1])
    return product(dy.reshape(-1, dy.shape[-1]), weight.t()).view(*dy.shape[:-1], weight.shape[1])


# ---- Conv2d -----------------------------------------------------------------------------------------------------------


def _problem(
    dtype: torch.dtype, x: Pair, like: torch.memory_format, k: int,
    kernel_size: Pair, stride: Pair, padding: Pair, dilation: Pair, groups: int,
) -> ConvProblem:  # fmt: skip
    geometry = tuple(kernel_size), tuple(stride), tuple(padding), tuple(dilation)
    return ConvProblem(dtype, x[0], x[1], tuple(x[2:]), like, k, *geometry, groups)


# ---- Conv2d: dW -------------------------------------------------------------------------------------------------------


def rowsparse_wgrad_conv2d(
    dy: Tensor, x: Tensor, rows: Tensor, kernel_size: Pair, stride: Pair, padding: Pair, dilation: Pair, groups: int
) -> Tensor:
    dy = _gathered(dy, rows, 1)
    if dy.numel() == 0 or x.numel() == 0:
        return x.new_zeros(rows.shape[0], x.shape[1] // groups, *kernel_size)
    x = x.contiguous(memory_format=memory_format(x))
    problem = _problem(x.dtype, x.shape, memory_format(x), rows.shape[0], kernel_size, stride, padding, dilation, groups)
    return WGRAD[paths.conv2d_wgrad_path(problem, _vectors())](dy, x, problem)


def _wgrad_library(dy: Tensor, x: Tensor, problem: ConvProblem) -> Tensor:
    geometry = problem.stride, problem.padding, problem.dilation, problem.groups
    return library_wgrad(dy.contiguous(memory_format=problem.memory_format), x, problem.kernel_size, *geometry)


def _wgrad_unfold(dy: Tensor, x: Tensor, problem: ConvProblem) -> Tensor:
    rows = problem.memory_format is not CONTIGUOUS
    pixels = x.permute(0, 2, 3, 1).flatten(0, 2).t() if rows else x.transpose(0, 1).flatten(1)  # of planes: a copy
    return _fold_weight(product(_unfold(dy, problem, _PIXELS_LAST), pixels), problem)


def _direct_wgrad_flops(dy: torch.Size, x: torch.Size, kernel_size: Pair, *_: Any, **__: Any) -> int:
    return 2 * dy.numel() * x[1] * math.prod(kernel_size)


register_flops(torch.ops.wuskern_native.direct_wgrad, _direct_wgrad_flops)


def _wgrad_direct(dy: Tensor, x: Tensor, problem: ConvProblem) -> Tensor:
    channels_last = problem.memory_format is not CONTIGUOUS
    geometry = (problem.kernel_size, problem.padding, problem.dilation)
    return _fold_weight(torch.ops.wuskern_native.direct_wgrad(dy, x, *geometry, channels_last).t(), problem)


def _wgrad_groups(dy: Tensor, x: Tensor, problem: ConvProblem) -> Tensor:
    k, channels = problem.k // problem.groups, problem.channels // problem.groups
    one = dataclasses.replace(problem, k=k, channels=channels, groups=1)
    parts = zip(dy.contiguous().split(k, 1), x.split(channels, 1), strict=True)
    return torch.cat([_wgrad_direct(d.contiguous(), c.contiguous(), one) for d, c in parts])


def _wgrad_channels_last(dy: Tensor, x: Tensor, problem: ConvProblem) -> Tensor:
    return _wgrad_library(dy, x.contiguous(memory_format=torch.channels_last), _in_channels_last(problem))


WGRAD: dict[str, Callable[[Tensor, Tensor, ConvProblem], Tensor]]
WGRAD = {
    "library": _wgrad_library,
    "channels_last": _wgrad_channels_last,
    "groups": _wgrad_groups,
    "unfold": _wgrad_unfold,
    "direct": _wgrad_direct,
}


# ---- Conv2d: dX -------------------------------------------------------------------------------------------------------


def rowsparse_dgrad_conv2d(
    dy: Tensor, weight: Tensor, rows: Tensor, input_size: Pair, stride: Pair, padding: Pair, dilation: Pair, groups: int
) -> Tensor:
    like, size = memory_format(dy), (dy.shape[0], weight.shape[1] * groups, *input_size)
    dy, weight = _gathered(dy, rows, 1), weight.index_select(0, rows)
    if dy.numel() == 0 or weight.numel() == 0:
        return torch.empty(size, dtype=dy.dtype, memory_format=like).zero_()
    problem = _problem(dy.dtype, size, like, rows.shape[0], weight.shape[2:], stride, padding, dilation, groups)
    return DGRAD[paths.conv2d_dgrad_path(problem, _vectors())](dy, weight, problem)


def _dgrad_library(dy: Tensor, weight: Tensor, problem: ConvProblem) -> Tensor:
    """As a transposed convolution, which unlike ``convolution_backward`` wants no tensor of the input's shape."""
    geometry = problem.stride, problem.padding, problem.dilation
    rest = output_padding(problem.size, dy.shape[2:], problem.kernel_size, *geometry)
    dy, weight = (t.contiguous(memory_format=problem.memory_format) for t in (dy, weight))
    dx = torch.ops.aten.convolution(dy, weight, None, *geometry, True, rest, problem.groups)
    return dx.contiguous(memory_format=problem.memory_format)


def _dgrad_unfold(dy: Tensor, weight: Tensor, problem: ConvProblem) -> Tensor:
    p, w = _unfold(dy, problem, _PIXELS_FIRST), _unfold_weight(weight)
    if problem.memory_format is not CONTIGUOUS:
        return product(p, w.t()).view(problem.batch, *problem.size, problem.channels).permute(0, 3, 1, 2)
    dx = product(w.t().contiguous(), p).view(problem.channels, problem.batch, *problem.size).transpose(0, 1)
    return _new(dx, *dx.shape).copy_(dx)


def _dgrad_images(dy: Tensor, weight: Tensor, problem: ConvProblem) -> Tensor:
    p, w = _unfold(dy, problem, _PIXELS_LAST_BY_IMAGE), _unfold_weight(weight).t().contiguous()
    dx = _new(dy, problem.batch, problem.channels, problem.pixels)
    with torch.no_grad():
        torch.bmm(w.expand(problem.batch, *w.shape), p, out=dx)
    return dx.unflatten(2, problem.size)


def _direct_dgrad_flops(dy: torch.Size, weight: torch.Size, kernel_size: Pair, *rest: Any, **_: Any) -> int:
    return 2 * dy.numel() * rest[-1][1] * math.prod(kernel_size)


register_flops(torch.ops.wuskern_native.direct_dgrad, _direct_dgrad_flops)


def _dgrad_direct(dy: Tensor, weight: Tensor, problem: ConvProblem) -> Tensor:
    w, geometry = _unfold_weight(weight), (problem.kernel_size, problem.padding, problem.dilation)
    if problem.memory_format is CONTIGUOUS:
        dx = _new(dy, problem.batch, problem.channels, *problem.size)
        torch.ops.wuskern_native.direct_dgrad(dy, w.t().contiguous(), *geometry, False, dx)
    else:
        dx = _new(dy, problem.batch, *problem.size, problem.channels).permute(0, 3, 1, 2)
        padded = F.pad(w, (0, -problem.channels % 16)).contiguous()  # of one row, w is a view
        torch.ops.wuskern_native.direct_dgrad(dy, padded, *geometry, True, dx)
    return dx


def _dgrad_channels_last(dy: Tensor, weight: Tensor, problem: ConvProblem) -> Tensor:
    return _dgrad_library(dy, weight, _in_channels_last(problem)).contiguous()


def _in_channels_last(problem: ConvProblem) -> ConvProblem:
    return dataclasses.replace(problem, memory_format=torch.channels_last)


DGRAD: dict[str, Callable[[Tensor, Tensor, ConvProblem], Tensor]]
DGRAD = {
    "library": _dgrad_library,
    "channels_last": _dgrad_channels_last,
    "unfold": _dgrad_unfold,
    "images": _dgrad_images,
    "direct": _dgrad_direct,
}


# ---- P and its weight -------------------------------------------------------------------------------------------------


def _unfold(dy: Tensor, problem: ConvProblem, order: int) -> Tensor:
    geometry: tuple[Any, ...] = (problem.size, problem.kernel_size, problem.padding, problem.dilation)
    return torch.ops.wuskern_native.unfold_gradient(dy, *geometry, order)


def _unfold_weight(weight: Tensor) -> Tensor:
    """``[k, C, kh, kw]`` as ``[(kh, kw from the last to the first, k), C]``, as the columns of P are."""
    return weight.flip(2, 3).permute(2, 3, 0, 1).flatten(0, 2)


def _fold_weight(w: Tensor, problem: ConvProblem) -> Tensor:
    taps = w.unflatten(0, (*problem.kernel_size, problem.k))
    return taps.flip(0, 1).permute(2, 3, 0, 1).contiguous()


def conv2d_paths(
    x: Tensor, weight: Tensor, k: int, stride: Pair, padding: Pair, dilation: Pair, groups: int
) -> tuple[str, str]:
    """The paths of dW and dX for k rows of weight, with dy in the memory format of x."""
    geometry = weight.shape[2:], stride, padding, dilation, groups
    problem = _problem(x.dtype, x.shape, memory_format(x), k, *geometry)
    return paths.conv2d_wgrad_path(problem, _vectors()), paths.conv2d_dgrad_path(problem, _vectors())


@functools.cache
def _vectors() -> str:
    return torch.ops.wuskern_native.cpu_capability()
