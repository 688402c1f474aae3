"""The compact form of a weight's gradient, for a consumer that asked for it: ``weight.row_grad`` in place of ``weight.grad``.

A compiled backward cannot set an attribute of a tensor. It calls an op instead, which finds the weight by its key: a tensor,
so that one graph serves layers of one shape. The op says of itself that it writes to the key, which it does not, so that no
compiler leaves it out.
"""

import itertools
import threading
import weakref

import torch
from torch import Tensor
from torch.nn import Parameter

from wuskern.rows import RowGrad

_library = torch.library.Library("wuskern", "FRAGMENT")
_library.define("hand_over_rows(Tensor(a!) key, Tensor rows, Tensor values) -> ()", tags=torch.Tag.pt2_compliant_tag)
torch.library.register_fake("wuskern::hand_over_rows", lambda key, rows, values: None, lib=_library)

_weights: weakref.WeakValueDictionary[int, Tensor] = weakref.WeakValueDictionary()
_keys = itertools.count()
_lock = threading.Lock()


def request_row_grad(weight: Parameter) -> None:
    """From now on row-sparse layers leave ``weight.grad`` as it is and add to ``weight.row_grad``, a :class:`RowGrad`.

    For whoever consumes it, such as an optimizer, which sets ``weight.row_grad = None`` where it would clear ``grad``.
    """
    if wants_row_grad(weight) and _weights.get(int(weight.row_grad_key)) is weight:  # type: ignore[attr-defined]
        return
    key = next(_keys)
    _weights[key] = weight
    weight.row_grad_key = torch.tensor(key)  # type: ignore[attr-defined]
    weight.row_grad = None  # type: ignore[attr-defined]


def wants_row_grad(weight: Tensor) -> bool:
    return hasattr(weight, "row_grad_key")


def hand_over(weight: Tensor, grad: RowGrad) -> None:
    """Adds ``grad`` to ``weight.row_grad``, in the dtype of the weight; from a compiled backward too."""
    values = grad.values.to(weight.dtype)
    if torch.compiler.is_compiling():
        torch.ops.wuskern.hand_over_rows(weight.row_grad_key, grad.rows, values)  # type: ignore[attr-defined]
    else:
        _add(weight, RowGrad(grad.rows, values))


def _add(weight: Tensor, grad: RowGrad) -> None:
    with _lock:  # backward may run in several threads
        held = weight.row_grad  # type: ignore[attr-defined]
        weight.row_grad = grad if held is None else held + grad  # type: ignore[attr-defined]


def _hand_over_rows(key: Tensor, rows: Tensor, values: Tensor) -> None:
    weight = _weights.get(int(key))
    if weight is None:
        raise RuntimeError("row_grad: expected the weight that asked for compact rows, which is gone: ask again for its copy")
    _add(weight, RowGrad(rows.clone(), values.clone()))  # compiled code uses its memory again


_library.impl("hand_over_rows", _hand_over_rows, "CompositeExplicitAutograd")
