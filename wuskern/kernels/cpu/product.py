"""Products of matrices on the CPU, by PyTorch's libraries:

- "mm": torch's own product, MKL in float32 and oneDNN in bfloat16. "onednn": oneDNN in float32 too.
"""

import functools
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from wuskern.common.flops import register_flops
from wuskern.kernels.cpu import paths

_linear = getattr(torch.ops.mkldnn, "_linear_pointwise", None)  # None: a torch that is built without oneDNN


def _mm(a: Tensor, b: Tensor) -> Tensor:
    """The product ``a @ b.T``, one that is large in memory of ours."""
    if a.shape[0] * b.shape[0] * a.itemsize < paths.MAPPED_BYTES:
        return torch.mm(a, b.t())
    with torch.no_grad():
        return torch.mm(a, b.t(), out=new_output(a, a.shape[0], b.shape[0]))


def _onednn(a: Tensor, b: Tensor) -> Tensor:
    """The product ``a @ b.T`` by the calls that torch.compile makes of a Linear, in parts of the depth that join one by one."""
    assert _linear is not None
    depth = a.shape[1]
    parts = paths.onednn_parts(depth)
    if parts == 1:
        return _linear(_dense(a), _dense(b), None, "none", [], "")
    step = -(-depth // parts)
    pieces = ((_dense(x), _dense(y)) for x, y in zip(a.split(step, 1), b.split(step, 1), strict=True))
    total = _linear(*next(pieces), None, "none", [], "")
    for x, y in pieces:
        total = _linear.binary(x, total, y, None, "add")
    return total


def _dense(t: Tensor) -> Tensor:
    """The tensor t, or a copy of it where neither its rows nor its columns are one run of memory: oneDNN may take a thousand
    times as long for such a matrix."""
    return t if t.is_contiguous() or t.t().is_contiguous() else t.contiguous()


def _linear_flops(a: torch.Size, b: torch.Size, c: torch.Size | None, *_: Any, **__: Any) -> int:
    """The operations of ``_linear_pointwise(a, weight)`` and of ``_linear_pointwise.binary(a, other, weight)``: torch does not
    count them."""
    weight = b if c is None else c
    return 2 * a.numel() * weight[0]


PRODUCTS = {"mm": _mm, "onednn": _onednn}
if _linear is not None:
    register_flops(_linear, _linear_flops)


def product(a: Tensor, b: Tensor) -> Tensor:
    """The product ``a @ b.T`` of ``[m, depth]`` and ``[n, depth]``, contiguous."""
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
    if _linear is None or not torch.backends.mkldnn.is_available():
        return "this torch is built without oneDNN"
    if not torch._C._get_mkldnn_enabled():
        return "torch.backends.mkldnn.enabled is False"
    if torch.backends.mkldnn.matmul.fp32_precision in ("tf32", "bf16"):  # type: ignore[attr-defined]
        return "float32_matmul_precision allows less than float32"
    return None


@functools.cache
def vendor() -> str:
    """The maker of the processor, in its own words; empty where the system does not tell."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return ""
    return next((line.split(":")[1].strip() for line in lines if line.startswith("vendor_id")), "")


def new_output(like: Tensor, *size: int) -> Tensor:
    """A tensor without values for a result, in huge pages where it is large."""
    return torch.ops.wuskern_native.new_output(like, size)
