"""The row updates of backend ``native``, on every device: the compiled op where the rows of a parameter and of its state are
runs of memory, in one memory format; else the reference."""

from typing import Any

import torch
from torch import Tensor

from wuskern import reference
from wuskern.shapes import is_channels_last


def rowsparse_sgd_(param: Tensor, momentum_buffer: Tensor | None, rows: Tensor, values: Tensor, *numbers: float | bool) -> None:
    if _rows_are_runs(param, momentum_buffer):
        update = torch.ops.wuskern_native.rowsparse_sgd_.default
        update(param, momentum_buffer, rows.contiguous(), values.contiguous(), *numbers)
    else:
        reference.rowsparse_sgd_(param, momentum_buffer, rows, values, *numbers)  # type: ignore[arg-type]


def rowsparse_adam_(
    param: Tensor,
    exp_avg: Tensor,
    exp_avg_sq: Tensor,
    max_exp_avg_sq: Tensor | None,
    step: Tensor,
    rows: Tensor,
    values: Tensor,
    *numbers: Any,
) -> None:
    state = exp_avg, exp_avg_sq, max_exp_avg_sq
    if _rows_are_runs(param, *state):
        torch.ops.wuskern_native.rowsparse_adam_.default(param, *state, step, rows.contiguous(), values.contiguous(), *numbers)
    else:
        reference.rowsparse_adam_(param, *state, step, rows, values, *numbers)


def _rows_are_runs(param: Tensor, *state: Tensor | None) -> bool:
    tensors = [param, *(t for t in state if t is not None)]
    return all(t.is_contiguous() for t in tensors) or all(is_channels_last(t) for t in tensors)
