"""Every op: its docstring is the contract, its schema and fake say the same to PyTorch, and its backend is chosen per call.

Two namespaces carry the same schemas. ``wuskern::<op>`` is the op that a graph sees; it checks its arguments, asks
``backends`` and runs. ``wuskern_native::<op>`` is where the compiled libraries register their kernels. The functions here
do in eager mode what ``wuskern::<op>`` does, without a dispatch into Python.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from wuskern import backends

DTYPES = (torch.float64, torch.float32, torch.float16, torch.bfloat16)
NAMES: list[str] = []  # of all ops

_contract = torch.library.Library("wuskern", "DEF")
_native = torch.library.Library("wuskern_native", "DEF")
for _name in ("cpu_capability", "cuda_architectures"):  # what the two libraries say of themselves
    _native.define(f"{_name}() -> str")


def _declare(name: str, signature: str, run: Callable[..., Any], fake: Callable[..., Any], flops: Callable[..., int]) -> None:
    for library in (_contract, _native):
        library.define(name + signature, tags=torch.Tag.pt2_compliant_tag)
        torch.library.register_fake(f"{library.ns}::{name}", fake, lib=library)
        register_flop_formula(getattr(getattr(torch.ops, library.ns), name))(flops)
    _contract.impl(name, run, "CompositeExplicitAutograd")
    NAMES.append(name)


# ---- bias_grad ------------------------------------------------------------------------------------------------------


def bias_grad(dy: Tensor, dim: int) -> Tensor:
    """Gradient of a bias: ``db[c] = sum of dy over every dimension but dim``, in one read of ``dy``.

    Args:
        dy: gradient of the output, ``[..., N]`` with ``dim=-1`` (Linear) or ``[B, C, *spatial]`` with ``dim=1`` (Conv),
            of any rank >= 1 and any strides; float64, float32, float16 or bfloat16.
        dim: the dimension that is kept.

    Returns:
        ``[dy.shape[dim]]`` in the dtype of ``dy``; zeros where ``dy`` is empty. Sums are taken in float32 or wider
        (float64 for float64), in an order that depends on shape, strides and machine alone.

    Raises:
        TypeError: another dtype.
        ValueError: ``dim`` out of range, or a 0-d ``dy``.

    Equivalent to ``dy.sum([d for d in range(dy.ndim) if d != dim])``. Reads ``dy`` once wherever its dimensions fold to
    [outer, channels, inner] with unit stride in one of the last two; any other layout is copied first.
    """
    if torch.compiler.is_compiling():
        return torch.ops.wuskern.bias_grad.default(dy, dim)
    return _bias_grad(dy, dim)


def _check_bias_grad(dy: Tensor, dim: int) -> None:
    if dy.dtype not in DTYPES:
        raise TypeError(f"dy: expected float64, float32, float16 or bfloat16, got {dy.dtype}")
    if not -dy.ndim <= dim < dy.ndim:
        raise ValueError(f"dim: expected a dimension of dy, which has {dy.ndim}, got {dim}")


def _bias_grad(dy: Tensor, dim: int) -> Tensor:
    _check_bias_grad(dy, dim)
    return backends.choose("bias_grad", dy.device.type).run(dy, dim)


def _bias_grad_fake(dy: Tensor, dim: int) -> Tensor:
    _check_bias_grad(dy, dim)
    return dy.new_empty((dy.shape[dim],))


def _bias_grad_flops(dy_shape: torch.Size, dim: int, **_: Any) -> int:
    """One addition for each element but the first of a sum."""
    return max(0, dy_shape.numel() - dy_shape[dim])


_declare("bias_grad", "(Tensor dy, int dim) -> Tensor", _bias_grad, _bias_grad_fake, _bias_grad_flops)
