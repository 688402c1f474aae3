"""The ops that write to their arguments: one step of an optimizer in the chosen rows of a parameter. See :mod:`wuskern.ops`.

Autograd does not see them; what they write to counts as changed in place, so that a graph that saved it says so.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from wuskern import backends, ops


def _check_rows_of(param: Tensor, rows: Tensor, values: Tensor) -> None:
    if param.dtype not in ops.DTYPES:
        raise TypeError(f"param: expected float64, float32, float16 or bfloat16, got {param.dtype}")
    if param.ndim < 1:
        raise ValueError("param: expected at least one dimension, got none")
    ops.check_rows(rows)
    if rows.device != param.device:
        raise ValueError(f"rows: expected them on {param.device} as param is, got {rows.device}")
    k, out = rows.shape[0], param.shape[0]
    if k > out:
        raise ValueError(f"rows: expected at most {out}, as many as param has, got {k}")
    _check_like(param, "values", values, (k, *param.shape[1:]))


def _check_like(param: Tensor, name: str, other: Tensor, shape: Sequence[int]) -> None:
    if other.dtype != param.dtype:
        raise TypeError(f"{name}: expected {param.dtype} as param has, got {other.dtype}")
    if other.shape != shape or other.device != param.device:
        raise ValueError(f"{name}: expected {list(shape)} on {param.device}, got {list(other.shape)} on {other.device}")


def _declare(name: str, signature: str, check: Callable[..., None], written: int, flops: Callable[..., int]) -> None:
    """Of an op that returns nothing and writes to its first arguments, ``written`` of them."""

    def run(*arguments: Any) -> None:
        check(*arguments)
        backends.choose(name, arguments[0].device.type).run(*arguments)
        torch.autograd.graph.increment_version([t for t in arguments[:written] if t is not None])

    ops.declare(name, signature + " -> ()", check, lambda *_: None, flops, run)


# ---- rowsparse_sgd_ -------------------------------------------------------------------------------------------------


def rowsparse_sgd_(
    param: Tensor,
    momentum_buffer: Tensor | None,
    rows: Tensor,
    values: Tensor,
    lr: float,
    momentum: float = 0.0,
    dampening: float = 0.0,
    weight_decay: float = 0.0,
    nesterov: bool = False,
    maximize: bool = False,
) -> None:
    """One step of ``torch.optim.SGD`` in the chosen rows of ``param`` and ``momentum_buffer``; the others stay as they are.

    Args:
        param: ``[N, ...]``; float64, float32, float16 or bfloat16. Written to.
        momentum_buffer: as ``param``, or None for no momentum. Written to. Before the first step zeros, and that step with
            ``dampening=0``.
        rows: ``[k]``, see the top of :mod:`wuskern.ops`.
        values: ``[k, ...]``, their gradient, in the dtype of ``param``.
        lr, momentum, dampening, weight_decay, nesterov, maximize: torch's.

    Raises:
        TypeError, ValueError: dtypes, shapes, devices or ``rows`` do not fit; ``momentum`` without a buffer.
        RuntimeError, IndexError: (CPU) a row out of range; nothing was written.

    One pass over the rows, in float32 (float64 for float64); what is stored is rounded once.
    """
    arguments = param, momentum_buffer, rows, values, lr, momentum, dampening, weight_decay, nesterov, maximize
    ops.call("rowsparse_sgd_", *arguments)


def _check_sgd(
    param: Tensor, momentum_buffer: Tensor | None, rows: Tensor, values: Tensor, lr: float, momentum: float, *_: Any
) -> None:
    _check_rows_of(param, rows, values)
    if momentum_buffer is not None:
        _check_like(param, "momentum_buffer", momentum_buffer, param.shape)
    elif momentum:
        raise ValueError(f"momentum: expected 0 without a momentum_buffer, got {momentum}")


def _sgd_flops(  # type: ignore[no-untyped-def]
    param_shape, buffer_shape, rows_shape, values_shape, lr, momentum, dampening, weight_decay, nesterov, maximize, **_
) -> int:
    """Products and sums: two for the step, two for decay, three for momentum, two more for Nesterov's."""
    each = 2 + 2 * bool(weight_decay) + (3 + 2 * nesterov) * (buffer_shape is not None)
    return values_shape.numel() * each


