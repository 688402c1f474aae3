"""The compact form of a weight's gradient, for a consumer that asked for it: ``weight.row_grad`` beside ``weight.grad``."""

import threading

import torch
from torch import Tensor
from torch.nn import Parameter

from wuskern import deliver
from wuskern.rows import RowGrad

_lock = threading.Lock()


def request_row_grad(weight: Parameter) -> None:
    """From now on row-sparse layers leave ``weight.grad`` as it is and add to ``weight.row_grad``, a :class:`RowGrad`.

    For whoever consumes it, such as an optimizer, which sets ``weight.row_grad = None`` where it would clear ``grad``.
    """
    if wants_row_grad(weight) and deliver.is_key_of(weight.row_grad_key, weight):  # type: ignore[attr-defined]
        return
    weight.row_grad_key = deliver.new_key(weight, _receive)  # type: ignore[attr-defined]
    weight.row_grad = None  # type: ignore[attr-defined]


def wants_row_grad(weight: Tensor) -> bool:
    return hasattr(weight, "row_grad_key")


def row_grad_key(weight: Tensor) -> Tensor | None:
    """Where a compiled backward delivers the rows of ``weight``; None where nobody asked for them."""
    return getattr(weight, "row_grad_key", None)


def hand_over(weight: Tensor, key: Tensor, grad: RowGrad) -> None:
    """Adds ``grad`` to ``weight.row_grad``, in the dtype of the weight."""
    values = grad.values.to(weight.dtype)
    if torch.compiler.is_compiling():
        deliver.from_compiled(key, grad.rows, values)
    else:
        _receive(weight, grad.rows, values)


def _receive(weight: Tensor, rows: Tensor, values: Tensor) -> None:
    grad = RowGrad(rows, values)
    with _lock:  # backward may run in several threads
        held = weight.row_grad  # type: ignore[attr-defined]
        weight.row_grad = grad if held is None else held + grad  # type: ignore[attr-defined]
