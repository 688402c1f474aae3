"""The ops that write to their arguments: one step of an optimizer in the chosen rows of a parameter. See :mod:`wuskern.ops`.

Autograd does not see them; what they write to counts as changed in place, so that a graph that saved it says so.
"""

import torch
from torch import Tensor

from wuskern.ops import checks
from wuskern.ops.contract import call, declare

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
        momentum_buffer: as ``param``, or as ``values``, of the chosen rows alone; None for no momentum. Written to. Before the
            first step zeros, and that step with ``dampening=0``.
        rows: ``[k]``, see the top of :mod:`wuskern.ops`.
        values: ``[k, ...]``, their gradient, or ``[N, ...]``, that of all rows; in the dtype of ``param``.
        lr, momentum, dampening, weight_decay, nesterov, maximize: torch's.

    Raises:
        TypeError, ValueError: dtypes, shapes, devices or ``rows`` do not fit; ``momentum`` without a buffer.
        RuntimeError, IndexError: (CPU) a row out of range; nothing was written.

    One pass over the rows, in float32 (float64 for float64); what is stored is rounded once.
    """
    arguments = param, momentum_buffer, rows, values, lr, momentum, dampening, weight_decay, nesterov, maximize
    call("rowsparse_sgd_", *arguments)


def _check_sgd(param: Tensor, momentum_buffer: Tensor | None, rows: Tensor, values: Tensor, *numbers: float) -> None:
    lr, momentum, _dampening, weight_decay, *_ = numbers
    checks.rows_of(param, rows, values)
    checks.apart(param, momentum_buffer, rows, values)
    checks.at_least_zero(lr=lr, momentum=momentum, weight_decay=weight_decay)
    if momentum_buffer is not None:
        checks.states_of(param, rows, momentum_buffer=momentum_buffer)
    elif momentum:
        raise ValueError(f"momentum: expected 0 without a momentum_buffer, got {momentum}")


def _sgd_flops(param_shape, buffer_shape, rows_shape, values_shape, *numbers, **_) -> int:  # type: ignore[no-untyped-def]
    """Products and sums: two for the step, two for decay, three for momentum, two more for Nesterov's."""
    _lr, _momentum, _dampening, weight_decay, nesterov, _maximize = numbers
    each = 2 + 2 * bool(weight_decay) + (3 + 2 * nesterov) * (buffer_shape is not None)
    return rows_shape.numel() * values_shape[1:].numel() * each


declare(
    "rowsparse_sgd_",
    "(Tensor(a!) param, Tensor(b!)? momentum_buffer, Tensor rows, Tensor values, float lr, float momentum, float dampening, "
    "float weight_decay, bool nesterov, bool maximize) -> ()",
    _check_sgd,
    lambda *_: None,
    _sgd_flops,
    written=2,
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
        exp_avg, exp_avg_sq: as ``param``, or both as ``values``, of the chosen rows alone. Written to. max_exp_avg_sq: the same
            for AMSGrad, else None.
        step: one number, float32 or float64, on the CPU or where ``param`` is: the steps before this one. Counted up.
        rows: ``[k]``, see the top of :mod:`wuskern.ops`.
        values: ``[k, ...]``, their gradient, or ``[N, ...]``, that of all rows; in the dtype of ``param``.
        lr, beta1, beta2, eps, weight_decay, maximize: torch's. decoupled: AdamW's decay of the weights themselves.

    Raises:
        TypeError, ValueError: dtypes, shapes, devices or ``rows`` do not fit.
        RuntimeError, IndexError: (CPU) a row out of range; nothing was written.

    One pass over the rows, in float32 (float64 for float64); what is stored is rounded once. Waits for no device.
    """
    numbers = lr, beta1, beta2, eps, weight_decay, decoupled, maximize
    call("rowsparse_adam_", param, exp_avg, exp_avg_sq, max_exp_avg_sq, step, rows, values, *numbers)


def _check_adam(
    param: Tensor,
    exp_avg: Tensor,
    exp_avg_sq: Tensor,
    max_exp_avg_sq: Tensor | None,
    step: Tensor,
    rows: Tensor,
    values: Tensor,
    *numbers: float,
) -> None:
    lr, beta1, beta2, eps, weight_decay, *_ = numbers
    checks.rows_of(param, rows, values)
    checks.states_of(param, rows, exp_avg=exp_avg, exp_avg_sq=exp_avg_sq, max_exp_avg_sq=max_exp_avg_sq)
    checks.apart(param, exp_avg, exp_avg_sq, max_exp_avg_sq, rows, values)
    checks.at_least_zero(lr=lr, eps=eps, weight_decay=weight_decay)
    checks.at_least_zero(below_one=True, beta1=beta1, beta2=beta2)
    if step.dtype not in (torch.float32, torch.float64):
        raise TypeError(f"step: expected float32 or float64, got {step.dtype}")
    if step.numel() != 1:
        raise ValueError(f"step: expected one number, got {list(step.shape)}")
    checks.writable("step", step)


def _adam_flops(param_shape, first, second, most, step, rows_shape, values_shape, *numbers, **_) -> int:  # type: ignore[no-untyped-def]
    """Products, sums, a root and a quotient; a comparison for AMSGrad, and what decay takes."""
    _lr, _beta1, _beta2, _eps, decay, decoupled, _maximize = numbers
    return rows_shape.numel() * values_shape[1:].numel() * (13 + (most is not None) + (1 if decoupled else 2) * bool(decay))


declare(
    "rowsparse_adam_",
    "(Tensor(a!) param, Tensor(b!) exp_avg, Tensor(c!) exp_avg_sq, Tensor(d!)? max_exp_avg_sq, Tensor(e!) step, Tensor rows, "
    "Tensor values, float lr, float beta1, float beta2, float eps, float weight_decay, bool decoupled, bool maximize) -> ()",
    _check_adam,
    lambda *_: None,
    _adam_flops,
    written=5,
    elsewhere=("step",),
)
