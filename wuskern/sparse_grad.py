"""The compact gradient: torch's own hybrid sparse tensor, of one sparse dimension, as ``nn.Embedding(sparse=True)`` gives it.

``weight.grad`` then holds ``[1, k]`` indices and ``[k, ...]`` values, and whatever works on such a gradient in torch works:
clearing, hooks, GradScaler, saving, SparseAdam. What torch lacks is added once, with the first such gradient: the norm
that clipping asks for, and a refusal of SGD's momentum, whose buffer would grow in each step.

Two gradients of the same fixed ``Rows`` are added without a look at them: as often as you like, also while a CUDA graph is
captured. With other rows, as ``TopK`` has them in each backward, the second one asks which there are: that waits for a GPU, and
a capture refuses it.
"""

import functools
import threading
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.autograd.graph import Node
from torch.multiprocessing.reductions import StorageWeakRef

MOST_KNOWN = 1024  # so many storages of indices are remembered, then those that are gone are forgotten

_lock = threading.Lock()  # backward may run in several threads
_ascending: dict[int, StorageWeakRef] = {}  # storages of indices that are ascending, each once


@dataclass(frozen=True)
class RowGrad:
    """A gradient that is zero outside of ``rows`` in dimension 0 of the weight: row ``rows[i]`` is ``values[i]``.

    Attributes:
        rows: ``[k]``, int64, ascending, each once. values: ``[k, ...]``.
    """

    rows: Tensor
    values: Tensor

    def __add__(self, other: "RowGrad") -> "RowGrad":
        """The sum, over the union of the rows. The same tensor of rows is not looked at; others are, which a GPU waits for."""
        if self.rows.data_ptr() == other.rows.data_ptr() and len(self.rows) == len(other.rows):
            return RowGrad(other.rows, self.values + other.values)
        rows, place = torch.cat((self.rows, other.rows)).unique(return_inverse=True)
        values = self.values.new_zeros(len(rows), *self.values.shape[1:])
        for part, grad in zip(place.split([len(self.rows), len(other.rows)]), (self, other), strict=True):
            values.index_add_(0, part, grad.values)
        return RowGrad(rows, values)

    def dense(self, out: int) -> Tensor:
        """The gradient ``[out, ...]`` with its zeros."""
        return self.values.new_zeros(out, *self.values.shape[1:]).index_copy_(0, self.rows, self.values)


# ---- to torch's tensor and back -------------------------------------------------------------------------------------


def to_sparse(weight: Tensor, grad: RowGrad) -> Tensor:
    """A sparse tensor of torch's, of the shape and dtype of ``weight``, which shares the memory of ``grad``."""
    _teach_torch()
    _remember(grad.rows)
    values = grad.values.to(weight.dtype)
    return torch.sparse_coo_tensor(grad.rows[None], values, weight.shape, is_coalesced=True, check_invariants=False)


def to_rows(grad: Tensor) -> RowGrad:
    """The rows and values of a sparse gradient, in its own memory where each row is there once."""
    if not (grad.is_coalesced() or _is_known(grad._indices())):
        grad = grad.coalesce()
    return RowGrad(grad._indices().select(0, 0), grad._values())


def added(weight: Tensor, held: Tensor | None, grad: RowGrad) -> Tensor:
    """The sum of ``held`` and ``grad``, a new gradient of ``weight``: sparse up to half of its rows, dense with more; of the
    same rows sparse, however many they are."""
    if held is None:
        return to_sparse(weight, grad)
    values = grad.values.to(held.dtype)
    if not held.is_sparse:
        return held.index_add(0, grad.rows, values)
    before = to_rows(held)
    total = before + RowGrad(grad.rows, values)
    if 2 * len(total.rows) > len(weight) and len(total.rows) > max(len(before.rows), len(grad.rows)):
        return torch.zeros_like(weight, requires_grad=False).index_copy_(0, total.rows, total.values)
    return to_sparse(weight, total)


def taking_up_held(weight: Tensor, grad: RowGrad) -> Tensor:
    """A gradient for autograd to accumulate: ``grad``, and with it what ``weight.grad`` holds, which is None from then on.
    torch would put the two one behind the other, longer with each backward. With hooks, which have to see the new part alone,
    torch adds up.
    """
    if weight.grad is not None and not weight.grad.is_sparse:
        weight.grad.data_ptr()  # gives a lazy copy memory of its own: torch's addition asks for that too late, and fails
    if has_hooks(weight):
        return to_sparse(weight, grad)
    with _lock:
        held = weight.grad
        if held is None or not held.is_sparse:
            return to_sparse(weight, grad)
        weight.grad = None
    return added(weight, held, grad)


def accumulate(weight: Tensor, grad: RowGrad) -> None:
    """Adds ``grad`` to ``weight.grad``, as autograd itself would."""
    with _lock:
        weight.grad = added(weight, weight.grad, grad)


def has_hooks(weight: Tensor) -> bool:
    """Whether a hook looks at the gradients of ``weight``."""
    return bool(weight._backward_hooks) or bool(getattr(weight, "_post_accumulate_grad_hooks", None))


def is_used(node: Node) -> tuple[bool, bool]:
    """Whether the backward that runs now comes to ``node``, which takes a weight's gradient, and whether the node adds it to
    the weight's ``grad``: not where ``autograd.grad`` asks for it."""
    try:
        comes = torch._C._will_engine_execute_node(node)  # type: ignore[attr-defined]
    except RuntimeError:  # raised for a leaf that autograd.grad names
        return True, False
    return comes, comes


def _remember(rows: Tensor) -> None:
    storage = rows.untyped_storage()
    if len(_ascending) >= MOST_KNOWN:
        for key in [key for key, known in list(_ascending.items()) if known.expired()]:
            _ascending.pop(key, None)
    _ascending[storage._cdata] = StorageWeakRef(storage)


def _is_known(indices: Tensor) -> bool:
    """Whether these indices were made here, and ascend: autograd shares their memory, but drops torch's flag for that."""
    storage = _ascending.get(indices.untyped_storage()._cdata)
    return storage is not None and not storage.expired()


# ---- what torch lacks -----------------------------------------------------------------------------------------------

_aten = torch.library.Library("aten", "IMPL")


@functools.cache
def _teach_torch() -> None:
    for key in ("SparseCPU", "SparseCUDA"):
        if not torch._C._dispatch_has_kernel_for_dispatch_key("aten::linalg_vector_norm", key):
            _aten.impl("linalg_vector_norm", _vector_norm, key)


def _vector_norm(
    x: Tensor, ord: float = 2, dim: list[int] | None = None, keepdim: bool = False, *, dtype: torch.dtype | None = None
) -> Tensor:
    """The norm of all elements of a sparse tensor, the zeros that it does not hold among them."""
    if dim is not None or keepdim:
        raise NotImplementedError(f"dim: expected None for the norm of a sparse tensor, got {dim}")
    values = x.coalesce()._values() if not _is_known(x._indices()) else x._values()
    if (float(ord) < 0 or not values.numel()) and values.numel() < x.numel():
        values = torch.cat((values.flatten(), values.new_zeros(1)))
    return torch.linalg.vector_norm(values, ord, dtype=dtype)
