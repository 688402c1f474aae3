"""What a parameter holds beside ``grad``: ``row_grad``, its gradient in some rows."""

from collections.abc import Iterable

import torch
from torch import Tensor
from torch.nn import Parameter

from wuskern import ops
from wuskern.compact import request_row_grad
from wuskern.rows import RowGrad


def request(parameters: Iterable[Tensor]) -> None:
    """Asks for compact rows of those that can have them: plain parameters of a Linear's or a convolution's rank. A DTensor
    (FSDP2) or another subclass keeps its dense gradient."""
    for parameter in parameters:
        if type(parameter) is Parameter and parameter.ndim >= 2 and parameter.dtype in ops.DTYPES:
            request_row_grad(parameter)


def row_grad_of(parameter: Tensor) -> RowGrad | None:
    return getattr(parameter, "row_grad", None)


def drop(parameter: Tensor) -> None:
    if row_grad_of(parameter) is not None:
        parameter.row_grad = None  # type: ignore[attr-defined]


def fold(parameter: Tensor) -> RowGrad | None:
    """The ``row_grad``, if that is all the parameter holds. Where there is a ``grad`` too, the sum becomes ``grad``."""
    rows = row_grad_of(parameter)
    if rows is None or parameter.grad is None:
        return rows
    with torch.no_grad():
        if parameter.grad.is_sparse:
            parameter.grad = rows.dense(parameter.shape[0]) + parameter.grad
        else:
            parameter.grad.index_add_(0, rows.rows, rows.values.to(parameter.grad.dtype))
    drop(parameter)
    return None
