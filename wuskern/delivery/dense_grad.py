"""The dense form of a row-sparse gradient: zero outside of the chosen rows, in storage that is used again.

Filling ``[out, in]`` with zeros, and faulting its memory in, can cost more than the product that fills a few of its rows. So
each layer keeps one tensor of zeros, in which only the rows of last time are cleared. A lazy copy of it is handed out: torch
shares the storage until somebody writes to the copy, by whatever way (in place, through ``.data``, numpy or a pointer), and
only then copies. The kept tensor is thus never changed by others, and it is used again only when the copy of last time is gone;
otherwise (a gradient that is kept, a weight used twice, accumulation) the answer is a fresh tensor. One that an exception, such
as a Ctrl-C, may have left half-written is never used again.

Eager mode and a single process only. It costs the memory of a gradient between steps, as ``zero_grad(set_to_none=False)``
does.
"""

import threading

import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.nn import Parameter

from wuskern.common.shapes import is_channels_last
from wuskern.delivery.column_grad import ColumnGrad
from wuskern.delivery.part import Part
from wuskern.kernels import backends
from wuskern.sparse_grad import RowGrad

LEAST = 2**21  # bytes; filling less than that with zeros costs as little as the bookkeeping here


def dense_grad(weight: Tensor, grad: RowGrad | ColumnGrad, recycled: "Recycled | None" = None) -> Tensor:
    """A gradient ``[out, ...]`` in the dtype and strides of ``weight``: the part of ``grad``, and zeros elsewhere.

    ``recycled``: where the layer keeps its zeros, if they may be used again.
    """
    if recycled is not None and _may_recycle(weight, grad) and (lent := recycled.lend(weight, grad)) is not None:
        return lent
    if isinstance(grad, RowGrad) and _native_spreads(weight, grad.values):
        target = weight.detach().new_empty_strided(weight.size(), weight.stride())
        torch.ops.wuskern_native.spread_rows.default(target, grad.rows, grad.values.to(target.dtype))
        return target
    return _write(_zeros(weight), None, grad)


def _write(target: Tensor, stale: Part | None, grad: RowGrad | ColumnGrad) -> Tensor:
    """Clears the places ``stale`` of target, writes those of ``grad``, and returns target."""
    if isinstance(grad, ColumnGrad):
        if stale is not None:
            stale.clear(target)
        return grad.write(target)
    values = grad.values.to(target.dtype)
    of_rows = stale is None or stale.columns is None
    if of_rows and _native_writes(target, values):
        torch.ops.wuskern_native.write_rows.default(target, None if stale is None else stale.rows, grad.rows, values)
        return target
    if stale is not None:
        stale.clear(target)
    return target.index_copy_(0, grad.rows, values)


def _zeros(weight: Tensor) -> Tensor:
    """Zeros in the strides of weight, also those of dimensions of size 1: stock's gradients have them."""
    if weight.is_contiguous() or (weight.ndim == 4 and weight.is_contiguous(memory_format=torch.channels_last)):
        return weight.detach().new_empty_strided(weight.size(), weight.stride()).zero_()
    return torch.zeros_like(weight)


def _native_spreads(weight: Tensor, values: Tensor) -> bool:
    """Whether a GPU writes the rows and the zeros around them in one launch."""
    return (
        weight.is_cuda
        and type(values) is Tensor
        and values.is_contiguous()
        and (weight.is_contiguous() or is_channels_last(weight))
        and not torch.compiler.is_compiling()
        and backends.library_obstacle("cuda") is None
    )


def _native_writes(target: Tensor, values: Tensor) -> bool:
    return (
        target.is_cpu
        and target.numel() > backends.SMALL
        and type(values) is Tensor
        and values.is_contiguous()
        and (target.is_contiguous() or is_channels_last(target))
        and not torch.compiler.is_compiling()
        and backends.library_obstacle("cpu") is None
    )


class Recycled:
    """A tensor like a weight, zero in all but a few rows, that a layer uses again once its lazy copy of last time is gone."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._discard()

    def _discard(self) -> None:
        self._tensor: Tensor | None = None
        self._place: Part | None = None  # a copy: nobody else can change it
        self._lent: StorageWeakRef | None = None

    def lend(self, weight: Tensor, grad: RowGrad | ColumnGrad) -> Tensor | None:
        """A lazy copy that holds ``grad``; None while the last one is still in use, or another thread is at work here."""
        if not self._lock.acquire(blocking=False):
            return None
        try:
            if self._lent is not None and not self._lent.expired():
                return None
            tensor, stale = self._tensor, self._place
            self._discard()  # what an exception leaves half-written is gone
            if tensor is None or not _alike(tensor, weight):
                tensor, stale = _zeros(weight), None
            place = _place_of(grad).copied()
            if stale is not None and stale.same(place):
                stale = None
            lent: Tensor = torch._lazy_clone(_write(tensor, stale, grad))  # type: ignore[attr-defined]
            self._place, self._lent = place, StorageWeakRef(lent.untyped_storage())
            self._tensor = tensor  # set last: from here on the tensor may be used again
            return lent
        finally:
            self._lock.release()

    def holds(self, grad: Tensor, part: Part) -> bool:
        """Whether ``grad`` is what was lent last, nobody has written to it since, and it is zero outside of ``part``. A write
        by whatever way would have given it memory of its own."""
        kept, place = self._tensor, self._place
        if kept is None or place is None or not _alike(kept, grad):
            return False
        address = torch._C._data_address  # type: ignore[attr-defined]  # which gives no lazy copy memory of its own
        return address(kept) == address(grad) and place.same(part)


def _place_of(grad: RowGrad | ColumnGrad) -> Part:
    return Part(grad.rows, None) if isinstance(grad, RowGrad) else grad.part


def _alike(a: Tensor, b: Tensor) -> bool:
    return (a.shape, a.stride(), a.dtype) == (b.shape, b.stride(), b.dtype)


def _may_recycle(weight: Tensor, grad: RowGrad | ColumnGrad) -> bool:
    return (
        type(weight) is Parameter
        and type(grad.values) is Tensor
        and weight.is_cpu
        and weight.numel() * weight.itemsize >= LEAST
        and hasattr(torch, "_lazy_clone")
        and not torch.compiler.is_compiling()
        and not (torch.distributed.is_available() and torch.distributed.is_initialized())
    )