_declare(
    "rowsparse_sgd_",
    "(Tensor(a!) param, Tensor(b!)? momentum_buffer, Tensor rows, Tensor values, float lr, float momentum, float dampening, "
    "float weight_decay, bool nesterov, bool maximize)",
    _check_sgd,
    2,
    _sgd_flops,
)


# ---- rowsparse_adam_ ------------------------------------------------------------------------------------------------


def rowsparse_adam_(
    param: Tensor,
    exp_avg: Tensor,
    exp_avg_sq: Tensor,
    max_exp_avg_sq: Tensor | None,
    step: Tensor,
    rows: Tensor,
    values: Tensor,
    lr: float,
    beta1: float,
    beta2: float,
    eps: float,
    weight_decay: float = 0.0,
    decoupled: bool = False,
    maximize: bool = False,
) -> None:
    """One step of ``torch.optim.Adam`` or AdamW in the chosen rows of ``param`` and its state; the others stay as they are.

    Args:
        param: ``[N, ...]``; float64, float32, float16 or bfloat16. Written to.
        exp_avg, exp_avg_sq: as ``param``. Written to. max_exp_avg_sq: the same for AMSGrad, else None.
        step: one number, float32 or float64, on the CPU or where ``param`` is: the steps before this one. Counted up.
        rows: ``[k]``, see the top of :mod:`wuskern.ops`.
        values: ``[k, ...]``, their gradient, in the dtype of ``param``.
        lr, beta1, beta2, eps, weight_decay, maximize: torch's. decoupled: AdamW's decay of the weights themselves.

    Raises:
        TypeError, ValueError: dtypes, shapes, devices or ``rows`` do not fit.
        RuntimeError, IndexError: (CPU) a row out of range; nothing was written.

    One pass over the rows, in float32 (float64 for float64); what is stored is rounded once. Waits for no device.
    """
    numbers = lr, beta1, beta2, eps, weight_decay, decoupled, maximize
    ops.call("rowsparse_adam_", param, exp_avg, exp_avg_sq, max_exp_avg_sq, step, rows, values, *numbers)


def _check_adam(
    param: Tensor,
    exp_avg: Tensor,
    exp_avg_sq: Tensor,
    max_exp_avg_sq: Tensor | None,
    step: Tensor,
    rows: Tensor,
    values: Tensor,
    *_: Any,
) -> None:
    _check_rows_of(param, rows, values)
    _check_like(param, "exp_avg", exp_avg, param.shape)
    _check_like(param, "exp_avg_sq", exp_avg_sq, param.shape)
    if max_exp_avg_sq is not None:
        _check_like(param, "max_exp_avg_sq", max_exp_avg_sq, param.shape)
    if step.dtype not in (torch.float32, torch.float64):
        raise TypeError(f"step: expected float32 or float64, got {step.dtype}")
    if step.numel() != 1:
        raise ValueError(f"step: expected one number, got {list(step.shape)}")
    if step.device != param.device and step.device.type != "cpu":
        raise ValueError(f"step: expected one on the CPU or {param.device}, got {step.device}")


def _adam_flops(param_shape, first, second, most, step, rows_shape, values_shape, *numbers, **_) -> int:  # type: ignore[no-untyped-def]
    """Products, sums, a root and a quotient; a comparison for AMSGrad, and what decay takes."""
    decay, decoupled = numbers[4], numbers[5]
    return values_shape.numel() * (13 + (most is not None) + (1 if decoupled else 2) * bool(decay))


_declare(
    "rowsparse_adam_",
    "(Tensor(a!) param, Tensor(b!) exp_avg, Tensor(c!) exp_avg_sq, Tensor(d!)? max_exp_avg_sq, Tensor(e!) step, Tensor rows, "
    "Tensor values, float lr, float beta1, float beta2, float eps, float weight_decay, bool decoupled, bool maximize)",
    _check_adam,
    5,
    _adam_flops,
)
