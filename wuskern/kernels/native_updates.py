"""The row updates of backend ``native``, on every device: the compiled op where the rows of a parameter and of its state are
runs of memory, in one memory format; else the reference."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from wuskern.common.shapes import is_channels_last
from wuskern.kernels import reference


def rowsparse_sgd_(param: Tensor, momentum_buffer: Tensor | None, *arguments: Any) -> None:
    runs = _are_runs(param, param if momentum_buffer is None else momentum_buffer)
    update = torch.ops.wuskern_native.rowsparse_sgd_.default if runs else reference.rowsparse_sgd_
    update(param, momentum_buffer, *arguments)


def rowsparse_adam_(param: Tensor, exp_avg: Tensor, exp_avg_sq: Tensor, max_exp_avg_sq: Tensor | None, *arguments: Any) -> None:
    runs = _are_runs(param, exp_avg, exp_avg_sq, param if max_exp_avg_sq is None else max_exp_avg_sq)
    update = torch.ops.wuskern_native.rowsparse_adam_.default if runs else reference.rowsparse_adam_
    update(param, exp_avg, exp_avg_sq, max_exp_avg_sq, *arguments)


def _are_runs(*tensors: Tensor) -> bool:
    return all(map(Tensor.is_contiguous, tensors)) or all(map(is_channels_last, tensors))


OPS: dict[str, Callable[..., None]] = {"rowsparse_sgd_": rowsparse_sgd_, "rowsparse_adam_": rowsparse_adam_}
